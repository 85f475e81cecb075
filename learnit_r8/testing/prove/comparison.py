"""Two trainings compared step by step: where they first differ, and what that difference is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .launches import Step

NEAR = 2
"""Steps by which a counter may be ahead or behind to have counted some twice."""

COMPARED = 3
"""Batches in a row that must be found again, for a place in the order of the data."""

WHOLE_STATE = {"weights": "w", "moments": "m", "buffers": "u"}
EACH_STEP = {"optimizer": "o", "backward passes": "b", "rates": "r", "settings": "h", "scaler": "s", "losses": "l"}

Steps = Sequence[Step]
Rows = tuple[tuple[str, ...], ...]


class Difference(NamedTuple):
    """The first difference: the step of the uninterrupted training, of the restarted one (1 is its first), and in what.

    ``kind`` is a key of `report.KINDS`, ``detail`` says how many and which.
    """

    step: int
    local: int
    parts: tuple[str, ...]
    kind: str
    detail: str = ""
    rank: int = 0


def contents_of(step: Step) -> list[str]:
    """What tells the batches of a step apart: their content, or else what went into the network."""
    return ["-".join(each[4]) for each in step["x"]] or list(step["i"])


def samples_of(step: Step) -> list[str]:
    """The samples of the batches of a step, where a loader takes them by their index."""
    return [each[2] for each in step["x"] if each[2]]


def is_epoch_start(steps: Steps, place: int) -> bool:
    """Whether a loader begins again with this step."""
    here, before = steps[place]["x"], steps[place - 1]["x"] if place else []
    return bool(here) and (not before or here[0][0] != before[-1][0])


def parts_that_differ(one: Step, two: Step) -> list[str]:
    """In what two steps differ; the whole state is compared where both have it."""
    if two["b"] < one["b"] and two.get("a"):
        # It went on in the middle of an accumulation, with the gradients: the rest of the batch is what is compared.
        one = {**one, "b": two["b"], **{key: one[key][-two["b"] :] for key in ("l", "x", "i")}}
    found = [name for name, key in EACH_STEP.items() if repr(one.get(key)) != repr(two.get(key))]
    if contents_of(one) != contents_of(two):
        found.append("content" if samples_of(one) and samples_of(one) == samples_of(two) else "batches")
    found += ["input"] if one["i"] != two["i"] else []
    if "w" in one and "w" in two:
        found += [name for name, key in WHOLE_STATE.items() if one[key] != two[key]]
        copies = [{*each["e"].values()} for each in (one, two)]
        found += ["copies"] if all(copies) and not copies[0] & copies[1] else []
    return found


def generators_that_differ(one: Step, two: Step) -> list[str]:
    """The random generators that differ."""
    return sorted(name for name in one["g"].keys() & two["g"].keys() if one["g"][name] != two["g"][name])


def are_whole(steps: Steps, reference: Steps) -> bool:
    """Whether two trainings can be compared to their end."""
    return steps[-1].get("end") == "end" and reference[-1].get("end") != "kill"


def align(steps: Steps, reference: Steps, last: int, whole: Steps | None = None) -> int:
    """After which step of a reference a training goes on: by the weights, the optimizer's count, or its batches.

    If nothing of these tells, it is 0 for a training as long as a whole one, which the reference may be, else the last
    that it may be.
    """
    first, firsts = steps[0], [contents_of(each) for each in steps[:COMPARED]]
    # The same weights twice, as after a step that a scaler skipped: the moments decide, then the later.
    same = [(x["m"] == first["m"], x["n"]) for x in reference if x.get("w") == first.get("w") and x["n"] <= last + 1]
    counts = [x["n"] for x in reference if first.get("c") and x.get("c") == first["c"] and x["o"] == first["o"]]
    if same or counts:
        return int((max(same)[1] if same else counts[-1]) - 1)
    if are_whole(steps, whole or reference) and len(steps) == len(whole or reference):
        return 0
    places = range(min(last, len(reference) - len(firsts)), -1, -1)
    found = (x for x in places if [*map(contents_of, reference[x:][: len(firsts)])] == firsts)
    return next(found, min(last, len(reference) - 1))


def first_difference(steps: Steps, reference: Steps, after: int, only: set[str] | None = None) -> Difference | None:
    """The first step of a training that differs from its reference, which it follows after a step; None if none does.

    Args:
        steps: What a restarted training noted.
        reference: The steps of one that was not killed, from the first on.
        after: The step of the reference that it goes on from.
        only: Parts that are compared, where others differ without a kill, too.
    """
    for place, (one, two) in enumerate(zip(reference[after:], steps, strict=False)):
        if parts := [x for x in parts_that_differ(one, two) if only is None or x in only]:
            return Difference(after + place + 1, place + 1, tuple(parts), *_kind(parts, steps, reference, after, place))
    count, right = after + len(steps), len(reference)
    if not are_whole(steps, reference) or count == right:
        return None
    kind, step = "twice" if count < right <= count + NEAR else "steps", min(count, right) + 1
    return Difference(step, step - after, ("number of steps",), kind, f"{count} in place of {right}")


def _kind(parts: list[str], steps: Steps, reference: Steps, after: int, place: int) -> tuple[str, str]:
    """The kind of a difference that explains the others, with what is to be said of it."""
    one, two, has, is_first = reference[after + place], steps[place], {*parts}, place == 0
    generators = generators_that_differ(reference[after], steps[0]) or generators_that_differ(one, two)
    told = f"generators that differ: {', '.join(generators)}" if generators else ""
    starts, should = is_epoch_start(steps, place), is_epoch_start(reference, after + place)
    ahead = _shift_of_rates(steps, reference, after, place) if "rates" in has else 0
    passes = f"{two['b']} in place of {one['b']} backward passes"
    order, detail = _order(steps, reference, after, place, told) if "batches" in has else ("", "")
    # What is left out where a later epoch begins is what was done in the first.
    order = "epoch" if order == "skipped" and not is_first and starts else order
    names = [", ".join(each["names"]) or "none" for each in (two, one) if "names" in each]
    is_lost, is_new = "losses" in has, "input" in has and not has & {"batches", "weights"}
    table = [
        ("backward passes" in has and is_first, "accumulation", f"{passes} in the first step"),
        (order and not is_first and starts != should, "epoch",
            f"the epoch ends {'early' if starts else 'late'}, at step {one['n']}"),
        (ahead, "twice", f"the rates are those of {ahead} step{'s' * (ahead > 1)} later"),
        (order, order, detail),
        # The rate of an optimizer that is made anew is another, too.
        ("moments" in has and is_first, "moments", " in place of ".join(dict.fromkeys(names)) * (len({*names}) > 1)),
        ("rates" in has and not ahead, "schedule", f"{two['r']} in place of {one['r']}"),
        ("scaler" in has, "scaler", f"{two.get('s')} in place of {one.get('s')}"),
        ("moments" in has and not is_first, "moments", ""),
        ("settings" in has, "settings", ""),
        ("weights" in has and is_first, "weights", ""),
        ("buffers" in has and not has & {"batches", "content", "input"}, "buffers", ""),
        ("copies" in has, "ema", ""),
        ("content" in has, "augmentation", f"the same samples, other content; {told}"),
        ("content" not in has and is_new, "augmentation", f"the same batch, another input of the network; {told}"),
        (is_lost and generators and not has & {"content", "input", "batches", "weights", "scaler", "buffers"},
            "dropout", told),
        ("backward passes" in has and not is_first, "accumulation", passes),
        (True, "unknown", ""),
    ]  # fmt: skip
    return next((kind, detail) for holds, kind, detail in table if holds)


def _shift_of_rates(steps: Steps, reference: Steps, after: int, place: int) -> int:
    """By how many steps the rates of a training are ahead, or 0 if they are not those of a step soon after."""
    here = [each["r"] for each in steps[place : place + 8]]
    for shift in range(1, NEAR + 1):
        there = [each["r"] for each in reference[after + place + shift :][: len(here)]]
        if there == here[: len(there)] and len({repr(each) for each in there}) > 1:
            return shift
    return 0


def _order(steps: Steps, reference: Steps, after: int, place: int, told: str) -> tuple[str, str]:
    """What became of the order of the data: where the batches of a training are in that of the reference."""
    right, wrong = reference[after + place], steps[place]
    per_step = max(1, len(contents_of(right)))
    for keys_of in (contents_of, samples_of):
        flat = [(key, number) for number, each in enumerate(reference) for key in keys_of(each)]
        keys = [key for key, _ in flat]
        here = [key for each in steps[place : place + COMPARED] for key in keys_of(each)][: 2 * COMPARED]
        found = [i for i in range(len(keys) - len(here) + 1) if keys[i : i + len(here)] == here] if here else []
        if found:
            break
    else:
        one, two = (each["x"][0] if each["x"] else [0, 0, None, None, []] for each in (right, wrong))
        if two[2] is None and set(two[4]) & set(one[4]):
            return "augmentation", f"the same labels, other content; {told}"
        which = f"samples {two[3]} ... in place of {one[3]} ..." if one[3] and two[3] else ""
        # Without a loader, a generator draws the batches.
        return "shuffle" if right["x"] or not told else "drawn", "; ".join(filter(None, [which, told]))
    expected = next((i for i, (_, number) in enumerate(flat) if number == after + place), len(flat))
    # In the middle of an accumulation, some of the first step's batches are done.
    expected += per_step - len(contents_of(wrong)) if wrong.get("a") else 0
    nearest = min(found, key=lambda i: (abs(i - expected), i))
    at, number = flat[nearest][1], abs(expected - nearest)
    is_start = nearest == 0 or (is_epoch_start(reference, at) and flat[nearest - 1][1] != at)
    if is_start and nearest < expected:
        return "restarted", f"batch {nearest + 1} of the training again, in place of {expected + 1}"
    shown = [", ".join(map(str, each[3])) for each in reference[min(at, after + place)]["x"][:1] if each[3]]
    samples = f", from that of the samples {shown[0]} ... on" if shown else ""
    how = f"{number} batch{'es' * (number > 1)}" + (f", {per_step} in each step" if per_step > 1 else "")
    return ("repeated" if nearest < expected else "skipped"), how + samples


def spread(one: Steps, two: Steps) -> float:
    """The largest relative difference of the losses of two trainings."""
    pairs = [(a, b) for x, y in zip(one, two, strict=False) for a, b in zip(x["l"], y["l"], strict=False)]
    return max((abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in pairs if a == a and b == b), default=0.0)


def first_odd(one: list[list[Step]], two: list[list[Step]]) -> tuple[set[str], int] | None:
    """In what two trainings that were not resumed differ, and from which step on; of the first rank that does."""
    for first, second in zip(one, two, strict=False):
        differing = [(parts_that_differ(a, b), a["n"]) for a, b in zip(first, second, strict=False)]
        if differing := [each for each in differing if each[0]]:
            return {part for parts, _ in differing for part in parts}, differing[0][1]
    return None


def evidence(difference: Difference, ranks: Sequence[Steps], whole: Sequence[Steps]) -> Rows:
    """What differs in the step of a difference and in the next, as the two trainings had it."""
    rows: list[tuple[str, ...]] = []
    begin, rank = difference.step - 1, difference.rank
    for pair in [*zip(whole[rank][begin:], ranks[rank][difference.local - 1 :], strict=False)][:2]:
        shown = [{name: each.get(key) for name, key in (EACH_STEP | WHOLE_STATE).items()} for each in pair]
        for told, each in zip(shown, pair, strict=True):
            told |= {"batches": [x[3] or x[4] for x in each["x"]] or each["i"], "copies": [*each.get("e", {}).values()]}
        for name in sorted(shown[0].keys() & shown[1]):
            texts = [str(each[name]) for each in shown if each[name]]
            if len({*texts}) == 2:
                rows.append((str(pair[0]["n"]), name, *(x if len(x) <= 40 else f"{x[:37]}..." for x in texts)))
    return tuple(rows)

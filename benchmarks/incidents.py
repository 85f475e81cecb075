"""What becomes of runs in which more than one thing goes wrong, or nothing does: whole trainings, counted.

Six rows; what each counts is said by the function of its name in `incident_faults.py` or below.

    poison      a state that is poisoned 1 to 8 backups before it shows, with a healthy one left: healed
    one_nan     healthy runs with one NaN loss: anything else refused
    bad_sample  one sample whose loss is NaN, once an epoch: gives up, lowers the rate, costs accuracy
    outlier     one loss reported too high, steps 3 to 79: felt later
    starts      the first 120 steps of healthy runs: anything refused
    blow_ups    weights blown up by one step, steps 10 to 79: refused within 32 steps

Counts are given with their 95 % interval (Wilson) and by seed. A failing case is printed as ``--case`` takes it.

    python benchmarks/incidents.py                     all rows, about fifteen minutes on two cores
    python benchmarks/incidents.py --long              a thousand poisoned runs
    python benchmarks/incidents.py --quick             some cases of each row, under a minute
    python benchmarks/incidents.py --row poison --seeds 1
    python benchmarks/incidents.py --case "Start(task='digits', batch_size=8, reports='means', warmup=0.0, seed=0)"
"""

from __future__ import annotations

import argparse
import ast
import itertools
import math
import multiprocessing
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from incident_faults import (
    BadSample,
    Counts,
    OneNan,
    Outlier,
    Poison,
    Result,
    run_bad_sample,
    run_one_nan,
    run_outlier,
    run_poison,
)
from incident_tasks import TASKS, Hear, Network, build, make_task, report, train_on

import learnit_r8


class Start(NamedTuple):
    """The first 120 steps of a healthy run."""

    task: str
    batch_size: int
    reports: str
    warmup: float
    seed: int


def run_start(case: Start, hear: Hear | None = None) -> Result:
    """Fails where a loss is refused, unless the loss on fixed data had truly risen above all before by half."""
    task, heard = make_task(case.task, case.seed), Counts(hear)
    model = Network(task, case.seed)
    steps = 120 if case.warmup == 0 else 1200
    r8 = build(task, case.batch_size, steps, case.seed, heard, warmup_proportion=case.warmup)
    highest, top = model.loss(512), 0.0
    seen, worst = -math.inf, 0.0
    for step in range(120):
        ticket = r8.draw()
        losses = model.losses(ticket.indices)
        mean = float(losses.mean())
        worst = max(worst, mean / seen) if step >= 4 and seen > 0 else worst
        train_on(r8, model, ticket, losses, case.reports, "before")
        if step % 10 == 9 or heard.refused:
            top = model.loss(512)
        if heard.refused:
            break
        seen, highest = max(seen, mean), max(highest, top)
    if heard.refused and not top <= highest + 0.5 * abs(highest):
        return Result(case, None, f"not healthy: {highest:.3g} to {top:.3g}")
    note = f"refused at {heard.refused[:5]}, loss {mean:.3g}, highest before {seen:.3g}" if heard.refused else ""
    return Result(case, not heard.refused, note, {"worst": worst})


class BlowUp(NamedTuple):
    """The weights times ``by`` after a step ("weights"), or one step with ``by`` times the rate ("rate")."""

    task: str
    batch_size: int
    reports: str
    how: str
    by: float
    at: int
    seed: int


def run_blow_up(case: BlowUp, hear: Hear | None = None) -> Result:
    """Fails where it is not refused within 32 steps, of those that raise the next loss to 3 x the highest before."""
    task, heard = make_task(case.task, case.seed), Counts(hear)
    model, highest, means = Network(task, case.seed), 0.0, []
    r8 = build(task, case.batch_size, 1000, case.seed, heard)
    for step in range(case.at + 33):
        ticket = r8.draw()
        losses = model.losses(ticket.indices)
        means.append(float(losses.mean()))
        if step == case.at + 1 and not means[-1] < 3 * highest and heard.refused:
            return Result(case, None, "refused before")
        if step == case.at + 1 and means[-1] < 3 * highest:
            return Result(case, None, "the next loss is not 3 x as high")
        highest = max(highest, means[-1])
        is_now = step == case.at
        outcome = report(r8, ticket, losses, case.reports, is_sum=task.is_sum)
        if step > case.at and heard.refused:
            kind = "not finite" if not math.isfinite(means[-1]) else "refused"
            return Result(case, True, kind, {"delay": step - case.at, "nan": float(kind == "not finite")})
        if outcome:
            model.step(ticket.lr * (case.by if is_now and case.how == "rate" else 1.0))
        if is_now and case.how == "weights":
            for weight in model.weights:
                weight *= case.by
    after = means[case.at + 1 :]
    shown = ", ".join(f"{value / max(means[: case.at + 1]):.2g}" for value in after[:8])
    return Result(
        case,
        False,
        f"next losses / highest before: {shown}",
        {"high": sum(value > max(means[: case.at + 1]) for value in after)},
    )


RUNNERS: dict[type, Callable[..., Result]] = {
    Poison: run_poison, OneNan: run_one_nan, BadSample: run_bad_sample, Outlier: run_outlier, Start: run_start,
    BlowUp: run_blow_up,
}  # fmt: skip


def run_case(case: Any) -> Result:
    """One case, in a process of the pool."""
    warnings.simplefilter("ignore")
    with np.errstate(all="ignore"):
        return RUNNERS[type(case)](case)


def poison_cases(seed: int) -> list[Any]:
    """80 of a seed: ten for each kind of damage and way to show, the rest at random."""
    rng, cases = np.random.default_rng([seed, 1]), []
    names = ("digits", "digits mlp", "clouds", "regression")
    for kind, show, _ in itertools.product(("nan", "spike", "raised", "array"), ("at once", "fuse"), range(10)):
        resume = str(rng.choice(["no", "no", "before", "after"]))
        # Only a backup finds what no loss sees, and only from a checkpoint a run is resumed.
        places = ["both", *(["disk"] if kind != "array" else []), *(["ram"] if resume == "no" else [])]
        where, task = str(rng.choice(places)), str(rng.choice(names))
        delay, incident = int(rng.integers(1, 9)), int(rng.choice([1, 2, 5]))
        order, reports = str(rng.choice(["before", "after"])), str(rng.choice(["exact", "means"]))
        cases.append(Poison(task, kind, show, delay, incident, resume, where, order, reports, seed))
    return cases


HEALTHY = (
    ("digits", 8), ("digits", 32), ("digits", 128), ("digits mlp", 32), ("digits mlp", 64), ("clouds", 32),
    ("imbalanced", 32), ("regression", 16), ("denoise", 32), ("denoise", 64), ("linear", 32), ("hinge", 16),
)  # fmt: skip


def one_nan_cases(seed: int) -> list[Any]:
    cases = []
    for number, ((task, size), reports, wrong) in enumerate(
        itertools.product(HEALTHY, ("exact", "parts", "means"), (0.0, 0.4))
    ):
        ways = ("loss", "weights", "one") if reports == "exact" else ("loss", "weights")
        cases.append(OneNan(task, size, reports, wrong, ways[(number + seed) % len(ways)], seed))
    return cases


def bad_sample_cases(seed: int) -> list[Any]:
    settings = itertools.product(
        (10, 20, 32, 50, 100, 200), ("exact", "means", "norm exact", "norm means"), ("before", "after")
    )
    return [BadSample(*each, (18, 24, 30)[(n + seed) % 3], seed) for n, each in enumerate(settings)]


LOTS = ((8, 1400), (32, 640), (32, 1400), (4, 400))


def outlier_cases(seed: int) -> list[Any]:
    """Cases of one twin follow one another: it is trained once in a process."""
    rng, cases = np.random.default_rng([seed, 2]), []
    names = ("digits", "digits sgd", "clouds", "imbalanced", "regression", "linear", "logistic", "gaussian")
    for number, (task, reports) in enumerate(itertools.product(names, ("exact", "means"))):
        size, order = LOTS[(number + seed) % len(LOTS)], ("before", "after")[(number + seed // 2) % 2]
        for _ in range(8):
            by, at = float(f"{10 ** rng.uniform(1, 9):.3g}"), int(3 * (80 / 3) ** rng.uniform())
            cases.append(Outlier(task, *size, reports, order, by, at, seed))
    return cases


def start_cases(seed: int) -> list[Any]:
    settings = itertools.product(TASKS, (1, 2, 8, 32, 64, 256), ("exact", "means"), (0.0, 0.05))
    return [Start(*each, seed) for each in settings]


def blow_up_cases(seed: int) -> list[Any]:
    rng, cases = np.random.default_rng([seed, 3]), []
    for task, size, how in itertools.product(TASKS, (1, 8, 32, 128), ("weights", "rate")):
        by = 3 * (1000 / 3) ** rng.uniform() if how == "weights" else 10 ** rng.uniform(2, 4)
        reports = str(rng.choice(["exact", "means"]))
        cases.append(BlowUp(task, size, reports, how, float(f"{by:.3g}"), int(rng.integers(10, 80)), seed))
    return cases


def spread(results: Sequence[Result], name: str, form: str = ".3g") -> str:
    """A figure over runs: mean, median, and its lowest and highest 5 %."""
    values = [r.figures[name] for r in results if math.isfinite(r.figures.get(name, math.nan))]
    if not values:
        return f"{name}: none"
    low, middle, high, top = np.percentile(values, [5, 50, 95, 100])
    return (
        f"{name}: mean {np.mean(values):{form}}, median {middle:{form}}, 5 % {low:{form}}, 95 % {high:{form}}, "
        f"highest {top:{form}} ({len(values)} runs)"
    )


def by_setting(results: Sequence[Result], *names: str) -> list[str]:
    """Failures of all, for each value of some of a case's settings."""
    lines = []
    for name in names:
        values = sorted({getattr(r.case, name) for r in results}, key=str)
        groups = ((value, [r for r in results if getattr(r.case, name) == value]) for value in values)
        lines.append(
            f"  failed by {name}: "
            + ", ".join(f"{value} {sum(not r.ok for r in group)}/{len(group)}" for value, group in groups)
        )
    return lines


def poison_figures(results: Sequence[Result]) -> list[str]:
    lines = by_setting(results, "kind", "show", "delay", "incident", "resume", "where", "order", "reports", "task")
    why = Counter(r.note.split(" ")[0] if r.note.startswith("ratio") else r.note for r in results if not r.ok)
    unseen = sum(r.figures["unseen"] for r in results)
    unnoticed = sum(not r.ok and not r.figures["restores"] for r in results)
    lines.append(f"  why: {dict(why)}; failed without a restore after the damage showed: {unnoticed}")
    lines.append(f"  healthy state in RAM by construction, but not seen: {unseen:.0f}")
    return lines + [f"  {spread(results, name)}" for name in ("ratio", "lost", "restores")]


def one_nan_figures(results: Sequence[Result]) -> list[str]:
    gave_up = sum(r.note.startswith("gave up") for r in results)
    named = sum(r.figures.get("quarantined", 0) > 0 for r in results)
    lines = [f"  runs that gave up: {gave_up}; that quarantined samples: {named}"]
    return [*lines, *by_setting(results, "reports", "wrong", "how", "batch_size", "task")]


def bad_sample_figures(results: Sequence[Result]) -> list[str]:
    lines = by_setting(results, "steps_per_epoch", "reports", "order")
    costs = np.array([r.figures["loss of accuracy"] for r in results if "loss of accuracy" in r.figures])
    if len(costs) > 1:
        error = costs.std(ddof=1) / math.sqrt(len(costs))
        verdict = "a significant loss" if costs.mean() > 2 * error > 0 else "no significant loss"
        lines.append(f"  loss of accuracy, paired: {costs.mean():+.4f} +- {error:.4f} ({len(costs)} pairs): {verdict}")
    lines.append(f"  lr / plan in the last third ({spread(results, 'share')}): must mean .95, aim .99")
    lines.append(f"  quarantined in {spread(results, 'epoch')}; {spread(results, 'times')}")
    wrongly = sum(r.figures["wrongly"] for r in results)
    return [*lines, f"  runs with other samples quarantined: {wrongly:.0f}", f"  {spread(results, 'refused')}"]


def outlier_figures(results: Sequence[Result]) -> list[str]:
    names = ("at", "refused", "suspects", "untrained", "gave up")
    counts = ", ".join(f"{name} {sum(r.figures[name] > 0 for r in results)}" for name in names)
    return [
        f"  runs with (refused at the outlier itself: fine; later): {counts}",
        *by_setting(results, "reports", "order", "batch_size", "task"),
    ]


def start_figures(results: Sequence[Result]) -> list[str]:
    return [
        *by_setting(results, "batch_size", "reports", "warmup", "task"),
        f"  loss / highest before, from step 4: {spread(results, 'worst')}",
    ]


def blow_up_figures(results: Sequence[Result]) -> list[str]:
    delays = [int(r.figures["delay"]) for r in results if "delay" in r.figures]
    lines = [f"  caught by a loss that is not finite: {sum(r.note == 'not finite' for r in results)}"]
    lines.append(f"  delay in steps: count {dict(sorted(Counter(delays).items()))}")
    low = sum(r.figures.get("high", 99) < 3 for r in results if not r.ok)
    lines.append(f"  failed, with fewer than 3 of the next 32 losses above the highest before: {low}")
    return lines + by_setting(results, "how", "batch_size", "reports", "task")


class Row(NamedTuple):
    """A row: its cases for a seed, seeds by default and with ``--long``, how many cases are a quick part, its goal."""

    cases: Callable[[int], list[Any]]
    seeds: int
    long: int
    quick: int
    goal: str
    figures: Callable[[Sequence[Result]], list[str]]


ROWS = {
    "poison": Row(poison_cases, 3, 13, 10, "failed: must 5 %, aim 1 %", poison_figures),
    "one_nan": Row(one_nan_cases, 5, 15, 12, "failed: must 1 of 300, aim 0", one_nan_figures),
    "bad_sample": Row(bad_sample_cases, 2, 6, 5, "gave up: must 0 of 40, aim 0", bad_sample_figures),
    "outlier": Row(outlier_cases, 8, 16, 20, "failed: must 0 of 300, aim 0 of 1,000", outlier_figures),
    "starts": Row(start_cases, 5, 10, 90, "refused: must 0 of 500, aim 0 of 2,000", start_figures),
    "blow_ups": Row(blow_up_cases, 6, 20, 90, "missed: must 5 %, aim 0", blow_up_figures),
}


def interval(count: int, of: int) -> str:
    """The 95 % interval of a share, after Wilson."""
    share, z = count / of, 1.96
    middle, half = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return f"{max(0.0, (middle - half) / (1 + z * z / of)):.1%} to {(middle + half) / (1 + z * z / of):.1%}"


def print_row(name: str, row: Row, cases: Sequence[Any], pool: Any) -> None:
    began = time.perf_counter()
    results = list(pool.imap(run_case, cases, chunksize=8 if name in ("outlier", "starts") else 1))
    counted = [r for r in results if r.ok is not None]
    failed = [r for r in counted if not r.ok]
    share = interval(len(failed), max(1, len(counted)))
    print(f"\n{name}: {len(failed)} of {len(counted)} runs failed ({share}); {row.goal}")
    seeds = sorted({r.case.seed for r in counted})
    print("  by seed: " + ", ".join(f"{seed}: {sum(r.case.seed == seed for r in failed)}" for seed in seeds))
    left_out = Counter(r.note.split(":")[0] for r in results if r.ok is None)
    print(f"  not counted: {sum(left_out.values())} {dict(left_out)}; {time.perf_counter() - began:.0f} s")
    for line in row.figures(counted) if counted else ():
        print(line)
    for r in failed[:10]:
        print(f"    {r.case!r}: {r.note}", flush=True)


def run_alone(text: str) -> None:
    """Run one case, and print its events but for those that come all the time."""
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    kinds = {kind.__name__: kind for kind in RUNNERS}
    case = kinds[call.func.id](**{key.arg: ast.literal_eval(key.value) for key in call.keywords if key.arg})
    common = ("StepDone", "EpochDone", "RunStarted", "MetricsLogged")

    def hear(event: Any) -> None:
        if type(event).__name__ not in common:
            print(str(event)[:300])

    with np.errstate(all="ignore"):
        print(RUNNERS[type(case)](case, hear))


def processor() -> str:
    """Its name."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=list(ROWS), action="append", help="only this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="some cases of each row")
    parser.add_argument("--long", action="store_true", help="more seeds: a thousand poisoned runs")
    parser.add_argument("--seeds", type=int, help="seeds of each row")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--case", help="run this case alone, and print its events")
    options = parser.parse_args()
    if options.case:
        run_alone(options.case)
        return
    print(f"{processor()}, {os.cpu_count()} cores, {options.jobs} processes; {learnit_r8.__path__[0]}", flush=True)
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for name in options.row or ROWS:
            row = ROWS[name]
            seeds = options.seeds or (1 if options.quick else row.long if options.long else row.seeds)
            cases = [case for seed in range(seeds) for case in row.cases(seed)]
            if options.quick:
                chosen = np.random.default_rng(0).permutation(len(cases))[: row.quick]
                cases = [cases[number] for number in sorted(chosen)]
            print_row(name, row, cases, pool)


if __name__ == "__main__":
    main()

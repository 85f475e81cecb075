"""What a proof found: the record of it, as text, as a page and for programs, and the line that mends a difference."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from .comparison import Difference, Rows

EXACT, DIFFERS, UNKNOWN = 0, 1, 2

LOADER = "for batch in adapter.loader(): ...  # of attach(model, optimizer, dataset, ...); goes on at the next batch"
ATTACH = "attach(model, optimizer, ...)  # saves model, optimizer and the random generators"
ALSO = 'attach(model, optimizer, ..., also={"%s": %s})'
SAVE = 'torch.save({..., "%s": %s.state_dict()}, path); %s.load_state_dict(saved["%s"])'
GENERATORS = 'torch.save({..., "rng": torch.get_rng_state()}, path); torch.set_rng_state(saved["rng"]), on each rank'

KINDS: dict[str, tuple[str, str, str]] = {
    "restarted": ("the order of the data started over", "sampler.set_epoch(epoch); islice(loader, done, None)", LOADER),
    "repeated": ("batches are repeated", "save the number of batches trained on, in the file of the weights", LOADER),
    "skipped": ("batches are skipped", "save the number of batches trained on, not of those handed out", LOADER),
    "shuffle": ("another order of the data", "DataLoader(..., generator=...), seeded with the epoch, or saved", LOADER),
    "drawn": ("the random generator of the batches is not saved", GENERATORS, ATTACH),
    "epoch": ("another number of steps in the epoch", "leave out batches in the first epoch only", LOADER),
    "schedule": ("the schedule of the rate is not saved", SAVE % (("schedule",) * 4), ALSO % (("schedule",) * 2)),
    "scaler": ("the gradient scaler is not saved", SAVE % (("scaler",) * 4), "attach(..., scaler=scaler)"),
    "ema": ("the average of the weights (EMA) is not saved", SAVE % (("ema",) * 4), ALSO % (("ema",) * 2)),
    "moments": ("the moments of the optimizer are not saved", SAVE % (("optimizer",) * 4), ATTACH),
    "settings": ("the settings of the optimizer differ", "build it with all groups, then load its state", ATTACH),
    "weights": ("the weights are not those of the checkpoint", "load them into the network that trains", ATTACH),
    "buffers": ("the buffers of the network are not saved", "save model.state_dict(), not named_parameters()", ATTACH),
    "augmentation": ("the random generator of the augmentation is not saved", GENERATORS, ATTACH),
    "dropout": ("the random generator of dropout is not saved", GENERATORS, ATTACH),
    "accumulation": ("the accumulation of gradients is cut", "save after optimizer.step(), or the gradients, too", ""),
    "twice": ("a step is counted twice", "save the counter after it was raised: range(saved['step'], num_steps)", ""),
    "steps": ("another number of steps in the training", "save the counter of steps, and count from it on", ""),
    "unknown": ("something that is not heard", "look at what the script keeps beside its model and optimizer", ""),
}  # fmt: skip
"""By kind of difference: its name; the line that mends it in plain torch, and with R8, where R8 does."""


class Restart(NamedTuple):
    """One kill and what came of it: after which step it was, after which the training went on, steps then compared.

    ``difference`` is the first one.
    """

    killed: int
    went_on: int
    compared: int
    difference: Difference | None = None


class Proof(NamedTuple):
    """What was found: ``code`` is 0 (resumes exactly), 1 (differs) or 2 (cannot say, for the reason in ``why``).

    ``rows`` are the evidence: step, what, without the kill, with it. ``is_second_only`` says that the difference needs
    a training that was resumed before.
    """

    code: int
    why: str = ""
    steps: int = 0
    restarts: tuple[Restart, ...] = ()
    difference: Difference | None = None
    is_second_only: bool = False
    rows: Rows = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def headline(proof: Proof) -> str:
    """One sentence."""
    found = proof.difference
    if proof.code == EXACT:
        return "EXACT: killed and started again, the training goes on as if nothing had happened."
    if proof.code != DIFFERS or found is None:
        return f"CANNOT SAY: {proof.why}"
    when = " on the second resume only," if proof.is_second_only else ""
    detail = f" ({found.detail})" if found.detail else ""
    rank = f", on rank {found.rank}" if found.rank else ""
    where = f"at step {found.step}, step {found.local} after the restart{rank}"
    return f"DIFFERS:{when} {KINDS[found.kind][0]}{detail}; first seen {where}."


def lines_of(proof: Proof, command: Sequence[str]) -> list[str]:
    """The whole finding, for a terminal."""
    lines = [headline(proof), "", f"command   {shlex.join(command)}, {proof.steps} steps, {proof.seconds:.0f} s in all"]
    for killed, after, count, _ in proof.restarts:
        again = f"{killed - after} trained again"
        lines.append(f"killed    after step {killed}; went on after {after} ({again}), {count} steps compared")
    lines += [f"note      {each}" for each in proof.notes]
    if proof.difference is not None:
        _, mend, r8 = KINDS[proof.difference.kind]
        lines += [f"mend      {mend}"] + [f"with R8   {r8}"] * bool(r8)
    if proof.rows:
        table = [("step", "what", "not killed", "killed and started again"), *proof.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        cells = [[each.ljust(width) for each, width in zip(row, widths, strict=True)] for row in table]
        lines += ["", *("  ".join(each).rstrip() for each in cells)]
    return lines


def page(proof: Proof, command: Sequence[str]) -> str:
    """The finding as one page of Markdown."""
    text = "\n".join(lines_of(proof, command)[2:])
    return f"# learnit-r8 prove\n\n**{headline(proof)}**\n\n```text\n{text}\n```\n"


def as_data(proof: Proof, command: Sequence[str]) -> dict[str, Any]:
    """The finding for programs."""
    data = {**proof._asdict(), "command": [*command], "headline": headline(proof)}
    data["restarts"] = [{"killed": a, "went_on": b, "compared": c} for a, b, c, _ in proof.restarts]
    if found := proof.difference:
        data["difference"] = {**found._asdict(), "name": KINDS[found.kind][0], "mend": KINDS[found.kind][1]}
    return data

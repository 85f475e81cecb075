"""What a proof found, as text, as a page and for programs: the name of each difference, and the line that mends it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from .proof import DIFFERS, EXACT, Proof


class Kind(NamedTuple):
    """A name for a difference; what mends it in plain torch, and with R8, where R8 does."""

    name: str
    torch: str
    r8: str = ""


LOADER = "for batch in adapter.loader(): ...  # of attach(model, optimizer, dataset, ...); goes on at the next batch"
ATTACH = "attach(model, optimizer, ...)  # saves model, optimizer and the random generators"
ALSO = 'attach(model, optimizer, ..., also={"%s": %s})'
SAVE = 'torch.save({..., "%s": %s.state_dict()}, path); %s.load_state_dict(saved["%s"])'
GENERATORS = 'torch.save({..., "rng": (torch.get_rng_state(), np.random.get_state(), random.getstate())}, path)'


def _part(name: str, word: str, r8: str) -> Kind:
    """A part of the state that has a state_dict of its own."""
    return Kind(name, SAVE % (word, word, word, word), r8)


KINDS = {
    "restarted": Kind("the order of the data started over",
        "seed the order with the epoch, as sampler.set_epoch(epoch) does; then itertools.islice(loader, done, None)",
        LOADER),
    "repeated": Kind("batches are repeated",
        "save the number of batches trained on, in the same file as the weights", LOADER),
    "skipped": Kind("batches are skipped",
        "save the number of batches trained on, not of those the loader has handed out or the one to come", LOADER),
    "shuffle": Kind("another order of the data",
        "DataLoader(..., generator=torch.Generator().manual_seed(seed + epoch)), or save its state as the epoch begins",
        LOADER),
    "epoch": Kind("another number of steps in the epoch",
        "leave out the batches done in the first epoch only, and iterate over all of the loader from the next on",
        LOADER),
    "schedule": _part("the schedule of the rate is not saved", "schedule", ALSO % ("schedule", "schedule")),
    "scaler": _part("the gradient scaler is not saved", "scaler", "attach(model, optimizer, ..., scaler=scaler)"),
    "ema": _part("the average of the weights (EMA) is not saved", "ema", ALSO % ("ema", "ema")),
    "moments": _part("the moments of the optimizer are not saved", "optimizer", ATTACH),
    "settings": Kind("the settings of the optimizer differ",
        "optimizer.load_state_dict(saved), after it was built with all groups", ATTACH),
    "weights": Kind("the weights are not those of the checkpoint",
        'model.load_state_dict(saved["model"]), before the first step, of the copy of the weights that trains', ATTACH),
    "buffers": Kind("the buffers of the network are not saved",
        "save model.state_dict(), not model.named_parameters(): running statistics are buffers", ATTACH),
    "augmentation": Kind("the random generator of the augmentation is not saved",
        f"{GENERATORS}, or seed each sample's augmentation with (epoch, index)", ATTACH),
    "dropout": Kind("the random generator of dropout is not saved",
        f"{GENERATORS}; torch.set_rng_state(saved['rng'][0]), of each rank its own", ATTACH),
    "accumulation": Kind("the accumulation of gradients is cut",
        "save after optimizer.step() only, or save the gradients and the number of passes since the last step"),
    "twice": Kind("a step is counted twice",
        "save the counter after it was raised, and go on with it as it is: range(saved['step'], num_steps)"),
    "steps": Kind("another number of steps in the training", "save the counter of steps, and count from it on"),
    "unknown": Kind("something that is not heard", "look at what the script keeps beside its model and optimizer"),
}  # fmt: skip


def headline(proof: Proof) -> str:
    """One sentence."""
    if proof.code == EXACT:
        return "EXACT: killed and started again, the training goes on as if nothing had happened."
    if proof.code != DIFFERS or proof.difference is None:
        return f"CANNOT SAY: {proof.why}"
    found = proof.difference
    where = f"at step {found.step}, step {found.local} after the restart"
    when = " on the second resume only," if proof.is_second_only else ""
    detail = f" ({found.detail})" if found.detail else ""
    rank = f", on rank {found.rank}" if found.rank else ""
    return f"DIFFERS:{when} {KINDS[found.kind].name}{detail}; first seen {where}{rank}."


def lines_of(proof: Proof, command: Sequence[str]) -> list[str]:
    """The whole finding, for a terminal."""
    lines = [headline(proof), "", f"command   {shlex.join(command)}, {proof.steps} steps, {proof.seconds:.0f} s in all"]
    for each in proof.restarts:
        lost = each.killed - each.went_on
        lines.append(
            f"killed    after step {each.killed}; went on after {each.went_on} ({lost} trained again), "
            f"{each.compared} steps compared"
        )
    lines += [f"note      {each}" for each in proof.notes]
    if proof.difference is not None:
        kind = KINDS[proof.difference.kind]
        if proof.difference.others:
            lines.append(f"also      {'; '.join(KINDS[each].name for each in proof.difference.others)}")
        lines += [f"mend      {kind.torch}"] + [f"with R8   {kind.r8}"] * bool(kind.r8)
    if proof.rows:
        table = [("step", "what", "not killed", "killed and started again"), *proof.rows]
        widths = [max(len(row[place]) for row in table) for place in range(4)]
        lines += [
            "",
            *("  ".join(each.ljust(width) for each, width in zip(row, widths, strict=True)).rstrip() for row in table),
        ]
    return lines


def page(proof: Proof, command: Sequence[str]) -> str:
    """The finding as one page of Markdown."""
    text = "\n".join(lines_of(proof, command)[2:])
    return f"# learnit-r8 prove\n\n**{headline(proof)}**\n\n```text\n{text}\n```\n"


def as_data(proof: Proof, command: Sequence[str]) -> dict[str, Any]:
    """The finding for programs."""
    found = proof.difference
    about = (
        None if found is None else {**found._asdict(), "name": KINDS[found.kind].name, "mend": KINDS[found.kind].torch}
    )
    return {
        **proof._asdict(), "command": [*command], "headline": headline(proof), "difference": about,
        "restarts": [each._asdict() for each in proof.restarts],
    }  # fmt: skip

"""What a proof found, as text, as a page and for programs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from .proof import DIFFERS, EXACT, Proof
from .words import KINDS


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

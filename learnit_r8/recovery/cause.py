"""The cause of a refusal: what an adapter is asked before anything is put back, what it has found, and its words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

INPUT, LABEL, LOSS, FORWARD, BACKWARD = "input", "label", "loss", "forward", "backward"
BATCH_SIZE, UPDATE, WEIGHT, OPTIMIZER, SCALE = "batch size", "update", "weight", "optimizer", "scale"
NOTHING, UNKNOWN = "nothing", "unknown"
KINDS = (INPUT, LABEL, LOSS, FORWARD, BACKWARD, BATCH_SIZE, UPDATE, WEIGHT, OPTIMIZER, SCALE, NOTHING, UNKNOWN)
"""Where an incident may have begun. "nothing": model, data and gradients are fine, as far as they can be run again."""

UNSEEN = "unknown, seen so far: "
"""How a sentence begins that names no cause."""

BAD_NOW = "bad with the present ones"
"""What is said of a batch that is good with older weights: then it is not to blame."""

MOST_NAMED = 5
"""Samples that a sentence names."""


class Refusal(NamedTuple):
    """A batch that was refused, before anything is put back.

    Attributes:
        step: Steps reported, the refused one included, as its `BatchRefused` says.
        loss: Its mean loss.
        usual: The usual loss before it; NaN if too few are known.
        is_finite: Whether it was refused for its height alone.
        is_gradient: Whether its gradient was refused, not its loss.
        backups: Steps and states of backups in RAM, newest first; the states must not be changed.
        lr: The rate that it was drawn with.
    """

    step: int
    loss: float
    usual: float
    is_finite: bool
    is_gradient: bool
    backups: Sequence[tuple[int, Any]]
    lr: float


class Finding(NamedTuple):
    """Where an incident began, as far as it was seen.

    Attributes:
        kind: One of `KINDS`.
        text: What was seen, and where: a part of a sentence.
        rows: Rows of the batch that are to blame; empty if unknown, or if none is.
        about: What is said about them, after their names.
        rest: Further clauses of the sentence.
        is_certain: Whether an experiment confirms it.
        evidence: What was tried, and what it has shown, line by line.
        missing: What could not be looked at, and why; "" if nothing is missing.
        loss: The loss of the batch when it was run again; NaN if it was not.
        num_runs: How often the model was run.
        seconds: How long it took.
        where: The module or parameter alone.
        samples: Positions of the samples to blame, where the rows are not those of the refused batch.
    """

    kind: str
    text: str
    rows: tuple[int, ...] = ()
    about: str = ""
    rest: tuple[str, ...] = ()
    is_certain: bool = False
    evidence: tuple[str, ...] = ()
    missing: str = ""
    loss: float = math.nan
    num_runs: int = 0
    seconds: float = 0.0
    where: str = ""
    samples: tuple[int, ...] = ()


def sentence_of(finding: Finding, step: int, samples: Sequence[str]) -> str:
    """One sentence on where an incident began.

    Args:
        finding: What was found.
        step: Steps reported, the refused one included, as its `BatchRefused` says.
        samples: Names of the samples to blame; empty where batches have none, whose rows are named then.

    >>> found = Finding(FORWARD, "NaN first in `head` (forward)", (3,), "whose input holds Inf at [0]", is_certain=True)
    >>> sentence_of(found, 8214, ["1042 ('img/1042.png')"])
    "step 8,214: NaN first in `head` (forward), for sample 1042 ('img/1042.png'), whose input holds Inf at [0]"
    >>> sentence_of(Finding(UNKNOWN, "the loss is not finite"), 7, [])
    'step 7: unknown, seen so far: the loss is not finite'
    >>> sentence_of(Finding(FORWARD, "NaN first in `head` (forward)", (0, 1), is_certain=True), 7, [])
    'step 7: NaN first in `head` (forward), for rows 0, 1 of the batch'
    """
    text = finding.text
    if finding.rows:
        word = "sample" if samples else "row"
        names = list(samples) or [str(row) for row in finding.rows]
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        text += f", for {word}{'s' if len(names) > 1 else ''} {', '.join(names[:MOST_NAMED])}{more}"
        text += "" if samples else " of the batch"
        text += f", {finding.about}" if finding.about else ""
    text = "; ".join([text, *finding.rest])
    doubt = UNSEEN if finding.kind == UNKNOWN else "" if finding.is_certain else "probably "
    return f"step {step:,}: {doubt}{text}"

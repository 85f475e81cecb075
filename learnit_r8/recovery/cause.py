"""The cause of a refusal: what an adapter is asked before anything is put back, what it has found, and the words."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import events

if TYPE_CHECKING:
    from ..events.bus import Announcer
    from ..guard.monitor import Sentry
    from ..guard.verdict import Verdict
    from ..sampling.ticket import Ticket
    from ..table.losses import Reading
    from ..table.table import SampleTable
    from .persistence import Persistence
    from .record import FlightRecorder

INPUT, LABEL, LOSS, FORWARD, BACKWARD = "input", "label", "loss", "forward", "backward"
BATCH_SIZE, UPDATE, WEIGHT, OPTIMIZER, SCALE = "batch size", "update", "weight", "optimizer", "scale"
NOTHING, UNKNOWN = "nothing", "unknown"
KINDS = (INPUT, LABEL, LOSS, FORWARD, BACKWARD, BATCH_SIZE, UPDATE, WEIGHT, OPTIMIZER, SCALE, NOTHING, UNKNOWN)
"""Where an incident may have begun. "nothing": model, data and gradients are fine, as far as they can be run again."""

UNSEEN = "unknown, seen so far: "
"""How a sentence begins that names no cause."""

MOST_LOOKS = 3
"""Refusals of a kind that are looked into."""

MOST_SHARE, LEAST_SECONDS = 0.01, 2.0
"""Largest share of the run's time that may go into it, and how much may in a run that has only begun."""

MOST_BEFORE = 64
"""Losses before a refusal that a record holds."""

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


def to_plain(finding: Finding) -> dict[str, Any]:
    """A finding as plain values."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in finding._asdict().items()}


class CauseSearch:
    """Has the adapter look for the cause of a refusal, and the recorder write it down.

    Args:
        persistence: Holds the callbacks, of which the adapter's `examine` looks, and the backups.
        announcer: Tells what was found.
        table: Names the samples.
        sentry: Says what the guard saw.
        recorder: Writes the records; None for none.
    """

    def __init__(
        self, persistence: Persistence, announcer: Announcer, table: SampleTable, sentry: Sentry,
        recorder: FlightRecorder | None,
    ) -> None:  # fmt: skip
        self._persistence, self._announcer, self._table = persistence, announcer, table
        self._sentry, self._recorder = sentry, recorder
        self._looks: Counter[str] = Counter()
        self._seconds = 0.0
        self._found: dict[str, Any] | None = None

    def look(
        self, ticket: Ticket, reading: Reading, verdict: Verdict, *, step: int, recent: Sequence[float],
        samples: Sequence[int], is_finite: bool, lr: float,
    ) -> str:  # fmt: skip
        """Look for the cause of a refusal and note it; returns the sentence, "" if nobody has looked. `tell` tells it.

        Args:
            ticket: The batch.
            reading: Its loss.
            verdict: Why it was refused.
            step: Steps reported, this one included.
            recent: The losses before it.
            samples: Those whose own loss was not finite.
            is_finite: Whether it was refused for its height alone.
            lr: The rate as the user knows it; NaN if that is not known.
        """
        usual, text = float(np.median(recent)) if len(recent) else math.nan, ""
        backups = [(each.step, each.state) for each in reversed(self._persistence.backup.backups)]
        backups = [each for each in backups if each[1] is not None]
        kind = verdict.value
        finding = self._find(Refusal(step, reading.mean, usual, is_finite, kind == "gradient", backups, lr), kind)
        # None where batches are the user's own.
        known = self._table.num_samples and not (ticket.indices < 0).any()
        indices, name_of = ticket.indices.tolist() if known else [], self._table.storage.name_of
        if finding is not None:
            blamed = list(finding.samples) or [indices[row] for row in finding.rows if row < len(indices)]
            names = [f"{each}" if name_of(each) == each else f"{each} ({name_of(each)!r})" for each in blamed[:1000]]
            text = sentence_of(finding, step, names)
            self._found = {
                "text": text, "fault": finding.kind, "where": finding.where, "samples": tuple(blamed),
                "is_certain": finding.is_certain,
            }  # fmt: skip
        recorder, collect = self._recorder, self._persistence.callbacks.in_hand
        if recorder is not None and recorder.is_writing:
            facts = {
                "step": step, "epoch": ticket.epoch, "loss": reading.mean, "lr": lr, "verdict": kind,
                "samples": indices[:4096], "names": [str(name_of(each)) for each in indices[:256]],
                "not_finite": list(samples)[:256], "losses_before": list(recent)[-MOST_BEFORE:],
                "guard": self._thresholds(), "suspicion": self._sentry.suspicion,
                "highest_grad_norm": self._sentry.state_dict()["norms"]["highest"],
            }  # fmt: skip
            parts = {} if recorder.record == "names" or collect is None else collect()
            recorder.note(step, self._announcer.where()[1], facts=facts, finding=finding, cause=text, parts=parts)
        return text

    def tell(self) -> None:
        """Tell what was found since it was told last."""
        found, self._found = self._found, None
        if found is not None:
            self._announcer.tell(events.CauseFound, **found)

    def _find(self, refusal: Refusal, kind: str) -> Finding | None:
        """Have the adapter look, as long as that takes little of the run's time."""
        examine = self._persistence.callbacks.examine
        allowed = max(MOST_SHARE * self._announcer.where()[1], LEAST_SECONDS)
        if examine is None or self._looks[kind] >= MOST_LOOKS:
            return None
        # All ranks look or none, as they tell each other what they find.
        if self._persistence.agreement.agree("late" if self._seconds > allowed else ""):
            return None
        self._looks[kind] += 1
        began = time.perf_counter()
        try:
            finding: Finding | None = examine(refusal)
        except Exception as error:
            # Whatever a model does when it is run once more, it must not end the training.
            what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            finding = Finding(UNKNOWN, f"the search for the cause failed ({what})", missing="the search failed")
        self._seconds += time.perf_counter() - began
        return finding

    def _thresholds(self) -> dict[str, float]:
        """The numbers that the guard compares losses with, by name."""
        memory = self._sentry.memory
        found: dict[str, float] = {}
        for part in (memory, getattr(memory, "reference", None)):
            fields: dict[str, Any] = getattr(part, "_asdict", dict)()
            found |= {name: float(value) for name, value in fields.items() if type(value) in (int, float)}
        return found

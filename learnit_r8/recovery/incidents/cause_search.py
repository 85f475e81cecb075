"""The search for the cause of a refusal, and what is recorded of it; done before anything is put back."""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import events
from .finding import UNKNOWN, Finding, Refusal, sentence_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...events.bus import Announcer
    from ...guard.monitor import Sentry
    from ...guard.verdict import Verdict
    from ...sampling.ticket import Ticket
    from ...table.losses import Reading
    from ...table.table import SampleTable
    from ..persistence import Persistence
    from .recorder import FlightRecorder

MOST_LOOKS = 3
"""Refusals of a kind that are looked into."""

MOST_SHARE, LEAST_SECONDS = 0.01, 2.0
"""Largest share of the run's time that may go into it, and how much may in a run that has only begun."""

MOST_BEFORE = 64
"""Losses before a refusal that a record holds."""


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
        self,
        persistence: Persistence,
        announcer: Announcer,
        table: SampleTable,
        sentry: Sentry,
        recorder: FlightRecorder | None,
    ) -> None:
        self._persistence, self._announcer, self._table = persistence, announcer, table
        self._sentry, self._recorder = sentry, recorder
        self._looks: Counter[str] = Counter()
        self._seconds = 0.0
        self._found: dict[str, Any] | None = None

    def look(
        self,
        ticket: Ticket,
        reading: Reading,
        verdict: Verdict,
        *,
        step: int,
        recent: Sequence[float],
        samples: Sequence[int],
        is_finite: bool,
        lr: float,
    ) -> str:
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
        finding = self._find(reading, verdict, step=step, recent=recent, is_finite=is_finite, lr=lr)
        text = ""
        if finding is not None:
            own = self._samples_of(ticket)
            blamed = list(finding.samples) or [own[row] for row in finding.rows if row < len(own)]
            text = sentence_of(finding, step, self._names(blamed))
            self._found = {
                "text": text, "fault": finding.kind, "where": finding.where, "samples": tuple(blamed),
                "is_certain": finding.is_certain,
            }  # fmt: skip
        self._note(
            ticket, reading, verdict, step=step, recent=recent, samples=samples, finding=finding, text=text, lr=lr
        )
        return text

    def tell(self) -> None:
        """Tell what was found since it was told last."""
        found, self._found = self._found, None
        if found is not None:
            self._announcer.tell(events.CauseFound, **found)

    def _find(
        self, reading: Reading, verdict: Verdict, *, step: int, recent: Sequence[float], is_finite: bool, lr: float
    ) -> Finding | None:
        examine = self._persistence.callbacks.examine
        allowed = max(MOST_SHARE * self._announcer.where()[1], LEAST_SECONDS)
        if examine is None or self._looks[verdict.value] >= MOST_LOOKS:
            return None
        # All ranks look or none, as they tell each other what they find.
        if self._persistence.agreement.agree("late" if self._seconds > allowed else ""):
            return None
        self._looks[verdict.value] += 1
        began = time.perf_counter()
        backups = [(each.step, each.state) for each in reversed(self._persistence.backup.backups)]
        usual = float(np.median(recent)) if len(recent) else math.nan
        refusal = Refusal(
            step, reading.mean, usual, is_finite, verdict.value == "gradient",
            [each for each in backups if each[1] is not None], lr,
        )  # fmt: skip
        try:
            finding: Finding | None = examine(refusal)
        except Exception as error:
            # Whatever a model does when it is run once more, it must not end the training.
            what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            finding = Finding(UNKNOWN, f"the search for the cause failed ({what})", missing="the search failed")
        self._seconds += time.perf_counter() - began
        return finding

    def _samples_of(self, ticket: Ticket) -> list[int]:
        """The positions of the samples of a batch; none where batches are the user's own."""
        indices = ticket.indices
        return indices.tolist() if self._table.num_samples and not (indices < 0).any() else []

    def _names(self, samples: Sequence[int]) -> list[str]:
        """The samples by number, and by name where they have one."""
        name_of = self._table.storage.name_of
        return [f"{each}" if name_of(each) == each else f"{each} ({name_of(each)!r})" for each in samples[:1000]]

    def _note(
        self, ticket: Ticket, reading: Reading, verdict: Verdict, *, step: int, recent: Sequence[float],
        samples: Sequence[int], finding: Finding | None, text: str, lr: float,
    ) -> None:  # fmt: skip
        recorder = self._recorder
        if recorder is None or not recorder.is_writing:
            return
        indices = self._samples_of(ticket)[:4096]
        facts = {
            "step": step, "epoch": ticket.epoch, "loss": reading.mean, "lr": lr, "verdict": verdict.value,
            "samples": indices, "names": [str(self._table.storage.name_of(each)) for each in indices[:256]],
            "not_finite": list(samples)[:256], "losses_before": list(recent)[-MOST_BEFORE:],
            "guard": self._thresholds(), "suspicion": self._sentry.suspicion,
            "highest_grad_norm": self._sentry.state_dict()["norms"]["highest"],
        }  # fmt: skip
        parts: dict[str, Any] = {}
        collect = self._persistence.callbacks.in_hand
        if recorder.record != "names" and collect is not None:
            parts = collect()
        recorder.note(step, self._announcer.where()[1], facts=facts, finding=finding, cause=text, parts=parts)

    def _thresholds(self) -> dict[str, float]:
        """The numbers that the guard compares losses with, by name."""
        memory = self._sentry.memory
        found: dict[str, float] = {}
        for part in (memory, getattr(memory, "reference", None)):
            fields: dict[str, Any] = getattr(part, "_asdict", dict)()
            found |= {name: float(value) for name, value in fields.items() if type(value) in (int, float)}
        return found

"""What a journal keeps of the events it hears, so that a day of training is some 50 MB, however fast the steps are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from ..events import Event, MetricsLogged, Notice, SamplesSurveyed, StepsDone

STEPS_PER_SECOND = 1.5
STEPS_AT_FIRST = 2400
"""Records of steps kept before that limit holds: all there are of the first ten minutes, at four a second."""
SURVEYS_PER_SECOND = 1 / 30
SURVEYS_AT_FIRST = 100
SECONDS_BETWEEN_SURVEYS = 30.0
"""Between those that are not of the end of an epoch."""
MOST_OF_A_KIND = 64
"""Other events of one kind kept of one window; a loop that logs at every step must not fill the disk."""


class Summary:
    """Turns events into the few that are written.

    Args:
        now: Seconds, monotonic.
    """

    def __init__(self, now: float) -> None:
        self._last = now
        self._steps_left, self._surveys_left = float(STEPS_AT_FIRST), float(SURVEYS_AT_FIRST)
        self._survey_due = now
        self._steps: list[StepsDone] = []
        self._survey: SamplesSurveyed | None = None

    def take(self, happened: Iterable[Event], now: float) -> list[Event]:
        """The events to write of those of one window.

        The order stays while the limits allow it. Beyond, steps are merged across other events, and come after them.

        Args:
            happened: In order; steps are `StepsDone`.
            now: Seconds, monotonic.
        """
        self._refill(now)
        kept: list[Event] = []
        counts = Counter[type[Event]]()
        for event in happened:
            if isinstance(event, StepsDone):
                self._steps.append(event)
                self._keep_steps(kept, spare=1)
            elif isinstance(event, SamplesSurveyed):
                self._survey = event
            else:
                counts[type(event)] += 1
                if counts[type(event)] <= MOST_OF_A_KIND:
                    kept.append(event)
            self._keep_survey(kept, now)
        self._keep_steps(kept, spare=0)
        kept += _left_out(counts, kept)
        return kept

    def rest(self) -> list[Event]:
        """What still waits for its turn."""
        kept: list[Event] = [] if self._survey is None else [self._survey]
        if self._steps:
            kept.append(merge(self._steps))
        self._survey, self._steps = None, []
        return kept

    def _refill(self, now: float) -> None:
        passed, self._last = now - self._last, now
        self._steps_left = min(STEPS_AT_FIRST, self._steps_left + STEPS_PER_SECOND * passed)
        self._surveys_left = min(SURVEYS_AT_FIRST, self._surveys_left + SURVEYS_PER_SECOND * passed)

    def _keep_steps(self, kept: list[Event], *, spare: int) -> None:
        if self._steps and self._steps_left >= 1 + spare:
            self._steps_left -= 1
            kept.append(merge(self._steps))
            self._steps.clear()
        elif len(self._steps) > 1:
            self._steps = [merge(self._steps)]

    def _keep_survey(self, kept: list[Event], now: float) -> None:
        survey = self._survey
        if survey is not None and self._surveys_left >= 1 and (survey.epoch_ended or now >= self._survey_due):
            self._surveys_left -= 1
            self._survey_due = now + SECONDS_BETWEEN_SURVEYS
            kept.append(survey)
            self._survey = None


def merge(parts: Sequence[StepsDone]) -> StepsDone:
    """One record for several in a row; at least one."""
    last = parts[-1]
    if len(parts) == 1:
        return last
    num_steps = sum(part.num_steps for part in parts)
    known = [part for part in parts if math.isfinite(part.expected_loss)]
    num_known = sum(part.num_steps for part in known)
    return StepsDone(
        step=last.step,
        seconds=last.seconds,
        num_steps=num_steps,
        epoch=last.epoch,
        progress=last.progress,
        loss=sum(part.loss * part.num_steps for part in parts) / num_steps,
        lowest=min(part.lowest for part in parts),
        highest=max(part.highest for part in parts),
        last_loss=last.last_loss,
        expected_loss=sum(part.expected_loss * part.num_steps for part in known) / num_known if known else math.nan,
        lr=last.lr,
        samples=sum(part.samples for part in parts),
        num_steady=sum(part.num_steady for part in parts),
        own_seconds=sum(part.own_seconds for part in parts),
        data_seconds=sum(part.data_seconds for part in parts),
    )


def _left_out(counts: Counter[type[Event]], kept: list[Event]) -> list[Event]:
    """A notice for every kind of which too many came at once."""
    return [
        Notice(
            kept[-1].step,
            kept[-1].seconds,
            f"{count - MOST_OF_A_KIND} of {count} {kind.__name__} at once are not in the journal"
            + ("; log less often than at every step." if kind is MetricsLogged else "."),
            is_warning=False,
        )
        for kind, count in counts.items()
        if count > MOST_OF_A_KIND
    ]

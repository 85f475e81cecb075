"""The limits of a journal: it keeps so few records that a day of training is some 50 MB, however fast the steps are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..events import Event, MetricsLogged, Notice, SamplesSurveyed, StepsDone
from ..events.condenser import merged

STEPS_PER_SECOND = 1.5
STEPS_AT_FIRST = 2400
"""Records of steps beyond that limit at the start: all of the first ten minutes, at four a second."""
SURVEYS_PER_SECOND = 1 / 30
SURVEYS_AT_FIRST = 100
SECONDS_BETWEEN_SURVEYS = 30.0
"""Least time between two surveys within an epoch."""
MOST_OF_A_KIND = 64
"""Most events of another kind kept in one window; a loop that logs at every step must not fill the disk."""


class Summary:
    """Selects and merges the events to write.

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
        """The events to write of one window.

        They keep their order within the limits. Beyond, steps are merged across other events, and come after them.

        Args:
            happened: The events in order; steps are `StepsDone`.
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
        """The events that still wait."""
        kept: list[Event] = [] if self._survey is None else [self._survey]
        if self._steps:
            kept.append(merged(self._steps))
        self._survey, self._steps = None, []
        return kept

    def _refill(self, now: float) -> None:
        passed, self._last = now - self._last, now
        self._steps_left = min(STEPS_AT_FIRST, self._steps_left + STEPS_PER_SECOND * passed)
        self._surveys_left = min(SURVEYS_AT_FIRST, self._surveys_left + SURVEYS_PER_SECOND * passed)

    def _keep_steps(self, kept: list[Event], *, spare: int) -> None:
        if self._steps and self._steps_left >= 1 + spare:
            self._steps_left -= 1
            kept.append(merged(self._steps))
            self._steps.clear()
        elif len(self._steps) > 1:
            self._steps = [merged(self._steps)]

    def _keep_survey(self, kept: list[Event], now: float) -> None:
        survey = self._survey
        if survey is not None and self._surveys_left >= 1 and (survey.epoch_ended or now >= self._survey_due):
            self._surveys_left -= 1
            self._survey_due = now + SECONDS_BETWEEN_SURVEYS
            kept.append(survey)
            self._survey = None


def _left_out(counts: Counter[type[Event]], kept: list[Event]) -> list[Event]:
    """A notice for every kind with too many events in a window."""
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

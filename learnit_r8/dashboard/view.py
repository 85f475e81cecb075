"""The view: what the screen knows of a run, folded from its events. No terminal in it, and bounded memory."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple, TypeVar

from .. import events
from ..condense import steps_of
from .curve import Curve, Thinned
from .pacing import Pacing
from .text import clean
from .words import ALERT, WARN, describe

EMA_WEIGHT = 0.03
"""Of a new batch loss in the smoothed loss."""

MOST_ENTRIES = 1000
MOST_ALERTS = 300
MOST_METRICS = 32
MOST_POINTS = 256
MOST_SURVEYS = 256
MOST_MARKS = 256
RECENT = 1024


class Entry(NamedTuple):
    """An event as the log shows it.

    Attributes:
        step: Steps done.
        seconds: Training seconds.
        level: "info", "good", "warn" or "alert".
        text: One sentence, safe to show.
        mark: A letter for the axis of the charts, or "".
    """

    step: int
    seconds: float
    level: str
    text: str
    mark: str


class Mark(NamedTuple):
    """A letter at a step: S refused, B restored, C saved, R resumed."""

    step: int
    mark: str


class Point(NamedTuple):
    """A value at a step."""

    step: int
    value: float


class Bounds(NamedTuple):
    """The quartiles' loss ranges at a step: the lowest loss, the upper ends of Q1 to Q3, the highest loss."""

    step: int
    values: tuple[float, ...]


class View:
    """What is known of a run from its events alone: the same events give the same view, live or replayed.

    Its size does not grow with the run. One thread at a time.

    Attributes:
        run: How it was started; None before.
        step: Steps done.
        seconds: Training seconds of the newest event.
        epoch: The current epoch, 0-based.
        progress: Finished share of the budget, in [0, 1].
        loss: The batch losses.
        lr: The learning rates.
        lr_plan: The schedule at equal distances of progress.
        recent: The newest `StepsDone`, oldest first.
        last: The newest of them; None before.
        ema: Smoothed batch loss; NaN before the first.
        best: Lowest smoothed loss and its step, or None.
        metrics: Values that were logged, by name; thinned.
        logged: The newest `MetricsLogged`; None before.
        log: The newest events, oldest first.
        alerts: The newest warnings and alerts; a flood of other events does not drive them out.
        marks: What the axis of the charts shows; thinned.
        num_entries: Events ever put there.
        num_alerts: Of them, warnings and alerts.
        survey: The newest survey of the samples; None before.
        epoch_survey: The newest one of an epoch's end; None before.
        bounds: Quartiles over time; thinned.
        epochs: The newest ends of epochs.
        pacing: How fast it goes.
        incident: The refusal that is not over; None if there is none.
        num_refused: Losses refused so far.
        is_lr_lowered: Whether the learning rate is below its schedule after a refusal.
        is_searching: Whether a learning rate is searched for.
        is_paused: Whether the run waits.
        gave_up: That everything was tried in vain; None otherwise.
        ended: How it ended; None before.
    """

    def __init__(self) -> None:
        self.run: events.RunStarted | None = None
        self.step = 0
        self.seconds = 0.0
        self.epoch = 0
        self.progress = 0.0
        self.loss = Curve()
        self.lr = Curve()
        self.lr_plan: tuple[float, ...] = ()
        self.recent: deque[events.StepsDone] = deque(maxlen=RECENT)
        self.last: events.StepsDone | None = None
        self.ema = math.nan
        self.best: Point | None = None
        self.metrics: dict[str, Thinned[Point]] = {}
        self.logged: events.MetricsLogged | None = None
        self.log: deque[Entry] = deque(maxlen=MOST_ENTRIES)
        self.alerts: deque[Entry] = deque(maxlen=MOST_ALERTS)
        self.marks: Thinned[Mark] = Thinned(MOST_MARKS)
        self.num_entries = 0
        self.num_alerts = 0
        self.survey: events.SamplesSurveyed | None = None
        self.epoch_survey: events.SamplesSurveyed | None = None
        self.bounds: Thinned[Bounds] = Thinned(MOST_SURVEYS)
        self.epochs: deque[events.EpochDone] = deque(maxlen=64)
        self.pacing = Pacing()
        self.incident: events.BatchRefused | None = None
        self.num_refused = 0
        self.is_lr_lowered = False
        self.is_searching = False
        self.is_paused = False
        self.gave_up: events.GaveUp | None = None
        self.ended: events.RunEnded | None = None

    def fold(self, event: events.Event) -> None:
        """Take in an event; of a kind that is not known, its text is shown among the events."""
        if isinstance(event, events.StepDone):
            event = steps_of(event)
        self.step, self.seconds = event.step, max(self.seconds, event.seconds)
        match event:
            case events.StepsDone():
                self._fold_steps(event)
            case events.RunStarted():
                self._fold_start(event)
            case events.EpochDone():
                self.progress = _share(event.progress)
                self.epochs.append(event)
                self.pacing.epoch_ended(event)
            case events.SamplesSurveyed():
                self._fold_survey(event)
            case events.MetricsLogged():
                self._fold_metrics(event)
            case events.BatchRefused():
                self.incident = event
                self.num_refused += 1
                # The schedule itself lowers it a little from step to step.
                self.is_lr_lowered = event.next_lr < 0.9 * event.lr
                self.pacing.refused(event)
            case events.IncidentEnded():
                self.incident = None
            case events.LrCapped():
                self.is_lr_lowered = True
            case events.GaveUp():
                self.gave_up = event
            case events.LrRestored():
                self.is_lr_lowered = False
            case events.LrFound():
                self.is_searching = False
            case events.LrPlanned():
                self.lr_plan = event.lr_plan
            case events.RunPaused() | events.RunResumed():
                self.is_paused = isinstance(event, events.RunPaused)
            case events.RunEnded():
                self.ended = event
        self._note(event)

    def _note(self, event: events.Event) -> None:
        said = describe(event)
        if said is not None:
            entry = Entry(event.step, event.seconds, said.level, said.text, said.mark)
            self.log.append(entry)
            self.num_entries += 1
            if said.level in (WARN, ALERT):
                self.alerts.append(entry)
                self.num_alerts += 1
            if said.mark:
                self.marks.add(Mark(event.step, said.mark))

    def _fold_start(self, event: events.RunStarted) -> None:
        self.run, self.ended, self.incident, self.gave_up = event, None, None, None
        self.lr_plan = event.lr_plan
        self.epoch = event.step // max(1, event.steps_per_epoch)
        self.seconds = event.seconds
        self.progress = self._progress_at(event.step, event.seconds)
        self.is_lr_lowered = False
        self.is_searching = event.step == 0 and event.settings.get("auto_find_lr") == "True"
        self.pacing.started(event)
        self._forget_after(event.step)

    def _forget_after(self, step: int) -> None:
        """Forget what an earlier session did after the step at which this one begins: it did not happen here."""
        for curve in (self.loss, self.lr):
            curve.cut(step)
        self.bounds.keep(lambda bounds: bounds.step <= step)
        self.marks.keep(lambda mark: mark.step <= step)
        for points in self.metrics.values():
            points.keep(lambda point: point.step <= step)
        self.metrics = {name: points for name, points in self.metrics.items() if points}
        self.recent = deque((each for each in self.recent if each.step <= step), maxlen=RECENT)
        self.epochs = deque((each for each in self.epochs if each.step <= step), maxlen=self.epochs.maxlen)
        self.last = self.recent[-1] if self.recent else None
        self.best = _until(step, self.best)
        self.survey, self.epoch_survey = _until(step, self.survey), _until(step, self.epoch_survey)
        self.logged = _until(step, self.logged)
        if not step:
            self.ema, self.num_refused = math.nan, 0

    def _progress_at(self, step: int, seconds: float) -> float:
        run = self.run
        if run is None:
            return 0.0
        if run.total_steps:
            return min(1.0, step / run.total_steps)
        return min(1.0, seconds / run.train_duration_seconds) if run.train_duration_seconds else 0.0

    def _fold_steps(self, event: events.StepsDone) -> None:
        self.epoch, self.progress, self.last = event.epoch, _share(event.progress), event
        self.recent.append(event)
        self.loss.add(event.step, event.loss, event.lowest, event.highest, event.num_steps)
        self.lr.add(event.step, event.lr, event.lr, event.lr, event.num_steps)
        self.pacing.stepped(event)
        if math.isfinite(event.loss):
            weight = 1 - (1 - EMA_WEIGHT) ** event.num_steps
            self.ema = event.loss if math.isnan(self.ema) else self.ema + weight * (event.loss - self.ema)
            if self.best is None or self.ema < self.best.value:
                self.best = Point(event.step, self.ema)

    def _fold_survey(self, event: events.SamplesSurveyed) -> None:
        self.survey = event
        if event.epoch_ended:
            self.epoch_survey = event
        if len(event.low) == len(event.high) == 4:
            self.bounds.add(Bounds(event.step, (event.low[0], *event.high)))

    def _fold_metrics(self, event: events.MetricsLogged) -> None:
        self.logged = event
        for name, value in event.metrics.items():
            key = clean(name, 40)
            if key in self.metrics or len(self.metrics) < MOST_METRICS:
                points = self.metrics.setdefault(key, Thinned(MOST_POINTS))
                points.add(Point(event.at_step, value))

    @property
    def total_epochs(self) -> int | None:
        """Epochs in the whole run, the last one maybe cut short; None with a time budget."""
        run = self.run
        if run is None or run.total_steps is None:
            return None
        return math.ceil(run.total_steps / max(1, run.steps_per_epoch))

    @property
    def epoch_progress(self) -> float:
        """Finished share of the current epoch, in [0, 1]."""
        if self.run is None:
            return 0.0
        per_epoch = max(1, self.run.steps_per_epoch)
        return min(1.0, max(0, self.step - self.epoch * per_epoch) / per_epoch)


_Stepped = TypeVar("_Stepped", bound=Point | events.Event)


def _until(step: int, what: _Stepped | None) -> _Stepped | None:
    """What was known at a step; None for what came after it."""
    return what if what is not None and what.step <= step else None


def _share(value: float) -> float:
    """A share in [0, 1], whatever a damaged file says."""
    return min(1.0, max(0.0, value)) if value == value else 0.0

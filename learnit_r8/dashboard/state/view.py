"""The state of a run, folded from its events, as the dashboard draws it. Bounded memory; no terminal in it."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import deque
from typing import Any, NamedTuple

from ... import events
from ...events.condenser import steps_of
from ...events.event import ALERT, WARN, describe
from ...events.incident import Incident, fold
from ...events.samples import MOST_GROUPS
from ...events.steps import is_lower_better
from ...events.text import clean
from ..text import is_held_out
from .curve import Curve, ThinnedList

WINDOW = 64
"""Number of records of steps in the median, the newest."""

BREAKS = 8
"""Number of breaks between epochs (validation) in the mean, the newest."""


class Pacing:
    """Folds the times of steps; breaks between epochs are counted apart."""

    def __init__(self) -> None:
        # Some steps in a row, and the seconds they took.
        self._window: deque[tuple[float, events.StepsDone]] = deque(maxlen=WINDOW)
        self._breaks: deque[float] = deque(maxlen=BREAKS)
        self._since = math.nan
        self._after_epoch = False
        self._before = math.nan

    def started(self, event: events.RunStarted) -> None:
        """Start a session. A resumed one has only the speed of the earlier sessions yet, maybe of another machine."""
        self._window.clear()
        self._breaks.clear()
        self._since, self._after_epoch = event.seconds, False
        self._before = event.seconds / event.step if event.step else math.nan

    def epoch_ended(self, event: events.EpochDone) -> None:
        """The time until the next step is a break."""
        self._since, self._after_epoch = event.seconds, True

    def refused(self, event: events.BatchRefused) -> None:
        """Leave a refused step out."""
        self._since = event.seconds

    def stepped(self, event: events.StepsDone) -> None:
        """Measure some steps."""
        took, self._since = event.seconds - self._since, event.seconds
        if self._after_epoch:
            self._after_epoch = False
            usual = self.seconds_per_step
            if math.isfinite(usual) and math.isfinite(took):
                self._breaks.append(max(0.0, took - event.num_steps * usual))
                return
        if took >= 0:
            self._window.append((took, event))

    @property
    def seconds_per_step(self) -> float:
        """Median over the newest steps of this session, else the mean of earlier sessions, else NaN."""
        if not self._window:
            return self._before
        return statistics.median(took / steps.num_steps for took, steps in self._window)

    def _rate(self, field: str) -> float:
        """Return how much of a field of the steps there was per second."""
        seconds = sum(took for took, _ in self._window)
        return sum(getattr(steps, field) for _, steps in self._window) / seconds if seconds > 0 else math.nan

    @property
    def samples_per_second(self) -> float:
        """Mean over the newest steps; NaN before them."""
        return self._rate("samples")

    @property
    def own_share(self) -> float:
        """Share of the time spent inside the scheduler and its listeners; NaN before it is known."""
        return self._rate("own_seconds")

    @property
    def data_share(self) -> float:
        """Share of the time spent waiting for data, 0 where nobody measures it; NaN before it is known."""
        return self._rate("data_seconds")

    def left(self, num_steps: int, epoch_ends: int = 0) -> float:
        """Seconds for some more steps, with a break at each end of an epoch among them; NaN if unknown."""
        pause = sum(self._breaks) / len(self._breaks) if self._breaks else 0.0
        return num_steps * self.seconds_per_step + epoch_ends * pause


EMA_WEIGHT = 0.03
"""Weight of a new batch loss in the smoothed loss."""

MOST_ENTRIES = 1000
MOST_ALERTS = 300
MOST_METRICS = 32
MOST_POINTS = 256
MOST_SURVEYS = 256
MOST_MARKS = 256


class Entry(NamedTuple):
    """An event as the log shows it.

    Attributes:
        step: Steps done.
        seconds: Training seconds.
        level: "info", "good", "warn" or "alert".
        text: One sentence, safe to show.
        mark: A letter for the axis of the charts: S refused, P probe, B restored, C saved, R resumed, Q in quarantine;
            or "".
    """

    step: int
    seconds: float
    level: str
    text: str
    mark: str


class Point(NamedTuple):
    """A value at a step."""

    step: int
    value: float


class Bounds(NamedTuple):
    """The quartiles' loss ranges at a step: the lowest loss, the upper ends of Q1 to Q3, the highest loss."""

    step: int
    values: tuple[float, ...]


LOST = 0.1
"""Share of the progress of a group that it must lose to be called rising."""


class Group(NamedTuple):
    """A group of samples, with its mean loss over the steps.

    Attributes:
        name: Its name, safe to show.
        num_samples: Samples in it.
        points: Its mean loss, oldest first; at least one.
    """

    name: str
    num_samples: int
    points: ThinnedList[Point]

    @property
    def mean(self) -> float:
        """The newest mean loss."""
        return self.points[-1].value

    @property
    def lowest(self) -> float:
        """The lowest mean loss."""
        return min(point.value for point in self.points)

    @property
    def rise(self) -> float:
        """By how much it is above its lowest, if it has lost a tenth of its progress or more; else 0."""
        rise, progress = self.mean - self.lowest, self.points[0].value - self.lowest
        return rise if rise > LOST * progress and rise > 1e-9 * abs(self.mean) else 0.0


class View:
    """The state of a run as its events tell it: the same events give the same view, live or replayed.

    Its size does not grow with the run. One thread at a time.

    Args:
        skips_damage: Whether an event that cannot be folded, from a damaged file for instance, is counted and left out;
            else it raises.

    Attributes:
        run: The start of the run; None before.
        step, seconds: Steps done and training seconds at the newest event.
        epoch: The current epoch, 0-based.
        progress: Finished share of the budget, in [0, 1].
        loss, lr: The batch losses, and the learning rates.
        lr_plan: The schedule at equal distances of progress.
        last: The newest `StepsDone`; None before.
        ema: Smoothed batch loss, without batches of easy samples that steady the training; NaN before the first.
        best: Lowest smoothed loss and its step, or None.
        saved: The newest checkpoint; None before.
        metrics: Values that were logged, by name; thinned.
        bests: The best value of each metric, and its step.
        log: The newest events, oldest first.
        alerts: The newest warnings and alerts; a flood of other events does not drive them out.
        marks: Events with a letter on the axis of the charts; thinned.
        num_entries, num_alerts: Events, and warnings and alerts, that were added to the log so far.
        survey: The newest survey of the samples; None before.
        bounds: Quartiles over time; thinned.
        groups: The groups of samples by name, in the order of their size; `ranked_groups` has the worst first.
        num_groups: Number of all groups, of which the largest are told.
        epoch_began: Steps at the newest end of an epoch.
        pacing: Speed of the run.
        incidents: The newest incidents, oldest first.
        num_refused: Losses refused so far.
        is_lr_lowered: Whether the learning rate is below its schedule after a refusal.
        is_searching: Whether a learning rate is searched for.
        is_paused: Whether the run waits.
        gave_up: The end of a run that could not be recovered; None otherwise.
        ended: The end of the run; None before. A process that left has ended it, too.
        died: The error that ended the run; "" without one.
        heard: When the newest event was written, by the clock of whoever sets it before the event is folded; NaN if
            nobody does.
        stepped: `heard` of the newest step, start or pause.
        longest_pause: Longest time between two steps by that clock.
        is_between_epochs: Whether an epoch has ended, and no step has come since.
        num_left_out: Events that could not be folded.
    """

    def __init__(self, *, skips_damage: bool = False) -> None:
        self._skips_damage = skips_damage
        self.num_left_out = 0
        self.run: events.RunStarted | None = None
        self.step = 0
        self.seconds = 0.0
        self.epoch = 0
        self.progress = 0.0
        self.loss = Curve()
        self.lr = Curve()
        self.lr_plan: tuple[float, ...] = ()
        self.last: events.StepsDone | None = None
        self.ema = math.nan
        self.best: Point | None = None
        self.backups_off = ""
        self.saved: events.CheckpointSaved | None = None
        self.metrics: dict[str, ThinnedList[Point]] = {}
        self.bests: dict[str, Point] = {}
        self.log: deque[Entry] = deque(maxlen=MOST_ENTRIES)
        self.alerts: deque[Entry] = deque(maxlen=MOST_ALERTS)
        self.marks: ThinnedList[Entry] = ThinnedList(MOST_MARKS)
        self.num_entries = 0
        self.num_alerts = 0
        self.survey: events.SamplesSurveyed | None = None
        self.bounds: ThinnedList[Bounds] = ThinnedList(MOST_SURVEYS)
        self.groups: dict[str, Group] = {}
        self.num_groups = 0
        self.epoch_began = 0
        self.pacing = Pacing()
        self.incidents: tuple[Incident, ...] = ()
        self.num_refused = 0
        self.is_lr_lowered = False
        self.is_searching = False
        self.is_paused = False
        self.gave_up: events.GaveUp | None = None
        self.ended: events.RunEnded | None = None
        self.died = ""
        self._early: str | None = None
        self.heard = self.stepped = math.nan
        self.longest_pause = 0.0
        self.is_between_epochs = False

    def fold(self, event: events.Event) -> None:
        """Add an event to the state; an event of an unknown kind goes to the log only."""
        try:
            self._fold(steps_of(event) if isinstance(event, events.StepDone) else event)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            if not self._skips_damage:
                raise
            self.num_left_out += 1

    def _fold(self, event: events.Event) -> None:
        before, self.step, self.seconds = self.step, event.step, max(self.seconds, event.seconds)
        match event:
            case events.StepsDone():
                self._step_heard(before, event.num_steps)
                self._fold_steps(event)
            case events.RunStarted():
                self._fold_start(event)
            case events.EpochDone():
                self.progress = _share(event.progress)
                self.epoch_began = event.step
                self.pacing.epoch_ended(event)
                self.is_between_epochs = True
            case events.SamplesSurveyed():
                self.survey = event
                if len(event.low) == len(event.high) == 4:
                    self.bounds.add(Bounds(event.step, (event.low[0], *event.high)))
            case events.GroupsMeasured():
                self.num_groups = event.num_groups
                for name, count, mean in zip(event.names, event.counts, event.means, strict=False):
                    if math.isfinite(mean) and (name in self.groups or len(self.groups) < MOST_GROUPS):
                        new = Group(clean(name, 60), count, ThinnedList(MOST_POINTS))
                        self.groups.setdefault(name, new).points.add(Point(event.step, mean))
            case events.MetricsLogged():
                for name, value in event.named.items():
                    key = clean(name, 40)
                    if key in self.metrics or len(self.metrics) < MOST_METRICS:
                        points = self.metrics.setdefault(key, ThinnedList(MOST_POINTS))
                        points.add(Point(event.at_step, value))
                        self._note_best(key, Point(event.at_step, value))
            case events.BatchRefused():
                self._step_heard(before, 1)
                self._fold_refusal(event)
            case events.LrCapped() | events.LrRestored():
                self.is_lr_lowered = isinstance(event, events.LrCapped)
            case events.GaveUp():
                self.gave_up = event
            case events.CheckpointSaved():
                self.saved = event
            case events.BackupsOutlive():
                self.backups_off = event.reason
            case events.LrFound():
                self.is_searching = False
            case events.LrPlanned():
                self.lr_plan = event.lr_plan
            case events.CoolDownBegan():
                if self.run is not None:
                    total, seconds = event.total_steps, event.train_duration_seconds
                    self.run = dataclasses.replace(self.run, total_steps=total, train_duration_seconds=seconds)
                    self.progress = self._progress_at(event.step, event.seconds)
            case events.RunPaused() | events.RunResumed():
                self.is_paused, self.stepped = isinstance(event, events.RunPaused), self.heard
            case events.RunStopped():
                self._early = event.reason if event.is_early else self._early
            case events.RunEnded():
                self._fold_end(event)
            case events.ProcessLeft():
                self._fold_leave(event)
        self._note(event)

    def _note(self, event: events.Event) -> None:
        said = describe(event)
        if said is not None:
            entry = Entry(event.step, event.seconds, said.level, said.text, said.mark)
            self.log.append(entry)
            self.num_entries += 1
            self.incidents = fold(self.incidents, event, self.epoch)
            if said.level in (WARN, ALERT):
                self.alerts.append(entry)
                self.num_alerts += 1
            if said.mark:
                self.marks.add(entry)

    def _fold_start(self, event: events.RunStarted) -> None:
        self.run, self.ended, self.gave_up, self.died, self._early = event, None, None, "", None
        self.stepped, self.is_paused = self.heard, False
        self.lr_plan = event.lr_plan
        self.epoch = event.step // event.steps_per_epoch if event.steps_per_epoch else self.epoch
        self.seconds = event.seconds
        self.progress = self._progress_at(event.step, event.seconds)
        self.is_lr_lowered = False
        self.is_searching = event.step == 0 and event.settings.get("auto_find_lr") == "True"
        self.pacing.started(event)
        # Remove what an earlier session did after the step at which this one begins.
        for curve in (self.loss, self.lr):
            curve.cut(event.step)
        kept: list[ThinnedList[Any]] = [*self.metrics.values(), *(group.points for group in self.groups.values())]
        for items in (*kept, self.bounds, self.marks):
            items.keep(lambda item: item.step <= event.step)
        self.groups = {name: group for name, group in self.groups.items() if group.points}
        self.metrics = {name: points for name, points in self.metrics.items() if points}
        self.bests = {}
        for name, points in self.metrics.items():
            for point in points:
                self._note_best(name, point)
        self.incidents = tuple(each for each in self.incidents if each.step <= event.step) if event.step else ()
        self.epoch_began = min(self.epoch_began, event.step)
        known: tuple[Any, ...] = (self.best, self.survey, self.last)
        self.best, self.survey, self.last = (each if each and each.step <= event.step else None for each in known)
        if not event.step:
            self.ema, self.num_refused = math.nan, 0

    def _progress_at(self, step: int, seconds: float) -> float:
        run = self.run
        if run is None:
            return 0.0
        if run.total_steps:
            return min(1.0, step / run.total_steps)
        return min(1.0, seconds / run.train_duration_seconds) if run.train_duration_seconds else 0.0

    def _fold_end(self, event: events.RunEnded) -> None:
        self.ended, run = event, self.run
        if event.finished and run is not None and not (run.total_steps or run.train_duration_seconds):
            # Only its end tells how long it was.
            self.progress = 1.0

    def _fold_steps(self, event: events.StepsDone) -> None:
        self.epoch, self.progress, self.last = event.epoch, _share(event.progress), event
        self.is_between_epochs = False
        self.loss.add(event.step, event.loss, event.lowest, event.highest, event.num_steps)
        self.lr.add(event.step, event.lr, event.lr, event.lr, event.num_steps)
        self.pacing.stepped(event)
        if math.isfinite(event.loss) and not event.num_steady:
            weight = 1 - (1 - EMA_WEIGHT) ** event.num_steps
            self.ema = event.loss if math.isnan(self.ema) else self.ema + weight * (event.loss - self.ema)
            if self.best is None or self.ema < self.best.value:
                self.best = Point(event.step, self.ema)

    def _fold_refusal(self, event: events.BatchRefused) -> None:
        self.num_refused += 1
        self.epoch = max(self.epoch, event.epoch)
        # The schedule lowers the rate a little from step to step, too.
        self.is_lr_lowered = event.next_lr < 0.9 * event.lr
        self.pacing.refused(event)

    def _fold_leave(self, event: events.ProcessLeft) -> None:
        # An exception after the end of a run is not one of its training.
        if self.ended is None or not self.ended.finished:
            self.died = event.error
        is_whole = self.progress >= 1 or self._early is not None
        self.ended = self.ended or events.RunEnded(event.step, event.seconds, is_whole, self._early)

    def _step_heard(self, before: int, num_steps: int) -> None:
        # Between two pieces of a journal, of which a selection is read, there is no pause.
        if self.step - num_steps <= before:
            self.longest_pause = max(self.longest_pause, self.heard - self.stepped)
        self.stepped = self.heard

    def _note_best(self, name: str, point: Point) -> None:
        known, sign = self.bests.get(name), -1.0 if is_lower_better(name) else 1.0
        if math.isfinite(point.value) and (known is None or sign * point.value > sign * known.value):
            self.bests[name] = point

    @property
    def metric(self) -> str:
        """The metric that is monitored, or else one of data that is not trained on; "" without any."""
        wanted = self.run.settings.get("monitor", "") if self.run is not None else ""
        return min(self.metrics, key=lambda name: (name != wanted, not is_held_out(name)), default="")

    def ranked_groups(self) -> list[Group]:
        """The groups: those whose loss rises first, by how much, then the others, the highest loss first."""
        return sorted(self.groups.values(), key=lambda group: (-group.rise, -group.mean))

    @property
    def incident(self) -> Incident | None:
        """The incident that lasts, if a loss was refused in it; else None."""
        newest = self.incidents[-1] if self.incidents else None
        return newest if newest is not None and newest.state == "open" and newest.num_refused else None

    @property
    def total_epochs(self) -> int | None:
        """Epochs in the whole run, the last one maybe cut short; None with a time budget."""
        run = self.run
        if run is None or run.total_steps is None or not run.steps_per_epoch:
            return None
        return math.ceil(run.total_steps / run.steps_per_epoch)

    @property
    def epoch_text(self) -> str:
        """The current epoch, from 1, and how many there are: "3/10"; "3" with a time budget."""
        total = self.total_epochs
        return f"{min(self.epoch + 1, total)}/{total}" if total else f"{self.epoch + 1}"

    @property
    def step_text(self) -> str:
        """The steps done, and how many there are: "1,200/9,000"; "1,200" with a time budget."""
        total = self.run.total_steps if self.run is not None else None
        return f"{self.step:,}/{total:,}" if total else f"{self.step:,}"

    @property
    def no_table(self) -> str:
        """Why there are no samples to show, if there never will be any; "" else."""
        has_none = self.run is not None and not (self.run.num_samples or self.run.grows)
        return events.NO_TABLE if has_none else ""

    def time_left(self, now: float) -> float:
        """Seconds to the end of the run, NaN if unknown; ``now`` is in training seconds."""
        run = self.run
        if run is not None and run.train_duration_seconds:
            return max(0.0, run.train_duration_seconds - now)
        if run is None or not run.total_steps:
            return math.nan
        per_epoch = max(1, run.steps_per_epoch)
        ends = max(0, (run.total_steps - 1) // per_epoch - self.step // per_epoch)
        left = self.pacing.left(max(0, run.total_steps - self.step), ends)
        # Within a long step the time left falls with the clock.
        return max(left - max(0.0, now - self.seconds), 0.0) if left == left else left


def _share(value: float) -> float:
    """A share clipped to [0, 1]; 0 for NaN, which a damaged file may hold."""
    return min(1.0, max(0.0, value)) if value == value else 0.0

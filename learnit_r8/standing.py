"""Where a run stands: its parts, how far it is, and at what learning rate."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable

from .guard import Sentry
from .lr import check_rate
from .parts import Parts
from .rescue import Rescue
from .tally import Tally
from .telling import Telling


class Standing:
    """The parts of a run, its counters, and the rate they make.

    Args:
        parts: What the run is put together from.

    Attributes:
        settle: Called before an epoch or the run ends and before a checkpoint is saved: an adapter that holds losses
            back reports them then.
        taken_over: Called when a saved state was taken over: losses held back are of the run that was given up.
    """

    def __init__(self, parts: Parts) -> None:
        plan, safekeeping, announcer = parts.plan, parts.safekeeping, parts.announcer
        self.plan = plan
        self.table = plan.table
        self.pace = parts.pace
        self.schedule = parts.make_schedule(parts.peak_lr)
        self.sentry = Sentry(parts.guard)
        self.safekeeping = safekeeping
        self.announcer = announcer
        self.telling = Telling(announcer, plan.table)
        self.rescue = Rescue(parts.recovery, safekeeping, announcer, plan.table)
        self.search = parts.search
        self.name = parts.name
        self.settle: Callable[[], object] = _nothing
        self.taken_over: Callable[[], object] = _nothing
        self._settings = parts.settings
        self._make_schedule = parts.make_schedule
        self._last_progress, self._last_lr = math.nan, math.nan
        self._tally = Tally()
        self._num_draws = 0
        # The model has one step at a time; threads that draw and report take turns all the same.
        self._lock = threading.RLock()
        plan.table.sync = self._hand_over
        self._epoch_ended = False
        self._has_started = False

    def _hand_over(self) -> None:
        """Let the table learn what was reported, whichever thread asks it."""
        with self._lock:
            self.plan.flush()

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch, the same for every policy."""
        return self.plan.steps_per_pass

    @property
    def global_step(self) -> int:
        """Batches reported so far, refused ones included."""
        return self.pace.step

    @property
    def total_steps(self) -> int | None:
        """Steps in the whole run; None with a time budget."""
        return self.pace.budget.steps

    @property
    def current_epoch(self) -> int:
        """The current epoch, 0-based."""
        return self.pace.epoch

    @property
    def progress(self) -> float:
        """Finished share of the budget, in [0, 1]."""
        return self.pace.progress

    @property
    def is_stopped(self) -> bool:
        """Whether the run was asked to end before its budget is used up; see `Requests.stop`."""
        return self.pace.is_stopped

    @property
    def phase(self) -> str:
        """One of "searching", "cataloguing", "steadying", "training", "stopped" or "finished"."""
        if self.is_stopped:
            return "stopped"
        if self.search.is_on:
            return "searching"
        if self.pace.is_finished:
            return "finished"
        if self.current_epoch == 0:
            return "cataloguing"
        return "steadying" if self.rescue.is_steadying else "training"

    @property
    def lr(self) -> float:
        """The learning rate to use now."""
        return self.search.lr or self._lr_at(self.pace.progress)

    def _lr_at(self, progress: float) -> float:
        return self.rescue.lr(self._last_lr if progress == self._last_progress else self._scheduled_lr(progress))

    def _scheduled_lr(self, progress: float) -> float:
        # Asked after a report and at the next draw; with a budget in steps the second answer is the first.
        if progress != self._last_progress:
            self._last_lr, self._last_progress = check_rate(self.schedule(progress), progress), progress
        return self._last_lr

    def _use_found_lr(self) -> None:
        if self.search.found_lr is not None:
            self.schedule = self._make_schedule(self.search.found_lr)
            self._last_progress = math.nan
            if self._has_started:
                self.telling.lr_planned(self.schedule)

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """A ``with`` block whose time does not count towards ``train_duration_seconds``."""
        return self.pace.paused()

    def summary(self) -> str:
        """What happened so far, for people: a few lines of text."""
        plan, table = self.plan, self.table
        lines = [
            f"step {self.global_step} of {self.total_steps or '?'}, {self.phase}, lr {self.lr:.3g}",
            f"losses refused: {self.sentry.num_refused}; batches not reported: {plan.abandoned}; "
            f"left out for steady ones: {plan.displaced}; {self.safekeeping.summary()}{self.rescue.summary()}",
            f"losses of the samples ({table.source}):",
        ]
        lines += [
            f"  Q{number} {q.low:9.3g} to {q.high:<9.3g} mean {q.mean:<9.3g} used {q.uses:.1f} times"
            for number, q in enumerate(table.quartiles(), start=1)
        ]
        return "\n".join(lines)


def _nothing() -> None:
    """Where nothing is held back."""

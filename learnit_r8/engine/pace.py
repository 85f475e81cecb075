"""The pace: the current step, the finished share of the budget, and the time. Only this part reads the clock."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..schedules.budget import Budget, Stopwatch


class Pace:
    """The position of a run.

    Args:
        budget: The budget of the run.
        steps_per_epoch: Steps in an epoch, >= 1.
        clock: Returns seconds, monotonic.

    Attributes:
        clock: As given.
        step: Batches reported so far, including refused ones.
        num_out: Batches drawn and not reported yet.
        is_stopped: Whether the run was asked to end before its budget is used up.
    """

    def __init__(self, budget: Budget, steps_per_epoch: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget = budget
        self.steps_per_epoch = steps_per_epoch
        self.step = 0
        self.num_out = 0
        self.is_stopped = False
        self.clock = clock
        self._watch = Stopwatch()

    def start(self) -> None:
        """Start counting time, unless it is counted already."""
        if not self._watch.is_running:
            self._watch.start(self.clock())

    def use_clock(self, clock: Callable[[], float]) -> None:
        """Read this clock from now on; the time counted so far stays."""
        seconds = self.seconds
        self.clock = clock
        self._watch.reset(seconds, clock())

    @property
    def seconds(self) -> float:
        """Training time so far: from the first draw, without pauses and downtime."""
        return self._watch.seconds(self.clock())

    @property
    def next_step(self) -> int:
        """The step at which a batch drawn now will be reported."""
        return self.step + self.num_out

    @property
    def epoch(self) -> int:
        """The current epoch, 0-based."""
        return self.step // self.steps_per_epoch

    @property
    def progress(self) -> float:
        """Finished share of the budget, in [0, 1]."""
        return self.progress_at(self.step)

    def progress_at(self, step: int) -> float:
        """Finished share of the budget now, if ``step`` steps are done; reads the clock only if it matters."""
        budget = self.budget
        steps = budget.steps
        if steps is None:
            return budget.progress(step, self.seconds)
        # budget.progress() inlined, as this is called twice a step.
        return step / steps if step < steps else 1.0

    @property
    def is_finished(self) -> bool:
        """Whether the budget is used up."""
        return self.progress >= 1

    @property
    def is_over(self) -> bool:
        """Whether no batch is drawn any more: the budget is used up, or the run was stopped."""
        return self.is_stopped or self.is_finished

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time spent inside."""
        was_running = self._watch.is_running
        if was_running:
            self._watch.pause(self.clock())
        try:
            yield
        finally:
            if was_running:
                self._watch.start(self.clock())

    def undo(self, step: int, num_out: int) -> None:
        """Return to the counts before an interrupted call."""
        self.step, self.num_out = step, num_out

    def state_dict(self) -> dict[str, Any]:
        """Steps and seconds; batches not reported yet are drawn again after a resume."""
        return {"step": self.step, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.step, self.num_out = state["step"], 0
        self._watch.reset(state["seconds"], self.clock())

"""early_stopping: end a loop when a number has stopped getting better."""

from __future__ import annotations

from typing import Any, Literal

from ..events.caller import warn
from ..events.steps import mode_of
from ..streams.event import as_scalar
from ..triggers import Elapsed
from ..triggers.patience import Patience
from .checkpoints import Kept
from .period import Period, as_period
from .state import LoopState


class early_stopping:
    """End the loop when an entry of the logs has not improved for a while.

    It looks only at steps that have the entry, so a validation that logs it may run only once in a while.

    Args:
        monitor: Name of the entry.
        patience: Values without improvement to accept, >= 1; or a `Period`, a time such as "5min" or ``at(...)``:
            steps, samples or seconds since the best value, asked when a new value comes.
        min_delta: Least difference that counts as better, >= 0, in the unit of the entry.
        mode: "min" if lower is better, "max" if higher is; by default as the name says, see `is_lower_better`.
        restore_best_weights: Whether the loop returns the state it had at the best value, however it ends.

    Attributes:
        best: The best value so far; None before the first finite one.
        stopped: Whether it has ended the loop.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        monitor: str,
        patience: Any = 1,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] | None = None,
        restore_best_weights: bool = True,
    ) -> None:
        self._monitor, self._min_delta, self._mode = monitor, min_delta, mode_of(monitor, mode)
        # A number counts values; a period of steps, samples or seconds is asked when a value comes.
        self._period: Period | None = None if isinstance(patience, int) else as_period("patience", patience)
        if self._period is not None and self._period.share(Elapsed()) >= 1:
            raise ValueError(f"patience must be > 0, got {patience!r}.")
        self._patience = patience if self._period is None else 1
        self._restores = restore_best_weights
        self.on_start()

    def on_start(self) -> None:
        """Forget the previous run."""
        self._rule = Patience(self._patience, self._mode, self._min_delta)
        self._since = Elapsed()
        self._kept: Any = None
        self._others: set[str] | None = set()
        self.stopped = False

    @property
    def best(self) -> float | None:
        return self._rule.best

    def on_step(self, loop_state: LoopState) -> None:
        """Look at this step's logs."""
        try:
            value = loop_state.logs.find(self._monitor)
        except KeyError:
            if self._others is not None:
                self._others.update(name for entries in loop_state.logs.values() for name in entries)
            return
        self._others = None
        if self._rule.improves(float(as_scalar(value))):
            self._since = loop_state.elapsed
            self._kept = Kept(loop_state.state) if self._restores else None
            return
        is_over = (
            self._rule.is_over if self._period is None else self._period.share(loop_state.elapsed, self._since) >= 1
        )
        if is_over:
            self.stopped = loop_state.stop_iteration = True

    def on_end(self, loop_state: LoopState) -> None:
        """Put the best state back; warn if there never was an entry of that name."""
        self.on_step(loop_state)
        if self._others and loop_state.error is None:
            warn(
                f"monitor must be an entry of the logs, got {self._monitor!r}, which no step had, so the loop was "
                f"never stopped; there were {sorted(self._others)}."
            )
        if self._restores and self.best is not None:
            loop_state.state = self._kept.put_back()

"""The learning-rate search before a run, on batches that are not part of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import events
from ..events.bus import Announcer
from ..policies.registry import SHUFFLE
from ..recovery.persistence import Persistence
from ..sampling.chunk import Batch
from ..schedules.range_test import RangeTest

if TYPE_CHECKING:
    from ..sampling.source import Source


class LrSearch:
    """Runs the steps of a range test, then restores the model to its state before.

    Args:
        test: The range test, or None for no search.
        source: Draws random batches.
        persistence: Restores the model.
        announcer: Receives warnings and events.

    Attributes:
        found_lr: The rate found; None before.
        is_on: Whether the search is still running.
    """

    def __init__(
        self, test: RangeTest | None, *, source: Source, persistence: Persistence, announcer: Announcer
    ) -> None:
        self.found_lr: float | None = None
        self._test, self.is_on = test, test is not None
        self._source = source
        self._persistence = persistence
        self._announcer = announcer

    def check_ready(self) -> None:
        """Check that the model can be restored after the search.

        Raises:
            RuntimeError: there is neither a state callback nor a backup.
        """
        if self.is_on and self._persistence.callbacks.state is None and self._persistence.backup.is_empty:
            raise RuntimeError(
                "auto_find_lr needs a model state to go back to, got none: pass state_callback or call "
                "update_cpu_backup() before the first batch is drawn."
            )

    def draw(self) -> tuple[Batch, float]:
        """Draw a random batch, and the rate to train on it with."""
        returned = bool(self._source.returned)
        batch = self._source.draw_outside(SHUFFLE)
        assert batch is not None
        assert self._test is not None
        rates = batch.chunk.rates
        if not returned:
            rates[batch.slot] = self._test.draw()
        return batch, rates[batch.slot]

    @property
    def lr(self) -> float | None:
        """The rate of the next batch of the search; None if the search is over."""
        return None if self._test is None else self._test.lr

    def take(self, batch: Batch, loss: float, lr: float, *, refused: bool) -> int | None:
        """Take the loss of a batch of the search; returns the restored state if the model was restored."""
        self._source.close(batch)
        if self._test is None:
            # Drawn before the search ended, but trained on since: the restored model has changed.
            return self._persistence.restore_newest()
        if self._test.take(loss, lr, refused=refused):
            return self._persistence.restore_newest()
        return self._end_if_done(self._test)

    def skip(self, batch: Batch) -> None:
        """Count a batch that will not be reported."""
        self._source.close(batch)
        if self._test is not None:
            self._test.skip()
            self._end_if_done(self._test)

    def _end_if_done(self, test: RangeTest) -> int | None:
        if not test.is_done:
            return None
        self._test, self.is_on = None, False
        self._source.forget_outside()
        restored = self._persistence.restore_newest()
        if math.isnan(test.result):
            self._announcer.warn_once(
                "no rate found",
                f"auto_find_lr went up to {test.lr:.3g} in {test.num_steps} steps and the loss never turned up: "
                "initial_lr is used.",
            )
            return restored
        self.found_lr = test.result
        self._announcer.tell(events.LrFound, lr=test.result, num_steps=test.num_steps)
        return restored

    def state_dict(self) -> dict[str, Any]:
        """The state of the search."""
        return {"test": None if self._test is None else self._test.state_dict(), "found_lr": self.found_lr}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self._test = None if state["test"] is None else RangeTest(**state["test"])
        self.is_on = self._test is not None
        self.found_lr = state["found_lr"]

"""The experiment under way: hands out the batches that it asks for, and gives it their losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...checkpoint.callbacks import Callbacks, Repeat
    from ...sampling.ticket import Ticket
    from ..ram_backup import Backup
    from .experiment import Case, Finding, Steps
    from .live_model import LiveModel


TRIAL_LOSSES = 8
"""Batches whose mean stands for a probe where no witness can be drawn."""


class ExperimentRun:
    """Runs one experiment at a time.

    Args:
        live: The model that is experimented on.
        get_callbacks: Returns the callbacks, for the random generators.

    Attributes:
        asks_probe: Whether the next batch drawn must be a probe.
        can_probe: Whether a witness can be drawn out of turn.
        is_open: Whether an experiment is under way.
        is_at_alarm: Whether the batch of the alarm was no step, so that a loss tied to its step is high once more.
        asked: The backup whose witness is drawn; None if none is.
        case: What the experiment was told; None if there is none.
    """

    def __init__(self, live: LiveModel, get_callbacks: Callable[[], Callbacks]) -> None:
        self._live, self._get_callbacks = live, get_callbacks
        self.can_probe = True
        self.end()

    def end(self) -> None:
        """Drop the experiment."""
        self._steps: Steps | None = None
        self.asked: Backup | None = None
        self.case: Case | None = None
        self._losses: list[float] = []
        self._chunk: Any = None
        self._generators: Any = None
        self.is_open = self.asks_probe = self.is_at_alarm = False

    def begin(self, case: Case, steps: Steps) -> Finding | None:
        """Start an experiment; returns its finding if it needs no probe."""
        generators = self._get_callbacks().generators
        self._generators = None if generators is None else generators.get()
        self.case, self._steps, self.is_open = case, steps, True
        return self._advance(None)

    def draw(self) -> Any:
        """The batch of the probe, as the plan draws it again; sets the random generators to those at its record."""
        self.asks_probe = False
        return self._witness()

    def _witness(self) -> Any:
        assert self.asked is not None
        generators = self._get_callbacks().generators
        if generators is not None and self.asked.generators is not None and not self._losses:
            generators.set(self.asked.generators)
        return self.asked.witness[len(self._losses)]

    def repeat(self, repeat: Repeat) -> float:
        """The loss of the probe where no loop draws it."""
        return repeat.loss(self._witness())

    def note_drawn(self, chunk: Any) -> None:
        """Note the chunk of the probe that was just drawn."""
        self._chunk = chunk

    def is_probe(self, ticket: Ticket) -> bool:
        """Whether a batch is the probe."""
        return ticket.chunk is self._chunk

    def tests(self, ticket: Ticket) -> bool:
        """Whether a report must not be judged, as weights are being tested: its own, or those it was trained with."""
        return self.is_open and (self.is_probe(ticket) or not self.can_probe or self._live.current is not None)

    def takes(self, ticket: Ticket) -> bool:
        """Whether the loss of a batch that `tests` is one of the test."""
        return self.is_open and (self.is_probe(ticket) or not self.can_probe)

    def is_fine(self, loss: float) -> bool:
        """Whether the loss of the probe is no higher than that of healthy weights."""
        asked, case = self.asked, self.case
        return asked is not None and case is not None and loss <= case.record(asked) + case.tolerance(asked)

    @property
    def is_partway(self) -> bool:
        """Whether the probe has had some of its losses, and needs more."""
        return self.is_open and bool(self._losses)

    def lose(self, ticket: Ticket) -> None:
        """Draw the probe again if this abandoned batch was it."""
        if self.is_open and self.is_probe(ticket):
            self.asks_probe, self._chunk = self.can_probe, None

    def let_probe(self, can_probe: bool) -> None:
        """Say whether a witness can be drawn out of turn from now on; see `can_probe`."""
        if can_probe != self.can_probe:
            self.can_probe = can_probe
            if self._chunk is None:
                self.asks_probe = self.is_open and can_probe

    def take(self, loss: float) -> Finding | None:
        """Take the loss of a part of the probe; returns the finding if that ends the experiment."""
        assert self.asked is not None
        self.is_at_alarm = False
        self._losses.append(loss)
        assert self.case is not None
        count = len(self.asked.witness) if self.case.is_exact else TRIAL_LOSSES
        if len(self._losses) < count and math.isfinite(loss):
            self.asks_probe, self._chunk = self.can_probe, None
            return None
        return self._advance(float(np.mean(self._losses)))

    def _advance(self, loss: float | None) -> Finding | None:
        """Send the loss of a probe to the experiment; its finding if it ends."""
        assert self._steps is not None
        try:
            # A generator that has not begun takes None only.
            self.asked = self._steps.send(loss)  # type: ignore[arg-type]
        except StopIteration as end:
            generators, finding = self._get_callbacks().generators, end.value
            if generators is not None and self._generators is not None and finding.verdict != "restored":
                generators.set(self._generators)
            self.end()
            return finding  # type: ignore[no-any-return]
        self._losses = []
        self.asks_probe, self._chunk = self.can_probe, None
        return None

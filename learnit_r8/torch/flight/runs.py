"""The runs of a case: each from the same random numbers, counted and noted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...recovery.incidents.finding import Refusal
from ...sampling.random_generators import random_state, set_random_state
from .rows import halve, join, num_rows, some_rows
from .trace import Trace
from .watch import run_watched
from .words import describe_run

FAR, LEAST = 100.0, 0.01
"""How far beyond the usual a finite loss is bad where that of the run was not finite, in units of the usual."""


class Runs:
    """Runs batches, and says whether they go wrong as the refused one did.

    Args:
        refusal: What the run knows.
        model: The model.
        run: Runs a batch.
        has_loss: Whether that gives a loss, not only what the model returns.
        is_alone: Whether no other process trains the model; else there is no backward pass, and what asks others for
            something raises.

    Attributes:
        evidence: What the runs have shown, line by line.
        count: How many there were.
        is_random: Whether the model draws random numbers.
        has_loss: As given.
    """

    def __init__(
        self, refusal: Refusal, model: torch.nn.Module, run: Callable[[Any], Any], *, has_loss: bool,
        is_alone: bool = True,
    ) -> None:  # fmt: skip
        self._is_alone = is_alone
        self._refusal, self._model, self._run, self.has_loss = refusal, model, run, has_loss
        self._generators, self._own_generator = random_state(), torch.get_rng_state()
        self.evidence: list[str] = []
        self.count = 0
        self.is_random = False

    def watch(
        self, batch: Any, what: str = "", *, backward: bool = False, scale: float = 1.0, is_quick: bool = False
    ) -> Trace:
        """Run a batch, and note what it shows as ``what``; see `run_watched`."""
        set_random_state(self._generators)
        self.count += 1
        backward = backward and self.has_loss and self._is_alone
        trace = run_watched(
            self._model, self._run, batch, backward=backward, scale=scale, is_quick=is_quick and self._is_alone,
            is_alone=self._is_alone,
        )  # fmt: skip
        self.is_random = self.is_random or not torch.equal(torch.get_rng_state(), self._own_generator)
        if what:
            self.evidence.append(f"{what}: {describe_run(trace, has_loss=self.has_loss)}")
        return trace

    def goes_wrong(self, batch: Any, what: str) -> bool:
        """Whether a batch goes wrong as the refused one did; noted as ``what``."""
        return self.is_bad(self.watch(batch, what, is_quick=True))

    def is_bad(self, trace: Trace) -> bool:
        """Whether a run goes wrong as the refused batch did."""
        if trace.error is not None or not trace.is_finite:
            return True
        return self.has_loss and trace.loss > self.threshold

    def is_good_without(self, batch: Any, rows: Sequence[int]) -> bool:
        """Whether a batch is good without these rows."""
        size = num_rows(batch)
        if not rows or len(rows) >= size:
            return False
        left = [row for row in range(size) if row not in rows]
        return not self.goes_wrong(some_rows(batch, left, size), f"the batch without the rows {list(rows)[:8]}")

    def has_bad_gradients(self, good: Any) -> bool:
        """Whether gradients of the last good batch are not finite either."""
        return bool(self.watch(good, "the last good batch", backward=True, is_quick=True).bad_gradients)

    @property
    def threshold(self) -> float:
        """A loss beyond it is a bad one."""
        loss, usual = self._refusal.loss, self._refusal.usual
        if usual != usual or loss <= usual:
            return math.inf
        if not math.isfinite(loss):
            return usual + FAR * (abs(usual) + LEAST)
        return math.sqrt(loss * usual) if usual > 0 else (loss + usual) / 2

    def find_row(self, batch: Any, like: Trace, good: Any) -> tuple[int, ...]:
        """The row to blame for what a run of the batch has shown, found by halving it; none if no row alone is.

        A row alone may fail for being alone, as in BatchNorm or in the mean of those with some property, and so gets
        the others of a good batch beside it, which do not fail; where they do not fit, the batch without it is tried.
        """
        beside = some_rows(good, range(1, num_rows(good)), num_rows(good)) if num_rows(good) > 1 else None
        was_good = False

        def is_like(part: list[int]) -> bool:
            nonlocal was_good
            rows = some_rows(batch, part, size)
            both = join(rows, beside) if len(part) == 1 and beside is not None else None
            trace = self.watch(rows if both is None else both, backward=bool(like.bad_gradients), is_quick=True)
            if like.bad_gradients:
                is_bad = bool(trace.bad_gradients)
            else:
                is_bad = type(trace.error) is type(like.error) and self.is_bad(trace)
            was_good = was_good or both is not None or not is_bad
            return is_bad

        size = num_rows(batch)
        if size < 2:
            return ()
        rows = self._bad_losses(like, size)
        if not rows:
            rows, runs = halve(is_like, size, math.ceil(math.log2(size)) + 2)
            if rows and not was_good:
                # Each part was bad: so may be any.
                rows, runs = () if is_like([row for row in range(size) if row not in rows]) else rows, runs + 1
            found = f"row {rows[0]} alone goes wrong" if rows else "no row alone goes wrong"
            self.evidence.append(f"{runs} runs of parts of the batch: {found}")
        return rows

    def _bad_losses(self, trace: Trace, size: int) -> tuple[int, ...]:
        """The rows whose own losses are bad, where they are known."""
        if trace.losses is None or len(trace.losses) != size or trace.bad_gradients:
            return ()
        losses = trace.losses.reshape(size, -1).mean(1)
        bad = ~torch.isfinite(losses) if not math.isfinite(trace.loss) else losses > self.threshold
        rows = tuple(bad.nonzero().reshape(-1).tolist())
        return rows if len(rows) < size else ()

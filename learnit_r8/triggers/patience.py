"""Patience: the rule of early stopping, and the best value so far; loops, streams and the scheduler share them."""

from __future__ import annotations

import math

from .._validation import whole_number

MODES = ("min", "max")


class Record:
    """The best value so far of a number that is to fall or to rise.

    Args:
        mode: "min" or "max".
        min_delta: Least difference that counts as better, >= 0.

    Raises:
        ValueError: another mode, or ``min_delta`` not finite or below 0.

    Attributes:
        best: The best value so far; None before the first finite one.
    """

    def __init__(self, mode: str, min_delta: float) -> None:
        if mode not in MODES:
            raise ValueError(f'mode must be "min" or "max", got {mode!r}.')
        if not (isinstance(min_delta, (int, float)) and 0 <= min_delta < math.inf):
            raise ValueError(f"min_delta must be finite and >= 0, got {min_delta!r}.")
        self._sign = 1.0 if mode == "min" else -1.0
        self._min_delta = min_delta
        self.best: float | None = None

    def improves(self, value: float) -> bool:
        """Whether this value is a new best one, which it then is; one that is not finite never is."""
        if not math.isfinite(value):
            return False
        if self.best is not None and not self._sign * value < self._sign * self.best - self._min_delta:
            return False
        self.best = value
        return True


class Patience(Record):
    """Counts the values of a number that are no improvement; patience is over with the ``patience``-th in a row.

    A value that is not finite is never an improvement.

    Args:
        patience: Values without improvement to accept, >= 1.
        mode: "min" if lower is better, "max" if higher is.
        min_delta: Least difference that counts as better, >= 0, in the unit of the number.

    Raises:
        ValueError: an argument out of its range.

    Attributes:
        waited: Values since the best one.

    >>> patience = Patience(2, "min")
    >>> [patience.improves(value) for value in (5.0, 4.0, 4.0, 6.0)], patience.best, patience.is_over
    ([True, True, False, False], 4.0, True)
    """

    def __init__(self, patience: int, mode: str, min_delta: float = 0.0) -> None:
        self._patience = whole_number("patience", patience, least=1)
        super().__init__(mode, min_delta)
        self.waited = 0

    @property
    def is_over(self) -> bool:
        """Whether it is time to stop."""
        return self.waited >= self._patience

    def improves(self, value: float) -> bool:
        """Count a value; returns whether it is a new best one."""
        is_better = super().improves(value)
        self.waited = 0 if is_better else self.waited + 1
        return is_better

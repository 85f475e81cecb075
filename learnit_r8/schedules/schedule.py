"""Learning-rate schedules: progress in [0, 1] -> learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .._validation import check_choice, check_share, described, is_number

Schedule = Callable[[float], float]
"""Maps progress, the finished share of the budget in [0, 1], to a learning rate."""

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda share: 1 - share,
    "sqrt": lambda share: 1 - math.sqrt(share),
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    "constant": lambda share: 1.0,
}
"""What is left of the peak after a share of the decay, both in [0, 1]."""

SHAPES = {name: DECAYS[name] for name in ("linear", "sqrt", "cosine")}
"""Shapes of the decay of "wsd" and of a cool-down: what is left after a share of it, both in [0, 1]."""

ScheduleName = Literal["linear", "cosine", "constant", "one_cycle", "wsd", "keep"]
ShapeName = Literal["linear", "sqrt", "cosine"]

MODES: tuple[ScheduleName, ...] = ("linear", "cosine", "constant", "one_cycle", "wsd", "keep")
OPEN_MODES = ("wsd", "constant", "keep")
"""Modes of a run whose end is not known: their rates before the decay do not depend on it."""

PLAN_POINTS = 129
"""Learning rates that stand for a schedule."""

DEFAULT_DECAY = 0.2
DEFAULT_SHAPE = "sqrt"


@dataclass(frozen=True)
class Warmup:
    r"""A linear rise to the peak, then a decay to the floor, at once or after a stable part.

    With progress :math:`p`, warm-up share :math:`w`, a decay that begins at :math:`b` (:math:`w`, or 1 less its share)
    and :math:`q = (p - b) / (1 - b)`: :math:`peak (start + (1 - start) p / w)` for :math:`p < w`, the peak for
    :math:`w \le p < b`, else :math:`floor + (peak - floor)\, decay(q)` with :math:`decay(q) = 1 - q` (linear),
    :math:`1 - \sqrt q` (sqrt), :math:`(1 + \cos \pi q) / 2` (cosine) or 1 (constant).

    Args:
        peak_lr: Highest learning rate, > 0.
        decay: "linear", "sqrt", "cosine" or "constant".
        warmup: Share of the budget spent rising, in [0, 1].
        start: First learning rate as a share of the peak, in [0, 1].
        floor: Last learning rate, in [0, peak_lr].
        decay_share: Share of the budget spent decaying, in (0, 1 - warmup]; None for all after the warm-up.

    Raises:
        ValueError: an argument outside its range.

    Source: the cosine is that of Loshchilov & Hutter, arXiv:1608.03983, without restarts; the stable part is of
    Haegele et al., arXiv:2405.18392, where 1 - sqrt is slightly better than a linear decay.

    >>> lr = Warmup(0.1, warmup=0.2)
    >>> [round(lr(p), 4) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.01, 0.055, 0.1, 0.05, 0.0]
    >>> lr = Warmup(0.1, "linear", warmup=0.2, decay_share=0.4)
    >>> [round(lr(p), 4) for p in (0.0, 0.1, 0.2, 0.6, 0.8, 1.0)]
    [0.01, 0.055, 0.1, 0.1, 0.05, 0.0]
    """

    peak_lr: float
    decay: str = "cosine"
    warmup: float = 0.05
    start: float = 0.1
    floor: float = 0.0
    decay_share: float | None = None

    def __post_init__(self) -> None:
        check_choice("decay", self.decay, sorted(DECAYS))
        _check_shape(self.peak_lr, self.warmup, self.floor)
        check_share("start", self.start)
        if self.decay_share is not None and not 0 < self.decay_share <= 1 - self.warmup + 1e-9:
            raise ValueError(
                f"decay_proportion must leave room for the warm-up, above 0 and at most {1 - self.warmup:.4g}, got "
                f"{self.decay_share!r}."
            )

    @property
    def decays_from(self) -> float:
        """Progress at which the decay begins."""
        return self.warmup if self.decay_share is None else 1 - self.decay_share

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            return self.peak_lr * (self.start + (1 - self.start) * progress / self.warmup)
        length = 1 - self.warmup if self.decay_share is None else self.decay_share
        begin = self.warmup if self.decay_share is None else 1 - length
        if progress < begin:
            return self.peak_lr
        share = min(1.0, (progress - begin) / length) if length else 0.0
        return self.floor + (self.peak_lr - self.floor) * DECAYS[self.decay](share)


@dataclass(frozen=True)
class OneCycle:
    r"""Half a cosine up from ``peak_lr / 25`` to the peak, half a cosine down to the floor.

    Args:
        peak_lr: Highest learning rate, > 0.
        warmup: Share of the budget spent rising, in [0, 1].
        floor: Last learning rate, in [0, peak_lr].

    Raises:
        ValueError: an argument outside its range.

    Source: the 1cycle policy of Smith & Topin, arXiv:1708.07120, with cosines as in torch's OneCycleLR and without
    its momentum cycle.

    >>> [round(OneCycle(0.1, warmup=0.5)(p), 4) for p in (0.0, 0.5, 1.0)]
    [0.004, 0.1, 0.0]
    """

    peak_lr: float
    warmup: float = 0.3
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check_shape(self.peak_lr, self.warmup, self.floor)

    def __call__(self, progress: float) -> float:
        if progress < self.warmup:
            low, share = self.peak_lr / 25, 1 - progress / self.warmup
        else:
            low, share = self.floor, (progress - self.warmup) / (1 - self.warmup) if self.warmup < 1 else 0.0
        return low + (self.peak_lr - low) * DECAYS["cosine"](share)


@dataclass(frozen=True)
class Kept:
    """The rate is the user's own, whatever it is: 1.0 of it, which recovery may lower.

    >>> Kept()(0.5)
    1.0
    """

    def __call__(self, progress: float) -> float:
        return 1.0


def check_rate(lr: float, progress: float) -> float:
    """The rate as a float; ValueError unless it is >= 0 and finite."""
    if not (is_number(lr) and 0 <= lr < math.inf):
        raise ValueError(
            f"scheduler_mode must return a learning rate >= 0 and finite, got {lr!r} at progress {progress!r}."
        )
    return float(lr)


def _check_shape(peak_lr: float, warmup: float, floor: float) -> None:
    if not (is_number(peak_lr) and 0 < peak_lr < math.inf):
        raise ValueError(f"initial_lr must be > 0 and finite, got {described(peak_lr)}.")
    if not (is_number(warmup) and 0 <= warmup <= 1):
        steps = "; for steps give warmup_steps" if is_number(warmup) and warmup > 1 else ""
        raise ValueError(f"warmup_proportion must be in [0, 1], got {warmup!r}{steps}.")
    if not (is_number(floor) and 0 <= floor <= peak_lr):
        raise ValueError(f"min_lr must be in [0, initial_lr={peak_lr!r}], got {floor!r}.")


def sample_rates(schedule: Schedule) -> tuple[float, ...]:
    """Learning rates of a schedule at equal steps of progress, for display; empty if it raises, or keeps the user's."""
    if isinstance(schedule, Kept):
        return ()
    try:
        return tuple(float(f"{schedule(place / (PLAN_POINTS - 1)):.5g}") for place in range(PLAN_POINTS))
    except Exception:
        # The user's own schedule may only work with the progress of a real run.
        return ()

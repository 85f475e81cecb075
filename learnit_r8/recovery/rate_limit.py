"""The rate limit: lowers the learning rate for a while after a restore, and longer where training goes wrong again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

HOLD_STEPS = 32
"""Calm updates after which a ceiling begins to rise."""

MOST_HITS = 5
"""A ceiling is held up to 2 ** MOST_HITS times longer, the more often a lower rate has proved better."""

MOST_OF_BAD = 0.5
"""Share of a rate that failed to which a ceiling rises at first; twice the ceiling, where that is less."""

WORSE, FAR_WORSE = 0.1, 0.5
"""How much worse than its best the level of the losses may be for a ceiling to rise, and to stay, as shares of it."""


class RateLimit:
    """Holds the learning rate down.

    Args:
        factor: Factor of the rate in the first steps after a restore.
        gentle_steps: Number of those steps.
        is_share: Whether rates are shares of the user's own, and are shown as such.

    Attributes:
        is_share: As given.
        ceiling: Highest rate allowed; infinite for no limit.
        is_on: Whether the rate is held down now.
    """

    def __init__(self, factor: float, gentle_steps: int, *, is_share: bool = False) -> None:
        self._factor, self._gentle_steps, self.is_share = factor, gentle_steps, is_share
        self.forget()

    def forget(self) -> None:
        """Follow the schedule."""
        self.ceiling = self._slow_above = math.inf
        self._calm = self._hits = self._gentle_left = 0
        self._best, self._may_rise, self._top = math.inf, True, 0.0
        self.is_on = False

    def lr(self, scheduled_lr: float) -> float:
        """The rate to use in place of the scheduled one."""
        # From its highest rate on, below a ceiling as above it, the schedule falls.
        falls = scheduled_lr / self._top if scheduled_lr < self._top else 1.0
        return min(scheduled_lr * self.factor, self.ceiling * falls)

    @property
    def ceiling_text(self) -> str:
        """The ceiling in words."""
        return f"{self.ceiling:.3g}" + (" of yours" if self.is_share else "")

    @property
    def factor(self) -> float:
        """Factor of the scheduled rate, in (0, 1]."""
        return self._factor if self._gentle_left else 1.0

    def restored(self) -> None:
        """Train gently for a while, as the model was restored."""
        self._calm, self._gentle_left = 0, self._gentle_steps
        self.is_on = True

    def lower(self, rate: float, *, by: float, least: float = 0.0, is_probed: bool = True) -> None:
        """Set the ceiling below a rate at which a healthy state was damaged.

        Args:
            rate: The rate at which that happened.
            by: What to divide it by.
            least: Lowest ceiling.
            is_probed: Whether probes have shown it; if not, the ceiling rises sooner, as it may have been the data.
        """
        self._slow_above, self._calm = rate * (min(MOST_OF_BAD, 2.0 / by) if is_probed else MOST_OF_BAD), 0
        self._best, self._may_rise, self._top = math.inf, True, 0.0
        self.ceiling = max(rate / by, least)
        self.is_on = True

    @property
    def was_lowered(self) -> bool:
        """Whether a ceiling was ever set since the last `forget`."""
        return self._slow_above < math.inf

    def note_level(self, level: float, noise: float) -> None:
        """Take the level of the last losses: while it is worse than it was, the ceiling must not rise.

        Where it is far worse, the ceiling has risen too far, and goes back.

        Args:
            level: The level; NaN is ignored.
            noise: How much worse it may be by chance, to rise.
        """
        if level != level or self.ceiling == math.inf:
            return
        worse = level - self._best
        self._best = min(self._best, level)
        self._may_rise = not worse > WORSE * abs(self._best) + noise
        if worse > FAR_WORSE * abs(self._best):
            self.ceiling, self._calm, self._best = self.ceiling / 2, 0, level

    def confirm(self) -> None:
        """Hold the ceiling four times longer, as a lower rate has reached what the higher one did not."""
        self._hits, self._calm = self._hits + 2, 0

    def accepted(self, scheduled_lr: float) -> bool:
        """Note a calm update; returns whether the rate follows the schedule again."""
        self._gentle_left = max(0, self._gentle_left - 1)
        self._calm += 1
        self._top = max(self._top, scheduled_lr)
        hold = HOLD_STEPS * 2 ** min(self._hits, MOST_HITS)
        if self.ceiling < math.inf and self._calm > hold and self._may_rise:
            # It doubles within half of the time that it was held, but comes near the rate that failed only late.
            self.ceiling *= 2 ** (2.0 / hold)
            if self._calm < 4 * hold:
                self.ceiling = min(self.ceiling, self._slow_above)
            if self.ceiling > 4 * self._top:
                self.ceiling = math.inf
        self.is_on = self._gentle_left > 0 or self.ceiling < math.inf
        return not self.is_on

    def state_dict(self) -> dict[str, Any]:
        """The limit, as plain values; an infinite rate as None."""
        return {
            "ceiling": None if self.ceiling == math.inf else self.ceiling,
            "slow_above": None if self._slow_above == math.inf else self._slow_above,
            "calm": self._calm,
            "hits": self._hits,
            "gentle_left": self._gentle_left,
            "best": None if self._best == math.inf else self._best,
            "may_rise": self._may_rise,
            "top": self._top,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        ceiling, slow_above = state["ceiling"], state["slow_above"]
        self.ceiling = math.inf if ceiling is None else ceiling
        self._slow_above = math.inf if slow_above is None else slow_above
        self._calm, self._hits, self._gentle_left = state["calm"], state["hits"], state["gentle_left"]
        best, self._may_rise, self._top = state["best"], state["may_rise"], state["top"]
        self._best = math.inf if best is None else best
        self.is_on = self._gentle_left > 0 or self.ceiling < math.inf

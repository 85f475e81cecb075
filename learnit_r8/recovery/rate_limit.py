"""The rate limit: lowers the learning rate for a while after a restore, and until a higher one has proved to hold; and
the norm limit, which clips the gradient from then on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

HOLD_STEPS, TRIAL_AFTER, TRIAL_STEPS = 32, 64, 32
"""Calm updates after which a level as good as before the damage ends a ceiling; after which a higher one is tried; and
for which it is. The median is of as many losses."""

MOST_HITS = 5
"""Both come up to 2 ** MOST_HITS times later: twice as late each time that a higher rate failed, four times where a
lower one has proved better."""

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
        since: Step at which the ceiling was set.
        past: When the rate was held last, and at what, in words; "" for never.
    """

    def __init__(self, factor: float, gentle_steps: int, *, is_share: bool = False) -> None:
        self._factor, self._gentle_steps, self.is_share = factor, gentle_steps, is_share
        self.forget()

    def forget(self) -> None:
        """Follow the schedule."""
        self.ceiling = self._failed = self._best = math.inf
        self._goal = -math.inf
        self._calm = self._hits = self._gentle_left = self.since = 0
        self._may_rise, self._is_back, self._top, self._before_trial = True, False, 0.0, 0.0
        self.is_on, self._lowest, self.past = False, math.inf, ""

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

    def until_text(self) -> str:
        """Until when the ceiling holds, in words; "" without one."""
        if self.ceiling == math.inf:
            return ""
        back = f"the median of {HOLD_STEPS} losses is {self._goal:.3g} again, or " if math.isfinite(self._goal) else ""
        if self._before_trial:
            return f"until {back}this rate, on trial now, has held"
        left = max(1, TRIAL_AFTER * 2 ** min(self._hits, MOST_HITS) - self._calm)
        return f"until {back}a trial of a higher one holds, the next after {left} good steps"

    def restored(self) -> None:
        """Train gently for a while, as the model was restored."""
        self._end_trial()
        self._calm, self._gentle_left = 0, self._gentle_steps
        self.is_on = True

    def lower(self, rate: float, *, by: float, least: float = 0.0, goal: float = -math.inf, step: int = 0) -> None:
        """Set the ceiling below a rate at which a healthy state was damaged.

        Args:
            rate: The rate at which that happened.
            by: What to divide it by.
            least: Lowest ceiling.
            goal: Level of the losses before the damage; minus infinity where it was no good.
            step: Steps reported.
        """
        if self.ceiling == math.inf:
            self.since, self._lowest = step, math.inf
            # It was over, and too soon.
            self._hits += self.was_lowered
        self._end_trial()
        self._failed, self._calm, self._goal = rate, 0, goal
        self._best, self._may_rise, self._is_back, self._top = math.inf, True, False, 0.0
        self.ceiling = max(rate / by, least)
        self._lowest = min(self._lowest, self.ceiling)
        self.is_on = True

    def _end_trial(self) -> None:
        """Go back to the ceiling from before the trial of a higher one, if there is one, and wait twice as long."""
        if self._before_trial:
            self.ceiling, self._before_trial = self._before_trial, 0.0
            self._hits += 1

    @property
    def was_lowered(self) -> bool:
        """Whether a ceiling was ever set since the last `forget`."""
        return self._failed < math.inf

    def note_level(self, level: float, noise: float) -> None:
        """Take the level of the last losses: while it is worse than it was, no higher ceiling is tried or holds.

        Args:
            level: The level; NaN is ignored.
            noise: How much worse it may be by chance.
        """
        if level != level or self.ceiling == math.inf:
            return
        self._is_back = level <= self._goal + noise
        worse = level - self._best
        self._best = min(self._best, level)
        self._may_rise = not worse > WORSE * abs(self._best) + noise
        is_far_worse = worse > FAR_WORSE * abs(self._best)
        if is_far_worse and not self._before_trial:
            self.ceiling /= 2
        if is_far_worse or (self._before_trial and not self._may_rise):
            self._end_trial()
            self._calm, self._best = 0, level

    def confirm(self) -> None:
        """Hold the ceiling four times longer, as a lower rate has reached what the higher one did not."""
        self._hits, self._calm = self._hits + 2, 0

    def accepted(self, scheduled_lr: float, step: int = 0) -> bool:
        """Note a calm update, the one of this step; returns whether the rate follows the schedule again."""
        was_held = self.ceiling < math.inf
        self._gentle_left = max(0, self._gentle_left - 1)
        self._calm += 1
        self._top = max(self._top, scheduled_lr)
        later = 2 ** min(self._hits, MOST_HITS)
        if self.ceiling == math.inf:
            pass
        elif self._is_back and self._calm >= HOLD_STEPS * later:
            self.ceiling, self._before_trial = math.inf, 0.0
        elif self._before_trial:
            if self._calm >= TRIAL_STEPS:
                self._before_trial, self._calm = 0.0, 0
                self.ceiling = self.ceiling if self.ceiling < self._top else math.inf
        elif self._calm >= TRIAL_AFTER * later and self._may_rise:
            self.ceiling, self._before_trial, self._calm = 2 * self.ceiling, self.ceiling, 0
        if was_held and self.ceiling == math.inf:
            share = " of yours" if self.is_share else ""
            self.past = f"learning rate at most {self._lowest:.3g}{share} from step {self.since:,} to {step:,}"
        self.is_on = self._gentle_left > 0 or self.ceiling < math.inf
        return not self.is_on

    def state_dict(self) -> dict[str, Any]:
        """The limit, as plain values; an infinite rate as None."""
        return {
            "ceiling": None if self.ceiling == math.inf else self.ceiling,
            "slow_above": None if self._failed == math.inf else self._failed,
            "calm": self._calm,
            "hits": self._hits,
            "gentle_left": self._gentle_left,
            "best": None if self._best == math.inf else self._best,
            "may_rise": self._may_rise,
            "top": self._top,
            "goal": None if self._goal == -math.inf else self._goal,
            "is_back": self._is_back,
            "before_trial": self._before_trial,
            "since": self.since,
            "lowest": None if self._lowest == math.inf else self._lowest,
            "past": self.past,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        ceiling, failed = state["ceiling"], state["slow_above"]
        self.ceiling = math.inf if ceiling is None else ceiling
        self._failed = math.inf if failed is None else failed
        self._calm, self._hits, self._gentle_left = state["calm"], state["hits"], state["gentle_left"]
        best, self._may_rise, self._top = state["best"], state["may_rise"], state["top"]
        self._best = math.inf if best is None else best
        # Saved by earlier versions without these.
        goal = state.get("goal")
        self._goal, self._is_back = -math.inf if goal is None else goal, state.get("is_back", False)
        self._before_trial, self.since = state.get("before_trial", 0.0), state.get("since", 0)
        lowest, self.past = state.get("lowest"), state.get("past", "")
        self._lowest = self.ceiling if lowest is None else lowest
        self.is_on = self._gentle_left > 0 or self.ceiling < math.inf


NUM_NORMS, TIMES_USUAL = 16, 4.0
"""The longest gradient, as a multiple of the median of so many norms: the first after the restore, of sound weights. At
2 and less a GRU could bear the rate that had failed, but learned less at it than at a lower one."""


class NormLimit:
    """Clips the norm of the gradient, where R8 steps the optimizer or is told the norm, once a rate had to be lowered.

    A lower rate alone leaves rare gradients as long as they are; measured in benchmarks/natural.py.

    Attributes:
        is_on: Whether it clips.
        is_used: Whether anybody asks for it.
        since: Step from which it does.
        until: Step at which it ends; infinite while the rate is held down.
    """

    def __init__(self) -> None:
        self.is_used = False
        self.forget()

    def forget(self) -> None:
        """Clip nothing."""
        self.is_on, self.since, self.until = False, 0, math.inf
        self._norms: list[float] = []

    def begin(self, step: int) -> None:
        """Clip from here on, as the model was restored and its rate lowered; the norms are learned anew."""
        self.is_on, self.since, self.until, self._norms = True, step, math.inf, []

    def let_end(self, step: int) -> None:
        """Clip as long again, as the rate follows its schedule from this step on."""
        self.until = 2 * step - self.since

    def note(self, norm: float) -> None:
        """Take the norm of a gradient that was learned from, before it was clipped."""
        if len(self._norms) < NUM_NORMS and 0 < norm < math.inf:
            self._norms.append(norm)

    @property
    def most(self) -> float:
        """The norm of the longest gradient; infinite while none is known."""
        return TIMES_USUAL * statistics.median(self._norms) if self._norms else math.inf

    def factor(self, norm: float) -> float:
        """What to multiply a gradient of this norm by, in (0, 1]."""
        return min(1.0, self.most / norm) if 0 < norm < math.inf else 1.0

    @property
    def text(self) -> str:
        """What is done, in words; "" for nothing."""
        if not (self.is_on and self.is_used):
            return ""
        found = f"{self.most:.3g}, " if self._norms else ""
        until = f"to {self.until:,}" if math.isfinite(self.until) else "on, for twice as long as the rate is held"
        what = f"the norm of the gradient is clipped at {found}{TIMES_USUAL:g} times the usual"
        return f"{what}, from step {self.since:,} {until}"

    def state_dict(self) -> dict[str, Any]:
        """The limit, as plain values."""
        until = None if self.until == math.inf else self.until
        return {
            "is_on": self.is_on, "is_used": self.is_used, "since": self.since, "until": until,
            "norms": list(self._norms),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.is_on, self.is_used, self.since = state["is_on"], state["is_used"], state["since"]
        self.until = math.inf if state["until"] is None else state["until"]
        self._norms = list(state["norms"])

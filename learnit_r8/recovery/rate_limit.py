"""The rate limit: lowers the learning rate for a while after a restore, and until a higher one has proved to hold; and
the norm limit, which clips the gradient from a restore on."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

from .saved_fields import NOT_SAVED, SavedFields

HOLD_STEPS, TRIAL_AFTER, TRIAL_STEPS = 32, 64, 32
"""Calm updates after which a level as good as before the damage ends a ceiling; after which a higher one is tried; and
for which it is. The median is of as many losses."""

MOST_HITS = 5
"""Both come up to 2 ** MOST_HITS times later: twice as late each time that a higher rate failed, or that one of the
user's own was tried; four times where a lower one has proved better."""

WORSE, FAR_WORSE, BETTER = 0.1, 0.5, 0.02
"""How much worse than its best the level of the losses may be for a ceiling to rise, and to stay, as shares of it; and
how much better it must be after the trial of a rate of the user's own, where there is no level from before the damage:
else one that is too high from the start comes back until it fails (measured in benchmarks/explosions.py)."""


@dataclass(eq=False)
class RateLimit(SavedFields):
    """Holds the learning rate down.

    Attributes:
        gentle_factor: Factor of the rate in the first steps after a restore.
        gentle_steps: Number of those steps.
        is_share: Whether rates are shares of the user's own, and are shown as such.
        is_ignored: Whether the loop cannot lower its rate.
        ceiling: Highest rate allowed; infinite for no limit.
        failed: The rate at which a healthy state was damaged last; infinite for none.
        calm: Calm updates since the ceiling was set, raised, or a trial of a higher one failed.
        hits: How often a higher rate failed, one of the user's own was tried, or a lower one has proved better.
        gentle_left: Gentle steps still to come.
        best: The best level of the losses below this ceiling; infinite while there is none. Without those of a trial of
            the user's own rate.
        is_no_better: Whether the last level was no better than that.
        may_rise: Whether the level is near enough to that for a higher ceiling.
        top: Highest scheduled rate below this ceiling.
        goal: Level of the losses before the damage; minus infinity where it was no good.
        is_back: Whether the level is as good as that again.
        before_trial: The ceiling from before the trial of a higher one; 0 without a trial.
        since: Step at which the ceiling was set.
        lowest: The lowest ceiling since then.
        past: When the rate was held last, and at what, in words; "" for never.
    """

    gentle_factor: float = field(metadata=NOT_SAVED)
    gentle_steps: int = field(metadata=NOT_SAVED)
    is_share: bool = field(default=False, metadata=NOT_SAVED)
    is_ignored: bool = field(default=False, metadata=NOT_SAVED)
    ceiling: float = math.inf
    failed: float = math.inf
    calm: int = 0
    hits: int = 0
    gentle_left: int = 0
    best: float = math.inf
    is_no_better: bool = False
    may_rise: bool = True
    top: float = 0.0
    goal: float = -math.inf
    is_back: bool = False
    before_trial: float = 0.0
    since: int = 0
    lowest: float = math.inf
    past: str = ""

    @property
    def is_on(self) -> bool:
        """Whether the rate is held down now."""
        return self.gentle_left > 0 or self.ceiling < math.inf

    def lr(self, scheduled_lr: float) -> float:
        """The rate to use in place of the scheduled one."""
        if not self.is_on:
            return scheduled_lr
        # From its highest rate on, below a ceiling as above it, the schedule falls.
        falls = scheduled_lr / self.top if scheduled_lr < self.top else 1.0
        return min(scheduled_lr * self.factor, self.ceiling * falls)

    @property
    def ceiling_text(self) -> str:
        """The ceiling in words."""
        ignored = ", which the compiled step ignores," if self.is_ignored else ""
        return f"{self.ceiling:.3g}" + (f" of yours{ignored}" if self.is_share else "")

    @property
    def factor(self) -> float:
        """Factor of the scheduled rate, in (0, 1]."""
        return self.gentle_factor if self.gentle_left else 1.0

    @property
    def text(self) -> str:
        """How the rate is held, or was last, in words; "" for never."""
        if self.ceiling == math.inf:
            return self.past
        held = f"learning rate at most {self.ceiling_text} since step {self.since:,}"
        return f"{held}, as training at a higher one went wrong, {self.until_text()}"

    def until_text(self) -> str:
        """Until when the ceiling holds, in words."""
        back = f"the median of {HOLD_STEPS} losses is {self.goal:.3g} again, or " if math.isfinite(self.goal) else ""
        if self.before_trial:
            return f"until {back}this rate, on trial now, has held"
        left = max(1, TRIAL_AFTER * 2 ** min(self.hits, MOST_HITS) - self.calm)
        return f"until {back}a trial of a higher one holds, the next after {left} good steps"

    def restored(self) -> None:
        """Train gently for a while, as the model was restored."""
        self._end_trial()
        self.calm, self.gentle_left = 0, self.gentle_steps

    def lower(
        self, rate: float, *, by: float, least: float = 0.0, goal: float = -math.inf, step: int = 0, hits: int = 0
    ) -> None:
        """Set the ceiling below a rate at which a healthy state was damaged.

        Args:
            rate: The rate at which that happened.
            by: What to divide it by.
            least: Lowest ceiling.
            goal: Level of the losses before the damage; minus infinity where it was no good.
            step: Steps reported.
            hits: Least number of `hits` from here on.
        """
        if self.is_ignored and self.ceiling < math.inf:
            # A lower one still would change nothing.
            return
        if self.ceiling == math.inf:
            self.since, self.lowest = step, math.inf
            # It was over, and too soon.
            self.hits += self.was_lowered
        self._end_trial()
        self.hits = max(self.hits, hits)
        self.failed, self.calm, self.goal = rate, 0, goal
        self.best, self.may_rise, self.is_back, self.top = math.inf, True, False, 0.0
        self.ceiling = max(rate / by, least)
        self.lowest = min(self.lowest, self.ceiling)

    def _end_trial(self) -> None:
        """Go back to the ceiling from before the trial of a higher one, if there is one, and wait twice as long."""
        if self.before_trial:
            self.ceiling, self.before_trial = self.before_trial, 0.0
            self.hits += 1

    @property
    def has_failed(self) -> bool:
        """Whether a rate has damaged weights, or may have: the rate is held down."""
        return self.is_on or self.was_lowered

    @property
    def was_lowered(self) -> bool:
        """Whether a ceiling was ever set since the last `forget`."""
        return self.failed < math.inf

    def note_level(self, level: float, noise: float) -> None:
        """Take the level of the last losses: while it is worse than it was, no higher ceiling is tried or holds.

        Args:
            level: The level; NaN is ignored.
            noise: How much worse it may be by chance.
        """
        if level != level or self.ceiling == math.inf:
            return
        self.is_back = level <= self.goal + noise
        worse = level - self.best
        self.is_no_better = worse > -BETTER * abs(self.best)
        if not (self.before_trial and self.is_share):
            self.best = min(self.best, level)
        self.may_rise = not worse > WORSE * abs(self.best) + noise
        is_far_worse = worse > FAR_WORSE * abs(self.best)
        if is_far_worse and not self.before_trial:
            self.ceiling /= 2
        if is_far_worse or (self.before_trial and not self.may_rise):
            self._end_trial()
            self.calm, self.best = 0, level

    def confirm(self) -> None:
        """Hold the ceiling four times longer, as a lower rate has reached what the higher one did not."""
        self.hits, self.calm = self.hits + 2, 0

    def accepted(self, scheduled_lr: float, step: int = 0) -> bool:
        """Note a calm update, the one of this step; returns whether the rate follows the schedule again."""
        was_held = self.ceiling < math.inf
        self.gentle_left = max(0, self.gentle_left - 1)
        self.calm += 1
        self.top = max(self.top, scheduled_lr)
        later = 2 ** min(self.hits, MOST_HITS)
        if self.ceiling == math.inf:
            pass
        elif self.is_back and self.calm >= HOLD_STEPS * later:
            self.ceiling, self.before_trial = math.inf, 0.0
        elif self.before_trial:
            if self.calm >= TRIAL_STEPS:
                if self.is_no_better and self.is_share and self.goal == -math.inf:
                    self._end_trial()
                self.before_trial, self.calm = 0.0, 0
                self.ceiling = self.ceiling if self.ceiling < self.top else math.inf
        elif self.calm >= TRIAL_AFTER * later and self.may_rise:
            self.ceiling, self.before_trial, self.calm = 2 * self.ceiling, self.ceiling, 0
            self.hits += self.is_share
        if was_held and self.ceiling == math.inf:
            share = " of yours" if self.is_share else ""
            self.past = f"learning rate at most {self.lowest:.3g}{share} from step {self.since:,} to {step:,}"
        return not self.is_on


NUM_NORMS, TIMES_USUAL = 64, 2.0
"""The longest gradient, as a multiple of the median of the last norms. A median of one's own norms in place of a fixed
one is AutoClip's idea (Seetharaman et al., arXiv 2007.14469), which clips each gradient at a low quantile, from the
start. At 1 rates that are too high seem to hold, and at 4 losses explode again; measured in benchmarks/explosions.py
and benchmarks/natural.py."""


@dataclass(eq=False)
class NormLimit(SavedFields):
    """Clips the norm of the gradient, where R8 steps the optimizer or is told the norm, from the first restore on that
    undid updates which were too large.

    A lower rate alone leaves rare gradients as long as they are, and what has exploded once explodes again.

    Attributes:
        is_on: Whether it clips.
        is_used: Whether anybody asks for it.
        since: Step from which it does.
        norms: The last norms since then.
    """

    is_on: bool = False
    is_used: bool = False
    since: int = 0
    norms: list[float] = field(default_factory=list)

    def forget(self) -> None:
        """Clip nothing."""
        self.is_on, self.since, self.norms = False, 0, []

    def begin(self, step: int) -> None:
        """Clip from here on, as the model was restored; the norms, now those of sound weights, are learned anew."""
        self.is_on, self.since, self.norms = True, step, []

    def note(self, norm: float) -> None:
        """Take the norm of a gradient that was learned from, before it was clipped."""
        if 0 < norm < math.inf:
            self.norms.append(norm)
            del self.norms[:-NUM_NORMS]

    @property
    def most(self) -> float:
        """The norm of the longest gradient; infinite while none is known."""
        return TIMES_USUAL * statistics.median(self.norms) if self.norms else math.inf

    def factor(self, norm: float) -> float:
        """What to multiply a gradient of this norm by, in (0, 1]."""
        return min(1.0, self.most / norm) if 0 < norm < math.inf else 1.0

    @property
    def text(self) -> str:
        """What is done, in words; "" for nothing."""
        if not (self.is_on and self.is_used):
            return ""
        found = f"{self.most:.3g}, " if self.norms else ""
        what = f"the norm of the gradient is clipped at {found}{TIMES_USUAL:g} times the usual"
        return f"{what}, from step {self.since:,} on"

"""The progress of the losses: what is usual, and the sensitive tests of the first steps.

A suspicious loss costs only one probe, so these tests may often be wrong; they only decide when to look.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

# np.median imports it in the first steps, when a program may be out of file descriptors.
import numpy.ma

from ..table.trend import NEAR, lowest_median, rises_slowly
from .backups import Backup, median_of, spread_of
from .saved_fields import SavedFields

EARLY_UPDATES, START_UPDATES = 80, 384
"""Updates in which each loss is looked at; and in which a slow loss of progress is, as the rate may be too high."""

LOOK_EVERY, LEVEL = 16, 32
"""Updates between two looks at the level, and losses that it is computed from."""

LEVEL_SPREADS = 0.5
"""Spreads of the losses by which a level, the median of 32 of them, is above the lowest of some others by chance."""

LOST, LEAST_PROGRESS = 0.33, 0.2
"""Share of the best progress whose loss is looked into, and least progress for that as a share of the start: less of it
comes and goes where networks train against each other; at rates that are too high, what was lost was half of it."""

SMALL_BATCH = 16
"""Samples in a batch below which its loss is noisier than the tests of the first steps expect."""

NOTED_EVERY = 4
"""Updates of which one loss is kept among the first ones."""

FIRST = 8
"""First losses from which the level of the start is computed."""

STILL, HIGH_LEVEL, WILD_SPREAD = 0.02, 0.25, 0.1
"""Losses stand still that fall by less than the first share of the level of the start, are above the second, and whose
spread is above the third."""

FAR_ABOVE, MOST_OF_RECORD = 1.5, 10.0
"""Times the loss of the untrained model from which the median of `FIRST` losses is looked into, and most of that loss
as a multiple of the first batch's, which may be an easy one."""

LEVEL_ABOVE = (LOOK_EVERY, 0.7), (FIRST, 1.0)
"""Losses whose median is compared with that, and spreads of theirs by which it must be above: in the first steps, and
at every `LOOK_EVERY`-th update."""

MODERATE, LASTING = 10.0, 3
"""Where little has been learned, losses may rise before they fall, as with a codebook or a target that is learned
too. Those that rise slowly, to at most the first number of times those of the untrained model, are looked into at the
second number of times the updates that they took."""

STANDSTILL, LEAST_GAIN = 64, 0.03
"""Updates since the rate was highest from which the least progress is expected, and that as a share of the loss of the
untrained model."""

MOST_LOST, CLEARLY, PERHAPS = 0.7, 6.25, 3.0
"""Share of the progress since the untrained model that is lost where losses have fallen back, or `LOST` where they are
three times as clearly above from one step to the next; and five standard errors of a median, in spreads of the losses
over the root of their number, or half as much."""

LAST_LOST = 0.2
"""Share of that progress which the level of the losses may have lost as a run ends: no later loss will tell more."""

JUMPED, BEFORE_JUMP = 4, 16
"""Losses that are all above so many before them, and that far above the untrained model's, are looked into at once."""

BEFORE_RISE, SINCE_LOOK = 24, 5
"""Losses that are compared to see a rise, and the most of them that may have come since the last look at losses."""

ALONE = 30.0
"""Times the highest of the last `FIRST` losses from which a single one that is back at the first losses is told of.
Where losses have fallen far, the guard, which asks how much of the progress is lost, lets it pass."""

OF_ODD_DATA = 8.0
"""The same multiple of a batch that holds numbers far beyond those of another batch, of which nobody else tells."""

APART = 8
"""Losses before an explosion of which none is one."""

LEAST_LEARNED = 0.1
"""Share of the loss of the untrained model by which usual losses must be below it for higher ones to be explosions."""

CALM = 4
"""Updates without a high loss after which damage that is not finite does not come from the rate."""

SUDDEN = 0.6
"""Share of the rise that must come within one step for the rise to be sudden."""

TIMES_THE_NEXT, TIMES_THE_OTHERS = 1000, 100
"""Times the highest of the other first losses from which the very first, or another one, is said to be that of a bad
batch: where batches have few samples, or their size is not known, it was not refused."""

WORSE = 4.0
"""Times the loss that a batch has with the weights from before the first one from which that one was bad."""

FAR_FIRST = "the loss of {} ({:.4g}) was {:,.0f} times as high as the highest of {}"


def _is_far_above(loss: float, before: list[float], times: float = ALONE) -> bool:
    return len(before) == FIRST and loss > times * max(before) > 0


@dataclass(eq=False)
class Progress(SavedFields):
    """The losses that were learned from, and the losses that were reported.

    Attributes:
        recent: The last losses learned from.
        reported: The last finite losses reported, refused ones included.
        start: Level of the losses as the run began; NaN while it is unknown.
        untrained: Loss of the untrained model: of its first batch, or the second lowest of the first losses, which at
            far too high rates are those of ruined weights; NaN while it is unknown.
        record: Loss of the untrained model on its first batch; NaN while it is unknown.
        first: The first losses of the run.
        peak, peak_at: The highest rate of the user's own so far, and the updates then.
        gap: How many times longer than at first the next look waits; doubled by each that found healthy weights.
        wait_until, above_from: Updates from which a high loss, and a high level, is looked into again.
        look_wait: Updates without a look for lost progress.
        slow_until: Updates from which losses that have slowly risen are looked into; 0 if none have.
    """

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=128))
    reported: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    start: float = math.nan
    untrained: float = math.nan
    record: float = math.nan
    first: list[float] = field(default_factory=list)
    peak: float = 0.0
    peak_at: int = 0
    gap: int = 1
    wait_until: int = 0
    look_wait: int = 0
    above_from: int = 0
    slow_until: int = 0

    def went_back(self, losses: Sequence[float], updates: int) -> None:
        """Take the losses from before a backup for the last ones, as the model was restored.

        Args:
            losses: Those.
            updates: Updates of the backup: the first losses after it were those of damaged weights.
        """
        del self.first[updates // NOTED_EVERY :]
        self.recent = deque(losses, maxlen=128)
        self.reported = deque(losses[-16:], maxlen=64)

    def begin_anew(self) -> None:
        """Forget all losses, as they mean something else from here on."""
        self.recent.clear()
        self.reported.clear()
        self.start = self.untrained = self.record = math.nan
        self.gap, self.slow_until = 1, 0

    def note_healthy(self, updates: int) -> None:
        """Wait twice as long before the next look, as one after this many updates found healthy weights."""
        self.gap *= 2
        self.wait_until, self.look_wait = updates + self.gap, LOOK_EVERY * self.gap
        self.above_from = updates + LOOK_EVERY * self.gap // 2

    def note_record(self, first: Backup | None) -> None:
        """Keep the loss of the untrained model; a run that is resumed has no such state."""
        if first is not None and math.isfinite(first.record):
            self.record = first.record

    def note_untrained(self, loss: float) -> None:
        """Keep a loss of the untrained model, as the first ones were those of ruined weights."""
        self.start = self.untrained = self.record = loss

    def find_start(self, first: Backup | None) -> None:
        """Find the level that the run begins with, once enough losses are known; ``first`` as for `note_record`."""
        self.note_record(first)
        if len(self.recent) >= FIRST:
            # Where the record is unknown, so is the loss of the untrained model.
            self.start = float(np.fmax(self.record, np.median(self.recent)))
            self.untrained = float(np.clip(sorted(self.recent)[1], self.record, MOST_OF_RECORD * self.record))

    def far_first(self, times: float) -> tuple[int, str]:
        """The place of one of the first losses that is far above all others, and that in words; "" if none is.

        Args:
            times: Times the only other loss from which the second one would have been left out.
        """
        most, highest = sorted(self.recent)[-2:]
        place = self.recent.index(highest)
        if not highest > (TIMES_THE_OTHERS if place else min(TIMES_THE_NEXT, times)) * most > 0:
            return 0, ""
        told = (f"batch {place + 1}", "the other first ones") if place else ("the first batch", "those after it")
        return place, FAR_FIRST.format(told[0], highest, highest / most, told[1])

    def far_above(self, loss: float) -> str:
        """That one of the last four losses is far above all others, in words; "" if it is not."""
        most = max([*self.first, *[*self.recent][: 1 - SINCE_LOOK]])
        is_far = loss > TIMES_THE_NEXT * most > 0
        return FAR_FIRST.format("one of the last batches", loss, loss / most, "those before it") if is_far else ""

    def has_risen(self, *, by_far: bool) -> bool:
        """Whether nearly all losses so far are above the first one, by far or by less."""
        first, *others = self.recent
        return sorted(others)[:2][-1] > (TIMES_THE_OTHERS if by_far else WORSE) * first > 0

    @property
    def stands_alone(self) -> bool:
        """Whether the last loss is far above those before it."""
        return bool(self.recent) and _is_far_above(self.recent[-1], list(self.recent)[-FIRST - 1 : -1])

    @property
    def is_back_alone(self) -> bool:
        """Whether the last loss is far above those before it, and back at the level of the first ones."""
        if not self.stands_alone:
            return False
        first = np.fmin(self.untrained, median_of(self.first[:FIRST] or [math.nan]))
        return bool(self.recent[-1] >= first)

    def would_stand_alone(self, loss: float) -> bool:
        """Whether a loss is far above the last ones."""
        return _is_far_above(loss, list(self.recent)[-FIRST:])

    def would_stand_out(self, loss: float) -> bool:
        """Whether a loss is so far above the last ones that its batch is compared with others."""
        return _is_far_above(loss, list(self.recent)[-FIRST:], OF_ODD_DATA)

    @property
    def level(self) -> float:
        """Median of the last losses; NaN before there are enough."""
        return median_of(list(self.recent)[-LEVEL:]) if len(self.recent) >= LEVEL else math.nan

    def _last_against_usual(self, count: int) -> tuple[list[float], float, float, float] | None:
        """The losses that were known before the last ones; the median of ``count`` of these, that of the usual ones,
        and by how much the two differ by chance. None before there are enough; those between may be of either kind.
        """
        losses = list(self.recent)
        earlier = losses[: -count - LOOK_EVERY]
        before = earlier[-LEVEL:]
        if len(before) < LEVEL:
            return None
        chance = CLEARLY * spread_of(before) * math.sqrt(1 / count + 1 / LEVEL)
        return earlier, median_of(losses[-count:]), median_of(before), chance

    def has_fallen_back(self, updates: int, *, is_last: bool = False) -> bool:
        """Whether the last few losses are much like those of the untrained model, and those before clearly were not;
        as the run ends, whether a long level of them is nearer to those.
        """
        if updates < self.above_from:
            return False
        for count in (FIRST, LOOK_EVERY, *[LEVEL] * is_last):
            if (compared := self._last_against_usual(count)) is None:
                continue
            earlier, last, usual, chance = compared
            is_clear = last > usual + 3 * chance and not rises_slowly(self.recent)
            share = LAST_LOST if count == LEVEL else LOST if is_clear else MOST_LOST
            if self.untrained > usual and last > usual + share * (self.untrained - usual):
                # Where data change, as with classes that come later, losses were that high before.
                starts = range(0, len(earlier) - count + 1, count // 2)
                highest = max(median_of(earlier[start : start + count]) for start in starts)
                # A slow rise is that of a loss whose terms change; before much was learned, a small one is, too.
                before = earlier[-LEVEL:]
                trend = median_of(before[LOOK_EVERY:]) - median_of(before[:LOOK_EVERY])
                if last > max(usual + chance, usual + 3 * trend, highest):
                    return usual <= NEAR * self.untrained or not rises_slowly(self.recent, by_chance=1.0)
        return False

    @property
    def ends_high(self) -> bool:
        """Whether one of the last two losses is far above those before, or both are above all of the last ones."""
        *usual, last, newest = self.recent
        is_far = max(last, newest) > float(np.median(usual)) + 6 * spread_of(usual)
        # A whole run may be among those before, the first losses too.
        return is_far or min(last, newest) > max(usual[-LEVEL:])

    @property
    def has_risen_late(self) -> bool:
        """Whether the last losses are clearly above those before, from one step to the next: enough as a run ends."""
        compared = self._last_against_usual(FIRST)
        if compared is None or rises_slowly(self.recent):
            return False
        earlier, last, usual, chance = compared
        return last > max(usual + max(chance, LEAST_LEARNED * (self.untrained - usual)), *earlier[-LEVEL:])

    @property
    def is_high(self) -> bool:
        """Whether the last two losses, or the last few, are clearly above those before: enough as a run ends."""
        return len(self.recent) >= LOOK_EVERY + 2 and (self.ends_high or self.has_risen_late)

    @property
    def num_high(self) -> int:
        """How many of the last reported losses, at most `LOOK_EVERY`, are all above so many before them."""
        losses = [*self.reported]
        counts = range(min(LOOK_EVERY, len(losses) - LOOK_EVERY), 0, -1)
        return next((n for n in counts if min(losses[-n:]) > max(losses[-n - LOOK_EVERY : -n])), 0)

    @property
    def num_perhaps_high(self) -> int:
        """How many of the last losses are above the usual ones, though perhaps by chance: enough as a run ends where
        weights have moved far, too. 0 for less than two.
        """
        if self.num_high > 1:
            return self.num_high
        counts = range(2, LOOK_EVERY + 1)
        compared = filter(None, map(self._last_against_usual, counts))
        # Losses that have all become 0 differ by nothing.
        clear = [(last - usual) / max(chance, 1e-30) for _, last, usual, chance in compared]
        most = max(clear, default=0.0)
        if most > PERHAPS / CLEARLY:
            # One or two more may be of damaged weights, too.
            return counts[clear.index(most)] + 2
        return max(1, self.num_high) if self.is_high else 0

    @property
    def is_flat(self) -> bool:
        """Whether the last losses are hardly lower than those before them."""
        before = list(self.recent)[-2 * LEVEL : -LEVEL]
        return len(before) == LEVEL and self.level >= (1 - LEAST_GAIN) * median_of(before)

    @property
    def has_begun(self) -> bool:
        """Whether the last few losses are below those of the start, if only by little."""
        return median_of(list(self.recent)[-LOOK_EVERY:]) <= (1 - LEAST_GAIN) * self.start

    @property
    def level_noise(self) -> float:
        """By how much the level differs from the lowest of some others by chance."""
        return LEVEL_SPREADS * spread_of(list(self.recent)[-LEVEL:])

    def early_suspicion(self, loss: float, record: float, updates: int, num_lost: int = 0) -> float:
        """How far a loss of the first steps is above what is usual: worth a probe from 1 on; changes nothing.

        Args:
            loss: The loss, finite.
            record: The first loss of the run.
            updates: Updates so far.
            num_lost: Samples that a trainer which counts batches would miss for good; 0 elsewhere.
        """
        if updates < self.wait_until or not math.isfinite(record):
            return 0.0
        known = self.first
        middle = median_of(known[:FIRST]) if known else record
        if not record and not middle:
            # Of losses of 0 nothing is a multiple.
            return 0.0
        noise = math.sqrt(SMALL_BATCH / num_lost) if 1 < num_lost < SMALL_BATCH else 1.0
        limit = max(0.5 * noise * abs(record), 3 * spread_of(known))
        rise = loss - max(record, middle)
        return rise / limit if limit else math.inf if rise > 0 else 0.0

    def lost_progress(self, backups: Iterable[Backup], updates: int) -> Backup | None:
        """The backup whose progress was lost, where a third of it was in the first steps; else None.

        Args:
            backups: Backups with a witness.
            updates: Updates so far.
        """
        self.look_wait -= LOOK_EVERY
        if self.look_wait > 0 or updates > START_UPDATES or self.start != self.start or len(self.recent) < LEVEL:
            return None
        near = [each for each in backups if each.can_be_put and (updates <= 250 or each.updates > 0.5 * updates)]
        best = min(near, key=lambda each: each.usual if each.updates else each.record, default=None)
        if best is None:
            return None
        lowest = best.usual if best.updates else max(self.start, best.record)
        progress = max(0.0, self.start - lowest)
        last = list(self.recent)[-LEVEL:]
        wide = best.spread if best.updates and best.spread else spread_of(last)
        is_clear = progress > max(wide, LEAST_PROGRESS * abs(self.start)) or not best.updates
        return best if is_clear and median_of(last) > lowest + max(LOST * progress, wide) else None

    def stands_still(self, *, is_known: bool) -> bool:
        """Whether the losses of the first steps are wild and have made no progress, as they do at far too high rates.

        Args:
            is_known: Whether the rate is known to have been too high: then units may be dead, and losses are calm.
        """
        if len(self.recent) < 2 * LEVEL or not self.start > 0:
            return False
        losses = list(self.recent)
        last, before = losses[-LEVEL:], losses[-2 * LEVEL : -LEVEL]
        level = median_of(last)
        stands = level > median_of(before) - STILL * self.start and level > HIGH_LEVEL * self.start
        if is_known:
            return stands
        # Lower than that they are on a plateau, as those of every run at a constant rate are in the end.
        least = float(np.fmin(self.untrained, np.median(self.first[:FIRST]))) - self.level_noise
        return stands and level > least and spread_of(last) > WILD_SPREAD * self.start

    def stands_since_peak(self, updates: int) -> bool:
        """Whether there is next to no progress, though the user's rate has reached its highest some time ago."""
        if updates % LOOK_EVERY or updates < self.peak_at + STANDSTILL or not (self.peak and self.untrained > 0):
            return False
        return self.level > (1 - LEAST_GAIN) * self.untrained

    @property
    def has_jumped(self) -> bool:
        """Whether the last losses are far above those of the untrained model and all before them."""
        if len(self.recent) < FIRST or not self.untrained > 0:
            return False
        losses = list(self.recent)[-JUMPED - BEFORE_JUMP :]
        # One of those before may be that of the batch that did it; where there are few, the jump must be wide.
        least = max(FAR_ABOVE * self.untrained, sorted(losses[:-JUMPED])[-2])
        if min(losses[-JUMPED:]) > (least if len(losses) >= FIRST + JUMPED else 2 * least):
            return True
        # Wild ones are now and then low: twice as many, of which one may be, and it is their median that is far above.
        before, last = list(self.recent)[-FIRST - BEFORE_JUMP : -FIRST], sorted(list(self.recent)[-FIRST:])
        if len(before) < FIRST or median_of(last) <= FAR_ABOVE * self.untrained:
            return False
        return last[1] > max(self.untrained, sorted(before)[-2])

    def is_above_untrained(self, updates: int) -> bool:
        """Whether the last losses are far above those of the untrained model, and not looked into yet;
        notes until when a slow rise is left alone.
        """
        if updates < self.above_from or not self.untrained > 0 or len(self.recent) < FIRST:
            return False
        is_above = self.has_jumped
        is_due = not updates % LOOK_EVERY
        if not is_above and (is_due or updates <= EARLY_UPDATES):
            # The median of some losses may be above by chance: it must be so by twice its standard error, and nearly
            # all of the last ones. In the first steps more of them tell at each look, as each step is lost.
            losses, (count, spreads) = list(self.recent)[-LOOK_EVERY:], LEVEL_ABOVE[is_due]
            level = median_of(losses[-count:]) - spreads * spread_of(losses[-count:])
            is_above = level > FAR_ABOVE * self.untrained and sorted(losses)[1] > self.untrained
            is_above &= len(losses) == LOOK_EVERY
        if not is_above:
            return False
        # Where little was learned, losses that have risen slowly, and are not very high, may fall by themselves.
        losses, lowest = list(self.recent), lowest_median([*self.first, *self.recent], JUMPED)
        may_fall = median_of(losses[-JUMPED:]) <= MODERATE * self.untrained and lowest > NEAR * self.untrained
        if may_fall and not self.slow_until and len(losses) >= LOOK_EVERY and rises_slowly(losses):
            self.slow_until = max(LASTING * updates, updates + STANDSTILL)
        return not may_fall or updates >= self.slow_until

    @property
    def has_exploded(self) -> bool:
        """Whether the last loss is far above the others and the untrained model's, and those before it were not.

        Where the data change, as with classes that come later, several are in a row, and the first one counts.
        """
        *before, last = self.recent
        usual = median_of(before) if len(before) >= LEVEL else math.nan
        has_learned, least = usual <= (1 - LEAST_LEARNED) * self.untrained, max(self.untrained, FAR_ABOVE * usual)
        # Losses that rise over many updates have no single one to blame.
        return has_learned and last > least >= max(before[-APART:]) and not rises_slowly(self.recent)

    def rise(self, count: int) -> float:
        """Mean of the last reported losses."""
        last = list(self.reported)[-count:]
        return sum(last) / len(last) if last else math.nan

    @property
    def is_split(self) -> bool:
        """Whether the last eight losses, or more, are all above so many before: those at too high a rate are mixed."""
        losses = [*self.recent]
        splits = range(FIRST, min(LEVEL, len(losses) - LOOK_EVERY) + 1)
        return any(min(losses[-count:]) > max(losses[-count - LOOK_EVERY : -count]) for count in splits)

    def is_calm(self, updates: int) -> bool:
        """Whether no loss before damage was high, in at least ``CALM`` updates since a restore.

        Updates that are too large show in the losses before nothing is finite: far above those of the untrained model
        and all others, which differ where batches do.
        """
        before = [*self.recent][:-CALM]
        if self.untrained > 0:
            far = FAR_ABOVE * max([self.untrained, *before])
        else:
            far = max(before, default=math.inf)
        return updates >= CALM and max([*self.reported][-CALM:], default=math.inf) <= far

    def is_sudden(self) -> bool:
        """Whether most of the rise of the reported losses came within one step."""
        losses = np.array(self.reported)
        if len(losses) < 16:
            return True
        rise = losses[-2:].mean() - np.median(losses[:8])
        jumps = [np.median(losses[n : n + 4]) - np.median(losses[max(0, n - 4) : n]) for n in range(4, len(losses))]
        return bool(max(jumps) > SUDDEN * rise)

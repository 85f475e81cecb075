"""The experiment: finds out by probes whether weights are damaged, and which state is the newest healthy one; and the
run of it, which hands out the batches that it asks for and gives it their losses.

A probe is a witness drawn again: the batch whose loss is known for the weights of one backup. The experiment is a
generator: it yields the backup whose witness to draw next, and is sent the loss.

    1. The present weights. If a witness has its recorded loss, or a lower one, the weights are healthy, and the refused
       batches are to blame.
    2. Otherwise, the backups, each with its own witness: back by 1, 2, 4, ... until one repeats its record, then
       bisection. That one is the state to go on from.
    3. If none repeats its record, the weights are not the cause: the present state returns, and its losses are the new
       level.
"""

from __future__ import annotations

import enum
import functools
import math
import operator
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..table.trend import median
from .backups import Backup
from .progress import EARLY_UPDATES, FAR_ABOVE, MOST_OF_RECORD, WORSE

if TYPE_CHECKING:
    from ..sources.ticket import Ticket
    from .model import LiveModel

SHARE_OF_RISE, SPREADS, SHARE_OF_PROGRESS, SHARE_OF_FIRST = 0.4, 6.0, 0.25, 0.25
"""How far a probe may be above its record: a share of the rise that raised the alarm, but at most this many spreads of
the losses or this share of the progress; of the initial state's record, the last share."""

MOST_OF_FIRST, LEAST_OF_FIRST = 2.0, 0.02
"""For the initial state, most of that in units of the first losses, as at far too high rates their spread is anything;
and least of it as a share of the rise."""

SHARE_OF_SLOW_RISE = 0.15
"""The first of these for losses that stayed higher, and witnesses of proven weights: in healthy training these fall. By
the time of the alarm, weights that a high rate has damaged are half-way back."""

NOISES = 3.0
"""How many times what two draws of one batch with the same weights differ by a rise must be to be more than noise."""

SAME = 1e-3
"""Relative difference up to which two losses of the same batch and weights count as the same."""

CHANCE = 1e-4
"""Chance at which probes that are not finite are taken for the weights' fault and not for that of passing faults."""

MOST_REPEATS, MOST_STAND_INS = 64, 3
"""Most draws of one witness; and of other batches that stand for it, of which each takes four that are not finite."""

MOST_UNTRAINED, SHARE_OF_GAIN, LEAST_RISE = 10.0, 0.75, 0.5
"""Times the level that the run began with, or the present one, beyond which one of the last batches may be bad and
tells nothing; the share of the rise that must be gone there with a state for that to be put back; and by what share of
the usual loss the others must have risen for the worst of them not to count."""

FEW_LATEST, NUM_OLDER = 2, 2
"""Of the last batches, how many are enough for a state that is worse, or far better, on all; and how many older states
are tried."""

FEW_STAND_INS = 2
"""States that are worse than they were, with other batches for probes, from which it is the data."""

MOST_OF_LEVEL = 3.0
"""Times the level of the last losses beyond which the loss of an old batch tells of other data, not of damage."""

MOST_COMPARED = 3
"""Witnesses of trained states on which weights are compared with the untrained ones, beside the first."""


class Alarm(enum.Enum):
    """Why an experiment is made.

    NOT_FINITE: several losses in a row, or numbers of the state, were not finite. SPIKE: losses far too high. RAISED:
    losses that stay higher. FELL: losses that are back at those of the untrained model. EARLY: a high loss among the
    first. REGRESS: much of the progress of the first steps was lost. ABOVE: losses far above those of the untrained
    model. END: unusual losses as the run ends. WILD: the losses of the first steps make no progress. EXPLODED: one loss
    far above the others and the untrained model's. FIRST: one of the first batches may have been bad. CHANGED: weights
    have become 0, or far larger than all were, at once. UNPROVEN: the run ends soon after a restore, with no batch
    left for a test. MOVED: as it ends, weights have moved farther than ever, with no batch left either.
    """

    NOT_FINITE = "not finite"
    SPIKE = "spike"
    RAISED = "raised"
    FELL = "fell back"
    EARLY = "early"
    REGRESS = "regress"
    ABOVE = "above the untrained level"
    END = "end"
    WILD = "wild"
    EXPLODED = "exploded"
    FIRST = "first batches"
    CHANGED = "changed at once"
    UNPROVEN = "unproven"
    MOVED = "moved"


NUM_REFERENCES, MOST_REFERENCES = (
    {Alarm.RAISED: 4, Alarm.FELL: 4, Alarm.REGRESS: 4, Alarm.ABOVE: 4, Alarm.CHANGED: 4, Alarm.SPIKE: 2, Alarm.END: 2},
    6,
)
"""Witnesses that must be fine before the present weights count as healthy, as one batch may miss the damage; and how
many are drawn where some are fine and others are not."""

NEWEST = 2
"""Witnesses, the newest ones, that are enough where both are worse with weights that changed at once."""

NOT_THE_WEIGHTS = (
    "no state has finite losses: the data are to blame, or something that R8 was not given, such as a second network "
    "and its optimizer"
)

NO_RECORD = "repeats its record: the loss or the data have changed"

OTHER_DATA = "no earlier state is better on later batches: the data have changed"


@dataclass(frozen=True)
class Case:
    """What an experiment is given.

    Attributes:
        alarm: Why it is made.
        level: The level of the losses that raised the alarm; infinite where they were not finite.
        known: The backups with a witness, oldest first.
        start: The level that the run began with; NaN if unknown.
        first_spread: Spread of the first losses of the run.
        first_level: The lower ones of those.
        share: Share of the last batches that were refused.
        is_sudden: Whether most of the rise came within one step.
        rises: Whether the losses of this run are known to rise when they are trained on.
        best: For REGRESS, the backup whose progress was lost.
        is_again: Whether numbers of the state are not finite again since they were mended, without a refused batch: the
            cause is in the weights.
        may_drift: Whether the data may be others by now, as batches of the user's own come in any order.
        latest: The last batches with their losses, if they were kept.
        is_exact: Whether witnesses are drawn; else the median loss of some other batches stands for a probe.
        of_present: The losses of those witnesses that were drawn with the present weights.
        of_untrained: Of those that were drawn with the untrained weights.
    """

    alarm: Alarm
    level: float = math.nan
    known: Sequence[Backup] = ()
    start: float = math.nan
    first_spread: float = 0.0
    first_level: float = 0.0
    share: float = 0.0
    is_sudden: bool = True
    rises: bool = False
    best: Backup | None = None
    may_drift: bool = False
    latest: Sequence[Backup] = ()
    is_exact: bool = True
    is_again: bool = False
    of_present: dict[Backup, float] = field(default_factory=dict)
    of_untrained: dict[Backup, float] = field(default_factory=dict)

    def better_than_present(self) -> Backup | None:
        """The newest state that is known to be better than the present weights, by a batch that has a loss of both."""
        for backup, loss in self.of_present.items():
            # Where a loss is not finite, its batch may be to blame.
            is_known = math.isfinite(loss) or math.isfinite(backup.replayed)
            # Of weights that have followed the data, only the old batches are worse; these do not jump.
            may_follow = self.may_drift and self.alarm is not Alarm.CHANGED
            is_known &= not (may_follow and MOST_OF_LEVEL * self.level < loss < math.inf)
            if is_known and not loss <= self.record(backup) + self.tolerance(backup):
                return backup
        return None

    def newest_before(self, last: float | None) -> Backup | None:
        """The newest state of at most so many updates, or a checkpoint since whose loss was usual.

        A backup may be taken right after damage, before any loss. None without one, or where it is not known when.
        """
        if last is None:
            return None
        known = (each for each in reversed(self.known) if each.can_be_put)
        return next((each for each in known if each.updates <= last or (each.is_on_disk and each.is_typical)), None)

    @property
    def typical_latest(self) -> list[Backup]:
        """The last batches that are not far worse than all that is usual, where the data may be others by now.

        None of them where the weights have changed at once: without a rise, all were trained on before that.
        """
        # The start is not known once losses have meant something else.
        most = MOST_UNTRAINED * float(np.fmax(self.start, self.level))
        tells = self.may_drift and self.alarm is not Alarm.CHANGED
        return [each for each in self.latest if tells and each.record <= most]

    def rise_of_present(self, backup: Backup) -> float:
        """How far the present weights are above the record of a witness; -inf where that is not known."""
        loss = self.of_present.get(backup, math.nan)
        return loss - self.record(backup) if math.isfinite(loss) else -math.inf

    @property
    def is_present_damaged(self) -> bool:
        """Whether no loss with the present weights is finite, or they are known to be damaged without one."""
        return bool(self.of_present) and all(loss == math.inf for loss in self.of_present.values())

    @property
    def present_text(self) -> str:
        """What was found with the present weights, in words."""
        backup, loss = next(each for each in self.of_present.items() if math.isfinite(each[1]))
        what = "a batch they were tested with has a loss" if self.is_exact else "other batches have a median loss"
        return f"{what} of {loss:.3g}, {self.record(backup):.3g} before"

    def record(self, backup: Backup) -> float:
        """What the loss of a probe is compared with."""
        return backup.record if self.is_exact else backup.usual

    @property
    def references(self) -> list[Backup]:
        """The backups whose records are those of healthy weights, newest first."""
        best = self.best
        # Without those whose record was forgotten, as losses mean something else since, or that of a bad batch.
        compared = [each for each in reversed(self.known) if math.isfinite(self.record(each)) and each.is_typical]
        if self.alarm is Alarm.CHANGED:
            # Its weights are those from before the change.
            return compared
        if best is None:
            # Any weights that were trained at all are better than those of the start: these tell only if nothing does.
            # A resumed run that cannot know them has the state that it went on from.
            return (
                [each for each in compared if each.is_proven and each.updates]
                or [each for each in compared if not each.updates]
                or [each for each in compared if each.is_resumed]
            )
        return [best, *(each for each in compared if each.is_proven and 0 < each.updates < best.updates)]

    def tolerance(self, backup: Backup, *, is_own: bool = False) -> float:
        """How far above its record the loss of a witness may be; ``is_own``: with the weights of its own backup."""
        is_first = not backup.updates
        spread = self.first_spread if math.isnan(backup.level) else backup.spread
        if self.alarm is Alarm.CHANGED and not is_own:
            # The change itself is known: all that is asked is whether it has made anything worse.
            return spread
        progress = self.start - backup.usual
        most = max(SPREADS * spread, SHARE_OF_PROGRESS * progress if progress > 0 else 0.0)
        if is_first:
            record = abs(self.record(backup))
            level = min(self.first_level, MOST_OF_RECORD * record)
            most = max(min(most, MOST_OF_FIRST * max(record, level)), SHARE_OF_FIRST * record)
        rise = self.level - backup.usual
        if self.alarm is Alarm.NOT_FINITE or not rise > 0:
            return most
        if is_first:
            # A single sample may be far above its record, and far below the alarm.
            most = max(most, min(LEAST_OF_FIRST * rise, abs(self.record(backup))))
        is_slow = self.alarm in (Alarm.RAISED, Alarm.FELL) and not is_own and not is_first
        return min((SHARE_OF_SLOW_RISE if is_slow else SHARE_OF_RISE) * rise, most)

    def have_data_changed(self, tested: Sequence[Backup]) -> bool:
        """Whether each trained state is worse on its witness than it was: copies stay as they are, and what was never
        trained has much the same loss on any data. A record far above the losses before it is of changed data already.
        """
        trained = [each for each in tested if each.updates and each.is_typical]
        rises = [each.replayed - self.record(each) - self.tolerance(each, is_own=True) for each in trained]
        return bool(rises) and min(rises) > 0

    def are_no_better(self, tested: Sequence[Backup]) -> bool:
        """Whether data have changed, and states from before that are hardly better on those of now than the present."""
        present, best = min(self.of_present.values(), default=math.inf), min(tested, key=lambda each: each.replayed)
        gain, rise = present - best.replayed, present - self.record(best)
        return self.have_data_changed(tested) and gain <= (1 - SHARE_OF_GAIN) * rise < math.inf

    @property
    def repeats(self) -> int:
        """Probes after which a loss that is never finite cannot be chance, with so many passing faults in the data."""
        share = min(0.95, max(self.share, 1e-3))
        most = MOST_REPEATS if self.is_exact else MOST_STAND_INS
        return int(np.clip(math.ceil(math.log(CHANCE) / math.log(share)), 2, most))


class Finding(NamedTuple):
    """What an experiment has found.

    Attributes:
        verdict: "healthy": the present weights are. "restored": a backup was put back. "level": no state repeats its
            record, so the loss or the data have changed. "data": no state has finite losses, so neither is it the
            weights. "lost": no state could be restored.
        text: The finding, in words.
        backup: The backup that was restored.
        tested: Backups that were put back and probed.
        is_of_first: Whether it was, as one of the first batches was bad; the text says which.
    """

    verdict: str
    text: str
    backup: Backup | None = None
    tested: Sequence[Backup] = ()
    is_of_first: bool = False


Steps = Generator[Backup, float, Finding]


def draw_again(batch: Backup) -> Steps:
    """Draw one batch again; the finding is its loss."""
    batch.replayed = yield batch
    return Finding("healthy", "a batch was drawn again", None, [batch])


def draw_with_earlier(batch: Backup, before: Backup, model: LiveModel, *, low: float) -> Steps:
    """Draw a batch again with the weights of a backup; the finding is its loss, NaN if there is none.

    A loss below ``low`` must be the same twice: with dropout any that was high is lower the next time.
    """
    batch.replayed = math.nan
    if model.keep_present():
        if model.put(before):
            batch.replayed = yield batch
        if batch.replayed < low and model.put(before):
            again = yield batch
            batch.noise = abs(again - batch.replayed)
            if not batch.noise <= SAME * abs(again):
                batch.replayed = math.nan
        if not model.put_present():
            return Finding("lost", "no state could be restored")
    return Finding("healthy", "a batch was drawn again with earlier weights", None, [batch])


def draw_with_first(batch: Backup, before: Backup, high: float, text: str, *, model: LiveModel, then: Steps) -> Steps:
    """Draw a batch again with the weights from before one of the first batches, and go on from those if its loss is far
    below a high one, as that of the first batch: then that was bad, and the weights were not.

    Args:
        batch: Another batch.
        before: The backup from before the first one.
        high: The high loss.
        text: What was bad, in words.
        model: The model.
        then: The experiment that follows where it was not.
    """
    if model.keep_present():
        batch.replayed = yield from _draw(Case(Alarm.FIRST), batch, functools.partial(model.put, before))
        if batch.replayed * WORSE <= high and model.put(before):
            # Its own witness was the bad batch.
            before.witness, before.losses, before.generators = batch.witness, [batch.replayed], batch.generators
            return Finding("restored", text, before, [batch], is_of_first=True)
        if not model.put_present():
            return Finding("lost", "no state could be restored", None, [batch])
    return (yield from then)


def end_healthy() -> Steps:
    """Draw nothing."""
    yield from ()
    return Finding("healthy", "no weights from before the first batches were found to be better")


def investigate(case: Case, model: LiveModel) -> Steps:
    """Make the experiment; see the module."""
    if case.alarm is Alarm.ABOVE and case.is_exact and not case.known[0].updates:
        return (yield from _compare_with_untrained(case, model))
    if case.alarm is Alarm.CHANGED:
        # Losses have risen with it, or no update makes numbers so large: the end of a run leaves no batches for a test.
        newest = case.newest_before(math.inf if case.is_sudden else model.find_jump())
        if newest is not None and model.put(newest):
            return Finding("restored", "the weights were damaged", newest)
    is_whole = False if case.is_again else model.mend()
    # Where the state cannot be seen, a loss that is not finite or extremely high restores at once, as the seed says.
    is_blind = is_whole is None and case.alarm in (Alarm.NOT_FINITE, Alarm.SPIKE)
    # Other batches that stand for a probe may all be bad, as those of one rollout are.
    is_doubtful = case.alarm is Alarm.NOT_FINITE and not case.is_exact
    may_be_swollen = is_doubtful or case.alarm is Alarm.SPIKE
    is_sound = is_whole is not False and not is_blind and not (may_be_swollen and model.is_swollen())
    if not is_sound:
        # A run that ends before the experiment goes on from what has repeated its record.
        case.of_present.update(dict.fromkeys(reversed(case.known), math.inf))
    rise = (yield from _rise_of_present(case)) if is_sound else math.inf
    may_be_hidden = is_doubtful or case.alarm in (Alarm.SPIKE, Alarm.EARLY)
    jumped_from = model.find_jump() if is_sound and may_be_hidden else None
    if not rise and jumped_from is None:
        return Finding("healthy", f"the weights are healthy: {case.present_text}")
    has_present = model.keep_present()
    finding = (yield from _spare_search(case, model, jumped_from)) if has_present else None
    if finding is not None:
        return finding
    known = model.before_swollen([each for each in case.known if each.can_be_put])
    if case.best is not None:
        known = [each for each in known if each.updates <= case.best.updates]
    tested: list[Backup] = []
    may_stay = has_present and jumped_from is None
    newest = (yield from _find_newest_healthy(case, model, known, tested, may_stay=may_stay)) if rise else None
    is_later = newest is not None and newest.updates > (jumped_from or 0) and not newest.is_on_disk
    if jumped_from is not None and (is_later or not rise):
        # A witness may not show it, as where it holds no row of an embedding that was hit.
        rise, known = math.inf, [each for each in known if each.updates <= jumped_from]
        newest = yield from _find_newest_healthy(case, model, known, tested)
    if newest is not None and is_sound and is_doubtful and model.put_present():
        loss = case.of_present[newest] = yield from _draw(case, newest)
        if math.isfinite(loss):
            return Finding("healthy", f"the weights are healthy: {case.present_text}", None, tested)
    finding = (yield from _stay(case, model, newest, rise, tested)) if has_present else None
    if finding is not None:
        return finding
    if newest is None and tested:
        # Nothing better is known than the oldest state; if no state has a finite loss, than the newest one.
        newest = tested[-1 if any(math.isfinite(each.replayed) for each in tested) else 0]
    may_drift = case.alarm is Alarm.FELL or (case.may_drift and case.alarm is not Alarm.NOT_FINITE)
    if newest is not None and may_drift and may_stay:
        newest = yield from _find_better_now(case, model, newest)
        if newest is None:
            return Finding("level", OTHER_DATA, None, tested)
    if newest is not None and newest.updates:
        newest = yield from _none_above_untrained(case, model, newest)
    elif newest is not None and not has_present:
        newest = yield from _newest_above(case, model, newest, tested)
    if newest is None or not model.put(newest):
        return Finding("lost", "no state could be restored", None, tested)
    return Finding("restored", "the weights were damaged", newest, tested)


def _none_above_untrained(case: Case, model: LiveModel, state: Backup) -> Generator[Backup, float, Backup]:
    """The state, or the newest one before it whose losses were not far above those of the untrained model, where these
    are far lower on its batch: in the first steps it may be damaged already, and repeat its record.
    """
    first = case.known[0]
    is_above = case.may_drift and state.replayed > FAR_ABOVE * first.record and state.updates <= EARLY_UPDATES
    if not (is_above and case.is_exact and first.can_be_put and not first.updates):
        return state
    most = FAR_ABOVE * (yield from _draw(case, state, functools.partial(model.put, first)))
    if not most < state.replayed:
        return state
    before = [each for each in case.known if each.can_be_put and 0 < each.updates < state.updates]
    return next((each for each in reversed(before) if max(each.usual, each.record) <= most), first)


def _compare_with_untrained(case: Case, model: LiveModel) -> Steps:
    """See whether weights are far worse than the untrained ones on the same batches, whose losses may mean other things
    by now; and go back to the newest that are not.
    """
    first, trained = case.known[0], case.known[1:]
    witnesses, losses = [first, *trained[-MOST_COMPARED:]], case.of_untrained
    # Weights whose losses have jumped were better than the untrained ones before; others may never have been.
    worse = 1.0 if case.is_sudden else FAR_ABOVE

    def is_worse(state: Callable[[], bool]) -> Generator[Backup, float, bool]:
        total, num_worse, limit = 0.0, 0, worse * sum(losses.values())
        for number, each in enumerate(losses, 1):
            loss = yield from _draw(case, each, state)
            total, num_worse = total + loss, num_worse + (not loss <= losses[each])
            # Where targets have heavy tails, a batch or two make up most of the sum.
            if not total <= limit and 2 * num_worse > number:
                return True
        return False

    is_whole = model.keep_present()
    if not is_whole and not model.damage():
        return Finding("healthy", "the weights could not be set aside to be compared with the untrained ones")
    for each in witnesses:
        loss = yield from _draw(case, each, lambda: model.put(first))
        if math.isfinite(loss):
            losses[each] = loss
    if is_whole and not model.put_present():
        return Finding("lost", "no state could be restored")
    if is_whole and not (losses and (yield from is_worse(lambda: True))):
        return Finding("healthy", "the weights are no worse than the untrained ones on the same batches")
    limit = worse * sum(losses.values()) / len(losses)
    # The losses before a state are higher only some time after damage, its record is at once.
    good = [each for each in reversed(trained) if max(each.usual, each.record) <= limit]
    for state in [*good, first]:
        if state is first and good and is_whole:
            good[0].replayed = yield from _draw(case, good[0], functools.partial(model.put, good[0]))
            if case.have_data_changed(good[:1]) and model.put_present():
                return Finding("level", f"no trained state {NO_RECORD}", None, good[:1])
        is_good = state is first or not (yield from is_worse(functools.partial(model.put, state)))
        if is_good and model.put(state):
            return Finding("restored", "the weights were far worse than the untrained ones", state)
    return Finding("lost", "no state could be restored")


def _spare_search(case: Case, model: LiveModel, jumped_from: int | None) -> Generator[Backup, float, Finding | None]:
    """What is found without a search among earlier states; None for nothing.

    Where the first batch alone has a loss far beyond the start, and with the weights of its own backup, too, a sample
    of it has become bad since.
    """
    known = [*case.of_present]
    is_known = case.is_exact and jumped_from is None and len(known) > 1 and known[0].can_be_put
    if (
        is_known
        and math.inf > case.of_present[known[0]] > MOST_UNTRAINED * case.start > 0
        and all(case.rise_of_present(each) <= case.tolerance(each) for each in known[1:])
    ):
        loss = yield from _draw(case, known[0], functools.partial(model.put, known[0]))
        if loss > MOST_UNTRAINED * case.start and model.put_present():
            del case.of_present[known[0]]
            return Finding("healthy", f"the weights are healthy: {case.present_text}; another one holds a bad sample")
    if case.rises and not case.is_sudden:
        return Finding("level", "training itself raises the loss")
    return None


def _stay(
    case: Case, model: LiveModel, newest: Backup | None, rise: float, tested: Sequence[Backup]
) -> Generator[Backup, float, Finding | None]:
    """Go on from the present state, which was kept aside, where the newest healthy one is not known to be better."""
    if newest is None:
        if not model.put_present():
            return None
        if tested and not any(math.isfinite(each.replayed) for each in tested):
            return Finding("data", NOT_THE_WEIGHTS, None, tested)
        return Finding("level", f"no state {NO_RECORD}", None, tested)
    if rise <= NOISES * newest.noise and model.put_present():
        return Finding(
            "healthy", "the batch that tests them is as close to its earlier loss as it ever gets", None, tested
        )
    if not case.is_exact and math.isfinite(rise):
        # What the batches hold may have changed: they must be worse with the present weights before and after it.
        loss = next(filter(math.isfinite, case.of_present.values()))
        if newest.replayed < loss and model.put_present():
            loss = yield from _draw(case, newest)
        if newest.replayed >= loss and model.put_present():
            return Finding("level", OTHER_DATA, None, tested)
    if not newest.updates and case.have_data_changed(tested) and model.put_present():
        return Finding("level", f"no trained state {NO_RECORD}", None, tested)
    was_compared = not any(each.updates for each in case.references)
    if not newest.updates and not was_compared and model.put_present():
        # Weights that were never trained have much the same loss on any data; the present ones may still be better.
        loss = yield from _draw(case, newest)
        if loss <= case.record(newest):
            return Finding("level", "only the initial state repeats its record, and it is worse", None, tested)
    return None


def _find_better_now(case: Case, model: LiveModel, newest: Backup) -> Generator[Backup, float, Backup | None]:
    """The newest of a state and the trained ones before it that is better now; None if none is. The first of them may
    be damaged already, though it repeats its record. Any is better than weights that have lost what they just had.
    """
    older = [each for each in reversed(case.known) if each.can_be_put and 0 < each.updates < newest.updates]
    for state in (newest, *older[:NUM_OLDER]):
        gain = yield from _gain_now(case, model, state)
        if gain > 0:
            return state
        if gain == -math.inf:
            # It was not even a little better, and data that drift make an older one worse.
            break
    return newest if not model.put_present() or (yield from _has_lost_last(case, newest)) else None


def _has_lost_last(case: Case, state: Backup) -> Generator[Backup, float, bool]:
    """Whether the present weights are far worse on the last batch before a sudden alarm than they were: data do not
    change so fast.
    """
    rise = SHARE_OF_RISE * (case.level - state.usual)
    usual = [each for each in case.typical_latest if each.record <= state.usual + rise]
    if not (usual and case.is_exact and case.is_sudden):
        return False
    return not (yield from _draw(case, usual[-1])) <= usual[-1].record + rise


def _gain_now(case: Case, model: LiveModel, state: Backup) -> Generator[Backup, float, float]:
    """By how much a state is better than is asked on the batches of the time of the alarm, compared with the weights of
    that time or the present ones; -inf where it is worse on all, and infinite where nothing more is known. It is better
    unless data have changed: then its batches have forgotten classes, or those of another season.
    """
    # One that is no higher than usual is from before the alarm, or says nothing of it.
    latest, later = [each for each in case.typical_latest if each.record > state.usual], case.known[-1]
    if case.is_exact and latest:
        high = LEAST_RISE * abs(state.usual)
        found: list[tuple[float, float, float]] = []
        # Where the weights are known to be damaged, the last one is enough: damage has raised that most.
        few, ordered = (1, latest[::-1]) if case.is_present_damaged else (FEW_LATEST, latest)
        for each in ordered:
            rise = each.record - state.usual
            gain = each.record - (yield from _draw(case, each, functools.partial(model.put, state)))
            found.append((gain - SHARE_OF_GAIN * rise, gain, rise))
            if len(found) == FEW_LATEST and all(gain <= 0 for _, gain, _ in found):
                return -math.inf
            if len(found) == few and all(excess > 0 and rise > high for excess, _, rise in found):
                return math.inf
        _, *others = sorted(found)
        if len(others) > 1 and sum(rise for *_, rise in others) > high * len(others):
            # The first may be a hard batch, whose loss outweighs all others; they have risen, too.
            found = others
        return sum(excess for excess, *_ in found)
    if not (case.is_exact and later.updates > state.updates and later.is_typical and math.isfinite(later.record)):
        return math.inf
    loss = yield from _draw(case, later, functools.partial(model.put, state))
    # The weights of that time may have been healthy still.
    return math.inf if loss < later.record or loss < (yield from _draw(case, later, model.put_present)) else -math.inf


def _newest_above(
    case: Case, model: LiveModel, first: Backup, tested: Sequence[Backup]
) -> Generator[Backup, float, Backup]:
    """The newest tested state that is better than the untrained one on its batch, where no trained one repeats its
    record: the losses may depend on what cannot be put back, as the hidden state of a network that is carried on.
    """
    for state in tested:
        if state.updates and math.isfinite(state.replayed):
            loss = yield from _draw(case, first, functools.partial(model.put, state))
            if loss < first.replayed:
                return state
    return first


def _rise_of_present(case: Case) -> Generator[Backup, float, float]:
    """How far the present weights are above the records of healthy ones; infinite if not finite, 0 for healthy ones."""
    count, has_bad, loss = NUM_REFERENCES.get(case.alarm, 1), False, math.nan
    rises: list[float] = []
    limits: list[float] = []
    for backup in case.references:
        backup.replayed = math.nan
        # Other batches that stand for a probe are the same for all witnesses, unless too many of them are bad.
        if case.is_exact or not math.isfinite(loss):
            loss = yield from _draw(case, backup)
        case.of_present[backup] = loss
        if not math.isfinite(loss):
            # One witness may hold a bad sample; two of them show that the weights are damaged.
            if has_bad or rises:
                return math.inf
            has_bad = True
            continue
        if case.alarm is Alarm.RAISED and loss <= case.record(backup) and not backup.is_usual:
            # Its record may be that of weights that were damaged for some steps: only a higher loss tells.
            continue
        # A batch that is much better by now must not outweigh others that are worse.
        limits.append(case.tolerance(backup))
        rises.append(max(loss - case.record(backup), -limits[-1]))
        # Where some of them are fine and others are not, more of them tell.
        is_clear = sum(rises) > sum(limits) or all(map(operator.le, rises, limits))
        # Of weights that were fine until they changed, the newest ones tell: older ones are lower by what was learned.
        is_worse = case.alarm is Alarm.CHANGED and len(rises) == NEWEST and all(map(operator.gt, rises, limits))
        if is_worse or (len(rises) >= count and (is_clear or len(rises) == MOST_REFERENCES)):
            break
    if not rises:
        return 0.0 if any(map(math.isfinite, case.of_present.values())) else math.inf
    return sum(rises) / len(rises) if sum(rises) > sum(limits) else 0.0


def _draw(case: Case, witness: Backup, put: Callable[[], bool] = lambda: True) -> Generator[Backup, float, float]:
    """The loss of a witness; drawn again if it is not finite, as a passing fault may have hit it.

    ``put`` puts the state under test back before each draw, as a loop that reports after its step has trained on it.
    """
    loss = math.nan
    for _ in range(case.repeats):
        if not put():
            return math.nan
        loss = yield witness
        if math.isfinite(loss):
            break
    return loss


def _is_healthy(case: Case, model: LiveModel, backup: Backup) -> Generator[Backup, float, bool]:
    """Whether a backup repeats its own record, and is no worse than an older proven one was."""
    put = functools.partial(model.put, backup)
    loss = backup.replayed = yield from _draw(case, backup, put)
    record, tolerance = case.record(backup), case.tolerance(backup, is_own=True)
    near = SAME * max(abs(record), backup.spread) + 1e-12
    if not loss - record <= tolerance:
        return False
    if case.is_exact and abs(loss - record) > near:
        # Lower, or a little higher: noise of dropout and augmentation is not the same twice, a changed loss is.
        again = yield from _draw(case, backup, put)
        backup.noise = abs(again - loss)
        if backup.noise <= near:
            return False
    older = [each for each in case.references if each.updates < backup.updates]
    if case.alarm is Alarm.FELL:
        # A hard batch shows no damage where losses are noisy: that one is drawn which the present weights raise most.
        older.sort(key=case.rise_of_present, reverse=True)
    reference = older[0] if older else None
    # Where other batches stand for probes, their losses were compared with those before the backup already.
    if backup.is_proven or reference is None or not case.is_exact:
        return True
    # The record of an unproven state may itself be that of damaged weights.
    loss = yield from _draw(case, reference, put)
    return loss - case.record(reference) <= case.tolerance(reference)


def _find_newest_healthy(
    case: Case, model: LiveModel, known: Sequence[Backup], tested: list[Backup], *, may_stay: bool = False
) -> Generator[Backup, float, Backup | None]:
    """The newest healthy backup, as damage does not go away; None if there is none.

    With ``may_stay`` the search ends where other batches stand for probes, of which each state takes eight from the
    training, once a few show that the data have changed, and are no better there than the present weights.
    """
    low, high, at, stride = -1, len(known), len(known) - 1, 1
    while high > low + 1:
        tested.append(known[at])
        if (yield from _is_healthy(case, model, known[at])):
            low = at
        elif may_stay and not case.is_exact and len(tested) == FEW_STAND_INS and case.are_no_better(tested):
            return None
        else:
            high = at
        if low < 0:
            at, stride = max(0, min(high - 1, at - stride)), 2 * stride
        else:
            at = (low + high) // 2
    return known[low] if low >= 0 else None


TRIAL_LOSSES, MOST_BAD_LOSSES = 8, 3
"""Batches whose median stands for a probe where no witness can be drawn, and how many may not be finite."""


class ExperimentRun:
    """Runs one experiment at a time.

    Args:
        live: The model that is experimented on.

    Attributes:
        chunk: The chunk of the probe, once it is drawn; None before.
        can_probe: Whether a witness can be drawn out of turn; set by whoever hands out batches.
        is_open: Whether an experiment is under way.
        is_at_alarm: Whether the batch of the alarm was no step, so that a loss tied to its step is high once more.
        asked: The backup whose witness is drawn.
        case: What the experiment was told.
    """

    def __init__(self, live: LiveModel) -> None:
        self._live, self.can_probe = live, True
        self.end()

    def end(self) -> None:
        """Drop the experiment."""
        self._steps: Steps | None = None
        self.asked, self.case = Backup(0, 0), Case(Alarm.END)
        self._losses: list[float] = []
        self.chunk: Any = None
        self._generators: Any = None
        self.is_open = self.is_at_alarm = False

    @property
    def asks_probe(self) -> bool:
        """Whether the next batch drawn must be a probe."""
        return self.is_open and self.can_probe and self.chunk is None

    def begin(self, case: Case, steps: Steps) -> Finding | None:
        """Start an experiment; returns its finding if it needs no probe."""
        generators = self._live.persistence.callbacks.generators
        self._generators = None if generators is None else generators.get()
        self.case, self._steps, self.is_open = case, steps, True
        return self._advance(None)

    def draw(self) -> Any:
        """The batch of the probe, as the plan draws it again; sets the random generators to those at its record."""
        generators = self._live.persistence.callbacks.generators
        if generators is not None and self.asked.generators is not None and not self._losses:
            generators.set(self.asked.generators)
        return self.asked.witness[len(self._losses)]

    def takes(self, ticket: Ticket) -> bool:
        """Whether the loss of a batch is one of the test."""
        return self.is_open and (ticket.chunk is self.chunk or not self.can_probe)

    def is_fine(self, loss: float) -> bool:
        """Whether the loss of the probe is no higher than that of healthy weights."""
        return loss <= self.case.record(self.asked) + self.case.tolerance(self.asked)

    @property
    def is_partway(self) -> bool:
        """Whether the probe has had some of its losses, and needs more."""
        return self.is_open and bool(self._losses)

    @property
    def has_held(self) -> bool:
        """Whether the batches that stand for the probe of a backup, after a spike, show no damage so far."""
        is_spike = self.case.alarm is Alarm.SPIKE and not self.case.is_exact
        return is_spike and self.is_partway and self.is_fine(median(sorted(self._losses)))

    def lose(self, ticket: Ticket) -> None:
        """Draw the probe again if this abandoned batch was it."""
        if self.is_open and ticket.chunk is self.chunk:
            self.chunk = None

    def take(self, loss: float) -> Finding | None:
        """Take the loss of a part of the probe; returns the finding if that ends the experiment."""
        self.is_at_alarm = False
        self._losses.append(loss)
        losses, is_exact = self._losses, self.case.is_exact
        count, most_bad = (len(self.asked.witness), 0) if is_exact else (TRIAL_LOSSES, MOST_BAD_LOSSES)
        num_bad = len(losses) - sum(map(math.isfinite, losses))
        if len(losses) < count and num_bad <= most_bad:
            self.chunk = None
            return None
        if is_exact:
            return self._advance(float(np.mean(losses)))
        # A bad batch among those that stand for a probe says nothing of the weights.
        return self._advance(median(sorted(each if each == each else math.inf for each in losses)))

    def _advance(self, loss: float | None) -> Finding | None:
        """Send the loss of a probe to the experiment; its finding if it ends."""
        assert self._steps is not None
        try:
            # A generator that has not begun takes None only.
            self.asked = self._steps.send(loss)  # type: ignore[arg-type]
        except StopIteration as end:
            generators, finding = self._live.persistence.callbacks.generators, end.value
            if generators is not None and self._generators is not None and finding.verdict != "restored":
                generators.set(self._generators)
            self.end()
            return finding  # type: ignore[no-any-return]
        self._losses, self.chunk = [], None
        return None

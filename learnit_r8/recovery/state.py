"""The state of recovery: all that it remembers from one loss to the next, and that a checkpoint saves."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .. import events
from ..events.bus import Announcer
from ..events.incident import MOST_FINDINGS, Incident
from ..guard.verdict import Verdict
from .backups import Backup, RunningVariances, median_of
from .policy import TrainingDiverged
from .progress import LOOK_EVERY, Progress
from .rate_limit import NormLimit, RateLimit
from .saved_fields import NOT_SAVED, SavedFields

LEAST_TRIAL = 64
"""Updates after a restore in which a new alarm is a relapse, if they are more than twice those that it undid."""

DIVISOR, LASTING_DIVISOR, EARLY_DIVISOR = 2.0, 4.0, 10.0
"""What a rate that damages healthy weights is divided by: the first two times in a row, later, and in the first
steps."""

LOOK_MASK = 3
"""What need not be done at every update is done where its number has none of these bits: at every fourth."""

LASTING_RELAPSES, RELAPSE_UPDATES = 2, 256
"""This many gradual rises, each within four trials and this many updates after a restore, are what training does."""

SAME_UPDATE, SAME_BLOCK, LEAST_FUSE = 2, 20, 8
"""Updates by which two alarms may differ that come at the same update, where they are sudden and where not; and the
least number after a restore at which that says anything."""

MOST_RESTORES = 3
"""Restores to one state in a row, after which an older one is tried."""

WATCHED, WATCHED_TIMES = 1000, 2
"""Updates in which each gradient is looked at after weights that were not finite: so many, and as many times those so
far. A sample that comes once in an epoch is seen again, and a fault that never does costs a look for a while."""

LEFT_OUT = (
    "step {:,}: a gradient is not finite, so the optimizer's step was left out ({} so far), as each is looked at since "
    "weights were not finite."
)

MANY_WITHHELD = 100
"""Steps in a row left out so after which a warning says that nothing is learned, and why, as the error at last does."""

WITHHELD = (
    "{} steps in a row were left out, the last at step {:,}, as their gradients were not finite though the losses "
    "were: nothing is learned. {}"
)

LOOPING, LOOP_STEPS = 3, 100
"""So many experiments that found healthy weights within so many steps: the loss alarms without them."""

MOST_UNSEEN = 2
"""Updates since a restore that show in no loss, or in one alone."""

SOON = 16
"""If trouble comes back within this many updates, trying states one by one costs little."""

ONE_BY_ONE = 8
"""States tried one by one where trouble takes longer to come back; each further one is twice as far back."""

LEAST_BAD, MOST_BAD = 2, 32
"""Losses in a row that are not finite and are looked into; doubled within these bounds whenever the weights prove
healthy."""

BROKEN = 50
"""Batches of the last hundred that must be refused for the data to be called broken."""

MANY_HIGH, RARELY_HIGH = 8, 0.004
"""Batches left out for their high losses alone, and their share of the steps, from which they are probably a kind of
their own, as those of another task."""

HIGH = Verdict.SPIKE.value, Verdict.EARLY.value

LEAST_HIGH, FAR_HIGH, NUM_LOW, LOW = 3, 10.0, 2, 0.5
"""Batches of the user's own that are left out so before others of that kind are learned from; times the highest of
their losses up to which one is of it; and of so many losses before it one must be below this share of it."""

CONFIDENT, FAR_FROM_START = 30.0, 100.0
"""A loss that a classifier has for a sample that it is sure of wrongly, which takes it for one in 1e13; and times the
level of the start, whichever is more: beyond that a batch is bad, and not rare."""

ALWAYS_LEFT_OUT = (
    "{} batches were left out for their high losses, the last at step {:,}, and the weights were healthy each time. If "
    "something is to be learned from them, as from another task or rare data, bring their losses to the scale of the "
    'others, or give guard="finite".'
)

WARY_STEPS = 1024
"""Steps after a refused batch in which another one is expected, as of one bad sample in each epoch: several processes
undo up to 16 steps with a batch that they do not expect, under two percent of an epoch that is longer than this."""

EXPLODES_AGAIN = 128
"""Updates after an explosion in which any batch is kept, to be tested if its loss explodes, too."""

LEAST_SAMPLES = 4
"""Samples of a batch from which on an explosion of its loss may tell of the weights: the loss of one or two is high now
and then by chance."""

EARLIER = 8
"""Least updates between weights from before and an explosion, which builds up over a few."""

EXPLOSIONS_KEPT, OF_WEIGHTS, ALONE, OF_BATCHES, LEAST_TESTED = 8, 0.5, 0.6, 0.3, 3
"""Explosions whose shares are remembered; the median share from which they are due to the weights, and that of a first
one; that below which they are due to their batches; and how many must have been tested for that. Most shares are above
.5 in trainings that explode, the first .66 to 1; they are below .2 in healthy ones with batches of four, heavy tails or
wrong labels, where now and then a first one is .5; measured in benchmarks/explosions.py and benchmarks/natural.py."""

MOST_PROBES, MOST_SHARE_OF_PROBES = 4, 0.01
"""Probes of any kind after which explosions that mostly are not due to the weights are no longer tested, or as a share
of the updates: healthy losses that explode cost no more."""

SAVED_OF_INCIDENT = (
    "step", "reason", "kind", "cause", "findings", "num_refused", "num_probes", "num_restored", "num_left_out",
    "is_lasting", "held_from_start",
)  # fmt: skip
"""What is saved of the incident under way; the rest of it, folded from events, is the views'."""


@dataclass(eq=False)
class Refusals(SavedFields):
    """Counts refused batches.

    Attributes:
        in_a_row: Batches in a row that were not trained on, probes included.
        bad_in_a_row: Losses in a row that were not finite, probes aside.
        bad_limit: How many of them are worth an experiment.
        outcomes: Of the last hundred batches, which were refused; empty where none was.
        in_vain: As ``in_a_row``, but a good batch ends the count only if the weights get further; see `Lineage.gains`.
        wary_until: Step before which another one is expected, `WARY_STEPS` after the last one.
        is_costly: Whether a test took several batches, and found healthy weights where losses were not finite.
        withheld: Steps in a row that were left out, as their gradients were not finite though the losses were.
    """

    in_a_row: int = 0
    bad_in_a_row: int = 0
    bad_limit: int = LEAST_BAD
    outcomes: deque[bool] = field(default_factory=lambda: deque(maxlen=100))
    in_vain: int = 0
    wary_until: int = 0
    is_costly: bool = False
    withheld: int = 0

    @property
    def num_last(self) -> int:
        """Batches refused since the last good one, probes aside; a hundred at most."""
        outcomes = [*self.outcomes]
        return next((k for k, refused in enumerate(reversed(outcomes)) if not refused), len(outcomes))

    def share_of(self, updates: int) -> float:
        """Share of the last hundred batches that were refused, in (0, 1), as far as so few can tell.

        Args:
            updates: Batches trained on so far; good ones before the first refusal are not counted one by one.
        """
        return (sum(self.outcomes) + 1) / (max(len(self.outcomes), min(100, updates)) + 4)

    def refused(self, *, is_finite: bool, step: int) -> None:
        """Note a refused batch; ``step``: steps reported, this one included."""
        self.wary_until = step + WARY_STEPS
        self.outcomes.append(True)
        self.bad_in_a_row += not is_finite
        self.probed()

    def probed(self) -> None:
        """Note a probe."""
        self.in_a_row += 1
        self.in_vain += 1

    def good(self, *, gains: bool = True) -> None:
        """Note a batch that was learned from, while any of the last hundred was refused.

        Args:
            gains: Whether the weights get further.
        """
        if gains:
            self.in_vain = 0
        self.outcomes.append(False)
        if not any(self.outcomes):
            self.outcomes.clear()
            self.is_costly = False
        self.in_a_row = self.bad_in_a_row = 0
        if not self.is_costly:
            self.bad_limit = max(LEAST_BAD, self.bad_limit - 1)

    def weights_are_healthy(self, *, is_costly: bool = False) -> None:
        """Wait for twice as many in a row before the next look; for as long as batches are refused, if it is costly."""
        self.is_costly = self.is_costly or is_costly
        self.bad_limit = min(MOST_BAD, 2 * self.bad_limit)


@dataclass(eq=False)
class Explosions(SavedFields):
    """Losses that have exploded while the weights were learning: whether the weights are the cause, or the batches.

    A *share* is the part of the rise above the usual losses that is gone where the batch is drawn again with weights
    from before. A hard sample has much the same loss with those.

    Attributes:
        exploded_at: Updates at the last one; 0 for none.
        shares: The shares of the last ones that were tested, in [0, 1].
        num_new: How many were due to the weights since anything was done about them.
        num_calmed: How often anything was.
        repeats: Whether a batch that was drawn twice had the same loss both times: then once is enough.
        gap: How many times longer than at first none is tested after one that is due to its batch; doubled by each.
        wait_until: Updates from which one is tested again.
        batch: The batch of the last one, until it is tested.
    """

    exploded_at: int = 0
    shares: deque[float] = field(default_factory=lambda: deque(maxlen=EXPLOSIONS_KEPT))
    num_new: int = 0
    num_calmed: int = 0
    repeats: bool = False
    gap: int = 1
    wait_until: int = 0
    batch: Backup | None = field(default=None, metadata=NOT_SAVED)

    def note(self, batch: Backup, num_probes: int) -> bool:
        """Note the batch of one, which nothing can be tested with if it was not kept, after so many probes of any kind;
        returns whether it is tested.
        """
        self.exploded_at = batch.updates
        is_cheap = not self.shares or num_probes < max(MOST_PROBES, MOST_SHARE_OF_PROBES * batch.updates)
        may_cost = is_cheap or median_of(self.shares) >= OF_WEIGHTS
        is_tested = batch.witness[0] is not None and batch.updates >= self.wait_until and may_cost
        self.batch = batch if is_tested else None
        return is_tested

    def take(self, share: float, updates: int, *, is_twice: bool = False) -> None:
        """Take the share of one that was tested after so many updates, and whether its batch was drawn twice."""
        self.shares.append(share)
        if share >= OF_WEIGHTS:
            # A loss that was not the same twice has a share of 0.
            self.repeats = self.repeats or is_twice
            self.num_new, self.gap = self.num_new + 1, 1
        else:
            self.wait_until, self.gap = updates + LOOK_EVERY * self.gap, 2 * self.gap

    @property
    def are_of_weights(self) -> bool:
        """Whether the last one was due to the weights, as most of them were."""
        least = OF_WEIGHTS if len(self.shares) > 1 else ALONE
        return self.shares[-1] >= OF_WEIGHTS and median_of(self.shares) >= least

    @property
    def are_of_batches(self) -> bool:
        """Whether most of them were due to their batches."""
        return len(self.shares) >= LEAST_TESTED and median_of(self.shares) < OF_BATCHES


@dataclass(eq=False)
class Lineage(SavedFields):
    """What the present weights have gone through: their updates and losses, and what is known since the last restore.

    Attributes:
        updates: Updates that they have taken.
        progress: Their losses.
        explosions: Those among them that exploded.
        rates: Learning rates of the last updates.
        since: Updates of the state that was restored last; 0 if none was.
        trial: Updates after it in which a new alarm is a relapse.
        is_proving: Whether a restored state has not passed its trial yet.
        was_calm: Whether it was put back although no loss was high, as for a bad batch; see `Progress.is_calm`.
        failed_at: Updates at the alarm before the last restore; -1 if it is not known.
        num_restores: Restores in a row to the state put back last.
        num_older: Restores in a row to older and older states, as the same trouble came back.
        relapses: Gradual rises that came back after a restore.
        rises: Whether the losses of this run rise whenever they are trained on.
        gained: While a restored state is on proof, updates when the weights last got further.
        num_lowered: Times in a row that the rate was lowered after a relapse.
        level_before: Usual loss of the state that was put back when the rate was lowered; None if nothing waits for it.
        healthy_at: Steps of the last experiments that found healthy weights.
    """

    updates: int = 0
    progress: Progress = field(default_factory=Progress)
    explosions: Explosions = field(default_factory=Explosions)
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=16))
    since: int = 0
    trial: int = 0
    is_proving: bool = False
    was_calm: bool = False
    failed_at: int = -1
    num_restores: int = 0
    num_older: int = 0
    relapses: int = 0
    rises: bool = False
    gained: int = 0
    num_lowered: int = 0
    level_before: float | None = None
    healthy_at: deque[int] = field(default_factory=lambda: deque(maxlen=LOOPING))

    @property
    def since_restore(self) -> int:
        """Updates since a state was put back."""
        return self.updates - self.since

    def before_high(self, is_sure: bool) -> int:
        """Updates before the last losses that are high; or may be, where something else is a sure sign of damage."""
        return self.updates - (self.progress.num_perhaps_high if is_sure else self.progress.num_high)

    @property
    def is_on_trial(self) -> bool:
        """Whether a new alarm would be a relapse."""
        return self.is_proving and self.since_restore < self.trial

    def gains(self) -> bool:
        """Whether the weights get further although states are put back; from here on that counts anew.

        They do where no restored state is on proof, after enough updates since the last restore, and where every state
        put back is newer than those before.
        """
        if not self.is_proving:
            return True
        gains = max(self.since_restore, self.updates - self.gained) >= LEAST_TRIAL
        if gains:
            self.gained = self.updates
        return gains

    def comes_back(self, *, is_sudden: bool) -> bool:
        """Whether the trouble is in the restored state itself, although it repeats its record.

        It came back at the same update, whatever the batches and the rate; or as often as the rate was lowered.
        """
        near = SAME_UPDATE if is_sudden else SAME_BLOCK
        is_same = abs(self.updates - self.failed_at) <= near and self.since_restore >= LEAST_FUSE
        return self.is_proving and (is_same or self.num_restores > MOST_RESTORES)

    def older(self, known: list[Backup]) -> list[Backup]:
        """The states before the one that was put back last, ever fewer the more often it took long to come back."""
        known = [each for each in known if each.can_be_put]
        older = [each for each in known if each.updates < self.since] or known[:1]
        is_soon = self.since_restore < SOON
        skipped = 0 if is_soon else 2 ** max(0, self.num_older - ONE_BY_ONE) - 1
        self.num_older = max(1, self.num_older + (not is_soon))
        return older[: max(1, len(older) - skipped)]

    def is_looping(self, step: int) -> bool:
        """Whether the weights have proved healthy time and again, so that one high loss is that of its batch."""
        return len(self.healthy_at) == LOOPING and step - self.healthy_at[0] <= LOOP_STEPS

    @property
    def is_soon(self) -> bool:
        """Whether a new rise would be counted with the one before the last restore."""
        return self.since_restore < 4 * self.trial + RELAPSE_UPDATES

    @property
    def rises_again(self) -> bool:
        """Whether losses that rise slowly do so because of training itself."""
        return self.rises or (self.relapses >= LASTING_RELAPSES and self.is_soon)

    def note_restore(self, *, is_sudden: bool) -> None:
        """Count the rises that were not sudden."""
        self.relapses = (self.relapses if self.is_soon else 0) + (not is_sudden)

    def begin(self, backup: Backup, trial: int = 0, *, was_calm: bool = False) -> None:
        """Start counting at a backup that was restored; ``trial`` and ``was_calm`` as the attributes."""
        self.num_restores = self.num_restores + 1 if self.is_proving and self.since == backup.updates else 1
        if not self.is_proving:
            self.gained = self.updates
        self.failed_at = self.updates
        self.updates = self.since = backup.updates
        self.explosions.batch = None
        self.trial, self.is_proving, self.was_calm = trial, trial > 0, was_calm
        self.rates.clear()


DEAD_LOOKS, DEAD_SHARE = 8, 0.9
"""Looks in a row at which the gradient of a dead parameter is exactly 0, and the least share of the numbers in such
parameters. Experts that are not chosen leave others a gradient; so few are left where the output is a constant."""


@dataclass(eq=False)
class DeadParameters(SavedFields):
    """Finds parameters whose gradient has become exactly 0 for good, as where no input activates the rectifiers after
    them: the loss is that of a constant, and training on changes nothing.

    Attributes:
        found: The size of each parameter, and the looks since it had a gradient last; -1 where it has had none.
        shares: The share of numbers with a gradient in each of the first looks, and in each of the last.
    """

    found: list[Sequence[int]] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def note(self, sizes: Sequence[int], num_alive: int) -> None:
        """Take one look; see `RecoveryController.note_gradients`."""
        self.shares.append(num_alive / max(1, sum(map(abs, sizes))))
        if len(self.shares) > 2 * DEAD_LOOKS:
            del self.shares[DEAD_LOOKS]
        before = [looks for _, looks in self.found] if len(self.found) == len(sizes) else [-1] * len(sizes)
        self.found = [
            (abs(size), 0 if size > 0 else looks + 1 if size and looks >= 0 else -1)
            for size, looks in zip(sizes, before, strict=True)
        ]

    @property
    def are_most(self) -> bool:
        """Whether nearly all parameters are dead, though the loss still has a gradient."""
        total = sum([size for size, looks in self.found if looks >= 0])
        dead = sum([size for size, looks in self.found if looks >= DEAD_LOOKS])
        return DEAD_SHARE * total <= dead < total

    @property
    def left(self) -> float:
        """Most numbers with a gradient in one of the last looks, as a share of those in the first; 1 until known."""
        first, last = self.shares[:DEAD_LOOKS], self.shares[DEAD_LOOKS:]
        return max(last) * DEAD_LOOKS / sum(first) if len(last) == DEAD_LOOKS and any(first) else 1.0


BETTER = 0.1
"""Share of the level of the start by which the lower rate must be better after its few steps; and by which the last
losses of what was kept aside must be below it, to come back earlier. The batch that has a loss of both took 2 of 162
such states for better ones than the initial state that were worse, both rules together none
(`tests/runs/test_short_runs.py`)."""


@dataclass(eq=False)
class RateTrial(SavedFields):
    """What is put back if a lower rate from the start is no better.

    Attributes:
        present: The copy of the model.
        memory: The guard's state.
        backups: The backups.
        is_better: Whether it is better than the initial state, by the batch that has a loss of both and by its last
            losses.
        level: The level of its losses.
        progress: The losses.
        updates: Updates of its weights.
        limit: The limit of the rate, as a saved state.
        is_dead: Whether most of its parameters get no gradient any more, so that it cannot become better.
        is_fading: Whether ever fewer of its weights get one.
    """

    present: Any = field(metadata=NOT_SAVED)
    memory: Any = field(metadata=NOT_SAVED)
    backups: list[Backup] = field(metadata=NOT_SAVED)
    is_better: bool = False
    level: float = math.nan
    progress: Progress = field(default_factory=Progress)
    updates: int = 0
    limit: dict[str, Any] = field(default_factory=dict)
    is_dead: bool = False
    is_fading: bool = False

    def is_surpassed_by(self, level: float) -> bool:
        """Whether this level of the losses at the lower rate is clearly better."""
        return level < self.level - (0.0 if self.is_dead else BETTER * abs(self.progress.start))


@dataclass(eq=False)
class Early(SavedFields):
    """What is remembered of the first steps.

    Attributes:
        num_trials: Trials of a lower rate so far.
        measure_from: Updates from which the present weights may be measured again.
        size: Samples in a batch.
        changes: The loss of each batch measured so far, and by how much its own update has changed it.
        dead: The parameters that get no gradient any more.
        num_dead: Trials so far as parameters were dying.
        is_reviving: Whether a state is about to be tried in which they had a gradient.
        is_compared: Whether the present weights have drawn the witness of the initial state.
        last: The last batch of a pass that was trained on; None once it was measured.
        trial: The trial under way.
    """

    num_trials: int = 0
    measure_from: int = 0
    size: int = 1
    changes: list[Sequence[float]] = field(default_factory=list)
    dead: DeadParameters = field(default_factory=DeadParameters)
    num_dead: int = 0
    is_reviving: bool = False
    is_compared: bool = field(default=False, metadata=NOT_SAVED)
    last: Backup | None = field(default=None, metadata=NOT_SAVED)
    trial: RateTrial | None = field(default=None, metadata=NOT_SAVED)


MANY_TRANSIENT = 3
"""Transient faults from which the device is named."""


@dataclass(eq=False)
class IncidentLog(SavedFields):
    """Holds the incident under way, and counts over the whole run.

    Attributes:
        announcer: Is told of an incident that has ended.
        current: The incident; None if there is none.
        num_restored, num_probes: Restores and probes so far.
        num_transient: Steps that were not finite, and finite when they were computed once more.
        num_withheld: Steps that were left out, as their gradients were not finite though the losses were.
        kinds: How many incidents of each kind have ended in which a loss was refused or the model restored, and what
            was found in the last one.
        num_high: Batches refused for their high losses alone, where no state was put back.
        highest: The highest of these losses.
    """

    announcer: Announcer = field(metadata=NOT_SAVED)
    current: Incident | None = field(default=None, metadata=NOT_SAVED)
    num_restored: int = 0
    num_probes: int = 0
    num_transient: int = 0
    num_withheld: int = 0
    kinds: dict[str, tuple[int, str]] = field(default_factory=dict, metadata=NOT_SAVED)
    num_high: int = 0
    highest: float = 0.0

    def is_of_a_kind(self, loss: float, last: Sequence[float], start: float, step: int) -> bool:
        """Whether a high loss is that of a batch of a kind of their own, as of a rare class, and no sign of damage.

        Some such were refused while the weights were healthy, more often than one bad sample comes; it is not far above
        them, nor absurd, and not all of the last losses are high.

        Args:
            loss: The loss.
            last: The last ones that were learned from.
            start: The level that the run began with.
            step: Steps reported.
        """
        is_kind = self.num_high >= max(LEAST_HIGH, RARELY_HIGH * step) and loss <= FAR_HIGH * self.highest
        is_absurd = not loss <= max(CONFIDENT, FAR_FROM_START * start)
        return is_kind and not is_absurd and min(last[-NUM_LOW:], default=math.inf) < LOW * loss

    def open(self, step: int, reason: str, kind: str = "") -> Incident:
        """The incident under way, or a new one."""
        if self.current is None:
            self.current = Incident(step, reason, kind=kind or reason)
        return self.current

    def change(self, **changes: Any) -> None:
        """Set fields of the incident, if there is one."""
        if self.current is not None:
            self.current = replace(self.current, **changes)

    def note_probe(self, *, leaves_out: bool) -> None:
        """Count a probe; ``leaves_out``: whether a batch of the epoch is left out for it."""
        self.num_probes += 1
        if (now := self.current) is not None:
            self.change(num_probes=now.num_probes + 1, num_left_out=now.num_left_out + leaves_out)

    def note_transient(self, what: str, step: int, device: str) -> None:
        """Count a step that was finite the second time; arguments as for `RecoveryController.computed_again`."""
        self.num_transient = count = self.num_transient + 1
        text = (
            f"the {what} of step {step:,} was not finite, and is finite when computed once more from the same weights, "
            f"batch, buffers and random numbers: a transient fault, {count} so far; the batch counts"
        )
        if count >= MANY_TRANSIENT:
            text += f". So many point to {device} or its memory"
        self.announcer.say_once(f"transient {count}", f"{text}.", is_warning=count == MANY_TRANSIENT)

    def note_restore(self) -> None:
        """Count a restore."""
        self.num_restored += 1
        if self.current is not None:
            self.change(num_restored=self.current.num_restored + 1)

    def note(self, step: int, text: str) -> None:
        """Add a finding to the incident, if there is one."""
        if self.current is not None:
            self.change(findings=(*self.current.findings, f"step {step}: {text}")[-MOST_FINDINGS:])

    def end(self) -> None:
        """End the incident, if there is one."""
        incident, self.current = self.current, None
        if incident is not None:
            if incident.num_refused or incident.num_restored:
                kind = incident.kind or incident.reason
                text = incident.with_cause(f"{incident.place}: {incident.conclusion[:-1]}")
                self.kinds[kind] = self.kinds.get(kind, (0, ""))[0] + 1, text
            if incident.kind in HIGH and not incident.num_restored:
                self.num_high += incident.num_refused
                self.highest = max(self.highest, incident.loss)
                if self.num_high >= max(MANY_HIGH, RARELY_HIGH * incident.step):
                    self.announcer.warn_once("always left out", ALWAYS_LEFT_OUT.format(self.num_high, incident.step))
            self.announcer.tell(events.IncidentEnded, text=incident.conclusion)

    @property
    def restored_text(self) -> str:
        """How often the model was restored, in words; "" for never."""
        times = "once" if self.num_restored == 1 else f"{self.num_restored} times"
        return f"model restored {times}" if self.num_restored else ""

    @property
    def counts(self) -> list[str]:
        """How many probes, transient faults and steps left out there were, in words."""
        probes, faults, steps = self.num_probes, self.num_transient, self.num_withheld
        found = {
            f"weights tested with {probes} batch{'es' * (probes > 1)}": probes,
            f"{faults} transient faults, finite when computed once more": faults,
            f"{steps:,} step{'s' * (steps > 1)} left out for gradients that were not finite": steps,
        }
        return [text for text, count in found.items() if count]

    def summary(self, *, is_over: bool) -> list[str]:
        """A line for each kind of incident; ``is_over``: whether the run has ended."""
        lines = [
            f"{kind}: {f'{count:,} incidents, the last' if count > 1 else 'one incident,'} at {text}"
            for kind, (count, text) in self.kinds.items()
        ]
        incident = self.current
        if incident is not None and (incident.num_refused or incident.num_restored):
            said = incident.conclusion_at_end if is_over else f"under way since step {incident.step:,}"
            lines.append(incident.with_cause(f"{incident.kind or incident.reason}: {said}"))
        return lines

    def state_dict(self) -> dict[str, Any]:
        """See `SavedFields`; the kinds as a list: a name may hold anything."""
        kinds = [[kind, *found] for kind, found in self.kinds.items()]
        current = None if self.current is None else {name: getattr(self.current, name) for name in SAVED_OF_INCIDENT}
        return {**super().state_dict(), "kinds": kinds, "current": current}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `SavedFields`."""
        super().load_state_dict(state)
        self.kinds = {kind: (count, text) for kind, count, text in state["kinds"]}
        saved = state["current"]
        self.current = None if saved is None else Incident(**{**saved, "findings": tuple(saved["findings"])})


@dataclass(eq=False)
class RecoveryState(SavedFields):
    """All that recovery remembers, but for witnesses and the suspects of the quarantine, which their owners save.

    Attributes:
        limit: Holds the learning rate down.
        norms: Clips the gradient once updates were too large.
        incidents: The incident under way, and counts over the whole run.
        variances: What is known of running statistics.
        lineage: The updates that the present weights come from.
        refusals: Counts refused batches.
        early: What is remembered of the first steps.
        is_look_due: Whether to look at the losses before the next batch is drawn.
        steady_left: Batches of low-loss samples still to draw.
        looked_last_at: The step of the last look at the end of a run; a resumed one may have more steps.
        num_equal: Equal losses in a row.
        watched_until: Updates until which each gradient is looked at before its step.
    """

    limit: RateLimit
    norms: NormLimit
    incidents: IncidentLog
    variances: RunningVariances
    lineage: Lineage = field(default_factory=Lineage)
    refusals: Refusals = field(default_factory=Refusals)
    early: Early = field(default_factory=Early)
    is_look_due: bool = False
    steady_left: int = 0
    looked_last_at: int = -1
    num_equal: int = 0
    watched_until: int = 0

    def ends_in_doubt(self, *, has_jumped: bool) -> bool:
        """Whether the weights of a run that ends may be damaged.

        Losses are high, or may be where weights have changed at once; or a restore is on trial, and weights have
        changed, or hardly a loss shows what rates of the user's own have done since.

        Args:
            has_jumped: Whether weights have changed at once.
        """
        lineage, progress = self.lineage, self.lineage.progress
        if progress.is_high or (has_jumped and progress.num_perhaps_high):
            return True
        is_unseen = self.limit.is_share and lineage.since_restore <= MOST_UNSEEN
        return lineage.is_on_trial and lineage.since_restore > 0 and (has_jumped or is_unseen)

    @property
    def num_high_last(self) -> int:
        """How many of the last losses may be due to weights that have moved far as a run ends; 0 where none is high,
        the rate may be to blame, as it was before, or rates are R8's, whose batches are drawn again.
        """
        may_count = self.limit.is_share and not self.limit.has_failed
        return self.lineage.progress.num_perhaps_high if may_count else 0

    @property
    def watches_steps(self) -> bool:
        """Whether each step is to be looked at, as weights were not finite."""
        return self.lineage.updates < self.watched_until

    def watch_steps(self) -> None:
        """Have each step looked at from now on, as weights are not finite, or a gradient is not."""
        self.watched_until = WATCHED + (1 + WATCHED_TIMES) * self.lineage.updates

    def left_out_step(self, step: int, *, most: int, advice: str) -> None:
        """Note that a step is left out, as its gradient is not finite.

        Args:
            step: Steps reported.
            most: So many in a row end the run.
            advice: Where such gradients come from.

        Raises:
            TrainingDiverged: so many were.
        """
        self.watch_steps()
        announcer, refusals = self.incidents.announcer, self.refusals
        self.incidents.num_withheld = count = self.incidents.num_withheld + 1
        refusals.withheld += 1
        text = WITHHELD.format(refusals.withheld, step, advice)
        if refusals.withheld >= most:
            announcer.tell(events.GaveUp, text=text)
            raise TrainingDiverged(text)
        if refusals.withheld == MANY_WITHHELD:
            announcer.warn_once("all withheld", text)
        elif not count & (count - 1):
            announcer.say_once(f"withheld {count}", LEFT_OUT.format(step, count), is_warning=count == 1)

    def lower_rate(self, rate: float, *, reason: str, **how: Any) -> None:
        """Hold the rate below one at which training went wrong, see `RateLimit.lower`, and tell listeners why."""
        self.limit.lower(rate, **how)
        self.incidents.announcer.tell(
            events.LrCapped, ceiling=self.limit.ceiling, reason=reason, is_share=self.limit.is_share,
            until=self.limit.until_text(),
        )  # fmt: skip


def of_01c0f9e2(old: Mapping[str, Any]) -> dict[str, Any]:
    """A state that 01c0f9e2 saved, with each number under its name of today; what it did not know begins anew."""
    lineage, limit, incident = old["lineage"], old["limit"], old["incident"]
    since, trial, is_proving = lineage["proving"]
    failed_at, num_restores, num_older = lineage["fuse"]
    wait_until, look_wait = lineage["progress"]["wait"]
    if incident is not None:
        restored = {"step": incident["first_step"], "num_restored": int(incident["is_restored"])}
        incident = {name: incident[name] for name in SAVED_OF_INCIDENT if name in incident} | restored
    return {
        **old, "limit": {**limit, "failed": limit["slow_above"], "lowest": limit["ceiling"]},
        "lineage": {
            **lineage, "since": since, "trial": trial, "is_proving": is_proving, "failed_at": failed_at,
            "num_restores": num_restores, "num_older": num_older, "gained": lineage["updates"],
            "progress": {**lineage["progress"], "wait_until": wait_until, "look_wait": look_wait},
        },
        "refusals": {**old["refusals"], "in_vain": old["refusals"]["in_a_row"]},
        "incidents": {
            "num_restored": old["restored"], "num_probes": old["probes"], "kinds": [], "current": incident,
        },
        "early": {"num_trials": old["rate_trials"], **dict.fromkeys(("first", "last", "compared", "trial"))},
    }  # fmt: skip

"""The recovery controller: refuses batches, lets experiments find out what was at fault, and does what they find.

refused once                 the next batch is a free test: if it is good, nothing else happens
refused again, or a spike    an experiment (experiment.py): probes of the present weights, then of backups
  healthy                    go on; the refused batches were to blame, and their samples are suspects
  restored                   go on from the newest state that repeats its record, gently for some steps
    damaged again soon       and at a lower rate
  level                      nothing is restored; the losses mean something else from here on
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import events
from ..events.bus import Announcer
from ..guard.monitor import Sentry
from ..guard.verdict import Verdict
from ..sampling.ticket import Ticket
from ..table.losses import Reading
from ..table.records import LARGEST_LOSS
from ..table.table import SampleTable
from .experiment import Alarm, Case, Finding, Steps, draw_again, investigate
from .incident import Incident, diverged_text, write_bundle
from .live_model import LiveModel
from .moment import Moment, go_back
from .policy import Recovery, TrainingDiverged
from .progress import EARLY_UPDATES, LOOK_EVERY, START_UPDATES, Progress
from .quarantine import Quarantine
from .ram_backup import Backup, spread_of
from .rate_limit import RateLimit
from .restore import RestoreError

if TYPE_CHECKING:
    from .persistence import Persistence

EQUAL_LOSSES = 8
"""Number of equal losses in a row after which the weights are checked."""

LEAST_TRIAL = 64
"""Updates after a restore in which a new alarm is a relapse, if they are more than twice those that it undid."""

LEAST_BAD, MOST_BAD = 2, 32
"""Refused batches in a row that are looked into; doubled within these bounds whenever the weights prove healthy."""

BROKEN_SHARE = 0.5
"""Share of the last 100 batches that must be refused for the data to be called broken."""

DIVISOR, EARLY_DIVISOR = 2.0, 10.0
"""What a rate that damages healthy weights is divided by, and the rate of the first steps."""

LOWEST_SHARE = 1 / 8
"""Least share of the scheduled rate that a ceiling leaves after the first steps."""

TRIAL_LOSSES = 8
"""Batches whose mean stands for a probe where no witness can be drawn."""

RATE_TRIAL_UPDATES, RATE_TRIAL_STEPS, MOST_RATE_TRIALS = 256, 64, 3
"""Updates after the start in which a lower rate is tried, how many the trial takes, and how many trials there are."""

MOST_ON_DISK = 64
"""Checkpoints whose witnesses are known."""

UPDATES_LOOKED_AT, LARGE_UPDATE = 4, 0.03
"""Updates that are looked at before that, and the share of the level of the start by which they must have changed the
loss of their own batch, on average. Healthy ones changed it by .003 to .027 in sixteen tasks."""

LOOPING, LOOP_STEPS = 3, 100
"""So many experiments that found healthy weights within so many steps make the guard forget its losses."""


class Answer(NamedTuple):
    """What a report leads to.

    Attributes:
        is_good: Whether the batch is to be trained on.
        put_to: Steps reported when the state that was put back was taken; None if none was.
    """

    is_good: bool
    put_to: int | None


class RateTrial(NamedTuple):
    """What is put back if a lower rate from the start is no better.

    Attributes:
        present: The copy of the model.
        level: The level of its losses.
        memory: The guard's states.
        progress: The losses.
        updates: Updates of its weights.
        backups: The backups.
        limit: The limit of the rate, as a saved state.
    """

    present: Any
    level: float
    memory: Any
    progress: Progress
    updates: int
    backups: list[Backup]
    limit: dict[str, Any]


class RecoveryController:
    """Answers refused losses.

    Args:
        recovery: The settings.
        persistence: Backups, checkpoints, and the user's callbacks.
        announcer: Tells listeners and the user.
        table: Names the samples, and keeps the quarantined ones.
        sentry: Judges losses.

    Attributes:
        num_restored, num_probes: Restores and probes so far.
        quarantine: Finds bad samples.
        limit: Holds the learning rate down.
        progress: The last losses.
        can_probe: Whether a witness can be drawn out of turn.
        updates: Updates that the present weights have taken.
        is_early: Whether `is_suspicious` must be asked.
        asks_probe: Whether the next batch drawn must be a probe.
        is_look_due: Whether `look_back` is to be called before the next batch is drawn.
        is_quiet: Whether a good loss changes nothing that listeners hear of.
        steady_left: Batches of low-loss samples still to draw.
    """

    def __init__(
        self, recovery: Recovery, persistence: Persistence, announcer: Announcer, table: SampleTable, sentry: Sentry
    ) -> None:
        self.recovery = recovery
        self.num_restored = self.num_probes = 0
        self.quarantine = Quarantine(table, announcer, most_share=recovery.most_quarantined)
        self.limit = RateLimit(recovery.factor, recovery.gentle_steps)
        self.progress = Progress()
        self.can_probe = True
        self._table, self._persistence, self._announcer, self._sentry = table, persistence, announcer, sentry
        self._backup = persistence.backup
        self._live = LiveModel(persistence, announcer)
        self._begin_state()

    def _begin_state(self) -> None:
        self.updates = 0
        self.is_early = self._tests_progress = bool(getattr(self._sentry.guard, "tests_progress", False))
        self.asks_probe = self.is_look_due = False
        self.is_quiet = True
        self.steady_left = 0
        self._rates: deque[float] = deque(maxlen=16)
        self._outcomes: deque[bool] = deque(maxlen=100)
        self._streak = self._bad_run = self._num_equal = self._calm_run = 0
        self._bad_limit = LEAST_BAD
        self._healthy_at: deque[int] = deque(maxlen=LOOPING)
        self._on_disk: list[Backup] = []
        self._since = self._trial = self._relapses = self._num_rate_trials = self._num_draws = 0
        self._most_steady = 0
        self._lr = math.nan
        self._is_proving = self._rises = self._has_ended = self._refused_since_damage = False
        self._level_before = -math.inf
        self._changes: list[float] = []
        self._last: tuple[NDArray[np.int64], float] = np.empty(0, np.int64), math.nan
        self._incident: Incident | None = None
        self._last_refused: NDArray[np.int64] | None = None
        self._rate_trial: RateTrial | None = None
        self._end_experiment()

    def _end_experiment(self) -> None:
        self._experiment: Steps | None = None
        self._case: Case | None = None
        self._asked: Backup | None = None
        self._part, self._probe_losses = 0, list[float]()
        self._probe_chunk: Any = None
        self.asks_probe = False
        self._generators: Any = None

    # -- drawing

    @property
    def is_open(self) -> bool:
        """Whether an experiment or a trial of a rate is under way: then nothing is backed up or saved."""
        return self._experiment is not None or self._rate_trial is not None

    @property
    def is_investigating(self) -> bool:
        """Whether a probe is awaited."""
        return self._experiment is not None

    @property
    def is_calm(self) -> bool:
        """Whether nothing was refused since the last good loss, and nothing is tested."""
        return not self._bad_run and not self.is_open

    def note_start(self) -> None:
        """Note the random generators as the training on a batch begins; of use for the first one after a backup."""
        generators = self._persistence.callbacks.generators
        if generators is not None and self._backup.awaits_witness and not self.is_open:
            newest = self._backup.backups[-1]
            if not newest.witness:
                newest.generators = generators.get()

    def draw_probe(self) -> NDArray[np.int64]:
        """The samples of the probe, int64[B]; sets the random generators to those at its record."""
        assert self._asked is not None
        self.asks_probe = False
        generators = self._persistence.callbacks.generators
        if generators is not None and self._asked.generators is not None and not self._part:
            generators.set(self._asked.generators)
        return self._asked.witness[self._part]

    def note_drawn(self, chunk: Any) -> None:
        """Note the chunk of the probe that was just drawn."""
        self._probe_chunk = chunk

    def tests(self, ticket: Ticket) -> bool:
        """Whether a report is not to be judged, as weights are tested: its own, or those that it was trained with."""
        if self._experiment is None:
            return False
        return self.is_probe(ticket) or not self.can_probe or not self.is_on_present

    def takes(self, ticket: Ticket) -> bool:
        """Whether the loss of a batch that `tests` is one of the test."""
        return self._experiment is not None and (self.is_probe(ticket) or not self.can_probe)

    def is_probe(self, ticket: Ticket) -> bool:
        """Whether a batch is the probe."""
        return ticket.batch.chunk is self._probe_chunk

    def lose_probe(self) -> None:
        """Draw the probe again, as its batch was given up."""
        self.asks_probe = self._asked is not None and self.can_probe

    # -- good losses

    def is_suspicious(self, loss: float) -> bool:
        """Whether one of the first losses is worth a probe, though the guard has accepted it."""
        if self.updates > EARLY_UPDATES:
            return False
        first = self._backup.backups[0] if self._backup.backups else None
        if first is None or first.updates or not first.witness or self._experiment is not None:
            return False
        if not self._live.can_restore:
            # Nothing could be done about it.
            return False
        return self.progress.is_early_alarm(loss, first.record, self.updates)

    @property
    def is_calm_due(self) -> bool:
        """Whether it matters for the next loss that is learned from whether the guard is calm."""
        return self.updates & 3 == 3

    def accepted(self, loss: float, ticket: Ticket, scheduled_lr: float, *, is_calm: bool) -> None:
        """Note a loss that was learned from.

        Args:
            loss: The mean loss.
            ticket: Its batch.
            scheduled_lr: The scheduled rate.
            is_calm: Whether the guard suspects nothing, where `is_calm_due`.
        """
        if self.quarantine.is_watching:
            self.quarantine.cleared(ticket.indices)
        progress, backup = self.progress, self._backup
        recent = progress.recent
        # Losses always differ a little: equal ones may mean that the weights are destroyed.
        self._num_equal = self._num_equal + 1 if recent and recent[-1] == loss else 0
        recent.append(loss)
        progress.reported.append(loss)
        self._rates.append(ticket.lr)
        self.updates += 1
        if backup.backups and len(backup.backups[-1].witness) < backup.witness_size:
            self._note_witness(ticket, loss)
        if not self.is_quiet:
            self._note_good(scheduled_lr)
        if not self.updates & 3:
            self._look(loss, is_calm=is_calm)
        if self.is_early:
            self._last = ticket.indices, loss
            self.is_look_due = self.is_look_due or bool(self._changes)

    def _note_witness(self, ticket: Ticket, loss: float) -> None:
        newest = self._backup.backups[-1]
        if ticket.draw >= newest.draws and not self.is_probe(ticket):
            newest.witness.append(ticket.indices.copy())
            newest.losses.append(loss)
            for other in self._on_disk:
                if other.step == newest.step and not other.witness:
                    other.witness, other.losses, other.generators = newest.witness, newest.losses, newest.generators

    def _note_good(self, scheduled_lr: float) -> None:
        """What a good loss settles after others were refused."""
        self._outcomes.append(False)
        if not any(self._outcomes):
            self._outcomes.clear()
        self._streak = self._bad_run = 0
        self._bad_limit = max(LEAST_BAD, self._bad_limit - 1)
        if self.limit.is_on and self.limit.accepted(scheduled_lr):
            self._announcer.tell(events.LrRestored)
        incident = self._incident
        if incident is not None and not self.is_open and not (self._is_proving and self._since_restore < self._trial):
            self._end_incident()
        if self._is_proving and self._since_restore >= self._trial:
            self._is_proving = False
        self.is_quiet = not (
            self._outcomes or self._incident or self.limit.is_on or self._is_proving or self.is_open or self.steady_left
        )

    @property
    def _since_restore(self) -> int:
        return self.updates - self._since

    def _look(self, loss: float, *, is_calm: bool) -> None:
        """Every fourth update: what needs not be looked at in each."""
        if self._num_equal >= EQUAL_LOSSES - 1:
            self._num_equal = 0
            self._persistence.look_at_weights()
        self._calm_run = self._calm_run + 4 if is_calm else 0
        trust = self.recovery.trust_steps
        if self._calm_run >= trust:
            for each in (*self._backup.backups, *self._on_disk):
                each.is_proven = each.is_proven or (self.updates - each.updates >= trust and bool(each.witness))
        if self.updates <= START_UPDATES:
            first = self._backup.backups[0] if self._backup.backups else None
            self.progress.note_first(loss, first.record if first is not None and not first.updates else math.nan)
            # Between two steps, as it may put a state back.
            self.is_look_due = not self.updates % LOOK_EVERY and self.is_early
        else:
            self.is_early = False

    def look_back(self, *, step: int, lr: float) -> int | None:
        """In the first steps: see whether progress was lost, or there is none, as the rate may be too high.

        Args:
            step: Steps reported.
            lr: The scheduled learning rate.

        Returns:
            Steps reported when the state that was put back was taken; None if none was.
        """
        self.is_look_due = False
        if self._experiment is None:
            self._live.begin_call(step)
            self._lr = lr
            self._look_back()
        return self._live.put_step

    def _look_back(self) -> None:
        progress, level = self.progress, self.progress.level
        trial = self._rate_trial
        if trial is not None:
            if self.updates >= RATE_TRIAL_STEPS and level == level:
                self._end_rate_trial(trial, level)
            return
        if level != level or self.updates <= EARLY_UPDATES:
            return
        if self._changes:
            self._look_at_updates(level)
            return
        if self.limit.ceiling < math.inf and level < self._level_before - 0.1 * abs(progress.start - level):
            self._level_before, self._relapses = -math.inf, 0
            self.limit.confirm()
        best = None if self._rises else progress.lost_progress(self._known(), self.updates)
        if best is not None:
            self._begin(Alarm.REGRESS, level, best=best)
        elif self._may_try_rates and progress.is_wild():
            self._look_at_updates(level)

    def _look_at_updates(self, level: float) -> None:
        """See how much an update changes the loss of its own batch, and try a lower rate where that is very much."""
        if len(self._changes) < UPDATES_LOOKED_AT:
            indices, loss = self._last
            batch = Backup(self._live.step, self.updates, witness=[indices], losses=[loss])
            self.is_quiet = False
            self._case = Case(Alarm.WILD, level, (), self.progress.start, 0.0, share=0.0, is_sudden=True)
            self._experiment = draw_again(batch)
            self._advance(None)
            return
        mean, self._changes = float(np.mean(self._changes)), []
        if mean > LARGE_UPDATE * self.progress.start:
            self._begin_rate_trial(level)
        else:
            self.progress.note_healthy(self.updates)

    @property
    def _may_try_rates(self) -> bool:
        is_start = (
            self.updates <= RATE_TRIAL_UPDATES and not self._backup.is_empty and not self._backup.backups[0].updates
        )
        is_fresh = self._num_rate_trials < MOST_RATE_TRIALS and self._since_restore > RATE_TRIAL_STEPS
        return is_start and is_fresh and self._incident is None and self.can_probe

    # -- refused losses

    def refused(
        self, ticket: Ticket, reading: Reading, verdict: Verdict, *, step: int, lr: float, most_steady: int
    ) -> Answer:
        """Answer a refused loss.

        Args:
            ticket: The batch.
            reading: Its loss.
            verdict: Why it was refused.
            step: Steps reported, this one included.
            lr: The scheduled learning rate.
            most_steady: Most batches of low-loss samples after a restore.

        Raises:
            TrainingDiverged: too many batches in a row were refused.
            RestoreError: the load callback raised for every state there is.
        """
        self._live.begin_call(step)
        self.is_quiet = False
        self._lr, self._most_steady = lr, most_steady
        loss, reason, alarm = reading.mean, verdict.value, ALARMS.get(verdict, Alarm.NOT_FINITE)
        if self._incident is None:
            self._incident = Incident(step, reason)
        self._incident.num_refused += 1
        samples = not_finite_samples(reading, ticket)
        self._last_refused = ticket.indices
        if alarm is Alarm.NOT_FINITE:
            self._bad_run += 1
            self.quarantine.refused(ticket.indices, samples)
        elif math.isfinite(loss):
            self.progress.reported.append(loss)
        self._outcomes.append(True)
        self._refused_since_damage = True
        self._streak += 1
        if self._experiment is None and self._is_worth_looking(alarm):
            rise = {Alarm.SPIKE: 2, Alarm.RAISED: 16}.get(alarm, 1)
            self._begin(alarm, math.inf if alarm is Alarm.NOT_FINITE else self.progress.rise(rise))
        self._announcer.tell(
            events.BatchRefused, epoch=ticket.epoch, loss=loss, lr=ticket.lr, next_lr=self.lr(lr), tries=self._streak,
            samples=samples, reason=reason,
        )  # fmt: skip
        self._check_broken(step)
        self._check_end(loss, ticket.lr, step)
        return Answer(False, self._live.put_step)

    def _is_worth_looking(self, alarm: Alarm) -> bool:
        """Whether a refusal is more than a batch to leave out."""
        if not self._live.can_restore:
            self._announcer.warn_once(
                "nothing to restore",
                "a loss was refused, and there is nothing to restore the model from, should its weights be damaged. "
                "Pass load_callback with state_callback, or call update_cpu_backup().",
            )
            return False
        if alarm is not Alarm.NOT_FINITE:
            return True
        is_blind = self._persistence.callbacks.state is None
        return is_blind or self._bad_run >= self._bad_limit or self._live.is_damaged()

    def _check_broken(self, step: int) -> None:
        if sum(self._outcomes) > BROKEN_SHARE * 100:
            suspects = self.quarantine.suspects
            named = f" Suspected: {self.quarantine.named(suspects)}." if suspects else ""
            self._announcer.warn_once(
                "broken data",
                f"more than half of the last 100 batches before step {step} were refused: the data, the loss function "
                f"or the code are broken.{named}",
            )

    def _check_end(self, loss: float, lr: float, step: int) -> None:
        if self._streak < self.recovery.max_refused:
            return
        if self._experiment is not None:
            self.settle_open(step=step)
        incident = self._incident or Incident(step, "refused")
        suspects = self.quarantine.suspects
        text = diverged_text(
            incident, refused=self._streak, step=step, loss=loss, lr=lr, failures=self._live.failures,
            samples=self.quarantine.named(suspects) if suspects else "",
        )  # fmt: skip
        store = self._persistence.store
        folder = None if store is None else store.folder
        bundle = write_bundle(
            folder, step, text=text, incident=incident, losses=list(self.progress.reported), recovery=self.recovery
        )
        error = TrainingDiverged(f"{text}\nLosses and settings are in {bundle}." if bundle else text)
        error.bundle = bundle
        self._announcer.tell(events.GaveUp, text=str(error), bundle=bundle)
        raise error

    def damaged(self, array: str, *, step: int, lr: float) -> Answer:
        """Answer an array of the model that is not finite while the losses were good."""
        self._live.begin_call(step)
        self._lr = lr
        if not self._live.can_restore:
            self._announcer.warn_once(
                f"damaged {array}",
                f"{array!r} in the model's state is not finite at step {step}; no backup is taken while that is so. If "
                "that is intended, leave it out of the state.",
            )
        elif self._experiment is None:
            if not self._refused_since_damage:
                self._persistence.note_lasting(array)
            self._refused_since_damage = False
            if self._incident is None:
                self._incident = Incident(step, f"{array!r} was not finite")
            self._begin(Alarm.NOT_FINITE, math.inf)
        return Answer(False, self._live.put_step)

    @property
    def may_look_last(self) -> bool:
        """Whether `looks_last` was not asked yet, or its experiment is under way."""
        return not self._has_ended or self._experiment is not None

    def settle_open(self, *, step: int) -> None:
        """End what is under way, as the run is left: with the present weights, or with the newest trusted ones."""
        self._live.begin_call(step)
        trial, self._rate_trial = self._rate_trial, None
        if self._live.current is not None and not self._live.put_present():
            newest = next((each for each in reversed(self._known()) if each.is_proven), None)
            if newest is not None and self._live.put(newest):
                self._restored(newest, Alarm.END, is_sudden=True)
        elif trial is not None:
            self._live.begin()
            self._live.put_copy(trial.present)
        self._end_experiment()
        self._live.end()

    def looks_last(self, *, step: int, lr: float) -> bool:
        """Begin an experiment before the run ends, if its last losses were unusual; returns whether one is open."""
        if self._has_ended or self._experiment is not None:
            return self._experiment is not None
        self._has_ended = True
        recent = list(self.progress.recent)
        usual = recent[:-2]
        if len(usual) < LOOK_EVERY or not self._tests_progress or not self._live.can_restore or not self.can_probe:
            return False
        limit = float(np.median(usual)) + 6 * spread_of(usual)
        if not (self._streak or any(loss > limit for loss in recent[-2:])):
            return False
        self._live.begin_call(step)
        self._lr = lr
        self._begin(Alarm.END, max(recent[-2:]))
        return self._experiment is not None

    # -- experiments

    def _known(self) -> list[Backup]:
        """The backups with a witness, in RAM and on disk, oldest first."""
        in_ram = [each for each in self._backup.backups if each.record == each.record]
        steps, files = {each.step for each in in_ram}, self._persistence.checkpoint_steps()
        on_disk = [each for each in self._on_disk if each.witness and each.step in files and each.step not in steps]
        return sorted([*in_ram, *on_disk], key=lambda each: (each.updates, each.step))

    def _begin(self, alarm: Alarm, level: float, *, best: Backup | None = None) -> None:
        self.is_quiet = False
        if self._incident is None:
            self._incident = Incident(self._live.step, _REASONS[alarm])
        known = self._known()
        self._live.begin()
        if not known:
            # Nothing is known yet: only a state that is damaged is put back.
            newest = self._backup.newest
            if newest is not None and (self._persistence.callbacks.state is None or self._live.is_damaged()):
                if self._live.put(newest):
                    self._restored(newest, alarm, is_sudden=True)
                else:
                    self._raise_failures()
            return
        self._case = Case(
            alarm, level, known, self.progress.start, self.progress.first_spread,
            share=(sum(self._outcomes) + 1) / (len(self._outcomes) + 4),
            is_sudden=alarm is not Alarm.REGRESS and (alarm is not Alarm.RAISED or self.progress.is_sudden()),
            rises=self._rises or (self._relapses >= 2 and self._since_restore < 4 * self._trial + 256),
            best=best, is_exact=self.can_probe,
        )  # fmt: skip
        generators = self._persistence.callbacks.generators
        self._generators = None if generators is None else generators.get()
        self._experiment = investigate(self._case, self._live)
        self._advance(None)

    def _advance(self, loss: float | None) -> Finding | None:
        """Send the loss of a probe to the experiment; its finding if it ends."""
        assert self._experiment is not None
        finding: Finding | None = None
        try:
            # A generator that has not begun takes None only.
            self._asked = self._experiment.send(loss)  # type: ignore[arg-type]
        except StopIteration as end:
            finding = end.value
        if finding is None:
            self._part, self._probe_losses = 0, []
            self.asks_probe, self._probe_chunk = self.can_probe, None
            return None
        case, generators = self._case, self._persistence.callbacks.generators
        if generators is not None and self._generators is not None and finding.verdict != "restored":
            generators.set(self._generators)
        self._end_experiment()
        assert case is not None
        self._settle(case, finding)
        self._live.end()
        return finding

    def probed(self, ticket: Ticket, loss: float, *, step: int, lr: float) -> Answer:
        """Take the loss of a probe; where none can be drawn, of any batch that stands for one.

        Raises:
            TrainingDiverged, RestoreError: as `refused`.
        """
        self._live.begin_call(step)
        self._lr = lr
        asked, case = self._asked, self._case
        assert asked is not None
        assert case is not None
        if self._incident is not None:
            self._incident.num_probes += 1
        self.num_probes += 1
        self._streak += 1
        self._probe_losses.append(loss)
        self._announcer.tell(
            events.Probed, of_step=asked.step, loss=loss, record=case.record(asked),
            is_present=self._live.current is None, reason=case.alarm.value,
        )  # fmt: skip
        self._part += 1
        self._check_end(loss, ticket.lr, step)
        is_whole = self._part >= (len(asked.witness) if self.can_probe else TRIAL_LOSSES)
        if not is_whole and math.isfinite(loss):
            self.asks_probe, self._probe_chunk = self.can_probe, None
            return Answer(False, None)
        finding = self._advance(float(np.mean(self._probe_losses)))
        is_single = self.can_probe and len(asked.witness) == 1
        return Answer(finding is not None and finding.verdict == "healthy" and is_single, self._live.put_step)

    @property
    def is_on_present(self) -> bool:
        """Whether the weights under test are the present ones, so that other batches may be trained on meanwhile."""
        return self._live.current is None

    def _settle(self, case: Case, finding: Finding) -> None:
        """Do what an experiment has found."""
        step = self._live.step
        if case.alarm is Alarm.WILD:
            batch = finding.tested[0]
            change = abs(batch.replayed - batch.record)
            self._changes.append(change if math.isfinite(change) else math.inf)
            return
        if finding.verdict == "restored" and finding.backup is not None:
            self._restored(finding.backup, case.alarm, is_sudden=case.is_sudden)
            return
        if finding.verdict == "healthy":
            self._note_healthy(case.alarm, step)
        elif finding.verdict == "level":
            is_level = not finding.tested or any(math.isfinite(each.replayed) for each in finding.tested)
            if is_level:
                self._accept_level(finding, step)
            else:
                # No state has a finite loss, which says nothing about the weights.
                self._note_healthy(case.alarm, step)
        else:
            self._raise_failures()
        self._note(step, finding.text)
        if finding.verdict != "lost" and not self._is_proving:
            self._end_incident()

    def _raise_failures(self) -> None:
        if self._live.failures:
            raise RestoreError(f"{' | '.join(self._live.failures)} The model may be partly restored.")

    def _note(self, step: int, text: str) -> None:
        if self._incident is not None:
            self._incident.note(step, text)

    def _note_healthy(self, alarm: Alarm, step: int) -> None:
        self._bad_limit = min(MOST_BAD, 2 * self._bad_limit)
        self.progress.note_healthy(self.updates)
        if alarm is Alarm.NOT_FINITE:
            return
        self._sentry.calm()
        if alarm is Alarm.SPIKE and self._last_refused is not None:
            self.quarantine.refused(self._last_refused, ())
        self._healthy_at.append(step)
        if len(self._healthy_at) == LOOPING and step - self._healthy_at[0] <= LOOP_STEPS:
            self._sentry.forget()

    def _accept_level(self, finding: Finding, step: int) -> None:
        """Take the new level of the losses for the usual one."""
        self._sentry.forget()
        self.progress.begin_anew()
        self.limit.forget()
        self._relapses = 0
        self._on_disk = []
        for each in list(self._backup.backups):
            if each in finding.tested and math.isfinite(each.replayed):
                each.begin_anew()
            else:
                self._backup.backups.remove(each)
                self._backup.recycle(each)
        self._persistence.look_at_weights()
        self._announcer.warn_once(
            f"level {step}",
            f"the losses stay higher from step {step} on: {finding.text}. Nothing was restored, and the new level "
            "counts as usual.",
        )

    def _restored(self, backup: Backup, alarm: Alarm, *, is_sudden: bool) -> None:
        """Go on from a state that was put back."""
        step, undone = self._live.step, self.updates - backup.updates
        is_relapse = self._is_proving and self._since_restore < self._trial
        self._relapses = (self._relapses if self._since_restore < 4 * self._trial + 256 else 0) + (not is_sudden)
        is_early = backup.updates <= EARLY_UPDATES or alarm is Alarm.REGRESS
        if is_relapse or alarm is Alarm.REGRESS:
            self._level_before = backup.usual
            rate = max(self._rates) if self._rates else self._lr
            least = 0.0 if is_early else LOWEST_SHARE * self._lr
            self.limit.lower(rate, by=EARLY_DIVISOR if is_early else DIVISOR, least=least)
            self._announcer.tell(events.LrCapped, ceiling=self.limit.ceiling, reason=alarm.value)
        elif not is_early:
            self.limit.restored()
            self.steady_left = min(self.recovery.steady_steps, self._most_steady)
        source = self._live.name_of(backup)
        self._announcer.tell(events.RolledBack, to_step=backup.step, source=source)
        what = f"{_REASONS[alarm]}: the weights were damaged, restored to step {backup.step}, {undone} updates back"
        if self.limit.ceiling < math.inf:
            what += f"; the learning rate stays at or below {self.limit.ceiling:.3g} for a while"
        self._note(step, what)
        self._announcer.warn_once("restored", f"{what}. See docs/recovery.md.")
        self.num_restored += 1
        self._rate_trial = None
        self._forget_after(backup, step)
        if backup.moment is not None:
            go_back(backup.moment, self._sentry, self._table)
        elif self._live.guard is not None:
            self._sentry.go_back_to_saved(self._live.guard)
        self.progress.went_back(backup.recent)
        self._begin_lineage(backup, max(LEAST_TRIAL, 2 * undone))
        if self._incident is not None:
            self._incident.is_restored = True

    def _forget_after(self, backup: Backup, step: int) -> None:
        """Forget the states that come from weights that were given up."""
        self._backup.forget_after(backup.updates)
        self._on_disk = [each for each in self._on_disk if each.updates <= backup.updates]
        backup.is_proven = True
        if self._persistence.store is not None:
            self._persistence.store.give_up(backup.step, step)

    def _end_incident(self) -> None:
        incident, self._incident = self._incident, None
        if incident is not None:
            self._announcer.tell(events.IncidentEnded, text=incident.conclusion)

    # -- a rate that is too high from the start

    def _begin_rate_trial(self, level: float) -> None:
        """Try a tenth of the rate from the start, and keep what is better."""
        self._live.begin_call(self._live.step)
        self._live.begin()
        first, rate = self._backup.backups[0], max(self._rates)
        if not self._live.keep_present() or not self._live.put(first):
            return
        self._rate_trial = RateTrial(
            self._live.take_present(), level, self._sentry.memory, self.progress, self.updates, self._backup.backups,
            self.limit.state_dict(),
        )  # fmt: skip
        self._num_rate_trials += 1
        self._backup.backups, self.progress = [first], Progress.again(self.progress)
        self.limit.lower(rate, by=EARLY_DIVISOR)
        self._sentry.forget()
        self._begin_lineage(first)
        self._announcer.tell(events.RolledBack, to_step=first.step, source="backup")
        self._announcer.tell(events.LrCapped, ceiling=self.limit.ceiling, reason="no progress")

    def _begin_lineage(self, backup: Backup, trial: int = 0) -> None:
        """Count the updates of weights that were put back."""
        self.updates = self._since = backup.updates
        self._trial, self._is_proving = trial, trial > 0
        self._rates.clear()
        self._bad_run = self._calm_run = 0

    def _end_rate_trial(self, trial: RateTrial, level: float) -> None:
        """Go on with the lower rate if its losses are clearly better; else with the weights and rate of before."""
        self._rate_trial = None
        step = self._live.step
        start = trial.progress.start
        if level < trial.level - 0.1 * abs(start):
            self.num_restored += 1
            self.limit.confirm()
            for each in trial.backups[1:]:
                self._backup.recycle(each)
            text = f"the learning rate was too high: at {self.limit.ceiling:.3g} the loss is {level:.3g} after "
            text += f"{self.updates} steps from the start, not {trial.level:.3g}"
            self._announcer.warn_once("rate too high", f"{text}. See docs/recovery.md.")
            self._announcer.tell(events.Notice, text=text, is_warning=False)
            return
        self._num_rate_trials = MOST_RATE_TRIALS
        self._live.begin()
        self._live.put_copy(trial.present)
        self._sentry.go_back(trial.memory)
        self.progress, self.updates, self._backup.backups = trial.progress, trial.updates, trial.backups
        self.limit.load_state_dict(trial.limit)
        if not self.limit.is_on:
            self._announcer.tell(events.LrRestored)
        self._announcer.tell(events.RolledBack, to_step=step, source="backup")

    # -- everything else

    def moment(self, state: Any = None) -> Moment:
        """The scheduler's own state now, to be kept with a backup; ``state`` is that of the run."""
        sentry, recent = self._sentry, tuple(self.progress.recent)
        return Moment(sentry.memory, self._table.learner.trend_mark, sentry.baseline, self.updates, recent, state)

    def lr(self, scheduled_lr: float) -> float:
        """The learning rate to use in place of the scheduled one."""
        return self.limit.lr(scheduled_lr) if self.limit.is_on else scheduled_lr

    @property
    def lr_factor(self) -> float:
        """Factor of the scheduled learning rate, in (0, 1]; a ceiling may lower the rate further."""
        return self.limit.factor

    @property
    def is_steadying(self) -> bool:
        """Whether the next batch should be a steady one, of low-loss samples."""
        return self.steady_left > 0

    def note_checkpoint(self, step: int) -> None:
        """Note that a checkpoint of this step is on disk: its witness is the first batch after it."""
        draws = self._num_draws
        newest = self._backup.newest
        on_disk = Backup(step, self.updates, draws, recent=tuple(self.progress.recent))
        if newest is not None and newest.step == step:
            on_disk.witness, on_disk.losses = newest.witness, newest.losses
        self._on_disk = [*self._on_disk, on_disk][-MOST_ON_DISK:]

    def begin_anew(self) -> None:
        """End the incident and return to the scheduled learning rate: losses mean something else from now on."""
        was_on = self.limit.is_on
        self._end_experiment()
        self._rate_trial = None
        self._on_disk = []
        for each in self._backup.backups:
            if each.witness:
                each.forget_record()
        self.progress.begin_anew()
        self.limit.forget()
        self._note(self._live.step, "reset_baseline() was called: losses mean something else from here on")
        self._end_incident()
        if was_on:
            self._announcer.tell(events.LrRestored)

    def summary(self) -> str:
        """What recovery has done and is still doing, as text for people; "" if nothing."""
        times = "once" if self.num_restored == 1 else f"{self.num_restored} times"
        parts = [f"model restored {times}"] if self.num_restored else []
        if self.limit.ceiling < math.inf:
            parts.append(f"learning rate at most {self.limit.ceiling:.3g}, as a higher one damaged healthy weights")
        if len(self._table.quarantined):
            parts.append(f"in quarantine: {self.quarantine.named(self._table.quarantined.tolist())}")
        return "".join(f"; {part}" for part in parts)

    def state_dict(self) -> dict[str, Any]:
        """What outlives the process: counts, the limit of the rate, and the witnesses of checkpoints."""
        return {
            "updates": self.updates, "restored": self.num_restored, "probes": self.num_probes,
            "limit": self.limit.state_dict(), "progress": self.progress.state_dict(),
            "bad_limit": self._bad_limit, "relapses": self._relapses, "rises": self._rises,
            "proving": [self._since, self._trial, self._is_proving],
            "rate_trials": self._num_rate_trials,
            "streak": self._streak, "bad_run": self._bad_run, "outcomes": list(self._outcomes),
            "calm_run": self._calm_run, "num_equal": self._num_equal, "rates": list(self._rates),
            "healthy_at": list(self._healthy_at), "steady_left": self.steady_left, "has_ended": self._has_ended,
            "incident": None if self._incident is None else asdict(self._incident),
            "witnesses": [each.to_plain() for each in (*self._on_disk, *self._backup.backups) if each.witness],
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; experiments under way are dropped."""
        self._begin_state()
        if "limit" not in state:
            self._load_older(state)
            return
        self.updates, self.num_restored, self.num_probes = state["updates"], state["restored"], state["probes"]
        self.limit.load_state_dict(state["limit"])
        self.progress.load_state_dict(state["progress"])
        self._bad_limit, self._relapses, self._rises = state["bad_limit"], state["relapses"], state["rises"]
        self._since, self._trial, self._is_proving = state["proving"]
        self._num_rate_trials = state["rate_trials"]
        self._streak, self._bad_run, self._calm_run = state["streak"], state["bad_run"], state["calm_run"]
        self._num_equal, self.steady_left, self._has_ended = (
            state["num_equal"],
            state["steady_left"],
            state["has_ended"],
        )
        self._outcomes.extend(state["outcomes"])
        self._rates.extend(state["rates"])
        self._healthy_at.extend(state["healthy_at"])
        self._incident = None if state["incident"] is None else Incident(**state["incident"])
        # The first good loss finds out whether it is.
        self.is_quiet = False
        known = {each["step"]: Backup.from_plain(each) for each in state["witnesses"]}
        self._on_disk = list(known.values())

    def _load_older(self, state: Mapping[str, Any]) -> None:
        """Load the state of 7ddda59: its incident is dropped, the rate it has left is kept."""
        self.limit.forget()
        self.is_quiet = False
        if state["ceiling"] is not None:
            self.limit.lower(DIVISOR * state["ceiling"], by=DIVISOR)
        if state["factor"] < 1:
            self.limit.restored()
        if state["tries"]:
            self._announcer.warn_once(
                "older incident",
                "the saved run was within an incident, which this version does not continue: the model goes on from "
                "the saved state, and the learning rate stays lower for a while.",
            )


ALARMS = {
    Verdict.SPIKE: Alarm.SPIKE, Verdict.RAISED: Alarm.RAISED, Verdict.LASTING_DRIFT: Alarm.RAISED,
    Verdict.EARLY: Alarm.EARLY,
}  # fmt: skip
"""What a verdict speaks for; any other one for losses that are not finite."""

_REASONS = {
    Alarm.NOT_FINITE: "losses or weights were not finite",
    Alarm.SPIKE: "losses were far too high",
    Alarm.RAISED: "losses stayed higher",
    Alarm.EARLY: "a loss of the first steps was too high",
    Alarm.REGRESS: "much of the progress was lost",
    Alarm.END: "the last losses were unusual",
}


def not_finite_samples(reading: Reading, ticket: Ticket) -> tuple[int, ...]:
    """The samples whose own loss is not finite; none if only means were reported, or if it is all of the batch."""
    losses = np.atleast_1d(reading.means)
    if len(losses) != len(ticket.indices):
        return ()
    bad = ~(np.abs(losses) <= LARGEST_LOSS)
    return () if bad.all() else tuple(ticket.indices[bad].tolist())

"""The recovery controller: refuses batches, lets experiments find out what was at fault, and acts on what they find.

refused once                 the next batch is a free test: if it is good, nothing else happens
refused again, or a spike    an experiment (experiment.py): probes of the present weights, then of backups
its finding                  is acted on (settlement.py)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from .incidents.cause_search import CauseSearch
from .incidents.experiment import Alarm, Case, Finding, investigate
from .incidents.experiment_run import ExperimentRun
from .incidents.first_steps import FAR, FirstSteps
from .incidents.incident import Incident, IncidentLog, diverged_text, write_bundle
from .incidents.live_model import LiveModel
from .incidents.settlement import DIVISOR, Settlement
from .lineage import LOOK_MASK, Lineage
from .moment import Moment
from .policy import Recovery, TrainingDiverged
from .progress import EARLY_UPDATES, LOOK_EVERY, START_UPDATES
from .quarantine import Quarantine
from .ram_backup import Backup, spread_of
from .rate_limit import RateLimit
from .refusals import Refusals
from .witnesses import Witnesses

if TYPE_CHECKING:
    from .incidents.recorder import FlightRecorder
    from .persistence import Persistence

EQUAL_LOSSES = 8
"""Number of equal losses in a row after which the weights are checked."""


SOON = 16
"""If trouble comes back within this many updates, trying states one by one costs little."""

ONE_BY_ONE = 8
"""States tried one by one where trouble takes longer to come back; each further one is twice as far back."""


class Answer(NamedTuple):
    """What a report leads to.

    Attributes:
        is_good: Whether to train on the batch.
        put_to: Steps reported when the restored state was taken; None if none was restored.
    """

    is_good: bool
    put_to: int | None


class RecoveryController:
    """Answers refused losses.

    Args:
        recovery: The settings.
        persistence: Backups, checkpoints, and the user's callbacks.
        announcer: Tells listeners and the user.
        table: Names the samples, and keeps the quarantined ones.
        sentry: Judges losses.
        keeps_rates: Whether rates are the user's own, of which those here are shares.
        recorder: Writes a record of each incident; None for none.

    Attributes:
        recorder: As given.
        quarantine: Finds bad samples.
        limit: Holds the learning rate down.
        experiment: The experiment under way.
        witnesses: The witnesses of backups and checkpoints.
        is_early: Whether `is_suspicious` must be asked.
        is_look_due: Whether to call `look_back` before the next batch is drawn.
        lineage: The updates that the present weights come from.
        is_quiet: Whether a good loss changes nothing that listeners hear of.
        steady_left: Batches of low-loss samples still to draw.
    """

    def __init__(
        self, recovery: Recovery, persistence: Persistence, announcer: Announcer, table: SampleTable, sentry: Sentry,
        *, keeps_rates: bool = False, recorder: FlightRecorder | None = None,
    ) -> None:  # fmt: skip
        self.recovery, self._keeps_rates = recovery, keeps_rates
        self.quarantine = Quarantine(table, announcer, most_share=recovery.most_quarantined)
        self._table, self._persistence, self._announcer, self._sentry = table, persistence, announcer, sentry
        self._backup = persistence.backup
        self.recorder = recorder
        self._cause_search = CauseSearch(persistence, announcer, table, sentry, recorder)
        self._begin_state()

    def _begin_state(self) -> None:
        recovery, persistence, announcer = self.recovery, self._persistence, self._announcer
        self.limit = RateLimit(recovery.factor, recovery.gentle_steps, is_share=self._keeps_rates)
        self.witnesses = Witnesses(persistence, recovery.trust_steps)
        self._live = LiveModel(persistence, announcer)
        self.experiment = ExperimentRun(self._live, lambda: persistence.callbacks)
        self.lineage, self._refusals, self._incidents = Lineage(), Refusals(), IncidentLog(announcer)
        parts = self._live, self.lineage, self.limit, self.witnesses, self._incidents
        self._settlement = Settlement(
            *parts, sentry=self._sentry, table=self._table, persistence=persistence, announcer=announcer
        )
        self._first_steps = FirstSteps(
            self.experiment, *parts, backup=self._backup, sentry=self._sentry, announcer=announcer
        )
        self.is_early = self._tests_progress = bool(getattr(self._sentry.guard, "tests_progress", False))
        self.is_look_due = False
        # The step of `looks_last`; a resumed run may have more steps, and another end.
        self._looked_last_at = -1
        self._damaged_step: int | None = None
        self.is_quiet = True
        self.steady_left = self._most_steady = self._num_equal = 0
        self._lr = math.nan
        self._last_refused: NDArray[np.int64] | None = None

    @property
    def is_open(self) -> bool:
        """Whether an experiment or a trial of a rate is under way: then nothing is backed up or saved."""
        return self.experiment.is_open or self._first_steps.is_on_trial

    @property
    def is_calm(self) -> bool:
        """Whether nothing was refused since the last good loss, and nothing is tested."""
        return not self._refusals.bad_in_a_row and not self.is_open

    @property
    def updates(self) -> int:
        """Updates that the present weights have taken."""
        return self.lineage.updates

    @property
    def asks_probe(self) -> bool:
        """Whether the next batch drawn must be a probe."""
        return self.experiment.asks_probe

    @property
    def can_probe(self) -> bool:
        """Whether a witness can be drawn out of turn."""
        return self.experiment.can_probe

    def let_probe(self, can_probe: bool) -> None:
        """Say whether a witness can be drawn out of turn from now on."""
        self.experiment.let_probe(can_probe)

    def end_update(self) -> None:
        """Note that the optimizer has taken a step; needed only where it took fewer batches than usual."""
        self._backup.end_update()

    def is_probe(self, ticket: Ticket) -> bool:
        """Whether a batch is the probe."""
        return self.experiment.is_probe(ticket)

    def note_start(self) -> None:
        """Note the random generators as the training on a batch begins; of use for the first one after a backup."""
        if not self.is_open:
            self.witnesses.note_start()

    # Good losses.

    def is_suspicious(self, loss: float) -> bool:
        """Whether one of the first losses is worth a probe, though the guard has accepted it."""
        return self._first_steps.suspicion(loss) > 1

    def is_far(self, loss: float) -> bool:
        """Whether one of the first losses is so high that its batch is left out."""
        return self._first_steps.suspicion(loss) > FAR

    def accepted(self, loss: float, ticket: Ticket, scheduled_lr: float, is_calm: bool) -> None:
        """Note a loss that was learned from.

        Args:
            loss: The mean loss.
            ticket: Its batch.
            scheduled_lr: The scheduled rate.
            is_calm: Whether the guard suspects nothing, where it looks.
        """
        if self.quarantine.is_watching:
            self.quarantine.cleared(ticket.indices)
        lineage, backup = self.lineage, self._backup
        progress = lineage.progress
        recent = progress.recent
        # Losses always differ a little: equal ones may mean that the weights are destroyed.
        self._num_equal = self._num_equal + 1 if recent and recent[-1] == loss else 0
        recent.append(loss)
        progress.reported.append(loss)
        lineage.rates.append(ticket.lr)
        lineage.updates += 1
        witnesses = self.witnesses
        if witnesses.waiting or (backup.backups and len(backup.backups[-1].witness) < backup.witness_size):
            witnesses.note(ticket, loss)
        if not self.is_quiet:
            self._note_good(scheduled_lr)
        if not lineage.updates & LOOK_MASK:
            self._look(loss, is_calm=is_calm)
        if self.is_early:
            self._first_steps.note(ticket, loss)
            self.is_look_due = self.is_look_due or self._first_steps.is_measuring

    def _note_good(self, scheduled_lr: float) -> None:
        """Draw the conclusions from a good loss after others were refused."""
        lineage = self.lineage
        self._refusals.good()
        if self.limit.is_on and self.limit.accepted(scheduled_lr):
            self._announcer.tell(events.LrRestored)
        if not self.is_open and not lineage.is_on_trial:
            self._incidents.end()
        lineage.is_proving = lineage.is_on_trial
        if not lineage.is_proving and lineage.num_older:
            lineage.num_older = 0
            self._persistence.backup_timer.forget_lasting()
        is_settled = self._refusals.is_none and not self._incidents.current and not lineage.is_proving
        self.is_quiet = is_settled and not (self.limit.is_on or self.is_open or self.steady_left)

    def _look(self, loss: float, *, is_calm: bool) -> None:
        """Do what need not be done at every update; called at every fourth."""
        updates, progress = self.lineage.updates, self.lineage.progress
        if self._num_equal >= EQUAL_LOSSES - 1:
            self._num_equal = 0
            self._persistence.look_at_weights()
        self.witnesses.trust(updates, is_calm=is_calm)
        if self.limit.is_on and not updates % LOOK_EVERY:
            self.limit.note_level(progress.level, progress.level_noise)
        if updates <= START_UPDATES:
            first = self.witnesses.first
            progress.note_first(loss, math.nan if first is None else first.record)
            # Between two steps, as it may put a state back.
            self.is_look_due = not updates % LOOK_EVERY and self.is_early
        else:
            self.is_early = False

    def look_back(self, *, step: int, lr: float) -> None:
        """In the first steps: see whether progress was lost, or there is none, as the rate may be too high.

        Args:
            step: Steps reported.
            lr: The scheduled learning rate.

        Raises:
            RestoreError: the load callback raised for every state there is.
        """
        self.is_look_due = False
        if self.experiment.is_open:
            return
        self._begin_call(step, lr)
        first_steps, level = self._first_steps, self.lineage.progress.level
        if first_steps.is_on_trial:
            first_steps.end_trial(level)
        elif level == level and self.lineage.updates > EARLY_UPDATES:
            if first_steps.is_measuring:
                first_steps.measure_updates(level)
            else:
                self._settlement.confirm_rate(level)
                best = first_steps.look(level)
                if best is not None:
                    self._begin(Alarm.REGRESS, level, best=best)
        self.is_quiet = self.is_quiet and not self.is_open

    # Refused losses.

    def _begin_call(self, step: int, lr: float) -> None:
        self._live.begin_call(step)
        self._lr = lr

    def refused(
        self, ticket: Ticket, reading: Reading, verdict: Verdict, *, step: int, lr: float, most_steady: int,
        own_rate: float | None = None,
    ) -> Answer:  # fmt: skip
        """Answer a refused loss.

        Args:
            ticket: The batch.
            reading: Its loss.
            verdict: Why it was refused.
            step: Steps reported, this one included.
            lr: The scheduled learning rate.
            most_steady: Most batches of low-loss samples after a restore.
            own_rate: The rate that is the user's own, of which those here are shares; None where there is none.

        Raises:
            TrainingDiverged: too many batches in a row were refused.
            RestoreError: the load callback raised for every state there is.
        """
        self._begin_call(step, lr)
        self.is_quiet = False
        self._most_steady, self._last_refused, self._damaged_step = most_steady, ticket.indices, None
        loss, alarm, progress = reading.mean, ALARMS.get(verdict, Alarm.NOT_FINITE), self.lineage.progress
        incident = self._incidents.open(step, verdict.value)
        incident.num_refused += 1
        samples = not_finite_samples(reading, ticket)
        cause = self._cause_search.look(
            ticket, reading, verdict, step=step, recent=progress.recent, samples=samples,
            is_finite=alarm is not Alarm.NOT_FINITE,
        )  # fmt: skip
        incident.cause = incident.cause or cause
        if alarm is Alarm.NOT_FINITE:
            self.quarantine.refused(accused_of(reading, ticket), samples)
        elif math.isfinite(loss):
            progress.reported.append(loss)
        self._refusals.refused(is_finite=alarm is not Alarm.NOT_FINITE)
        if not self.experiment.is_open and self._is_worth_looking(alarm):
            rise = {Alarm.SPIKE: 2, Alarm.RAISED: 16}.get(alarm, 1)
            self._begin(alarm, math.inf if alarm is Alarm.NOT_FINITE else progress.rise(rise))
        unit = 1.0 if own_rate is None else own_rate
        self._announcer.tell(
            events.BatchRefused, epoch=ticket.epoch, loss=loss, lr=ticket.lr * unit, next_lr=self.lr(lr) * unit,
            tries=self._refusals.in_a_row, samples=samples, reason=verdict.value,
        )  # fmt: skip
        self._cause_search.tell()
        self._check_broken(step)
        self._check_end(loss, ticket.lr * unit, step)
        return Answer(False, self._live.put_step)

    def suspected(self, loss: float, *, step: int, lr: float) -> int | None:
        """Look into one of the first losses, whose batch comes again; returns what `Answer.put_to` says.

        Args:
            loss: The mean loss.
            step: Steps reported.
            lr: The scheduled learning rate.

        Raises:
            RestoreError: the load callback raised for every state there is.
        """
        self._begin_call(step, lr)
        progress = self.lineage.progress
        progress.reported.append(loss)
        self.experiment.is_extra = True
        self._begin(Alarm.EARLY, progress.rise(1))
        return self._live.put_step

    def _is_worth_looking(self, alarm: Alarm) -> bool:
        """Whether a refusal calls for more than leaving out its batch."""
        if not self._live.can_restore:
            self._announcer.warn_once(
                "nothing to restore",
                "a loss was refused, and there is nothing to restore the model from if its weights are damaged. Pass "
                "load_callback with state_callback, or call update_cpu_backup().",
            )
            if alarm is not Alarm.NOT_FINITE:
                # Otherwise a loss that stays higher for good would be refused for ever.
                self._sentry.forget()
            return False
        is_blind = self._persistence.callbacks.state is None
        is_clear = alarm is not Alarm.NOT_FINITE or is_blind or self._refusals.is_worth_looking
        return is_clear or self._live.is_damaged()

    def _check_broken(self, step: int) -> None:
        if self._refusals.is_broken:
            suspects = self.quarantine.suspects
            named = f" Suspected: {self.quarantine.named(suspects)}." if suspects else ""
            self._announcer.warn_once(
                "broken data",
                f"more than half of the last 100 batches before step {step} were refused: the data, the loss function "
                f"or the code is broken.{named}",
            )

    def _check_end(self, loss: float, lr: float, step: int) -> None:
        if self._refusals.in_a_row < self.recovery.max_refused:
            return
        if self.experiment.is_open:
            # What the user is left with must not be a state that was only put back to be tested.
            self.settle_open(step=step)
        incident, suspects = self._incidents.current or Incident(step, "refused"), self.quarantine.suspects
        text = diverged_text(
            incident, refused=self._refusals.in_a_row, step=step, loss=loss, lr=lr, failures=self._live.failures,
            samples=self.quarantine.named(suspects) if suspects else "", can_restore=self._live.can_restore,
        )  # fmt: skip
        store, losses = self._persistence.store, list(self.lineage.progress.reported)
        bundle = write_bundle(
            None if store is None else store.folder, step, text=text, incident=incident, losses=losses,
            recovery=self.recovery,
        )  # fmt: skip
        error = TrainingDiverged(f"{text}\nLosses and settings are in {bundle}." if bundle else text)
        error.bundle = bundle
        self._announcer.tell(events.GaveUp, text=str(error), bundle=bundle)
        raise error

    def damaged(self, array: str, *, step: int, lr: float) -> None:
        """Answer an array of the model that is not finite while the losses were good.

        Raises:
            RestoreError: the load callback raised for every state there is.
        """
        self._begin_call(step, lr)
        timer = self._persistence.backup_timer
        timer.note_done(step)
        if not self._live.can_restore:
            self._announcer.warn_once(
                f"damaged {array}",
                f"{array!r} in the model's state is not finite at step {step}; no backup is taken while that is so. If "
                "that is intended, leave it out of the state.",
            )
        elif not self.experiment.is_open:
            # After a clean check it is another fault, unless the state that was put back is still on proof.
            last, self._damaged_step = self._damaged_step, step
            is_again = last is not None and (timer.clean_step <= last or self.lineage.is_proving)
            if is_again:
                timer.note_lasting(array)
            self._incidents.open(step, f"{array!r} was not finite")
            self._begin(Alarm.NOT_FINITE, math.inf, is_again=is_again)

    # The end of the run.

    def may_look_last(self, step: int) -> bool:
        """Whether `looks_last` was not asked at this step yet, or its experiment is under way."""
        return self._looked_last_at != step or self.experiment.is_open

    def looks_last(self, *, step: int, lr: float, may_probe: bool) -> bool:
        """Start an experiment before the run ends, if its last losses were unusual or the weights are not finite.

        Args:
            step: Steps reported.
            lr: The scheduled learning rate.
            may_probe: Whether a batch can still be drawn.

        Returns:
            Whether one is open.

        Raises:
            RestoreError: the load callback raised for every state there is.
        """
        if self._looked_last_at == step or self.experiment.is_open:
            return self.experiment.is_open
        self._looked_last_at = step
        timer = self._persistence.backup_timer
        damage = timer.damage_now(self._persistence.callbacks.state) if self._live.can_restore else ""
        if damage:
            # No later loss would show what the last update has done.
            self.damaged(damage, step=step, lr=lr)
            return self.experiment.is_open
        recent = list(self.lineage.progress.recent)
        usual, can_test = (
            recent[:-2],
            may_probe and self._tests_progress and self._live.can_restore and self.experiment.can_probe,
        )
        if len(usual) < LOOK_EVERY or not can_test:
            return False
        limit = float(np.median(usual)) + 6 * spread_of(usual)
        if not (self._refusals.in_a_row or any(loss > limit for loss in recent[-2:])):
            return False
        self._begin_call(step, lr)
        self._begin(Alarm.END, max(recent[-2:]))
        return self.experiment.is_open

    def settle_open(self, *, step: int) -> None:
        """End what is under way, as the run is left: with the present weights, or with the newest trusted ones."""
        self._live.begin_call(step)
        if self._live.current is not None and not self._live.put_present():
            newest = next((each for each in reversed(self.witnesses.known()) if each.is_proven), None)
            if newest is not None and self._live.put(newest):
                self._go_on_from(newest, Alarm.END, is_sudden=True)
        self._first_steps.undo_trial()
        self.experiment.end()
        self._live.end()

    # Experiments.

    def _begin(self, alarm: Alarm, level: float, *, best: Backup | None = None, is_again: bool = False) -> None:
        self.is_quiet = False
        lineage, known = self.lineage, self.witnesses.known()
        self._incidents.open(self._live.step, alarm.value)
        self._live.begin()
        if not known:
            # Nothing is known yet: only a state that is damaged is put back.
            if self._persistence.callbacks.state is None or self._live.is_damaged():
                self._put_unknown(alarm)
            return
        if lineage.comes_back(is_sudden=alarm is not Alarm.RAISED) or (is_again and lineage.is_proving):
            known = self._older(known)
        progress = lineage.progress
        case = Case(
            alarm, level, known, progress.start, progress.first_spread, progress.first_level,
            share=self._refusals.share_of(lineage.updates), rises=lineage.rises_again, best=best,
            is_sudden=alarm is not Alarm.REGRESS and (alarm is not Alarm.RAISED or progress.is_sudden()),
            is_exact=self.experiment.can_probe, is_again=is_again,
        )  # fmt: skip
        finding = self.experiment.begin(case, investigate(case, self._live))
        if finding is not None:
            self._settle(case, finding)

    def _older(self, known: list[Backup]) -> list[Backup]:
        """The states before the one that was put back last, ever fewer the more often it took long to come back."""
        lineage = self.lineage
        older = [each for each in known if each.updates < lineage.since] or known[:1]
        is_soon = lineage.since_restore < SOON
        skipped = 0 if is_soon else 2 ** max(0, lineage.num_older - ONE_BY_ONE) - 1
        lineage.num_older = max(1, lineage.num_older + (not is_soon))
        return older[: max(1, len(older) - skipped)]

    def _put_unknown(self, alarm: Alarm) -> None:
        """Put the newest state back, though no witness of it is known; an older one if that did not help."""
        states = self.witnesses.all_states()
        if self.lineage.is_proving and not self.lineage.since_restore:
            states = [each for each in states if each.updates < self.lineage.since] or states[:1]
        for backup in reversed(states):
            if self._live.put(backup):
                self._go_on_from(backup, alarm, is_sudden=True)
                return
        self._live.raise_failures()

    def probed(self, ticket: Ticket, loss: float, *, step: int, lr: float) -> Answer:
        """Take the loss of a probe; where none can be drawn, of any batch that stands for one.

        Raises:
            TrainingDiverged: too many batches in a row were refused.
            RestoreError: the load callback raised for every state there is.
        """
        self._begin_call(step, lr)
        experiment = self.experiment
        asked, case = experiment.asked, experiment.case
        assert asked is not None
        assert case is not None
        self._incidents.note_probe()
        self._refusals.in_a_row += 1
        self._announcer.tell(
            events.Probed, of_step=asked.step, loss=loss, record=case.record(asked),
            is_present=self._live.current is None, reason=case.alarm.value,
        )  # fmt: skip
        self._check_end(loss, ticket.lr, step)
        is_single = experiment.can_probe and len(asked.witness) == 1
        finding = experiment.take(loss)
        if finding is not None:
            self._settle(case, finding)
        return Answer(finding is not None and finding.verdict == "healthy" and is_single, self._live.put_step)

    def _settle(self, case: Case, finding: Finding) -> None:
        """Act on what an experiment has found."""
        step, verdict = self._live.step, finding.verdict
        self._settlement.tell_noise(finding.tested)
        if case.alarm is Alarm.WILD:
            self._first_steps.note_change(finding.tested[0])
        elif finding.backup is not None:
            self._go_on_from(finding.backup, case.alarm, is_sudden=case.is_sudden)
        else:
            if verdict in ("healthy", "data"):
                self._refusals.weights_are_healthy()
                self._settlement.trust_weights(case.alarm)
                self._look_again()
                if case.alarm is Alarm.SPIKE and self._last_refused is not None:
                    self.quarantine.refused(self._last_refused, ())
            elif verdict == "level":
                self._settlement.accept_level(case, finding)
            else:
                self._live.raise_failures()
            # Else a record whose cause is a NaN in the weights would end with nothing but healthy weights.
            mended = self._live.mended
            self._incidents.note(step, f"{mended}; since then {finding.text}" if mended else finding.text)
            if verdict in ("healthy", "level") and not self.lineage.is_proving:
                self._incidents.end()
        self._live.end()

    def _go_on_from(self, backup: Backup, alarm: Alarm, *, is_sudden: bool) -> None:
        self._first_steps.drop_trial()
        is_probed = self.experiment.can_probe
        if self._settlement.go_on_from(backup, alarm, is_sudden=is_sudden, lr=self._lr, is_probed=is_probed):
            self.steady_left = min(self.recovery.steady_steps, self._most_steady)
        self._refusals.bad_in_a_row = 0
        self._look_again()

    def _look_again(self) -> None:
        """Look at the weights after the next step, where no loss shows whether they will be damaged again."""
        if self._damaged_step is not None:
            self._persistence.look_at_weights()

    # The rate, the moment and the saved state.

    def moment(self, state: Any = None) -> Moment:
        """The scheduler's own state now, to be kept with a backup; ``state`` is that of the run."""
        sentry, lineage = self._sentry, self.lineage
        recent = tuple(lineage.progress.recent)
        return Moment(sentry.memory, self._table.learner.trend_mark, sentry.baseline, lineage.updates, recent, state)

    def note_checkpoint(self, step: int) -> None:
        """Note that a checkpoint of this step is on disk."""
        self.witnesses.note_checkpoint(step, self.lineage.updates, self.lineage.progress.recent)

    @property
    def lr_factor(self) -> float:
        """Factor of the scheduled learning rate, in (0, 1]; a ceiling may lower the rate further."""
        return self.limit.factor

    @property
    def is_steadying(self) -> bool:
        """Whether the next batch should be a steady one, of low-loss samples."""
        return self.steady_left > 0

    def lr(self, scheduled_lr: float) -> float:
        """The learning rate to use in place of the scheduled one."""
        return self.limit.lr(scheduled_lr) if self.limit.is_on else scheduled_lr

    def begin_anew(self) -> None:
        """End the incident and return to the scheduled learning rate: losses mean something else from now on."""
        was_on = self.limit.is_on
        self.experiment.end()
        self._first_steps.drop_trial()
        self.lineage.progress.begin_anew()
        self.witnesses.forget_records()
        self.limit.forget()
        self._refusals.bad_in_a_row = 0
        self._incidents.note(self._live.step, "reset_baseline() was called: losses mean something else from here on")
        self._incidents.end()
        if was_on:
            self._announcer.tell(events.LrRestored)

    def summary(self) -> str:
        """Describe what recovery has done and is still doing; "" if nothing."""
        num_restored, ceiling = self._incidents.num_restored, self.limit.ceiling
        times = "once" if num_restored == 1 else f"{num_restored} times"
        parts = [f"model restored {times}"] if num_restored else []
        if ceiling < math.inf:
            parts.append(f"learning rate at most {self.limit.ceiling_text}, as a higher one damaged healthy weights")
        if len(self._table.quarantined):
            parts.append(f"in quarantine: {self.quarantine.named(self._table.quarantined.tolist())}")
        return "".join(f"; {part}" for part in parts)

    def state_dict(self) -> dict[str, Any]:
        """Return what outlives the process: counts, the limit of the rate, and the witnesses of checkpoints."""
        return {
            "restored": self._incidents.num_restored, "probes": self._incidents.num_probes,
            "limit": self.limit.state_dict(), "lineage": self.lineage.state_dict(),
            "refusals": self._refusals.state_dict(), "rate_trials": self._first_steps.num_trials,
            "incident": self._incidents.to_plain(), "steady_left": self.steady_left,
            "looked_last_at": self._looked_last_at, "num_equal": self._num_equal,
            "witnesses": self.witnesses.to_plain(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; experiments under way are dropped."""
        can_probe = self.can_probe
        self._begin_state()
        self.let_probe(can_probe)
        # The first good loss finds out whether it is.
        self.is_quiet = False
        if "limit" not in state:
            self._load_older(state)
            return
        self._incidents.num_restored, self._incidents.num_probes = state["restored"], state["probes"]
        self.limit.load_state_dict(state["limit"])
        self.lineage.load_state_dict(state["lineage"])
        self._refusals.load_state_dict(state["refusals"])
        self._incidents.load_plain(state["incident"])
        self._first_steps.num_trials, self._num_equal = state["rate_trials"], state["num_equal"]
        self.steady_left, self._looked_last_at = state["steady_left"], state["looked_last_at"]
        self.witnesses.load_plain(state["witnesses"])

    def _load_older(self, state: Mapping[str, Any]) -> None:
        """Load the state of 7ddda59: its incident is dropped, the rate it has left is kept."""
        if state["ceiling"] is not None:
            self.limit.lower(DIVISOR * state["ceiling"], by=DIVISOR)
        if state["factor"] < 1:
            self.limit.restored()
        if state["tries"]:
            self._announcer.warn_once(
                "older incident",
                "the saved run was in the middle of an incident, which this version does not continue: the model goes "
                "on from the saved state, and the learning rate stays lower for a while.",
            )


ALARMS = {
    Verdict.SPIKE: Alarm.SPIKE, Verdict.RAISED: Alarm.RAISED, Verdict.LASTING_DRIFT: Alarm.RAISED,
    Verdict.EARLY: Alarm.EARLY,
}  # fmt: skip
"""The alarm of each verdict; all others mean losses that are not finite."""


def accused_of(reading: Reading, ticket: Ticket) -> NDArray[np.int64]:
    """The samples of a batch that may be the cause of a loss that is not finite: all, or those of the rows with it."""
    counts = getattr(getattr(ticket.batch.chunk, "members", None), "counts", None)
    if counts is None or len(np.atleast_1d(reading.means)) != len(counts):
        return ticket.indices
    chosen: NDArray[np.int64] = ticket.indices[np.repeat(~(np.abs(reading.means) <= LARGEST_LOSS), counts)]
    return chosen


def not_finite_samples(reading: Reading, ticket: Ticket) -> tuple[int, ...]:
    """The samples whose own loss is not finite; none if only means were reported, or if it is all of the batch."""
    losses = np.atleast_1d(reading.means)
    if len(losses) != len(ticket.indices):
        return ()
    bad = ~(np.abs(losses) <= LARGEST_LOSS)
    return () if bad.all() else tuple(each for each in ticket.indices[bad].tolist() if each >= 0)

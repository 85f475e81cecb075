"""Recovery, in the order in which things happen: an alarm, the experiment that it asks for, and what follows from it.

refused once                 the next batch is a free test: if it is good, nothing else happens
refused again, or a spike    an experiment (experiment.py): probes of the present weights, then of backups
its finding                  is acted on (remedies.py)
the first steps              have their own watch (early.py)

All that is remembered is one state (state.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import events
from ..events.bus import Announcer
from ..events.incident import Incident
from ..guard.monitor import MOST_SUSPICION, Sentry
from ..guard.verdict import Verdict
from ..sources.ticket import Ticket
from ..table.losses import Reading
from ..table.table import SampleTable
from .backups import Backup, median_of, spread_of
from .early import FAR, FirstSteps, far_from
from .experiment import Alarm, Case, ExperimentRun, Finding, Steps, draw_with_earlier, investigate
from .model import LiveModel, Witnesses
from .policy import NOTHING_TO_RESTORE, Recovery, TrainingDiverged
from .progress import ALONE, BEFORE_RISE, EARLY_UPDATES, FIRST, LEVEL, LOOK_EVERY, LOST, SINCE_LOOK, START_UPDATES
from .quarantine import NAMED, Quarantine, accused_of
from .rate_limit import NormLimit, RateLimit
from .record import CauseSearch, FlightRecorder
from .remedies import ALONE_TEXT, BROKEN_DATA, NAN_SKIPPED, SAVED_ON_TRIAL, STANDS_STILL, Remedies, diverged_text
from .state import BROKEN, EARLIER, EXPLODES_AGAIN, LEAST_SAMPLES, LOOK_MASK, OF_WEIGHTS, IncidentLog, RecoveryState

if TYPE_CHECKING:
    from ..state.callbacks import Repeat
    from .persistence import Persistence

ALARMS = {
    Verdict.SPIKE: Alarm.SPIKE, Verdict.RAISED: Alarm.RAISED, Verdict.LASTING_DRIFT: Alarm.RAISED,
    Verdict.EARLY: Alarm.EARLY,
}  # fmt: skip
"""The alarm of each verdict; all others mean losses that are not finite."""

EQUAL_LOSSES = 8
"""Number of equal losses in a row after which the weights are checked."""


class RecoveryController:
    """Answers refused losses.

    What may put a state back raises RestoreError if the load callback raised for every state there is.

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
        state: All that is remembered; some of its parts are attributes, too.
        quarantine: Finds bad samples.
        limit: Holds the learning rate down.
        live: The model.
        norms: Clips the gradient once updates were too large.
        lineage: The updates that the present weights come from.
        early: Watches the first steps.
        experiment: The experiment under way.
        witnesses: The witnesses of backups and checkpoints.
        is_early: Whether `is_suspicious` must be asked.
        watches_fall: Whether losses that are back at those of the untrained model are looked into: not where several
            optimizers step, as those of a GAN do.
        watches_gradients: Whether `note_gradients` is of use: not where losses are no measure of progress.
        is_wary: Whether the batch that is trained on next is kept, as it may show that the data have changed.
        is_quiet: Whether a good loss changes nothing that listeners hear of.
        left_at: Where the last epoch was left.
    """

    def __init__(
        self, recovery: Recovery, persistence: Persistence, announcer: Announcer, table: SampleTable, sentry: Sentry,
        *, keeps_rates: bool = False, recorder: FlightRecorder | None = None,
    ) -> None:  # fmt: skip
        self.recovery, self._keeps_rates = recovery, keeps_rates
        self.quarantine = Quarantine(table.storage, announcer, most_share=recovery.most_quarantined)
        self._table, self._persistence, self._announcer, self._sentry = table, persistence, announcer, sentry
        self.recorder = recorder
        self._cause_search = CauseSearch(persistence, announcer, table.storage, sentry, recorder)
        # What steps the optimizer holds it.
        self.norms = NormLimit()
        self._begin()

    def _begin(self) -> None:
        """Begin with nothing remembered."""
        self.norms.forget()
        self.limit = limit = RateLimit(self.recovery.factor, self.recovery.gentle_steps, self._keeps_rates)
        variances = self._persistence.backup_timer.variances
        variances.forget()
        self.state = state = RecoveryState(limit, self.norms, IncidentLog(self._announcer), variances)
        self.lineage, self._refusals, self._incidents = state.lineage, state.refusals, state.incidents
        self.witnesses = Witnesses(self._persistence, self.recovery.trust_steps)
        self.live = LiveModel(self._persistence, self._announcer, keeps_rates=self._keeps_rates)
        self.experiment = ExperimentRun(self.live)
        self.early = FirstSteps(state, self.live, self.experiment, self.witnesses, self._sentry)
        self._remedies = Remedies(state, self.live, self.witnesses, self._sentry, self._table)
        self.is_early = self.watches_gradients = self._sentry.expects_progress
        self.is_quiet = self.watches_fall = True
        self._most_steady, self.left_at, self._lr, self._own_rate = 0, -1, math.nan, math.nan
        self._damaged_step: int | None = None
        self._last_refused: NDArray[np.int64] | None = None
        self._fell_back = self._is_lasting = self._has_evidence = self.is_wary = False

    @property
    def is_open(self) -> bool:
        """Whether an experiment or a trial of a rate is under way: then nothing is backed up."""
        return self.experiment.is_open or self.state.early.trial is not None

    @property
    def may_save(self) -> bool:
        """Whether a checkpoint that is due is written now: an experiment ends soon, and no file holds one."""
        is_alone = self._persistence.agreement.ranks is None
        return not self.experiment.is_open and (is_alone or self.state.early.trial is None)

    @property
    def lr_factor(self) -> float:
        """Factor of the scheduled learning rate, in (0, 1]; a ceiling may lower the rate further."""
        return self.limit.factor

    def expect_rivals(self) -> bool:
        """From here on expect no progress of the losses; see `Sentry.expect_rivals`."""
        is_new = self._sentry.expect_rivals()
        if is_new:
            self.is_early = self.watches_gradients = False
        return is_new

    # Good losses.

    def note_start(self) -> None:
        """Note the random generators as the training on a batch begins; of use for the first one after a backup."""
        backups, witnesses = self._persistence.backup.backups, self.witnesses
        if not self.is_open and (witnesses.waiting is not None or (backups and not backups[-1].witness)):
            witnesses.note_start()

    @property
    def wants_witness(self) -> bool:
        """Whether weights may be tested later with the batch that is trained on next."""
        backups, is_first = self._persistence.backup.backups, self.lineage.updates < FIRST
        is_measured = self.is_early and (self._sentry.tests_progress or is_first)
        awaits = self.witnesses.waiting is not None or bool(backups and not backups[-1].is_closed)
        # Another explosion is likely soon after one.
        exploded_at = self.lineage.explosions.exploded_at
        return is_measured or awaits or 0 < exploded_at > self.lineage.updates - EXPLODES_AGAIN

    @property
    def watches_explosions(self) -> bool:
        """Whether a batch is tested whose loss explodes: where the batches are the user's, and R8 takes the steps."""
        return self._sentry.watches_level and self.norms.is_used and self._persistence.agreement.ranks is None

    def is_of_a_kind(self, loss: float, samples: NDArray[np.int64]) -> bool:
        """Whether a high loss is learned from, as those of a kind of batches that was refused in vain."""
        progress, step = self.lineage.progress, self._announcer.where()[0]
        may_be = self._sentry.watches_level and not (self.experiment.is_open or self.quarantine.holds_any(samples))
        return may_be and self._incidents.is_of_a_kind(loss, [*progress.recent], progress.start, step)

    def is_of_odd_data(self, loss: float, ticket: Ticket) -> bool:
        """Whether a loss is far above the last ones, and its batch holds numbers far beyond those of others.

        The guard lets one such batch pass where losses have fallen far, and Adam's averages hold its gradient for long.
        """
        return self.lineage.progress.would_stand_out(loss) and self.witnesses.are_surpassed_by(ticket)

    def is_suspicious(self, loss: float, num_lost: int, num_samples: int) -> bool:
        """Whether one of the first losses is worth a probe, though the guard has accepted it; see `early_suspicion`."""
        if self._sentry.watches_level:
            # Losses that rise in a warm-up say little about a rate of the user's own, nor does one easy batch.
            recent = list(self.lineage.progress.recent)[-FIRST:]
            stands_out = bool(recent) and loss > far_from(len(recent), num_samples) * max(recent)
            return stands_out and self.is_far(loss, num_lost)
        return self.early.suspicion(loss, num_lost) > 1

    def is_far(self, loss: float, num_lost: int) -> bool:
        """Whether one of the first losses is so high that its batch is left out."""
        return self.early.suspicion(loss, num_lost) > FAR

    def accepted(
        self, loss: float, ticket: Ticket, scheduled_lr: float, suspicion: float, own_rate: float | None = None
    ) -> None:
        """Note a loss that was learned from.

        Args:
            loss: The mean loss.
            ticket: Its batch.
            scheduled_lr: The scheduled rate.
            suspicion: How close the guard is to refusing; NaN if it was not asked, as at most updates.
            own_rate: As for `refused`.
        """
        state, lineage, witnesses, backup = self.state, self.lineage, self.witnesses, self._persistence.backup
        progress, recent = lineage.progress, lineage.progress.recent
        # Losses always differ a little: equal ones may mean that the weights are destroyed.
        state.num_equal = state.num_equal + 1 if recent and recent[-1] == loss else 0
        recent.append(loss)
        progress.reported.append(loss)
        witnesses.last.append((ticket, loss))
        self._has_evidence = suspicion > 0 or (self._has_evidence and suspicion != suspicion)
        self.is_wary = self._sentry.watches_level and (self._has_evidence or loss > LOST * progress.untrained)
        lineage.rates.append(ticket.lr)
        lineage.updates += 1
        # A batch that was taken for a hard one may be bad.
        if self.quarantine.counts and not progress.stands_alone:
            self.quarantine.cleared(ticket.indices)
        if witnesses.waiting or (backup.backups and not backup.backups[-1].is_closed):
            witnesses.note(ticket, loss)
        if not self.is_quiet:
            self._note_good(scheduled_lr)
        if not lineage.updates & LOOK_MASK:
            self._look(loss, is_calm=not suspicion >= 2 * MOST_SUSPICION)
            if self._sentry.watches_level and own_rate is not None:
                if own_rate > progress.peak:
                    progress.peak, progress.peak_at = own_rate, lineage.updates
                self._own_rate = own_rate
                is_due = not lineage.updates % LOOK_EVERY and not (self.limit.is_on or self.is_open)
                if is_due and progress.stands_since_peak(lineage.updates):
                    since, peak = lineage.updates - progress.peak_at, progress.peak
                    self._announcer.note_once("standstill", STANDS_STILL.format(lineage.updates, since, peak))
                self._fell_back = is_due and self._may_fall and progress.has_fallen_back(lineage.updates)
                state.is_look_due = state.is_look_due or self._fell_back
        tells = self._sentry.watches_level and len(ticket.indices) >= LEAST_SAMPLES
        if tells and loss > progress.untrained and self.watches_explosions and progress.has_exploded:
            item = ticket.chunk.witness_of(ticket.indices) if ticket.chunk.pass_number >= 0 else None
            batch = Backup(self.live.step, lineage.updates, recent=(*recent,)[:-1], witness=[item], losses=[loss])
            state.is_look_due = lineage.explosions.note(batch, self._incidents.num_probes) or state.is_look_due
        elif tells and loss > ALONE * recent[-min(2, len(recent))] >= 0 and progress.is_back_alone:
            self._announcer.warn_once("alone", ALONE_TEXT.format(self._announcer.where()[0], loss))
        if self.is_early and (state.is_look_due or state.early.changes or state.early.is_compared):
            # Only a look asks for the batch.
            state.is_look_due = True
            self.early.note(ticket, loss)

    def _note_good(self, scheduled_lr: float) -> None:
        """Draw the conclusions from a good loss after others were refused."""
        lineage, refusals, limit = self.lineage, self._refusals, self.limit
        refusals.good(gains=lineage.gains())
        if limit.is_on and limit.accepted(scheduled_lr, self._announcer.where()[0] + 1):
            self._announcer.tell(events.LrRestored)
        if not self.is_open and not lineage.is_on_trial:
            incident = self._incidents.current
            if incident is not None and incident.held_from_start and limit.ceiling < math.inf and not limit.is_ignored:
                held, now, since = f"{incident.held_from_start:.3g}", limit.ceiling_text, lineage.since_restore
                held = now if now.startswith(held) else f"{held} to {now}"
                text = f"the rate is probably too high from the start: {held} held for {since:,} updates"
                self._incidents.note(self.live.step, text)
                self._announcer.warn_once("too high from the start", f"{text}.")
            self._incidents.end()
        lineage.is_proving = lineage.is_on_trial
        if not lineage.is_proving:
            self._end_search()
        is_settled = not (refusals.outcomes or self._incidents.current or lineage.is_proving)
        self.is_quiet = is_settled and not (limit.is_on or self.is_open or self.state.steady_left)

    def _look(self, loss: float, *, is_calm: bool) -> None:
        """Do what need not be done at every update; called at every fourth."""
        state, updates, progress = self.state, self.lineage.updates, self.lineage.progress
        is_level_due = not updates % LOOK_EVERY
        last = [*progress.recent][-BEFORE_RISE:]
        earlier, latest = last[:-SINCE_LOOK], last[1 - SINCE_LOOK :]
        if len(last) == BEFORE_RISE:
            high, most = max(latest), max(earlier)
            if high > most:
                self.early.tell_far_above(high)
            # The last two are high where a rectifier hides NaN; one alone where a batch ruins running statistics.
            high = high if state.variances.last else min(last[-2:])
            # One of those before may be a hard batch's.
            usual = sorted(last[:-FIRST])[-2]
            if min(latest) > usual or (high > most and high > 2 * most - median_of(earlier)):
                # A backup of weights under suspicion would take the place of another one. Losses at too high a rate
                # rise from step to step; one is known if it has damaged weights before.
                is_jump = latest[0] > min(latest) and not self.limit.has_failed
                num_high = max(progress.num_high, SINCE_LOOK) if is_jump else 0
                self._persistence.look_at_weights(backs_up=False, num_high=num_high)
        if state.num_equal >= EQUAL_LOSSES - 1:
            state.num_equal = 0
            self._persistence.look_at_weights()
        self.witnesses.trust(updates, is_calm=is_calm)
        if is_level_due and self.limit.is_on:
            self.limit.note_level(progress.level, progress.level_noise)
        if updates <= START_UPDATES:
            if len(progress.first) < EARLY_UPDATES:
                progress.first.append(loss)
            if progress.start != progress.start and self.early.find_start() and not self.is_early:
                self.early.doubt_first(())
            # Between two steps, as it may put a state back; several losses may come at once before that.
            state.is_look_due = state.is_look_due or ((is_level_due or self.early.is_first_due) and self.is_early)
        else:
            self.is_early = False
        if self._sentry.watches_level:
            # Where they are above the untrained model's, one of the last two losses is.
            is_above = max(last[-2:]) > progress.untrained and progress.is_above_untrained(updates)
            state.is_look_due = state.is_look_due or is_above or (is_level_due and self.limit.is_on)

    def note_gradients(self, sizes: Sequence[int], num_alive: int) -> None:
        """Note which parameters have a gradient, at one in `DEAD_EVERY` steps.

        Args:
            sizes: int[P], the numbers in each parameter; negative where its gradient is exactly 0, and 0 where it has
                none.
            num_alive: Numbers with a gradient other than 0.
        """
        self.state.early.dead.note(sizes, num_alive)
        if self.early.are_dying or self.state.early.trial is not None or self.early.is_measuring:
            self.state.is_look_due = True

    # Alarms.

    def begin_call(self, step: int, lr: float) -> None:
        """Begin a call that may put a state back.

        Args:
            step: Steps reported.
            lr: The scheduled learning rate.
        """
        self.is_quiet, self._lr = False, lr
        self.live.step, self.live.put_step = step, None

    def refused(
        self, ticket: Ticket, reading: Reading, verdict: Verdict, *, step: int, lr: float, most_steady: int,
        own_rate: float | None = None, is_undone: bool = False,
    ) -> int | None:  # fmt: skip
        """Answer a refused loss; returns the step of the state that was put back, None if none was.

        Args:
            ticket: The batch.
            reading: Its loss.
            verdict: Why it was refused.
            step: Steps reported, this one included.
            lr: The scheduled learning rate.
            most_steady: Most batches of low-loss samples after a restore.
            own_rate: The rate that is the user's own, of which those here are shares; None where there is none.
            is_undone: Whether the weights are known to be those of the loss, and not those after its step.

        Raises:
            TrainingDiverged: too many batches in a row were refused.
        """
        self.begin_call(step, lr)
        unit, alarm, loss = 1.0 if own_rate is None else own_rate, ALARMS.get(verdict, Alarm.NOT_FINITE), reading.mean
        is_finite, progress = alarm is not Alarm.NOT_FINITE, self.lineage.progress
        incident, (accused, samples) = self._incidents.open(step, verdict.value), accused_of(reading, ticket)
        found = self._cause_search.look(
            ticket, reading, verdict, step=step, recent=progress.recent, samples=samples, is_finite=is_finite,
            lr=ticket.lr * unit,
        )  # fmt: skip
        is_lasting, self._is_lasting = incident.is_lasting or self._is_lasting, False
        cause = incident.cause or found.get("text", "")
        first, count = (incident.loss if incident.num_refused else loss), incident.num_refused + 1
        incident = replace(incident, num_refused=count, is_lasting=is_lasting, cause=cause, loss=first)
        self._incidents.current = incident
        # Else a bad sample may have damaged the weights itself, by its step.
        if not (is_finite or (is_undone and self.live.damage())):
            self.quarantine.refused(accused, samples)
        self._most_steady, self._last_refused, self._damaged_step = most_steady, ticket.indices, None
        if is_finite and math.isfinite(loss):
            progress.reported.append(loss)
            self.witnesses.last.append((ticket, loss))
        # Where the weights have proved healthy time and again, a spike is left out as NaN is: the next loss tells.
        shows_damage = is_finite and not (alarm is Alarm.SPIKE and self.lineage.is_looping(step))
        self._refusals.refused(is_finite=shows_damage, step=step)
        if not self.experiment.is_open and self._is_worth_looking(is_finite=shows_damage):
            rise = {Alarm.SPIKE: 2, Alarm.RAISED: 16}.get(alarm, 1)
            self._experiment_on(alarm, progress.rise(rise) if is_finite else math.inf)
        self._announcer.tell(
            events.BatchRefused, epoch=ticket.epoch, loss=loss, lr=ticket.lr * unit, next_lr=self.limit.lr(lr) * unit,
            tries=self._refusals.in_a_row, samples=samples, reason=verdict.value,
        )  # fmt: skip
        if found:
            self._announcer.tell(events.CauseFound, **found)
        if sum(self._refusals.outcomes) > BROKEN:
            suspects = self.quarantine.suspects
            named = f" Suspected: {self.quarantine.named(suspects)}." if suspects else ""
            self._announcer.warn_once("broken data", BROKEN_DATA.format(step, named))
        if self.live.can_restore and not self.is_open and self.live.put_step is None:
            # Else what is restored is said, or what the experiment finds.
            self._announcer.warn_unseen("refused", incident.refusal_text("nothing is learned from it"))
        self._check_end(loss, ticket.lr * unit)
        return self.live.put_step

    def skipped(self, ticket: Ticket, reading: Reading, *, step: int, lr: float) -> int | None:
        """Look into a loss that is not finite where a loss scaler has left the step out; arguments as for `refused`.

        A lower scale heals gradients that overflow, but no NaN in the loss, which is computed before it is scaled.

        Returns:
            The step of a state that was put back, None if none was.
        """
        if reading.mean == reading.mean:
            return None
        self.begin_call(step, lr)
        damage = self.live.look()
        if damage:
            self.damaged(damage, step=step, lr=lr)
        else:
            self.quarantine.refused(*accused_of(reading, ticket))
            self._announcer.warn_once("skipped", NAN_SKIPPED.format(step))
        return self.live.put_step

    def _is_worth_looking(self, *, is_finite: bool) -> bool:
        """Whether a refused loss calls for more than leaving out its batch."""
        if not self.live.can_restore:
            self._announcer.warn_once("nothing to restore", NOTHING_TO_RESTORE)
            if is_finite:
                # Otherwise a loss that stays higher for good would be refused for ever.
                self._sentry.forget()
            return False
        # After so many in a row the weights may be the cause.
        are_many = self._refusals.bad_in_a_row >= self._refusals.bad_limit
        return is_finite or are_many or self._persistence.callbacks.state is None or bool(self.live.damage())

    def computed_again(self, what: str, *, step: int, is_finite: bool, device: str) -> None:
        """Note that a step which was not finite was computed once more, from the same weights and batch.

        Args:
            what: What was not finite, "loss" or "gradient".
            step: Steps reported before it.
            is_finite: Whether it was finite the second time: the fault was transient, and the batch counts.
            device: Where it was computed.
        """
        self._is_lasting = not is_finite
        if is_finite:
            self._incidents.note_transient(what, step, device)

    def suspected(self, loss: float, *, step: int, lr: float, leaves_out: bool) -> int | None:
        """Look into one of the first losses, whose batch comes again; returns the step of a state that was put back.

        Args:
            loss: The loss.
            step: Steps reported.
            lr: The scheduled learning rate.
            leaves_out: Whether a batch is left out for the turn that it took.
        """
        self.begin_call(step, lr)
        progress, incidents = self.lineage.progress, self._incidents
        progress.reported.append(loss)
        incidents.change(num_left_out=incidents.open(step, Alarm.EARLY.value).num_left_out + leaves_out)
        self.experiment.is_at_alarm = True
        self._experiment_on(Alarm.EARLY, progress.rise(1))
        return self.live.put_step

    def damaged(self, array: str, *, step: int, lr: float) -> None:
        """Look into an array of the model that is not finite, or a ruined statistic, while the losses were good.

        Args:
            array: Its name.
            step: Steps reported.
            lr: The scheduled learning rate.
        """
        self.begin_call(step, lr)
        timer = self._persistence.backup_timer
        if self.live.put_part(array):
            return
        timer.note_done(step)
        if timer.changed == array:
            timer.changed = ""
            is_worth_it = self._sentry.expects_progress and self.live.can_restore
            # Weights that learn other data, or against each other, grow fast, and old batches say nothing of them.
            is_worth_it &= not (timer.has_grown and (math.isnan(self.lineage.progress.start) or not self.watches_fall))
            if is_worth_it and not self.is_open:
                self._experiment_on(Alarm.CHANGED, self.lineage.progress.rise(LOOK_EVERY))
        elif not self.live.can_restore:
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
            self._incidents.open(step, f"{array!r} was not finite", kind="weights not finite")
            self._experiment_on(Alarm.NOT_FINITE, math.inf, is_again=is_again and not self._is_of_batch)

    @property
    def _may_fall(self) -> bool:
        """Whether losses that fall back would mean something, as the user's rate is known and has not risen."""
        return self.watches_fall and self._own_rate > 0 and not self._sentry.has_risen(self._own_rate)

    @property
    def _is_of_batch(self) -> bool:
        """Whether a batch without a high loss is what damages healthy weights, at rates of the user's own."""
        return self.limit.is_share and self.lineage.progress.is_calm(self.lineage.since_restore)

    def look_back(self, *, step: int, lr: float, progress: float) -> None:
        """In the first steps: see whether progress was lost, or there is none, as the rate may be too high.

        Args:
            step: Steps reported.
            lr: The scheduled learning rate.
            progress: Finished share of the run; 0 as long as its end is not known.
        """
        was_quiet, self.state.is_look_due = self.is_quiet, False
        self.begin_call(step, lr)
        early, lineage, level, best = self.early, self.lineage, self.lineage.progress.level, None
        early.note_end(step, progress)
        if self.experiment.is_open:
            pass
        elif early.is_first_due and early.doubt_first(self.witnesses.known()) is not None:
            self._experiment_on(Alarm.FIRST, math.nan)
        elif self.state.early.trial is not None:
            early.end_trial(level)
        elif level == level and (early.are_dying or self.state.early.is_reviving):
            early.revive(level)
        elif not self._sentry.tests_progress:
            # Batches and rates are the user's own: only the level of the losses says something of those.
            self._remedies.confirm_rate(level)
            # Also where a lower rate was asked for that the loop cannot have.
            is_idle = lineage.rises or (self.limit.is_ignored and self.limit.was_lowered)
            if lineage.progress.is_above_untrained(lineage.updates) and not is_idle and self.live.can_restore:
                self._experiment_on(Alarm.ABOVE, lineage.progress.rise(FIRST))
            elif self._fell_back and not is_idle and self.live.can_restore:
                self._experiment_on(Alarm.FELL, lineage.progress.rise(LOOK_EVERY))
            elif self.watches_explosions:
                # Beside a loop that steps by itself R8 could only lower the rate.
                if lineage.explosions.num_calmed and lineage.updates > EARLY_UPDATES:
                    best = early.find_lost()
                if best is None:
                    self._test_explosion()
        elif level == level and lineage.updates > EARLY_UPDATES:
            if early.is_measuring:
                early.measure_updates(level)
            else:
                self._remedies.confirm_rate(level)
                best = early.look(level)
        if best is not None:
            self._experiment_on(Alarm.REGRESS, level, best=best)
        self.is_quiet = was_quiet and not (self.is_open or self._incidents.current or self.limit.is_on)

    def looks_last(self, *, step: int, lr: float, may_probe: bool) -> bool:
        """Start an experiment before the run ends, if its last losses were unusual or the weights are not finite.

        Args:
            step: Steps reported.
            lr: The scheduled learning rate.
            may_probe: Whether a batch can still be drawn.

        Returns:
            Whether one is open.
        """
        # What follows the last step of a budget may damage the weights before the run is closed.
        if not self.experiment.is_open and self.state.looked_last_at == step and not self.live.own_damage():
            return False
        self.begin_call(step, lr)
        if self.experiment.is_open:
            return True
        callbacks, can_restore, progress = self._persistence.callbacks, self.live.can_restore, self.lineage.progress
        self.state.looked_last_at = step
        can_probe = can_restore and ((may_probe and self.experiment.can_probe) or callbacks.repeat is not None)
        since = self.lineage.since_restore if self.lineage.is_on_trial else 0
        damage = self.live.look(num_high=self.state.num_high_last) if can_restore else ""
        has_jumped = bool(damage) and damage == self._persistence.backup_timer.changed
        alarm, state = Alarm.UNPROVEN if since else Alarm.CHANGED if has_jumped else Alarm.MOVED, None
        if can_restore and self.state.ends_in_doubt(has_jumped=has_jumped):
            state = self.witnesses.best(progress.start) if since else self._before_move(is_sure=has_jumped)
        # Else batches of one's own may have changed: those of R8 come in no order.
        can_look = can_probe and bool(self._sentry.tests_progress or since or state)
        if state is not None and not can_probe:
            self._incidents.open(step, alarm.value)
            self.live.begin()
            self._put_untested(alarm, [state])
            self.live.end()
        elif damage:
            # No later loss would show what the last update has done.
            self.damaged(damage, step=step, lr=lr)
        elif can_look and len(progress.recent) >= LOOK_EVERY + 2 and (self._refusals.in_a_row or progress.is_high):
            self._experiment_on(Alarm.END, max([*progress.recent][-2:]))
        elif can_probe and self._may_fall and progress.has_fallen_back(self.lineage.updates, is_last=True):
            self._experiment_on(Alarm.FELL, progress.rise(LEVEL))
        return self.experiment.is_open

    def _before_move(self, *, is_sure: bool = False) -> Backup | None:
        """The state before the last losses were high, if they mean something and weights have moved far since."""
        return self.live.before_move(self.lineage.before_high(is_sure), is_sure) if self._sentry.reads_losses else None

    # Experiments.

    def _experiment_on(self, alarm: Alarm, level: float, *, best: Backup | None = None, is_again: bool = False) -> None:
        """Begin an experiment; for the arguments see `Case`."""
        known, lineage, callbacks = self.witnesses.known(), self.lineage, self._persistence.callbacks
        progress, repeat = lineage.progress, callbacks.repeat
        if alarm is not Alarm.NOT_FINITE and self._persistence.agreement.ranks is not None:
            # Losses of several processes come late: at too high a rate the next ones of the loop tell more.
            repeat = None
        held = [] if repeat is None else [each for each in known if all(map(repeat.holds, each.witness))]
        if best is not None and repeat is not None and best not in held:
            return
        known = held or known
        if alarm is Alarm.CHANGED and lineage.is_on_trial:
            # It may be put back without a test, and those since the last restore may be damaged as the last ones were.
            known = [each for each in known if each.updates <= lineage.since] or known
        self._incidents.open(self.live.step, alarm.value)
        self.live.begin()
        if not known:
            # Nothing is known yet: only a state that is damaged is put back.
            if callbacks.state is None or self.live.damage():
                # The newest one; an older one if that did not help.
                states = [each for each in self.witnesses.all_states() if each.can_be_put]
                if lineage.is_proving and not lineage.since_restore:
                    states = [each for each in states if each.updates < lineage.since] or states[:1]
                self._put_untested(alarm, reversed(states), is_tested=callbacks.state is not None)
            # There is no experiment, after which a state that was set aside could come back.
            self.live.end()
            return
        # No state is older than the untrained one: where the rate is the user's own, such losses are due to that rate.
        is_rate = self.limit.is_share and alarm is Alarm.SPIKE and not lineage.since
        comes_back = lineage.comes_back(is_sudden=alarm is not Alarm.RAISED) and not is_rate
        if comes_back or (is_again and lineage.is_proving):
            known = lineage.older(known)
        elif not is_again:
            self._end_search()
        is_sudden = {
            Alarm.RAISED: progress.is_sudden(), Alarm.REGRESS: progress.is_split, Alarm.ABOVE: progress.has_jumped,
            Alarm.FELL: False, Alarm.CHANGED: progress.is_high and not self._persistence.backup_timer.has_moved,
        }.get(alarm, True)  # fmt: skip
        first = progress.first[:FIRST]
        case = Case(
            alarm, level, known, progress.start, spread_of(first),
            # That of the lower ones, as at far too high rates others are wild.
            abs(float(np.quantile(first, 0.25))) if first else 0.0,
            share=self._refusals.share_of(lineage.updates), rises=lineage.rises_again, best=best,
            is_sudden=is_sudden,
            is_exact=self.experiment.can_probe or bool(held), is_again=is_again,
            may_drift=self._sentry.watches_level, latest=self.witnesses.latest(),
        )  # fmt: skip
        steps = investigate(case, self.live)
        steps = self.early.with_first(case, steps) if alarm in (Alarm.EARLY, Alarm.FIRST) else steps
        self._run(case, steps, repeat if held else None)

    def _run(self, case: Case, steps: Steps, repeat: Repeat | None) -> None:
        """Begin an experiment, and make it at once where probes need no turn of the loop."""
        if (finding := self.experiment.begin(case, steps)) is not None:
            self._conclude(case, finding)
        while repeat is not None and self.experiment.is_open:
            self._take(repeat.loss(self.experiment.draw()), self._lr, leaves_out=False)

    def _test_explosion(self) -> None:
        """Draw the batch of an explosion again with weights from before, if there is one."""
        explosions, repeat = self.lineage.explosions, self._persistence.callbacks.repeat
        batch, explosions.batch = explosions.batch, None
        if batch is None:
            return
        earlier = [each for each in self._persistence.backup.backups if batch.updates - each.updates >= EARLIER]
        repeat = repeat if repeat is not None and repeat.holds(batch.witness[0]) else None
        if earlier and earlier[-1].can_be_put and (repeat is not None or self.experiment.can_probe):
            self.live.begin()
            half = batch.record - OF_WEIGHTS * (batch.record - median_of(batch.recent))
            low = -math.inf if explosions.repeats else half
            self._run(Case(Alarm.EXPLODED), draw_with_earlier(batch, earlier[-1], self.live, low=low), repeat)

    def _end_search(self) -> None:
        """End the search for an older state, as the same trouble did not come back: from here on it may be the rate."""
        if self.lineage.num_older:
            self.lineage.num_older = 0
            self._persistence.backup_timer.num_lasting.clear()

    def _put_untested(self, alarm: Alarm, states: Iterable[Backup], *, is_tested: bool = False) -> None:
        """Put back the first of some states that can be, without a test."""
        for backup in states:
            if self.live.put(backup):
                self._go_on_from(backup, alarm, is_tested=is_tested)
                return
        self.live.raise_failures()

    def probed(self, ticket: Ticket, loss: float, *, step: int, lr: float, unit: float = 1.0) -> int | None:
        """Take the loss of a probe; where none can be drawn, of any batch that stands for one.

        Args:
            ticket: The batch.
            loss: Its mean loss.
            step: Steps reported, this one included.
            lr: The scheduled learning rate.
            unit: What rates are shares of: the user's own rate, NaN where that is not known.

        Returns:
            The step of a state that was put back, None if none was.

        Raises:
            TrainingDiverged: too many batches in a row were refused.
        """
        self.begin_call(step, lr)
        self._take(loss, ticket.lr * unit, leaves_out=ticket.chunk.is_probe and not ticket.chunk.is_extra)
        return self.live.put_step

    def _take(self, loss: float, lr: float, *, leaves_out: bool) -> None:
        asked, case = self.experiment.asked, self.experiment.case
        self._incidents.note_probe(leaves_out=leaves_out)
        self._refusals.probed()
        self._announcer.tell(
            events.Probed, of_step=asked.step, loss=loss, record=case.record(asked),
            is_present=self.live.current is None, reason=case.alarm.value,
        )  # fmt: skip
        self._check_end(loss, lr)
        if (finding := self.experiment.take(loss)) is not None:
            self._conclude(case, finding)

    # Conclusions.

    def _conclude(self, case: Case, finding: Finding) -> None:
        """Act on what an experiment has found."""
        if self.live.mended:
            self.state.watch_steps()
        self._remedies.tell_noise(finding.tested)
        if case.of_untrained:
            # Of several batches, and of what their losses mean by now.
            self.lineage.progress.untrained = fmean(case.of_untrained.values())
        if case.alarm is Alarm.WILD:
            self.early.note_change(finding.tested[0])
        elif case.alarm is Alarm.EXPLODED and finding.verdict == "healthy":
            self._remedies.calm(finding.tested[0], self._lr)
        elif finding.backup is not None:
            alarm: Alarm = Alarm.NOT_FINITE if self.live.mended else case.alarm
            if finding.is_of_first:
                alarm = self.early.note_bad_first(finding)
            self._go_on_from(finding.backup, alarm, is_sudden=case.is_sudden)
        else:
            if finding.verdict in ("healthy", "data"):
                if self._damaged_step is not None:
                    # No loss shows whether they are damaged again.
                    self._persistence.look_at_weights()
                if case.alarm is Alarm.SPIKE and self._last_refused is not None:
                    self.quarantine.refused(self._last_refused, ())
                if self._damaged_step is not None and case.alarm is Alarm.NOT_FINITE and self._is_of_batch:
                    self.witnesses.drop_newest()
            self._remedies.go_on(case, finding)
        self.live.end()

    def _go_on_from(self, backup: Backup, alarm: Alarm, *, is_sudden: bool = True, is_tested: bool = True) -> None:
        """Go on from a state that was put back."""
        if alarm is Alarm.NOT_FINITE:
            self.state.watch_steps()
        if self.early.break_off(is_damaged=True):
            # A trial has no other state than the initial one to go back to, which what was kept aside is better than.
            self._refusals.bad_in_a_row = 0
            return
        # Where the state cannot be seen, such a loss alone restores, see `experiment.investigate`.
        is_tested &= self._persistence.callbacks.state is not None or alarm not in (Alarm.NOT_FINITE, Alarm.SPIKE)
        if self._remedies.go_on_from(backup, alarm, is_sudden=is_sudden, lr=self._lr, is_tested=is_tested):
            self.state.steady_left = min(self.recovery.steady_steps, self._most_steady)
        self._refusals.bad_in_a_row = 0
        if self._damaged_step is not None:
            self._persistence.look_at_weights()

    def end_open_test(self, *, step: int) -> None:
        """End what is under way, as the run is left, with the better of what was kept aside and what is there."""
        live, case = self.live, self.experiment.case
        live.step, live.put_step = step, None
        live.hide()
        is_known = live.current is not None or case.better_than_present() is not None
        best = self._best_of_test() if is_known else self._before_move() if self.experiment.is_open else None
        if is_known or best is not None:
            if not isinstance(best, Backup):
                live.put_present()
            elif live.put(best):
                self._go_on_from(best, case.alarm, is_sudden=case.is_sudden, is_tested=is_known)
        elif self.experiment.is_open:
            self._remedies.leave_open()
        self.early.break_off(is_damaged=False)
        self.experiment.end()
        live.end()

    def _best_of_test(self) -> Any:
        """While backups are tested: the state set aside, or a backup that is better; None if there is neither."""
        case, present = self.experiment.case, self.live.present
        better, is_damaged = case.better_than_present(), case.is_present_damaged
        if better is None and present is not None:
            # Of the state set aside nothing is known but the loss of the alarm, or that it is damaged.
            return self.live.current if self.experiment.has_held or is_damaged else present
        if better is None or not better.updates:
            better = self.witnesses.best(self.lineage.progress.start)
        if better is None or not is_damaged or not self._is_of_batch:
            return better
        # A batch that makes NaN of sound weights, time and again, leaves none the time to be trusted.
        return self.witnesses.newest_as_good(better)

    @property
    def is_on_trial(self) -> bool:
        """Whether the model holds a state that is only tried or tested, and not the one that counts as true."""
        return self.live.of_trial is None and (self.live.current is not None or self.early.aside is not None)

    def show_true(self, *, step: int) -> None:
        """Put in the state that counts as true, for the user's code after an epoch, until `LiveModel.hide`.

        Args:
            step: Steps reported.
        """
        self.live.step = step
        state = self._best_of_test() if self.early.aside is None else self.early.aside
        if state is not None:
            self.live.show(state)

    def _check_end(self, loss: float, lr: float) -> None:
        """Give up if too many batches were refused, in a row or while the weights never got further.

        Args:
            loss: The loss refused last.
            lr: Its learning rate.

        Raises:
            TrainingDiverged: so many were.
        """
        live, step, refusals = self.live, self.live.step, self._refusals
        if refusals.in_vain < self.recovery.max_refused:
            return
        if self.experiment.is_open:
            # What the user is left with must not be a state that was only put back to be tested.
            self.end_open_test(step=step)
        is_row, can_restore = refusals.in_vain == refusals.in_a_row, live.can_restore
        failures = live.failures
        if can_restore and (not is_row or live.damage()):
            # Nor one that was damaged once more, of which the timer may have ceased to say so.
            whole = [each for each in self.witnesses.known() if math.isfinite(each.record)]
            live.begin()
            newest = next((each for each in reversed(whole) if live.put(each)), None)
            if newest is not None:
                self._announcer.tell(events.RolledBack, to_step=newest.step, source=self._persistence.name_of(newest))
            live.end()
        incident, suspects = self._incidents.current or Incident(step, "refused"), self.quarantine.suspects
        text = diverged_text(
            incident, refused=refusals.in_vain, step=step, loss=loss, lr=lr, failures=failures,
            samples=self.quarantine.named(suspects) if 0 < len(suspects) <= NAMED else "", can_restore=can_restore,
            is_row=is_row,
        )  # fmt: skip
        ranks = self._persistence.agreement.ranks
        if self.recorder is not None and self.recorder.is_writing and (ranks is None or not ranks.rank):
            text += f"\nThe losses before, and what was tried, are in {self.recorder.folder}."
        self._announcer.tell(events.GaveUp, text=text)
        raise TrainingDiverged(text)

    # What is saved.

    def note_checkpoint(self, step: int) -> None:
        """Note that a checkpoint of this step is on disk; one of a trial is no state to go back to."""
        if self.state.early.trial is None:
            self.witnesses.note_checkpoint(step, self.lineage.updates, self.lineage.progress.recent)

    def begin_anew(self) -> None:
        """End the incident and return to the scheduled learning rate: losses mean something else from now on."""
        was_on = self.limit.is_on
        self.experiment.end()
        self.early.drop_trial()
        self.live.end()
        self.lineage.progress.begin_anew()
        self.witnesses.forget_records()
        self.limit.forget()
        self.norms.forget()
        self._refusals.bad_in_a_row = 0
        self._incidents.note(self.live.step, "reset_baseline() was called: losses mean something else from here on")
        self._incidents.end()
        if was_on:
            self._announcer.tell(events.LrRestored)

    def summary(self, *, is_over: bool = False) -> str:
        """Describe what recovery has done and is still doing, then each kind of incident on a line; "" if nothing."""
        parts = [*filter(None, (self._incidents.restored_text, self.limit.text, self.norms.text)), *self.live.puts]
        parts += self._incidents.counts
        if len(self._table.quarantined):
            parts.append(f"in quarantine: {self.quarantine.named(self._table.quarantined.tolist())}")
        incidents = self._incidents.summary(is_over=is_over)
        return "".join([*(f"; {part}" for part in parts), *(f"\n  {line}" for line in incidents)])

    def state_dict(self, *, has_models: bool = False, has_batches: bool = True) -> dict[str, Any]:
        """Return what outlives the process: the state, and the witnesses of checkpoints.

        Args:
            has_models: Whether states of the model that are kept aside are part of it, as a run needs to go on.
            has_batches: Whether batches are, as indices.
        """
        self.lineage.progress.note_record(self.witnesses.first)
        return {
            **self.state.state_dict(),
            "early": self.early.state_dict(has_models=has_models, has_batches=has_batches),
            "is_on_trial": self.is_on_trial, "witnesses": self.witnesses.to_plain() if has_batches else [],
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; experiments under way are dropped."""
        can_probe = self.experiment.can_probe
        self._begin()
        self.experiment.can_probe = can_probe
        # The first good loss finds out whether it is.
        self.is_quiet = False
        self.state.load_state_dict(state)
        self.early.load_state_dict(state["early"])
        if state.get("is_on_trial") and self.state.early.trial is None:
            self._announcer.warn_once("saved on trial", SAVED_ON_TRIAL)
        self.witnesses.load_plain(state["witnesses"])

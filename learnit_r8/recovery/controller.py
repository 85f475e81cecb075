"""The recovery controller: refuses batches, lets experiments find out what was at fault, and acts on what they find.

refused once                 the next batch is a free test: if it is good, nothing else happens
refused again, or a spike    an inquiry (inquiry.py) makes an experiment (experiment.py): probes of the present weights,
                             then of backups
its finding                  is acted on (settlement.py)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import events
from ..events.bus import Announcer
from ..guard.monitor import MOST_SUSPICION, Sentry
from ..guard.verdict import Verdict
from ..sampling.ticket import Ticket
from ..table.losses import Reading
from ..table.table import SampleTable
from .incidents.cause_search import CauseSearch
from .incidents.experiment import Alarm
from .incidents.experiment_run import ExperimentRun
from .incidents.first_steps import FAR, FirstSteps
from .incidents.incident import IncidentLog
from .incidents.inquiry import Inquiry
from .incidents.live_model import LiveModel
from .incidents.parts import Parts
from .lineage import LOOK_MASK, Lineage
from .moment import Moment
from .policy import Recovery
from .progress import FIRST, LOOK_EVERY, START_UPDATES
from .quarantine import Quarantine, accused_of, not_finite_samples
from .rate_limit import NormLimit, RateLimit
from .refusals import Refusals
from .witnesses import Witnesses

if TYPE_CHECKING:
    from .incidents.recorder import FlightRecorder
    from .persistence import Persistence

STANDS_STILL = (
    "after {:,} updates, {:,} of them since your rate reached its highest ({:.3g}), the losses are less than 3 % below "
    "that of the untrained model: unless that is expected, the rate may be too high or too low, or units may be dead. "
    "Nothing was tested, and nothing changed."
)

SAVED_ON_TRIAL = (
    "the run goes on from weights that were only on trial when they were saved. Those that counted are missing, "
    "as one of several processes has saved it, or backups were being tested; an earlier checkpoint has them."
)

MANY_TRANSIENT = 3
"""Transient faults from which the device is named."""

EQUAL_LOSSES = 8
"""Number of equal losses in a row after which the weights are checked."""


class RecoveryController:
    """Answers refused losses.

    Args:
        recovery: The settings.
        persistence: Backups, checkpoints, and the user's callbacks.
        announcer: Tells listeners and the user.
        table: Names the samples, and keeps the quarantined ones.
        sentry: Judges losses.
        keeps_rates: Whether rates are the user's own, of which those here are shares.
        watches_level: Whether losses far above those of the untrained model are looked into, through the whole run.
        recorder: Writes a record of each incident; None for none.

    Attributes:
        recorder: As given.
        quarantine: Finds bad samples.
        limit: Holds the learning rate down.
        norms: Clips the gradient once a rate was lowered.
        experiment: The experiment under way.
        witnesses: The witnesses of backups and checkpoints.
        is_early: Whether `is_suspicious` must be asked.
        is_look_due: Whether to call `look_back` before the next batch is drawn.
        lineage: The updates that the present weights come from.
        is_quiet: Whether a good loss changes nothing that listeners hear of.
        inquiry: Looks into the weights.
    """

    def __init__(
        self, recovery: Recovery, persistence: Persistence, announcer: Announcer, table: SampleTable, sentry: Sentry,
        *, keeps_rates: bool = False, watches_level: bool = False, recorder: FlightRecorder | None = None,
    ) -> None:  # fmt: skip
        self.recovery, self._keeps_rates, self._watches_level = recovery, keeps_rates, watches_level
        self.quarantine = Quarantine(table, announcer, most_share=recovery.most_quarantined)
        self._table, self._persistence, self._announcer, self._sentry = table, persistence, announcer, sentry
        self._backup = persistence.backup
        self.recorder = recorder
        self._cause_search = CauseSearch(persistence, announcer, table, sentry, recorder)
        # What steps the optimizer holds it.
        self.norms = NormLimit()
        self._begin_state()

    def _begin_state(self) -> None:
        recovery, persistence, announcer = self.recovery, self._persistence, self._announcer
        self.limit = RateLimit(recovery.factor, recovery.gentle_steps, is_share=self._keeps_rates)
        self.witnesses = Witnesses(persistence, recovery.trust_steps)
        self._live = LiveModel(persistence, announcer)
        self.experiment = ExperimentRun(self._live, lambda: persistence.callbacks)
        self.lineage, self._refusals, self._incidents = Lineage(), Refusals(), IncidentLog(announcer)
        parts = Parts(
            recovery, persistence, announcer, self._table, self._sentry, self.quarantine, self._live, self.lineage,
            self.limit, self.norms, self.witnesses, self._incidents, self._refusals, self.experiment,
        )  # fmt: skip
        self._first_steps = FirstSteps(parts)
        self.inquiry = Inquiry(parts, self._first_steps)
        self.is_early = self._sentry.tests_progress or self._watches_level
        self.is_look_due, self.is_quiet, self._num_equal = False, True, 0
        self.norms.forget()
        self._is_lasting = False

    @property
    def is_open(self) -> bool:
        """Whether an experiment or a trial of a rate is under way: then nothing is backed up."""
        return self.experiment.is_open or self._first_steps.is_on_trial

    @property
    def may_save(self) -> bool:
        """Whether a checkpoint that is due is written now: an experiment ends soon, and no file holds one."""
        return not self.experiment.is_open and (not self._first_steps.is_on_trial or self._first_steps.can_be_saved)

    @property
    def is_calm(self) -> bool:
        """Whether nothing was refused since the last good loss, and nothing is tested."""
        return not self._refusals.bad_in_a_row and not self.is_open

    def end_update(self) -> None:
        """Note that the optimizer has taken a step; needed only where it took fewer batches than usual."""
        self._backup.end_update()

    def note_start(self) -> None:
        """Note the random generators as the training on a batch begins; of use for the first one after a backup."""
        if not self.is_open:
            self.witnesses.note_start()

    # Good losses.

    def is_suspicious(self, loss: float) -> bool:
        """Whether one of the first losses is worth a probe, though the guard has accepted it."""
        if self._watches_level:
            # Losses that rise in a warm-up say little about a rate of the user's own, nor does one easy batch.
            recent = self.lineage.progress.recent
            return len(recent) >= FIRST and loss > FAR * max(recent) and self.is_far(loss)
        return self._first_steps.suspicion(loss) > 1

    def is_far(self, loss: float) -> bool:
        """Whether one of the first losses is so high that its batch is left out."""
        return self._first_steps.suspicion(loss) > FAR

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
            self._look(loss, is_calm=not suspicion >= 2 * MOST_SUSPICION)
            if self._watches_level and own_rate is not None:
                progress.note_rate(own_rate, lineage.updates)
                if progress.stands_since_peak(lineage.updates) and not (self.limit.is_on or self.is_open):
                    since, peak = lineage.updates - progress.peak_at, progress.peak
                    self._announcer.note_once("standstill", STANDS_STILL.format(lineage.updates, since, peak))
        if self.is_early:
            self._first_steps.note(ticket, loss)
            self.is_look_due = self.is_look_due or self._first_steps.is_measuring

    def _note_good(self, scheduled_lr: float) -> None:
        """Draw the conclusions from a good loss after others were refused."""
        lineage = self.lineage
        self._refusals.good(gains=lineage.gains())
        if self.limit.is_on and self.limit.accepted(scheduled_lr, self._announcer.where()[0] + 1):
            self._announcer.tell(events.LrRestored)
            self.norms.let_end(self._announcer.where()[0] + 1)
        if not self.is_open and not lineage.is_on_trial:
            incident = self._incidents.current
            if incident is not None and incident.held_from_start and self.limit.ceiling < math.inf:
                held, now = f"{incident.held_from_start:.3g}", self.limit.ceiling_text
                held = now if now.startswith(held) else f"{held} to {now}"
                text = f"the rate is too high from the start: {held} held for {lineage.since_restore:,} updates"
                self._incidents.note(self._live.step, text)
                self._announcer.warn_once("too high from the start", f"{text}.")
            self._incidents.end()
        lineage.is_proving = lineage.is_on_trial
        if not lineage.is_proving:
            self.inquiry.end_search()
        is_settled = self._refusals.is_none and not self._incidents.current and not lineage.is_proving
        self.is_quiet = is_settled and not (self.limit.is_on or self.is_open or self.inquiry.steady_left)

    def _look(self, loss: float, *, is_calm: bool) -> None:
        """Do what need not be done at every update; called at every fourth."""
        updates, progress = self.lineage.updates, self.lineage.progress
        if self._num_equal >= EQUAL_LOSSES - 1:
            self._num_equal = 0
            self._persistence.look_at_weights()
        self.witnesses.trust(updates, is_calm=is_calm)
        if self._announcer.where()[0] >= self.norms.until:
            self.norms.forget()
        if self.limit.is_on and not updates % LOOK_EVERY:
            self.limit.note_level(progress.level, progress.level_noise)
        if updates <= START_UPDATES:
            progress.note_first(loss, self._untrained_record)
            # Between two steps, as it may put a state back; several losses may come at once before that.
            self.is_look_due = self.is_look_due or (not updates % LOOK_EVERY and self.is_early)
        else:
            self.is_early = False
        if self._watches_level:
            is_held = self.limit.is_on and not updates % LOOK_EVERY
            self.is_look_due = self.is_look_due or is_held or progress.is_above_untrained(updates)

    # Refused losses.

    def inquire(self, step: int, lr: float) -> Inquiry:
        """Begin a call that may put a state back; see `Inquiry.begin_call`."""
        self.is_quiet = False
        self.inquiry.begin_call(step, lr)
        return self.inquiry

    def look_back(self, *, step: int, lr: float) -> None:
        """See `Inquiry.look_back`."""
        self.is_look_due = False
        self.inquiry.begin_call(step, lr)
        self.inquiry.look_back()
        self.is_quiet = self.is_quiet and not (self.is_open or self._incidents.current)

    def refused(
        self, ticket: Ticket, reading: Reading, verdict: Verdict, *, step: int, lr: float, most_steady: int,
        own_rate: float | None = None,
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

        Raises:
            TrainingDiverged: too many batches in a row were refused.
            RestoreError: the load callback raised for every state there is.
        """
        unit = 1.0 if own_rate is None else own_rate
        inquiry, alarm, loss = self.inquire(step, lr), ALARMS.get(verdict, Alarm.NOT_FINITE), reading.mean
        incident, samples = self._incidents.open(step, verdict.value), not_finite_samples(reading, ticket)
        cause = self._cause_search.look(
            ticket, reading, verdict, step=step, recent=self.lineage.progress.recent, samples=samples,
            is_finite=alarm is not Alarm.NOT_FINITE, lr=ticket.lr * unit,
        )  # fmt: skip
        is_lasting, self._is_lasting = incident.is_lasting or self._is_lasting, False
        incident = replace(
            incident, num_refused=incident.num_refused + 1, is_lasting=is_lasting, cause=incident.cause or cause
        )
        self._incidents.current = incident
        if alarm is Alarm.NOT_FINITE:
            self.quarantine.refused(accused_of(reading, ticket), samples)
        inquiry.refused(ticket, loss, alarm, most_steady)
        self._announcer.tell(
            events.BatchRefused, epoch=ticket.epoch, loss=loss, lr=ticket.lr * unit, next_lr=self.lr(lr) * unit,
            tries=self._refusals.in_a_row, samples=samples, reason=verdict.value,
        )  # fmt: skip
        self._cause_search.tell()
        if self._refusals.is_broken:
            suspects = self.quarantine.suspects
            named = f" Suspected: {self.quarantine.named(suspects)}." if suspects else ""
            self._announcer.warn_once(
                "broken data",
                f"more than half of the last 100 batches before step {step} were refused: the data, the loss function "
                "or the code is broken, or something that R8 was not given, such as a second network and its "
                f"optimizer.{named}",
            )
        if self._live.can_restore and not self.is_open and self._live.put_step is None:
            # Else what is restored is said, or what the experiment finds.
            self._announcer.warn_unseen("refused", incident.refusal_text("nothing is learned from it"))
        inquiry.check_end(loss, ticket.lr * unit)
        return self._live.put_step

    @property
    def watches_gradients(self) -> bool:
        """Whether `note_gradients` is of use: not where losses are no measure of progress."""
        return self._watches_level or self._sentry.tests_progress

    def note_gradients(self, sizes: Sequence[int], num_alive: int) -> None:
        """Note which parameters have a gradient, at one in `DEAD_EVERY` steps.

        Args:
            sizes: int[P], the numbers in each parameter; negative where its gradient is exactly 0, and 0 where it has
                none.
            num_alive: Numbers with a gradient other than 0.
        """
        first_steps = self._first_steps
        first_steps.dead.note(sizes, num_alive)
        if first_steps.are_dying or first_steps.is_on_trial or first_steps.is_measuring:
            self.is_look_due = True

    def computed_again(self, what: str, *, step: int, is_finite: bool, device: str) -> None:
        """Note that a step which was not finite was computed once more, from the same weights and batch.

        Args:
            what: What was not finite, "loss" or "gradient".
            step: Steps reported before it.
            is_finite: Whether it was finite the second time: the fault was transient, and the batch counts.
            device: Where it was computed.
        """
        self._is_lasting = not is_finite
        if not is_finite:
            return
        self._incidents.num_transient = count = self._incidents.num_transient + 1
        text = (
            f"the {what} of step {step:,} was not finite, and is finite when computed once more from the same weights, "
            f"batch, buffers and random numbers: a transient fault, {count} so far; the batch counts"
        )
        if count < MANY_TRANSIENT:
            self._announcer.note_once(f"transient {count}", f"{text}.")
        else:
            topic = "many transient" if count == MANY_TRANSIENT else f"transient {count}"
            text += f". So many point to {device} or its memory"
            self._announcer.say_once(topic, f"{text}.", is_warning=count == MANY_TRANSIENT)

    # The rate, the moment and the saved state.

    def moment(self, state: Any = None) -> Moment:
        """The scheduler's own state now, to be kept with a backup; ``state`` is that of the run."""
        sentry, lineage = self._sentry, self.lineage
        recent = tuple(lineage.progress.recent)
        return Moment(sentry.memory, self._table.learner.trend_mark, sentry.baseline, lineage.updates, recent, state)

    def note_checkpoint(self, step: int) -> None:
        """Note that a checkpoint of this step is on disk; one of a trial is no state to go back to."""
        if not self._first_steps.is_on_trial:
            self.witnesses.note_checkpoint(step, self.lineage.updates, self.lineage.progress.recent)

    @property
    def lr_factor(self) -> float:
        """Factor of the scheduled learning rate, in (0, 1]; a ceiling may lower the rate further."""
        return self.limit.factor

    @property
    def is_steadying(self) -> bool:
        """Whether the next batch should be a steady one, of low-loss samples."""
        return self.inquiry.steady_left > 0

    def lr(self, scheduled_lr: float) -> float:
        """The learning rate to use in place of the scheduled one."""
        return self.limit.lr(scheduled_lr) if self.limit.is_on else scheduled_lr

    def begin_anew(self) -> None:
        """End the incident and return to the scheduled learning rate: losses mean something else from now on."""
        was_on = self.limit.is_on
        self.experiment.end()
        self._first_steps.drop_trial()
        self._live.end()
        self.lineage.progress.begin_anew()
        self.witnesses.forget_records()
        self.limit.forget()
        self.norms.forget()
        self._refusals.bad_in_a_row = 0
        self._incidents.note(self._live.step, "reset_baseline() was called: losses mean something else from here on")
        self._incidents.end()
        if was_on:
            self._announcer.tell(events.LrRestored)

    def summary(self, *, is_over: bool = False) -> str:
        """Describe what recovery has done and is still doing, then each kind of incident on a line; "" if nothing."""
        num_restored, ceiling = self._incidents.num_restored, self.limit.ceiling
        times = "once" if num_restored == 1 else f"{num_restored} times"
        parts = [f"model restored {times}"] if num_restored else []
        if ceiling < math.inf:
            held = f"learning rate at most {self.limit.ceiling_text} since step {self.limit.since:,}"
            parts.append(f"{held}, as a higher one did worse, {self.limit.until_text()}")
        elif self.limit.past:
            parts.append(self.limit.past)
        if self.norms.text:
            parts.append(self.norms.text)
        if num_transient := self._incidents.num_transient:
            parts.append(f"{num_transient} transient faults, finite when computed once more")
        if len(self._table.quarantined):
            parts.append(f"in quarantine: {self.quarantine.named(self._table.quarantined.tolist())}")
        incidents = self._incidents.summary(is_over=is_over)
        return "".join([*(f"; {part}" for part in parts), *(f"\n  {line}" for line in incidents)])

    @property
    def _untrained_record(self) -> float:
        """The loss of the untrained model; NaN where it is unknown, as in a run that was resumed."""
        first = self.witnesses.first
        return math.nan if first is None or first.updates else first.record

    def state_dict(self, *, has_models: bool = False, has_batches: bool = True) -> dict[str, Any]:
        """Return what outlives the process: counts, the limit of the rate, and the witnesses of checkpoints.

        Args:
            has_models: Whether states of the model that are kept aside are part of it, as a run needs to go on.
            has_batches: Whether batches are, as indices.
        """
        self.lineage.progress.note_record(self._untrained_record)
        return {
            "restored": self._incidents.num_restored, "probes": self._incidents.num_probes,
            "transient": self._incidents.num_transient,
            "limit": self.limit.state_dict(), "norms": self.norms.state_dict(), "lineage": self.lineage.state_dict(),
            "refusals": self._refusals.state_dict(),
            "is_look_due": self.is_look_due, "is_on_trial": self.inquiry.is_on_trial,
            "first_steps": self._first_steps.to_plain(has_models=has_models, has_batches=has_batches),
            "incident": self._incidents.to_plain(),
            "kinds": [[kind, *found] for kind, found in self._incidents.kinds.items()],
            "steady_left": self.inquiry.steady_left, "looked_last_at": self.inquiry.looked_last_at,
            "num_equal": self._num_equal, "witnesses": self.witnesses.to_plain() if has_batches else [],
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; experiments under way are dropped."""
        can_probe = self.experiment.can_probe
        self._begin_state()
        self.experiment.let_probe(can_probe)
        # The first good loss finds out whether it is.
        self.is_quiet = False
        self._incidents.num_restored, self._incidents.num_probes = state["restored"], state["probes"]
        self._incidents.num_transient = state.get("transient", 0)
        self.limit.load_state_dict(state["limit"])
        if "norms" in state:
            self.norms.load_state_dict(state["norms"])
        self.lineage.load_state_dict(state["lineage"])
        self._refusals.load_state_dict(state["refusals"])
        self._incidents.load_plain(state["incident"])
        self._incidents.kinds = {kind: (count, text) for kind, count, text in state.get("kinds", ())}
        if "first_steps" in state:
            self._first_steps.load_plain(state["first_steps"])
            if state.get("is_on_trial") and not self._first_steps.is_on_trial:
                self._announcer.warn_once("saved on trial", SAVED_ON_TRIAL)
        else:
            self._first_steps.num_trials = state["rate_trials"]
        self._num_equal, self.is_look_due = state["num_equal"], state.get("is_look_due", False)
        self.inquiry.steady_left, self.inquiry.looked_last_at = state["steady_left"], state["looked_last_at"]
        self.witnesses.load_plain(state["witnesses"])


ALARMS = {
    Verdict.SPIKE: Alarm.SPIKE, Verdict.RAISED: Alarm.RAISED, Verdict.LASTING_DRIFT: Alarm.RAISED,
    Verdict.EARLY: Alarm.EARLY,
}  # fmt: skip
"""The alarm of each verdict; all others mean losses that are not finite."""

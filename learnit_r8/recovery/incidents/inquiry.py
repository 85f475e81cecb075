"""An inquiry: an alarm, the experiment that it asks for, and what follows from the finding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ... import events
from ...events.incident import Incident
from ...sampling.ticket import Ticket
from ..policy import TrainingDiverged
from ..progress import EARLY_UPDATES, FIRST, LOOK_EVERY
from ..ram_backup import Backup, spread_of
from .experiment import Alarm, Case, Finding, investigate
from .incident import diverged_text, write_bundle
from .settlement import Settlement

if TYPE_CHECKING:
    from .first_steps import FirstSteps
    from .parts import Parts

SOON = 16
"""If trouble comes back within this many updates, trying states one by one costs little."""

ONE_BY_ONE = 8
"""States tried one by one where trouble takes longer to come back; each further one is twice as far back."""


class Inquiry:
    """Looks into the weights when something is wrong.

    All methods but `settle_open` and `may_look_last` raise RestoreError if the load callback raised for every state
    there is; they are called after `begin_call`.

    Args:
        parts: What it works on.
        first_steps: Watches the first steps.

    Attributes:
        steady_left: Batches of low-loss samples still to draw.
        looked_last_at: The step of the last `looks_last`; a resumed run may have more steps, and another end.
        left_at: Where the last epoch was left.
    """

    def __init__(self, parts: Parts, first_steps: FirstSteps) -> None:
        self._parts, self._live, self._experiment = parts, parts.live, parts.experiment
        self._first_steps, self._settlement = first_steps, Settlement(parts)
        self.steady_left = self._most_steady = 0
        self.looked_last_at = self.left_at = -1
        self._damaged_step: int | None = None
        self._last_refused: NDArray[np.int64] | None = None
        self._lr = math.nan

    def begin_call(self, step: int, lr: float) -> None:
        """Begin a call that may put a state back.

        Args:
            step: Steps reported.
            lr: The scheduled learning rate.
        """
        self._live.begin_call(step)
        self._lr = lr

    # Alarms.

    def refused(self, ticket: Ticket, loss: float, alarm: Alarm, most_steady: int) -> None:
        """Look into a refused loss, if it calls for more than leaving out its batch.

        Args:
            ticket: The batch.
            loss: Its mean loss.
            alarm: What it may mean.
            most_steady: Most batches of low-loss samples after a restore.
        """
        self._most_steady, self._last_refused, self._damaged_step = most_steady, ticket.indices, None
        progress, is_finite = self._parts.lineage.progress, alarm is not Alarm.NOT_FINITE
        if is_finite and math.isfinite(loss):
            progress.reported.append(loss)
        self._parts.refusals.refused(is_finite=is_finite)
        if not self._experiment.is_open and self._is_worth_looking(alarm):
            rise = {Alarm.SPIKE: 2, Alarm.RAISED: 16}.get(alarm, 1)
            self.begin(alarm, progress.rise(rise) if is_finite else math.inf)

    def _is_worth_looking(self, alarm: Alarm) -> bool:
        parts, is_finite = self._parts, alarm is not Alarm.NOT_FINITE
        if not self._live.can_restore:
            parts.announcer.warn_once(
                "nothing to restore",
                "a loss was refused, and there is nothing to restore the model from if its weights are damaged. Pass "
                "load_callback with state_callback, or call update_cpu_backup().",
            )
            if is_finite:
                # Otherwise a loss that stays higher for good would be refused for ever.
                parts.sentry.forget()
            return False
        is_blind = parts.persistence.callbacks.state is None
        return is_finite or is_blind or parts.refusals.is_worth_looking or self._live.is_damaged()

    def suspected(self, loss: float, *, leaves_out: bool) -> int | None:
        """Look into one of the first losses, whose batch comes again; returns the step of a state that was put back.

        Args:
            loss: The loss.
            leaves_out: Whether a batch is left out for the turn that it took.
        """
        progress = self._parts.lineage.progress
        progress.reported.append(loss)
        incidents = self._parts.incidents
        incidents.change(num_left_out=incidents.open(self._live.step, Alarm.EARLY.value).num_left_out + leaves_out)
        self._experiment.is_at_alarm = True
        self.begin(Alarm.EARLY, progress.rise(1))
        return self._live.put_step

    def damaged(self, array: str) -> None:
        """Look into an array of the model that is not finite while the losses were good."""
        parts, step = self._parts, self._live.step
        timer = parts.persistence.backup_timer
        timer.note_done(step)
        if not self._live.can_restore:
            parts.announcer.warn_once(
                f"damaged {array}",
                f"{array!r} in the model's state is not finite at step {step}; no backup is taken while that is so. If "
                "that is intended, leave it out of the state.",
            )
        elif not self._experiment.is_open:
            # After a clean check it is another fault, unless the state that was put back is still on proof.
            last, self._damaged_step = self._damaged_step, step
            is_again = last is not None and (timer.clean_step <= last or parts.lineage.is_proving)
            if is_again:
                timer.note_lasting(array)
            parts.incidents.open(step, f"{array!r} was not finite", kind="weights not finite")
            self.begin(Alarm.NOT_FINITE, math.inf, is_again=is_again)

    def look_back(self) -> None:
        """In the first steps: see whether progress was lost, or there is none, as the rate may be too high."""
        if self._experiment.is_open:
            return
        first_steps, lineage = self._first_steps, self._parts.lineage
        level = lineage.progress.level
        if first_steps.is_on_trial:
            first_steps.end_trial(level)
        elif level == level and (first_steps.are_dying or first_steps.is_reviving):
            first_steps.revive(level)
        elif not self._parts.sentry.tests_progress:
            # Batches and rates are the user's own: only the level of the losses says something of those.
            self._settlement.confirm_rate(level)
            if lineage.progress.is_above_untrained(lineage.updates) and not lineage.rises and self._live.can_restore:
                self.begin(Alarm.ABOVE, lineage.progress.rise(FIRST))
        elif level == level and lineage.updates > EARLY_UPDATES:
            if first_steps.is_measuring:
                first_steps.measure_updates(level)
            else:
                self._settlement.confirm_rate(level)
                best = first_steps.look(level)
                if best is not None:
                    self.begin(Alarm.REGRESS, level, best=best)

    def may_look_last(self, step: int) -> bool:
        """Whether `looks_last` was not asked at this step yet, or its experiment is under way."""
        return self.looked_last_at != step or self._experiment.is_open

    def looks_last(self, *, may_probe: bool) -> bool:
        """Start an experiment before the run ends, if its last losses were unusual or the weights are not finite.

        Args:
            may_probe: Whether a batch can still be drawn.

        Returns:
            Whether one is open.
        """
        parts, step = self._parts, self._live.step
        if self.looked_last_at == step or self._experiment.is_open:
            return self._experiment.is_open
        self.looked_last_at = step
        timer = parts.persistence.backup_timer
        damage = timer.damage_now(parts.persistence.callbacks.state) if self._live.can_restore else ""
        if damage:
            # No later loss would show what the last update has done.
            parts.announcer.tell(events.DamageFound, array=damage)
            self.damaged(damage)
            return self._experiment.is_open
        recent = list(parts.lineage.progress.recent)
        usual, last = recent[:-2], recent[-2:]
        can_probe = (may_probe and self._experiment.can_probe) or parts.persistence.callbacks.repeat is not None
        can_test = can_probe and parts.sentry.tests_progress and self._live.can_restore
        if len(usual) < LOOK_EVERY or not can_test:
            return False
        if parts.refusals.in_a_row or max(last) > float(np.median(usual)) + 6 * spread_of(usual):
            self.begin(Alarm.END, max(last))
        return self._experiment.is_open

    # Experiments.

    def begin(self, alarm: Alarm, level: float, *, best: Backup | None = None, is_again: bool = False) -> None:
        """Begin an experiment; for the arguments see `Case`."""
        parts, known = self._parts, self._parts.witnesses.known()
        lineage, progress, repeat = parts.lineage, parts.lineage.progress, parts.persistence.callbacks.repeat
        held = [] if repeat is None else [each for each in known if all(map(repeat.holds, each.witness))]
        if best is not None and repeat is not None and best not in held:
            return
        known = held or known
        parts.incidents.open(self._live.step, alarm.value)
        self._live.begin()
        if not known:
            # Nothing is known yet: only a state that is damaged is put back.
            if parts.persistence.callbacks.state is None or self._live.is_damaged():
                self._put_unknown(alarm)
            # There is no experiment, after which a state that was set aside could come back.
            self._live.end()
            return
        if lineage.comes_back(is_sudden=alarm is not Alarm.RAISED) or (is_again and lineage.is_proving):
            known = self._older(known)
        elif not is_again:
            self.end_search()
        case = Case(
            alarm, level, known, progress.start, progress.first_spread, progress.first_level,
            share=parts.refusals.share_of(lineage.updates), rises=lineage.rises_again, best=best,
            is_sudden=alarm not in (Alarm.REGRESS, Alarm.ABOVE, Alarm.RAISED)
            or (alarm is Alarm.RAISED and progress.is_sudden())
            or (alarm is Alarm.ABOVE and progress.has_jumped),
            is_exact=self._experiment.can_probe or bool(held), is_again=is_again,
        )  # fmt: skip
        finding = self._experiment.begin(case, investigate(case, self._live))
        if finding is not None:
            self._settle(case, finding)
        while repeat is not None and held and self._experiment.is_open:
            self._take(self._experiment.repeat(repeat), self._lr, leaves_out=False)

    def _older(self, known: list[Backup]) -> list[Backup]:
        """The states before the one that was put back last, ever fewer the more often it took long to come back."""
        lineage, known = self._parts.lineage, [each for each in known if each.can_be_put]
        older = [each for each in known if each.updates < lineage.since] or known[:1]
        is_soon = lineage.since_restore < SOON
        skipped = 0 if is_soon else 2 ** max(0, lineage.num_older - ONE_BY_ONE) - 1
        lineage.num_older = max(1, lineage.num_older + (not is_soon))
        return older[: max(1, len(older) - skipped)]

    def end_search(self) -> None:
        """End the search for an older state, as the same trouble did not come back: from here on it may be the rate."""
        if self._parts.lineage.num_older:
            self._parts.lineage.num_older = 0
            self._parts.persistence.backup_timer.forget_lasting()

    def _put_unknown(self, alarm: Alarm) -> None:
        """Put the newest state back, though no witness of it is known; an older one if that did not help."""
        lineage = self._parts.lineage
        states = [each for each in self._parts.witnesses.all_states() if each.can_be_put]
        if lineage.is_proving and not lineage.since_restore:
            states = [each for each in states if each.updates < lineage.since] or states[:1]
        for backup in reversed(states):
            if self._live.put(backup):
                is_seen = self._parts.persistence.callbacks.state is not None
                self._go_on_from(backup, alarm, is_sudden=True, is_tested=is_seen)
                return
        self._live.raise_failures()

    def probed(self, ticket: Ticket, loss: float, *, unit: float = 1.0) -> int | None:
        """Take the loss of a probe; where none can be drawn, of any batch that stands for one.

        Args:
            ticket: The batch.
            loss: Its mean loss.
            unit: What rates are shares of: the user's own rate, NaN where that is not known.

        Returns:
            The step of a state that was put back, None if none was.

        Raises:
            TrainingDiverged: too many batches in a row were refused.
        """
        self._take(loss, ticket.lr * unit, leaves_out=ticket.chunk.is_probe and not ticket.chunk.is_extra)
        return self._live.put_step

    def _take(self, loss: float, lr: float, *, leaves_out: bool) -> None:
        parts, experiment = self._parts, self._experiment
        asked, case = experiment.asked, experiment.case
        assert asked is not None
        assert case is not None
        parts.incidents.note_probe(leaves_out=leaves_out)
        parts.refusals.probed()
        parts.announcer.tell(
            events.Probed, of_step=asked.step, loss=loss, record=case.record(asked),
            is_present=self._live.current is None, reason=case.alarm.value,
        )  # fmt: skip
        self.check_end(loss, lr)
        finding = experiment.take(loss)
        if finding is not None:
            self._settle(case, finding)

    # What follows from a finding.

    def _settle(self, case: Case, finding: Finding) -> None:
        self._settlement.tell_noise(finding.tested)
        if case.of_untrained:
            # Of several batches, and of what their losses mean by now.
            self._parts.lineage.progress.untrained = sum(case.of_untrained.values()) / len(case.of_untrained)
        if case.alarm is Alarm.WILD:
            self._first_steps.note_change(finding.tested[0])
        elif finding.backup is not None:
            self._go_on_from(finding.backup, case.alarm, is_sudden=case.is_sudden)
        else:
            if finding.verdict in ("healthy", "data"):
                self._look_again()
                if case.alarm is Alarm.SPIKE and self._last_refused is not None:
                    self._parts.quarantine.refused(self._last_refused, ())
            self._settlement.go_on(case, finding)
        self._live.end()

    def _go_on_from(self, backup: Backup, alarm: Alarm, *, is_sudden: bool, is_tested: bool = True) -> None:
        if self._first_steps.break_off(is_damaged=True):
            # A trial has no other state than the initial one to go back to, which what was kept aside is better than.
            self._parts.refusals.bad_in_a_row = 0
            return
        if self._settlement.go_on_from(backup, alarm, is_sudden=is_sudden, lr=self._lr, is_tested=is_tested):
            self.steady_left = min(self._parts.recovery.steady_steps, self._most_steady)
        self._parts.refusals.bad_in_a_row = 0
        self._look_again()

    def _look_again(self) -> None:
        """Look at the weights after the next step, where no loss shows whether they will be damaged again."""
        if self._damaged_step is not None:
            self._parts.persistence.look_at_weights()

    def settle_open(self, *, step: int) -> None:
        """End what is under way, as the run is left, with the better of what was kept aside and what is there."""
        live = self._live
        live.begin_call(step)
        live.hide()
        case = self._experiment.case
        if live.current is not None or (case is not None and case.better_than_present() is not None):
            best = self._best_of_test()
            if not isinstance(best, Backup):
                live.put_present()
            elif live.put(best):
                alarm, is_sudden = (Alarm.END, True) if case is None else (case.alarm, case.is_sudden)
                self._go_on_from(best, alarm, is_sudden=is_sudden)
        self._first_steps.break_off(is_damaged=False)
        self._experiment.end()
        live.end()

    def _best_of_test(self) -> Any:
        """While backups are tested: the state set aside, or a backup that is better; None if there is neither."""
        case, present = self._experiment.case, self._live.present
        better = None if case is None else case.better_than_present()
        if better is None and present is not None:
            return present
        if better is not None and better.updates:
            return better
        return self._parts.witnesses.best(self._parts.lineage.progress.start)

    @property
    def is_on_trial(self) -> bool:
        """Whether the model holds a state that is only tried or tested, and not the one that counts as true."""
        return not self._live.is_shown and (self._live.current is not None or self._first_steps.aside is not None)

    def show_true(self, *, step: int) -> None:
        """Put in the state that counts as true, for the user's code after an epoch; `hide_true` takes it out again.

        Args:
            step: Steps reported.
        """
        live = self._live
        live.begin_call(step)
        aside = self._first_steps.aside
        state = aside if aside is not None else self._best_of_test()
        if state is not None:
            live.show(state)

    def hide_true(self) -> None:
        """Go on with the state of the trial, to the bit, as a batch of the next epoch is drawn."""
        self._live.hide()

    def check_end(self, loss: float, lr: float) -> None:
        """Give up if too many batches were refused, in a row or while the weights never got further.

        Args:
            loss: The loss refused last.
            lr: Its learning rate.

        Raises:
            TrainingDiverged: so many were.
        """
        parts, step, num_refused = self._parts, self._live.step, self._parts.refusals.in_vain
        if num_refused < parts.recovery.max_refused:
            return
        if self._experiment.is_open:
            # What the user is left with must not be a state that was only put back to be tested.
            self.settle_open(step=step)
        is_row, failures = num_refused == parts.refusals.in_a_row, self._live.failures
        if self._live.can_restore and (not is_row or self._live.is_damaged()):
            # Nor one that was damaged once more, of which the timer may have ceased to say so.
            whole = [each for each in parts.witnesses.known() if math.isfinite(each.record)]
            self._live.begin()
            newest = next((each for each in reversed(whole) if self._live.put(each)), None)
            if newest is not None:
                parts.announcer.tell(events.RolledBack, to_step=newest.step, source=self._live.name_of(newest))
            self._live.end()
        incident, suspects = parts.incidents.current or Incident(step, "refused"), parts.quarantine.suspects
        text = diverged_text(
            incident, refused=num_refused, step=step, loss=loss, lr=lr, failures=failures,
            samples=parts.quarantine.named(suspects) if suspects else "", can_restore=self._live.can_restore,
            is_row=is_row,
        )  # fmt: skip
        store, losses = parts.persistence.store, list(parts.lineage.progress.reported)
        bundle = write_bundle(
            None if store is None else store.folder, step, text=text, incident=incident, losses=losses,
            recovery=parts.recovery,
        )  # fmt: skip
        error = TrainingDiverged(f"{text}\nLosses and settings are in {bundle}." if bundle else text)
        error.bundle = bundle
        parts.announcer.tell(events.GaveUp, text=str(error), bundle=bundle)
        raise error

"""The watch over the first steps: progress that is lost, or never comes as the learning rate is too high.

A *rate trial* trains on from the start at a tenth of the rate for some steps, and keeps what is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from .. import events
from ..guard.monitor import Sentry, plain
from ..sources.ticket import Ticket
from ..state import tree
from ..table.trend import NEAR
from .backups import Backup
from .experiment import Alarm, Case, ExperimentRun, Finding, Steps, draw_again, draw_with_first, end_healthy
from .model import LiveModel, Saved, Witnesses, saved_form
from .policy import DEAD_EVERY
from .progress import EARLY_UPDATES, FIRST, SMALL_BATCH, START_UPDATES, WORSE, Progress
from .state import BETTER, DEAD_LOOKS, EARLY_DIVISOR, RateTrial, RecoveryState

FAR = 16.0
"""Suspicion from which the batch of one of the first losses is left out; healthy ones reach 5."""

FIRST_FAR, USUAL_SAMPLES, MANY_SAMPLES = 1000.0, 16, 64
"""The same multiple of the only loss before, and the fewest samples of a batch of your own of which fewer than `FIRST`
losses tell anything. From weights that fit their data a loss of 16 samples is hardly ever so high (.11 % of 12,000 runs
where the losses are .001, .01 % and less where they are .01 or more), one of eight in up to 2.6 % of the runs. With
`MANY_SAMPLES` a sixteenth of it is rarer still: on new digits of a network that has fitted others 1.0 % of losses are
1,000 times as high with 16 samples, and .07 % 62 times with 64."""

RATE_TRIAL_UPDATES, RATE_TRIAL_STEPS, MOST_RATE_TRIALS = 256, 64, 3
"""Updates after the start in which a lower rate is tried, how many the trial takes, and how many trials there are."""

AGAIN_DIVISOR = 4.0
"""What a rate is divided by that was lowered before."""

NO_INITIAL = (
    "after {} updates the losses make no progress, and the learning rate may be too high. A lower one would be tried "
    "from the start, but the run was resumed and has no initial weights: begin it again, or with a lower rate."
)

UNTESTED_FIRST = (
    "{}: unless that is expected, the batch was bad, and its step may keep the updates small for long, as the "
    "optimizer's averages hold its gradient (Adam, Adagrad). Nothing was tested, and nothing changed."
)

UNTESTED_LAST = (
    "up to step {:,} {}: unless that is expected, the batch was bad, or the weights or the optimizer's averages are "
    "damaged, and restore_backup() goes back. Nothing was tested, and nothing changed."
)

GROWN, RISEN, FALLEN = (
    "one of the first batches, or with a rate that is too high: weights have grown a hundredfold since",
    "one of the first batches, or with a rate that is too high: losses are far higher since",
    "the first batch: its loss is far above others, and one since then is as high",
)  # fmt: skip
"""Where a bad batch among the first ones may be, and why, beside `progress.FAR_FIRST`."""

Doubt: TypeAlias = tuple[Backup, Backup, float, str]

UPDATES_LOOKED_AT, LARGE_UPDATE, USUAL_BATCH = 8, 0.09, 32
"""Updates that are looked at before that, and the share by which they must have changed the losses of their own batches
in all, with so many samples in each. Healthy ones changed them by at most .062 in 491 looks, also where the noise of
targets has heavy tails: there a batch whose loss changes much has a high loss, too; and by .072 with eight samples."""


FADED = 0.75
"""Most numbers with a gradient other than 0 in one of so many looks, as a share of those in the first ones, from which
parameters fade. At good rates it is .99 and more where the losses are still near the untrained model's; measured in
benchmarks/natural.py. Where next to nothing can be learned, as with 60 % of random labels, it is .55 to .75 too."""

FUTILE_STEPS, TRIAL_SHARE = 48, 1 / 8
"""Steps after which a trial for fading parameters has to show progress, and their largest share of what is left of the
run: so few are lost where the data are hard. By then the last losses of trials that helped were 4.5 % below the first
ones and more, of others at most 2.2 %."""

CLEARLY_BETTER = 0.75
"""Share of the level of dead weights below which the losses before a state must be for it to be gone on from."""

DEAD = (
    "step {:,}: since update {:,} nearly all of the {} parameters have had no gradient at all, as where rectifiers "
    "pass nothing on: training on changes nothing. An update was probably too large."
)
FADING = (
    "step {:,}: only {:.0%} as many weights have a gradient as in the first steps, as where ever more rectifiers pass "
    "nothing on, and the losses are still near that of the untrained model: the rate may be too high, or the data hard "
    "to fit."
)


def far_from(num_known: int, num_samples: int) -> float:
    """Multiple of the highest of so many losses from which one is left out as far above them: the fewer, the higher."""
    if num_known >= FIRST:
        return FAR
    if num_samples < USUAL_SAMPLES:
        return math.inf
    return max(FAR, FIRST_FAR / (16 if num_samples >= MANY_SAMPLES else 1) / num_known**2)


def are_large(changes: Sequence[Sequence[float]], size: int) -> bool:
    """Whether updates change the losses of their own batches by so much that the rate may be too high.

    Args:
        changes: For each, the loss of its batch, and by how much that is higher after the update.
        size: Samples in a batch: the fewer there are, the more their own update changes their loss.
    """
    before, by = np.abs(np.sum(changes, axis=0))
    return bool(by > LARGE_UPDATE * max(1.0, math.sqrt(USUAL_BATCH / size)) * before)


class FirstSteps:
    """Watches the losses of the first steps.

    Args:
        state: What recovery remembers.
        live: The model.
        experiment: The experiment under way.
        witnesses: The witnesses of backups and checkpoints.
        sentry: Judges losses; goes back with the model.

    Attributes:
        is_first_due: Whether the first batches are to be looked at.
        is_long: Whether a trial that does not help costs little of what is left of the run.
    """

    def __init__(
        self, state: RecoveryState, live: LiveModel, experiment: ExperimentRun, witnesses: Witnesses, sentry: Sentry
    ) -> None:
        self._state, self._live, self._experiment, self._witnesses, self._sentry = (
            state, live, experiment, witnesses, sentry,
        )  # fmt: skip
        self._early, self._lineage, self._limit = state.early, state.lineage, state.limit
        self._backup, self._announcer, self.is_first_due = live.persistence.backup, live.announcer, False
        self.is_long = True

    @property
    def is_measuring(self) -> bool:
        """Whether the present weights are looked at, before a lower rate may be tried."""
        return bool(self._early.changes) or self._early.is_compared

    @property
    def aside(self) -> Any:
        """The state from before a trial if it counts as true, being better than the initial one; else None."""
        return self._early.trial.present if self._early.trial is not None and self._early.trial.is_better else None

    def state_dict(self, *, has_models: bool, has_batches: bool) -> dict[str, Any]:
        """What a run goes on with in its first steps, for a saved state.

        Args:
            has_models: Whether the states of the model are part of it: the initial one while a lower rate is tried from
                there, or measured whether it is to be, and what a trial has kept aside.
            has_batches: Whether batches are, as indices.
        """
        early, first, last, trial = self._early, self._witnesses.first, self._early.last, self._early.trial
        if self._experiment.case.alarm is Alarm.WILD and not early.is_compared:
            # The batch in hand is drawn again by the resumed run.
            last = self._experiment.asked
        is_compared = early.is_compared and not self._experiment.is_open
        is_watched = has_batches and self._sentry.tests_progress and self._lineage.updates <= START_UPDATES
        saved = {
            **early.state_dict(), "last": last.state_dict() if last is not None and is_watched else None,
            "compared": first.replayed if is_compared and first is not None else None,
            "first": None, "trial": None,
        }  # fmt: skip
        # On several ranks each has a part of what a trial has kept aside.
        if not has_models or self._live.persistence.agreement.ranks is not None:
            return saved
        if first is not None and first.witness and is_watched:
            # A file is twice as large with it.
            is_needed = self.is_measuring or trial is not None
            beside = {"state": first.state if is_needed else None, "generators": first.generators}
            is_any = any(each is not None for each in beside.values())
            saved["first"] = {**first.state_dict(), "is_closed": first.is_closed}
            saved["first"]["beside"] = saved_form(beside) if is_any else None
        if trial is not None:
            own = self._live.of_trial
            saved["trial"] = {
                **trial.state_dict(), "present": saved_form(trial.present), "memory": plain(trial.memory),
                "own": None if own is None else saved_form(own),
            }  # fmt: skip
        return saved

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned but for the plain numbers; the backups are gone with their process, but for
        the initial state.
        """
        early, first, trial = self._early, saved["first"], saved["trial"]
        if saved["last"] is not None:
            early.last = Backup.from_plain(saved["last"])
        if first is not None:
            kept = {} if first["beside"] is None else tree.from_bytes(first["beside"])
            compared = saved["compared"]
            early.is_compared = compared is not None
            self._backup.earlier = replace(
                Backup.from_plain(first), state=kept.get("state"), generators=kept.get("generators"), is_on_disk=False,
                is_of_file=True, is_closed=first["is_closed"], replayed=math.nan if compared is None else compared,
            )  # fmt: skip
        if trial is not None:
            early.trial = RateTrial(Saved(tree.from_bytes(trial["present"])), self._sentry.formed(trial["memory"]), [])
            early.trial.load_state_dict(trial)
            if trial["own"] is not None:
                # As the next batch is drawn it is put in, where a file holds the state that was shown.
                self._live.of_trial = Saved(tree.from_bytes(trial["own"]))

    def tell_far_above(self, loss: float) -> None:
        """Say once that one of the last four losses is far above all others, where the guard tests no progress."""
        text = "" if self._sentry.tests_progress else self._lineage.progress.far_above(loss)
        if text:
            self._announcer.warn_once("far above", UNTESTED_LAST.format(self._live.step, text))

    def find_start(self) -> bool:
        """Find the level that the run begins with; returns whether the first batches are to be looked at."""
        progress = self._lineage.progress
        progress.find_start(self._witnesses.first)
        self.is_first_due = len(progress.recent) == self._lineage.updates >= FIRST
        return self.is_first_due

    def doubt_first(self, known: Sequence[Backup], *, is_alarm: bool = False) -> Doubt | None:
        """See whether one of the first batches may have been bad; where that cannot be tested, it is said.

        Args:
            known: The backups whose witnesses can be drawn.
            is_alarm: Whether one of the first losses has raised the alarm.

        Returns:
            Another batch, the backup from before the first one, a high loss, and where the bad one is, in words; None
            if there is no doubt.
        """
        progress, live, losses = self._lineage.progress, self._live, list(self._lineage.progress.recent)
        self.is_first_due, most = False, FIRST if is_alarm else 2 * FIRST
        if not 1 < len(losses) == self._lineage.updates <= most or self._state.incidents.num_restored:
            return None
        place, text = progress.far_first(far_from(1, self._early.size))
        where = f"batch {place + 1}: {text}" if text else ""
        before = next((each for each in reversed(known) if each.updates <= place and each.can_be_put), None)
        last, has_other = self._early.last, lambda each: each.updates != place and each.is_closed
        other = next(filter(has_other, reversed(known)), None if last is None or last.updates == place + 1 else last)
        if before is None or other is None or not live.can_restore or live.persistence.agreement.ranks is not None:
            if text:
                self._announcer.warn_once("first batch", UNTESTED_FIRST.format(text))
            return None
        # Where batches and rates are the user's own, a level above the untrained model's is looked into in any case.
        is_rough = not self._sentry.tests_progress or len(before.witness[0]) < SMALL_BATCH
        if not where and progress.has_risen(by_far=is_rough):
            where = RISEN
        elif not where and not before.updates and live.has_grown_at_once():
            where = GROWN
        if not (where or is_rough) and is_alarm and min(losses) * WORSE <= losses[0]:
            where = FALLEN
        return (other, before, max(other.record, *losses[: place + 1]), where) if where else None

    def with_first(self, case: Case, steps: Steps) -> Steps:
        """The test of whether one of the first batches was bad, if there is a doubt; what is to be done comes after."""
        steps = end_healthy() if case.alarm is Alarm.FIRST else steps
        doubt = self.doubt_first(case.known, is_alarm=case.alarm is Alarm.EARLY)
        return steps if doubt is None else draw_with_first(*doubt, model=self._live, then=steps)

    def note_bad_first(self, finding: Finding) -> Alarm:
        """Note that one of the first batches was bad; returns the alarm that counts."""
        self._state.incidents.change(cause=finding.text)
        if finding.backup is not None and not finding.backup.updates:
            self._lineage.progress.note_untrained(finding.tested[0].replayed)
        return Alarm.FIRST

    def suspicion(self, loss: float, num_lost: int) -> float:
        """How far one of the first losses is above what is usual; see `Progress.early_suspicion`."""
        updates, first, progress = self._lineage.updates, self._witnesses.first, self._lineage.progress
        if (
            updates > EARLY_UPDATES
            or first is None
            or not first.witness
            or not any(each.witness and each.can_be_put for each in self._backup.backups)
            or self._experiment.is_open
            or not self._live.can_restore
        ):
            return 0.0
        suspicion = progress.early_suspicion(loss, first.record, updates, num_lost)
        if 1 < suspicion <= FAR and 0 < num_lost < SMALL_BATCH and progress.recent:
            # Damaged weights make the next loss high, too; the noise of a small batch seldom does.
            before = progress.early_suspicion(progress.recent[-1], first.record, updates, num_lost)
            suspicion = min(suspicion, before)
        return suspicion

    def note(self, ticket: Ticket, loss: float) -> None:
        """Note the last batch of a pass that was trained on, as the next look may measure it; each is measured once."""
        early, chunk = self._early, ticket.chunk
        if chunk.pass_number >= 0:
            early.size, witness = len(ticket.indices), chunk.witness_of(ticket.indices)
            early.last = Backup(self._live.step, self._lineage.updates, witness=[witness], losses=[loss])

    def find_lost(self) -> Backup | None:
        """The backup whose progress was lost, if any; waits after a look that found healthy weights."""
        lineage = self._lineage
        return None if lineage.rises else lineage.progress.lost_progress(self._witnesses.known(), lineage.updates)

    def look(self, level: float) -> Backup | None:
        """See what the losses tell; returns the backup whose progress was lost, if any.

        Args:
            level: The level of the last losses.
        """
        lineage = self._lineage
        best = self.find_lost()
        # While a rate rises, a standstill says nothing of its peak.
        is_at_peak = self._limit.is_on or (bool(lineage.rates) and lineage.rates[-1] <= lineage.rates[0])
        is_start = lineage.updates <= RATE_TRIAL_UPDATES and self._witnesses.first is not None and is_at_peak
        is_fresh = self._early.num_trials < MOST_RATE_TRIALS and lineage.since_restore > RATE_TRIAL_STEPS
        may_try = is_start and is_fresh and self._state.incidents.current is None and self._experiment.can_probe
        is_due = lineage.updates >= self._early.measure_from and may_try
        if best is None and is_due and lineage.progress.stands_still(is_known=self._limit.was_lowered):
            if self._limit.was_lowered:
                # It is known already that the rate was too high; weights may be past learning since.
                self._compare_with_first()
            else:
                self.measure_updates(level)
        return best

    def measure_updates(self, level: float) -> None:
        """See how much an update changes the loss of its own batch, and try a lower rate where that is very much."""
        if self._early.is_compared:
            self._begin_trial(level)
        elif len(self._early.changes) < UPDATES_LOOKED_AT:
            last, self._early.last = self._early.last, None
            if last is not None:
                self._experiment.begin(Case(Alarm.WILD), draw_again(last))
        elif are_large(self._early.changes, self._early.size) and self._witnesses.first is not None:
            self._compare_with_first()
        else:
            self._early.changes, self._early.measure_from = [], 2 * self._lineage.updates

    def _compare_with_first(self) -> None:
        """Draw the witness of the initial state: a trial that the run leaves open may end with either."""
        first = self._witnesses.first
        assert first is not None
        if not first.can_be_put:
            self._early.changes, self._early.measure_from = [], START_UPDATES
            self._announcer.warn_once("no initial state", NO_INITIAL.format(self._lineage.updates))
            return
        self._early.is_compared, first.replayed = True, math.nan
        self._experiment.begin(Case(Alarm.WILD), draw_again(first))

    def note_change(self, batch: Backup) -> None:
        """Note a batch that was drawn again after its own update, or the witness of the initial state."""
        if self._early.is_compared:
            return
        if math.isfinite(batch.replayed):
            self._early.changes.append((batch.record, batch.replayed - batch.record))
        else:
            # If that is the weights, the next loss tells.
            self._early.changes, self._early.measure_from = [], 2 * self._lineage.updates

    @property
    def are_dying(self) -> bool:
        """Whether most parameters are dead, or ever more while next to nothing is learned."""
        early = self._early
        if early.dead.are_most:
            return True
        progress = self._lineage.progress
        is_fading = early.dead.left < FADED and early.num_trials < MOST_RATE_TRIALS and self.is_long
        return is_fading and (early.is_reviving or (progress.is_flat and progress.level > NEAR * progress.untrained))

    def note_end(self, step: int, progress: float) -> None:
        """Note how much of the run is done.

        Args:
            step: Steps so far.
            progress: Their share of the run; 0 if its end is not known.
        """
        self.is_long = FUTILE_STEPS * progress <= TRIAL_SHARE * step * (1 - progress)

    def revive(self, level: float) -> None:
        """Where parameters die, try a tenth of the rate from a state in which they did not."""
        early = self._early
        if early.is_reviving and early.is_compared and self.are_dying:
            self._begin_trial(level)
        elif early.is_reviving:
            # One of the last batches has had a gradient again.
            self.drop_trial()
        elif self._lineage.progress.is_flat:
            first, dead = self._witnesses.first, early.dead
            may_try = early.num_dead < MOST_RATE_TRIALS and self._experiment.can_probe
            may_try = may_try and first is not None and bool(first.witness) and self._live.can_restore
            if dead.are_most:
                self._announcer.warn_once("dead", DEAD.format(self._live.step, self._died_at, len(dead.found)))
            else:
                self._announcer.note_once("fading", FADING.format(self._live.step, dead.left))
            if may_try:
                self._compare_with_first()
                early.is_reviving = True

    @property
    def _died_at(self) -> int:
        """Updates after which these parameters had no gradient, at most: when the last of them died."""
        looks = min((each for _, each in self._early.dead.found if each >= DEAD_LOOKS), default=DEAD_LOOKS)
        return self._lineage.updates - looks * DEAD_EVERY * self._backup.witness_size

    def _alive(self) -> Backup:
        """The best state from before most parameters were dead; the initial one if none was better."""
        progress, backups = self._lineage.progress, self._backup.backups
        alive = [each for each in self._witnesses.known() if 0 < each.updates < self._died_at and each in backups]
        best = min(alive, key=lambda each: each.usual, default=None)
        # Just before they died, losses say little of a state that is nearly dead.
        least = CLEARLY_BETTER * min(progress.start, progress.level)
        return best if best is not None and best.usual < least else backups[0]

    def _begin_trial(self, level: float) -> None:
        """Try a tenth of the rate from the start."""
        early, lineage, live, limit, sentry = self._early, self._lineage, self._live, self._limit, self._sentry
        early.changes, early.is_compared = [], False
        live.begin()
        initial, rate = self._backup.backups[0], max(lineage.rates)
        is_dying, is_dead, early.is_reviving = early.is_reviving, early.dead.are_most, False
        first = self._alive() if is_dying else initial
        if not live.keep_present() or not live.put(first):
            live.put_present()
            return
        before = lineage.progress
        last = list(before.recent)[-FIRST:]
        # At rates that are too high one batch alone misses what the last update has done to others.
        is_lower = sum(last) / len(last) <= before.start - BETTER * abs(before.start)
        is_better, present = is_lower and initial.replayed <= initial.record, live.present
        # The initial state is what is trained on from here; nothing is left in the model for a test.
        live.end()
        early.trial = RateTrial(
            present, sentry.present.losses, self._backup.backups, is_better, level, before, lineage.updates,
            limit.state_dict(), is_dead, is_dying and not is_dead,
        )  # fmt: skip
        early.num_trials += 1
        self._backup.backups = [each for each in self._backup.backups if each.updates <= first.updates]
        # The same run from its start again.
        lineage.progress = Progress(start=before.start, untrained=before.untrained, first=list(before.first))
        # Losses that stand still at a rate that was lowered already are near to where they would fall.
        by = AGAIN_DIVISOR if limit.was_lowered else EARLY_DIVISOR * AGAIN_DIVISOR**early.num_dead
        if is_dying:
            early.num_dead, early.dead.found = early.num_dead + 1, []
            del early.dead.shares[DEAD_LOOKS:]
            self._state.norms.begin(live.step)
        sentry.forget()
        lineage.begin(first)
        self._witnesses.calm_run = 0
        self._announcer.tell(events.RolledBack, to_step=first.step, source="backup")
        reason = "no gradient" if is_dying else "no progress"
        self._state.lower_rate(rate, by=by, step=live.step, reason=reason)

    def end_trial(self, level: float) -> None:
        """Once it is long enough, go on with the lower rate if its losses are clearly better, else as before it."""
        lineage, trial = self._lineage, self._early.trial
        if trial is None:
            return
        if lineage.since_restore < RATE_TRIAL_STEPS or level != level:
            if trial.is_fading and lineage.since_restore >= FUTILE_STEPS and not lineage.progress.has_begun:
                self._give_up(trial)
            return
        if trial.is_surpassed_by(level):
            self.drop_trial()
            self._state.incidents.note_restore()
            self._limit.confirm()
            for each in trial.backups:
                if each not in self._backup.backups:
                    self._backup.recycle(each)
            text = f"the learning rate was too high: at {self._limit.ceiling_text} the loss is {level:.3g} after "
            text += f"{lineage.updates} steps from the start, not {trial.level:.3g}"
            if trial.is_dead:
                text += ", where most parameters had no gradient any more"
            text += f"; {self._state.norms.text}" if self._state.norms.text else ""
            self._announcer.warn_once("rate too high", f"{text}. See docs/recovery.md.")
            self._announcer.tell(events.Notice, text=text, is_warning=False)
            return
        if trial.is_dead and not self._early.dead.are_most:
            # What was kept aside learns nothing meanwhile.
            return
        if not self._sentry.tests_progress and lineage.since_restore < 2 * RATE_TRIAL_STEPS:
            # Of so few losses the level may be too high by chance, and what was kept aside learns next to nothing.
            return
        self._give_up(trial)

    def break_off(self, *, is_damaged: bool) -> bool:
        """End a trial before it is long enough: with the lower rate only if what was kept aside is no better.

        Args:
            is_damaged: Whether the weights of the trial are known to be damaged.

        Returns:
            Whether the weights from before the trial are back.
        """
        trial, level = self._early.trial, self._lineage.progress.level
        if trial is None or not trial.is_better or (trial.is_surpassed_by(level) and not is_damaged):
            self.drop_trial()
            return False
        self._undo(trial)
        return True

    def _give_up(self, trial: RateTrial) -> None:
        """Go on as before a trial that was of no use, once and for all."""
        self._early.num_trials = MOST_RATE_TRIALS
        self._undo(trial)

    def drop_trial(self) -> None:
        """Go on with the weights and the rate as they are."""
        early = self._early
        early.trial, early.changes, early.is_compared, early.is_reviving = None, [], False, False

    def _undo(self, trial: RateTrial) -> None:
        """Go on with the weights and the rate from before the trial."""
        self.drop_trial()
        self._live.begin()
        self._live.put_copy(trial.present)
        self._sentry.go_back(trial.memory)
        lineage = self._lineage
        lineage.progress, lineage.updates = trial.progress, trial.updates
        # In a resumed run they hold the initial state at most.
        self._backup.backups = trial.backups or self._backup.backups
        self._limit.load_state_dict(trial.limit)
        if not self._limit.is_on:
            self._state.norms.forget()
            self._announcer.tell(events.LrRestored)
        self._announcer.tell(events.RolledBack, to_step=self._live.step, source="backup")

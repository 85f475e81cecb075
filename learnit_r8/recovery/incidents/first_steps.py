"""The watch over the first steps: progress that is lost, or never comes as the learning rate is too high.

A *rate trial* trains on from the start at a tenth of the rate for some steps, and keeps what is better.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ... import events
from ...sampling.ticket import Ticket
from ..policy import DEAD_EVERY
from ..progress import EARLY_UPDATES, FIRST, START_UPDATES, Progress
from ..ram_backup import Backup
from .experiment import Alarm, Case, draw_again
from .live_model import Saved, saved_form
from .settlement import EARLY_DIVISOR

if TYPE_CHECKING:
    from .parts import Parts

FAR = 16.0
"""Suspicion from which the batch of one of the first losses is left out; healthy ones reach 5."""

RATE_TRIAL_UPDATES, RATE_TRIAL_STEPS, MOST_RATE_TRIALS = 256, 64, 3
"""Updates after the start in which a lower rate is tried, how many the trial takes, and how many trials there are."""

AGAIN_DIVISOR = 4.0
"""What a rate is divided by that was lowered before."""

BETTER = 0.1
"""Share of the level of the start by which the lower rate must be better after its few steps; and by which the last
losses of what was kept aside must be below it, to come back earlier. The batch that has a loss of both took 2 of 162
such states for better ones than the initial state that were worse, both rules together none
(`tests/runs/test_short_runs.py`)."""

NO_INITIAL = (
    "after {} updates the losses make no progress, and the learning rate may be too high. A lower one would be tried "
    "from the start, but the run was resumed and has no initial weights: begin it again, or with a lower rate."
)

UPDATES_LOOKED_AT, LARGE_UPDATE, USUAL_BATCH = 8, 0.09, 32
"""Updates that are looked at before that, and the share by which they must have changed the losses of their own batches
in all, with so many samples in each. Healthy ones changed them by at most .062 in 491 looks, also where the noise of
targets has heavy tails: there a batch whose loss changes much has a high loss, too; and by .072 with eight samples."""


DEAD_LOOKS, DEAD_SHARE = 8, 0.9
"""Looks in a row at which the gradient of a dead parameter is exactly 0, and the least share of the numbers in such
parameters. Experts that are not chosen leave others a gradient; so few are left where the output is a constant."""

FADED = 0.75
"""Most numbers with a gradient other than 0 in one of so many looks, as a share of those in the first ones, from which
parameters fade. At good rates it is .99 and more where the losses are still near the untrained model's; measured in
benchmarks/natural.py."""

CLEARLY_BETTER = 0.75
"""Share of the level of dead weights below which the losses before a state must be for it to be gone on from."""

DEAD = (
    "step {:,}: since update {:,} nearly all of the {} parameters have had no gradient at all, as where rectifiers "
    "pass nothing on: training on changes nothing. An update was probably too large."
)
FADING = (
    "step {:,}: only {:.0%} as many weights have a gradient as in the first steps, as where ever more rectifiers pass "
    "nothing on, and the losses are still near that of the untrained model: the rate is probably too high."
)


class DeadParameters:
    """Finds parameters whose gradient has become exactly 0 for good, as where no input activates the rectifiers after
    them: the loss is that of a constant, and training on changes nothing.
    """

    def __init__(self) -> None:
        self.found: list[tuple[int, int]] = []
        """The size of each parameter, and the looks since it had a gradient last; -1 where it has had none."""
        self.shares: list[float] = []
        """The share of numbers with a gradient in each of the first looks, and in each of the last."""

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
        known = [each for each in self.found if each[1] >= 0]
        dead = sum(size for size, looks in known if looks >= DEAD_LOOKS)
        total = sum(size for size, _ in known)
        return DEAD_SHARE * total <= dead < total

    @property
    def since(self) -> int:
        """Looks since the last of them died."""
        return min((looks for _, looks in self.found if looks >= DEAD_LOOKS), default=DEAD_LOOKS)

    @property
    def left(self) -> float:
        """Most numbers with a gradient in one of the last looks, as a share of those in the first; 1 until known."""
        first, last = self.shares[:DEAD_LOOKS], self.shares[DEAD_LOOKS:]
        return max(last) * DEAD_LOOKS / sum(first) if len(last) == DEAD_LOOKS and any(first) else 1.0


def are_large(changes: Sequence[tuple[float, float]], size: int) -> bool:
    """Whether updates change the losses of their own batches by so much that the rate may be too high.

    Args:
        changes: For each, the loss of its batch, and by how much that is higher after the update.
        size: Samples in a batch: the fewer there are, the more their own update changes their loss.
    """
    before, by = np.abs(np.sum(changes, axis=0))
    return bool(by > LARGE_UPDATE * max(1.0, math.sqrt(USUAL_BATCH / size)) * before)


class RateTrial(NamedTuple):
    """What is put back if a lower rate from the start is no better.

    Attributes:
        present: The copy of the model.
        is_better: Whether it is better than the initial state, by the batch that has a loss of both and by its last
            losses.
        level: The level of its losses.
        memory: The guard's state.
        progress: The losses.
        updates: Updates of its weights.
        backups: The backups.
        limit: The limit of the rate, as a saved state.
        is_dead: Whether most of its parameters get no gradient any more, so that it cannot become better.
    """

    present: Any
    is_better: bool
    level: float
    memory: Any
    progress: Progress
    updates: int
    backups: list[Backup]
    limit: dict[str, Any]
    is_dead: bool = False


class FirstSteps:
    """Watches the losses of the first steps.

    Args:
        parts: What it works on.

    Attributes:
        is_measuring: Whether the present weights are looked at, before a lower rate may be tried.
        is_on_trial: Whether a lower rate is tried.
        num_trials: Rate trials so far.
        dead: The parameters that get no gradient any more.
        is_reviving: Whether a state is about to be tried in which they had one.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts, self._experiment, self._live, self._lineage = parts, parts.experiment, parts.live, parts.lineage
        self._limit, self._witnesses, self._backup = parts.limit, parts.witnesses, parts.persistence.backup
        self._announcer = parts.announcer
        self.num_trials = self._measure_from = 0
        self._changes: list[tuple[float, float]] = []
        self._is_compared = False
        self._last: Backup | None = None
        self._size = 1
        self._trial: RateTrial | None = None
        self.dead, self._num_dead, self.is_reviving = DeadParameters(), 0, False

    @property
    def is_measuring(self) -> bool:
        """Whether the present weights are looked at, before a lower rate may be tried."""
        return bool(self._changes) or self._is_compared

    @property
    def is_on_trial(self) -> bool:
        """Whether a lower rate is tried."""
        return self._trial is not None

    @property
    def aside(self) -> Any:
        """The state from before a trial if it counts as true, being better than the initial one; else None."""
        return self._trial.present if self._trial is not None and self._trial.is_better else None

    @property
    def can_be_saved(self) -> bool:
        """Whether a saved state holds a trial that is under way: on several ranks each has a part of what is aside."""
        return self._parts.persistence.agreement.ranks is None

    def to_plain(self, *, has_models: bool, has_batches: bool) -> dict[str, Any]:
        """What a run goes on with in its first steps, for a saved state.

        Args:
            has_models: Whether the states of the model are part of it: the initial one while a lower rate is tried from
                there, or measured whether it is to be, and what a trial has kept aside.
            has_batches: Whether batches are, as indices.
        """
        first, last, trial = self._witnesses.first, self._last, self._trial
        case, asked = self._experiment.case, self._experiment.asked
        if case is not None and case.alarm is Alarm.WILD and not self._is_compared:
            # The batch in hand is drawn again by the resumed run.
            last = asked
        is_watched = has_batches and self._parts.sentry.tests_progress and self._lineage.updates <= START_UPDATES
        plain: dict[str, Any] = {
            "trials": self.num_trials, "measure_from": self._measure_from, "size": self._size,
            "changes": [list(each) for each in self._changes],
            "compared": first.replayed if self._is_compared and first is not None and case is None else None,
            "last": last.to_plain() if last is not None and is_watched else None, "first": None, "trial": None,
            "dead": [list(each) for each in self.dead.found], "num_dead": self._num_dead,
            "alive": list(self.dead.shares), "is_reviving": self.is_reviving,
        }  # fmt: skip
        if not (has_models and self.can_be_saved):
            return plain
        if first is not None and first.witness and is_watched:
            # A file is twice as large with it.
            is_needed = self.is_measuring or self.is_on_trial
            beside = {"state": first.state if is_needed else None, "generators": first.generators}
            is_any = any(each is not None for each in beside.values())
            plain["first"] = {**first.to_plain(), "is_closed": first.is_closed}
            plain["first"]["beside"] = saved_form(beside) if is_any else None
        if trial is not None:
            own = self._live.of_trial
            plain["trial"] = {
                "present": saved_form(trial.present), "own": None if own is None else saved_form(own),
                "is_better": trial.is_better, "level": trial.level, "memory": self._parts.sentry.plain(trial.memory),
                "progress": trial.progress.state_dict(), "updates": trial.updates, "limit": trial.limit,
                "is_dead": trial.is_dead,
            }  # fmt: skip
        return plain

    def load_plain(self, saved: Mapping[str, Any]) -> None:
        """Load what `to_plain` returned; the backups but for the initial state are gone with their process."""
        self.num_trials, self._measure_from = saved["trials"], saved["measure_from"]
        self._size, self._changes = saved.get("size", 1), [(loss, by) for loss, by in saved.get("changes", ())]
        if saved.get("last") is not None:
            self._last = Backup.from_plain(saved["last"])
        # Saved by earlier versions without these.
        self.dead.found = [(size, looks) for size, looks in saved.get("dead", ())]
        self._num_dead, self.is_reviving = saved.get("num_dead", 0), saved.get("is_reviving", False)
        self.dead.shares = list(saved.get("alive", ()))
        first, trial = saved.get("first"), saved["trial"]
        if first is not None:
            kept = {} if first["beside"] is None else Saved.of(first["beside"]).parts
            compared = saved["compared"]
            self._is_compared = compared is not None
            self._backup.earlier = dataclasses.replace(
                Backup.from_plain(first), state=kept.get("state"), generators=kept.get("generators"), is_on_disk=False,
                is_of_file=True, is_closed=first["is_closed"], replayed=math.nan if compared is None else compared,
            )  # fmt: skip
        if trial is None:
            return
        progress = Progress()
        progress.load_state_dict(trial["progress"])
        if trial["own"] is not None:
            self._live.go_on_with(Saved.of(trial["own"]))
        self._trial = RateTrial(
            Saved.of(trial["present"]), trial["is_better"], trial["level"],
            self._parts.sentry.formed(trial["memory"]), progress, trial["updates"], [], trial["limit"],
            trial.get("is_dead", False),
        )  # fmt: skip

    def suspicion(self, loss: float) -> float:
        """How far one of the first losses is above what is usual; see `Progress.early_suspicion`."""
        updates, first = self._lineage.updates, self._witnesses.first
        if (
            updates > EARLY_UPDATES
            or first is None
            or not first.witness
            or not any(each.witness and each.can_be_put for each in self._backup.backups)
            or self._experiment.is_open
            or not self._live.can_restore
        ):
            return 0.0
        return self._lineage.progress.early_suspicion(loss, first.record, updates)

    def note(self, ticket: Ticket, loss: float) -> None:
        """Note the last batch of a pass that was trained on; each is measured once."""
        if ticket.chunk.pass_number >= 0:
            self._size = len(ticket.indices)
            step, updates = self._live.step, self._lineage.updates
            self._last = Backup(step, updates, witness=[ticket.batch.witness], losses=[loss])

    def look(self, level: float) -> Backup | None:
        """See what the losses tell; returns the backup whose progress was lost, if any.

        Args:
            level: The level of the last losses.
        """
        lineage = self._lineage
        known = self._witnesses.restorable()
        best = None if lineage.rises else lineage.progress.lost_progress(known, lineage.updates)
        is_due = lineage.updates >= self._measure_from and self._may_try_rates
        if best is None and is_due and lineage.progress.stands_still(is_known=self._limit.was_lowered):
            if self._limit.was_lowered:
                # It is known already that the rate was too high; weights may be past learning since.
                self._compare_with_first(level)
            else:
                self.measure_updates(level)
        return best

    def measure_updates(self, level: float) -> None:
        """See how much an update changes the loss of its own batch, and try a lower rate where that is very much."""
        if self._is_compared:
            self._begin_trial(level)
        elif len(self._changes) < UPDATES_LOOKED_AT:
            last, self._last = self._last, None
            if last is not None:
                self._draw(last, level)
        elif are_large(self._changes, self._size) and self._witnesses.first is not None:
            self._compare_with_first(level)
        else:
            self._changes, self._measure_from = [], 2 * self._lineage.updates

    def _compare_with_first(self, level: float) -> None:
        """Draw the witness of the initial state: a trial that the run leaves open may end with either."""
        first = self._witnesses.first
        assert first is not None
        if not first.can_be_put:
            self._changes, self._measure_from = [], START_UPDATES
            self._announcer.warn_once("no initial state", NO_INITIAL.format(self._lineage.updates))
            return
        self._is_compared, first.replayed = True, math.nan
        self._draw(first, level)

    def _draw(self, batch: Backup, level: float) -> None:
        case = Case(Alarm.WILD, level, (), self._lineage.progress.start, 0.0, 0.0, share=0.0, is_sudden=True)
        self._experiment.begin(case, draw_again(batch))

    def note_change(self, batch: Backup) -> None:
        """Note a batch that was drawn again after its own update, or the witness of the initial state."""
        if self._is_compared:
            return
        if math.isfinite(batch.replayed):
            self._changes.append((batch.record, batch.replayed - batch.record))
        else:
            # If that is the weights, the next loss tells.
            self._changes, self._measure_from = [], 2 * self._lineage.updates

    @property
    def _may_try_rates(self) -> bool:
        lineage = self._lineage
        # While a rate rises, a standstill says nothing of its peak.
        is_at_peak = self._limit.is_on or (bool(lineage.rates) and lineage.rates[-1] <= lineage.rates[0])
        is_start = lineage.updates <= RATE_TRIAL_UPDATES and self._witnesses.first is not None and is_at_peak
        is_fresh = self.num_trials < MOST_RATE_TRIALS and lineage.since_restore > RATE_TRIAL_STEPS
        return is_start and is_fresh and self._parts.incidents.current is None and self._experiment.can_probe

    @property
    def are_dying(self) -> bool:
        """Whether most parameters are dead, or ever more while next to nothing is learned."""
        is_fading = self.dead.left < FADED and self.num_trials < MOST_RATE_TRIALS
        return self.dead.are_most or (is_fading and (self.is_reviving or self._lineage.progress.is_near_untrained))

    def revive(self, level: float) -> None:
        """Where parameters die, try a tenth of the rate from a state in which they did not."""
        if self.is_reviving and self._is_compared and self.are_dying:
            self._begin_trial(level)
        elif self.is_reviving:
            # One of the last batches has had a gradient again.
            self.drop_trial()
        elif self._lineage.progress.is_flat:
            first, may_try = self._witnesses.first, self._num_dead < MOST_RATE_TRIALS and self._experiment.can_probe
            may_try = may_try and first is not None and bool(first.witness) and self._live.can_restore
            if self.dead.are_most:
                self._announcer.warn_once("dead", DEAD.format(self._live.step, self._died_at, len(self.dead.found)))
            else:
                self._announcer.note_once("fading", FADING.format(self._live.step, self.dead.left))
            if may_try:
                self._compare_with_first(level)
                self.is_reviving = True

    @property
    def _died_at(self) -> int:
        """Updates after which these parameters had no gradient, at most."""
        return self._lineage.updates - self.dead.since * DEAD_EVERY * self._backup.witness_size

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
        lineage, self._changes, self._is_compared = self._lineage, [], False
        self._live.begin()
        initial, rate = self._backup.backups[0], max(lineage.rates)
        is_dying, is_dead, self.is_reviving = self.is_reviving, self.dead.are_most, False
        first = self._alive() if is_dying else initial
        if not self._live.keep_present() or not self._live.put(first):
            self._live.put_present()
            return
        start, last = abs(lineage.progress.start), list(lineage.progress.recent)[-FIRST:]
        # At rates that are too high one batch alone misses what the last update has done to others.
        is_lower = sum(last) / len(last) <= lineage.progress.start - BETTER * start
        is_better, present = is_lower and initial.replayed <= initial.record, self._live.take_present()
        # The initial state is what is trained on from here; nothing is left in the model for a test.
        self._live.end()
        self._trial = RateTrial(
            present, is_better, level, self._parts.sentry.memory, lineage.progress, lineage.updates,
            self._backup.backups, self._limit.state_dict(), is_dead,
        )  # fmt: skip
        self.num_trials += 1
        kept = [each for each in self._backup.backups if each.updates <= first.updates]
        self._backup.backups, lineage.progress = kept, Progress.again(lineage.progress)
        # Losses that stand still at a rate that was lowered already are near to where they would fall.
        by = AGAIN_DIVISOR if self._limit.was_lowered else EARLY_DIVISOR * AGAIN_DIVISOR**self._num_dead
        if is_dying:
            self._num_dead, self.dead.found = self._num_dead + 1, []
            del self.dead.shares[DEAD_LOOKS:]
            self._parts.norms.begin(self._live.step)
        self._limit.lower(rate, by=by, step=self._live.step)
        self._parts.sentry.forget()
        lineage.begin(first)
        self._witnesses.begin_trust()
        self._announcer.tell(events.RolledBack, to_step=first.step, source="backup")
        self._announcer.tell(
            events.LrCapped,
            ceiling=self._limit.ceiling,
            reason="no gradient" if is_dying else "no progress",
            is_share=self._limit.is_share,
            until=self._limit.until_text(),
        )

    def end_trial(self, level: float) -> None:
        """Once it is long enough, go on with the lower rate if its losses are clearly better, else as before it."""
        lineage, trial = self._lineage, self._trial
        if trial is None or lineage.since_restore < RATE_TRIAL_STEPS or level != level:
            return
        if self._is_clearly_better(level):
            self.drop_trial()
            self._parts.incidents.note_restore()
            self._limit.confirm()
            for each in trial.backups:
                if each not in self._backup.backups:
                    self._backup.recycle(each)
            text = f"the learning rate was too high: at {self._limit.ceiling_text} the loss is {level:.3g} after "
            text += f"{lineage.updates} steps from the start, not {trial.level:.3g}"
            if trial.is_dead:
                text += ", where most parameters had no gradient any more"
            text += f"; {self._parts.norms.text}" if self._parts.norms.text else ""
            self._announcer.warn_once("rate too high", f"{text}. See docs/recovery.md.")
            self._announcer.tell(events.Notice, text=text, is_warning=False)
            return
        if trial.is_dead and not self.dead.are_most:
            # What was kept aside learns nothing meanwhile.
            return
        if not self._parts.sentry.tests_progress and lineage.since_restore < 2 * RATE_TRIAL_STEPS:
            # Of so few losses the level may be too high by chance, and what was kept aside learns next to nothing.
            return
        self.num_trials = MOST_RATE_TRIALS
        self.undo_trial()

    def _is_clearly_better(self, level: float) -> bool:
        trial = self._trial
        if trial is None:
            return False
        return level < trial.level - (0.0 if trial.is_dead else BETTER * abs(trial.progress.start))

    def break_off(self, *, is_damaged: bool) -> bool:
        """End a trial before it is long enough: with the lower rate only if what was kept aside is no better.

        Args:
            is_damaged: Whether the weights of the trial are known to be damaged.

        Returns:
            Whether the weights from before the trial are back.
        """
        trial = self._trial
        is_worse = is_damaged or not self._is_clearly_better(self._lineage.progress.level)
        if trial is None or not (trial.is_better and is_worse):
            self.drop_trial()
            return False
        self.undo_trial()
        return True

    def drop_trial(self) -> None:
        """Go on with the weights and the rate as they are."""
        self._trial, self._changes, self._is_compared, self.is_reviving = None, [], False, False

    def undo_trial(self) -> None:
        """Go on with the weights and the rate from before the trial, if there is one."""
        trial = self._trial
        self.drop_trial()
        if trial is None:
            return
        self._live.begin()
        self._live.put_copy(trial.present)
        self._parts.sentry.go_back(trial.memory)
        lineage = self._lineage
        lineage.progress, lineage.updates = trial.progress, trial.updates
        # In a resumed run they hold the initial state at most.
        self._backup.backups = trial.backups or self._backup.backups
        self._limit.load_state_dict(trial.limit)
        if not self._limit.is_on:
            self._parts.norms.forget()
            self._announcer.tell(events.LrRestored)
        self._announcer.tell(events.RolledBack, to_step=self._live.step, source="backup")

"""Persistence: takes backups, and saves and loads checkpoints, with the user's callbacks."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from .. import events
from .._validation import whole_number
from ..events.bus import Announcer
from ..schedules.budget import Budget
from ..state import tree
from ..state.callbacks import IS_WEIGHT, Callbacks, call_load, call_save, join_callbacks, keeps_model
from ..state.generations import Generations
from ..state.run_config import RunConfig
from ..state.saver import CheckpointSaver, check_folder
from ..state.store import LARGE, THIN, BackgroundWrite, Checkpoint, CheckpointStore, NoValidCheckpoint, step_of
from ..triggers import Condition, Elapsed, as_trigger, every, never, quiet_until
from .agreement import Agreement
from .backups import FAR_GROWN, LATENT, SWOLLEN_SHARE, Backup, LastMoves, RamBackup, RunningVariances, moved_in
from .progress import EARLY_UPDATES, FIRST, SINCE_LOOK

DEFAULT_FOLDER = "checkpoints"

KEPT_BY_ADAPTER, HAD_CHECKPOINT = "kept_by_adapter", "had_checkpoint"
"""Entries of a saved configuration: whether an adapter has saved the model, so that one must load it; and in a
generation, whether the run had written a checkpoint before."""

NO_MODEL = (
    "{} holds no model, so load_callback was not called: the model is unchanged. With save_callback= it would hold it."
)


MOST_LASTING = 8
"""Times that an array may be damaged without a refused batch before that is taken as intended."""

LEAST_BACKUP_STEPS = 10

LEAST_GROWTH = 1 / 8
"""Least share by which the steps so far grow from one backup to the next: the most that cheap ones let damage undo."""

DOUBLING_SECONDS, TIME_SHARE = 0.1, 0.01
"""What backups may take while the steps double: so many seconds, or this share of the time so far."""

BEYOND = 3.0
"""How many times as large as all others before weights may be beside one that was written into."""

FAR_CHANGED, FEW_CHANGED, NEAR_ZERO = 30.0, 0.01, 0.1
"""How many times as large as at the last look, and larger than all others, an array of weights has become at once, and
the share of its numbers that are half so large at least; or to what share of its largest number it has fallen, as
arrays of zeros are trained on. No updates do either after the first ones."""

LEAST_MATRIX = 32
"""Numbers in a matrix that does not become next to 0 by its updates."""

SHAKEN, MOST_MATRICES = 1.15, 0.75
"""How many times as large most matrices become in a few steps where noise is added to them, and what share of them is
most: in 25 kinds of healthy trainings that share became 1.07 times as large at most."""

FARTHER, FARTHER_AT_ONCE, MOVED_FROM = 5.0, 4.0, 32
"""How many times as far as between any two backups weights have moved that are looked into, where losses are high; the
same where these rose at once, and fewer steps are taken to move weights less; and the steps from which they are. Where
a schedule raises the rate, and in the first steps, healthy ones may, too."""

SWOLLEN_TEXT = (
    "step {:,}: {!r} and {} more beside the weights are more than 1,000 times as large as at the last look: after so "
    "large a gradient an optimizer may hardly move for thousands of steps. If nothing is restored, restore_backup() "
    "goes back."
)

CHANGED = (
    "step {:,}: the largest number of {!r} is {:.3g}, and was {:.3g} at step {:,}: unless that is intended, a stray "
    "write or a fault of the memory has changed it. If nothing is restored, restore_backup() goes back."
)

NO_MEMORY = 2**62
"""Stands for the microseconds of a backup for which there was no memory."""


def usual_interval(steps_per_epoch: int) -> Condition:
    """When to take backups at the latest if the user has not said when."""
    return every(time=30) | every(max(LEAST_BACKUP_STEPS, steps_per_epoch // 4))


class BackupTimer:
    """Takes backups with the state callback.

    Args:
        when: When they are due.
        announcer: Receives warnings and events.
        backup: Stores the states.
        agreement: Shares a failure on one rank with all ranks, and what backups take.
        is_usual: Whether the user has not said when.

    Attributes:
        backup: As given.
        when: As given.
        is_usual: As given; then early backups come, too, while the run is young and they are cheap.
        is_early: Whether the last backup was such a one.
        is_due: Whether a backup is, as soon as the user's step is complete.
        is_look_due: Whether a look at every number is.
        clean_step: Steps reported when every number of the model was last found finite; -1 before that.
        meant: Names of what is not finite on purpose.
        not_healed: Names of the parts of the state whose numbers are the user's own, as nothing heals them.
        is_weight: Whether a dotted key of the state is that of a weight.
        watches_moves: Whether matrices may not grow at once, nor one move far alone: not where R8 tries rates.
        num_lasting: How often each array was damaged again, see `note_lasting`.
        variances: Finds running statistics that a batch has ruined.
        peaks: The largest number in each array of weights at the last look.
        stray: What `stray_in` has found.
        singles: The arrays in which a single weight was put back.
        changed: What `_changed_in` or `moved_in` has found, until it is tested.
        has_grown: Whether that is the first of many matrices that have grown by little.
        has_moved: Whether that has moved far while losses were high: healthy weights may, so it is tested first.
        num_high: How many these losses were, if they had risen at once; see `Persistence.look_at_weights`.
    """

    def __init__(
        self, when: Condition, announcer: Announcer, backup: RamBackup, agreement: Agreement | None = None, *,
        is_usual: bool = False,
    ) -> None:  # fmt: skip
        self.backup = backup
        self.when, self.is_usual, self.is_early = when, is_usual, False
        self.clean_step = -1
        self.meant: set[str] = set()
        self.not_healed: frozenset[str] = frozenset()
        self.is_weight: Callable[[str], object] = IS_WEIGHT
        self._agreement = agreement or Agreement()
        self._announcer = announcer
        self._is_first = True
        self.num_lasting: dict[str, int] = {}
        self.variances = RunningVariances(announcer)
        self.peaks: dict[str, float] = {}
        # The sums of the other arrays then.
        self._beside: dict[str, float] = {}
        self._moves, self.watches_moves = LastMoves(), False
        self.stray: tree.Grown | None = None
        self.singles: list[str] = []
        self.changed, self.has_grown, self.has_moved, self.num_high = "", False, False, 0
        self.is_due = self.is_look_due = False
        self._next_look_at = 1
        self._step, self._seconds = 0, 0.0
        # What the last backups took, the longest of all ranks. The shortest counts, as anything may delay one of them.
        self._took: deque[float] = deque(maxlen=3)

    @property
    def _early_step(self) -> float:
        """Where an early backup is due: the steps so far have grown by the least share, or by more if it is costly."""
        most = max(DOUBLING_SECONDS, TIME_SHARE * self._seconds)
        growth = max(LEAST_GROWTH, min(self._took, default=0.0) / most)
        if not self.is_usual or growth > 1:
            return math.inf
        return self._step + max(1, math.ceil(growth * self._step))

    @property
    def _next_look(self) -> float:
        """Where running statistics are looked at, though the user's backups come later: first batches may ruin them."""
        return self._next_look_at if self.variances.last and not self.is_usual else math.inf

    def take_in(self, get: Callable[[], Any] | None) -> None:
        """Store the initial state of a resumed run, once there is a live one whose form it takes."""
        first = self.backup.earlier
        if get is None or first is None:
            return
        self.backup.earlier, saved = None, first.state
        # On all ranks, which must watch the first steps alike.
        with contextlib.suppress(MemoryError):
            if saved is not None:
                # What no file can hold is that of the live state.
                first.state = self._agreement.copied("the weights", lambda: self.backup.copy(tree.fill(saved, get())))
            self.backup.backups.insert(0, first)

    def quiet_until(self, asked: Elapsed) -> tuple[float, float]:
        """Steps and seconds before which no backup is due; ``asked`` is the last `take_if_due` call."""
        if self.is_due or self.is_look_due or self.backup.has_none_of_now:
            return 0.0, 0.0
        steps, seconds = quiet_until(self.when, asked)
        return min(steps, self._early_step, self._next_look), seconds

    def take_if_due(
        self, elapsed: Elapsed, draws: int, get: Callable[[], Any], get_moment: Callable[[Any], Any], *, is_calm: bool,
        must_look: bool = False,
    ) -> str:  # fmt: skip
        """Take a backup with the state callback if one is due; exceptions of the callback reach the user.

        Args:
            elapsed: The run's position, now and at the previous call.
            draws: Batches drawn so far.
            get: The state callback.
            get_moment: Returns the scheduler's `SchedulerState` to keep with a backup of this state.
            is_calm: Whether nothing is suspected; otherwise a backup waits, unless there is none at all.
            must_look: Whether to check every number in any case.

        Returns:
            The name of a non-finite array; no backup was taken then. Otherwise "".

        Raises:
            TypeError: the callback returned None, or a state that cannot be copied.
        """
        step = elapsed.steps
        newest = self.backup.newest
        if step != self._step and newest is not None and newest.step == step:
            # The call that took it was interrupted before it could note so.
            self.note_done(step)
        self.is_due = (step != self._step and bool(self.when(elapsed))) or self.is_due
        awaits = newest is not None and not newest.is_closed
        is_early = not self.is_due and step >= self._early_step and not awaits
        waits = awaits and len(self.backup.backups) > 1
        is_now = (self.is_due or is_early) and step != self._step and is_calm and not waits
        is_first = self.backup.has_none_of_now
        if step >= self._next_look:
            self.is_look_due, self._next_look_at = True, 2 * step
        if not (is_first or is_now or must_look or self.is_look_due):
            return ""
        is_asked, self.is_look_due, found = self.is_look_due and not is_first, False, ""
        if is_asked or not (is_first or is_now):
            state = get()
            found = self.look(tree.sums_of(state)) or (self.moved_in(state, self.num_high) if is_asked else "")
            self.num_high = 0
        if found or not (is_first or is_now):
            return found
        self.is_early = is_early and not is_first
        self._seconds, began = elapsed.time, time.perf_counter()
        try:
            state = get()
            if state is None:
                raise TypeError("state_callback must return the state of the model, got None.")
            return self.take(state, step, draws, get_moment, began=began)
        except Exception:
            self.note_done(step)
            raise

    def note_done(self, step: int) -> None:
        """Note that nothing more is due at this step, where a run may have been resumed; call it last, so that what was
        cut short is due again.
        """
        self.is_due = False
        self._step = step

    def take(
        self, state: Any, step: int, draws: int, get_moment: Callable[[Any], Any] = lambda state: None, *,
        began: float | None = None,
    ) -> str:  # fmt: skip
        """Copy a model state to RAM if all of it is finite; see `RamBackup.offer`. Measures the time since ``began``.

        Returns:
            The name of a non-finite array, if there is one and no backup was taken; otherwise "".

        Raises:
            TypeError: the state cannot be copied.
        """
        damaged = self.look(tree.sums_of(state))
        if damaged:
            # Due again until it is answered.
            return damaged
        self.clean_step = step
        taken, took = None, NO_MEMORY
        began = time.perf_counter() if began is None else began
        with contextlib.suppress(MemoryError):
            taken = self.backup.offer(state, step=step, draws=draws, moment=get_moment(state))
            took = int(1e6 * (time.perf_counter() - began))
        took = self._agreement.most(took)
        if took < NO_MEMORY:
            self._took.append(1e-6 * took)
        elif taken is not None:
            # On all ranks, which must go back to the same step later.
            self.backup.backups.remove(taken)
        self.note_done(step)
        if took < NO_MEMORY:
            self._announcer.tell(events.BackupTaken)
        else:
            text = f"there was no memory for the backup at step {step}; the previous one is kept."
            self._announcer.warn_once("no memory", text)
        return ""

    def look(self, sums: list[tree.Sum]) -> str:
        """The name of an array that is damaged, or has changed at once; "" for none. See `sums_of`."""
        self.has_grown = self.has_moved = False
        damaged = self.told(self._agreement.agree(self.damage_in(sums)))
        self._tell_swollen(sums)
        return damaged or self.stray_in(sums)

    def _tell_swollen(self, sums: list[tree.Sum]) -> None:
        """Tell of numbers beside the weights that have become far larger at once: no loss shows it. The sum of a single
        array may be next to 0 by chance.
        """
        beside = {each.key: each.total.real for each in sums if not self.is_weight(each.key)}
        before, self._beside = self._beside, beside
        swollen = [key for key, total in beside.items() if total > LATENT * before.get(key, math.inf) > 0]
        newest = self.backup.newest
        if not swollen or newest is None or newest.updates < 2 * FIRST:
            return
        # Running statistics are told of by their own rule.
        statistics = {*self.variances.names}
        swollen = [key for key in swollen if key not in statistics]
        if len(swollen) >= max(2, SWOLLEN_SHARE * len(beside)):
            step = self._announcer.where()[0]
            self._announcer.warn_once("swollen", SWOLLEN_TEXT.format(step, swollen[0], len(swollen) - 1))

    def told(self, damaged: str) -> str:
        """Tell listeners of an array that is damaged; returns it, else one of ruined statistics, else ""."""
        if damaged:
            self._announcer.tell(events.DamageFound, array=damaged)
        return damaged or next(iter(self.variances.ruined), "")

    def forget_look(self) -> None:
        """Compare no state with that of the last look, as another one was put in."""
        self.peaks, self._beside = {}, {}
        self._moves.forget_last()

    def damage_in(self, sums: list[tree.Sum]) -> str:
        """The name of an array with NaN, or of what is not finite and was so in no first state; "" if there is none.

        Args:
            sums: Those of the state, see `sums_of`.
        """
        bad = tree.faults_in(sums)
        self.variances.compare(sums, is_alone=self._agreement.ranks is None)
        is_first, self._is_first = self._is_first, False
        for key, fault in bad.items():
            # Attention masks hold -inf on purpose, and a value that is not known yet is NaN.
            is_mask = is_first and fault != "NaN"
            if is_mask or any(f"{key}.".startswith(f"{name}.") for name in self.not_healed):
                self.meant.add(key)
        return next((key for key in bad if key not in self.meant), "")

    def stray_in(self, sums: list[tree.Sum]) -> str:
        """The name of an array of weights in which a single number is a hundred times as large as any weight was at the
        last look, and no other one three times; "" if there is none. Too large an update changes more of them, where
        what is trained is trained in rows.
        """
        weights = tree.weights_in(sums, self.is_weight)
        peaks, highest = tree.peaks_of(weights), max(self.peaks.values(), default=0.0)
        before = {key: highest for key, peak in self.peaks.items() if peak}
        found, newest = tree.outgrown(weights, peaks, before, least=BEYOND), self.backup.newest
        if (
            found is not None
            and newest is not None
            # Of several processes another one may have no such weight.
            and self._agreement.ranks is None
            and found.num == 1
            and found.peak > FAR_GROWN * highest
            and tree.is_trained_in_rows(weights[found.key], dict(tree.leaves(newest.state)).get(found.key))
        ):
            self.stray = found
            return found.key
        before, self.peaks = self.peaks, peaks
        return self._changed_in(weights, peaks, before)

    def _changed_in(self, weights: Mapping[str, Any], peaks: Mapping[str, float], before: Mapping[str, float]) -> str:
        """The name of a matrix of weights that has become next to 0 after the first steps, or of weights far beyond
        all were; "" if there is none. It is told, as losses need not show it, and it may be meant. Else, of the first
        matrix where most have become a little larger at once.
        """
        newest, step = self.backup.newest, self._announcer.where()[0]
        if self._agreement.ranks is not None:
            return ""
        matrices = {each: array for each, array in weights.items() if is_matrix(array)}
        earlier, looked_at = self._moves.sizes, self._moves.at
        alone = self._moves.look(matrices, step) if self.watches_moves else ""
        if newest is None:
            return ""
        # Whoever starts a layer anew in the first steps means it.
        if step < EARLY_UPDATES or 2 * newest.updates < EARLY_UPDATES:
            self.changed = alone if step >= MOVED_FROM else ""
            return self.changed
        key = next((each for each in matrices if peaks[each] < NEAR_ZERO * before.get(each, 0.0)), "")
        # Weights of the first steps grow so fast.
        is_old = not key and newest.updates >= EARLY_UPDATES
        grown = tree.outgrown(weights, peaks, before, least=FAR_CHANGED) if is_old else None
        if grown is not None and grown.num >= max(2, FEW_CHANGED * grown.size):
            key = grown.key
        if key:
            text = CHANGED.format(step, key, abs(peaks[key]), before[key], newest.step)
            self._announcer.warn_once(f"changed {key}", text)
        sizes = self._moves.sizes
        shaken = [each for each, size in sizes.items() if size > SHAKEN * earlier.get(each, math.inf)]
        # Frozen ones, as under LoRA, say nothing.
        moving = [each for each, size in sizes.items() if size != earlier.get(each)]
        is_at_once = step - looked_at <= LEAST_GROWTH * step
        self.has_grown = not key and is_at_once and len(shaken) >= max(2, MOST_MATRICES * len(moving))
        if self.has_grown:
            # What its test finds is told.
            key = shaken[0]
        self.changed = key = key or alone
        return key

    def moved_in(self, state: Any, num_high: int) -> str:
        """The name of weights that have moved far while losses were high for a few steps; "" if there are none.

        Args:
            state: The present state.
            num_high: Losses since one that has risen at once; 0 for losses that rise from step to step.
        """
        step = self._announcer.where()[0]
        if step < MOVED_FROM or self._agreement.ranks is not None:
            return ""
        last = step - max(num_high + 1, SINCE_LOOK)
        known = [each for each in self.backup.backups if each.state is not None and each.step <= last]
        times, at = (FARTHER_AT_ONCE, step) if num_high else (FARTHER, None)
        self.changed = moved_in(known, state, self.is_weight, times=times, step=at)
        self.has_moved = bool(self.changed)
        return self.changed

    def note_lasting(self, name: str) -> None:
        """Note an array that is damaged again, although no batch was refused since its repair.

        After some times it is taken as intended, with a warning.
        """
        self.num_lasting[name] = self.num_lasting.get(name, 0) + 1
        if self.num_lasting[name] == MOST_LASTING:
            self.meant.add(name)
            self._announcer.warn_once(
                f"meant {name}",
                f"{name!r} in the model's state is not finite again and again, whatever is done; it is no longer "
                "checked. If it is meant to hold NaN or infinities, leave it out of the state.",
            )


def is_matrix(array: Any) -> bool:
    """Whether an array is large, and not that of a bias or a scale, which may be set to 0."""
    return len(array.shape) > 1 and math.prod(array.shape) >= LEAST_MATRIX


class Persistence:
    """Takes backups and writes checkpoints when they are due; `LiveModel` puts them back.

    Args:
        callbacks: The user's callbacks.
        backup_every: When to take backups with the state callback, as `as_trigger` takes it; None for four times an
            epoch (at least 10 steps apart), every 30 s, and closer in a young run.
        checkpoint_dir: Folder of the checkpoints; None for "checkpoints" if there is a save callback, else for none.
        checkpoint_every: When to write checkpoints, as `as_trigger` takes it; None for every epoch. One is also written
            at the end.
        keep: Checkpoints of this run to keep, >= 1; or "thin", see `CheckpointStore`.
        monitor: Name of the logged metric whose best checkpoint is also kept; None for none.
        mode: "min" if lower is better, "max" if higher is.
        config: The run's configuration, for its checkpoints.
        steps_per_epoch: Steps in an epoch.
        announcer: Receives warnings and events.
        agreement: Shares failures and choices with other ranks, if there are any.
        backup: Holds model states in RAM.
        backup_dir: Folder of the shared memory that backups are also written to; None for the system's, False for none.

    Attributes:
        callbacks: As given, completed by those of an adapter.
        agreement: As given; a run alone answers itself.
        backup: The model states in RAM.
        config: As given.
        backup_timer: Takes backups with the state callback.
        generations: The backups in shared memory, which outlive the process; None for none.
        saver: Writes checkpoints; None without a folder.
        quiet_steps: First step at which something may be due, unless an epoch ends earlier.
        quiet_seconds: Training seconds from which something may be due, unless an epoch ends earlier.

    Raises:
        ValueError: an interval cannot be read, ``keep`` is below 1, ``mode`` is unknown, or an interval or metric is
            given for something that is never saved.
        TypeError: a callback is not callable.
    """

    def __init__(
        self, callbacks: Callbacks, *, backup_every: int | str | Condition | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None, checkpoint_every: int | str | Condition | None = None,
        keep: int | str = 3, monitor: str | None = None, mode: str = "min", config: RunConfig | None = None,
        steps_per_epoch: int, announcer: Announcer, agreement: Agreement | None = None,
        backup: RamBackup | None = None, backup_dir: str | os.PathLike[str] | bool | None = False,
    ) -> None:  # fmt: skip
        if isinstance(keep, str) and keep != THIN:
            raise ValueError(f"keep_checkpoints must be a whole number >= 1, got {keep!r}; or {THIN!r}.")
        keep = keep if isinstance(keep, str) else whole_number("keep_checkpoints", keep, least=1)
        if backup_every is not None and callbacks.state is None:
            raise ValueError(
                f"backup_every needs a state_callback that returns the model state, got {backup_every!r} without one."
            )
        folder = DEFAULT_FOLDER if checkpoint_dir is None and callbacks.save is not None else checkpoint_dir
        check_folder(folder, checkpoint_every=checkpoint_every, monitor=monitor)
        self._given, self.callbacks = callbacks, callbacks.with_file()
        self._has_adapter = keeps_model(callbacks.load)
        self._announcer = announcer
        self.config = config = config or RunConfig({})
        when = usual_interval(steps_per_epoch) if backup_every is None else as_trigger("backup_every", backup_every)
        self.backup, self.agreement = backup or RamBackup(), agreement or Agreement()
        self.backup_timer = BackupTimer(when, announcer, self.backup, self.agreement, is_usual=backup_every is None)
        self.backup_timer.is_weight = callbacks.is_weight
        self.generations = Generations.of(backup_dir, folder, announcer)
        self._pending: Checkpoint | None = None
        self._loaded: Checkpoint | None = None
        self._lacks_model = self._had_checkpoint = False
        self._asked = (0, 0, 0.0)
        self.wake()
        when = never if checkpoint_every is None else as_trigger("checkpoint_every", checkpoint_every)
        self.saver: CheckpointSaver | None = None
        if folder is not None:
            store = CheckpointStore(folder, keep=keep, run_id=os.urandom(16).hex())
            self.saver = CheckpointSaver(
                store, when=when, each_epoch=checkpoint_every is None, monitor=monitor, mode=mode, announcer=announcer
            )

    def wake(self) -> None:
        """Check at the next step whether something is due, as the settings or the position have changed."""
        self.quiet_steps = self.quiet_seconds = 0.0

    @property
    def store(self) -> CheckpointStore | None:
        """Where checkpoints are written; None without a folder."""
        return None if self.saver is None else self.saver.store

    def adopt(
        self, callbacks: Callbacks, *, backup_every: int | str | Condition | None = None,
        clone: Callable[[Any], Any] | None = None, copy_into: Callable[[Any, Any], Any] | None = None,
        witness_size: int = 1,
    ) -> Callbacks:  # fmt: skip
        """Let an adapter's callbacks keep the model, beside the user's own; they replace those of an earlier adapter.

        Backups whose arrays are not those of the state now, as of another optimizer, are dropped.

        Args:
            callbacks: The adapter's callbacks.
            backup_every: When to take backups from now on; None changes nothing.
            clone: Copies model states from now on, see `RamBackup`; None changes nothing.
            copy_into: Copies model states into a buffer, see `RamBackup`; only used with ``clone``.
            witness_size: Batches whose gradients make one update.

        Returns:
            The callbacks that are called from now on.

        Raises:
            ValueError: an interval cannot be read, or one callback of the user's is missing, see `join_callbacks`.
        """
        # An adapter gives its own to the constructor, too.
        self.callbacks = callbacks if keeps_model(self._given.load) else join_callbacks(callbacks, self._given)
        self.backup_timer.not_healed, self.backup_timer.is_weight = callbacks.not_healed, self.callbacks.is_weight
        self._has_adapter = self._has_adapter or callbacks.load is not None
        if backup_every is not None:
            self.backup_timer.when, self.backup_timer.is_usual = as_trigger("backup_every", backup_every), False
        if clone is not None:
            self.backup.copy_with(clone, copy_into)
        self.backup.witness_size = witness_size
        read, newest = self.callbacks.state, self.backup.newest
        kept = None if newest is None else newest.state
        if read is not None and kept is not None and tree.shapes_of(read()) != tree.shapes_of(kept):
            self.backup.clear()
            self.backup.earlier = None
            self.backup_timer.forget_look()
        self.wake()
        self.hand_over_pending()
        return self.callbacks

    def save_what_is_due(
        self, step: int, samples: int, seconds: float, draws: int, *, epoch_ended: bool, run_ended: bool,
        budget: Budget, get_state: Callable[[], dict[str, Any]], get_moment: Callable[[Any], Any] = lambda state: None,
        is_calm: bool = True, may_back_up: bool = True, saved: Callable[[int], object] = lambda step: None,
        answer: Callable[[str], object] = lambda damage: None, may_save: Callable[[], bool] = lambda: True,
    ) -> bool:  # fmt: skip
        """Take a backup and write a checkpoint, if they are due.

        Args:
            step: Steps reported so far.
            samples: Samples in those steps.
            seconds: Training seconds so far.
            draws: Batches drawn so far.
            epoch_ended: Whether an epoch has ended since the last call.
            run_ended: Whether the budget is used up.
            budget: The run's budget; a checkpoint is due at its end.
            get_state: Returns the scheduler's state.
            get_moment: As for `BackupTimer.take_if_due`.
            is_calm: Whether nothing is suspected; otherwise a backup waits, unless there is none.
            may_back_up: Whether the weights are those of the run, and not on trial.
            saved: Called with the step of a checkpoint before it is written.
            answer: Called with the name of an array that is damaged, before a checkpoint is written.
            may_save: Whether a checkpoint may be written after that; asked then.

        Returns:
            Whether that is done; otherwise it is due again.
        """
        asked = (step, samples, seconds)
        elapsed = Elapsed(*asked, *self._asked)
        try:
            self.backup_timer.take_in(self.callbacks.state)
            saver = self.saver
            if saver and not saver.is_due(elapsed, epoch_ended=epoch_ended, run_ended=run_ended):
                saver = None
            if self.callbacks.state is not None and may_back_up:
                before = self.backup.newest
                # A run that goes on from a file has no backup from before what has damaged it.
                damage = self.backup_timer.take_if_due(
                    elapsed, draws, self.callbacks.state, get_moment, is_calm=is_calm, must_look=saver is not None
                )
                is_new = self.backup.newest is not before and not self.backup_timer.is_early
                if step and is_new and not (damage or run_ended) and self.generations is not None:
                    self._write_generation(self.generations, get_state, step)
                if damage:
                    answer(damage)
                    if not (may_save() or run_ended):
                        return False
            if saver:
                # Before it is written, as an interrupted call that has written it does not write it again.
                saved(step)
                how = {"in_background": not run_ended, "is_again": run_ended and saver.has_saved(step)}
                saver.attempt(lambda: self._write(get_state, **how), step)
                if run_ended and saver.has_saved(step):
                    self.forget_generations()
        except Exception:
            self._asked = asked
            raise
        # Only now, so that an interrupted backup or checkpoint is due again.
        self._asked = asked
        untils = [(math.inf, math.inf)]
        if self.callbacks.state is not None:
            untils.append(self.backup_timer.quiet_until(elapsed))
        if self.saver is not None:
            untils.append(self.saver.quiet_until(elapsed))
        if len(untils) > 1 or self.callbacks.load is not None:
            untils.append((budget.steps or math.inf, budget.seconds or math.inf))
        self.quiet_steps, self.quiet_seconds = map(min, zip(*untils, strict=True))
        return True

    def count_from(self, step: int, samples: int, seconds: float) -> None:
        """Count intervals from here, as the run was resumed."""
        self._asked = (step, samples, seconds)
        self.wake()
        self.backup_timer.note_done(step)
        if self.saver:
            self.saver.count_from(step)

    def look_again(self, step: int) -> None:
        """Have the last checkpoint written again if the model's file differs, as a loop comes back from the last epoch.

        The first was written before what follows the epoch, which may raise or take long, and may change what is kept.
        A save callback of the user's alone is not called a second time.
        """
        if self.saver is not None and self._has_adapter and self.saver.has_saved(step):
            self.saver.look_again()
            self.wake()

    def expect_epochs_of(self, steps: int) -> None:
        """Take backups as often as epochs of so many steps ask for, unless the user has said how often."""
        timer = self.backup_timer
        timer.when = usual_interval(steps) if timer.is_usual else timer.when
        self.wake()

    def look_at_weights(self, *, backs_up: bool = True, num_high: int = 0) -> None:
        """Check every number as soon as the user's step is complete, and take a backup unless told not to.

        Args:
            backs_up: Whether to take one.
            num_high: Losses since one that has risen at once, not from step to step; 0 for none.
        """
        if backs_up:
            self.backup_timer.is_due = True
        else:
            self.backup_timer.is_look_due, self.backup_timer.num_high = True, num_high
        self.wake()

    def save(self, state: dict[str, Any], step: int) -> Checkpoint:
        """Write a checkpoint.

        Raises:
            RuntimeError: there is no checkpoint folder.
            OSError: the write failed.
        """
        if self.saver is None:
            raise RuntimeError(
                f"checkpoint_dir or save_callback must be given to save checkpoints, got {self.store!r} and None."
            )
        saved = self.saver.write(lambda: self._write(lambda: state), step)
        assert saved is not None
        return saved

    def _write(
        self, get_state: Callable[[], dict[str, Any]], *, in_background: bool = False, is_again: bool = False
    ) -> Checkpoint | BackgroundWrite:
        assert self.store is not None
        # Where a rank has no memory for it, no rank begins to write.
        state = self.agreement.copied("the scheduler's state", get_state)
        write_model = None
        save = self.callbacks.save
        if save is not None:
            newest = self.backup.newest
            given = {"scheduler": state, "model": self.callbacks.model_state(newest and newest.state)}
            write_model = functools.partial(call_save, save, given)
        own = self.callbacks.own
        config = {**self.config.values, KEPT_BY_ADAPTER: self._has_adapter and (own is None or own.save is None)}
        in_background = in_background and len(state.get("table", {}).get("loss", ())) >= LARGE
        how: Any = {"in_background": in_background, "is_again": is_again}
        write = self.store.start_write(state, write_model, config, then=self._tell_saved, **how)
        return write if in_background else write.result()

    def _tell_saved(self, saved: Checkpoint) -> None:
        self._had_checkpoint = True
        model_path = None if saved.model_path is None else str(saved.model_path)
        is_on_trial = saved.state.get("recovery", {}).get("is_on_trial", False)
        self._announcer.tell(
            events.CheckpointSaved, path=str(saved.path), model_path=model_path, is_on_trial=is_on_trial
        )
        if self.callbacks.save is not None and model_path is None:
            self._announcer.note_once("no model file", "save_callback left no file: checkpoints hold no model.")

    def save_as_asked(self, get_state: Callable[[], dict[str, Any]], step: int, *, again: bool = False) -> None:
        """Write a checkpoint on request, unless there is one for this step; with ``again`` even then."""
        if self.saver is None:
            self._announcer.note_once("no folder", "no checkpoint was saved: neither checkpoint_dir nor save_callback.")
        elif again or not self.saver.has_saved(step):
            self.saver.attempt(lambda: self._write(get_state), step)
        if self.saver is not None and self.saver.has_saved(step):
            self.forget_generations()

    def _write_generation(self, generations: Generations, get_state: Callable[[], dict[str, Any]], step: int) -> None:
        """Write the newest backup, which belongs to this step, with the scheduler's state to shared memory."""
        backup, newest = self.backup, self.backup.newest
        if self.store is None or newest is None or not generations.is_ready:
            return
        try:
            state = get_state()
        except MemoryError as error:
            generations.turn_off(str(error) or "there is no memory for a copy of the scheduler's state")
            return
        config = {**self.config.values, KEPT_BY_ADAPTER: self._has_adapter, HAD_CHECKPOINT: self._had_checkpoint}
        content = {"run_id": self.store.run_id, "model": None, "scheduler": state, "config": config}
        done = functools.partial(backup.lend, None)
        try:
            backup.lend(newest.state)
            generations.start_write(newest.state, content, step=step, done=done)
        except BaseException:
            if not generations.is_writing:
                done()
            raise

    def forget_generations(self) -> None:
        """Delete what is in shared memory, as a checkpoint of this step is on disk."""
        if self.generations is not None:
            self.generations.clear()

    def find_newest(self) -> tuple[Checkpoint | None, bool]:
        """The newest state of an earlier process: a generation, or a checkpoint on disk; None if there is none.

        Ranks that share the run must all call it, and get the states of the same moment.

        Returns:
            The state, and whether a checkpoint on disk is left if it cannot be used.

        Raises:
            NoValidCheckpoint: there are only checkpoints that cannot be read.
            RunInUse, OSError: as for `CheckpointStore.find`.
        """
        skipped: list[str] = []
        is_same = self.agreement.is_same
        if self.generations is None:
            is_same("none")
        found = None if self.generations is None else self.generations.newest(skipped, is_same)
        if skipped:
            self._announcer.warn_once("generations", f"backups in shared memory skipped: {' | '.join(skipped)}")
        try:
            disk = None if self.store is None else self.store.find()
        except NoValidCheckpoint:
            if found is None:
                raise
            disk = None
        if found is None:
            return disk, False
        # By its step in one run, by its time among several.
        if disk is not None and found.run_id == disk.run_id:
            is_newer = step_of(found.state) > step_of(disk.state)
        else:
            is_newer = disk is None or found.path.stat().st_mtime > disk.path.stat().st_mtime
        if not is_same(str(is_newer)) or not is_newer:
            return disk, False
        return found, disk is not None

    def note(self, metrics: Mapping[str, float], at_step: int, step: int) -> bool:
        """Take logged metrics; see `CheckpointSaver.note`."""
        if self.saver is None:
            return False
        self.wake()
        return self.saver.note(metrics, at_step, step)

    def put_back(self, checkpoint: Checkpoint) -> None:
        """Pass a checkpoint's model file to the load callback, if there are both; drop all backups.

        Without a load callback the model waits for `adopt`; that of an adapter does until the run starts.

        Raises:
            RuntimeError: the load callback raised; nothing else was changed.
        """
        if self.saver is not None:
            self.saver.wait()
        is_early = bool(checkpoint.config.get(KEPT_BY_ADAPTER)) and not self._has_adapter
        has_model = checkpoint.model_path is not None or checkpoint.model_state is not None
        self._pending = checkpoint if has_model else None
        if not is_early:
            self.hand_over_pending()
        self.backup.clear()
        self.wake()
        if self.saver is not None:
            self.saver.go_on_from(checkpoint)
        self._loaded = checkpoint._replace(model_state=None)
        self._had_checkpoint = checkpoint.model_state is None or bool(checkpoint.config.get(HAD_CHECKPOINT))
        self._lacks_model = not has_model
        if not has_model and self.callbacks.load is not None:
            self._announcer.warn_once("no model in checkpoint", NO_MODEL.format(checkpoint.path.name))
        if others := self.config.differences(checkpoint.config, self.config.identity):
            self._announcer.warn_once("differences", f"the resumed run is configured differently: {'; '.join(others)}.")

    def hand_over_pending(self) -> None:
        """Pass the model of a loaded checkpoint to the load callback, as soon as there is one.

        Raises:
            RuntimeError: the load callback raised; nothing else was changed.
        """
        load = self.callbacks.load
        if self._pending is not None and load is not None:
            checkpoint, self._pending = self._pending, None
            source, is_file = checkpoint.model_state, checkpoint.model_state is None
            if is_file:
                source = str(checkpoint.model_path)
            elif not self._has_adapter and self.callbacks.state is not None:
                # Named tuples, as those of optax, are tuples in memory that another process has written.
                source = tree.fill(source, self.callbacks.state())
            call_load(load, source, from_ram=not is_file, is_resume=True)

    def tell_loaded(self) -> None:
        """Tell listeners that a checkpoint was loaded, once the run has started; its model waits for no adapter now."""
        if self.saver is not None:
            self.saver.claim()
        self.hand_over_pending()
        checkpoint, self._loaded, config = self._loaded, None, self.config
        if checkpoint is not None:
            self._announcer.tell(
                events.CheckpointLoaded,
                path=str(checkpoint.path),
                model_path=None if checkpoint.model_path is None else str(checkpoint.model_path),
                skipped=checkpoint.skipped,
                differences=tuple(config.differences(checkpoint.config, (*config.identity, *config.changeable))),
            )
            if self._lacks_model:
                self._announcer.note_once("no model in checkpoint", NO_MODEL.format(checkpoint.path.name))
        if self._pending is not None:
            where = str(self._pending.model_path or self._pending.path)
            self._announcer.warn_once(
                "model not loaded",
                f"there is no load_callback, so the model is unchanged; the saved one is in {where!r}.",
            )

    def checkpoints(self) -> dict[int, str]:
        """Those with a model that could be put back, step and name, newest first; all ranks ask at the same point."""
        store = None if self.callbacks.load is None else self.store
        return {} if store is None else {step: name for name, step in reversed(store.own_states())}

    def name_of(self, backup: Backup) -> str:
        """ "backup", or the name of its checkpoint; "" for one that is gone."""
        return self.checkpoints().get(backup.step, "") if backup.is_on_disk else "backup"

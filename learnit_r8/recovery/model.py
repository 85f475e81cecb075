"""The live model: set aside, repaired and restored through the user's callbacks while backups are tested; and the
witnesses of its states: noted as they are trained on, trusted once calm losses have followed."""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import events
from ..events.bus import Announcer
from ..events.incident import MENDED
from ..sources.ticket import Ticket
from ..state import tree
from ..state.batch_rows import far_off
from ..state.callbacks import call_load
from ..state.tree import (
    Grown,
    clone,
    fill,
    growth,
    leave_out,
    leaves,
    map_leaves,
    not_finite,
    num_float_arrays,
    outgrown,
    peaks_of,
    sums_of,
    weights_in,
)
from .backups import FAR_GROWN, LATENT, SWOLLEN_SHARE, Backup, moved_in
from .policy import RestoreError
from .progress import EARLY_UPDATES

if TYPE_CHECKING:
    from .persistence import Persistence

STATISTICS = (
    "step {:,}: {!r} was more than 300 times as large as ever before: a batch far out of range has ruined running "
    "statistics, which validation uses and no training loss shows. They came from the backup of step {:,}."
)

OF_WEIGHTS = (
    "{!r} is more than 300 times as large as ever before, since step {}: numbers in {!r} have grown, too, so the "
    "running statistics are probably right for these weights. Nothing was put back."
)

LEAST_GROWTH = 10.0
"""How many times as large weights are, at least, that make a variance 300 times as large; usual ones grow by less
from one backup to the next, but for those that are next to nothing at first."""

MOST_SINGLE = 1e-3
"""Largest share of an array's numbers that a stray write or a fault of the memory is taken to have changed."""

JUMP = (
    "a stray write or a fault of the memory: {key!r} reaches {peak:.3g} (in {num:,} of {size:,} numbers), and was "
    "nowhere beyond {before:.3g} at step {step:,}"
)

MOST_SINGLES = 3
"""Times that a single weight of an array is put back before that is taken as intended."""

MOST_MENDED = 0.5
"""Largest share of the float arrays that is repaired; with more, the state counts as damaged."""

MOST_ON_DISK = 64
"""Checkpoints whose witnesses are known."""

SWOLLEN = 30.0
"""How many times as large arrays are that a huge gradient was added to: Adam's squares stay so for thousands of steps,
in which the weights hardly move, and no loss shows it."""


NUM_LATEST = 4
"""The last batches on which an earlier state must be better, too."""


class Saved(NamedTuple):
    """A state that a file has kept, which takes the form of the live one as it is put in.

    Attributes:
        parts: What `unpack` returned.
    """

    parts: Any


def saved_form(state: Any) -> NDArray[np.uint8]:
    """A state as a file keeps it beside the model's own; what no file can hold stays as it is when it is loaded."""
    parts = state.parts if isinstance(state, Saved) else leave_out(state, {})
    return tree.to_bytes(parts)


class LiveModel:
    """Does to the model what an experiment asks for.

    Args:
        persistence: Holds callbacks, backups and checkpoints.
        announcer: Receives events.
        keeps_rates: Whether rates are the user's own: then numbers beside the arrays do not count as fine ones, as
            weights that are put back whole at the same rate are lost again. R8's own rates have another watch.

    Attributes:
        step: Steps reported in the present call; whoever begins it sets this and the next.
        put_step: Steps reported when the state that was put last in it was taken; None as it begins.
        current: The backup that is in the model; None for the present state.
        present: The state set aside, which must not be changed; None if there is none.
        of_trial: The state of the trial while another one is shown, which must not be changed; else None.
        is_restoring: Whether the load callback is called now.
        failures: Why states could not be restored since `begin`.
        guard: The guard's state in the checkpoint that was restored last; None for a backup.
        mended: What `mend` has replaced in this experiment, in words; "" for nothing.
        jump: What `find_jump` has found in this experiment, in words, where it was single numbers; else "".
        num_statistics_put: How often `put_statistics` has put some back.
    """

    def __init__(self, persistence: Persistence, announcer: Announcer, *, keeps_rates: bool = False) -> None:
        self.persistence, self.announcer, self._keeps_rates = persistence, announcer, keeps_rates
        self.present: Any = None
        self.of_trial: Any = None
        self.step = 0
        self.put_step: int | None = None
        self.current: Backup | None = None
        self.is_restoring, self.mended, self.jump, self.num_statistics_put = False, "", "", 0
        self.failures: list[str] = []
        self.guard: Any = None

    @property
    def can_restore(self) -> bool:
        """Whether there is anything that could be put back; all ranks must ask at the same point."""
        saver = self.persistence.saver
        if self.persistence.callbacks.load is None:
            return False
        if saver is None or not self.persistence.backup.is_empty:
            return not self.persistence.backup.is_empty
        # The checkpoint being written may be the only one.
        saver.wait()
        return bool(saver.store.own_states())

    def begin(self) -> None:
        """Begin an experiment, or another search for a state to go back to."""
        self.end()
        self.failures, self.guard, self.mended, self.jump = [], None, "", ""
        if self.persistence.saver is not None:
            # The checkpoint being written may be the one to go back to, or hold weights that are given up.
            self.persistence.saver.wait()

    def damage(self, *, is_shared: bool = True) -> str:
        """The name of an array whose numbers are not finite, on any rank; "" if there is none or none can be seen.

        Args:
            is_shared: Whether the ranks tell each other; else it is that of this rank alone.
        """
        get, found = self.persistence.callbacks.state, ""
        # The next backup raises the callback's error.
        with contextlib.suppress(Exception):
            found = "" if get is None else self.persistence.backup_timer.damage_in(sums_of(get()))
        return self.persistence.agreement.agree(found) if is_shared else found

    def own_damage(self) -> str:
        """As `damage`, of a run alone; "" with several processes, as each may end by itself and ask no other."""
        return self.damage() if self.persistence.agreement.ranks is None else ""

    def look(self, *, num_high: int = 0) -> str:
        """As `damage`, of which listeners are told, and ruined running statistics and changed weights count.

        Args:
            num_high: As for `BackupTimer.moved_in`, as a run ends; 0 where how far weights have moved does not count.
        """
        timer, get, state, sums = self.persistence.backup_timer, self.persistence.callbacks.state, None, None
        # The next backup raises the callback's error.
        with contextlib.suppress(Exception):
            state = None if get is None else get()
            sums = None if state is None else sums_of(state)
        if sums is None:
            return timer.told(self.persistence.agreement.agree(""))
        return timer.look(sums) or (timer.moved_in(state, num_high) if num_high else "")

    def put_part(self, array: str) -> bool:
        """Put back running statistics, or a single weight, if that is what a look has found in an array."""
        timer = self.persistence.backup_timer
        if array in timer.variances.ruined:
            self.put_statistics()
        elif timer.stray is not None and timer.stray.key == array:
            self.put_single(timer.stray)
        else:
            return False
        return True

    def put_statistics(self) -> None:
        """Put running statistics back that a batch has ruined, or warn of them where that cannot be done."""
        timer, get = self.persistence.backup_timer, self.persistence.callbacks.state
        variances, is_put = timer.variances, False
        ruined, backups = variances.ruined, [*reversed(self.persistence.backup.backups)]
        newest = next((each for each in backups if each.state is not None and variances.precede(each.state)), None)
        roots = {"params", *(key.split(".")[0] for key in ruined)}
        grown = None if newest is None or get is None else _growth_of(get(), newest.state, roots, least=LEAST_GROWTH)
        if grown is not None:
            self.announcer.warn_once("variance", OF_WEIGHTS.format(next(iter(ruined)), self.step, grown.key))
        elif newest is not None and get is not None:
            # The backup may not fit.
            with contextlib.suppress(ValueError):
                mended, _ = repair(get(), newest.state, timer.meant, variances.names)
                # Loading looks again.
                is_put = self._load(mended, self.step) and not variances.ruined
        if newest is not None and is_put:
            self.num_statistics_put += 1
            self.persistence.look_at_weights(backs_up=False)
            text = STATISTICS.format(self.step, next(iter(ruined)), newest.step)
            self.announcer.say_once(f"statistics {self.step}", text, is_warning=self.num_statistics_put == 1)
        variances.note(ruined, are_put_back=is_put)

    @property
    def puts(self) -> list[str]:
        """What was put back where no loss asked for it, in words."""
        num, singles = self.num_statistics_put, self.persistence.backup_timer.singles
        parts = [f"running statistics of norms put back {'once' if num == 1 else f'{num} times'}"] if num else []
        return [*parts, *(f"a stray write found in {each!r}" for each in singles)]

    def put_single(self, stray: Grown) -> None:
        """Put back a single weight that was written into, see `BackupTimer.stray_in`, unless that has not helped."""
        persistence, timer = self.persistence, self.persistence.backup_timer
        get, newest, timer.stray = persistence.callbacks.state, persistence.backup.newest, None
        assert get is not None
        assert newest is not None
        before = dict(leaves(newest.state))[stray.key]

        def mended(leaf: Any, *path: Any) -> Any:
            if ".".join(map(str, path)) != stray.key:
                return leaf
            whole, place = clone(leaf), np.unravel_index(int(abs(leaf).argmax()), leaf.shape)
            # The backup may be on another device.
            whole[place] = before[place].item()
            return whole

        is_accident = timer.singles.count(stray.key) < MOST_SINGLES
        is_put = is_accident and self._load(map_leaves(mended, get()), self.step)
        text = JUMP.format(**stray._asdict(), step=newest.step)
        then = f"that weight came from the backup of step {newest.step:,}" if is_put else "it stays"
        self.announcer.say_once(f"single {self.step}", f"step {self.step:,}: probably {text}; {then}.")
        timer.singles.append(stray.key)
        if not is_put:
            timer.peaks[stray.key] = stray.peak
        persistence.look_at_weights()

    def mend(self) -> bool | None:
        """Replace what is not finite with the newest backup's, if that is little.

        Returns:
            Whether all of the state is finite; None if it cannot be seen.
        """
        get = self.persistence.callbacks.state
        if get is None:
            return None
        if not self.damage():
            return True
        newest = next((each for each in reversed(self.persistence.backup.backups) if each.witness), None)
        if newest is None or newest.state is None:
            return False
        live = get()
        try:
            mended, names = repair(live, newest.state, self.persistence.backup_timer.meant)
        except ValueError:
            # The backup does not fit.
            mended, names = live, []
        count = num_float_arrays(live) if self._keeps_rates else len(leaves(live))
        is_little = 0 < len(names) <= MOST_MENDED * count
        # Where some ranks hold no damage, mending the others would make their weights differ.
        if self.persistence.agreement.agree("" if is_little else "go back") or not self._load(mended, self.step):
            return False
        named = f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        self.put_step = self.step
        text = f"not finite in the state of the model: {named}; taken from the backup of step {newest.step}."
        self.announcer.tell(events.Notice, text=text, is_warning=False)
        self.mended = f"{named} had numbers that are not finite, and {MENDED} {newest.step}"
        return True

    def is_swollen(self) -> bool:
        """Whether many arrays are far larger than in the newest backup, as moments are after a huge gradient."""
        get, newest = self.persistence.callbacks.state, self.persistence.backup.newest
        if get is None or newest is None or newest.state is None:
            return False
        is_swollen = _has_swollen(get(), newest.state, SWOLLEN)
        return bool(self.persistence.agreement.agree("swollen" if is_swollen else ""))

    def before_swollen(self, known: Sequence[Backup]) -> Sequence[Backup]:
        """The first of some states, oldest first: those before one in which many arrays are far larger at once."""
        for before, each in itertools.pairwise(known):
            is_known = before.updates >= EARLY_UPDATES and not (before.state is None or each.state is None)
            is_swollen = is_known and _has_swollen(each.state, before.state, LATENT)
            if self.persistence.agreement.agree("swollen" if is_swollen else ""):
                return known[: known.index(each)]
        return known

    def find_jump(self) -> int | None:
        """Updates of the newest backup from which weights have grown by far to the next state; None if they never have.

        The first state does not count, as untrained weights may grow so.
        """
        get, found = self.persistence.callbacks.state, ""
        newer = None if get is None else get()
        for each in reversed(self.persistence.backup.backups):
            if newer is None or each.state is None or not each.updates or found:
                break
            roots = {key.split(".")[0] for key, _ in leaves(each.state)}
            grown = _growth_of(newer, each.state, {key for key in roots if "opt" not in key}, least=LEAST_GROWTH)
            if grown is not None:
                # An update that is too large changes more of them.
                is_single = grown.num <= max(1, MOST_SINGLE * grown.size)
                text = JUMP.format(**grown._asdict(), step=each.step) if is_single else ""
                found = f"{each.updates} {text}"
            newer = each.state
        updates, _, self.jump = self.persistence.agreement.agree(found).partition(" ")
        return int(updates) if updates else None

    def before_move(self, updates: int, is_sure: bool = False) -> Backup | None:
        """The newest backup of at most so many updates, if weights have moved far since, see `moved_in`; else None, as
        with several processes.

        Args:
            updates: Those before the first sign of damage.
            is_sure: Whether something else has shown that weights have changed at once.
        """
        persistence, get = self.persistence, self.persistence.callbacks.state
        known = [each for each in persistence.backup.backups if each.state is not None and each.updates <= updates]
        if not known or get is None or persistence.agreement.ranks is not None:
            return None
        is_sure = is_sure or bool(moved_in(known, get(), persistence.backup_timer.is_weight))
        return known[-1] if is_sure else None

    def has_grown_at_once(self) -> bool:
        """Whether weights are far larger after the first update, or two, than any were before."""
        states = [each.state for each in self.persistence.backup.backups[:2] if each.updates <= 2]
        is_known = len(states) == 2 and not any(each is None for each in states)
        return is_known and _growth_of(states[1], states[0], least=FAR_GROWN) is not None

    def keep_present(self) -> bool:
        """Set the present state aside; False if it cannot be seen or is damaged, or without memory."""
        get, persistence = self.persistence.callbacks.state, self.persistence
        if get is None or self.damage():
            return False
        try:
            self.present = persistence.agreement.copied("the weights", lambda: persistence.backup.copy(get()))
        except MemoryError:
            self.announcer.warn_once(
                "no present",
                "there was no memory to set the present weights aside: if no backup proves better, they are lost.",
            )
        return self.present is not None

    def put(self, backup: Backup) -> bool:
        """Put a backup back; False if it is missing, cannot be loaded, or is not finite afterwards."""
        persistence, name = self.persistence, "backup"
        if not backup.can_be_put:
            return False
        if backup.is_on_disk:
            name = persistence.name_of(backup)
            checkpoint = persistence.store.load_named(name) if name and persistence.store is not None else None
            if checkpoint is None:
                return False
            self.guard, source = checkpoint.state["guard"], str(checkpoint.model_path)
        else:
            self.guard, source = None, persistence.backup.clone(backup.state)
        if not self._load(source, backup.step, name):
            return False
        self.current, self.put_step = backup, backup.step
        return True

    def _load(self, source: Any, step: int, name: str = "backup") -> bool:
        """Load a state in RAM that is not used afterwards, or a model's file; the rest is for messages."""
        persistence, trouble = self.persistence, ""
        if persistence.callbacks.load is None:
            return False
        self.is_restoring = True
        try:
            call_load(persistence.callbacks.load, source, from_ram=name == "backup")
        except RuntimeError as error:
            trouble = str(error)
        finally:
            self.is_restoring = False
            persistence.wake()
        damaged = "" if trouble else self.damage(is_shared=False)
        if damaged:
            trouble = f"{damaged!r} was not finite afterwards: does load_callback restore it?"
        trouble = persistence.agreement.agree(trouble)
        if trouble:
            self.failures.append(f"{name} of step {step}: {trouble}")
            self.announcer.tell(events.RestoreFailed, to_step=step, source=name, reason=trouble)
        return not trouble

    def raise_failures(self) -> None:
        """Raise RestoreError if any state could not be restored."""
        if self.failures:
            raise RestoreError(f"{' | '.join(self.failures)} The model may be partly restored.")

    def restore_newest(self, *, is_of_run: bool = False) -> Backup | None:
        """Restore the newest backup, or else the newest checkpoint; None if there is none.

        Args:
            is_of_run: Whether it must be a backup that holds the scheduler's own state, too.

        Raises:
            RestoreError: the load callback raised for every state there is.
        """
        self.begin()
        steps, backups = sorted(self.persistence.checkpoints()), self.persistence.backup.backups
        for backup in reversed([*(Backup(step, step, is_on_disk=True) for step in steps), *backups]):
            if (backup.moment is not None or not is_of_run) and self.put(backup):
                self.end()
                return backup
        self.raise_failures()
        return None

    def put_present(self) -> bool:
        """Put back a copy of the state kept aside, which is kept until `end`; False if there is none."""
        return self.present is not None and self.put_copy(self.persistence.backup.clone(self.present))

    def put_copy(self, present: Any) -> bool:
        """Put back a state that was set aside, or a `Saved` one, which is not used afterwards."""
        if not self._load(self._formed(present), self.step):
            return False
        self.current, self.put_step = None, self.step
        return True

    def _formed(self, state: Any) -> Any:
        """A state that the load callback takes."""
        get = self.persistence.callbacks.state
        return fill(state.parts, None if get is None else get()) if isinstance(state, Saved) else state

    def show(self, state: Any) -> None:
        """Put a state in for the user's code between two epochs; `hide` puts back what was there, to the bit.

        Args:
            state: A backup, or a state set aside, of which a copy is put in.
        """
        get, persistence = self.persistence.callbacks.state, self.persistence
        if get is None or persistence.callbacks.load is None or self.of_trial is not None:
            return
        shown = state if isinstance(state, Backup) else None
        try:
            of_trial, copy = persistence.agreement.copied(
                "the weights", lambda: (clone(get()), None if shown else clone(self._formed(state)))
            )
        except MemoryError:
            return
        self.of_trial, before = of_trial, (self.current, self.put_step)
        is_put = self._load(copy, self.step) if shown is None else self.put(shown)
        # What is shown is not under test.
        self.current, self.put_step = before
        if not is_put:
            self.hide()

    def hide(self) -> None:
        """Put the state of the trial back that `show` has set aside, to the bit, if there is one."""
        of_trial, self.of_trial = self.of_trial, None
        if of_trial is not None:
            self._load(self._formed(of_trial), self.step)

    def end(self) -> None:
        """End an experiment: drop the state set aside."""
        self.present, self.current, self.of_trial = None, None, None


def _has_swollen(state: Any, backup: Any, factor: float) -> bool:
    """Whether many arrays of a state are more than so many times as large as in an earlier one."""
    ratios = growth(state, backup).values()
    return sum(ratio > factor for ratio in ratios) > SWOLLEN_SHARE * len(ratios)


def _growth_of(state: Any, backup: Any, roots: Collection[str] = (), *, least: float) -> Grown | None:
    """See `outgrown`; ``roots``: the parts of a state that count, all if there are none."""

    def is_weight(key: str) -> bool:
        return not roots or key.split(".")[0] in roots

    weights, before = (weights_in(sums_of(each), is_weight) for each in (state, backup))
    return outgrown(weights, peaks_of(weights), peaks_of(before), least=least)


def repair(state: Any, backup: Any, meant: Collection[str] = (), ruined: Collection[str] = ()) -> tuple[Any, list[str]]:
    """Replace the arrays of a state that are not finite by those of a backup.

    Args:
        state: A live state.
        backup: An earlier one of the same structure, such as a backup.
        meant: Dotted keys of what is not finite on purpose.
        ruined: Those of what is finite, and replaced as well, where the state has it.

    Returns:
        The state, whose other arrays are the live ones, with copies from the backup among them; and the dotted keys of
        those.

    Raises:
        ValueError: the backup has nothing in the place of one of them, or nothing that is finite and of its shape.

    >>> import numpy as np
    >>> repair({"w": np.array([np.nan]), "b": np.ones(1)}, {"w": np.zeros(1), "b": np.zeros(1)})
    ({'w': array([0.]), 'b': array([1.])}, ['w'])
    """
    broken = [*(key for key in not_finite(state) if key not in meant), *ruined]
    whole = dict(leaves(backup)) if broken else {}

    def repaired(leaf: Any, *path: Any) -> Any:
        key = ".".join(map(str, path)) or "state"
        if key not in broken:
            return leaf
        other = whole.get(key)
        if getattr(other, "shape", None) != getattr(leaf, "shape", None) or other is None or not_finite(other):
            raise ValueError(f"backup must have a finite array like that of the state in {key!r}, got {type(other)}.")
        return clone(other)

    return (map_leaves(repaired, state) if broken else state), broken


class Witnesses:
    """Notes the first batch that is trained on after each backup and checkpoint.

    Args:
        persistence: Holds the backups and knows the checkpoints.
        trust_steps: Calm losses after a state that make its witness a reference.

    Attributes:
        waiting: The newest checkpoint while its witness is not complete; None otherwise.
        calm_run: Calm losses in a row.
        last: The last batches that were reported, and their finite losses.
    """

    def __init__(self, persistence: Persistence, trust_steps: int) -> None:
        self._persistence, self._backup, self._trust_steps = persistence, persistence.backup, trust_steps
        self.forget_checkpoints()
        self.calm_run = 0
        self.last: deque[tuple[Ticket, float]] = deque(maxlen=NUM_LATEST)

    def forget_checkpoints(self) -> None:
        """Forget what is known of checkpoints, as losses mean something else from here on."""
        self._on_disk: list[Backup] = []
        self.waiting: Backup | None = None

    @property
    def first(self) -> Backup | None:
        """The state that the run began with; None if it is not stored."""
        backups = self._backup.backups
        return backups[0] if backups and not backups[0].updates else None

    def latest(self) -> list[Backup]:
        """The last batches with their losses, if they were kept; their states are not."""
        items = [(ticket.chunk.witness_of(ticket.indices), loss) for ticket, loss in self.last]
        return [Backup(0, 0, witness=[item], losses=[loss]) for item, loss in items if item is not None]

    def are_surpassed_by(self, ticket: Ticket) -> bool:
        """Whether a batch of the user's own holds numbers far beyond those of the newest one that was kept."""
        known = [item for backup in self._backup.backups for item in backup.witness if item is not None]
        found = far_off(ticket.chunk.given, known[-1]) if known else []  # type: ignore[union-attr]
        # Of whole numbers, the one of a rare class is far beyond others.
        return any(not each.is_whole for each in found)

    def note_start(self) -> None:
        """Note the random generators as the training on a batch begins; of use for the first one after a backup."""
        generators, states = self._persistence.callbacks.generators, (self._backup.newest, self.waiting)
        begun = [each for each in states if each is not None and not (each.is_closed or each.witness)]
        if generators is not None and begun:
            state = generators.get()
            for each in begun:
                each.generators = state

    def note(self, ticket: Ticket, loss: float) -> None:
        """Note a batch of the first update after the newest backup or checkpoint."""
        for each in (self._backup.newest, self.waiting):
            if each is not None and not each.is_closed and ticket.draw >= each.draws:
                self._backup.add_witness(each, ticket.chunk.witness_of(ticket.indices), loss)
        if self.waiting is not None and self.waiting.is_closed:
            self.waiting = None

    def drop_newest(self) -> None:
        """Drop the batch of the newest state, as one since then has damaged statistics, with a good loss."""
        newest = self._backup.newest
        if newest is None or not newest.updates:
            return
        for each in (newest, *self._on_disk):
            if each.updates >= newest.updates:
                each.witness, each.losses, each.is_closed = [], [], True
        self.waiting = None

    def note_checkpoint(self, step: int, updates: int, recent: Iterable[float]) -> None:
        """Note that a checkpoint of this step is on disk; its witness is the next batch that is trained on."""
        if any(each.step == step for each in self._on_disk):
            return
        self.waiting = Backup(step, updates, recent=tuple(recent), is_on_disk=True)
        self._on_disk = [*self._on_disk, self.waiting][-MOST_ON_DISK:]

    def trust(self, updates: int, *, is_calm: bool) -> None:
        """Trust the states after which enough losses were calm; to be called every fourth update."""
        self.calm_run = self.calm_run + 4 if is_calm else 0
        if self.calm_run >= self._trust_steps:
            for each in (*self._backup.backups, *self._on_disk):
                each.is_proven = each.is_proven or (updates - each.updates >= self._trust_steps and bool(each.witness))

    def all_states(self) -> list[Backup]:
        """The states in RAM and on disk, with a witness or without, oldest first."""
        files = self._persistence.checkpoints()
        by_step = {step: Backup(step, step, is_on_disk=True) for step in files}
        for each in (*self._on_disk, *self._backup.backups):
            if each.step in files or not each.is_on_disk:
                by_step[each.step] = each
        return sorted(by_step.values(), key=operator.attrgetter("step"))

    def known(self) -> list[Backup]:
        """Those with a witness; none where there is nothing but the record of an earlier process."""
        known = [each for each in self.all_states() if each.witness]
        return known if any(each.can_be_put for each in known) else []

    def best(self, start: float) -> Backup | None:
        """The state to end with where the present one is lost: the newest one that is trusted; None if there is none.

        Args:
            start: The level of the losses as the run began; a trained state whose losses were no higher goes before the
                initial one, trusted or not.
        """
        known = [each for each in self.known() if each.can_be_put]
        trained = [each for each in reversed(known) if each.updates]
        trusted = [each for each in trained if each.is_proven]
        lower = [each for each in trained if each.usual <= start]
        return next(iter([*trusted, *lower, *known]), None)

    def newest_as_good(self, backup: Backup) -> Backup:
        """The newest state whose losses were no higher than those of this one, but for their spread."""
        limit = backup.usual + backup.spread
        newer = [each for each in self.known() if each.can_be_put and each.updates > backup.updates]
        return next((each for each in reversed(newer) if each.usual <= limit), backup)

    def went_back(self, backup: Backup) -> None:
        """Forget the states of abandoned weights, as this one was restored."""
        self._backup.forget_after(backup.updates)
        self._on_disk, self.waiting = [each for each in self._on_disk if each.updates <= backup.updates], None
        backup.is_proven, self.calm_run = True, 0

    def begin_anew(self, replayed: Iterable[Backup]) -> None:
        """Take the losses of the last replays as records; forget all other records."""
        kept = list(replayed)
        self.forget_checkpoints()
        self._backup.keep([each for each in self._backup.backups if each in kept])
        for each in self._backup.backups:
            each.begin_anew(each.replayed)
            each.moment = None

    def forget_records(self) -> None:
        """Forget what losses say about all states, as they mean something else from here on."""
        self.forget_checkpoints()
        for each in self._backup.backups:
            if each.witness:
                each.begin_anew()

    def to_plain(self) -> list[dict[str, Any]]:
        """What is known of all states, for a saved state."""
        return [each.state_dict() for each in (*self._on_disk, *self._backup.backups) if each.witness]

    def load_plain(self, saved: Iterable[Mapping[str, Any]]) -> None:
        """Load what `to_plain` returned; the states are those of checkpoints."""
        self._on_disk = list({each["step"]: Backup.from_plain(each) for each in saved}.values())

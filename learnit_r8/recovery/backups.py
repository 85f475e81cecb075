"""Backups: model states to go back to, each with its witness, the first batch that was trained on after it.

The loss of the witness was computed with exactly the weights of its backup. So drawing that batch again tells whether
other weights are as good. Of running statistics, which no loss of training shows, their size tells it.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..events.bus import Announcer
from ..state import tree
from ..table.trend import median
from .saved_fields import NOT_SAVED, SavedFields

LEVEL_LOSSES = 32
"""Losses before a backup from which its level and spread are computed."""

LEAST_LOSSES = 8
"""Losses that must be known for that."""

LEAST_SPREAD = 1e-3
"""Least spread of losses, as a share of their median."""

FAR_SPREADS = 6.0
"""Spreads of the losses before a backup, and at least their level once more, by which the loss of a bad batch is above
them. Other weights may have any loss on such a batch."""

RUNNING_VARIANCE = re.compile(
    r"\.running_var$|/moving_variance|\bbatch_stats\..*\bvar$|\.var\.value$|\.(batch|ema)_state_index\.1$"
)
"""Names of running variances: of torch, Keras, Flax's Linen and NNX, and Equinox, whose means are number 0."""

MEAN_OF = re.compile(r"var(iance)?(?=$|\.value$)"), re.compile(r"(?<=_state_index\.)1$")
"""What to replace in such a name for that of the means."""

COUNT_OF = {"batch_state_index.1": "batch_counter", "ema_state_index.1": "ema_first_time_index"}
"""What Equinox weighs them by, or whether there are any yet."""

MOST_OF_LENGTH = 0.75
"""Share of their own length by which weights that were replaced at once have moved, at least."""

NUM_SAMPLED, ALONE_FAR, MOST_OTHERS = 128, 8.0, 4.0
"""How many numbers of a matrix tell how far it moves; and how many times as far as in the last intervals one has moved
that was replaced, and all others at most.
"""

MOST_VARIANCE = 300
"""How many times as large as ever before running variances jump."""

NO_VARIANCE = 1e-5
"""What frameworks add to a variance: below it, a jump changes nothing."""

LEAST_STEP = 7
"""Steps in which running variances come within a factor of 150 of what the data have, at a momentum of .999."""

MOST_IN_A_ROW = 8
"""Batches in a row that may be bad, the first ones of a run, too; where more ruin statistics that were put back, the
data are others now."""

ALIKE, NUM_ALIKE = 1e-3, 2
"""Relative difference of the rates at which a variance falls from look to look, and how often they differ by less where
all batches since the first ones have next to nothing of it."""

STAYS = (
    "{!r} is more than 300 times as large as ever before, since step {}: a batch far out of range has probably "
    "ruined running statistics, which validation uses and no training loss shows; take them anew by passes over sound "
    "batches in the mode of training (torch: swa_utils.update_bn)."
)


LEAST_MOVES = 3
"""Least moves from a backup to the next with which the last one is compared. In twelve trainings, the moves of an array
since the newest backup were .2 of the farthest before at most, and those of one that became noise or 0, 1 to 10."""


class SchedulerState(NamedTuple):
    """The scheduler's own state when a model state is copied, which goes back with the model.

    Later reports stay in the table, whether or not it has learned them already: that depends on when somebody last read
    the table, and reading must not change the run.

    Attributes:
        memory: The guard's state.
        trend: The trend of the losses, and whether estimates were differences from it.
        baseline: Number of baseline resets by then.
        updates: Updates that the weights had taken.
        recent: The last losses learned from.
        state: The state of the run except the table's records; a run that was cut short goes on from it.
    """

    memory: Any
    trend: tuple[float, bool]
    baseline: int
    updates: int
    recent: tuple[float, ...]
    state: Any = None


FAR_GROWN = 100.0
"""How many times as large as all others weights are that a bad batch or a stray write has ruined: at rates too high
they grow tenfold in eight."""

LATENT, SWOLLEN_SHARE = 1000.0, 0.1
"""How many times as large as in the backup before, or at the last look, arrays are that hold the moments of a huge
gradient, after the first steps; and their least share of all. Whatever made them so, the weights repeat their loss, and
then are lost with the next steps or hardly move."""


@dataclass(eq=False)
class Backup(SavedFields):
    """A state to go back to, in RAM or in a checkpoint; what is saved of it is its record.

    Attributes:
        step: Steps reported when it was taken.
        updates: Updates that its weights had taken.
        draws: Batches drawn by then; only the losses of later ones say anything about it.
        state: The copy, which must not be changed; None for a checkpoint, and where only the record is known.
        is_on_disk: Whether it is a checkpoint.
        is_resumed: Whether a resumed run went on from it, and knows no older one, as no file holds the user's batches.
        is_of_file: Whether it is the initial state as the file of a resumed run knows it.
        moment: The scheduler's own state at that time; None for a checkpoint.
        recent: The last losses before it.
        witness: The batches of the first update after it, each as the plan draws it again: int64[B], or what the user's
            loader gave.
        losses: Their losses.
        generators: Random generators at the start of the witness; None where they cannot be set.
        is_closed: Whether its witness is complete: the optimizer has taken its step.
        is_proven: Whether enough calm losses have followed, so that the record is that of healthy weights.
        replayed: The loss of the witness when it was drawn again; NaN before.
        noise: Difference of two of those losses, with the same weights; NaN where it was drawn again once at most.
        moves: The step of the backup before it, and how far each array of weights has moved since then; see `moved_in`.
    """

    step: int
    updates: int
    draws: int = field(default=0, metadata=NOT_SAVED)
    state: Any = field(default=None, metadata=NOT_SAVED)
    moment: SchedulerState | None = field(default=None, metadata=NOT_SAVED)
    recent: tuple[float, ...] = ()
    witness: list[Any] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    generators: Any = field(default=None, metadata=NOT_SAVED)
    is_closed: bool = field(default=False, metadata=NOT_SAVED)
    is_proven: bool = False
    replayed: float = field(default=math.nan, metadata=NOT_SAVED)
    noise: float = field(default=math.nan, metadata=NOT_SAVED)
    is_on_disk: bool = field(default=False, metadata=NOT_SAVED)
    is_resumed: bool = field(default=False, metadata=NOT_SAVED)
    is_of_file: bool = field(default=False, metadata=NOT_SAVED)
    moves: tuple[int, Mapping[str, float]] = field(default=(-1, MappingProxyType({})), metadata=NOT_SAVED)

    @property
    def can_be_put(self) -> bool:
        """Whether more than its record is known."""
        return self.state is not None or not self.is_of_file

    @property
    def record(self) -> float:
        """Mean loss of the witness; NaN before it is known."""
        return sum(self.losses) / len(self.losses) if self.losses else math.nan

    @property
    def level(self) -> float:
        """Median of the losses before it; NaN if there were too few."""
        return median_of(self.recent[-LEVEL_LOSSES:]) if len(self.recent) >= LEAST_LOSSES else math.nan

    @property
    def spread(self) -> float:
        """Robust standard deviation of the losses before it."""
        return spread_of(self.recent[-LEVEL_LOSSES:])

    @property
    def usual(self) -> float:
        """The level of the losses before it, or where there were too few, that of its witness."""
        return self.level if self.level == self.level else self.record

    @property
    def is_typical(self) -> bool:
        """Whether its witness had a loss like those before it, as far as they are known."""
        far = max(FAR_SPREADS * self.spread, abs(self.level))
        return not self.record > self.level + far

    @property
    def is_usual(self) -> bool:
        """Whether its witness had no loss far above those before it, as far as they are known."""
        return not self.record > self.level + FAR_SPREADS * self.spread

    @classmethod
    def from_plain(cls, saved: Mapping[str, Any]) -> Backup:
        """Make a backup of what `state_dict` returned; its state is in a checkpoint."""
        backup = cls(0, 0, is_on_disk=True)
        backup.load_state_dict(saved)
        backup.witness = [np.asarray(each, np.int64) for each in backup.witness]
        return backup

    def begin_anew(self, record: float = math.nan) -> None:
        """Take another record, as losses mean something else from here on; with NaN, probes say nothing any more."""
        self.losses, self.recent, self.is_proven = [record], (), False


def spread_of(losses: Sequence[float]) -> float:
    """Robust standard deviation of losses: 1.4826 times their median distance from the median; 0 for fewer than two."""
    if len(losses) < 2:
        return 0.0
    middle = median_of(losses)
    return max(1.4826 * median_of([abs(each - middle) for each in losses]), LEAST_SPREAD * abs(middle))


def median_of(losses: Sequence[float]) -> float:
    """Median of losses, of which there is at least one; NaN if one of them is. numpy's takes 20 us for as few as these.

    >>> median_of([3.0, 1.0, 2.0, 4.0])
    2.5
    """
    return math.nan if math.isnan(sum(losses)) else median(sorted(losses))


def moved_in(
    known: Sequence[Backup], state: Any, is_weight: Callable[[str], object], *, times: float = 1.0,
    step: int | None = None,
) -> str:  # fmt: skip
    """The first array of weights that has moved farther since the newest of some backups than between any two of them.

    Args:
        known: Those, oldest first; of few nothing is said. The first one counts: what is trained moves less in a few
            steps than in all the steps before. Weights that were frozen at any time say nothing.
        state: A state after them.
        is_weight: Whether a key is that of a weight.
        times: How many times as far.
        step: That of the state, if fewer steps than between two of them shall be taken to move weights less: by the
            root of their share, as those of a random walk. Then it must be by most of their own length, too: steps
            that are too large move healthy ones farther at once.

    Returns:
        Its dotted key; "" if there is none.
    """
    if len(known) <= LEAST_MOVES:
        return ""
    for older, each in itertools.pairwise(known):
        if each.moves[0] != older.step:
            each.moves = older.step, tree.moves(older.state, each.state, is_weight)
    last, span = tree.moves(known[-1].state, state, is_weight), math.inf if step is None else step - known[-1].step
    shares = [math.sqrt(min(1.0, span / max(1, each.step - each.moves[0]))) for each in known[1:]]
    before = {
        key: [share * each.moves[1].get(key, 0.0) for each, share in zip(known[1:], shares, strict=True)]
        for key in last
    }
    far = [key for key, each in last.items() if each > times * max(before[key]) and min(before[key]) > 0]
    if far and step is not None:
        arrays = dict(tree.leaves(known[-1].state))
        far = [key for key in far if last[key] > MOST_OF_LENGTH * tree.length_of(arrays[key])]
    return next(iter(far), "")


class LastMoves:
    """How each matrix of weights has changed from look to look, of which a few numbers tell.

    One that moves far and leaves all others as they are was replaced: no update does that.

    Attributes:
        at: Steps reported at the last look.
    """

    def __init__(self) -> None:
        self.at = 0
        self._samples: dict[str, NDArray[np.float64]] = {}
        self._moves: dict[str, deque[tuple[float, int]]] = {}

    @property
    def sizes(self) -> dict[str, float]:
        """The length of each matrix at the last look, of those numbers."""
        return {key: tree.length_of(each) for key, each in self._samples.items()}

    def forget_last(self) -> None:
        """Compare nothing with the last look, as another state was put in."""
        self._samples = {}

    def look(self, matrices: Mapping[str, Any], step: int) -> str:
        """Note all matrices; the name of the one that alone has moved far since the last look, "" if there is none."""
        before, steps = self._samples, step - self.at
        self._samples, self.at = {key: tree.sample_of(each, NUM_SAMPLED) for key, each in matrices.items()}, step
        if not steps or before.keys() != matrices.keys():
            return ""
        times, far = [], []
        for key, sample in self._samples.items():
            moved, last = _typical(sample - before[key]), self._moves.setdefault(key, deque(maxlen=LEAST_MOVES))
            # As far as they have moved at most, on and on.
            most = max((each * max(1.0, steps / count) for each, count in last), default=0.0)
            # Frozen ones say nothing.
            if len(last) == LEAST_MOVES and min(last)[0] > 0:
                if moved > max(ALONE_FAR * most, MOST_OF_LENGTH * _typical(before[key])):
                    far.append(key)
                else:
                    times.append(moved / most)
            last.append((moved, steps))
        return far[0] if len(far) == 1 and times and max(times) < MOST_OTHERS else ""


def _typical(numbers: NDArray[np.float64]) -> float:
    """Their median size, which a few that are far off do not move."""
    middle = len(numbers) // 2
    return float(np.partition(abs(numbers), middle)[middle])


class RamBackup:
    """Holds copies of model states: the first, the newest, and some between, the older the farther apart.

    Args:
        clone: Makes an independent copy. The default copies arrays, tensors and nests of them, and everything else that
            `copy.deepcopy` copies.
        copy_into: ``(buffer, state)``: copies into an earlier copy that is no longer needed, and returns the copy.
            By default, the default ``clone`` reuses buffers and any other makes new copies.
        most: Copies to hold, >= 2.
        saves_witnesses: Whether files hold the witnesses, as indices.

    Attributes:
        backups: Oldest first.
        clone: As given; makes a copy that a callback may change.
        earlier: What the file of a resumed run knows of its initial state, until `BackupTimer.take_in`.
        most: As given.
        witness_size: Batches in a witness: those whose gradients make one update.

    >>> backup = RamBackup()
    >>> weights = {"w": [1.0]}
    >>> _ = backup.offer(weights, step=10)
    >>> weights["w"][0] = 9.9
    >>> backup.clone(backup.newest.state)
    {'w': [1.0]}
    """

    def __init__(
        self, clone: Callable[[Any], Any] = tree.clone, copy_into: Callable[[Any, Any], Any] | None = None, *,
        most: int = 7, saves_witnesses: bool = True,
    ) -> None:  # fmt: skip
        self.backups: list[Backup] = []
        self.earlier: Backup | None = None
        self.most, self._saves_witnesses = most, saves_witnesses
        self.witness_size = 1
        self._lent: Any = None
        self.copy_with(clone, copy_into)

    def copy_with(self, clone: Callable[[Any], Any], copy_into: Callable[[Any, Any], Any] | None = None) -> None:
        """Copy with these functions from now on; see the class."""
        self.clone = clone
        self._copy_into = tree.copy_into if copy_into is None and clone is tree.clone else copy_into
        self._spares: list[Any] = []

    def lend(self, state: Any) -> None:
        """Leave the memory of a stored state alone, as another thread reads it; None once it has been read."""
        self._lent = state

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to restore; what only a file knows is the oldest."""
        return not (self.backups and self.backups[-1].can_be_put)

    @property
    def has_none_of_now(self) -> bool:
        """Whether there is no state since the run was begun or resumed."""
        return not self.backups or self.backups[-1].is_of_file

    @property
    def newest(self) -> Backup | None:
        """The newest state; None if there is none."""
        return self.backups[-1] if self.backups else None

    def add_witness(self, backup: Backup, witness: Any, loss: float) -> None:
        """Note a batch that was trained on after a state, and its loss."""
        backup.witness.append(witness)
        backup.losses.append(loss)
        backup.is_closed = len(backup.witness) >= self.witness_size

    def end_update(self) -> None:
        """Take the witness of the newest state for complete: the optimizer has taken a step with fewer batches than
        usual.
        """
        if self.backups and self.backups[-1].witness:
            self.backups[-1].is_closed = True

    def copy(self, state: Any) -> Any:
        """A copy of a state, in memory that is free where there is any.

        Raises:
            TypeError: it cannot be copied.
            MemoryError: there is no memory for a copy.
        """
        if self._spares and self._copy_into is not None:
            # If this fails, the partly written buffer is not used again.
            return self._copy_into(self._spares.pop(), state)
        return self.clone(state)

    def offer(self, state: Any, *, step: int, draws: int = 0, moment: SchedulerState | None = None) -> Backup:
        """Copy a state and store it.

        Args:
            state: The model state; anything ``clone`` can copy.
            step: Steps reported so far.
            draws: Batches drawn so far.
            moment: The scheduler's own state, returned with it; None for an update each step.

        Raises:
            TypeError: it cannot be copied; the stored states are unchanged.
            MemoryError: there is no memory for a copy; the stored states are unchanged.
        """
        updates, recent = (step, ()) if moment is None else (moment.updates, moment.recent)
        is_resumed = bool(updates) and self.has_none_of_now and not self._saves_witnesses
        backup = Backup(step, updates, draws, self.copy(state), moment, recent, is_resumed=is_resumed)
        # If nothing was trained on since the last one, that says nothing that this one does not.
        says_nothing = len(self.backups) > 1 and not self.backups[-1].witness
        backups = [*self.backups[: -1 if says_nothing else None], backup]
        # Without those whose neighbours are closest to each other, for their age; the first and the newest stay always.
        while len(backups) > self.most:
            taken = [each.updates for each in backups]
            gaps = [(taken[n + 1] - taken[n - 1]) / (taken[-1] - taken[n - 1] + 1) for n in range(1, len(taken) - 1)]
            del backups[1 + min(range(len(gaps[:-1] or gaps)), key=gaps.__getitem__)]
        self.keep(backups)
        return backup

    def keep(self, backups: list[Backup]) -> None:
        """Store these alone, and reuse the memory of all others."""
        # At once, so that an interrupt leaves all of it undone, or nothing.
        before, self.backups = self.backups, backups
        for each in before:
            if each not in backups:
                self.recycle(each)

    def recycle(self, backup: Backup) -> None:
        """Reuse the memory of a state that is no longer stored."""
        if backup.state is not None and backup.state is not self._lent and self._copy_into is not None:
            self._spares = [*self._spares, backup.state][-2:]

    def forget_after(self, updates: int) -> None:
        """Forget the states whose weights had taken more updates: they come from weights that were abandoned."""
        self.keep([each for each in self.backups if each.updates <= updates])

    def clear(self) -> None:
        """Forget all states."""
        self.backups = []
        self._spares = []


class Fall(NamedTuple):
    """How the running variance of an untrained norm falls, while only the first batches tell its scale.

    Attributes:
        untrained: Its sum as the run began.
        step: Steps reported at the last look.
        rate: Logarithm of what it has lost at each step since the look before; 0 where it has risen.
        num_alike: How many rates in a row were like those before them.
    """

    untrained: float
    step: int
    rate: float = 0.0
    num_alike: int = 0

    def go_on(self, last: float, total: float, step: int) -> Fall:
        """The fall from the last sum to this one."""
        rate = math.log(last / total) / max(1, step - self.step) if 0 < total < last else 0.0
        is_alike = rate > 0 and abs(rate - self.rate) <= ALIKE * rate
        return Fall(self.untrained, step, rate, self.num_alike + 1 if is_alike else 0)

    def is_of_batch(self, total: float) -> bool:
        """Whether one of the first batches has ruined the variance: the later ones agree that they have far less."""
        return self.num_alike >= NUM_ALIKE and total > MOST_VARIANCE * self.untrained > 0


@dataclass(eq=False)
class RunningVariances(SavedFields):
    """Compares the sum of each array of running variances with those at earlier looks, by name.

    Attributes:
        announcer: Warns of statistics that stay ruined.
        highest: The highest sums so far, of looks at which they were not ruined.
        in_a_row: How often in a row they were put back.
        last: The sums at the last look.
        falls: Those that have only fallen since the first steps.
        ruined: Of those that were ruined at the last look, until `note`: the sum, and how often in a row they were.
    """

    announcer: Announcer = field(metadata=NOT_SAVED)
    highest: dict[str, float] = field(default_factory=dict)
    in_a_row: dict[str, int] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict, metadata=NOT_SAVED)
    falls: dict[str, Fall] = field(default_factory=dict, metadata=NOT_SAVED)
    ruined: dict[str, tuple[float, int]] = field(default_factory=dict, metadata=NOT_SAVED)

    @property
    def names(self) -> list[str]:
        """Names of the running variances, and of the means and counts beside them."""
        of_variance, of_number = MEAN_OF
        means = [of_number.sub("0", of_variance.sub("mean", key)) for key in self.last]
        counts = [key.replace(end, COUNT_OF[end]) for key in self.last for end in COUNT_OF if key.endswith(end)]
        return [*self.last, *means, *counts]

    def compare(self, sums: list[tree.Sum], *, is_alone: bool) -> None:
        """Find those that are far larger than at any look before.

        Args:
            sums: The sums of the state at this look.
            is_alone: Whether they can be put back: of several processes, another one may have met no such batch.
        """
        self.ruined, step, can_be_put = {}, self.announcer.where()[0], is_alone
        # What weighs its statistics by a count, as of rewards, which may come late, needs that to go back, too.
        counted = {name.removesuffix("count") + "running_var" for name, *_ in sums if name.endswith(".count")}
        for key, _, _, of_array in sums:
            # The pattern takes far longer to see that a name is none.
            if not ("var" in key or "state_index" in key) or not RUNNING_VARIANCE.search(key) or key in counted:
                continue
            total, highest = of_array.real, self.highest.get(key, 0.0)
            last = self.last.get(key, total)
            fall = self.falls.get(key) if key in self.last else Fall(total, step)
            fall = fall.go_on(last, total, step) if fall and total != last else fall
            is_jump = highest and total > MOST_VARIANCE * max(highest, NO_VARIANCE)
            if is_jump or (fall and fall.is_of_batch(total)):
                count = self.in_a_row.get(key, 0) + 1
                self.ruined[key], can_be_put = (total, count), can_be_put and count <= MOST_IN_A_ROW
                continue
            # Between looks that are far apart it may have risen at any of the first steps.
            if fall and (total <= last or step <= MOST_IN_A_ROW or not highest):
                self.falls[key] = fall
            else:
                self.falls.pop(key, None)
            # That of an average of the weights may stay 1 until it begins.
            if total != last and step >= LEAST_STEP:
                # Batches in between were usual: what ruins it again is a bad one, not data of another scale.
                self.in_a_row.pop(key, None)
                self.highest[key] = max(highest, total)
            self.last[key] = total
        if not can_be_put:
            self.note(self.ruined, are_put_back=False)

    def precede(self, state: Any) -> bool:
        """Whether a state holds variances from before they were ruined."""
        sums = {key: of_array.real for key, _, _, of_array in tree.sums_of(state)}
        return all(MOST_VARIANCE * sums.get(key, total) < total for key, (total, _) in self.ruined.items())

    def note(self, ruined: Mapping[str, tuple[float, int]], *, are_put_back: bool) -> None:
        """Note what became of ruined ones: those that are not put back stay, with a warning."""
        self.ruined = {}
        for key, (total, count) in ruined.items():
            if are_put_back:
                self.in_a_row[key] = count
                # One that was higher was of this batch, too.
                self.highest = {name: each for name, each in self.highest.items() if name != key or each < total}
            else:
                self.falls.pop(key, None)
                self.announcer.warn_once("variance", STAYS.format(key, self.announcer.where()[0]))
                self.highest[key] = self.last[key] = total

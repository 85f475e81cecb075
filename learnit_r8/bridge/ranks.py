"""What makes the schedulers of several processes one: messages, checks that all do the same, one clock and store."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .._validation import stable_repr
from ..recovery.agreement import Channel as Channel
from ..state.codec import OlderFile
from ..state.store import BackgroundWrite, Checkpoint, CheckpointStore, NoValidCheckpoint, RunInUse

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler


class RanksDiffer(RuntimeError):
    """The processes of a training differ in their arguments or steps, so that their tables cannot be equal."""


WINDOW = 2**16
"""Samples whose records go into one digest: a megabyte."""


def check_same(name: str, values: Sequence[int], text: str) -> None:
    """Raise unless all ranks sent the same value.

    Args:
        name: Name of the value.
        values: The value of each rank.
        text: Beginning of the error message.

    Raises:
        RanksDiffer: a rank has another value than rank 0.
    """
    others = [rank for rank, value in enumerate(values) if value != values[0]]
    if others:
        raise RanksDiffer(f"{text}; {name} of rank {', '.join(map(str, others))} is not that of rank 0.")


def _described(fact: Any) -> str:
    """A fact as text, without addresses in memory."""
    if isinstance(fact, np.ndarray):
        return str(digest_of(fact))
    is_shown = fact is None or isinstance(fact, (bool, int, float, str, list)) or dataclasses.is_dataclass(fact)
    return stable_repr(fact) if is_shown else type(fact).__name__


def digest_of_state(r8: R8Scheduler, turn: int) -> int:
    """A digest of all that decides the next steps; of the table it takes 65,536 samples, other ones each turn."""
    num_samples = r8.table.num_samples
    begin = turn % max(1, -(-num_samples // WINDOW)) * WINDOW
    return digest_of(r8.host.deciding_state(np.arange(begin, min(begin + WINDOW, num_samples))))


def digest_of(value: Any) -> int:
    """A signed 64-bit digest of plain values, arrays, and nests of them."""
    digest = hashlib.blake2b(digest_size=8)
    _feed(digest, value)
    return int.from_bytes(digest.digest(), "little", signed=True)


def _feed(digest: hashlib.blake2b, value: Any) -> None:
    if isinstance(value, Mapping):
        for name in value:
            _feed(digest, name)
            _feed(digest, value[name])
    elif isinstance(value, np.ndarray):
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        digest.update(f"[{len(value)}]".encode())
        for item in value:
            _feed(digest, item)
    else:
        digest.update(f"{type(value).__name__}:{value!r};".encode())


T = TypeVar("T")

OF_RANK = ("taken", "left_out", "loader", "start", "head", "now")
"""What is a rank's own of the position in a loader of the user's, see `Feed.position`."""


class SharedClock:
    """Shows the time of rank 0 at the last exchange on all ranks; budget, rates and triggers follow it.

    Args:
        clock: The clock of this rank.
        ranks: The ranks.
    """

    def __init__(self, clock: Callable[[], float], ranks: Channel) -> None:
        self._own = clock
        now, wall = ranks.gather(np.array([clock(), time.time()]))[0].tolist()
        self.now, self._offset = float(now), float(wall - now)

    def own(self) -> float:
        """Seconds on the clock of this rank."""
        return self._own()

    def wall(self) -> float:
        """Seconds since 1970, as rank 0 sees them."""
        return self.now + self._offset

    def __call__(self) -> float:
        return self.now


@dataclasses.dataclass(frozen=True)
class SharedWrite:
    """A checkpoint that rank 0 is writing; all ranks ask at the same steps, and get the same answers.

    Attributes:
        write: The write of this rank; None on other ranks than rank 0, and where it could not begin.
        error: Why it could not begin.
        ranks: The ranks.
        then: Called with the checkpoint, on the other ranks with ``elsewhere``.
        elsewhere: What other ranks know of the checkpoint.
    """

    write: BackgroundWrite | None
    error: BaseException | None
    ranks: Channel
    then: Callable[[Checkpoint], object]
    elsewhere: Checkpoint

    @property
    def is_done(self) -> bool:
        """Whether `result` returns without waiting, on rank 0."""
        return bool(self.ranks.gather(np.array([self.write is None or self.write.is_done]))[0, 0])

    def result(self) -> Checkpoint:
        """Wait for the checkpoint and return it; must be called once.

        Raises:
            OSError: rank 0 could not write it; raised on all ranks, so that they try again at the same step.
        """
        saved, error = None, self.error
        if self.write is not None:
            try:
                saved = self.write.result()
            except BaseException as raised:
                error = raised
        trouble = self.ranks.of_first(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        if trouble is not None:
            raise OSError(f"rank 0 could not write the checkpoint: {trouble}")
        if saved is None:
            self.then(self.elsewhere)
        return saved or self.elsewhere


class SharedStore:
    """The checkpoints of a run on several ranks: rank 0 writes them, and all ranks read those that it names.

    Args:
        store: The store of this rank.
        ranks: The ranks.
    """

    def __init__(self, store: CheckpointStore, ranks: Channel) -> None:
        self._store = store
        self._ranks = ranks
        store.run_id = ranks.of_first(store.run_id) or store.run_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @property
    def folder(self) -> Path | None:
        """The folder, for files beside the checkpoints; None on ranks other than rank 0."""
        return self._store.folder if self._ranks.rank == 0 else None

    def start_write(
        self, state: Mapping[str, Any], *what: Any, then: Callable[[Checkpoint], object], **how: Any
    ) -> SharedWrite:
        """Start to write a checkpoint on rank 0, as `CheckpointStore.start_write`; write nothing on other ranks."""
        write, error = None, None
        plan = state.get("plan", {})
        if "now" in plan:
            # Where each rank is in its part of a stream of the user's.
            own = {name: plan.get(name) for name in OF_RANK}
            state = {**state, "plan": {**plan, "ranks": self._ranks.gather_values(own)}}
        if self._ranks.rank == 0:
            try:
                write = self._store.start_write(state, *what, then=then, **how)
            except BaseException as raised:
                error = raised
        elsewhere = Checkpoint(self._store.folder / "written by rank 0", dict(state), None, self._store.run_id, {})
        return SharedWrite(write, error, self._ranks, then, elsewhere)

    def pin(self, path: Path | None, note: bytes | None = None) -> None:
        """Keep a checkpoint, as `CheckpointStore.pin`; only rank 0 has any."""
        if self._ranks.rank == 0:
            self._store.pin(path, note)

    def own_states(self) -> list[tuple[str, int]]:
        """The value of `CheckpointStore.own_states` on rank 0, on all ranks."""
        own = self._store.own_states() if self._ranks.rank == 0 else []
        return [(str(name), int(step)) for name, step in self._ranks.of_first(own)]

    def load_named(self, name: str) -> Checkpoint | None:
        """The checkpoint that `CheckpointStore.load_named` finds on rank 0, on all ranks."""
        return self._read(lambda: self._store.load_named(name))

    def load(self, path: Any = None) -> Checkpoint:
        """The checkpoint that `CheckpointStore.load` finds on rank 0, on all ranks."""
        if path is not None:
            return self._store.load(path)
        found = self._read(self._store.load)
        assert found is not None
        return found

    def find(self) -> Checkpoint | None:
        """The checkpoint that `CheckpointStore.find` finds on rank 0, on all ranks."""
        return self._read(self._store.find)

    def claim(self, run_id: str) -> None:
        """Lock a run on rank 0, as `CheckpointStore.claim`; all ranks raise what rank 0 does."""
        self._ask_first(lambda: self._store.claim(run_id))

    def _ask_first(self, ask: Callable[[], T]) -> tuple[T | None, str | None]:
        """The answer of rank 0, None on others, and the name in it; what rank 0 raises all raise, before going on."""
        answer, error = None, None
        if self._ranks.rank == 0:
            try:
                answer = ask()
            except Exception as raised:
                error = raised
        own = ["", _name_of(answer)] if error is None else [type(error).__name__, str(error)]
        kind, text = self._ranks.of_first(own)
        if error is not None:
            raise error
        if kind:
            raise RAISED.get(kind, OSError)(text)
        return answer, text

    def _read(self, find: Callable[[], Checkpoint | None]) -> Checkpoint | None:
        """The checkpoint that rank 0 finds, on all ranks; if one of them cannot read it, all raise."""
        found, name = self._ask_first(find)
        trouble: Exception | None = None
        if found is None and name is not None:
            try:
                found = self._store.load(Path(self._store.folder) / name)
            except (OSError, ValueError) as error:
                trouble = error
        lacking = np.flatnonzero(self._ranks.gather(np.array([trouble is not None]))[:, 0]).tolist()
        if lacking:
            raise trouble or OSError(
                f"rank {lacking[0]} cannot read the checkpoint {name}; does it see the same folder?"
            )
        return found


RAISED: dict[str, type[Exception]] = {
    each.__name__: each for each in (NoValidCheckpoint, OlderFile, RunInUse, PermissionError)
}
"""What rank 0 may find, by its name; anything else is an OSError on the other ranks."""


def _name_of(answer: Any) -> str | None:
    return answer.path.name if isinstance(answer, Checkpoint) else None


class PartsOfRanks:
    """Hands a scheduler the parts that it shares with those of other ranks, as `RankGroup` asks for them.

    Args:
        channel: The ranks; an attribute, too.
        settings: Other facts that must be the same on all ranks, by name.
    """

    def __init__(self, channel: Channel, settings: Mapping[str, Any] | None = None) -> None:
        self.channel, self._settings = channel, settings or {}
        self._clock: SharedClock

    def check_same_run(self, facts: Mapping[str, Any]) -> None:
        """Raise unless every rank has built its scheduler with the same arguments, and stands at the same step.

        Args:
            facts: What must be the same, by name: plain values, arrays, and frozen parts of the scheduler.

        Raises:
            RanksDiffer: an argument differs; the message names it and the ranks.
        """
        texts = {name: _described(fact) for name, fact in {**facts, **self._settings}.items()}
        ranks, own = self.channel, np.array([digest_of(text) for text in texts.values()])
        for name, values in zip(texts, ranks.gather(own).T.tolist(), strict=True):
            check_same(name, values, f"{name} must be the same on all ranks, got {texts[name]} on rank {ranks.rank}")

    def shared_clock(self, own: Callable[[], float]) -> SharedClock:
        """The clock of rank 0."""
        self._clock = SharedClock(own, self.channel)
        return self._clock

    def shared_store(self, own: CheckpointStore) -> SharedStore:
        """A checkpoint store to which only rank 0 writes."""
        return SharedStore(own, self.channel)

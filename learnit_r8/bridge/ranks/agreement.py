"""How ranks exchange a few numbers, and checks that all do the same: digests of a few bytes show a difference."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ...scheduler import R8Scheduler


class RanksDiffer(RuntimeError):
    """The processes of a training differ in their arguments or steps, so that their tables cannot be equal."""


class Channel(Protocol):
    """Carries messages between the processes of a training; all of them make each call, in the same order.

    Attributes:
        rank: Number of this process, 0-based.
        size: Number of processes.
    """

    rank: int
    size: int

    def gather(self, message: NDArray[Any]) -> NDArray[Any]:
        """T[size, L], the messages of all processes, T[L] of each, in the order of the ranks."""

    def gather_values(self, value: Any) -> list[Any]:
        """The values of all processes, which may be anything that a checkpoint can hold."""

    def of_first(self, value: Any) -> Any:
        """The value of rank 0, as `gather_values` takes it."""
        return self.gather_values(value if self.rank == 0 else None)[0]


WINDOW = 2**16
"""Samples whose records go into one digest: a megabyte."""


def check_same_run(facts: Mapping[str, Any], ranks: Channel) -> None:
    """Raise unless every rank has built its scheduler with the same arguments, and stands at the same step.

    Args:
        facts: What must be the same, by name: plain values, arrays, and frozen parts of the scheduler.
        ranks: The ranks.

    Raises:
        RanksDiffer: an argument differs; the message names it and the ranks.
    """
    texts = {name: _described(fact) for name, fact in facts.items()}
    own = np.array([digest_of(text) for text in texts.values()])
    everyone = ranks.gather(own)
    for name, values in zip(texts, everyone.T.tolist(), strict=True):
        check_same(name, values, f"{name} must be the same on all ranks, got {texts[name]} on rank {ranks.rank}")


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
    text = repr(fact) if is_shown else type(fact).__name__
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


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

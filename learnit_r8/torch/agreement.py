"""What must be the same on all ranks, and how a difference is noticed: by a few bytes of digest, with the losses."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .ranks import Ranks, RanksDiffer

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler

WINDOW = 2**16
"""Samples whose records go into one digest, in turns: a megabyte."""


def check_same_run(r8: R8Scheduler, ranks: Ranks, settings: Mapping[str, Any]) -> None:
    """Raise unless every rank has built its scheduler with the same arguments, and stands at the same step.

    Args:
        r8: The scheduler of this rank.
        ranks: The ranks.
        settings: What else must be the same, by name.

    Raises:
        RanksDiffer: they have not; the message names the argument and the ranks.
    """
    facts = {**_facts(r8), **settings}
    own = np.array([digest_of(fact) for fact in facts.values()])
    everyone = ranks.gather(own)
    for name, values in zip(facts, everyone.T.tolist(), strict=True):
        check_same(name, values, f"{name} must be the same on all ranks, got {facts[name]!r} on rank {ranks.rank}")


def check_same(name: str, values: Sequence[int], text: str) -> None:
    """Raise unless all ranks sent the same value.

    Args:
        name: What it is.
        values: One of each rank.
        text: How the message begins.

    Raises:
        RanksDiffer: one has another than rank 0.
    """
    others = [rank for rank, value in enumerate(values) if value != values[0]]
    if others:
        raise RanksDiffer(f"{text}; {name} of rank {', '.join(map(str, others))} is not that of rank 0.")


def _facts(r8: R8Scheduler) -> dict[str, Any]:
    """Arguments that decide which batches come, at which rate, and what happens when."""
    groups = r8.table.records["group"]
    safekeeping = r8.safekeeping
    return {
        **r8._identity(),
        "alpha": r8.table.alpha,
        "groups": digest_of(groups),
        "policy": _described(r8.plan.policy),
        "seed": r8.plan.seed,
        "budget": r8.pace.budget,
        "learning rates": [float(r8.schedule(progress)) for progress in (0.0, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0)],
        "guard": _described(r8.sentry.guard),
        "recovery": _described(r8.rescue.recovery),
        "load_callback": safekeeping.callbacks.load is not None,
        "state_callback": safekeeping.callbacks.state is not None,
        "backup_every": _described(safekeeping.backup_every),
        "checkpoint_dir": safekeeping.store is not None,
        "global_step": r8.global_step,
    }


def _described(part: Any) -> str:
    """A frozen part as text, without places in memory."""
    text = repr(part) if dataclasses.is_dataclass(part) else type(part).__name__
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def digest_of_state(r8: R8Scheduler, turn: int) -> int:
    """Of everything that decides what comes next; of the table a window of 65,536 samples, another one each turn."""
    r8.table.sync()
    windows = -(-r8.table.num_samples // WINDOW)
    begin = turn % windows * WINDOW
    numbers = [r8.pace.state_dict(), r8.rescue.state_dict(), r8.sentry.state_dict(), r8.table.trend, r8.lr]
    window = np.arange(begin, min(begin + WINDOW, r8.table.num_samples))
    return digest_of([numbers, r8.table.records.take(window)])


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

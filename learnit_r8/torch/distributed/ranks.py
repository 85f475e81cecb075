"""Ranks: the processes that train one model together, and how they exchange a few numbers.

They use a process group of their own, on the CPU: it delays nothing that the model sends between devices, and has its
own time after which a process that died or hangs is noticed.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from ..._validation import is_number
from ...bridge.ranks import Channel
from ...state.callbacks import RankLost

MOST_SECONDS = 1e9
"""Longest time to wait for a rank: half a lifetime."""

ROLL_CALL_SECONDS = 2.0
"""How long the other ranks have to answer that they are alive, once a connection is lost."""


class Ranks(Channel):
    """This process among those that train together; every one of them must make it, at the same place.

    Args:
        timeout_seconds: How long to wait for the slowest, > 0; longer than anything that one rank does alone, such
            as validation or writing a checkpoint. A process that died is noticed at once.

    Raises:
        RuntimeError: ``torch.distributed`` was not initialised.
        ValueError: the time is not positive.

    Attributes:
        rank: Number of this process, 0-based.
        size: Number of processes.
    """

    def __init__(self, *, timeout_seconds: float = 600.0) -> None:
        if not is_number(timeout_seconds) or not 0 < timeout_seconds <= MOST_SECONDS:
            raise ValueError(
                f"timeout_seconds must be a number > 0, at most {MOST_SECONDS:.0e}, got {timeout_seconds!r}."
            )
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "torch.distributed must be initialised before Ranks(), got no process group; call init_process_group() "
                "in a program started by torchrun."
            )
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.timeout_seconds = float(timeout_seconds)
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout_seconds))
        # Not held: destroy_process_group() must be able to end its threads. One that still lets go of a message when
        # Python ends aborts the process.
        self._group = weakref.ref(group)
        self._work: Any = None
        # Where torchrun starts all ranks again, the store may still hold the answers of those before.
        self._name = int(self.gather(np.array([time.time_ns()]))[0, 0])

    def __repr__(self) -> str:
        return f"Ranks(rank={self.rank}, size={self.size})"

    def gather(self, message: NDArray[Any]) -> NDArray[Any]:
        """Exchange messages: every rank calls it, and gets those of all.

        Args:
            message: T[L], of the same dtype and length everywhere.

        Returns:
            T[size, L], in the order of the ranks; the same bits everywhere.

        Raises:
            RankLost: one of them did not call in time.
        """
        return self.send(message)()

    def gather_values(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order; every rank calls it.

        Args:
            value: Anything that can be pickled, of any size.

        Raises:
            RankLost: one of them did not call in time.
        """
        values: list[Any] = [None] * self.size
        with self.watching():
            dist.all_gather_object(values, value, group=self._living_group())
        return values

    def send(self, message: NDArray[Any]) -> Callable[[], NDArray[Any]]:
        """Begin to exchange messages: every rank calls it, goes on, and later calls the function it returns.

        Args:
            message: As for `gather`; its memory may be used again at once.

        Returns:
            Waits for the messages of all, and returns what `gather` does; to be called once.
        """
        own = torch.from_numpy(message.view(np.uint8)).clone()
        everything = torch.empty(self.size, len(own), dtype=torch.uint8)
        with self.watching():
            # Kept until the next one: freeing it needs the interpreter, which a thread may outlive.
            self._work = work = dist.all_gather(list(everything), own, group=self._living_group(), async_op=True)

        def read() -> NDArray[Any]:
            with self.watching():
                work.wait()
            gathered: NDArray[Any] = everything.numpy().view(message.dtype)
            return gathered

        return read

    def _living_group(self) -> Any:
        group = self._group()
        if group is None:
            raise RuntimeError(
                "the process group must live until the run is closed, got one that was destroyed; call close() first, "
                "then destroy_process_group()."
            )
        return group

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """A ``with`` block in which ranks wait for each other: a lost connection becomes a `RankLost` that says whose.

        ``backward()`` of a model under DDP is an example.
        """
        try:
            yield
        except RankLost:
            raise
        except RuntimeError as error:
            text = str(error).lower()
            if isinstance(error, dist.DistError) or any(sign in text for sign in OF_CONNECTIONS):
                raise RankLost(self.diagnosis(error)) from error
            raise

    def diagnosis(self, error: RuntimeError) -> str:
        """A message about a lost connection: which ranks are alive, and what to do."""
        missing = self._roll_call()
        if missing is None:
            who = "nor can the others be asked: the process that holds their addresses (rank 0, or torchrun) is gone"
        elif missing:
            who = f"no answer from rank {', '.join(map(str, missing))}: dead, hanging, or ended by an error"
        else:
            who = f"all are alive, but one did not come here within {self.timeout_seconds:g} s"
        return (
            f"all {self.size} ranks must go on together, got a lost connection on rank {self.rank} ({who}). "
            f"Start again from the last checkpoint. [{str(error).splitlines()[0][:200]}]"
        )

    def _roll_call(self) -> list[int] | None:
        """Return the ranks that do not answer; None if none can be asked."""
        try:
            store: Any = dist.distributed_c10d._get_default_store()
            names = [f"learnit_r8/alive/{self._name}/{rank}" for rank in range(self.size)]
            store.set(names[self.rank], "yes")
            return [rank for rank, name in enumerate(names) if not _answers(store, name)]
        except (RuntimeError, ValueError):
            return None


OF_CONNECTIONS = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "peer")
"""Words in the message of an error that is of a connection."""


def _answers(store: Any, name: str) -> bool:
    try:
        store.wait([name], timedelta(seconds=ROLL_CALL_SECONDS))
    except RuntimeError as error:
        if isinstance(error, dist.DistStoreError) or "timeout" in str(error).lower():
            return False
        raise
    return True

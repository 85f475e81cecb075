"""Several processes that train one model together, for `attach` and `R8BatchSampler`; see `exchange`."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from numpy.typing import NDArray

from ...bridge.ranks import digest_of
from ...engine.settings import OF_RANK_0, RunDir
from ..readback import ALONE, Note, Readback, Sent, SingleProcess, note_of, num_processes, readback_on
from .exchange import Exchange, check_every, slice_of
from .ranks import Ranks
from .shards import is_sharded

if TYPE_CHECKING:
    from ...engine.settings import SchedulerSettings
    from ...scheduler import R8Scheduler


PROBED = 64
"""Weights of a model that are compared between ranks."""


class Together:
    """For `attach` and `R8BatchSampler`: this process trains one model together with others.

    `attach` makes one by itself where ``torch.distributed`` is initialised with several processes.

    Args:
        ranks: The ranks; by default all of ``torch.distributed``.
        every: Steps between two exchanges of losses, in [1, 16]; by default 16, fewer where steps are slow and in the
            first 16 of batches of your own, and 1 for 1,024 steps after a loss was refused.

    Raises:
        ValueError: ``every`` is outside its range.
        RuntimeError: ``torch.distributed`` was not initialised.
    """

    def __init__(self, ranks: Ranks | None = None, *, every: int | None = None) -> None:
        check_every(every)
        self.ranks = Ranks() if ranks is None else ranks
        self.rank, self.size, self.gather = self.ranks.rank, self.ranks.size, self.ranks.gather_values
        self._every = every
        self._exchange: Exchange | None = None
        self._border = self._begun = -1

    def settings(self, settings: SchedulerSettings) -> SchedulerSettings:
        """The settings for the scheduler of this rank: only rank 0 has a screen, a run folder and a monitor."""
        if self.ranks.rank == 0:
            return settings
        kept = {name: value for name, value in settings.items() if name not in OF_RANK_0}
        if isinstance(recorded := settings.get("run_dir"), RunDir):
            # Each rank records its incidents, if only beside the checkpoints.
            kept["run_dir"] = replace(recorded, folder=None)
        return cast("SchedulerSettings", kept)

    def check(self, r8: R8Scheduler, model: Any, resume: Any = None, **settings: Any) -> None:
        """Share the scheduler with the other ranks; a warning will say if their models drift apart.

        Args:
            r8: The scheduler.
            model: The model.
            resume: What to continue from, as for `R8Scheduler`; the ranks choose it together.
            **settings: Options of the adapter that must be the same on all ranks.

        Raises:
            RanksDiffer: another rank has built its scheduler with other arguments.
            ValueError: the scheduler cannot be shared, or another one is shared by this already.
        """
        if self._exchange is not None:
            raise ValueError(
                f"sharing must be a Together() of its own for each attach(), got one of {self._exchange.r8!r}."
            )
        drift = functools.partial(probe, model)
        self._exchange = Exchange(r8, self.ranks, self._every, probe=drift, settings=settings, resume=resume)

    def part(self, rows: NDArray[Any]) -> NDArray[Any]:
        """This rank's slice of a batch; see `slice_of`."""
        return slice_of(rows, self.ranks)

    def readback(self, device: torch.device) -> Gathered:
        """The readback that brings the losses of all ranks to the scheduler of each."""
        assert self._exchange is not None
        return Gathered(self._exchange, readback_on(device, keeps=True))

    def watching(self) -> contextlib.AbstractContextManager[None]:
        """A ``with`` block in which a lost connection becomes a `RankLost` that says whose."""
        return self.ranks.watching()

    def between_steps(self, r8: R8Scheduler, num_held_back: int) -> None:
        """Let the scheduler do what is due, where no loss is held back; ask for the time as an epoch begins."""
        if self._exchange is None:
            return
        place = r8.pace.place
        # Loaders ask as often as they fetch ahead, not equally often on all ranks. Once the run is over, others may be
        # gone already.
        if not (num_held_back or place % r8.steps_per_epoch or place == self._border or r8.is_over):
            self._border = place
            self._exchange.run([])
        r8.host.between_steps(held_back=num_held_back)

    def before_iteration(self) -> None:
        """Ask rank 0 for the time again where a loader begins at the border of an epoch, after validation say."""
        # A loader with workers begins twice.
        if self._exchange is not None and self._exchange.r8.pace.place != self._begun:
            self._begun = self._exchange.r8.pace.place
            self._border = -1


class Gathered:
    """Losses of all ranks, exchanged when it is time.

    Args:
        exchange: Exchanges them.
        own: Brings the losses of this rank from the device.

    Attributes:
        sent: What is on its way.
        num_waits: How often the host had to wait for the device.
    """

    def __init__(self, exchange: Exchange, own: Readback) -> None:
        self._exchange = exchange
        self._own = own
        self.sent: list[Any] = []
        self.num_waits = 0

    def __len__(self) -> int:
        return len(self.sent)

    def put(self, item: Sent | Note, values: torch.Tensor) -> None:
        """Send the losses of this rank's slice on their way; of a note they are its own."""
        self._own.put(item, values)
        self.sent.append(item)

    def ready(self) -> list[tuple[Any, Note]]:
        """The losses of whole batches that have come from the other ranks; called once after each `put`."""
        if not len(self._own):
            return []
        return self._of_batches(self._exchange.turn(len(self._own), self.sent[-1].ticket, self._take))

    def drain(self) -> list[tuple[Any, Note]]:
        """All losses, of whole batches; exchanges them, on all ranks at the same place."""
        return self._of_batches(self._exchange.drain(self._take()))

    def _take(self) -> list[Note]:
        """The losses that this rank holds back, fetched from the device."""
        notes: list[Note] = []
        for item, values in self._own.drain():
            note = item if isinstance(item, Note) else note_of(item, values)
            self._exchange.check(note, notes)
            notes.append(note)
        self.num_waits = self._own.num_waits
        return notes

    def _of_batches(self, notes: list[Note]) -> list[tuple[Any, Note]]:
        sent, self.sent = self.sent[: len(notes)], self.sent[len(notes) :]
        return list(zip(sent, notes, strict=True))

    def clear(self) -> list[Any]:
        """Drop the losses on their way; messages sent before are read, on all ranks at the same place."""
        self._exchange.receive()
        self._own.clear()
        sent, self.sent = self.sent, []
        return sent


def probe(model: torch.nn.Module) -> int:
    """A digest of a few weights, the same on all ranks if they average their gradients; 0 if they share the model."""
    weights = next((each for each in model.parameters() if each.requires_grad), None)
    if weights is None or is_sharded(model):
        return 0
    return digest_of(weights.detach().flatten()[:PROBED].to("cpu", torch.float32).numpy())


Sharing = SingleProcess | Together
"""Which part of a batch is this process's, and how its losses come to the scheduler."""


def sharing_here() -> Sharing:
    """A `Together` where ``torch.distributed`` is initialised with several processes, else `ALONE`."""
    return Together() if num_processes() > 1 else ALONE

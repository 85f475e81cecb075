"""Readback: brings losses from their device to the scheduler, without making the device wait.

On a CPU a value can be read at once. On a GPU reading one would stop the host until everything queued before it is
done; so the values are copied to pinned memory behind the step that computed them, and looked at when that copy has
passed, some steps later. `torch.cuda.Event.query` does not wait. Cost of waiting: torchtune#522, fvdb#144.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..table.labels.predictions import Predictions
from ..table.losses import EXACT, WHOLE_BATCH

if TYPE_CHECKING:
    from ..engine.settings import SchedulerSettings
    from ..scheduler import R8Scheduler
    from ..sources.ticket import Ticket
    from .flight.hand import Held

MOST_LAG = 16
"""Steps that a verdict may lag behind."""

Values = NDArray[np.float32]


class Sent(NamedTuple):
    """The batch that values on their way belong to.

    Attributes:
        ticket: The batch, as its training began.
        num_samples: Samples of the batch that this process trained on.
        part_size: 1 where the values are losses of single samples, None for one mean over ``num_samples`` of them, else
            the samples in a part of which each value is a mean.
        extras: Names of the values behind the losses, of "grad_norm", "skipped" and "trained".
        held: The batch itself, so that it can run again.
        num_classes: C, where three more values of each label follow the losses, as `predictions.packed` makes them; 0
            where there are losses only.
    """

    ticket: Ticket
    num_samples: int
    part_size: int | None
    extras: tuple[str, ...] = ()
    num_classes: int = 0
    held: Held | None = None


class Note(NamedTuple):
    """The losses of a step: of this process's part of the batch, and after an exchange between ranks of the whole one.

    Attributes:
        ticket: The batch.
        losses: float[P], those of its samples or of their parts, or one mean.
        part_size: EXACT, WHOLE_BATCH or the size of a part.
        skipped: Whether the optimizer's step was skipped because gradients overflowed.
        grad_norm: Norm of the gradient, or None.
        predictions: What the logits of the samples say about their labels, or None.
    """

    ticket: Ticket
    losses: NDArray[Any]
    part_size: int
    skipped: bool = False
    grad_norm: float | None = None
    predictions: Predictions | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `R8Scheduler.report` for a whole batch, but for its ticket."""
        return {
            "loss": float(self.losses[0]) if self.part_size == WHOLE_BATCH else self.losses,
            "part_size": None if self.part_size in (WHOLE_BATCH, EXACT) else self.part_size,
            "skipped": self.skipped,
            "grad_norm": self.grad_norm,
            "predictions": self.predictions,
        }


def note_of(sent: Sent, values: Values) -> Note:
    """The losses in values that were sent."""
    losses, predictions, extras = values.reshape(-1), None, {}
    if sent.extras:
        count = len(losses) - len(sent.extras)
        extras = dict(zip(sent.extras, losses[count:].tolist(), strict=True))
        losses = losses[:count]
    if sent.num_classes:
        losses, predictions = Predictions.unpack(losses.reshape(-1, sent.num_samples), sent.num_classes)
    if not math.isfinite(extras.get("trained", 0.0)) and np.isfinite(losses).all():
        # Else the losses say which samples are to blame.
        losses = np.full_like(losses, math.nan)
    part_size = WHOLE_BATCH if sent.part_size is None else sent.part_size
    return Note(sent.ticket, losses, part_size, bool(extras.get("skipped", 0)), extras.get("grad_norm"), predictions)


class Readback:
    """Takes values along with an item, and gives both back in order once the values can be read.

    Args:
        copy: Begins to copy float32[K] to main memory; returns a copy as `Here` and `CudaCopy` are.
        waits: Whether to begin a copy waits for the device.

    Attributes:
        num_waits: How often a step had to wait for the device; `drain` does not count, an epoch's end asks for it.
    """

    def __init__(self, copy: Callable[[torch.Tensor], Any], *, waits: bool = False) -> None:
        self.num_waits = 0
        self._copy, self._waits = copy, waits
        self._under_way: deque[tuple[Any, Any]] = deque()

    def __len__(self) -> int:
        """Values on their way."""
        return len(self._under_way)

    def put(self, item: Any, values: torch.Tensor) -> None:
        """Send values on their way; ``item`` is anything that belongs to them, ``values`` float32[K] on any device."""
        self.num_waits += self._waits
        self._under_way.append((item, self._copy(values)))

    def ready(self) -> list[tuple[Any, Values]]:
        """The values that have arrived, in order; waits only for those that lag by more than 16."""
        queue = self._under_way
        taken = []
        while queue and (queue[0][1].is_done() or len(queue) > MOST_LAG):
            self.num_waits += not queue[0][1].is_done()
            taken.append(self._first())
        return taken

    def drain(self) -> list[tuple[Any, Values]]:
        """All values, in order; waits for them."""
        return [self._first() for _ in range(len(self._under_way))]

    def _first(self) -> tuple[Any, Values]:
        item, copy = self._under_way.popleft()
        copy.wait()
        return item, copy.read()

    def clear(self) -> list[Any]:
        """Drop the values on their way; returns their items, in order."""
        items = [item for item, _ in self._under_way]
        self._under_way.clear()
        return items


class HostCopy:
    """Values in main memory: there already, or on their way from a GPU, behind what the current stream has queued.

    Args:
        values: float32[K], in main memory or on a GPU.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._values, self._event = values, None
        if values.is_cuda:
            # torch keeps freed pinned blocks for the next one, so that this costs no system call.
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._event = event

    def is_done(self) -> bool:
        """Whether it can be read; does not wait."""
        return self._event is None or bool(self._event.query())

    def wait(self) -> None:
        """Wait until it can."""
        if self._event is not None:
            self._event.synchronize()

    def read(self) -> Values:
        """What was copied."""
        return self._values.numpy() if self._event is None else self._values.numpy().copy()


def readback_on(device: torch.device, *, keeps: bool = False) -> Readback:
    """The readback for losses on a device.

    Args:
        device: Where they are.
        keeps: Whether losses in main memory are not asked for at once: then they are copied, as the user may use their
            memory again.
    """
    if device.type == "cuda":
        return Readback(HostCopy)
    if device.type == "cpu":
        return Readback(lambda values: HostCopy(values.clone() if keeps else values))
    return Readback(lambda values: HostCopy(values.cpu()), waits=True)


def num_processes() -> int:
    """Processes that torch.distributed lets train together; 1 where it is not initialised."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if there else 1


class SingleProcess:
    """A process that trains a model alone; `Together` does the same for one of several.

    Attributes:
        rank: Number of this process among them.
        size: Processes.
        gather: Returns the values of all processes, on each of them; None, as there is one.
        watching: Returns a ``with`` block in which processes wait for each other; this one has nobody to wait for.
    """

    rank, size = 0, 1
    gather = None
    watching = contextlib.nullcontext

    def settings(self, settings: SchedulerSettings) -> SchedulerSettings:
        """The settings for the scheduler of this process.

        Args:
            settings: As the user gave them.
        """
        return settings

    def part(self, rows: NDArray[Any]) -> NDArray[Any]:
        """This process's part of a batch, a contiguous slice.

        Args:
            rows: T[B], the indices of the whole batch, or other values of its samples.
        """
        return rows

    def readback(self, device: torch.device) -> Readback:
        """The readback that brings the losses of the whole batch to the scheduler, whatever part was put in.

        Args:
            device: Where this process's losses are.
        """
        return readback_on(device)

    def between_steps(self, r8: R8Scheduler, num_held_back: int) -> None:
        """Let the scheduler do what is due.

        Args:
            r8: The scheduler.
            num_held_back: Steps whose losses are on their way.
        """
        r8.host.between_steps()

    def before_iteration(self) -> None:
        """An iteration over a loader is about to begin: nobody needs to be asked for the time."""

    def check(self, r8: R8Scheduler, model: Any, resume: Any = None, **settings: Any) -> None:
        """Raise ValueError unless the scheduler and the model can be shared like this.

        Args:
            r8: The scheduler.
            model: The model.
            resume: Not used: the scheduler has resumed by itself.
            **settings: Options of the adapter that must be the same in all processes.
        """


ALONE = SingleProcess()

"""Several ranks: processes that train one model together under one scheduler. See `exchange`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..guard import Verdict
from ..losses import read_loss, read_number
from ..ticket import Outcome, Ticket
from .exchange import Exchange, check_every, slice_of
from .letters import Note, arguments_of
from .ranks import Ranks, are_there
from .readback import Readback, readback_on
from .sharing import ALONE, Sharing

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from .reports import Sent


class Together(Sharing):
    """For `attach` and `R8BatchSampler`: this process trains one model together with others.

    `attach` makes one by itself where ``torch.distributed`` is initialised with several processes.

    Args:
        ranks: The ranks; by default all of ``torch.distributed``.
        every: Steps between two exchanges of losses, in [1, 16]; by default 16, and fewer where steps are slow.

    Raises:
        ValueError: ``every`` is outside its range.
        RuntimeError: ``torch.distributed`` was not initialised.
    """

    def __init__(self, ranks: Ranks | None = None, *, every: int | None = None) -> None:
        check_every(every)
        self.ranks = Ranks() if ranks is None else ranks
        self._every = every
        self._exchange: Exchange | None = None

    def settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What the scheduler of this rank is made with: only that of rank 0 shows itself and writes a journal."""
        if self.ranks.rank == 0:
            return settings
        shown = {name: value for name, value in settings.items() if name not in ("use_curses", "run_dir")}
        return shown

    def check(self, r8: R8Scheduler, model: Any) -> None:
        """Share the scheduler with the other ranks.

        Raises:
            RanksDiffer: another rank has built its scheduler with other arguments.
            ValueError: the scheduler cannot be shared.
        """
        self._exchange = Exchange(r8, self.ranks, self._every)
        if self.ranks.size > 1 and not _is_parallel(model):
            r8.announcer.warn_once(
                "not parallel",
                "model should be wrapped in DistributedDataParallel (or fully_shard) where several processes train it, "
                f"got {type(model).__name__}: unless your loop averages the gradients, the ranks train different ones.",
            )

    def part(self, rows: NDArray[Any]) -> NDArray[Any]:
        """This rank's slice of a batch; see `Exchange.part`."""
        return slice_of(rows, self.ranks)

    def readback(self, device: torch.device) -> Readback:
        """What brings the losses of all ranks to the scheduler of each."""
        assert self._exchange is not None
        return Gathered(self._exchange, readback_on(device))

    def between_steps(self, r8: R8Scheduler, num_held_back: int) -> None:
        """Let the scheduler do what is due, where nothing is held back; at the border of an epoch, ask the time."""
        if num_held_back or self._exchange is None:
            return
        if not r8.global_step % r8.steps_per_epoch:
            self._exchange.run([])
        r8.between_steps()


class Gathered:
    """Losses of all ranks, exchanged when it is time.

    Args:
        exchange: Exchanges them.
        own: Brings the losses of this rank from the device.

    Attributes:
        num_waits: How often the host had to wait for the device.
    """

    def __init__(self, exchange: Exchange, own: Readback) -> None:
        self._exchange = exchange
        self._own = own
        self._sent: list[Sent] = []
        self.num_waits = 0

    def __len__(self) -> int:
        return len(self._sent)

    def put(self, item: Sent, values: torch.Tensor) -> None:
        """Send the losses of this rank's slice on their way."""
        self._own.put(item, values)
        self._sent.append(item)

    def ready(self) -> list[tuple[Any, Any]]:
        """Those of whole batches, if it is time to exchange them; else none."""
        is_due = bool(self._sent) and self._exchange.is_due(len(self._sent), self._sent[-1].ticket)
        return self.drain() if is_due else []

    def drain(self) -> list[tuple[Any, Any]]:
        """Those of whole batches; exchanges them, on all ranks at the same place."""
        notes: list[Note] = []
        for item, values in self._own.drain():
            note = _note_of(item, values)
            self._exchange.check(note, notes)
            notes.append(note)
        self.num_waits = self._own.num_waits
        sent, self._sent = self._sent, []
        return list(zip(sent, map(_values_of, sent, self._exchange.run(notes)), strict=True))

    def clear(self) -> list[Any]:
        """Forget what is on its way."""
        self._own.clear()
        sent, self._sent = self._sent, []
        return sent


def _note_of(item: Sent, values: NDArray[np.float32]) -> Note:
    """What an adapter sends, as ranks exchange it."""
    count = len(values) - len(item.extras)
    extras = dict(zip(item.extras, values[count:].tolist(), strict=True))
    part_size = 0 if item.part_size is None else item.part_size
    return Note(item.ticket, values[:count], part_size, bool(extras.get("skipped", 0)), extras.get("grad_norm"))


def _values_of(item: Sent, note: Note) -> NDArray[np.float64]:
    """What an adapter wants back: the losses of the whole batch, and then the extras that it sent."""
    extras = {"skipped": float(note.skipped), "grad_norm": note.grad_norm}
    return np.concatenate([note.losses, [extras[name] for name in item.extras]])


def _is_parallel(model: Any) -> bool:
    kinds = {type(part).__name__ for part in model.modules()}
    return bool({"DistributedDataParallel", "FullyShardedDataParallel"} & kinds) or any(
        name.startswith("FSDP") for name in kinds
    )


def sharing_here() -> Sharing:
    """With the other ranks where ``torch.distributed`` is initialised with several, else alone."""
    if not are_there() or torch.distributed.get_world_size() == 1:
        return ALONE
    return Together()


class Share(NamedTuple):
    """What one rank trains on of a batch.

    Attributes:
        indices: int64[B / size], its samples; in a short batch some may come twice.
        lr: The learning rate.
        weights: float32[B / size], what to multiply each sample's loss by, or None.
        ticket: The whole batch, to report with.
    """

    indices: NDArray[np.int64]
    lr: float
    weights: NDArray[np.float32] | None
    ticket: Ticket


class SharedRun:
    """A scheduler on several ranks for a loop of your own, without an adapter; iterate over it for the batches.

    Args:
        r8: This rank's scheduler, built with the same arguments as those of the others; see `Exchange`.
        ranks: The ranks; by default all of ``torch.distributed``.
        every: Steps between two exchanges of losses, in [1, 16]; by default 16, and fewer where steps are slow.

    Raises:
        RanksDiffer: another rank has built its scheduler with other arguments.
        ValueError: the batch size is no multiple of the number of ranks; the scheduler searches for a learning rate;
            ``every`` is outside its range.
        RuntimeError: ``torch.distributed`` was not initialised.

    Attributes:
        r8: As given.
        ranks: As given.
        exchange: The exchange with the other ranks.
    """

    def __init__(self, r8: R8Scheduler, ranks: Ranks | None = None, *, every: int | None = None) -> None:
        check_every(every)
        self.r8 = r8
        self.ranks = ranks = Ranks() if ranks is None else ranks
        self.exchange = Exchange(r8, ranks, every)
        self._held: list[Note] = []
        r8.settle = self.settle

    def __iter__(self) -> Iterator[Share]:
        """This rank's shares of the batches to the end of the epoch, or of the time.

        Asking for the next one gives up a batch that was not reported, on all ranks alike; it comes once more at the
        end of the epoch.
        """
        r8 = self.r8
        self._report_all(self.exchange.run(self._taken()))
        epoch = r8.current_epoch
        while (r8.global_step + len(self._held)) // r8.steps_per_epoch == epoch:
            if not self._held:
                # Before the drawing: a run that is to stop trains on no further batch.
                r8.between_steps()
            ticket = r8.draw_ahead()
            if ticket is None:
                break
            share = self._begin(ticket)
            try:
                yield share
            except GeneratorExit:
                # After a break the next batch is the one in hand.
                self._take_back(share, r8.hand_back)
                raise
            self._take_back(share, r8.give_up)
        self.settle()

    def _begin(self, ticket: Ticket) -> Share:
        ticket = self.r8.begin(ticket, held_back=len(self._held))
        weights = None if ticket.weights is None else self.exchange.part(ticket.weights)
        return Share(self.exchange.part(ticket.indices), ticket.lr, weights, ticket)

    def _take_back(self, share: Share, do: Callable[[Ticket], None]) -> None:
        """Hand a batch back or give it up, if it was not reported."""
        if not (self._held and self._held[-1].ticket is share.ticket):
            do(share.ticket)

    def report(
        self,
        ticket: Ticket,
        loss: Any,
        *,
        part_size: int | None = None,
        grad_norm: float | None = None,
        skipped: bool = False,
    ) -> Outcome:
        """Note the losses of this rank's slice; exchange them when it is time.

        Args:
            ticket: Of the share that was yielded last.
            loss: As for `R8Scheduler.report`, but of the slice: its mean, float[B / size] of its samples, or of its
                parts.
            part_size: Samples in a part, a divisor of the slice.
            grad_norm: As there; the largest of all ranks counts.
            skipped: As there; a step that is skipped on one rank is so for all.

        Returns:
            The same on every rank: pending, until losses are exchanged; then false if this batch's loss is refused,
            or if that of one before was and the model has been put back. Then skip ``backward()`` and ``step()``, as
            all ranks do.

        Raises:
            TypeError: the loss is not a real number or a vector of them.
            ValueError: the loss is of another length or kind than it must be. Nothing was changed.
            RanksDiffer: the ranks do not do the same.
            RankLost: a rank does not answer.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        reading = read_loss(loss, -(-len(ticket.indices) // self.ranks.size), part_size)
        norm = None if grad_norm is None else read_number("grad_norm", grad_norm)
        note = Note(ticket, np.atleast_1d(reading.means), reading.part_size, skipped, norm)
        self.exchange.check(note, self._held)
        self._held.append(note)
        if not self.exchange.is_due(len(self._held), ticket):
            return Outcome(Verdict.PENDING, ticket.lr, None)
        return self._report_all(self.exchange.run(self._taken()))

    def settle(self) -> None:
        """Exchange what is held back, if anything is; on all ranks at the same place."""
        if self._held:
            self._report_all(self.exchange.run(self._taken()))

    def _taken(self) -> list[Note]:
        held, self._held = self._held, []
        return held

    def _report_all(self, notes: list[Note]) -> Outcome:
        """Report whole batches; what was trained on after one that put the model back is void."""
        outcome = Outcome(Verdict.PENDING, self.r8.lr, None)
        for number, note in enumerate(notes):
            outcome = self.r8.report(note.ticket, **arguments_of(note))
            if outcome.rolled_back_to is not None:
                for later in notes[number + 1 :]:
                    self.r8.discard(later.ticket)
                break
        return outcome

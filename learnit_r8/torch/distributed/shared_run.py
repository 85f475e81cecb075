"""SharedRun: a scheduler on several ranks for loops without an adapter; see `exchange`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...engine.run import Member
from ...guard.verdict import Verdict
from ...sources.ticket import Outcome, Ticket
from ...table.labels.predictions import Predictions
from ...table.losses import read_loss, read_number
from ..predictions import check_exchanged
from ..readback import HostCopy, Note, Readback
from .exchange import Exchange, check_every, slice_of
from .ranks import Ranks
from .together import Gathered

if TYPE_CHECKING:
    from ...scheduler import R8Scheduler


class Share(NamedTuple):
    """The part of a batch that one rank trains on.

    Attributes:
        indices: int64[B / size], the samples; in a short batch some may come twice.
        lr: The learning rate.
        weights: float32[B / size], what to multiply each sample's loss by, or None.
        ticket: The whole batch, to report with.
    """

    indices: NDArray[np.int64]
    lr: float
    weights: NDArray[np.float32] | None
    ticket: Ticket


class SharedRun(Member):
    """A scheduler on several ranks for a loop of your own, without an adapter; iterate over it for the batches.

    Args:
        r8: This rank's scheduler, built with the same arguments as those of the others; see `Exchange`.
        ranks: The ranks; by default all of ``torch.distributed``.
        every: Steps between two exchanges of losses, in [1, 16]; by default 16, fewer where steps are slow, and 1 for
            1,024 steps after a loss was refused.

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
        self._losses = Gathered(self.exchange, Readback(HostCopy))
        r8.host.join(self)

    def __iter__(self) -> Iterator[Share]:
        """This rank's shares of the batches to the end of the epoch, or of the time.

        Asking for the next one gives up a batch that was not reported, on all ranks alike; it comes once more at the
        end of the epoch.
        """
        r8 = self.r8
        self.settle()
        # For the time of rank 0.
        self.exchange.run([])
        epoch = r8.current_epoch
        while (r8.pace.place + len(self._losses)) // r8.steps_per_epoch == epoch:
            # Before the drawing: a run that is to stop trains on no further batch.
            r8.host.between_steps(held_back=len(self._losses))
            ticket = r8.host.draw_ahead()
            if ticket is None:
                break
            ticket = r8.host.begin(ticket, held_back=len(self._losses))
            weights = None if ticket.weights is None else slice_of(ticket.weights, self.ranks)
            share = Share(slice_of(ticket.indices, self.ranks), ticket.lr, weights, ticket)
            try:
                yield share
            except GeneratorExit:
                # After a break the next batch is the one in hand.
                self._take_back(ticket, r8.host.hand_back)
                raise
            self._take_back(ticket, r8.give_up)
        self.settle()
        r8.host.leave_epoch()

    def _take_back(self, ticket: Ticket, do: Callable[[Ticket], None]) -> None:
        """Hand a batch back or give it up, if it was not reported."""
        sent = self._losses.sent
        if not (sent and sent[-1].ticket is ticket):
            do(ticket)

    def report(
        self,
        ticket: Ticket,
        loss: Any,
        *,
        part_size: int | None = None,
        grad_norm: float | None = None,
        skipped: bool = False,
        predictions: Predictions | None = None,
    ) -> Outcome:
        """Note the losses of this rank's slice; exchange them when it is time.

        Args:
            ticket: Of the share that was yielded last.
            loss: As for `R8Scheduler.report`, but of the slice: its mean, float[B / size] of its samples, or of its
                parts.
            part_size: Samples in a part, a divisor of the slice.
            grad_norm: As there; the largest of all ranks counts.
            skipped: As there; a step that is skipped on one rank is so for all.
            predictions: As there, of the samples of the slice; on all ranks or on none.

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
        means = np.atleast_1d(reading.means)
        if predictions is not None:
            checked = self.r8.table.storage.evidence.checked(predictions, len(means), reading.part_size)
            check_exchanged(self.ranks.size, checked.num_places, checked.num_classes)
            margin, predicted, given = checked.rows
            predictions = Predictions(margin, predicted, given, checked.num_classes)
        note = Note(ticket, means, reading.part_size, skipped, norm, predictions)
        self.exchange.check(note, self._losses.sent)
        self._losses.put(note, torch.empty(0))
        experiment = self.r8.controller.experiment
        outcome = self._hear(self._losses.drain() if experiment.is_open else self._losses.ready())
        if experiment.is_open and len(self._losses):
            # An experiment has begun: what was trained on before must be known first.
            outcome = self._hear(self._losses.drain())
        return outcome

    def settle(self) -> None:
        """Exchange and report the losses that are held back, if there are any; on all ranks at the same place."""
        self._hear(self._losses.drain())

    def forget(self) -> None:
        """Drop the losses on their way: a saved state was loaded, and they belong to the run before."""
        self._losses.clear()

    def _hear(self, here: list[tuple[Any, Note]]) -> Outcome:
        """Report whole batches; those trained on after one that put the model back are discarded."""
        pending = outcome = Outcome(Verdict.PENDING, self.r8.lr, None)
        for number, (_, note) in enumerate(here):
            outcome = self.r8.report(note.ticket, **note.arguments)
            if outcome.rolled_back_to is not None:
                for later in [*(sent for sent, _ in here[number + 1 :]), *self._losses.clear()]:
                    self.r8.host.discard(later.ticket)
                return outcome
        return pending if len(self._losses) else outcome

"""The messages that ranks send each other, of a fixed length, so that a rank in error cannot block the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...bridge.ranks.agreement import RanksDiffer
from ...sampling.ticket import Ticket
from ...table.labels.predictions import NUM_ROWS, Predictions
from ...table.losses import EXACT, WHOLE_BATCH, check_kind

NOTHING = -1
"""Kind of the losses in a message without losses."""


class Note(NamedTuple):
    """The losses of a step: of this rank's slice of the batch, and after the exchange of the whole batch.

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


class Head(NamedTuple):
    """The whole numbers in a message. The first six must be the same in the messages of all ranks.

    Attributes:
        num_steps: Steps whose losses are in the message.
        part_size: Kind of these losses.
        step: Steps that the sender has reported, these included.
        drawn: Digest of all batches drawn so far.
        state: Digest of the scheduler's state; 0 if none is due.
        num_classes: C of the predictions that come with some of the losses; 0 without any.
        model: Digest of the model; 0 if none is due.
        every: Steps to the next message; that of rank 0 counts.
        is_hurried: Whether the next message must be read at once; that of rank 0 counts.
        wished: Requests made on the sender, as bits.
    """

    num_steps: int
    part_size: int
    step: int
    drawn: int
    state: int
    num_classes: int
    model: int
    every: int
    is_hurried: int
    wished: int

    @property
    def common(self) -> tuple[int, ...]:
        """The numbers that must be the same on all ranks."""
        return self[:6]


class MessageCodec:
    """Writes the message of this rank, and reads the messages of all.

    Args:
        size: Number of ranks.
        most_steps: Steps whose losses fit into a message.
        share: Samples of a rank in a full batch.
    """

    def __init__(self, size: int, most_steps: int, share: int) -> None:
        self._size = size
        fields = [
            ("head", "i8", (len(Head._fields),)),
            ("clock", "f8"),
            # Length of the cool-down that is wished, as `Requests.span` gives it.
            ("span", "f8", (2,)),
            # Whether the step was skipped, whether its gradient has a norm, and the norm.
            ("extras", "f8", (3, most_steps)),
            ("losses", "f8", (most_steps, share)),
        ]
        self._own: NDArray[Any] = np.zeros(1, np.dtype(fields))
        self._rows = np.zeros((most_steps, NUM_ROWS, share), np.float32)

    def share_of(self, ticket: Ticket) -> int:
        """Samples of a rank in a batch."""
        return -(-len(ticket.indices) // self._size)

    def check(self, note: Note, before: Sequence[Note], kind: int | None) -> None:
        """Raise ValueError unless the losses of a step fit into a message.

        Args:
            note: The losses of this rank's slice.
            before: The notes that are held back.
            kind: Kind of the losses reported so far; None before the first report.
        """
        share = self.share_of(note.ticket)
        if note.part_size != WHOLE_BATCH and share % note.part_size:
            raise ValueError(
                f"part_size must divide the {share} samples of a rank, got {note.part_size}; for a short last batch "
                "give last_batch='drop' or 'fill'."
            )
        check_kind(note.part_size, before[-1].part_size if before else kind)

    def write(
        self, notes: Sequence[Note], *, clock: float, span: tuple[float, float] = (0.0, 0.0), **head: int
    ) -> NDArray[Any]:
        """Write the message of this rank: a record array of length 1.

        Args:
            notes: The steps that are held back.
            clock: Seconds on the clock of this rank.
            span: `Requests.span` of this rank.
            **head: The rest of `Head`, by name.
        """
        own = self._own[0]
        kind = notes[-1].part_size if notes else NOTHING
        own["head"] = Head(num_steps=len(notes), part_size=kind, num_classes=num_classes_in(notes), **head)
        own["clock"], own["span"] = clock, span
        losses = own["losses"]
        for row, note in zip(losses, notes, strict=False):
            row[: len(note.losses)] = note.losses
        if notes:
            norms = [note.grad_norm for note in notes]
            has_norm = [norm is not None for norm in norms]
            own["extras"][:, : len(notes)] = [note.skipped for note in notes], has_norm, [norm or 0.0 for norm in norms]
        return self._own

    def predictions_in(self, notes: Sequence[Note]) -> NDArray[np.float32]:
        """float32[L], what the logits of this rank's slices say; NaN for steps without predictions."""
        rows = self._rows
        rows.fill(np.nan)
        for row, note in zip(rows, notes, strict=False):
            if note.predictions is not None:
                said = np.stack(note.predictions[:NUM_ROWS])
                row[:, : said.shape[1]] = said
        return rows.reshape(-1)

    def joined(self, message: NDArray[Any], notes: Sequence[Note]) -> NDArray[np.uint8]:
        """uint8[L], a message with the predictions of its steps behind it; `split` undoes it."""
        return np.concatenate([message.view(np.uint8), self.predictions_in(notes).view(np.uint8)])

    def split(self, messages: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
        """The messages of all ranks, and the predictions behind them, float32[size, L]; None where there are none.

        Args:
            messages: [size, 1] as `write` made them, or uint8[size, L] as `joined` did.
        """
        if messages.dtype == self._own.dtype:
            return messages[:, 0], None
        size = self._own.itemsize
        heads, rows = messages[:, :size], messages[:, size:]
        return np.ascontiguousarray(heads).view(self._own.dtype)[:, 0], np.ascontiguousarray(rows).view(np.float32)

    def add_predictions(self, messages: NDArray[np.float32], notes: list[Note], num_classes: int) -> list[Note]:
        """Steps with the losses of whole batches, and with what their logits say.

        Args:
            messages: float32[size, L], what `predictions_in` gave on each rank.
            notes: As `read` returned them.
            num_classes: C.
        """
        rows = messages.reshape(self._size, *self._rows.shape)
        return [
            note._replace(predictions=self._joined_predictions(rows[:, place], note, num_classes))
            for place, note in enumerate(notes)
        ]

    def _joined_predictions(self, rows: NDArray[np.float32], note: Note, num_classes: int) -> Predictions | None:
        share, count = self.share_of(note.ticket), len(note.ticket.indices)
        margin, predicted, given = (rows[:, row, :share].reshape(-1)[:count] for row in range(NUM_ROWS))
        is_missing = np.isnan(given)
        if is_missing.all():
            return None
        if is_missing.any():
            raise RanksDiffer(f"all ranks must report predictions, or none, got some at step {note.ticket.step + 1}.")
        return Predictions(margin, predicted.astype(np.int64), given.astype(np.int64), num_classes)

    @staticmethod
    def heads(messages: NDArray[Any]) -> list[Head]:
        """The heads of messages, in the order of the ranks."""
        return [Head(*numbers) for numbers in messages["head"].tolist()]

    def read(self, messages: NDArray[Any], own: Sequence[Note]) -> list[Note]:
        """The steps that were sent, with the losses of whole batches.

        Args:
            messages: [size], in the order of the ranks.
            own: The notes that this rank has sent.
        """
        # A step that one rank skipped, or a gradient that overflowed on one, is so for all.
        skipped, has_norm, norms = messages["extras"].max(0).tolist()
        losses = messages["losses"]
        return [
            Note(
                note.ticket,
                self._joined(losses[:, place], note),
                note.part_size,
                skipped[place] > 0,
                norms[place] if has_norm[place] else None,
            )
            for place, note in enumerate(own)
        ]

    def _joined(self, losses: NDArray[np.float64], note: Note) -> NDArray[np.float64]:
        """float64[P], the losses of one batch: slice after slice, without those of samples that fill the batch up."""
        kind = note.part_size
        if kind == WHOLE_BATCH:
            with np.errstate(invalid="ignore", over="ignore"):
                mean: NDArray[np.float64] = losses[:, 0].sum(keepdims=True) / self._size
            return mean
        count = len(note.ticket.indices)
        return losses[:, : self.share_of(note.ticket) // kind].reshape(-1)[: -(-count // kind)]


def num_classes_in(notes: Sequence[Note]) -> int:
    """C of the predictions in some steps; 0 without any."""
    return max((note.predictions.num_classes for note in notes if note.predictions is not None), default=0)


def arguments_of(note: Note) -> dict[str, Any]:
    """The arguments of `R8Scheduler.report` for a whole batch, but for its ticket."""
    return {
        "loss": float(note.losses[0]) if note.part_size == WHOLE_BATCH else note.losses,
        "part_size": None if note.part_size in (WHOLE_BATCH, EXACT) else note.part_size,
        "skipped": note.skipped,
        "grad_norm": note.grad_norm,
        "predictions": note.predictions,
    }

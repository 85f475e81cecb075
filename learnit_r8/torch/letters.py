"""Letters: what the ranks write to each other, of fixed length, so that one that is in error cannot tear the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kinds import EXACT, WHOLE_BATCH, check_kind
from ..ticket import Ticket

NOTHING = -1
"""Kind of the losses while none was written."""


class Note(NamedTuple):
    """What is known of a step: of this rank's slice of the batch, or once it was exchanged of the whole.

    Attributes:
        ticket: The batch.
        losses: float[P]: of its samples, of their parts, or one mean.
        part_size: EXACT, WHOLE_BATCH or the size of a part.
        skipped: Whether the optimizer's step was skipped because gradients overflowed.
        grad_norm: Norm of the gradient, or None.
    """

    ticket: Ticket
    losses: NDArray[Any]
    part_size: int
    skipped: bool = False
    grad_norm: float | None = None


class Head(NamedTuple):
    """What a letter says beside losses, all whole numbers. The first five must be the same in all letters.

    Attributes:
        num_steps: Steps in it.
        part_size: Kind of their losses.
        step: Steps reported by the one who writes, with these.
        drawn: Digest of all that was drawn so far.
        state: Digest of the scheduler's state; 0 if it is not its turn.
        model: Digest of the model; 0 likewise.
        every: Steps to the next letter, if the writer is rank 0.
        is_hurried: Whether that one is to be read at once, likewise.
        wished: What is asked of the run.
    """

    num_steps: int
    part_size: int
    step: int
    drawn: int
    state: int
    model: int
    every: int
    is_hurried: int
    wished: int

    @property
    def common(self) -> tuple[int, ...]:
        """What must be the same in all letters."""
        return self[:5]


class Letters:
    """Writes the letter of this rank, and reads those of all.

    Args:
        size: Number of ranks.
        most_steps: Steps that a letter can hold.
        share: Samples of a rank in a full batch.
    """

    def __init__(self, size: int, most_steps: int, share: int) -> None:
        self._size = size
        fields = [
            ("head", "i8", (len(Head._fields),)),
            ("clock", "f8"),
            # Whether the step was skipped, whether its gradient has a norm, and the norm.
            ("extras", "f8", (3, most_steps)),
            ("losses", "f8", (most_steps, share)),
        ]
        self._own: NDArray[Any] = np.zeros(1, np.dtype(fields))

    def share_of(self, ticket: Ticket) -> int:
        """Samples of a rank in a batch."""
        return -(-len(ticket.indices) // self._size)

    def check(self, note: Note, before: Sequence[Note], kind: int | None) -> None:
        """Raise ValueError unless the losses can be written.

        Args:
            note: Of this rank's slice.
            before: Those held back.
            kind: Of the reports before; None if there are none.
        """
        share = self.share_of(note.ticket)
        if note.part_size != WHOLE_BATCH and share % note.part_size:
            raise ValueError(
                f"part_size must divide the {share} samples of a rank, got {note.part_size}; for a short last batch "
                "give last_batch='drop' or 'fill'."
            )
        check_kind(note.part_size, before[-1].part_size if before else kind)

    def write(self, notes: Sequence[Note], *, clock: float, **head: int) -> NDArray[Any]:
        """The letter of this rank: [1].

        Args:
            notes: Of the steps held back.
            clock: What this rank's clock shows.
            **head: The rest of `Head`, by name.
        """
        own = self._own[0]
        kind = notes[-1].part_size if notes else NOTHING
        own["head"] = Head(num_steps=len(notes), part_size=kind, **head)
        own["clock"] = clock
        losses = own["losses"]
        for row, note in zip(losses, notes, strict=False):
            row[: len(note.losses)] = note.losses
        if notes:
            norms = [note.grad_norm for note in notes]
            has_norm = [norm is not None for norm in norms]
            own["extras"][:, : len(notes)] = [note.skipped for note in notes], has_norm, [norm or 0.0 for norm in norms]
        return self._own

    @staticmethod
    def heads(letters: NDArray[Any]) -> list[Head]:
        """What letters say beside losses, in the order of the ranks."""
        return [Head(*numbers) for numbers in letters["head"].tolist()]

    def read(self, letters: NDArray[Any], own: Sequence[Note]) -> list[Note]:
        """What is known of the steps held back, now of whole batches.

        Args:
            letters: [size], in the order of the ranks.
            own: What this rank has written.
        """
        # A step that one rank skipped, or a gradient that overflowed on one, is so for all.
        skipped, has_norm, norms = letters["extras"].max(0).tolist()
        losses = letters["losses"]
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
        """float64[P], the losses of one batch: slice after slice, without those of what filled it up."""
        kind = note.part_size
        if kind == WHOLE_BATCH:
            with np.errstate(invalid="ignore", over="ignore"):
                mean: NDArray[np.float64] = losses[:, 0].sum(keepdims=True) / self._size
            return mean
        count = len(note.ticket.indices)
        return losses[:, : self.share_of(note.ticket) // kind].reshape(-1)[: -(-count // kind)]


def arguments_of(note: Note) -> dict[str, Any]:
    """What to report to `R8Scheduler.report` of a whole batch, after its ticket."""
    return {
        "loss": float(note.losses[0]) if note.part_size == WHOLE_BATCH else note.losses,
        "part_size": None if note.part_size in (WHOLE_BATCH, EXACT) else note.part_size,
        "skipped": note.skipped,
        "grad_norm": note.grad_norm,
    }

"""Letters: what the ranks write to each other, of fixed length, so that one that is in error cannot tear the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kinds import EXACT, WHOLE_BATCH, check_kind
from ..losses import Reading, read_loss
from ..table import SampleTable

NOTHING = -1
"""Kind of the losses while none was written."""


class Letters:
    """The letter that this rank is writing, and the reading of everyone's.

    Args:
        size: Number of ranks.
        most_steps: Steps whose losses a letter can hold.
        share: Samples of a rank in a full batch.

    Attributes:
        own: [1], the letter of this rank.
    """

    def __init__(self, size: int, most_steps: int, share: int) -> None:
        self._size = size
        fields = [(name, "i8") for name in ("num_held", "part_size", "step", "drawn", "state", "every", "wished")]
        each = [(name, "f8", (most_steps,)) for name in ("skipped", "has_norm", "norm")]
        losses = ("losses", "f8", (most_steps, share))
        self.own: NDArray[Any] = np.zeros(1, np.dtype([*fields, ("clock", "f8"), *each, losses]))
        self.own["part_size"] = NOTHING
        self._losses = self.own["losses"][0]

    def write(self, place: int, loss: Any, share: int, part_size: int | None, *, table: SampleTable) -> None:
        """Write the losses of a step, before its `write_step`.

        Args:
            place: Steps written before it.
            loss: Of this rank's slice: its mean, or a vector.
            share: Samples in the slice.
            part_size: Samples in a part, or None.
            table: Knows of which kind the reports before were.

        Raises:
            TypeError: not a real number or a vector of them.
            ValueError: a vector of another length, another kind than before, or parts that do not divide the slice.
        """
        reading = read_loss(loss, share, part_size)
        kind = self._kind(reading, share)
        if kind not in (WHOLE_BATCH, EXACT) and share % kind:
            raise ValueError(
                f"part_size must divide the {share} samples of a rank, got {kind}; for a short last batch give "
                "last_batch='drop' or 'fill'."
            )
        check_kind(kind, table.part_size)
        written = int(self.own["part_size"][0])
        check_kind(kind, None if written == NOTHING else written)
        self.own["part_size"] = kind
        if kind == WHOLE_BATCH:
            self._losses[place, 0] = reading.mean
        else:
            self._losses[place, : share // kind] = reading.means

    def _kind(self, reading: Reading, share: int) -> int:
        written = int(self.own["part_size"][0])
        if share == 1 and written == EXACT:
            return EXACT
        return reading.part_size

    def write_step(self, place: int, grad_norm: float | None, skipped: bool) -> None:
        """Write what else is known of a step."""
        own = self.own[0]
        own["skipped"][place], own["has_norm"][place] = skipped, grad_norm is not None
        own["norm"][place] = 0.0 if grad_norm is None else grad_norm

    def write_head(self, **fields: Any) -> None:
        """Write everything else, by name."""
        for name, value in fields.items():
            self.own[name] = value

    def read(self, letters: NDArray[Any], counts: list[int]) -> list[dict[str, Any]]:
        """The losses of whole batches, from the letters of all ranks; begins a new letter.

        Args:
            letters: [size], in the order of the ranks.
            counts: Samples in each batch.

        Returns:
            For each batch what to report: the arguments of `R8Scheduler.report` after the ticket.
        """
        kind = int(letters["part_size"][0])
        self.own["part_size"] = NOTHING
        # A step that one rank skipped, or a gradient that overflowed on one, is so for all.
        skipped, has_norm, norms = (letters[name].max(0).tolist() for name in ("skipped", "has_norm", "norm"))
        with np.errstate(invalid="ignore", over="ignore"):
            means = (letters["losses"][:, :, 0].sum(0) / self._size).tolist()
        return [
            {
                "loss": means[place] if kind == WHOLE_BATCH else self._joined(letters["losses"][:, place], count, kind),
                "part_size": None if kind in (WHOLE_BATCH, EXACT) else kind,
                "skipped": skipped[place] > 0,
                "grad_norm": norms[place] if has_norm[place] else None,
            }
            for place, count in enumerate(counts)
        ]

    def _joined(self, losses: NDArray[np.float64], count: int, kind: int) -> NDArray[np.float64]:
        """float64, the losses of one batch, slice after slice, without those of what filled it up."""
        share = -(-count // self._size)
        return losses[:, : share // kind].reshape(-1)[: -(-count // kind)]

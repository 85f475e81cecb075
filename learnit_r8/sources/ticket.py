"""The ticket of a drawn batch, and the outcome of its report."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._validation import shortened
from ..guard.verdict import Verdict
from ..policies.base import Policy
from .chunk import OPEN, OUT_AGAIN, Batch, Chunk, FollowedChunk


class Ticket(NamedTuple):
    """A drawn batch; report it with its loss.

    Attributes:
        step: The step, 0-based, at which it is reported if all drawn batches are reported in order.
        epoch: Its epoch, 0-based; -1 during a learning-rate search.
        indices: int64[B], the samples to train on; fewer in an epoch's short last batch.
        lr: Learning rate when it was drawn.
        weights: float32[B], factors for the samples' losses, or None.
        draw: Number of batches drawn before it.
        chunk: The chunk that it belongs to.
        slot: Its position there.
    """

    step: int
    epoch: int
    indices: NDArray[np.int64]
    lr: float
    weights: NDArray[np.float32] | None
    draw: int
    chunk: Chunk | FollowedChunk
    slot: int

    @property
    def batch(self) -> Batch:
        """Its place in its source."""
        return Batch(self.chunk, self.slot, self.indices)

    @property
    def is_out(self) -> bool:
        """Whether it is neither reported nor given up."""
        state = self.chunk.states[self.slot]
        return state == OUT_AGAIN or (state == OPEN and self.slot < self.chunk.drawn)

    def __repr__(self) -> str:
        some = ", ".join(map(str, self.indices[:4])) + (", ..." if len(self.indices) > 4 else "")
        return f"Ticket(step {self.step}, epoch {self.epoch}, {len(self.indices)} samples: {some}; lr={self.lr:.3g})"


class Outcome(NamedTuple):
    """The outcome of a report; true if the optimizer's step is to be applied, false if a loop must skip it.

    Attributes:
        verdict: The guard's verdict on the loss.
        lr: Learning rate to use now.
        rolled_back_to: Steps reported when the restored model state was taken; None if none was restored.
        clip_factor: What to multiply the gradient by whose norm was reported, in (0, 1]; 1.0 unless a rate had to be
            lowered. An adapter's ``step(loss)`` has done so.
    """

    verdict: Verdict
    lr: float
    rolled_back_to: int | None
    clip_factor: float = 1.0

    def __bool__(self) -> bool:
        # A restored model must not take a step with gradients of the old weights.
        return self.verdict in _COUNTED and self.rolled_back_to is None


def check_ticket(ticket: Any) -> Ticket:
    """The same; raises TypeError if it is something else, such as the number of a batch."""
    if type(ticket) is not Ticket:
        raise TypeError(
            f"ticket must be what draw() returned, got {shortened(ticket)}. In a loop over batch_iterator() give the "
            "losses to update_with_loss()."
        )
    return ticket


def refuse_weights(policy: Policy, ticket: Ticket | None = None) -> None:
    """Raise RuntimeError if a policy weights samples, for a loop that never sees the weights."""
    if policy.weighs or (ticket is not None and ticket.weights is not None):
        raise RuntimeError(
            f"policy {policy!r} weights samples: use draw() and report(), and ticket.weights; or attach() of "
            "learnit_r8.torch, and its loss()."
        )


_COUNTED = (Verdict.GOOD, Verdict.PENDING)

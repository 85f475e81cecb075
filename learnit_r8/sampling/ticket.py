"""What goes out with a batch and what comes back for its loss."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..guard.verdict import Verdict
from .chunk import Batch


class Ticket(NamedTuple):
    """A drawn batch; hand it back with its loss.

    Attributes:
        step: The step it will be, 0-based, if everything that is out is reported in order.
        epoch: Its epoch, 0-based; -1 while a learning rate is searched for.
        indices: int64[B], the samples to train on; fewer in an epoch's short last batch.
        lr: Learning rate at drawing time.
        weights: float32[B], what to multiply each sample's loss by, or None.
        draw: Batches drawn before it.
        batch: Its place in the plan.
    """

    step: int
    epoch: int
    indices: NDArray[np.int64]
    lr: float
    weights: NDArray[np.float32] | None
    draw: int
    batch: Batch


class Outcome(NamedTuple):
    """What became of a report; true if the step counts, so that a loop can skip ``backward()`` and ``step()``.

    Attributes:
        verdict: What the guard says of the loss.
        lr: Learning rate to use now.
        rolled_back_to: Steps reported when the restored model state was taken; None if none was restored.
    """

    verdict: Verdict
    lr: float
    rolled_back_to: int | None

    def __bool__(self) -> bool:
        # A restored model must not take the step that its old weights asked for.
        return self.verdict in _COUNTED and self.rolled_back_to is None


# The constructor of a named tuple is a Python function; this is not.
new_tuple = tuple.__new__

_COUNTED = (Verdict.GOOD, Verdict.DRIFT, Verdict.PENDING)

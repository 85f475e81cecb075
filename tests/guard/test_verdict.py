"""The finite guard accepts finite losses and refuses all others."""

import math

import numpy as np
import pytest

from learnit_r8 import FiniteGuard, GuardState, Verdict
from learnit_r8.guard import LARGEST_LOSS
from learnit_r8.table.losses import read_loss


@pytest.mark.parametrize("loss", [0.0, -0.0, 1.5, -7.0, 1e-300, LARGEST_LOSS, -LARGEST_LOSS])
def test_accepts_finite_losses(loss):
    """A loss that the table can hold is good, including both ends of the range."""
    assert FiniteGuard().judge(GuardState(), loss) == (GuardState(1, 0), Verdict.GOOD)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, LARGEST_LOSS * 1.001, -LARGEST_LOSS * 1.001, 1e300])
def test_refuses_what_is_not_finite(loss):
    """NaN, the infinities, and what float32 cannot average are refused from the first loss on."""
    assert FiniteGuard().judge(GuardState(), loss) == (GuardState(1, 1), Verdict.NOT_FINITE)


def test_counts():
    """The state counts judged and refused losses, and nothing else."""
    guard, state = FiniteGuard(), GuardState()
    for loss in (1.0, math.nan, 2.0, math.inf):
        state, _ = guard.judge(state, loss, expected=1.0)

    assert state == GuardState(num_judged=4, num_refused=2)


def test_largest_loss_leaves_room():
    """The difference of two accepted losses, doubled, is a finite float32."""
    assert np.isfinite(np.float32(LARGEST_LOSS - -LARGEST_LOSS) * np.float32(1.9))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part_size", [None, 1, 2])
def test_one_bad_sample_refuses_the_batch(bad, part_size):
    """A batch is refused if the loss of any sample or part is not finite, however many are fine."""
    losses = np.zeros(64)
    losses[5] = bad
    reading = read_loss(losses, 64 * (part_size or 1), part_size)

    assert FiniteGuard().judge(GuardState(), reading.mean)[1] is Verdict.NOT_FINITE


def test_infinities_are_read_quietly():
    """Infinities of both signs in a vector are refused without a warning."""
    reading = read_loss([math.inf, -math.inf, 1.0], 3)

    assert FiniteGuard().judge(GuardState(), reading.mean)[1] is Verdict.NOT_FINITE

"""The finite guard accepts finite losses and refuses all others."""

import math

import numpy as np
import pytest

from learnit_r8 import FiniteGuard, GuardState, Verdict
from learnit_r8.guard import LARGEST_LOSS
from learnit_r8.table.losses import read_loss

GOOD = (0.0, -0.0, 1.5, -7.0, 1e-300, LARGEST_LOSS, -LARGEST_LOSS)
BAD = (math.nan, math.inf, -math.inf, LARGEST_LOSS * 1.001, -LARGEST_LOSS * 1.001, 1e300)


def test_finite_losses_are_good():
    """A loss that the table can hold is good, including both ends of the range; others are refused, and counted."""
    guard, state = FiniteGuard(), GuardState()
    for number, loss in enumerate(GOOD + BAD):
        state, verdict = guard.judge(state, loss, expected=1.0)
        is_bad = number >= len(GOOD)

        assert verdict is (Verdict.NOT_FINITE if is_bad else Verdict.GOOD), loss
        assert state == GuardState(number + 1, max(0, number + 1 - len(GOOD)))


def test_largest_loss_leaves_room():
    """The difference of two accepted losses, doubled, is a finite float32."""
    assert np.isfinite(np.float32(LARGEST_LOSS - -LARGEST_LOSS) * np.float32(1.9))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part_size", [None, 1, 2])
def test_one_bad_sample_refuses_the_batch(bad, part_size):
    """A batch is refused if the loss of any sample or part is not finite, however many are fine."""
    losses = np.zeros(64)
    losses[5], losses[9] = bad, -bad
    reading = read_loss(losses, 64 * (part_size or 1), part_size)

    assert FiniteGuard().judge(GuardState(), reading.mean)[1] is Verdict.NOT_FINITE

"""Faults in a training on two ranks: both probe the same steps together, and both are healed."""

import pytest

torch = pytest.importorskip("torch")

from tests import rank_jobs as jobs
from tests.fault_common import HEALED, KINDS, NUM_STEPS, SOME_KINDS

pytestmark = pytest.mark.program


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_heals_on_two_ranks(pair, kind):
    """A fault of any kind, that of a batch on one rank only, is healed on both; both have probed and restored alike."""
    check_healing(pair, kind, accumulate=1)


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_a_fault_heals_on_two_ranks_with_accumulation(pair, kind):
    """So it is where several batches make an update."""
    check_healing(pair, kind, accumulate=4)


def check_healing(pair, kind, accumulate):
    one, other = pair.run(jobs.faulty_run, kind, accumulate, 1)

    assert one[1:] == other[1:]
    assert one[0] == pytest.approx(other[0])
    assert one[0] < HEALED
    assert one[1] == NUM_STEPS * accumulate

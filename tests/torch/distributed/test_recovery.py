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


def test_validation_on_two_ranks_sees_no_weights_on_trial(pair):
    """Where an epoch ends within a trial, all ranks have the state from before it; the trial goes on with its own."""
    one, other = pair.run(jobs.validated_run)
    before = one[2]
    within = [each for each in one if each[1]]

    assert one == other
    assert len(within) > 2
    assert {loss for loss, *_ in within} == {before[0]}
    assert {weights for *_, weights in within} == {before[3]}
    assert len({begun for *_, begun, _ in within}) == len(within)


def test_checkpoint_waits_no_longer_than_a_trial(pair, tmp_path):
    """On several ranks one that is due follows the trial: 64 steps on, and up to 16 more as losses come late."""
    within, saved = pair.run(jobs.saving_run, tmp_path)[0]
    after = min(step for step in saved if step > 30)

    assert within[0] == 30
    assert max(saved) == 120
    assert 30 + 64 <= after <= 30 + 64 + 16


@pytest.mark.parametrize("damages", [False, True])
def test_rank_that_leaves_the_run_by_a_break_asks_no_other(pair, tmp_path, damages):
    """Its close() does not wait for the others, puts nothing back and saves nothing; it says so, and what it saw."""
    for said, is_finite, num_files in pair.run(jobs.left_run, tmp_path, damages):
        assert num_files == 0
        assert is_finite != damages
        [said] = [each for each in said if each.startswith("one of several processes has left the run at step")]
        assert ("is not finite" in said) == damages

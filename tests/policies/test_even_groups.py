"""The policy that visits rare groups more often."""

import numpy as np
import pytest

from learnit_r8 import Context, Focus, Outlook, R8Scheduler, even_groups
from learnit_r8.policies import Balanced, EvenGroups
from learnit_r8.state.codec import decode, encode
from learnit_r8.table.labels.suspicion import Humps, Suspicion
from tests.common import candidates, generator

GROUPS = np.repeat([0, 1, 2], [8000, 1600, 400])


def kept(policy, *, groups=GROUPS, loss=None, outlook=None):
    """Share kept of each group."""
    chunk = candidates(
        np.ones(len(groups)) if loss is None else loss, usage_count=np.full(len(groups), 6), group=groups
    )
    context = Context(0.5, 6, 8, 2.0, outlook or Outlook(), tuple(np.bincount(groups).tolist()))
    keep, _ = policy.select(chunk, context, generator())
    return [float(keep[groups == code].mean()) for code in np.unique(groups)]


@pytest.mark.parametrize(
    ("exponent", "shares"), [(1.0, [1, 1, 1]), (0.5, [0.05**0.5, 0.25**0.5, 1]), (0.0, [0.1, 0.5, 1])]
)
def test_visits_follow_the_power_of_the_size(exponent, shares):
    """A group of n samples gets visits in proportion to n ** exponent."""
    assert kept(even_groups(exponent=exponent)) == pytest.approx(shares, abs=0.03)


def test_limit():
    """A sample of a rare group comes at most ``most_often`` times as often as one of the largest group."""
    assert kept(even_groups(exponent=0.0, most_often=2.0)) == pytest.approx([0.5, 1, 1], abs=0.03)


def test_group_that_the_chunk_lacks_counts():
    """Common groups are thinned at the same rate in every chunk, also where a rare group has no samples."""
    policy, context = even_groups(exponent=0.0), Context(0.5, 6, 8, 2.0, Outlook(), (9000, 900, 9000))
    chunk = candidates(np.ones(9000), group=np.zeros(9000, int))

    assert policy.select(chunk, context, generator())[0].mean() == pytest.approx(0.1, abs=0.02)


def test_samples_skipped_by_the_inner_policy_stay_skipped():
    """Suspects that a guard skips are skipped in rare groups, too."""
    outlook = Outlook(True, 6.0, 1.0, 1.0, Suspicion(2.0, Humps(0.3, 0.1, 1.5, 0.1, 0.1)))
    loss = np.where(np.arange(len(GROUPS)) % 10 == 0, 4.5, 0.1)
    guarded = even_groups(Focus(noise_guard=True, skip_suspects=1.0), exponent=1.0)

    assert kept(guarded, loss=loss, outlook=outlook) == pytest.approx([0.9, 0.9, 0.9], abs=0.01)


def run(policy, **settings):
    """The visits of each sample in the second half of a run over ten epochs, in which all are learnt."""
    r8 = R8Scheduler(2000, batch_size=32, num_epochs=10, policy=policy, groups=GROUPS[::5], **settings)
    visits = np.zeros(2000)
    while (ticket := r8.draw_if_any()) is not None:
        if ticket.epoch >= 5:
            visits[ticket.indices] += 1
        r8.report(ticket, 2.0 * 0.7**ticket.epoch + 0.001 * ticket.indices)
    return r8, visits


def test_an_epoch_stays_as_long():
    """An epoch still has N visits, and every sample is visited at times."""
    r8, visits = run(even_groups())
    by_group = [visits[GROUPS[::5] == code].mean() for code in range(3)]

    assert visits.sum() == 5 * 2000
    assert by_group[2] / by_group[0] == pytest.approx(20**0.5, rel=0.1)
    assert r8.table.usage_count.min() >= 1


def test_resumes_bit_for_bit():
    """A run that stops in mid-pass resumes with the same samples."""

    def make():
        return R8Scheduler(300, batch_size=32, num_epochs=6, policy=even_groups("focus"), groups=np.arange(300) // 250)

    def train(r8, until=None):
        while r8.global_step != until and (ticket := r8.draw_if_any()) is not None:
            r8.report(ticket, 1 + 0.001 * ticket.indices)

    whole, first, second = make(), make(), make()
    train(whole)
    train(first, until=33)
    second.load_state_dict(decode(encode(first.state_dict())))
    train(second)

    assert np.array_equal(whole.table.usage_count, second.table.usage_count)
    assert np.array_equal(whole.table.loss, second.table.loss)


def test_needs_groups():
    """Without groups the policy is refused before anything is made, alone or inside another."""
    with pytest.raises(
        ValueError, match=r"groups must be a label for each sample, as the policy EvenGroups.* got None"
    ):
        R8Scheduler(100, batch_size=8, num_epochs=1, policy=even_groups())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"exponent": 1.5}, ValueError, r"exponent must be in \[0, 1\], got 1\.5\."),
        ({"exponent": "x"}, ValueError, r"exponent must be in \[0, 1\], got 'x'\."),
        ({"most_often": 0.5}, ValueError, r"most_often must be a number >= 1, got 0\.5\."),
        ({"most_often": float("inf")}, ValueError, r"most_often must be a number >= 1, got inf\."),
        ({"policy": "even"}, ValueError, r"policy must be one of \[.*\] or a Policy, got 'even'\."),
    ],
)
def test_bad_arguments(arguments, error, message):
    """Arguments outside their range are refused."""
    with pytest.raises(error, match=message):
        even_groups(**arguments)


def test_refuses_other_objects_than_policies():
    """The class takes a policy, not a name."""
    with pytest.raises(TypeError, match=r"inner must be a Policy, got 'balanced'\."):
        EvenGroups("balanced")

    assert EvenGroups() == even_groups(Balanced())

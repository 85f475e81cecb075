"""Arrangements: shares of quantiles, the order of use, and the checks of users' policies."""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.own_policy import MatchMean
from learnit_r8 import Context, Policy, even_groups
from learnit_r8.policies import POLICIES, Balanced, EvenGroups, Quartile, Shuffle, Steady, get_policy
from tests.common import KINDS, PolicySuite, build, candidates, generator, random_losses, run_pass
from tests.examples import examples
from tests.package_copy import copy_package, replace_in, run_beside

ADDED = '''"""Each sample once per pass, the hardest ones first."""

import numpy as np

from .base import Policy


class HardestFirst(Policy):
    """The samples of a chunk by falling loss."""

    name = "hardest_first"

    def arrange(self, chunk, batch_size, rng):
        return np.argsort(-chunk.loss, kind="stable")
'''

USED = """
from learnit_r8 import R8Scheduler
from learnit_r8.cli import main

r8 = R8Scheduler(8, batch_size=4, num_epochs=2, policy="hardest_first", checkpoint_dir="saved", run_dir="shown")
for _ in r8.epoch_iterator():
    for indices, _ in r8.batch_iterator():
        r8.update_with_loss(indices + 1.0)
        if r8.global_step == 2:
            saved = r8.save_checkpoint().path
r8 = R8Scheduler.resume_from_checkpoint(saved)
for indices, _ in r8.batch_iterator():
    print(sorted(indices.tolist()))
    r8.update_with_loss(indices + 1.0)
try:
    R8Scheduler(8, batch_size=4, num_epochs=2, policy="hardest")
except ValueError as error:
    print(error)
main(["report", "shown"])
with open("shown/report.html", encoding="utf-8") as page:
    print("hardest_first" in page.read())
"""

QUARTERS = [0, 0.25, 0.5, 0.75, 1]
SEEDS_SHARES = [0, 0.25, 0.75, 1]
"""Q1, Q2 and Q3 together, Q4."""


class TestPolicies(PolicySuite):
    """The common suite."""


def runs_of(order, batch_size, length):
    """int64[M, length], every run of ``length`` consecutive positions inside the full batches."""
    batches = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
    return np.lib.stride_tricks.sliding_window_view(batches, length, axis=1).reshape(-1, length)


def check_shares(loss, order, batch_size, edges):
    """Every batch and every run of half a batch holds its share of each quantile, to within one.

    A sample counts for every quantile it may belong to: within one rank of an edge, and tied with such a sample.
    """
    count = len(loss)
    ordered = np.sort(loss)
    first = np.searchsorted(ordered, loss, "left") - 1
    last = np.searchsorted(ordered, loss, "right")
    for low, high in itertools.pairwise(edges):
        surely = ((first >= low * count) | (low == 0)) & ((last < high * count) | (high == 1))
        maybe = (last >= low * count) & (first < high * count)
        for length in {batch_size, batch_size // 2, -(-batch_size // 2)} - {0}:
            runs, share = runs_of(order, batch_size, length), length * (high - low)
            if not len(runs):
                continue
            assert surely[runs].sum(axis=1).max() <= math.ceil(share)
            assert maybe[runs].sum(axis=1).min() >= math.floor(share)


@pytest.mark.parametrize(
    ("policy", "edges"), [(Balanced(), QUARTERS), (Quartile(), SEEDS_SHARES)], ids=["balanced", "quartile"]
)
@examples(3)
@given(
    count=st.integers(1, 400),
    batch_size=st.integers(1, 70),
    kind=st.sampled_from(["distinct", "equal", "ties", "negative"]),
    seed=st.integers(0, 999),
    most=st.integers(0, 3),
)
def test_shares(policy, edges, count, batch_size, kind, seed, most):
    """Every full batch, and every contiguous half of it, holds its share of each loss quartile to within one."""
    loss = random_losses(kind, count, seed)
    uses = generator(seed).integers(0, most + 1, count)
    order = policy.arrange(candidates(loss, usage_count=uses), batch_size, generator(seed))

    check_shares(loss, order, batch_size, edges)


@pytest.mark.parametrize(
    ("policy", "edges"), [("balanced", QUARTERS), ("quartile", SEEDS_SHARES)], ids=["balanced", "quartile"]
)
@pytest.mark.parametrize("batch_size", [32, 50, 1])
def test_shares_of_a_pass(policy, edges, batch_size):
    """The batches of a whole pass of one chunk have the shares of the losses known when it began."""
    table, plan = build(1000, batch_size, get_policy(policy))
    run_pass(plan, 0, losses=lambda indices, _: 1.0 + indices)
    known = table.loss
    order = np.concatenate(run_pass(plan, 1))

    check_shares(known, order, batch_size, edges)


def test_shuffle_has_no_shares():
    """A plain shuffle does not hold the shares: the check above can fail."""
    loss = random_losses("distinct", 400, 0)

    with pytest.raises(AssertionError):
        check_shares(loss, generator().permutation(400), 32, QUARTERS)


def test_balanced_by_hand():
    """Eight samples in batches of four: each batch has one of the two lowest, of the next two, and so on."""
    order = Balanced().arrange(candidates([7, 3, 0, 5, 2, 6, 1, 4]), 4, generator())
    strata = np.array([7, 3, 0, 5, 2, 6, 1, 4])[order].reshape(2, 4) // 2

    assert np.sort(strata, axis=1).tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("batch_size", [8, 30, 32, 64])
def test_balanced_takes_one_of_each_stratum(batch_size):
    """Every batch takes at most one sample of each of S strata, S the next multiple of 4 from B."""
    strata = -(-batch_size // 4) * 4
    loss = random_losses("distinct", 10 * strata, 3)
    order = Balanced().arrange(candidates(loss), batch_size, generator())
    rounds = (loss[order] // 10).astype(int).reshape(10, strata)

    assert np.sort(rounds, axis=1).tolist() == [list(range(strata))] * 10


def test_balanced_spreads_fine_strata_over_a_batch():
    """Half a batch of 32 holds two samples of each eighth of the losses, give or take one."""
    loss = random_losses("distinct", 3200, 1)
    order = Balanced().arrange(candidates(loss), 32, generator())
    eighths = (loss[runs_of(order, 32, 16)] // 400).astype(int)
    counts = np.stack([(eighths == eighth).sum(axis=1) for eighth in range(8)])

    assert counts.min() >= 1
    assert counts.max() <= 3


def test_balanced_smooths_the_batch_loss():
    """The mean losses of the batches vary less than half as much as a plain shuffle's."""
    loss = generator(5).standard_gamma(1.0, 6400).astype(np.float32)
    order = Balanced().arrange(candidates(loss), 32, generator())

    assert loss[order].reshape(-1, 32).mean(axis=1).var() < 0.5 * loss.reshape(-1, 32).mean(axis=1).var()


@given(height=st.integers(1, 12), batch_size=st.integers(1, 24), seed=st.integers(0, 999), most=st.integers(1, 5))
def test_balanced_draws_least_used_first(height, batch_size, seed, most):
    """Within each of the S strata the samples come in the order of their use."""
    strata = -(-batch_size // 4) * 4
    loss = random_losses("distinct", strata * height, seed)
    uses = generator(seed).integers(0, most + 1, len(loss))
    order = Balanced().arrange(candidates(loss, usage_count=uses), batch_size, generator(seed))
    for stratum in range(strata):
        drawn = uses[order][loss[order] // height == stratum]
        assert (np.diff(drawn) >= 0).all()


@given(quarter=st.integers(1, 60), seed=st.integers(0, 999), most=st.integers(1, 5))
def test_quartile_draws_least_used_first(quarter, seed, most):
    """Within Q1, within Q2 and Q3 together, and within Q4 the samples come in the order of their use."""
    loss = random_losses("distinct", 4 * quarter, seed)
    uses = generator(seed).integers(0, most + 1, len(loss))
    order = Quartile().arrange(candidates(loss, usage_count=uses), 8, generator(seed))
    for low, high in [(0, 1), (1, 3), (3, 4)]:
        rank = loss[order] / quarter
        assert (np.diff(uses[order][(rank >= low) & (rank < high)]) >= 0).all()


@pytest.mark.parametrize("most_used", [1, 2**16 - 1])
def test_saturated_use_is_the_largest(most_used):
    """A sample whose use count is saturated comes last, not first."""
    uses = np.zeros(8, np.int64)
    uses[0] = most_used
    for policy in (Balanced(), Quartile(), Steady()):
        order = policy.arrange(candidates(np.ones(8), usage_count=uses), 4, generator())

        assert order.tolist().index(0) >= 4


@pytest.mark.parametrize("policy", [Balanced(), Quartile()], ids=["balanced", "quartile"])
def test_equals_keep_the_random_order(policy):
    """Among equal losses and uses, the chunk's own random order decides."""
    order = policy.arrange(candidates(np.ones(12)), 12, generator())

    # The first four are the first of each quarter of the chunk's order.
    assert sorted(order[:4].tolist()) == ([0, 3, 6, 9] if isinstance(policy, Balanced) else [0, 3, 4, 9])


@pytest.mark.parametrize("policy", [Balanced(), Quartile()], ids=["balanced", "quartile"])
@given(quarter=st.integers(2, 60), share=st.floats(0.01, 0.95), seed=st.integers(0, 999))
def test_unseen_samples_are_spread(policy, quarter, share, seed):
    """Unseen samples are spread evenly over the quartiles, each edge misplacing at most one."""
    count = 4 * quarter
    loss = random_losses("distinct", count, seed)
    unseen = generator(seed).random(count) < share
    loss[unseen] = np.nan
    order = policy.arrange(candidates(loss), 4, generator(seed))
    places = unseen[order].reshape(-1, 4).sum(axis=0)
    shares = places if isinstance(policy, Balanced) else np.array([places[0], places[1] + places[3], places[2]])
    wanted = unseen.sum() * np.diff(QUARTERS if isinstance(policy, Balanced) else SEEDS_SHARES)

    assert np.abs(shares - wanted).max() <= 2


@pytest.mark.parametrize("policy", [Balanced(), Quartile()], ids=["balanced", "quartile"])
def test_infinite_and_zero_losses_rank(policy):
    """Zero of either sign lies between the negative and the positive losses."""
    loss = np.array([-2, -1, -0.5, -0.25, -0.0, 0.0, 0.5, 1], np.float32)
    order = policy.arrange(candidates(loss[[7, 0, 4, 2, 6, 1, 5, 3]]), 8, generator())

    check_shares(loss[[7, 0, 4, 2, 6, 1, 5, 3]], order, 8, QUARTERS if isinstance(policy, Balanced) else SEEDS_SHARES)


@pytest.mark.parametrize("count", [5, 6, 31])
def test_remainder_is_random(count):
    """The remainder comes from every quartile equally often, so no part of the data always comes last."""
    remainder, keys = count % 4, 400
    tallies = np.zeros(4)
    for seed in range(keys):
        indices = generator(seed).permutation(10_000)[:count]
        loss = indices.astype(np.float32)
        order = Balanced().arrange(candidates(loss)._replace(indices=indices), 4, generator(seed))
        whole = order[: count - remainder].reshape(-1, 4)
        # The stratum of a place is its column; the last row goes on with the same columns.
        strata_by_loss = np.argsort(loss[whole].mean(axis=0))
        tallies[np.argsort(strata_by_loss)[:remainder]] += 1
    wanted = keys * remainder / 4

    assert np.abs(tallies - wanted).max() < 5 * math.sqrt(keys * remainder / 4 * (1 - remainder / 4))


def test_groups_get_their_share():
    """With groups, every batch holds each group's share to within two, and each of its halves to within two."""
    group = np.repeat([0, 1, 2], [600, 300, 60])
    mixed = generator(2).permutation(len(group))
    loss = random_losses("distinct", len(group), 4)
    order = Balanced().arrange(candidates(loss, group=group[mixed]), 32, generator())
    for length in (32, 16):
        drawn = group[mixed][runs_of(order, 32, length)]
        for label, size in enumerate([600, 300, 60]):
            assert np.abs((drawn == label).sum(axis=1) - length * size / 960).max() < 2


def test_groups_are_balanced_by_loss_inside():
    """Within a group every batch takes from its low and from its high losses."""
    group = np.arange(640) % 2
    loss = random_losses("distinct", 640, 4)
    order = Balanced().arrange(candidates(loss, group=group), 32, generator()).reshape(-1, 32)
    for label in (0, 1):
        low = loss < np.median(loss[group == label])
        assert ((low & (group == label))[order].sum(axis=1) == 8).all()


def test_steady_keeps_the_lowest_quarter():
    """The steady policy keeps the quarter of the seen samples with the lowest loss."""
    chunk = candidates([9, 1, 8, 2, 7, 3, 6, 4])
    keep, weights = Steady().select(chunk, Context(0.5, 1, 2, 9.0), generator())

    assert np.flatnonzero(keep).tolist() == [1, 3]
    assert weights is None


def test_steady_keeps_a_batch():
    """If a quarter is less than a batch, the lowest batch is kept."""
    keep, _ = Steady().select(candidates([9, 1, 8, 2, 7, 3, 6, 4]), Context(0.5, 1, 3, 9.0), generator())

    assert np.flatnonzero(keep).tolist() == [1, 3, 5]


def test_steady_leaves_out_unseen_samples():
    """An unseen sample is not steady."""
    loss, uses = [9, np.nan, 8, np.nan, np.nan], [1, 0, 1, 0, 0]
    keep, _ = Steady().select(candidates(loss, usage_count=uses), Context(0.5, 1, 2, 9.0), generator())

    assert np.flatnonzero(keep).tolist() == [0, 2]


@pytest.mark.parametrize(("pass_number", "kept"), [(1, [0, 1, 2, 3, 4]), (-1, [0, 2])], ids=["pass", "outside"])
def test_steady_takes_everything_where_too_few_were_seen(pass_number, kept):
    """If fewer samples than a batch were seen, a pass takes all; batches outside a pass stay steady."""
    loss, uses = [9, np.nan, 8, np.nan, np.nan], [1, 0, 1, 0, 0]
    keep, _ = Steady().select(candidates(loss, usage_count=uses), Context(0.5, pass_number, 4, 9.0), generator())

    assert np.flatnonzero(keep).tolist() == kept


def test_steady_draws_least_used_first():
    """Steady samples come in the order of their use, then of the chunk."""
    order = Steady().arrange(candidates([1, 1, 1, 1], usage_count=[2, 1, 2, 1]), 2, generator())

    assert order.tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_match_mean_of_the_examples_narrows_the_gaps(kind):
    """Swapping brings the batch means no further from the chunk's mean, and changes nothing else."""
    loss = random_losses(kind, 400, 2)
    chunk = candidates(loss)
    before = MatchMean(max_rounds=0).arrange(chunk, 16, generator())
    after = MatchMean(tolerance=0.001, max_rounds=50).arrange(chunk, 16, generator())
    gaps = [np.abs(np.nanmean(loss[order].reshape(-1, 16), axis=1) - np.nanmean(loss)) for order in (before, after)]

    assert before.tolist() == list(range(400))
    assert kind == "unseen" or gaps[1].max() <= gaps[0].max()
    assert kind != "distinct" or gaps[1].max() < gaps[0].max() / 2


@pytest.mark.parametrize(
    ("loss", "settings", "wanted"),
    [
        # The highest loss of the worst batch goes to the best batch for its lowest.
        ([1, 2, 5, 8], {"max_rounds": 1}, [3, 1, 2, 0]),
        # The batch means 1.5 and 6.5 are 0.625 of the chunk's mean away from it.
        ([1, 2, 5, 8], {"tolerance": 0.63}, [0, 1, 2, 3]),
        ([1, 2, 5, 8], {"tolerance": 0.62}, [3, 1, 2, 0]),
        # A swap that would only exchange the roles of two batches is not made.
        ([0, 8, 1, 8], {"tolerance": 0.01}, [0, 1, 2, 3]),
    ],
)
def test_match_mean_of_the_examples_by_hand(loss, settings, wanted):
    """Batches far from the mean swap samples; those near enough are left alone."""
    assert MatchMean(**settings).arrange(candidates(loss), 2, generator()).tolist() == wanted


@pytest.mark.parametrize("name", ["balanced", "quartile", "shuffle", "focus"])
def test_names(name):
    """Every policy is known by its name."""
    assert get_policy(name) is POLICIES[name]
    assert get_policy(name).name == name


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_frozen(policy):
    """A policy cannot be changed, and equals another of the same settings."""
    with pytest.raises(AttributeError, match="cannot assign"):
        policy.tolerance = 1

    assert replace(policy) == policy


@dataclass(frozen=True)
class Answering(Policy):
    """A user's policy that returns given values."""

    keep: object = None
    weights: object = None
    order: object = None
    selects = True

    def select(self, chunk, context, rng):
        return self.keep, self.weights

    def arrange(self, chunk, batch_size, rng):
        return self.order


@pytest.mark.parametrize("wrap", [get_policy, even_groups], ids=["alone", "even_groups"])
def test_checks_users_policies_inside_others(wrap):
    """A user's policy is checked inside another one, too."""
    with pytest.raises(ValueError, match=r"policy.arrange must return a permutation of range\(4\)"):
        get_policy(wrap(Answering(order=[0, 0, 1, 1]))).arrange(candidates(np.ones(4)), 2, generator())


def test_checks_subclasses_of_our_policies():
    """A user's policy is checked even if it is derived from one of ours."""

    class Cut(Balanced):
        def arrange(self, chunk, batch_size, rng):
            return super().arrange(chunk, batch_size, rng)[:-1]

    with pytest.raises(ValueError, match=r"policy.arrange must return a permutation of range\(4\)"):
        get_policy(Cut()).arrange(candidates(np.ones(4)), 2, generator())


@pytest.mark.parametrize("base", [MatchMean, EvenGroups])
def test_checks_subclasses_of_policies_around_others(base):
    """So is one that is derived from a policy that wraps another."""

    class Cut(base):
        def arrange(self, chunk, batch_size, rng):
            return super().arrange(chunk, batch_size, rng) * 0

    with pytest.raises(ValueError, match=r"policy.arrange must return a permutation of range\(4\)"):
        get_policy(Cut()).arrange(candidates(np.ones(4), group=[0, 0, 1, 1]), 2, generator())


def test_derived_policy_has_its_own_generator():
    """A user's policy that is derived from one of ours may draw random numbers: the same for the same seed."""

    class Mixed(Balanced):
        def arrange(self, chunk, batch_size, rng):
            return rng.permutation(super().arrange(chunk, batch_size, rng))

    runs = []
    for _ in range(2):
        _, plan = build(60, 8, get_policy(Mixed()))
        runs.append([batch.tolist() for number in range(3) for batch in run_pass(plan, number)])

    assert runs[0] == runs[1]


def test_selection_is_not_ignored():
    """A policy that overrides select leaves samples out, without having to say that it does."""

    class Silent(Policy):
        def select(self, chunk, context, rng):
            return chunk.loss > 1, None

    assert get_policy(Silent()).selects


def test_base_policy_is_a_shuffle():
    """Without overrides, a user's policy takes everything in the chunk's random order."""
    policy, chunk = get_policy(Policy()), candidates([3, 1, 2])
    keep, weights = policy.select(chunk, Context(0.5, 1, 2, 1.0), generator())

    assert keep.tolist() == [True] * 3
    assert weights is None
    assert policy.arrange(chunk, 2, generator()).tolist() == [0, 1, 2]
    assert Shuffle().arrange(chunk, 2, generator()).tolist() == [0, 1, 2]


def test_candidates_are_read_only():
    """The fields of a chunk are read-only: the records behind some of them are written back."""

    class Careless(Policy):
        name = "careless"

        def arrange(self, chunk, batch_size, rng):
            for field in chunk:
                if field is not None:
                    with pytest.raises(ValueError, match="read-only"):
                        field[0] = 0
            return super().arrange(chunk, batch_size, rng)

    table, plan = build(40, 8, get_policy(Careless()))
    for number in range(3):
        run_pass(plan, number, part_size=1)

    assert table.usage_count.tolist() == [3] * 40


def test_selection_may_be_a_bare_mask():
    """A user's policy may return the mask alone."""

    class Bare(Policy):
        def select(self, chunk, context, rng):
            return chunk.loss > 1

    keep, weights = get_policy(Bare()).select(candidates(np.array([0.5, 2.0])), Context(0.5, 1, 2, 1.0), generator())

    assert (keep.tolist(), weights) == ([False, True], None)


def test_a_policy_is_added_in_two_files(tmp_path):
    """Its module and the registry: then runs, checkpoints, messages and reports know it by its name."""
    policies = copy_package(tmp_path) / "policies"
    (policies / "hardest_first.py").write_text(ADDED, encoding="utf-8")
    registry = policies / "registry.py"
    replace_in(registry, "from .focus", "from .hardest_first import HardestFirst\nfrom .focus")
    replace_in(registry, '"focus"]', '"focus", "hardest_first"]')
    replace_in(registry, "Focus())", "Focus(), HardestFirst())")

    first, second, message, *_, is_reported = run_beside(tmp_path, USED)

    assert [first, second] == ["[4, 5, 6, 7]", "[0, 1, 2, 3]"]
    assert "'hardest_first'" in message
    assert is_reported == "True"


def selected(**given):
    return get_policy(Answering(**given)).select(candidates(np.ones(4)), Context(0.5, 1, 2, 1.0), generator())


# fmt: off
MISTAKES = [
    *[(lambda keep=keep: selected(keep=keep), ValueError,
       r"(?s)policy.select must return bool\[4\], got .* from Answering")
      for keep in ([True] * 3, [1, 1, 1, 1], None, np.ones(4), np.ones((4, 1), bool), [True] * 5)],
    *[(lambda weights=weights: selected(keep=[True, False, True, True], weights=weights), ValueError,
       r"policy.select must return weights float32\[4\] or None, got")
      for weights in (1.0, np.ones(3), np.ones((4, 1)))],
    *[(lambda weight=weight: selected(keep=np.ones(4, bool), weights=[1, weight, 1, 1]), ValueError,
       r"policy.select must return finite weights, got") for weight in (np.nan, np.inf)],
    *[(lambda name=name: get_policy(name), ValueError,
       rf"policy '{name}' is no longer one of \['balanced', .*: {instead}")
      for name, instead in (("match_mean", "examples/own_policy.py has it"), ("steady", "recovery alone draws such"))],
    *[(lambda policy=policy: get_policy(policy), TypeError, "policy must be a name or a Policy, got")
      for policy in (None, 3, Balanced, ["balanced"])],
    *[(lambda order=order: get_policy(Answering(order=order)).arrange(candidates(np.ones(4)), 2, generator()),
       ValueError, r"(?s)policy.arrange must return a permutation of range\(4\), got .* Answering")
      for order in (
          [0, 1, 2], [0, 1, 2, 2], [0, 1, 2, 4], [4, 5, 6, 7], [-4, -3, -2, -1], [0.0, 1.0, 2.0, 3.0], None,
          [[0, 1], [2, 3]])],
]
# fmt: on


@pytest.mark.parametrize(("act", "error", "text"), MISTAKES, ids=[text[:45] for *_, text in MISTAKES])
def test_a_mistake_is_named(act, error, text):
    """By the argument or call, with what was given."""
    with pytest.raises(error, match=text):
        act()

"""The suites that every policy passes, and the small loop they drive a plan with. To add a policy, add a row."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from examples.own_policy import MatchMean
from learnit_r8 import Candidates, Context, Focus, Policy, SampleTable
from learnit_r8.policies import Balanced, Quartile, Shuffle, Steady, get_policy
from learnit_r8.sources.planned import PlannedBatches
from learnit_r8.state.codec import decode, encode
from learnit_r8.table.losses import EXACT, read_loss
from tests.drive import observe
from tests.examples import examples


@dataclass(frozen=True)
class HardHalf(Policy):
    """A user's selection: in later passes only samples at or above the middle loss, half of them at double weight."""

    name = "hard_half"
    selects = True

    def select(self, chunk, context, rng):
        keep = ~(chunk.loss < np.nanmedian(chunk.loss))
        return keep, np.where(chunk.indices % 2, 2, 1).astype(np.float32)


@dataclass(frozen=True)
class Backwards(Policy):
    """A user's arrangement: falling losses, so that equals go together."""

    name = "backwards"

    def arrange(self, chunk, batch_size, rng):
        return np.argsort(-np.nan_to_num(chunk.loss), kind="stable")


EVERYTHING = [
    pytest.param(Balanced(), id="balanced"),
    pytest.param(Quartile(), id="quartile"),
    pytest.param(Shuffle(), id="shuffle"),
    pytest.param(get_policy(MatchMean(Balanced(), tolerance=0.01)), id="match_mean-balanced"),
    pytest.param(get_policy(Backwards()), id="user-arrangement"),
]
"""Policies that visit every sample once a pass."""

SELECTING = [
    pytest.param(Steady(), id="steady"),
    pytest.param(Focus(noise_guard=True, begin=0, end=1, most_hard=1), id="focus"),
    pytest.param(get_policy(HardHalf()), id="user-selection"),
]
"""Policies that leave samples out."""

POLICIES = EVERYTHING + SELECTING

LAST_BATCH = ["short", "drop", "fill"]

sizes = st.one_of(
    st.tuples(st.integers(1, 150), st.integers(1, 40)), st.tuples(st.integers(24_000, 60_000), st.integers(1000, 9000))
)
"""(N, B): some in one chunk, some in several."""


def build(num_samples, batch_size, policy, *, seed=0, last_batch="short", **table_arguments):
    """A table and its plan."""
    table = SampleTable(num_samples, batch_size=batch_size, **table_arguments)
    return table, PlannedBatches(table, policy=policy, seed=seed, last_batch=last_batch)


def true_losses(indices, step):
    """float64[B], positive losses that differ between samples and fall with the steps."""
    return (1 + indices % 7 + 0.5 * (indices % 3)) * 0.98**step


def report(plan, batch, losses, part_size=None):
    """Report losses of single samples as batch mean (None), as they are (1), or as means of parts; the trend it had."""
    if part_size is None:
        loss = float(np.mean(losses))
    elif part_size == 1:
        loss = losses
    else:
        loss = np.array([losses[start : start + part_size].mean() for start in range(0, len(losses), part_size)])
    table, reading = plan.table, read_loss(loss, len(losses), part_size)
    table.storage.part_size = EXACT if table.batch_size == 1 else reading.part_size
    trend = observe(table, reading.mean, reading.lowest)
    plan.report(batch.chunk, batch.slot, reading.mean if table.batch_size == 1 else reading.means, trend)
    return np.atleast_1d(reading.means), trend


def run_pass(plan, number, *, part_size=1, losses=true_losses):
    """Draw and report one whole pass, one batch at a time: the list of index arrays."""
    plan.start_pass(number, min(1.0, number / 10))
    drawn = []
    for step in range(plan.steps_per_pass):
        batch = plan.next()
        drawn.append(batch.indices.copy())
        report(plan, batch, losses(batch.indices, number * plan.steps_per_pass + step), part_size)
    return drawn


def catalogued(num_samples, batch_size, policy, part_size=1):
    """A table and its plan after the first pass."""
    table, plan = build(num_samples, batch_size, policy)
    run_pass(plan, 0, part_size=part_size)
    return table, plan


def saved(plan):
    """The states of table and plan, through the bytes of a checkpoint file."""
    return decode(encode({"table": plan.table.state_dict(), "plan": plan.state()}))


def load(plan, state):
    """Put both states into a table and its plan."""
    plan.table.load_state_dict(state["table"])
    plan.load(state["plan"])


def candidates(loss, *, usage_count=None, group=None):
    """A chunk of samples 0 .. C - 1 in that order."""
    count = len(loss)
    loss = np.asarray(loss, np.float32)
    usage_count = np.ones(count, np.int64) if usage_count is None else np.asarray(usage_count, np.int64)
    group = None if group is None else np.asarray(group, np.int64)
    return Candidates(np.arange(count), loss, loss, loss, usage_count, group)


def generator(seed=0):
    """A generator as policies get it."""
    return np.random.Generator(np.random.SFC64(seed))


def random_losses(kind, count, seed):
    """float32[C] of some kind."""
    rng = generator(seed)
    if kind == "distinct":
        return rng.permutation(count).astype(np.float32)
    if kind == "equal":
        return np.full(count, 0.7, np.float32)
    if kind == "ties":
        return rng.integers(0, 6, count).astype(np.float32)
    if kind == "negative":
        return (rng.permutation(count) - count / 2).astype(np.float32)
    losses = rng.permutation(count).astype(np.float32)
    losses[rng.random(count) < 0.3] = np.nan
    return losses


KINDS = ["distinct", "equal", "ties", "negative", "unseen"]


class Loop:
    """A user's loop with several tickets in flight, driven by a list of (action, choice) pairs.

    Everything it draws is noted in ``log``.
    """

    def __init__(self, make, part_size=None, lowest=0.0):
        self.make, self.part_size, self.lowest = make, part_size, lowest
        self.table, self.plan = make()
        self.out, self.log = [], []
        self.reports = 0
        self.steps = (self.plan.pass_number + 1) * self.plan.steps_per_pass

    def act(self, action, choice):
        if action == "read":
            _ = self.table.loss, self.table.last, self.table.usage_count, self.table.quartiles()
        elif action == "draw" or not self.out:
            self._draw(outside=False)
        elif action == "outside":
            self._draw(outside=True)
        else:
            batch = self.out.pop(choice % len(self.out))
            if action == "report":
                self._report(batch)
            elif action == "refuse" or batch.chunk.pass_number < 0:
                self.plan.close(batch)
            else:
                self.steps -= self.plan.abandon(batch)

    def _draw(self, *, outside):
        epoch = max(self.plan.pass_number, self.steps // self.plan.steps_per_pass)
        if epoch != self.plan.pass_number:
            self.plan.start_pass(epoch, min(1.0, epoch / 10))
        batch = self.plan.draw_outside(Steady()) if outside else None
        batch = self.plan.next() if batch is None else batch
        self.steps += 1
        self.out.append(batch)
        self.log.append((batch.chunk.pass_number, batch.slot, batch.indices.tolist()))

    def _report(self, batch):
        report(self.plan, batch, true_losses(batch.indices, self.reports) - self.lowest * self.reports, self.part_size)
        self.reports += 1

    def finish(self):
        """Report what is out and draw a little more; everything that can be known in the end."""
        while self.out:
            self._report(self.out.pop(0))
        for _ in range(3):
            self._draw(outside=False)
        table = self.table.state_dict()
        arrays = {name: values.tobytes() for name, values in table.items() if isinstance(values, np.ndarray)}
        numbers = repr({name: value for name, value in table.items() if name not in arrays})
        return self.log, arrays, numbers, (self.plan.displaced, self.plan.abandoned)

    def resumed(self):
        """A fresh table and plan that go on from the state of these."""
        other = Loop(self.make, self.part_size, self.lowest)
        load(other.plan, saved(self.plan))
        other.steps, other.reports, other.log = self.steps, self.reports, list(self.log)
        again = [other.plan.next() for _ in self.out]
        for batch in self.out:
            same = [b for b in again if b.slot == batch.slot and b.chunk.pass_number == batch.chunk.pass_number]
            same = [b for b in same if b.indices.tolist() == batch.indices.tolist()]
            assert same, "a batch that was out does not come again"
            other.out.append(same[0])
            again = [b for b in again if b is not same[0]]
        return other


ACTIONS = ["draw"] * 8 + ["report"] * 6 + ["refuse", "abandon", "outside", "read"]

scripts = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 5)), min_size=15, max_size=25)
in_turn = [("draw", 0), ("report", 0)] * 14
"""One batch at a time, as `batch_iterator` does."""


class PolicySuite:
    """What holds for every policy."""

    @pytest.mark.parametrize("policy", POLICIES)
    @given(
        count=st.integers(1, 300),
        batch_size=st.integers(1, 40),
        kind=st.sampled_from(KINDS),
        seed=st.integers(0, 99),
        most=st.integers(0, 3),
    )
    def test_arrange_is_a_permutation(self, policy, count, batch_size, kind, seed, most):
        """An arrangement is a permutation of the chunk, whatever the losses and uses."""
        chunk = candidates(random_losses(kind, count, seed), usage_count=generator(seed).integers(0, most + 1, count))
        order = policy.arrange(chunk, batch_size, generator(seed))

        assert sorted(order.tolist()) == list(range(count))

    @pytest.mark.parametrize("policy", POLICIES)
    def test_leaves_the_chunk_alone(self, policy):
        """A policy changes nothing of the chunk it is shown."""
        for kind in KINDS:
            chunk = candidates(random_losses(kind, 50, 1), usage_count=np.arange(50) % 3)
            before = repr(list(chunk))
            policy.select(chunk, Context(0.5, 1, 8, 2.0), generator())
            policy.arrange(chunk, 8, generator())

            assert repr(list(chunk)) == before

    @pytest.mark.parametrize("policy", POLICIES)
    @examples(0.6)
    @given(last_batch=st.sampled_from(LAST_BATCH), size=sizes, seed=st.integers(0, 2**31))
    def test_catalogues_everything_once(self, policy, last_batch, size, seed):
        """The first pass takes every sample once, except the remainder where that is dropped."""
        check_coverage(policy, size, seed, last_batch, number=0)

    @pytest.mark.parametrize("policy", EVERYTHING)
    @examples(0.6)
    @given(last_batch=st.sampled_from(LAST_BATCH), size=sizes, seed=st.integers(0, 2**31))
    def test_visits_everything_once(self, policy, last_batch, size, seed):
        """A policy that leaves nothing out takes every sample exactly once in later passes too."""
        check_coverage(policy, size, seed, last_batch, number=2)

    @pytest.mark.parametrize("policy", SELECTING)
    @examples(0.6)
    @given(last_batch=st.sampled_from(LAST_BATCH), size=sizes, seed=st.integers(0, 99))
    def test_selection_fills_its_batches(self, policy, last_batch, size, seed):
        """A policy that leaves samples out makes as many visits as any, in full batches but for the last."""
        num_samples, batch_size = size
        assume(num_samples >= 2 * batch_size)
        _, plan = build(num_samples, batch_size, policy, seed=seed, last_batch=last_batch)
        run_pass(plan, 0)
        drawn = run_pass(plan, 1)

        sizes = [batch_size] * plan.steps_per_pass
        if last_batch == "short":
            sizes[-1] -= -num_samples % batch_size
        assert [len(batch) for batch in drawn] == sizes
        assert all(len(set(batch.tolist())) == len(batch) for batch in drawn)

    @pytest.mark.parametrize("policy", POLICIES)
    def test_small_sizes(self, policy):
        """Any N and B work: N = 1, B > N, B = 1, B not a divisor of N or of 4."""
        for num_samples, batch_size in [(1, 1), (1, 8), (3, 8), (7, 1), (10, 3), (33, 32), (40, 6)]:
            table, plan = build(num_samples, batch_size, policy)
            for number in range(4):
                run_pass(plan, number)

            assert table.usage_count.min() >= 1
            assert not np.isnan(table.loss).any()

    @pytest.mark.parametrize("policy", POLICIES)
    def test_same_seed_same_batches(self, policy):
        """The same seed draws the same batches, another seed others."""
        runs = []
        for seed in (5, 5, 6):
            _, plan = build(60, 8, policy, seed=seed)
            runs.append([batch.tolist() for number in range(3) for batch in run_pass(plan, number)])

        assert runs[0] == runs[1]
        assert runs[0] != runs[2]

    @pytest.mark.parametrize("policy", POLICIES)
    def test_passes_differ(self, policy):
        """No two passes have the same order, even if all losses are equal."""
        _, plan = build(60, 8, policy, seed=1)
        orders = {
            np.concatenate(run_pass(plan, number, losses=lambda i, _: np.ones(len(i)))).tobytes() for number in range(8)
        }

        assert len(orders) == 8

    @pytest.mark.parametrize("policy", POLICIES)
    def test_pass_ends(self, policy):
        """After its last batch a pass gives no more."""
        _, plan = build(10, 4, policy)
        run_pass(plan, 0)
        run_pass(plan, 1)

        with pytest.raises(RuntimeError, match=r"pass 1 has 3 batches, and all were drawn"):
            plan.next()

    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize(("estimator", "part_size"), [("additive", None), ("relative", 3)])
    def test_resumes_one_batch_at_a_time(self, policy, estimator, part_size):
        """A state taken after any draw or report goes on with the same batches and ends in the same table."""
        check_resume(lambda: build(22, 4, policy, estimator=estimator, seed=3), in_turn, part_size)

    @pytest.mark.parametrize("policy", EVERYTHING)
    @examples(0.3)
    @given(
        script=scripts,
        size=st.tuples(st.integers(1, 40), st.integers(1, 9)),
        estimator=st.sampled_from(["relative", "additive"]),
        part_size=st.sampled_from([None, 1, 3]),
        last_batch=st.sampled_from(LAST_BATCH),
        lowest=st.sampled_from([0.0, 0.4]),
    )
    def test_resumes_anywhere(self, policy, script, size, estimator, part_size, last_batch, lowest):
        """Resuming is exact with batches out, refused, given up, from outside the pass, and reported in any order."""
        assume(last_batch != "drop" or size[0] >= size[1])
        check_resume(
            lambda: build(*size, policy, estimator=estimator, last_batch=last_batch), script, part_size, lowest
        )

    @pytest.mark.parametrize("policy", SELECTING)
    @examples(0.3)
    @given(
        script=scripts, size=st.tuples(st.integers(1, 40), st.integers(1, 9)), part_size=st.sampled_from([None, 1, 3])
    )
    def test_selection_resumes_anywhere(self, policy, script, size, part_size):
        """Resuming is exact for policies that sweep more than once in a pass, too."""
        check_resume(lambda: catalogued(*size, policy, part_size), script, part_size)


def check_coverage(policy, size, seed, last_batch, *, number):
    """One pass takes every sample once, in full batches but for the last."""
    num_samples, batch_size = size
    assume(last_batch != "drop" or num_samples >= batch_size)
    _, plan = build(num_samples, batch_size, policy, seed=seed, last_batch=last_batch)
    drawn = [run_pass(plan, earlier) for earlier in range(number + 1)][-1]
    lengths = [len(batch) for batch in drawn]
    visited = np.concatenate(drawn)
    assert lengths[:-1] == [batch_size] * (len(drawn) - 1)
    if last_batch == "drop":
        assert lengths[-1] == batch_size
        assert len(np.unique(visited)) == len(visited) == num_samples // batch_size * batch_size
        return
    assert lengths[-1] == (batch_size if last_batch == "fill" else (num_samples - 1) % batch_size + 1)
    assert np.array_equal(np.sort(visited[:num_samples]), np.arange(num_samples))


def check_resume(make, script, part_size, lowest=0.0):
    """Stopping and going on after every action changes nothing."""
    whole = Loop(make, part_size, lowest)
    for action in script:
        whole.act(*action)
    end = whole.finish()
    first = Loop(make, part_size, lowest)
    for done, action in enumerate(script):
        resumed = first.resumed() if done % 3 == 0 else None
        first.act(*action)
        if resumed is None:
            continue
        for later in script[done:]:
            resumed.act(*later)
        assert resumed.finish() == end, f"resumed after {done} actions"


def fingerprint():
    """A digest of batches and tables of every policy on 5,000 samples, for comparing processors."""
    digest = hashlib.sha256()
    for row in POLICIES:
        for part_size, arguments in (
            (None, {"groups": np.arange(5_000) % 10}),
            (1, {}),
            (None, {"estimator": "additive"}),
        ):
            table, plan = build(5_000, 100, row.values[0], seed=7, **arguments)
            for number in range(3):
                for indices in run_pass(plan, number, part_size=part_size):
                    digest.update(indices.tobytes())
            digest.update(encode(table.state_dict()))
            digest.update(repr((table.quartiles(), table.hardest(50))).encode())
    return digest.hexdigest()

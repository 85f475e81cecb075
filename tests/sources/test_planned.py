"""Passes, open batches, and what the table learns from them."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.policies import Balanced, Shuffle, Steady
from learnit_r8.sources.chunk import OPEN, OUT_AGAIN
from learnit_r8.table.learner import leak_of
from tests.common import EVERYTHING, Loop, build, catalogued, load, report, run_pass, saved, scripts, true_losses
from tests.examples import examples


def is_out(chunk, slot):
    """Whether a drawn batch is neither reported nor given up."""
    return chunk.states[slot] in (OPEN, OUT_AGAIN)


class SlowTable:
    """A slow table that learns sample by sample and step by step, in float64."""

    def __init__(self, num_samples, batch_size, estimator, alpha):
        self.batch_size, self.estimator, self.alpha = batch_size, estimator, alpha
        self.value = np.zeros(num_samples)
        self.last, self.mean = np.full(num_samples, np.nan), np.zeros(num_samples)
        self.uses = np.zeros(num_samples, int)
        self.offsets = False

    def learn(self, members, means, part_size, trend, trend_before):
        """One report; ``trend`` as `observe` returned it, ``trend_before`` what the table showed before."""
        if part_size != 1 and self.estimator == "relative" and min(means) < 0 and not self.offsets:
            seen = self.uses > 0
            self.value[seen] = (self.value[seen] - 1) * trend_before
            self.offsets = True
        size = part_size or len(members)
        for number, mean in enumerate(means):
            part = members[number * size : (number + 1) * size]
            if len(part):
                self.value[part] = self.moved(part, float(mean), trend, part_size)
            for index in part:
                self.uses[index] += 1
                self.last[index] = mean
                self.mean[index] += (mean - self.mean[index]) / self.uses[index]

    def moved(self, part, mean, trend, part_size):
        old, seen = self.value[part], self.uses[part] > 0
        if part_size == 1:
            weight = max(self.alpha or 0.5, 1 / (self.uses[part[0]] + 1))
            return mean if not seen[0] else old + weight * (mean - old)
        if self.estimator == "additive":
            surprise = mean - old[seen].mean() if seen.any() else 0.0
            return np.where(seen, old + (self.alpha or 0.1) * surprise, mean)
        if self.offsets:
            return old + (mean - trend) - old.mean()
        share = np.where(seen, old, 1.0)
        share = share + leak_of(min(part_size or self.batch_size, self.batch_size)) * (1 - share)
        return np.clip(share * min(max(mean / trend / share.mean(), 0.1), 10), 1e-4, 50)

    def loss(self, trend, part_size):
        loss = self.value
        if self.estimator == "relative" and part_size != 1:
            loss = self.value + trend if self.offsets else self.value * trend
        return np.where(self.uses > 0, loss, np.nan)


@examples(3)
@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 12)),
    part_size=st.sampled_from([None, 1, 2, 3, 5, 20]),
    estimator=st.sampled_from(["relative", "additive"]),
    alpha=st.sampled_from([None, 0.3, 1.0]),
    falls_below_zero=st.booleans(),
    last_batch=st.sampled_from(["short", "fill"]),
    seed=st.integers(0, 999),
)
def test_equals_learning_step_by_step(size, part_size, estimator, alpha, falls_below_zero, last_batch, seed):
    """Chunks learn the same as a slow table step by step, in any order, with refusals, abandoned batches and reads."""
    num_samples, batch_size = size
    table, plan = build(*size, Balanced(), seed=seed, last_batch=last_batch, estimator=estimator, alpha=alpha)
    slow, rng = SlowTable(*size, estimator, alpha), np.random.Generator(np.random.SFC64(seed))
    kind = 1 if batch_size == 1 else part_size
    reports = 0
    for number in range(3):
        plan.start_pass(number, number / 3)
        out, left = [], plan.steps_per_pass
        while left or out:
            if left and (not out or (len(out) < 4 and rng.random() < 0.5)):
                batch = plan.next()
                members = batch.indices[: min(batch_size, num_samples - batch.slot * batch_size)].copy()
                out.append((batch, members))
                left -= 1
                continue
            batch, members = out.pop(rng.integers(len(out)))
            what = rng.random()
            if what < 0.08:
                plan.close(batch)
            elif what < 0.16:
                left += plan.abandon(batch)
            else:
                losses = true_losses(batch.indices, reports) - (0.2 * reports if falls_below_zero else 0)
                before = table.trend
                means, trend = report(plan, batch, losses, part_size)
                slow.learn(members, means, kind, trend, before)
                reports += 1
            if what > 0.9:
                assert len(table.loss) == num_samples

    tolerance = {"rtol": 2e-4, "atol": 2e-4}
    np.testing.assert_array_equal(table.usage_count, slow.uses)
    np.testing.assert_allclose(table.last, slow.last, rtol=1e-6)
    np.testing.assert_allclose(table.mean, np.where(slow.uses > 0, slow.mean, np.nan), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(table.loss, slow.loss(table.trend, kind), **tolerance)


@pytest.mark.parametrize("part_size", [None, 1, 3])
@pytest.mark.parametrize("turns_at", range(3, 10))
def test_losses_may_turn_negative_at_any_report(turns_at, part_size):
    """A planned chunk's copies of records follow the table when losses first turn negative."""
    table, plan = build(12, 4, Shuffle())
    slow = SlowTable(12, 4, "relative", None)
    for step in range(12):
        if step % 3 == 0:
            plan.start_pass(step // 3, 0.0)
        batch = plan.next()
        losses = true_losses(batch.indices, step) - (20 if step >= turns_at else 0)
        before = table.trend
        means, trend = report(plan, batch, losses, part_size)
        slow.learn(batch.indices, means, part_size, trend, before)

    np.testing.assert_allclose(table.loss, slow.loss(table.trend, part_size), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("policy", EVERYTHING)
@examples(0.4)
@given(
    script=scripts,
    size=st.tuples(st.integers(1, 40), st.integers(1, 9)),
    part_size=st.sampled_from([None, 1, 3]),
    lowest=st.sampled_from([0.0, 0.4]),
)
def test_reading_changes_nothing(policy, part_size, script, size, lowest):
    """Reading the table, at any time and however often, changes neither batches nor table."""
    check_reading(lambda: build(*size, policy), part_size, script, lowest)


@pytest.mark.parametrize("policy", [Steady()], ids=["steady"])
@given(script=scripts, size=st.tuples(st.integers(1, 40), st.integers(1, 9)))
def test_reading_changes_nothing_between_sweeps(policy, script, size):
    """Reading also changes nothing for a policy that sweeps more than once in a pass."""
    check_reading(lambda: catalogued(*size, policy), 1, script)


def check_reading(make, part_size, script, lowest=0.0):
    ends = []
    for reads in (False, True):
        loop = Loop(make, part_size, lowest)
        for action in script:
            if action[0] != "read":
                loop.act(*action)
            if reads:
                loop.act("read", 0)
        ends.append(loop.finish())
    assert ends[0] == ends[1]


def late_report(*, read):
    """A batch of pass 0 reported after all of pass 1, whose samples it shares."""
    table, plan = build(4, 4, Shuffle())
    plan.start_pass(0, 0.0)
    late = plan.next()
    plan.start_pass(1, 0.5)
    report(plan, plan.next(), np.full(4, 8.0), 1)
    if read:
        assert table.loss.tolist() == [8.0] * 4
    report(plan, late, np.full(4, 4.0), 1)
    return table


@pytest.mark.parametrize("read", [False, True])
def test_late_report_adds_to_what_was_learned_since(read):
    """A report that arrives in the next pass adds to that pass's reports and does not replace them."""
    table = late_report(read=read)

    assert table.usage_count.tolist() == [2] * 4
    assert table.mean.tolist() == [6.0] * 4
    assert table.last.tolist() == [4.0] * 4


@pytest.mark.parametrize("read", [False, True])
def test_reports_count_in_the_order_they_come(read):
    """The later of two reports on a sample is its last, even if the other's chunk closes later."""
    table, plan = build(8, 4, Shuffle())
    plan.start_pass(0, 0.0)
    early = [plan.next(), plan.next()]
    plan.start_pass(1, 0.5)
    later = [plan.next(), plan.next()]
    report(plan, later[0], np.full(4, 8.0), 1)
    if read:
        assert np.nanmax(table.last) == 8.0
    for batch in early:
        report(plan, batch, np.full(4, 4.0), 1)
    report(plan, later[1], np.full(4, 2.0), 1)

    assert table.last[later[0].indices].tolist() == [4.0] * 4
    assert table.last[later[1].indices].tolist() == [2.0] * 4


def test_refused_batches_leave_no_trace():
    """The samples of a refused batch keep their old records."""
    table, plan = build(6, 3, Shuffle())
    plan.start_pass(0, 0.0)
    refused, good = plan.next(), plan.next()
    plan.close(refused)
    report(plan, good, np.array([1.0, 2.0, 3.0]), 1)

    assert np.isnan(table.loss[refused.indices]).all()
    assert table.loss[good.indices].tolist() == [1.0, 2.0, 3.0]


def test_writing_into_a_batch_changes_nothing():
    """A user may sort or overwrite the indices of a drawn batch."""
    table, plan = build(4, 4, Shuffle())
    plan.start_pass(0, 0.0)
    batch = plan.next()
    indices = batch.indices.copy()
    batch.indices[:] = 0
    report(plan, batch, 1.0 + indices, 1)

    assert table.loss.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_batch_given_up_once_is_drawn_again():
    """A batch given up for the first time is drawn again at the end of the pass, without an extra step."""
    _, plan = build(9, 3, Shuffle())
    plan.start_pass(0, 0.0)
    first = plan.next()

    assert plan.abandon(first)
    assert not is_out(first.chunk, first.slot)
    rest = [plan.next(), plan.next()]
    again = plan.next()
    assert again.indices.tolist() == first.indices.tolist()
    assert is_out(again.chunk, again.slot)
    assert first.indices.tolist() not in [batch.indices.tolist() for batch in rest]


def test_batch_given_up_twice_is_not_drawn_again():
    """A batch given up for the second time does not come back, and its step counts."""
    _, plan = build(3, 3, Shuffle())
    plan.start_pass(0, 0.0)
    plan.abandon(plan.next())

    assert not plan.abandon(plan.next())
    assert plan.abandoned == 2
    with pytest.raises(RuntimeError, match=r"pass 0 has 1 batches, and all were drawn"):
        plan.next()


def test_given_up_after_its_pass_is_done():
    """A batch of the previous pass is not drawn again."""
    _, plan = build(6, 3, Shuffle())
    plan.start_pass(0, 0.0)
    old = plan.next()
    plan.start_pass(1, 0.5)

    assert not plan.abandon(old)
    assert not is_out(old.chunk, old.slot)


def test_waiting_batches_end_with_their_pass():
    """A batch that waits to be drawn again is left out when the next pass begins."""
    table, plan = build(6, 3, Shuffle())
    plan.start_pass(0, 0.0)
    plan.abandon(plan.next())
    drawn = run_pass(plan, 1)

    assert sorted(np.concatenate(drawn).tolist()) == list(range(6))
    assert table.usage_count.tolist() == [1] * 6


def test_displaced_batches_are_counted():
    """Batches that a pass leaves undrawn are counted, and their samples stay as they were."""
    table, plan = build(12, 3, Shuffle())
    plan.start_pass(0, 0.0)
    report(plan, plan.next(), np.ones(3))
    plan.start_pass(1, 0.5)

    assert plan.displaced == 3
    assert table.usage_count.sum() == 3


def test_displaced_samples_come_first():
    """Samples left out of a pass have fewer uses, so they come first in their stratum in the next."""
    _, plan = build(16, 4, Balanced())
    run_pass(plan, 0, losses=lambda indices, _: np.ones(len(indices)))
    plan.start_pass(1, 0.3)
    used = np.concatenate([plan.next().indices for _ in range(2)])
    for batch in [chunk.batch(n) for chunk in plan._open for n in range(chunk.drawn) if is_out(chunk, n)]:
        report(plan, batch, np.ones(4), 1)
    order = np.concatenate(run_pass(plan, 2))

    assert plan.displaced == 2
    assert not np.isin(order[:4], used).all()


@pytest.mark.parametrize("policy", [Balanced(), Steady()], ids=["balanced", "steady"])
def test_resumes_between_chunks(policy):
    """A state taken right after a chunk was closed resumes with the next chunk, and the pass is no longer."""
    wanted = None
    for stop in (None, 16, 17, 33, 50):
        _, plan = build(50_000, 1000, policy, seed=1)
        run_pass(plan, 0)
        plan.start_pass(1, 0.5)
        drawn = []
        for step in range(50):
            if step == stop:
                state = saved(plan)
                _, plan = build(50_000, 1000, policy, seed=1)
                load(plan, state)
            batch = plan.next()
            drawn.append(batch.indices.tolist())
            report(plan, batch, true_losses(batch.indices, 50 + step), 1)
        if stop == 50:
            state = saved(plan)
            _, plan = build(50_000, 1000, policy, seed=1)
            load(plan, state)
        with pytest.raises(RuntimeError, match="pass 1 has 50 batches, and all were drawn"):
            plan.next()
        plan.start_pass(2, 0.6)
        wanted = drawn if wanted is None else wanted
        assert drawn == wanted, f"stopped at step {stop}"
        assert plan.displaced == 0, f"stopped at step {stop}"


def test_resumed_pass_draws_waiting_batches():
    """A batch given up in a first chunk is drawn again after a resume at the pass's end."""
    _, plan = build(50_000, 5000, Shuffle())
    plan.start_pass(0, 0.0)
    first = plan.next()
    plan.abandon(first)
    for _ in range(9):
        report(plan, plan.next(), np.ones(5000))
    state = saved(plan)
    _, resumed = build(50_000, 5000, Shuffle())
    load(resumed, state)

    assert resumed.next().indices.tolist() == first.indices.tolist()


def test_batches_of_the_old_plan_are_void():
    """After loading a state, batches drawn before are no longer open."""
    _, plan = build(20, 4, Balanced())
    plan.start_pass(0, 0.0)
    state = saved(plan)
    old = plan.next()
    load(plan, state)

    assert not is_out(old.chunk, old.slot)


def test_state_is_a_copy():
    """A state does not change when the run continues."""
    _, plan = build(20, 4, Balanced())
    plan.start_pass(0, 0.0)
    report(plan, plan.next(), np.ones(4))
    state = {"table": plan.table.state_dict(), "plan": plan.state()}
    before = repr(state)
    for _ in range(4):
        report(plan, plan.next(), np.full(4, 9.0))

    assert repr(state) == before


def test_states_may_be_taken_in_any_order():
    """Nothing is learned twice if the plan's state was taken before the table's."""
    table, plan = build(8, 4, Shuffle())
    plan.start_pass(0, 0.0)
    report(plan, plan.next(), np.ones(4))
    state = {"plan": plan.state(), "table": table.state_dict()}
    fresh, resumed = build(8, 4, Shuffle())
    load(resumed, state)

    assert fresh.usage_count.tolist() == table.usage_count.tolist()


@pytest.mark.parametrize(("last_batch", "steps"), [("short", 3), ("drop", 2), ("fill", 3)])
def test_steps_per_pass(last_batch, steps):
    """A pass has ceil(N / B) steps, or floor(N / B) where the rest is dropped."""
    assert build(10, 4, Shuffle(), last_batch=last_batch)[1].steps_per_pass == steps


def expected_of(batch):
    return batch.chunk.expected[batch.slot]


def test_expected_loss():
    """The expected loss of a batch is the mean estimate of its samples, NaN before any was seen."""
    table, plan = build(12, 4, Balanced())
    plan.start_pass(0, 0.0)
    assert math.isnan(table.learner.with_trend(expected_of(plan.next())))
    plan.start_pass(0, 0.0)
    for _ in range(3):
        batch = plan.next()
        report(plan, batch, true_losses(batch.indices, 0))
    plan.start_pass(1, 0.5)
    for _ in range(3):
        batch = plan.next()
        assert table.learner.with_trend(expected_of(batch)) == pytest.approx(table.loss[batch.indices].mean(), rel=1e-6)


def test_expected_loss_when_losses_turn_negative():
    """The expected losses of batches planned before the first loss below zero still equal the table's estimates."""
    table, plan = build(400, 4, Balanced())
    run_pass(plan, 0, part_size=None)
    plan.start_pass(1, 0.5)
    report(plan, plan.next(), np.full(4, -0.1))
    batch = plan.next()

    assert table.learner.with_trend(expected_of(batch)) == pytest.approx(table.loss[batch.indices].mean(), rel=1e-4)


@pytest.mark.parametrize(("batch_size", "last_batch", "part_size"), [(64, "short", 1), (2048, "fill", None)])
def test_memory(batch_size, last_batch, part_size):
    """Beside 16 bytes a sample a pass takes at most 5 MB, to its last batch."""
    num_samples = 1_000_000
    tracemalloc.start()
    try:
        _, plan = build(num_samples, batch_size, Balanced(), last_batch=last_batch)
        plan.start_pass(1, 0.5)
        ones = np.ones(batch_size)
        for step in range(plan.steps_per_pass):
            batch = plan.next()
            # The middle of the pass is only drawn: chunks are alike.
            if step < 2200 or step > plan.steps_per_pass - 1100:
                report(plan, batch, ones[: len(batch.indices)], part_size)
            else:
                plan.close(batch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak - 16 * num_samples <= 5e6


def test_a_short_last_part_counts_as_what_it_is():
    """Of eight samples in parts of three, the last two have the loss of theirs."""
    table, plan = build(16, 8, Shuffle())
    table.storage.part_size = 3
    plan.start_pass(0, 0.0)
    batch = plan.next()
    report(plan, batch, np.array([1.0] * 3 + [2.0] * 3 + [6.0] * 2), part_size=3)
    plan.hand_over()

    assert table.last[batch.indices].tolist() == [1.0] * 3 + [2.0] * 3 + [6.0] * 2

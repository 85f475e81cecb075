"""Chunks: their samples, the policy's selection and arrangement, and the policy's context."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from learnit_r8 import Outlook, Policy, R8Scheduler
from learnit_r8.policies import Balanced, Shuffle, Steady, get_policy
from learnit_r8.sources.chunk import Planned
from tests.common import build, fingerprint, report, run_pass


def test_outside_batches_are_no_part_of_the_pass():
    """A batch from outside a pass is learned from, and the pass continues as without it."""
    table, plan = build(40, 4, Shuffle(), seed=2)
    run_pass(plan, 0)
    _, other = build(40, 4, Shuffle(), seed=2)
    run_pass(other, 0)
    steady = plan.draw_outside(Steady())
    assert len(set(steady.indices.tolist())) == 4
    report(plan, steady, np.ones(4), 1)

    assert (table.usage_count == 2).sum() == 4
    assert [b.tolist() for b in run_pass(plan, 1)] == [b.tolist() for b in run_pass(other, 1)]


def test_outside_batches_are_steady():
    """The steady policy draws from the lowest quarter, another batch each time."""
    _, plan = build(400, 8, Shuffle())
    run_pass(plan, 0, losses=lambda indices, _: 1.0 + indices)
    drawn = [plan.draw_outside(Steady()).indices for _ in range(4)]

    assert np.concatenate(drawn).max() < 100
    assert len({batch.tobytes() for batch in drawn}) == 4


def test_outside_batches_have_no_sample_in_quarantine():
    """A sample that was found bad does not come back in the batches after an incident, however low its loss is."""
    table, plan = build(400, 8, Shuffle())
    run_pass(plan, 0, losses=lambda indices, _: 1.0 + indices)
    table.storage.exclusions.quarantine(np.arange(60))
    drawn = [plan.draw_outside(Steady()).indices for _ in range(4)]

    assert np.concatenate(drawn).min() >= 60


def test_no_steady_batch_at_first():
    """Before any sample was seen there is no steady batch."""
    _, plan = build(40, 4, Shuffle())
    plan.start_pass(0, 0.0)

    assert plan.draw_outside(Steady()) is None


@pytest.mark.parametrize(("num_samples", "batch_size", "dropped"), [(103, 8, 7), (50, 32, 18), (7, 3, 1)])
def test_dropped_samples_are_from_all_quartiles(num_samples, batch_size, dropped):
    """Over many passes every loss quartile is dropped equally often."""
    passes = 600
    table, plan = build(num_samples, batch_size, Balanced(), last_batch="drop")
    for number in range(passes):
        run_pass(plan, number, losses=lambda indices, _: 1.0 + indices)
    drops = passes - table.usage_count.astype(int)
    quartile = np.arange(num_samples) * 4 // num_samples
    share = np.bincount(quartile) / num_samples
    tally = np.bincount(quartile, drops)

    assert drops.sum() == passes * dropped
    assert (np.abs(tally - passes * dropped * share) < 5 * np.sqrt(passes * dropped * share)).all()


def test_fill_takes_the_start_of_the_pass():
    """The last batch is filled with the first samples of the pass, which are not learned from."""
    table, plan = build(10, 4, Shuffle(), last_batch="fill")
    drawn = run_pass(plan, 0)

    assert drawn[2][2:].tolist() == drawn[0][:2].tolist()
    assert table.usage_count.tolist() == [1] * 10


def test_fill_repeats_small_data():
    """With fewer samples than half a batch they are repeated."""
    _, plan = build(2, 5, Shuffle(), last_batch="fill")
    (batch,) = run_pass(plan, 0)

    assert np.bincount(batch).tolist() in ([3, 2], [2, 3])


@pytest.mark.parametrize("policy", [Shuffle(), Balanced()], ids=["shuffle", "balanced"])
@pytest.mark.parametrize("number", [0, 1])
def test_filled_batch_has_distinct_samples(policy, number):
    """If there are enough samples, none is twice in the filled batch."""
    for seed in range(20):
        _, plan = build(10, 4, policy, last_batch="fill", seed=seed)
        last = [run_pass(plan, earlier) for earlier in range(number + 1)][-1][-1]
        assert len(set(last.tolist())) == 4


@dataclass(frozen=True)
class Weighting(Policy):
    """A user's policy that weights every sample by its index, in some chunks only."""

    always: bool = True
    name = "weighting"
    selects = True

    def select(self, chunk, context, rng):
        weights = 1 + chunk.indices.astype(np.float32)
        return chunk.indices % 3 > 0, weights if self.always or chunk.indices[0] % 2 else None


@pytest.mark.parametrize("last_batch", ["short", "fill"])
@pytest.mark.parametrize(("num_samples", "batch_size"), [(40, 4), (4, 8), (50_000, 1024)])
def test_weights_go_with_their_samples(num_samples, batch_size, last_batch):
    """The weights of a batch are those of its samples, one for each, in its order."""
    _, plan = build(num_samples, batch_size, get_policy(Weighting()), last_batch=last_batch)
    run_pass(plan, 0)
    plan.start_pass(1, 0.5)
    for _ in range(plan.steps_per_pass):
        batch = plan.next()
        assert batch.chunk.weights_of(batch.slot).tolist() == (1.0 + batch.indices).tolist()


def test_weights_may_come_and_go():
    """If a policy weights some chunks only, a sample's weight is its own, or 1."""
    for seed in range(8):
        _, plan = build(80_000, 1000, get_policy(Weighting(always=False)), seed=seed)
        run_pass(plan, 0)
        plan.start_pass(1, 0.5)
        for _ in range(plan.steps_per_pass):
            batch = plan.next()
            weights = batch.chunk.weights_of(batch.slot)
            assert weights is None or len(weights) == 1000
            assert weights is None or np.isin(weights / (1 + batch.indices.astype(np.float32)), [1, *weights]).size
            wrong = [] if weights is None else np.flatnonzero((weights != 1) & (weights != 1 + batch.indices))
            assert len(wrong) == 0


def test_no_weights():
    """Without weights a batch has none."""
    _, plan = build(4, 2, Balanced())
    plan.start_pass(0, 0.0)

    assert plan.next().chunk.weights_of(0) is None


@dataclass(frozen=True)
class Keeping(Policy):
    """A user's policy that keeps the first few samples of the data."""

    least: int
    name = "keeping"
    selects = True

    def select(self, chunk, context, rng):
        return chunk.indices < self.least, None


def test_policy_that_keeps_nothing():
    """A policy that selects no sample at all causes an error, not an endless loop."""
    _, plan = build(20, 4, get_policy(Keeping(0)))
    plan.start_pass(1, 0.5)

    with pytest.raises(RuntimeError, match=r"policy must keep some of 20 samples, got none from .*Keeping"):
        plan.next()


def test_policy_that_keeps_less_than_a_batch():
    """If the policy selects fewer samples than a batch, the batches are that short."""
    _, plan = build(20, 4, get_policy(Keeping(3)))

    assert [sorted(batch.tolist()) for batch in run_pass(plan, 1)] == [[0, 1, 2]] * 5


def test_selection_sweeps_until_the_batches_are_full():
    """A policy that keeps half sweeps twice: every sample it keeps is visited twice a pass."""
    table, plan = build(40, 4, get_policy(Keeping(20)))
    run_pass(plan, 1)

    assert table.usage_count.tolist() == [2] * 20 + [0] * 20


def test_context():
    """The context has the progress, the pass, B, the untrained loss and the outlook, the same for a whole pass."""
    seen = []

    class Spying(Policy):
        selects = True

        def select(self, chunk, context, rng):
            seen.append(context)
            return super().select(chunk, context, rng)

    _, plan = build(20, 4, get_policy(Spying()))
    run_pass(plan, 0, losses=lambda indices, _: np.full(len(indices), 3.0))
    run_pass(plan, 2, losses=lambda indices, _: np.full(len(indices), 1.0))

    assert set(seen) == {(0.2, 2, 4, 3.0, Outlook(True, 1.0, 0.0, 3.0, None), ())}


def test_chunks_are_planned_when_reached():
    """A chunk is planned only when its first batch is drawn, with what was learned since the pass began."""
    shapes = []

    class Spying(Policy):
        def arrange(self, chunk, batch_size, rng):
            shapes.append(len(chunk.indices))
            return super().arrange(chunk, batch_size, rng)

    _, plan = build(50_000, 1000, get_policy(Spying()))
    plan.start_pass(1, 0.5)
    assert shapes == []
    plan.next()
    assert len(shapes) == 1
    for _ in range(49):
        plan.next()

    assert sum(shapes) == 50_000
    assert len(shapes) > 1
    assert all(size % 1000 == 0 for size in shapes)


def test_same_on_every_processor():
    """Batches and tables are bit for bit the same without the processor's vector units."""
    features = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    if not features:
        pytest.skip("numpy uses no optional processor features here")
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", "from tests.common import fingerprint; print(fingerprint())"],
        env={**os.environ, "NPY_DISABLE_CPU_FEATURES": ",".join(features), "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == fingerprint()


PLANNED = Planned(np.float32([4, 3, 2, 1, np.nan]), np.float32([4, 3, 2, 1]), np.array([3, 2, 1, 0]))


@pytest.mark.parametrize(("first", "last", "shares"), [
    (0, 1, (1, 0, 0, 0)), (0, 4, (0.25, 0.25, 0.25, 0.25)), (2, 4, (0, 0, 0.5, 0.5)), (0, 0, ()),
])  # fmt: skip
def test_strata_are_those_of_the_planning(first, last, shares):
    """A batch is divided by the losses that it was planned with; samples that were not seen do not count."""
    assert PLANNED.shares(first, last) == pytest.approx(shares)


def test_equal_losses_belong_to_every_quarter_in_part():
    """Where all losses are equal, each quarter has its share."""
    same = np.ones(8, np.float32)

    assert Planned(same, same, np.arange(8)).shares(0, 2) == pytest.approx((0.25, 0.25, 0.25, 0.25))


@pytest.mark.parametrize("part_size", [None, 1])
def test_balanced_batches_have_a_quarter_of_each_stratum(part_size):
    """Under `balanced` every batch shows the quarters that it was made of, whatever was reported and learned since."""
    r8 = R8Scheduler(4000, batch_size=40, num_epochs=3, listeners=[lambda event: None])
    losses = np.random.default_rng(0).gamma(2.0, 1.0, 4000)
    shares = []
    while (ticket := r8.draw_if_any()) is not None:
        batch = ticket.indices
        losses[batch] *= 0.7
        r8.report(ticket, losses[batch] if part_size else losses[batch].mean())
        if r8.global_step % 10 == 7:
            r8.table.learner.hand_over()
        shares.append((ticket.epoch, ticket.chunk.shares_of(ticket.slot, len(batch))))

    assert {share for epoch, share in shares if epoch == 0} == {()}
    assert all(share == pytest.approx((0.25,) * 4, abs=0.06) for epoch, share in shares if epoch)


def test_steadying_batch_shows_that_it_is_easy():
    """A batch of easy samples is divided by the quarters of all that it was chosen from."""
    r8 = R8Scheduler(4000, batch_size=40, num_epochs=4)
    losses = np.linspace(0.1, 4.0, 4000)
    for batch, _ in r8.batch_iterator():
        r8.update_with_loss(losses[batch])
    chunk = r8.host.source.draw_outside(Steady()).chunk

    assert chunk.shares_of(0, 40)[0] > 0.9


@pytest.mark.parametrize("num_huge", [1, 800])
def test_a_typical_batch_is_a_usual_one(num_huge):
    """One sample of a huge loss makes no usual batch a typical one of twice its loss; a fifth of all is in all."""
    _, plan = build(4000, 40, Balanced())
    run_pass(plan, 0, losses=lambda indices, _: np.where(indices < num_huge, 5000.0, 1.0 + indices % 10 / 20))
    plan.start_pass(1, 0.5)
    chunk = plan.next().chunk

    assert chunk.typical == pytest.approx(np.median(chunk.expected), rel=0.1)


def test_a_huge_loss_raises_no_other():
    """A sample whose loss was huge once makes no later batch without it look too high.

    One in 3,200 lifted the mean of all to twice the loss of usual batches, which were corrected by it, and refused.
    """
    rng = np.random.default_rng(1)
    usual, refused = rng.gamma(2, 0.2, 3200), []
    r8 = R8Scheduler(3200, batch_size=64, num_epochs=8, seed=1)
    for epoch in r8.epoch_iterator():
        for batch, _ in r8.batch_iterator():
            losses = usual[batch] * (0.3 + 0.7 * np.exp(-r8.global_step / 80)) * rng.gamma(20, 1 / 20, len(batch))
            outcome = r8.update_with_loss(np.where((batch == 7) & (epoch == 4), 800.0, losses))
            refused += [] if outcome else [r8.global_step]

    assert refused == []

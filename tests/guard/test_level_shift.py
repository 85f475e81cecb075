"""Level shifts: losses that stay higher than they were are refused, though none of them is a spike."""

import math

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, SpikeGuard, Verdict, events
from learnit_r8.guard.spike import ALARM, MOST, USUAL, BlockStatistics, cut_figures, raised_by
from learnit_r8.testing import ToyTask, record_events
from tests.guard.judging import judge_all

LEVEL = BlockStatistics(cut=9.0, mean=1.0, deviation=0.1, least=1.1)
USUAL_LOSSES = [1.0] * 48


def healthy(steps, seed=0, noise=0.2):
    """A loss that falls from 2.3 to 0.3."""
    curve = 0.3 + 2.0 * np.exp(-np.arange(steps) / 60)
    return curve * np.exp(noise * np.random.default_rng(seed).standard_normal(steps))


def lifted(steps=700, at=500, by=0.3, length=200, **options):
    """A healthy loss that is higher by a seventh of the progress for a while: far less than half of it."""
    losses = healthy(steps, **options)
    losses[at : at + length] += by
    return losses


@pytest.mark.parametrize("seed", range(5))
def test_a_level_that_stays_up(seed):
    """Losses that stay higher by a part of the progress are refused within 64 steps, though none is a spike."""
    found = judge_all(lifted(seed=seed))

    assert found[0][1] is Verdict.RAISED
    assert 500 < found[0][0] < 564


def faint(by, seed, steps=900):
    """Losses whose progress, from 2.25 to 1.9, is not three of their spreads; higher from step 500 on."""
    curve = np.where(np.arange(steps) < 32, 2.25, 1.9)
    curve[500:] += by
    return curve + 0.15 * np.random.default_rng(seed).standard_normal(steps)


@pytest.mark.parametrize("seed", range(5))
def test_progress_that_is_clear_to_blocks_alone(seed):
    """Losses that stay higher by all of it are refused within 64 steps; by a tenth of it, they are not."""
    found = judge_all(faint(0.4, seed))

    assert 500 < found[0][0] < 564
    assert judge_all(faint(0.04, seed)) == []
    assert judge_all(faint(0.0, seed)) == []


@pytest.mark.parametrize("length", [1, 4, 12])
def test_a_short_excursion(length):
    """Fewer higher losses than a block are no level shift."""
    assert judge_all(lifted(length=length)) == []


@pytest.mark.parametrize("by", [0.02, 0.05])
def test_less_than_a_part_of_the_progress(by):
    """A rise by less than 5 % of the progress is no level shift, however certain it is."""
    assert judge_all(lifted(by=by, noise=0.01)) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("by", "is_raised"), [(0.15, False), (0.6, True)])
def test_batches_of_the_users_own(by, is_raised, seed):
    """Of losses that no table corrects, less than a tenth of the progress may rise in each pass over the data."""
    losses = lifted(by=by, noise=0.1, seed=seed)

    found = judge_all(losses, SpikeGuard(tests_progress=False))
    assert [verdict for _, verdict in found][:1] == [Verdict.RAISED] * is_raised
    assert judge_all(losses)[0][1] is Verdict.RAISED


def test_a_slow_rise():
    """A slow rise shows in the losses before the block too: it is no level shift."""
    losses = healthy(1500, noise=0.05)
    losses[500:] += np.arange(1000) * 1.3e-3

    assert Verdict.RAISED not in [verdict for _, verdict in judge_all(losses)]


@pytest.mark.parametrize(("factor", "is_refused"), [(1.0, True), (1.3, False), (0.45, True)])
def test_the_rate_explains_a_level(factor, is_refused):
    """If the scheduled rate has risen, higher losses are no evidence; a fall explains none."""
    rate = np.where(np.arange(700) < 490, 1.0, factor)

    assert bool(judge_all(lifted(length=40), lr=rate)) is is_refused


def test_guard_that_goes_back_is_moved_to_the_rate_of_now():
    """The schedule goes on while a model goes back; by what it fell since then, the guard's sense of rates moves."""
    guard = SpikeGuard()
    state = guard.begin()
    for loss in healthy(480):
        state, _ = guard.judge(state, loss, lr=1.0)
    moved = guard.moved_to(state, 0.1)

    assert moved.reference.lr_limit == pytest.approx(0.1 * state.reference.lr_limit)
    assert moved.past.lrs == pytest.approx([0.1 * rate for rate in state.past.lrs])
    assert moved.past.losses == state.past.losses
    assert guard.moved_to(guard.begin(), 0.1) == guard.begin()
    assert guard.moved_to(state, math.nan) == state


def test_no_progress_no_level():
    """Without progress, losses above those of the start raise no such alarm."""
    losses = 1 + 0.05 * np.random.default_rng(0).standard_normal(600)
    losses[400:] += 0.2

    assert Verdict.RAISED not in [verdict for _, verdict in judge_all(losses)]


def test_one_block_is_never_enough():
    """However high one block is, an alarm takes two: a few samples may explain a single one."""
    once = raised_by([1e9] * 16, USUAL_LOSSES, LEVEL, evidence=0.0)

    assert once == MOST - USUAL < ALARM
    assert raised_by([1e9] * 16, USUAL_LOSSES, LEVEL, evidence=once) >= ALARM


def test_high_losses_are_clipped():
    """A single very high loss moves a block's mean no further than the clipping limit."""
    assert raised_by([1.0] * 15 + [1e30], USUAL_LOSSES, LEVEL, 0.0) == raised_by([1.0] * 15 + [9.0], [], LEVEL, 0.0)


def test_evidence_decreases():
    """Usual blocks reduce the evidence to zero."""
    evidence = 5.0
    for _ in range(3):
        evidence = raised_by([1.0] * 16, USUAL_LOSSES, LEVEL, evidence)

    assert evidence == 5.0 - 3 * USUAL
    assert raised_by([1.0] * 16, USUAL_LOSSES, LEVEL, evidence=1.0) == 0.0


def test_damaged_weights_recover_partly():
    """Once there is evidence, blocks that have fallen back more than halfway add to it; alone they would not."""
    block = [1.06] * 16
    precise = LEVEL._replace(deviation=0.02)

    assert raised_by(block, USUAL_LOSSES, precise, evidence=5.0) > 5.0
    assert raised_by(block, USUAL_LOSSES, precise, evidence=0.0) == 0.0


@pytest.mark.parametrize("losses", [[1.0, 2.0, 3.0, 4.0] * 32, [-5.0] * 100 + [1e6] * 28])
def test_figures_of_a_block(losses):
    """The deviation of a block's mean is that of its clipped losses over the root of their number."""
    cut, mean, deviation = cut_figures(sorted(losses))
    values = np.minimum(losses, cut)

    assert cut == sorted(losses)[124]
    assert (mean, deviation) == (pytest.approx(values.mean()), pytest.approx(values.std() / 4))


def test_evidence_is_dropped_where_weights_are_healthy():
    """Calmed, the guard keeps its thresholds and has no evidence of a raised level left."""
    guard, state = SpikeGuard(), SpikeGuard().begin()
    for loss in lifted(528, at=505):
        state, _ = guard.judge(state, float(loss))
    calmed = guard.calmed(state)

    assert (guard.suspicion(state) > 0, guard.suspicion(calmed)) == (True, 0)
    assert calmed.reference == state.reference


def test_no_backups_under_suspicion():
    """While there is evidence of a level shift, the weights are not backed up."""
    guard, state = SpikeGuard(), SpikeGuard().begin()
    for loss in lifted(528, at=505):
        state, _ = guard.judge(state, float(loss))

    assert 0.25 <= guard.suspicion(state) < 1


def train_with_a_rise(task, heard, **callbacks):
    """600 unchanged steps, and 600 whose losses are reported higher by a seventh of the progress."""
    r8 = R8Scheduler(2048, batch_size=32, num_steps=1200, initial_lr=0.02, listeners=[heard], **callbacks)
    start, outcomes = task.loss(), []
    for _ in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            rise = 0.15 * start if r8.global_step >= 600 else 0.0
            outcomes.append(r8.update_with_loss(float(task.losses(indices).mean()) + rise))
            if outcomes[-1]:
                task.step(lr)
    return r8, outcomes


def test_a_permanent_rise_is_accepted():
    """A rise that older states show too is the new level: it is said once, and nothing is restored."""
    task, heard = ToyTask(), record_events()
    callbacks = {"state_callback": task.state, "load_callback": task.load, "backup_every": 20}
    with pytest.warns(RuntimeWarning, match="the losses stay higher from step"):
        r8, _ = train_with_a_rise(task, heard, **callbacks)

    assert r8.global_step == 1200
    assert [event.reason for event in heard.of(events.BatchRefused)] == ["raised"]
    assert not heard.of(events.RolledBack, events.LrCapped)


def test_nothing_to_restore():
    """Without a state to restore, a raised level costs one batch, and the rate stays on its schedule."""
    heard = record_events()
    with pytest.warns(RuntimeWarning, match="nothing to restore"):
        _, outcomes = train_with_a_rise(ToyTask(), heard)

    assert [outcome.verdict for outcome in outcomes if not outcome] == [Verdict.RAISED]
    assert not heard.of(events.LrCapped)

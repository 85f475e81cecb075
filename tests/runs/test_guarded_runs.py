"""Runs with the spike guard: healthy ones raise no alarm, diverging ones do."""

import random

import numpy as np
import pytest

from example import Mlp, load_task
from learnit_r8 import R8Scheduler, SpikeGuard, Verdict, events
from tests.drive import INF, NAN, Weights, make, steps


def verdicts(r8, loss_of, **more):
    """The verdicts of a run with the quick start's loop; ``loss_of(indices, lr)``."""
    found = []
    for _ in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            found.append(r8.update_with_loss(loss_of(indices, lr), **more).verdict)
    return found


def test_quick_start_is_left_alone():
    """The Quick Start's loss, which rises as the rate falls, is never refused, and its rate never lowered: 15 seeds."""
    for seed in range(15):
        draw = random.Random(seed)
        r8 = R8Scheduler(1000, batch_size=32, num_epochs=10, initial_lr=0.01)
        found = verdicts(r8, lambda _, lr, draw=draw: 1.0 / (lr * 100 + 1) + draw.uniform(-0.1, 0.1))

        assert set(found) == {Verdict.GOOD}
        assert r8.controller.lr_factor == 1


@pytest.mark.parametrize("start", [2.3, 0.05, 0.005])
@pytest.mark.parametrize("exact", [False, True])
def test_healthy_runs_are_left_alone(start, exact):
    """A healthy run is never refused, whatever the size of its first loss."""
    for seed in range(3):
        draw = np.random.default_rng(seed)
        hardness = draw.lognormal(0, 0.5, 1000)
        r8 = R8Scheduler(1000, batch_size=32, num_epochs=20, seed=seed)

        def loss(indices, _, r8=r8, draw=draw, hardness=hardness):
            level = start * (0.05 + 0.95 * np.exp(-r8.global_step / 150))
            losses = level * hardness[indices] * np.exp(0.3 * draw.standard_normal(len(indices)))
            return losses if exact else losses.mean()

        assert set(verdicts(r8, loss)) == {Verdict.GOOD}


@pytest.mark.parametrize("policy", ["quartile", "shuffle"])
def test_policies_raise_no_alarm(policy):
    """Batches of easy or of hard samples, as a policy makes them, are no spikes."""
    draw = np.random.default_rng(0)
    hardness = draw.lognormal(0, 1.5, 1000)
    r8 = R8Scheduler(1000, batch_size=32, num_epochs=30, policy=policy)

    found = verdicts(r8, lambda indices, _: hardness[indices] * np.exp(0.1 * draw.standard_normal(len(indices))))

    assert set(found) == {Verdict.GOOD}


def test_losses_that_never_change_raise_no_alarm():
    """Samples with constant losses: batches are balanced to the last digit, and chunks differ a little."""
    r8 = R8Scheduler(50_000, batch_size=256, num_epochs=5)

    assert set(verdicts(r8, lambda indices, _: 1 + (indices * 7919 % 101) / 50)) == {Verdict.GOOD}


def first_refusal(seed, factor):
    """The step at which a network whose rate explodes after step 300 is refused."""
    task, model = load_task(seed), Mlp(seed)
    r8 = R8Scheduler(len(task.labels), batch_size=32, num_steps=400, initial_lr=0.05, seed=seed)
    with np.errstate(all="ignore"):
        for _ in r8.epoch_iterator():
            for batch, lr in r8.batch_iterator():
                if not r8.update_with_loss(float(model.losses(task.images[batch], task.labels[batch]).mean())):
                    return r8.global_step
                model.step(lr * (factor if r8.global_step > 300 else 1))
    return None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("factor", [100, 1000])
def test_real_divergence_is_refused(seed, factor):
    """A network whose rate explodes is refused within 30 steps, and not before."""
    with pytest.warns(RuntimeWarning, match="nothing to restore"):
        step = first_refusal(seed, factor)

    assert 300 < step <= 330


def ready(count, **more):
    """A run with a backup and so many healthy steps."""
    weights = Weights()
    # The losses here come from no weights at all, so those of the first steps are not tested.
    more = {"guard": SpikeGuard(tests_progress=False), **more}
    r8 = make(4000, num_epochs=2, state_callback=weights.get, load_callback=weights.load, backup_every=20, **more)
    draw = np.random.default_rng(0)
    for _ in range(count):
        r8.report(r8.draw(), float(np.exp(0.1 * draw.standard_normal())))
    return r8, weights


def test_spike_is_looked_into():
    """A spike is refused, and probes of the present weights follow; as they have their losses, nothing is restored."""
    r8, weights = ready(300)
    before = r8.controller.state_dict()["incidents"]["num_probes"], len(weights.loaded)
    outcomes = [r8.report(r8.draw(), loss) for loss in (20.0, 20.0, 1.0, 1.0, 1.0)]

    assert [outcome.verdict for outcome in outcomes[:3]] == [Verdict.GOOD, Verdict.SPIKE, Verdict.PROBED]
    assert [bool(outcome) for outcome in outcomes] == [True, False, False, False, True]
    num_probes = r8.controller.state_dict()["incidents"]["num_probes"]
    assert (num_probes - before[0], len(weights.loaded) - before[1]) == (2, 0)


def test_grad_norm_is_judged():
    """A gradient norm that is not finite refuses the batch, and restores nothing; it may be a tensor."""
    torch = pytest.importorskip("torch")
    r8, weights = ready(100)
    before = len(weights.loaded)

    assert r8.report(r8.draw(), 1.0, grad_norm=torch.tensor(3.0)).verdict is Verdict.GOOD
    assert r8.report(r8.draw(), 1.0, grad_norm=torch.tensor(INF)).verdict is Verdict.GRADIENT
    assert len(weights.loaded) == before


@pytest.mark.parametrize(
    ("norm", "error", "message"),
    [
        ("3", TypeError, "grad_norm must be a real number"),
        ([1.0, 2.0], ValueError, r"grad_norm must be one number, got shape \(2,\)"),
    ],
)
def test_grad_norm_is_a_number(norm, error, message):
    """A gradient norm that is not one number is refused under its name, and the batch stays open."""
    r8 = make()
    ticket = r8.draw()

    with pytest.raises(error, match=message):
        r8.report(ticket, 1.0, grad_norm=norm)
    assert r8.report(ticket, 1.0)


def test_skipped_step_with_a_bad_loss_is_not_learned():
    """A skipped step with a non-finite loss is counted, not learned from, and restores nothing; NaN is said once."""
    r8, weights = ready(10)
    used = r8.table.usage_count.sum()
    with pytest.warns(RuntimeWarning, match="the loss of step 11 is NaN while the weights are finite"):
        outcome = r8.report(r8.draw(), NAN, skipped=True)

    assert (outcome.verdict, bool(outcome), outcome.rolled_back_to) == (Verdict.SKIPPED, False, None)
    assert r8.global_step == 11
    assert r8.table.usage_count.sum() == used
    assert weights.loaded == []
    assert r8.sentry.num_refused == 0


def test_endless_skipping_is_an_incident():
    """The 21st skipped step in a row is refused, and says why; healthy weights stay."""
    told = []
    r8, weights = ready(10, listeners=[told.append])
    found = [r8.report(r8.draw(), 1.0, skipped=True).verdict for _ in range(25)]
    refused = [event for event in told if isinstance(event, events.BatchRefused)]

    assert found.index(Verdict.OVERFLOW) == 20
    assert found.count(Verdict.OVERFLOW) == 1
    assert [event.reason for event in refused] == ["overflow"]
    assert weights.loaded == []


def test_saved_run_judges_alike():
    """A resumed run refuses the same loss at the same step."""
    ahead = [1.0] * 5 + [9.0] * 2
    r8, _ = ready(300)
    state = r8.state_dict()
    found = [r8.report(r8.draw(), loss).verdict for loss in ahead]
    again, _ = ready(0)
    again.load_state_dict(state)

    assert [again.report(again.draw(), loss).verdict for loss in ahead] == found
    assert Verdict.SPIKE in found


@pytest.mark.filterwarnings("ignore:losses or weights were not finite")
@pytest.mark.parametrize("is_in_weights", [False, True])
@pytest.mark.parametrize("num_steps", [120, 400])
def test_one_nan_lowers_the_rate_for_sixteen_steps_at_most(num_steps, is_in_weights):
    """A transient NaN, of a loss or of the weights, costs no rate that a short run would not get back."""

    def rates(nan_at):
        weights, found = Weights(), []
        r8 = make(
            640, batch_size=10, num_steps=num_steps, initial_lr=0.1, scheduler_mode="constant", warmup_proportion=0.0,
            backup_every=20, state_callback=weights.get, load_callback=weights.load,
        )  # fmt: skip
        for _, _, lr in steps(r8):
            step = r8.global_step
            found.append(lr)
            if step == nan_at and is_in_weights:
                weights.values[0] = NAN
            is_bad = np.isnan(weights.values).any() or (step == nan_at and not is_in_weights)
            r8.update_with_loss(NAN if is_bad else 0.5 + 2 * np.exp(-step / 80) + 0.05 * np.sin(1.7 * step))
        return found, r8.sentry.num_refused

    plain, healed = rates(-1), rates(num_steps // 3)

    assert plain == ([0.1] * num_steps, 0)
    assert healed[1] == 1
    assert sum(lr < 0.1 for lr in healed[0]) <= 16
    assert healed[0][-1] == 0.1

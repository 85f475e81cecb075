"""The watch over the first steps."""

import math

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, RateShape, Verdict, events
from learnit_r8.recovery.early import are_large
from learnit_r8.testing import record_events
from tests.drive import Weights, make
from tests.softmax import SoftmaxRegression

LOSSES = np.array([1.0, 1.2, 0.9, 1.1, 1.0, 0.8, 1.3, 1.0])


@pytest.mark.parametrize(
    ("losses", "share", "size", "expected"),
    [
        (LOSSES, -0.2, 32, True),
        (LOSSES, 0.2, 32, True),
        (LOSSES, -0.03, 32, False),
        (LOSSES, -0.2, 2, False),  # the update of two samples serves just these
        (LOSSES, -0.2, 256, True),
        # Where noise has heavy tails, a batch whose loss changes much has a high one.
        (np.where(np.arange(8) == 3, 20.0, LOSSES), -0.04, 32, False),
        (LOSSES, 0.2 * (-1.0) ** np.arange(8), 32, False),  # and noise points in both directions
    ],
)
def test_large_updates(losses, share, size, expected):
    """Rates are tried where updates change the losses of their own batches by a large share, all in one direction."""
    changes = list(zip(losses.tolist(), (share * losses).tolist(), strict=True))
    assert are_large(changes, size) is expected


@pytest.mark.parametrize("is_second", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_not_learned_from_as_updates_are_measured(bad, is_second):
    """No step is taken with it, nothing is learned from it, and measuring ends for a while."""
    rng, weights = np.random.default_rng(0), {"w": np.zeros(3)}
    r8 = R8Scheduler(
        2048, batch_size=8, num_steps=256, initial_lr=0.1, handle_signals=False,
        state_callback=lambda: weights, load_callback=weights.update,
    )  # fmt: skip
    outcomes = []
    for _ in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            is_probe = r8.host.controller.experiment.is_open
            is_bad = is_probe and len(outcomes) == is_second
            outcome = r8.update_with_loss(bad if is_bad else 2.3 * rng.uniform(0.4, 1.8))
            if is_probe:
                outcomes.append((bool(outcome), r8.global_step))

    assert not any(is_good for is_good, _ in outcomes[: 1 + is_second])
    assert outcomes[1 + is_second][1] > 180
    assert np.array_equal(np.isfinite(r8.table.loss), r8.table.usage_count > 0)
    assert math.isfinite(r8.table.storage.batch_trend.value)


@pytest.mark.parametrize(
    ("size", "losses", "refused"),
    [
        (8, [1.0, 1.0, 2.5, 1.0], []),
        (8, [1.0, 1.0, 2.5, 2.5], [3]),
        (8, [1.0, 1.0, 90.0], [2]),  # far too high
        (16, [1.0, 1.0, 2.5], [2]),
    ],
)
def test_one_high_loss_of_a_small_batch_may_be_noise(size, losses, refused):
    """Where a trainer counts batches, none of fewer than 16 samples is left out for one loss that is a little high."""
    weights = Weights()
    r8 = make(512, batch_size=size, state_callback=weights.get, load_callback=weights.load)
    r8.pace.is_counted = True
    verdicts = [r8.report(r8.draw(), loss).verdict for loss in losses]

    assert [place for place, verdict in enumerate(verdicts) if verdict is Verdict.EARLY] == refused


def fit_line(listener, *, is_own, has_model=True):
    """Fit a line through 0, from a weight that is far off; nearly all of that is gone with the first step."""
    weights, rng = {"w": np.full(4, 1e4)}, np.random.default_rng(0)
    batches = {"num_steps": 40, "scheduler_mode": "keep"}
    if not is_own:
        rate = RateShape("constant", warmup_steps=0)
        batches = {"num_samples": 1280, "batch_size": 32, "num_epochs": 1, "initial_lr": 0.99, "scheduler_mode": rate}
    model = {"state_callback": lambda: weights, "load_callback": lambda backup: weights.update(backup)}
    r8 = R8Scheduler(**batches, **(model if has_model else {}), listeners=[listener], handle_signals=False)
    for _ in r8.epoch_iterator():
        for _ in r8.batches(range(40)) if is_own else r8.batch_iterator():
            x = np.linalg.qr(rng.normal(size=(32, 4)))[0]
            error = x @ weights["w"]
            if r8.update_with_loss(np.mean(error**2)):
                weights["w"] = weights["w"] - 0.99 * x.T @ error
    r8.close()
    return weights["w"]


@pytest.mark.parametrize("is_own", [False, True], ids=["planned", "own"])
def test_a_first_loss_that_is_high_by_right_restores_nothing(is_own):
    """The untrained weights are far off on any batch: a later one, drawn again with them, says so."""
    heard = record_events()
    weights = fit_line(heard, is_own=is_own)

    [probe] = heard.of(events.Probed)
    assert (probe.reason, probe.is_present) == ("first batches", False)
    assert probe.loss > 1e6
    assert not heard.of(events.RolledBack, events.BatchRefused)
    assert np.abs(weights).max() < 1e-9


def test_a_far_first_loss_is_said_where_nothing_can_be_put_back():
    with pytest.warns(RuntimeWarning, match="the loss of the first batch .* Nothing was tested, and nothing changed"):
        fit_line(record_events(), is_own=True, has_model=False)


def test_the_loss_of_a_first_batch_that_is_undone_is_no_scale_for_the_samples():
    """It was all of the trend, to which batch means are relative: each sample would keep the highest share there is."""
    r8, model = train_after_a_bad_first_batch(0, mean=np.mean, is_once=True)
    losses = np.array([model.forward(np.array([index])).item() for index in range(1000)])

    assert r8.table.loss.max() < 3 * losses.max()
    assert abs(np.log(np.median(r8.table.loss) / np.mean(losses))) < 1


@pytest.mark.parametrize("seed", [0, 1])
def test_a_bad_first_batch_is_undone(seed):
    """Its loss has nothing before it to be compared with, and the weights that it has ruined suit it."""
    r8, model = train_after_a_bad_first_batch(seed)

    assert r8.lr_factor == 1.0
    assert model.accuracy > 0.85


def train_after_a_bad_first_batch(seed, mean=lambda losses: losses, *, is_once=False):
    """Train a classifier whose first batch is out of range, each time that it comes or once."""
    model, rng = SoftmaxRegression(), np.random.default_rng(seed)
    x = rng.normal(size=(1000, 16))
    model.y, model.weights = (x @ rng.normal(size=(16, 5))).argmax(axis=1), np.zeros((17, 5))
    r8 = R8Scheduler(
        1000, batch_size=32, num_epochs=4, initial_lr=0.3, state_callback=model.get, load_callback=model.load,
        handle_signals=False, seed=seed,
    )  # fmt: skip

    def train(first=None):
        for _ in r8.epoch_iterator():
            for indices, lr in r8.batch_iterator():
                first = indices.copy() if first is None else first
                is_bad = np.array_equal(indices, first) and not (is_once and r8.global_step)
                model.x = x * 1e4 if is_bad else x
                if r8.update_with_loss(mean(model.forward(indices))):
                    model.step(lr)

    with pytest.warns(RuntimeWarning, match="the first steps went wrong: .* restored to step 0"):
        train()
    model.x = x
    return r8, model

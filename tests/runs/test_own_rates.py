"""Batches and rates of the user's own: which levels of the losses are looked into, and what follows."""

import warnings

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.testing import record_events
from tests.softmax import SoftmaxRegression

STEPS = 320


def train(rate, *, steps=STEPS, shape=lambda losses, step: losses, first=None, make=SoftmaxRegression, **settings):
    """Train a softmax regression on batches and a rate of one's own; returns it, the events and the reported losses."""
    model, dice, reported = make(), np.random.default_rng(0), []
    if first is not None:
        model.weights = first
    batches = [dice.integers(0, len(model.y), 32) for _ in range(steps)]
    heard = record_events()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with R8Scheduler(
            num_steps=steps, scheduler_mode="keep", state_callback=model.get, load_callback=model.load,
            listeners=[heard], **settings,
        ) as r8:  # fmt: skip
            for _ in r8.epoch_iterator():
                for indices in r8.batches(batches):
                    loss = shape(float(np.mean(model.forward(indices))), r8.global_step)
                    reported.append(loss)
                    if r8.update_with_loss(loss):
                        model.step(rate(r8.global_step) * r8.lr_factor)
    return model, heard, reported


def kinds(heard):
    return [type(event).__name__ for event in heard]


class AbsoluteError:
    """A line fitted by absolute errors: gradients never grow, so at a high rate weights jump about without a spike."""

    def __init__(self):
        dice = np.random.default_rng(1)
        self.x = dice.normal(size=(512, 8))
        self.y = self.x @ dice.normal(size=8)
        self.weights = np.zeros(8)

    def forward(self, indices):
        error = self.x[indices] @ self.weights - self.y[indices]
        self.gradient = self.x[indices].T @ np.sign(error) / len(indices)
        return np.abs(error)

    get, load, step = SoftmaxRegression.get, SoftmaxRegression.load, SoftmaxRegression.step


@pytest.mark.parametrize("factor", [40.0, 100.0, 200.0])
def test_a_rate_that_is_too_high_from_the_start_is_lowered(factor):
    """Losses that are soon far above those of the untrained model, without a spike, bring back a state that is not."""
    untrained = AbsoluteError().forward(np.arange(512)).mean()
    bare, _, _ = train(lambda step: factor, make=AbsoluteError, guard="finite")
    model, heard, _ = train(lambda step: factor, make=AbsoluteError)

    assert bare.forward(np.arange(512)).mean() > untrained
    assert model.forward(np.arange(512)).mean() < untrained
    assert {"Probed", "RolledBack", "LrCapped"} <= set(kinds(heard))
    assert "BatchRefused" not in kinds(heard)


def anneal(losses, step):
    """The weight of a second term grows from 0, as that of a KL divergence does."""
    return losses + 5.0 * min(1.0, step / 100)


HEALTHY = {
    "good rate": (lambda step: 0.1, {}),
    "long warm-up": (lambda step: 0.5 * min(1.0, step / 1000), {"steps": 1100}),
    "plateau": (lambda step: 0.0, {}),
    "fine-tuning": (lambda step: 0.05, {"first": "trained"}),
    "restarts": (lambda step: 0.3 * (1 + np.cos(np.pi * (step % 80) / 80)), {}),
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_healthy_trainings_meet_no_probe(kind):
    """A rate that rises for long, a plateau, good weights from the start or restarts raise no alarm."""
    rate, settings = HEALTHY[kind]
    if "first" in settings:
        settings = {"first": train(lambda step: 0.3)[0].weights}
    model, heard, _ = train(rate, **settings)
    bare, _, _ = train(rate, guard="finite", **settings)

    assert not {"Probed", "BatchRefused", "RolledBack"} & set(kinds(heard))
    np.testing.assert_array_equal(model.weights, bare.weights)


def test_a_task_that_changes_restores_nothing():
    """Where the untrained state has a higher loss now, too, it is the loss that has changed."""
    model, heard, _ = train(lambda step: 0.1, shape=anneal)
    bare, _, _ = train(lambda step: 0.1, shape=anneal, guard="finite")

    assert "RolledBack" not in kinds(heard)
    assert "LrCapped" not in kinds(heard)
    assert model.accuracy > bare.accuracy - 0.02


@pytest.mark.parametrize("at", [24, 40])
def test_weights_that_jump_in_the_first_steps_are_put_back_at_the_same_rate(at):
    """Four losses above all before them, and above the untrained model's, are looked into at once; the rate is kept."""
    model, hurt = SoftmaxRegression(), []

    class Hurt(SoftmaxRegression):
        def step(self, lr):
            super().step(lr)
            hurt.append(lr)
            if len(hurt) == at:
                self.weights = -3 * self.weights

    model, heard, reported = train(lambda step: 0.1, make=Hurt, steps=160)
    bare, _, _ = train(lambda step: 0.1, guard="finite", steps=160)
    restored = [event for event in heard if type(event).__name__ == "RolledBack"]
    every = np.arange(len(model.y))

    assert reported[at] > 1.5 * reported[0]
    assert [event.to_step <= at for event in restored] == [True]
    assert restored[0].step <= at + 6
    assert "LrCapped" not in kinds(heard)
    assert np.mean(model.forward(every)) < 1.1 * np.mean(bare.forward(every))


@pytest.mark.parametrize("visits", [[9, 30, 52], [3, 30, 52]])
def test_a_bad_batch_that_comes_back_costs_its_visits_alone(visits):
    """From the ninth loss on a far one is refused; before that, what it did is undone. The rate is kept."""
    bad = {"step": 0}

    class Bad(SoftmaxRegression):
        def forward(self, indices):
            bad["step"] += 1
            losses = super().forward(indices)
            if bad["step"] - 1 in visits:
                self.gradient = 1e3 * self.gradient
                return 50 * losses
            return losses

    model, heard, _ = train(lambda step: 0.1, make=Bad, steps=160)
    bare, _, _ = train(lambda step: 0.1, guard="finite", steps=160)
    lost = np.mean(model.forward(np.arange(512))) / np.mean(bare.forward(np.arange(512)))

    assert lost < 1.3
    assert "LrCapped" not in kinds(heard)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("samples", [{}, {"num_samples": 64, "batch_size": 8}], ids=["own", "planned"])
def test_an_outcome_holds_the_rate_that_was_told(samples):
    """Whoever draws the batches; after a refused loss it is what recovery leaves of that rate."""
    r8 = R8Scheduler(num_steps=32, scheduler_mode="keep", **samples)
    planned = (pair for _ in r8.epoch_iterator() for pair in r8.batch_iterator())
    rates = []
    for _ in planned if samples else r8.batches(range(32)):
        outcome = r8.update_with_loss(float("nan") if r8.global_step == 20 else 1.0, lr=0.03)
        rates.append((outcome.lr, r8.lr))

    assert rates[0] == (0.03, 0.03)
    assert all(lr == now <= 0.03 for lr, now in rates)


@pytest.mark.parametrize(("every", "is_said"), [(20, True), (0, False)])
def test_batches_that_are_always_left_out_are_told_of(every, is_said):
    """Whoever trains on two tasks, one of which has losses a thousand times as high, learns that it is left out."""

    def shape(loss, step):
        return 1000 * loss if every and step % every == every // 2 else loss

    _, heard, _ = train(lambda step: 0.1, shape=shape)

    said = [event.text for event in heard if type(event).__name__ == "Notice" and event.is_warning]
    assert [text.startswith("8 batches were left out for their high losses, the last at") for text in said] == (
        [True] if is_said else []
    )

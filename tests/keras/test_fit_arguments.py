"""What `fit` may be given beside the data set and the callback: right, or refused with what to do."""

import numpy as np
import pytest

pytest.importorskip("keras")
pytest.importorskip("tensorflow")

import keras

from learnit_r8 import R8Scheduler
from learnit_r8.keras import R8Callback, R8Dataset
from tests.keras_common import CROSS_ENTROPY, Watch, X, Y, classifier, fit, scheduler

pytestmark = pytest.mark.program


def fit_on(x, dataset, *callbacks, model=None, **arguments):
    model = classifier() if model is None else model
    return model.fit(x, verbose=0, shuffle=False, callbacks=[R8Callback(dataset), *callbacks], **arguments)


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
        lambda: keras.callbacks.ReduceLROnPlateau(),
        lambda: keras.callbacks.BackupAndRestore("folder"),
    ],
)
def test_callbacks_without_effect_are_refused(make):
    """Callbacks that set the rate, or bring half a run back, are named with what to do instead."""
    dataset = R8Dataset(X, Y, scheduler())
    callback = make()

    with pytest.raises(ValueError, match=f"callbacks must not have a {type(callback).__name__}.*R8Scheduler|scheduler"):
        fit_on(dataset, dataset, callback)


@pytest.mark.parametrize("method", ["predict", "evaluate"])
def test_a_data_set_is_for_training(method):
    """Predictions in the drawn order would be credited to the wrong samples."""
    with pytest.raises(ValueError, match=rf"x must be the arrays themselves in {method}\(\), got an R8Dataset"):
        getattr(classifier(), method)(R8Dataset(X, Y, scheduler()), verbose=0)


class NoComputeLoss(keras.Model):
    """Asks for its loss in none of its steps, or more than once."""

    calls = 0

    def train_step(self, *given):
        # On JAX the state comes first, and is returned beside the logs.
        *state, data = given
        logs = {"loss": keras.ops.zeros(())}
        for _ in range(self.calls):
            done = super().train_step(*state, data)
            logs, *state = done if state else (done,)
        return (logs, *state) if state else logs


@pytest.mark.parametrize("calls", [0, 2])
def test_a_step_that_hides_its_loss_is_refused(calls):
    """Losses that the scheduler cannot hear, or of which it hears several, are never reported as something else."""
    inputs = keras.Input((64,))
    model = NoComputeLoss(inputs, keras.layers.Dense(10)(inputs))
    model.calls = calls
    model.compile(keras.optimizers.SGD(0.1), CROSS_ENTROPY)
    dataset = R8Dataset(X, Y, scheduler())

    with pytest.raises(RuntimeError, match=rf"one call of self.compute_loss.*, got {calls} in this step"):
        fit_on(dataset, dataset, model=model)


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self._batches = batches

    def __len__(self):
        return len(self._batches)

    def __getitem__(self, number):
        return X[self._batches[number]], Y[self._batches[number]]


OWN_RATES = {
    "schedule": (lambda: keras.optimizers.schedules.ExponentialDecay(0.05, 4, 0.5), []),
    "callback": (lambda: 0.01, [keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)]),
}


@pytest.mark.parametrize("kind", OWN_RATES)
def test_rates_of_ones_own_are_kept(kind):
    """With "keep" the batches are the scheduler's and the rates the user's, as in a plain fit over those batches."""
    rate, more = OWN_RATES[kind]
    model, plain = (classifier(optimizer=keras.optimizers.SGD(rate())) for _ in range(2))
    r8 = R8Scheduler(len(X), batch_size=32, num_epochs=1, scheduler_mode="keep")
    dataset = R8Dataset(X, Y, r8)
    watch = Watch(dataset)
    fit(model, dataset, watch, *more)
    plain.fit(Batches(watch.batches), shuffle=False, verbose=0, callbacks=more)

    assert all(map(np.array_equal, model.get_weights(), plain.get_weights()))
    assert r8.lr == pytest.approx(0.005) if kind == "callback" else np.isnan(r8.lr)

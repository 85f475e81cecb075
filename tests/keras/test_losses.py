"""The losses that reach the scheduler from `model.fit`: of each sample, raw, and of the step that was taken."""

import numpy as np
import pytest

pytest.importorskip("keras")
pytest.importorskip("tensorflow")

import keras
from keras import ops

from learnit_r8.keras import R8Dataset, sample_losses
from learnit_r8.keras.losses import LossRecorder
from tests.keras_common import CROSS_ENTROPY, Watch, X, Y, classifier, fit, scheduler, true_losses


def reported(model, *, data=None, **fit_arguments):
    """Train an epoch; the last batch, its weights as it began, and what the table was told of it."""
    r8 = scheduler(num_steps=16)
    dataset = data(r8) if data else R8Dataset(X, Y, r8)
    watch = Watch(dataset)
    fit(model, dataset, watch, **fit_arguments)
    return watch.batches[-1], watch.weights[-1], r8.table.last[watch.batches[-1]]


@pytest.mark.parametrize(
    ("how", "steps"),
    [
        pytest.param({"run_eagerly": True}, 2, id="eager"),
        pytest.param({"jit_compile": True}, 16, id="xla", marks=pytest.mark.program),
    ],
)
def test_losses_are_those_of_the_step(how, steps):
    """What is reported equals the losses computed afterwards with the weights the step began with.

    Of sixteen the last batch is a short one.
    """
    model, r8 = classifier(**how), scheduler(num_steps=steps)
    dataset = R8Dataset(X, Y, r8)
    watch = Watch(dataset)
    fit(model, dataset, watch)

    for batch, weights in zip(watch.batches[-2:], watch.weights[-2:], strict=True):
        assert r8.table.last[batch] == pytest.approx(true_losses(model, weights, batch), rel=1e-4, abs=1e-6)


def test_model_runs_once_a_step_and_penalties_are_not_reported():
    """A layer that counts its calls counts the steps; regularization is trained on and is no loss of a sample.

    The losses are those of the step's weights in a graph, of a short last batch here.
    """

    class Counts(keras.layers.Layer):
        def build(self, shape):
            self.calls = self.add_weight(shape=(), trainable=False, initializer="zeros")

        def call(self, inputs):
            self.calls.assign_add(1.0)
            return inputs

    counter = Counts()
    penalized = keras.layers.Dense(10, kernel_regularizer=keras.regularizers.L2(9.0))
    model = keras.Sequential([keras.Input((64,)), counter, penalized])
    model.compile("sgd", CROSS_ENTROPY)
    batch, weights, losses = reported(model)

    assert ops.convert_to_numpy(counter.calls) == 16
    assert losses == pytest.approx(true_losses(model, weights, batch), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.program)])
def test_mixed_precision(policy):
    """Under mixed precision, also with a scaled loss, losses are unscaled and the rate reaches the inner optimizer."""
    keras.config.set_dtype_policy(policy)
    try:
        model = classifier()
        assert ("LossScale" in type(model.optimizer).__name__) == (policy == "mixed_float16")
        dataset = R8Dataset(X, Y, scheduler(num_steps=16))
        watch = Watch(dataset)
        fit(model, dataset, watch)
        batch = watch.batches[-1]
        expected = true_losses(model, watch.weights[-1], batch)
    finally:
        keras.config.set_dtype_policy("float32")

    assert watch.rates[5] != watch.rates[9]
    # Predictions are float32 of half-precision activations of about 3 digits.
    assert dataset.r8.table.last[batch] == pytest.approx(expected, rel=0.05, abs=0.05)


def scalar_loss(y_true, y_pred):
    return ops.mean(CROSS_ENTROPY.call(y_true, y_pred))


@pytest.mark.filterwarnings("always")
def test_scalar_loss_is_estimated_and_said():
    """A loss that is one number for the batch is reported as such, with one warning; so is one of compute_loss, as
    `loss_scripts` shows."""
    model, r8 = classifier(loss=scalar_loss), scheduler(num_epochs=2)
    with pytest.warns(RuntimeWarning, match="one number for the whole batch: losses of samples are estimated") as said:
        fit(model, R8Dataset(X, Y, r8), epochs=2)

    assert len([warning for warning in said if "one number" in str(warning.message)]) == 1
    assert r8.table.source == "batch means of 32"


@pytest.mark.program
def test_evaluating_between_steps_changes_no_report():
    """A callback that evaluates the model, in larger batches too, leaves the losses of the step alone."""

    class Evaluates(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.evaluate(X[:100], Y[:100], batch_size=100, verbose=0)

    model = classifier()
    r8 = scheduler(num_steps=3)
    dataset = R8Dataset(X, Y, r8)
    watch = Watch(dataset)
    from learnit_r8.keras import R8Callback

    model.fit(dataset, shuffle=False, verbose=0, callbacks=[Evaluates(), R8Callback(dataset), watch])

    assert r8.table.last[watch.batches[-1]] == pytest.approx(
        true_losses(model, watch.weights[-1], watch.batches[-1]), rel=1e-4, abs=1e-6
    )


@pytest.mark.program
def test_model_trained_before_is_traced_anew():
    """A model with a compiled step from a plain fit still reports every loss."""
    model = classifier()
    model.fit(X, Y, verbose=0)
    batch, weights, losses = reported(model)

    assert losses == pytest.approx(true_losses(model, weights, batch), rel=1e-4, abs=1e-6)


def test_recorder_stays_with_its_model():
    """A second scheduler with smaller batches finds the recorder; with larger ones it gets a larger one."""
    model = classifier()
    first = LossRecorder.of(model, 32)

    assert LossRecorder.of(model, 16) is first
    assert LossRecorder.of(model, 64) is not first
    assert LossRecorder.of(model, 64).capacity == 64


def test_model_is_saved_and_trained_without_us_afterwards(tmp_path):
    """What listens to the losses is no part of the model: it can be saved, loaded, and fitted plainly."""
    model = classifier()
    fit(model, R8Dataset(X, Y, scheduler()))
    model.fit(X, Y, batch_size=100, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")

    assert all(map(np.array_equal, model.get_weights(), again.get_weights()))


@pytest.mark.parametrize(
    "loss",
    [CROSS_ENTROPY, keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"), CROSS_ENTROPY.call],
    ids=["mean", "sum", "function"],
)
def test_sample_losses(loss):
    """They are the losses before reduction, whatever the loss's own."""
    logits = np.random.default_rng(0).normal(size=(7, 10)).astype("float32")
    expected = keras.losses.sparse_categorical_crossentropy(Y[:7], logits, from_logits=True)
    found = sample_losses(loss, Y[:7], logits)

    assert ops.convert_to_numpy(found) == pytest.approx(ops.convert_to_numpy(expected))


def test_sample_losses_of_more_dimensions():
    """Further dimensions are averaged."""
    losses = sample_losses("mse", np.zeros((2, 3, 4)), np.ones((2, 3, 4)) * [[[1.0]], [[2.0]]])

    assert ops.convert_to_numpy(losses).tolist() == [1.0, 4.0]


def test_sample_losses_of_a_scalar_are_refused():
    """A loss that reduces by itself has no losses of samples."""
    with pytest.raises(ValueError, match=r"loss must give one number for each sample, got one for all of them from"):
        sample_losses(scalar_loss, Y[:7], np.zeros((7, 10), "float32"))

"""What a Keras model says of labels, from probabilities or logits, in a loop under `tf.function`."""

import numpy as np
import pytest

pytest.importorskip("keras")
pytest.importorskip("tensorflow")

import keras
from keras import layers, losses

from learnit_r8 import predictions_of as expected_of
from learnit_r8.keras import R8Dataset, batch_dataset, predictions_of, sample_losses
from learnit_r8.keras.losses import predictions_in
from tests.drive import evidence_of
from tests.keras_common import CROSS_ENTROPY, X, Y, classifier, fit, on_tensorflow, scheduler, tf

LOGITS = np.random.default_rng(0).normal(size=(30, 5)).astype("f4")
LABELS = np.arange(30) % 5


def as_numbers(predictions):
    return [np.asarray(values) for values in predictions[:3]] + [predictions.num_classes]


@pytest.mark.parametrize("labels", [LABELS, LABELS[:, None]])
def test_probabilities_say_what_logits_say(labels):
    """Margins are those of logits, whether a model puts out logits or probabilities."""
    expected = as_numbers(expected_of(LOGITS, LABELS))
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    for found in (predictions_of(labels, LOGITS, from_logits=True), predictions_of(labels, probabilities)):
        for one, other in zip(as_numbers(found), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(30,), (30, 1)])
def test_one_output_is_the_second_of_two_classes(shape):
    """A model with one sigmoid or one logit has two classes; a probability of 0 or 1 is finite."""
    logit, labels = LOGITS[:, 0], LABELS % 2
    expected = as_numbers(expected_of(logit, labels))
    for found in (
        predictions_of(labels, logit.reshape(shape), from_logits=True),
        predictions_of(labels, (1 / (1 + np.exp(-logit))).reshape(shape)),
    ):
        for one, other in zip(as_numbers(found), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert np.isfinite(np.asarray(predictions_of([0, 1], np.array([0.0, 0.0], "f4")).margin)).all()


@on_tensorflow
def test_loop_under_tf_function_keeps_the_evidence():
    """A compiled step returns losses and predictions, and every sample has the evidence of its own label."""
    model, r8 = classifier(), scheduler(num_epochs=2)
    batches = batch_dataset(r8, (X, Y))
    optimizer = keras.optimizers.SGD(lambda: batches.lr)
    optimizer.build(model.trainable_variables)

    @tf.function(input_signature=batches.element_spec)
    def step(x, y):
        with tf.GradientTape() as tape:
            outputs = model(x, training=True)
            losses = sample_losses(CROSS_ENTROPY, y, outputs)
            loss = tf.reduce_mean(losses)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return losses, predictions_of(y, outputs, from_logits=True)

    for _ in r8.epoch_iterator():
        for x, y in batches:
            batches.report(*step(x, y))
    found = evidence_of(r8)

    assert found["visits"].tolist() == [2] * len(X)
    np.testing.assert_array_equal(found["given"], np.ravel(Y))


def test_targets_that_are_no_classes_are_refused():
    """One-hot targets look like several labels; real numbers are none, and more than 65,535 do not fit the table."""
    for targets, logits, text in (
        (np.eye(5)[LABELS], LOGITS, "several labels a sample"),
        (LABELS.astype("f4"), LOGITS, "targets must be whole numbers"),
        (np.array([0, 1]), np.zeros((2, 70_000), "f4"), "at most 65535 classes"),
    ):
        with pytest.raises(ValueError, match=text):
            predictions_of(targets, logits)


def dense(units, activation=None):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((64,)), layers.Dense(units, activation=activation, dtype="float32")])


def evidence_of_fit(model, loss, y, *, num_epochs=1, run_eagerly=True, **settings):
    """The evidence after `fit` at next to no rate; None if there is none. Eagerly it takes two steps an epoch."""
    model.compile(keras.optimizers.SGD(1e-9), loss, run_eagerly=run_eagerly, **settings)
    steps = 2 if run_eagerly else 16
    r8 = scheduler(num_epochs=num_epochs, initial_lr=1e-9, batch_size=-(-len(X) // steps) + 1)
    fit(model, R8Dataset(X, y, r8), epochs=num_epochs)
    assert r8.global_step == steps * num_epochs
    return evidence_of(r8)


def scores(model):
    return keras.ops.convert_to_numpy(model(X))


ONE_HOT = np.eye(10, dtype="float32")[Y]
KNOWN = {
    "logits": (10, None, CROSS_ENTROPY, Y, lambda z: z),
    "probabilities": (10, "softmax", "sparse_categorical_crossentropy", Y[:, None], np.log),
    "one-hot": (10, "softmax", losses.CategoricalCrossentropy(label_smoothing=0.1), ONE_HOT, np.log),
    "focal": (10, None, losses.CategoricalFocalCrossentropy(from_logits=True), ONE_HOT, lambda z: z),
    "two classes": (1, "sigmoid", "binary_crossentropy", Y % 2, lambda p: np.log(p / (1 - p))),
    "one logit": (1, None, losses.BinaryCrossentropy(from_logits=True), (Y % 2)[:, None], lambda z: z),
}


@pytest.mark.parametrize(("name", "in_graph"), [("one logit", True), *((name, False) for name in KNOWN)])
def test_fit_keeps_the_evidence(name, in_graph):
    """Whatever cross entropy a model is compiled with, each sample has the margin of its own outputs."""
    units, activation, loss, y, as_logits = KNOWN[name]
    model = dense(units, activation)
    found = evidence_of_fit(model, loss, y, run_eagerly=not in_graph)
    labels = Y % 2 if units == 1 else Y
    expected = expected_of(as_logits(scores(model)), labels)

    np.testing.assert_allclose(found["margin"], expected.margin, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(found["given"], labels)
    assert set(found["visits"]) == {1}


@pytest.mark.program
def test_second_epoch_is_a_second_visit():
    """Under XLA too, and the short last batch traces nothing wrong."""
    model = dense(10)
    found = evidence_of_fit(model, CROSS_ENTROPY, Y, num_epochs=2, run_eagerly=False, jit_compile=True)

    np.testing.assert_allclose(found["margin"], expected_of(scores(model), Y).margin, rtol=1e-3, atol=1e-4)
    assert set(found["visits"]) == {2}


def test_mixed_and_ignored_labels_are_not_judged():
    """A soft target, one between 0 and 1, and the ignored class are no single label."""
    few = np.arange(len(X)) < 7
    mixed = np.where(few[:, None], (ONE_HOT + ONE_HOT[::-1]) / 2, ONE_HOT)
    is_mixed = few & (Y[::-1] != Y)
    for found, without in (
        (evidence_of_fit(dense(10, "softmax"), "categorical_crossentropy", mixed), is_mixed),
        (evidence_of_fit(dense(1, "sigmoid"), "binary_crossentropy", np.where(few, 0.5, Y % 2)), few),
        (
            evidence_of_fit(dense(10), losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=3), Y),
            Y == 3,
        ),
    ):
        np.testing.assert_array_equal(found["visits"], ~without)


class Ignoring(losses.SparseCategoricalCrossentropy):
    """Labels that are no classes do not count."""

    def call(self, y_true, y_pred):
        known = (y_true >= 0) & (y_true < 10)
        own = super().call(keras.ops.where(known, y_true, 0), y_pred)
        return own * keras.ops.cast(known, own.dtype)


def test_loss_with_a_call_of_its_own_reports_losses_alone():
    """What a subclass makes of its targets is not known, so nothing is judged by them, and `fit` runs."""
    labels = np.where(np.arange(len(Y)) < 5, 255, Y)

    assert evidence_of_fit(dense(10), Ignoring(from_logits=True), labels) is None


def test_labels_that_are_no_classes_are_none():
    """Labels outside [0, C) are not looked up."""
    labels = np.append([-100, 255, 5], LABELS[3:])
    found = predictions_in(losses.SparseCategoricalCrossentropy(from_logits=True), labels, LOGITS)

    np.testing.assert_array_equal(found.given, np.append([-1, -1, -1], LABELS[3:]))
    assert np.isfinite(np.asarray(found.margin)).all()


def two_heads():
    inputs = keras.Input((64,))
    return keras.Model(inputs, [layers.Dense(10)(inputs), layers.Dense(10)(inputs)])


def steps():
    inputs = keras.Input((64,))
    return keras.Model(inputs, layers.Dense(10)(layers.Reshape((8, 8))(inputs)))


UNKNOWN = {
    "regression": (lambda: dense(1), "mse", Y.astype("float32")),
    "several labels": (lambda: dense(10, "sigmoid"), "binary_crossentropy", ONE_HOT),
    "sequences": (steps, CROSS_ENTROPY, np.repeat(Y[:, None], 8, 1)),
    "a function of the user's": (
        lambda: dense(10),
        lambda y, z: losses.sparse_categorical_crossentropy(y, z, from_logits=True),
        Y,
    ),
    "a mean": (lambda: dense(10), lambda y, z: keras.ops.mean(keras.ops.square(z)), Y),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNKNOWN)
def test_fit_without_single_labels_reports_losses_alone(name):
    """Regression, several labels, sequences, and losses that are not known train as ever."""
    make, loss, y = UNKNOWN[name]
    assert evidence_of_fit(make(), loss, y, run_eagerly=name != "sequences") is None


def test_two_outputs_report_losses_alone():
    """With two labels a sample it is not clear which is judged."""
    r8, model = scheduler(num_epochs=1), two_heads()
    model.compile("sgd", [CROSS_ENTROPY, CROSS_ENTROPY])
    fit(model, R8Dataset(X, [Y, Y], r8))

    assert r8.table.source == "exact"
    assert evidence_of(r8) is None

"""What a Keras model says of labels, from probabilities or logits, in a loop under `tf.function`."""

import numpy as np
import pytest

pytest.importorskip("keras")
pytest.importorskip("tensorflow")

import keras

from learnit_r8 import predictions_of as expected_of
from learnit_r8.keras import batch_dataset, predictions_of, sample_losses
from tests.keras_common import CROSS_ENTROPY, X, Y, classifier, scheduler, tf

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
    r8.table.hand_over()

    assert r8.table.evidence.whole["visits"].tolist() == [2] * len(X)
    np.testing.assert_array_equal(r8.table.evidence.whole["given"], np.ravel(Y))


def test_targets_that_are_no_classes_are_refused():
    """One-hot targets look like several labels; real numbers are none."""
    with pytest.raises(ValueError, match="several labels a sample"):
        predictions_of(np.eye(5)[LABELS], LOGITS)
    with pytest.raises(ValueError, match="targets must be whole numbers"):
        predictions_of(LABELS.astype("f4"), LOGITS)

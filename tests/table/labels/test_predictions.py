"""What logits say about labels: the same in every framework, and refused where there is no single other class."""

import numpy as np
import pytest

from learnit_r8 import Predictions, predictions_of
from learnit_r8.table.labels.predictions import other_classes

LOGITS = np.random.default_rng(3).normal(size=(40, 7)).astype(np.float32) * 3
TARGETS = np.random.default_rng(4).integers(0, 7, 40)
INDICES = np.arange(40) * 100_003


def log_probabilities(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def test_losses_are_cross_entropies_of_two_classes():
    """The own loss is that of the label, the other one that of the class which the sample is compared with."""
    found = predictions_of(LOGITS, TARGETS, INDICES)
    other = other_classes(TARGETS, INDICES, 7)

    np.testing.assert_allclose(found.own_loss, -log_probabilities(LOGITS)[np.arange(40), TARGETS], rtol=1e-5)
    np.testing.assert_allclose(found.other_loss, -log_probabilities(LOGITS)[np.arange(40), other], rtol=1e-5)
    assert (found.predicted == LOGITS.argmax(1)).all()


def test_other_classes_are_fixed_and_spread_evenly():
    """A sample is always compared with the same class, never its own, and each class is drawn as often."""
    given = np.zeros(60_000, np.int64)
    other = other_classes(given, np.arange(60_000), 7)

    assert (other == other_classes(given, np.arange(60_000), 7)).all()
    assert np.bincount(other, minlength=7)[0] == 0
    assert abs(np.bincount(other)[1:] - 10_000).max() < 400


@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_one_logit_is_that_of_the_second_of_two_classes(shape):
    """A binary classifier with one output needs no other treatment."""
    logit, targets = LOGITS[:, 0], TARGETS % 2
    found = predictions_of(logit.reshape(shape), targets, INDICES)

    np.testing.assert_allclose(found.own_loss, np.log1p(np.exp(np.where(targets, -logit, logit))), rtol=1e-4, atol=1e-6)
    assert found.num_classes == 2


@pytest.mark.parametrize("framework", ["torch", "jax", "jit"])
@pytest.mark.parametrize("classes", [2, 7])
def test_frameworks_agree(framework, classes):
    """torch and JAX, jitted or not, choose the same other class and give the same numbers, in one packed array."""
    logits, targets = LOGITS[:, :classes], TARGETS % classes
    expected = predictions_of(logits, targets, INDICES)
    losses = np.arange(40, dtype=np.float32)
    if framework == "torch":
        torch = pytest.importorskip("torch")
        from learnit_r8.torch import predictions as own

        tensors = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(targets)
        packed = own.pack(torch.from_numpy(losses), own.predictions_of(*tensors, INDICES))
        assert not packed.requires_grad
    else:
        jax = pytest.importorskip("jax")
        from learnit_r8.flax import predictions as own

        def packed_of(*arrays):
            return own.pack(losses, own.predictions_of(*arrays))

        packed = (jax.jit(packed_of) if framework == "jit" else packed_of)(logits, targets, INDICES)
    back, found = Predictions.unpack(np.asarray(packed), classes)

    assert (back == losses).all()
    for name in ("own_loss", "other_loss"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    assert (found.predicted == expected.predicted).all()
    assert (found.given == targets).all()
    np.testing.assert_allclose(expected.pack(losses)[1:3], np.asarray(packed)[1:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("logits", "targets", "text"),
    [
        (LOGITS, np.zeros((40, 7), int), "several labels a sample"),
        (np.zeros((4, 5, 7)), np.zeros((4, 5), int), "sequences of labels"),
        (LOGITS, TARGETS[:9], r"targets must have shape \(40,\)"),
        (LOGITS, TARGETS + 0.5, "for regression"),
        (LOGITS, TARGETS + 7, r"targets must be in \[0, 7\)"),
    ],
)
def test_tasks_without_a_single_label_are_refused(logits, targets, text):
    """Several labels, sequences, regression and classes outside the logits are errors that say what is missing."""
    with pytest.raises(ValueError, match=text):
        predictions_of(logits, targets, INDICES)


def test_packed_arrays_have_five_rows():
    """An array of another shape was not packed by these functions."""
    with pytest.raises(ValueError, match=r"packed must have shape \(5, B\)"):
        Predictions.unpack(np.zeros((4, 3)), 7)

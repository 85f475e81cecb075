"""What logits say about labels: the same in every framework, and refused where no one class is predicted."""

import numpy as np
import pytest

from learnit_r8 import Predictions, predictions_of

LOGITS = np.random.default_rng(3).normal(size=(40, 7)).astype(np.float32) * 3
TARGETS = np.random.default_rng(4).integers(0, 7, 40)


def test_margin_is_that_of_the_best_other_class():
    """It is positive exactly where another class is predicted."""
    found = predictions_of(LOGITS, TARGETS)
    slow = [max(np.delete(row, given)) - row[given] for row, given in zip(LOGITS, TARGETS, strict=True)]

    np.testing.assert_allclose(found.margin, slow, rtol=1e-6)
    assert (found.predicted == LOGITS.argmax(1)).all()
    assert ((found.margin > 0) == (found.predicted != TARGETS)).all()


@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_one_logit_is_that_of_the_second_of_two_classes(shape):
    """A binary classifier with one output needs no other treatment."""
    logit, targets = LOGITS[:, 0], TARGETS % 2
    found = predictions_of(logit.reshape(shape), targets)

    np.testing.assert_allclose(found.margin, np.where(targets, -logit, logit))
    assert found.num_classes == 2


@pytest.mark.parametrize("framework", ["torch", "jax", "jit"])
@pytest.mark.parametrize("classes", [1, 2, 7])
def test_frameworks_agree(framework, classes):
    """torch and JAX, jitted or not, give the same numbers as numpy, in one packed array."""
    logits, targets = LOGITS[:, :classes], TARGETS % max(2, classes)
    expected = predictions_of(logits, targets)
    losses = np.arange(40, dtype=np.float32)
    if framework == "torch":
        torch = pytest.importorskip("torch")
        from learnit_r8.torch import predictions as own

        tensors = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(targets)
        packed = own.pack(torch.from_numpy(losses), own.predictions_of(*tensors))
        assert not packed.requires_grad
    else:
        jax = pytest.importorskip("jax")
        from learnit_r8.flax import predictions as own

        def packed_of(*arrays):
            return own.pack(losses, own.predictions_of(*arrays))

        packed = (jax.jit(packed_of) if framework == "jit" else packed_of)(logits, targets)
    back, found = Predictions.unpack(np.asarray(packed), expected.num_classes)

    assert (back == losses).all()
    np.testing.assert_allclose(found.margin, expected.margin, rtol=1e-6)
    assert (found.predicted == expected.predicted).all()
    assert (found.given == targets).all()
    np.testing.assert_allclose(expected.pack(losses), np.asarray(packed), rtol=1e-6)


@pytest.mark.parametrize(
    ("logits", "targets", "text"),
    [
        (LOGITS, np.zeros((40, 7), int), "several labels a sample"),
        (np.zeros((4, 5, 7)), np.zeros((4, 5), int), "sequences of labels"),
        (LOGITS, TARGETS[:9], r"targets must have shape \(40,\)"),
        (LOGITS, TARGETS + 0.5, "for regression"),
        (LOGITS, TARGETS + 7, r"targets must be in \[0, 7\)"),
        (np.zeros((2, 70_000)), [0, 1], "at most 65535 classes"),
    ],
)
def test_tasks_without_a_single_label_are_refused(logits, targets, text):
    """Several labels, sequences, regression and classes outside the logits are errors that say what is missing."""
    with pytest.raises(ValueError, match=text):
        predictions_of(logits, targets)


@pytest.mark.parametrize("framework", ["torch", "flax", "keras"])
@pytest.mark.parametrize(
    ("logits", "targets", "text"),
    [
        (LOGITS, np.zeros((40, 7), int), "several labels a sample"),
        (np.zeros((4, 5, 7), "f4"), np.zeros((4, 5), int), "sequences of labels"),
        (LOGITS, TARGETS + 0.5, "for regression"),
        (np.zeros((2, 70_000), "f4"), np.array([0, 1]), "at most 65535 classes"),
    ],
)
def test_every_framework_refuses_them(framework, logits, targets, text):
    """The tensors of each framework are refused with the same reasons."""
    own = pytest.importorskip(f"learnit_r8.{framework}.predictions", exc_type=ImportError)
    if framework == "torch":
        torch = pytest.importorskip("torch")
        logits, targets = torch.from_numpy(logits), torch.from_numpy(targets)
    arguments = (targets, logits) if framework == "keras" else (logits, targets)
    with pytest.raises(ValueError, match=text):
        own.predictions_of(*arguments)


def test_packed_arrays_have_four_rows():
    """An array of another shape was not packed by these functions."""
    with pytest.raises(ValueError, match=r"packed must have shape \(4, B\)"):
        Predictions.unpack(np.zeros((5, 3)), 7)

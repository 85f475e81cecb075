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
    """torch and JAX, jitted or not, give the same numbers as numpy."""
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
        from learnit_r8.flax import managed_state as own

        judge = jax.jit(own.predictions_of) if framework == "jit" else own.predictions_of
        packed = np.stack([losses, *judge(logits, targets)[:3]])
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
        (LOGITS, TARGETS[:9], r"targets must have shape \(40,\)"),
        (LOGITS, TARGETS + 0.5, "for numbers report"),
        (LOGITS, TARGETS + 7, r"targets must be in \[0, 7\)"),
        (np.zeros((2, 70_000)), [0, 1], "at most 65535 classes"),
    ],
)
def test_tasks_without_a_single_label_are_refused(logits, targets, text):
    """Several labels, sequences, regression and classes outside the logits are errors that say what is missing."""
    with pytest.raises(ValueError, match=text):
        predictions_of(logits, targets)


@pytest.mark.parametrize("framework", ["torch", "flax"])
@pytest.mark.parametrize(
    ("logits", "targets", "text"),
    [
        (LOGITS, np.zeros((40, 7), int), "several labels a sample"),
        (LOGITS, TARGETS + 0.5, "for numbers report"),
        (np.zeros((2, 70_000), "f4"), np.array([0, 1]), "at most 65535 classes"),
    ],
)
def test_every_framework_refuses_them(framework, logits, targets, text):
    """The tensors of each framework are refused with the same reasons; those of Keras in tests/keras."""
    own = pytest.importorskip(f"learnit_r8.{framework}.predictions", exc_type=ImportError)
    if framework == "torch":
        torch = pytest.importorskip("torch")
        logits, targets = torch.from_numpy(logits), torch.from_numpy(targets)
    with pytest.raises(ValueError, match=text):
        own.predictions_of(logits, targets)


@pytest.mark.parametrize(
    ("logits", "targets", "kind", "text"),
    [
        (LOGITS, TARGETS, "words", "kind must be one of classes, multilabel, regression, got 'words'"),
        (LOGITS, LOGITS[:, :3], "multilabel", r"must have the same shape \(B, ...\), got \(40, 7\) and \(40, 3\)"),
        (LOGITS, LOGITS, "multilabel", "targets must be 0 or 1"),
        (LOGITS, TARGETS, "regression", r"of a regression must have shape \(B,\) or \(B, 1\), got \(40, 7\)"),
        (np.zeros((4, 5, 7)), np.zeros((4, 6), int), "classes", r"with targets of shape \(B, ...\), got \(4, 5, 7\)"),
        (np.zeros((4, 5, 5)), np.zeros((4, 5), int), "classes", "axis must say where the classes are, 1 or -1"),
        (np.zeros((4, 1, 5, 6)), np.zeros((4, 5, 6), int), "classes", "must have 2 to 65535 classes, got 1"),
    ],
)
def test_what_is_no_kind_of_labels_is_refused(logits, targets, kind, text):
    """Outputs of another shape than the labels say which shape is right."""
    with pytest.raises(ValueError, match=text):
        predictions_of(logits, targets, kind)


def of_kinds():
    """Outputs, targets and kind of batches with several labels a sample, and with numbers."""
    rng = np.random.default_rng(5)
    wide = rng.normal(size=(6, 4, 5, 3)).astype(np.float32)
    pixels = rng.integers(-1, 4, (6, 5, 3))
    return {
        "pixels": (wide, pixels, "classes"),
        "tokens": (wide[..., 0].swapaxes(1, 2), pixels[..., 0], "classes"),
        "several": (wide[:, :, 0, 0], rng.integers(0, 2, (6, 4)).astype(np.float32), "multilabel"),
        "mask of one class": (wide[:, :1], (wide[:, :1] > 0.3).astype(np.int64), "multilabel"),
        "numbers": (wide[:, :1, 0, 0], np.array([1, 2, 3, np.nan, 5, 6], np.float32), "regression"),
    }


@pytest.mark.parametrize("name", of_kinds())
def test_other_kinds_are_the_same_in_torch_and_come_back_packed(name):
    """numpy and torch agree on every place; what has no label has none after packing either."""
    torch = pytest.importorskip("torch")
    from learnit_r8.torch import predictions as own

    logits, targets, kind = of_kinds()[name]
    expected = predictions_of(logits, targets, kind)
    found = own.predictions_of(torch.from_numpy(logits.copy()), torch.from_numpy(targets.copy()), kind)
    losses = np.arange(6, dtype=np.float32)
    back, unpacked = Predictions.unpack(own.pack(torch.from_numpy(losses), found).numpy(), found.num_classes)

    assert found.num_classes == expected.num_classes
    assert (back == losses).all()
    assert expected.pack(losses).shape == (1 + 3 * expected.margin[0].size, 6)
    known = expected.given >= 0
    for some, others in zip(unpacked[:3], expected[:3], strict=True):
        np.testing.assert_allclose(some[known], others[known], atol=1e-5)


def test_margins_of_other_kinds():
    """Above zero where something else is predicted; of numbers, the residual."""
    several = predictions_of([[2.0, -1.0, 3.0]], [[1, 1, 0]], "multilabel")
    numbers = predictions_of([2.0, 5.0], [2.5, 1.0], "regression")

    assert several.margin.tolist() == [[-2, 1, 3]]
    assert several.predicted.tolist() == [[1, 0, 1]]
    assert numbers.margin.tolist() == [0.5, -4]
    assert numbers.num_classes == 1


def test_packed_arrays_have_rows_for_each_place():
    """An array of another shape was not packed by these functions."""
    with pytest.raises(ValueError, match=r"packed must have shape \(1 \+ 3 P, B\)"):
        Predictions.unpack(np.zeros((5, 3)), 7)

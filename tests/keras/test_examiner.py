"""Where an incident of ``fit`` began, on each back end: layer, sample, label; and everything is put back."""

import pytest

from tests.programs import ROOT, printed_by

pytest.importorskip("keras")


@pytest.mark.program
@pytest.mark.parametrize("back_end", ["tensorflow", "jax", "torch"])
def test_the_layer_and_the_sample_are_named(back_end):
    """In a process of its own, as a back end is chosen once; what is told is looked at in `places`."""
    pytest.importorskip(back_end)
    printed = printed_by(ROOT, "-W", "ignore", "-m", "tests.keras.places", KERAS_BACKEND=back_end)

    assert printed.endswith("found\n")


def test_labels_that_a_loss_cannot_take_are_named():
    """Class numbers beyond the outputs, and targets of a binary cross entropy outside of [0, 1]."""
    keras = pytest.importorskip("keras")
    np = pytest.importorskip("numpy")
    from learnit_r8.keras.examiner import Examiner

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    examiner = Examiner(model, None, lambda: None)

    def said(loss, labels):
        model.compile("sgd", loss)
        examiner.batch = {"x": np.zeros((4, 2)), "y": np.array(labels)}
        return examiner.bad_labels()

    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert said(sparse, [0, 1, 2, 0]) == ((), "")
    assert said(sparse, [0, 255, 2, -1]) == ((1, 3), "a label outside of the 3 classes: 255")
    ignoring = keras.losses.SparseCategoricalCrossentropy(ignore_class=-1)
    assert said(ignoring, [0, -1, 2, 0]) == ((), "")
    assert said("binary_crossentropy", [[0.0], [1.0], [0.5], [7.5]]) == ((3,), "a label outside of [0, 1]: 7.5")
    assert said("mse", [[9.0]] * 4) == ((), "")

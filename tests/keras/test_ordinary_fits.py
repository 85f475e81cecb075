"""Scripts of Keras that nobody here wrote: a finished run once more, a data set around another, inputs alone."""

import pytest

pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

import keras
import numpy as np

from learnit_r8.keras import R8Callback, R8Dataset
from tests.keras_common import At, X, Y, classifier, fit, reconstructing, scheduler

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_finished_run_that_is_resumed_trains_nothing(tmp_path):
    """The same program once more ends at once, with the model as it was."""

    def run():
        model = classifier()
        r8 = scheduler(num_epochs=1, checkpoint_dir=tmp_path, resume="auto")
        dataset = R8Dataset(X, Y, r8)
        callback, trained = R8Callback(dataset, model), []
        fit(model, dataset, At(r8, r8.global_step, trained.append), callback=callback)
        r8.close()
        return r8.global_step, model.get_weights(), trained

    first, again = run(), run()

    assert first[0] == again[0] == 16
    assert first[2]
    assert not again[2]
    assert all((one == two).all() for one, two in zip(first[1], again[1], strict=True))


def test_a_data_set_of_indices_within_another_builds_the_model():
    """A PyDataset that takes indices from an R8Dataset is what the model is built with, not the indices."""

    class Rows(keras.utils.PyDataset):
        def __init__(self, indices):
            super().__init__()
            self._indices = indices

        def __len__(self):
            return len(self._indices)

        def __getitem__(self, number):
            (rows,) = self._indices[number]
            return X[rows], Y[rows]

    r8 = scheduler(num_epochs=1)
    indices = R8Dataset(np.arange(len(X)), None, r8)
    fit(classifier(), Rows(indices), callback=R8Callback(indices))

    assert r8.global_step == 16


@pytest.mark.parametrize("is_quick", [True, False])
def test_inputs_alone_come_as_they_do_in_a_plain_fit(is_quick):
    """A step of one's own gets x, not a tuple of it, as with fit(x)."""
    kinds = []

    def trained(x, *, with_r8):
        model = reconstructing(kinds)
        if not with_r8:
            return model.fit(x, verbose=0)
        workers = 1 if is_quick else 2
        return fit(model, R8Dataset(x, None, scheduler(num_epochs=2), workers=workers), epochs=2)

    trained(X, with_r8=False)
    plain = set(kinds)
    kinds.clear()
    trained(X, with_r8=True)

    assert set(kinds) == plain
    assert tuple not in plain

"""What `R8Dataset` trains on: every form of data, and workers that change nothing."""

import numpy as np
import pytest

pytest.importorskip("keras")
pytest.importorskip("tensorflow")

import keras

from learnit_r8.keras import R8Dataset
from tests.drive import Weighing
from tests.keras_common import Watch, X, Y, classifier, fit, on_tensorflow, scheduler, tf


class Files:
    """Like a folder of images: a length, and one item at a time."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index].tolist()


FORMS = {
    "array": (X, lambda rows: rows),
    "tensor": (tf.constant(X), lambda rows: rows),
    "indexable": (Files(), lambda rows: rows),
    "list": ([X, X + 1], lambda rows: rows[1] - 1),
    "tuple": ((X, X + 1), lambda rows: rows[1] - 1),
    "dict": ({"a": X, "b": {"c": X + 1}}, lambda rows: rows["b"]["c"] - 1),
    "list of numbers": (X[:, 20].tolist(), lambda rows: rows[:, None] * np.ones(64)),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_data(form):
    """Arrays, tensors, lists of arrays, dicts and any indexable give the rows of the batch."""
    data, back = FORMS[form]
    dataset = R8Dataset(data, Y, scheduler())
    x, y = dataset[2]
    indices = dataset.drawn.epoch[2].indices
    expected = X[indices] if form != "list of numbers" else X[indices][:, 20:21] * np.ones(64)

    assert back(x) == pytest.approx(expected, abs=1e-6)
    assert np.array_equal(y, Y[indices])
    assert len(dataset) == 16


def test_table_of_pandas():
    """A table of pandas gives its rows by position."""
    pandas = pytest.importorskip("pandas")
    dataset = R8Dataset(pandas.DataFrame(X).iloc[::-1], pandas.Series(Y), scheduler())
    x, y = dataset[0]
    indices = dataset.drawn.epoch[0].indices

    assert np.array_equal(x, X[::-1][indices])
    assert np.array_equal(y, Y[indices])


def test_without_targets():
    """A model that needs no targets gets none."""
    assert len(R8Dataset(X, None, scheduler())[0]) == 1


def test_asking_twice_gives_the_same_batch():
    """Keras looks at the first batches before it trains on them; that draws nothing new."""
    dataset = R8Dataset(X, Y, scheduler())

    assert np.array_equal(dataset[1][0], dataset[1][0])
    assert np.array_equal(dataset[0][1], Y[dataset.drawn.epoch[0].indices])


def test_own_weights():
    """Weights of samples come with their rows, for each output where there are several."""
    weights = np.arange(500, dtype=np.float32)
    dataset = R8Dataset(X, Y, scheduler(), sample_weight=weights)

    assert np.array_equal(dataset[0][2], dataset.drawn.epoch[0].indices)


@pytest.mark.parametrize("own", [None, np.full(500, 3.0)])
def test_weights_of_the_policy(own):
    """They multiply the user's, in every epoch there are some, and fit takes them."""
    dataset = R8Dataset(X, Y, scheduler(policy=Weighing(), batch_size=250), sample_weight=own)
    factor = 1 if own is None else 3
    assert set(dataset[0][2].tolist()) == {factor}
    fit(classifier(run_eagerly=True), dataset, epochs=1)
    dataset.start_epoch()

    assert set(dataset[0][2].tolist()) == {2 * factor}


@pytest.mark.program
def test_workers_change_nothing():
    """With threads running ahead, every report still meets its own batch: the same run as without."""
    runs = []
    for arguments in ({}, {"workers": 3}):
        dataset = R8Dataset(X, Y, scheduler(num_epochs=2), **arguments)
        watch, model = Watch(dataset), classifier()
        fit(model, dataset, watch, epochs=2)
        runs.append((watch.batches, dataset.r8.table.loss, model.get_weights()))
    (batches, table, weights), (others, other_table, other_weights) = runs

    assert batches == others
    assert np.array_equal(table, other_table)
    assert all(map(np.array_equal, weights, other_weights))


class Counting(R8Dataset):
    """Counts the batches that Python gathers; how it gathers them is not changed."""

    asked = 0

    def _rows(self, index, indices):
        self.asked += 1
        return super()._rows(index, indices)


class Augmented(R8Dataset):
    """Changes rows on their way."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        self.asked = getattr(self, "asked", 0) + 1
        return x + 1, y


def gathered_by_python(dataset, **arguments):
    """How many batches Python gathered in two epochs of 16."""
    fit(classifier(), dataset, epochs=2, **arguments)
    assert dataset.r8.global_step == 32
    return dataset.asked


@on_tensorflow
@pytest.mark.parametrize("form", ["array", pytest.param("tensor", marks=pytest.mark.program)])
def test_tensorflow_gathers_plain_arrays(form):
    """Rows of arrays and tensors are not gathered by Python, but for the first batches, which Keras looks at."""
    assert gathered_by_python(Counting(FORMS[form][0], Y, scheduler())) < 16


@pytest.mark.program
def test_python_gathers_what_tensorflow_cannot(tmp_path):
    """Files, columns on the disk, class weights and batches that a subclass changes go through Python."""
    on_disk = np.memmap(tmp_path / "x", np.float32, "w+", shape=X.shape)
    on_disk[:] = X

    assert gathered_by_python(Counting(Files(), Y, scheduler())) >= 32
    assert gathered_by_python(Counting(on_disk, Y, scheduler())) >= 32
    assert gathered_by_python(Counting(X, Y, scheduler()), class_weight=dict.fromkeys(range(10), 2.0)) >= 32
    assert gathered_by_python(Augmented(X, Y, scheduler())) >= 32


@pytest.mark.program
@pytest.mark.parametrize("form", ["dict", "array", "tuple"])
def test_both_ways_train_alike(form):
    """What TensorFlow gathers is what Python gathers: the same losses of the same samples, to the bit."""
    data = {"a": X, "b": X + 1} if form == "dict" else FORMS[form][0]
    tables = []
    for kind in (R8Dataset, type("Own", (R8Dataset,), {"__getitem__": lambda self, i: R8Dataset.__getitem__(self, i)})):
        dataset = kind(data, Y, scheduler(), sample_weight=np.linspace(0, 2, 500))
        fit(summing(data), dataset, epochs=3)
        tables.append(dataset.r8.table.last)

    assert np.array_equal(*tables)


def summing(data):
    """A classifier of the sum of its inputs, with inputs in the form of the data."""
    keras.utils.set_random_seed(0)
    names = data.keys() if isinstance(data, dict) else [None] * len(keras.tree.flatten(data))
    inputs = keras.tree.pack_sequence_as(data, [keras.Input((64,), name=name) for name in names])
    hidden = sum(keras.layers.Dense(16, activation="relu")(each) for each in keras.tree.flatten(inputs))
    model = keras.Model(inputs, keras.layers.Dense(10)(hidden))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model

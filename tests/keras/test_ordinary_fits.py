"""Scripts of Keras that nobody here wrote: a finished run once more, a data set of indices, inputs alone."""

import functools

import pytest

pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

import keras
import numpy as np

from learnit_r8 import R8Scheduler
from learnit_r8.keras import R8Callback, R8Dataset
from tests.keras_common import CROSS_ENTROPY, At, X, Y, classifier, fit, poison, reconstructing, scheduler
from tests.programs import ROOT, printed_by

pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore")]


def test_a_finished_run_that_is_resumed_trains_nothing(tmp_path, capsys):
    """The same program once more ends at once, with the model as it was, which is validated."""

    def run():
        model = classifier()
        r8 = scheduler(num_epochs=1, checkpoint_dir=tmp_path, resume="auto")
        dataset = R8Dataset(X, Y, r8)
        callback, trained = R8Callback(dataset, model), []
        # Two epochs are asked for, and the run is over in the first.
        found = model.fit(
            dataset, epochs=2, shuffle=False, verbose=2, validation_data=(X[:50], Y[:50]),
            callbacks=[callback, At(r8, r8.global_step, trained.append)],
        )  # fmt: skip
        r8.close()
        return r8.global_step, model.get_weights(), trained, found.epoch, found.history

    first, again = run(), run()
    shown = capsys.readouterr().out

    assert first[0] == again[0] == 16
    assert first[2]
    assert not again[2]
    assert all((one == two).all() for one, two in zip(first[1], again[1], strict=True))
    assert first[3] == again[3] == [0]
    assert again[4] == {"val_loss": [pytest.approx(first[4]["val_loss"][0])]}
    assert shown.count("val_loss") == 2


class Left(Exception):
    pass


def test_a_fit_that_is_left_behind_the_last_step_of_an_epoch(tmp_path):
    """The epoch has no step left: its end comes as that of any other, with validation, and the next epoch follows."""

    class Leave(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            steps.append(batch)

        def on_train_batch_end(self, batch, logs=None):
            if r8.global_step == 16:
                r8.save_checkpoint()

        def on_epoch_end(self, epoch, logs=None):
            if r8.global_step == 16 and not resumes:
                raise Left

    given = {"scheduler_mode": "keep", "num_epochs": 2, "checkpoint_dir": tmp_path, "resume": "auto"}
    for resumes in (False, True):
        model, r8, steps = classifier(), R8Scheduler(**given, handle_signals=False), []
        fitted = functools.partial(
            model.fit, X, Y, initial_epoch=r8.current_epoch, epochs=2, verbose=0, validation_data=(X[:50], Y[:50]),
            callbacks=[R8Callback(r8, model), Leave()],
        )  # fmt: skip
        if not resumes:
            with pytest.raises(Left):
                fitted()
            r8.host.saver.store.release()
    found = fitted()
    r8.close()

    assert (r8.global_step, steps, found.epoch) == (32, [*range(16)], [0, 1])
    assert {name: len(each) for name, each in found.history.items()} == {"loss": 1, "val_loss": 2}


def test_a_data_set_of_indices_that_a_subclass_looks_up_builds_the_model():
    """What a subclass of R8Dataset makes of the indices is what the model is built with, not the indices."""

    class Rows(R8Dataset):
        def __getitem__(self, number):
            (rows,) = super().__getitem__(number)
            return X[rows], Y[rows]

    r8 = scheduler(num_epochs=1)
    dataset = Rows(np.arange(len(X)), None, r8)
    fit(classifier(), dataset)

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


@pytest.mark.parametrize("is_own", [True, False])
def test_layers_that_are_unfrozen_between_two_fits(is_own):
    """Compiled again, a model has another optimizer, of more variables: a NaN in the first step with it goes back."""
    model = classifier()
    model.layers[0].trainable = False
    first = model.get_weights()[0].copy()
    r8 = R8Scheduler(scheduler_mode="keep") if is_own else scheduler(num_epochs=2)
    dataset = None if is_own else R8Dataset(X, Y, r8)
    callback = R8Callback(dataset or r8, backup_every=5)
    data = {"x": X, "y": Y} if is_own else {"x": dataset, "shuffle": False}
    for _ in range(2):
        model.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY)
        model.fit(**data, verbose=0, callbacks=[callback, At(r8, 16, poison)])
        model.layers[0].trainable = True

    assert (r8.global_step, r8.sentry.num_refused) == (32, 1)
    assert all(np.isfinite(each).all() for each in model.get_weights())
    assert not np.array_equal(first, model.get_weights()[0])


@pytest.mark.parametrize("is_cached", [pytest.param(False, marks=pytest.mark.program), True])
def test_a_resumed_fit_has_the_orders_of_the_whole_one(is_cached, tmp_path):
    """What tf.data shuffles is rewound to the epoch that comes, beneath a cache too."""

    def train(folder, epochs):
        keras.utils.set_random_seed(0)
        data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(len(X))
        data = (data.cache() if is_cached else data).batch(32).prefetch(2)
        model = classifier()
        r8 = R8Scheduler(scheduler_mode="keep", num_epochs=epochs, checkpoint_dir=folder, resume="auto")
        callback, done = R8Callback(r8, model), r8.global_step // 16
        model.fit(data, initial_epoch=done, epochs=epochs, verbose=0, callbacks=[callback])
        r8.close()
        return done, model.get_weights()

    _, whole = train(tmp_path / "whole", 2)
    train(tmp_path / "parts", 1)
    done, parts = train(tmp_path / "parts", 2)

    assert done == 1
    assert all(map(np.array_equal, whole, parts))


@pytest.mark.parametrize("back_end", ["jax", "torch"])
def test_other_back_ends(back_end):
    """What a trainer of Keras does by itself, it is made to do there, too."""
    chosen = "-q", "-p", "no:cacheprovider", "-m", "program", "-k", "trains_nothing or left_behind or inputs_alone"
    files = __file__, str(ROOT / "tests" / "keras" / "test_sample_pipeline.py")
    printed_by(ROOT, "-m", "pytest", *chosen, *files, KERAS_BACKEND=back_end, JAX_PLATFORMS="cpu")

"""Where an incident of ``fit`` began, on the back end of the environment; `test_examiner` runs it on each."""

import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
from keras import layers, ops

from learnit_r8 import R8Scheduler, events
from learnit_r8.engine.settings import grouped
from learnit_r8.keras import R8Callback, R8Dataset
from learnit_r8.recovery import record
from learnit_r8.recovery.record import read_part, read_record
from learnit_r8.testing import record_events

BAD, SIZE, BATCH = 37, 128, 16


class Exp(layers.Layer):
    """An exponential without a bound."""

    def call(self, x):
        return ops.exp(x)


class Counter(layers.Layer):
    """Keeps a metric of its own: how often it was called."""

    def __init__(self):
        super().__init__()
        self.calls = keras.metrics.Sum(name="calls")

    def call(self, x):
        self.calls.update_state(1.0)
        return x


class Nan(keras.losses.Loss):
    """A loss that cannot bear a target of 7."""

    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_true - y_pred), -1) + 0.0 * ops.log(ops.cast(y_true[:, 0] != 7, "float32"))


def classifier(middle):
    """Nested, with BatchNorm and dropout, whose variables must come back."""
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(8, name="inner_dense"), layers.BatchNormalization()])
    inputs = keras.Input((8,))
    hidden = layers.Dropout(0.1)(inner(middle(inputs)))
    return keras.Model(inputs, layers.Dense(1, name="head")(hidden))


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SIZE, 8)).astype("float32")
    return x, x[:, :1].copy()


def told(model, x, y, *, strike=None, is_own=False, folder=None, epochs=2):
    """What is told of a ``fit``; weights and seeds are those of a search that was not made."""
    heard = record_events()
    common = {"listeners": [heard], "run_dir": folder, "record": "all", "guard": "finite"}
    if is_own:
        r8 = R8Scheduler(num_steps=epochs * SIZE // BATCH, **grouped(dict(scheduler_mode="keep", **common)))
    else:
        r8 = R8Scheduler(SIZE, batch_size=BATCH, num_epochs=epochs, initial_lr=0.01, **grouped(common))
    given = r8 if is_own else R8Dataset(x, y, r8)
    model.compile(keras.optimizers.Adam(0.01), Nan())
    callbacks = [R8Callback(given, backup_every=4)]
    if strike is not None:
        callbacks.append(keras.callbacks.LambdaCallback(on_train_batch_begin=strike))
    if is_own:
        model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, callbacks=callbacks, verbose=0)
    else:
        model.fit(given, epochs=epochs, shuffle=False, callbacks=callbacks, verbose=0)
    r8.close()
    return heard.of(events.CauseFound)


def main():
    """All cases; the first has two bad samples, each of which is met until it is quarantined."""
    linear = layers.Activation("linear")
    x, y = data()
    x[BAD, 3] = x[3, 3] = np.nan
    with tempfile.TemporaryDirectory() as folder:
        # On JAX the first search compiles each operation, which may take all the time that a short run allows.
        record.LEAST_SECONDS = 100.0
        found = told(classifier(linear), x, y, folder=folder)
        assert {each.samples for each in found} == {(BAD,), (3,)}, found
        assert len(found) <= 4, found
        for each in found:
            assert (each.fault, each.is_certain) == ("input", True), each
            assert "whose input holds NaN at [3] of x; the weights are healthy" in each.text, each
        home = f"{folder}/incidents/1"
        assert not np.isfinite(read_part(home, "batch")["batch"][0]).all()
        assert read_record(home)["files"].keys() >= {"batch", "refused"}

    x, y = data()
    x[BAD, 2] = 200.0
    found = told(classifier(Exp(name="gate")), x, y)[0]
    assert (found.fault, found.samples, found.where, found.is_certain) == ("forward", (BAD,), "gate", True), found

    x, y = data()
    y[BAD] = 7.0
    found = told(classifier(linear), x, y)[0]
    assert (found.fault, found.samples, found.is_certain) == ("loss", (BAD,), True), found

    model = classifier(linear)

    def strike(batch, logs=None):
        if batch == 5:
            kernel = model.get_layer("head").kernel
            value = np.array(kernel)
            value[2] = np.inf
            kernel.assign(value)

    found = told(model, *data(), strike=strike)[0]
    assert (found.fault, found.where, found.is_certain) == ("weight", "head/kernel", False), found

    x, y = data()
    x[BAD, 3] = np.nan
    found = told(classifier(linear), x, y, is_own=True)[0]
    assert (found.fault, found.is_certain) == ("input", True), found
    assert "row 5 of the batch" in found.text, found

    # On JAX the cell of a recurrent layer is traced, and has no values to look at.
    layered = [keras.Input((8,)), layers.Reshape((8, 1)), layers.LSTM(4), layers.Dense(1)]
    found = told(keras.Sequential(layered), x, y, is_own=True)[0]
    assert (found.fault, found.is_certain) == ("input", True), found

    # JAX lets no layer count as it is called. The search for the cause must leave no calls of its own.
    x, y = data()
    x[BATCH : 2 * BATCH] = np.nan
    model = classifier(linear if keras.backend.backend() == "jax" else Counter())
    found = told(model, x, y, is_own=True, epochs=1)[0]
    assert (found.fault, found.is_certain) == ("input", False), found
    assert "for rows 0, 1, 2, 3, 4 and 11 more of the batch, whose input holds NaN" in found.text, found
    assert model.history.history.get("calls", [SIZE / BATCH - 1]) == [SIZE / BATCH - 1], model.history.history
    print("found")


if __name__ == "__main__":
    main()

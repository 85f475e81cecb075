"""Faults in ``model.fit``, where no batch can be drawn out of turn: healed, some steps later."""

import numpy as np
import pytest

pytest.importorskip("keras")

import keras

from learnit_r8 import R8Scheduler
from learnit_r8.keras import R8Callback, R8Dataset
from tests.healing_common import X, Y
from tests.keras_common import At

KINDS = ("nan batch", "nan weights", "large weights", "moments", "bad sample")
STEP, NUM_STEPS, BATCH, BAD_SAMPLE, HEALED = 120, 480, 16, 77, 0.1

pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore")]


def strike(kind, model):
    if kind in ("nan weights", "large weights"):
        weights = model.get_weights()
        factor = 30.0 if kind == "large weights" else float("nan")
        model.set_weights([weights[0] * np.float32(factor), *weights[1:]])
    elif kind == "moments":
        for variable in model.optimizer.variables:
            if "momentum" in variable.path:
                variable.assign(np.full(variable.shape, 1e3, "f4"))


class OnceBad:
    """The inputs; those of one batch are NaN when they are read for the first time."""

    def __init__(self):
        self._num_read = 0

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        self._num_read += 1
        return X[index] * np.float32("nan" if (self._num_read - 1) // BATCH == STEP else 1)


def run(kind):
    keras.utils.set_random_seed(0)
    x = X.copy()
    if kind == "bad sample":
        x[BAD_SAMPLE] = np.nan
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.MeanSquaredError())
    r8 = R8Scheduler(len(X), batch_size=BATCH, num_steps=NUM_STEPS, initial_lr=0.01, policy="shuffle")
    dataset = R8Dataset(OnceBad() if kind == "nan batch" else x, Y, r8)
    actions = [At(r8, STEP, lambda model: strike(kind, model))]
    model.fit(dataset, epochs=15, verbose=0, shuffle=False, callbacks=[R8Callback(dataset, backup_every=20), *actions])
    return r8, float(np.mean((model.predict(X, verbose=0) - Y) ** 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_heals(kind):
    """A fault of any kind is healed, though only later batches can tell what was at fault."""
    r8, loss = run(kind)

    assert loss < HEALED
    assert not r8.controller.experiment.can_probe
    assert not r8.controller.is_open

"""``fit`` over data of one's own, left in mid-epoch and resumed, on any back end: is it the run without?

KERAS_BACKEND=jax python -m tests.keras.resumed_fits     runs all that the back end has, a line each
"""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import sys
import tempfile
import warnings

import keras
import numpy as np

from learnit_r8 import R8Scheduler
from learnit_r8.keras import R8Callback

BACK_END = keras.backend.backend()
EPOCHS, BATCHES = 4, 10
X = np.random.default_rng(0).normal(size=(16 * BATCHES, 8)).astype("f4")
Y = X.sum(1)
LEFT_AT = [11], [33], [25, 10]
"""The steps, counted in each process, before which runs are left."""


class Rows(keras.utils.PyDataset):
    """Shuffles itself as an epoch ends, as many do."""

    def __init__(self):
        super().__init__()
        self.order = np.arange(len(X))
        self.on_epoch_end()

    def __len__(self):
        return BATCHES

    def __getitem__(self, index):
        rows = self.order[16 * index : 16 * index + 16]
        return X[rows], Y[rows]

    def on_epoch_end(self):
        np.random.shuffle(self.order)


def pipeline():
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(len(X))


FITS = {
    "a PyDataset": lambda: {"x": Rows(), "shuffle": False},
    "averages in place of the weights, R8Callback last": lambda: {"x": Rows(), "shuffle": False, "averages": True},
    "a PyDataset, shuffled by Keras": lambda: {"x": Rows()},
    "arrays": lambda: {"x": X, "y": Y, "batch_size": 16},
    "tf.data": lambda: {"x": pipeline().batch(16)},
    "tf.data of no known length": lambda: {"x": pipeline().batch(16).filter(lambda *_: True)},
    "a stream, steps_per_epoch": lambda: {"x": pipeline().repeat().batch(16), "steps_per_epoch": BATCHES},
    "steps_per_execution": lambda: {"x": pipeline().batch(16), "steps_per_execution": 2},
}


class Left(Exception):
    pass


class Leave(keras.callbacks.Callback):
    """Ends ``fit`` before a call of the training function."""

    def __init__(self, at):
        super().__init__()
        self.num_left = at

    def on_train_batch_begin(self, batch, logs=None):
        if not self.num_left:
            raise Left
        self.num_left -= 1


def train(name, folder=None, leave_at=None):
    """The weights, and the scheduler; None for the latter without one."""
    keras.utils.set_random_seed(1)
    layers = [keras.Input((8,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dropout(0.2)]
    model = keras.Sequential([*layers, keras.layers.Dense(1)])
    given = FITS[name]()
    at_once, averages = given.pop("steps_per_execution", 1), given.pop("averages", False)
    given["callbacks"] = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if averages else []
    more = {"jit_compile": False} if BACK_END == "tensorflow" else {}
    model.compile(
        keras.optimizers.Adam(0.01, use_ema=averages, ema_momentum=0.9), "mse", steps_per_execution=at_once, **more
    )
    r8 = None
    if folder is not None:
        r8 = R8Scheduler(
            scheduler_mode="keep", checkpoint_dir=folder, checkpoint_every=2, resume="auto", handle_signals=False
        )
        given["callbacks"].append(R8Callback(r8, model))
        given["initial_epoch"] = r8.current_epoch
    if leave_at is not None:
        given["callbacks"].append(Leave(leave_at // at_once))
    try:
        model.fit(**given, epochs=EPOCHS, verbose=0)
    except Left:
        r8.host.saver.store.release()
        raise
    return model.get_weights(), r8


def outcome(name):
    """ "equal", or what is not."""
    whole, _ = train(name)
    for steps in LEFT_AT:
        with tempfile.TemporaryDirectory() as folder:
            for step in steps:
                try:
                    train(name, folder, step)
                except Left:
                    pass
                else:
                    return f"not left at {step}"
            weights, r8 = train(name, folder)
            if r8.global_step != EPOCHS * BATCHES or r8.current_epoch != EPOCHS - 1:
                return f"left at {steps}: {r8.global_step} steps, epoch {r8.current_epoch}"
            if not all(map(np.array_equal, whole, weights)):
                return f"left at {steps}: other weights"
            r8.close()
    return "equal"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    # Keras on torch takes one step at a time.
    names = [name for name in FITS if BACK_END != "torch" or name != "steps_per_execution"]
    found = {name: outcome(name) for name in names}
    print("\n".join(f"{name}: {each}" for name, each in found.items()))
    sys.exit(any(each != "equal" for each in found.values()))

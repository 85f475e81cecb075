"""``fit`` over data of one's own with R8Callback beside it, for any back end: equal to the bit, and one NaN healed.

KERAS_BACKEND=jax python -m tests.keras.own_fits     runs all that the back end has, a line each
"""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import sys
import warnings

import keras
import numpy as np

from learnit_r8 import R8Scheduler
from learnit_r8.keras import R8Callback

BACK_END = keras.backend.backend()
EPOCHS, BATCHES, HURT = 4, 20, 33
rng = np.random.default_rng(0)
X = rng.normal(size=(640, 8)).astype("f4")
Y = (X[:, 0] > 0).astype("i4")
WEIGHTS = np.linspace(0.5, 1.5, len(X)).astype("f4")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def classifier(rate=0.01, **options):
    layers = [keras.Input((8,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dropout(0.2)]
    model = keras.Sequential([*layers, keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(rate), LOSS, metrics=["accuracy"], **options)
    return model


def several():
    """Two inputs, two outputs with weights."""
    one, two = keras.Input((8,), name="one"), keras.Input((8,), name="two")
    joined = keras.layers.Dense(16, activation="tanh")(keras.layers.Concatenate()([one, two]))
    outputs = {"a": keras.layers.Dense(2, name="a")(joined), "b": keras.layers.Dense(1, name="b")(joined)}
    model = keras.Model([one, two], outputs)
    model.compile(keras.optimizers.Adam(0.01), {"a": LOSS, "b": "mse"}, loss_weights={"a": 1.0, "b": 0.5})
    return model


def batches_of(x, y):
    """A pipeline of TensorFlow's with an augmentation, on every back end."""
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=3)
    return data.map(lambda x, y: (x * 1.0, y)).batch(32).prefetch(2)


class Rows(keras.utils.PyDataset):
    def __len__(self):
        return BATCHES

    def __getitem__(self, index):
        rows = slice(32 * index, 32 * index + 32)
        return X[rows], Y[rows]


def schedule():
    return keras.optimizers.schedules.ExponentialDecay(0.01, 20, 0.9)


FITS = {
    "tf.data, schedule": (lambda: classifier(schedule()), lambda: {"x": batches_of(X, Y)}),
    "four at once": (
        lambda: classifier(steps_per_execution=4), lambda: {"x": X, "y": Y, "batch_size": 32},
    ),
    "generator": (classifier, lambda: {"x": Rows()}),
    "class weights": (classifier, lambda: {"x": X, "y": Y, "batch_size": 32, "class_weight": {0: 1.0, 1: 3.0}}),
    "several, sample weights": (
        several,
        lambda: {
            "x": [X, X], "y": {"a": Y, "b": X[:, :1]}, "batch_size": 32, "sample_weight": {"a": WEIGHTS, "b": WEIGHTS},
        },
    ),
}  # fmt: skip
QUICK = ("tf.data, schedule", "four at once")
if BACK_END == "torch":
    # It takes one step at a time.
    del FITS["four at once"]


class Hurt(keras.callbacks.Callback):
    """Writes a NaN into the first weight before a step."""

    def __init__(self, at):
        super().__init__()
        self._at, self._num_begun = at, 0

    def on_train_batch_begin(self, batch, logs=None):
        before, self._num_begun = self._num_begun, self._num_begun + self.model.steps_per_execution
        if before < self._at <= self._num_begun:
            if BACK_END == "jax":
                self.model.jax_state_sync()
            weight = self.model.trainable_variables[0]
            value = keras.ops.convert_to_numpy(weight).copy()
            value[0, 0] = np.nan
            weight.assign(value)


class Fit:
    """A training, and what came of it.

    Args:
        make: Returns the compiled model.
        data: Returns the arguments of ``fit``.
        with_r8: Whether R8Callback is there.
        hurt: Step at which a weight becomes NaN.
    """

    def __init__(self, make, data, *, with_r8=True, hurt=None, epochs=EPOCHS, guard="spike", **settings):
        keras.utils.set_random_seed(0)
        self.model, self.reported, callbacks = make(), [], []
        if with_r8:
            self.r8 = R8Scheduler(scheduler_mode="keep", guard=guard, listeners=[self._hear], **settings)
            callbacks.append(R8Callback(self.r8, backup_every=20))
        if hurt:
            callbacks.append(Hurt(hurt))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.history = self.model.fit(epochs=epochs, verbose=0, callbacks=callbacks, **data()).history

    def _hear(self, event):
        if type(event).__name__ == "StepDone":
            self.reported.append(event.loss)

    @property
    def arrays(self):
        """All that was trained."""
        optimizers = [each for each in vars(self.model).values() if isinstance(each, keras.optimizers.Optimizer)]
        variables = [*self.model.variables, *(each for one in optimizers for each in one.variables)]
        own = [each for each in variables if "r8" not in each.path]
        return [np.array(keras.ops.convert_to_numpy(each)) for each in own]

    @property
    def is_finite(self):
        return all(np.isfinite(each).all() for each in self.arrays)


def outcome(make, data, **settings):
    """ "equal, healed", or what is not."""
    plain, watched = Fit(make, data, with_r8=False), Fit(make, data, **settings)
    if not all(map(np.array_equal, plain.arrays, watched.arrays)):
        return "not equal"
    # TensorFlow may sum the means that it shows in another order, where something else reads what goes into them.
    if not all(np.allclose(plain.history[name], watched.history[name], rtol=1e-6) for name in plain.history):
        return "another history"
    if watched.r8.global_step != EPOCHS * BATCHES or watched.r8.current_epoch != EPOCHS - 1:
        return f"{watched.r8.global_step} steps, epoch {watched.r8.current_epoch}"
    if watched.r8.sentry.num_refused:
        return f"{watched.r8.sentry.num_refused} refused"
    name = "loss" if "loss" in plain.history else next(iter(plain.history))
    first = plain.history[name][0]
    if name == "loss" and abs(np.mean(watched.reported[:BATCHES]) - first) > 1e-3 * first:
        return f"reported {np.mean(watched.reported[:BATCHES])}, not {first}"
    hurt = Fit(make, data, hurt=HURT, **settings)
    if not hurt.is_finite or hurt.r8.global_step != EPOCHS * BATCHES:
        return f"not healed: {hurt.r8.global_step} steps"
    start, last, healed = plain.history[name][0], plain.history[name][-1], hurt.history[name][-1]
    if name == "loss" and healed > last + 0.25 * (start - last):
        return f"{healed}, not {last}"
    return "equal, healed"


if __name__ == "__main__":
    if BACK_END == "jax" and "--devices" in sys.argv:
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    found = {name: outcome(*fit) for name, fit in FITS.items()}
    print(*(f"{name}: {said}" for name, said in found.items()), sep="\n")
    sys.exit(any(said != "equal, healed" for said in found.values()))

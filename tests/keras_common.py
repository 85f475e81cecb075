"""Models, data and listeners that the tests of the Keras adapter share; one thread each, and no accelerator."""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
load_digits = pytest.importorskip("sklearn.datasets").load_digits
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
# More than one for strategies; whatever asks for none is on the first.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)
# A graph that takes thirty steps is not worth optimizing, which takes a sixth of a fit here.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})

import keras

from learnit_r8 import R8Scheduler
from learnit_r8.engine.settings import grouped
from learnit_r8.keras import R8Callback

BACK_END = keras.backend.backend()
on_tensorflow = pytest.mark.skipif(BACK_END != "tensorflow", reason="only TensorFlow has what this is about")
DIGITS = load_digits()
X = (DIGITS.data / 16).astype("float32")[:500]
Y = DIGITS.target[:500]
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def classifier(*, loss=CROSS_ENTROPY, dropout=0.0, optimizer=None, **compile_arguments):
    """A small classifier of the digits, compiled; its first weights are always the same."""
    keras.utils.set_random_seed(0)
    layers = [keras.Input((64,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dropout(dropout)]
    model = keras.Sequential([*layers, keras.layers.Dense(10, dtype="float32")])
    # Momentum is state as well, in a graph of half the size of Adam's.
    model.compile(optimizer or keras.optimizers.SGD(0.01, momentum=0.9), loss, **compile_arguments)
    return model


def scheduler(**arguments):
    """For the digits: 500 samples, 16 batches of 32, the last of 20."""
    if not arguments.keys() & {"num_steps", "train_duration_seconds"}:
        arguments.setdefault("num_epochs", 4)
    return R8Scheduler(len(X), **grouped({"batch_size": 32, "initial_lr": 0.01, **arguments}))


def fit(model, dataset, *callbacks, epochs=1, callback=None, **arguments):
    """``model.fit`` under the scheduler, in silence."""
    callback = callback or R8Callback(dataset)
    return model.fit(dataset, epochs=epochs, verbose=0, shuffle=False, callbacks=[callback, *callbacks], **arguments)


class Watch(keras.callbacks.Callback):
    """Notes the samples, the rate and the weights of every step as it begins; comes after `R8Callback`."""

    def __init__(self, dataset):
        super().__init__()
        self._dataset = dataset
        self.batches, self.rates, self.weights = [], [], []

    def on_train_batch_begin(self, batch, logs=None):
        prefetch = self._dataset.drawn
        in_hand = prefetch.current or next(iter(prefetch.waiting.values()))
        self.batches.append(in_hand.indices.tolist())
        self.rates.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))
        self.weights.append(self.model.get_weights())


class At(keras.callbacks.Callback):
    """Does something before the step of this number."""

    def __init__(self, r8, step, action):
        super().__init__()
        self._r8, self._step, self._action = r8, step, action

    def on_train_batch_begin(self, batch, logs=None):
        if self._r8.global_step == self._step:
            self._action(self.model)


def poison(model):
    """Make the weights of the last layer NaN."""
    model.layers[-1].kernel.assign(np.full(model.layers[-1].kernel.shape, np.nan))


def true_losses(model, weights, indices, x=X, y=Y):
    """float[B], computed apart from the training with the weights of then."""
    model.set_weights(weights)
    logits = keras.ops.convert_to_numpy(model(x[indices])).astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(indices)), y[indices]]


def reconstructing(kinds):
    """A compiled model with a step of its own, on inputs alone; ``kinds`` takes the type of what each step gets."""

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.net = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])

        def call(self, x):
            return self.net(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean((x - y_pred) ** 2)

        def train_step(self, *given):
            # On JAX the state comes first.
            kinds.append(type(given[-1]))
            return super().train_step(*given)

    model = Own()
    model.compile("sgd")
    return model

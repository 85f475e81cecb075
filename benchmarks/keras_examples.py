"""Eight well-known examples of keras.io, in small: are they left alone, healed, and resumed exactly?

    python benchmarks/keras_examples.py              all of them, some ten minutes
    python benchmarks/keras_examples.py --only vae   one

They are typed from what the examples are about, with digits of scikit-learn or synthetic data and models of a few
thousand weights; each keeps its own data, rate and ``fit``, and gets `R8Callback` with a scheduler without samples.
Left alone: weights and optimizers to the bit those without R8. Healed: one NaN is written into a weight in the middle
of the run; all weights must be finite at the end, and the loss of the last epoch at most 10 % above that of the
undisturbed run, or within the spread of three undisturbed seeds. Resumed: the program is killed with SIGKILL in the
third of four epochs and run again; weights and optimizers must be those of the run without, to the bit.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_digits

from learnit_r8 import R8Scheduler
from learnit_r8.engine.values import grouped
from learnit_r8.keras import R8Callback

EPOCHS, BATCH, COUNT = 4, 32, 640
STEPS = COUNT // BATCH
DIGITS = load_digits()
IMAGES = (DIGITS.images[:COUNT, :, :, None] / 16).astype("float32")
LABELS = DIGITS.target[:COUNT].astype("int32")
WORDS = np.array(["good", "fine", "great", "bad", "poor", "awful", "film", "plot", "actor", "scene", "and", "the"])


def sentences() -> tuple[Any, Any, Any]:
    """Lines of eight words as text, the numbers of their words, and whether more of them praise than blame."""
    numbers = np.random.default_rng(1).integers(0, len(WORDS), (COUNT, 8))
    lines = np.array([" ".join(WORDS[row]) for row in numbers])
    return lines, numbers, ((numbers < 3).sum(1) > ((numbers >= 3) & (numbers < 6)).sum(1)).astype("int32")


class Kill(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends the process at the beginning of a step, as a machine that fails."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at, self._num_begun = at, 0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._num_begun += 1
        if self._num_begun == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


class Hurt(Kill):
    """Writes a NaN into the last weight that is trained; the first may be of a word that never comes."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._num_begun += 1
        if self._num_begun == self._at:
            weight = self.model.trainable_variables[-1]
            value = np.array(weight)
            value.flat[0] = np.nan
            weight.assign(value)


class Losses(keras.callbacks.Callback):  # type: ignore[misc]
    """The mean loss of each epoch, as Keras shows it; several losses are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        own = {name: value for name, value in logs.items() if "loss" in name and not name.startswith("val_")}
        self.values.append(own.get("loss", sum(own.values())))


class Program:
    """One run of an example; a subclass is an example.

    Args:
        seed: Of weights, dropout and shuffles.
        with_r8: Whether R8 watches.
        folder: Where checkpoints go, which are resumed from.
        more: Callbacks.
    """

    guard = "spike"

    def __init__(self, seed: int = 0, *, with_r8: bool = True, folder: Any = None, more: Any = ()) -> None:
        keras.utils.set_random_seed(seed)
        self.with_r8, self.folder, self.more, self.losses = with_r8, folder, list(more), Losses()
        self.num_refused = 0
        self.run()

    def run(self) -> None:
        """Train."""
        self.model = self.make()
        self.fit(self.model, "run")

    def make(self) -> Any:
        """The compiled model."""
        raise NotImplementedError

    def data(self) -> dict[str, Any]:
        """The arguments of ``fit``."""
        raise NotImplementedError

    def fit(self, model: Any, part: str, epochs: int = EPOCHS) -> None:
        """``fit``, with what a user of R8 adds to it."""
        options = self.data()
        own = options.pop("callbacks", [])
        if not self.with_r8:
            model.fit(**options, epochs=epochs, verbose=0, callbacks=[*own, *self.more, self.losses])
            return
        folder = None if self.folder is None else Path(self.folder, part)
        resume = {"checkpoint_dir": folder, "resume": "auto"} if folder else {}
        with R8Scheduler(num_epochs=epochs, guard=self.guard, **grouped(dict(scheduler_mode="keep", **resume))) as r8:
            callbacks = [R8Callback(r8, model), *own, *self.more, self.losses]
            if not r8.is_over:
                model.fit(**options, initial_epoch=r8.current_epoch, epochs=epochs, verbose=0, callbacks=callbacks)
        self.num_refused += r8.sentry.num_refused

    @property
    def arrays(self) -> list[Any]:
        """Weights and optimizers."""
        optimizers = [each for each in vars(self.model).values() if isinstance(each, keras.optimizers.Optimizer)]
        variables = [*self.model.weights, *(each for one in optimizers for each in one.variables)]
        return [np.array(each) for each in variables if "r8_" not in each.path and each.dtype != "string"]

    @property
    def level(self) -> float:
        """The loss of the last epoch."""
        return self.losses.values[-1]


class MnistConvnet(Program):
    """simple_mnist_convnet: arrays, one-hot labels, dropout, a part for validation."""

    def make(self) -> Any:
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(8, 3, activation="relu"),
                layers.MaxPooling2D(2),
                layers.Flatten(),
                layers.Dropout(0.25),
                layers.Dense(10, activation="softmax"),
            ]
        )
        model.compile("adam", "categorical_crossentropy", metrics=["accuracy"])
        return model

    def data(self) -> dict[str, Any]:
        more = {"validation_data": (IMAGES[:64], keras.utils.to_categorical(LABELS[:64], 10))}
        return {"x": IMAGES, "y": keras.utils.to_categorical(LABELS, 10), "batch_size": BATCH, **more}


class TextClassification(Program):
    """text_classification_from_scratch: strings, vectorized in a tf.data pipeline that shuffles."""

    def make(self) -> Any:
        inputs = keras.Input((None,), dtype="int64")
        x = layers.Dropout(0.3)(layers.Embedding(20, 8)(inputs))
        x = layers.GlobalMaxPooling1D()(layers.Conv1D(8, 3, padding="valid", activation="relu")(x))
        model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))
        model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
        return model

    def data(self) -> dict[str, Any]:
        lines, _, labels = sentences()
        vectorize = layers.TextVectorization(max_tokens=20, output_sequence_length=8)
        vectorize.adapt(lines)
        data = tf.data.Dataset.from_tensor_slices((lines, labels)).shuffle(COUNT).batch(BATCH)
        return {"x": data.map(lambda x, y: (vectorize(x), y)).cache().prefetch(10)}


class Autoencoder(keras.Model):  # type: ignore[misc]
    """The model of `Vae`."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(16), layers.Dense(4)])
        self.decoder = keras.Sequential([keras.Input((2,)), layers.Dense(16, activation="relu"), layers.Dense(64)])
        self.draw = keras.random.SeedGenerator(1337)
        names = "total_loss", "reconstruction_loss", "kl_loss"
        self.trackers = [keras.metrics.Mean(name=name) for name in names]
        self.built = True

    @property
    def metrics(self) -> Any:
        return self.trackers

    def train_step(self, data: Any) -> Any:
        with tf.GradientTape() as tape:
            mean, spread = tf.split(self.encoder(data), 2, axis=-1)
            code = mean + tf.exp(0.5 * spread) * keras.random.normal(tf.shape(mean), seed=self.draw)
            target = tf.reshape(data, (-1, 64))
            near = tf.reduce_mean(tf.reduce_sum((self.decoder(code) - target) ** 2, 1))
            kl = tf.reduce_mean(tf.reduce_sum(-0.5 * (1 + spread - mean**2 - tf.exp(spread)), 1))
            total = near + kl
        gradients = tape.gradient(total, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        for tracker, value in zip(self.trackers, (total, near, kl), strict=True):
            tracker.update_state(value)
        return {each.name: each.result() for each in self.trackers}


class Vae(Program):
    """vae: a training step of its own, on inputs alone."""

    def make(self) -> Any:
        model = Autoencoder()
        model.compile(keras.optimizers.Adam(0.003))
        return model

    def data(self) -> dict[str, Any]:
        return {"x": IMAGES, "batch_size": BATCH}


class TwoNetworks(keras.Model):  # type: ignore[misc]
    """The model of `Dcgan`."""

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(8, 4, strides=2, padding="same"),
                layers.LeakyReLU(negative_slope=0.2),
                layers.Flatten(),
                layers.Dropout(0.2),
                layers.Dense(1, activation="sigmoid"),
            ]
        )
        self.generator = keras.Sequential(
            [
                keras.Input((8,)),
                layers.Dense(4 * 4 * 8),
                layers.Reshape((4, 4, 8)),
                layers.Conv2DTranspose(8, 4, strides=2, padding="same", activation="relu"),
                layers.Conv2D(1, 5, padding="same", activation="sigmoid"),
            ]
        )
        self.draw = keras.random.SeedGenerator(1337)
        self.trackers = [keras.metrics.Mean(name=name) for name in ("d_loss", "g_loss")]
        self.built = True

    def compile(self, d_optimizer: Any, g_optimizer: Any) -> None:
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer
        # So that a resumed run can put them back before its first step.
        d_optimizer.build(self.discriminator.trainable_variables)
        g_optimizer.build(self.generator.trainable_variables)
        self.loss_fn = keras.losses.BinaryCrossentropy()

    @property
    def metrics(self) -> Any:
        return self.trackers

    def train_step(self, real: Any) -> Any:
        size = tf.shape(real)[0]
        made = self.generator(keras.random.normal((size, 8), seed=self.draw))
        labels = tf.concat([tf.ones((size, 1)), tf.zeros((size, 1))], 0)
        labels += 0.05 * keras.random.uniform(tf.shape(labels), seed=self.draw)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(tf.concat([made, real], 0)))
        variables = self.discriminator.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(d_loss, variables), variables, strict=True))
        with tf.GradientTape() as tape:
            made = self.generator(keras.random.normal((size, 8), seed=self.draw))
            g_loss = self.loss_fn(tf.zeros((size, 1)), self.discriminator(made))
        variables = self.generator.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, variables), variables, strict=True))
        for tracker, value in zip(self.trackers, (d_loss, g_loss), strict=True):
            tracker.update_state(value)
        return {each.name: each.result() for each in self.trackers}


class Dcgan(Program):
    """dcgan_overriding_train_step: two networks and optimizers, over images of a tf.data pipeline."""

    guard = "finite"

    def make(self) -> Any:
        model = TwoNetworks()
        model.compile(keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3))
        return model

    def data(self) -> dict[str, Any]:
        data = tf.data.Dataset.from_tensor_slices((255 * IMAGES).astype("uint8")).shuffle(COUNT).batch(BATCH)
        return {"x": data.map(lambda x: tf.cast(x, tf.float32) / 255.0)}


class BidirectionalLstm(Program):
    """bidirectional_lstm_imdb: padded sequences, two LSTM layers."""

    def make(self) -> Any:
        inputs = keras.Input((None,), dtype="int32")
        x = layers.Embedding(20, 8)(inputs)
        x = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(x)
        x = layers.Bidirectional(layers.LSTM(6))(x)
        model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))
        model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
        return model

    def data(self) -> dict[str, Any]:
        _, numbers, labels = sentences()
        return {"x": keras.utils.pad_sequences(numbers, 10), "y": labels, "batch_size": BATCH}


class StructuredData(Program):
    """structured_data_classification: columns by name, numbers and strings, weights of classes, a schedule."""

    def make(self) -> Any:
        age, kind = keras.Input((1,), name="age"), keras.Input((1,), name="kind", dtype="string")
        found = layers.StringLookup(vocabulary=["a", "b", "c"], output_mode="one_hot")(kind)
        joined = layers.Concatenate()([layers.Normalization(mean=0.5, variance=0.08)(age), found])
        x = layers.Dropout(0.2)(layers.Dense(16, activation="relu")(joined))
        model = keras.Model({"age": age, "kind": kind}, layers.Dense(1, activation="sigmoid")(x))
        rate = keras.optimizers.schedules.CosineDecay(0.01, EPOCHS * STEPS)
        model.compile(keras.optimizers.Adam(rate), "binary_crossentropy", metrics=["accuracy"])
        return model

    def data(self) -> dict[str, Any]:
        rng = np.random.default_rng(2)
        age, kind = rng.random((COUNT, 1)).astype("float32"), rng.choice(["a", "b", "c"], (COUNT, 1))
        labels = ((age > 0.5) ^ (kind == "a")).astype("int32")
        data = tf.data.Dataset.from_tensor_slices(({"age": age, "kind": kind}, labels)).shuffle(COUNT)
        return {"x": data.batch(BATCH), "class_weight": {0: 1.0, 1: 2.0}}


class Timeseries(Program):
    """timeseries_weather_forecasting: windows of a series, several steps at a time, EarlyStopping."""

    def make(self) -> Any:
        inputs = keras.Input((12, 2))
        model = keras.Model(inputs, layers.Dense(1)(layers.LSTM(8)(inputs)))
        model.compile(keras.optimizers.Adam(0.003), "mse", steps_per_execution=4)
        return model

    def data(self) -> dict[str, Any]:
        times = np.arange(COUNT + 12) / 8
        series = np.stack([np.sin(times), np.cos(0.7 * times)], 1).astype("float32")
        windows = keras.utils.timeseries_dataset_from_array(series[:-1], series[12:, :1], 12, batch_size=BATCH)
        stop = keras.callbacks.EarlyStopping(monitor="loss", patience=5)
        return {"x": windows, "callbacks": [stop]}


class TransferLearning(Program):
    """transfer_learning: a new head on frozen layers, then all of them at a low rate, in a second ``fit``."""

    def run(self) -> None:
        base = keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(8, 3), layers.BatchNormalization()])
        base.trainable = False
        inputs = keras.Input((8, 8, 1))
        x = layers.Dropout(0.2)(layers.GlobalMaxPooling2D()(base(inputs, training=False)))
        self.model = keras.Model(inputs, layers.Dense(10)(x))
        for part, rate in (("head", 1e-2), ("all", 1e-3)):
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            self.model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
            self.fit(self.model, part, EPOCHS // 2)
            base.trainable = True

    def data(self) -> dict[str, Any]:
        data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).shuffle(COUNT, seed=1).batch(BATCH)
        return {"x": data.prefetch(2)}


EXAMPLES: dict[str, type[Program]] = {
    "mnist_convnet": MnistConvnet,
    "text_classification": TextClassification,
    "vae": Vae,
    "dcgan": Dcgan,
    "bidirectional_lstm": BidirectionalLstm,
    "structured_data": StructuredData,
    "timeseries": Timeseries,
    "transfer_learning": TransferLearning,
}


def are_equal(one: Program, other: Program) -> bool:
    """Whether two runs ended with the same to the bit."""
    return len(one.arrays) == len(other.arrays) and all(map(np.array_equal, one.arrays, other.arrays))


def resumed(name: str) -> Program:
    """The run that was killed and run again."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--only", name, "--kill", folder]
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode != -signal.SIGKILL:
            raise RuntimeError(f"{name} was not killed:\n{done.stderr[-2000:]}")
        return EXAMPLES[name](folder=folder)


def killed_at(kind: type[Program]) -> int:
    """The call of the training function, in the middle of the third epoch, before which the process ends."""
    a_call = 4 if kind is Timeseries else 1
    return (2 * STEPS + STEPS // 2) // a_call


def check(name: str) -> tuple[bool, bool, bool]:
    """Print how an example fares; whether it is left alone, healed, resumed."""
    kind: Callable[..., Program] = EXAMPLES[name]
    plain, watched = kind(with_r8=False), kind()
    hurt = kind(more=[Hurt(killed_at(EXAMPLES[name]))])
    again = resumed(name)
    levels = [plain.level, *(kind(seed, with_r8=False).level for seed in (10, 20))]
    room = max(0.1 * abs(levels[0]), max(levels) - min(levels))
    is_left = are_equal(plain, watched) and not watched.num_refused
    is_healed = all(np.isfinite(each).all() for each in hurt.arrays if each.dtype.kind == "f")
    is_healed = is_healed and hurt.level <= levels[0] + room and hurt.num_refused > 0
    is_resumed = are_equal(watched, again)
    words = ["yes" if each else "NO" for each in (is_left, is_healed, is_resumed)]
    spread = f"{levels[0]:.4f} (other seeds {statistics.mean(levels[1:]):.4f})"
    print(f"{name:20} {words[0]:>6} {spread:>30} {hurt.level:>10.4f} {words[1]:>7} {words[2]:>8}", flush=True)
    return is_left, is_healed, is_resumed


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(EXAMPLES), default=list(EXAMPLES))
    parser.add_argument("--quick", action="store_true", help="structured_data alone")
    parser.add_argument("--kill", metavar="FOLDER", help="run it once, with checkpoints there, and kill it")
    given = parser.parse_args()
    names = ["structured_data"] if given.quick else given.only
    # With more of them TensorFlow adds in another order each time.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    warnings.simplefilter("ignore")
    if given.kill:
        kind = EXAMPLES[given.only[0]]
        kind(folder=given.kill, more=[Kill(killed_at(kind))])
        return
    print(f"keras {keras.__version__} on {keras.backend.backend()}, {EPOCHS} epochs of {STEPS} steps")
    print(f"{'example':20} {'equal':>6} {'loss of the last epoch':>30} {'one NaN':>10} {'healed':>7} {'resumed':>8}")
    found = np.array([check(name) for name in names])
    print("equal {}, healed {}, resumed {} of {}".format(*found.sum(0), len(found)))


if __name__ == "__main__":
    main()

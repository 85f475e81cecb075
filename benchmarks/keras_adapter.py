"""What the Keras adapter costs: `model.fit` and a custom loop under `tf.function` against their plain versions.

    python benchmarks/keras_adapter.py [--quick]
    KERAS_BACKEND=jax python benchmarks/keras_adapter.py    or torch: fit alone

A small CNN on arrays of 28 x 28 pixels, B = 128, one thread. The two sides of a ratio take turns in one process, an
epoch each, and which goes first alternates; a ratio is that of one turn. Figures are medians per step, with the lowest
and highest in brackets; processor time, of all threads, is disturbed less by other programs than wall time.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import keras
import numpy as np
import tensorflow as tf

from learnit_r8 import R8Scheduler
from learnit_r8.keras import R8Callback, R8Dataset, batch_dataset, model_callbacks

BATCH, CLASSES = 128, 10
Sides = tuple[Callable[[], Any], Callable[[], Any]]


def now() -> Any:
    """float[2], wall time and processor time of all threads."""
    return np.array([time.perf_counter(), time.process_time()])


def data(steps: int) -> tuple[Any, Any]:
    """Noise with labels; the last batch is short."""
    rng = np.random.default_rng(0)
    count = BATCH * steps - 50
    return rng.normal(size=(count, 28, 28, 1)).astype("float32"), rng.integers(0, CLASSES, count)


def loss(y_true: Any, y_pred: Any) -> Any:
    """A loss for each sample."""
    return keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)


def compiled() -> list[Any]:
    """The model of each side."""
    models = [cnn(), cnn()]
    for model in models:
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    return models


def cnn() -> Any:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(CLASSES),
        ]
    )


def scheduler(count: int, epochs: int, **callbacks: Any) -> R8Scheduler:
    return R8Scheduler(count, batch_size=BATCH, num_epochs=epochs, initial_lr=0.01, **callbacks)


def fits(steps: int, epochs: int) -> Sides:
    """An epoch of plain fit, and one of ours."""
    x, y = data(steps)
    models = compiled()
    r8 = scheduler(len(x), epochs)
    dataset = R8Dataset(x, y, r8)
    callback = R8Callback(dataset)

    clock = Clock()

    def plain() -> Any:
        models[0].fit(x, y, batch_size=BATCH, verbose=0, callbacks=[clock])
        return clock.seconds

    def ours() -> Any:
        models[1].fit(dataset, shuffle=False, verbose=0, callbacks=[clock, callback])
        return clock.seconds

    return plain, ours


def watched_fits(steps: int, epochs: int) -> Sides:
    """An epoch of plain fit over tf.data, and one with recovery alone."""
    x, y = data(steps)
    models = compiled()
    callback, clock = R8Callback(R8Scheduler(scheduler_mode="keep")), Clock()

    def side(model: Any, callbacks: list[Any]) -> Callable[[], Any]:
        batches = plain_batches(x, y)

        def run() -> Any:
            model.fit(batches, verbose=0, callbacks=callbacks)
            return clock.seconds

        return run

    return side(models[0], [clock]), side(models[1], [clock, callback])


def loops(steps: int, epochs: int) -> Sides:
    """An epoch of a plain loop, and one of ours."""
    x, y = data(steps)
    models = [cnn(), cnn()]
    optimizers = [keras.optimizers.SGD(0.01, momentum=0.9) for _ in models]
    callbacks = model_callbacks(models[1], optimizers[1])
    del callbacks["save_callback"]
    optimizers[0].build(models[0].trainable_variables)
    r8 = scheduler(len(x), epochs, **callbacks)
    batches = batch_dataset(r8, (x, y))
    optimizers[1].learning_rate = lambda: batches.lr
    gathered = plain_batches(x, y)

    def step_of(number: int) -> Any:
        model, optimizer = models[number], optimizers[number]

        @tf.function(input_signature=batches.element_spec)
        def step(x: Any, y: Any) -> Any:
            with tf.GradientTape() as tape:
                each = loss(y, model(x, training=True))
                mean = tf.reduce_mean(each)
            optimizer.apply(tape.gradient(mean, model.trainable_variables), model.trainable_variables)
            return each

        return step

    first, second = step_of(0), step_of(1)

    def plain() -> Any:
        began = now()
        for xs, ys in gathered:
            first(xs, ys)
        return now() - began

    def ours() -> Any:
        began = now()
        for xs, ys in batches:
            batches.report(second(xs, ys))
        return now() - began

    return plain, ours


def plain_batches(x: Any, y: Any) -> Any:
    """Shuffled batches the fast way: indices are shuffled, and rows gathered a batch at a time."""
    columns = tf.constant(x), tf.constant(y)
    order = tf.data.Dataset.range(len(y)).shuffle(len(y)).batch(BATCH)
    return order.map(lambda rows: tuple(tf.gather(each, rows) for each in columns)).prefetch(2)


def in_turns(one: Callable[[], Any], other: Callable[[], Any], rounds: int) -> Iterator[Any]:
    """float[2, 2], wall and processor seconds of both, for each round after one to warm up."""
    for number in range(rounds + 1):
        seconds: list[Any] = [None, None]
        for which in (0, 1) if number % 2 else (1, 0):
            seconds[which] = (one, other)[which]()
        if number:
            yield np.stack(seconds)


class Clock(keras.callbacks.Callback):  # type: ignore[misc]
    """Times a fit from its first step to its last: setting up and tearing down tf.data varies by half a second."""

    seconds = np.zeros(2)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._began = now()

    def on_train_end(self, logs: Any = None) -> None:
        self.seconds = now() - self._began


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):6.3f}x [{min(values):.3f} .. {max(values):.3f}]"


def measure(name: str, make: Any, steps: int, rounds: int, must: str, aim: str) -> None:
    """Print a line."""
    plain, ours = make(steps, rounds + 1)
    turns = np.stack(list(in_turns(plain, ours, rounds))) * 1e3 / steps
    for clock, unit in enumerate(("wall time", "processor time")):
        one, other = turns[:, 0, clock], turns[:, 1, clock]
        each = f"{np.median(one):.2f} -> {np.median(other):.2f} ms"
        print(f"{name + ', ' + unit:44} {each:20} {spread(list(other / one)):26} {must:>6} {aim:>6}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter epochs, under a minute")
    parser.add_argument("--rounds", type=int, help="epochs of each side; 40 by default, 7 if quick")
    given = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    back_end = keras.backend.backend()
    if back_end == "torch":
        importlib.import_module("torch").set_num_threads(1)
    steps, rounds = 50, given.rounds or (7 if given.quick else 40)
    print(f"keras {keras.__version__} on {back_end}, {rounds} rounds of {steps} steps each")
    print(f"{'':44} {'plain -> ours':20} {'median [lowest .. highest]':26} {'must':>6} {'aim':>6}")
    must, aim = ("1.10", "1.03") if back_end == "jax" else ("1.05", "1.02")
    measure("model.fit, a step", fits, steps, rounds, must, aim)
    measure("fit over tf.data, recovery alone", watched_fits, steps, rounds, "1.03", "1.01")
    if back_end == "tensorflow":
        measure("custom tf.function loop, a step", loops, steps, rounds, "1.05", "1.01")


if __name__ == "__main__":
    main()

"""Ordinary Keras scripts on any back end: what each trains, and the losses of its samples computed apart from Keras.

KERAS_BACKEND=jax python -m tests.keras.loss_scripts     runs all of them, a line each
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

from learnit_r8 import R8Scheduler
from learnit_r8.keras import R8Callback, R8Dataset

BACK_END = keras.backend.backend()
NUM_SAMPLES, BATCH, NUM_CLASSES = 50, 16, 3
NUM_EPOCHS = 22
"""The first 80 losses are judged, and may be taken for lower than they are."""
rng = np.random.default_rng(4)
X = rng.normal(size=(NUM_SAMPLES, 6)).astype("float32")
REAL = rng.normal(size=(NUM_SAMPLES, 2)).astype("float32")
LABELS = rng.integers(0, NUM_CLASSES, NUM_SAMPLES)
ONE_HOT = np.eye(NUM_CLASSES, dtype="float32")[LABELS]
BITS = rng.integers(0, 2, (NUM_SAMPLES, 2)).astype("float32")
SERIES = rng.normal(size=(NUM_SAMPLES, 5, 6)).astype("float32")
TOKENS = rng.integers(0, 4, (NUM_SAMPLES, 5))
TOKENS[:, 0] = 1
STEPS = rng.normal(size=(NUM_SAMPLES, 5, 1)).astype("float32")


@dataclass
class Script:
    """A script.

    Attributes:
        model: Compiled.
        x: Inputs of N samples.
        y: Targets.
        losses: ``(model)``, returns float[N]; for a batch's loss in one number, float[B] of a batch's indices.
        fit: More arguments of ``fit``.
        wrap: Makes what ``fit`` is given of the R8Dataset.
        weight: ``sample_weight`` of the R8Dataset.
        refused: What the message must hold; None where the script trains.
        is_exact: Whether samples have losses of their own; if not, the mean of each batch is compared.
    """

    model: Any
    x: Any = None
    y: Any = None
    losses: Callable[[Any], Any] | None = None
    fit: dict[str, Any] = field(default_factory=dict)
    wrap: Callable[[Any], Any] = lambda dataset: dataset
    weight: Any = None
    refused: str | None = None
    is_exact: bool = True


def numbers(tensor: Any) -> Any:
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")).astype(np.float64)


def outputs(model: Any, x: Any) -> Any:
    return keras.tree.map_structure(numbers, model(x, training=False))


def dense(units: int, activation: str | None = None, **settings: Any) -> Any:
    """Two layers whose weights are always the same."""
    keras.utils.set_random_seed(1)
    last = layers.Dense(units, activation=activation, dtype="float32")
    return keras.Sequential([keras.Input((6,)), layers.Dense(5, activation="tanh", **settings), last])


def compiled(model: Any, loss: Any, optimizer: Any = "sgd", **settings: Any) -> Any:
    model.compile(optimizer, loss, **settings)
    return model


def softmax(logits: Any) -> Any:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def squared(y: Any, p: Any) -> Any:
    return ((y - p) ** 2).mean(-1)


def crossed(y: Any, p: Any) -> Any:
    return -(y * np.log(p)).sum(-1)


def both(y: Any, p: Any) -> Any:
    return -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(-1)


def smoothed(y: Any) -> Any:
    return 0.9 * y + 0.1 / NUM_CLASSES


def of_loss(loss: Any, y: Any, formula: Callable[[Any, Any], Any], activation: str | None = None) -> Script:
    """A script of one loss: its formula takes targets and outputs."""
    model = compiled(dense(2 if y is REAL or y is BITS else NUM_CLASSES, activation), loss)
    return Script(model, X, y, lambda model: formula(y, outputs(model, X)))


def regression(model: Any = None, **settings: Any) -> Script:
    """A regression under the squared error."""
    model = compiled(dense(2), "mse", **settings) if model is None else model
    return Script(model, X, REAL, lambda model: squared(REAL, outputs(model, X)))


def mean_of_batch(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean((y_true - y_pred) ** 2)


def of_samples(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.mean((y_true - y_pred) ** 2, axis=-1)


SPARSE = keras.losses.SparseCategoricalCrossentropy
LOSSES: dict[str, Callable[[], Script]] = {
    "squared error": lambda: of_loss("mse", REAL, squared),
    "binary": lambda: of_loss("binary_crossentropy", BITS, both, "sigmoid"),
    "categorical, smoothed": lambda: of_loss(
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        ONE_HOT,
        lambda y, p: crossed(smoothed(y), softmax(p)),
    ),
    "sparse of logits": lambda: of_loss(SPARSE(from_logits=True), LABELS, lambda y, p: crossed(ONE_HOT, softmax(p))),
    "summed": lambda: of_loss(keras.losses.MeanSquaredError(reduction="sum"), REAL, squared),
    "a function of samples": lambda: of_loss(of_samples, REAL, squared),
}
"""Of each way in which Keras comes to the losses of samples one: by name, of logits, smoothed, summed, of one's own."""


def a_function_of_the_batch() -> Script:
    script = regression(compiled(dense(2), mean_of_batch))
    script.is_exact = False
    return script


def weights_of_samples() -> Script:
    script = regression()
    script.weight = rng.uniform(0.5, 2, NUM_SAMPLES).astype("float32")
    return script


def weights_of_classes() -> Script:
    script = LOSSES["sparse of logits"]()
    script.fit = {"class_weight": {0: 1.0, 1: 5.0, 2: 0.5}}
    return script


def two_outputs(form: str) -> Script:
    keras.utils.set_random_seed(2)
    inputs = keras.Input((6,))
    hidden = layers.Dense(4)(inputs)
    a, b = layers.Dense(2, name="a")(hidden), layers.Dense(NUM_CLASSES, name="b")(hidden)
    losses = "mse", SPARSE(from_logits=True)
    if form == "list":
        model = compiled(keras.Model(inputs, [a, b]), list(losses))
        y: Any = [REAL, LABELS]
    else:
        given = {"loss_weights": {"a": 0.5, "b": 2.0}} if form == "weighted" else {}
        model = compiled(keras.Model(inputs, {"a": a, "b": b}), {"a": losses[0], "b": losses[1]}, **given)
        y = {"a": REAL, "b": LABELS}
    by = (0.5, 2.0) if form == "weighted" else (1.0, 1.0)

    def losses_of(model: Any) -> Any:
        found = outputs(model, X)
        first, second = (found["a"], found["b"]) if isinstance(found, dict) else found
        return by[0] * squared(REAL, first) + by[1] * crossed(ONE_HOT, softmax(second))

    return Script(model, X, y, losses_of)


def an_output_without_a_loss() -> Script:
    keras.utils.set_random_seed(2)
    inputs = keras.Input((6,))
    hidden = layers.Dense(4)(inputs)
    model = keras.Model(inputs, {"a": layers.Dense(2, name="a")(hidden), "b": layers.Dense(1, name="b")(hidden)})
    compiled(model, {"a": "mse"})
    return Script(model, X, {"a": REAL}, lambda model: squared(REAL, outputs(model, X)["a"]))


def series() -> Script:
    keras.utils.set_random_seed(3)
    model = compiled(keras.Sequential([keras.Input((5, 6)), layers.Dense(1)]), "mse")
    return Script(model, SERIES, STEPS, lambda model: squared(STEPS, outputs(model, SERIES)).mean(1))


def masked(num_outputs: int, num_losses: int = 1) -> Script:
    """With masks of each output; the last may have no loss."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5,), dtype="int32")
    embedded = layers.Embedding(4, 3, mask_zero=True)(inputs)
    made = {name: layers.Dense(1, name=name)(embedded) for name in ("a", "b")[:num_outputs]}
    judged = list(made)[:num_losses]
    model = compiled(keras.Model(inputs, made), dict.fromkeys(judged, "mse"))

    def losses_of(model: Any) -> Any:
        kept, found = TOKENS != 0, outputs(model, TOKENS)
        return sum((squared(STEPS, found[name]) * kept).sum(1) / kept.sum(1) for name in judged)

    return Script(model, TOKENS, dict.fromkeys(judged, STEPS), losses_of)


def a_penalty(kind: str) -> Script:
    settings = {"kernel_regularizer": "l2"} if kind == "weights" else {"activity_regularizer": "l2"}
    return regression(compiled(dense(2, **settings), "mse"))


class Unrelated(keras.utils.PyDataset):
    """Asks no R8Dataset for anything."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return X[:BATCH], REAL[:BATCH]


def refused(script: Script, message: str, **changes: Any) -> Script:
    script.refused = message
    for name, value in changes.items():
        setattr(script, name, value)
    return script


class Subclass(keras.Model):
    """Layers of its own, two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = layers.Dense(2), layers.Dense(2)

    def call(self, inputs: Any) -> Any:
        return self.one(inputs["one"]) + self.other(inputs["other"])


def a_subclass() -> Script:
    keras.utils.set_random_seed(5)
    x = {"one": X, "other": X[::-1].copy()}
    model = compiled(Subclass(), "mse")
    model({name: value[:1] for name, value in x.items()})
    return Script(model, x, REAL, lambda model: squared(REAL, outputs(model, x)))


class Own(keras.Model):
    """Computes its loss in its own way: calls that many times what Keras does, and adds a penalty."""

    num_calls, penalty = 1, 0.0

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):  # type: ignore[no-untyped-def]
        if not self.num_calls:
            return keras.ops.mean((y - y_pred) ** 2)
        for _ in range(self.num_calls):
            loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss + self.penalty


def an_own_loss(num_calls: int, **attributes: Any) -> Script:
    keras.utils.set_random_seed(6)
    inputs = keras.Input((6,))
    model = Own(inputs, layers.Dense(2)(inputs))
    model.num_calls = num_calls
    for name, value in attributes.items():
        setattr(model, name, value)
    script = regression(compiled(model, "mse"))
    script.is_exact = num_calls == 1
    return script


class OwnStep(keras.Model):
    """A training step as in Keras' guides."""

    def train_step(self, *arguments: Any) -> Any:
        return {"tensorflow": self._on_tensorflow, "torch": self._on_torch, "jax": self._on_jax}[BACK_END](*arguments)

    def _on_tensorflow(self, data: Any) -> Any:
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"loss": loss}

    def _on_torch(self, data: Any) -> Any:
        import torch

        x, y = data
        self.zero_grad()
        loss = self.compute_loss(x, y, self(x, training=True))
        loss.backward()
        with torch.no_grad():
            self.optimizer.apply([each.value.grad for each in self.trainable_weights], self.trainable_weights)
        return {"loss": loss}

    def _on_jax(self, state: Any, data: Any) -> Any:
        import jax

        trainable, non_trainable, optimizer, metrics = state
        x, y = data

        def loss_of(trainable: Any) -> Any:
            pairs = [*zip(self.trainable_variables, trainable, strict=True)]
            pairs += zip(self.non_trainable_variables, non_trainable, strict=True)
            pairs += zip(self.metrics_variables, metrics, strict=True)
            with keras.StatelessScope(pairs) as scope:
                loss = self.compute_loss(x, y, self(x, training=True))
            return loss, [scope.get_current_value(each) for each in self.metrics_variables]

        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        trainable, optimizer = self.optimizer.stateless_apply(optimizer, grads, trainable)
        return {"loss": loss}, (trainable, non_trainable, optimizer, metrics)


def an_own_step() -> Script:
    keras.utils.set_random_seed(6)
    inputs = keras.Input((6,))
    model = OwnStep(inputs, layers.Dense(2)(inputs))
    return regression(compiled(model, "mse"))


def mixed_precision() -> Script:
    keras.utils.set_random_seed(1)
    policy = keras.DTypePolicy("mixed_bfloat16")
    stack = [keras.Input((6,)), layers.Dense(5, dtype=policy), layers.Dense(2, dtype="float32")]
    return regression(compiled(keras.Sequential(stack), "mse"))


def normalized() -> Script:
    """Batch normalisation without training of it: statistics of the batch are another matter."""
    keras.utils.set_random_seed(1)
    norm = layers.BatchNormalization(trainable=False)
    return regression(compiled(keras.Sequential([keras.Input((6,)), norm, layers.Dense(2)]), "mse"))


def nested() -> Script:
    keras.utils.set_random_seed(1)
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(4)])
    return regression(compiled(keras.Sequential([keras.Input((6,)), inner, layers.Dense(2)]), "mse"))


OTHERS: dict[str, Callable[[], Script]] = {
    "a function of the batch": a_function_of_the_batch,
    "weights of samples": weights_of_samples,
    "weights of classes": weights_of_classes,
    "outputs in a dict": lambda: two_outputs("dict"),
    "outputs in a list": lambda: two_outputs("list"),
    "outputs with weights": lambda: two_outputs("weighted"),
    "an output without a loss": an_output_without_a_loss,
    "series": series,
    "masked": lambda: masked(1),
    "masked, two outputs": lambda: masked(2, 2),
    "masked, an output without a loss": lambda: masked(2),
    "a penalty on weights": lambda: a_penalty("weights"),
    "a penalty on activity": lambda: a_penalty("activity"),
    "a subclass, two inputs": a_subclass,
    "compute_loss with a penalty": lambda: an_own_loss(1, penalty=3.0),
    "compute_loss without Keras'": lambda: an_own_loss(0),
    "a step with compute_loss": an_own_step,
    "mixed precision": mixed_precision,
    "normalization": normalized,
    "nested models": nested,
    "eager": lambda: regression(run_eagerly=True),
    "metrics": lambda: regression(metrics=["mae"], weighted_metrics=["mse"]),
    "AdamW, clipped": lambda: regression(optimizer=keras.optimizers.AdamW(clipnorm=1.0)),
    "averaged weights": lambda: regression(optimizer=keras.optimizers.SGD(use_ema=True)),
    "accumulated gradients": lambda: regression(optimizer=keras.optimizers.SGD(gradient_accumulation_steps=2)),
}

REFUSED: dict[str, Callable[[], Script]] = {
    "other data": lambda: refused(
        regression(), "knows nothing of the scheduler's order", wrap=lambda dataset: Unrelated()
    ),
    "shuffled": lambda: refused(regression(), "shuffle must be False", fit={"shuffle": True}),
    "other steps": lambda: refused(regression(), "steps_per_epoch must be left out", fit={"steps_per_epoch": 2}),
}

SCRIPTS = {**LOSSES, **OTHERS, **REFUSED}


def difference(script: Script) -> float:
    """The largest distance between the table and the losses computed apart, in units of the largest loss.

    Epochs at a rate that moves nothing, the last batch of each short, until the table takes every loss as it is; an
    exception where the script is refused.
    """
    r8 = R8Scheduler(NUM_SAMPLES, batch_size=BATCH, num_epochs=NUM_EPOCHS, initial_lr=1e-12)
    heard: list[tuple[Any, Any]] = []
    report = r8.report

    def listen(ticket: Any, loss: Any, **more: Any) -> Any:
        heard.append((ticket.indices, np.array(loss, np.float64)))
        return report(ticket, loss, **more)

    r8.report = listen  # type: ignore[method-assign]
    dataset = R8Dataset(script.x, script.y, r8, sample_weight=script.weight)
    given = {"shuffle": False, **script.fit}
    callbacks = [R8Callback(dataset)]
    script.model.fit(script.wrap(dataset), epochs=NUM_EPOCHS, verbose=0, callbacks=callbacks, **given)
    assert script.losses is not None
    true = np.asarray(script.losses(script.model))
    if script.is_exact:
        assert [each.shape for _, each in heard] == [indices.shape for indices, _ in heard], "losses are not of samples"
        distances = [np.abs(each - true[indices]).max() for indices, each in heard]
        distances.append(np.abs(r8.table.last - true).max())
    else:
        distances = [np.abs(each.mean() - true[indices].mean()) for indices, each in heard]
    return float(max(distances) / np.abs(true).max())


def outcome(name: str) -> str:
    """ "equal", "refused", or what is wrong with a script."""
    script = None
    try:
        script = SCRIPTS[name]()
        far = difference(script)
    except (ValueError, RuntimeError, TypeError) as error:
        is_right = script is not None and script.refused is not None and script.refused in str(error)
        return "refused" if is_right else f"{type(error).__name__}: {error}"
    if script.refused is not None:
        return "trained, and should have been refused"
    # bfloat16 has eight bits; it is rounded in the one pass as in the other.
    return "equal" if far < (2e-2 if name == "mixed precision" else 1e-5) else f"{far:.2g} apart"


def main() -> None:
    warnings.simplefilter("ignore")
    outcomes = {name: outcome(name) for name in SCRIPTS}
    for name, found in outcomes.items():
        print(f"{found:10} {name}", flush=True)
    good = sum(found in ("equal", "refused") for found in outcomes.values())
    print(f"{BACK_END}: {good} of {len(outcomes)} scripts are right or refused")
    sys.exit(good < len(outcomes))


if __name__ == "__main__":
    main()

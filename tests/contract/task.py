"""The small training that every column of the contract does: samples, first weights, batches, and what is best.

A network of 8, 16 and 3 units learns three classes from 256 samples in 16 batches an epoch, by SGD with momentum. All
columns begin with the same weights; columns whose batches are their own train on the same ones in the same order, so
that outcomes compare across frameworks.
"""

from __future__ import annotations

import functools

import numpy as np

from learnit_r8 import RateShape

NUM_SAMPLES, BATCH, STEPS, EPOCHS = 256, 16, 16, 4
RATE, MOMENTUM = 0.05, 0.9
CONSTANT = {"policy": "shuffle", "scheduler_mode": RateShape("constant", warmup_steps=0)}
"""Settings of R8's batches, so that the outcome compares with that of one's own batches at a constant rate."""
SHAPES = {"w1": (8, 16), "b1": (16,), "w2": (16, 3), "b2": (3,)}

_rng = np.random.default_rng(7)
_x = _rng.normal(size=(NUM_SAMPLES + 128, 8)).astype("f4")
# The classes overlap, so that no run reaches a loss of 0 and small differences stay small.
_y = (_x[:, :3] + 0.6 * _rng.normal(size=(len(_x), 3))).argmax(1)
X, Y = _x[:NUM_SAMPLES], _y[:NUM_SAMPLES].astype("i8")
VAL_X, VAL_Y = _x[NUM_SAMPLES:], _y[NUM_SAMPLES:].astype("i8")


def first_weights():
    """The weights that every run begins with; as (inputs, outputs), float32."""
    rng = np.random.default_rng(3)
    return {
        name: (rng.normal(size=shape) / np.sqrt(shape[0]) if len(shape) > 1 else np.zeros(shape)).astype("f4")
        for name, shape in SHAPES.items()
    }


def order(epoch, seed=0):
    """The batches of an epoch of one's own, int64[16, 16]: the same in every column."""
    return np.random.default_rng((seed, epoch)).permutation(NUM_SAMPLES).reshape(STEPS, BATCH)


def forward(weights, x, activation="tanh"):
    """The hidden layer and the logits; "relu" is the one of Keras, which makes 0 of NaN."""
    hidden = x @ weights["w1"] + weights["b1"]
    hidden = np.tanh(hidden) if activation == "tanh" else np.where(hidden > 0, hidden, np.float32(0))
    return hidden, hidden @ weights["w2"] + weights["b2"]


def sample_losses(logits, y):
    """float[B], the cross entropy of each sample."""
    shifted = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(y)), y]


def error(weights, x=X, y=Y, activation="tanh"):
    """The mean loss of some weights on all training samples; infinite if a weight is not finite."""
    if not all(np.isfinite(each).all() for each in weights.values()):
        return np.inf
    wide = {name: each.astype("f8") for name, each in weights.items()}
    with np.errstate(all="ignore"):
        return float(sample_losses(forward(wide, x.astype("f8"), activation)[1], y).mean())


def gradients(weights, x, y, activation="tanh"):
    """The losses of a batch, and the gradients of their mean."""
    hidden, logits = forward(weights, x, activation)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    shares[np.arange(len(y)), y] -= 1
    shares /= np.float32(len(y))
    back = shares @ weights["w2"].T
    back *= 1 - hidden**2 if activation == "tanh" else hidden > 0
    found = {"w1": x.T @ back, "b1": back.sum(0), "w2": hidden.T @ shares, "b2": shares.sum(0)}
    return sample_losses(logits, y), found


@functools.cache
def seeds_spread(epochs=EPOCHS, activation="tanh", left_out=frozenset(), num_seeds=8):
    """The lowest and the highest error in the last eight steps of undisturbed runs with other orders of the batches.

    Args:
        epochs: How many.
        activation: "tanh" or "relu".
        left_out: Numbers of steps that are not taken.
        num_seeds: Number of runs.
    """
    ends = []
    for seed in range(num_seeds):
        weights = first_weights()
        speed = {name: np.zeros_like(each) for name, each in weights.items()}
        for step, rows in enumerate(rows for epoch in range(epochs) for rows in order(epoch, seed)):
            if step not in left_out:
                for name, each in gradients(weights, X[rows], Y[rows], activation)[1].items():
                    speed[name] = np.float32(MOMENTUM) * speed[name] + each
                    weights[name] = weights[name] - np.float32(RATE) * speed[name]
            if step >= epochs * STEPS - 8:
                ends.append(error(weights, activation=activation))
    return min(ends), max(ends)

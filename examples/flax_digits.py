"""A Flax network on scikit-learn's digits, with batches that R8Scheduler draws; Ctrl-C and --resume go on.

python examples/flax_digits.py [--epochs 15] [--folder runs/digits] [--resume]
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen
from sklearn.datasets import load_digits

from learnit_r8 import R8Scheduler
from learnit_r8.flax import TrainState, save_metrics_history, train_loop

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
order = np.random.default_rng(0).permutation(len(images))
train, val = order[:1400], order[1400:]


class Network(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(10)(linen.relu(linen.Dense(64)(x)))


@jax.jit
def train_step(state, batch, rng_key):
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, batch["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return losses.mean(), losses

    (loss, losses), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), {"loss": loss, "losses": losses}


@jax.jit
def val_step(state, batch, rng_key):
    logits = state.apply_fn({"params": state.params}, batch["x"])
    return state, {"accuracy": jnp.mean(logits.argmax(-1) == batch["y"])}


def batch_of(rows):
    return {"x": images[rows], "y": labels[rows]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--folder", default="runs/digits")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    model = Network()
    state = TrainState.create(
        apply_fn=model.apply,
        params=model.init(jax.random.PRNGKey(0), images[:1])["params"],
        tx=optax.inject_hyperparams(optax.adam)(learning_rate=0.0),
    )
    r8 = R8Scheduler(len(train), batch_size=32, num_epochs=arguments.epochs, initial_lr=0.005)
    _, history = train_loop(
        state,
        train_step,
        lambda indices: batch_of(train[indices]),
        rng_key=jax.random.PRNGKey(1),
        checkpoint_dir=arguments.folder,
        val_step_fn=val_step,
        val_data_iterator=[batch_of(val)],
        scheduler=r8,
        resume=arguments.resume,
    )
    save_metrics_history(history, f"{arguments.folder}/history.json")
    print(f"accuracy {history['val_accuracy'][-1]:.3f} after {len(history['val_accuracy'])} epochs")


if __name__ == "__main__":
    main()

"""A network on scikit-learn's digits over several devices, in a loop of your own, with a fault that R8 heals.

python examples/flax_devices.py [--devices 4] [--epochs 12] [--folder runs/devices]

A CPU stands for as many virtual devices; stop the program with Ctrl-C, and the same command goes on.
"""

from __future__ import annotations

import argparse
import os

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--devices", type=int, default=4)
parser.add_argument("--epochs", type=int, default=12)
parser.add_argument("--folder", default=None)
arguments = parser.parse_args()
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={arguments.devices}")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

from learnit_r8 import R8Scheduler
from learnit_r8.flax import ManagedState, TrainState

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
order = np.random.default_rng(0).permutation(len(images))
train, val = order[:1408], order[1408:]
mesh = Mesh(np.array(jax.devices()), ("data",))
spread, repeated = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())


class Network(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(10)(linen.relu(linen.Dense(64)(x)))


def train_step(state, batch):
    def loss_fn(params):
        logits = state.apply_fn({"params": params}, batch["x"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
        return losses.mean(), losses

    grads, losses = jax.grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), losses


def batches(epoch):
    for number, rows in enumerate(train[np.random.default_rng(epoch).permutation(len(train))].reshape(-1, 64)):
        # A broken batch, as a fault of a disk or a network would make it.
        factor = np.float32("nan" if (epoch, number) == (4, 10) else 1)
        yield {"x": images[rows] * factor, "y": labels[rows], "id": rows}


def main():
    model, step = Network(), jax.jit(train_step, donate_argnums=0)
    params = model.init(jax.random.key(0), images[:1])["params"]
    rates = optax.cosine_decay_schedule(0.005, arguments.epochs * len(train) // 64)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(rates))
    settings = {"checkpoint_dir": arguments.folder, "resume": "auto"} if arguments.folder else {}
    with R8Scheduler(scheduler_mode="keep", **settings) as r8:
        managed = ManagedState(r8, jax.device_put(state, repeated), backup_every=20)
        for epoch in range(r8.current_epoch, arguments.epochs):
            for batch in r8.batches(batches(epoch), ids="id"):
                on_devices = jax.device_put({"x": batch["x"], "y": batch["y"]}, spread)
                state, losses = step(managed.for_step(), on_devices)
                managed.report(state, losses)
    logits = model.apply({"params": managed.state.params}, images[val])
    accuracy = float(jnp.mean(logits.argmax(-1) == labels[val]))
    print(f"{len(jax.devices())} devices, {r8.sentry.num_refused} batch refused, accuracy {accuracy:.3f}")
    print(f"hardest samples: {[sample.name for sample in r8.table.hardest(3)]}")


if __name__ == "__main__":
    main()

"""A training with dropout and batch normalisation in each way, to be killed and gone on with in another process.

python -m tests.bridge.resume_jobs WAY FOLDER [KILL_AT_STEP]    prints a digest of weights and losses at the end
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from learnit_r8 import R8Scheduler

NUM_SAMPLES, BATCH, NUM_EPOCHS = 128, 16, 6
rng = np.random.default_rng(0)
X = rng.normal(size=(NUM_SAMPLES, 6)).astype("f4")
Y = np.sin(X.sum(1, keepdims=True)).astype("f4")


class Job:
    """One session: its scheduler, and the step at which the process is killed.

    Args:
        folder: Of the checkpoints.
        kill_at: The step; None for never.
    """

    def __init__(self, folder: str, kill_at: int | None) -> None:
        self.r8 = R8Scheduler(
            NUM_SAMPLES,
            batch_size=BATCH,
            num_epochs=NUM_EPOCHS,
            initial_lr=0.01,
            checkpoint_dir=folder,
            checkpoint_every=5,
            resume="auto",
        )
        self._kill_at = kill_at

    def at_step(self) -> None:
        """The place at which the process may be killed: in the middle of a step."""
        if self.r8.global_step == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def digest(self, arrays: Any) -> str:
        """Of the weights, and of what the table has learned."""
        whole = hashlib.sha256()
        for each in (*arrays, self.r8.table.loss, self.r8.table.last):
            whole.update(np.ascontiguousarray(each).tobytes())
        return whole.hexdigest()


def keras_model() -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(7)
    stack = [layers.Dense(8, "relu"), layers.BatchNormalization(), layers.Dropout(0.3), layers.Dense(1)]
    return keras.Sequential([keras.Input((6,)), *stack])


def keras_fit(job: Job) -> Any:
    import keras

    from learnit_r8.keras import R8Callback, R8Dataset
    from learnit_r8.keras.state import as_numpy

    model = keras_model()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    dataset = R8Dataset(X, Y, job.r8)
    kill = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: job.at_step())
    callbacks = [R8Callback(dataset, model), kill]
    model.fit(
        dataset, epochs=NUM_EPOCHS, initial_epoch=job.r8.current_epoch, verbose=0, shuffle=False, callbacks=callbacks
    )
    return [as_numpy(each) for each in model.variables]


def tensor_batches(job: Job) -> Any:
    import keras
    import tensorflow as tf

    from learnit_r8.keras import batch_dataset, sample_losses
    from learnit_r8.keras.state import as_numpy

    model, optimizer = keras_model(), keras.optimizers.Adam(0.01)
    batches = batch_dataset(job.r8, (X, Y), model=model, optimizer=optimizer)
    optimizer.learning_rate = lambda: batches.lr

    @tf.function(input_signature=batches.element_spec)
    def step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            losses = sample_losses("mse", y, model(x, training=True))
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return losses

    while not job.r8.is_over:
        for x, y in batches:
            losses = step(x, y)
            job.at_step()
            batches.report(losses)
    return [as_numpy(each) for each in model.variables]


def flax_loop(job: Job) -> Any:
    import jax
    import optax
    from flax import linen

    from learnit_r8.flax import TrainState, train_loop

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            x = linen.BatchNorm(use_running_average=False)(linen.relu(linen.Dense(8)(x)))
            return linen.Dense(1)(linen.Dropout(0.3, deterministic=False)(x))

    model = Network()
    made = model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X[:2])
    tx = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)
    state = TrainState.create(apply_fn=model.apply, params=made["params"], tx=tx, batch_stats=made["batch_stats"])

    @jax.jit
    def jitted(state: Any, batch: Any, key: Any) -> Any:
        def loss_fn(params: Any) -> Any:
            variables = {"params": params, "batch_stats": state.batch_stats}
            out, new = state.apply_fn(variables, batch["x"], rngs={"dropout": key}, mutable=["batch_stats"])
            losses = ((out - batch["y"]) ** 2).mean(1)
            return losses.mean(), (losses, new["batch_stats"])

        grads, (losses, stats) = jax.grad(loss_fn, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, batch_stats=stats), losses

    def step(state: Any, batch: Any, key: Any) -> Any:
        state, losses = jitted(state, batch, key)
        job.at_step()
        return state, {"loss": losses.mean(), "losses": losses}

    def data(rows: Any) -> Any:
        return {"x": X[rows], "y": Y[rows]}

    final, _ = train_loop(state, step, data, rng_key=jax.random.key(3), scheduler=job.r8, show_progress=False)
    return jax.tree.leaves((final.params, final.batch_stats, final.opt_state))


def nnx_loop(job: Job) -> Any:
    import jax
    import optax
    from flax import nnx

    from learnit_r8.flax import train_loop

    class Network(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.first, self.last = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)
            self.norm, self.dropout = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.3, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.last(self.dropout(self.norm(nnx.relu(self.first(x)))))

    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.inject_hyperparams(optax.adam)(learning_rate=0.0), wrt=nnx.Param)

    @nnx.jit
    def jitted(model: Any, optimizer: Any, batch: Any) -> Any:
        def loss_fn(model: Any) -> Any:
            losses = ((model(batch["x"]) - batch["y"]) ** 2).mean(1)
            return losses.mean(), losses

        grads, losses = nnx.grad(loss_fn, has_aux=True)(model)
        optimizer.update(model, grads)
        return losses

    def step(state: Any, batch: Any, key: Any) -> Any:
        losses = jitted(*state, batch)
        job.at_step()
        return state, {"loss": losses.mean(), "losses": losses}

    def data(rows: Any) -> Any:
        return {"x": X[rows], "y": Y[rows]}

    parts = model, optimizer
    train_loop(parts, step, data, rng_key=jax.random.key(3), scheduler=job.r8, show_progress=False)
    leaves = jax.tree.leaves(nnx.state(parts))
    is_key = [jax.dtypes.issubdtype(each.dtype, jax.dtypes.prng_key) for each in leaves]
    return [jax.random.key_data(each) if key else each for each, key in zip(leaves, is_key, strict=True)]


def torch_parts() -> Any:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(7)
    stack = [torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3)]
    model = torch.nn.Sequential(*stack, torch.nn.Linear(8, 1))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def torch_losses(job: Job, parts: Any, indices: Any, lr: float) -> Any:
    """Trains on a batch."""
    import torch

    model, optimizer = parts
    losses = ((model(torch.from_numpy(X[indices])) - torch.from_numpy(Y[indices])) ** 2).mean(1)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    losses.mean().backward()
    optimizer.step()
    job.at_step()
    return losses.detach()


def torch_arrays(parts: Any) -> Any:
    return [each.numpy() for each in parts[0].state_dict().values()]


def mutable_loop(job: Job) -> Any:
    from learnit_r8.loops import every, logs, loop, report_to, scheduled

    def step(state: Any, batch: Any) -> Any:
        return logs().add_metric("loss", torch_losses(job, state, batch.indices, batch.lr))

    parts = torch_parts()
    loop(parts, scheduled(job.r8, lambda indices: indices), {every(1): [step, report_to(job.r8)]})
    return torch_arrays(parts)


def mutable_steps(job: Job) -> Any:
    from learnit_r8.streams import step_stream

    parts = torch_parts()
    for _ in step_stream(job.r8, lambda state, *drawn: (state, torch_losses(job, state, *drawn)), state=parts):
        pass
    return torch_arrays(parts)


def numpy_step(job: Job, state: Any, indices: Any, lr: float) -> Any:
    """Dropout by numpy's global generator, and a running mean of the inputs."""
    mean = 0.9 * state["mean"] + 0.1 * X[indices].mean(0)
    x = (X[indices] - mean) * (np.random.random((len(indices), 6)) < 0.7)
    error = x @ state["w"] - Y[indices]
    job.at_step()
    return {"w": state["w"] - lr * x.T @ error / len(x), "mean": mean}, (error**2).mean(1)


def numpy_parts() -> Any:
    np.random.seed(7)
    return {"w": np.zeros((6, 1)), "mean": np.zeros(6)}


def immutable_loop(job: Job) -> Any:
    from learnit_r8.loops import every, logs, loop, report_to, scheduled

    def step(state: Any, batch: Any) -> Any:
        new, losses = numpy_step(job, state, batch.indices, batch.lr)
        return logs().add_metric("loss", losses), new

    data = scheduled(job.r8, lambda indices: indices)
    state, _, _ = loop(numpy_parts(), data, {every(1): [step, report_to(job.r8)]})
    return state.values()


def immutable_steps(job: Job) -> Any:
    from learnit_r8.streams import step_stream

    for event in step_stream(job.r8, lambda *arguments: numpy_step(job, *arguments), state=numpy_parts()):
        last = event["state"]
    return last.values()


def epochs(job: Job) -> Any:
    import torch

    from learnit_r8.streams import epoch_stream

    model, optimizer = parts = torch_parts()
    optimizer.register_step_post_hook(lambda *_: job.at_step())
    data = torch.from_numpy(X), torch.from_numpy(Y)
    for _ in epoch_stream(data, model, optimizer, torch.nn.MSELoss(), scheduler=job.r8):
        pass
    return torch_arrays(parts)


WAYS: dict[str, Callable[[Job], Any]] = {
    "tensorflow": keras_fit,
    "jax": keras_fit,
    "torch": keras_fit,
    "tf.function": tensor_batches,
    "flax": flax_loop,
    "nnx": nnx_loop,
    "mutable loop": mutable_loop,
    "immutable loop": immutable_loop,
    "mutable steps": mutable_steps,
    "immutable steps": immutable_steps,
    "epochs": epochs,
}


def main() -> None:
    way, folder, *kill_at = sys.argv[1:]
    os.environ["KERAS_BACKEND"] = way if way in ("jax", "torch") else "tensorflow"
    warnings.simplefilter("ignore")
    job = Job(folder, int(kill_at[0]) if kill_at else None)
    print(job.digest(WAYS[way](job)))


if __name__ == "__main__":
    main()

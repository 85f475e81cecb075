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


def tensor_batches(job: Job) -> Any:
    import keras
    import tensorflow as tf
    from keras import layers

    from learnit_r8.keras import batch_dataset, sample_losses
    from learnit_r8.keras.state import as_numpy

    keras.utils.set_random_seed(7)
    stack = [layers.Dense(8, "relu"), layers.BatchNormalization(), layers.Dropout(0.3), layers.Dense(1)]
    model, optimizer = keras.Sequential([keras.Input((6,)), *stack]), keras.optimizers.Adam(0.01)
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


WAYS: dict[str, Callable[[Job], Any]] = {
    "tf.function": tensor_batches,
    "immutable loop": immutable_loop,
    "mutable steps": mutable_steps,
    "immutable steps": immutable_steps,
}
"""Those that `tests/contract` does not kill, or not with dropout."""


def main() -> None:
    way, folder, *kill_at = sys.argv[1:]
    os.environ["KERAS_BACKEND"] = "tensorflow"
    warnings.simplefilter("ignore")
    job = Job(folder, int(kill_at[0]) if kill_at else None)
    print(job.digest(WAYS[way](job)))


if __name__ == "__main__":
    main()

"""Ways of training with JAX and Keras, on one small task that faults break: what `frameworks.py` measures.

A linear task with noise, whose lowest loss is known. Each way trains 600 steps and is broken once or twice. Keras reads
its back end once a process, so every way runs in a process of its own.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import numpy as np
from framework_faults import BATCH, NUM_INPUTS, NUM_SAMPLES, NUM_STEPS, Faults, Task

Run = Callable[[Task, Faults], float]


def two_devices() -> Any:
    """The scope of a MirroredStrategy on TensorFlow, of DataParallel on JAX."""
    import keras

    if keras.backend.backend() == "jax":
        return keras.distribution.DataParallel(devices=["cpu:0", "cpu:1"]).scope()
    import tensorflow as tf

    halves = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()


def keras_devices(task: Task, faults: Faults) -> float:
    """``model.fit`` on two virtual devices."""
    with two_devices():
        return keras_fit(task, faults)


def keras_fit(task: Task, faults: Faults) -> float:
    """``model.fit``; the faults come through a variable in the model and a callback after R8Callback."""
    import keras

    from learnit_r8.keras import R8Callback, R8Dataset

    class Factor(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.by = self.add_weight(shape=(), initializer="ones", trainable=False, name="by")

        def call(self, inputs: Any) -> Any:
            return inputs * self.by

    class Break(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            by, weights, rate = faults.of(r8.global_step)
            if hasattr(model, "jax_state_sync"):
                model.jax_state_sync()
            factor.by.assign(by)
            if weights != 1:
                for each in model.trainable_variables:
                    each.assign(each * weights)
            if rate != 1:
                optimizer.learning_rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate)) * rate

    keras.utils.set_random_seed(task.seed)
    factor, optimizer = Factor(), keras.optimizers.Adam(0.03)
    model = keras.Sequential([keras.Input((NUM_INPUTS,)), factor, keras.layers.Dense(4), keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    r8 = task.scheduler(0.03)
    dataset = R8Dataset(task.x, task.y, r8)
    model.fit(dataset, epochs=99, shuffle=False, verbose=0, callbacks=[R8Callback(dataset), Break()])
    assert r8.is_over
    return task.loss(lambda x: model.predict(x, verbose=0, batch_size=NUM_SAMPLES))


def jax_step(axis: str | None = None) -> Callable[..., Any]:
    """A step of a linear model in a TrainState, with what breaks it among its arguments; of ``pmap`` with its axis."""
    import jax

    def step(state: Any, x: Any, y: Any, weights: Any, rate: Any) -> Any:
        params = jax.tree.map(lambda each: each * weights, state.params)

        def loss_fn(params: Any) -> Any:
            losses = ((x @ params["w"] - y) ** 2).mean(1)
            return losses.mean(), losses

        grads, losses = jax.grad(loss_fn, has_aux=True)(params)
        grads = grads if axis is None else jax.lax.pmean(grads, axis)
        new = state.replace(params=params).apply_gradients(grads=jax.tree.map(lambda each: each * rate, grads))
        return new, losses

    return step


def fresh_state() -> Any:
    import jax.numpy as jnp
    import optax

    from learnit_r8.flax import TrainState

    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    return TrainState.create(apply_fn=None, params={"w": jnp.zeros((NUM_INPUTS, 1))}, tx=tx)


def as_it_is(batch: Any) -> Any:
    return batch


def train_flax(
    task: Task, faults: Faults, jitted: Callable[..., Any], state: Any, place: Callable[[Any], Any] = as_it_is
) -> Any:
    """The state after ``flax.train_loop``; ``place`` puts a batch on the devices."""
    import jax

    from learnit_r8.flax import train_loop

    r8 = task.scheduler(0.05)

    def step(state: Any, batch: Any, key: Any) -> Any:
        new, losses = jitted(state, *batch)
        return new, {"loss": losses.mean(), "losses": losses}

    def data(indices: Any) -> Any:
        by, weights, rate = faults.of(r8.global_step)
        return *place((task.x[indices] * by, task.y[indices])), weights, rate

    key = jax.random.key(task.seed)
    return train_loop(state, step, data, rng_key=key, scheduler=r8, show_progress=False)[0]


def flax_loop(task: Task, faults: Faults) -> float:
    """``flax.train_loop`` of a TrainState whose buffers the step is given to keep."""
    import jax

    state = train_flax(task, faults, jax.jit(jax_step(), donate_argnums=0), fresh_state())
    return task.loss(lambda x: x @ np.asarray(state.params["w"]))


def spread() -> tuple[Any, Callable[[Any], Any]]:
    """A fresh state whose weights are divided between two virtual devices, and what divides a batch."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), ("all",))
    divided, repeated = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())
    state = jax.tree.map(lambda leaf: jax.device_put(leaf, divided if np.ndim(leaf) == 2 else repeated), fresh_state())
    return state, lambda batch: jax.device_put(batch, divided)


def flax_sharded(task: Task, faults: Faults) -> float:
    """``flax.train_loop`` with ``jit`` and shardings over two virtual devices."""
    import jax

    state, place = spread()
    state = train_flax(task, faults, jax.jit(jax_step()), state, place)
    return task.loss(lambda x: x @ np.asarray(state.params["w"]))


def flax_pmap(task: Task, faults: Faults) -> float:
    """``flax.train_loop`` with ``pmap`` over two virtual devices, which keeps the buffers of the state."""
    import jax
    from flax import jax_utils

    jitted = jax.pmap(jax_step("all"), axis_name="all", in_axes=(0, 0, 0, None, None), donate_argnums=0)

    def divide(batch: Any) -> Any:
        return [part.reshape(2, -1, part.shape[-1]) for part in batch]

    state = train_flax(task, faults, jitted, jax_utils.replicate(fresh_state()), divide)
    return task.loss(lambda x: x @ np.asarray(state.params["w"][0]))


def jax_by_hand(task: Task, faults: Faults) -> float:
    """A loop with `ManagedState`, ``jit`` and shardings over two virtual devices."""
    import jax

    from learnit_r8.flax import ManagedState

    (state, place), r8, jitted = spread(), task.scheduler(0.05), jax.jit(jax_step(), donate_argnums=0)
    managed = ManagedState(r8, state)
    for _ in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            by, weights, rate = faults.of(r8.global_step)
            batch = place((task.x[indices] * by, task.y[indices]))
            managed.report(*jitted(managed.for_step(lr), *batch, weights, rate))
    return task.loss(lambda x: x @ np.asarray(managed.state.params["w"]))


def nnx_loop(task: Task, faults: Faults) -> float:
    """``flax.train_loop`` of an NNX model and its optimizer, which change in place."""
    import jax
    import optax
    from flax import nnx

    from learnit_r8.flax import train_loop

    @nnx.jit
    def jitted(model: Any, optimizer: Any, x: Any, y: Any, rate: Any) -> Any:
        def loss_fn(model: Any) -> Any:
            losses = ((model(x) - y) ** 2).mean(1)
            return losses.mean(), losses

        grads, losses = nnx.grad(loss_fn, has_aux=True)(model)
        optimizer.update(model, jax.tree.map(lambda each: each * rate, grads))
        return losses

    def step(state: Any, batch: Any, key: Any) -> Any:
        *arguments, weights, rate = batch
        if weights != 1:
            nnx.update(model, jax.tree.map(lambda each: each * weights, nnx.state(model, nnx.Param)))
        losses = jitted(*state, *arguments, rate)
        return state, {"loss": losses.mean(), "losses": losses}

    def data(indices: Any) -> Any:
        by, weights, rate = faults.of(r8.global_step)
        return task.x[indices] * by, task.y[indices], weights, rate

    r8, model = task.scheduler(0.05), nnx.Linear(NUM_INPUTS, 1, rngs=nnx.Rngs(task.seed))
    parts = model, nnx.Optimizer(model, optax.inject_hyperparams(optax.sgd)(learning_rate=0.0), wrt=nnx.Param)
    train_loop(parts, step, data, rng_key=jax.random.key(task.seed), scheduler=r8, show_progress=False)
    return task.loss(model)


def attached(task: Task, faults: Faults) -> float:
    """torch's ``attach``, for comparison: what the others must do as well as."""
    import torch

    from learnit_r8.torch import attach

    torch.set_num_threads(1)
    torch.manual_seed(task.seed)
    model = torch.nn.Sequential(torch.nn.Linear(NUM_INPUTS, 4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    data = torch.utils.data.TensorDataset(torch.from_numpy(task.x), torch.from_numpy(task.y))
    adapter = attach(model, optimizer, data, batch_size=BATCH, num_steps=NUM_STEPS, seed=task.seed)
    hook = optimizer.register_step_pre_hook(lambda own, *_: scale_rates(own, rate))
    for _ in adapter.epochs():
        for x, y in adapter.loader():
            by, weights, rate = faults.of(adapter.scheduler.global_step)
            with torch.no_grad():
                for each in model.parameters():
                    each.mul_(float(weights))
            adapter.step(adapter.loss(((model(x * float(by)) - y) ** 2).mean(1)))
    hook.remove()
    with torch.no_grad():
        return task.loss(lambda x: model(torch.from_numpy(x)))


def scale_rates(optimizer: Any, by: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= float(by)


WAYS: dict[str, Run] = {
    "torch attach": attached,
    "keras fit, tensorflow": keras_fit,
    "keras fit, jax": keras_fit,
    "keras fit, torch": keras_fit,
    "keras fit, tensorflow, 2": keras_devices,
    "keras fit, jax, 2": keras_devices,
    "flax, donated": flax_loop,
    "flax, nnx": nnx_loop,
    "flax, sharded, 2": flax_sharded,
    "flax, pmap, 2": flax_pmap,
    "jax by hand, 2": jax_by_hand,
}


def measure(way: str, num_faults: int, kinds: list[str], seeds: list[int]) -> list[dict[str, Any]]:
    """The last loss of one way with faults of each kind, over that without, for each seed; once a process."""
    os.environ["KERAS_BACKEND"] = way.partition("keras fit, ")[2].partition(",")[0] or "tensorflow"
    if way.endswith(", 2"):
        os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
    # Refused losses are told as warnings; here they are the point.
    warnings.simplefilter("ignore")
    results = []
    for seed in seeds:
        task = Task(seed)
        undisturbed = WAYS[way](task, Faults(None, seed, num_faults))
        for kind in kinds:
            faults = Faults(kind, seed, num_faults)
            try:
                loss = WAYS[way](task, faults)
                faults.check()
            except Exception as error:
                print(f"{way}, seed {seed}, {kind}: {type(error).__name__}: {error}", file=sys.stderr)
                loss = math.inf
            results.append({"seed": seed, "kind": kind, "ratio": loss / undisturbed})
    return results

"""What one of two processes of jax.distributed does in test_processes.py: `process_jobs.py RANK PORT FOLDER`."""

import contextlib
import json
import os
import sys
import warnings

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from learnit_r8 import R8Scheduler
from learnit_r8.bridge.ranks import RanksDiffer
from learnit_r8.flax import ManagedState, TrainState, train_loop
from learnit_r8.flax.processes import whole

warnings.simplefilter("ignore")
RANK, PORT, FOLDER = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{PORT}", 2, RANK)
MESH = Mesh(np.array(jax.devices()), ("all",))
SPREAD, REPEATED = NamedSharding(MESH, PartitionSpec("all")), NamedSharding(MESH, PartitionSpec())
EPOCHS = 4
rng = np.random.default_rng(0)
X = rng.normal(size=(256, 8)).astype("f4")
Y = X @ rng.normal(size=(8, 4)).astype("f4")


class Killed(Exception):
    pass


def fresh():
    def place(value):
        value = np.asarray(value)
        sharding = SPREAD if value.ndim == 2 else REPEATED
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    params = {"w": np.zeros((8, 4), "f4"), "b": np.zeros(4, "f4")}
    tx = optax.inject_hyperparams(optax.adam)(learning_rate=0.02)
    return jax.tree.map(place, TrainState.create(apply_fn=None, params=params, tx=tx))


def one_step(state, batch, key):
    def loss_fn(params):
        losses = ((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2).mean(1)
        return losses.mean(), losses

    (loss, losses), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), {"loss": loss, "losses": losses}


STEP = jax.jit(one_step, donate_argnums=0)


def train(r8, *, nan_at=None, stop_at=None, kill_at=None):
    """The last weights' digest and what the scheduler says; the fault is in the data of process 1 alone."""

    def batch_of(rows):
        mine = rows[RANK * 8 : RANK * 8 + 8]
        factor = np.float32("nan" if RANK == 1 and r8.global_step == nan_at and not r8.sentry.num_refused else 1)
        parts = {"x": X[mine] * factor, "y": Y[mine]}
        return {name: jax.make_array_from_process_local_data(SPREAD, part) for name, part in parts.items()}

    def data(epoch):
        return map(batch_of, np.random.default_rng(epoch).permutation(256).reshape(-1, 16))

    def after_step(loop_state):
        if loop_state.elapsed.steps == kill_at:
            raise Killed
        if RANK == 1 and loop_state.elapsed.steps == stop_at:
            r8.requests.stop("enough")

    is_own = r8.feed is not None
    state, _ = train_loop(
        fresh(), STEP, data if is_own else batch_of, num_epochs=EPOCHS, rng_key=jax.random.key(0), scheduler=r8,
        show_progress=False, callbacks=[after_step], backup_every=10,
    )  # fmt: skip
    assert state.params["w"].sharding == SPREAD
    weights, bias = whole(state.params["w"]), whole(state.params["b"])
    loss = float(((X @ weights + bias - Y) ** 2).mean())
    return [weights.tolist(), loss, r8.global_step, r8.sentry.num_refused, r8.table.source]


def own(**more):
    return R8Scheduler(scheduler_mode="keep", **more)


def drawn(**more):
    return R8Scheduler(256, batch_size=16, num_epochs=EPOCHS, initial_lr=0.05, **more)


def resumed(make, name):
    """A run that is killed in mid-epoch, and goes on in a fresh scheduler."""
    settings = {"checkpoint_dir": os.path.join(FOLDER, name), "checkpoint_every": 10, "resume": "auto"}
    with contextlib.suppress(Killed):
        train(make(**settings), kill_at=37)
    r8 = make(**settings)
    assert r8.global_step == 30
    return train(r8)


def refusal(job):
    try:
        job()
    except (RanksDiffer, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def report_what_is_here():
    """Each process reports the loss of its own part of the batch."""
    managed = ManagedState(own(num_steps=4), fresh())
    managed.report(managed.for_step(), float(RANK + 1))


found = {}
for name, make in {"own": own, "drawn": drawn}.items():
    found[name] = {
        "whole": train(make()),
        "resumed": resumed(make, name),
        "healed": train(make(), nan_at=60),
    }
found["stopped"] = train(own(), stop_at=21)[2]
found["local loss"] = refusal(report_what_is_here)
found["folder"] = refusal(lambda: ManagedState(own(run_dir=os.path.join(FOLDER, "run") if RANK else None), fresh()))
with open(os.path.join(FOLDER, f"found{RANK}.json"), "w") as file:
    json.dump(found, file)
jax.distributed.shutdown()

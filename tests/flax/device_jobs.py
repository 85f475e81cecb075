"""What test_devices.py runs on several virtual devices: `device_jobs.py NUM_DEVICES FOLDER`."""

import contextlib
import json
import os
import sys
import warnings
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[1]}"

import jax
import numpy as np
import optax
from flax import jax_utils, nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from learnit_r8 import R8Scheduler, events
from learnit_r8.flax import ManagedState, TrainState, train_loop
from learnit_r8.testing import record_events

warnings.simplefilter("ignore")
NUM, FOLDER = int(sys.argv[1]), Path(sys.argv[2])
MESH = Mesh(np.array(jax.devices()), ("all",))
SPREAD, REPEATED = NamedSharding(MESH, PartitionSpec("all")), NamedSharding(MESH, PartitionSpec())
EPOCHS = 10
rng = np.random.default_rng(0)
X = rng.normal(size=(256, 8)).astype("f4")
Y = X @ rng.normal(size=(8, 4)).astype("f4") + 0.3 * rng.normal(size=(256, 4)).astype("f4")
TX = optax.inject_hyperparams(optax.adam)(learning_rate=0.05)


class Killed(Exception):
    pass


def losses_of(params, batch):
    return ((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2).mean(-1)


def one_step(state, batch, axis=None):
    def loss_fn(params):
        losses = losses_of(params, batch)
        return losses.mean(), losses

    (loss, losses), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    if axis is not None:
        grads, loss = jax.lax.pmean((grads, loss), axis)
    return state.apply_gradients(grads=grads), {"loss": loss, "losses": losses}


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(params=0, dropout=1)
        self.linear = nnx.Linear(8, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)


@nnx.jit
def nnx_step(model, optimizer, batch):
    def loss_fn(model):
        losses = ((model.linear(model.dropout(batch["x"])) - batch["y"]) ** 2).mean(-1)
        return losses.mean(), losses

    (loss, losses), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
    optimizer.update(model, grads)
    return {"loss": loss, "losses": losses}


STEPS = {
    "repeated": jax.jit(one_step),
    "spread": jax.jit(one_step),
    "donated": jax.jit(one_step, donate_argnums=0),
    "pmap": jax.pmap(lambda state, batch: one_step(state, batch, "all"), axis_name="all", donate_argnums=0),
    "nnx": lambda state, batch: (state, nnx_step(*state[:2], batch)),
}


def fresh(kind):
    if kind == "nnx":
        model = Net()
        optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
        for part in (model, optimizer):
            nnx.update(part, jax.device_put(nnx.state(part), REPEATED))
        # The generators of its own are in the state as well.
        return model, optimizer, nnx.Rngs(5)
    params = {"w": np.zeros((8, 4), "f4"), "b": np.zeros(4, "f4")}
    state = TrainState.create(apply_fn=None, params=params, tx=TX)
    if kind == "pmap":
        return jax_utils.replicate(state)
    if kind == "repeated":
        return jax.device_put(state, REPEATED)
    return jax.tree.map(lambda leaf: jax.device_put(leaf, SPREAD if np.ndim(leaf) == 2 else REPEATED), state)


def numbers_of(state):
    """All numbers of a state."""
    if isinstance(state, tuple) and not hasattr(state, "_fields"):
        state = [nnx.state(part) for part in state]
    keys = jax.dtypes.prng_key
    leaves = (
        jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, keys) else leaf
        for leaf in jax.tree.leaves(state)
        if hasattr(leaf, "dtype")
    )
    return [np.asarray(leaf) for leaf in leaves]


def placed(kind, rows, factor=np.float32(1)):
    batch = {"x": X[rows] * factor, "y": Y[rows], "id": rows}
    if kind == "pmap":
        return {name: part.reshape(NUM, -1, *part.shape[1:]) for name, part in batch.items()}
    return jax.device_put(batch, SPREAD)


def run(kind, r8, *, nan_at=(), kill_at=None, by_hand=False):
    """A training; returns the last loss, the refused batches, where losses come from, and all numbers."""
    step, left, is_own = STEPS[kind], set(nan_at), r8.feed is not None

    def batch_of(rows):
        factor = np.float32("nan" if r8.global_step in left else 1)
        left.discard(r8.global_step)
        return placed(kind, rows, factor)

    def data(epoch):
        return map(batch_of, np.random.default_rng(epoch).permutation(256).reshape(-1, 16))

    def after_step(loop_state):
        if loop_state.elapsed.steps == kill_at:
            raise Killed

    ids = (lambda batch: np.asarray(batch["id"]).reshape(-1)) if is_own else None
    if by_hand:
        managed = ManagedState(r8, fresh(kind), backup_every=10)
        for epoch in range(r8.current_epoch, EPOCHS):
            for batch in r8.batches(data(epoch)):
                state, metrics = step(managed.for_step(), batch)
                managed.report(state, metrics["losses"])
        state = managed.state
    else:
        state, _ = train_loop(
            fresh(kind), lambda state, batch, key: step(state, batch), data if is_own else batch_of, num_epochs=EPOCHS,
            rng_key=jax.random.key(0), scheduler=r8, show_progress=False, callbacks=[after_step], ids=ids,
            backup_every=10,
        )  # fmt: skip
    want, got = (jax.tree.leaves(nnx.state(each[0]) if kind == "nnx" else each.params) for each in (fresh(kind), state))
    assert kind == "pmap" or [leaf.sharding for leaf in want] == [leaf.sharding for leaf in got], kind
    if kind == "nnx":
        loss = float(((state[0].linear(X) - Y) ** 2).mean())
    else:
        params = jax_utils.unreplicate(state.params) if kind == "pmap" else state.params
        loss = float(losses_of(params, {"x": X, "y": Y}).mean())
    return loss, r8.sentry.num_refused, r8.table.source, numbers_of(state)


def make(is_own, **more):
    if is_own:
        return R8Scheduler(scheduler_mode="keep", **more)
    return R8Scheduler(256, batch_size=16, num_epochs=EPOCHS, initial_lr=0.05, **more)


found = {}
for kind in STEPS if NUM == 2 else ("spread", "pmap", "nnx"):
    for is_own in (False, True):
        settings = {"checkpoint_dir": FOLDER / f"{NUM} {kind} {is_own}", "checkpoint_every": 10, "resume": "auto"}
        whole = run(kind, make(is_own))
        healed = run(kind, make(is_own), nan_at=(30, 55))
        with contextlib.suppress(Killed):
            run(kind, make(is_own, **settings), kill_at=37)
        r8 = make(is_own, **settings)
        assert r8.global_step == 30
        resumed = run(kind, r8)
        is_exact = all(map(np.array_equal, whole[3], resumed[3]))
        found[f"{kind} {'own' if is_own else 'drawn'}"] = [*whole[:3], *healed[:3], is_exact]
whole = run("spread", make(True), by_hand=True)
healed = run("spread", make(True), by_hand=True, nan_at=(30, 55))
found["by hand"] = [*whole[:3], *healed[:3], True]

# A sample of the last device's part is not finite.
heard, bad = record_events(), {}
r8 = make(False, listeners=[heard])


def spoil(rows):
    if r8.global_step == 30 and not bad:
        bad["sample"] = int(rows[-2])
    x = X[rows]
    x[rows == bad.get("sample", -1), 3] = np.nan
    return {"x": x.reshape(NUM, -1, 8), "y": Y[rows].reshape(NUM, -1, 4)}


step = jax.pmap(lambda state, batch, key: one_step(state, batch, "all"), axis_name="all", in_axes=(0, 0, None))
train_loop(fresh("pmap"), step, spoil, rng_key=jax.random.key(0), scheduler=r8, show_progress=False, backup_every=10)
told = heard.of(events.CauseFound)[0]
found["cause"] = [told.samples, bad["sample"], told.fault, told.is_certain, told.text]

# The next one goes on from what another number of devices has left here.
moved, is_first = {}, NUM == 2
for kind in ("spread", "pmap"):
    settings = {"checkpoint_dir": FOLDER / f"moved {kind}", "checkpoint_every": 10, "resume": "auto"}
    try:
        with contextlib.suppress(Killed):
            moved[kind] = run(kind, make(True, **settings), kill_at=25 if is_first else None)[:2]
    except RuntimeError as error:
        moved[kind] = str(error)
found["moved"] = moved
(FOLDER / f"found{NUM}.json").write_text(json.dumps(found))

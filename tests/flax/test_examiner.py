"""Where an incident of train_loop began: module, sample, gradient; and the state of the loop stays as it is."""

from __future__ import annotations

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, events
from learnit_r8.engine.settings import grouped
from learnit_r8.recovery import record
from learnit_r8.recovery.record import read_part
from learnit_r8.testing import record_events

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
r8flax = pytest.importorskip("learnit_r8.flax", exc_type=ImportError)
linen = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")
pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore")]
jnp = jax.numpy
BAD, SIZE, BATCH = 37, 128, 16


class Net(linen.Module):
    """A gate without a bound between two layers, and dropout."""

    @linen.compact
    def __call__(self, x):
        hidden = linen.Dense(8, name="first")(x)
        hidden = Gate(name="gate")(hidden)
        hidden = linen.Dropout(0.1, deterministic=False)(hidden)
        return linen.Dense(1, name="head")(hidden)


class Gate(linen.Module):
    """e to the input."""

    @linen.compact
    def __call__(self, x):
        return jnp.exp(x)


def step(state, batch, key):
    def loss_of(params):
        predicted = state.apply_fn({"params": params}, batch["x"], rngs={"dropout": key})
        losses = ((predicted - batch["y"]) ** 2).mean(1)
        # Of a distance of zero the root has no gradient.
        losses = losses + jnp.sqrt(batch["weight"] * (predicted[:, 0] + 9) ** 2) * 1e-3
        return losses.mean(), losses

    (loss, losses), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), {"loss": loss, "losses": losses}


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SIZE, 4)).astype("float32")
    return {"x": x, "y": x[:, :1].copy(), "weight": np.ones(SIZE, "float32")}


def told(columns, *, train_step=None, state=None, **more):
    heard = record_events()
    r8 = R8Scheduler(
        SIZE, batch_size=BATCH, num_epochs=2, initial_lr=0.01, guard="finite", listeners=[heard], **grouped(more)
    )  # fmt: skip
    if state is None:
        net = Net()
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        params = net.init(keys, jnp.zeros((1, 4)))["params"]
        tx = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)
        state = r8flax.TrainState.create(apply_fn=net.apply, params=params, tx=tx)
    r8flax.train_loop(
        state, train_step or jax.jit(step), lambda rows: {name: each[rows] for name, each in columns.items()},
        rng_key=jax.random.key(2), scheduler=r8, show_progress=False,
    )  # fmt: skip
    r8.close()
    return heard.of(events.CauseFound)


@pytest.mark.parametrize("donates", [False, True])
def test_the_sample_and_the_module_are_named(tmp_path, donates, monkeypatch):
    """NaN in an input, twice in the run, also where the step keeps the buffers of the state; the batch is recorded."""
    # The first search traces the step once more, which may take all the time that a short run allows.
    monkeypatch.setattr(record, "LEAST_SECONDS", 100.0)
    columns = data()
    columns["x"][BAD, 2] = columns["x"][3, 1] = np.nan
    found = told(
        columns, train_step=jax.jit(step, donate_argnums=0 if donates else ()), run_dir=tmp_path, record="all"
    )  # fmt: skip

    assert {each.samples for each in found} == {(BAD,), (3,)}
    for each in found:
        assert (each.fault, each.where, each.is_certain) == ("input", "first", True)
        assert "NaN first in `first` (forward), for sample" in each.text
    assert not np.isfinite(read_part(tmp_path / "incidents" / "1", "batch")["batch"]["x"]).all()


def test_an_overflow_and_a_gradient_are_told_apart():
    """e to a value that is far off, in its module; and a loss that is finite, whose gradient is not."""
    columns = data()
    columns["x"][BAD] = 400.0
    found = told(columns)[0]
    assert (found.fault, found.where, found.samples, found.is_certain) == ("forward", "gate", (BAD,), True)

    columns = data()
    columns["weight"][BAD] = 0.0
    found = told(columns)[0]
    assert (found.fault, found.samples, found.is_certain) == ("backward", (BAD,), True)
    assert "the weights are healthy" in found.text


def test_a_batch_that_is_one_array():
    """It is looked at like any other, beside a state that counts its steps."""

    @jax.jit
    def bare(state, batch, key):
        def loss_of(params):
            losses = ((batch @ params["w"] - 1) ** 2).mean(1)
            return losses.mean(), losses

        grads, losses = jax.grad(loss_of, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads), {"losses": losses}

    heard, x = record_events(), data()["x"]
    x[BAD, 2] = np.nan
    r8 = R8Scheduler(SIZE, batch_size=BATCH, num_epochs=1, initial_lr=0.01, guard="finite", listeners=[heard])
    tx = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)
    state = r8flax.TrainState.create(apply_fn=None, params={"w": jnp.zeros((4, 1))}, tx=tx)
    r8flax.train_loop(state, bare, lambda rows: x[rows], rng_key=jax.random.key(2), scheduler=r8, show_progress=False)
    (found, *_) = heard.of(events.CauseFound)

    assert (found.fault, found.samples, found.is_certain) == ("input", (BAD,), True), found.text


def test_modules_of_nnx_are_named_by_their_path():
    """They change in place, and are as they were after the search."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first, self.gates = nnx.Linear(4, 8, rngs=rngs), nnx.List([NnxGate(), NnxGate()])
            self.head = nnx.Linear(8, 1, rngs=rngs)

        def __call__(self, x):
            return self.head(self.gates[1](self.gates[0](self.first(x)) * 0 + self.first(x)))

    class NnxGate(nnx.Module):
        def __call__(self, x):
            return jnp.exp(x)

    @nnx.jit
    def inner(model, optimizer, batch):
        def loss_of(model):
            losses = ((model(batch["x"]) - batch["y"]) ** 2).mean(1)
            return losses.mean(), losses

        (loss, losses), grads = nnx.value_and_grad(loss_of, has_aux=True)(model)
        optimizer.update(model, grads)
        return loss, losses

    def nnx_step(state, batch, key):
        loss, losses = inner(*state, batch)
        return state, {"loss": loss, "losses": losses}

    model = Model(nnx.Rngs(0))
    tx = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)
    columns = data()
    columns["x"][BAD] = 400.0
    found = told(columns, train_step=nnx_step, state=(model, nnx.Optimizer(model, tx, wrt=nnx.Param)))[0]

    assert (found.fault, found.where, found.samples) == ("forward", "gates.0", (BAD,))
    assert all(bool(jnp.isfinite(each).all()) for each in jax.tree_util.tree_leaves(nnx.state(model)))
    assert not hasattr(Model.__call__, "__wrapped__")


def test_a_search_changes_nothing():
    """With and without it a run ends with the same weights, to the bit."""
    columns = data()
    columns["x"][BAD, 2] = np.nan

    def weights(record):
        net = Net()
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        params = net.init(keys, jnp.zeros((1, 4)))["params"]
        tx = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)
        r8 = R8Scheduler(SIZE, batch_size=BATCH, num_epochs=2, initial_lr=0.01, guard="finite")
        if not record:
            r8.controller._cause_search._looks.update({"not finite": 99})
        state, _ = r8flax.train_loop(
            r8flax.TrainState.create(apply_fn=net.apply, params=params, tx=tx), jax.jit(step),
            lambda rows: {name: each[rows] for name, each in columns.items()}, rng_key=jax.random.key(2), scheduler=r8,
            show_progress=False,
        )  # fmt: skip
        return jax.tree_util.tree_leaves(state.params)

    assert all(np.array_equal(a, b) for a, b in zip(weights(True), weights(False), strict=True))

"""JAX: `train_loop` over one's own data and over R8's batches, and `ManagedState` in a loop of one's own."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from learnit_r8 import R8Scheduler
from learnit_r8.flax import ManagedState, TrainState, train_loop

from . import task


def logits_of(weights, x, activation):
    hidden = x @ weights["w1"] + weights["b1"]
    hidden = jnp.tanh(hidden) if activation == "tanh" else jnp.where(hidden > 0, hidden, 0.0)
    return hidden @ weights["w2"] + weights["b2"]


def losses_of(weights, x, y, activation):
    return optax.softmax_cross_entropy_with_integer_labels(logits_of(weights, x, activation), y)


def sgd():
    return optax.inject_hyperparams(optax.sgd)(learning_rate=task.RATE, momentum=task.MOMENTUM)


@jax.jit(static_argnames="activation")
def tree_step(state, x, y, activation):
    """A step of a TrainState."""

    def loss_of(params):
        losses = losses_of(params, x, y, activation)
        return losses.mean(), losses

    found, losses = jax.grad(loss_of, has_aux=True)(state.params)
    return state.apply_gradients(grads=found), losses


class Tree:
    """The state as a `TrainState`."""

    def build(self, run):
        return TrainState.create(apply_fn=None, params=jax.tree.map(jnp.asarray, task.first_weights()), tx=sgd())

    def step(self, run, state, x, y):
        """One turn of the loop, with the damage and the rate that the run has in store for it."""
        factor = run.begin_turn()
        if factor is not None:
            hurt = {name: jnp.asarray(run.hurt(name, np.asarray(each), factor)) for name, each in state.params.items()}
            state = state.replace(params=hurt)
        if run.rate is not None:
            rates = {**state.opt_state.hyperparams, "learning_rate": jnp.float32(run.rate)}
            state = state.replace(opt_state=state.opt_state._replace(hyperparams=rates))
        return tree_step(state, x, y, run.case.activation)

    def read(self, state):
        return {name: np.asarray(each).copy() for name, each in state.params.items()}

    def optimizer_of(self, state):
        return [np.asarray(each) for each in jax.tree.leaves(state.opt_state.inner_state)]

    def write_down(self, run, state):
        run.weights, run.optimizer, run.generators = self.read(state), self.optimizer_of(state), np.zeros(0)


class Nnx(Tree):
    """The state as a model and an optimizer of NNX, which change in place."""

    def build(self, run):
        class Network(nnx.Module):
            def __init__(self):
                for name, each in task.first_weights().items():
                    setattr(self, name, nnx.Param(jnp.asarray(each)))

        model = Network()
        return model, nnx.Optimizer(model, sgd(), wrt=nnx.Param)

    def step(self, run, state, x, y):
        model, optimizer = state
        factor = run.begin_turn()
        if factor is not None:
            for name, each in self.read(state).items():
                getattr(model, name)[...] = jnp.asarray(run.hurt(name, each, factor))
        return state, nnx_step(model, optimizer, x, y, run.case.activation)

    def read(self, state):
        return {name: np.asarray(getattr(state[0], name)[...]).copy() for name in task.SHAPES}

    def optimizer_of(self, state):
        return [np.asarray(each) for each in jax.tree.leaves(nnx.state(state[1]))]


@nnx.jit(static_argnames="activation")
def nnx_step(model, optimizer, x, y, activation):
    def loss_of(model):
        weights = {name: getattr(model, name)[...] for name in task.SHAPES}
        losses = losses_of(weights, x, y, activation)
        return losses.mean(), losses

    found, losses = nnx.grad(loss_of, has_aux=True)(model)
    optimizer.update(model, found)
    return losses


class Equinox(Tree):
    """The state as a module of Equinox, which holds a function beside its arrays, and the state of its optimizer."""

    def build(self, run):
        import equinox as eqx

        class Network(eqx.Module):
            weights: dict
            activation: object

        activation = {"tanh": jnp.tanh, "relu": jax.nn.relu}[run.case.activation]
        model = Network(jax.tree.map(jnp.asarray, task.first_weights()), activation)
        self.transform = sgd()

        @eqx.filter_jit
        def take(state, x, y):
            model, held = state

            def loss_of(model):
                hidden = model.activation(x @ model.weights["w1"] + model.weights["b1"])
                logits = hidden @ model.weights["w2"] + model.weights["b2"]
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
                return losses.mean(), losses

            found, losses = eqx.filter_grad(loss_of, has_aux=True)(model)
            updates, held = self.transform.update(found, held, eqx.filter(model, eqx.is_inexact_array))
            return (eqx.apply_updates(model, updates), held), losses

        self.take = take
        return model, self.transform.init(eqx.filter(model, eqx.is_inexact_array))

    def step(self, run, state, x, y):
        model, held = state
        factor = run.begin_turn()
        if factor is not None:
            hurt = {name: jnp.asarray(run.hurt(name, np.asarray(each), factor)) for name, each in model.weights.items()}
            model = type(model)(hurt, model.activation)
        return self.take((model, held), x, y)

    def read(self, state):
        return {name: np.asarray(each).copy() for name, each in state[0].weights.items()}

    def optimizer_of(self, state):
        return [np.asarray(each) for each in jax.tree.leaves(state[1].inner_state)]


class TrainLoop(Tree):
    """`train_loop` over R8's batches."""

    own = False

    def train(self, run):
        given = {"batch_size": task.BATCH, "initial_lr": task.RATE, **task.CONSTANT, **run.settings, **run.files}
        run.r8 = r8 = R8Scheduler(task.NUM_SAMPLES, num_epochs=run.case.epochs, **given)
        with r8:
            self.fit(run, run.fetch, scheduler=r8)

    def plain(self, run):
        self.fit(run, self.data(run), num_epochs=run.case.epochs)

    def data(self, run):
        return lambda epoch: (run.fetch(rows) for rows in run.epoch_of_rows(epoch))

    def fit(self, run, data, **given):
        def step(state, batch, key):
            state, losses = self.step(run, state, *batch)
            return state, {"loss": losses.mean(), "losses": losses}

        def validate(state, batch, key):
            loss = losses_of(state.params, *batch, run.case.activation).mean()
            run.end_epoch(self.read(state), val_loss=loss)
            return state, {"loss": loss}

        validation = [(task.VAL_X, task.VAL_Y)]
        state, history = train_loop(
            self.build(run), step, data, rng_key=jax.random.key(0), val_step_fn=validate, val_data_iterator=validation,
            show_progress=False, **given,
        )  # fmt: skip
        for logged, loss in zip(run.logged, history["train_loss"][-len(run.logged) :], strict=True):
            logged["loss"] = loss
        self.write_down(run, state)


class TrainLoopOwn(TrainLoop):
    """`train_loop` over one's own data."""

    own = True

    def train(self, run):
        run.r8 = r8 = R8Scheduler(scheduler_mode="keep", **run.settings, **run.files)
        with r8:
            self.fit(run, self.data(run), num_epochs=run.case.epochs, scheduler=r8)


class Managed(Tree):
    """`ManagedState` in a loop of one's own, over one's own data."""

    own = True

    def train(self, run):
        run.r8 = r8 = R8Scheduler(scheduler_mode="keep", num_epochs=run.case.epochs, **run.settings, **run.files)
        managed = ManagedState(r8, self.build(run))
        with r8:
            for epoch in r8.epoch_iterator():
                for x, y in r8.batches(run.fetch(rows) for rows in run.epoch_of_rows(epoch)):
                    state, losses = self.step(run, managed.for_step(), x, y)
                    managed.report(state, losses.mean())
                self.end_epoch(run, managed.state)
        self.write_down(run, managed.state)

    def plain(self, run):
        state = self.build(run)
        for epoch in range(run.case.epochs):
            for rows in run.epoch_of_rows(epoch):
                state, _ = self.step(run, state, *run.fetch(rows))
            self.end_epoch(run, state)
        self.write_down(run, state)

    def end_epoch(self, run, state):
        weights = self.read(state)
        run.end_epoch(weights, val_loss=task.error(weights, task.VAL_X, task.VAL_Y, run.case.activation))


class ManagedNnx(Nnx, Managed):
    """The same with objects of NNX."""


class ManagedEquinox(Equinox, Managed):
    """The same with a module of Equinox."""


COLUMNS = {
    "train_loop": TrainLoop,
    "train_loop own": TrainLoopOwn,
    "managed state": Managed,
    "managed nnx": ManagedNnx,
    "managed equinox": ManagedEquinox,
}

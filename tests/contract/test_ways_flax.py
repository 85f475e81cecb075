"""Row 10 for JAX: what a step may do besides a gradient and a rate, healthy, healed and resumed."""

import pytest

pytest.importorskip("flax")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from learnit_r8 import R8Scheduler
from learnit_r8.flax import ManagedState, TrainState, train_loop

from . import task
from .columns_flax import losses_of
from .ways import Left, check_healed, check_healthy, check_resumed

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("flax")]
SGD = optax.sgd(task.RATE, momentum=task.MOMENTUM)
WEIGHTS = np.linspace(0.5, 1.5, task.NUM_SAMPLES).astype("f4")
WAYS = {
    "sample weights": SGD,
    "accumulation": optax.MultiSteps(SGD, every_k_schedule=4),
    "clipping": optax.chain(optax.clip_by_global_norm(0.5), SGD),
    "averaged weights": SGD,
    "bfloat16": SGD,
    "evaluation in mid-epoch": SGD,
    "a short last batch": SGD,
}
KINDS = "train_loop own", "train_loop drawn", "managed"


class Averaged(TrainState):
    """With a mean of the weights."""

    mean: dict | None = None


class Script:
    """A training of one way: its batches, and its step, which may ruin a weight or leave.

    Args:
        way: One of `WAYS`.
        hurt_at: The step before which a weight becomes NaN.
        leave_at: The step before which an exception ends the run.
    """

    def __init__(self, way, hurt_at, leave_at):
        self.way, self.hurt_at, self.leave_at, self.num_begun = way, hurt_at, leave_at, 0
        self.count = 250 if way == "a short last batch" else task.NUM_SAMPLES
        params = jax.tree.map(jnp.asarray, task.first_weights())
        self.state = Averaged.create(apply_fn=None, params=params, tx=WAYS[way], mean=params)
        self.compiled = jax.jit(self.take)

    def take(self, state, x, y, weights):
        def loss_of(params):
            if self.way == "bfloat16":
                params, given = jax.tree.map(lambda each: each.astype(jnp.bfloat16), params), x.astype(jnp.bfloat16)
            else:
                given = x
            losses = losses_of(params, given, y, "tanh").astype(jnp.float32)
            return (losses * weights).mean() if self.way == "sample weights" else losses.mean(), losses

        found, losses = jax.grad(loss_of, has_aux=True)(state.params)
        state = state.apply_gradients(grads=found)
        mean = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, state.mean, state.params)
        return state.replace(mean=mean), losses

    def batch(self, rows):
        return task.X[rows], task.Y[rows], WEIGHTS[rows]

    def batches(self, epoch):
        order = np.random.default_rng(epoch).permutation(self.count)
        return (self.batch(order[first : first + task.BATCH]) for first in range(0, self.count, task.BATCH))

    def step(self, state, batch, key=None):
        if self.num_begun == self.leave_at:
            raise Left
        if self.num_begun == self.hurt_at:
            state = state.replace(params={**state.params, "w2": state.params["w2"] * np.nan})
        self.num_begun += 1
        if self.way == "evaluation in mid-epoch" and self.num_begun % 16 == 8:
            losses_of(state.params, task.VAL_X, task.VAL_Y, "tanh").block_until_ready()
        state, losses = self.compiled(state, *batch)
        return state, {"loss": losses.mean(), "losses": losses}


def train(way, kind, folder=None, *, hurt_at=None, leave_at=None):
    """The leaves of the state at the end, its error, and the scheduler; without R8 for the kind "plain"."""
    script, r8 = Script(way, hurt_at, leave_at), None
    files = {} if folder is None else {"checkpoint_dir": folder, "checkpoint_every": 3, "resume": "auto"}
    own = {"scheduler_mode": "keep", "num_epochs": task.EPOCHS, "handle_signals": False, **files}
    data, given = lambda epoch: script.batches(epoch), {"num_epochs": task.EPOCHS}
    if kind == "train_loop drawn":
        drawn = {"policy": "shuffle", "scheduler_mode": "keep", "num_epochs": task.EPOCHS, "handle_signals": False}
        r8 = R8Scheduler(script.count, batch_size=task.BATCH, **drawn, **files)
        data, given = script.batch, {"scheduler": r8}
    elif kind != "plain":
        r8 = R8Scheduler(**own)
        given["scheduler"] = r8
    try:
        if kind == "managed":
            managed = ManagedState(r8, script.state)
            for epoch in r8.epoch_iterator():
                for batch in r8.batches(script.batches(epoch)):
                    state, metrics = script.step(managed.for_step(), batch)
                    managed.report(state, metrics["loss"])
            state = managed.state
        else:
            key = jax.random.key(0)
            state, _ = train_loop(script.state, script.step, data, rng_key=key, show_progress=False, **given)
    except Left:
        r8.host.saver.store.release()
        raise
    if r8 is not None:
        r8.close()
    weights = {name: np.asarray(each) for name, each in state.params.items()}
    return [np.asarray(each) for each in jax.tree.leaves(state)], task.error(weights), r8


@pytest.mark.parametrize("kind", ["train_loop own", "managed"])
@pytest.mark.parametrize("way", WAYS)
def test_healthy(way, kind):
    """The state is to the bit that without R8."""
    check_healthy(train, way, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_healed(way, kind):
    """A weight that becomes NaN costs a batch, and the run ends as well as the one without it."""
    _, hurt = check_healed(train, way, kind)

    assert hurt[2].sentry.num_refused == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_resumed(way, kind, tmp_path):
    """Left in mid-epoch and run again, it ends with the same bits, after the same number of steps."""
    check_resumed(train, way, kind, tmp_path)

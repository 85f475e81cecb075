"""orbax checkpoints that hold state and scheduler: a run that goes on from one is the same run."""

from __future__ import annotations

import numpy as np
import pytest

from learnit_r8 import R8Scheduler

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
orbax = pytest.importorskip("orbax.checkpoint")
r8flax = pytest.importorskip("learnit_r8.flax", exc_type=ImportError)

rng = np.random.default_rng(0)
X = rng.normal(size=(100, 4)).astype("f4")
Y = X.sum(1, keepdims=True)
TX = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)
KEY = jax.random.key(2)


@jax.jit
def step(state, batch, key):
    """With dropout of the inputs."""

    def loss_fn(params):
        kept = jax.random.bernoulli(key, 0.8, batch["x"].shape)
        losses = (((batch["x"] * kept) @ params["w"] - batch["y"]) ** 2).mean(1)
        return losses.mean(), losses

    grads, losses = jax.grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), {"losses": losses}


def scheduler():
    return R8Scheduler(100, batch_size=16, num_epochs=5, initial_lr=0.05)


def fresh():
    return r8flax.TrainState.create(apply_fn=None, params={"w": jax.numpy.zeros((4, 1))}, tx=TX)


def train(state, r8, **more):
    def data(rows):
        return {"x": X[rows], "y": Y[rows]}

    state, _ = r8flax.train_loop(state, step, data, rng_key=KEY, scheduler=r8, show_progress=False, **more)
    return np.asarray(state.params["w"]).tobytes(), r8.table.loss.tobytes()


@pytest.mark.program
@pytest.mark.filterwarnings("ignore")
def test_an_orbax_checkpoint_in_mid_epoch_resumes_exactly(tmp_path):
    """Saved by a callback in the third epoch, and restored into a fresh state and a fresh scheduler."""
    checkpointer, whole = orbax.StandardCheckpointer(), scheduler()

    def save(elapsed, loop_state):
        if elapsed.steps == 17:
            packed = r8flax.pack_scheduler(whole)
            checkpointer.save(tmp_path / "saved", {"state": loop_state.state, "r8": packed})

    expected = train(fresh(), whole, callbacks=[save])
    checkpointer.wait_until_finished()
    packed = checkpointer.restore(tmp_path / "saved")["r8"]
    saved = checkpointer.restore(tmp_path / "saved", {"state": fresh(), "r8": packed})
    resumed = scheduler()
    r8flax.unpack_scheduler(resumed, saved["r8"])

    assert resumed.global_step == 17
    assert train(saved["state"], resumed) == expected


def test_a_damaged_array_is_refused():
    """What is no packed scheduler changes nothing."""
    r8 = scheduler()
    packed = r8flax.pack_scheduler(r8).copy()
    packed[-1] ^= 255

    with pytest.raises(ValueError, match=r"digest|damaged|SHA"):
        r8flax.unpack_scheduler(r8, packed)

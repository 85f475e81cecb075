"""train_loop over data of one's own with a scheduler beside it: to the bit what it is without, healed, resumed."""

from __future__ import annotations

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from tests.healing_common import X, Y

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
r8flax = pytest.importorskip("learnit_r8.flax", exc_type=ImportError)
pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore")]
jnp = jax.numpy

EPOCHS, BATCHES = 5, 32
SCHEDULE = optax.adam(optax.cosine_decay_schedule(0.05, EPOCHS * BATCHES))
NUMBER = optax.inject_hyperparams(optax.adam)(learning_rate=0.02)


@jax.jit
def step(state, batch, key):
    keep = jax.random.bernoulli(key, 0.9, batch["x"].shape)

    def loss_of(params):
        return ((batch["x"] * keep @ params["w"] - batch["y"]) ** 2).mean()

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=grads), {"loss": loss}


donating = jax.jit(step.__wrapped__, donate_argnums=0)


class Data:
    """Batches of an epoch; one of them, over all, is NaN when it is first read."""

    def __init__(self, nan_at=None):
        self._nan_at, self.num_read = nan_at, 0

    def __call__(self, epoch):
        rows = np.random.default_rng(epoch).permutation(len(X))
        for number in range(BATCHES):
            at = rows[16 * number : 16 * number + 16]
            self.num_read += 1
            factor = np.float32("nan") if self.num_read == self._nan_at else np.float32(1)
            yield {"x": X[at] * factor, "y": Y[at]}


def fresh(tx):
    return r8flax.TrainState.create(apply_fn=None, params={"w": jnp.zeros((4, 1))}, tx=tx)


def train(r8, *, tx=SCHEDULE, data=None, train_step=step, epochs=EPOCHS, **more):
    return r8flax.train_loop(
        fresh(tx), train_step, data or Data(), num_epochs=epochs, rng_key=jax.random.key(1), scheduler=r8,
        show_progress=False, **more,
    )  # fmt: skip


def equal(one, two):
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))


@pytest.mark.parametrize(("tx", "train_step"), [(SCHEDULE, step), (NUMBER, donating)], ids=["schedule", "donated"])
def test_nothing_changes_without_an_incident_and_a_nan_is_healed(tx, train_step):
    """State and history are those without a scheduler, an optimizer's own schedule included; a NaN costs a batch."""
    plain, history = train(None, tx=tx, train_step=train_step)
    r8 = R8Scheduler(scheduler_mode="keep")
    watched, seen = train(r8, tx=tx, train_step=train_step)

    assert equal(plain, watched)
    assert history == seen
    assert (r8.global_step, r8.current_epoch, r8.sentry.num_refused) == (EPOCHS * BATCHES, EPOCHS - 1, 0)

    r8 = R8Scheduler(scheduler_mode="keep", steps_per_epoch=BATCHES)
    healed, seen = train(r8, tx=tx, train_step=train_step, data=Data(nan_at=70))
    assert r8.sentry.num_refused >= 1
    assert seen["train_loss"][-1] < 1.1 * history["train_loss"][-1]
    assert len(seen["train_loss"]) == EPOCHS
    assert np.isfinite(healed.params["w"]).all()


def test_resumes_in_mid_epoch(tmp_path):
    """Killed within an epoch and run again, the run goes on with its next batch and key."""

    class Killed(Exception):
        pass

    def kill(loop_state):
        if loop_state.elapsed.steps == 50:
            raise Killed

    def scheduler():
        return R8Scheduler(scheduler_mode="keep", checkpoint_dir=tmp_path, checkpoint_every=20, resume="auto")

    whole, _ = train(R8Scheduler(scheduler_mode="keep"))
    with pytest.raises(Killed):
        train(scheduler(), callbacks=[kill])
    r8 = scheduler()
    assert r8.global_step == 40
    again, _ = train(r8)

    assert r8.global_step == EPOCHS * BATCHES
    assert equal(whole, again)


def test_the_rate_of_inject_hyperparams_is_lowered_for_a_step():
    """Where recovery lowers the rate it is lowered in the state for the step, and whole after it."""
    state = fresh(NUMBER)

    assert r8flax.state.lr_of(state) == pytest.approx(0.02)
    assert r8flax.state.lr_of(r8flax.state.with_lr(state, 0.01)) == pytest.approx(0.01)
    assert r8flax.state.lr_of(fresh(SCHEDULE)) is None


def test_what_cannot_be_is_refused(tmp_path):
    """train_loop's own resume beside such a scheduler, and no number of epochs."""
    with pytest.raises(ValueError, match="resume must be False with a scheduler of your own batches"):
        train(R8Scheduler(scheduler_mode="keep"), resume=True, checkpoint_dir=tmp_path)
    with pytest.raises((TypeError, ValueError), match="num_epochs must be"):
        train(R8Scheduler(scheduler_mode="keep"), epochs=None)

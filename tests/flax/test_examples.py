"""Flax's well-known examples in small (mnist, vae, nlp_seq): unchanged to the bit, healed, resumed exactly."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from learnit_r8 import R8Scheduler

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
linen = pytest.importorskip("flax.linen")
r8flax = pytest.importorskip("learnit_r8.flax", exc_type=ImportError)
pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore")]
jnp = jax.numpy

EPOCHS, BATCHES, SIZE = 4, 20, 16
rng = np.random.default_rng(0)
LABELS = rng.integers(4, size=BATCHES * SIZE)
IMAGES = (rng.normal(size=(4, 8, 8, 1))[LABELS] + 0.5 * rng.normal(size=(len(LABELS), 8, 8, 1))).astype("f4")
WORDS = rng.integers(1, 20, size=(len(LABELS), 6))
TAGS = WORDS % 3


class Cnn(linen.Module):
    """mnist: two convolutions."""

    @linen.compact
    def __call__(self, x, key):
        x = linen.avg_pool(linen.relu(linen.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
        x = linen.relu(linen.Conv(8, (3, 3))(x)).reshape((len(x), -1))
        return linen.Dense(4)(linen.relu(linen.Dense(16)(x)))


class Vae(linen.Module):
    """vae: its noise is drawn from the key of the step."""

    @linen.compact
    def __call__(self, x, key):
        x = x.reshape((len(x), -1))
        hidden = linen.relu(linen.Dense(32)(x))
        mean, log_variance = linen.Dense(4)(hidden), linen.Dense(4)(hidden)
        z = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        return linen.Dense(64)(linen.relu(linen.Dense(32)(z))), mean, log_variance


class Tagger(linen.Module):
    """nlp_seq: a transformer that gives each word a tag, with dropout."""

    @linen.compact
    def __call__(self, words, key):
        x = linen.Embed(20, 16)(words) + self.param("places", linen.initializers.normal(0.1), (words.shape[1], 16))
        x = x + linen.SelfAttention(2)(linen.LayerNorm()(x))
        x = x + linen.Dense(16)(linen.relu(linen.Dense(32)(linen.LayerNorm()(x))))
        keep = jax.random.bernoulli(key, 0.9, x.shape)
        return linen.Dense(3)(x * keep / 0.9)


def loss_of_classes(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def loss_of_vae(outputs, x):
    images, mean, log_variance = outputs
    divergence = -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance)).sum(-1)
    return ((images - x.reshape(images.shape)) ** 2).sum(-1).mean() + divergence.mean()


CASES = {
    "mnist": (Cnn(), IMAGES, LABELS, loss_of_classes, optax.sgd(0.05, momentum=0.9)),
    "vae": (Vae(), IMAGES, IMAGES, loss_of_vae, optax.adam(2e-3)),
    "nlp_seq": (
        Tagger(), WORDS, TAGS, loss_of_classes, optax.adamw(optax.warmup_cosine_decay_schedule(0, 5e-3, 10, 80)),
    ),
}  # fmt: skip


class Killed(Exception):
    pass


class Example:
    """One of them, as its script has it: a jitted step that is given the state to keep."""

    def __init__(self, name):
        self.model, self.x, self.y, loss_of, self.tx = CASES[name]

        def step(state, batch, key):
            def loss_fn(params):
                return loss_of(state.apply_fn({"params": params}, batch["x"], key), batch["y"]) * batch["factor"]

            loss, grads = jax.value_and_grad(loss_fn)(state.params)
            return state.apply_gradients(grads=grads), {"loss": loss}

        self.step = jax.jit(step, donate_argnums=0)

    def train(self, r8, *, nan_at=None, kill_at=None):
        """The last state, and the loss of the last epoch."""
        num_read = 0

        def data(epoch):
            nonlocal num_read
            for rows in np.random.default_rng(epoch).permutation(len(self.x)).reshape(BATCHES, SIZE):
                num_read += 1
                factor = np.float32("nan" if num_read == nan_at else 1)
                yield {"x": self.x[rows], "y": self.y[rows], "factor": factor}

        def kill(loop_state):
            if loop_state.elapsed.steps == kill_at:
                raise Killed

        key = jax.random.key(0)
        params = self.model.init(key, self.x[:2], key)["params"]
        state = r8flax.TrainState.create(apply_fn=self.model.apply, params=params, tx=self.tx)
        state, history = r8flax.train_loop(
            state, self.step, data, num_epochs=EPOCHS, num_batches=BATCHES, rng_key=key, scheduler=r8,
            show_progress=False, callbacks=[kill],
        )  # fmt: skip
        return jax.tree.leaves(state), history["train_loss"][-1]


@pytest.mark.parametrize("name", CASES)
def test_an_example_of_flax(tmp_path, name):
    """Without incident nothing changes; a NaN costs little; killed in mid-epoch it ends with the same bits."""
    example = Example(name)
    plain, loss = example.train(None)

    def scheduler(**more):
        return R8Scheduler(scheduler_mode="keep", **more)

    watched, _ = example.train(scheduler())
    assert all(map(np.array_equal, plain, watched))

    r8 = scheduler()
    healed, healed_loss = example.train(r8, nan_at=33)
    assert r8.sentry.num_refused >= 1
    assert all(np.isfinite(leaf).all() for leaf in healed)
    assert healed_loss < 1.5 * loss + 0.05

    saved = {"checkpoint_dir": tmp_path, "checkpoint_every": 10, "resume": "auto"}
    with contextlib.suppress(Killed):
        example.train(scheduler(**saved), kill_at=47)
    r8 = scheduler(**saved)
    assert r8.global_step == 40
    resumed, _ = example.train(r8)
    assert all(map(np.array_equal, plain, resumed))

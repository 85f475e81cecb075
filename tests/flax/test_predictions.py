"""What a model says of labels in `train_loop`: from a jitted step, with the losses."""

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from learnit_r8 import predictions_of as expected_of
from tests.drive import evidence_of

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
linen = pytest.importorskip("flax.linen")
r8flax = pytest.importorskip("learnit_r8.flax", exc_type=ImportError)

X = np.random.default_rng(0).normal(size=(60, 4)).astype("f4")
Y = np.arange(60) % 3


def trained(num_epochs):
    """The evidence and the history of a training with predictions, and the first weights."""
    model = linen.Dense(3)
    params = model.init(jax.random.PRNGKey(0), X[:1])["params"]
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    state = r8flax.TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    @jax.jit
    def step(state, batch, rng_key):
        def loss_fn(params):
            logits = state.apply_fn({"params": params}, batch["x"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
            return losses.mean(), (losses, r8flax.predictions_of(logits, batch["y"]))

        (loss, (losses, predictions)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads), {"loss": loss, "losses": losses, "predictions": predictions}

    r8 = R8Scheduler(60, batch_size=60, num_epochs=num_epochs, initial_lr=0.1)
    _, history = r8flax.train_loop(
        state, step, lambda rows: {"x": X[rows], "y": Y[rows]}, rng_key=jax.random.PRNGKey(1), show_progress=False,
        scheduler=r8,
    )  # fmt: skip
    return evidence_of(r8), history, params


def test_jitted_step_reports_its_predictions():
    """The evidence is that of the logits before the first step; the predictions are no metric."""
    found, history, params = trained(1)
    logits = X @ np.asarray(params["kernel"]) + np.asarray(params["bias"])

    np.testing.assert_allclose(found["margin"], expected_of(logits, Y).margin, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["given"], Y)
    assert set(history) == {"train_loss"}

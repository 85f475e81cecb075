"""What a model says of labels in a loop: an entry of the logs that `report_to` is told of."""

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, predictions_of
from learnit_r8.loops import logs, loop, report_to, scheduled

X = np.random.default_rng(0).normal(size=(50, 4)).astype("f4")
Y = np.arange(50) % 3


def loss_of(logits, labels):
    shifted = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]


def run(r8, *, bad=(), mean=False, stop=None, state=None):
    """A loop with weights that hardly change."""

    def step(state, batch):
        x, y = batch.data
        logits = x @ state["w"] * (np.nan if r8.global_step in bad else 1.0)
        losses = loss_of(logits, y)
        said = logs().add_metric("loss", losses.mean() if mean else losses)
        return said.add_output("predictions", predictions_of(logits, y)), {"w": state["w"] + 1e-9}

    state = {"w": np.random.default_rng(1).normal(size=(4, 3)).astype("f4")} if state is None else state
    tasks = [step, report_to(r8, predictions="predictions")]
    done, _, _ = loop(state, scheduled(r8, (X, Y)), callbacks=tasks, stop=stop)
    r8.table.learner.hand_over()
    return done


def test_every_sample_has_its_margin():
    """Each epoch is a visit, of the short last batch too."""
    r8 = R8Scheduler(50, batch_size=16, num_epochs=2)
    state = run(r8)
    found = r8.table.storage.evidence.whole

    np.testing.assert_allclose(found["margin"], predictions_of(X @ state["w"], Y).margin, atol=1e-4)
    assert set(found["visits"]) == {2}


def test_jitted_step_logs_predictions():
    """Logs of a jitted step hold them, with the number of classes as an array."""
    jax = pytest.importorskip("jax")
    flax = pytest.importorskip("learnit_r8.flax", exc_type=ImportError)
    r8 = R8Scheduler(50, batch_size=16, num_epochs=1)

    @jax.jit
    def step(state, batch):
        x, y = batch.data
        logits = x @ state["w"]
        losses = -jax.nn.log_softmax(logits)[jax.numpy.arange(len(y)), y]
        return logs().add_metric("loss", losses).add_output("predictions", flax.predictions_of(logits, y)), state

    loop(
        {"w": np.ones((4, 3), "f4")}, scheduled(r8, (X, Y)), callbacks=[step, report_to(r8, predictions="predictions")]
    )
    r8.table.learner.hand_over()

    np.testing.assert_array_equal(r8.table.storage.evidence.whole["given"], Y)


def test_means_and_missing_entries_are_refused():
    """Predictions need the losses of samples; and an entry that is not there is named."""
    with pytest.raises(ValueError, match="predictions need one loss for each sample, got the mean of the batch"):
        run(R8Scheduler(50, batch_size=10, num_epochs=1), mean=True)
    r8 = R8Scheduler(50, batch_size=10, num_epochs=1)
    task = lambda state, batch: (logs().add_metric("loss", 1.0), state)  # noqa: E731
    with pytest.raises(KeyError, match=r"key must be one of \['metrics\.loss'\], got 'said'"):
        loop({"w": np.ones(1)}, scheduled(r8, (X, Y)), callbacks=[task, report_to(r8, predictions="said")])

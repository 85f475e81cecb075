"""Streams that a scheduler drives: the state of steps is put back after transient faults, signals too.

That of an `epoch_stream` is a column of the contract.
"""

from __future__ import annotations

import signal

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.streams import epoch_stream, pipe, step_stream, take
from tests.healing_common import NUM_STEPS, X, Y, assert_healed

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*the weights were damaged"),
]


def scheduler(**more):
    return R8Scheduler(512, **{"batch_size": 16, "num_steps": NUM_STEPS, "initial_lr": 0.03, **more})


def steps(faults, r8=None):
    """Linear weights in numpy that each step replaces."""
    r8 = scheduler() if r8 is None else r8

    def train_step(w, indices, lr):
        x = faults.inputs(r8.global_step, X[indices])
        w = w * np.float32(faults.weights_by(r8.global_step))
        error = x @ w - Y[indices]
        new = w - np.float32(faults.rate(r8.global_step, lr)) * x.T @ error / len(x)
        return new.astype("f4"), (error**2).mean(axis=1)

    for event in step_stream(r8, train_step, state=np.zeros((4, 1), "f4")):
        last = event["state"]
    return float(((X @ last - Y) ** 2).mean())


@pytest.mark.filterwarnings("ignore:losses:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*the largest number of")
def test_transient_faults_heal():
    """A NaN, weights 30 times as large and a rate 1,000 times as high, twice each, cost little."""
    assert_healed(steps)


@pytest.mark.filterwarnings("ignore:step .* the step has made numbers", "ignore:sample 7", "ignore:a loss was refused")
def test_a_sample_of_nan_whose_loss_is_finite_is_quarantined():
    """A rectifier makes 0 of it, but its gradient is NaN: its step ruins the weights, in each epoch and in the last."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(320, 4))
    y = np.maximum(x.sum(1), 0)
    x[7] = np.nan
    r8 = R8Scheduler(320, batch_size=16, num_epochs=6, initial_lr=0.05, clock=lambda: 0.0)

    def train_step(w, indices, lr):
        output = x[indices] @ w
        error = np.where(output > 0, output, 0.0) - y[indices]
        return w - lr * x[indices].T @ (2 * error * (output > 0)) / len(indices), np.nanmean(error**2)

    for event in step_stream(r8, train_step, state=np.full(4, 0.3)):
        assert np.isfinite(event["state"]).all() or r8.table.quarantined.size == 0
    r8.close()

    np.testing.assert_allclose(event["state"], 1.0, atol=0.1)
    assert r8.table.quarantined.tolist() == [7]
    assert r8.controller.state.incidents.num_probes == 1


@pytest.mark.filterwarnings("ignore:a loss was refused")
def test_a_step_stream_says_what_to_hand_over():
    """Where nothing can be put back, the message names the arguments that change that."""
    r8 = scheduler(num_steps=6)

    with pytest.warns(RuntimeWarning, match=r"state_callback and a load_callback, or step_stream\(\) a state="):
        list(step_stream(r8, lambda indices, lr: float("nan") if r8.global_step == 3 else 1.0))


def test_wrong_states():
    """A state without a model, and a step that returns no pair, are refused with what is right."""
    with pytest.raises(TypeError, match="state must hold what training changes"):
        step_stream(scheduler(), lambda state, indices, lr: (state, 1.0), state=None)
    with pytest.raises(TypeError, match=r"train_step must return \(state, loss\)"):
        list(step_stream(scheduler(), lambda state, indices, lr: 1.0, state=np.zeros(2)))


@pytest.mark.parametrize("is_read_to_its_end", [True, False])
def test_signals_are_given_back(is_read_to_its_end):
    """Ctrl-C is as before once nobody reads the stream any more."""
    before = signal.getsignal(signal.SIGINT)
    r8 = scheduler()
    stream = step_stream(r8, lambda indices, lr: np.ones(len(indices)))
    if is_read_to_its_end:
        list(pipe(stream, take(3)))
    else:
        next(stream)
    del stream
    model = torch.nn.Linear(4, 1)
    data, optimizer = (torch.from_numpy(X), torch.from_numpy(Y)), torch.optim.SGD(model.parameters(), lr=0.03)
    list(pipe(epoch_stream(data, model, optimizer, torch.nn.MSELoss(), scheduler=r8), take(2)))

    assert signal.getsignal(signal.SIGINT) is before

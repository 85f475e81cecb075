"""Streams that a scheduler drives: the state they train is put back after transient faults, signals too."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.streams import epoch_stream, pipe, step_stream, take
from tests.healing_common import NUM_STEPS, Faults, X, Y, assert_healed

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*the weights were damaged"),
]


def scheduler(**more):
    return R8Scheduler(512, **{"batch_size": 16, "num_steps": NUM_STEPS, "initial_lr": 0.03, **more})


def parts():
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.0), torch.nn.Linear(4, 1))
    return model, torch.optim.Adam(model.parameters(), lr=0.03)


def faulty(model, optimizer, r8, faults):
    """Breaks a model's inputs and weights, and its optimizer's rate, when a fault says so."""

    def before(module, inputs):
        with torch.no_grad():
            by = faults.weights_by(r8.global_step)
            if by != 1:
                for weight in model.parameters():
                    weight.mul_(by)
        return (faults.inputs(r8.global_step, inputs[0]),)

    def rate(own, arguments, keywords):
        for group in own.param_groups:
            # Reported already: this is the step before.
            group["lr"] = faults.rate(r8.global_step - 1, group["lr"])

    model.register_forward_pre_hook(before)
    optimizer.register_step_pre_hook(rate)


def last_loss(model):
    with torch.no_grad():
        return float(((model(torch.from_numpy(X)) - torch.from_numpy(Y)) ** 2).mean())


def epochs(faults, r8=None, num_epochs=99):
    r8 = scheduler() if r8 is None else r8
    model, optimizer = parts()
    stream = epoch_stream(
        (torch.from_numpy(X), torch.from_numpy(Y)), model, optimizer, torch.nn.MSELoss(), scheduler=r8
    )
    faulty(model, optimizer, r8, faults)
    list(pipe(stream, take(num_epochs)))
    model._forward_pre_hooks.clear()
    return last_loss(model)


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
@pytest.mark.parametrize("run", [pytest.param(epochs, marks=pytest.mark.program), steps])
def test_transient_faults_heal(run):
    """A NaN, weights 30 times as large and a rate 1,000 times as high, twice each, cost little."""
    assert_healed(run)


@pytest.mark.program
@pytest.mark.filterwarnings("ignore:losses:RuntimeWarning")
def test_an_epoch_stream_heals_after_a_resume(tmp_path):
    """The second session goes on with the saved model, and heals as the first."""

    def run(faults):
        folder = tmp_path / str(faults.kind)
        with scheduler(checkpoint_dir=folder) as first:
            epochs(faults, first, 10)
        second = scheduler(checkpoint_dir=folder, resume="auto")
        assert second.global_step == 320
        return epochs(faults, second)

    assert_healed(run)


@pytest.mark.program
def test_a_resumed_epoch_stream_is_the_same_run(tmp_path):
    """With dropout and Adam, a run in two sessions ends in the weights of one session, bit for bit."""

    def trained(r8, num_epochs):
        model, optimizer = parts()
        model[1].p = 0.3
        data = torch.from_numpy(X), torch.from_numpy(Y)
        stream = epoch_stream(data, model, optimizer, torch.nn.MSELoss(), scheduler=r8)
        list(pipe(stream, take(num_epochs)))
        return [weight.tolist() for weight in model.state_dict().values()]

    whole = trained(scheduler(), 99)
    with scheduler(checkpoint_dir=tmp_path) as first:
        trained(first, 7)
    torch.manual_seed(77)

    assert trained(scheduler(checkpoint_dir=tmp_path, resume="auto"), 99) == whole


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
    epochs(Faults(None), r8, 2)

    assert signal.getsignal(signal.SIGINT) is before

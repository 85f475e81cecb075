"""Loops that a scheduler drives: it keeps their state, and puts it back."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.engine.settings import grouped
from learnit_r8.loops import early_stopping, every, load_state, logs, loop, report_to, save_state, scheduled
from tests.healing_common import NUM_STEPS, Faults, X, Y, assert_healed

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_thread")


def scheduler(**more):
    return R8Scheduler(512, **grouped({"batch_size": 16, "num_steps": NUM_STEPS, "initial_lr": 0.05, **more}))


def numpy_step(r8, faults):
    """Trains linear weights, which are replaced at each step."""

    def step(state, batch):
        now = r8.global_step + r8.pace.probes
        x, y = batch.data
        x, w = faults.inputs(now, x), state["w"] * np.float32(faults.weights_by(now))
        error = x @ w - y
        new = w - np.float32(faults.rate(now, batch.lr)) * x.T @ error / len(x)
        return logs().add_metric("loss", (error**2).mean(axis=1)), {"w": new.astype("f4")}

    return step


def numpy_run(faults, r8=None):
    r8 = scheduler() if r8 is None else r8
    first = {"w": np.zeros((4, 1), "f4")}
    state, _, _ = loop(first, scheduled(r8, (X, Y)), {every(1): [numpy_step(r8, faults), report_to(r8)]})
    return float(((X @ state["w"] - Y) ** 2).mean())


def torch_parts():
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def torch_step(r8, faults):
    """Trains a torch model, which changes in place."""

    def step(state, batch):
        model, optimizer = state
        now = r8.global_step + r8.pace.probes
        x, y = (torch.from_numpy(part) for part in batch.data)
        with torch.no_grad():
            by = faults.weights_by(now)
            for weight in model.parameters():
                weight.mul_(by)
        for group in optimizer.param_groups:
            group["lr"] = faults.rate(now, batch.lr)
        losses = ((model(faults.inputs(now, x)) - y) ** 2).mean(1)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        return logs().add_metric("loss", losses.detach())

    return step


def torch_run(faults, r8=None, parts=None, stop=None):
    r8 = scheduler(initial_lr=0.03) if r8 is None else r8
    model, _ = parts = torch_parts() if parts is None else parts
    loop(parts, scheduled(r8, (X, Y)), {every(1): [torch_step(r8, faults), report_to(r8)]}, stop=stop)
    with torch.no_grad():
        return float(((model(torch.from_numpy(X)) - torch.from_numpy(Y)) ** 2).mean())


@pytest.mark.filterwarnings("ignore:losses:RuntimeWarning")
def test_a_state_that_is_replaced_heals():
    """Arrays in the state of a loop are put back after each fault: the next step gets the restored ones."""
    assert_healed(numpy_run)


def test_a_second_loop_with_other_objects_heals_its_own():
    """What is put back is the state of the loop that runs, not of the one that ran before with this scheduler."""
    r8 = scheduler(initial_lr=0.03, guard="finite")
    torch_run(Faults(None), r8, stop=32)
    parts = torch_parts()
    seen = []

    def watched(state, batch):
        seen.append(bool(parts[0][0].weight.isfinite().all()))

    tasks = {every(1): [watched, torch_step(r8, Faults("nan", [100])), report_to(r8)]}
    loop(parts, scheduled(r8, (X, Y)), tasks, stop=200)

    assert all(seen)
    assert r8.sentry.num_refused == 1


@pytest.mark.filterwarnings("ignore:a loss was refused")
def test_a_state_without_a_model_is_said():
    """A loop that does not hand over what it trains says what to pass."""
    r8 = scheduler(num_steps=8)

    def step(state, batch):
        return logs().add_metric("loss", float("nan") if r8.global_step == 3 else 1.0)

    with pytest.warns(RuntimeWarning, match=r"make the model and its optimizer the state, as in loop\(\(model, opt"):
        loop(None, scheduled(r8, X), {every(1): [step, report_to(r8)]})


def test_columns_of_pandas_are_taken_by_position():
    """Rows of arrays, series and frames belong together, whatever the labels of their index."""
    pandas = pytest.importorskip("pandas")
    values = np.arange(64.0)
    labels = np.random.default_rng(0).permutation(64)
    series = pandas.Series(values, index=labels)
    frame = pandas.DataFrame({"one": values, "two": values}, index=labels)
    r8 = R8Scheduler(64, batch_size=8, num_epochs=1)

    for batch in scheduled(r8, (values, series, frame)):
        x, y, both = batch.data
        assert x.tolist() == y.tolist() == both[:, 1].tolist()
        break


def test_tasks_of_a_resumed_run_come_at_its_own_steps(tmp_path):
    """What is due every so many steps, samples or seconds counts those of the whole run; a second loop counts anew."""

    def run(*, last):
        r8 = R8Scheduler(
            512, batch_size=16, num_epochs=3, initial_lr=0.05, checkpoint_dir=tmp_path, checkpoint_every=4,
            resume="auto", handle_signals=False,
        )  # fmt: skip
        seen, step = [], numpy_step(r8, Faults(None))

        def leave(state, batch):
            if r8.global_step == last:
                raise InterruptedError

        def note(elapsed):
            seen.append((elapsed.steps, elapsed.samples))

        tasks = {every(1): [leave, step, report_to(r8)], every(32): note, every(samples=16 * 40): note}
        try:
            elapsed = loop({"w": np.zeros((4, 1), "f4")}, scheduled(r8, (X, Y)), tasks)[2]
        except InterruptedError:
            r8.host.saver.store.release()
            return seen
        r8.close()
        assert scheduled(r8, (X, Y)).resumed_at.steps == 0
        return [*seen, elapsed.steps]

    first, rest = run(last=42), run(last=None)

    assert first == [(32, 512), (40, 640)]
    assert rest == [(64, 1024), (80, 1280), (96, 1536), 96]


def test_early_stopping_says_when_its_entry_never_came():
    """A name that no step logs is said at the end, with those that there were."""

    def step(state, batch):
        return logs().add_metric("loss", 1.0)

    with pytest.warns(RuntimeWarning, match=r"monitor must be an entry of the logs, got 'los'.*\['loss'\]"):
        loop(0, range(3), {every(1): [step, early_stopping("los")]})


def test_early_stopping_puts_the_users_own_objects_back():
    """The best weights are put into the model and the optimizer of the state, not into copies of them."""
    parts = torch_parts()
    weight = parts[0][0].weight
    before = weight.tolist()

    def step(state, batch):
        with torch.no_grad():
            weight.add_(float(batch))
        return logs().add_metric("loss", float(batch))

    state, _, _ = loop(parts, [0, 1, 2], {every(1): [step, early_stopping("loss", patience=2)]})

    assert state[0] is parts[0]
    assert weight.tolist() == before


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS])
def test_a_fresh_optimizer_takes_a_saved_one(tmp_path, kind):
    """load_state gives a fresh torch optimizer all that the file has of the old one."""

    def trained(count, model, optimizer):
        for _ in range(count):

            def closure():
                optimizer.zero_grad()
                loss = (model(torch.from_numpy(X)) ** 2).mean()
                loss.backward()
                return loss

            optimizer.step(closure)

    def parts():
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)
        more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        return model, kind(model.parameters(), lr=0.01, **more)

    old, fresh = parts(), parts()
    trained(3, *old)
    save_state(tmp_path / "state", old)
    fresh = load_state(tmp_path / "state", fresh)
    trained(2, *old)
    trained(2, *fresh)

    assert torch.equal(old[0].weight, fresh[0].weight)


def stopped(state, batch, loop_state):
    loop_state.stop_iteration = True


def failing(state, batch):
    raise ValueError("on purpose")


@pytest.mark.parametrize("more", [[], [stopped], [failing]], ids=["stop", "stop_iteration", "error"])
def test_the_signals_are_given_back(more):
    """A loop that ends before the budget leaves Ctrl-C as it was."""
    before = signal.getsignal(signal.SIGINT)
    r8 = scheduler()
    try:
        tasks = {every(1): [numpy_step(r8, Faults(None)), report_to(r8), *more]}
        loop({"w": np.zeros((4, 1), "f4")}, scheduled(r8, (X, Y)), tasks, stop=5)
    except ValueError:
        pass

    assert signal.getsignal(signal.SIGINT) is before

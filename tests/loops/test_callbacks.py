"""The callbacks of loops: bars, checkpoints, early stopping, loggers; and data-aware batches."""

from __future__ import annotations

import io
import sys
import types

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.engine.settings import grouped
from learnit_r8.loops import (
    Elapsed,
    at,
    checkpoint,
    early_stopping,
    elapse,
    every,
    keras_bar,
    load_state,
    logs,
    loop,
    report_to,
    save_state,
    scheduled,
    wandb,
)
from learnit_r8.loops.bars import bar_line
from learnit_r8.streams import step_stream


def value(state, batch):
    """Counts batches in the state and logs them as "v"."""
    return logs().add_metric("v", batch), state + 1


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


def test_min_delta_is_never_used():
    """ciclo: min_delta was ignored; 20 of 20 steps of .01 were run with min_delta .5."""
    stopping = early_stopping("v", patience=3, min_delta=0.5)
    _, _, elapsed = loop(0, [1 - 0.01 * i for i in range(20)], {every(1): value}, stopping)

    assert elapsed.steps == 4
    assert stopping.stopped
    assert stopping.best == 1


def test_patience_runs_while_no_new_value_came():
    """ciclo: patience ran while no value came, and none at all was a ValueError."""
    stopping = early_stopping("v", patience=2)
    _, _, elapsed = loop(0, [5, 0, 0, 4, 0, 0, 6, 0, 0, 7, 0, 0], {at(1, 4, 7, 10): value}, stopping)
    loop(0, range(3), None, early_stopping("v"))

    assert elapsed.steps == 10


@pytest.mark.parametrize("kind", ["number", "array", "module"])
def test_best_state_restored_only_when_it_stops_early(kind):
    """ciclo: the best state came back only after an early stop; here however the loop ends, and from a copy."""
    if kind == "module":
        torch = pytest.importorskip("torch")
        state = torch.nn.Linear(1, 1)
    else:
        state = 0 if kind == "number" else np.zeros(1)

    def step(state, batch):
        step_logs = logs().add_metric("v", abs(batch - 2))
        if kind == "number":
            return step_logs, batch
        target = state.weight.data if kind == "module" else state
        target[:] = batch
        return step_logs

    final, _, elapsed = loop(state, range(5), {every(1): step}, early_stopping("v", patience=99))
    last = loop(0, range(5), {every(1): value}, early_stopping("v", 99, mode="max", restore_best_weights=False))[0]

    assert elapsed.steps == 5
    best = {"number": lambda: final, "array": lambda: final[0], "module": lambda: final.weight.item()}[kind]()
    assert best == 2
    assert last == 5
    assert kind != "module" or final is state


def test_a_value_that_is_not_finite_is_no_best_one():
    stopping = early_stopping("v", patience=9)
    loop(0, [float("nan"), 3, 2], {every(1): value}, stopping)

    assert stopping.best == 2


def test_the_metric_becomes_the_step_in_the_file_name(tmp_path):
    """ciclo: the metric's value was used as the step of the file; here it is the step, best ones only, so many kept."""
    best = checkpoint(tmp_path, monitor="v", mode="max", keep=2)
    for _ in range(2):
        loop(0, [1, 5, 3, 7, 9, 0], {every(1): value}, best)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_4", "checkpoint_5"]
    assert load_state(tmp_path / "checkpoint_5", 0) == 5


def test_checkpoints_at_a_trigger_and_at_the_end(tmp_path):
    """Without a monitor every call saves, and so does the end, but not after an error; others' files stay."""
    (tmp_path / "checkpoint_1").write_text("of another run")
    loop(0, range(7), {every(1): value, every(3): checkpoint(tmp_path, keep=2)})

    def fail():
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        loop(0, range(7), {at(5): [value, fail]}, checkpoint(tmp_path / "failed"))
    names = sorted(path.name for path in tmp_path.iterdir())

    assert names == ["checkpoint_1", "checkpoint_6", "checkpoint_7", "failed"]
    assert load_state(tmp_path / "checkpoint_6", 0) == 6
    assert sorted(path.name for path in (tmp_path / "failed").iterdir()) == ["checkpoint_4"]


def test_states_are_saved_without_pickle(tmp_path):
    """Nests of arrays, numbers and texts, named tuples, and torch modules with their optimizers come back."""
    torch = pytest.importorskip("torch")
    state = {"a": [np.arange(3), 2.5, None, "text"], "e": Elapsed(3, 4), "b": (), "f32": np.float32(1.5)}
    save_state(tmp_path / "new" / "plain", state)
    back = load_state(tmp_path / "new" / "plain", {**state, "a": [np.zeros(3, int), 0.0, None, ""], "e": Elapsed()})

    assert back["a"][0].tolist() == [0, 1, 2]
    assert back["a"][1:] == [2.5, None, "text"]
    assert back["e"] == Elapsed(3, 4)
    model, other = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    model.half_ = other.half_ = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    save_state(tmp_path / "model", model)
    load_state(tmp_path / "model", other)
    assert torch.equal(model.weight, other.weight)
    assert other.half_.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("total", "line"),
    [
        (10, "5/10 [===============>..............] - ETA: 2s - v: 0.2500"),
        (at(samples=20), "5/20 [=======>......................] - ETA: 6s - v: 0.2500"),
        (5, "5/5 [==============================] - 2s 400ms/step - v: 0.2500"),
        ("8s", "2s/8s [=======>......................] - ETA: 6s - v: 0.2500"),
        (None, "5 steps - 2s 400ms/step - v: 0.2500"),
    ],
)
def test_the_line_of_a_bar(total, line):
    """Count, bar, time to go, metrics; control characters of a name do not reach the terminal."""
    from learnit_r8.loops.elapsed_data import as_stop

    elapsed = Elapsed(5, 5, 2.0)
    period = None if total is None else as_stop("total", total)

    assert bar_line(elapsed, period, {"\x1b[2Jv"[4:]: 0.25}) == line
    assert "\x1b" not in bar_line(elapsed, period, {"\x1b[2J\n": 0.25})


def test_keras_bar_draws_on_a_terminal(monkeypatch):
    """One line that is drawn again at most ten times a second, with the latest of each metric, and ended once."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    screen = Screen()

    def step(batch):
        now[0] += 0.06
        return logs().add_metric("v", batch).add_output("y", np.zeros(3))

    loop(0, range(4), {every(1): step, 3: lambda: logs().add_loss("rare", 1)}, keras_bar(stream=screen), stop=4)
    lines = screen.getvalue().split("\r")

    assert [line.split()[0] for line in lines[1:]] == ["1/4", "3/4", "4/4"]
    assert lines[-1].rstrip(" \n").endswith("v: 3.0000 - rare: 1.0000")
    assert screen.getvalue().count("\n") == 1


def test_keras_bar_elsewhere_is_a_line_a_minute(monkeypatch, capsys):
    """Where there is no terminal nothing is drawn twice on a line; by hand it is called and closed."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    bar = keras_bar(total=4)
    for elapsed, _ in elapse(range(4)):
        now[0] += 40
        bar(elapsed)
    bar.close()
    bar.close()
    loop(0, [], None, keras_bar())
    lines = capsys.readouterr().out.splitlines()

    assert [line.split()[0] for line in lines] == ["3/4", "4/4"]


class Recorder:
    """Stands for a run of wandb."""

    def __init__(self, *arguments, **options):
        self.made_with, self.seen, self.is_over = (arguments, options), [], False

    def log(self, values, step):
        self.seen.append((step, values))

    def finish(self):
        self.is_over = True


def test_the_logger_sends_the_numbers_of_each_step(monkeypatch):
    """A run of the logger's own begins and ends with the loop; one that was handed in stays open."""
    made = []

    def make(*arguments, **options):
        made.append(Recorder(*arguments, **options))
        return made[-1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=make))
    mine = Recorder()
    callbacks = [wandb(project="p"), wandb(mine)]
    assert not made

    loop(0, [1.5, 2.5], {every(1): value, "on_end": lambda: logs().add_loss("last", 1)}, callbacks)

    expected = [(1, {"v": 1.5}), (2, {"v": 2.5}), (2, {"last": 1.0})]
    assert [one.seen for one in (*made, mine)] == [expected] * 2
    assert [one.is_over for one in (*made, mine)] == [True, False]
    assert made[0].made_with == ((), {"project": "p"})


def test_a_logger_that_is_not_installed(monkeypatch):
    """What is missing is named, with the command that installs it, when the callback is built."""
    monkeypatch.setitem(sys.modules, "wandb", None)

    with pytest.raises(ImportError, match=r"wandb\(\) needs wandb, which could not be imported; pip install wandb"):
        wandb()


def scheduler(**more):
    return R8Scheduler(60, **grouped({"batch_size": 8, "num_epochs": 3, "seed": 5, **more}))


def drawn(state, batch):
    """Logs the losses of the samples."""
    return logs().add_metric("loss", batch.data["x"]), [*state, (batch.indices.tolist(), batch.lr)]


def test_data_aware_batches_in_one_line():
    """loop over scheduled() sees the batches and rates of the scheduler's own loop and of step_stream."""
    x = np.linspace(1, 2, 60)
    bare, r8 = [], scheduler()
    for _ in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            bare.append((indices.tolist(), lr))
            r8.update_with_loss(x[indices])
    streamed, r8 = [], scheduler()
    for _ in step_stream(r8, lambda indices, lr: streamed.append((indices.tolist(), lr)) or x[indices]):
        pass
    r8 = scheduler()
    looped, history, elapsed = loop([], scheduled(r8, {"x": x}), {every(1): [drawn, report_to(r8)]})

    assert bare == streamed == looped
    assert len(bare) == elapsed.steps == 24
    assert history.collect("scheduler.lr") == [lr for _, lr in bare]
    assert r8.table.source == "exact"


def test_an_interrupted_batch_is_the_next_one_drawn():
    """After Ctrl-C in the middle of a step the same batches come as without it."""
    x, r8 = np.ones(60), scheduler()

    def interrupted(state, batch):
        if len(state) == 5:
            raise KeyboardInterrupt
        return drawn(state, batch)

    half, _, _ = loop([], scheduled(r8, {"x": x}), {every(1): [interrupted, report_to(r8)]})
    rest, _, _ = loop(half, scheduled(r8, {"x": x}), {every(1): [drawn, report_to(r8)]})
    r8 = scheduler()
    whole, _, _ = loop([], scheduled(r8, {"x": x}), {every(1): [drawn, report_to(r8)]})

    assert len(half) == 5
    assert rest == whole


def test_a_refused_batch_leaves_the_state():
    """A NaN is not learnt from: the state of before the step stays."""
    r8 = scheduler(num_steps=4, num_epochs=None)
    losses = iter([1.0, float("nan"), 1.0, 1.0])

    def step(state):
        return logs().add_metric("loss", next(losses)), state + 1

    with pytest.warns(RuntimeWarning):
        state, history, _ = loop(0, scheduled(r8, np.zeros(60)), {every(1): [step, report_to(r8)]})

    assert state == 3
    assert history.collect("refused") == [False, True, False, False]


@pytest.mark.parametrize("data", [np.arange(60), (np.arange(60),), lambda indices: np.arange(60)[indices]])
def test_data_of_a_scheduled_loop(data):
    """Arrays, tuples and dictionaries of them, and functions of indices."""
    r8, seen = scheduler(num_epochs=1), []

    def step(batch):
        seen.extend(np.ravel(batch.data[0] if isinstance(data, tuple) else batch.data))
        return logs().add_metric("loss", 1.0)

    loop(0, scheduled(r8, data), {every(1): [step, report_to(r8)]})

    assert sorted(seen) == list(range(60))

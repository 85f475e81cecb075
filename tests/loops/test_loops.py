"""loop, its logs and history; no framework needed but where a test says so."""

from __future__ import annotations

import sys
from datetime import timedelta

import numpy as np
import pytest

from learnit_r8.loops import (
    Elapsed,
    History,
    Logs,
    LoopState,
    Period,
    after,
    at,
    elapse,
    every,
    logs,
    loop,
    never,
)


def add(state, batch):
    return state + batch


def ticking(monkeypatch, seconds=1.0):
    """A clock that moves on at each reading."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now.__setitem__(0, now[0] + seconds) or now[0])


@pytest.mark.parametrize(
    ("callback", "expected"),
    [
        (lambda: ("none",), ("none",)),
        (lambda batch: batch, 5),
        (lambda elapsed: elapsed.steps, 1),
        (lambda loop_state: loop_state.batch, 5),
        (lambda batch, state: (batch, state, "by name"), (5, "start", "by name")),
        (lambda a, b: (b, a, "by position"), (5, "start", "by position")),
        (lambda a, batch, c, d: (a, batch, c.steps, type(d)), ("start", 5, 1, LoopState)),
        (lambda elapsed, a: (elapsed.steps, a, 0), (1, 5, 0)),
        (lambda state, scale=3: (state, scale, 0), ("start", 3, 0)),
        (lambda scale=3, *, batch: (batch, scale, 0), (5, 3, 0)),
        (lambda scale=3, batch=None: (batch, scale, 0), (5, 3, 0)),
        (lambda *rest: (len(rest), rest[0], rest[1]), (4, "start", 5)),
        (lambda batch, **rest: (batch, rest, 0), (5, {}, 0)),
    ],
)
def test_callbacks_get_what_they_name(callback, expected):
    """Values go to known names by name, to others by position; defaults stay, ``*args`` get the rest."""
    assert loop("start", [5], {every(1): callback})[0] == expected


@pytest.mark.parametrize("state", [0, {}, [], False, "", 0.0, np.zeros(2), np.zeros(0)])
def test_tested_by_truth(state):
    """ciclo: state 0, {} or [] was dropped and an array ambiguous; every value is a state here."""
    returned, _, _ = loop("before", [1], {every(1): [lambda: (logs(), state)]})
    bare, _, _ = loop("before", [1], {every(1): [lambda: state]})

    assert returned is state
    assert bare is state


def test_what_callbacks_may_return():
    """None and (logs, None) keep the state; a tuple that does not begin with logs or None is a state."""
    step = logs().add_metric("loss", 1.0)
    state, history, _ = loop(
        "kept", [1], {every(1): [lambda: None, lambda: (None, None), lambda: (step, None), lambda: step]}
    )

    assert state == "kept"
    assert len(history) == 1
    assert loop(0, [1], {every(1): lambda: (1, 2)})[0] == (1, 2)
    assert loop(0, [1], {every(1): lambda: (None, 2)})[0] == 2
    assert loop(0, [1], {every(1): lambda: Elapsed()})[0] == Elapsed()


def test_torch_modules_are_states():
    """A module that is changed in place needs no return value; losses are kept without their graph."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 1)

    def step(state, batch):
        loss = state(batch).sum()
        loss.backward()
        return logs().add_metric("loss", loss)

    state, history, _ = loop(model, [torch.ones(3, 2)], {every(1): step})

    assert state is model
    assert not history[0].loss.requires_grad
    assert isinstance(history.collect("loss")[0], float)


def test_elapsed_is_one_short():
    """ciclo: the returned elapsed was one short, and going on repeated a step."""

    def step(elapsed):
        return logs().add_entry("a", "n", elapsed.steps)

    _, history, elapsed = loop(0, range(9), {every(1): step}, stop=3)
    _, history, elapsed = loop(0, range(9), {every(1): step}, stop=6, history=history, elapsed=elapsed)

    assert elapsed.steps == 6
    assert history.collect("n") == history.collect("steps") == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("stop", [0, Period(steps=0), Period(time=0), lambda elapsed: True, after(0)])
def test_stop_tested_after_the_batch(stop):
    """ciclo: stop=0 ran one step; here no batch is taken beyond the stop."""
    batches = iter(range(9))
    loop(0, batches, {every(1): add}, stop=stop)

    assert next(batches) == 0


@pytest.mark.parametrize(
    ("stop", "steps"),
    [
        (4, 4),
        (Period(samples=10), 4),
        (at(samples=10), 4),
        (after(samples=9), 3),
        (at(2, 5), 2),
        (every(4), 4),
        (after(2) & every(3), 3),
        (never, 9),
        (None, 9),
        (np.int64(2), 2),
    ],
)
def test_stop_takes_periods_and_triggers(stop, steps):
    """Steps, periods, points, grids and functions say when to stop."""
    assert loop(0, [[1, 2, 3]] * 9, stop=stop)[2].steps == steps


@pytest.mark.parametrize("stop", ["10s", timedelta(seconds=10), Period(time=10)])
def test_stop_by_time(stop, monkeypatch):
    """A time budget is asked with a reading of its own, after the step."""
    ticking(monkeypatch)

    assert loop(0, range(99), stop=stop)[2].steps == 5


def test_keys_say_when():
    """Triggers, functions, numbers, times, and the two names; callbacks= come after the tasks at every step."""
    calls = []

    def note(name):
        return lambda elapsed: calls.append((name, elapsed.steps))

    loop(
        0,
        range(4),
        {
            "on_start": note("start"),
            2: note("two"),
            (lambda elapsed: elapsed.steps == 3): note("f"),
            every(1): note("t"),
            "on_end": [note("end")],
        },
        note("c"),
    )

    assert [name for name, step in calls if step == 2] == ["two", "t", "c"]
    assert [call for call in calls if call[0] not in "tc"] == [
        ("start", 0),
        ("two", 2),
        ("f", 3),
        ("two", 4),
        ("end", 4),
    ]


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (1, 1),
        (np.zeros((3, 2)), 3),
        (np.float32(1), 1),
        ((np.zeros((3, 2)), np.zeros(5)), 3),
        ({"meta": "text", "x": np.zeros(4)}, 4),
        ([1, 2], 2),
        ([np.zeros(7), np.zeros(7)], 7),
        ([], 1),
        (("a", [1, 2, 3]), 3),
    ],
)
def test_samples_of_a_batch(batch, samples):
    """The first array says how many samples, else the first list; anything else is one."""
    assert loop(0, [batch])[2].samples == samples


class Watch:
    """An object with hooks that notes what is called."""

    def __init__(self):
        self.calls = []

    def on_start(self):
        self.calls.append("start")
        return logs().add_entry("a", "at", "start")

    def on_step(self, elapsed):
        self.calls.append(elapsed.steps)

    def on_end(self, loop_state):
        self.calls.append("end")
        return logs().add_entry("a", "at", "end")


@pytest.mark.parametrize("tasks", [{every(2): Watch}, None])
def test_on_start_and_on_end_are_lost(tasks):
    """ciclo: logs of on_start and on_end were lost, and neither was called on an empty data set."""
    watch = Watch()
    arguments = ({every(2): watch},) if tasks else (None, watch)

    _, history, _ = loop(0, [1, 1], *arguments)
    _, empty, _ = loop(0, [], *arguments)

    assert watch.calls == ["start", *([2] if tasks else [1, 2]), "end", "start", "end"]
    assert history.collect("at") == empty.collect("at") == ["start", "end"]


def test_ctrl_c_ends_the_loop_and_returns_what_there_is():
    """The unfinished step does not count; on_end runs; the data set's generator is closed."""
    watch, closed = Watch(), []

    def data():
        try:
            yield from range(9)
        finally:
            closed.append(True)

    def step(state, batch):
        if batch == 3:
            raise KeyboardInterrupt
        return logs().add_metric("loss", batch), state + 1

    state, history, elapsed = loop(0, data, {every(1): [step, watch]})

    assert (state, elapsed.steps, history.collect("loss")) == (3, 3, [0, 1, 2])
    assert watch.calls[-1] == "end"
    assert closed == [True]
    with pytest.raises(KeyboardInterrupt):
        loop(0, range(9), {every(1): step}, catch_keyboard_interrupt=False)


def test_a_step_that_was_not_finished_logs_nothing():
    """What a step logged before Ctrl-C is lost: the history fits the elapsed."""

    def interrupt(batch):
        if batch == 1:
            raise KeyboardInterrupt

    note = lambda batch: logs().add_metric("n", batch)  # noqa: E731

    assert loop(0, range(3), {every(1): [note, interrupt]})[1].collect("n") == [0]


def test_the_data_set_is_closed_unless_it_is_the_users_iterator():
    """An iterator that the loop has made is closed at its end; one that was handed in can go on."""

    class Data:
        def __iter__(self):
            self.made = (number for number in range(9))
            return self.made

    data, handed_in = Data(), (number for number in range(9))
    loop(0, data, stop=2)
    loop(0, handed_in, stop=2)

    assert list(data.made) == []
    assert next(handed_in) == 2


def test_ctrl_c_in_a_loop_inside_ends_the_outer_one():
    """The inner loop hands Ctrl-C on, so the outer one does not go on as if nothing had happened."""

    def interrupt():
        raise KeyboardInterrupt

    def inner(state):
        return loop(state, [1], {every(1): interrupt})[0]

    elapsed = loop(0, range(9), {every(1): add, every(3): inner})[2]

    assert elapsed.steps == 2


def test_errors_end_the_loop_after_on_end():
    """An exception of a callback comes out, after every on_end was called, even if one of them raises."""
    seen, watch = [], Watch()

    class Failing:
        def on_end(self, loop_state):
            seen.append(loop_state.error)
            raise RuntimeError("end")

    def fail(batch):
        raise StopIteration("of the user")

    with pytest.raises(RuntimeError, match="end") as caught:
        loop(0, [1], {every(1): [fail]}, [Failing(), watch])

    assert isinstance(seen[0], StopIteration)
    assert isinstance(caught.value.__context__, StopIteration)
    assert watch.calls == ["start", "end"]


def test_stop_iteration_ends_after_the_step():
    """A callback may end the loop through loop_state; the rest of its step still runs."""
    calls = []

    def stop(loop_state):
        loop_state.stop_iteration = loop_state.batch == 2

    loop(0, range(9), {every(1): [stop, lambda batch: calls.append(batch)]})

    assert calls == [0, 1, 2]


def test_two_runs():
    """ciclo: a second run with the same trigger fired never."""
    either, fired = every(2) | every(3), []

    for _ in range(2):
        loop(0, range(6), {either: lambda elapsed: fired.append(elapsed.steps), ~every(1): [lambda: 1 / 0]})

    assert fired == [2, 3, 4, 6] * 2


def test_samples_and_time_are_grids(monkeypatch):
    """ciclo: samples drifted, and the clock counted from the trigger's construction."""
    trigger = every(samples=10)
    by_time = every(time=10)
    ticking(monkeypatch, 2.0)
    fired, ticks = [], []
    loop(
        0,
        [[1, 2, 3]] * 10,
        {trigger: lambda elapsed: fired.append(elapsed.samples), by_time: lambda elapsed: ticks.append(elapsed.time)},
    )

    assert fired == [12, 21, 30]
    assert ticks == [10.0, 20.0]


def test_logs_have_collections_and_short_names():
    """Entries are found by item, by attribute, by dotted and by short name."""
    step = logs().add_loss("mse", 1).add_output("y", 2).add_stateful_metric("acc", 3).add_metric("mse", 4)
    step.add_entry("mine", "a.b", 5)

    assert step["losses"]["mse"] == step.losses.mse == step.find("losses.mse") == 1
    assert step.mse == step.find("mse") == 4
    assert step.outputs == {"y": 2}
    assert step.acc == 3
    assert step.find("a.b") == step.find("mine.a.b") == 5
    with pytest.raises(AttributeError, match=r"key must be one of .*'losses.mse'.* got 'loss'"):
        _ = step.loss
    with pytest.raises(AttributeError, match=r"entry must be one of \['mse'\], got 'loss'"):
        _ = step.losses.loss
    with pytest.raises(KeyError, match="key must be one of"):
        step.find("losses.y")
    with pytest.raises(TypeError, match="collection and name must be strings, got 'a' and 3"):
        step.add_entry("a", 3, 1)


def test_logs_are_a_pytree_of_jax():
    """A jitted step may return logs, in their order, however it was imported."""
    jax = pytest.importorskip("jax")

    @jax.jit
    def step(state, batch):
        return logs().add_metric("z", state * 2).add_metric("a", batch).add_loss("l", 1.0), state + batch

    state, history, _ = loop(1.0, [1.0, 2.0], {every(1): step})

    assert float(state) == 4.0
    assert history.collect("z", "a", "l") == ([2.0, 4.0], [1.0, 2.0], [1.0, 1.0])
    assert list(history[0].metrics) == ["z", "a"]
    assert isinstance(history[0]["metrics"]["z"], jax.Array)


def test_logs_wait_for_a_jax_that_is_being_imported(monkeypatch):
    """A JAX that is loaded by half is left alone."""
    module = sys.modules["learnit_r8.loops.log_entries"]
    monkeypatch.setattr(module, "_with_jax", set())
    monkeypatch.setitem(sys.modules, "jax", object())
    monkeypatch.setitem(sys.modules, "jax.tree_util", object())

    assert logs() == Logs()
    assert not module._with_jax


def test_rows_lacking_a_key_are_dropped_without_a_word():
    """ciclo: rows lacking one of the keys were dropped silently; here fill= keeps them and a warning tells."""
    history = History([logs().add_metric("a", 1), logs().add_metric("a", 2).add_metric("b", 3)])

    assert history.collect("a", "b", fill=None) == ([1, 2], [None, 3])
    assert history.collect("a", "b", drop=True) == ([2], [3])
    with pytest.warns(UserWarning, match=r"left out 1 of 2 rows that lack one of \('a', 'b'\)"):
        assert history.collect("a", "b") == ([2], [3])


def test_collect_needs_no_warning_for_counts():
    """Steps are in every row: asking for them along with a rare metric is no mistake."""
    _, history, _ = loop(
        0,
        range(4),
        {every(1): lambda: logs().add_metric("a", 0), every(2): lambda batch: logs().add_metric("b", batch)},
    )

    assert history.collect("steps", "b") == ([2, 4], [1, 3])
    assert history.collect("elapsed.steps") == [1, 2, 3, 4]


def test_a_name_in_two_collections():
    """ciclo: it raised; here the order of collections decides, the same for every row."""
    history = History([logs().add_loss("x", 1), logs().add_metric("x", 2).add_loss("x", 3)])

    assert history.collect("x") == [2]
    assert history.collect("losses.x") == [1, 3]


def test_collect_reads_new_rows_and_devices():
    """Rows added later are seen; arrays become numbers when they are read and not before."""
    history = History()
    history.append(logs().add_metric("a", np.float32(0.5)).add_output("y", np.zeros(2)))

    assert history.collect("a") == [0.5]
    history.append(logs().add_metric("a", np.array(1.5)))
    assert history.collect("a") == [0.5, 1.5]
    assert history.collect("y")[0].shape == (2,)
    assert repr(history) == "<History of 2 rows: metrics.a, outputs.y>"
    assert [row.a for row in history][1] == history[1].a


def test_elapse_counts_for_a_loop_by_hand():
    """It counts as loop does, goes on from an elapsed, and takes no batch too many."""
    batches = iter(range(9))
    seen = [(elapsed.steps, batch) for elapsed, batch in elapse(batches, stop=3)]
    more = [elapsed.steps for elapsed, _ in elapse([1, 2], elapsed=Elapsed(steps=3))]

    assert seen == [(1, 0), (2, 1), (3, 2)]
    assert next(batches) == 3
    assert more == [4, 5]
    assert list(elapse([1], stop=0)) == []


def test_tasks_are_emptied():
    """ciclo: some loops emptied the caller's tasks, so the second call did nothing."""
    tasks = {every(1): [add], "on_end": [add]}
    before = dict(tasks)

    assert [loop(0, [1, 2], tasks)[0] for _ in range(2)] == [5, 5]
    assert tasks == before


def test_metadata_and_totals_are_there_for_callbacks():
    seen = []
    loop(
        0,
        [1],
        {every(1): lambda loop_state: seen.append((loop_state.metadata, loop_state.total.steps))},
        stop=1,
        metadata="m",
    )

    assert seen == [("m", 1)]

"""What a loop, its callbacks and its history cannot do is refused, with what would be right."""

from __future__ import annotations

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.loops import (
    History,
    Period,
    checkpoint,
    early_stopping,
    every,
    keras_bar,
    load_state,
    logs,
    loop,
    report_to,
    save_state,
    scheduled,
)

HISTORY = History([logs().add_metric("a", 1)])
SAMPLES = np.zeros(60)


def tell():
    return logs().add_metric("loss", 1.0)


def drawn(*callbacks, state=0, data=SAMPLES, **settings):
    """A loop over sixty samples that a scheduler draws; the callbacks get the scheduler."""
    r8 = R8Scheduler(60, batch_size=8, num_epochs=3, **settings)
    return loop(state, scheduled(r8, data), {every(1): [each(r8) for each in callbacks]})


def reloaded(folder, state):
    save_state(folder / "state", {"a": np.zeros(3), "b": [1]})
    return load_state(folder / "state", state)


# fmt: off
MISTAKES = [
    *[(lambda _, wrong=wrong: loop(0, iter(()), {every(1): wrong}), TypeError, "tasks must") for wrong in (
        3, "f", lambda a, b, c, d, e: None, lambda *, other: None,
        type("Builtin", (), {"__signature__": 1, "__call__": 1})())],
    *[(lambda _, stop=stop: loop(0, range(3), stop=stop), ValueError, "stop must be a number of steps >= ")
      for stop in (-1, 1.5, True, [], "ten")],
    (lambda _: Period(), ValueError, "one of steps, samples and time must be given, got Period"),
    (lambda _: Period(steps=-1), ValueError, "steps must be a whole number >= 0, got -1"),
    (lambda _: Period(time=float("nan")), ValueError, "time must be finite seconds >= 0, got nan"),
    (lambda _: loop(0, range(3), [tell]), TypeError, r"tasks must be a dictionary \{when: callbacks\}, got"),
    (lambda _: loop(0, range(3), {0.5: tell}), ValueError, "tasks' key must be a number of steps"),
    (lambda _: loop(0, range(3), {every(1): 3}), TypeError, "tasks must hold functions or objects with one of"),
    (lambda _: loop(0, 3, {every(1): tell}), TypeError,
     "dataset must be an iterable, or a function that returns one, got 3"),
    (lambda _: every(1, samples=2), ValueError, "exactly one of steps, samples and time"),
    (lambda _: HISTORY.collect("b"), KeyError,
     "key must be one that was logged, got 'b' for <History of 1 rows: metrics.a>"),
    (lambda _: HISTORY.collect(), ValueError, "keys must be given, and only one of fill and drop"),
    (lambda _: HISTORY.collect("a", fill=0, drop=True), ValueError, "only one of fill and drop"),
    (lambda _: early_stopping("v", patience=0), ValueError, "patience must be a whole number >= 1, got 0"),
    (lambda _: early_stopping("v", mode="best"), ValueError, 'mode must be "min" or "max", got'),
    (lambda _: keras_bar(total=-1), ValueError, r"total must be a number of steps >= 0, .* got -1"),
    (lambda _: keras_bar(interval=-1), ValueError, "interval must be seconds >= 0, got -1"),
    (lambda folder: checkpoint(folder, keep=0), ValueError, "keep must be a whole number >= 1, got 0"),
    (lambda folder: save_state(folder / "state", object()), TypeError, "state must be .* got object"),
    # A state of another structure or shape; the place is named.
    *[(lambda folder, state=state: reloaded(folder, state), ValueError, text) for state, text in (
        ({"a": np.zeros(3), "c": [1]}, r"state must be saved with \['a', 'c'\], got \['a', 'b'\]"),
        ({"a": np.zeros(4), "b": [1]}, r"state.a must be saved with the shape \(4,\), got \(3,\)"),
        ({"a": {"x": 1}, "b": [1]}, r"state.a must be saved as \['x'\], got ndarray"),
        ({"a": np.zeros(3), "b": 1}, r"state.b must be saved as one value, got \['0'\]"))],
    (lambda _: scheduled(3, SAMPLES), TypeError, "r8 must be an R8Scheduler, got 3"),
    (lambda _: drawn(data=["text"]), TypeError, "data must be arrays, or a function of indices, got list"),
    (lambda _: drawn(data=np.zeros(61)), ValueError, "data must have the scheduler's 60 samples, got 61"),
    (lambda _: drawn(lambda r8: tell), RuntimeError,
     "the batch of step 0 must be reported before the next one is drawn"),
    (lambda _: drawn(report_to), KeyError, "key must be one of"),
    (lambda _: drawn(lambda r8: lambda state: pytest.fail("a step"), report_to, state={"w": SAMPLES},
                     state_callback=dict), ValueError, "load_callback must be given together with state_callback"),
    (lambda _: loop(0, [1], {every(1): [tell, report_to(R8Scheduler(60, batch_size=8, num_epochs=3))]}), RuntimeError,
     r"report_to\(\) must be called once for each batch of scheduled\(\)"),
]
# fmt: on


@pytest.mark.parametrize(("act", "error", "text"), MISTAKES, ids=[text[:45] for *_, text in MISTAKES])
def test_a_mistake_is_named(act, error, text, tmp_path):
    """Before the first step, where it can be seen then."""
    with pytest.raises(error, match=text):
        act(tmp_path)


def test_an_empty_history_has_no_wrong_names():
    assert History().collect("b") == []
    assert HISTORY.collect("b", fill=0) == []

"""The golden log of incidents: what is compared, and that a difference is found."""

import math

import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.testing import ToyTask
from tests.runs import golden_incidents


def run(damaged=(), refused=()):
    """The incidents of a run whose weights are damaged before a step, and whose losses are NaN at others."""
    with golden_incidents.recorded() as made:
        task = ToyTask(512)
        r8 = R8Scheduler(
            512, batch_size=16, num_steps=120, initial_lr=0.05, state_callback=task.state, load_callback=task.load
        )
        for _ in r8.epoch_iterator():
            for indices, lr in r8.batch_iterator():
                if r8.global_step in damaged:
                    damaged = ()
                    task.weights[2] = -3 * task.weights[2]
                losses = task.losses(indices)
                if r8.update_with_loss(losses * (math.nan if r8.global_step in refused else 1.0)):
                    task.step(lr)
    return golden_incidents.incidents_of(made[0].heard)


@pytest.mark.filterwarnings("ignore:a loss in the first steps was too high:RuntimeWarning")
def test_what_a_row_says_of_an_incident():
    """Its steps, what was refused, how many probes, and the step that was restored; a healthy run has none."""
    assert run() == []
    assert run(refused=[30]) == ["31-32; refused 1 not_finite; ended"]
    (line,) = run(damaged=[50])
    assert line == "51-115; refused 1 early; probes 3 early; restored 45; ended"


def test_a_difference_fails_the_test_that_meets_it(monkeypatch):
    """The row is compared after the test has passed, and both are shown."""

    class Item:
        path, name, obj = golden_incidents.FILE, "test_x", run

    monkeypatch.setattr(golden_incidents, "rows", lambda: {golden_incidents.name_of(Item): [["31-33; refused 2"]]})
    call = golden_incidents.met(Item)
    next(call)
    run(refused=[30])
    with pytest.raises(pytest.fail.Exception, match=r"before \[\['31-33.*\n.*now    \[\['31-32; refused 1"):
        call.send(None)


def test_rows_are_of_tests_that_there_are():
    """Whoever renames or deletes a test does so with its rows."""
    files = {name.partition("::")[0] for name in golden_incidents.rows()}
    functions = {name.partition("[")[0] for name in golden_incidents.rows()}
    texts = {file: (golden_incidents.FILE.parent / f"{file}.py").read_text(encoding="utf-8") for file in files}

    assert len(functions) > 90
    for name in functions:
        file, _, function = name.partition("::")
        assert f"def {function}(" in texts[file], name

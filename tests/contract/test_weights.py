"""Rows 2 and 7: damaged weights are healed."""

import pytest

from learnit_r8 import events

from . import task
from .cells import OWN, rule
from .run import Case, run
from .test_data import NAN, by_case, complaints

EPOCHS = 5
SHARES = (0.1, 0.5, 0.85)


@pytest.mark.slow
@rule()
def test_nan_weight(column):
    """One weight that becomes NaN, early, late, before the last step of an epoch or of the run, is put back."""
    steps = EPOCHS * task.STEPS
    places = {f"{share:.0%}": int(share * steps) for share in SHARES}
    places |= {"before the end of an epoch": 3 * task.STEPS - 1, "before the end": steps - 1}
    cases = {name: Case(epochs=EPOCHS, weight_faults={at: NAN}) for name, at in places.items()}

    assert by_case(column, cases) == {}


@rule()
def test_steps_of_a_heal(column):
    """A step is a batch trained or refused; with those left out for tests of the weights they are as planned."""
    found = run(column, Case(weight_faults={40: NAN}))
    trained_or_refused = len(found.heard(events.StepDone, events.BatchRefused))

    assert found.r8.global_step == trained_or_refused
    assert found.r8.pace.place == len(found.draws) == task.EPOCHS * task.STEPS


@rule(OWN)
def test_nan_weight_after_a_resume(column, tmp_path):
    """Soon after a resume it is put back alone, as in a run that was not interrupted; no step is undone."""
    run(column, Case(epochs=2, folder=tmp_path, every=task.STEPS))
    found = run(column, Case(folder=tmp_path, every=task.STEPS, weight_faults={5: NAN}))

    assert (complaints(found), found.heard(events.RolledBack)) == ([], [])


@pytest.mark.slow
@rule()
def test_level_jumps(column):
    """Weights that become ten times as large, for good, are healed in short and long runs, whenever it happens."""
    wrong = {}
    for epochs in (3, 6, 19):
        for share in (0.25, 0.5, 0.75):
            at = int(share * epochs * task.STEPS)
            found = run(column, Case(epochs=epochs, weight_faults={at: 10.0}))
            what = complaints(found)
            if what:
                wrong[f"{at} of {epochs * task.STEPS}"] = what

    assert wrong == {}

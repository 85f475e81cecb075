"""Rows 3 to 6: bad data are left out, whatever they do to the loss."""

import numpy as np
import pytest

from learnit_r8 import events

from . import task
from .cells import COLUMNS, rule
from .run import Case, run

NAN, HUGE = float("nan"), 1e4
PLACES = {"in mid-epoch, and at its end": (24, 47), "end of the run": (63,)}
"""By what a test calls it: the numbers of the batches in the run."""


def bound(case):
    """What a healed run may end with: the seeds' worst after one epoch less, the bad batches left out by hand."""
    return task.seeds_spread(case.epochs - 1, case.activation, frozenset(case.batch_faults))[1]


def complaints(found):
    """What is wrong with a run in which something went wrong."""
    wrong, limit = [], bound(found.case)
    if not found.error <= limit:
        wrong.append(f"error {found.error:.3f}, not {limit:.3f}")
    if not found.heard(events.BatchRefused, events.DamageFound, events.RolledBack, events.Probed):
        wrong.append("not a word")
    seen = task.error(found.ends[-1], activation=found.case.activation)
    if np.isfinite(seen) and found.error > seen + 1e-6:
        wrong.append(f"error {seen:.3f} before the end, {found.error:.3f} after it")
    rate = found.used_rates[-1]
    if np.isfinite(rate) and not np.isclose(rate, [task.RATE, task.RATE * found.r8.lr_factor]).any():
        wrong.append(f"rate {rate} at the end, with a factor of {found.r8.lr_factor}")
    return wrong


def by_case(column, cases):
    """The complaints of each case that has some, by its name."""
    found = {name: complaints(run(column, case)) for name, case in cases.items()}
    return {name: wrong for name, wrong in found.items() if wrong}


@rule()
def test_nan_batch(column):
    """Batches of NaN cost those batches, wherever they stand; the end of the run puts no worse weights back."""
    cases = {name: Case(batch_faults=dict.fromkeys(at, NAN)) for name, at in PLACES.items()}

    assert by_case(column, cases) == {}


@rule()
def test_huge_batch(column):
    """Batches of inputs 1e4 times as large cost those batches, wherever they stand."""
    places = PLACES | {"start of the run": (0,)}
    cases = {name: Case(batch_faults=dict.fromkeys(at, HUGE), activation="relu") for name, at in places.items()}

    assert by_case(column, cases) == {}


@pytest.mark.slow
@rule()
def test_huge_early_batch(column):
    """So do those soon after the start, before eight losses are known, which tell what is usual."""
    cases = {str(at): Case(batch_faults={at: HUGE}, activation="relu") for at in (1, 2, 5, 9)}

    assert by_case(column, cases) == {}


@rule()
def test_hidden_nan(column):
    """A NaN sample whose loss is finite, and its gradient not, is found before user code sees the weights."""
    wrong = {}
    for name, faults in {
        "a sample": {"sample_faults": {77: NAN}},
        "in mid-epoch, and at its end": {"batch_faults": {24: NAN, 47: NAN}},
    }.items():
        found = run(column, Case(activation="relu", **faults))
        ruined = [epoch for epoch, each in enumerate(found.ends) if not np.isfinite(task.error(each))]
        what = [f"NaN after the epochs {ruined}"] * bool(ruined) + complaints(found)
        if what:
            wrong[name] = what

    assert wrong == {}


@rule()
def test_hidden_nan_at_the_end(column):
    """Where it stands in the last batch of the run, the run does not end with it."""
    found = run(column, Case(batch_faults={63: NAN}, activation="relu"))
    told = found.r8.summary()
    # Weights that had to be mended were not healthy.
    wrong = complaints(found) + [told] * ("had numbers that" in told and "as the weights are healthy" in told)

    assert wrong == []


@pytest.mark.slow
@rule()
def test_recurring_sample(column):
    """A sample that is bad each time costs its batches, and no rate is lowered for good."""
    cases = {
        "nan": Case(epochs=5, sample_faults={77: NAN}),
        "1e4": Case(epochs=5, sample_faults={77: HUGE}, activation="relu"),
    }
    wrong = by_case(column, cases)
    wrong |= {name: "rate lowered" for name, case in cases.items() if run(column, case).r8.lr_factor < 0.5}

    assert wrong == {}


@pytest.mark.slow
@rule()
def test_many_bad_batches(column):
    """Of 1, 10 and 30 % of the batches NaN, a run ends as one in which they are left out by hand."""
    rng, cases = np.random.default_rng(5), {}
    for share in (0.01, 0.1, 0.3):
        at = rng.choice(5 * task.STEPS, int(np.ceil(share * 5 * task.STEPS)), replace=False)
        cases[f"{share:.0%}"] = Case(epochs=5, batch_faults={int(each): NAN for each in at})

    assert by_case(column, cases) == {}


@rule([name for name in COLUMNS if name not in ("numpy", "numpy own", "epoch_stream")])
def test_recurring_hidden_nan(column):
    """Where such batches come again and again, those after the first cost themselves and undo nothing else.

    Not where R8 sees the weights after a step alone, as in a loop of one's own over numpy.
    """
    case = Case(epochs=5, batch_faults=dict.fromkeys(range(7, 80, 9), NAN), activation="relu")
    found = run(column, case)
    num_found = len(found.heard(events.DamageFound, events.RolledBack))

    assert (complaints(found), num_found <= 2) == ([], True), num_found

"""Row 1: a healthy run is the run without R8."""

import numpy as np

from learnit_r8 import RateShape, events

from . import task
from .cells import DRAWN, MAY_DIFFER, OWN, rule
from .columns_numpy import Numpy
from .run import Case, run

COSINE = Case(settings={"scheduler_mode": RateShape("cosine", warmup_steps=8)})


def differences(one, two, parts):
    """Which of these parts of two runs are not equal to the bit."""
    found = []
    for part in parts:
        first, second = (
            [*each.values()] if isinstance(each, dict) else each for each in (getattr(one, part), getattr(two, part))
        )
        is_equal = (
            first == second
            if part == "draws"
            else len(first) == len(second) and all(map(np.array_equal, first, second))
        )
        if not is_equal:
            found.append(part)
    return found


def units_apart(one, two):
    """By how many units in the last place of a float32 the numbers that two runs logged differ at most."""
    pairs = zip(one.logged, two.logged, strict=True)
    values = [(first[name], second[name]) for first, second in pairs for name in first.keys() & second.keys()]
    return max(abs(a - b) / np.spacing(np.float32(b)) for a, b in values)


@rule(OWN)
def test_healthy_own(column):
    """With the script's own batches weights, momentum, generators, order and metrics are those without R8."""
    watched, plain = run(column), run(column, with_r8=False)

    found = differences(watched, plain, ["weights", "optimizer", "generators", "draws"])

    assert (found, units_apart(watched, plain)) == ([], 0)


@rule()
def test_healthy_quiet(column):
    """A healthy run refuses, probes and restores nothing, counts its steps, is finished, and as good as any."""
    found = run(column, Case(epochs=8))
    told = [type(each).__name__ for each in found.heard(events.BatchRefused, events.Probed, events.RolledBack)]
    is_good = found.error <= task.seeds_spread(7)[1]

    assert (told, found.r8.global_step, found.r8.phase, is_good) == ([], 128, "finished", True)


@rule(DRAWN)
def test_healthy_drawn(column, request):
    """R8's batches are trained on as a plain loop trains on the same ones."""
    watched = run(column, COSINE)
    plain = run(column, with_r8=False, batches=watched.draws, rates=watched.used_rates)

    most, _ = MAY_DIFFER.get(request.node.callspec.params["column"], (0, ""))
    found = differences(watched, plain, ["weights", "optimizer", "draws"])

    assert (found, units_apart(watched, plain) <= most) == ([], True)


@rule(DRAWN)
def test_draws_and_rates(column):
    """R8 draws the same batches at the same rates in every framework."""
    watched, numpy = run(column, COSINE), run(Numpy(), COSINE)

    assert (watched.draws, watched.used_rates) == (numpy.draws, numpy.used_rates)

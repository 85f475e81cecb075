"""Row 10: what else a training does, such as accumulation or 16-bit, under the rules of rows 1, 2 and 9 again."""

import os
import re
import warnings

import numpy as np
import pytest

from learnit_r8 import events

from . import task
from .conftest import load
from .run import Case, Run, run
from .test_data import NAN
from .test_healthy import differences

LIGHTNING = {
    "accumulation": {"accumulate_grad_batches": 2},
    "clipping": {"gradient_clip_val": 0.5},
    "bf16": {"precision": "bf16-mixed"},
    "accumulation, bf16": {"accumulate_grad_batches": 2, "precision": "bf16-mixed"},
    "evaluation in mid-epoch": {"val_check_interval": 0.5},
}
_OFTEN = {"logging_strategy": "steps", "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 6}
TRAINER = {
    "accumulation": {"gradient_accumulation_steps": 2},
    "clipping": {"max_grad_norm": 0.5},
    "bf16": {"bf16": True},
    "accumulation, bf16": {"gradient_accumulation_steps": 2, "bf16": True},
    "evaluation in mid-epoch": _OFTEN,
}
WAYS = {"lightning": LIGHTNING, "lightning own": LIGHTNING, "trainer": TRAINER, "trainer own": TRAINER}
"""By column and way: the options of its framework."""

QUICK = [("lightning own", "accumulation"), ("trainer", "accumulation, bf16")]
"""Those that run by default."""

PARAMS = [
    pytest.param(column, way, id=f"{column}-{way}", marks=[] if (column, way) in QUICK else [pytest.mark.program])
    for column, ways in WAYS.items()
    for way in ways
]
LIMIT = 1.0
"""About the loss of one and a half epochs at half as many updates; that of the first weights is 1.4."""


def driver(column, way):
    """A column that goes a way; a class of its own, by which runs are kept."""
    kind = type(load(column))
    pytest.importorskip(kind.__module__.rpartition("_")[2])
    return type(f"{kind.__name__} {way}", (kind,), {"options": WAYS[column][way]})()


@pytest.mark.parametrize(("column", "way"), PARAMS)
def test_healthy(column, way):
    """One's own batches: equal to the bit to the framework alone; R8's: to the framework on the same batches."""
    one = driver(column, way)
    watched = run(one)
    repeated = {} if one.own else {"batches": watched.draws, "rates": watched.used_rates}
    plain = run(one, with_r8=False, **repeated)

    assert differences(watched, plain, ["weights", "optimizer", "draws"]) == []


@pytest.mark.parametrize(("column", "way"), PARAMS)
def test_nan_weight(column, way):
    """A weight that becomes NaN, in mid-epoch and before the end of an epoch, is put back, and said."""
    wrong = {}
    for at in (18, 23):
        found = run(driver(column, way), Case(weight_faults={at: NAN}))
        if not (found.error <= LIMIT and re.search(r"restored|came from", found.r8.summary())):
            wrong[at] = found.error, found.r8.summary()

    assert wrong == {}


@pytest.mark.parametrize(("column", "way"), [each for each in PARAMS if each.values[0].endswith("own")])
def test_nan_batches(column, way):
    """Batches of NaN are as left out by hand, wherever they stand among those of an update, and a sample of NaN is."""
    one = driver(column, way)
    for faults in {"batch_faults": dict.fromkeys((17, 22, 31, 40, 41), NAN)}, {"sample_faults": {77: NAN}}:
        watched, plain = run(one, Case(**faults)), run(one, Case(**faults), with_r8=False)
        assert watched.heard(events.BatchRefused)
        assert differences(watched, plain, ["weights", "optimizer", "draws"]) == [], faults


@pytest.mark.parametrize(("column", "way"), PARAMS)
def test_steps_of_a_heal(column, way):
    """Steps, and batches left out for tests of the weights, are as many as the framework has planned; thrice, too.

    For weights that take several batches for one update a test takes as many.
    """
    for at in (18,), (12, 18, 23):
        found = run(driver(column, way), Case(weight_faults=dict.fromkeys(at, NAN)))
        assert found.r8.pace.place == len(found.draws) == task.EPOCHS * task.STEPS


def end_of(one, case):
    """Weights, optimizer and steps of a run in a process of its own; None if that was killed."""
    out = case.folder / "end.npz"
    child = os.fork()
    if not child:
        code = 1
        try:
            warnings.simplefilter("ignore")
            found = Run(case)
            one.train(found)
            state = {**found.weights, **{f"optimizer{at}": each for at, each in enumerate(found.optimizer)}}
            np.savez(out, **state, num_steps=found.r8.global_step)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return None
    assert status == 0
    with np.load(out) as end:
        return {name: end[name] for name in end.files}


@pytest.mark.parametrize(("column", "way"), PARAMS)
def test_killed(column, way, tmp_path):
    """Killed, and resumed from its newest checkpoint, a run ends with the same weights, moments and number of steps.

    A sample of NaN costs batches before the kill and after it, until it is left out.
    """
    one, faults = driver(column, way), {"sample_faults": {77: NAN}}
    # Lightning goes on with its own loaders between two epochs only.
    every = task.STEPS if column == "lightning own" else 5
    whole, folder = run(one, Case(**faults)), tmp_path / "killed"
    folder.mkdir()
    expected = {**whole.weights, **{f"optimizer{at}": each for at, each in enumerate(whole.optimizer)}}

    assert whole.heard(events.BatchRefused)
    assert end_of(one, Case(folder=folder, every=every, kill_at=19, **faults)) is None
    end = end_of(one, Case(folder=folder, every=every, **faults))
    assert [name for name in expected if not np.array_equal(expected[name], end[name])] == []
    assert end["num_steps"] == whole.r8.global_step

"""Row 8: what is logged, and kept as best, belongs to weights that are kept."""

import pytest

from learnit_r8 import events

from . import task
from .cells import rule
from .run import Case, run
from .test_data import NAN, bound

UNTRAINED = 1.4
"""About the loss of the first weights."""

CASES = {
    "healthy": Case(),
    "NaN weight in mid-epoch": Case(weight_faults={40: NAN}),
    "NaN weight before the last step of an epoch, R8 last": Case(weight_faults={47: NAN}, r8_last=True),
    "NaN batch at the end of an epoch": Case(batch_faults={47: NAN}),
}


@rule()
def test_metrics(column):
    """No epoch logs a loss of 0 or of damaged weights, and the best model is one that is kept."""
    wrong = []
    for name, case in CASES.items():
        found = run(column, case)
        for epoch, logged in enumerate(found.logged):
            before = found.logged[max(0, epoch - 1)]["val_loss"]
            for metric, value in logged.items():
                if not 0.1 < value < UNTRAINED:
                    wrong.append(f"{name}, epoch {epoch}: {metric} {value:.3f}")
            if not logged["val_loss"] <= 1.15 * before:
                wrong.append(f"{name}, epoch {epoch}: val_loss rises from {before:.3f} to {logged['val_loss']:.3f}")
        if len(found.logged) != case.epochs:
            wrong.append(f"{name}: {len(found.logged)} epochs are logged")
        if found.best is not None and not task.error(found.best, activation=case.activation) <= bound(case):
            wrong.append(f"{name}: the best model has an error of {task.error(found.best):.3f}")

    assert wrong == []


@rule(("lightning", "lightning own", "trainer", "trainer own"))
def test_counts(column):
    """What the steps of user code count, in lists, dicts and metrics, is of each batch that was learned from."""
    found = run(column, Case(batch_faults={20: NAN, 41: 1e4}))
    counted = [loss for epoch in found.counted for loss in epoch[:-1]]

    assert len(found.heard(events.BatchRefused)) >= 1
    assert counted == pytest.approx([each.loss for each in found.heard(events.StepDone)], rel=1e-5)
    for *losses, mean in found.counted:
        assert mean == pytest.approx(sum(losses) / len(losses), rel=1e-5)

"""Row 8: what is logged, and kept as best, belongs to weights that are kept."""

import numpy as np

from . import task
from .cells import rule
from .run import Case, run
from .test_data import NAN, bound

CASES = {
    "healthy": Case(),
    "NaN weight in mid-epoch": Case(weight_faults={40: NAN}),
    "NaN weight before the last step of an epoch": Case(weight_faults={47: NAN}),
    "NaN batch at the end of an epoch": Case(batch_faults={47: NAN}),
}


@rule()
def test_metrics(column):
    """No epoch logs a loss of 0 or of damaged weights, and the best model is one that is kept."""
    wrong, first = [], task.error(task.first_weights())
    for name, case in CASES.items():
        for r8_last in (False, True):
            found = run(column, Case(**{**vars(case), "r8_last": r8_last}))
            for epoch, logged in enumerate(found.logged):
                for metric, value in logged.items():
                    if not 0.1 < value < first:
                        wrong.append(f"{name}, epoch {epoch}: {metric} {value:.3f}")
                if not logged["val_loss"] <= 1.15 * found.logged[max(0, epoch - 1)]["val_loss"]:
                    wrong.append(f"{name}, epoch {epoch}: val_loss rises to {logged['val_loss']:.3f}")
            if len(found.logged) != case.epochs:
                wrong.append(f"{name}: {len(found.logged)} epochs are logged")
            if found.best is not None and not task.error(found.best) <= bound(case):
                wrong.append(f"{name}: the best model has an error of {task.error(found.best):.3f}")
            if not np.isfinite(found.error):
                wrong.append(f"{name}: NaN at the end")

    assert wrong == []

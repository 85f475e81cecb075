"""A moment: the scheduler's own state when a model state is copied, restored together with the model.

Reports since then stay in the table, whether it has learned them already or not: that depends on when somebody last
read the table, and reading must not change the run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..guard.monitor import Sentry
from ..table.table import SampleTable


class Moment(NamedTuple):
    """The state that goes back with the model.

    Attributes:
        memory: The guard's states.
        trend: The trend of the losses, and whether estimates were differences from it.
        baseline: Number of baseline resets by then.
    """

    memory: Any
    trend: tuple[float, bool]
    baseline: int = 0


def moment_of(sentry: Sentry, table: SampleTable) -> Moment:
    """The current moment."""
    return Moment(sentry.memory, table.learner.trend_mark, sentry.baseline)


def go_back(moment: Moment, sentry: Sentry, table: SampleTable, *, forget: bool) -> None:
    """Restore a moment together with the model.

    Args:
        moment: The moment kept with the restored backup.
        sentry: Goes back to its state of then.
        table: Goes back to its trend of then if ``forget``.
        forget: Whether the losses since may come from damaged weights.
    """
    if moment.baseline != sentry.baseline:
        # Losses had another meaning before the reset of the baseline.
        return
    sentry.go_back(moment.memory, is_trial=forget)
    if forget:
        table.learner.go_back_to(moment.trend)

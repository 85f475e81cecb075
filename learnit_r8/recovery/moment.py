"""A moment: the scheduler's own state when a model state is copied, restored together with the model.

Later reports stay in the table, whether or not it has learned them already: that depends on when somebody last read
the table, and reading must not change the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ..guard.monitor import Sentry
    from ..table.table import SampleTable


class Moment(NamedTuple):
    """The state that goes back with the model.

    Attributes:
        memory: The guard's state.
        trend: The trend of the losses, and whether estimates were differences from it.
        baseline: Number of baseline resets by then.
        updates: Updates that the weights had taken.
        recent: The last losses learned from.
        state: The state of the run except the table's records; a run that was cut short goes on from it.
    """

    memory: Any
    trend: tuple[float, bool]
    baseline: int
    updates: int
    recent: tuple[float, ...]
    state: Any = None


def go_back(moment: Moment, sentry: Sentry, table: SampleTable, lr: float) -> None:
    """Restore a moment with the model, unless losses had another meaning then; ``lr`` is the scheduled rate."""
    if moment.baseline == sentry.baseline:
        sentry.go_back(moment.memory, lr)
        table.learner.go_back_to(moment.trend)

"""A moment: what the scheduler remembers when a model state is copied, to go back to together with the model.

Reports that the table has not learned yet are kept, as those that it has: which ones it has depends on when somebody
looked at it, and looking must change nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..guard.monitor import Sentry
from ..table.table import SampleTable


class Moment(NamedTuple):
    """What goes back with the model.

    Attributes:
        memory: What the guard remembered.
        trend: The trend of the losses, and whether estimates were differences to it.
        baseline: How often the losses had come to mean something else by then.
    """

    memory: Any
    trend: tuple[float, bool]
    baseline: int = 0


def moment_of(sentry: Sentry, table: SampleTable) -> Moment:
    """The moment that is now."""
    return Moment(sentry.memory, table.trend_mark, sentry.baseline)


def go_back(moment: Moment, sentry: Sentry, table: SampleTable, *, forget: bool) -> None:
    """Go back to a moment with the model.

    Args:
        moment: The one of its backup.
        sentry: Remembers what it did then.
        table: Has the trend it had then,
        forget: if the losses since may be those of damaged weights.
    """
    if moment.baseline != sentry.baseline:
        # What was usual then is in another unit.
        return
    sentry.go_back(moment.memory, is_trial=forget)
    if forget:
        table.go_back_to(moment.trend)

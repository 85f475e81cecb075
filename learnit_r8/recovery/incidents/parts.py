"""The parts of recovery that an inquiry and its settlement work on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...events.bus import Announcer
    from ...guard.monitor import Sentry
    from ...table.table import SampleTable
    from ..lineage import Lineage
    from ..persistence import Persistence
    from ..policy import Recovery
    from ..quarantine import Quarantine
    from ..rate_limit import NormLimit, RateLimit
    from ..refusals import Refusals
    from ..witnesses import Witnesses
    from .experiment_run import ExperimentRun
    from .incident import IncidentLog
    from .live_model import LiveModel


@dataclass(frozen=True)
class Parts:
    """What an inquiry works on.

    Attributes:
        recovery: The settings.
        persistence: Backups, checkpoints, and the user's callbacks.
        announcer: Tells listeners and the user.
        table: Goes back with the model.
        sentry: Judges losses.
        quarantine: Finds bad samples.
        live: The model that is experimented on.
        lineage: What its weights have gone through.
        limit: Holds the learning rate down.
        norms: Clips the gradient.
        witnesses: Those of backups and checkpoints.
        incidents: Holds the incident under way.
        refusals: Counts refused batches.
        experiment: The experiment under way.
    """

    recovery: Recovery
    persistence: Persistence
    announcer: Announcer
    table: SampleTable
    sentry: Sentry
    quarantine: Quarantine
    live: LiveModel
    lineage: Lineage
    limit: RateLimit
    norms: NormLimit
    witnesses: Witnesses
    incidents: IncidentLog
    refusals: Refusals
    experiment: ExperimentRun

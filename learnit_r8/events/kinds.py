"""Every kind of event, and the kinds by name."""

from .event import Event
from .run import Alive as Alive
from .run import Notice as Notice
from .run import ProcessLeft as ProcessLeft
from .run import RunEnded as RunEnded
from .run import RunPaused as RunPaused
from .run import RunResumed as RunResumed
from .run import RunStarted as RunStarted
from .run import RunStopped as RunStopped
from .samples import SamplesSurveyed as SamplesSurveyed
from .saving import BackupTaken as BackupTaken
from .saving import BestSaved as BestSaved
from .saving import CheckpointLoaded as CheckpointLoaded
from .saving import CheckpointSaved as CheckpointSaved
from .training import BatchAbandoned as BatchAbandoned
from .training import EpochDone as EpochDone
from .training import LrFound as LrFound
from .training import LrPlanned as LrPlanned
from .training import MetricsLogged as MetricsLogged
from .training import StepDone as StepDone
from .training import StepsDone as StepsDone
from .trouble import BatchRefused as BatchRefused
from .trouble import DamageFound as DamageFound
from .trouble import GaveUp as GaveUp
from .trouble import IncidentEnded as IncidentEnded
from .trouble import LrCapped as LrCapped
from .trouble import LrRestored as LrRestored
from .trouble import RestoreFailed as RestoreFailed
from .trouble import RolledBack as RolledBack
from .trouble import SamplesQuarantined as SamplesQuarantined
from .trouble import SamplesReleased as SamplesReleased

# A program may have made events of its own before.
EVENTS = {kind.__name__: kind for kind in Event.__subclasses__() if kind.__module__.startswith(f"{__package__}.")}
"""Every kind of event that this version knows, by its name in a journal."""

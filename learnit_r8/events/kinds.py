"""Every kind of event, and the kinds by name."""

from .checkpoints import BackupsOutlive as BackupsOutlive
from .checkpoints import BackupTaken as BackupTaken
from .checkpoints import BestSaved as BestSaved
from .checkpoints import CheckpointLoaded as CheckpointLoaded
from .checkpoints import CheckpointSaved as CheckpointSaved
from .event import Event
from .run import NO_TABLE as NO_TABLE
from .run import Alive as Alive
from .run import CoolDownBegan as CoolDownBegan
from .run import MachineLoad as MachineLoad
from .run import Notice as Notice
from .run import ProcessLeft as ProcessLeft
from .run import RunEnded as RunEnded
from .run import RunPaused as RunPaused
from .run import RunResumed as RunResumed
from .run import RunStarted as RunStarted
from .run import RunStopped as RunStopped
from .samples import SamplesSurveyed as SamplesSurveyed
from .steps import BatchAbandoned as BatchAbandoned
from .steps import EpochDone as EpochDone
from .steps import LrFound as LrFound
from .steps import LrPlanned as LrPlanned
from .steps import MetricsLogged as MetricsLogged
from .steps import StepDone as StepDone
from .steps import StepsDone as StepsDone
from .trouble import BatchRefused as BatchRefused
from .trouble import CauseFound as CauseFound
from .trouble import DamageFound as DamageFound
from .trouble import GaveUp as GaveUp
from .trouble import IncidentEnded as IncidentEnded
from .trouble import LrCapped as LrCapped
from .trouble import LrRestored as LrRestored
from .trouble import Probed as Probed
from .trouble import RestoreFailed as RestoreFailed
from .trouble import RolledBack as RolledBack
from .trouble import SamplesQuarantined as SamplesQuarantined
from .trouble import SamplesReleased as SamplesReleased

# A program may have made events of its own before.
EVENTS = {kind.__name__: kind for kind in Event.__subclasses__() if kind.__module__.startswith(f"{__package__}.")}
"""Every kind of event that this version knows, by its name in a journal."""

"""learnit::r8: which samples a model trains on next, at what learning rate, and what to do when it goes wrong."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.settings import Backups as Backups
    from .engine.settings import Checkpoints as Checkpoints
    from .engine.settings import Estimator as Estimator
    from .engine.settings import Monitor as Monitor
    from .engine.settings import OwnBatches as OwnBatches
    from .engine.settings import RateShape as RateShape
    from .engine.settings import RunDir as RunDir
    from .engine.settings import SchedulerSettings as SchedulerSettings
    from .engine.settings import TokenBatches as TokenBatches
    from .engine.signals import Preempted as Preempted
    from .guard import FiniteGuard as FiniteGuard
    from .guard import GuardState as GuardState
    from .guard import SpikeGuard as SpikeGuard
    from .guard import Verdict as Verdict
    from .policies import Candidates as Candidates
    from .policies import Context as Context
    from .policies import Focus as Focus
    from .policies import Outlook as Outlook
    from .policies import Policy as Policy
    from .policies import even_groups as even_groups
    from .recovery.backups import RamBackup as RamBackup
    from .recovery.policy import Recovery as Recovery
    from .recovery.policy import TrainingDiverged as TrainingDiverged
    from .scheduler import R8Scheduler as R8Scheduler
    from .schedules.schedule import OneCycle as OneCycle
    from .schedules.schedule import Warmup as Warmup
    from .sources.ticket import Outcome as Outcome
    from .sources.ticket import Ticket as Ticket
    from .state.early_stop import EarlyStopping as EarlyStopping
    from .state.store import CheckpointStore as CheckpointStore
    from .state.store import NoValidCheckpoint as NoValidCheckpoint
    from .state.store import RunInUse as RunInUse
    from .state.store import load_weights as load_weights
    from .table.labels.predictions import Predictions as Predictions
    from .table.labels.predictions import predictions_of as predictions_of
    from .table.table import SampleTable as SampleTable

__version__ = "0.1.0"

_MODULES = {
    "engine.settings": (
        "Backups", "Checkpoints", "Estimator", "Monitor", "OwnBatches", "RateShape", "RunDir", "SchedulerSettings",
        "TokenBatches",
    ),
    "engine.signals": ("Preempted",),
    "guard": ("FiniteGuard", "GuardState", "SpikeGuard", "Verdict"),
    "policies": ("Candidates", "Context", "Focus", "Outlook", "Policy", "even_groups"),
    "recovery.backups": ("RamBackup",),
    "recovery.policy": ("Recovery", "TrainingDiverged"),
    "scheduler": ("R8Scheduler",),
    "schedules.schedule": ("OneCycle", "Warmup"),
    "sources.ticket": ("Outcome", "Ticket"),
    "state.early_stop": ("EarlyStopping",),
    "state.store": ("CheckpointStore", "NoValidCheckpoint", "RunInUse", "load_weights"),
    "table.labels.predictions": ("Predictions", "predictions_of"),
    "table.table": ("SampleTable",),
}  # fmt: skip
_HOME = {name: module for module, names in _MODULES.items() for name in names}

_OF_FRAMEWORKS = {
    "attach": "torch", "R8BatchSampler": "torch", "R8Loader": "lightning", "R8Mixin": "transformers",
    "R8Dataset": "keras", "train_loop": "flax", "R8Callback": "keras (or lightning)",
}  # fmt: skip

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in _OF_FRAMEWORKS:
        # Of an AttributeError "from ... import ..." would drop the text; everything else must get one.
        is_import = sys._getframe(1).f_code.co_name == "_handle_fromlist"
        error = ImportError if is_import else AttributeError
        raise error(f"{name} is not here; write: from {__name__}.{_OF_FRAMEWORKS[name]} import {name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__

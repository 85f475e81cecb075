"""learnit::r8: which samples a model trains on next, at what learning rate, and what to do when it goes wrong."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint.reader import NoValidCheckpoint as NoValidCheckpoint
    from .checkpoint.store import CheckpointStore as CheckpointStore
    from .engine.settings import SchedulerSettings as SchedulerSettings
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
    from .policies import match_mean as match_mean
    from .recovery.policy import Recovery as Recovery
    from .recovery.policy import TrainingDiverged as TrainingDiverged
    from .recovery.ram_backup import RamBackup as RamBackup
    from .sampling.ticket import Outcome as Outcome
    from .sampling.ticket import Ticket as Ticket
    from .scheduler import R8Scheduler as R8Scheduler
    from .schedules.schedule import OneCycle as OneCycle
    from .schedules.schedule import Warmup as Warmup
    from .table.labels.predictions import Predictions as Predictions
    from .table.labels.predictions import predictions_of as predictions_of
    from .table.table import SampleTable as SampleTable

__version__ = "0.1.0"

_HOME = {
    "RamBackup": "recovery.ram_backup",
    "CheckpointStore": "checkpoint.store",
    "NoValidCheckpoint": "checkpoint.reader",
    "FiniteGuard": "guard",
    "GuardState": "guard",
    "SpikeGuard": "guard",
    "Verdict": "guard",
    "OneCycle": "schedules.schedule",
    "Warmup": "schedules.schedule",
    "Candidates": "policies",
    "Context": "policies",
    "Focus": "policies",
    "Outlook": "policies",
    "Policy": "policies",
    "even_groups": "policies",
    "match_mean": "policies",
    "Recovery": "recovery.policy",
    "TrainingDiverged": "recovery.policy",
    "R8Scheduler": "scheduler",
    "SchedulerSettings": "engine.settings",
    "Preempted": "engine.signals",
    "Predictions": "table.labels.predictions",
    "SampleTable": "table.table",
    "predictions_of": "table.labels.predictions",
    "Outcome": "sampling.ticket",
    "Ticket": "sampling.ticket",
}

_MOVED = {
    "backup": "recovery.ram_backup",
    "checkpoint.CheckpointStore": "checkpoint.store",
    "checkpoint.NoValidCheckpoint": "checkpoint.reader",
    "events.saving": "events.checkpoints",
    "events.training": "events.steps",
    "flax.saving": "flax.checkpoints",
    "flax.training": "flax.epochs",
    "keras.running": "keras.fit_frame",
    "loops.saving": "loops.checkpoints",
    "loops.stopping": "loops.patience",
    "lr": "schedules.schedule",
    "recovery.Recovery": "recovery.policy",
    "recovery.TrainingDiverged": "recovery.policy",
    "signals": "engine.signals",
    "suspects": "table.label_noise",
    "table.SampleTable": "table.table",
    "testing.recording": "testing.recorder",
    "ticket": "sampling.ticket",
    "triggers.reading": "triggers.notation",
}
"""Modules by their paths of 0.1, and names in modules that are folders now; until version 0.3."""

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__


class _Moved:
    """Finds what is imported by a path of 0.1; asked only for what nobody else has found."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        package, _, old = name.partition(".")
        loader: Any = _Moved
        return importlib.machinery.ModuleSpec(name, loader) if package == __name__ and old in _MOVED else None

    @staticmethod
    def create_module(spec: object) -> None:
        """An empty module will do, which is replaced at once."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        _, _, old = module.__name__.partition(".")
        home = f"{__name__}.{_MOVED[old]}"
        found: Any = importlib.import_module(home)
        folder, _, name = old.rpartition(".")
        if folder and hasattr(found, name):
            found, home = getattr(found, name), f"{home}.{name}"
        text = f"{module.__name__} has moved to {home}; its old path will be gone in version 0.3."
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = found


sys.meta_path.append(_Moved)

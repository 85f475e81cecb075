"""learnit::r8: which samples a model trains on next, at what learning rate, and what to do when it goes wrong."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backup import RamBackup as RamBackup
    from .checkpoint import CheckpointStore as CheckpointStore
    from .checkpoint import NoValidCheckpoint as NoValidCheckpoint
    from .guard import FiniteGuard as FiniteGuard
    from .guard import GuardState as GuardState
    from .guard import SpikeGuard as SpikeGuard
    from .guard import Verdict as Verdict
    from .lr import OneCycle as OneCycle
    from .lr import Warmup as Warmup
    from .policies import Candidates as Candidates
    from .policies import Context as Context
    from .policies import Focus as Focus
    from .policies import Outlook as Outlook
    from .policies import Policy as Policy
    from .policies import even_groups as even_groups
    from .policies import match_mean as match_mean
    from .recovery import Recovery as Recovery
    from .recovery import TrainingDiverged as TrainingDiverged
    from .scheduler import R8Scheduler as R8Scheduler
    from .signals import Preempted as Preempted
    from .table import SampleTable as SampleTable
    from .ticket import Outcome as Outcome
    from .ticket import Ticket as Ticket

__version__ = "0.1.0"

_HOME = {
    "RamBackup": "backup",
    "CheckpointStore": "checkpoint",
    "NoValidCheckpoint": "checkpoint",
    "FiniteGuard": "guard",
    "GuardState": "guard",
    "SpikeGuard": "guard",
    "Verdict": "guard",
    "OneCycle": "lr",
    "Warmup": "lr",
    "Candidates": "policies",
    "Context": "policies",
    "Focus": "policies",
    "Outlook": "policies",
    "Policy": "policies",
    "even_groups": "policies",
    "match_mean": "policies",
    "Recovery": "recovery",
    "TrainingDiverged": "recovery",
    "R8Scheduler": "scheduler",
    "Preempted": "signals",
    "SampleTable": "table",
    "Outcome": "ticket",
    "Ticket": "ticket",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__

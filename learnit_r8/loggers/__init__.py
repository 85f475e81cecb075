"""Loggers: listeners that send a run to TensorBoard, Weights & Biases or MLflow.

Pass them to the scheduler: ``R8Scheduler(..., listeners=[loggers.TensorBoard("tb")])``. Each has its own thread and a
bounded queue, so that one that hangs, or raises, costs no step; what it loses is counted and reported.
"""

import sys
from typing import Any

from .background import Logger as Logger
from .background import MLflow as MLflow
from .background import TensorBoard as TensorBoard
from .background import Wandb as Wandb
from .background import alert_of as alert_of
from .background import numbers_of as numbers_of

_INSTEAD = {
    "CsvFile": "run_dir= records a run, and learnit-r8 export prints its numbers as CSV.",
    "JsonLines": "run_dir= records every event as a line of JSON in events.jsonl.",
    "Webhook": "docs/loggers.md has it as a logger of your own.",
}


def __getattr__(name: str) -> Any:
    if name not in _INSTEAD:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")
    # Of an AttributeError "from ... import ..." would drop the text.
    error = ImportError if sys._getframe(1).f_code.co_name == "_handle_fromlist" else AttributeError
    raise error(f"{name} is not here; {_INSTEAD[name]}")

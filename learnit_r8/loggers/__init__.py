"""Loggers: listeners that send a run to TensorBoard, Weights & Biases, MLflow or files.

Pass them to the scheduler: ``R8Scheduler(..., listeners=[loggers.TensorBoard("tb")])``. Each has its own thread and a
bounded queue, so that one that hangs, or raises, costs no step; what it loses is counted and reported.
"""

import sys
from typing import Any

from .background import Logger as Logger
from .background import alert_of as alert_of
from .background import numbers_of as numbers_of
from .files import CsvFile as CsvFile
from .files import JsonLines as JsonLines
from .services import MLflow as MLflow
from .services import TensorBoard as TensorBoard
from .services import Wandb as Wandb


def __getattr__(name: str) -> Any:
    if name != "Webhook":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")
    # Of an AttributeError "from ... import ..." would drop the text.
    error = ImportError if sys._getframe(1).f_code.co_name == "_handle_fromlist" else AttributeError
    raise error("Webhook is not here; docs/loggers.md has it as a logger of your own.")

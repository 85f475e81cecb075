"""The loop language: what to do with each batch, and when, as a dictionary. No framework is needed or imported.

>>> state, history, elapsed = loop(0, range(10), {every(1): lambda state, batch: state + batch})
>>> state, elapsed.steps
(45, 10)
"""

from ..triggers import Elapsed, after, always, at, every, never
from .bars import keras_bar, wandb
from .checkpoints import checkpoint, early_stopping, load_state, save_state
from .elapsed_data import Period, elapse
from .log_entries import History, Logs, logs
from .run import LoopState, loop
from .scheduled_data import Drawn, report_to, scheduled

__all__ = [
    "Drawn",
    "Elapsed",
    "History",
    "Logs",
    "LoopState",
    "Period",
    "after",
    "always",
    "at",
    "checkpoint",
    "early_stopping",
    "elapse",
    "every",
    "keras_bar",
    "load_state",
    "logs",
    "loop",
    "never",
    "report_to",
    "save_state",
    "scheduled",
    "wandb",
]

"""The loop language: what to do with each batch, and when, as a dictionary. No framework is needed or imported.

>>> state, history, elapsed = loop(0, range(10), {every(1): lambda state, batch: state + batch})
>>> state, elapsed.steps
(45, 10)
"""

from ..triggers import Elapsed, after, always, at, every, never
from .bars import keras_bar, tqdm_bar
from .checkpoints import checkpoint, load_state, save_state
from .elapse import elapse
from .history import History
from .inject import noop
from .inner import inner_loop
from .loggers import tensorboard, wandb, wandb_logger
from .logs import Logs, logs
from .named import (
    on_end,
    on_epoch_end,
    on_epoch_start,
    on_predict_step,
    on_reset_step,
    on_start,
    on_test_end,
    on_test_start,
    on_test_step,
    on_train_step,
    predict_loop,
    test_loop,
    train_loop,
)
from .patience import early_stopping
from .period import Period
from .run import loop
from .scheduled import Drawn, report_to, scheduled
from .state import LoopState

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
    "inner_loop",
    "keras_bar",
    "load_state",
    "logs",
    "loop",
    "never",
    "noop",
    "on_end",
    "on_epoch_end",
    "on_epoch_start",
    "on_predict_step",
    "on_reset_step",
    "on_start",
    "on_test_end",
    "on_test_start",
    "on_test_step",
    "on_train_step",
    "predict_loop",
    "report_to",
    "save_state",
    "scheduled",
    "tensorboard",
    "test_loop",
    "tqdm_bar",
    "train_loop",
    "wandb",
    "wandb_logger",
]

"""Loggers: listeners that send a run to TensorBoard, Weights & Biases or MLflow.

Pass them to the scheduler: ``R8Scheduler(..., listeners=[loggers.TensorBoard("tb")])``. Each has its own thread and a
bounded queue, so that one that hangs, or raises, costs no step; what it loses is counted and reported.
"""

from .background import Logger as Logger
from .background import MLflow as MLflow
from .background import TensorBoard as TensorBoard
from .background import Wandb as Wandb
from .background import alert_of as alert_of
from .background import numbers_of as numbers_of

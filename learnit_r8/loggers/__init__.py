"""Loggers: listeners that send a run to TensorBoard, Weights & Biases, trackio, MLflow, files or a webhook.

Pass them to the scheduler: ``R8Scheduler(..., listeners=[loggers.TensorBoard("tb")])``. Each has its own thread and a
bounded queue, so that one that hangs, or raises, costs no step; what it loses is counted and reported.
"""

from .background import Logger as Logger
from .files import CsvFile as CsvFile
from .files import JsonLines as JsonLines
from .mlflow import MLflow as MLflow
from .tensorboard import TensorBoard as TensorBoard
from .wandb import Wandb as Wandb
from .webhook import Webhook as Webhook

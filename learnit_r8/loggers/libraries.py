"""The libraries of loggers, loaded when one is made."""

from __future__ import annotations

import importlib
from typing import Any


def import_needed(module: str, package: str, what: str) -> Any:
    """Import a module.

    Raises:
        ImportError: it is not installed; the message says which package has it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{package} is required for {what}: pip install {package} ({error}).") from error


def summary_writer(what: str) -> Any:
    """The class that writes for TensorBoard: that of tensorboardX, else that of torch.

    Raises:
        ImportError: neither is installed.
    """
    try:
        return importlib.import_module("tensorboardX").SummaryWriter
    except ImportError:
        return import_needed("torch.utils.tensorboard", "tensorboardX", what).SummaryWriter

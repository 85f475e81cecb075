"""What a run was told and what came of it, as JSON files."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._validation import whole_number
from ..checkpoint.durable_io import replace
from ..events.codec import strict_json


@dataclass(frozen=True)
class TrainingConfig:
    """The plain arguments of a run.

    Args:
        num_epochs: Epochs, >= 1.
        num_batches: Batches in an epoch, >= 1; None for all.
        batch_size: Samples in a batch, >= 1, or None.
        learning_rate: Or None.
        seed: For ``jax.random.key(seed)``, >= 0.
        checkpoint_dir: Folder of the checkpoints, or None.
        checkpoint_every: Epochs between two checkpoints, >= 1.
        val_num_batches: Batches to validate on, >= 1; None for all.
        show_progress: Whether to print a line an epoch.
        extra: Anything else that JSON can hold.

    Raises:
        ValueError: a number out of its range.
    """

    num_epochs: int = 1
    num_batches: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    checkpoint_dir: str | None = None
    checkpoint_every: int = 1
    val_num_batches: int | None = None
    show_progress: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole_number("seed", self.seed, least=0)
        for name in ("num_epochs", "checkpoint_every"):
            whole_number(name, getattr(self, name), least=1)
        for name in ("num_batches", "batch_size", "val_num_batches"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), least=1)


def save_config(config: TrainingConfig, path: str | os.PathLike[str]) -> None:
    """Write a configuration as JSON, whole or not at all; missing folders are made."""
    _write(path, json.dumps(dataclasses.asdict(config), indent=2, allow_nan=False))


def load_config(path: str | os.PathLike[str]) -> TrainingConfig:
    """Read a configuration.

    Raises:
        ValueError: a value out of its range, or a name that there is not.
    """
    values = json.loads(Path(path).read_text(encoding="utf-8"))
    unknown = set(values) - {one.name for one in dataclasses.fields(TrainingConfig)}
    if unknown:
        raise ValueError(f"config must have names that TrainingConfig has, got {sorted(unknown)} too.")
    return TrainingConfig(**values)


def save_metrics_history(history: Mapping[str, Sequence[float]], path: str | os.PathLike[str]) -> None:
    """Write a history as strict JSON, ``{name: [value of each epoch]}``; what is not finite as null."""
    lists = {name: [float(value) for value in values] for name, values in history.items()}
    _write(path, strict_json(lists, non_finite=lambda value: None, indent=2))


def _write(path: str | os.PathLike[str], text: str) -> None:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace(file, text.encode())

"""A checkpoint that was written: its file and its model's, read and checked before anything in them counts."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import codec
from .durable_io import open_regular, sha256

MODEL = re.compile(r"model_(\d{12})_[^/\\\0]*")
"""Names of the files of models; nothing else is ever opened or deleted as one."""


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        path: Its file.
        state: The scheduler's state.
        model_path: The model's file, checked; None if none was saved.
        run_id: The run that wrote it.
        config: How the run was built; empty if that was not saved.
        skipped: Why newer files were passed over, one text each.
    """

    path: Path
    state: dict[str, Any]
    model_path: Path | None
    run_id: str
    config: dict[str, Any]
    skipped: tuple[str, ...] = ()


class NoValidCheckpoint(ValueError):
    """No file in the folder can be read; the message gives every file's reason."""


def first_valid(paths: Iterable[Path], reasons: list[str]) -> Checkpoint | None:
    """The first that can be read; why the ones before cannot is put into ``reasons`` and said."""
    for path in paths:
        try:
            checkpoint = read_checkpoint(path)
        except (OSError, ValueError) as error:
            reasons.append(f"{path.name}: {error}")
            continue
        if reasons:
            warnings.warn("checkpoints passed over: " + " | ".join(reasons), RuntimeWarning, stacklevel=4)
        return checkpoint
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's file and check its model's file.

    Raises:
        ValueError: one of them is damaged, or no regular file.
        OSError: it cannot be read.
    """
    content = codec.read(path)
    run_id, about, config = content.get("run_id"), content.get("model"), content.get("config", {})
    if not (isinstance(run_id, str) and isinstance(content.get("scheduler"), dict) and isinstance(config, dict)):
        raise ValueError(f"{path.name} must be a checkpoint of a scheduler, got one with {sorted(content)[:9]}.")
    return Checkpoint(path, content["scheduler"], _checked_model(path, about), run_id, config)


def about_model(model: Path) -> dict[str, Any]:
    """What a checkpoint says of its model file, to know it again."""
    return {"name": model.name, "size": model.stat().st_size, "sha256": sha256(model)}


def _model_beside(path: Path, about: Any) -> Path | None:
    """The file of the model that a checkpoint names: always one of ours, beside it."""
    if about is None:
        return None
    name = about.get("name") if isinstance(about, dict) else None
    if not isinstance(name, str) or not MODEL.fullmatch(name):
        raise ValueError(f"the model's file must have a name of ours, got {name!r} in {path.name}.")
    return path.parent / name


def _checked_model(path: Path, about: Any) -> Path | None:
    model = _model_beside(path, about)
    if model is None:
        return None
    with open_regular(model) as file:
        size = os.fstat(file.fileno()).st_size
    # The size first: a digest takes a second a gigabyte.
    if size != about.get("size") or sha256(model) != about.get("sha256"):
        raise ValueError(
            f"the model's file must be as it was saved with the checkpoint, got another in {str(model)!r}."
        )
    return model


def written_by(path: Path) -> tuple[str, Path | None, int]:
    """The run that wrote a checkpoint, its model file, and the step; an empty name for what cannot be read."""
    try:
        with open_regular(path) as file:
            tree = codec.read_tree(file)
        return str(tree["run_id"]), _model_beside(path, tree["model"]), step_of(tree["scheduler"])
    except (OSError, ValueError, KeyError):
        return "", None, -1


def step_of(state: Any) -> int:
    """Steps reported when a scheduler's state was taken; -1 if it does not say."""
    pace = state.get("pace") if isinstance(state, Mapping) else None
    step = pace.get("step") if isinstance(pace, Mapping) else None
    return step if isinstance(step, int) else -1

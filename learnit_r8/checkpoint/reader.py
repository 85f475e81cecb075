"""Checkpoint reader: reads a checkpoint's file, and checks it and the model's file before anything in them is used."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..events.caller import warn
from . import codec
from .durable_io import open_regular, sha256

MODEL = re.compile(r"model_(\d{12})_[^/\\\0]*")
"""Names of model files; no other file is ever opened or deleted as one."""


class Checkpoint(NamedTuple):
    """The content of a checkpoint.

    Attributes:
        path: Its file.
        state: The scheduler's state.
        model_path: The model's file, checked; None if none was saved.
        run_id: The run that wrote it.
        config: The run's configuration; empty if it was not saved.
        skipped: Why newer files were skipped, one text each.
        model_state: The model state itself, of a generation in shared memory; None for a checkpoint on disk.
    """

    path: Path
    state: dict[str, Any]
    model_path: Path | None
    run_id: str
    config: dict[str, Any]
    skipped: tuple[str, ...] = ()
    model_state: Any = None


class NoValidCheckpoint(ValueError):
    """No checkpoint in the folder can be read; the message gives the reason for each file."""


def first_valid(paths: Iterable[Path], reasons: list[str]) -> Checkpoint | None:
    """The first readable checkpoint; the reasons against those before it are added to ``reasons`` and warned of.

    Raises:
        OlderFile: the newest one that is whole was written by an older version.
    """
    for path in paths:
        try:
            checkpoint = read_checkpoint(path)
        except codec.OlderFile:
            # To skip it would be to start over, or to go back, without a word.
            raise
        except (OSError, ValueError) as error:
            reasons.append(f"{path.name}: {error}")
            continue
        if reasons:
            warn("checkpoints skipped: " + " | ".join(reasons))
        return checkpoint
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's file and check its model's file.

    Raises:
        ValueError: one of them is damaged, or not a regular file.
        OlderFile: an older version wrote it.
        OSError: it cannot be read.
    """
    try:
        content = codec.read(path)
    except codec.OlderFile:
        folder = str(path.parent.absolute())
        raise codec.OlderFile(
            f"a checkpoint must be of this version, got {path.name!r} of an older one in {folder!r}: run learnit-r8 "
            f"convert {folder}, and put {folder}-converted, which that writes, in its place; or begin a new run with "
            "resume=None."
        ) from None
    run_id, about, config = content.get("run_id"), content.get("model"), content.get("config", {})
    if not (isinstance(run_id, str) and isinstance(content.get("scheduler"), dict) and isinstance(config, dict)):
        raise ValueError(f"{path.name} must be a checkpoint of R8Scheduler, got the entries {sorted(content)[:9]}.")
    return Checkpoint(path, content["scheduler"], _checked_model(path, about), run_id, config)


def about_model(model: Path) -> dict[str, Any]:
    """The entry in a checkpoint that identifies its model file."""
    return {"name": model.name, "size": model.stat().st_size, "sha256": sha256(model)}


def _model_beside(path: Path, about: Any) -> Path | None:
    """The model file that a checkpoint names, always in the same folder and with a name that `MODEL` matches."""
    if about is None:
        return None
    name = about.get("name") if isinstance(about, dict) else None
    if not isinstance(name, str) or not MODEL.fullmatch(name):
        raise ValueError(f"the model's file must be named model_<number>_<run>, got {name!r} in {path.name}.")
    return path.parent / name


def _checked_model(path: Path, about: Any) -> Path | None:
    model = _model_beside(path, about)
    if model is None:
        return None
    with open_regular(model) as file:
        size = os.fstat(file.fileno()).st_size
    # The size first: a digest takes a second per gigabyte.
    if size != about.get("size") or sha256(model) != about.get("sha256"):
        raise ValueError(f"the model's file must be unchanged since the checkpoint, got another in {str(model)!r}.")
    return model


def written_by(path: Path) -> tuple[str, Path | None, int]:
    """The id of the run that wrote a checkpoint, the model file and the step; ("", None, -1) if it is unreadable."""
    try:
        with open_regular(path) as file:
            tree = codec.read_tree(file)
        return str(tree["run_id"]), _model_beside(path, tree["model"]), step_of(tree["scheduler"])
    except (OSError, ValueError, KeyError):
        return "", None, -1


def step_of(state: Any) -> int:
    """Steps reported when a scheduler's state was taken; -1 if the state does not say."""
    pace = state.get("pace") if isinstance(state, Mapping) else None
    step = pace.get("step") if isinstance(pace, Mapping) else None
    return step if isinstance(step, int) else -1

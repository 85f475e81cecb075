"""Checkpoints of Flax states: files that are whole or absent, restored into a state that can train on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._validation import whole_number
from ..checkpoint.codec import decode, encode
from ..checkpoint.state_fit import fit
from ..checkpoint.state_form import pack, unpack
from ..events.caller import warn
from ..loops.checkpoints import numbered, save_state

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler

PREFIX = "checkpoint_"


def save_checkpoint(state: Any, directory: str | os.PathLike[str], step: int | None = None) -> Path:
    """Write a state to ``directory/checkpoint_<step>``, in place of one of that name.

    Args:
        state: A `TrainState`, or any pytree of arrays and numbers.
        directory: Made if it is missing.
        step: >= 0; by default ``state.step``.

    Returns:
        The file.

    Raises:
        ValueError: the step is not whole or below 0.
        TypeError: a leaf of the state cannot be saved.
    """
    number = int(state.step) if step is None else whole_number("step", step, least=0)
    path = Path(directory) / f"{PREFIX}{number}"
    save_state(path, state)
    return path


def load_checkpoint(path: str | os.PathLike[str], state: Any = None) -> Any:
    """Read a state.

    Args:
        path: The file.
        state: A state of the same structure, such as a fresh one; gives what a file cannot hold, the functions and
            the types of the optimizer.

    Returns:
        A state that can train on: parameters, optimizer, step and statistics as they were. Without ``state``, nested
        dicts, lists and tuples of numpy arrays.

    Raises:
        ValueError: the file is damaged, or of another structure than ``state``.
        OSError: there is no such file.
    """
    saved = unpack(decode(Path(path).read_bytes())["state"])
    return saved if state is None else fit(saved, state)


def pack_scheduler(r8: R8Scheduler) -> NDArray[np.uint8]:
    """The state of a scheduler as one array, for checkpoints of arrays alone, such as those of orbax.

    Call it between two steps, in a callback of `train_loop` for instance, and save it beside the training's state.

    Returns:
        uint8[any]; its length differs from step to step.
    """
    return np.frombuffer(encode(r8.state_dict()), np.uint8)


def unpack_scheduler(r8: R8Scheduler, packed: Any) -> None:
    """Let a scheduler go on from where `pack_scheduler` was called; restore the training's state yourself.

    Args:
        r8: Built with the same arguments.
        packed: uint8[any], as it was read from the checkpoint.

    Raises:
        ValueError: the array is damaged, or of a run over other samples.
    """
    r8.load_state_dict(decode(np.asarray(packed, np.uint8).tobytes()))


def save_training(
    state: Any, directory: Path, *, epoch: int, history: dict[str, list[float]], key: Any, scheduler: Any
) -> None:
    """Write a checkpoint of a whole training: the state, and all that `train_loop` needs to go on."""
    training = {
        "epoch": epoch,
        "history": {name: np.asarray(values, dtype=np.float64) for name, values in history.items()},
        "key": pack(key),
        "scheduler": None if scheduler is None else scheduler.state_dict(),
    }
    save_state(directory / f"{PREFIX}{epoch}", state, training=training)


def newest_training(directory: Path) -> dict[str, Any] | None:
    """The content of the newest valid checkpoint of a training; None without. Warns of damaged ones and skips them."""
    for _, path in reversed(numbered(directory, PREFIX)):
        try:
            content = decode(path.read_bytes())
            if "training" not in content:
                raise ValueError(f"{path.name} must be written by train_loop(), got one with {sorted(content)}.")
        except (OSError, ValueError) as error:
            warn(f"a checkpoint was passed over: {path.name}: {error}")
            continue
        return content
    return None

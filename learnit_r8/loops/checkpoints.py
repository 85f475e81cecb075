"""States of a loop, kept: copies in RAM for early stopping, files for checkpoints."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .._adapters.driven_state import take_apart
from .._validation import whole_number
from ..checkpoint.codec import decode, encode
from ..checkpoint.durable_io import replace
from ..checkpoint.state_fit import fit, unpack_saved
from ..checkpoint.state_form import pack
from ..checkpoint.state_tree import clone
from ..events.steps import mode_of
from ..streams.event import as_scalar
from ..triggers.patience import Record

if TYPE_CHECKING:
    from .state import LoopState


class Kept:
    """A copy of a state that later steps cannot change.

    Args:
        state: Of a loop.
    """

    def __init__(self, state: Any) -> None:
        leaves, self._make = take_apart(state)
        self._leaves = clone(leaves)

    def put_back(self) -> Any:
        """The state as it was; objects with ``load_state_dict`` in it are changed in place."""
        return self._make(clone(self._leaves))


def save_state(path: str | os.PathLike[str], state: Any, **more: Any) -> None:
    """Write a state to a file, whole or not at all; reading it runs no code.

    Args:
        path: The file; missing folders are made.
        state: A nest of dicts, lists, tuples, other pytree nodes, objects with ``state_dict()``; of arrays and numbers.
        **more: What else to write, as `checkpoint.encode` takes it.

    Raises:
        TypeError: a leaf cannot be saved; the message says where it is.
    """
    file = Path(path)
    content = encode({"state": pack(state, holders=True), **more})
    file.parent.mkdir(parents=True, exist_ok=True)
    replace(file, content)


def load_state(path: str | os.PathLike[str], template: Any) -> Any:
    """Read a state that `save_state` wrote.

    Args:
        path: The file.
        template: A state of the same structure; objects with ``load_state_dict`` are changed in place.

    Returns:
        A state that can go on.

    Raises:
        ValueError: the file is damaged, or of a state of another structure.
    """
    return fit(unpack_saved(decode(Path(path).read_bytes())["state"]), template)


def numbered(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    """The files ``prefix<number>`` of a folder, by number."""
    names = os.listdir(folder) if folder.is_dir() else []
    found = ((re.fullmatch(re.escape(prefix) + r"(\d+)", name), name) for name in names)
    return sorted((int(match[1]), folder / name) for match, name in found if match)


class checkpoint:
    """Save the state to ``folder/checkpoint_<step>``, each time it is called or only when something got better.

    In the tasks it is called when its trigger says; among the callbacks, at every step. Read it with `load_state`.

    Args:
        folder: Made when the first checkpoint is written.
        monitor: Name of an entry of the logs: saves only at steps that have it and at which it is the best so far. By
            default every call saves, and so does the end of the run.
        mode: "min" if lower is better, "max" if higher is; by default as the name says, see `is_lower_better`.
        keep: Checkpoints of this run to keep, >= 1; those of other runs are never deleted.
        min_delta: Least difference that counts as better, >= 0.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        keep: int = 1,
        min_delta: float = 0.0,
    ) -> None:
        self.folder = Path(folder)
        self._monitor, self._mode, self._min_delta = monitor, mode_of(monitor, mode), min_delta
        self._keep = whole_number("keep", keep, least=1)
        self.on_start()

    def on_start(self) -> None:
        """Forget the previous run."""
        self._record = Record(self._mode, self._min_delta)
        self._own: list[Path] = []

    def on_step(self, loop_state: LoopState) -> None:
        """Save, if that is due."""
        if self._monitor is None or is_new_best(loop_state, self._monitor, self._record):
            self._save(loop_state)

    def on_end(self, loop_state: LoopState) -> None:
        """Save the last state too, unless only the best ones are wanted or the run ended with an error."""
        if self._monitor is not None:
            self.on_step(loop_state)
        elif loop_state.error is None:
            self._save(loop_state)

    def _save(self, loop_state: LoopState) -> None:
        path = self.folder / f"checkpoint_{loop_state.elapsed.steps}"
        save_state(path, loop_state.state)
        self._own = [one for one in self._own if one != path] + [path]
        for old in self._own[: -self._keep]:
            old.unlink(missing_ok=True)
        del self._own[: -self._keep]


def is_new_best(loop_state: LoopState, monitor: str, record: Record) -> bool:
    """Whether this step has logged a new best value; False where it has logged none."""
    try:
        value = as_scalar(loop_state.logs.find(monitor))
    except KeyError:
        return False
    return record.improves(float(value))

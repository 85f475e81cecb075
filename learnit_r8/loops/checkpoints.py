"""States of a loop, kept: files for checkpoints, copies in RAM for early stopping, which is here too."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .._validation import whole_number
from ..bridge.driven_state import take_apart
from ..events.caller import warn
from ..events.steps import mode_of
from ..state.codec import decode, encode
from ..state.durable_io import replace
from ..state.tree import clone, fit, pack, unpack
from ..streams.stages import as_scalar
from ..triggers.patience import Patience, Record

if TYPE_CHECKING:
    from .run import LoopState


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
    return fit(unpack(decode(Path(path).read_bytes())["state"]), template)


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
        if self._monitor is None:
            self._save(loop_state)
            return
        try:
            value = as_scalar(loop_state.logs.find(self._monitor))
        except KeyError:
            return
        if self._record.improves(float(value)):
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


class early_stopping:
    """End the loop when an entry of the logs has not improved for a while.

    It looks only at steps that have the entry, so a validation that logs it may run only once in a while.

    Args:
        monitor: Name of the entry.
        patience: Values without improvement to accept, >= 1.
        min_delta: Least difference that counts as better, >= 0, in the unit of the entry.
        mode: "min" if lower is better, "max" if higher is; by default as the name says, see `is_lower_better`.
        restore_best_weights: Whether the loop returns the state it had at the best value, however it ends.

    Attributes:
        best: The best value so far; None before the first finite one.
        stopped: Whether it has ended the loop.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        monitor: str,
        patience: int = 1,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] | None = None,
        restore_best_weights: bool = True,
    ) -> None:
        self._monitor, self._min_delta, self._mode = monitor, min_delta, mode_of(monitor, mode)
        self._patience, self._restores = patience, restore_best_weights
        self.on_start()

    def on_start(self) -> None:
        """Forget the previous run."""
        self._rule = Patience(self._patience, self._mode, self._min_delta)
        self._kept: Any = None
        self._others: set[str] | None = set()
        self.stopped = False

    @property
    def best(self) -> float | None:
        return self._rule.best

    def on_step(self, loop_state: LoopState) -> None:
        """Look at this step's logs."""
        try:
            value = loop_state.logs.find(self._monitor)
        except KeyError:
            if self._others is not None:
                self._others.update(name for entries in loop_state.logs.values() for name in entries)
            return
        self._others = None
        if self._rule.improves(float(as_scalar(value))):
            if self._restores:
                leaves, make = take_apart(loop_state.state)
                # Copies, as later steps may change what they are made of.
                self._kept = make, clone(leaves)
        elif self._rule.is_over:
            self.stopped = loop_state.stop_iteration = True

    def on_end(self, loop_state: LoopState) -> None:
        """Put the best state back; warn if there never was an entry of that name."""
        self.on_step(loop_state)
        if self._others and loop_state.error is None:
            warn(
                f"monitor must be an entry of the logs, got {self._monitor!r}, which no step had, so the loop was "
                f"never stopped; there were {sorted(self._others)}."
            )
        if self._restores and self.best is not None:
            make, leaves = self._kept
            loop_state.state = make(clone(leaves))

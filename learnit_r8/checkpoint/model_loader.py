"""Model loader: reads checkpoints, hands their model to the user, and says how their run was built otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import events
from ..events.bus import Announcer
from .callbacks import call_load
from .reader import Checkpoint
from .run_config import IDENTITY, SAID, differences
from .store import CheckpointStore


def read_from(store: CheckpointStore | None, path: str | os.PathLike[str] | None) -> Checkpoint:
    """Read a checkpoint, by default the newest valid one of the store.

    Raises:
        RuntimeError: no path and no folder is known.
        ValueError: it cannot be used.
    """
    if store is None:
        if path is None:
            raise RuntimeError(f"path must be given where there is no checkpoint_dir, got {path!r}.")
        store = CheckpointStore(Path(path).parent, keep=1, run_id="")
    return store.load(path)


class ModelLoader:
    """Hands the models of checkpoints to the load callback; one that is not there yet gets them later.

    Args:
        config: How the run was built.
        announcer: Who is told.
    """

    def __init__(self, config: Mapping[str, Any], announcer: Announcer) -> None:
        self._config = dict(config)
        self._announcer = announcer
        self._pending: Checkpoint | None = None
        self._loaded: Checkpoint | None = None

    def hand_over(self, checkpoint: Checkpoint, load: Callable[..., Any] | None) -> None:
        """Hand a checkpoint's model file to the load callback, if there are both.

        Raises:
            RuntimeError: the load callback raised; nothing else was changed.
        """
        self._pending = checkpoint if checkpoint.model_path is not None else None
        self.hand_over_pending(load)

    def hand_over_pending(self, load: Callable[..., Any] | None) -> None:
        """Likewise the model that waits for a callback."""
        if self._pending is not None and load is not None:
            checkpoint, self._pending = self._pending, None
            call_load(load, str(checkpoint.model_path), from_ram=False)

    def put_back(self, checkpoint: Checkpoint, *, has_callback: bool) -> None:
        """Note that a checkpoint was put back; say what may surprise."""
        self._loaded = checkpoint
        if checkpoint.model_path is None and has_callback:
            self._announcer.warn_once(
                "no model in checkpoint",
                f"{checkpoint.path.name} holds no model, so load_callback was not called: the model is as you made it.",
            )
        others = differences(checkpoint.config, self._config, IDENTITY)
        if others:
            self._announcer.warn_once("differences", f"the resumed run is not built as it was: {'; '.join(others)}.")

    def is_built_otherwise(self, checkpoint: Checkpoint, name: str) -> bool:
        """Whether the run of a checkpoint had another value of an argument, as far as it says."""
        return bool(differences(checkpoint.config, self._config, (name,)))

    def tell(self) -> None:
        """Tell listeners of a checkpoint that was put back, once the run has started."""
        checkpoint, self._loaded = self._loaded, None
        if checkpoint is not None:
            self._announcer.tell(
                events.CheckpointLoaded,
                path=str(checkpoint.path),
                model_path=None if checkpoint.model_path is None else str(checkpoint.model_path),
                skipped=checkpoint.skipped,
                differences=tuple(differences(checkpoint.config, self._config, IDENTITY + SAID)),
            )
        if self._pending is not None:
            self._announcer.warn_once(
                "model not loaded",
                f"there is no load_callback, so the model is as you made it; the saved one is in "
                f"{str(self._pending.model_path)!r}.",
            )

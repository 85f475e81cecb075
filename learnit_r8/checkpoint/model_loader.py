"""Model loader: reads checkpoints, passes their model to the load callback, and reports changed settings."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import events
from ..events.bus import Announcer
from .callbacks import call_load
from .reader import Checkpoint
from .run_config import RunConfig
from .store import CheckpointStore

NO_MODEL = (
    "{} holds no model, so load_callback was not called: the model is unchanged. With save_callback= it would hold it."
)


def read_from(store: CheckpointStore | None, path: str | os.PathLike[str] | None) -> Checkpoint:
    """Read a checkpoint, by default the newest valid one of the store.

    Raises:
        RuntimeError: there is neither a path nor a store.
        ValueError: it cannot be used.
    """
    if store is None:
        if path is None:
            raise RuntimeError(f"path must be given if there is no checkpoint_dir, got {path!r}.")
        store = CheckpointStore(Path(path).parent, keep=1, run_id="")
    return store.load(path)


class ModelLoader:
    """Passes the models of checkpoints to the load callback, now or as soon as there is one.

    Args:
        config: The run's configuration.
        announcer: Receives warnings and events.
    """

    def __init__(self, config: RunConfig, announcer: Announcer) -> None:
        self._config = config
        self._announcer = announcer
        self._pending: Checkpoint | None = None
        self._loaded: Checkpoint | None = None
        self._lacks_model = False

    def hand_over(self, checkpoint: Checkpoint, load: Callable[..., Any] | None) -> None:
        """Pass a checkpoint's model file to the load callback, if both exist.

        Raises:
            RuntimeError: the load callback raised; nothing else was changed.
        """
        has_model = checkpoint.model_path is not None or checkpoint.model_state is not None
        self._pending = checkpoint if has_model else None
        self.hand_over_pending(load)

    def hand_over_pending(self, load: Callable[..., Any] | None) -> None:
        """Pass the model file that waits for a load callback to it."""
        if self._pending is not None and load is not None:
            checkpoint, self._pending = self._pending, None
            if checkpoint.model_state is not None:
                call_load(load, checkpoint.model_state, from_ram=True, is_resume=True)
            else:
                call_load(load, str(checkpoint.model_path), from_ram=False, is_resume=True)

    def put_back(self, checkpoint: Checkpoint, *, has_callback: bool) -> None:
        """Note that a checkpoint was loaded; warn of a missing model and of changed settings."""
        self._loaded = checkpoint._replace(model_state=None)
        self._lacks_model = checkpoint.model_path is None and checkpoint.model_state is None
        if self._lacks_model and has_callback:
            self._announcer.warn_once("no model in checkpoint", NO_MODEL.format(checkpoint.path.name))
        others = self._config.differences(checkpoint.config, self._config.identity)
        if others:
            self._announcer.warn_once("differences", f"the resumed run is configured differently: {'; '.join(others)}.")

    def has_changed(self, checkpoint: Checkpoint, name: str) -> bool:
        """Whether an argument had another value in the run of a checkpoint; False if the checkpoint does not say."""
        return bool(self._config.differences(checkpoint.config, (name,)))

    def tell(self) -> None:
        """Tell listeners that a checkpoint was loaded, once the run has started."""
        checkpoint, self._loaded, config = self._loaded, None, self._config
        if checkpoint is not None:
            self._announcer.tell(
                events.CheckpointLoaded,
                path=str(checkpoint.path),
                model_path=None if checkpoint.model_path is None else str(checkpoint.model_path),
                skipped=checkpoint.skipped,
                differences=tuple(config.differences(checkpoint.config, (*config.identity, *config.changeable))),
            )
            if self._lacks_model:
                self._announcer.note_once("no model in checkpoint", NO_MODEL.format(checkpoint.path.name))
        if self._pending is not None:
            self._announcer.warn_once(
                "model not loaded",
                f"there is no load_callback, so the model is unchanged; the saved one is in "
                f"{str(self._pending.model_path or self._pending.path)!r}.",
            )

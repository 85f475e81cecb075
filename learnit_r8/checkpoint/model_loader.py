"""Model loader: passes the models of checkpoints to the load callbacks, the adapter's and the user's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import events
from ..events.bus import Announcer
from ..events.caller import warn
from .callbacks import OWN, Callbacks, call_load, call_save, load_with
from .codec import decode, encode
from .run_config import RunConfig
from .store import Checkpoint, CheckpointStore
from .tree import fill, hold, pack, unpack

KEPT_BY_ADAPTER = "kept_by_adapter"
"""Entry of a saved configuration: whether an adapter has saved the model, so that one must load it."""

NOT_HELD = "checkpoints cannot hold {} of state_callback: load_callback gets the present value."

NO_MODEL = (
    "{} holds no model, so load_callback was not called: the model is unchanged. With save_callback= it would hold it."
)


def join_callbacks(kept: Callbacks, own: Callbacks) -> Callbacks:
    """An adapter's callbacks together with the user's own; see `JoinedCallbacks`.

    Raises:
        ValueError: of the user's state and load callbacks one is missing, and there is no save callback.
    """
    if kept.state is None or kept.load is None:
        return replace(kept, save=own.save or kept.save, load=own.load or kept.load, state=own.state or kept.state)
    if own.save is None and (own.state is None) != (own.load is None):
        names = ("load_callback", "state_callback") if own.load is None else ("state_callback", "load_callback")
        raise ValueError("{} must be given together with {}, got it left out.".format(*names))
    if own == Callbacks():
        return kept
    both = JoinedCallbacks(kept, own)
    # What the user's own files are to hold is not spread over the ranks.
    collect = both.collect if kept.collect is not None and (own.save is None or own.state is None) else None
    return replace(kept, save=both.save, load=both.load, state=both.state, collect=collect, own=own)


class JoinedCallbacks:
    """Callbacks of the user's own beside those of an adapter: a state holds what both keep.

    The adapter's is put back first. Files that the user's save callback writes are the user's alone, and so is loading
    them.

    Args:
        kept: The adapter's; its ``save`` also writes what a state holds under `OWN`, and its ``load`` returns that.
        own: The user's.
    """

    keeps_model = True

    def __init__(self, kept: Callbacks, own: Callbacks) -> None:
        self._kept: Any = kept
        self._own = own
        self._left_out: dict[str, str] = {}

    def state(self) -> dict[str, Any]:
        """What both return."""
        return self._with_own(self._kept.state)

    def collect(self) -> dict[str, Any]:
        """What the adapter collects, and the user's own state of this rank."""
        return self._with_own(self._kept.collect)

    def _with_own(self, get: Any) -> dict[str, Any]:
        return {**get(), OWN: self._own.state()} if self._own.state is not None else dict(get())

    def save(self, state_dict: Mapping[str, Any], filepath: str) -> None:
        """Write a state to a file."""
        own, model = self._own, state_dict["model"]
        if own.save is not None:
            call_save(own.save, {**state_dict, "model": model.get(OWN, model)}, filepath)
            return
        packed = np.frombuffer(encode(pack(hold(model[OWN], self._left_out, NOT_HELD))), np.uint8)
        call_save(self._kept.save, {**state_dict, "model": {**model, OWN: [packed]}}, filepath)

    def load(self, source: Any, *, from_ram: bool = False, is_resume: bool = False) -> None:
        """Restore a state, the adapter's part first."""
        kept, own, when = self._kept, self._own, {"from_ram": from_ram, "is_resume": is_resume}
        if not from_ram and own.save is not None:
            load_with(own.load or kept.load, source, **when)
            return
        names = source.keys() if from_ram and isinstance(source, Mapping) else set()
        has_own = OWN in names
        if from_ram and own.load and not (has_own or names >= kept.state().keys()):
            # The user gave it to update_cpu_backup().
            load_with(own.load, source, **when)
            return
        beside = load_with(kept.load, source, **when)
        if own.state is None or own.load is None:
            return
        if has_own:
            beside = source[OWN]
        elif not from_ram and beside is not None:
            beside = fill(unpack(decode(np.asarray(beside[0]).tobytes())), own.state())
        else:
            warn("the saved state holds nothing of state_callback, as it had none, so load_callback was not called.")
            return
        # A state, from a file too.
        load_with(own.load, beside, from_ram=True, is_resume=is_resume)


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

"""Checkpoints: written whole or not at all, and read without running any code from the file.

A file holds a magic number, the format version, the length and the SHA-256 of a payload, and the payload: an
uncompressed npz of plain arrays with one JSON text in it. It is written under a temporary name, flushed to the disk,
renamed, and its folder flushed. ``docs/files.md`` describes it for other programs.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .durable import flush, flush_folder, sha256, write_new

MAGIC = b"R8CK"
FORMAT = 1
"""Raised by one whenever an old file can no longer be read as it is."""

_HEADER = struct.Struct("<4sIQ32s")
_NAME = re.compile(r"ck_(\d{12})\.r8")
_TREE = "tree"


class Checkpoint(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        path: Its file.
        state: The scheduler's state.
        model_path: The model's file, checked; None if none was saved.
        run_id: The run that wrote it.
    """

    path: Path
    state: dict[str, Any]
    model_path: Path | None
    run_id: str


class NoValidCheckpoint(ValueError):
    """No file in the folder can be read; the message gives every file's reason."""


def encode(state: Mapping[str, Any]) -> bytes:
    """The content of a checkpoint file.

    Args:
        state: Nested dicts (with text keys) and lists of arrays, texts, booleans, ints, floats and None.

    Raises:
        TypeError: a value of another type; the message gives its dotted key.
    """
    arrays: dict[str, Any] = {}
    tree = json.dumps(_to_tree(state, "state", arrays))
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{_TREE: np.array(tree)}, **arrays)
    payload = buffer.getvalue()
    return _HEADER.pack(MAGIC, FORMAT, len(payload), hashlib.sha256(payload).digest()) + payload


def decode(content: bytes) -> dict[str, Any]:
    """The state that `encode` was given; tuples come back as lists.

    Raises:
        ValueError: not a checkpoint, damaged, cut short, or of a newer format.
    """
    if len(content) < _HEADER.size or content[:4] != MAGIC:
        raise ValueError(
            f"the file must begin with {MAGIC!r} and a header of {_HEADER.size} bytes, got {content[:8]!r}."
        )
    _, version, length, digest = _HEADER.unpack_from(content)
    if version != FORMAT:
        raise ValueError(f"the file's format must be {FORMAT}, got {version}: another version wrote it.")
    payload = content[_HEADER.size :]
    if len(payload) != length or hashlib.sha256(payload).digest() != digest:
        raise ValueError(
            f"the file must hold {length} bytes with the SHA-256 in its header, got {len(payload)}; it is damaged."
        )
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        state: dict[str, Any] = _from_tree(json.loads(str(arrays[_TREE])), arrays)
    return state


def _to_tree(value: Any, key: str, arrays: dict[str, Any]) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError(f"{key} must be an array of numbers or texts, got dtype {value.dtype}.")
        name = f"a{len(arrays)}"
        arrays[name] = value
        return {"__array__": name}
    if isinstance(value, np.generic):
        return _to_tree(value.item(), key, arrays)
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str) or name == "__array__":
                raise TypeError(f"{key} must have texts as keys (and not '__array__'), got {name!r}.")
        return {name: _to_tree(item, f"{key}.{name}", arrays) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_tree(item, f"{key}.{number}", arrays) for number, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{key} must be a number, text, boolean, None, array, or a dict or list of them, got {value!r}.")


def _from_tree(value: Any, arrays: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        if "__array__" in value:
            return arrays[value["__array__"]]
        return {name: _from_tree(item, arrays) for name, item in value.items()}
    return [_from_tree(item, arrays) for item in value] if isinstance(value, list) else value


class CheckpointStore:
    """Numbered checkpoints in a folder: the newest valid one counts.

    Args:
        folder: Made when the first checkpoint is written.
        keep: Checkpoints of this run to keep, >= 1; those of other runs are never touched.
        run_id: Tells this run's files from others'.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int, run_id: str) -> None:
        self.folder = Path(folder)
        self.keep = keep
        self.run_id = run_id
        self._own: list[tuple[Path, Path | None]] = []

    def save(self, state: Mapping[str, Any], write_model: Callable[[str], None] | None = None) -> Checkpoint:
        """Write a checkpoint and delete this run's oldest beyond ``keep``.

        Args:
            state: As `encode` takes it.
            write_model: Writes the model to the path it is given (a suffix of its own is accepted). The file is
                made durable before the scheduler's file, which names it with its size and hash.

        Raises:
            TypeError: a value that cannot be saved.
            OSError: the disk refused; the checkpoints before are untouched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        number = self._next_number()
        model = None if write_model is None else self._save_model(number, write_model)
        try:
            about = None if model is None else _about(model)
            content = encode({"run_id": self.run_id, "model": about, "scheduler": state})
            path = self._write_new(number, content)
        except BaseException:
            if model is not None:
                model.unlink(missing_ok=True)
            raise
        self._own.append((path, model))
        for old in self._own[: -self.keep]:
            for file in filter(None, old):
                file.unlink(missing_ok=True)
        del self._own[: -self.keep]
        return Checkpoint(path, dict(state), model, self.run_id)

    def _next_number(self) -> int:
        names = [*os.listdir(self.folder), *(path.name for path, _ in self._own)]
        return 1 + max((int(match[1]) for match in map(_NAME.fullmatch, names) if match), default=0)

    def _write_new(self, number: int, content: bytes) -> Path:
        """Write a checkpoint under this number, or the next that no other process has taken meanwhile."""
        while True:
            path = self.folder / f"ck_{number:012d}.r8"
            try:
                write_new(path, content)
            except FileExistsError:
                number += 1
                continue
            return path

    def _save_model(self, number: int, write_model: Callable[[str], None]) -> Path | None:
        # No leading dot: torch.save refuses a name that is nothing but a suffix.
        temporary = self.folder / f"tmp_{os.getpid()}_model_{number:012d}"
        try:
            write_model(str(temporary))
            written = sorted(self.folder.glob(temporary.name + "*"))
            if not written:
                return None
            if len(written) > 1 or written[0].is_dir():
                raise ValueError(f"save_callback must write one file, got {[path.name for path in written]}.")
            model = self.folder / f"model_{number:012d}_{self.run_id[:8]}{written[0].name[len(temporary.name) :]}"
            flush(written[0])
            os.replace(written[0], model)
        finally:
            for rest in self.folder.glob(temporary.name + "*"):
                shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
        flush_folder(self.folder)
        return model

    def load_own(self, back: int) -> Checkpoint | None:
        """A checkpoint of this run with a model file, passing over damaged ones with a warning; None without.

        Args:
            back: How many newer ones to leave out, as far as there are older ones.
        """
        own = [path for path, model in self._own if model is not None]
        return _first_valid(reversed(own[: max(1, len(own) - back)]), [])

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Go on with the run that wrote a checkpoint: its files up to this one are ours to keep and delete."""
        self.run_id = checkpoint.run_id
        self._own = []
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else []:
            if _NAME.fullmatch(path.name) and path.name <= checkpoint.path.name:
                run_id, model = _written_by(path)
                if run_id == self.run_id:
                    self._own.append((path, model))

    def load(self, path: str | os.PathLike[str] | None = None) -> Checkpoint:
        """Read a checkpoint, by default the newest valid one; damaged ones are passed over, with a warning.

        Raises:
            NoValidCheckpoint: there is none that can be read.
            ValueError: the file given by name cannot be used.
        """
        if path is not None:
            return _read(Path(path))
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        reasons: list[str] = []
        newest_first = (self.folder / name for name in sorted(filter(_NAME.fullmatch, names), reverse=True))
        checkpoint = _first_valid(newest_first, reasons)
        if checkpoint is None:
            where = str(self.folder)
            raise NoValidCheckpoint(
                f"checkpoint_dir must hold a valid checkpoint, got none in {where!r}: {reasons or 'no files'}."
            )
        return checkpoint


def _first_valid(paths: Iterable[Path], reasons: list[str]) -> Checkpoint | None:
    """The first that can be read; why the ones before cannot is put into ``reasons`` and said."""
    for path in paths:
        try:
            checkpoint = _read(path)
        except (OSError, ValueError) as error:
            reasons.append(f"{path.name}: {error}")
            continue
        if reasons:
            warnings.warn("checkpoints passed over: " + " | ".join(reasons), RuntimeWarning, stacklevel=4)
        return checkpoint
    return None


def _about(model: Path) -> dict[str, Any]:
    """What a checkpoint says of its model file, to know it again."""
    return {"name": model.name, "size": model.stat().st_size, "sha256": sha256(model)}


def _read(path: Path) -> Checkpoint:
    content = decode(path.read_bytes())
    about = content["model"]
    model = None if about is None else path.parent / Path(about["name"]).name
    if model is not None and _about(model) != about:
        raise ValueError(
            f"the model's file must be as it was saved with the checkpoint, got another in {str(model)!r}."
        )
    return Checkpoint(path, content["scheduler"], model, content["run_id"])


def _written_by(path: Path) -> tuple[str, Path | None]:
    """The run that wrote a checkpoint and its model file; an empty name for what cannot be read."""
    try:
        with zipfile.ZipFile(path) as members, members.open(f"{_TREE}.npy") as file:
            tree = json.loads(str(np.lib.format.read_array(file, allow_pickle=False)))
        about = tree["model"]
        return str(tree["run_id"]), None if about is None else path.parent / Path(about["name"]).name
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return "", None

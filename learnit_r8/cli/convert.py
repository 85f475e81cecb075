"""``learnit-r8 convert``: files of 01c0f9e2 in the form of today, beside them; nothing else reads the older form."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..state.codec import KINDS, Labelled, encode, read_npy
from ..state.durable_io import open_regular, write_new
from ..state.tree import LABELS, pack

_HEADER = struct.Struct("<4sIQ32s")
_LEFT = (".lock",)


def convert(options: argparse.Namespace) -> int:
    """Write each folder or file once more as NAME-converted, with what an older version wrote in the form of today."""
    for name in options.paths:
        path = Path(os.path.abspath(name))
        new = path.with_name(f"{path.stem}-converted{path.suffix}" if path.is_file() else f"{path.name}-converted")
        if os.path.lexists(new):
            raise ValueError(f"{new} must not exist yet, as convert writes it; move it away.")
        if path.is_dir():
            count = _convert_folder(path, new)
        elif path.is_file():
            content, _ = _converted(path)
            count = int(content is not None)
            if content is not None:
                write_new(new, content)
        else:
            raise ValueError(f"{name!r} must be a folder or a file to convert, got none of that name.")
        if not count:
            shutil.rmtree(new, ignore_errors=True)
            print(f"{path}: there is nothing to convert")
            continue
        print(f"{path}: {count} files were converted, in {new}; put it in the place of the old one")
    return 0


def _convert_folder(folder: Path, new: Path) -> int:
    """Copy a folder with its files converted; returns how many were."""
    count = 0
    models: dict[str, Any] = {}
    new.mkdir(0o700)
    # The scheduler's files name the models with their size and digest.
    entries = sorted(os.scandir(folder), key=lambda entry: not entry.name.startswith("model_"))
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            count += _convert_folder(Path(entry.path), new / entry.name)
        elif entry.is_file(follow_symlinks=False) and not entry.name.endswith(_LEFT) and entry.name[:4] != "tmp_":
            name = entry.name.removesuffix(".npz") + ".safetensors" if _is_samples(entry.name) else entry.name
            content, is_checkpoint = _converted(Path(entry.path), models)
            if content is None:
                shutil.copy2(entry.path, new / name)
                continue
            count += 1
            write_new(new / name, content)
            shutil.copystat(entry.path, new / name)
            if not is_checkpoint:
                models[name] = {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    shutil.copystat(folder, new)
    return count


def _is_samples(name: str) -> bool:
    return name.startswith("samples-") and name.endswith(".npz")


def _converted(path: Path, models: Mapping[str, Any] | None = None) -> tuple[bytes | None, bool]:
    """The content of a file in the form of today, and whether it is a checkpoint; None if no older version wrote it."""
    with open_regular(path) as file:
        content = file.read()
    try:
        if content[:4] == b"R8CK":
            state = _decode(content)
            about = state.get("model")
            is_checkpoint = "scheduler" in state and "run_id" in state
            if is_checkpoint and isinstance(about, dict):
                state["model"] = (models or {}).get(str(about.get("name")), about)
            return encode(state), is_checkpoint
        if content[:4] == b"PK\3\4":
            return _of_zip(path.name, content), False
        if content[8:9] == b"{" and len(content) >= 8 + (length := int.from_bytes(content[:8], "little")):
            header = json.loads(content[8 : 8 + length])
            about = header.pop("__metadata__", {})
            if "tree" in about and "sha256" not in about:
                return _of_tensors(json.loads(about["tree"]), _read_layout(header, content[8 + length :])), False
    except Exception as error:
        raise ValueError(f"{path} must be a whole file of 01c0f9e2, got a damaged one ({error!r}).") from error
    return None, False


def _decode(content: bytes) -> dict[str, Any]:
    """The state in a container of 01c0f9e2: a header, and an uncompressed npz with a JSON tree."""
    _, version, length, digest = _HEADER.unpack_from(content)
    payload = content[_HEADER.size :]
    if version != 1 or len(payload) != length or hashlib.sha256(payload).digest() != digest:
        raise ValueError("its length or its SHA-256 is not that in its header")
    arrays = _read_npz(payload)
    state: dict[str, Any] = _filled(json.loads(str(arrays.pop("tree"))), arrays)
    if "rescue" in state.get("scheduler", ()):
        raise ValueError("an earlier version wrote it, which commit 7ddda59 reads")
    return state


def _filled(tree: Any, arrays: dict[str, NDArray[Any]]) -> Any:
    """A tree with its arrays; those that hold a file of the older form, as a trial does, hold one of today."""
    if isinstance(tree, list):
        return [_filled(part, arrays) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if "__array__" not in tree:
        return {name: _filled(part, arrays) for name, part in tree.items()}
    return _renewed(arrays.pop(tree["__array__"]))


def _renewed(array: NDArray[Any]) -> NDArray[Any]:
    is_file = array.dtype == np.uint8 and array.ndim == 1 and array[:4].tobytes() == b"R8CK"
    return np.frombuffer(encode(_decode(array.tobytes())), np.uint8) if is_file else array


def _read_npz(content: bytes) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(io.BytesIO(content)) as members:
        infos = members.infolist()
        if any(info.compress_type for info in infos) or sum(info.file_size for info in infos) > len(content):
            raise ValueError("its members must be uncompressed and must not overlap")
        return {
            info.filename.removesuffix(".npy"): read_npy(np.frombuffer(members.read(info), np.uint8)) for info in infos
        }


def _of_zip(name: str, content: bytes) -> bytes | None:
    """Samples of a run, or a model of Keras or of torch, in the form of today; None for what somebody else wrote."""
    with zipfile.ZipFile(io.BytesIO(content)) as members:
        names = members.namelist()
    if all(each.endswith(".npy") for each in names):
        if _is_samples(name):
            arrays = _read_npz(content)
            return encode({"about": arrays.pop("about").tobytes().decode(), **arrays})
        if {each.split(".")[0] for each in names} >= {"model", "optimizer"}:
            state: dict[str, list[Any]] = {"rate": [], "random": []}
            arrays = _read_npz(content)
            for key in sorted(arrays, key=lambda each: int(each.rpartition(".")[2])):
                state.setdefault(key.rpartition(".")[0], []).append(_renewed(arrays[key]))
            return encode(state)
    if any(each.endswith("/data.pkl") for each in names):
        import torch

        try:
            saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception:
            # Of the user's own kinds.
            return None
        if isinstance(saved, dict) and saved.keys() == {"tree", "tensors"}:
            nodes = {key: pack(tensor)["tree"] for key, tensor in saved["tensors"].items()}
            return _of_tensors(json.loads(saved["tree"]), nodes)
    return None


def _read_layout(header: Mapping[str, Any], data: bytes) -> dict[str, Any]:
    """The tensors of a file that the library safetensors wrote, as nodes of a tree."""
    names, nodes = {label: name for name, label in LABELS.items()}, {}
    for key, entry in header.items():
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        array = np.frombuffer(data[begin:end], KINDS[kind]).reshape(shape)
        bits = Labelled(array, key, kind, tuple(shape))
        nodes[key] = {"tensor_bits": [names[kind], shape, bits]} if kind in names else {"tensor": array}
    return nodes


def _of_tensors(tree: Any, nodes: Mapping[str, Any]) -> bytes:
    """A model of torch, by its tree and by the nodes of its tensors."""

    def fill(part: Any) -> Any:
        if isinstance(part, list):
            return [fill(each) for each in part]
        if not isinstance(part, dict):
            return part
        [(kind, held)] = part.items()
        if kind == "tensor_bits":
            return {kind: [*held[:2], array_of(held[2])]}
        if kind == "tensor":
            return nodes[held]
        if kind == "npy":
            return {"array": read_npy(array_of(held))}
        return {kind: _renewed(array_of(held)) if kind in ("array", "bytes") else fill(held)}

    def array_of(key: str) -> NDArray[Any]:
        held = nodes[key]["tensor"]
        return held.values if isinstance(held, Labelled) else held

    return encode({"version": 2, "tree": fill(tree)})

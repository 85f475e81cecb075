"""The container of every file with arrays: the layout of safetensors, with all other values as JSON in its metadata.

Any program that reads safetensors reads the arrays; ``docs/files.md`` describes the rest. Reading runs no code and
trusts nothing in a file, even if its digest is right: each byte belongs to one array, each array to one place, and
every size is checked before it is used: a file makes the reader use at most about twice its size in memory, and ten
times that of its header, which is bounded.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .durable_io import open_output, open_regular

VERSION = "2"
"""Changed with every change that makes older files unreadable; what 01c0f9e2 wrote is version 1, in another layout."""

MOST_HEADER = 2**24
"""Largest header of a file; a real one takes some ten thousand bytes."""

MOST_NODES = 10**6
"""Most lists, dicts and commas in a header; a real one has a few hundred."""

KINDS = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
    "BF16": "<u2", "F8_E4M3": "|u1", "F8_E5M2": "|u1", "F8_E8M0": "|u1",
}  # fmt: skip
"""The kinds of numbers that the layout has, and what holds them here; the last four are bits, as numpy lacks them."""

_NAMES = {kind: name for name, kind in reversed(KINDS.items())}
_START, _NO_DIGEST, _DIGITS = b'{"__metadata__": {"sha256": "', b"0" * 64, 64
_BLOCK = 2**20


class OlderFile(ValueError):
    """A file that 01c0f9e2 or an earlier version wrote; the message names the command that converts it."""


class Labelled(NamedTuple):
    """An array under a name and a kind that other programs see.

    Attributes:
        values: The array, or the bits of one.
        name: Its name in the file, where that is free.
        kind: One of `KINDS`, of as many bytes; "" for that of the values.
        shape: The shape that goes with ``kind``.
    """

    values: NDArray[Any]
    name: str
    kind: str = ""
    shape: tuple[int, ...] = ()


def encode(state: Mapping[str, Any]) -> bytes:
    """Encode a state as the content of a file; see `write`."""
    buffer = io.BytesIO()
    write(state, buffer)
    return buffer.getvalue()


def write(state: Mapping[str, Any], file: IO[bytes]) -> None:
    """Write a file, block by block.

    Args:
        state: Nested dicts (with str keys) and lists of arrays, strings, booleans, ints, floats and None.
        file: A file opened for binary writing, at its beginning.

    Raises:
        TypeError: a value has another type; the message gives its dotted key. Nothing was written.
        ValueError: there are too many arrays or other values to be read back. Nothing was written.
    """
    arrays: dict[str, Labelled] = {}
    tree = json.dumps(_to_tree(state, "state", arrays))
    entries: dict[str, Any] = {"__metadata__": {"sha256": _NO_DIGEST.decode(), "version": VERSION, "tree": tree}}
    # The widest numbers first, so that all begin at a multiple of their size.
    ordered = sorted(arrays.items(), key=lambda pair: -np.dtype(KINDS[pair[1].kind]).itemsize)
    end = 0
    for name, (values, _, kind, shape) in ordered:
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + values.nbytes]}
        end += values.nbytes
    text = json.dumps(entries)
    header = (text + " " * (-len(text) % 8)).encode()
    if len(header) > MOST_HEADER or _count_nodes(header) > MOST_NODES:
        raise ValueError(
            f"state must have at most {MOST_NODES} arrays, lists, dicts and entries in {MOST_HEADER} characters, got "
            f"{len(arrays)} arrays and {_count_nodes(header)} in {len(header)}; put numbers into arrays."
        )
    header = len(header).to_bytes(8, "little") + header
    digest = hashlib.sha256(header)
    file.write(header)
    for _, (values, *_) in ordered:
        content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        # In small blocks: while a large one is written, no thread can train.
        for start in range(0, len(content), _BLOCK):
            block = content[start : start + _BLOCK].data
            digest.update(block)
            file.write(block)
    # Last: a file whose writer was killed has none.
    file.seek(8 + len(_START))
    file.write(digest.hexdigest().encode())
    file.seek(0, io.SEEK_END)


def save(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a state to a file of this name, as `write` does."""
    with open(open_output(path), "wb") as file:
        write(state, file)


def _to_tree(value: Any, key: str, arrays: dict[str, Labelled]) -> Any:
    # Most of a state by far; the other questions take a microsecond each.
    if type(value) in _PLAIN:
        return value
    if isinstance(value, (np.ndarray, Labelled)):
        return _to_array(value if isinstance(value, Labelled) else Labelled(value, key), key, arrays)
    if isinstance(value, np.generic):
        return _to_tree(value.item(), key, arrays)
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str) or name in _PLACES:
                raise TypeError(
                    f"{key} must have str keys other than {' and '.join(map(repr, _PLACES))}, got {name!r}."
                )
        return {name: _to_tree(item, f"{key}.{name}", arrays) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [
            item if type(item) in _PLAIN else _to_tree(item, f"{key}.{number}", arrays)
            for number, item in enumerate(value)
        ]
    if isinstance(value, _SCALARS):
        return value
    raise TypeError(f"{key} must be a number, str, bool, None, array, or a dict or list of them, got {value!r}.")


_SCALARS = (bool, int, float, str)
_PLAIN = frozenset((*_SCALARS, type(None)))
"""Types of values that stand in the tree as they are, and so do heirs of the former."""

_PLACES = ("__array__", "__npy__")
"""Stand in the tree for an array of a kind that the layout has, and for one in numpy's own format."""


def _to_array(array: Labelled, key: str, arrays: dict[str, Labelled]) -> dict[str, str]:
    values, name, kind, shape = array
    if values.dtype.hasobject:
        raise TypeError(f"{key} must be an array of numbers or strings, got dtype {values.dtype}.")
    place = _PLACES[0]
    if not kind and (kind := _NAMES.get(values.dtype.str, "")):
        shape = values.shape
    elif not kind:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, values, allow_pickle=False)
        place, kind, values = _PLACES[1], "U8", np.frombuffer(buffer.getvalue(), np.uint8)
        shape = values.shape
    while name in arrays or name == "__metadata__":
        # A key with a dot in it may look like two.
        name += "'"
    arrays[name] = Labelled(values, name, kind, shape)
    return {place: name}


def _count_nodes(header: bytes) -> int:
    return sum(header.count(character) for character in b"[{,")


def decode(content: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Decode the state that `encode` was given; tuples come back as lists.

    Raises:
        ValueError: the content is not a file of this format, or is damaged or truncated.
    """
    with memoryview(content) as view:
        return _decode(_read_header(io.BytesIO(view[: 8 + MOST_HEADER]), len(view)), view)


def read(path: Path) -> dict[str, Any]:
    """Read the state in a file.

    Raises:
        ValueError: it is not a regular file, or as for `decode`.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # Checked before allocating: the size of a truncated or forged file is not what its header claims.
        header = _read_header(file, size)
        file.seek(0)
        try:
            content = bytearray(size)
        except MemoryError as error:
            raise ValueError(f"{path.name} must fit into memory, got {size} bytes.") from error
        found = file.readinto(content)  # type: ignore[attr-defined]
    return _decode(header, memoryview(content)[:found])


def read_tree(file: IO[bytes]) -> dict[str, Any]:
    """Read the values of a file without its arrays, and without a check of the digest.

    Args:
        file: A file opened for binary reading, at its beginning.

    Raises:
        ValueError: it cannot be read.
    """
    header = _read_header(file, file.seek(0, io.SEEK_END))
    return _parse(header.metadata["tree"])


class _Header(NamedTuple):
    """The checked header of a file: its bytes, those of the file, its metadata, and kind, shape and place of arrays."""

    content: bytes
    size: int
    metadata: dict[str, str]
    arrays: dict[str, tuple[str, list[int], int, int]]


def _read_header(file: IO[bytes], size: int) -> _Header:
    file.seek(0)
    content = file.read(8)
    length = int.from_bytes(content, "little")
    if content[:4] == b"R8CK":
        raise OlderFile(f"the file must be of version {VERSION}, got an older one; {HOW_TO_CONVERT}.")
    is_possible = len(content) == 8 and length <= min(MOST_HEADER, size - 8)
    content += file.read(length if is_possible else len(_START))
    if not content[8:].startswith(_START):
        raise ValueError(
            f"the file must begin with a length of 8 bytes, at most {MOST_HEADER}, and {_START!r}, got "
            f"{content[:16]!r}; {HOW_TO_CONVERT}."
        )
    if not is_possible:
        raise ValueError(f"the file must hold the {length} bytes of its header, got {size - 8}; it is damaged.")
    header = _parse(content[8:].decode("utf-8", "replace"))
    metadata, arrays, end = header.pop("__metadata__"), {}, 0
    if not (isinstance(metadata, dict) and all(isinstance(metadata.get(name), str) for name in ("version", "tree"))):
        raise ValueError(f"the file must have a version and a tree in its metadata, got {str(metadata)[:80]}.")
    if metadata["version"] != VERSION:
        raise ValueError(
            f"the file's version must be {VERSION}, got {metadata['version'][:20]!r}: a newer one wrote it."
        )
    for name, entry in header.items():
        try:
            kind, shape, (begin, after) = entry["dtype"], entry["shape"], entry["data_offsets"]
            is_sound = all(type(number) is int and number >= 0 for number in (*shape, begin, after))
            is_sound = is_sound and begin == end and after - begin == math.prod(shape) * np.dtype(KINDS[kind]).itemsize
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"the file's arrays must have a known kind, shape and place, got {error!r}; it is damaged."
            ) from error
        if not is_sound:
            raise ValueError(
                f"the file's arrays must follow each other without a gap, got {kind}{shape} from {begin} to {after} "
                f"for {name[:40]!r}, after {end}; it is damaged."
            )
        arrays[name], end = (kind, shape, begin, after), after
    if size != len(content) + end:
        raise ValueError(_damaged(len(content) + end, size))
    return _Header(content, size, metadata, arrays)


HOW_TO_CONVERT = "learnit-r8 convert converts files of older versions"


def _damaged(expected: int, found: int) -> str:
    return f"the file must hold {expected} bytes with the SHA-256 in its header, got {found}; it is damaged."


def _parse(text: str) -> dict[str, Any]:
    """The dict that a JSON text holds, bounded before it is parsed."""
    if (nodes := _count_nodes(text.encode("utf-8", "replace"))) > MOST_NODES:
        raise ValueError(f"the file's header must have at most {MOST_NODES} nodes, got {nodes}.")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the file must hold a JSON tree, got something else ({error!r}); it is damaged.") from error
    if not isinstance(tree, dict):
        raise ValueError(f"the file's tree must be a dict, got {type(tree).__name__}.")
    return tree


def _decode(header: _Header, content: memoryview) -> dict[str, Any]:
    first, written = 8 + len(_START), header.content[8 + len(_START) :][:_DIGITS]
    digest = hashlib.sha256(header.content[:first] + _NO_DIGEST + header.content[first + _DIGITS :])
    digest.update(content[len(header.content) :])
    if digest.hexdigest().encode() != written:
        if written == _NO_DIGEST:
            raise ValueError("the file must be written to its end, got one without a digest: its writer was killed.")
        raise ValueError(_damaged(header.size, len(content)))
    tree, data = _parse(header.metadata["tree"]), content[len(header.content) :]
    try:
        return {name: _from_tree(item, header.arrays, data) for name, item in tree.items()}
    except Exception as error:
        # The digest is right, so the file was made like this: whatever a parser raises, it is a bad file.
        raise ValueError(f"the file's tree must name each array once, got something else ({error!r}).") from error


def _from_tree(value: Any, arrays: dict[str, tuple[str, list[int], int, int]], data: memoryview) -> Any:
    if isinstance(value, list):
        return [_from_tree(item, arrays, data) for item in value]
    if not isinstance(value, dict):
        return value
    place = next((place for place in _PLACES if place in value), None)
    if place is None:
        return {name: _from_tree(item, arrays, data) for name, item in value.items()}
    # Each once, as the writer has it: some readers copy what they get.
    kind, shape, begin, after = arrays.pop(value[place])
    array = np.empty(shape, KINDS[kind])
    array.reshape(-1).view(np.uint8)[:] = data[begin:after]
    return array if place == _PLACES[0] else read_npy(array)


def read_npy(content: NDArray[np.uint8]) -> NDArray[Any]:
    """The array in the bytes of an npy file, whose size must be what its header claims.

    Raises:
        ValueError: it is not, or is of objects.
    """
    file = io.BytesIO(content.data)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, is_fortran, dtype = read_header(file)
    data, count = content[file.tell() :], math.prod(shape)
    is_plain = not dtype.hasobject and dtype.itemsize > 0 and min(shape, default=0) >= 0
    if not is_plain or count * dtype.itemsize != len(data):
        raise ValueError(f"an array must hold {count} x {dtype} (no objects), got {len(data)} bytes")
    return np.frombuffer(data.copy(), dtype, count).reshape(shape, order="F" if is_fortran else "C")

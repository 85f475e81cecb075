"""The format of a checkpoint file: nested plain values and arrays as bytes, decoded without running any code.

A file holds a magic number, the format version, the length and the SHA-256 of a payload, and the payload: an
uncompressed npz of plain arrays and one JSON text. ``docs/files.md`` describes it for other programs. The reader
trusts nothing in a file, even if its digest is right: it checks every size against the actual bytes before using it, so
a file makes it use at most about twice the file's size in memory.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .durable_io import open_regular

if TYPE_CHECKING:
    import zipfile

MAGIC = b"R8CK"
FORMAT = 1
"""Increased by one with every change that makes older files unreadable."""

HEADER = struct.Struct("<4sIQ32s")

MOST_MEMBERS = 2**16 - 2
"""Most arrays in a file; a real one has a few dozen."""

MOST_NODES = 10**6
"""Most lists, dicts and commas in the JSON text of a file; a real one has a few hundred."""

MOST_TREE_BYTES = 2**23
"""Largest JSON text of a file, at four bytes a character; a real one takes some thousand."""

_STORED = 0
"""`zipfile.ZIP_STORED`; zipfile is imported only when the first file is read."""

_TREE = "tree"
_BLOCK = 2**20
_MEMBER = re.compile(r"(tree|a\d{1,9})\.npy")
_END_OF_ZIP = struct.Struct("<4s4H2LH")


def encode(state: Mapping[str, Any]) -> bytes:
    """Encode a state as the content of a checkpoint file.

    Args:
        state: Nested dicts (with str keys) and lists of arrays, strings, booleans, ints, floats and None.

    Raises:
        TypeError: a value has another type; the message gives its dotted key.
        ValueError: there are more than `MOST_MEMBERS` arrays, or the tree is too large to be read back.
    """
    buffer = io.BytesIO()
    write(state, buffer)
    return buffer.getvalue()


def write(state: Mapping[str, Any], file: IO[bytes]) -> None:
    """Write the content of a checkpoint file, block by block.

    Args:
        state: As for `encode`; an array may also be an object with ``dtype``, ``shape`` and ``blocks()``, which yields
            its values block by block.
        file: A file opened for binary writing, at its beginning.

    Raises:
        TypeError, ValueError: as for `encode`; nothing was written.
    """
    arrays: dict[str, Any] = {}
    tree = json.dumps(_to_tree(state, "state", arrays))
    if len(arrays) > MOST_MEMBERS or _count_nodes(tree) > MOST_NODES or 4 * len(tree) + 256 > MOST_TREE_BYTES:
        raise ValueError(
            f"state must have at most {MOST_MEMBERS} arrays and {MOST_NODES} lists, dicts and entries, got "
            f"{len(arrays)} and {_count_nodes(tree)} in {len(tree)} characters; put numbers into arrays."
        )
    file.write(bytes(HEADER.size))
    payload = _Payload(file)
    _write_npz({_TREE: np.array(tree), **arrays}, payload)
    file.seek(0)
    file.write(HEADER.pack(MAGIC, FORMAT, payload.length, payload.digest.digest()))
    file.seek(0, io.SEEK_END)


class _Payload:
    """Writes the payload after the header, and computes its length and digest; a stream without seek()."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.length = 0
        self.digest = hashlib.sha256()

    def write(self, content: Any) -> int:
        size = memoryview(content).nbytes
        self._file.write(content)
        self.digest.update(content)
        self.length += size
        return size

    def flush(self) -> None:
        """Do nothing, as nothing is buffered."""


def _write_npz(arrays: Mapping[str, Any], stream: _Payload) -> None:
    """Write arrays like `numpy.savez`, in small blocks: numpy copies 16 MB at a time, in which no thread can train."""
    import zipfile

    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as members:  # type: ignore[call-overload]
        for name, values in arrays.items():
            with members.open(f"{name}.npy", "w", force_zip64=True) as member:
                about = {
                    "descr": np.lib.format.dtype_to_descr(values.dtype),
                    "fortran_order": False,
                    "shape": values.shape,
                }
                np.lib.format.write_array_header_1_0(member, about)
                for block in values.blocks() if hasattr(values, "blocks") else _blocks(values):
                    member.write(np.ascontiguousarray(block).view(np.uint8).data)


def _blocks(values: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    """The bytes of an array in C order, block by block."""
    content = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    for start in range(0, len(content), _BLOCK):
        yield content[start : start + _BLOCK]


def check_header(header: bytes, size: int) -> None:
    """Raise ValueError unless these first bytes belong to a readable checkpoint file of ``size`` bytes."""
    if len(header) < HEADER.size or header[:4] != MAGIC:
        raise ValueError(f"the file must begin with {MAGIC!r} and a header of {HEADER.size} bytes, got {header[:8]!r}.")
    _, version, length, _ = HEADER.unpack_from(header)
    if version != FORMAT:
        raise ValueError(f"the file's format must be {FORMAT}, got {version}: another version wrote it.")
    if size != HEADER.size + length:
        raise ValueError(_damaged(length, size - HEADER.size))


def decode(content: bytes | memoryview) -> dict[str, Any]:
    """Decode the state that `encode` was given; tuples come back as lists.

    Raises:
        ValueError: the content is not a checkpoint, is damaged or truncated, has a newer format, or was not made by
            `encode`.
    """
    check_header(bytes(content[: HEADER.size]), len(content))
    *_, length, digest = HEADER.unpack_from(content)
    payload = memoryview(content)[HEADER.size :]
    if hashlib.sha256(payload).digest() != digest:
        raise ValueError(_damaged(length, len(payload)))
    try:
        arrays = read_npz(_BytesFile(payload), len(payload))
        text = str(arrays.pop(_TREE))
        if _count_nodes(text) > MOST_NODES:
            raise ValueError(f"its tree must have at most {MOST_NODES} nodes, got {_count_nodes(text)}")
        state = _from_tree(json.loads(text), arrays)
    except Exception as error:
        # The digest is right, so the file was made like this: whatever a parser raises, it is a bad file.
        raise ValueError(
            f"the file must hold an uncompressed npz of plain arrays with a JSON tree, got something else ({error!r})."
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"the file's tree must be a dict, got {type(state).__name__}.")
    return state


def read(path: Path) -> dict[str, Any]:
    """Read the state in a checkpoint file.

    Raises:
        ValueError: it is not a regular file, or as for `decode`.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # Checked before allocating: the size of a truncated or forged file is not what its header claims.
        check_header(file.read(HEADER.size), size)
        file.seek(0)
        try:
            content = bytearray(size)
        except MemoryError as error:
            raise ValueError(f"{path.name} must fit into memory, got {size} bytes.") from error
        found = file.readinto(content)  # type: ignore[attr-defined]
    return decode(memoryview(content)[:found])


def read_tree(file: Any) -> dict[str, Any]:
    """Read only the JSON tree of a checkpoint file: no arrays, and no check of the digest.

    Args:
        file: A file opened for binary reading.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        import zipfile

        with zipfile.ZipFile(file) as members:
            tree = json.loads(str(_read_array(members, members.getinfo(f"{_TREE}.npy"), _MEMBER)))
    except Exception as error:
        raise ValueError(f"the file must hold a JSON tree, got something else ({error!r}).") from error
    if not isinstance(tree, dict):
        raise ValueError(f"the file's tree must be a dict, got {type(tree).__name__}.")
    return tree


def _damaged(expected: int, found: int) -> str:
    return f"the file must hold {expected} bytes with the SHA-256 in its header, got {found}; it is damaged."


_KINDS = (bool, int, float, str)
_PLAIN = frozenset((*_KINDS, type(None)))
"""Types of values that stand in the tree as they are, and so do heirs of the former."""


def _count_nodes(tree: str) -> int:
    return sum(tree.count(character) for character in "[{,")


def _to_tree(value: Any, key: str, arrays: dict[str, Any]) -> Any:
    # Most of a state by far; the other questions take a microsecond each.
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.ndarray) or hasattr(value, "blocks"):
        if value.dtype.hasobject:
            raise TypeError(f"{key} must be an array of numbers or strings, got dtype {value.dtype}.")
        name = f"a{len(arrays)}"
        arrays[name] = value
        return {"__array__": name}
    if isinstance(value, np.generic):
        return _to_tree(value.item(), key, arrays)
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str) or name == "__array__":
                raise TypeError(f"{key} must have str keys other than '__array__', got {name!r}.")
        return {name: _to_tree(item, f"{key}.{name}", arrays) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [
            item if type(item) in _PLAIN else _to_tree(item, f"{key}.{number}", arrays)
            for number, item in enumerate(value)
        ]
    if isinstance(value, _KINDS):
        return value
    raise TypeError(f"{key} must be a number, str, bool, None, array, or a dict or list of them, got {value!r}.")


def _from_tree(value: Any, arrays: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        if "__array__" in value:
            # Each once, as the writer has it: some readers copy what they get.
            return arrays.pop(value["__array__"])
        return {name: _from_tree(item, arrays) for name, item in value.items()}
    return [_from_tree(item, arrays) for item in value] if isinstance(value, list) else value


def read_npz(
    file: Any, size: int, *, names: re.Pattern[str] = _MEMBER, most: int = MOST_MEMBERS
) -> dict[str, NDArray[Any]]:
    """Read the arrays of an uncompressed npz, by name without the suffix; nothing in it is trusted.

    Args:
        file: A file opened for binary reading.
        size: Its bytes.
        names: Names that a member may have.
        most: Most members.

    Raises:
        Exception: it is something else.
    """
    # Checked before listing the members: each takes a few hundred bytes in memory, but may take none in the file.
    file.seek(size - _END_OF_ZIP.size)
    signature, _, _, _, listed, *_ = _END_OF_ZIP.unpack(file.read(_END_OF_ZIP.size))
    if signature != b"PK\5\6" or listed > most:
        raise ValueError(f"its directory must list at most {most} members, got {listed}")
    import zipfile

    with zipfile.ZipFile(file) as members:
        infos = members.infolist()
        if len({info.filename for info in infos}) < len(infos):
            ordered = sorted(info.filename for info in infos)
            twice = next(name for name, after in itertools.pairwise(ordered) if name == after)
            raise ValueError(f"its members must have different names, got {twice[:40]!r} twice")
        tree_bytes = max((info.file_size for info in infos if info.filename == f"{_TREE}.npy"), default=0)
        if tree_bytes > MOST_TREE_BYTES:
            raise ValueError(f"its tree must take at most {MOST_TREE_BYTES} bytes, got {tree_bytes}")
        if sum(info.file_size for info in infos) > size:
            claimed = sum(info.file_size for info in infos)
            raise ValueError(f"its members must not overlap, got {claimed} bytes of them in {size}")
        return {info.filename[: -len(".npy")]: _read_array(members, info, names) for info in infos}


class _BytesFile(io.BufferedIOBase):
    """A file over bytes in memory; `io.BytesIO` would copy them."""

    def __init__(self, content: memoryview) -> None:
        self._content, self._position = content, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = max(0, offset + (0, self._position, len(self._content))[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        start = self._position
        end = len(self._content) if size is None or size < 0 else start + size
        block = bytes(self._content[start:end])
        self._position += len(block)
        return block


def _read_array(members: zipfile.ZipFile, info: zipfile.ZipInfo, names: re.Pattern[str]) -> NDArray[Any]:
    """Read one array, whose size must be what its header claims."""
    if not names.fullmatch(info.filename) or info.compress_type != _STORED or info.flag_bits & 1:
        raise ValueError(f"its members must be uncompressed arrays named by its writer, got {info.filename[:40]!r}")
    with members.open(info) as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, is_fortran, dtype = read_header(file)
        count = int(np.prod(shape, dtype=object)) if shape else 1
        length = info.file_size - file.tell()
        is_plain = not dtype.hasobject and dtype.itemsize > 0 and min(shape, default=0) >= 0
        if not is_plain or count * dtype.itemsize != length:
            raise ValueError(f"{info.filename} must hold {count} x {dtype} (no objects), got {length} bytes")
        data = bytearray(length)
        position = 0
        while block := file.read(_BLOCK):
            data[position : position + len(block)] = block
            position += len(block)
    if len(data) != length or position != length:
        raise ValueError(f"{info.filename} must hold {length} bytes, got {position}")
    return np.frombuffer(data, dtype, count).reshape(shape, order="F" if is_fortran else "C")

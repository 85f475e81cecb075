"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path


def write_new(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        FileExistsError: there is one of this name; it is left as it is.
        OSError: the disk refused.
    """
    _write(path, content, _link_or_rename)


def replace(path: Path, content: bytes) -> None:
    """Write a file whole, in place of one that may be there, or not at all.

    Raises:
        OSError: the disk refused; a file that was there is still whole.
    """
    _write(path, content, os.replace)


def _write(path: Path, content: bytes, name_it: Callable[[Path, Path], None]) -> None:
    temporary = path.with_name(f"tmp_{os.getpid()}_{path.name}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        name_it(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_folder(path.parent)


def _link_or_rename(old: Path, new: Path) -> None:
    try:
        # Unlike a rename, a link never replaces what another process has just written.
        os.link(old, new)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links.
        os.replace(old, new)


def flush(path: Path) -> None:
    """Have the disk take a file that another program wrote."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Have the disk take the names in a folder."""
    # Windows has no way to flush a folder, and needs none.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()

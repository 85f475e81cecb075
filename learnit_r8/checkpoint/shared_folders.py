"""Locks of processes on files; and folders in shared memory, private to a user whatever others have put there."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from .durable_io import numbered, open_output

MOST_NAMES = 1000
"""Names that are tried for a folder of this user, as any other user may have taken some."""

_held: set[str] = set()
"""Files that this process has locked; a lock of a process does not exclude its own."""


def own_folders(base: Path) -> list[Path]:
    """The folders of this user in ``base`` that nobody else can use, in the order in which they are to be looked at."""
    mine = re.compile(re.escape(own_name()) + r"(?:-(\d{1,4}))?")
    found = []
    with contextlib.suppress(OSError), os.scandir(base) as entries:
        for entry in entries:
            match = mine.fullmatch(entry.name)
            if match and is_private(Path(entry.path)):
                found.append((int(match[1] or 1), Path(entry.path)))
    return [path for _, path in sorted(found)]


def make_own(base: Path) -> Path:
    """The first folder of this user in ``base``; made, under the first free name, if there is none.

    All processes of a user find or make the same one.

    Raises:
        OSError: it cannot be made.
    """
    if own := own_folders(base):
        return own[0]
    for _, path in zip(range(MOST_NAMES), numbered(base / own_name()), strict=False):
        with contextlib.suppress(FileExistsError):
            path.mkdir(0o700)
        if is_private(path):
            return path
    raise OSError(f"every name for a backup folder is taken in {str(base)!r}.")


def own_name() -> str:
    """The name of this user's folder, where nobody else has taken it."""
    return f"learnit_r8-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


def is_private(folder: Path) -> bool:
    """Whether a folder is one that only this user can use: others could put states there."""
    try:
        about = os.lstat(folder)
    except OSError:
        return False
    is_own = not hasattr(os, "getuid") or about.st_uid == os.getuid()
    return stat.S_ISDIR(about.st_mode) and is_own and not stat.S_IMODE(about.st_mode) & 0o077


def lock_until_released(file: Path, content: str = "", *, is_removed: bool = False) -> Callable[[], object] | None:
    """Lock a file until the function that is returned is called, or the process ends; None if it is locked.

    Args:
        file: Made if there is none.
        content: Written into it.
        is_removed: Whether to delete it as it is released.

    Raises:
        OSError: the file cannot be made, or its file system has no locks.
        ImportError: the system has none.
    """
    if str(file) in _held:
        return None
    descriptor = _lock(file)
    if descriptor is None:
        return None
    if content:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, content.encode())
    _held.add(str(file))
    owner = os.getpid()
    is_done: list[bool] = []

    def release() -> None:
        if not is_done:
            is_done.append(True)
            is_own = os.getpid() == owner
            with contextlib.suppress(OSError):
                if is_removed and is_own:
                    os.unlink(file)
            with contextlib.suppress(OSError):
                os.close(descriptor)
            if is_own:
                _held.discard(str(file))

    return release


def is_held(folder: Path) -> bool:
    """Whether a running process has locked the file "lock" in a folder."""
    if str(folder / "lock") in _held:
        return True
    if not (folder / "lock").exists():
        return False
    descriptor = _lock(folder / "lock")
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def _lock(file: Path) -> int | None:
    """The descriptor of a lock that this process has now; None if another has it. A process that ends gives it back."""
    import fcntl

    while True:
        descriptor = open_output(file, "a", permissions=0o600)
        try:
            # Not flock(): forked loader workers would keep the lock of a trainer that was killed.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                    return descriptor
            # Who had it has deleted the file since it was opened here.
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return None
            raise
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """Free bytes of a file system in memory, and of the container that counts it as memory."""
    free = shutil.disk_usage(folder).free
    with contextlib.suppress(OSError, ValueError):
        most = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if most != "max":
            free = min(free, int(most) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(0, free)

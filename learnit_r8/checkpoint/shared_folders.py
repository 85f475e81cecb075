"""Folders in the system's shared memory: private to a user, whatever others have put there, and locked by a process."""

from __future__ import annotations

import contextlib
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
"""Folders that schedulers of this process write to; a lock of a process does not exclude its own."""


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


def lock_until_released(folder: Path) -> Callable[[], object] | None:
    """Take the lock of a folder until the function that is returned is called; None if it is taken."""
    if str(folder) in _held:
        return None
    descriptor = _lock(folder)
    if descriptor is None:
        return None
    _held.add(str(folder))
    owner = os.getpid()
    is_done: list[bool] = []

    def release() -> None:
        if not is_done:
            is_done.append(True)
            with contextlib.suppress(OSError):
                os.close(descriptor)
            if os.getpid() == owner:
                _held.discard(str(folder))

    return release


def is_held(folder: Path) -> bool:
    """Whether a running process has the lock of a folder."""
    if str(folder) in _held:
        return True
    if not (folder / "lock").exists():
        return False
    descriptor = _lock(folder)
    if descriptor is None:
        return True
    os.close(descriptor)
    return False


def _lock(folder: Path) -> int | None:
    """The descriptor of a lock that this process has now; None if another has it. A process that ends gives it back."""
    import fcntl

    descriptor = open_output(folder / "lock", "a", permissions=0o600)
    try:
        # Not flock(): forked loader workers would keep the lock of a trainer that was killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def free_bytes(folder: Path) -> int:
    """Free bytes of a file system in memory, and of the container that counts it as memory."""
    free = shutil.disk_usage(folder).free
    with contextlib.suppress(OSError, ValueError):
        most = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if most != "max":
            free = min(free, int(most) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(0, free)

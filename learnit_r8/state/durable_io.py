"""Files: written whole or not at all, whatever happens meanwhile; none is read or written through a link.

Every file that the package writes is opened here: by `open_output`, or under a temporary name of its own.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

_TEMPORARY = re.compile(r"tmp_(\d+)_([0-9a-f]{8})_.+")
_OLD_SECONDS = 24 * 3600
_NO_FOLDER_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EACCES}
_RETRY_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
_SHARED = stat.S_ISVTX | stat.S_IWOTH
"""A folder such as /tmp, in which everybody may make files."""

_held: dict[str, tuple[int, Callable[[], object]]] = {}
"""Files that this process has locked, or its parent before a fork: its id, and what releases them. A lock of a process
does not exclude its own."""


class NotOwnFile(OSError, ValueError):
    """A path leads to something that must not be written to: a link, a device, a file of somebody else."""


_HOW = {"w": os.O_CREAT, "x": os.O_CREAT | os.O_EXCL, "a": os.O_CREAT | os.O_APPEND, "r+": os.O_APPEND}


def open_output(
    path: str | os.PathLike[str], mode: Literal["w", "x", "a", "r+"] = "w", *, permissions: int = 0o666
) -> int:
    """Open a file for writing, and nothing else that its name may lead to.

    A link, or a file with a second name, may belong to anyone: whoever made the folder may have put it there.

    Args:
        path: Its name.
        mode: "w" starts it over, "x" makes a new one, "a" appends, "r+" appends to an existing one.
        permissions: Of a file that is made, before the umask.

    Returns:
        Its descriptor.

    Raises:
        NotOwnFile: it is not a regular file, has a second name, or is another user's in a folder open to all. Nothing
            was changed.
        OSError: it cannot be opened; with "x", FileExistsError if there is anything of this name.
    """
    flags = os.O_WRONLY | _HOW[mode]
    # O_NONBLOCK: without a reader, a FIFO would wait for one.
    flags |= sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC"))
    try:
        if not hasattr(os, "O_NOFOLLOW") and os.path.islink(path):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
        descriptor = os.open(path, flags, permissions)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise NotOwnFile(_not_own(path, "a link or a FIFO")) from error
        raise
    try:
        about, what = os.fstat(descriptor), ""
        if not stat.S_ISREG(about.st_mode):
            what = "a FIFO or a device"
        elif about.st_nlink > 1:
            what = "one with a second name"
        elif hasattr(os, "getuid") and about.st_uid != os.getuid():
            is_shared = os.stat(Path(path).parent).st_mode & _SHARED == _SHARED
            what = f"one that belongs to user {about.st_uid}" if is_shared else ""
        if what:
            raise NotOwnFile(_not_own(path, what))
        if mode == "w" and about.st_size:
            os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _not_own(path: str | os.PathLike[str], what: str) -> str:
    return f"{os.fspath(path)!r} must be a regular file with one name to be written to, got {what}."


def make_own_folder(path: Path, permissions: int = 0o777) -> None:
    """Make a folder within a folder that may be somebody else's; one that is there must be no link.

    Raises:
        NotOwnFile: it is a link or a file.
        OSError: it cannot be made.
    """
    try:
        path.mkdir(permissions)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise NotOwnFile(f"{str(path)!r} must be a folder, got a link or a file.") from None


def write_new(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file whole or not at all.

    Args:
        path: Its name.
        content: Its content, or a function that writes it to the given file.

    Raises:
        FileExistsError: a file of this name exists; it is left unchanged.
        OSError: the write failed.
    """
    _write(path, content, link_new)


def numbered(stem: Path, ending: str = "") -> Iterator[Path]:
    """Names for a new file or folder: the stem with its ending, then with -2, -3 and so on between them.

    >>> names = numbered(Path("run"), ".csv")
    >>> next(names).name, next(names).name
    ('run.csv', 'run-2.csv')
    """
    yield stem.with_name(stem.name + ending)
    for number in itertools.count(2):
        yield stem.with_name(f"{stem.name}-{number}{ending}")


def make_first_free(names: Iterator[Path], make: Callable[[Path], object]) -> Path:
    """Make a file or folder under the first free name, even if other processes do the same.

    Args:
        names: The names, without end.
        make: Makes it, or raises FileExistsError.
    """
    while True:
        path = next(names)
        with contextlib.suppress(FileExistsError):
            make(path)
            return path


def replace(
    path: Path, content: bytes | Callable[[IO[bytes]], object], *, durable: bool = True, permissions: int = 0o666
) -> None:
    """Write a file whole or not at all, replacing any file or link of this name.

    Args:
        path: Its name.
        content: Its content, or a function that writes it to the given file.
        durable: Whether to wait until the disk has it.
        permissions: Of the file, before the umask.

    Raises:
        OSError: the write failed; an existing file is still whole.
    """
    _write(path, content, rename, durable=durable, permissions=permissions)


def temporary_name(path: Path) -> Path:
    """A temporary path beside ``path``; its process and host tell `remove_stale` whether it is stale."""
    # No leading dot: torch.save refuses a name that is only a suffix. The thread: each may train a run of its own.
    return path.with_name(f"tmp_{os.getpid()}_{_host()}_{threading.get_ident()}_{path.name}")


def remove_stale(folder: Path) -> list[Path]:
    """Delete temporary files that killed processes left in a folder.

    A file named by `temporary_name` is stale if its process no longer runs on this host, or, whatever its host, if it
    has not been modified for a day.

    Returns:
        The deleted paths.
    """
    gone = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None:
                continue
            pid = int(match[1])
            is_left = match[2] == _host() and pid != os.getpid() and not _is_alive(pid)
            with contextlib.suppress(OSError):
                is_left = is_left or time.time() - entry.stat(follow_symlinks=False).st_mtime > _OLD_SECONDS
            if is_left:
                remove(Path(entry.path))
                gone.append(Path(entry.path))
    return gone


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        # On Windows, os.kill() would end the process.
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


@functools.cache
def _host() -> str:
    """Identifies this host and container, as process ids are unique only within them."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def remove(path: Path) -> None:
    """Delete a file or folder if it exists; failures are ignored, as this only tidies up."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def open_temporary(path: Path, permissions: int = 0o666) -> BinaryIO:
    """Make the file of a `temporary_name`, and open it for writing.

    Raises:
        OSError: it cannot be made, or somebody else makes it at this moment.
    """
    # An existing one can only be left by a dead process or thread with the same id.
    remove(path)
    return open(open_output(path, "x", permissions=permissions), "wb")


def _write(
    path: Path, content: bytes | Callable[[IO[bytes]], object], name_it: Callable[[Path, Path], None], *,
    durable: bool = True, permissions: int = 0o666,
) -> None:  # fmt: skip
    temporary = temporary_name(path)
    try:
        with open_temporary(temporary, permissions) as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            if durable:
                _flush(file.fileno())
        name_it(temporary, path)
    finally:
        remove(temporary)
    if durable:
        flush_folder(path.parent)


def link_new(old: Path, new: Path) -> None:
    """Give a file a second name that no file has yet; on a file system without links the old name disappears.

    Raises:
        FileExistsError: a file of the new name exists; it is left unchanged.
        OSError: the file system refused.
    """
    try:
        # Unlike a rename, a link never replaces what another process has just written.
        os.link(old, new)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links.
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new)) from None
        rename(old, new)


def rename(old: Path, new: Path) -> None:
    """Rename a file, replacing an existing one; on Windows, retry while a virus scanner holds it open.

    Raises:
        OSError: the file system refused.
    """
    for seconds in _RETRY_SECONDS if os.name == "nt" else ():
        try:
            os.replace(old, new)
        except PermissionError:
            time.sleep(seconds)
            continue
        return
    os.replace(old, new)


def flush(path: Path) -> None:
    """Flush a file that another program wrote to the disk."""
    descriptor = open_output(path, "r+")
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def _flush(descriptor: int) -> None:
    # On macOS, fsync() leaves data in the drive's cache.
    try:
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined]
    except (ImportError, AttributeError, OSError):
        os.fsync(descriptor)


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the file system supports it."""
    # Windows cannot flush a folder, and does not need to.
    if os.name == "posix":
        descriptor = -1
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_FOLDER_FLUSH:
                raise
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; opening a FIFO would block forever, and a link may lead anywhere.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is a link, a folder, a FIFO or a device.
        OSError: it cannot be opened.
    """
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise ValueError(f"{path.name} must be a regular file, got a link or a device.") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path.name} must be a regular file, got a folder, FIFO or device.")
    return open(descriptor, "rb")


def read_json(path: Path, most: int) -> dict[str, Any]:
    """The object in a small JSON file.

    Args:
        path: Its name.
        most: Bytes that are read, at most.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no regular file, holds no JSON object, or is too large.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path.name} must have at most {most:,} bytes, got more.")
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(f"{path.name} must be nested less deeply, got JSON beyond the limit.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} must hold a JSON object, got {str(value)[:40]!r}.")
    return value


def sha256(path: Path) -> str:
    """The SHA-256 of a regular file, in hexadecimal digits.

    Raises:
        ValueError, OSError: as for `open_regular`.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


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
    name, owner, descriptors = str(file), os.getpid(), list[int]()
    if name in _held:
        return None

    def release() -> None:
        is_own = os.getpid() == owner and _held.get(name) is held
        with contextlib.suppress(OSError):
            if is_removed and is_own:
                os.unlink(file)
        with contextlib.suppress(OSError):
            while descriptors:
                os.close(descriptors.pop())
        if is_own:
            del _held[name]

    held = owner, release
    # Before it is locked: a caller that is cut short in between finds it by `held_here`.
    _held[name] = held
    try:
        descriptor = _lock(file)
    except (OSError, ImportError):
        del _held[name]
        raise
    if descriptor is None:
        del _held[name]
        return None
    descriptors.append(descriptor)
    if content:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, content.encode())
    return release


def held_here(file: Path) -> Callable[[], object] | None:
    """What releases a file that this process has locked; None if it has not."""
    owner, release = _held.get(str(file), (0, None))
    return release if owner == os.getpid() else None


def is_locked(file: Path) -> bool:
    """Whether a running process has locked a file."""
    if str(file) in _held or not file.exists():
        return str(file) in _held
    descriptor = _lock(file)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


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

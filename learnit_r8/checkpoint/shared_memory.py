"""Backups that outlive the process: generations of the whole state as files in the system's shared memory.

A file there survives a ``kill -9`` and a crash, and costs a copy in memory in place of a disk. Each is written whole,
with write() (a mapping of a full folder would kill the process), under another name first, and not flushed: the
machine must not fail. A generation is a checkpoint of the scheduler and the model's backup in one file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import codec
from .durable_io import open_output, open_temporary, remove, temporary_name
from .reader import Checkpoint
from .state_form import pack, size_of, unpack

SYSTEM_BASE = "/dev/shm"
SHARE = 0.25
"""Most of the free shared memory that the generations of a run take: loader workers need the rest."""

KEPT = 2
"""Newest generations to keep, as one rank may have one that another has not."""

OTHERS_SECONDS = 600.0
"""Time for which the newest generations of another run that crashed stay; all others are swept."""

_NAME = re.compile(r"gen_(\d{12})\.r8")
_held: set[str] = set()
"""Folders that schedulers of this process write to; a lock of a process does not exclude its own."""


def default_base() -> Path:
    """The folder of the system's shared memory, or what R8_BACKUPS says in its place."""
    return Path(os.environ.get("R8_BACKUPS", SYSTEM_BASE))


class ResumedState(dict[str, Any]):
    """A model state that was read from shared memory to continue a run, in place of a checkpoint's file."""


class Proved(NamedTuple):
    """A model state that has passed its trial, for the ladder of recovery.

    Attributes:
        state: The model state.
        step: Steps reported when it was taken.
        draws: Batches drawn by then.
        lr: Rate at which it has passed.
    """

    state: Any
    step: int
    draws: int
    lr: float


class SharedBackups:
    """The generations of a run.

    Args:
        base: Folder of the shared memory.
        checkpoint_dir: Folder of the run's checkpoints, which identifies the run to a later process.
        rank: Rank of this process.
        num_ranks: Processes of the run on this machine.
        note: ``(text)``, tells the user something once.
        is_default: Whether nobody asked for ``base``; then it is silently off where there is none.

    Attributes:
        is_off: Whether nothing is written any more, as it does not fit or the folder cannot be used.
    """

    def __init__(
        self,
        base: Path,
        checkpoint_dir: Path,
        *,
        rank: int,
        num_ranks: int,
        note: Callable[[str], None],
        is_default: bool = True,
    ) -> None:
        user = os.getuid() if hasattr(os, "getuid") else "user"
        self._parent = base / f"learnit_r8-{user}"
        digest = hashlib.sha256(str(checkpoint_dir.absolute()).encode()).hexdigest()[:16]
        self._run, self._rank, self._num_ranks = self._parent / digest, rank, num_ranks
        self._folder = self._run / f"rank{rank}"
        self._note, self._base, self._is_default = note, base, is_default
        self.is_off = False
        self._pid = os.getpid()
        self._release: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None
        self._rest_until = 0.0
        self._trouble = ""
        self._is_new = True

    @property
    def is_ready(self) -> bool:
        """Whether a generation can be written now: none is being written, and the last one was long enough ago."""
        if self._trouble:
            self._turn_off(self._trouble)
        return not (self.is_off or self.is_writing or time.monotonic() < self._rest_until or os.getpid() != self._pid)

    @property
    def is_writing(self) -> bool:
        """Whether a thread is writing a generation."""
        return self._thread is not None and self._thread.is_alive()

    def begin(
        self,
        model: Any,
        content: Mapping[str, Any],
        *,
        step: int,
        kept: set[int],
        proved: Mapping[int, float],
        done: Callable[[], object],
    ) -> None:
        """Write a generation, in a thread of its own.

        Args:
            model: The copy of the model state; must not change until ``done`` is called.
            content: What a checkpoint file holds beside it.
            step: Steps reported.
            kept: Steps of the states in RAM, whose generations are kept where there is room.
            proved: Steps of those that have passed their trial, with their rates.
            done: Called when ``model`` was read, by that thread or at once.
        """
        try:
            packed = pack(model)
            self._prepare()
            self._make_room(size_of(packed) + size_of(content))
        except (TypeError, OSError, ValueError) as error:
            done()
            self._turn_off(str(error))
            return
        whole = {**content, "backup": packed, "proved": [[at, lr] for at, lr in proved.items()], "made": time.time()}
        self._thread = threading.Thread(
            target=self._write, args=(whole, step, kept, done), name="learnit_r8 shared memory", daemon=True
        )
        self._thread.start()

    def _turn_off(self, reason: str) -> None:
        self.is_off, self._trouble = True, ""
        self._note(
            f"backups stay in this process and do not outlive it, as they could not be kept in {str(self._base)!r}: "
            f"{reason}"
        )

    def _prepare(self) -> None:
        """Make the folder of this run and take its lock; the first time, sweep those of dead processes.

        Raises:
            OSError: the folder cannot be made.
            ValueError: it is not this user's, or another process writes to it.
        """
        if self._release is not None and self._folder.is_dir():
            return
        if self._release is not None:
            self._release()
        self._parent.mkdir(mode=0o700, parents=not self._is_default, exist_ok=True)
        _check_private(self._parent)
        self._sweep_others()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        release = _locked(self._folder)
        if release is None:
            raise ValueError(f"another running process uses {str(self._folder)!r}.")
        self._release = release
        weakref.finalize(self, release)

    def _sweep_others(self) -> None:
        """Delete the generations of crashed runs, but for the newest ones of the last minutes."""
        others = []
        for folder in self._parent.iterdir():
            if folder != self._run and not any(map(is_held, folder.glob("rank*"))):
                with contextlib.suppress(OSError):
                    others.append((folder.stat().st_mtime, folder))
        others.sort()
        if others and time.time() - max(_newest_time(others[-1][1]), others[-1][0]) < OTHERS_SECONDS:
            others.pop()
        for _, folder in others:
            remove(folder)

    def _make_room(self, size: int) -> None:
        """Delete older generations until one more fits into this run's share.

        Raises:
            ValueError: two generations do not fit.
        """
        files = self._files()
        used = sum(path.stat().st_size for _, path in files)
        room = int(SHARE * (_free_bytes(self._folder) + used))
        if 2 * size > room:
            raise ValueError(
                f"two generations of {size / 2**20:.1f} MiB do not fit into a quarter of what is free, "
                f"{room / 2**20:.1f} MiB."
            )
        for _, path in files[:-1]:
            if used + size > room:
                used -= path.stat().st_size
                remove(path)

    def _write(self, whole: Mapping[str, Any], step: int, kept: set[int], done: Callable[[], object]) -> None:
        began = time.monotonic()
        try:
            path = self._folder / f"gen_{step:012d}.r8"
            temporary = temporary_name(path)
            try:
                with open_temporary(temporary, 0o600, buffering=0) as file:
                    codec.write(whole, file)
                os.replace(temporary, path)
            finally:
                remove(temporary)
            self._delete_old(path, kept)
        except Exception as error:
            # Told by the training thread.
            self._trouble = str(error)
        finally:
            done()
            now = time.monotonic()
            self._rest_until = now + (now - began)

    def _delete_old(self, newest: Path, kept: set[int]) -> None:
        files = self._files()
        if self._is_new:
            # Those of an earlier run of this folder that was not resumed, as they are newer than the first of this one.
            self._is_new = False
            for _, path in files:
                if path.name > newest.name:
                    remove(path)
            files = self._files()
        for step, path in files[:-KEPT]:
            if step not in kept:
                remove(path)

    def _files(self) -> list[tuple[int, Path]]:
        return files_in(self._folder)

    def newest(
        self, skipped: list[str], is_same: Callable[[str], bool] = lambda text: True
    ) -> tuple[Checkpoint, list[Proved], float] | None:
        """The newest generation that all ranks of this machine have and can read, and the proved states before it.

        Args:
            skipped: Gets the reason for every generation that cannot be used.
            is_same: Whether all ranks call it with the same text; they call it equally often.

        Returns:
            The generation as a checkpoint, with its model state; the proved states; and its wall time. None if there is
            none, or if a running process writes them.
        """
        common = self._common_steps(skipped)
        if not is_same(repr(common)):
            skipped.append("not all ranks find the same ones")
            return None
        for step in common:
            path, found = self._folder / f"gen_{step:012d}.r8", None
            try:
                found = self._read(path)
                text = _moment_of(found[0])
            except (OSError, ValueError, KeyError, TypeError) as error:
                text = f"{path.name}: {error}"
            if is_same(text):
                if found is not None:
                    return found
            elif found is not None:
                text = f"{path.name}: another rank has none of this moment that it can read"
            skipped.append(text)
        return None

    def _common_steps(self, skipped: list[str]) -> list[int]:
        """The steps of the generations that all ranks have, newest first; empty if a running process writes them."""
        if self.is_off or not self._run.is_dir():
            return []
        try:
            _check_private(self._parent)
        except (OSError, ValueError) as error:
            skipped.append(str(error))
            return []
        if is_held(self._folder):
            return []
        ranks = [{step for step, _ in files_in(self._run / f"rank{rank}")} for rank in range(self._num_ranks)]
        return sorted(set.intersection(*ranks), reverse=True)

    def _read(self, path: Path) -> tuple[Checkpoint, list[Proved], float]:
        content = codec.read(path)
        state = unpack(content["backup"])
        if isinstance(state, dict):
            state = ResumedState(state)
        proved = []
        for step, lr in content["proved"]:
            file = self._folder / f"gen_{step:012d}.r8"
            if file != path and file.exists():
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    older = codec.read(file)
                    draws = int(older["scheduler"]["num_draws"])
                    proved.append(Proved(unpack(older["backup"]), int(step), draws, float(lr)))
        found = Checkpoint(path, content["scheduler"], None, str(content["run_id"]), content["config"], (), state)
        self._is_new = False
        return found, proved, float(content["made"])

    def clear(self) -> None:
        """Delete the generations of this rank, as a checkpoint on disk is as new; wait for the one being written."""
        if os.getpid() != self._pid or self._release is None:
            return
        if self._thread is not None:
            self._thread.join()
        self._release()
        self._release = None
        remove(self._folder)
        for folder in (self._run, self._parent):
            with contextlib.suppress(OSError):
                folder.rmdir()


def files_in(folder: Path) -> list[tuple[int, Path]]:
    """The complete generations in a folder with their steps, oldest first."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [(int(match[1]), folder / match[0]) for match in map(_NAME.fullmatch, names) if match]


def _moment_of(generation: Checkpoint) -> str:
    """What tells a generation from one of the same step that another launch of the run has left."""
    state = generation.state
    return f"{generation.run_id} {state['num_draws']} {state['pace']!r}"


def _newest_time(folder: Path) -> float:
    times = [path.stat().st_mtime for path in folder.glob("rank*/gen_*")]
    return max(times, default=0.0)


def _check_private(folder: Path) -> None:
    """Raise ValueError unless a folder belongs to this user alone: others could put states there."""
    about = os.lstat(folder)
    is_own = not hasattr(os, "getuid") or about.st_uid == os.getuid()
    if not (stat.S_ISDIR(about.st_mode) and is_own and not stat.S_IMODE(about.st_mode) & 0o077):
        raise ValueError(f"{str(folder)!r} must be a folder that only this user can use.")


def _locked(folder: Path) -> Callable[[], object] | None:
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


def _free_bytes(folder: Path) -> int:
    """Free bytes of a file system in memory, and of the container that counts it as memory."""
    free = shutil.disk_usage(folder).free
    with contextlib.suppress(OSError, ValueError):
        most = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if most != "max":
            free = min(free, int(most) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(0, free)

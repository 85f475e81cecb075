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
from typing import Any

from .. import events
from ..events import launcher
from ..events.bus import Announcer
from . import codec
from .durable_io import is_locked, lock_until_released, remove, replace
from .store import Checkpoint, read_checkpoint
from .tree import pack, size_of

SYSTEM_BASE = "/dev/shm"
SHARE = 0.25
"""Most of the free shared memory that the generations of a run take: loader workers need the rest."""

KEPT = 2
"""Newest generations to keep, as one rank may have one that another has not."""

OTHERS_SECONDS = 600.0
"""Time for which the newest generations of another run that crashed stay; all others are swept."""

_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""Errors of reading a file that some other program has written; a RecursionError is a RuntimeError."""

AGAIN_SECONDS = 30.0
"""Time after which backups that are off are tried again: there may be room again."""

_NAME = re.compile(r"gen_(\d{12})\.r8")


def is_private(folder: Path) -> bool:
    """Whether a folder is one that only this user can use: others could put states there."""
    try:
        about = os.lstat(folder)
    except OSError:
        return False
    is_own = not hasattr(os, "getuid") or about.st_uid == os.getuid()
    return stat.S_ISDIR(about.st_mode) and is_own and not about.st_mode & 0o077


def is_held(folder: Path) -> bool:
    """Whether a running process writes to the folder of a rank."""
    return is_locked(folder / "lock")


def free_bytes(folder: Path) -> int:
    """Free bytes of a file system in memory, and of the container that counts it as memory."""
    free = shutil.disk_usage(folder).free
    with contextlib.suppress(OSError, ValueError):
        most = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if most != "max":
            free = min(free, int(most) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return max(0, free)


def files_in(folder: Path) -> list[tuple[int, Path]]:
    """The complete generations in a folder with their steps, oldest first."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [(int(match[1]), folder / match[0]) for match in map(_NAME.fullmatch, names) if match]


class Generations:
    """The generations of one rank of a run: the store of checkpoints in memory.

    Args:
        base: Folder of the shared memory.
        checkpoint_dir: Folder of the run's checkpoints, which identifies the run to a later process.
        rank: Rank of this process.
        num_ranks: Processes of the run on this machine.
        note: ``(text)``, tells the user why backups are off.
        is_default: Whether nobody asked for ``base``; then it is not made.
        switched: ``(reason)``, told why backups are off, and "" when they are on again.

    Attributes:
        is_off: Whether nothing is written now, as it does not fit or the folder cannot be used; it is tried again.
        is_default: As given.
    """

    def __init__(
        self, base: Path, checkpoint_dir: Path, *, rank: int, num_ranks: int, note: Callable[[str], object],
        is_default: bool = True, switched: Callable[[str], object] = lambda reason: None,
    ) -> None:  # fmt: skip
        digest = hashlib.sha256(os.fsencode(checkpoint_dir.absolute())).hexdigest()[:16]
        self._num_ranks, self._pid = num_ranks, os.getpid()
        self._note, self._base, self.is_default, self._switched = note, base, is_default, switched
        self._parent = base / f"learnit_r8-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
        self._run = self._parent / digest
        self._folder = self._run / f"rank{rank}"
        self.is_off = self._has_written = False
        self._release: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None
        self._rest_until, self._trouble, self._is_new = 0.0, "", True

    @classmethod
    def of(
        cls, backup_dir: str | os.PathLike[str] | bool | None, checkpoint_dir: Any, announcer: Announcer
    ) -> Generations | None:
        """Make those that the argument ``backup_dir`` of `R8Scheduler` asks for; None for none.

        Raises:
            ValueError: it is not a folder, or there is no checkpoint folder to identify the run by.
        """
        is_given = backup_dir is not None and backup_dir is not False
        if is_given and not (isinstance(backup_dir, (str, os.PathLike)) and os.fspath(backup_dir)):
            raise ValueError(f"backup_dir must be a folder in memory, False or None, got {backup_dir!r}.")
        if is_given and checkpoint_dir is None:
            raise ValueError(f"backup_dir needs a checkpoint_dir or a save_callback, got only {backup_dir!r}.")
        is_of_jax = launcher.is_of_jax_distributed()
        if is_given and is_of_jax:
            # Its processes have no number before they have met, and would overwrite each other's.
            raise ValueError(
                f"backup_dir must be None or False with several processes of jax.distributed, got {backup_dir!r}."
            )
        named = os.environ.get("R8_BACKUPS")
        base = Path(os.fspath(backup_dir) if is_given else named or SYSTEM_BASE)  # type: ignore[arg-type]
        # Whoever names a folder in the environment that is not there has not asked for silence.
        is_asked = is_given or (bool(named) and not base.is_dir())
        is_on = is_given or (backup_dir is None and checkpoint_dir is not None and (is_asked or base.is_dir()))
        # Ranks on several machines cannot see what the others have: they continue from their checkpoints.
        num_ranks = launcher.first_number(("WORLD_SIZE",), 1)
        is_one_machine = launcher.first_number(("LOCAL_WORLD_SIZE",), num_ranks) == num_ranks
        if not (is_on and os.name == "posix" and is_one_machine) or is_of_jax:
            return None
        return cls(
            base, Path(checkpoint_dir), rank=launcher.first_number(("RANK",), 0), num_ranks=num_ranks,
            # That they are off is an event of its own, which screens show.
            note=lambda text: is_asked and announcer.warn_once("backup_dir", text), is_default=not is_given,
            switched=lambda reason: announcer.tell(events.BackupsOutlive, is_on=not reason, reason=reason),
        )  # fmt: skip

    @property
    def is_ready(self) -> bool:
        """Whether a generation can be written now: none is being written, and the last one was long enough ago."""
        if self.is_writing or os.getpid() != self._pid:
            return False
        if self._trouble:
            self.turn_off(self._trouble)
        elif self.is_off and self._has_written:
            self.is_off = False
            self._switched("")
        return time.monotonic() >= self._rest_until

    @property
    def is_writing(self) -> bool:
        """Whether a thread is writing a generation."""
        return self._thread is not None and self._thread.is_alive()

    def start_write(self, model: Any, content: Mapping[str, Any], *, step: int, done: Callable[[], object]) -> None:
        """Write a generation, in a thread of its own.

        Args:
            model: The copy of the model state; must not change until ``done`` is called.
            content: What a checkpoint file holds beside it.
            step: Steps reported.
            done: Called when ``model`` was read, by that thread or at once.
        """
        self._has_written = False
        try:
            whole = {**content, "backup": pack(model)}
            self._prepare()
            self._make_room(size_of(whole))
            thread = threading.Thread(
                target=self._write, args=(whole, step, done), name="learnit_r8 shared memory", daemon=True
            )
            thread.start()
        except (TypeError, OSError, ValueError, ImportError, MemoryError, RuntimeError) as error:
            # ImportError: a system without the locks of POSIX; RuntimeError: no thread can be started.
            done()
            self.turn_off(str(error))
            return
        self._thread = thread

    def turn_off(self, reason: str) -> None:
        """Write nothing for a while, and say why once."""
        was_off, self.is_off, self._trouble = self.is_off, True, ""
        self._rest_until = time.monotonic() + AGAIN_SECONDS
        if self._release is not None:
            # They take the room that others may lack; the newest may still be worth going back to.
            with contextlib.suppress(OSError):
                for _, path in files_in(self._folder)[:-1]:
                    remove(path)
        if not was_off:
            self._switched(reason)
        where = str(self._base)
        self._note(
            f"backups stay in this process and do not outlive it, as they could not be kept in {where!r}: {reason}"
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
        if not self.is_default:
            self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self._parent.mkdir(0o700)
        if not is_private(self._parent):
            raise ValueError(f"{str(self._parent)!r} is not private to this user.")
        self._sweep_others()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        release = lock_until_released(self._folder / "lock")
        if release is None:
            raise ValueError(f"another running process uses {str(self._folder)!r}.")
        self._release = release
        weakref.finalize(self, release)

    def _sweep_others(self) -> None:
        """Delete the generations of crashed runs, but for the newest ones of the last minutes."""
        ages: dict[Path, float] = {}
        for folder in self._parent.iterdir():
            if folder != self._run and not any(map(is_held, folder.glob("rank*"))):
                with contextlib.suppress(OSError):
                    ages[folder] = max(path.stat().st_mtime for path in (folder, *folder.glob("rank*/gen_*")))
        newest = max(ages, key=ages.__getitem__, default=None)
        for folder, made in ages.items():
            if folder != newest or time.time() - made > OTHERS_SECONDS:
                remove(folder)

    def _make_room(self, size: int) -> None:
        """Delete older generations until one more fits into this run's share.

        Raises:
            ValueError: two generations do not fit.
        """
        files = files_in(self._folder)
        used = sum(path.stat().st_size for _, path in files)
        room = int(SHARE * (free_bytes(self._folder) + used))
        if 2 * size > room:
            raise ValueError(
                f"two generations of {size / 2**20:.1f} MiB do not fit into a quarter of what is free, "
                f"{room / 2**20:.1f} MiB."
            )
        for _, path in files[:-1]:
            if used + size > room:
                used -= path.stat().st_size
                remove(path)

    def _write(self, whole: Mapping[str, Any], step: int, done: Callable[[], object]) -> None:
        began, path = time.monotonic(), self._folder / f"gen_{step:012d}.r8"
        try:
            replace(path, lambda file: codec.write(whole, file), durable=False, permissions=0o600)
            files = files_in(self._folder)
            # Newer ones than the first of this run are of an earlier one in this folder that was not resumed.
            stale = [newer for _, newer in files if self._is_new and newer > path]
            older = [path for _, path in files[: len(files) - len(stale)][:-KEPT]]
            self._is_new = False
            for each in (*stale, *older):
                remove(each)
            self._has_written = True
        except Exception as error:
            # Told by the training thread.
            self._trouble = str(error)
        finally:
            done()
            self._rest_until = 2 * time.monotonic() - began

    def newest(self, skipped: list[str], is_same: Callable[[str], bool] = lambda text: True) -> Checkpoint | None:
        """The newest generation that all ranks of this machine have and can read.

        Args:
            skipped: Gets the reason for every generation that cannot be used.
            is_same: Whether all ranks call it with the same text; they call it equally often.

        Returns:
            The generation as a checkpoint, with its model state; None if there is none, or if a running process writes
            them.
        """
        common: list[int] = []
        try:
            if is_private(self._parent) and self._run.is_dir() and not is_held(self._folder):
                ranks = [{step for step, _ in files_in(self._run / f"rank{rank}")} for rank in range(self._num_ranks)]
                common = sorted(set.intersection(*ranks), reverse=True)
        except OSError as error:
            skipped.append(f"their folder cannot be read: {error}")
        if not is_same(repr(common)):
            skipped.append("not all ranks find the same ones")
            return None
        for step in common:
            path, found = self._folder / f"gen_{step:012d}.r8", None
            try:
                found = read_checkpoint(path)
                if found.model_state is None:
                    raise ValueError("it must hold the state of the model, got none")
                state, self._is_new = found.state, False
                # What distinguishes it from one of the same step that an earlier launch of the run left.
                text = f"{found.run_id} {state['num_draws']} {state['pace']!r}"
            except codec.OlderFile:
                where = str(self._parent)
                raise codec.OlderFile(
                    f"backups in memory must be of this version, got {path.name!r} of an older one in {where!r}; "
                    f"run learnit-r8 convert {where}, and put {where}-converted in its place, or delete it."
                ) from None
            except _DAMAGE as error:
                found, text = None, f"{path.name}: {error}"
            if is_same(text):
                if found is not None:
                    return found
            elif found is not None:
                text = f"{path.name}: another rank has no readable one of this moment"
            skipped.append(text)
        return None

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

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
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import codec
from .durable_io import remove, replace
from .reader import Checkpoint
from .shared_folders import free_bytes, is_held, is_private, lock_until_released, make_own, own_folders, own_name
from .state_form import pack, size_of, unpack

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


def default_base() -> Path:
    """The folder of the system's shared memory, or what R8_BACKUPS says in its place."""
    return Path(os.environ.get("R8_BACKUPS") or SYSTEM_BASE)


class ResumedState(dict[str, Any]):
    """A model state that was read from shared memory to continue a run, in place of a checkpoint's file."""


class Proved(NamedTuple):
    """A model state that has passed its trial, for the ladder of recovery.

    Attributes:
        state: The model state.
        step: Steps reported when it was taken.
        draws: Batches drawn by then.
    """

    state: Any
    step: int
    draws: int


class SharedBackups:
    """The generations of a run.

    Args:
        base: Folder of the shared memory.
        checkpoint_dir: Folder of the run's checkpoints, which identifies the run to a later process.
        rank: Rank of this process.
        num_ranks: Processes of the run on this machine.
        note: ``(text)``, tells the user something once.
        is_default: Whether nobody asked for ``base``; then it is not made.
        switched: ``(reason)``, told why backups are off, and "" when they are on again.

    Attributes:
        is_off: Whether nothing is written now, as it does not fit or the folder cannot be used; it is tried again.
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
        switched: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._digest = hashlib.sha256(os.fsencode(checkpoint_dir.absolute())).hexdigest()[:16]
        self._rank, self._num_ranks = rank, num_ranks
        self._note, self._base, self._is_default, self._switched = note, base, is_default, switched
        own = own_folders(base)
        known = [folder for folder in own if os.path.isdir(folder / self._digest)]
        self._settle_in((known or own or [base / "none"])[0])
        self.is_off = self._has_written = False
        self._pid = os.getpid()
        self._release: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None
        self._rest_until = 0.0
        self._trouble = ""
        self._is_new = True

    def _settle_in(self, parent: Path) -> None:
        self._parent, self._run = parent, parent / self._digest
        self._folder = self._run / f"rank{self._rank}"

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

    def start_write(
        self,
        model: Any,
        content: Mapping[str, Any],
        *,
        step: int,
        kept: set[int],
        proved: Collection[int],
        done: Callable[[], object],
    ) -> None:
        """Write a generation, in a thread of its own.

        Args:
            model: The copy of the model state; must not change until ``done`` is called.
            content: What a checkpoint file holds beside it.
            step: Steps reported.
            kept: Steps of the states in RAM, whose generations are kept where there is room.
            proved: Steps of those that have passed their trial.
            done: Called when ``model`` was read, by that thread or at once.
        """
        self._has_written = False
        try:
            packed = pack(model)
            self._prepare()
            self._make_room(size_of(packed) + size_of(content))
            whole = {**content, "backup": packed, "proved": [*proved], "made": time.time()}
            thread = threading.Thread(
                target=self._write, args=(whole, step, kept, done), name="learnit_r8 shared memory", daemon=True
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
        if not self._is_default:
            self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._settle_in(self._parent if is_private(self._parent) else make_own(self._base))
        if self._parent.name != own_name():
            own = own_name()
            self._note(f"backups are kept in {str(self._parent)!r}, as {own!r} there is not private to this user.")
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
                    ages[folder] = folder.stat().st_mtime
        newest = max(ages, key=ages.__getitem__, default=self._run)
        times = [path.stat().st_mtime for path in newest.glob("rank*/gen_*")]
        if newest in ages and time.time() - max(*times, ages[newest], 0.0) < OTHERS_SECONDS:
            del ages[newest]
        for folder in ages:
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

    def _write(self, whole: Mapping[str, Any], step: int, kept: set[int], done: Callable[[], object]) -> None:
        began = time.monotonic()
        try:
            path = self._folder / f"gen_{step:012d}.r8"
            replace(path, lambda file: codec.write(whole, file), durable=False, permissions=0o600)
            files = files_in(self._folder)
            # Newer ones than the first of this run are of an earlier one in this folder that was not resumed.
            stale = [newer for _, newer in files if self._is_new and newer > path]
            older = [each for number, each in files[: len(files) - len(stale)][:-KEPT] if number not in kept]
            self._is_new = False
            for each in (*stale, *older):
                remove(each)
            self._has_written = True
        except Exception as error:
            # Told by the training thread.
            self._trouble = str(error)
        finally:
            done()
            now = time.monotonic()
            self._rest_until = now + (now - began)

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
                found = self._read(path)
                state = found[0].state
                # What distinguishes it from one of the same step that an earlier launch of the run left.
                text = f"{found[0].run_id} {state['num_draws']} {state['pace']!r}"
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

    def _read(self, path: Path) -> tuple[Checkpoint, list[Proved], float]:
        content = codec.read(path)
        made, run_id = content["made"], content["run_id"]
        is_whole = isinstance(content["scheduler"], dict) and isinstance(content["config"], dict)
        if not (is_whole and isinstance(made, float) and isinstance(run_id, str)):
            raise ValueError(f"it must hold a scheduler's state with its time and run, got {sorted(content)[:9]}")
        state = unpack(content["backup"])
        if isinstance(state, dict):
            state = ResumedState(state)
        proved = []
        for step in content["proved"]:
            file = self._folder / f"gen_{step:012d}.r8"
            if file != path and file.exists():
                with contextlib.suppress(*_DAMAGE):
                    older = codec.read(file)
                    draws = int(older["scheduler"]["num_draws"])
                    proved.append(Proved(unpack(older["backup"]), int(step), draws))
        found = Checkpoint(path, content["scheduler"], None, run_id, content["config"], (), state)
        self._is_new = False
        return found, proved, made

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

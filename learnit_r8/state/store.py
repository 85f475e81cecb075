"""Checkpoint store: numbered files in a folder, written whole or not at all; the newest valid one counts.

The order of a save makes it safe: first the model's file is made durable; then the scheduler's file, which names the
model's with its size and hash and so proves that both exist; only then are old checkpoints deleted. What is read is
checked before anything in it is used. codec.py defines the content, durable_io.py writes it;
``benchmarks/durability.py`` tests both.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import platform
import re
import shutil
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..events.caller import warn
from ..events.launcher import is_of_jax_distributed, rank_of
from .codec import OlderFile, read, read_tree, write

from .durable_io import flush, flush_folder, held_here, link_new, lock_until_released, make_first_free, open_regular  # isort: skip
from .durable_io import open_temporary, read_json, remove, remove_stale, replace, sha256, temporary_name  # isort: skip
from .durable_io import write_new  # isort: skip
from .tree import PACKED, unpack

ROOM = 1.2
"""Space that must be free before a save, as a multiple of the size of the last one."""

SPARE_BYTES = 2**14
"""Space for folders and the like, where older checkpoints give way to the newest."""

THIN = "thin"
NEWEST_KEPT = 3
MOST_THIN = 16
"""Checkpoints kept by "thin" beside the newest ones."""

MOST_NOTE = 2**16
"""Most bytes read of the note about a pinned checkpoint."""

LARGE = 2**17
"""Samples from which a run does not wait until their table, of 2 MB, is on the disk: to copy it takes a millisecond."""

MODEL = re.compile(r"model_(\d{12})_[^/\\\0]*")
"""Names of model files; no other file is ever opened or deleted as one."""

_NAME = re.compile(r"ck_(\d{12})\.r8")


class Checkpoint(NamedTuple):
    """The content of a checkpoint.

    Attributes:
        path: Its file.
        state: The scheduler's state.
        model_path: The model's file, checked; None if none was saved.
        run_id: The run that wrote it.
        config: The run's configuration; empty if it was not saved.
        skipped: Why newer files were skipped, one text each.
        model_state: The model state itself, of a generation in shared memory; None for a checkpoint on disk.
    """

    path: Path
    state: dict[str, Any]
    model_path: Path | None
    run_id: str
    config: dict[str, Any]
    skipped: tuple[str, ...] = ()
    model_state: Any = None


class NoValidCheckpoint(ValueError):
    """No checkpoint in the folder can be read; the message gives the reason for each file."""


class RunInUse(RuntimeError):
    """Another process, or another thread of this one, trains the run of these checkpoints."""


class BackgroundWrite:
    """A checkpoint whose file is being written.

    Args:
        write: Writes the file and returns its path; called in the thread, if there is one.
        finish: Takes the path and the error, one of which is None, and returns the checkpoint or raises the error;
            called in the caller's thread.
        in_background: Whether a thread writes; otherwise `result` does. If the program ends before the thread has
            finished, there is no file, and the previous checkpoint counts.
    """

    def __init__(
        self, write: Callable[[], Path], finish: Callable[[Path | None, BaseException | None], Checkpoint], *,
        in_background: bool,
    ) -> None:  # fmt: skip
        self._write, self._finish = write, finish
        self._path: Path | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if in_background:
            self._thread = threading.Thread(target=self._run, name="learnit_r8 checkpoint", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            self._path = self._write()
        except BaseException as error:
            self._error = error

    @property
    def is_done(self) -> bool:
        """Whether `result` returns without waiting."""
        return self._thread is None or not self._thread.is_alive()

    def result(self) -> Checkpoint:
        """Wait for the checkpoint and return it; must be called once.

        Raises:
            TypeError: a value cannot be saved.
            OSError: the write failed; earlier checkpoints are unchanged.
        """
        if self._thread is None:
            self._run()
        else:
            self._thread.join()
        return self._finish(self._path, self._error)


class _Claim(NamedTuple):
    """A run that a store of this process has locked."""

    store: weakref.ref[CheckpointStore]
    thread: threading.Thread
    pid: int
    release: Callable[[], object]


_claims: dict[str, _Claim] = {}
"""The runs that stores of this process have locked, by the file of the lock."""

# A store that nobody closed is released by whichever thread collects it.
_claiming = threading.RLock()


class CheckpointFiles(NamedTuple):
    """The files of a checkpoint of this run.

    Attributes:
        path: The scheduler's file.
        model: The model's file; None without one.
        step: Steps reported when it was written; -1 if it does not say.
    """

    path: Path
    model: Path | None
    step: int


class CheckpointStore:
    """Numbered checkpoints in a folder: the newest valid one counts.

    Args:
        folder: Created with the first checkpoint.
        keep: Checkpoints of this run to keep, >= 1; those of other runs are never touched. "thin": the newest three
            and at most `MOST_THIN` others, spread evenly over the run by their numbers.
        run_id: Distinguishes this run's files from those of other runs.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int | str, run_id: str) -> None:
        # A relative path must mean the same folder after the program changes its working directory.
        self.folder = Path(folder).absolute()
        self.keep = keep
        self.run_id = run_id
        self._pinned: Path | None = None
        self._own: list[CheckpointFiles] = []
        self._given_up: set[Path] = set()
        self._is_tidy = False
        self._last_size = 0
        # The last one written, and the digest of its model's file.
        self._last: tuple[Checkpoint, str] | None = None
        self._claimed: str | None = None
        self._is_lockless = False

    def claim(self, run_id: str) -> None:
        """Lock a run in this folder, so that no two processes go on with it; the one locked before is released.

        A store of the same thread gives its lock up: that thread is here, so whatever used it has failed or is over. So
        does one whose thread has ended. Other processes than rank 0 of a launcher lock nothing, as they write nothing.

        Args:
            run_id: The run.

        Raises:
            RunInUse: somebody else trains it; the message names process and host.
        """
        # No launcher tells the rank among the processes of jax.distributed.
        if not run_id or rank_of() or (is_of_jax_distributed() and sys.modules["jax"].process_index()):
            return
        file, here = os.path.join(os.path.realpath(self.folder), f"run_{run_id[:8]}.lock"), threading.current_thread()
        with _claiming:
            other = _claims.get(file)
            if other is not None and other.store() is not self:
                # Taken out, as an unreachable store may be collected at any line from here on, and would release it.
                other = _claims.pop(file, None)
            if other is None or other.pid != os.getpid():
                release = self._lock(Path(file), run_id)
            elif other.store() in (None, self) or other.thread is here or not other.thread.is_alive():
                release = other.release
            else:
                _claims[file] = other
                raise RunInUse(self._in_use(run_id, f"the thread {other.thread.name!r} of this process, {os.getpid()}"))
            if release is None:
                return
            former = self._claimed
            if former != file:
                # An unreachable store of a scheduler that was never closed.
                weakref.finalize(self, _release, file, weakref.ref(self))
            # In this order, as `start_write` takes a run that is claimed by `_claimed` alone for one that is lost.
            _claims[file] = _Claim(weakref.ref(self), here, os.getpid(), release)
            self._claimed = file
            if former not in (None, file):
                _release(former, weakref.ref(self))

    def _lock(self, file: Path, run_id: str) -> Callable[[], object] | None:
        """Take the lock of a run; returns what releases it, None where there can be none."""
        try:
            release = lock_until_released(file, f"{os.getpid()} {platform.node()}", is_removed=True)
            # A claim of this process that was cut short has left it locked.
            release = release or held_here(file)
        except (FileNotFoundError, ImportError):
            # No folder, which the first checkpoint makes; or a system without the locks of POSIX.
            return None
        except OSError as error:
            if not self._is_lockless:
                self._is_lockless = True
                warn(
                    f"the run in {str(self.folder)!r} could not be locked ({error}), so another process with "
                    "resume='auto' would go on with it, too. Training continues."
                )
            return None
        if release is None:
            who = "another process"
            with contextlib.suppress(OSError, ValueError), open_regular(file) as opened:
                pid, host = opened.read(MOST_NOTE).decode("utf-8", "replace").split(maxsplit=1)
                who = f"the process {pid} on {host}"
            raise RunInUse(self._in_use(run_id, who))
        return release

    def _in_use(self, run_id: str, who: str) -> str:
        return (
            f"checkpoint_dir must not hold a run that is being trained, got {str(self.folder)!r}, whose run "
            f"{run_id[:8]} {who} trains: both would delete each other's checkpoints. End that one first (close() its "
            "scheduler), or give another checkpoint_dir."
        )

    def release(self) -> None:
        """Release the run that is locked."""
        claimed, self._claimed = self._claimed, None
        if claimed is not None:
            _release(claimed, weakref.ref(self))

    def save(
        self, state: Mapping[str, Any], write_model: Callable[[str], None] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> Checkpoint:  # fmt: skip
        """Write a checkpoint and delete this run's oldest beyond ``keep``.

        Args:
            state: The scheduler's state, of values that `encode` accepts.
            write_model: Writes the model to the given path, to which it may append a suffix. The file is made durable
                before the scheduler's file, which names it with its size and hash.
            config: The run's configuration, of values that `encode` accepts.

        Raises:
            TypeError: a value cannot be saved.
            OSError: the write failed; earlier checkpoints are unchanged.
        """
        return self.start_write(state, write_model, config).result()

    def start_write(
        self, state: Mapping[str, Any], write_model: Callable[[str], None] | None = None,
        config: Mapping[str, Any] | None = None, *, then: Callable[[Checkpoint], object] = lambda _: None,
        in_background: bool = False, is_again: bool = False,
    ) -> BackgroundWrite:  # fmt: skip
        """Start to write a checkpoint like `save`; `BackgroundWrite.result` completes it.

        The model's file is written at once. If this raises, nothing has changed.

        Args:
            state: See `save`.
            write_model: See `save`.
            config: See `save`.
            then: Called with the checkpoint by `BackgroundWrite.result`.
            in_background: Whether a thread writes the scheduler's file meanwhile; ``state`` must not change then.
            is_again: Whether there is a checkpoint of this step; it counts as written unless the model's file differs.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._claimed is not None and getattr(_claims.get(self._claimed), "store", None) is not weakref.ref(self):
            raise RunInUse(f"another scheduler of this process has gone on with the run {self.run_id[:8]} since.")
        self.claim(self.run_id)
        self._tidy()
        self._make_room()
        taken = [*os.listdir(self.folder), *(own.path.name for own in self._own)]
        number = 1 + max((int(match[1]) for match in map(_NAME.fullmatch, taken) if match), default=0)
        model = None if write_model is None else self._save_model(number, write_model)
        digest = "" if model is None else sha256(model)
        about = model and {"name": model.name, "size": model.stat().st_size, "sha256": digest}
        if is_again and self._last is not None and self._last[1] == digest:
            last = self._last[0]
            if model is not None:
                remove(model)
            return BackgroundWrite(lambda: last.path, lambda path, error: last, in_background=False)
        content = {"run_id": self.run_id, "model": about, "scheduler": state, "config": dict(config or {})}

        def finish(path: Path | None, error: BaseException | None) -> Checkpoint:
            if path is None or error is not None:
                if not isinstance(error, Exception):
                    # Interrupted: the scheduler's file may exist already. If not, the next save removes the model.
                    self._is_tidy = False
                elif model is not None:
                    remove(model)
                raise error or AssertionError(number)
            self._own.append(CheckpointFiles(path, model, step_of(state)))
            self._last_size = _size_of(self._own[-1])
            self._delete_old()
            saved = Checkpoint(path, dict(state), model, self.run_id, dict(config or {}))
            self._last = saved._replace(state={}), digest
            then(saved)
            return saved

        names = (self.folder / f"ck_{free:012d}.r8" for free in itertools.count(number))
        return BackgroundWrite(
            lambda: make_first_free(names, lambda path: write_new(path, functools.partial(write, content))),
            finish,
            in_background=in_background,
        )

    def _tidy(self) -> None:
        """Before the first save, delete what killed processes left: temporary files and models without a checkpoint."""
        if self._is_tidy:
            return
        self._is_tidy = True
        remove_stale(self.folder)
        # A run that was killed between writing its two files left the model's.
        files = [MODEL.fullmatch(name) for name in os.listdir(self.folder)]
        own = {own.model.name for own in self._own if own.model is not None}
        for match in filter(None, files):
            is_ours = f"_{self.run_id[:8]}" in match[0][len("model_000000000000") :]
            if is_ours and match[0] not in own and not (self.folder / f"ck_{match[1]}.r8").exists():
                remove(self.folder / match[0])

    def _make_room(self) -> None:
        """Delete the oldest of this run while there is no room for one more, but never the newest or the pinned.

        Raises:
            OSError: that would not be enough; nothing was deleted.
        """
        free, needed = shutil.disk_usage(self.folder).free, int(ROOM * self._last_size)
        if free >= needed:
            return
        going, room = [], free
        for own in self._oldest_first()[:-1]:
            # No spare room is asked for any more: without the end of the run, the others are of little use.
            if room >= self._last_size + SPARE_BYTES:
                break
            if own.path != self._pinned:
                going.append(own)
                room += _size_of(own)
        if room < self._last_size + SPARE_BYTES:
            raise OSError(errno.ENOSPC, f"{needed} bytes must be free for a checkpoint, got {free}", str(self.folder))
        self._delete(going)

    def pin(self, path: Path | None, note: bytes | None = None) -> None:
        """Keep this checkpoint of this run in addition to the newest ones, in place of the one pinned before.

        Args:
            path: The checkpoint; None for none.
            note: Content of the note that `read_note` returns after a resume; None leaves the note unchanged.

        Raises:
            OSError: the note could not be written; the checkpoint is pinned anyway.
        """
        self._pinned = path
        try:
            if note is not None:
                replace(self._note_file, note)
        finally:
            self._delete_old()

    def read_note(self) -> dict[str, Any]:
        """The last note that `pin` wrote in this run.

        Raises:
            OSError, ValueError: there is none, or it is not a regular file of JSON.
        """
        return read_json(self._note_file, MOST_NOTE)

    @property
    def _note_file(self) -> Path:
        return self.folder / f"best_{self.run_id[:8]}.json"

    def _delete_old(self) -> None:
        """Delete the oldest beyond ``keep``, starting with those of weights that recovery gave up."""
        kept = set(self._oldest_first()[-(NEWEST_KEPT if isinstance(self.keep, str) else self.keep) :])
        if self.keep == THIN and self._own:
            # A power of two, so that whatever is kept later was kept before.
            numbers, stride = [int(own.path.stem[3:]) for own in self._own], 1
            while numbers[-1] > MOST_THIN * stride:
                stride *= 2
            kept |= {own for own, number in zip(self._own, numbers, strict=True) if not number % stride}
        self._delete([own for own in self._own if own not in kept and own.path != self._pinned])

    def _oldest_first(self) -> list[CheckpointFiles]:
        """Return this run's checkpoints, those of weights that recovery gave up first, then by age."""
        return sorted(self._own, key=lambda own: own.path not in self._given_up)

    def _delete(self, going: list[CheckpointFiles]) -> None:
        for own in going:
            # In this order, a checkpoint never exists without its model.
            remove(own.path)
            if own.model is not None:
                remove(own.model)
        self._own = [own for own in self._own if own not in going]

    def _save_model(self, number: int, write_model: Callable[[str], None]) -> Path | None:
        # In a folder that nobody else can put a link into: the callback opens the file as it likes.
        private = temporary_name(self.folder / f"model_{number:012d}")
        remove(private)
        private.mkdir(0o700)
        asked = private / f"model_{number:012d}"
        try:
            write_model(str(asked))
            written = sorted(private.iterdir())
            if not written:
                return None
            suffix = written[0].name.removeprefix(asked.name)
            is_one = len(written) == 1 and not written[0].is_symlink() and written[0].is_file()
            if not is_one or not written[0].name.startswith(asked.name):
                raise ValueError(f"save_callback must write one regular file, got {[path.name for path in written]}.")
            flush(written[0])
            ending = f"{self.run_id[:8]}{suffix}"
            names = (self.folder / f"model_{free:012d}_{ending}" for free in itertools.count(number))
            model = make_first_free(names, lambda model: link_new(written[0], model))
        finally:
            remove(private)
        flush_folder(self.folder)
        return model

    def own_states(self) -> list[tuple[str, int]]:
        """This run's checkpoints with a model, oldest first: their names, and the steps reported when written.

        Those of weights that recovery gave up are left out.
        """
        return [
            (own.path.name, own.step) for own in self._own if own.model is not None and own.path not in self._given_up
        ]

    def mark_abandoned(self, after: int, until: int) -> None:
        """Note that the model was restored: checkpoints of this run written in between hold weights that are given up.

        Args:
            after: Steps reported when the restored state was taken.
            until: Steps reported now.
        """
        self._given_up |= {own.path for own in self._own if after < own.step <= until}

    def load_named(self, name: str) -> Checkpoint | None:
        """Read a checkpoint of this run by its file name; None, with a warning, if it cannot be read."""
        reasons: list[str] = []
        checkpoint = _first_valid([self.folder / name], reasons)
        if reasons:
            warn(f"checkpoint skipped: {reasons[0]}")
        return checkpoint

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Continue the run that wrote a checkpoint: its files up to this one become this store's to keep and delete."""
        self.run_id = checkpoint.run_id
        self._own, self._pinned, self._is_tidy = [], None, False
        self._given_up.clear()
        is_generation = checkpoint.model_state is not None
        is_here = checkpoint.path.parent.absolute() == self.folder.absolute()
        if not (is_here or is_generation):
            return
        until = step_of(checkpoint.state)
        for path in (self.folder / name for name in reversed(self.names())):
            if is_generation or path.name <= checkpoint.path.name:
                with contextlib.suppress(OSError, ValueError, KeyError), open_regular(path) as file:
                    tree = read_tree(file)
                    own = CheckpointFiles(path, _model_beside(path, tree["model"]), step_of(tree["scheduler"]))
                    run_id = str(tree["run_id"])
                    if run_id == self.run_id and (not is_generation or own.step <= until):
                        self._own.append(own)
        if self._own:
            self._last_size = _size_of(self._own[-1])

    def files_of(self, name: str) -> tuple[Path, Path | None]:
        """The file of a checkpoint of this run, given its name, and that of its model.

        Raises:
            KeyError: this run has no checkpoint of this name.
        """
        return {own.path.name: (own.path, own.model) for own in self._own}[name]

    def names(self) -> list[str]:
        """The names of all checkpoints in the folder, valid or not, of this or other runs; newest first.

        Raises:
            OSError: the folder cannot be read.
        """
        try:
            names = os.listdir(self.folder)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not os.path.islink(self.folder):
                return []
            raise self._unreadable(error) from error
        return sorted(filter(_NAME.fullmatch, names), reverse=True)

    def _unreadable(self, error: OSError) -> OSError:
        what = "a link that leads nowhere" if isinstance(error, FileNotFoundError) else error.strerror
        text = (
            f"checkpoint_dir must be a folder that can be read, got one with: {what}. Mend or mount it, or give "
            "another one to start a new run"
        )
        return type(error)(error.errno, text, str(self.folder))

    def find(self) -> Checkpoint | None:
        """The checkpoint that ``resume="auto"`` continues from, whose run is locked then; None without any.

        Raises:
            NoValidCheckpoint: none can be read.
            RunInUse: somebody else trains the run.
            PermissionError: the newest one belongs to another user.
            OSError: the folder cannot be read.
        """
        while names := self.names():
            found = self.load()
            try:
                owner = found.path.stat().st_uid if hasattr(os, "getuid") else None
            except FileNotFoundError:
                # Whoever trains the run has just deleted it.
                continue
            except OSError as error:
                raise self._unreadable(error) from error
            if owner is not None and owner != os.getuid() and owner != _owner_of_new(self.folder):
                who: Any = owner
                with contextlib.suppress(KeyError, OSError):
                    who = found.path.owner()
                raise PermissionError(
                    errno.EPERM,
                    f"the newest checkpoint belongs to the user {who}, and resume='auto' goes on with your own runs "
                    f"only, as a model may run code of whoever wrote it. If you trust it, give "
                    f"resume={str(found.path)!r}; else another checkpoint_dir",
                    str(found.path),
                )
            self.claim(found.run_id)
            if self.names()[:1] == names[:1]:
                return found
            # Whoever trained the run until now wrote another one before it was locked here.
        return None

    def load(self, path: str | os.PathLike[str] | None = None) -> Checkpoint:
        """Read a checkpoint, by default the newest valid one; damaged ones are skipped, with a warning.

        Raises:
            NoValidCheckpoint: no checkpoint can be read.
            ValueError: the file given by ``path`` cannot be used.
        """
        if path is not None:
            try:
                return read_checkpoint(Path(path))
            except FileNotFoundError:
                raise FileNotFoundError(f"path must be the file of a checkpoint, got no file. {_near(path)}") from None
            except ValueError as error:
                if Path(path).suffix == ".r8":
                    raise
                raise ValueError(f"path must be the file of a checkpoint, got another. {_near(path)} {error}") from None
        reasons: list[str] = []
        checkpoint = _first_valid((self.folder / name for name in self.names()), reasons)
        if checkpoint is None:
            where = str(self.folder)
            raise NoValidCheckpoint(
                f"checkpoint_dir must hold a valid checkpoint, got none in {where!r}: {reasons or 'no files'}."
            )
        return checkpoint._replace(skipped=tuple(reasons))


def _release(file: str, store: weakref.ref[CheckpointStore]) -> None:
    """Release a lock, unless another store has it now."""
    claim = _claims.get(file)
    # A forked process must not wait for a thread that it does not have.
    if claim is None or claim.pid != os.getpid():
        return
    with _claiming:
        if _claims.get(file) is claim and claim.store is store:
            del _claims[file]
            claim.release()


def _owner_of_new(folder: Path) -> int | None:
    """The owner that a file made here gets: some file systems give all files to one user."""
    probe = temporary_name(folder / "owner")
    try:
        with open_temporary(probe) as file:
            return os.fstat(file.fileno()).st_uid
    except OSError:
        return None
    finally:
        remove(probe)


def _near(path: str | os.PathLike[str]) -> str:
    """What is beside a file that is no checkpoint."""
    folder = Path(path).parent
    names = sorted(filter(_NAME.fullmatch, os.listdir(folder)))[-3:] if folder.is_dir() else []
    return f"{os.fspath(path)!r} is in the folder {str(folder.absolute())!r}, with the checkpoints {names}."


def _size_of(own: CheckpointFiles) -> int:
    """Return the bytes of a checkpoint and its model file; a deleted file counts as 0."""
    size = 0
    for path in filter(None, (own.path, own.model)):
        with contextlib.suppress(OSError):
            size += path.stat().st_size
    return size


def _first_valid(paths: Iterable[Path], reasons: list[str]) -> Checkpoint | None:
    """The first readable checkpoint; the reasons against those before it are added to ``reasons`` and warned of.

    Raises:
        OlderFile: the newest one that is whole was written by an older version.
    """
    for path in paths:
        try:
            checkpoint = read_checkpoint(path)
        except OlderFile:
            # To skip it would be to start over, or to go back, without a word.
            raise
        except (OSError, ValueError) as error:
            reasons.append(f"{path.name}: {error}")
            continue
        if reasons:
            warn("checkpoints skipped: " + " | ".join(reasons))
        return checkpoint
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's file and check its model's file, or a generation, which holds the state of the model itself.

    Raises:
        ValueError: one of them is damaged, or not a regular file.
        OlderFile: an older version wrote it.
        OSError: it cannot be read.
    """
    try:
        content = read(path)
    except OlderFile:
        folder = str(path.parent.absolute())
        raise OlderFile(
            f"a checkpoint must be of this version, got {path.name!r} of an older one in {folder!r}: run learnit-r8 "
            f"convert {folder}, and put {folder}-converted, which that writes, in its place; or begin a new run with "
            "resume=None."
        ) from None
    run_id, config = content.get("run_id"), content.get("config", {})
    about: Any = content.get("model")
    if not (isinstance(run_id, str) and isinstance(content.get("scheduler"), dict) and isinstance(config, dict)):
        raise ValueError(f"{path.name} must be a checkpoint of R8Scheduler, got the entries {sorted(content)[:9]}.")
    model = _model_beside(path, about)
    if model is not None:
        with open_regular(model) as file:
            size = os.fstat(file.fileno()).st_size
        # The size first: a digest takes a second per gigabyte.
        if size != about.get("size") or sha256(model) != about.get("sha256"):
            raise ValueError(f"the model's file must be unchanged since the checkpoint, got another in {str(model)!r}.")
    kept = None if "backup" not in content else unpack(content["backup"])
    return Checkpoint(path, content["scheduler"], model, run_id, config, model_state=kept)


def _model_beside(path: Path, about: Any) -> Path | None:
    """The model file that a checkpoint names, always in the same folder and with a name that `MODEL` matches."""
    if about is None:
        return None
    name = about.get("name") if isinstance(about, dict) else None
    if not isinstance(name, str) or not MODEL.fullmatch(name):
        raise ValueError(f"the model's file must be named model_<number>_<run>, got {name!r} in {path.name}.")
    return path.parent / name


NO_BEST = (
    "load_weights() returns the newest weights, of step {2}: there is no best checkpoint in {0!r}, though the run had "
    "monitor={1!r}."
)


def load_weights(path: str | os.PathLike[str], part: str = "model") -> Any:
    """The weights of a run's checkpoints, to use them elsewhere: without the run, R8Scheduler or the model's class.

    Args:
        path: A folder of checkpoints, for the best by ``monitor`` (of several runs that of the newest), else for the
            newest, with a warning if that run had a ``monitor``; or the file of a checkpoint (``ck_...r8``) or of a
            model (``model_...``).
        part: What to return of the state: "model", "optimizer", "ema", a name in ``also=``.

    Returns:
        Of torch a plain ``state_dict`` of tensors on the CPU, under plain names; of Keras a list of arrays, the
        trainable variables first; of JAX the state, with dataclasses as namespaces. Reading runs no code.

    Raises:
        FileNotFoundError: there is nothing.
        NoValidCheckpoint: no checkpoint in the folder can be read.
        ValueError: the file is damaged, holds no such part, or was written by your own ``save_callback``.
    """
    file = Path(path)
    if file.is_dir():
        notes = sorted(file.glob("best_*.json"), key=lambda note: note.stat().st_mtime)
        name = None
        with contextlib.suppress(ValueError):
            name = read_json(notes[-1], MOST_NOTE).get("checkpoint") if notes else None
        if name is None:
            newest = CheckpointStore(file, keep=1, run_id="").load()
            if newest.config.get("monitor") is not None:
                warn(NO_BEST.format(os.fspath(path), newest.config["monitor"], step_of(newest.state)))
            file = newest.path
        else:
            file = file / Path(str(name)).name
    if not file.is_file():
        raise FileNotFoundError(f"path must be a folder of checkpoints or a file of one, got {os.fspath(path)!r}.")
    if _NAME.fullmatch(file.name):
        model = read_checkpoint(file).model_path
        if model is None:
            raise ValueError(f"path must be a checkpoint with a model, got {os.fspath(file)!r}, which has none.")
        file = model
    try:
        content = read(file)
    except ValueError as error:
        raise ValueError(
            f"path must lead to a model that R8 wrote, got {os.fspath(file)!r} ({error}); what your own save_callback "
            "writes, only you can read."
        ) from error
    # Of torch the whole file is one packed state; of JAX the state is one of its entries; Keras has lists of arrays.
    state = unpack(content) if content.keys() == PACKED else content
    if part == "model" and part not in state and "state" in state:
        return unpack(state["state"])
    if part not in state:
        raise ValueError(f"part must be one of {sorted(state)}, got {part!r}.")
    return state[part]


def step_of(state: Any) -> int:
    """Steps reported when a scheduler's state was taken; -1 if the state does not say."""
    pace = state.get("pace") if isinstance(state, Mapping) else None
    step = pace.get("step") if isinstance(pace, Mapping) else None
    return step if isinstance(step, int) else -1

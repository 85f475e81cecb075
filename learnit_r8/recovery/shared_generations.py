"""Shared generations: when a backup is also written to shared memory, and when a run continues from one."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import events
from .._validation import is_number
from ..checkpoint.reader import Checkpoint, NoValidCheckpoint, step_of
from ..checkpoint.shared_memory import Proved, SharedBackups, default_base
from ..checkpoint.store import CheckpointStore
from ..events.bus import Announcer
from ..events.launcher import first_number, is_of_jax_distributed
from .agreement import Agreement
from .ram_backup import Backup, RamBackup


class SharedGenerations:
    """Writes a run's backups to shared memory, and finds those of an earlier process.

    Args:
        backups: Writes and reads them; None for none.
        backup: The model states in RAM, whose newest one is written.
        config: The run's configuration.
        announcer: Receives warnings.
        agreement: Chooses what to continue from together with the other ranks.
    """

    def __init__(
        self,
        backups: SharedBackups | None,
        backup: RamBackup,
        config: Mapping[str, Any],
        announcer: Announcer,
        agreement: Agreement,
    ) -> None:
        self._backups, self._backup, self._config, self._announcer = backups, backup, config, announcer
        self._proved: list[Proved] = []
        self._is_same = agreement.is_same

    @classmethod
    def of(
        cls,
        backup_dir: str | os.PathLike[str] | bool | None,
        checkpoint_dir: Any,
        backup: RamBackup,
        config: Mapping[str, Any],
        announcer: Announcer,
        agreement: Agreement,
    ) -> SharedGenerations:
        """Make those that the argument ``backup_dir`` of `R8Scheduler` asks for.

        Raises:
            ValueError: it is not a folder, or there is no checkpoint folder to identify the run by.
        """
        is_given = backup_dir is not None and backup_dir is not False
        if is_given and not (isinstance(backup_dir, (str, os.PathLike)) and os.fspath(backup_dir)):
            raise ValueError(f"backup_dir must be a folder in memory, False or None, got {backup_dir!r}.")
        if is_given and checkpoint_dir is None:
            raise ValueError(f"backup_dir needs a checkpoint_dir or a save_callback, got only {backup_dir!r}.")
        if is_of_jax_distributed():
            # Its processes have no number before they have met, and would overwrite each other's.
            if is_given:
                raise ValueError(
                    f"backup_dir must be None or False with several processes of jax.distributed, got {backup_dir!r}."
                )
            return cls(None, backup, config, announcer, agreement)
        # Whoever names a folder in the environment that is not there has not asked for silence.
        is_asked = is_given or (bool(os.environ.get("R8_BACKUPS")) and not default_base().is_dir())
        is_on = is_given or (
            backup_dir is None and checkpoint_dir is not None and (is_asked or default_base().is_dir())
        )
        # Ranks on several machines cannot see what the others have: they continue from their checkpoints.
        num_ranks = first_number(("WORLD_SIZE",), 1)
        if not is_on or os.name != "posix" or first_number(("LOCAL_WORLD_SIZE",), num_ranks) != num_ranks:
            return cls(None, backup, config, announcer, agreement)
        backups = SharedBackups(
            Path(os.fspath(backup_dir)) if is_given else default_base(),  # type: ignore[arg-type]
            Path(checkpoint_dir),
            rank=first_number(("RANK",), 0),
            num_ranks=num_ranks,
            note=functools.partial(_say, announcer, is_asked),
            is_default=not is_given,
            switched=lambda reason: announcer.tell(events.BackupsOutlive, is_on=not reason, reason=reason),
        )
        return cls(backups, backup, config, announcer, agreement)

    def take(self, get_state: Callable[[], dict[str, Any]], run_id: str, step: int, more: Mapping[str, Any]) -> None:
        """Write the newest backup, which belongs to this step, and the scheduler's state, in the background.

        ``more`` is added to the configuration.
        """
        newest = self._backup.newest
        if self._backups is None or newest is None or not step or not self._backups.is_ready:
            return
        done = functools.partial(self._backup.lend, None)
        try:
            state = get_state()
        except MemoryError as error:
            self._backups.turn_off(str(error) or "there is no memory for a copy of the scheduler's state")
            return
        content = {"run_id": run_id, "model": None, "scheduler": state, "config": {**self._config, **more}}
        kept = {each.step for each in self._backup.backups}
        proved = [each.step for each in self._backup.backups if each.is_proven]
        try:
            self._backup.lend(newest.state)
            self._backups.start_write(newest.state, content, step=step, kept=kept, proved=proved, done=done)
        except BaseException:
            if not self._backups.is_writing:
                done()
            raise

    def clear(self) -> None:
        """Delete what is in shared memory, as a checkpoint of this step is on disk."""
        if self._backups is not None:
            self._backups.clear()

    def newest(self, store: CheckpointStore | None) -> tuple[Checkpoint | None, bool]:
        """The newest state of an earlier process: a generation, or a checkpoint on disk; None if there is none.

        Ranks that share the run must all call it, and get the states of the same moment.

        Returns:
            The state, and whether a checkpoint on disk is left if it cannot be used.

        Raises:
            NoValidCheckpoint: there are only checkpoints that cannot be read.
            RunInUse, OSError: as for `CheckpointStore.find`.
        """
        skipped: list[str] = []
        if self._backups is None:
            self._is_same("none")
        found = None if self._backups is None else self._backups.newest(skipped, self._is_same)
        if skipped:
            self._announcer.warn_once("generations", f"backups in shared memory skipped: {' | '.join(skipped)}")
        try:
            disk = None if store is None else store.find()
        except NoValidCheckpoint:
            if found is None:
                raise
            disk = None
        if found is None:
            return disk, False
        generation, self._proved, made = found
        # By its step in one run, by its time among several.
        if disk is not None and generation.run_id == disk.run_id:
            is_newer = step_of(generation.state) > step_of(disk.state)
        else:
            is_newer = disk is None or (is_number(made) and made > disk.path.stat().st_mtime)
        if not self._is_same(str(is_newer)) or not is_newer:
            return disk, False
        return generation, disk is not None

    def put_back(self, checkpoint: Checkpoint) -> None:
        """Give recovery the proved states that were kept beside a generation."""
        if checkpoint.model_state is not None:
            for proved in sorted(self._proved, key=lambda one: one.step):
                self._backup.add(Backup(proved.step, proved.step, proved.draws, proved.state, is_proven=True))
        self._proved = []


def _say(announcer: Announcer, is_asked: bool, text: str) -> None:
    """Say once about a folder that there is another, or that it cannot be used."""
    topic = "backups outlive in another folder" if text.startswith("backups are kept in") else "backup_dir"
    # That they are off is an event of its own, which screens show.
    if is_asked or topic != "backup_dir":
        announcer.warn_once(topic, text)

"""The witnesses of backups and checkpoints: noted as they are trained on, trusted once calm losses have followed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..sampling.ticket import Ticket
from .ram_backup import Backup

if TYPE_CHECKING:
    from .persistence import Persistence

MOST_ON_DISK = 64
"""Checkpoints whose witnesses are known."""


class Witnesses:
    """Notes the first batch that is trained on after each backup and checkpoint.

    Args:
        persistence: Holds the backups and knows the checkpoints.
        trust_steps: Calm losses after a state that make its witness a reference.
    """

    def __init__(self, persistence: Persistence, trust_steps: int) -> None:
        self._persistence, self._backup, self._trust_steps = persistence, persistence.backup, trust_steps
        self.forget_checkpoints()
        self._calm_run = 0

    def forget_checkpoints(self) -> None:
        """Forget what is known of checkpoints, as losses mean something else from here on."""
        self._on_disk: list[Backup] = []

    @property
    def first(self) -> Backup | None:
        """The state that the run began with; None if it is not stored."""
        backups = self._backup.backups
        return backups[0] if backups and not backups[0].updates else None

    def note_start(self) -> None:
        """Note the random generators as the training on a batch begins; of use for the first one after a backup."""
        generators = self._persistence.callbacks.generators
        if generators is not None and self._backup.awaits_witness and not self._backup.backups[-1].witness:
            self._backup.backups[-1].generators = generators.get()

    def note(self, ticket: Ticket, loss: float) -> None:
        """Note a batch of the first update after the newest backup."""
        newest = self._backup.backups[-1]
        if ticket.draw >= newest.draws:
            newest.witness.append(ticket.indices.copy())
            newest.losses.append(loss)
            for other in self._on_disk:
                if other.step == newest.step and not other.witness:
                    other.witness, other.losses, other.generators = newest.witness, newest.losses, newest.generators

    def note_checkpoint(self, step: int, updates: int, recent: Iterable[float]) -> None:
        """Note that a checkpoint of this step is on disk: its witness is that of the backup of the same step."""
        newest = self._backup.newest
        on_disk = Backup(step, updates, recent=tuple(recent))
        if newest is not None and newest.step == step:
            on_disk.witness, on_disk.losses = newest.witness, newest.losses
        self._on_disk = [*self._on_disk, on_disk][-MOST_ON_DISK:]

    def trust(self, updates: int, *, is_calm: bool) -> None:
        """Trust the states after which enough losses were calm; to be called every fourth update."""
        self._calm_run = self._calm_run + 4 if is_calm else 0
        if self._calm_run >= self._trust_steps:
            for each in (*self._backup.backups, *self._on_disk):
                each.is_proven = each.is_proven or (updates - each.updates >= self._trust_steps and bool(each.witness))

    def known(self) -> list[Backup]:
        """The states with a witness, in RAM and on disk, oldest first."""
        in_ram = [each for each in self._backup.backups if each.witness]
        steps, files = {each.step for each in in_ram}, self._persistence.checkpoint_steps()
        on_disk = [each for each in self._on_disk if each.witness and each.step in files and each.step not in steps]
        return sorted([*in_ram, *on_disk], key=lambda each: (each.updates, each.step))

    def went_back(self, backup: Backup) -> None:
        """Forget the states that come from weights that were given up, as this one was put back."""
        self._backup.forget_after(backup.updates)
        self._on_disk = [each for each in self._on_disk if each.updates <= backup.updates]
        backup.is_proven = True
        self.begin_trust()

    def begin_trust(self) -> None:
        """Count calm losses from here on."""
        self._calm_run = 0

    def begin_anew(self, replayed: Iterable[Backup]) -> None:
        """Take what backups were replayed with for their records; forget all others."""
        kept = list(replayed)
        self.forget_checkpoints()
        for each in list(self._backup.backups):
            if each in kept:
                each.begin_anew()
            else:
                self._backup.backups.remove(each)
                self._backup.recycle(each)

    def to_plain(self) -> list[dict[str, Any]]:
        """What is known of all states, for a saved state."""
        return [each.to_plain() for each in (*self._on_disk, *self._backup.backups) if each.witness]

    def load_plain(self, saved: Iterable[Mapping[str, Any]]) -> None:
        """Load what `to_plain` returned; the states are those of checkpoints."""
        self._on_disk = list({each["step"]: Backup.from_plain(each) for each in saved}.values())

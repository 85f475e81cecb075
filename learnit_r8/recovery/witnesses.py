"""The witnesses of backups and checkpoints: noted as they are trained on, trusted once calm losses have followed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..sampling.ticket import Ticket
from .backups import Backup

if TYPE_CHECKING:
    from .persistence import Persistence

MOST_ON_DISK = 64
"""Checkpoints whose witnesses are known."""


class Witnesses:
    """Notes the first batch that is trained on after each backup and checkpoint.

    Args:
        persistence: Holds the backups and knows the checkpoints.
        trust_steps: Calm losses after a state that make its witness a reference.

    Attributes:
        waiting: The newest checkpoint while its witness is not complete; None otherwise.
    """

    def __init__(self, persistence: Persistence, trust_steps: int) -> None:
        self._persistence, self._backup, self._trust_steps = persistence, persistence.backup, trust_steps
        self.forget_checkpoints()
        self._calm_run = 0

    def forget_checkpoints(self) -> None:
        """Forget what is known of checkpoints, as losses mean something else from here on."""
        self._on_disk: list[Backup] = []
        self.waiting: Backup | None = None

    @property
    def first(self) -> Backup | None:
        """The state that the run began with; None if it is not stored."""
        backups = self._backup.backups
        return backups[0] if backups and not backups[0].updates else None

    def _awaiting(self) -> list[Backup]:
        """The states that were taken since the last update, in RAM and on disk."""
        newest = [self._backup.newest, self.waiting]
        return [each for each in newest if each is not None and not self._is_complete(each)]

    def _is_complete(self, backup: Backup) -> bool:
        return backup.is_closed or len(backup.witness) >= self._backup.witness_size

    def note_start(self) -> None:
        """Note the random generators as the training on a batch begins; of use for the first one after a backup."""
        if self.waiting is None and not self._backup.awaits_witness:
            return
        generators = self._persistence.callbacks.generators
        begun = [] if generators is None else [each for each in self._awaiting() if not each.witness]
        if generators is not None and begun:
            state = generators.get()
            for each in begun:
                each.generators = state

    def note(self, ticket: Ticket, loss: float) -> None:
        """Note a batch of the first update after the newest backup or checkpoint."""
        for each in self._awaiting():
            if ticket.draw >= each.draws:
                each.witness.append(ticket.batch.witness)
                each.losses.append(loss)
        if self.waiting is not None and self._is_complete(self.waiting):
            self.waiting = None

    def note_checkpoint(self, step: int, updates: int, recent: Iterable[float]) -> None:
        """Note that a checkpoint of this step is on disk; its witness is the next batch that is trained on."""
        if any(each.step == step for each in self._on_disk):
            return
        self.waiting = Backup(step, updates, recent=tuple(recent), is_on_disk=True)
        self._on_disk = [*self._on_disk, self.waiting][-MOST_ON_DISK:]

    def trust(self, updates: int, *, is_calm: bool) -> None:
        """Trust the states after which enough losses were calm; to be called every fourth update."""
        self._calm_run = self._calm_run + 4 if is_calm else 0
        if self._calm_run >= self._trust_steps:
            for each in (*self._backup.backups, *self._on_disk):
                each.is_proven = each.is_proven or (updates - each.updates >= self._trust_steps and bool(each.witness))

    def all_states(self) -> list[Backup]:
        """The states in RAM and on disk, with a witness or without, oldest first."""
        files = self._persistence.checkpoint_steps()
        by_step = {step: Backup(step, step, is_on_disk=True) for step in files}
        by_step |= {each.step: each for each in (*self._on_disk, *self._backup.backups)}
        return [by_step[step] for step in sorted(by_step) if not by_step[step].is_on_disk or step in files]

    def known(self) -> list[Backup]:
        """Those with a witness; none where there is nothing but the record of an earlier process."""
        known = [each for each in self.all_states() if each.witness]
        return known if any(each.can_be_put for each in known) else []

    def restorable(self) -> list[Backup]:
        """Those of them that can be put back."""
        return [each for each in self.known() if each.can_be_put]

    def best(self, start: float) -> Backup | None:
        """The state to end with where the present one is lost: the newest one that is trusted; None if there is none.

        Args:
            start: The level of the losses as the run began; a trained state whose losses were no higher goes before the
                initial one, trusted or not.
        """
        known = self.restorable()
        trained = [each for each in reversed(known) if each.updates]
        trusted = [each for each in trained if each.is_proven]
        lower = [each for each in trained if each.usual <= start]
        return next(iter([*trusted, *lower, *known]), None)

    def went_back(self, backup: Backup) -> None:
        """Forget the states of abandoned weights, as this one was restored."""
        self._backup.forget_after(backup.updates)
        self._on_disk, self.waiting = [each for each in self._on_disk if each.updates <= backup.updates], None
        backup.is_proven = True
        self.begin_trust()

    def begin_trust(self) -> None:
        """Count calm losses from here on."""
        self._calm_run = 0

    def begin_anew(self, replayed: Iterable[Backup]) -> None:
        """Take the losses of the last replays as records; forget all other records."""
        kept = list(replayed)
        self.forget_checkpoints()
        for each in list(self._backup.backups):
            if each in kept:
                each.begin_anew(each.replayed)
                each.moment = None
            else:
                self._backup.backups.remove(each)
                self._backup.recycle(each)

    def forget_records(self) -> None:
        """Forget what losses say about all states, as they mean something else from here on."""
        self.forget_checkpoints()
        for each in self._backup.backups:
            if each.witness:
                each.begin_anew()

    def to_plain(self) -> list[dict[str, Any]]:
        """What is known of all states, for a saved state."""
        return [each.to_plain() for each in (*self._on_disk, *self._backup.backups) if each.witness]

    def load_plain(self, saved: Iterable[Mapping[str, Any]]) -> None:
        """Load what `to_plain` returned; the states are those of checkpoints."""
        self._on_disk = list({each["step"]: Backup.from_plain(each) for each in saved}.values())

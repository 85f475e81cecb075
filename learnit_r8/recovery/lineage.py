"""The lineage of the weights: their updates and losses since the start, and what is known since the last restore."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from .progress import Progress
from .ram_backup import Backup

LEAST_TRIAL = 64
"""Updates after a restore in which a new alarm is a relapse, if they are more than twice those that it undid."""

LOOK_MASK = 3
"""What need not be done at every update is done where its number has none of these bits: at every fourth."""

LASTING_RELAPSES, RELAPSE_UPDATES = 2, 256
"""This many gradual rises, each within four trials and this many updates after a restore, are what training does."""


SAME_UPDATE, SAME_BLOCK, LEAST_FUSE = 2, 20, 8
"""Updates by which two alarms may differ that come at the same update, where they are sudden and where not; and the
least number after a restore at which that says anything."""

MOST_RESTORES = 3
"""Restores to one state in a row, after which an older one is tried."""

LOOPING = 3
"""Experiments that found healthy weights whose steps are kept."""


class Lineage:
    """What the present weights have gone through.

    Attributes:
        updates: Updates that they have taken.
        progress: Their losses.
        rates: Learning rates of the last updates.
        since: Updates of the state that was restored last; 0 if none was.
        trial: Updates after it in which a new alarm is a relapse.
        is_proving: Whether a restored state has not passed its trial yet.
        failed_at: Updates at the alarm before the last restore; -1 if it is not known.
        num_restores: Restores in a row to the state put back last.
        num_older: Restores in a row to older and older states, as the same trouble came back.
        relapses: Gradual rises that came back after a restore.
        rises: Whether the losses of this run rise whenever they are trained on.
        gained: Updates when the weights last got further.
        num_lowered: Times in a row that the rate was lowered after a relapse.
        level_before: Usual loss of the state that was put back when the rate was lowered; None if nothing waits for it.
        healthy_at: Steps of the last experiments that found healthy weights.
    """

    def __init__(self) -> None:
        self.updates = self.since = self.trial = self.relapses = self.gained = 0
        self.num_restores = self.num_older = self.num_lowered = 0
        self.failed_at = -1
        self.is_proving = self.rises = False
        self.progress = Progress()
        self.rates: deque[float] = deque(maxlen=16)
        self.level_before: float | None = None
        self.healthy_at: deque[int] = deque(maxlen=LOOPING)

    @property
    def since_restore(self) -> int:
        """Updates since a state was put back."""
        return self.updates - self.since

    @property
    def is_on_trial(self) -> bool:
        """Whether a new alarm would be a relapse."""
        return self.is_proving and self.since_restore < self.trial

    def gains(self) -> bool:
        """Whether the weights get further although states are put back; from here on that counts anew.

        They do where no restored state is on proof, after enough updates since the last restore, and where every state
        put back is newer than those before.
        """
        gains = not self.is_proving or max(self.since_restore, self.updates - self.gained) >= LEAST_TRIAL
        if gains:
            self.gained = self.updates
        return gains

    def comes_back(self, *, is_sudden: bool) -> bool:
        """Whether the trouble is in the restored state itself, although it repeats its record.

        It came back at the same update, whatever the batches and the rate; or as often as the rate was lowered.
        """
        near = SAME_UPDATE if is_sudden else SAME_BLOCK
        is_same = abs(self.updates - self.failed_at) <= near and self.since_restore >= LEAST_FUSE
        return self.is_proving and (is_same or self.num_restores > MOST_RESTORES)

    @property
    def is_soon(self) -> bool:
        """Whether a new rise would be counted with the one before the last restore."""
        return self.since_restore < 4 * self.trial + RELAPSE_UPDATES

    @property
    def rises_again(self) -> bool:
        """Whether losses that rise slowly do so because of training itself."""
        return self.rises or (self.relapses >= LASTING_RELAPSES and self.is_soon)

    def note_restore(self, *, is_sudden: bool) -> None:
        """Count the rises that were not sudden."""
        self.relapses = (self.relapses if self.is_soon else 0) + (not is_sudden)

    def begin(self, backup: Backup, trial: int = 0) -> None:
        """Start counting at a backup that was restored; ``trial`` as the attribute."""
        self.num_restores = self.num_restores + 1 if self.is_proving and self.since == backup.updates else 1
        if not self.is_proving:
            self.gained = self.updates
        self.failed_at = self.updates
        self.updates = self.since = backup.updates
        self.trial, self.is_proving = trial, trial > 0
        self.rates.clear()

    def state_dict(self) -> dict[str, Any]:
        """The lineage, as plain values."""
        return {
            "updates": self.updates, "progress": self.progress.state_dict(), "relapses": self.relapses,
            "rises": self.rises, "proving": [self.since, self.trial, self.is_proving], "rates": list(self.rates),
            "fuse": [self.failed_at, self.num_restores, self.num_older],
            "gained": self.gained if self.is_proving else self.updates,
            "lowered": [self.num_lowered, self.level_before], "healthy_at": list(self.healthy_at),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.updates, self.relapses, self.rises = state["updates"], state["relapses"], state["rises"]
        self.since, self.trial, self.is_proving = state["proving"]
        self.rates = deque(state["rates"], maxlen=16)
        self.failed_at, self.num_restores, self.num_older = state["fuse"]
        self.gained = state.get("gained", self.updates)
        self.num_lowered, self.level_before = state.get("lowered", (0, None))
        self.healthy_at = deque(state.get("healthy_at", ()), maxlen=LOOPING)
        self.progress.load_state_dict(state["progress"])

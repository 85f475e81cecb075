"""Event emitter: tells listeners of the samples of a run and of their groups. It changes no batch."""

from __future__ import annotations

import time

from .. import events
from ..events.bus import Announcer
from ..events.samples import MOST_GROUPS
from ..sources.ticket import Ticket
from ..table.quantiles import rounded
from ..table.survey import Surveyor
from ..table.table import SampleTable

GROUP_SECONDS, GROUP_SHARE = 30.0, 0.005
"""Training time between two looks at the groups within an epoch, and the share of it that they may take."""


class EventEmitter:
    """Emits the events of the samples.

    Args:
        announcer: Passes events to listeners.
        table: The sample table.

    Attributes:
        has_started: Whether the start of the run is over; see `run_state.start`.
    """

    def __init__(self, announcer: Announcer, table: SampleTable) -> None:
        self._announcer = announcer
        self._table = table
        self._ticket: Ticket | None = None
        self.has_started = False
        self._surveyor: Surveyor | None = None
        self._surveyed_step = self._ended_step = self._grouped_step = -1
        self.has_groups = table.storage.group_labels is not None
        self._groups_due = GROUP_SECONDS

    def note_batch(self, ticket: Ticket) -> None:
        """Note the newest batch that was learned from, of which a survey tells how it was made."""
        # The few samples left over at the end of an epoch say nothing of that.
        if self._ticket is None or 2 * len(ticket.indices) > len(self._ticket.indices):
            self._ticket = ticket

    def between_steps(self, epoch: int, *, epoch_ended: bool, closing: bool = False) -> None:
        """Survey the samples and their groups if that is due; called only if there are listeners.

        Args:
            epoch: The current epoch, 0-based.
            epoch_ended: Whether an epoch has ended since the last call.
            closing: Whether the run ends here; then there is always a survey, whatever it costs.
        """
        announcer = self._announcer
        if not self._table.num_samples:
            return
        step = announcer.where()[0]
        if epoch_ended:
            self._ended_step = step
        is_new = step > self._grouped_step
        if self.has_groups and is_new and (epoch_ended or closing or announcer.seconds >= self._groups_due):
            self._grouped_step, began = step, time.perf_counter()
            self._tell_groups(epoch)
            self._groups_due = announcer.seconds + max(GROUP_SECONDS, (time.perf_counter() - began) / GROUP_SHARE)
        if not announcer.wants_surveys:
            return
        if self._surveyor is None:
            self._surveyor = Surveyor(self._table)
        is_last = closing and step > self._surveyed_step
        epoch_ended = epoch_ended or (is_last and step == self._ended_step)
        is_due = is_last or self._surveyor.is_due(announcer.seconds, epoch_ended=epoch_ended)
        if self._ticket is not None and is_due:
            self._surveyed_step = step
            chunk, slot = self._ticket.chunk, self._ticket.slot
            fields = self._surveyor.survey(
                announcer.seconds,
                epoch=epoch,
                epoch_ended=epoch_ended,
                run_ended=is_last,
                # As it was planned: its own report has moved its samples since.
                batch_share=chunk.shares_of(slot, len(self._ticket.indices)),
            )
            announcer.tell(events.SamplesSurveyed, **fields)

    def _tell_groups(self, epoch: int) -> None:
        groups = sorted(self._table.groups(), key=lambda group: -group.num_samples)
        kept = [group for group in groups[:MOST_GROUPS] if group.num_samples]
        self._announcer.tell(
            events.GroupsMeasured,
            epoch=epoch,
            source=self._table.source,
            names=tuple(str(group.label)[:200] for group in kept),
            counts=tuple(group.num_samples for group in kept),
            means=tuple(rounded(group.mean) for group in kept),
            num_groups=len(groups),
        )

    def drop_surveys(self) -> None:
        """Drop the surveys so far, as a state was loaded."""
        self._grouped_step = -1
        self._surveyor = self._ticket = None
        self._surveyed_step = self._ended_step = -1

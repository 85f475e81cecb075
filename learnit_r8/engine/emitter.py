"""Event emitter: tells listeners of the start of a run, of its schedule and its samples. It changes no batch."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from typing import Any

from .. import events
from ..events.bus import Announcer
from ..events.samples import MOST_GROUPS
from ..events.versions import versions
from ..schedules.schedule import Kept, Schedule
from ..sources.ticket import Ticket
from ..table.quantiles import rounded
from ..table.survey import Surveyor
from ..table.table import SampleTable

PLAN_POINTS = 129
"""Learning rates that stand for a schedule."""


GROUP_SECONDS, GROUP_SHARE = 30.0, 0.005
"""Training time between two looks at the groups within an epoch, and the share of it that they may take."""


class EventEmitter:
    """Emits the events of the start, the schedule and the samples.

    Args:
        announcer: Passes events to listeners.
        table: The sample table.

    Attributes:
        has_started: Whether the start of the run is over, of which `run_started` is a part.
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

    def run_started(self, *, settings: Mapping[str, str], schedule: Schedule, **facts: Any) -> None:
        """Emit `RunStarted`: the first batch of this process is about to be drawn."""
        if self._announcer.is_heard:
            here = {**versions(), "machine": platform.node(), "process": str(os.getpid())}
            self._announcer.tell(
                events.RunStarted, settings={**settings, **here}, lr_plan=sample_rates(schedule), **facts
            )

    def lr_planned(self, schedule: Schedule) -> None:
        """Emit `LrPlanned`: the schedule has changed. Before the run has started, nothing: `RunStarted` will tell."""
        if self._announcer.is_heard and self.has_started:
            self._announcer.tell(events.LrPlanned, lr_plan=sample_rates(schedule))

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


def sample_rates(schedule: Schedule) -> tuple[float, ...]:
    """Learning rates of a schedule at equal steps of progress, for display; empty if it raises, or keeps the user's."""
    if isinstance(schedule, Kept):
        return ()
    try:
        return tuple(float(f"{schedule(place / (PLAN_POINTS - 1)):.5g}") for place in range(PLAN_POINTS))
    except Exception:
        # The user's own schedule may only work with the progress of a real run.
        return ()

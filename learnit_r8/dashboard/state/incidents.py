"""The incidents of a run: what happened, what was tried, and what it was found to be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ... import events

MOST_INCIDENTS = 32
MOST_TRIED = 64

WILD = "wild"
"""Reason of the probes that measure how much an update changes; they are no incident."""


@dataclass
class Incident:
    """A refused loss, damage or doubt about the weights, and what followed until it was settled.

    Attributes:
        step, seconds, epoch: When it began; the epoch is 0-based.
        reason: The first verdict of the guard, or why weights were tested.
        loss, lr: The first refused loss, and its learning rate; NaN where none was refused.
        samples: Positions of samples that were to blame, as far as it is known.
        num_refused, num_probes, num_restored: Losses refused, batches drawn again and states restored in it.
        tried: Step and text of what was done, oldest first.
        diagnosis: What was found and done; "" while it is not known.
        cause: One sentence on where it began; "" if that was not looked for.
        state: "open", "over" or "gave up".
        last_step: The step of its newest event.
    """

    step: int
    seconds: float
    epoch: int
    reason: str
    loss: float = math.nan
    lr: float = math.nan
    samples: tuple[int, ...] = ()
    num_refused: int = 0
    num_probes: int = 0
    num_restored: int = 0
    tried: list[tuple[int, str]] = field(default_factory=list)
    diagnosis: str = ""
    state: str = "open"
    last_step: int = 0
    cause: str = ""


class IncidentLog:
    """The newest incidents.

    Attributes:
        incidents: Oldest first.
    """

    def __init__(self) -> None:
        self.incidents: list[Incident] = []

    def fold(self, event: events.Event, epoch: int, text: str) -> None:
        """Add an event, with its text, if it belongs to an incident."""
        if not isinstance(event, _KINDS):
            return
        incident = self._open(event, epoch)
        if incident is None:
            return
        incident.last_step = event.step
        match event:
            case events.BatchRefused():
                incident.num_refused += 1
                incident.samples = incident.samples or event.samples
            case events.CauseFound():
                incident.cause = incident.cause or event.text
                incident.samples = incident.samples or event.samples
            case events.Probed():
                incident.num_probes += 1
            case events.RolledBack():
                incident.num_restored += 1
            case events.SamplesQuarantined():
                incident.samples = event.samples
            case events.IncidentEnded():
                incident.state, incident.diagnosis = "over", event.text or "recovered"
            case events.GaveUp():
                incident.state, incident.diagnosis = "gave up", event.text
        is_end = isinstance(event, events.IncidentEnded | events.GaveUp)
        if len(incident.tried) < MOST_TRIED and not is_end:
            incident.tried.append((event.step, text))

    def _open(self, event: events.Event, epoch: int) -> Incident | None:
        """The incident that is open; a new one where this event begins it."""
        newest = self.incidents[-1] if self.incidents else None
        if newest is not None and newest.state == "open":
            return newest
        if isinstance(event, events.BatchRefused):
            begun = Incident(event.step, event.seconds, event.epoch, event.reason, event.loss, event.lr)
        elif isinstance(event, events.DamageFound):
            begun = Incident(event.step, event.seconds, epoch, f"not finite: {event.array}")
        elif isinstance(event, events.Probed) and event.reason != WILD:
            begun = Incident(event.step, event.seconds, epoch, event.reason)
        elif isinstance(event, events.LrRestored | events.SamplesReleased):
            # They come when an incident is over, and belong to it.
            return newest
        else:
            return None
        self.incidents = [*self.incidents, begun][-MOST_INCIDENTS:]
        return begun

    def forget_after(self, step: int) -> None:
        """Remove incidents that began after the step at which a run was resumed."""
        self.incidents = [incident for incident in self.incidents if incident.step <= step] if step else []


_KINDS = (
    events.BatchRefused,
    events.CauseFound,
    events.DamageFound,
    events.Probed,
    events.RolledBack,
    events.RestoreFailed,
    events.LrCapped,
    events.SamplesQuarantined,
    events.SamplesReleased,
    events.LrRestored,
    events.IncidentEnded,
    events.GaveUp,
)

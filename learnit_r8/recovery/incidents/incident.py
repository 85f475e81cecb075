"""The incident under way, as recovery keeps it, and the error and the file of a run that could not be recovered."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ... import events
from ...checkpoint import durable_io
from ...events.bus import Announcer
from ...events.codec import strict_json
from ...events.incident import MEANT, MOST_FINDINGS, Incident
from ..lineage import LEAST_TRIAL
from ..policy import Recovery

IN_VAIN = f" or tested weights that never got {LEAST_TRIAL} updates further, as training damaged them again and again"


class IncidentLog:
    """Holds the incident under way, and counts over the whole run.

    Args:
        announcer: Is told of an incident that has ended.

    Attributes:
        current: The incident; None if there is none.
        num_restored, num_probes: Restores and probes so far.
        num_transient: Steps that were not finite, and finite when they were computed once more.
        kinds: How many incidents of each kind have ended in which a loss was refused or the model restored, and what
            was found in the last one.
    """

    def __init__(self, announcer: Announcer) -> None:
        self._announcer = announcer
        self.num_restored = self.num_probes = self.num_transient = 0
        self.current: Incident | None = None
        self.kinds: dict[str, tuple[int, str]] = {}

    def open(self, step: int, reason: str, kind: str = "") -> Incident:
        """The incident under way, or a new one."""
        if self.current is None:
            self.current = Incident(step, reason, kind=kind or reason)
        return self.current

    def change(self, **fields: Any) -> None:
        """Set fields of the incident, if there is one."""
        if self.current is not None:
            self.current = replace(self.current, **fields)

    def note_probe(self, *, leaves_out: bool) -> None:
        """Count a probe; ``leaves_out``: whether a batch of the epoch is left out for it."""
        self.num_probes += 1
        if (now := self.current) is not None:
            self.change(num_probes=now.num_probes + 1, num_left_out=now.num_left_out + leaves_out)

    def note_restore(self) -> None:
        """Count a restore."""
        self.num_restored += 1
        if self.current is not None:
            self.change(num_restored=self.current.num_restored + 1)

    def note(self, step: int, text: str) -> None:
        """Add a finding to the incident, if there is one."""
        if self.current is not None:
            self.change(findings=(*self.current.findings, f"step {step}: {text}")[-MOST_FINDINGS:])

    def to_plain(self) -> dict[str, Any] | None:
        """The incident under way, as plain values."""
        return None if self.current is None else plain_of(self.current)

    def load_plain(self, saved: Mapping[str, Any] | None) -> None:
        """Load what `to_plain` returned."""
        self.current = None
        if saved is not None:
            known = {**saved, "findings": tuple(saved["findings"])}
            step, is_restored = known.pop("first_step"), known.pop("is_restored")
            self.current = Incident(step, num_restored=int(is_restored), **known)

    def end(self) -> None:
        """End the incident, if there is one."""
        incident, self.current = self.current, None
        if incident is not None:
            if incident.num_refused or incident.num_restored:
                kind = incident.kind or incident.reason
                text = incident.with_cause(f"step {incident.step:,}: {incident.conclusion[:-1]}")
                self.kinds[kind] = self.kinds.get(kind, (0, ""))[0] + 1, text
            self._announcer.tell(events.IncidentEnded, text=incident.conclusion)

    def summary(self, *, is_over: bool) -> list[str]:
        """A line for each kind of incident; ``is_over``: whether the run has ended."""
        lines = [f"{kind}: {count:,}, the last at {text}" for kind, (count, text) in self.kinds.items()]
        incident = self.current
        if incident is not None and (incident.num_refused or incident.num_restored):
            kind, step = incident.kind or incident.reason, incident.step
            how = "not settled as the run ended, since" if is_over else "under way since"
            lines.append(incident.with_cause(f"{kind}: {how} step {step:,}"))
        return lines


def plain_of(incident: Incident) -> dict[str, Any]:
    """What a saved state and the file of a diverged run hold of an incident."""
    names = "reason", "num_refused", "num_probes", "cause", "num_left_out", "kind", "is_lasting", "held_from_start"
    plain = {name: getattr(incident, name) for name in names}
    restored = bool(incident.num_restored)
    return {"first_step": incident.step, "findings": list(incident.findings), "is_restored": restored, **plain}


def diverged_text(
    incident: Incident, *, refused: int, step: int, loss: float, lr: float, samples: str, failures: Sequence[str],
    can_restore: bool = False, is_row: bool = True,
) -> str:  # fmt: skip
    """The message of `TrainingDiverged`.

    Args:
        incident: What is known of it.
        refused: Batches refused, probes included.
        step: Steps reported.
        loss: The last refused loss.
        lr: Its learning rate; NaN if it is the user's own and was never told.
        samples: The suspects, named; "" for none.
        failures: Why states could not be restored.
        can_restore: Whether there is a state to restore, and a callback that does it.
        is_row: Whether no batch between them was good; else the model was put back again and again.
    """
    restored = (
        "The model was restored in between, and losses were refused again."
        if incident.num_restored
        else "Nothing was restored: no state was found to be better."
        if incident.findings or incident.num_probes or can_restore
        else "The model was never restored: pass load_callback with state_callback, or call update_cpu_backup()."
    )
    rate = f" with lr={lr:.3g}" if math.isfinite(lr) else ""
    lines = [
        f"It began at {incident.cause}." if incident.cause else "",
        f"{refused} batches {'in a row ' * is_row}were refused{IN_VAIN * (not is_row)}, the last loss ({loss:.6g}) at "
        f"step {step}{rate}, {incident.reason}. {restored}",
        f"Suspected: {samples}." if samples else "",
        *(f"  {line}" for line in incident.findings[-8:]),
        *(f"  not restored: {line}" for line in failures),
        MEANT,
    ]
    return "\n".join(line for line in lines if line)


def write_bundle(
    folder: Path | None, step: int, *, text: str, incident: Incident, losses: Sequence[float], recovery: Recovery
) -> str | None:
    """Write the details of a diverged run as JSON; the path of the file, None without a folder or if that fails."""
    if folder is None:
        return None
    path = folder / f"diverged_{step:012d}.json"
    content = {
        "kind": "TrainingDiverged", "format": 2, "text": text, "incident": plain_of(incident),
        "losses": [loss if math.isfinite(loss) else repr(loss) for loss in losses], "recovery": asdict(recovery),
    }  # fmt: skip
    try:
        os.makedirs(folder, exist_ok=True)
        durable_io.replace(path, strict_json(content, indent=1).encode())
    except OSError:
        # The error message says all of it except the losses.
        return None
    return str(path)

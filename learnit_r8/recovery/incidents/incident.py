"""An incident, told in words: from the first refused loss until the cause is known."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ... import events
from ...checkpoint.durable_io import replace
from ...events.bus import Announcer
from ..lineage import LEAST_TRIAL
from ..policy import Recovery

MEANT = (
    "If losses are expected to be higher from here on, as with new data or another scale, call reset_baseline() at the "
    'change; if the loss is no measure of progress, give guard="finite", which refuses only losses that are not finite.'
)

IN_VAIN = f" or tested weights that never got {LEAST_TRIAL} updates further, as training damaged them again and again"

MOST_FINDINGS = 64

NOT_FINITE = ("not finite", "gradient")
"""Reasons that a transient fault may have, too."""

LASTING = "computed once more from the same weights, it was not finite either"


@dataclass
class Incident:
    """What is known of an incident.

    Attributes:
        first_step: Steps reported when the first loss was refused.
        reason: The first verdict.
        num_refused: Batches refused in it, probes aside.
        num_probes: Witnesses drawn again.
        num_left_out: Batches at the end of an epoch that are left out for tests of the weights.
        findings: What experiments have found, oldest first.
        is_restored: Whether the model was restored, or arrays of it.
        cause: One sentence on where it began; "" if nobody could look.
        kind: What the summary counts it as; by default the first verdict.
        held_from_start: Where the first steps had failed, the rate to which it was lowered; else 0.
        is_lasting: Whether a step that is not finite was not finite either when it was computed once more.
    """

    first_step: int
    reason: str
    num_refused: int = 0
    num_probes: int = 0
    findings: list[str] = field(default_factory=list)
    is_restored: bool = False
    cause: str = ""
    num_left_out: int = 0
    kind: str = ""
    is_lasting: bool = False
    held_from_start: float = 0.0

    def note(self, step: int, text: str) -> None:
        """Add a finding."""
        self.findings = [*self.findings, f"step {step}: {text}"][-MOST_FINDINGS:]

    @property
    def conclusion(self) -> str:
        """What was at fault, as far as the experiments tell."""
        if self.findings:
            text = self.findings[-1].partition(": ")[2] + "."
        else:
            are = "the refused batch was" if self.num_refused == 1 else f"the {self.num_refused} refused batches were"
            if self.reason not in NOT_FINITE:
                text = f"{are} to blame, not the weights: the next one was good."
            elif self.is_lasting:
                text = f"{are} to blame, not the weights: the next one was good; {LASTING}."
            else:
                text = f"{are} to blame, or a transient fault (not tested), not the weights: the next one was good."
        if not self.num_left_out:
            return text
        many = "batch of the epoch is" if self.num_left_out == 1 else f"{self.num_left_out} batches of the epoch are"
        return f"{text} The last {many} left out, for as many tests of the weights."

    def refusal_text(self, found: str) -> str:
        """A sentence on what was refused, what was found, and where it began."""
        count, step = self.num_refused, f"step {self.first_step:,}"
        what = f"a loss was refused at {step}" if count == 1 else f"{count} losses were refused from {step} on"
        return self.with_cause(f"{what} ({self.reason}): {found}")

    def with_cause(self, text: str) -> str:
        """A sentence on the incident, and where it began."""
        lasting = f"; {LASTING}" * (self.is_lasting and LASTING not in text)
        return f"{text}. It began at {self.cause}{lasting}." if self.cause else f"{text}{lasting}."


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

    def note_probe(self, *, leaves_out: bool) -> None:
        """Count a probe; ``leaves_out``: whether a batch of the epoch is left out for it."""
        self.num_probes += 1
        if self.current is not None:
            self.current.num_probes += 1
            self.current.num_left_out += leaves_out

    def note_restore(self) -> None:
        """Count a restore."""
        self.num_restored += 1
        if self.current is not None:
            self.current.is_restored = True

    def note(self, step: int, text: str) -> None:
        """Add a finding to the incident, if there is one."""
        if self.current is not None:
            self.current.note(step, text)

    def to_plain(self) -> dict[str, Any] | None:
        """The incident under way, as plain values."""
        return None if self.current is None else asdict(self.current)

    def load_plain(self, saved: Mapping[str, Any] | None) -> None:
        """Load what `to_plain` returned."""
        self.current = None if saved is None else Incident(**saved)

    def end(self) -> None:
        """End the incident, if there is one."""
        incident, self.current = self.current, None
        if incident is not None:
            if incident.num_refused or incident.is_restored:
                kind = incident.kind or incident.reason
                text = incident.with_cause(f"step {incident.first_step:,}: {incident.conclusion[:-1]}")
                self.kinds[kind] = self.kinds.get(kind, (0, ""))[0] + 1, text
            self._announcer.tell(events.IncidentEnded, text=incident.conclusion)

    def summary(self) -> list[str]:
        """A line for each kind of incident."""
        lines = [f"{kind}: {count:,}, the last at {text}" for kind, (count, text) in self.kinds.items()]
        incident = self.current
        if incident is not None and (incident.num_refused or incident.is_restored):
            kind, step = incident.kind or incident.reason, incident.first_step
            lines.append(incident.with_cause(f"{kind}: under way since step {step:,}"))
        return lines


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
        if incident.is_restored
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
        "kind": "TrainingDiverged", "format": 2, "text": text, "incident": asdict(incident),
        "losses": [loss if math.isfinite(loss) else repr(loss) for loss in losses], "recovery": asdict(recovery),
    }  # fmt: skip
    try:
        os.makedirs(folder, exist_ok=True)
        replace(path, json.dumps(_strict(content), indent=1, allow_nan=False).encode())
    except OSError:
        # The error message says all of it except the losses.
        return None
    return str(path)


def _strict(value: Any) -> Any:
    """Replace numbers that strict JSON does not allow with strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, (list, tuple)) else value

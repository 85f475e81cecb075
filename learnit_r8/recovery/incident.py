"""An incident: from the first refused loss until what was at fault is settled, told in words."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.durable_io import replace
from .policy import Recovery

MEANT = (
    "If losses are expected to be higher from here on, as with new data or another scale, call reset_baseline() at the "
    'change; if the loss is no measure of progress, give guard="finite", which refuses only losses that are not finite.'
)

MOST_FINDINGS = 64


@dataclass
class Incident:
    """What is known of an incident.

    Attributes:
        first_step: Steps reported when the first loss was refused.
        reason: The first verdict.
        num_refused: Batches refused in it, probes aside.
        num_probes: Witnesses drawn again.
        findings: What experiments have found, oldest first.
        is_restored: Whether the model was restored.
    """

    first_step: int
    reason: str
    num_refused: int = 0
    num_probes: int = 0
    findings: list[str] = field(default_factory=list)
    is_restored: bool = False

    def note(self, step: int, text: str) -> str:
        """Add a finding; returns it as a line of text."""
        line = f"step {step}: {text}"
        self.findings = [*self.findings, line][-MOST_FINDINGS:]
        return line

    @property
    def conclusion(self) -> str:
        """What was at fault, as far as the experiments tell."""
        if self.findings:
            return self.findings[-1].partition(": ")[2] + "."
        batches = "the refused batch was" if self.num_refused == 1 else f"the {self.num_refused} refused batches were"
        return f"{batches} to blame, not the weights: the next one was good."


def diverged_text(
    incident: Incident, *, refused: int, step: int, loss: float, lr: float, samples: str, failures: Sequence[str]
) -> str:
    """The message of `TrainingDiverged`.

    Args:
        incident: What is known of it.
        refused: Batches refused in a row.
        step: Steps reported.
        loss: The last refused loss.
        lr: Its learning rate.
        samples: The suspects, named; "" for none.
        failures: Why states could not be restored.
    """
    restored = (
        "The model was restored in between, and losses were refused again."
        if incident.is_restored
        else "Nothing was restored: no state was found to be better."
        if incident.findings
        else "The model was never restored: pass load_callback with state_callback, or call update_cpu_backup()."
    )
    lines = [
        f"{refused} batches in a row were refused, the last loss ({loss:.6g}) at step {step - 1} with lr={lr:.3g}, "
        f"{incident.reason}. {restored}",
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
    """Replace the numbers that strict JSON does not allow with texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, (list, tuple)) else value

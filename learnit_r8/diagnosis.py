"""The diagnosis of a training that diverged: what was tried and what came of it, for people and as a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .durable import replace
from .guard import Verdict
from .recovery import Recovery, RecoveryState


@dataclass
class Attempt:
    """One answer to a refused loss.

    Attributes:
        step: Steps reported, the refused one included.
        loss: Its loss.
        reason: Why it was refused.
        lr: Learning rate it was drawn with.
        samples: Samples whose own loss was not finite, while others' were.
        source: What was put back: "backup", the name of a checkpoint, "" for nothing.
        to_step: Steps reported when that was taken; -1 for nothing.
        failures: Why others could not be put back.
    """

    step: int
    loss: float
    reason: str
    lr: float
    samples: tuple[int, ...]
    source: str = ""
    to_step: int = -1
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        back = f"restored from {self.source} of step {self.to_step}" if self.source else "nothing restored"
        failed = f" ({'; '.join(self.failures)})" if self.failures else ""
        return f"step {self.step - 1}: loss {self.loss:.4g}, {self.reason}, lr {self.lr:.3g}: {back}{failed}"


MEANT = (
    "If the losses are meant to be higher from here on, as with new data or another scale, call reset_baseline() "
    "where they become so, or resume with guard=FiniteGuard(), which refuses only what is not finite."
)


class Diagnosis:
    """What was tried in an incident.

    Args:
        attempts: In order; at least one.
        losses: The last losses, refused ones included.
        state: Where the incident stands.
        recovery: What was to be tried.
        why: A reason of its own to give up, "" if tries were used up.
    """

    def __init__(
        self, attempts: Sequence[Attempt], losses: Sequence[float], state: RecoveryState, recovery: Recovery, why: str
    ) -> None:
        self._attempts = attempts
        self._losses = losses
        self._state = state
        self._recovery = recovery
        self._why = why

    def text(self, bundle: str | None) -> str:
        """The message of the error; ``bundle`` is the file it names."""
        last = self._attempts[-1]
        heal_steps = self._recovery.heal_steps if self._state.is_sudden else self._recovery.calm_steps
        restored = [attempt for attempt in self._attempts if attempt.source]
        tried = (
            f"The model was restored each time, last from {restored[-1].source} of step {restored[-1].to_step}: is "
            "that one good?"
            if restored
            else "The model was never restored: pass load_callback with state_callback, or call update_cpu_backup()."
        )
        lines = [
            f"{self._state.tries} losses were refused with fewer than {heal_steps} good ones between them, the last "
            f"({last.loss}) at step {last.step - 1} with lr={last.lr:.3g}. {tried}",
            f"Samples whose own loss was not finite in the last one: {list(last.samples)}." if last.samples else "",
            f"Given up early: {self._why}." if self._why else "",
            MEANT if last.reason == Verdict.SPIKE.value else "",
            "What was tried:",
            *(f"  {attempt}" for attempt in self._attempts),
            f"Losses and settings are in {bundle}." if bundle else "",
        ]
        return "\n".join(line for line in lines if line)

    def write(self, folder: Path | None) -> str | None:
        """Write everything as JSON into a folder; the path of the file, None if there is no folder or no room."""
        if folder is None:
            return None
        path = folder / f"diverged_{self._attempts[-1].step:012d}.json"
        content = {
            "kind": "TrainingDiverged",
            "format": 1,
            "text": self.text(None),
            "attempts": [asdict(attempt) for attempt in self._attempts],
            "losses": list(self._losses),
            "state": self._state._asdict(),
            "recovery": asdict(self._recovery),
        }
        try:
            os.makedirs(folder, exist_ok=True)
            replace(path, json.dumps(_strict(content), indent=1, allow_nan=False).encode())
        except OSError:
            # The error itself says all of it but the losses.
            return None
        return str(path)


def _strict(value: Any) -> Any:
    """The same without numbers that JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {name: _strict(item) for name, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, (list, tuple)) else value

"""The diagnosis of a diverged training: what was tried and with what result, as text and as a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.durable_io import replace
from ..guard.verdict import Verdict
from .incident_state import RecoveryState
from .policy import Recovery


@dataclass
class Attempt:
    """One answer to a refused loss.

    Attributes:
        step: Steps reported, including the refused one.
        loss: The refused loss.
        reason: Why it was refused.
        lr: Learning rate of its batch.
        samples: Samples whose own loss was not finite, while those of others were.
        source: What was restored: "backup", the name of a checkpoint, or "" for nothing.
        to_step: Steps reported when that state was taken; -1 for nothing.
        failures: Why other states could not be restored.
        next_lr: Learning rate afterwards.
        replayed: The finding of the replay check; "" for none.
        accepted: Good losses until the next refusal, or until the incident ended.
    """

    step: int
    loss: float
    reason: str
    lr: float
    samples: tuple[int, ...]
    source: str = ""
    to_step: int = -1
    failures: list[str] = field(default_factory=list)
    next_lr: float = math.nan
    accepted: int = 0
    replayed: str = ""

    def __str__(self) -> str:
        back = f"restored from {self.source} of step {self.to_step}" if self.source else "nothing restored"
        failed = f" ({'; '.join(self.failures)})" if self.failures else ""
        return f"step {self.step - 1}: loss {self.loss:.4g}, {self.reason}, lr {self.lr:.3g}: {back}{failed}"


MEANT = (
    "If losses are expected to be higher from here on, as with new data or another scale, call reset_baseline() at the "
    "change, or resume with guard=FiniteGuard(), which refuses only non-finite losses."
)


def conclusion(attempts: Sequence[Attempt], *, is_level: bool = False, is_over: bool = False) -> str:
    """What was at fault in an incident, as far as the attempts show.

    Args:
        attempts: The attempts in order; none if they were made before a resume.
        is_level: Whether losses stay higher with every restored state.
        is_over: Whether nothing has helped.
    """
    seen = next((attempt.replayed for attempt in reversed(attempts) if attempt.replayed), "")
    found = _conclusion(attempts, is_level=is_level, is_over=is_over)
    return f"{found} In the replay, {seen}" if seen else found


def _conclusion(attempts: Sequence[Attempt], *, is_level: bool, is_over: bool) -> str:
    restored = [attempt for attempt in attempts if attempt.source]
    if not attempts:
        return "the losses are good again; the attempts before the resume are no longer known."
    first, last = attempts[0], attempts[-1]
    if is_level:
        oldest = min(attempt.to_step for attempt in restored) if restored else first.step
        return (
            f"the losses are higher with every state back to step {oldest}: the data or the loss have changed at about "
            f"step {first.step}, not the weights. If that is intended, call reset_baseline() there."
        )
    if not restored:
        tried = "nothing was restored, and the losses " + ("stayed bad" if is_over else "became good by themselves")
        return f"{tried}; what was at fault cannot be told."
    if is_over:
        return _without_end(restored, first)
    return _healed(restored, last)


def _without_end(restored: Sequence[Attempt], first: Attempt) -> str:
    steps = sorted({attempt.to_step for attempt in restored})
    lowest = min(attempt.next_lr for attempt in restored)
    accepted = max(attempt.accepted for attempt in restored)
    named = f"the state of step {steps[0]}" if len(steps) == 1 else f"the states of steps {', '.join(map(str, steps))}"
    was = "was" if len(steps) == 1 else "were"
    if accepted == 0:
        return (
            f"with {named} the next loss {was} refused at once, at rates down to {lowest:.3g}: either the data, the "
            f"loss function or the code have been at fault since about step {first.step}, or every state that could be "
            "restored is damaged."
        )
    return (
        f"with {named} losses were refused again after at most {accepted} good ones, at rates down to {lowest:.3g}: "
        "either the rate is still too high, or every state that could be restored is damaged."
    )


def _healed(restored: Sequence[Attempt], last: Attempt) -> str:
    reasons = {attempt.reason for attempt in restored}
    if len(reasons) > 1:
        named = ", ".join(sorted(reasons))
        return (
            f"several things went wrong one after another ({named}), so that what was at fault cannot be told; with "
            f"the state of step {last.to_step} and a rate of {last.next_lr:.3g}, {last.accepted} losses were good."
        )
    after = f"with the state of step {last.to_step} and a rate of {last.next_lr:.3g}, {last.accepted} losses were good"
    failed = [attempt for attempt in restored[:-1] if attempt.to_step > last.to_step]
    same = [attempt for attempt in restored[:-1] if attempt.to_step == last.to_step]
    if failed:
        newest = min(attempt.to_step for attempt in failed)
        lowest = min(attempt.next_lr for attempt in failed)
        found = f"{after}, but not with that of step {newest} and a rate of {lowest:.3g}"
        # The schedule itself lowers the rate a little between two restores.
        if last.next_lr >= 0.9 * lowest:
            return f"the weights have been damaged since a step between {last.to_step} and {newest}: {found}."
        return f"the weights have been damaged since before step {newest}, or the rate was too high: {found}."
    if same:
        return f"the rate was too high: {after}, but not at {max(attempt.next_lr for attempt in same):.3g}."
    if last.reason == Verdict.NOT_FINITE.value:
        return f"one loss was not finite, because of its batch or a passing fault, not of earlier weights; {after}."
    return (
        f"the weights went wrong between steps {last.to_step} and {last.step}, because of the rate, a batch or a "
        f"passing fault, which a single restore cannot tell apart: {after}."
    )


ARRAY_REASON = "was not finite"
"""End of an attempt's reason, after the name of an array, if that array of the model's state was the cause."""

ARRAY = "If that array is meant to hold such values, leave it out of the state."


class Diagnosis:
    """What was tried in an incident.

    Args:
        attempts: The attempts in order, at least one.
        losses: The last losses, including refused ones.
        state: The incident's state.
        recovery: The recovery policy.
        why: The reason to give up; "" if all tries are used up.
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
        """The error message; ``bundle`` is the path of the file with the details, None without one."""
        last = self._attempts[-1]
        most_good = max((attempt.accepted for attempt in self._attempts), default=0)
        restored = [attempt for attempt in self._attempts if attempt.source]
        tried = (
            f"The model was restored each time, last from {restored[-1].source} of step {restored[-1].to_step}: is "
            "that state good?"
            if restored
            else "The model was never restored: pass load_callback with state_callback, or call update_cpu_backup()."
        )
        lines = [
            f"{self._state.tries} losses were refused with at most {most_good} good ones in a row between them, the "
            f"last ({last.loss}) at step {last.step - 1} with lr={last.lr:.3g}. {tried}",
            f"Samples whose own loss was not finite in the last batch: {list(last.samples)}." if last.samples else "",
            f"Given up early: {self._why}." if self._why else "",
            f"Diagnosis: {conclusion(self._attempts, is_over=True)}",
            ARRAY if last.reason.endswith(ARRAY_REASON) else "",
            MEANT if last.reason == Verdict.SPIKE.value else "",
            "What was tried:",
            *(f"  {attempt}" for attempt in self._attempts),
            f"Losses and settings are in {bundle}." if bundle else "",
        ]
        return "\n".join(line for line in lines if line)

    def write(self, folder: Path | None) -> str | None:
        """Write all details as JSON into a folder; the path of the file, None without a folder or if that fails."""
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

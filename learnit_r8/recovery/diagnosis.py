"""The diagnosis of a training that diverged: what was tried and what came of it, for people and as a file."""

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
        step: Steps reported, the refused one included.
        loss: Its loss.
        reason: Why it was refused.
        lr: Learning rate it was drawn with.
        samples: Samples whose own loss was not finite, while others' were.
        source: What was put back: "backup", the name of a checkpoint, "" for nothing.
        to_step: Steps reported when that was taken; -1 for nothing.
        failures: Why others could not be put back.
        next_lr: Learning rate afterwards.
        replayed: What the replay check saw; "" for nothing.
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
    "If the losses are meant to be higher from here on, as with new data or another scale, call reset_baseline() "
    "where they become so, or resume with guard=FiniteGuard(), which refuses only what is not finite."
)


def conclusion(attempts: Sequence[Attempt], *, is_level: bool = False, is_over: bool = False) -> str:
    """What was at fault in an incident, as far as can be told from what was tried.

    Args:
        attempts: In order; none if they were made before a resume.
        is_level: Whether losses stay higher with every state.
        is_over: Whether nothing has helped.
    """
    seen = next((attempt.replayed for attempt in reversed(attempts) if attempt.replayed), "")
    found = _conclusion(attempts, is_level=is_level, is_over=is_over)
    return f"{found} In the replay, {seen}" if seen else found


def _conclusion(attempts: Sequence[Attempt], *, is_level: bool, is_over: bool) -> str:
    restored = [attempt for attempt in attempts if attempt.source]
    if not attempts:
        return "the losses are good again; what was refused before the resume is not known any more."
    first, last = attempts[0], attempts[-1]
    if is_level:
        oldest = min(attempt.to_step for attempt in restored) if restored else first.step
        return (
            f"the losses are higher with every state back to step {oldest}: the data or the loss have changed at about "
            f"step {first.step}, and not the weights. If that is meant, call reset_baseline() there."
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
            f"loss function or the code have been at fault since about step {first.step}, or all that could be put "
            "back is damaged."
        )
    return (
        f"with {named} losses were refused again after at most {accepted} good ones, at rates down to {lowest:.3g}: "
        "either the rate is still too high, or all that could be put back is damaged."
    )


def _healed(restored: Sequence[Attempt], last: Attempt) -> str:
    reasons = {attempt.reason for attempt in restored}
    if len(reasons) > 1:
        named = ", ".join(sorted(reasons))
        return (
            f"several things went wrong one after the other ({named}), so that what was at fault cannot be told; with "
            f"the state of step {last.to_step} and a rate of {last.next_lr:.3g}, {last.accepted} losses were good."
        )
    after = f"with the state of step {last.to_step} and a rate of {last.next_lr:.3g}, {last.accepted} losses were good"
    failed = [attempt for attempt in restored[:-1] if attempt.to_step > last.to_step]
    same = [attempt for attempt in restored[:-1] if attempt.to_step == last.to_step]
    if failed:
        newest = min(attempt.to_step for attempt in failed)
        lowest = min(attempt.next_lr for attempt in failed)
        found = f"{after}, but not with that of step {newest} and a rate of {lowest:.3g}"
        # The schedule itself lowers the rate a little from one restore to the next.
        if last.next_lr >= 0.9 * lowest:
            return f"the weights have been damaged since a step between {last.to_step} and {newest}: {found}."
        return f"the weights have been damaged since before step {newest}, or the rate was too high: {found}."
    if same:
        return f"the rate was too high: {after}, but not at {max(attempt.next_lr for attempt in same):.3g}."
    if last.reason == Verdict.NOT_FINITE.value:
        return f"one loss was not finite: its batch or a passing fault, and not the weights of before; {after}."
    return (
        f"the weights went wrong between steps {last.to_step} and {last.step}, through the rate, a batch or a passing "
        f"fault, which one restore cannot tell apart: {after}."
    )


ARRAY_REASON = "was not finite"
"""How the reason of an attempt ends that was made for an array of the model's state, whose name it begins with."""

ARRAY = "If that array is meant to be so, leave it out of the state."


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
        most_good = max((attempt.accepted for attempt in self._attempts), default=0)
        restored = [attempt for attempt in self._attempts if attempt.source]
        tried = (
            f"The model was restored each time, last from {restored[-1].source} of step {restored[-1].to_step}: is "
            "that one good?"
            if restored
            else "The model was never restored: pass load_callback with state_callback, or call update_cpu_backup()."
        )
        lines = [
            f"{self._state.tries} losses were refused with at most {most_good} good ones in a row between them, the "
            f"last ({last.loss}) at step {last.step - 1} with lr={last.lr:.3g}. {tried}",
            f"Samples whose own loss was not finite in the last one: {list(last.samples)}." if last.samples else "",
            f"Given up early: {self._why}." if self._why else "",
            f"As far as can be told: {conclusion(self._attempts, is_over=True)}",
            ARRAY if last.reason.endswith(ARRAY_REASON) else "",
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

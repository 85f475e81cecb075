"""The sentry applies the guard to every report, and holds its memory of losses, gradient norms and skipped steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..table.records import LARGEST_LOSS
from .verdict import Guard, Verdict

MOST_SUSPICION = 0.25
"""Suspicion from which backups are neither taken nor confirmed. Source: 107 real divergences, measured in
benchmarks/divergences.py."""

MOST_SKIPPED = 20
"""Optimizer steps that may be skipped in a row; a loss scale that starts at 65536 skips up to 16."""


_REFUSED = (Verdict.NOT_FINITE, Verdict.SPIKE, Verdict.RAISED, Verdict.LASTING_DRIFT, Verdict.OVERFLOW)


class Judgement(NamedTuple):
    """What the guard makes of a report, before the sentry keeps it.

    Attributes:
        losses: The guard's state for losses, after this one.
        norms: Its state for gradient norms.
        num_skipped: Optimizer steps skipped in a row.
        verdict: The verdict.
    """

    losses: Any
    norms: Any
    num_skipped: int
    verdict: Verdict


class Sentry:
    """Judges every report with a guard.

    Args:
        guard: Judges losses and, with a separate state, gradient norms.

    Attributes:
        num_refused: Reports refused so far.
        num_skipped: Optimizer steps skipped in a row.
        baseline: Number of baseline resets; a saved guard state from an earlier baseline is ignored.
    """

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.num_refused = 0
        self.num_skipped = 0
        self.baseline = 0
        self._losses = self._norms = guard.begin()
        self._before_refusal = self._losses

    def __repr__(self) -> str:
        return f"Sentry({self.guard!r}, {self.num_refused} losses refused)"

    def begin_anew(self) -> None:
        """Reset the baseline: from here on losses have another meaning, and earlier ones are forgotten."""
        self.baseline += 1
        self._losses = self._norms = self._before_refusal = self.guard.begin()

    @property
    def memory(self) -> tuple[Any, Any]:
        """The guard's current states, immutable: kept with each backup of the model."""
        return self._losses, self._norms

    def go_back(self, memory: tuple[Any, Any], *, is_trial: bool = True) -> None:
        """Return to the guard's states of a backup, as the model was restored from it.

        Args:
            memory: The guard's states at the time of the backup.
            is_trial: Whether the next losses are a trial of the restored state. They are not after a non-finite loss
                that came without any earlier suspicion.
        """
        self._losses, self._norms = memory
        self._note_return(is_trial=is_trial)
        self.num_skipped = 0

    def go_back_to_saved(self, state: Mapping[str, Any], *, is_trial: bool = True) -> None:
        """Return to the guard's states of a checkpoint, as the model was restored from it; see `go_back`."""
        num_refused = self.num_refused
        self.load_state_dict(self.adapted(state))
        self.num_refused = num_refused
        self._note_return(is_trial=is_trial)

    def _note_return(self, *, is_trial: bool) -> None:
        returned = getattr(self.guard, "returned", None)
        if returned is not None and is_trial:
            self._losses = returned(self._losses)
        informed = getattr(self.guard, "informed", None)
        if informed is not None:
            self._losses = informed(self._losses, self._before_refusal)

    @property
    def suspicion(self) -> float:
        """How near the guard is to refusing, from 0 (calm) to 1."""
        return max(self.guard.suspicion(self._losses), self.guard.suspicion(self._norms))

    def judge(
        self,
        loss: float,
        expected: float = math.nan,
        typical: float = math.nan,
        lr: float = math.nan,
        *,
        grad_norm: float | None = None,
        skipped: bool = False,
        is_usual: bool = True,
    ) -> Judgement:
        """Judge a report; nothing is changed before `keep`.

        Args:
            loss: Mean loss of the batch.
            expected: See `Guard.judge`.
            typical: See `Guard.judge`.
            lr: See `Guard.judge`.
            grad_norm: Norm of the batch's gradient; None if unknown.
            skipped: Whether the optimizer's step was skipped because gradients overflowed. The guard then judges
                neither the loss nor the norm; only more than `MOST_SKIPPED` in a row are refused.
            is_usual: Whether later losses are compared with this one. A batch of easy samples can only add evidence.
        """
        before, norms = self._losses, self._norms
        if skipped:
            return Judgement(before, norms, *self._skipped(loss))
        losses, verdict = self.guard.judge(before, loss, expected, typical, lr)
        if not is_usual and verdict is Verdict.GOOD and self.guard.suspicion(losses) <= self.guard.suspicion(before):
            losses = before
        if grad_norm is not None:
            norms, of_norm = self.guard.judge(norms, grad_norm)
            # Norms may grow throughout a healthy training, so only sudden changes count.
            sudden = of_norm is Verdict.NOT_FINITE or of_norm is Verdict.SPIKE
            verdict = of_norm if sudden and verdict in (Verdict.GOOD, Verdict.DRIFT) else verdict
        return Judgement(losses, norms, 0, verdict)

    def keep(self, judgement: Judgement) -> None:
        """Go on from a judgement."""
        before = self._losses
        self._losses, self._norms, self.num_skipped, verdict = judgement
        if verdict in _REFUSED:
            self.num_refused += 1
        if verdict in _REFUSED and verdict is not Verdict.OVERFLOW:
            self._before_refusal = before

    def suspicion_of(self, judgement: Judgement) -> float:
        """How near the guard is to refusing after a report that it is about to keep."""
        return max(self.guard.suspicion(judgement.losses), self.guard.suspicion(judgement.norms))

    def overrule(self) -> None:
        """Do not count the last refusal, as the loss was learned from after all."""
        self.num_refused -= 1

    def _skipped(self, loss: float) -> tuple[int, Verdict]:
        if self.num_skipped >= MOST_SKIPPED:
            return 0, Verdict.OVERFLOW
        return self.num_skipped + 1, Verdict.GOOD if -LARGEST_LOSS <= loss <= LARGEST_LOSS else Verdict.SKIPPED

    def state_dict(self) -> dict[str, Any]:
        """The whole state as plain values."""
        return {
            "losses": _plain(self._losses),
            "norms": _plain(self._norms),
            "num_refused": self.num_refused,
            "num_skipped": self.num_skipped,
            "baseline": self.baseline,
        }

    def adapted(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A saved state to load; if it is of another kind of guard, it keeps the counters and drops the losses."""
        form = _plain(self.guard.begin())
        if not isinstance(form, dict) or not isinstance(state, Mapping):
            return state
        if all(_is_of_form(was, form) for was in (state["losses"], state["norms"])):
            return state
        return {**state, "losses": form, "norms": form}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: it is of another kind of guard.
        """
        form = self.guard.begin()
        losses, norms = _formed(state["losses"], form), _formed(state["norms"], form)
        self._losses, self._norms = losses, norms
        self.num_refused, self.num_skipped = state["num_refused"], state["num_skipped"]
        self.baseline = state["baseline"]


def _plain(value: Any) -> Any:
    """Tuples as lists, named tuples as dicts."""
    if hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _formed(value: Any, form: Any) -> Any:
    """Convert a value of `_plain` back to the types of ``form``."""
    if hasattr(form, "_asdict"):
        if not _is_of_form(value, form._asdict()):
            raise ValueError(f"the guard's state must have the fields {form._fields}, got {value!r}.")
        return type(form)(**{name: _formed(value[name], item) for name, item in form._asdict().items()})
    return _as_tuple(value) if isinstance(form, tuple) else value


def _is_of_form(value: Any, form: Mapping[str, Any]) -> bool:
    """Whether a saved value is a dict with the fields of ``form``."""
    return isinstance(value, Mapping) and value.keys() == form.keys()


def _as_tuple(value: Any) -> Any:
    """Nested lists as nested tuples."""
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value

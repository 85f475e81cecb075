"""The sentry applies the guard to every report, and holds its memory of losses, gradient norms and skipped steps; and
the guards that can be chosen by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from .._validation import check_choice
from ..table.records import LARGEST_LOSS
from .spike import SpikeGuard
from .verdict import GOOD, FiniteGuard, Guard, Verdict

GuardName = Literal["spike", "finite"]

USUAL_GUARD = SpikeGuard()
"""The guard where none is named."""

_GUARDS: dict[str, Guard] = {"spike": SpikeGuard(), "finite": FiniteGuard()}


def as_guard(value: Any) -> Guard:
    """The guard of a name, or the guard itself.

    Raises:
        ValueError: there is no guard of this name.
        TypeError: it is a boolean or None: some guard there must be.
    """
    if value is None or isinstance(value, bool):
        raise TypeError(f"guard must be one of {tuple(_GUARDS)} or a guard, got {value!r}; 'finite' refuses least.")
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]
    check_choice("guard", value, tuple(_GUARDS), " or a guard")
    return _GUARDS[value]


MOST_SUSPICION = 0.25
"""Suspicion from which backups are neither taken nor confirmed. Source: 107 real divergences, measured in
benchmarks/divergences.py."""

MOST_SKIPPED = 20
"""Optimizer steps that may be skipped in a row; a loss scale that starts at 65536 skips up to 16."""


_NOT_REFUSED = (GOOD, Verdict.SKIPPED, Verdict.PROBED)

FAR_NORM, LEAST_NORMS = 100.0, 16
"""A gradient norm this many times as high as all before it is refused, once this many are known. Norms rise in healthy
training, and clipping bounds what a high one can do: see benchmarks/incidents.py."""


class Memory(NamedTuple):
    """What a sentry remembers of the reports so far.

    Attributes:
        losses: The guard's state, immutable: kept with each backup of the model.
        highest_norm: The highest finite gradient norm.
        num_norms: Norms so far.
        num_skipped: Optimizer steps skipped in a row.
    """

    losses: Any
    highest_norm: float = 0.0
    num_norms: int = 0
    num_skipped: int = 0


class Sentry:
    """Judges every report with a guard.

    Args:
        guard: Judges losses.
        watches_level: Whether recovery looks into losses far above those of the untrained model, through the whole run.
        is_usual: Whether the user has named no guard.

    Attributes:
        present: What it remembers now, immutable.
        num_refused: Reports refused so far.
        tests_progress: Whether recovery may look into losses of the first steps that rise.
        watches_level: As given, where losses should fall.
        baseline: Number of baseline resets; a saved guard state from an earlier baseline is ignored.
    """

    def __init__(self, guard: Guard, *, watches_level: bool = False, is_usual: bool = False) -> None:
        self.guard, self.present = guard, Memory(guard.begin())
        self._is_usual, expects = is_usual, getattr(guard, "expects_progress", True)
        self.num_refused = self.baseline = 0
        self.tests_progress = expects and bool(getattr(guard, "tests_progress", False))
        self.watches_level = expects and watches_level

    def __repr__(self) -> str:
        return f"Sentry({self.guard!r}, {self.num_refused} losses refused)"

    @property
    def expects_progress(self) -> bool:
        """Whether losses are expected to fall, those of batches of the user's own included."""
        return self.tests_progress or self.watches_level

    @property
    def reads_losses(self) -> bool:
        """Whether losses that are finite mean something to the guard."""
        return isinstance(self.guard, SpikeGuard)

    def expect_rivals(self) -> bool:
        """From here on expect no progress of the losses, as of networks that train against each other.

        Returns:
            Whether that is new; False for a guard that the user has named.
        """
        is_new, self._is_usual = self._is_usual, False
        if is_new:
            self.guard = replace(USUAL_GUARD, expects_progress=False)
            self.tests_progress = self.watches_level = False
        return is_new

    def begin_anew(self) -> None:
        """Reset the baseline: from here on losses have another meaning, and earlier ones are forgotten."""
        self.baseline += 1
        self.present = Memory(self.guard.begin(), num_skipped=self.present.num_skipped)

    def forget(self) -> None:
        """Forget the losses; those of backups still count."""
        self.present = self.present._replace(losses=self.guard.begin())

    def has_risen(self, lr: float) -> bool:
        """Whether a rate is so far above those of the usual losses that it explains higher ones."""
        has_risen = getattr(self.guard, "has_risen", None)
        return has_risen is not None and has_risen(self.present.losses, lr)

    def calm(self) -> None:
        """Drop the evidence of damage, as the weights were found healthy."""
        calmed = getattr(self.guard, "calmed", None)
        if calmed is not None:
            self.present = self.present._replace(losses=calmed(self.present.losses))

    def formed(self, plain: Any) -> Any:
        """The state that `plain` was given; raises ValueError if it is of another kind of guard."""
        return _formed(plain, self.guard.begin())

    def go_back(self, memory: Any, lr: float = math.nan) -> None:
        """Return to the guard's state of a backup, as the model was restored from it; ``lr`` is the scheduled rate."""
        moved_to = getattr(self.guard, "moved_to", None)
        losses = memory if moved_to is None else moved_to(memory, lr)
        self.present = self.present._replace(losses=losses, num_skipped=0)

    def go_back_to_saved(self, state: Mapping[str, Any], lr: float = math.nan) -> None:
        """Return to the guard's state of a checkpoint, unless losses had another meaning then."""
        if state["baseline"] == self.baseline:
            self.go_back(self.formed(self.adapted(state)["losses"]), lr)

    @property
    def suspicion(self) -> float:
        """How close the guard is to refusing, from 0 (calm) to 1."""
        return self.guard.suspicion(self.present.losses)

    def judge(
        self, loss: float, expected: float = math.nan, typical: float = math.nan, lr: float = math.nan,
        grad_norm: float | None = None, skipped: bool = False, is_usual: bool = True,
    ) -> tuple[Verdict, Memory]:  # fmt: skip
        """Judge a report; nothing is changed before `keep`.

        Args:
            loss: Mean loss of the batch.
            expected: See `Guard.judge`.
            typical: See `Guard.judge`.
            lr: See `Guard.judge`.
            grad_norm: Norm of the batch's gradient; None if unknown. One that is not finite, or far beyond all before,
                refuses the batch; it says nothing about the weights.
            skipped: Whether the optimizer's step was skipped because gradients overflowed. The guard then judges
                neither the loss nor the norm; only more than `MOST_SKIPPED` in a row are refused.
            is_usual: Whether later losses are compared with this one. A batch of easy samples can only add evidence.

        Returns:
            The verdict, and what to remember if it is kept.
        """
        before, highest, count, num_skipped = self.present
        if skipped:
            if num_skipped >= MOST_SKIPPED:
                return Verdict.OVERFLOW, Memory(before, highest, count)
            verdict = GOOD if -LARGEST_LOSS <= loss <= LARGEST_LOSS else Verdict.SKIPPED
            return verdict, Memory(before, highest, count, num_skipped + 1)
        losses, verdict = self.guard.judge(before, loss, expected, typical, lr)
        if verdict is not GOOD:
            # The state of the losses before it, which it does not belong to.
            losses = before
        elif not is_usual and self.guard.suspicion(losses) <= self.guard.suspicion(before):
            losses = before
        if grad_norm is not None and verdict is GOOD:
            is_finite = math.isfinite(grad_norm)
            if not is_finite or (count >= LEAST_NORMS and grad_norm > FAR_NORM * highest):
                losses, verdict = before, Verdict.GRADIENT
            if is_finite:
                # A refused one counts too, so that a level of norms is refused once at most.
                highest, count = max(highest, grad_norm), count + 1
        return verdict, Memory(losses, highest, count)

    def keep(self, verdict: Verdict, memory: Memory) -> None:
        """Go on from a judgement."""
        self.present = memory
        if verdict not in _NOT_REFUSED:
            self.num_refused += 1

    def state_dict(self) -> dict[str, Any]:
        """The whole state as plain values."""
        losses, highest_norm, num_norms, num_skipped = self.present
        return {
            "losses": plain(losses), "num_refused": self.num_refused, "num_skipped": num_skipped,
            "norms": {"highest": highest_norm, "count": num_norms}, "baseline": self.baseline,
        }  # fmt: skip

    def adapted(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """A saved state to load; if it is of another kind of guard, it keeps the counters and drops the losses."""
        form = plain(self.guard.begin())
        if not isinstance(form, dict) or not isinstance(state, Mapping):
            return state
        return state if _is_of_form(state["losses"], form) else {**state, "losses": form}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned.

        Raises:
            ValueError: it is of another kind of guard.
        """
        losses, norms = self.formed(state["losses"]), state["norms"]
        self.present = Memory(losses, float(norms["highest"]), int(norms["count"]), state["num_skipped"])
        self.num_refused = state["num_refused"]
        self.baseline = state["baseline"]


def plain(value: Any) -> Any:
    """A state of `Memory.losses` as plain values: tuples as lists, named tuples as dicts."""
    if hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    return [each if type(each) is float else plain(each) for each in value] if isinstance(value, tuple) else value


def _formed(value: Any, form: Any) -> Any:
    """Convert a value of `plain` back to the types of ``form``."""
    if hasattr(form, "_asdict"):
        if not _is_of_form(value, form._asdict()):
            raise ValueError(f"the guard's state must have the fields {form._fields}, got {value!r}.")
        return type(form)(
            **{name: _formed(value[name], item) if name in value else item for name, item in form._asdict().items()}
        )
    return _as_tuple(value) if isinstance(form, tuple) else value


def _is_of_form(value: Any, form: Mapping[str, Any]) -> bool:
    """Whether a saved dict has fields of ``form``; an older version may have had fewer, or others besides."""
    return isinstance(value, Mapping) and bool(value.keys() & form.keys())


def _as_tuple(value: Any) -> Any:
    """Nested lists as nested tuples."""
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value

"""The search for the place where an incident began, in frameworks without hooks: which runs are made, what follows.

The refused batch runs again on the weights of a backup and on the present ones. What a run shows is the framework's to
say: the loss, and the first layer whose output is not finite.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..events.incident import HEALTHY, describe_error
from ..recovery.cause import BACKWARD, BAD_NOW, FORWARD, INPUT, LABEL, LOSS, NOTHING, UNKNOWN, WEIGHT, Finding, Refusal
from ..state.batch_rows import far_off, halve, not_finite, num_rows, rows_of, some_rows

MAY_BE = "updates that were too large, or a damaged weight (neither was tested)"
"""What may be at fault where a batch is good with older weights, and bad with present ones that are finite."""

FEW = 4
"""Weights that are not finite up to which they were damaged one by one, and not by an update."""

BEYOND, LEAST = 100.0, 0.01
"""How far beyond the usual a finite loss is bad where that of the run was not finite, in units of the usual."""


class Shown(NamedTuple):
    """What a run has shown.

    Attributes:
        loss: The mean loss; NaN where it is not finite, or where there is none.
        layer: The first layer whose output is not finite; "" for none.
        what: "NaN" or "Inf", in that output or in the loss.
        rows: Rows that are to blame, where their outputs or their losses tell; empty if they do not.
        gradient: The first parameter whose gradient is not finite; "" for none, or where it was not looked at.
    """

    loss: float
    layer: str = ""
    what: str = ""
    rows: tuple[int, ...] = ()
    gradient: str = ""


class Subject(Protocol):
    """A model that can be run again, by its heirs; what it touches is its own to put back.

    Attributes:
        batch: The refused batch, a nest of arrays with a row for each sample; None if it is not known.
        missing: What cannot be looked at, and why; "" for nothing.
        is_exact: Whether a run on the present weights is that of the refused loss.
        before: The batch before it and its samples, where gradients are looked at; else None.
    """

    batch: Any = None
    before: tuple[Any, Sequence[int]] | None = None
    missing: str = ""
    is_exact: bool = True

    def bad_weights(self) -> dict[str, int]:
        """Names of arrays of the weights that are not finite, and how many elements."""

    def run(self, batch: Any, weights: Any) -> Shown:
        """Run a batch on the weights of a backup, or on the present ones for None."""

    def bad_labels(self) -> tuple[tuple[int, ...], str]:
        """Rows of the batch whose labels the loss cannot take, and what is wrong with them; none and "" where what the
        loss takes is not known.
        """
        return (), ""


class PlaceSearch:
    """Finds where an incident began.

    Args:
        refusal: What the run knows.
        subject: The model and its batch.
    """

    def __init__(self, refusal: Refusal, subject: Subject) -> None:
        self._refusal, self._subject, self._batch = refusal, subject, subject.batch
        self._evidence: list[str] = []
        self._num_runs, self._loss = 0, math.nan
        self._size = num_rows(self._batch)

    def solve(self) -> Finding:
        """Find it; a model that cannot be run again ends no training."""
        began, bad = time.perf_counter(), dict[str, int]()
        try:
            bad = self._subject.bad_weights()
            found = self._solve(bad)
        except Exception as error:
            # A step of the user's own may need none, and layers may run within its step alone.
            is_alone = isinstance(error, (NotImplementedError, AttributeError))
            raises = "the model does not run by itself" if is_alone else "the model raises as R8 runs the batch again"
            what, odd = f"{raises} ({describe_error(error)})", not_finite(self._batch)
            found = Finding(UNKNOWN, what)
            if odd and not self._refusal.is_finite:
                found = Finding(INPUT, "the batch is not finite", odd[0].rows, odd[0].about, rest=(what,))
            elif bad:
                found = self._of_weights(bad)._replace(rest=(what,))
        return found._replace(
            evidence=tuple(self._evidence), loss=self._loss, num_runs=self._num_runs, missing=self._subject.missing,
            seconds=time.perf_counter() - began,
        )  # fmt: skip

    def _solve(self, bad: dict[str, int]) -> Finding:
        if self._batch is None:
            return self._of_weights(bad) if bad else Finding(UNKNOWN, "the weights are finite")
        newest = next((each for each in self._refusal.backups if not not_finite(each[1])), None)
        if newest is not None:
            step, weights = newest
            old = self._run(self._batch, weights, f"the refused batch on the weights of step {step:,}")
            if self._is_bad(old):
                rest = HEALTHY if not bad else "its update has damaged the weights"
                return self._of_data(old, weights, (rest,))
        if bad:
            found = self._of_weights(bad)
            if newest is None:
                return found
            earlier = self._of_batch_before(newest)
            return earlier or found._replace(rest=(f"with the weights of step {step:,} it is good",))
        now = self._run(self._batch, None, "the refused batch on the present weights")
        self._loss = now.loss
        if self._is_bad(now):
            if newest is None:
                return self._of_data(now, None, ("there is no healthy backup to compare with",))
            text = f"the batch is good with the weights of step {step:,}, and {BAD_NOW}"
            first = (f"it shows first in `{now.layer}`",) if now.layer else ()
            return Finding(UNKNOWN, text, rest=(*first, MAY_BE))
        if not math.isfinite(now.loss):
            # As of a step that returns no loss by itself; one that is not finite would be a bad one.
            return Finding(UNKNOWN, "run again, all outputs of layers are finite; the loss of the batch was not tested")
        text = f"run again, the batch has the loss {now.loss:.6g}"
        if not self._subject.is_exact:
            return Finding(UNKNOWN, f"{text}, and all outputs of layers are finite")
        rest = f"the loss that was reported ({self._refusal.loss:.6g}) is not what the model gives"
        return Finding(NOTHING, f"{text}: model, data and gradients are fine", rest=(rest,), is_certain=True)

    def _of_batch_before(self, newest: tuple[int, Any]) -> Finding | None:
        """The batch before may have had a finite loss, and a gradient that was not."""
        if self._subject.before is None:
            return None
        step, weights = newest
        self._batch, samples = self._subject.before
        shown = self._run(self._batch, weights, f"the batch before on the weights of step {step:,}")
        if not shown.gradient:
            return None
        found = self._of_data(shown, weights, ("its loss was finite, and its update has damaged the weights",))
        return found._replace(samples=tuple(int(samples[row]) for row in found.rows if row < len(samples)))

    # Data.

    def _of_data(self, shown: Shown, weights: Any, rest: tuple[str, ...]) -> Finding:
        odd, place = not_finite(self._batch), self._place_of(shown)
        if odd:
            found = place._replace(kind=INPUT, about=odd[0].about, rows=odd[0].rows)
            # With all rows there is nothing to compare with, and each of them alone goes wrong.
            is_whole = len(found.rows) == self._size
            if is_whole or self._confirms(found.rows, weights):
                return found._replace(is_certain=not is_whole, rest=rest)
        labels, text = self._subject.bad_labels()
        if text:
            certain = not labels or self._confirms(labels, weights)
            return Finding(LABEL, text, labels, rest=rest, is_certain=certain, where="label")
        for far in far_off(self._batch):
            found = place._replace(about=far.about, rows=far.rows)
            if not (shown.layer or shown.what):
                found = found._replace(kind=INPUT, text=f"an input of {far.value}, far beyond others")
            if self._confirms(found.rows, weights):
                return found._replace(is_certain=True, rest=rest)
        rows = shown.rows
        if not rows:
            # The row that alone makes the batch bad; none if no row does.
            rows, runs = halve(lambda part: self._is_bad(self._run(self._with_rows(part), weights)), self._size)
            self._evidence.append(describe_halving(rows, runs))
        return place._replace(rows=rows, rest=rest, is_certain=bool(rows) and self._confirms(rows, weights))

    def _place_of(self, shown: Shown) -> Finding:
        if shown.layer:
            return Finding(FORWARD, f"{shown.what} first in `{shown.layer}` (forward)", where=shown.layer)
        if shown.gradient:
            text = f"a gradient is not finite; the first parameter that it reaches is `{shown.gradient}`"
            return Finding(BACKWARD, text, where=shown.gradient)
        if shown.what:
            return Finding(LOSS, f"{shown.what} first in the loss", where="loss")
        return Finding(LOSS, f"the loss of the batch is {shown.loss:.6g}, and all of it is finite")

    # Runs.

    def _run(self, batch: Any, weights: Any, what: str = "") -> Shown:
        self._num_runs += 1
        shown = self._subject.run(batch, weights)
        if what:
            place = f", {shown.what} first in `{shown.layer}`" if shown.layer else ""
            self._evidence.append(f"{what}: loss {shown.loss:.6g}{place}")
        return shown

    def _is_bad(self, shown: Shown) -> bool:
        return bool(shown.layer or shown.gradient or shown.what) or shown.loss > threshold_of(self._refusal)

    def _with_rows(self, rows: Sequence[int]) -> Any:
        """The batch with these rows in the place of all: its size stays, and nothing has to be compiled again."""
        return some_rows(self._batch, np.resize(np.asarray(rows, np.int64), self._size).tolist(), self._size)

    def _confirms(self, rows: Sequence[int], weights: Any) -> bool:
        """Whether the batch is good without these rows."""
        left = [row for row in range(self._size) if row not in rows]
        if not rows or not left:
            return False
        what = f"the batch without the rows {list(rows)[:8]}"
        return not self._is_bad(self._run(self._with_rows(left), weights, what))

    # Weights.

    def _of_weights(self, bad: dict[str, int]) -> Finding:
        name, count = next(iter(bad.items()))
        if len(bad) == 1 and count <= FEW:
            return Finding(WEIGHT, describe_few(f"`{name}`", count), where=name)
        others = f" and in {len(bad) - 1} more arrays of weights" if len(bad) > 1 else ""
        return Finding(UNKNOWN, f"values in the weights `{name}`{others} are not finite")


def first_bad(array: NDArray[Any], size: int) -> tuple[str, tuple[int, ...]]:
    """ "NaN" or "Inf" if an array holds one, and the rows that do, if it has one for each sample and not all do."""
    if not np.issubdtype(array.dtype, np.floating):
        return "", ()
    bad = ~np.isfinite(array)
    if not bad.any():
        return "", ()
    what = "NaN" if np.isnan(array).any() else "Inf"
    rows = rows_of(bad) if array.ndim and len(array) == size else ()
    return what, rows if len(rows) < size else ()


def bad_arrays(named: Sequence[tuple[str, Any]], as_array: Callable[[Any], NDArray[Any]]) -> dict[str, int]:
    """Names of arrays that are not finite, and how many of their elements."""
    counts = {name: int((~np.isfinite(as_array(each).astype(np.float32))).sum()) for name, each in named}
    return {name: count for name, count in counts.items() if count}


def threshold_of(refusal: Refusal) -> float:
    """A loss beyond it is as bad as the refused one; infinite where what is usual is not known."""
    loss, usual = refusal.loss, refusal.usual
    if usual != usual or loss <= usual:
        return math.inf
    if not math.isfinite(loss):
        return usual + BEYOND * (abs(usual) + LEAST)
    return math.sqrt(loss * usual) if usual > 0 else (loss + usual) / 2


def describe_few(names: str, count: int) -> str:
    """What is said of a few weights that were damaged one by one."""
    return f"{count} of the weights {names} {'is' if count == 1 else 'are'} not finite, and all others are"


def describe_halving(found: tuple[int, ...], runs: int) -> str:
    """What `halve` has found, for the evidence."""
    return f"{runs} runs of parts of the batch: {f'row {found[0]}' if found else 'no row'} alone goes wrong"

"""The case of a refused batch: which runs are made, and what follows from them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...bridge.place_search import FEW, describe_few, describe_halving, threshold_of
from ...events.incident import HEALTHY
from ...recovery.cause import (
    BACKWARD,
    BATCH_SIZE,
    INPUT,
    LABEL,
    LOSS,
    NOTHING,
    OPTIMIZER,
    SCALE,
    UNKNOWN,
    UPDATE,
    WEIGHT,
    Finding,
    Refusal,
)
from ...sources.random_generators import random_state, set_random_state
from ...state import tree
from ...state.batch_rows import Odd, far_off, halve, lists_rows, not_finite, num_rows, some_rows
from .hand import Held
from .state_faults import (
    Alone,
    as_before,
    bad_weights,
    compare,
    farthest_buffer,
    is_sound,
    optimizer_faults,
    vanished_eps,
)
from .untouched import kept_buffers, weights_of
from .watch import (
    Trace,
    describe_gradient,
    describe_place,
    describe_run,
    finding_of,
    of_length,
    place_of,
    run_watched,
    value_of,
)


class Runs:
    """Runs batches, and says whether they go wrong as the refused one did.

    Args:
        refusal: What the run knows.
        model: The model.
        run: Runs a batch.
        has_loss: Whether that gives a loss, not only what the model returns.
        is_alone: Whether no other process trains the model; else there is no backward pass, and what asks others for
            something raises.

    Attributes:
        evidence: What the runs have shown, line by line.
        count: How many there were.
        is_random: Whether the model draws random numbers.
        has_loss: As given.
    """

    def __init__(
        self, refusal: Refusal, model: torch.nn.Module, run: Callable[[Any], Any], *, has_loss: bool,
        is_alone: bool = True,
    ) -> None:  # fmt: skip
        self._is_alone = is_alone
        self._refusal, self._model, self._run, self.has_loss = refusal, model, run, has_loss
        self._generators, self._own_generator = random_state(), torch.get_rng_state()
        self.evidence: list[str] = []
        self.count = 0
        self.is_random = False

    def watch(
        self, batch: Any, what: str = "", *, backward: bool = False, scale: float = 1.0, is_quick: bool = False
    ) -> Trace:
        """Run a batch, and note what it shows as ``what``; see `run_watched`."""
        set_random_state(self._generators)
        self.count += 1
        backward = backward and self.has_loss and self._is_alone
        # A batch may leave something behind there, as in a memory bank, which the next run must not meet.
        with kept_buffers(self._model):
            trace = run_watched(
                self._model, self._run, batch, backward=backward, scale=scale, is_quick=is_quick and self._is_alone,
                is_alone=self._is_alone,
            )  # fmt: skip
        self.is_random = self.is_random or not torch.equal(torch.get_rng_state(), self._own_generator)
        if what:
            self.evidence.append(f"{what}: {describe_run(trace, has_loss=self.has_loss)}")
        return trace

    def goes_wrong(self, batch: Any, what: str) -> bool:
        """Whether a batch goes wrong as the refused one did; noted as ``what``."""
        return self.is_bad(self.watch(batch, what, is_quick=True))

    def is_bad(self, trace: Trace) -> bool:
        """Whether a run goes wrong as the refused batch did."""
        if trace.error is not None or not trace.is_finite:
            return True
        # Where the gradient was refused, the loss was usual enough for the guard.
        return self.has_loss and not self._refusal.is_gradient and trace.loss > threshold_of(self._refusal)

    @property
    def good_text(self) -> str:
        """What a run that does not go wrong has shown, in words."""
        return "the batch is good" if self.has_loss else "what the model returns for the batch is finite"

    def is_good_without(self, batch: Any, rows: Sequence[int]) -> bool:
        """Whether a batch is good without these rows."""
        size = num_rows(batch)
        if not rows or len(rows) >= size:
            return False
        left = [row for row in range(size) if row not in rows]
        return not self.goes_wrong(some_rows(batch, left, size), f"the batch without the rows {list(rows)[:8]}")

    def find_row(self, batch: Any, like: Trace, good: Any) -> tuple[int, ...]:
        """The row to blame for what a run of the batch has shown, found by halving it; none if no row alone is.

        A row alone may fail for being alone, as in BatchNorm or in the mean of those with some property, and so gets
        the others of a good batch beside it, which do not fail; where they do not fit, the batch without it is tried.
        """
        beside = some_rows(good, range(1, num_rows(good)), num_rows(good)) if num_rows(good) > 1 else None
        was_good = False

        def is_like(part: list[int]) -> bool:
            nonlocal was_good
            rows = some_rows(batch, part, size)
            both = join(rows, beside) if len(part) == 1 and beside is not None else None
            trace = self.watch(rows if both is None else both, backward=bool(like.bad_gradients), is_quick=True)
            if like.bad_gradients:
                is_bad = bool(trace.bad_gradients)
            else:
                is_bad = type(trace.error) is type(like.error) and self.is_bad(trace)
            was_good = was_good or both is not None or not is_bad
            return is_bad

        size = num_rows(batch)
        if size < 2:
            return ()
        rows = self._bad_losses(like, size)
        if not rows:
            rows, runs = halve(is_like, size)
            if rows and not was_good:
                # Each part was bad: so may be any.
                rows, runs = () if is_like([row for row in range(size) if row not in rows]) else rows, runs + 1
            self.evidence.append(describe_halving(rows, runs))
        return rows

    def _bad_losses(self, trace: Trace, size: int) -> tuple[int, ...]:
        """The rows whose own losses are bad, where they are known."""
        if trace.losses is None or len(trace.losses) != size or trace.bad_gradients:
            return ()
        losses = trace.losses.reshape(size, -1).mean(1)
        bad = ~torch.isfinite(losses) if not math.isfinite(trace.loss) else losses > threshold_of(self._refusal)
        rows = tuple(bad.nonzero().reshape(-1).tolist())
        return rows if len(rows) < size else ()


SPREADS = frozenset(["std", "var", "std_mean", "var_mean", "native_batch_norm", "_batch_norm_impl_index"])
"""Operations that need more than one row."""

TOO_LARGE = "the updates since step {:,} were too large: they have moved the weights by {} their length"
STATISTICS = "it has damaged the statistics of the model, and the weights are healthy"
EVERYWHERE = "it is so with other batches and with the weights of backups, too"

LARGE_CHANGE, MANY = 0.5, 0.5
"""Share of its length that the weights have moved by since a healthy backup, from which the updates are to blame, and
share of the arrays that must have moved by a tenth."""

MOST_BACKUPS = 3
"""Backups that are tried."""


class Case:
    """A refused batch, and all that may be asked of it.

    Args:
        refusal: What the run knows.
        model: The model, as it was refused.
        optimizer, scaler: What trains it.
        run: Runs a batch.
        held, batch: The refused batch.
        good_held, good: The last one whose loss was good; None without one.
        backups: Steps and states, newest first.
        has_loss: Whether a run gives a loss, not only what the model returns.
        redraw: Returns a sample anew, or None.
        others: Networks that are trained beside the model, by their names.
        is_alone: Whether it is the whole batch. Of a part of one only the forward pass runs.
    """

    def __init__(
        self, refusal: Refusal, model: torch.nn.Module, optimizer: Any, *, scaler: Any, run: Callable[[Any], Any],
        held: Held, batch: Any, good_held: Held | None, good: Any, backups: Sequence[tuple[int, Any]], has_loss: bool,
        redraw: Callable[[int], Any] | None, others: Mapping[str, torch.nn.Module], is_alone: bool,
    ) -> None:  # fmt: skip
        self._others, self._is_alone = others, is_alone
        self._refusal, self._model, self._optimizer, self._scaler = refusal, model, optimizer, scaler
        self._held, self._batch, self._redraw, self._backups = held, batch, redraw, backups
        self._good_held, self._good = good_held, good
        self._runs = Runs(refusal, model, run, has_loss=has_loss, is_alone=is_alone)
        self._loss = math.nan
        self._healthy: tuple[int, Any] | None = None

    def _healthy_weights(self) -> contextlib.AbstractContextManager[None]:
        assert self._healthy is not None
        return weights_of(self._model, self._healthy[1]["model"])

    # The case.

    def solve(self) -> Finding:
        """Find where it began."""
        weights = bad_weights(self._model)
        if weights:
            return self._of_bad_weights(weights)
        first = self._runs.watch(self._batch, "the refused batch on the refused weights", backward=True)
        self._loss = first.loss
        is_bad = self._runs.is_bad(first)
        clear = self._of_clear_input(first) if is_bad else None
        found = clear if clear is not None and clear.is_certain else self._of_others() or clear
        if found is not None:
            return found
        if not is_bad:
            return self._of_good_run(first)
        second = None
        if self._good is not None:
            second = self._runs.watch(self._good, "the last good batch on the refused weights", is_quick=True)
        is_good_here = second is not None and not self._runs.is_bad(second)
        self._find_healthy()
        if self._healthy is None and is_good_here:
            return self._of_data(first, (HEALTHY,))
        if self._healthy is None:
            return self._without_healthy(first, second)
        with self._healthy_weights():
            third = self._runs.watch(self._batch, f"the refused batch on the weights of step {self._healthy[0]:,}")
            if self._runs.is_bad(third):
                kind = "" if self._good is None else "healthy "
                too = f"it is so with the {kind}weights of step {self._healthy[0]:,}, too"
                return self._of_data(third, (HEALTHY if is_good_here else too,))
        return self._of_weights(first)

    def _without_healthy(self, first: Trace, second: Trace | None) -> Finding:
        """Return a finding where no backup is known to be healthy: the last good batch fails on all, or is missing."""
        if first.error is not None:
            return self._end(finding_of(first))
        if second is None or not self._backups:
            return self._end(finding_of(first), rest=("there is no healthy backup to compare with",))
        # It fails on all weights: neither data nor weights are to blame.
        usual = self._refusal.usual
        if first.fault is not None or not (usual > 0 and math.isfinite(first.loss + second.loss)):
            return self._end(finding_of(first), certain=first.fault is not None, rest=(EVERYWHERE,))
        text = f"the loss of the last good batch is {second.loss / usual:,.3g} times the usual, with the weights of"
        text += " backups, too: its scale or one of its terms has changed"
        return self._end(Finding(SCALE, text, where="scale of the loss"), certain=self._runs.has_loss)

    def _of_clear_input(self, first: Trace, rest: tuple[str, ...] = ()) -> Finding | None:
        """Values of the input that are not finite, without which the batch is good; None for all else."""
        odd = not_finite(self._batch, self._good)
        found = self._of_odd(odd, first, num_rows(self._batch)) if odd else None
        if found is None:
            return None
        is_all = len(found.rows) == num_rows(self._batch)
        if not self._runs.has_loss and is_all:
            # What the model got is no batch of the loader, and nothing was good without some of its rows.
            return self._end(found, rest=("what comes before the model was not run again",))
        rest = rest or (() if is_all else (HEALTHY,))
        return self._end(found, certain=not is_all or first.error is None, rest=(*rest, *self._redrawn(found)))

    def _of_others(self) -> Finding | None:
        """A network beside the model that is not finite, so that what it gives the model is not either."""
        for name, other in self._others.items():
            bad = bad_weights(other)
            if bad:
                text = (
                    f"`{name}`, trained beside the model, holds values that are not finite, as in `{next(iter(bad))}`"
                )
                return self._end(Finding(UNKNOWN, text, where=name))
        return None

    def _find_healthy(self) -> None:
        """Look for a backup with which the last good batch is good; where there is none, the newest finite one."""
        buffers = dict(self._model.named_buffers())
        for step, state in self._backups[:MOST_BACKUPS]:
            arrays = ((name, each) for name, each in state["model"].items() if isinstance(each, torch.Tensor))
            if not all(is_sound(each, is_buffer=name in buffers) for name, each in arrays):
                continue
            with weights_of(self._model, state["model"]):
                what = f"the last good batch on the weights of step {step:,}"
                if self._good is None or not self._runs.goes_wrong(self._good, what):
                    self._healthy = step, state
                    return

    # Weights.

    def _of_bad_weights(self, weights: dict[str, int]) -> Finding:
        """Find what made the weights not finite: a batch, the optimizer, or a change of one element."""
        parameters = dict(self._model.named_parameters())
        did = "its update has damaged the weights" if parameters.keys() & weights.keys() else STATISTICS
        total = sum(each.numel() for each in self._model.parameters())
        name = next(iter(weights))
        count_all = sum(weights.values())
        self._runs.evidence.append(f"{count_all:,} of {total:,} weights in {len(weights)} arrays are not finite")
        self._find_healthy()
        if self._healthy is None:
            return self._end(Finding(UNKNOWN, f"the weights hold values that are not finite, as in `{name}`"))
        with self._healthy_weights():
            step = self._healthy[0]
            third = self._runs.watch(self._batch, f"the refused batch on the weights of step {step:,}", backward=True)
            if self._runs.is_bad(third):
                return self._of_data(third, (did,))
            if third.bad_gradients:
                return self._of_gradient(third, self._batch, self._held, (did,))
            if self._good is not None:
                what = f"the batch before on the weights of step {step:,}"
                fourth = self._runs.watch(self._good, what, backward=True)
                if fourth.bad_gradients:
                    assert self._good_held is not None
                    said = ("its loss was finite, and its update has damaged the weights",)
                    return self._of_gradient(fourth, self._good, self._good_held, said)
        own = [each for each in weights if each in parameters]
        vanished = vanished_eps(self._model, self._optimizer, own)
        if vanished:
            return self._end(Finding(OPTIMIZER, vanished, where=own[0]), rest=(did,))
        # A weight damages the statistics of the model, too; the names of parameters come first.
        count_own = sum(weights[each] for each in own)
        few = 0 < count_own <= FEW
        # Gradients were finite, and so could not bring this into the optimizer's state.
        found_in = optimizer_faults(self._model, self._optimizer) if few else {}
        if faults := {name: fault for name, fault in found_in.items() if name in own}:
            return self._of_optimizer(faults, (f"its update has damaged `{next(iter(faults))}`",))
        if not own and (found := self._of_buffers(step, self._healthy[1]["model"])) is not None:
            return found
        if (found := self._of_others()) is not None:
            return found
        if few:
            text = describe_few(", ".join(f"`{each}`" for each in own), count_own)
            others = ("it has damaged statistics of the model",) * (len(weights) > len(own))
            rest = ("both batches are good with the weights of a backup", *others)
            return self._end(Finding(WEIGHT, text, where=name), certain=True, rest=rest)
        text = f"{len(weights)} arrays of weights are not finite, as `{name}`; "
        if self._runs.has_loss:
            return self._end(
                Finding(UNKNOWN, f"{text}batches and gradients are not to blame"),
                rest=("an update that was too large, or the optimizer's state",),
            )
        text += "what the model returns for the batch is finite with the weights of a backup"
        rest = ("the loss function, a gradient, an update that was too large, or the optimizer's state",)
        return self._end(Finding(UNKNOWN, text), rest=rest)

    def _of_weights(self, first: Trace) -> Finding:
        """Return a finding where the refused weights are bad and those of a backup are healthy."""
        assert self._healthy is not None
        step, state = self._healthy
        updates = max(1, self._refusal.step - step)
        faults = optimizer_faults(self._model, self._optimizer, state.get("optimizer"), updates)
        if faults:
            return self._of_optimizer(faults)
        moved = compare(self._model, self._optimizer, state, updates)
        found = self._of_alone(moved.alone, step, state["model"]) or self._of_buffers(step, state["model"])
        if found is not None:
            return found
        if moved.share <= LARGE_CHANGE or moved.many < MANY:
            text = f"with the weights of step {step:,} {self._runs.good_text}"
            apart = f"`{moved.farthest}` has moved farthest, by {of_length(moved.farthest_share)} its length"
            return self._end(finding_of(first), rest=(text, apart))
        rate = max((float(group["lr"]) for group in self._optimizer.param_groups), default=self._refusal.lr)
        text = f"{TOO_LARGE.format(step, of_length(moved.share))}, at the rate {rate:.3g}"
        rest: tuple[str, ...] = ("the data and the optimizer's state are not to blame",)
        top = max(first.modules.items(), key=lambda each: each[1] if each[1] == each[1] else -1.0, default=("", 0.0))
        if first.first_module:
            rest += (f"it shows first in `{first.first_module}`",)
        elif top[0]:
            rest += (f"outputs of `{top[0]}` reach {top[1]:.3g}",)
        return self._end(Finding(UPDATE, text), certain=True, rest=rest)

    def _of_alone(self, alone: Alone | None, step: int, state: Mapping[str, Any]) -> Finding | None:
        """Test whether the batch is good again with the old values of weights that have changed alone."""
        if alone is None:
            return None
        parameter = dict(self._model.named_parameters())[alone.name]
        with as_before(parameter, state[alone.name], alone.where):
            if self._runs.goes_wrong(self._batch, f"the refused batch with {alone.what} as in the backup"):
                return None
        rest = (f"with its value of step {step:,} {self._runs.good_text}",)
        if alone.is_within_reach:
            text = f"the updates since step {step:,} have changed {alone.what}, which {alone.change}"
            allowed = "that is no more than its rate allows"
            return self._end(Finding(UPDATE, text, where=alone.name), rest=(allowed, *rest))
        text = f"{alone.what} {alone.change}"
        text = text if alone.where.sum() > 1 else f"one weight has changed alone: {text}"
        return self._end(Finding(WEIGHT, text, where=alone.name), certain=alone.is_within_reach is False, rest=rest)

    def _of_buffers(self, step: int, state: Mapping[str, Any]) -> Finding | None:
        """Test whether the batch is good again with the buffers of a backup, such as the statistics of a norm."""
        name, share = farthest_buffer(self._model, state)
        if not name:
            return None
        with weights_of(self._model, state, with_weights=False):
            if self._runs.goes_wrong(self._batch, "the refused batch with the buffers of the backup"):
                return None
        text = f"the buffers of the model are damaged: with those of step {step:,} {self._runs.good_text}"
        rest = (f"`{name}` has changed most, by {of_length(share)} its length",)
        return self._end(Finding(WEIGHT, text, where=name), certain=True, rest=rest)

    def _of_optimizer(self, faults: Mapping[str, str], rest: tuple[str, ...] = ()) -> Finding:
        name, fault = next(iter(faults.items()))
        rest += (f"and that of {len(faults) - 1} more",) if len(faults) > 1 else ()
        text = f"the optimizer's state of `{name}` is damaged: {fault}"
        return self._end(Finding(OPTIMIZER, text, where=name), certain=True, rest=rest)

    # A batch that is good when it runs again.

    def _of_good_run(self, first: Trace) -> Finding:
        faults = optimizer_faults(self._model, self._optimizer)
        if faults:
            return self._of_optimizer(faults)
        if first.bad_gradients:
            return self._of_gradient(first, self._batch, self._held, ())
        is_scaled = hasattr(self._scaler, "get_scale") and self._scaler.is_enabled()
        scale = float(self._scaler.get_scale()) if is_scaled else 1.0
        if scale > 1 and self._runs.has_loss:
            what = f"the refused batch with the loss scale {scale:g}"
            scaled = self._runs.watch(self._batch, what, backward=True, scale=scale)
            if scaled.error is not None:
                return self._end(finding_of(scaled))
            if scaled.bad_gradients:
                text = f"the loss scale {scale:g} is too high: with it gradients are not finite, without it they are"
                return self._end(Finding(SCALE, text, where="loss scale"), certain=True)
        if not self._runs.has_loss:
            return self._of_outputs()
        text = f"run again, the batch has the loss {first.loss:.6g}"
        if not self._is_alone:
            return self._end(Finding(UNKNOWN, f"{text}, and all of its forward pass is finite"))
        reported = self._refusal.loss
        if math.isfinite(reported) and abs(reported - first.loss) <= 0.1 * abs(reported - self._refusal.usual):
            return self._end(Finding(UNKNOWN, f"{text}, and all of it is finite"))
        rest: tuple[str, ...] = (f"the loss that was reported ({reported:.6g}) is not what the model gives",)
        if self._runs.is_random and self._held.generators is None:
            # Numbers that are rare may have made it, such as the logarithm of a draw of 0.
            text = "run again with other random numbers (record='batch' keeps those of then), the batch has the loss "
            return self._end(Finding(UNKNOWN, f"{text}{first.loss:.6g}, and all of it is fine"), rest=rest)
        return self._end(Finding(NOTHING, f"{text}: model, data and gradients are fine"), certain=True, rest=rest)

    def _of_outputs(self) -> Finding:
        """Return a finding where what the model returns is finite, and no loss can be run."""
        if not self._refusal.is_finite:
            text = "all that the model returns for the batch is finite: the loss function, the labels or the gradient"
            return self._end(Finding(UNKNOWN, text))
        seen = "all that the model returns for the batch is finite; without run_batch= its loss was not tested"
        for step, state in self._backups:
            moved = compare(self._model, self._optimizer, state, max(1, self._refusal.step - step))
            if moved.alone is not None and moved.alone.is_within_reach is False:
                text = f"{moved.alone.what} {moved.alone.change}"
                return self._end(Finding(WEIGHT, text, where=moved.alone.name), rest=(seen,))
            if moved.share > LARGE_CHANGE and moved.many >= MANY:
                return self._end(Finding(UPDATE, TOO_LARGE.format(step, of_length(moved.share))), rest=(seen,))
            if moved.share:
                # A backup of just before may be of weights that were damaged as they are now.
                seen += f", and the weights have moved by {of_length(moved.share)} their length since step {step:,}"
                break
        return self._end(Finding(UNKNOWN, seen))

    # Data.

    def _of_data(self, trace: Trace, rest: tuple[str, ...]) -> Finding:
        """Find what in the batch is to blame, given healthy weights."""
        size, batch = num_rows(self._batch), self._batch
        clear = self._of_clear_input(trace, rest)
        if clear is not None and clear.is_certain:
            return clear
        odd = far_off(batch, self._good)
        found = self._of_odd(odd, trace, size) if odd else clear
        # An autoencoder's input is its label, too.
        if trace.bad_labels is not None and (found is None or found.where not in trace.read):
            rows, text = trace.bad_labels
            rows = rows if len(rows) < size else ()
            certain = self._runs.is_good_without(batch, rows) or not rows
            return self._end(Finding(LABEL, text, rows, where="label"), certain=certain, rest=rest)
        if found is not None:
            return found if found is clear else self._end(found, certain=True, rest=rest)
        fault = trace.fault
        if size == 1 and fault is not None and fault.op in SPREADS:
            return self._of_single(trace, rest)
        found = finding_of(trace)._replace(rows=self._runs.find_row(batch, trace, self._good))
        return self._end(found, certain=found.kind != UNKNOWN, rest=rest)

    def _of_odd(self, odd: Sequence[Odd], trace: Trace, size: int) -> Finding | None:
        """A finding on values of the input that are not finite or far off, if they are to blame."""
        rows = tuple(sorted({row for each in odd for row in each.rows}))
        first = odd[0]
        certain = self._runs.is_good_without(self._batch, rows)
        if not certain and (first.is_finite or len(rows) < size):
            return None
        text = f"{first.value} in the input" if not first.is_finite else f"an input of {first.value}, far beyond others"
        kind, where = INPUT, first.key
        if first.is_finite and trace.fault is None and first.key not in trace.read:
            kind, text = LABEL, f"a label or a weight of {first.value}, far beyond others"
        if first.is_finite and trace.fault is not None:
            # The operation is to blame, which does not bear what the row holds; or no such class exists.
            found = finding_of(trace)
            kind, text, where = found.kind, found.text, found.where
            if first.is_whole and first.key not in trace.read:
                kind, where = LABEL, first.key
        elif trace.first_module:
            text = f"{value_of(trace)} first in `{trace.first_module}` (forward)"
        elif trace.fault is not None:
            text = describe_place(trace)
        return Finding(kind, text, rows, first.about, where=where)

    def _redrawn(self, found: Finding) -> tuple[str, ...]:
        """Whether the sample is good as the data set gives it anew."""
        if self._redraw is None or len(found.rows) != 1 or found.rows[0] >= len(self._held.ticket.indices):
            return ()
        sample = int(self._held.ticket.indices[found.rows[0]])
        try:
            anew = [self._redraw(sample) for _ in range(8)]
        except Exception:
            return ()
        # The data set may give arrays and numbers, which become tensors later.
        bad = sum(bool(tree.not_finite(each)) for each in anew)
        self._runs.evidence.append(f"of 8 times that the sample is drawn anew {bad} are not finite")
        if not bad:
            return (
                "the data set gave it 8 times without: its random augmentation or the making of the batch is to blame",
            )
        return ("drawn anew it is not always so: its random augmentation is to blame",) if bad < 8 else ()

    def _of_single(self, trace: Trace, rest: tuple[str, ...]) -> Finding:
        """Return a finding where an operation that needs several rows got a batch of one."""
        text = f"{describe_place(trace)}: a batch of 1 has no spread"
        certain = False
        if self._good is not None and num_rows(self._good) > 1:
            both = join(self._batch, some_rows(self._good, [0], num_rows(self._good)))
            if both is not None:
                certain = not self._runs.goes_wrong(both, "the refused row with a good one beside it")
        return self._end(Finding(BATCH_SIZE, text, where=place_of(trace)), certain=certain, rest=rest)

    def _of_gradient(self, trace: Trace, batch: Any, held: Held, rest: tuple[str, ...]) -> Finding:
        """Return a finding where the loss is finite and its gradient is not."""
        fault, other = trace.fault, self._good if batch is self._batch else self._batch
        text, where = describe_gradient(trace)
        # The other of the two batches was looked at before this one.
        common = False
        if batch is self._batch and other is not None:
            seen = self._runs.watch(other, "the last good batch", backward=True, is_quick=True)
            common = bool(seen.bad_gradients)
        rows = () if common else self._runs.find_row(batch, trace, other)
        rest += ("it is so with the last good batch, too",) * common
        about = next((each.about for each in far_off(batch, other) if each.rows == rows), "")
        kind = LOSS if fault is not None and not fault.where else BACKWARD
        found = Finding(kind, text, rows, about, where=where)
        if held is not self._held:
            own = held.ticket.indices
            found = found._replace(samples=tuple(int(own[row]) for row in rows if row < len(own) and own[row] >= 0))
        return self._end(found, certain=fault is not None, rest=rest)

    def _end(self, found: Finding, *, certain: bool = False, rest: tuple[str, ...] = ()) -> Finding:
        return found._replace(
            is_certain=certain and found.kind != UNKNOWN, rest=(*found.rest, *rest), loss=self._loss,
            evidence=tuple(self._runs.evidence), num_runs=self._runs.count,
        )  # fmt: skip


def join(one: Any, other: Any) -> Any:
    """A batch of the rows of two; None where their rows have other shapes."""
    sizes = num_rows(one), num_rows(other)
    with contextlib.suppress(AttributeError, RuntimeError, TypeError, ValueError):
        return _joined(one, other, sizes)
    return None


def _joined(one: Any, other: Any, sizes: tuple[int, int]) -> Any:
    if isinstance(one, torch.Tensor):
        has_rows = one.ndim and (len(one), len(other)) == sizes
        return torch.cat([one, other]) if has_rows else one
    node, another = tree.open_node(one), tree.open_node(other)
    if node is None or another is None:
        return one
    if lists_rows(node, sizes[0]) and lists_rows(another, sizes[1]):
        return node.build([*node.parts.values(), *another.parts.values()])
    return node.build([_joined(a, b, sizes) for a, b in zip(node.parts.values(), another.parts.values(), strict=True)])

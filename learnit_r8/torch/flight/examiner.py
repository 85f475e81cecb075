"""The examiner: finds out where an incident began, by running the refused batch again.

Two batches, the refused one and the last good one, on two states of the weights, the present one and that of a backup,
tell data from weights. What a run shows in the place of the first value that is not finite is told by `trace`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...checkpoint.state_tree import copy_to_host
from ...flight.finding import UNKNOWN, Finding, Refusal
from ...sampling.random_generators import set_random_state, state_of
from ..distributed.flat_shards import is_flat
from ..distributed.shards import is_sharded
from ..state import plain_model
from .causes import Case
from .hand import Hand, Held
from .rows import not_finite
from .state_faults import bad_weights, optimizer_faults
from .untouched import fits, untouched

NO_BATCH = "the batch is not known, as its loader is not the adapter's: give run_batch= and iterate over loader()"
NO_LOSS = "without run_batch= only the forward pass can be run again: attach(..., run_batch=lambda batch: loss)"
MANY_RANKS = "with several processes nothing is run again, as a forward pass is one of all of them"


class Examiner:
    """Looks for the cause of a refusal.

    Args:
        model: The model.
        optimizer: Its optimizer.
        scaler: Its loss scaler, or None.
        run_batch: Returns the loss of a batch as the loader gives it; None where only the model can run again.
        hand: Holds the batches.
        num_ranks: Processes that train together.
        redraw: Returns a sample anew; None where it cannot be had.
        others: Networks that are trained beside the model, by their names.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Any,
        *,
        scaler: Any,
        run_batch: Callable[[Any], Any] | None,
        hand: Hand,
        num_ranks: int,
        redraw: Callable[[int], Any] | None = None,
        others: Mapping[str, torch.nn.Module] | None = None,
    ) -> None:
        if not (run_batch is None or callable(run_batch)):
            raise TypeError(
                f"run_batch must be a function of a batch that returns its loss, or None, got {run_batch!r}."
            )
        self._others = others or {}
        self._model, self._optimizer, self._scaler = plain_model(model), optimizer, scaler
        self._called, self._run_batch, self._hand = model, run_batch, hand
        self._redraw, self._num_ranks = redraw, num_ranks

    def examine(self, refusal: Refusal) -> Finding:
        """Find where an incident began; everything that is touched is put back."""
        began = time.perf_counter()
        held, good = self._hand.reported, self._hand.good
        missing = self._why_not(held)
        with untouched(self._model, self._optimizer):
            if missing:
                finding = self._look_only(refusal, held, good)._replace(missing=missing)
            else:
                assert held is not None
                finding = self._experiment(refusal, held, good)
        return finding._replace(seconds=time.perf_counter() - began)

    def _why_not(self, held: Held | None) -> str:
        if self._num_ranks > 1 or is_flat(self._model) or is_sharded(self._model):
            return MANY_RANKS
        if held is None or (self._run_batch is None and held.inputs is None):
            return NO_BATCH
        if self._run_batch is not None and held.batch is None:
            return NO_BATCH
        return ""

    def _experiment(self, refusal: Refusal, held: Held, good: Held | None) -> Finding:
        backups = [
            (step, state) for step, state in refusal.backups
            if isinstance(state, Mapping) and fits(self._model, state.get("model"))
        ]  # fmt: skip
        if held.generators is not None:
            set_random_state(state_of(held.generators))
        case = Case(
            refusal, self._model, self._optimizer, scaler=self._scaler, run=self._run, held=held,
            batch=self._batch_of(held), good_held=good, good=None if good is None else self._batch_of(good),
            backups=backups, has_loss=self._run_batch is not None, redraw=self._redraw,
            others=self._others,
        )  # fmt: skip
        finding = case.solve()
        return finding if self._run_batch is not None else finding._replace(missing=NO_LOSS)

    def _batch_of(self, held: Held) -> Any:
        return held.batch if self._run_batch is not None else held.inputs

    def _run(self, batch: Any) -> Any:
        if self._run_batch is not None:
            return self._run_batch(batch)
        args, kwargs = batch
        # What torch.compile has wrapped runs as it was written.
        return self._called(*args, **kwargs)

    def _look_only(self, refusal: Refusal, held: Held | None, good: Held | None) -> Finding:
        """What can be seen without a run: the input, the weights, the state of the optimizer."""
        batch = None if held is None else (held.batch if held.batch is not None else held.inputs)
        other = None if good is None else (good.batch if good.batch is not None else good.inputs)
        seen = [f"the input {each.key} holds {each.value}" for each in not_finite(batch, other)]
        weights = bad_weights(self._model)
        if weights:
            seen.append(f"{len(weights)} arrays of the weights are not finite, among them {next(iter(weights))}")
        names = {id(each): name for name, each in self._model.named_parameters()}
        faults = optimizer_faults(self._optimizer, names, None, 0)
        if faults and not weights:
            seen.append(f"the optimizer's state of {faults[0].name}: {faults[0].text}")
        text = "; ".join(seen) or "input, weights and the optimizer's state are finite" * (batch is not None)
        return Finding(UNKNOWN, text or "the weights and the optimizer's state are finite")

    def collect(self) -> dict[str, Any]:
        """Copies of the refused batch and of the generators at its start, for a record."""
        held = self._hand.reported
        parts: dict[str, Any] = {}
        if held is not None:
            batch = held.batch if held.batch is not None else held.inputs
            about = {"is_inputs": held.batch is None, "is_training": self._model.training}
            parts["batch"] = copy_to_host({"batch": batch, **about})
            if held.generators is not None:
                parts["generators"] = state_of(held.generators)
        return parts

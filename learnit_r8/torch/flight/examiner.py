"""The examiner: finds out where an incident began, by running the refused batch again.

Two batches, the refused one and the last good one, on two states of the weights, the present one and that of a backup,
tell data from weights. What a run shows in the place of the first value that is not finite is told by `watch`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import SyncBatchNorm
from torch.nn.parallel import DistributedDataParallel

from ...events.incident import describe_error
from ...recovery.cause import NOTHING, UNKNOWN, Finding, Refusal
from ...sources.random_generators import set_random_state, state_of
from ...state.batch_rows import not_finite
from ...state.tree import copy_to_host
from ..distributed.shards import is_sharded
from ..prepared import plain_model
from .causes import Case
from .hand import Hand, Held
from .state_faults import bad_weights, optimizer_faults, vanished_eps
from .untouched import fits, untouched

if TYPE_CHECKING:
    from ..distributed.together import Sharing

NO_BATCH = "the batch is not known, as its loader is not the adapter's: give run_batch= and iterate over loader()"
NO_LOSS = "without run_batch= only the forward pass can be run again: attach(..., run_batch=lambda batch: loss)"
MANY_RANKS = "nothing is run again where a forward pass is one of all processes (sharded weights, SyncBatchNorm)"
NO_GRADIENTS = "with several processes each runs its own part of the batch, forward only: gradients are not looked at"


class Examiner:
    """Looks for the cause of a refusal.

    Args:
        model: The model.
        optimizer: Its optimizer.
        scaler: Its loss scaler, or None.
        run_batch: Returns the loss of a batch as the loader gives it; None where only the model can run again.
        hand: Holds the batches.
        sharing: How the processes share a batch.
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
        sharing: Sharing,
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
        self._parts: tuple[Held | None, dict[str, Any]] = None, {}
        self._redraw, self._sharing = redraw if sharing.size == 1 else None, sharing

    def examine(self, refusal: Refusal) -> Finding:
        """Find where an incident began; everything that is touched is put back. All ranks call it at the same step."""
        began = time.perf_counter()
        gather = self._sharing.gather
        try:
            finding = self._examine(refusal)
        except Exception as error:
            if gather is None:
                raise
            # The others wait for what this rank has found.
            finding = Finding(UNKNOWN, f"the search for the cause failed ({describe_error(error)})")
        if gather is not None:
            findings = gather(finding)
            place = _clearest(findings)
            finding = findings[place]
            if self._hand.keeps_generators:
                # The record holds the part of the batch that the finding is about.
                parts = gather(self._own_parts() if place == self._sharing.rank else None)[place]
                self._parts = self._hand.reported, parts
        return finding._replace(seconds=time.perf_counter() - began)

    def _examine(self, refusal: Refusal) -> Finding:
        held, good = self._hand.reported, self._hand.good
        missing = self._why_not(held)
        with untouched(self._model, self._optimizer):
            if missing:
                return self._look_only(refusal, held, good)._replace(missing=missing)
            assert held is not None
            if self._sharing.size == 1:
                return self._experiment(refusal, held, good)
            with _alone(self._called):
                found = self._experiment(refusal, held, good)
        own = self._sharing.part(np.asarray(held.ticket.indices)).tolist()
        samples = tuple(own[row] for row in found.rows if row < len(own) and own[row] >= 0)
        rest = (*found.rest, f"seen on rank {self._sharing.rank}")
        return found._replace(samples=samples, rest=rest, missing=found.missing or NO_GRADIENTS)

    def _why_not(self, held: Held | None) -> str:
        is_synced = self._sharing.size > 1 and any(isinstance(each, SyncBatchNorm) for each in self._model.modules())
        if is_synced or is_sharded(self._model):
            return MANY_RANKS
        is_known = held is not None and (held.inputs if self._run_batch is None else held.batch) is not None
        return "" if is_known else NO_BATCH

    def _experiment(self, refusal: Refusal, held: Held, good: Held | None) -> Finding:
        backups = [
            (step, state) for step, state in refusal.backups
            if isinstance(state, Mapping) and fits(self._model, state.get("model"))
        ]  # fmt: skip
        if held.generators is not None:
            set_random_state(state_of(held.generators))
        # What a later call got may have been made with the weights that are damaged, or be no batch of the loader.
        first = held.first if self._run_batch is None else None
        takes_first = first is not None and bool(bad_weights(self._model) or not_finite(first))
        case = Case(
            refusal, self._model, self._optimizer, scaler=self._scaler, run=self._run, held=held,
            batch=self._batch_of(held, takes_first), good_held=good,
            good=None if good is None else self._batch_of(good, takes_first),
            backups=backups, has_loss=self._run_batch is not None, redraw=self._redraw,
            others=self._others, is_alone=self._sharing.size == 1,
        )  # fmt: skip
        finding = case.solve()
        return finding if self._run_batch is not None else finding._replace(missing=NO_LOSS)

    def _batch_of(self, held: Held, takes_first: bool) -> Any:
        if self._run_batch is not None:
            return held.batch
        return held.first if takes_first and held.first is not None else held.inputs

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
            seen += filter(None, [vanished_eps(self._model, self._optimizer, weights)])
        elif faults := optimizer_faults(self._model, self._optimizer):
            name, fault = next(iter(faults.items()))
            seen.append(f"the optimizer's state of {name}: {fault}")
        text = "; ".join(seen) or "input, weights and the optimizer's state are finite" * (batch is not None)
        return Finding(UNKNOWN, text or "the weights and the optimizer's state are finite")

    def collect(self) -> dict[str, Any]:
        """Copies of the refused batch and of the generators at its start, for a record; of the rank to blame."""
        held, parts = self._parts
        return parts if held is not None and held is self._hand.reported else self._own_parts()

    def _own_parts(self) -> dict[str, Any]:
        held = self._hand.reported
        parts: dict[str, Any] = {}
        if held is not None:
            batch = held.batch if held.batch is not None else held.inputs
            about = {"is_inputs": held.batch is None, "is_training": self._model.training}
            parts["batch"] = copy_to_host({"batch": batch, **about})
            if held.generators is not None:
                parts["generators"] = state_of(held.generators)
        return parts


def _clearest(findings: Sequence[Finding]) -> int:
    """The rank that has found the most certain; that all is fine only where no rank has found anything else."""

    def clearness(rank: int) -> tuple[bool, bool, bool]:
        found = findings[rank]
        return found.kind not in (UNKNOWN, NOTHING), found.is_certain, bool(found.rows)

    return max(range(len(findings)), key=clearness)


@contextlib.contextmanager
def _alone(model: torch.nn.Module) -> Iterator[None]:
    """A ``with`` block in which a model wrapped for data parallelism runs without the other ranks."""
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    model.__dict__["forward"] = model.module.__call__
    try:
        yield
    finally:
        del model.__dict__["forward"]

"""A recorded incident, loaded to have the same failure again."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..._validation import shortened
from ...recovery.record import BadRecord, read_part, read_record
from ...sources.random_generators import set_random_state
from ...state.kinds import ANYTHING, check_kinds
from ...state.tree import map_leaves
from ..prepared import plain_model

_BATCH = {"batch": ANYTHING, "is_inputs": False, "is_training": False}
"""What `Examiner.collect` keeps."""


class RecordedIncident:
    """An incident as its record holds it; `load_incident` makes it.

    Attributes:
        record: All facts, as plain values: the record's JSON.
        cause: One sentence on where it began; "" if nobody could look.
        batch: The refused batch, with tensors on the CPU; None if the record holds none. Where the batch itself was not
            known, what the model got: ``{"args": ..., "kwargs": ...}``.
        generators: The random generators at its start, for `replay`; None if they were not kept.
        refused: The refused state, "model" and "optimizer" among its parts; None if the record holds none.
        restored: The state from which the training went on after the last restore; None if there was none, or the
            record holds none.
        loss: The loss of the batch when it was run again, which `replay` repeats; NaN if it was not.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.record = read_record(path)
        self.cause: str = self.record["cause"]
        held = read_part(path, "batch")
        try:
            check_kinds(held, (_BATCH,), {}, "batch", is_example=True)
            if held is not None and held["is_inputs"]:
                check_kinds(held["batch"], [[ANYTHING], {}], {}, "batch.batch", is_example=True)
        except ValueError as error:
            raise BadRecord(f"{path} must hold a batch, got something else ({error}).") from None
        self.batch: Any = None if held is None else held["batch"]
        self._is_inputs = held is not None and bool(held["is_inputs"])
        self._is_training = held is None or bool(held["is_training"])
        if held is not None and self._is_inputs:
            args, kwargs = held["batch"]
            self.batch = {"args": args, "kwargs": kwargs}
        self.generators = read_part(path, "generators")
        self.refused, self.restored = read_part(path, "refused"), read_part(path, "restored")
        refusals = self.record["refusals"]
        finding = refusals[0].get("finding") if refusals else None
        loss = finding.get("loss") if isinstance(finding, dict) else None
        self.loss = float(loss) if isinstance(loss, (int, float)) else math.nan

    def __repr__(self) -> str:
        # The cause begins with its step.
        step = f"step {self.record['step']:,}: "
        return f"RecordedIncident({step}{(self.cause or self.record['diagnosis'] or '?').removeprefix(step)})"

    def replay(self, model: torch.nn.Module, loss_fn: Callable[[torch.nn.Module, Any], Any] | None = None) -> Any:
        """Run the refused batch once more, as it was: the refused weights, if they are recorded, and the generators.

        On a CPU the loss is the same to the bit. It has its graph, so ``backward()`` may follow, and a debugger or
        ``torch.autograd.set_detect_anomaly(True)`` may be on.

        Args:
            model: A model like the one that was trained. The refused weights are loaded into it; without them in the
                record, it is run as it is.
            loss_fn: ``(model, batch)``, returns the loss. Without it the model gets the batch as it did then.

        Returns:
            What ``loss_fn`` returns, else what the model does.

        Raises:
            ValueError: the record holds no batch: it was made with ``record="names"``, or exported without data; or its
                state is not that of a model.
        """
        if self.batch is None:
            raise ValueError(
                f"{str(self.path)!r} must hold a batch to be run again, got none: train with record='batch' or "
                "record='all', and export with --data."
            )
        own = plain_model(model)
        if self.refused is not None:
            if not (isinstance(self.refused, Mapping) and isinstance(self.refused.get("model"), Mapping)):
                raise ValueError(
                    f"{str(self.path)!r} must hold the refused weights under 'model', got {shortened(self.refused)}."
                )
            own.load_state_dict(self.refused["model"])
        own.train(self._is_training)
        device = next((each.device for each in own.parameters()), torch.device("cpu"))
        batch = map_leaves(lambda leaf, *_: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, self.batch)
        if self.generators is not None:
            set_random_state(self.generators)
        if loss_fn is not None:
            return loss_fn(model, batch)
        return model(*batch["args"], **batch["kwargs"]) if self._is_inputs else model(batch)


def load_incident(path: str | os.PathLike[str]) -> RecordedIncident:
    """Load the record of an incident.

    Args:
        path: Its folder, ``<run folder>/incidents/3``, or a file of ``learnit-r8 incidents --export``.

    Raises:
        ValueError: it is no such record, a damaged one or one of another version.
        OSError: it cannot be read.
    """
    return RecordedIncident(path)

"""Where an incident of ``fit`` began: the refused batch runs through the layers once more, eagerly."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from ..bridge.place_search import PlaceSearch, Shown, Subject, bad_arrays, first_bad
from ..recovery.cause import Finding, Refusal
from ..state.batch_rows import rows_of
from ..state.tree import clone
from .devices import num_replicas
from .losses import sample_losses
from .state import ModelState, as_numpy

NO_BATCH = "the batch is not known: only a step on one device holds it, and not a call that takes several steps"
FORWARD_ONLY = "the forward pass alone was run again, on the weights after the refused step or on those of a backup"
MANY_REPLICAS = "with several replicas nothing is run again"


class Examiner(Subject):
    """Looks for the cause of a refusal; all that it touches is put back.

    Args:
        model: The model.
        state: Its variables.
        batch_in_hand: Returns the refused batch, ``x``, ``(x, y)`` or ``(x, y, sample_weight)``; None if it is not
            known.
        weighs: Whether the losses that are reported are those that are trained on, with weights of samples and
            penalties.
    """

    is_exact = False

    def __init__(
        self, model: Any, state: ModelState, batch_in_hand: Callable[[], Any], *, weighs: bool = False
    ) -> None:
        self._model, self._state, self._batch_in_hand, self._weighs = model, state, batch_in_hand, weighs

    def examine(self, refusal: Refusal) -> Finding:
        """Find where an incident began."""
        is_many = num_replicas(self._model) > 1
        batch = None if is_many else self._arrays()
        self.batch = None if batch is None else dict(zip(("x", "y", "sample_weight"), batch, strict=False))
        self.missing = MANY_REPLICAS if is_many else NO_BATCH if self.batch is None else FORWARD_ONLY
        # A backup must not be changed by the run, and what is here now must come back.
        self._present = clone(self._state.read())
        # A layer may keep some of its own, which count each call.
        metrics = [(each, np.array(as_numpy(each))) for each in self._model.metrics_variables]
        try:
            return PlaceSearch(refusal, self).solve()
        finally:
            self._state.load(self._present, from_ram=True)
            for variable, value in metrics:
                variable.assign(value)
            self.batch = None

    def collect(self) -> dict[str, Any]:
        """The refused batch, for a record; without it nothing."""
        batch = self._arrays()
        return {} if batch is None else {"batch": {"batch": batch, "is_inputs": False, "is_training": True}}

    def _arrays(self) -> Any:
        batch = self._batch_in_hand()
        if batch is None:
            return None
        # The loaders of torch give lists, which Keras reads as tuples.
        batch = tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)
        return keras.tree.map_structure(lambda each: each if each is None else ops.convert_to_numpy(each), batch)

    def bad_weights(self) -> dict[str, int]:
        """See `Subject`."""
        return bad_arrays([(each.path, each) for each in self._model.weights], as_numpy)

    def run(self, batch: Any, weights: Any) -> Shown:
        """See `Subject`; the loss is in the unit of those that are reported."""
        self._state.load(self._present if weights is None else weights, from_ram=True)
        x, y = batch["x"], batch.get("y")
        size = len(keras.tree.flatten(x)[0])
        seen: list[tuple[str, str, tuple[int, ...]]] = []

        def look(name: str, output: Any) -> None:
            if seen:
                return
            for each in keras.tree.flatten(output):
                try:
                    array = ops.convert_to_numpy(each)
                except TypeError:
                    # On JAX the cell of a recurrent layer is traced: the layer tells.
                    return
                what, rows = first_bad(array, size)
                if what:
                    seen.append((name, what, rows))
                    return

        with _watched(self._model, look):
            predicted = self._model(keras.tree.map_structure(ops.convert_to_tensor, x), training=True)
        losses = self._losses(y, predicted)
        what, rows = ("", ()) if losses is None else first_bad(losses, size)
        has_own = type(self._model).compute_loss is not keras.Model.compute_loss
        if self._weighs and (losses is not None or has_own):
            total = self._total(x, y, predicted, batch.get("sample_weight"))
            what = what or first_bad(total, size)[0]
            loss = float(total)
        else:
            loss = math.nan if losses is None else float(np.mean(losses))
        if losses is not None and not what:
            usual = float(np.median(losses))
            rows = rows_of(losses > 100 * max(usual, 1e-6))
        return Shown(loss, *seen[0]) if seen else Shown(loss, "", what, rows)

    def _losses(self, y: Any, predicted: Any) -> Any:
        """The loss of each sample, or one for all of them; None where the model has none of its own."""
        if y is None or self._model.loss is None:
            return None
        try:
            return ops.convert_to_numpy(sample_losses(self._model.loss, y, predicted))
        except (TypeError, ValueError):
            return self._total(None, y, predicted, None)

    def _total(self, x: Any, y: Any, predicted: Any, weights: Any) -> NDArray[Any]:
        """The loss that a step would train on, 0-dim."""
        # As Keras calls one of the user's own.
        mode = {"training": False} if getattr(self._model, "_compute_loss_has_training_arg", True) else {}
        total = self._model.compute_loss(x=x, y=y, y_pred=predicted, sample_weight=weights, **mode)
        return np.asarray(ops.convert_to_numpy(total))

    def bad_labels(self) -> tuple[tuple[int, ...], str]:
        """See `Subject`: class numbers beyond the outputs, targets of a binary cross entropy outside of [0, 1]."""
        y = self.batch.get("y")
        if not isinstance(y, np.ndarray) or not isinstance(self._model.loss, (str, keras.losses.Loss)):
            return (), ""
        loss = keras.losses.get(self._model.loss)
        name = type(loss).__name__ if isinstance(loss, keras.losses.Loss) else getattr(loss, "__name__", "")
        name = name.lower().replace("_", "")
        if name == "sparsecategoricalcrossentropy" and isinstance(self._model.output_shape, tuple):
            count = self._model.output_shape[-1]
            ignored = getattr(loss, "ignore_class", None)
            return _outside(y, ((y < 0) | (y >= count)) & (y != ignored), f"a label outside of the {count} classes")
        if name == "binarycrossentropy":
            return _outside(y, (y < 0) | (y > 1), "a label outside of [0, 1]")
        return (), ""


def _outside(y: Any, bad: Any, text: str) -> tuple[tuple[int, ...], str]:
    rows = rows_of(bad)
    if not rows:
        return (), ""
    return rows if len(rows) < len(y) else (), f"{text}: {y[bad].reshape(-1)[0]:.6g}"


@contextlib.contextmanager
def _watched(model: Any, look: Callable[[str, Any], None]) -> Iterator[None]:
    """A ``with`` block in which ``look`` gets the name and the output of each layer, the innermost first."""
    changed = []

    def watch(layer: Any) -> None:
        call = layer.call

        def listen(*args: Any, **kwargs: Any) -> Any:
            output = call(*args, **kwargs)
            look(layer.name, output)
            return output

        changed.append((layer, vars(layer).get("call")))
        # Past the tracker of Keras, which takes what is assigned for a part of the layer.
        object.__setattr__(layer, "call", listen)

    try:
        for layer in model._flatten_layers(include_self=False, recursive=True):
            if not isinstance(layer, keras.layers.InputLayer):
                watch(layer)
        yield
    finally:
        for layer, before in changed:
            if before is None:
                object.__delattr__(layer, "call")
            else:
                object.__setattr__(layer, "call", before)

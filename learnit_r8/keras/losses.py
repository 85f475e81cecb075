"""Per-sample losses: of a loss function, and out of a compiled training step."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import keras
from keras import ops
from keras.src.backend import get_keras_mask
from numpy.typing import NDArray

from ..table.labels.predictions import MOST_CLASSES, NUM_ROWS, UNLABELLED, Predictions, check_shapes
from .devices import gather, num_replicas, scope_of, unscale_loss
from .live_values import CarriedVariable, LiveValues, RateFactor
from .state import to_numpy
from .train_function import TrainFunction

Recorder = TypeVar("Recorder", bound="StepRecorder")

LEAST = 1e-37
"""Probabilities below are taken for this."""


def predictions_of(y_true: Any, y_pred: Any, *, from_logits: bool = False) -> Predictions:
    """The predictions of a batch, for `Batches.report` and `R8Scheduler.report`.

    Args:
        y_true: int[B] or int[B, 1], classes in [0, C); -1 for samples without a label.
        y_pred: float[B, C], probabilities of the classes; or float[B] or float[B, 1], that of class 1 of two.
        from_logits: Whether these are logits.

    Returns:
        Tensors; a ``tf.function`` may return them.

    Raises:
        ValueError: the shapes or dtypes are not these; for one-hot targets give their ``argmax``.
    """
    given, scores = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    if len(given.shape) == 2 and given.shape[1] == 1:
        given = ops.squeeze(given, 1)
    is_whole = "int" in str(given.dtype)
    check_shapes(tuple(scores.shape), tuple(given.shape), is_whole=is_whole)
    return _judged(given, scores, from_logits=from_logits)


def predictions_in(loss: Any, y_true: Any, y_pred: Any) -> Predictions | None:
    """The predictions in what a loss of Keras is computed from; None unless it is a cross entropy of single labels.

    Args:
        loss: A `keras.losses.Loss`. One with a ``call`` of its own may do anything with the targets.
        y_true: Its targets: classes, one-hot rows, or 0 and 1 of two classes. A sample whose target is in between, as
            with mixed samples, or no class of the model, has no label.
        y_pred: float[B, C], or float[B, 1] of two classes.
    """
    if getattr(type(loss), "call", None) is not _CALL:
        return None
    function, settings = getattr(loss, "fn", None), getattr(loss, "_fn_kwargs", {})
    given, scores = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    if len(scores.shape) != 2 or settings.get("axis", -1) not in (-1, 1):
        return None
    is_column = len(given.shape) == 1 or (len(given.shape) == 2 and given.shape[1] == 1)
    classes = scores.shape[1]
    if function in _BINARY and classes == 1 and is_column:
        flat = ops.reshape(given, (-1,))
        given = ops.where((flat == 0) | (flat == 1), ops.cast(flat, "int32"), UNLABELLED)
    elif classes is None or not 2 <= classes <= MOST_CLASSES:
        return None
    elif function is keras.losses.sparse_categorical_crossentropy and is_column:
        given = ops.cast(ops.reshape(given, (-1,)), "int32")
        # What is gathered by these below must exist.
        given = ops.where((given >= 0) & (given < classes), given, UNLABELLED)
        if settings.get("ignore_class") is not None:
            given = ops.where(given == settings["ignore_class"], UNLABELLED, given)
    elif function in _ONE_HOT and len(given.shape) == 2:
        is_one = (ops.max(given, axis=1) == 1) & (ops.sum(ops.cast(given != 0, "int32"), axis=1) == 1)
        given = ops.where(is_one, ops.cast(ops.argmax(given, axis=1), "int32"), UNLABELLED)
    else:
        return None
    return _judged(given, scores, from_logits=bool(settings.get("from_logits", False)))


_CALL = keras.losses.SparseCategoricalCrossentropy.call
"""What all losses of Keras inherit: it calls ``fn`` with the targets as they are."""

_BINARY = (keras.losses.binary_crossentropy, keras.losses.binary_focal_crossentropy)
_ONE_HOT = (keras.losses.categorical_crossentropy, keras.losses.categorical_focal_crossentropy)


def _judged(given: Any, scores: Any, *, from_logits: bool) -> Predictions:
    """The predictions from labels, number[B], and scores as `predictions_of` takes them, of checked shapes."""
    scores = ops.cast(ops.stop_gradient(scores), "float32")
    if len(scores.shape) == 1 or scores.shape[1] == 1:
        scores = ops.reshape(scores, (-1,))
        others = ops.zeros_like(scores) if from_logits else 1 - scores
        scores = ops.stack([others, scores], axis=1)
    if not from_logits:
        scores = ops.log(ops.maximum(scores, LEAST))
    given = ops.cast(given, "int32")
    highest, order = ops.top_k(scores, 2)
    predicted = ops.cast(order[:, 0], "int32")
    own = ops.squeeze(ops.take_along_axis(scores, ops.expand_dims(ops.maximum(given, 0), 1), axis=1), 1)
    rival = ops.where(predicted == given, highest[:, 1], highest[:, 0])
    return Predictions(rival - own, predicted, given, int(scores.shape[1]))


STEP_ROWS = "r8_step_rows"
"""What a step returns of its own: its losses, and what is predicted."""


def sample_losses(loss: Any, y_true: Any, y_pred: Any) -> Any:
    """The loss of each sample, for the mean to be trained on and the vector to be reported.

    Args:
        loss: A `keras.losses.Loss` (its reduction does not matter), the name of one, or a function of targets and
            predictions that does not reduce over the samples.
        y_true: [B, ...], the targets.
        y_pred: [B, ...], the predictions; its Keras mask is respected.

    Returns:
        float[B], the mean over all other dimensions.

    Raises:
        ValueError: the loss is one number for the whole batch.
    """
    function = keras.losses.get(loss)
    call = function.call if isinstance(function, keras.losses.Loss) else function
    losses = call(ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred))
    if not len(losses.shape):
        raise ValueError(f"loss must give one number for each sample, got one for all of them from {loss!r}.")
    return per_sample(losses, get_keras_mask(y_pred))


def per_sample(losses: Any, mask: Any = None) -> Any:
    """float[B] of unreduced losses [B, ...]: the mean of each sample's, or of those that a mask [B, T] keeps."""
    rank = len(losses.shape)
    if rank == 1:
        return losses
    others = tuple(range(1, rank))
    if mask is None:
        return ops.mean(losses, axis=others)
    while len(mask.shape) < rank:
        mask = ops.expand_dims(mask, -1)
    kept = ops.broadcast_to(ops.cast(mask, "bool"), ops.shape(losses))
    total = ops.sum(ops.where(kept, losses, ops.zeros_like(losses)), axis=others)
    return ops.divide_no_nan(total, ops.sum(ops.cast(kept, losses.dtype), axis=others))


class StepMemory(CarriedVariable):
    """Holds what was recorded of the last steps, and behind it how often something was, modulo ``modulus``.

    Args:
        model: The model whose steps these are.
        name: A name of its own.
        shape: Steps that there is room for, and numbers of each.
        aggregation: What becomes of the numbers of several replicas; see ``add_variable`` of Keras.
    """

    def __init__(self, model: Any, name: str, shape: tuple[int, int], aggregation: str) -> None:
        with scope_of(model):
            super().__init__(name=name)
            self.shape = num_steps, _ = shape
            # Which float32 counts exactly.
            self.modulus = num_steps * (2**23 // num_steps)
            self.values = self.add_variable(
                shape=(math.prod(shape) + 1,), initializer="zeros", dtype="float32", aggregation=aggregation,
                name="values",
            )  # fmt: skip

    def keep(self, record: Any) -> None:
        """Note what was recorded of a step, number[any], or 0-dim."""
        values, num_steps = self.values, self.shape[0]
        record = ops.cast(ops.stop_gradient(record), "float32")
        is_here = ops.arange(num_steps, dtype="float32") == ops.mod(values[-1], float(num_steps))
        kept = ops.where(ops.expand_dims(is_here, 1), record, ops.reshape(values[:-1], self.shape))
        count = ops.mod(values[-1:] + 1.0, float(self.modulus))
        self.values.assign(ops.concatenate([ops.reshape(kept, (-1,)), count]))


class StepRecorder:
    """Hears the losses of compiled training steps, and reads them once the steps are done.

    Args:
        model: Compiled; its ``compute_loss`` is replaced by one that lets itself be heard.
        capacity: Losses that there is room for.
        memory: What steps write to that cannot return anything; None where they can.

    Attributes:
        capacity: As given.
        live: Reads variables of the model while ``fit`` runs.
        function: The training function, which keeps the state before each step.
        rates: Those of the optimizers; see `follow`.
    """

    rates: RateFactor

    def __init__(self, model: Any, capacity: int, memory: StepMemory | None) -> None:
        self.capacity, self._model = capacity, model
        self._memory: Any = memory
        self.live, self._num_written = LiveValues(model), 0
        # Replicas are traced in threads that take turns within a step.
        self._local = threading.local()
        original = getattr(model.compute_loss, "__wrapped__", model.compute_loss)
        signature = inspect.signature(original)

        @functools.wraps(original)
        def compute_loss(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            is_training, y_pred = given.arguments.get("training", True), given.arguments.get("y_pred")
            with self.listening() as heard:
                try:
                    total = original(*args, **kwargs)
                except RuntimeError:
                    outputs = keras.tree.flatten(y_pred) if is_training and keras.backend.backend() == "torch" else []
                    # NaN for each sample of which an output is NaN, which a binary cross entropy does not take; else 0.
                    nan = sum(per_sample(ops.where(ops.isnan(each), math.nan, 0.0)) for each in outputs)
                    if not bool(ops.any(ops.isnan(nan))):
                        raise
                    heard.clear()
                    given.arguments["y_pred"] = keras.tree.map_structure(
                        lambda each: ops.where(ops.isnan(each), 0.5, each), y_pred
                    )
                    total = original(*given.args, **given.kwargs) + ops.sum(nan)
                    heard[:] = [each._replace(losses=per_sample(each.losses) + nan) for each in heard]
            if is_training:
                self.hear(total, heard, y_pred)
            return total

        compute_loss.recorder = self  # type: ignore[attr-defined]
        model.compute_loss = compute_loss
        if keras.backend.backend() == "jax":
            # JAX steps hand back only variables that they know of. In place: a built model takes no other list.
            model._metrics[:] = [*(each for each in model._metrics if not isinstance(each, StepMemory)), memory]
        self.function = TrainFunction(model)

    @classmethod
    def of(cls: type[Recorder], model: Any, capacity: int) -> Recorder:
        """The recorder of a model, which keeps it for good so that a second ``fit`` traces nothing again."""
        found = getattr(model.compute_loss, "recorder", None)
        is_large = isinstance(found, cls) and found.capacity >= capacity
        return found if is_large else cls(model, capacity)  # type: ignore[call-arg, return-value]

    def begin(self) -> None:
        """Note that the next step that is written is that of the next batch."""
        self.function.begin_epoch()
        self.function.take()
        if self._memory is not None:
            self._read_memory()

    def follow(self, optimizers: list[Any]) -> RateFactor:
        """The rates of these optimizers, which are those of the steps from now on."""
        self.rates = self.function.rates = RateFactor(self._model, optimizers, self.live)
        return self.rates

    def _read_memory(self) -> tuple[list[NDArray[Any]], int]:
        """What was recorded since the last call, of the last steps alone where there is no room for more; how often."""
        memory, array = self._memory, self.live.read(self._memory.values)
        count = (int(array[-1]) - self._num_written) % memory.modulus
        self._num_written = int(array[-1])
        records, num_steps = array[:-1].reshape(memory.shape), memory.shape[0]
        first = self._num_written - min(count, num_steps)
        return [records[number % num_steps] for number in range(first, self._num_written)], count

    def listening(self) -> contextlib.AbstractContextManager[list[Heard]]:
        """A ``with`` block around the computation of a loss; gives a list of what is heard of it."""
        return contextlib.nullcontext([])

    def hear(self, total: Any, heard: list[Heard], y_pred: Any) -> None:
        """Hear the loss of a batch that is trained on."""
        raise NotImplementedError


class LossRecorder(StepRecorder):
    """Hears the unreduced losses of a compiled training step, which returns them beside its logs.

    On JAX, and with several replicas, the step keeps them in a variable. Where there is one cross entropy, of single
    labels, what is predicted in their place goes beside the losses.

    It stands in for the model's ``compute_loss``, and while that runs (under ``tf.function``, while it is traced)
    listens to the losses the model was compiled with. Sample weights and class weights are applied after that.

    Args:
        model: A compiled Keras model.
        capacity: Most samples in a batch.

    Attributes:
        is_exact: Whether the last step traced had a loss for each sample; else there is the mean of the batch.
        num_classes: C, where that step had predictions; else 0.
        live: The values of the model's variables.
        function: The model's training function.
    """

    def __init__(self, model: Any, capacity: int) -> None:
        self.is_exact = True
        self.num_classes = 0
        self._num_listening = 0
        memory = StepMemory(model, "r8_losses", (1, (1 + NUM_ROWS) * capacity), "only_first_replica")
        super().__init__(model, capacity, memory)
        if keras.backend.backend() != "jax" and num_replicas(model) == 1:
            model.train_step = self._returning(getattr(model.train_step, "__wrapped__", model.train_step))

    def losses(self, count: int) -> NDArray[Any] | float:
        """Of the last step: float[count] for its samples, or the mean where there are none.

        Raises:
            RuntimeError: the step did not compute its loss through ``compute_loss``, or did so more than once.
        """
        rows = self.function.take().get(STEP_ROWS)
        if rows is None:
            records, calls = self._read_memory()
            if calls != 1:
                raise RuntimeError(
                    f"train_step must compute its loss with one call of self.compute_loss(x, y, y_pred, "
                    f"sample_weight), where the scheduler reads the losses, got {calls} in this step. Call it once, or "
                    "write your own loop with batch_dataset() and report()."
                )
            rows = records[0].reshape(1 + NUM_ROWS, self.capacity)
        self._rows = to_numpy(rows)[:, :count]
        return self._rows[0] if self.is_exact else float(self._rows[0, 0])

    def predictions(self) -> Predictions | None:
        """Of the step whose `losses` were asked for: what is predicted; None where that is not known."""
        return Predictions.unpack(self._rows, self.num_classes)[1] if self.num_classes else None

    def _returning(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A training step that returns the rows of its one call of ``compute_loss``."""

        @functools.wraps(step)
        def train_step(*args: Any, **kwargs: Any) -> Any:
            held: list[Any] = []
            self._local.held, self._local.graph = held, _graph()
            try:
                logs = step(*args, **kwargs)
            finally:
                self._local.held = None
            returned = self.function.put(logs, {STEP_ROWS: held[0]}) if len(held) == 1 else None
            for rows in held if returned is None else ():
                self._keep(rows)
            return returned or logs

        return train_step

    def _hold(self, *columns: Any) -> None:
        """Hold the losses, and what may follow them, number[any] each, for the step to return."""
        rows = ops.stack([ops.cast(ops.stop_gradient(each), "float32") for each in columns])
        held = getattr(self._local, "held", None)
        if held is None or _graph() is not self._local.graph:
            self._keep(rows)
        else:
            held.append(rows)

    def _keep(self, rows: Any) -> None:
        """Keep them in the variable; what is beyond the capacity is of no batch of the scheduler."""
        rows = rows[:, : self.capacity]
        size = 1 + NUM_ROWS - rows.shape[0], self.capacity - ops.shape(rows)[1]
        self._memory.keep(ops.reshape(ops.pad(rows, [[0, more] for more in size]), (-1,)))

    @contextlib.contextmanager
    def listening(self) -> Iterator[list[Heard]]:
        """The list of the thread, to which the compiled losses append what they take and return, in their order."""
        heard = self._local.heard = []
        functions = {id(entry.loss): entry.loss for entry in self._compiled()}.values()
        for function in functions if not self._num_listening else ():
            function.call = _overheard(function, self._local)
        self._num_listening += 1
        try:
            yield heard
        finally:
            self._num_listening -= 1
            for function in functions if not self._num_listening else ():
                del function.call

    def _compiled(self) -> list[Any]:
        compiled = self._model._compile_loss
        return [] if compiled is None else compiled._flat_losses or []

    def hear(self, total: Any, heard: list[Heard], y_pred: Any) -> None:
        """Write the losses of the batch, the sum over the outputs with their loss weights, to the variable."""
        weights = [entry.loss_weights for entry in self._compiled()]
        self.is_exact = bool(heard) and len(heard) == len(weights) and all(len(each.losses.shape) for each in heard)
        self.num_classes = 0
        if not self.is_exact:
            # Keras divides sums by the replicas, but not the one number of a compiled loss.
            mean = total if heard else unscale_loss(total)
            self._hold(ops.mean(gather([ops.reshape(mean, (1,))])[0], keepdims=True))
            return
        masks = [get_keras_mask(_output_at(entry.path, y_pred)) for entry in self._compiled()]
        parts = [per_sample(each.losses, mask) for each, mask in zip(heard, masks, strict=True)]
        losses = sum(part if w is None else part * w for part, w in zip(parts, weights, strict=True))
        found = predictions_in(*heard[0][:3]) if len(heard) == 1 and len(heard[0].losses.shape) == 1 else None
        self.num_classes = 0 if found is None else found.num_classes
        self._hold(*gather([losses, *([] if found is None else found[:NUM_ROWS])]))


def _graph() -> Any:
    """The graph of TensorFlow's that is being built, as of a loop within a step; None on other back ends."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    return tf.compat.v1.get_default_graph()


def _output_at(path: tuple[Any, ...], y_pred: Any) -> Any:
    """The output that a loss is of; some outputs may have none."""
    for part in path:
        if not isinstance(y_pred, (Mapping, list, tuple)):
            return y_pred
        y_pred = y_pred[part]
    return y_pred


class Heard(NamedTuple):
    """A loss function with what it was called with and what it returned: [B, ...], or 0-dim."""

    function: Any
    y_true: Any
    y_pred: Any
    losses: Any


def _overheard(function: Any, local: threading.local) -> Callable[..., Any]:
    call = function.call

    def listen(y_true: Any, y_pred: Any) -> Any:
        losses = call(y_true, y_pred)
        local.heard.append(Heard(function, y_true, y_pred, losses))
        return losses

    return listen

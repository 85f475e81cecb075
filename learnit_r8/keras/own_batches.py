"""The callback of a ``fit`` over data of the user's own: it watches the training, and heals the model."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import keras
from keras import ops
from keras.src.backend.common.stateless_scope import in_stateless_scope

from ..bridge.host import expect_rivals
from ..engine.feed.replay import drop
from ..state.callbacks import Repeat
from ..triggers import Condition
from .dataset import has_stage
from .devices import scope_of, unscale_loss
from .fit_callback import FitCallback
from .losses import Heard, StepMemory, StepRecorder
from .state import ModelState
from .train_function import callbacks_of_fit, check_alone, local_of_fit, scope_of_fit, yield_steps

RESTORED_TWICE = (
    "callbacks must not have a BackupAndRestore beside checkpoint_dir, got {!r}: after a kill it would put the weights "
    "of an epoch's end over those of the checkpoint. Leave out one of the two."
)

STEP_LOSS, STEP_RATE = "r8_step_loss", "r8_step_rate"
"""What a step returns of its own: its loss, and the rate it was taken at."""


class StepLosses(StepRecorder):
    """Hears the losses of the last training steps.

    The step returns its loss beside what it logs, as to read a variable of TensorFlow's takes many times as long. Steps
    of JAX, and several that are taken at once, keep theirs in a variable. It listens to ``compute_loss``; in a step
    that does not call it, to the means of losses that the model tracks; else it takes what ``train_step`` returns. It
    never reads a running mean. The model keeps it.

    Args:
        model: A compiled Keras model.
        capacity: Steps of one call of the model's training function, >= 1.

    Attributes:
        live: The values of the model's variables.
        function: The model's training function.
        rate_variable: The rate that the step which was traced last reads; None without.
        rate: What it was in the last step; None where that is not known.
        num_losses: How many losses were heard in the step that was traced last.
    """

    def __init__(self, model: Any, capacity: int) -> None:
        self.rate_variable: Any = None
        self.rate: float | None = None
        self.num_losses = 0
        self._is_jax = keras.backend.backend() == "jax"
        is_read = self._is_jax or capacity > 1
        super().__init__(
            model, capacity, StepMemory(model, "r8_step_losses", (capacity, 1), "mean") if is_read else None
        )
        for metric in model.metrics:
            if isinstance(metric, keras.metrics.Mean) and "loss" in metric.name:
                self._listen(metric)
        self._replace_step(model)

    def read(self, logs: dict[str, Any] | None) -> list[float]:
        """The losses of the steps since the last call, in their order.

        Args:
            logs: What ``fit`` got of the last of them, for a step in which nothing was heard.

        Raises:
            RuntimeError: there is no loss.
        """
        returned = self.function.take()
        rate = returned.get(STEP_RATE)
        self.rate = None if rate is None else float(rate)
        if STEP_LOSS in returned:
            return [float(returned[STEP_LOSS])]
        if self._memory is not None:
            losses, _ = self._read_memory()
            if losses:
                return [float(each[0]) for each in losses]
        found = [float(value) for value in _losses_in(logs)]
        if not found:
            raise RuntimeError(
                "train_step must have a loss to be watched: call self.compute_loss(), or track it with a "
                "keras.metrics.Mean whose name has 'loss' in it, or return it under such a name, got "
                f"{sorted(logs or {})}."
            )
        return [sum(found)]

    def _replace_step(self, model: Any) -> None:
        step = getattr(model.train_step, "__wrapped__", model.train_step)

        @functools.wraps(step)
        def train_step(*args: Any, **kwargs: Any) -> Any:
            heard = self._local
            heard.totals, heard.means = [], []
            heard.trace = _trace_of(args) if self._is_jax else None
            try:
                done = step(*args, **kwargs)
                logs, *state = done if self._is_jax else (done,)
                # Those of JAX were kept where they were heard.
                is_kept = self._is_jax and heard.totals
                losses = [] if is_kept else heard.totals or heard.means or _losses_in(logs)
                self.num_losses = len(losses)
                if losses and (self._is_jax or self._memory is None):
                    logs = self._with_loss(logs, losses)
                elif losses:
                    self._memory.keep(_sum_of(losses))
                return (logs, *state) if self._is_jax else logs
            finally:
                del heard.totals, heard.means, heard.trace

        model.train_step = train_step

    def _listen(self, metric: Any) -> None:
        # The second is that of steps without state, as JAX has them.
        name, first = ("stateless_update_state", 1) if self._is_jax else ("update_state", 0)
        update = getattr(metric, name)
        update = getattr(update, "__wrapped__", update)

        @functools.wraps(update)
        def listen(*args: Any, **kwargs: Any) -> Any:
            means = getattr(self._local, "means", None)
            if means is not None:
                values = args[first] if len(args) > first else kwargs["values"]
                # On JAX, what is still to be differentiated must not leave the function that is.
                if not self._is_jax or _trace_of(values) is self._local.trace:
                    means.append(_mean_of(values))
            return update(*args, **kwargs)

        setattr(metric, name, listen)

    def hear(self, total: Any, heard: list[Heard], y_pred: Any) -> None:
        """Note the loss of a step, or of the part of it that ``compute_loss`` is called for."""
        if not self._is_jax:
            if hasattr(self._local, "totals"):
                self._local.totals.append(unscale_loss(total))
        elif self._memory is not None and in_stateless_scope():
            if not any(each is self._memory for each in self._model.metrics):
                # A model may name its metrics itself.
                return
            self._memory.keep(total)
            if hasattr(self._local, "totals"):
                self._local.totals.append(None)

    def _with_loss(self, logs: Any, losses: list[Any]) -> Any:
        """The logs of a step with its loss, and on TensorFlow with its rate."""
        values = {STEP_LOSS: ops.cast(ops.stop_gradient(_sum_of(losses)), "float32")}
        # The step has built its optimizer by now.
        self.rate_variable = self.rates.variable
        if self.rate_variable is not None and keras.backend.backend() == "tensorflow":
            values[STEP_RATE] = ops.convert_to_tensor(self.rate_variable)
        return self.function.put(logs, values) or logs


def _sum_of(losses: list[Any]) -> Any:
    # Not a sum of sums, which TensorFlow would rearrange together with the user's own.
    return losses[0] if len(losses) == 1 else ops.sum(ops.stack(losses))


def _trace_of(values: Any) -> Any:
    """The transformation of JAX that values are in; None where there is none."""
    return next((each._trace for each in keras.tree.flatten(values) if hasattr(each, "_trace")), None)


def _losses_in(logs: Any) -> list[Any]:
    """The losses that a step returns by name."""
    if not isinstance(logs, Mapping):
        return []
    return [_mean_of(value) for name, value in logs.items() if "loss" in name]


def _mean_of(value: Any) -> Any:
    value = ops.cast(value, "float32")
    return ops.mean(value) if len(value.shape) else value


class OwnBatchesCallback(FitCallback):
    """What `R8Callback` makes of an `R8Scheduler` without ``num_samples``: ``fit`` keeps its data, R8 heals the model.

    Any data goes (``tf.data``, generators, arrays), with ``steps_per_execution``, weights of classes and samples,
    several inputs and outputs, a ``train_step`` of one's own, a strategy of several devices. Without an incident the
    weights are those of the ``fit`` without it. A step has been taken by the time its loss is known, so a refused loss
    puts model and optimizers back.

    Args:
        dataset: The scheduler.
        model: The model, built and compiled, to wire before ``fit``: then `R8Scheduler.load_checkpoint` puts it back.
        backup_every: When to copy the model to RAM; see `R8Scheduler`.

    Raises:
        TypeError: it is not a scheduler without samples.
        ValueError: the model is not compiled; or the scheduler is to set a rate that is a schedule.
    """

    def __init__(self, dataset: Any, model: Any = None, *, backup_every: int | str | Condition | None = None) -> None:
        self._batches = dataset.follow(counts_epochs=True)
        self._is_rewound = False
        # The numbers of the last batch in hand, and of the last one of an epoch, as far as that is known.
        self._place = self._last_place = -1
        super().__init__(dataset, model, backup_every)

    def _optimizers_of(self, model: Any) -> list[Any]:
        """The optimizer that a model was compiled with, and those that it has as attributes."""
        held = [getattr(model, "optimizer", None), *vars(model).values()]
        found = {id(each): each for each in held if isinstance(each, keras.optimizers.Optimizer)}
        if not found:
            raise ValueError(f"model must be compiled with an optimizer, got {model!r} without; call compile().")
        return list(found.values())

    def _recorder_of(self, model: Any) -> StepLosses:
        return StepLosses.of(model, model.steps_per_execution)

    def _repeat(self, recorder: Any) -> Repeat:
        def loss(batch: Any) -> float:
            recorder.function.repeat(batch)
            return float(sum(recorder.read(None)))

        return Repeat(lambda batch: batch is not None, loss)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Wire the model; TensorFlow's trainer leaves it to the first step to build it.

        Raises:
            ValueError: Keras would restore the run, too.
        """
        check_alone(self)
        has_checkpoints = self._r8.controller.live.persistence.saver is not None
        for each in callbacks_of_fit() or ():
            if has_checkpoints and isinstance(each, keras.callbacks.BackupAndRestore):
                raise ValueError(RESTORED_TWICE.format(each))
        data = getattr(local_of_fit("epoch_iterator"), "_distributed_dataset", None)
        if data is not None and not (self.model.built or self.model.trainable_variables):
            # One that cannot be built so is refused as it is wired.
            with scope_of(self.model), contextlib.suppress(RuntimeError):
                self.model._symbolic_build(data_batch=data.element_spec)
        self._rewind(self._begin_fit())
        self._batches.begin_run(scope_of_fit(self.model))

    def _rewind(self, state: ModelState) -> None:
        """Pass over the epochs that a resumed run has had: a shuffle of ``tf.data`` draws a seed for each iterator."""
        if state.num_saved_devices is None or self._is_rewound:
            return
        self._is_rewound = True
        data, steps, num_had = local_of_fit("x"), local_of_fit("steps_per_epoch"), local_of_fit("initial_epoch")
        if steps is not None:
            # The next epoch goes on in the same data where this one ends.
            starts_over = self._r8.feed.source.settings.resume_data == "start"
            for _ in range(0 if starts_over else num_had):
                for _ in _behind(local_of_fit("epoch_iterator"), steps, self._r8.host):
                    pass
            return
        if isinstance(data, keras.utils.PyDataset):
            # Many draw the order of the next epoch as one ends.
            for _ in range(num_had):
                data.on_epoch_begin()
                data.on_epoch_end()
        if not hasattr(data, "element_spec"):
            return
        # TensorFlow's trainer makes another one at the end of an epoch whose length the data tell.
        makes_another = keras.backend.backend() == "tensorflow" and data.cardinality() >= 0
        for number in range(num_had):
            iterator = iter(data)
            if not number and has_stage(data, "Cache"):
                # It keeps the order of the first epoch.
                for _ in iterator:
                    pass
            if makes_another:
                iter(data)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count the epoch."""
        # Where Keras does not know it, it does once an epoch is over.
        steps = getattr(local_of_fit("epoch_iterator"), "num_batches", None)
        if steps:
            self._r8.feed.expect_epochs_of(steps)
        # On TensorFlow it counts one too many where an epoch had to tell.
        self._last_place = self._place if self._place >= 0 else (steps or 0) - 1
        num_had, iterator = self._batches.begin_pass(epoch), local_of_fit("epoch_iterator")
        if num_had:
            iterator._enumerate_iterator = lambda: yield_steps(_behind(iterator, num_had, self._r8.host), self.model)
        assert self._recorder is not None
        self._recorder.begin()

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Do what is due between two steps, and lower the rate where recovery asks for it."""
        if self._batches.begin():
            self._set_rate(self._r8.lr)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Report the losses of the step, or of all those that ``steps_per_execution`` has taken at once."""
        recorder: Any = self._recorder
        r8, batches = self._r8, self._batches
        is_last, self._place = batch == self._last_place, batch
        losses, rate = self._loss_to_report(recorder.read(logs), is_last=is_last), recorder.rate
        if rate is None or self._rates.was_lowered or self._rates.variable is not recorder.rate_variable:
            rate = self._rates.value
        is_undone = False
        batches.note_batch(recorder.function.batch)
        expect_rivals(r8, recorder.num_losses, self._num_optimizers)
        with self._reporting():
            for number, loss in enumerate(losses):
                if not (batches.begin_more() if number else batches.is_watched):
                    break
                if is_undone:
                    # A step of weights that are gone.
                    batches.discard()
                    continue
                outcome = r8.update_with_loss(loss, lr=rate if r8.host.rates.are_own and rate == rate else None)
                # What is left of the call is of the weights under test, within a few updates, or of none any more.
                is_undone = not outcome and not r8.host.controller.experiment.is_partway

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Pass on what Keras logged; write the checkpoint that is due."""
        with self._own_weights(epoch):
            super().on_epoch_end(epoch, logs)

    def _end_iteration(self) -> None:
        self._batches.end_pass(ran_out=True)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Note that the training has ended."""
        self._batches.end_run()


def _behind(iterator: Any, count: int, run: Any) -> Iterator[Any]:
    """What an iterator of Keras yields in an epoch, behind the first batches, which are drawn and dropped.

    Args:
        iterator: An ``EpochIterator``.
        count: How many, >= 1.
        run: The engine.
    """
    # The next epoch is a whole one.
    vars(iterator).pop("_enumerate_iterator", None)
    steps = iterator._enumerate_iterator()
    for number in range(0, count, iterator.steps_per_execution):
        _, _, batches = next(steps)
        if not number:
            drop(run.announcer, batches, count)
    yield from steps

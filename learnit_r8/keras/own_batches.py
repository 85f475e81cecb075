"""The callback of a ``fit`` over data of the user's own: it watches the training, and heals the model."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from ..checkpoint.callbacks import Repeat
from ..engine.feed.replay import drop
from ..triggers import Condition
from .devices import check_devices, say_devices
from .examiner import keep_model
from .fit_frame import check_alone, local_of_fit, scope_of_fit
from .pipeline import has_stage
from .rate_factor import RateFactor
from .state import SETS_RATE, ModelState, rate_of
from .step_losses import StepLosses


class OwnBatchesCallback(keras.callbacks.Callback):  # type: ignore[misc]
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
        super().__init__()
        self._r8, self._backup_every = dataset, backup_every
        self._batches = dataset.follow(counts_epochs=True)
        self._state: ModelState | None = None
        self._is_rewound = False
        self._losses: StepLosses | None = None
        if model is not None:
            self._wire(model)

    def _wire(self, model: Any) -> None:
        check_devices(model)
        losses = self._losses
        self._state = keep_model(
            self._r8, self._state, model, _optimizers_of(model), backup_every=self._backup_every,
            function=None if losses is None else losses.function,
            repeat=None if losses is None else Repeat(lambda batch: batch is not None, self._loss_again),
        )  # fmt: skip

    def _loss_again(self, batch: Any) -> float:
        assert self._losses is not None
        self._losses.function.repeat(batch)
        return sum(self._losses.read(None))

    def set_model(self, model: Any) -> None:
        """Keras' word that a ``fit`` begins."""
        super().set_model(model)
        optimizers = _optimizers_of(model)
        rate = rate_of(optimizers[0])
        if not self._r8.keeps_rates and not isinstance(rate, keras.Variable):
            raise ValueError(SETS_RATE.format(rate))
        self._losses = StepLosses.of(model)
        self._rates = RateFactor(model, optimizers, self._losses.live)
        self._losses.rate_variable = self._rates.variable

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Wire the model, which is built by now."""
        check_alone(self)
        self._wire(self.model)
        assert self._state is not None
        say_devices(self._r8, self._state.num_saved_devices, self.model)
        self._rewind()
        self._batches.begin_run(scope_of_fit(self.model))

    def _rewind(self) -> None:
        """Pass over the epochs that a resumed run has had: a shuffle of ``tf.data`` draws a seed for each iterator."""
        assert self._state is not None
        if self._state.num_saved_devices is None or self._is_rewound:
            return
        self._is_rewound = True
        data, host = local_of_fit("x"), self._r8.host
        steps = local_of_fit("steps_per_epoch")
        if steps is not None:
            # The next epoch goes on in the same data where this one ends.
            for _ in range(local_of_fit("initial_epoch") if host.feed.settings.resume_data != "start" else 0):
                for _ in _behind(local_of_fit("epoch_iterator"), steps, host):
                    pass
            return
        if isinstance(data, keras.utils.PyDataset):
            # Many draw the order of the next epoch as one ends.
            for _ in range(local_of_fit("initial_epoch")):
                data.on_epoch_begin()
                data.on_epoch_end()
        if not hasattr(data, "element_spec"):
            return
        # TensorFlow's trainer makes another one at the end of an epoch whose length it knows.
        makes_another = keras.backend.backend() == "tensorflow"
        for number in range(local_of_fit("initial_epoch")):
            iterator = iter(data)
            if not number and has_stage(data, "Cache"):
                # It keeps the order of the first epoch.
                for _ in iterator:
                    pass
            if makes_another and (number or data.cardinality() >= 0):
                iter(data)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count the epoch."""
        # Where Keras does not know it, it does once an epoch is over.
        steps = getattr(local_of_fit("epoch_iterator"), "num_batches", None)
        if steps:
            self._r8.host.feed.expect_epochs_of(steps)
        num_had, iterator = self._batches.begin_pass(epoch), local_of_fit("epoch_iterator")
        if num_had:
            iterator._enumerate_iterator = functools.partial(_behind, iterator, num_had, self._r8.host)
        assert self._losses is not None
        self._losses.begin()

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Do what is due between two steps, and lower the rate where recovery asks for it."""
        r8 = self._r8
        assert self._losses is not None
        if not self._batches.begin():
            return
        if not r8.keeps_rates:
            self._losses.live.set(rate_of(self.model.optimizer), r8.lr)
            return
        self._rates.begin_step(r8)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Report the losses of the step, or of all those that ``steps_per_execution`` has taken at once."""
        r8, batches = self._r8, self._batches
        assert self._losses is not None
        was_lowered = self._rates.take_back()
        losses = self._losses.read(logs)
        rate = self._losses.rate
        if rate is None or was_lowered:
            rate = self._rates.value
        is_undone = False
        batches.note_batch(self._losses.function.batch)
        try:
            for number, loss in enumerate(losses):
                if not (batches.begin_more() if number else batches.is_watched):
                    break
                if is_undone:
                    # A step of weights that are gone.
                    batches.discard()
                    continue
                outcome = r8.update_with_loss(loss, lr=rate if r8.keeps_rates and rate == rate else None)
                # What is left of the call is of the weights under test, within a few updates, or of none any more.
                is_undone = not outcome and not r8.host.controller.experiment.is_partway
        except BaseException:
            # fit() ends without telling its callbacks.
            r8.requests.leave()
            raise
        if r8.is_over:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Pass on what Keras logged; write the checkpoint that is due."""
        r8 = self._r8
        self._batches.end_pass()
        numbers = {name: value for name, value in (logs or {}).items() if name != "step" and np.ndim(value) == 0}
        if numbers:
            r8.log(r8.global_step, **numbers)
        r8.host.between_steps()

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
            drop(run, batches, count)
    yield from steps


def _optimizers_of(model: Any) -> list[Any]:
    """The optimizer that a model was compiled with, and those that it has as attributes."""
    found = [each for each in vars(model).values() if isinstance(each, keras.optimizers.Optimizer)]
    compiled = getattr(model, "optimizer", None)
    if compiled is not None:
        found.insert(0, compiled)
    found = [each for number, each in enumerate(found) if not any(each is other for other in found[:number])]
    if not found:
        raise ValueError(f"model must be compiled with an optimizer, got {model!r} without; call compile().")
    return found

"""What both callbacks of ``fit`` do: let the scheduler keep the model, set its rate, and end with the budget."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from ..bridge.driven_state import loss_to_report
from ..state.callbacks import Callbacks, Repeat
from ..triggers import Condition
from .devices import OTHER_NUMBER, check_devices, num_devices
from .examiner import Examiner
from .losses import StepRecorder
from .state import SETS_RATE, ModelState, rate_of, trains_all
from .train_function import callbacks_of_fit

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler


class FitCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """A callback of ``fit`` whose model a scheduler keeps; what it trains on is for the heirs to know.

    Args:
        r8: The scheduler.
        model: The model, built and compiled, to attach before ``fit``; or None.
        backup_every: When to copy the model to RAM; see `R8Scheduler`.
    """

    def __init__(self, r8: R8Scheduler, model: Any, backup_every: int | str | Condition | None) -> None:
        super().__init__()
        self._r8: Any = r8
        self._backup_every = backup_every
        self._recorder: StepRecorder | None = None
        self._state: ModelState | None = None
        if model is not None:
            self._wire(model)

    # For the heirs.

    def _optimizers_of(self, model: Any) -> list[Any]:
        """The optimizers of a model, that which it was compiled with first; ValueError if it cannot be trained."""
        raise NotImplementedError

    def _recorder_of(self, model: Any) -> StepRecorder:
        raise NotImplementedError

    def _repeat(self, recorder: Any) -> Repeat:
        """Trains on a batch once more, for its loss."""
        raise NotImplementedError

    # For Keras.

    def set_model(self, model: Any) -> None:
        """Take the model; Keras calls it as a ``fit`` begins."""
        super().set_model(model)
        optimizers = self._checked_optimizers(model)
        recorder = self._recorder = self._recorder_of(model)
        self._rates, self._num_optimizers = recorder.follow(optimizers), len(optimizers)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Pass on what Keras logged; write the checkpoint that is due."""
        numbers = {name: value for name, value in (logs or {}).items() if name != "step" and np.ndim(value) == 0}
        # An epoch of refused batches alone has none.
        if numbers:
            self._r8.log(self._r8.global_step, **numbers)
        self._r8.host.between_steps()

    # The model.

    def _take_weights_back(self, epoch: int) -> list[Any]:
        """Have the weights in the model again; the callbacks that had averages in their place, a ``SwapEMAWeights``."""
        held = [each for each in callbacks_of_fit() or () if getattr(each, "_ema_weights_in_model", False)]
        for each in held:
            each.on_epoch_begin(epoch)
        return held

    @contextlib.contextmanager
    def _own_weights(self, epoch: int) -> Iterator[None]:
        """A ``with`` block at the end of an epoch in which the model has its weights, not averages of them."""
        held = self._take_weights_back(epoch)
        try:
            yield
        finally:
            for each in held:
                each.on_epoch_end(epoch)

    def _checked_optimizers(self, model: Any) -> list[Any]:
        optimizers = self._optimizers_of(model)
        rate = rate_of(optimizers[0])
        if not self._r8.host.rates.are_own and not isinstance(rate, keras.Variable):
            raise ValueError(SETS_RATE.format(rate))
        check_devices(model)
        return optimizers

    def _wire(self, model: Any) -> None:
        """Let the scheduler keep a model, and look for the causes of its refusals."""
        optimizers, r8 = self._checked_optimizers(model), self._r8
        state = self._state
        # The model may have been compiled again.
        if state is None or not state.is_of(model, *optimizers):
            state = self._state = ModelState(
                model, optimizers[0], others=optimizers[1:], keeps_rates=r8.host.rates.are_own,
                waits=not trains_all(model),
            )  # fmt: skip
        function = None if self._recorder is None else self._recorder.function
        if function is not None:
            function.watch(state, self._end_iteration)
        examiner = Examiner(
            model, state, lambda: None if function is None else function.batch, weighs=r8.feed is not None
        )
        callbacks = Callbacks(
            state.save, state.load, state.read, examine=examiner.examine, in_hand=examiner.collect,
            undo=None if function is None else function.undo,
            repeat=None if function is None else self._repeat(self._recorder),
        )  # fmt: skip
        r8.host.adopt(callbacks, backup_every=self._backup_every)

    def _end_iteration(self) -> None:
        """End an epoch, before its validation."""
        self._r8.host.leave_epoch(is_validated=True)

    def _begin_fit(self) -> ModelState:
        """Attach the model, which is built by now; its state."""
        self._wire(self.model)
        assert self._state is not None
        saved, now = self._state.num_saved_devices, num_devices(self.model)
        if saved not in (None, now):
            self._r8.host.say_once("devices", OTHER_NUMBER.format(saved, now), is_warning=False)
        return self._state

    # A step.

    def _set_rate(self, lr: float) -> None:
        """Set the rate of the next step; the user's own is only lowered, where recovery asks for it."""
        if self._r8.host.rates.are_own:
            self._rates.begin_step(self._r8)
        else:
            assert self._recorder is not None
            self._recorder.live.set(rate_of(self.model.optimizer), lr)

    def _loss_to_report(self, loss: Any, *, is_last: bool = False) -> Any:
        """See `bridge.driven_state.loss_to_report`."""
        return loss if self._state is None else loss_to_report(self._r8, loss, self._state.read, is_last=is_last)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        """A ``with`` block around a report; it may end the training, by an exception too."""
        try:
            yield
        except BaseException:
            # fit() ends without telling its callbacks.
            self._r8.requests.leave()
            raise
        if self._r8.is_over:
            self.model.stop_training = True

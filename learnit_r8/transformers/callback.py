"""R8Callback: reports the losses of a training with Trainer, and ends it with the budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from .own_batches import OwnBatches
from .sampler import WholeEpoch

if TYPE_CHECKING:
    from ..torch import Adapter

SKIPPED_TWICE = (
    "resume_from_checkpoint in mid-epoch must be used with R8Mixin, or with ignore_data_skip=True and "
    "gradient_accumulation_steps=1, as the loader goes on where it was by itself and Trainer would skip the batches "
    "again, got ignore_data_skip={!r} and gradient_accumulation_steps={!r}."
)


class R8Callback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Reports what `Adapter.loss` noted, after each batch; `R8Mixin` adds it automatically.

    Args:
        adapter: What `learnit_r8.torch.attach` returned, or a function that returns it once it is there.
    """

    def __init__(self, adapter: Adapter | Callable[[], Adapter | OwnBatches]) -> None:
        self._adapter = adapter

    @property
    def adapter(self) -> Adapter | OwnBatches:
        """The adapter."""
        return self._adapter() if callable(self._adapter) else self._adapter

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        """Raise ValueError if Trainer would skip batches that the scheduler has counted already."""
        if isinstance(self.adapter, OwnBatches):
            self.adapter.batches.begin_run()
            return
        r8 = self.adapter.scheduler
        is_whole = isinstance(getattr(train_dataloader, "batch_sampler", None), WholeEpoch)
        if is_whole or not r8.pace.place % r8.steps_per_epoch:
            return
        if not args.ignore_data_skip or args.gradient_accumulation_steps > 1:
            raise ValueError(SKIPPED_TWICE.format(args.ignore_data_skip, args.gradient_accumulation_steps))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the epoch, where the batches are the Trainer's own."""
        if isinstance(self.adapter, OwnBatches):
            self.adapter.batches.begin_pass(int(state.epoch or 0))

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the losses of a batch whose gradient is added to others."""
        self._report()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the losses of the batch, and end the training if the budget is spent."""
        adapter = self.adapter
        self._report()
        if control.should_save or control.should_evaluate:
            # On all processes: the first one alone writes the scheduler's state. An evaluation may ask for a save.
            adapter.flush()
            adapter.scheduler.host.leave_epoch()
        is_over = adapter.must_stop() if isinstance(adapter, OwnBatches) else adapter.scheduler.is_over
        if is_over:
            control.should_training_stop = True

    def _report(self) -> None:
        """Report the losses that were noted; `R8Mixin` does so before the step, unless there is a loss scaler."""
        adapter = self.adapter
        if isinstance(adapter, OwnBatches) or adapter.has_noted or not callable(self._adapter):
            adapter.report()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the losses on their way before evaluation and checkpoints."""
        self.adapter.flush()
        if isinstance(self.adapter, OwnBatches):
            self.adapter.batches.end_pass()
        else:
            self.adapter.scheduler.host.leave_epoch()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Tell the scheduler's listeners the metrics of an evaluation."""
        found = {name: value for name, value in (logs or {}).items() if name.startswith("eval_")}
        numbers: dict[str, Any] = {name: value for name, value in found.items() if isinstance(value, (int, float))}
        if numbers:
            self.adapter.scheduler.log(**numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Finish the run."""
        self.adapter.close()

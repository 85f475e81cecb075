"""A training with Trainer whose loader and rates stay its own: R8 watches it, and heals the model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..engine.settings import OwnBatches as OwnBatchesValue
from ..schedules.budget import has_budget
from ..sources.ticket import Outcome
from ..torch.attachment import attach
from ..torch.trainer_step import TrainerStep, no_loss, uncounted

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler


class OwnBatches:
    """Watches the batches of a Trainer; `R8Callback` tells it of steps and epochs.

    Args:
        trainer: The Trainer, whose optimizer is there.
        settings: For `learnit_r8.torch.attach`.
        num_updates: Steps of the optimizer, as the Trainer has counted them.

    Attributes:
        adapter: What heals the model.
    """

    def __init__(self, trainer: Any, settings: Mapping[str, Any], num_updates: int) -> None:
        args, given = trainer.args, dict(settings)
        self._has_budget = has_budget(given)
        if not self._has_budget:
            given |= _budget_of(args, num_updates, given.get("batch_size") or OwnBatchesValue())
        accumulate = args.gradient_accumulation_steps
        self._trainer = trainer
        self._own: Any = None
        self._how: tuple[Mapping[str, Any], int] = {}, 1
        given.setdefault("run_batch", lambda inputs: self._run_again((inputs, *self._how)))
        self.adapter = attach(
            trainer.model, trainer.optimizer, None, accumulate=accumulate, repeat=self._run_again, **given
        )
        # Trainer sets the random generators as it resumes.
        self.batches = self.adapter.follow(sets_generators=False)
        self._noted: torch.Tensor | None = None
        self._last: torch.Tensor | None = None

    @property
    def scheduler(self) -> R8Scheduler:
        """The scheduler."""
        return self.adapter.scheduler

    @property
    def outcome(self) -> Outcome:
        """The outcome of the last report."""
        return self.adapter.outcome

    def compute_loss(
        self, trainer: Any, own: Callable[..., Any], model: Any, inputs: Any, return_outputs: bool, **more: Any
    ) -> Any:
        """What the Trainer's ``compute_loss`` returns; a loss without a gradient where its own is refused."""
        self.batches.begin(inputs)
        self._own = functools.partial(own, model)
        # An epoch may end with fewer batches in a step.
        self._how = more, trainer.current_gradient_accumulation_steps
        # The Trainer may take the labels out of it.
        self.adapter.hold(dict(inputs))
        self.batches.note_batch((dict(inputs), *self._how))
        found: Any = None
        with TrainerStep(model, trainer, num_ranks=self.adapter.num_ranks, skipped="_r8") as step:
            found = own(model, inputs, return_outputs, **more)
        if step.has_raised:
            found = (no_loss(model, None), None) if return_outputs else no_loss(model, None)
        loss = found[0] if return_outputs else found
        self._noted = self._of_batch(loss.detach(), *self._how)
        if reports_early(trainer):
            with self.adapter.before_gradient():
                is_learned = self.report()
            if not is_learned:
                step.put_back()
                none = no_loss(model, self._last)
                return (none, found[1]) if return_outputs else none
            self._last = loss.detach()
        return found

    def _of_batch(self, loss: torch.Tensor, more: Mapping[str, Any], accumulated: int) -> torch.Tensor:
        """The mean loss of a batch, where the Trainer has divided by the items of all batches of a step."""
        is_part = more.get("num_items_in_batch") is not None and self._trainer.compute_loss_func is None
        return loss * accumulated if is_part else loss

    def _run_again(self, held: Any) -> torch.Tensor:
        """The loss of a batch, as it was reported."""
        inputs, more, accumulated = held
        loss = run_again(self._trainer, lambda: self._own(dict(inputs), **more))
        return self._of_batch(loss, more, accumulated)

    def report(self) -> bool:
        """Report the loss that was noted; returns whether it is to be learned from."""
        noted, self._noted = self._noted, None
        return noted is None or not self.batches.is_watched or bool(self.adapter.report(noted))

    def must_stop(self) -> bool:
        """Whether the Trainer is to end: the run was stopped, or has spent a budget that it was given."""
        r8 = self.scheduler
        return r8.pace.is_stopped or (self._has_budget and r8.is_over)

    def flush(self) -> None:
        """Report the losses on their way."""
        self.adapter.flush()

    def close(self) -> None:
        """Finish the run."""
        self.batches.end_run()
        self.adapter.close()


def run_again(trainer: Any, compute_loss: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The loss of a batch that the Trainer has had; what it counts does not count a second time."""
    with uncounted(trainer, skipped="_r8"), trainer.compute_loss_context_manager():
        return compute_loss()


def reports_early(trainer: Any) -> bool:
    """Whether a loss is reported before its step; a loss scaler takes no step without gradients."""
    return getattr(trainer.accelerator, "scaler", None) is None


def _budget_of(args: Any, num_updates: int, own: OwnBatchesValue) -> dict[str, Any]:
    """Return the Trainer's own budget, for views only, as the Trainer ends the training itself."""
    if args.max_steps > 0:
        # Fewer batches where an epoch ends within an accumulated gradient.
        return {"num_steps": args.max_steps * args.gradient_accumulation_steps}
    if not float(args.num_train_epochs).is_integer():
        return {}
    # So that backups are taken four times an epoch; the last accumulated gradient may be of fewer batches.
    epochs = int(args.num_train_epochs)
    steps = max(1, num_updates * args.gradient_accumulation_steps // epochs)
    return {"num_epochs": epochs, "batch_size": replace(own, steps_per_epoch=steps)}

"""A training with Lightning whose loaders are the user's own: R8 watches it, and heals the module."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..engine.settings import head_of
from ..schedules.budget import has_budget
from ..sources.random_generators import random_state
from ..torch.attachment import attach
from ..torch.state import as_arrays, as_tensors

if TYPE_CHECKING:
    from ..engine.feed.feed import TrainerBatches
    from ..torch.adapter import Adapter

NO_LOSS = (
    "training_step() must return the loss, or a dict with 'loss', or call manual_backward(loss), for R8Callback, got "
    "{!r}."
)


class OwnBatches:
    """What `R8Callback` does where it has no loader.

    Args:
        settings: For `R8Scheduler`.

    Attributes:
        adapter: What watches the training; None before it.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.adapter: Adapter | None = None
        self._settings = dict(settings)
        self._batches: TrainerBatches | None = None
        self._module: Any = None
        self._manual: list[torch.Tensor] = []
        self._has_budget = has_budget(self._settings)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings for `R8Scheduler`."""
        return dict(self._settings)

    @property
    def keeps_rates(self) -> bool:
        """Whether the rates are the module's own."""
        return bool(head_of(self._settings.get("scheduler_mode", "keep")) == "keep")

    @property
    def following(self) -> TrainerBatches:
        """What R8 learns of the batches."""
        assert self._batches is not None
        return self._batches

    def attach(self, trainer: Any, module: Any, saved: Mapping[str, Any], **settings: Any) -> Adapter:
        """Begin to watch a training.

        Args:
            trainer: The Trainer, whose optimizers are there.
            module: The module.
            saved: What `whole_state` returned, to go on from; or nothing.
            **settings: For `learnit_r8.torch.attach`.
        """
        if not self._has_budget:
            settings |= _budget_of(trainer)
        adapter = self.adapter = attach(module, trainer.optimizers[0], None, **settings)
        if saved:
            adapter.load_scheduler(as_arrays(saved["scheduler"]))
        self._batches = adapter.follow()
        self._batches.begin_run()
        fetcher = trainer.fit_loop._data_fetcher
        if (
            saved
            and fetcher is not None
            and not any(hasattr(each, "load_state_dict") for each in trainer.fit_loop._combined_loader.flattened)
        ):
            # The module has asked for the number of steps, so the loader has begun with other generators.
            iter(fetcher)
        if not module.automatic_optimization:
            self._module = module
            module.manual_backward = functools.partial(self._manual_backward, module.manual_backward)
        return adapter

    def _manual_backward(self, own: Any, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        self._manual.append(loss.detach())
        own(loss, *args, **kwargs)

    def loss_of(self, outputs: Any) -> torch.Tensor:
        """The loss of a step: what ``training_step`` has returned, or the sum of those it went backward from.

        Args:
            outputs: What it has returned.

        Raises:
            TypeError: there is none.
        """
        manual, self._manual = self._manual, []
        found = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(found, torch.Tensor):
            return found.detach()
        if not manual:
            raise TypeError(NO_LOSS.format(outputs))
        return torch.stack([each.mean().float() for each in manual]).sum()

    def expect_epochs_of(self, num_batches: float) -> None:
        """Note how many batches an epoch has, now that Lightning has made the loaders; infinite if it does not know."""
        feed = None if self.adapter is None else self.adapter.scheduler.feed
        if feed is not None and 0 < num_batches < float("inf"):
            feed.expect_epochs_of(int(num_batches))

    def whole_state(self) -> dict[str, Any]:
        """The scheduler's state, with that of the random generators in it."""
        if self.adapter is None:
            return {}
        return {"scheduler": self.adapter.lr_scheduler.state_dict(), "random": [as_tensors(random_state())]}

    def may_stop(self) -> bool:
        """Whether the Trainer must be told to end: the run was stopped, or has spent a budget that it was given."""
        assert self.adapter is not None
        r8 = self.adapter.scheduler
        return r8.pace.is_stopped or (self._has_budget and r8.is_over)

    def end(self) -> None:
        """Note that the training has ended."""
        if self._batches is not None:
            self._batches.end_run()
        if self._module is not None:
            del self._module.manual_backward
            self._module = None


def _budget_of(trainer: Any) -> dict[str, Any]:
    """The epochs of a Trainer that counts nothing else, for views; else nothing, as only the Trainer ends it."""
    if trainer.max_epochs is None or trainer.max_epochs < 0 or trainer.max_steps >= 0:
        return {}
    return {"num_epochs": trainer.max_epochs}

"""A learning-rate scheduler of torch's kind, for code that wants one and steps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LRScheduler

from .._adapters.group_rates import rates_of
from .serialization import as_arrays, as_tensors

if TYPE_CHECKING:
    from .attached_model import AttachedModel


class R8LRScheduler(LRScheduler):
    """Shows the rates that R8Scheduler sets, and saves its state; stepping it changes nothing.

    Args:
        adapter: Sets the rates.
    """

    def __init__(self, adapter: AttachedModel) -> None:
        # The constructor of the base class would take a step, and count those of the optimizer.
        self._adapter = adapter
        self.optimizer = adapter.optimizer
        # Accelerate counts in it the steps of an accumulated gradient.
        self._step_count = 0
        self.base_lrs = [group.get("initial_lr", group["lr"]) for group in adapter.optimizer.param_groups]

    @property
    def last_epoch(self) -> int:  # type: ignore[override]
        """Steps reported so far, which is what torch counts here."""
        return self._adapter.scheduler.global_step

    def step(self, *_: Any) -> None:
        """Do nothing: the rate moves on with each batch reported."""

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """The rate of each parameter group."""
        return rates_of(self.optimizer)

    get_lr = get_last_lr  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        """The whole scheduler's state as tensors and plain values; ``torch.load(weights_only=True)`` reads it.

        The losses on their way are waited for.
        """
        self._adapter.flush()
        state: dict[str, Any] = as_tensors(self._adapter.scheduler.state_dict())
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ValueError: it is of another run.
        """
        self._adapter.load_scheduler(as_arrays(state_dict))

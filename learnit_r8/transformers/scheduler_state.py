"""The state of an R8Scheduler in the file that Trainer writes for its learning-rate scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..torch.serialization import as_arrays

if TYPE_CHECKING:
    from ..torch import Adapter
    from ..torch.own_loop.loader_adapter import LoaderAdapter

ALONG = "learnit_r8"
"""The entry of the state."""


NOT_ALONG = (
    "resume_from_checkpoint must be a checkpoint of a training with R8Mixin, got one that has no state of it; to begin "
    "with its weights only, load them into the model and leave resume_from_checkpoint out."
)


def save_along(rates: Any, adapter: Adapter | LoaderAdapter) -> None:
    """Let a learning-rate scheduler of Trainer's save and load R8Scheduler's state with its own.

    Its class becomes one derived from its own, so that Trainer still knows what kind it is.

    Args:
        rates: The learning-rate scheduler.
        adapter: Has the state.
    """
    kind: Any = type(rates)

    class Along(kind):  # type: ignore[misc, valid-type, unused-ignore]
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), ALONG: adapter.lr_scheduler.state_dict()}

        def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
            own = dict(state_dict)
            if ALONG not in own:
                raise ValueError(NOT_ALONG)
            adapter.load_scheduler(as_arrays(own.pop(ALONG)))
            super().load_state_dict(own)

    Along.__name__ = kind.__name__
    rates.__class__ = Along

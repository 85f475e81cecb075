"""The host: what an adapter for a framework may use of ``r8.host``, beside the documented methods of `R8Scheduler`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler

HOST = (
    "member", "seed", "say_once", "rates", "controller", "join", "leave_epoch", "share", "adopt",
    "draw_ahead", "draw_epoch", "begin", "hand_back", "leave_out", "discard", "between_steps", "may_be_due",
    "look_at_weights", "timed", "deciding_state", "backup", "look_again",
)  # fmt: skip
"""Members of the engine that adapters rely on; see `Engine`. ``tests/bridge/test_host.py`` holds both to it."""


def check_scheduler(name: str, value: Any) -> None:
    """Raise TypeError, naming the argument, unless ``value`` draws batches and takes reports."""
    if not (hasattr(value, "host") and hasattr(value, "report")):
        raise TypeError(f"{name} must be an R8Scheduler, got {value!r}.")


def num_left(r8: R8Scheduler) -> int:
    """Batches left in the epoch, or in the budget."""
    left = r8.steps_per_epoch - r8.pace.place % r8.steps_per_epoch
    return left if r8.total_steps is None else max(0, min(left, r8.total_steps - r8.pace.place))

"""The host: what an adapter for a framework may use of ``r8.host``, beside the documented methods of `R8Scheduler`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler

HOST = (
    "member", "source", "say_once", "rates", "controller", "join", "leave_epoch", "share", "adopt",
    "draw_ahead", "draw_epoch", "begin", "hand_back", "leave_out", "discard", "between_steps", "may_be_due",
    "look_at_weights", "timed", "deciding_state", "backup",
)  # fmt: skip
"""Members of the engine that adapters rely on; see `Engine`. ``tests/bridge/test_host.py`` holds both to it."""


def check_scheduler(name: str, value: Any) -> None:
    """Raise TypeError, naming the argument, unless ``value`` draws batches and takes reports."""
    if not (hasattr(value, "host") and hasattr(value, "report")):
        raise TypeError(f"{name} must be an R8Scheduler, got {value!r}.")


RIVALS = (
    "{}. As losses of networks that train against each other (a GAN) need not fall, only one that is not finite, or "
    "absurd, is refused. Pass guard='spike' for the usual guard."
)


def expect_rivals(r8: R8Scheduler, num_losses: int, num_optimizers: int, *, are_apart: bool = False) -> None:
    """Hear how many losses come in one report, and how many optimizers step.

    Args:
        r8: The scheduler.
        num_losses: Of a batch.
        num_optimizers: That train on it.
        are_apart: Whether some of them step before its loss is reported, and others behind that: each has its own.
    """
    if num_optimizers > 1:
        r8.controller.watches_fall = False
    if num_optimizers > 1 and (num_losses > 1 or are_apart) and r8.controller.expect_rivals():
        what = f"{num_losses} losses come in one report, and {num_optimizers} optimizers take steps"
        if are_apart:
            what = f"of {num_optimizers} optimizers some step before the loss of a batch is reported, others after it"
        r8.host.say_once("rivals", RIVALS.format(what), is_warning=False)


def num_left(r8: R8Scheduler) -> int:
    """Batches left in the epoch, or in the budget."""
    left = r8.steps_per_epoch - r8.pace.place % r8.steps_per_epoch
    return left if r8.total_steps is None else max(0, min(left, r8.total_steps - r8.pace.place))

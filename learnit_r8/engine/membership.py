"""Membership: what an adapter that reports losses late, or a group of ranks, must offer to join a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from .control import Requests

if TYPE_CHECKING:
    from ..sampling.ticket import Ticket


class Member(Protocol):
    """An adapter that draws batches ahead and may report their losses late."""

    def settle(self) -> object:
        """Report every loss held back, as an epoch or the run ends or a checkpoint is about to be saved."""

    def forget(self) -> object:
        """Drop the losses held back, as a saved state was loaded and they belong to the run before."""

    def in_hand(self) -> Ticket | None:
        """The batch that the next loss passed to `R8Scheduler.update_with_loss` belongs to; None if there is none."""

    def take(self, ticket: Ticket) -> object:
        """Note that a batch no longer waits for its loss."""


class NoMember:
    """Stands for the member if no adapter has joined."""

    def settle(self) -> None:
        """Do nothing."""

    forget = settle

    def in_hand(self) -> None:
        """None: no batch was drawn ahead."""

    def take(self, ticket: Ticket) -> None:
        """Do nothing."""


class RankGroup(Protocol):
    """The processes that train one model together; `Engine.share` calls `check_same_run` first."""

    def check_same_run(self, facts: Mapping[str, Any]) -> None:
        """Raise RuntimeError unless these facts about the scheduler are the same on all ranks; see `Engine.share`."""

    def shared_clock(self, own: Callable[[], float]) -> Callable[[], float]:
        """A clock that shows the same time on all ranks."""

    def shared_requests(self, own: Requests) -> Requests:
        """Requests that all ranks answer after the same step."""

    def shared_store(self, own: Any) -> Any:
        """Wrap this rank's checkpoint store in one to which only rank 0 writes."""

    def agree(self, trouble: str) -> str:
        """Share this rank's failure with all ranks: returns that of any rank; "" if there is none."""

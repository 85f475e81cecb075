"""Who may join a run: an adapter that reports losses late, and the group of ranks that a scheduler shares it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from .control import Requests

if TYPE_CHECKING:
    from ..sampling.ticket import Ticket


class Member(Protocol):
    """An adapter that has batches of the run in hand, and may hold their losses back."""

    def settle(self) -> object:
        """Report every loss that is held back; an epoch or the run ends, or a checkpoint is about to be saved."""

    def forget(self) -> object:
        """Drop the losses that are held back; a saved state was loaded, and they belong to the run before."""

    def in_hand(self) -> Ticket | None:
        """The batch that a loss given to `R8Scheduler.update_with_loss` belongs to; None if it has none."""

    def take(self, ticket: Ticket) -> object:
        """Note that a batch does not wait for its loss any more."""


class NoMember:
    """Stands for the member where nothing is held back."""

    def settle(self) -> None:
        """Do nothing."""

    forget = settle

    def in_hand(self) -> None:
        """None: no batch was drawn ahead."""

    def take(self, ticket: Ticket) -> None:
        """Do nothing."""


class RankGroup(Protocol):
    """The processes that train one model together; `Engine.share` calls the first method first."""

    def check_same_run(self, facts: Mapping[str, Any]) -> None:
        """Raise unless the scheduler of every rank has the same facts; see `Engine.share`."""

    def shared_clock(self, own: Callable[[], float]) -> Callable[[], float]:
        """A clock that shows the same time on all ranks."""

    def shared_requests(self, own: Requests) -> Requests:
        """Requests that all ranks answer after the same step."""

    def shared_store(self, own: Any) -> Any:
        """A checkpoint store to which only rank 0 writes."""

    def agree(self, trouble: str) -> str:
        """What went wrong on this rank or on another one; "" if nothing did."""

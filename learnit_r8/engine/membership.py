"""Membership: what an adapter that reports late, or a group of ranks, must offer to join a run, and how ranks join."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ..recovery.agreement import Ranks
from .run_state import identity_of, resume_from

if TYPE_CHECKING:
    from ..sampling.ticket import Ticket
    from .engine import Engine
    from .pace import Pace

COMPARED_PROGRESS = (0.0, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0)
"""Progress at which the schedules of ranks are compared."""


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
    """The processes that train one model together; `share` calls `check_same_run` first."""

    def check_same_run(self, facts: Mapping[str, Any]) -> None:
        """Raise RuntimeError unless these facts about the scheduler are the same on all ranks; see `share`."""

    def shared_clock(self, own: Callable[[], float]) -> Callable[[], float]:
        """A clock that shows the same time on all ranks."""

    def shared_store(self, own: Any) -> Any:
        """Wrap this rank's checkpoint store in one to which only rank 0 writes."""

    def agreeing(self, pace: Pace) -> Ranks:
        """What the parts of a run ask the other ranks through; it must not refer to the run."""


def share(run: Engine, group: RankGroup, resume: str | os.PathLike[str] | None = None) -> None:
    """Make the scheduler act as one with those of other ranks, before the first draw.

    Args:
        group: Compares the arguments that determine batches, rates and intervals; then provides a shared clock and a
            shared checkpoint store in place of the scheduler's own, and an agreement of all ranks.
        resume: As for `R8Scheduler`, for ranks that choose together what they continue from.

    Raises:
        RuntimeError: the scheduler of another rank has other arguments.
    """
    group.check_same_run(_facts(run))
    run.pace.use_clock(group.shared_clock(run.pace.clock))
    run.agreement.join(group.agreeing(run.pace))
    run.requests.share()
    if run.saver is not None:
        run.saver.share(group.shared_store(run.saver.store))
    if resume is not None:
        resume_from(run, resume)
        group.check_same_run({"global_step": run.pace.step, "seed": run.plan.seed})


def _facts(run: Engine) -> dict[str, Any]:
    callbacks = run.persistence.callbacks
    return {
        **identity_of(run),
        "alpha": run.table.learner.alpha,
        "groups": run.table.storage.records.whole["group"],
        "policy": run.plan.policy,
        "seed": run.plan.seed,
        "budget": run.pace.budget,
        "learning rates": [float(run.rates.schedule(progress)) for progress in COMPARED_PROGRESS],
        "guard": run.sentry.guard,
        "recovery": run.controller.recovery,
        "load_callback": callbacks.load is not None,
        "state_callback": callbacks.state is not None,
        "backup_every": run.persistence.backup_timer.when,
        # Only the default takes early backups, though others may be as far apart later.
        "whether backup_every is given": not run.persistence.backup_timer.is_usual,
        "checkpoint_dir": run.saver is not None,
        "global_step": run.pace.step,
    }

"""Ranks: makes the schedulers of several processes act as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .membership import RankGroup
from .run_state import identity_of

if TYPE_CHECKING:
    from .engine import Engine

COMPARED_PROGRESS = (0.0, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0)
"""Progress at which the schedules of ranks are compared."""


def share(run: Engine, group: RankGroup) -> None:
    """Make the scheduler act as one with those of other ranks, before the first draw.

    Args:
        group: Compares the arguments that determine batches, rates and intervals; then provides a shared clock, shared
            requests and a shared checkpoint store in place of the scheduler's own.

    Raises:
        RuntimeError: the scheduler of another rank has other arguments.
    """
    group.check_same_run(_facts(run))
    run.pace.use_clock(group.shared_clock(run.pace.clock))
    run.requests = group.shared_requests(run.requests)
    run.persistence.share(group.agree, group.shared_store)


def _facts(run: Engine) -> dict[str, Any]:
    persistence = run.persistence
    return {
        **identity_of(run),
        "alpha": run.table.alpha,
        "groups": run.table.records["group"],
        "policy": run.plan.policy,
        "seed": run.plan.seed,
        "budget": run.pace.budget,
        "learning rates": [float(run.schedule(progress)) for progress in COMPARED_PROGRESS],
        "guard": run.sentry.guard,
        "recovery": run.controller.recovery,
        "load_callback": persistence.callbacks.load is not None,
        "state_callback": persistence.callbacks.state is not None,
        "backup_every": persistence.backup_every,
        "checkpoint_dir": persistence.store is not None,
        "global_step": run.global_step,
    }

"""Special draws, such as steady batches, repeated ones and those of a rate search; and the start of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..policies.registry import STEADY
from ..sampling.chunk import Batch
from ..sampling.ticket import Ticket

if TYPE_CHECKING:
    from .engine import Engine


def start(run: Engine) -> None:
    """Tell listeners that the run has started."""
    budget, table = run.pace.budget, run.table
    run.search.check_ready()
    run.emitter.run_started(
        settings=run._settings,
        schedule=run.schedule,
        name=run.name,
        num_samples=table.num_samples,
        batch_size=table.batch_size,
        steps_per_epoch=run.plan.steps_per_pass,
        total_steps=budget.steps,
        train_duration_seconds=budget.seconds,
        policy=run.plan.policy.name,
    )
    run.persistence.tell_loaded()
    # Last, so that an interrupted start is repeated.
    run._has_started = True


def for_search(run: Engine) -> tuple[Batch, float, int]:
    """The next batch of the search for a learning rate, its rate, and its epoch."""
    batch, lr = run.search.draw()
    return batch, lr, -1


def elsewhere(run: Engine, epoch: int, progress: float) -> tuple[Batch, float, int]:
    """Draw a batch that may not simply be the next one of the chunk; returns it with its rate and its epoch."""
    pace = run.pace
    pace.start()
    if not run._tally.has_begun:
        run._tally.began = pace.seconds
    # After a resume, batches that are drawn again may be of the previous pass.
    if epoch > run.plan.pass_number:
        _start_pass(run, epoch, pace.policy_progress(epoch, progress))
    # The schedule first: if it raises, nothing was drawn.
    lr, returned = run._lr_at(progress), run.plan.has_returned
    batch = _next_batch(run)
    rates = batch.chunk.rates
    if returned:
        lr = rates[batch.slot]
    rates[batch.slot] = lr
    pace.num_out += 1
    return batch, lr, epoch


def _start_pass(run: Engine, number: int, progress: float) -> None:
    plan = run.plan
    plan.start_pass(number, progress)
    if number and plan.policy.needs_exact and not plan.outlook.is_exact:
        run.announcer.warn_once(
            "not exact",
            f"policy {plan.policy!r} needs the loss of each sample but got {run.table.source}, so it leaves out no "
            "sample because of its loss. Report a vector of losses.",
        )


def _next_batch(run: Engine) -> Batch:
    if run.controller.replay.is_due and not run.plan.has_returned:
        return run.plan.draw_again(run.controller.replay.draw(run._num_draws))
    if run.controller.is_steadying and not run.plan.has_returned:
        run.controller.count_steady()
        steady = run.plan.draw_outside(STEADY)
        if steady is not None:
            return steady
    return run.plan.draw()


def rest_of_epoch(run: Engine) -> list[Ticket]:
    """Draw the rest of the epoch at once; empty if the budget is spent or the run was stopped."""
    # Steady batches for an incident that is over would come too late.
    run.controller.skip_steady_if_over()
    end = (run.pace.epoch + 1) * run.plan.steps_per_pass
    tickets: list[Ticket] = []
    while run.pace.next_step < end and (ticket := run.draw_ahead()) is not None:
        tickets.append(ticket)
    return tickets

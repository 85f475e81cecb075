"""Special draws, such as steady batches, repeated ones and those of a rate search."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..policies.registry import STEADY
from ..sampling.chunk import Batch
from ..sampling.ticket import Ticket, new_tuple

if TYPE_CHECKING:
    from .engine import Engine


def draw_specially(run: Engine, step: int, *, may_probe: bool = True) -> Ticket | None:
    """Draw a batch that may not simply be the next one of the chunk; None if another call came first."""
    pace, plan = run.pace, run.plan
    epoch, progress = (step + pace.left_out) // plan.steps_per_pass, pace.progress_at(step)
    # The schedule is the user's: if it raises, nothing has changed.
    scheduled = math.nan if run.search.is_on else run.rates.scheduled(progress)
    if epoch > plan.pass_number and not (pace.num_out or run.search.is_on):
        # With batches out, an earlier epoch goes on: its metrics are still to come.
        run.early_stop.check_name(epoch)
    with run.turns.take("draw", step) as turn:
        if pace.next_step != step:
            return None
        if run.search.is_on:
            # Its batches are no steps of the run, and take none of its time.
            turn.is_changing = True
            batch, lr = run.search.draw()
            return number(run, step, -1, lr, batch)
        turn.is_changing = True
        start_clock(run)
        # After a resume, batches that are drawn again may be of the previous pass.
        if epoch > plan.pass_number:
            _start_pass(run, epoch, pace.policy_progress(epoch, progress))
        run.controller.inquiry.hide_true()
        turn.is_changing = False
        # So is the policy: if it raises, nothing was drawn.
        lr, returned = run.controller.lr(scheduled), bool(plan.returned)
        asks_probe = may_probe and run.controller.experiment.asks_probe
        is_of_pass = not asks_probe and (returned or not run.controller.is_steadying)
        ahead = plan.look_ahead() if is_of_pass else None
        turn.is_changing = True
        batch = plan.draw(ahead) if is_of_pass else _of_incident(run, asks_probe=asks_probe)
        if returned and is_of_pass:
            lr = batch.chunk.rates[batch.slot]
        batch.chunk.rates[batch.slot] = lr
        pace.num_out += not batch.chunk.is_extra
        return number(run, step, epoch, lr, batch)


def number(run: Engine, step: int, epoch: int, lr: float, batch: Batch) -> Ticket:
    """The ticket of a batch, with the number of its draw."""
    chunk, slot, indices = batch
    draw, weights = run._num_draws, None if chunk.weights is None else chunk.weights_of(slot)
    run._num_draws = draw + 1
    return new_tuple(Ticket, (step, epoch, indices, lr, weights, draw, chunk, slot))


def draw_nothing(run: Engine) -> None:
    """Note that there is no batch to draw: with none out, the run is left."""
    if run.turns.busy is not None:
        run.turns.wait("draw", run.pace.next_step)
    if not run.pace.num_out:
        run.requests.leave()
        # Time that is kept for a last break may end the run before its budget is used up.
        run.persistence.wake()


def start_clock(run: Engine) -> None:
    """Begin to count the time of the run and of its epoch, as a batch is drawn."""
    run.pace.start()
    if not run._tally.has_begun:
        run._tally.began = run.pace.seconds


def _start_pass(run: Engine, number: int, progress: float) -> None:
    plan = run.plan
    plan.start_pass(number, progress)
    if number and plan.policy.needs_exact and not plan.outlook.is_exact:
        run.announcer.warn_once(
            "not exact",
            f"policy {plan.policy!r} needs the loss of each sample but got {run.table.source}, so it leaves out no "
            "sample because of its loss. Report a vector of losses.",
        )


def _of_incident(run: Engine, *, asks_probe: bool) -> Batch:
    """Draw a probe or a steady batch."""
    controller = run.controller
    if asks_probe:
        batch = run.plan.draw_again(controller.experiment.draw())
        batch.chunk.is_extra = not run.pace.leaves_out
        controller.experiment.note_drawn(batch.chunk)
        return batch
    controller.inquiry.steady_left -= 1
    return run.plan.draw_outside(STEADY) or run.plan.draw()


def draw_last(run: Engine, step: int, *, may_probe: bool) -> Ticket | None:
    """Draw a probe after the last step of the budget; None if none is asked for, or no place is left for one."""
    if not (run.controller.experiment.asks_probe and may_probe) or run.pace.is_stopped or run.pace.leaves_out:
        draw_nothing(run)
        return None
    with run.turns.take("draw", step, is_changing=True):
        run.controller.inquiry.hide_true()
        lr, batch = run.rates.now, _of_incident(run, asks_probe=True)
        batch.chunk.rates[batch.slot] = lr
        return number(run, step, max(0, run.pace.place - 1) // run.plan.steps_per_pass, lr, batch)


def rest_of_epoch(run: Engine) -> list[Ticket]:
    """Draw the rest of the epoch at once; empty if the budget is spent or the run was stopped."""
    # Steady batches for an incident that is over would come too late.
    run.controller.inquiry.steady_left = 0
    end = (run.pace.epoch + 1) * run.plan.steps_per_pass
    tickets: list[Ticket] = []
    while run.pace.next_place < end and (ticket := run.draw_ahead()) is not None:
        tickets.append(ticket)
    return tickets

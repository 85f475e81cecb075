"""Special draws, such as steady batches, repeated ones and those of a rate search; and the start of a run."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

from ..policies.registry import STEADY
from ..sampling.chunk import Batch
from ..sampling.ticket import Ticket
from .run_state import tell_loaded

if TYPE_CHECKING:
    from .engine import Engine

STATE_ALONE = (
    "state_callback was given without load_callback, so backups are taken and nothing can be put back; pass "
    "load_callback=, which takes what state_callback returned."
)


def start(run: Engine) -> None:
    """Tell listeners that the run has started."""
    budget, table = run.pace.budget, run.table
    run.search.check_ready()
    run.emitter.run_started(
        settings=run.settings,
        schedule=run.schedule,
        name=run.name,
        num_samples=table.num_samples,
        batch_size=table.batch_size if run.feed is None else 0,
        steps_per_epoch=run.plan.steps_per_pass if run.feed is None else budget.steps_per_pass or 0,
        total_steps=budget.expected_steps,
        train_duration_seconds=budget.seconds,
        policy=run.plan.policy.name,
        grows=run.feed is not None and run.feed.has_ids,
    )
    folder = None if run.saver is None else run.saver.store.folder
    if folder is not None:
        # So that a later process can tell a folder that was deleted from one without a checkpoint yet; where it cannot
        # be made, the first checkpoint says so.
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
    callbacks = run.persistence.callbacks
    if callbacks.state is not None and callbacks.load is None and run.saver is None:
        run.announcer.warn_once("state alone", STATE_ALONE)
    tell_loaded(run)
    # Last, so that an interrupted start is repeated.
    run._has_started = True


def draw_specially(run: Engine, step: int, *, may_probe: bool = True) -> Ticket | None:
    """Draw a batch that may not simply be the next one of the chunk; None if another call came first."""
    pace, plan = run.pace, run.plan
    epoch, progress = step // plan.steps_per_pass, pace.progress_at(step)
    # The schedule is the user's: if it raises, nothing has changed.
    scheduled = math.nan if run.search.is_on else run.scheduled_lr(progress)
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
            return run._ticket(step, -1, lr, batch)
        turn.is_changing = True
        start_clock(run)
        # After a resume, batches that are drawn again may be of the previous pass.
        if epoch > plan.pass_number:
            _start_pass(run, epoch, pace.policy_progress(epoch, progress))
        turn.is_changing = False
        # So is the policy: if it raises, nothing was drawn.
        lr, returned = run.controller.lr(scheduled), plan.has_returned
        asks_probe = may_probe and run.controller.experiment.asks_probe
        is_of_pass = not asks_probe and (returned or not run.controller.is_steadying)
        ahead = plan.look_ahead() if is_of_pass else None
        turn.is_changing = True
        batch = plan.draw(ahead) if is_of_pass else _of_incident(run, asks_probe=asks_probe)
        if returned and is_of_pass:
            lr = batch.chunk.rates[batch.slot]
        batch.chunk.rates[batch.slot] = lr
        pace.num_out += not batch.chunk.is_extra
        return run._ticket(step, epoch, lr, batch)


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
        batch.chunk.is_extra = controller.experiment.take_extra()
        controller.experiment.note_drawn(batch.chunk)
        return batch
    controller.steady_left -= 1
    return run.plan.draw_outside(STEADY) or run.plan.draw()


def draw_last(run: Engine, step: int) -> Ticket | None:
    """Draw a probe after the last step of the budget."""
    with run.turns.take("draw", step, is_changing=True):
        lr, batch = run.lr, _of_incident(run, asks_probe=True)
        batch.chunk.rates[batch.slot], batch.chunk.is_extra = lr, False
        run.pace.num_out += 1
        return run._ticket(step, max(0, step - 1) // run.plan.steps_per_pass, lr, batch)


def rest_of_epoch(run: Engine) -> list[Ticket]:
    """Draw the rest of the epoch at once; empty if the budget is spent or the run was stopped."""
    # Steady batches for an incident that is over would come too late.
    run.controller.steady_left = 0
    end = (run.pace.epoch + 1) * run.plan.steps_per_pass
    tickets: list[Ticket] = []
    while run.pace.next_step < end and (ticket := run.draw_ahead()) is not None:
        tickets.append(ticket)
    return tickets

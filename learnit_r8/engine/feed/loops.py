"""Loops of the user's that a feed drives without a loader: over steps, and over epochs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .. import draws

if TYPE_CHECKING:
    from .feed import Feed

ENDLESS = (
    "steps() has no loader whose end num_epochs= could count, so this loop does not end by itself: give num_steps=, "
    "num_tokens= or train_duration_seconds=, or iterate over batches(loader)."
)
MOST_SILENT = 1000
"""Steps without a loss after which the loop gets an error."""


def steps(feed: Feed) -> Iterator[int]:
    """Yield the number of each step until the budget is spent or the run is stopped; see `R8Scheduler.steps`."""
    run, pace, num_silent = feed.run, feed.run.pace, 0
    if pace.budget.passes is not None and not (feed.num_iterations or feed.num_passes):
        run.announcer.warn_once("endless", ENDLESS)
    run.controller.experiment.let_probe(False)
    run.requests.stay_within(None)
    feed.trainer.before_iteration()
    feed.place.resume_alone()
    try:
        while True:
            feed.trainer.between_steps()
            feed.has_asked = True
            if feed.is_at_end():
                feed.trainer.settle()
                draws.draw_nothing(run)
                return
            before = pace.next_step
            yield before
            num_silent = 0 if pace.next_step != before else num_silent + 1
            if num_silent == MOST_SILENT:
                run.announcer.warn_once("silent", f"steps() was asked {MOST_SILENT} times with no loss reported.")
    except GeneratorExit:
        run.requests.leave()
        raise


def epochs(feed: Feed) -> Iterator[int]:
    """Yield the numbers of epochs until the budget is spent; see `R8Scheduler.epoch_iterator`."""
    run, pace = feed.run, feed.run.pace
    feed.is_in_epochs = True
    try:
        while True:
            feed.give_up_open()
            feed.trainer.settle()
            is_repeated = pace.has_ended and feed.place.is_resumed
            if is_repeated and pace.is_over:
                # It was over before it was resumed, which was said.
                return
            if not is_repeated:
                # Listeners hear of the start once it is known what the batches say of their samples.
                if run.emitter.has_started or pace.is_over:
                    feed.trainer.between_steps()
                if pace.is_over:
                    return
            # A pass that goes on after a resume may have nothing left but its end.
            before = pace.turns, feed.num_iterations, pace.passes, pace.has_ended
            feed.epoch_follows = pace.has_ended and not is_repeated
            yield pace.epoch + feed.epoch_follows
            is_same = (feed.num_iterations, pace.passes, pace.has_ended) == before[1:]
            # Steps without a loader never end an epoch, which a budget in epochs would wait for for ever.
            is_idle = pace.turns == before[0] or pace.budget.passes is not None
            if is_same and is_idle and not (is_repeated or pace.is_over):
                others = "" if pace.turns == before[0] else " What was reported is of no batch of batches()."
                raise RuntimeError(
                    f"epoch {pace.epoch} ended with no batch reported; iterate over batches(loader), with a loader "
                    f"that gives batches in each epoch, and report the loss of each.{others}"
                )
    finally:
        feed.is_in_epochs = feed.epoch_follows = False
        run.requests.leave()

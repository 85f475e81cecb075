"""Batches of the user's loader that are kept, to test weights with them later."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .. import draws
from .batch_size import bytes_of, copied

if TYPE_CHECKING:
    from ..engine import Engine
    from .feed import Feed

MOST_KEPT_BYTES = 2**26
"""Largest batch that is kept to be handed out again."""


def may_be_witness(run: Engine) -> bool:
    """Whether weights may be tested with the batch in hand later."""
    controller = run.controller
    return controller.is_early or run.backup.awaits_witness or controller.witnesses.waiting is not None


def keep(feed: Feed, item: Any) -> Any:
    """A copy of a batch where weights may be tested with it, else None."""
    run = feed.run
    if item is None or not feed.settings.keeps_witness:
        return None
    if not may_be_witness(run):
        return None
    if bytes_of(item) <= MOST_KEPT_BYTES:
        return copied(item)
    run.announcer.note_once(
        "large batch",
        f"batches of more than {MOST_KEPT_BYTES >> 20} MiB are not kept, so weights are not tested with them: "
        "what happens after refused losses depends on how many there are in a row.",
    )
    return None


def has_probe(run: Engine) -> bool:
    """Whether the batch that a test asks for was kept on all ranks; if not, the next losses decide."""
    asked = run.controller.experiment.asked
    is_kept = asked is not None and all(item is not None for item in asked.witness)
    is_kept = all(each[0] for each in run.agreement.gather([is_kept]))
    if not is_kept:
        run.controller.experiment.let_probe(False)
    return is_kept


def take_probe(feed: Feed) -> Any:
    """Hand out a batch once more, to test weights with it."""
    run, pace = feed.run, feed.run.pace
    feed.trainer.before_probe()
    with run.turns.take("draw", pace.next_step, is_changing=True):
        run.controller.inquiry.hide_true()
        item = run.controller.experiment.draw()
        batch = feed.plan.draw_again(item)
        run.controller.experiment.note_drawn(batch.chunk)
        lr = run.rates.now
        # A stream without a length ends where it does, and nothing of it is left out.
        leaves_out = pace.leaves_out and feed.place.length < math.inf
        batch.chunk.rates[0], batch.chunk.is_extra = lr, not leaves_out
        feed.open = draws.number(run, pace.next_step, pace.epoch, lr, batch)
        pace.num_out += leaves_out
    return copied(item)

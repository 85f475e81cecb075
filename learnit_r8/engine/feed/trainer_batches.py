"""The batches of a trainer that takes them from its loader by itself: a run hears when each begins."""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

from ...sampling.loader_plan import Size
from ..draws import draw_nothing
from .batch_size import meet
from .probes import keep

if TYPE_CHECKING:
    from .batch_size import BatchMeasure
    from .feed import Feed


FROM_THE_START = (
    "the saved run was within an epoch, at step {}; the trainer starts that epoch over, so the batches that were "
    "trained on in it come again. Checkpoints between two epochs are exact."
)


class TrainerBatches:
    """Tells a feed of batches that somebody else has fetched, epoch by epoch.

    None of them can be handed out again: weights are tested outside of the loop, or by the losses that follow.

    Args:
        feed: Of a run without samples.
        measure: Reads the size of a batch.
        sets_generators: Whether a resumed run sets the random generators; some trainers do so themselves.
        begins_anew: Whether a run that is resumed in mid-epoch gets the epoch's batches from the first one on.
    """

    def __init__(
        self, feed: Feed, measure: BatchMeasure, *, sets_generators: bool = True, begins_anew: bool = False
    ) -> None:
        self._feed, self._measure, self._sets_generators = feed, measure, sets_generators
        self._begins_anew = feed.is_counted = begins_anew

    @property
    def is_watched(self) -> bool:
        """Whether a batch has begun and is not reported yet."""
        return self._feed.open is not None

    def begin_run(self, scope: Callable[[FrameType | None], bool] | None = None) -> None:
        """Note that the trainer begins, before it sets up its loader.

        Args:
            scope: Whether a frame is within the training, for signals.
        """
        feed = self._feed
        run = feed.run
        feed.give_up_open()
        run.controller.experiment.let_probe(False)
        run.requests.stay_within(scope)
        feed.trainer.before_iteration()
        if not self._sets_generators:
            feed.place.take_resumed()
        elif run.pace.has_ended:
            # Between two epochs: the next one draws its order from them.
            feed.place.resume_alone()

    def begin_pass(self, number: int | None = None) -> None:
        """Note that an epoch begins.

        Args:
            number: Which, 0-based, where the trainer counts them.
        """
        feed, pace = self._feed, self._feed.run.pace
        if feed.place.is_resumed and not pace.has_ended and self._begins_anew:
            feed.run.announcer.warn_once("from the start", FROM_THE_START.format(feed.run.pace.step))
        pace.begin_pass()
        if number is not None:
            pace.passes = number

    def begin(self, item: Any = None) -> bool:
        """Note that the training on a batch begins; a batch before it that was not reported does not count as a step.

        Args:
            item: The batch, of which the size is read; None where it is not known.

        Returns:
            Whether the run goes on; else the budget is spent or the run was stopped, and the batch is not watched.
        """
        feed = self._feed
        run = feed.run
        feed.give_up_open()
        feed.place.resume_alone()
        feed.between_steps()
        if feed.is_at_end():
            feed.trainer.settle()
            draw_nothing(run)
            return False
        # Trainers deal out as many batches to each rank.
        size = meet(run, Size() if item is None else self._measure.of(item)) or Size()
        feed.open = feed.take(item, size, is_of_loader=False)
        run.controller.note_start()
        return True

    def note_batch(self, item: Any) -> None:
        """Note the batch in hand, to take its loss once more where weights are tested; see `Callbacks.repeat`."""
        if self._feed.open is not None and self._feed.run.persistence.callbacks.repeat is not None:
            chunk: Any = self._feed.open.chunk
            chunk.item = keep(self._feed, item)

    def begin_more(self) -> bool:
        """Note one more batch of those that the trainer takes at once, of which only the first begins between steps.

        Returns:
            As of `begin`.
        """
        feed = self._feed
        if feed.is_at_end():
            return False
        feed.open = feed.take(None, Size(), is_of_loader=False)
        return True

    def discard(self) -> None:
        """Count the batch in hand as one whose training was undone before its loss was judged."""
        ticket, self._feed.open = self._feed.open, None
        if ticket is not None:
            self._feed.run.discard(ticket)

    def end_pass(self) -> None:
        """Note that an epoch has ended, before it is validated."""
        feed = self._feed
        feed.trainer.settle()
        if not feed.run.pace.has_ended:
            feed.mark_ended()
            feed.run.controller.end_update()
        feed.run.leave_epoch()

    def end_run(self) -> None:
        """Note that the trainer has ended."""
        self._feed.give_up_open()
        self._feed.run.requests.leave()

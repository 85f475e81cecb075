"""The batches of a trainer that takes them from its loader by itself: a run hears when each begins."""

from __future__ import annotations

from collections.abc import Callable
from types import FrameType
from typing import Any

from ...sampling.chunk import Size
from .batch_size import BatchMeasure
from .feed import Feed

FROM_THE_START = (
    "the saved run was within an epoch, at step {}; the trainer starts that epoch over, so the batches that were "
    "trained on in it come again. Checkpoints between two epochs are exact."
)
OTHER_EPOCH = (
    "the training begins with epoch {}, and the saved run goes on with epoch {} at step {}: begin with current_epoch "
    "(in fit: initial_epoch=r8.current_epoch), or epochs are trained on twice or left out."
)


class TrainerBatches:
    """Tells a feed of batches that somebody else has fetched, epoch by epoch.

    None of them can be handed out again: weights are tested outside of the loop, or by the losses that follow.

    Args:
        feed: Of a run without samples.
        measure: Reads the size of a batch.
        sets_generators: Whether a resumed run sets the random generators; some trainers do so themselves.
        counts_epochs: Whether the trainer counts the epochs, and passes over what a resumed run had of one.
    """

    def __init__(
        self, feed: Feed, measure: BatchMeasure, *, sets_generators: bool = True, counts_epochs: bool = False
    ) -> None:
        self._feed, self._measure, self._sets_generators = feed, measure, sets_generators
        self._counts_epochs = feed.is_counted = counts_epochs
        self._resumed_epoch: int | None = None

    @property
    def is_watched(self) -> bool:
        """Whether a batch has begun and is not reported yet."""
        return self._feed.source.open is not None

    def begin_run(self, scope: Callable[[FrameType | None], bool] | None = None) -> None:
        """Note that the trainer begins, before it sets up its loader.

        Args:
            scope: Whether a frame is within the training, for signals.
        """
        feed = self._feed
        engine = feed.engine
        feed.give_up_open()
        self._resumed_epoch = feed.current_epoch if feed.source.is_resumed else None
        engine.controller.experiment.let_probe(False)
        engine.requests.stay_within(scope)
        feed.trainer.before_iteration()
        if not self._sets_generators:
            feed.source.take_resumed()
        elif engine.pace.has_ended:
            # Between two epochs: the next one draws its order from them.
            feed.source.resume_alone()

    def begin_pass(self, number: int | None = None) -> int:
        """Note that an epoch begins, before its loader does.

        Args:
            number: Which, 0-based, where the trainer counts them.

        Returns:
            Batches of it that the saved run has had, for the trainer to pass over, and 0 otherwise. The random
            generators are set to where they were before these batches.
        """
        feed, pace, announcer = self._feed, self._feed.engine.pace, self._feed.engine.announcer
        is_within, num_had = feed.source.is_resumed and not pace.has_ended, 0
        if self._counts_epochs:
            if self._resumed_epoch not in (None, number):
                announcer.warn_once("other epoch", OTHER_EPOCH.format(number, self._resumed_epoch, pace.step))
            elif is_within and feed.source.settings.resume_data == "start":
                announcer.warn_once("from the start", FROM_THE_START.format(pace.step))
            elif is_within:
                num_had = pace.step_in_epoch
            feed.source.begin_alone(is_within=num_had > 0)
        self._resumed_epoch = None
        pace.begin_pass()
        if number is not None:
            pace.passes = number
        return num_had

    def begin(self, item: Any = None) -> bool:
        """Note that the training on a batch begins; a batch before it that was not reported does not count as a step.

        Args:
            item: The batch, of which the size is read; None where it is not known.

        Returns:
            Whether the run goes on; else the budget is spent or the run was stopped, and the batch is not watched.
        """
        feed = self._feed
        engine = feed.engine
        feed.give_up_open()
        feed.source.resume_alone()
        feed.between_steps()
        if feed.is_at_end():
            feed.trainer.settle()
            engine.draw_nothing()
            return False
        # Trainers deal out as many batches to each rank.
        size = feed.meet(Size() if item is None else self._measure.of(item)) or Size()
        feed.source.open = feed.take(item, size, is_of_loader=False)
        engine.controller.note_start()
        return True

    def note_batch(self, item: Any) -> None:
        """Note the batch in hand, to take its loss once more where weights are tested; see `Callbacks.repeat`."""
        if self._feed.source.open is not None and self._feed.engine.persistence.callbacks.repeat is not None:
            chunk: Any = self._feed.source.open.chunk
            chunk.item = self._feed.keep(item)

    def begin_more(self) -> bool:
        """Note one more batch of those that the trainer takes at once, of which only the first begins between steps.

        Returns:
            As of `begin`.
        """
        feed = self._feed
        if feed.is_at_end():
            return False
        feed.source.open = feed.take(None, Size(), is_of_loader=False)
        return True

    def discard(self) -> None:
        """Count the batch in hand as one whose training was undone before its loss was judged."""
        ticket, self._feed.source.open = self._feed.source.open, None
        if ticket is not None:
            self._feed.engine.discard(ticket)

    def end_pass(self) -> None:
        """Note that an epoch has ended, before it is validated."""
        feed = self._feed
        feed.trainer.settle()
        if not feed.engine.pace.has_ended:
            feed.mark_ended()
            feed.engine.controller.end_update()
        feed.engine.leave_epoch()

    def end_run(self) -> None:
        """Note that the trainer has ended."""
        self._feed.give_up_open()
        self._feed.engine.requests.leave()

"""The feed: the batches of the user's own loader on their way through a run.

A run takes them as they come: one at a time, when the loop asks for it, from the one iterator that the loop would have
made. Nothing is fetched ahead, and nothing is drawn from a random generator.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ... import events
from ...guard.verdict import GOOD
from ...sampling.loader_plan import LoaderPlan, Size
from ...sampling.random_generators import hold_random_state
from ...sampling.ticket import Outcome, Ticket, new_tuple
from .. import draws, refusal, run_state
from .batch_size import BatchMeasure, meet
from .place import FeedSettings, LoaderPlace
from .probes import has_probe, keep, take_probe
from .samples import BatchSamples, note_rows, tell_ids
from .trainers import FeedTrainer, PlainTrainer

if TYPE_CHECKING:
    from ...table.names import Members
    from ..engine import Engine

NOT_REPORTED = (
    "the batch of step {step} was not reported with update_with_loss(); it counts as no step and does not come again."
)
NEVER_REPORTED = (
    "an epoch of {} batches ended with no loss reported, so it counts as none and nothing is watched: call "
    "update_with_loss(loss) after each batch, or report(loss) of what attach() returned. To look at the data without "
    "training, iterate over your loader itself."
)
NO_BATCH = (
    "the loader of batches() gave no batch: an iterator or a generator is used up after one epoch, so give what can be "
    "iterated over in each, such as a DataLoader or a list."
)
OTHER_LENGTH = (
    "a run through the loader gave {} batches, where its length or steps_per_epoch says {}: rates of R8's and the "
    "progress follow what it says, so give the right steps_per_epoch."
)
NO_END = (
    "a run through the loader has given {:,} batches so far and not ended, and num_epochs= waits for its end; if it "
    "has none, give num_steps=, num_tokens= or train_duration_seconds=."
)
REPLACED = "a batch was asked for by an iteration that another one has replaced; iterate over batches() once at a time."
AFTER_LAST = (
    "the run went on after the last batch of its epoch, so batches() gave none, and what follows them in your loop is "
    "repeated: before the loop over them, give what it computes a first value"
)
LONG_PASS = 100_000
"""Batches of a run through a loader without a length after which it is said that epochs wait for its end."""

_NONE: Any = object()
"""Stands for the next batch of a loader that has ended."""


class Feed:
    """Takes batches from the user's loader, and knows how far it is.

    Args:
        run: The engine.
        plan: Counts them.
        settings: How the loader is treated.

    Attributes:
        run, plan, settings: As given.
        trainer: Trains on the batches.
        open: The batch in hand; None once it is reported.
        place: How far the run is in the loader.
        has_asked: Whether `loops.steps` has given a step that is not reported yet.
        is_in_epochs: Whether a loop over epochs is under way.
        num_iterations: Iterations over the batches that have begun.
        is_counted: Whether a trainer counts the epochs.
        epoch_follows: Whether a loop over epochs has given the number of one whose first batch was not asked for yet.
    """

    def __init__(self, run: Engine, plan: LoaderPlan, settings: FeedSettings) -> None:
        self.run, self.plan, self.settings = run, plan, settings
        self.place = LoaderPlace(run, plan, settings)
        self.open: Ticket | None = None
        self.trainer: FeedTrainer = PlainTrainer(run.between_steps)
        self._iteration: object = None
        self.is_counted = self.epoch_follows = False
        self.has_asked = self.is_in_epochs = self._is_repeated = False
        self._updates = self.num_iterations = 0
        self._long_pass = -1

    def join(self, trainer: FeedTrainer) -> None:
        """Let an adapter train on the batches; it takes the place of the one that joined before."""
        self.trainer = trainer

    def expect_epochs_of(self, steps: int) -> None:
        """Have backups taken as often as epochs of so many steps ask for, unless the user has said how often."""
        self.run.persistence.expect_epochs_of(steps)

    @property
    def is_iterating(self) -> bool:
        """Whether a loop over the batches is under way."""
        return self._iteration is not None

    @property
    def current_epoch(self) -> int:
        """See `R8Scheduler.current_epoch`."""
        pace = self.run.pace
        is_next = self.place.is_resumed and (self.is_counted or pace.is_finished)
        return pace.epoch + (pace.has_ended and (self.epoch_follows or is_next))

    @property
    def num_passes(self) -> int:
        """Runs through the loader that have ended."""
        return self.run.pace.passes + self.run.pace.has_ended

    @property
    def has_ids(self) -> bool:
        """Whether batches say which samples they hold, as far as is known."""
        return self.place.samples.is_known or bool(self.run.table.num_samples)

    # The iteration.

    def iterate(self, source: Any, measure: BatchMeasure, samples: BatchSamples) -> Iterator[Any]:
        """One run through the user's iterable, or what is left of it; see `R8Scheduler.batches`."""
        run, pace, controller = self.run, self.run.pace, self.run.controller
        self.give_up_open()
        this = self._iteration = object()
        self.num_iterations += 1
        samples.follow(self.place.samples)
        self.place.samples = samples
        begun = pace.turns + pace.num_out
        run.requests.stay_within(None)
        try:
            self._begin(source)
            while True:
                if self._iteration is not this:
                    raise RuntimeError(REPLACED)
                if self.open is not None:
                    self.give_up_open()
                self.between_steps()
                samples.tell_quarantined()
                if self._updates > controller.lineage.updates and not controller.is_open:
                    self.place.go_back(self._updates)
                self._updates = controller.lineage.updates
                if controller.experiment.asks_probe and self._has_place():
                    if not has_probe(run):
                        continue
                    item = take_probe(self)
                elif self.is_at_end():
                    if self._has_ended(begun):
                        return
                    continue
                elif (item := self._take_next(measure)) is _NONE:
                    self.end_pass()
                    return
                self.trainer.hand_out(item)
                yield item
        except GeneratorExit:
            # A break: if the run goes on, the signals are taken again.
            run.requests.leave()
            raise
        finally:
            if self._iteration is this:
                self._iteration, self.place.has_begun = None, False

    def _begin(self, source: Any) -> None:
        run, pace, place = self.run, self.run.pace, self.place
        self.epoch_follows = False
        self.trainer.before_iteration()
        run.controller.experiment.let_probe(self.settings.keeps_witness)
        place.samples.prepare(source)
        self._is_repeated = place.is_resumed and pace.has_ended
        if self._is_repeated:
            run.announcer.note_once("repeated", AFTER_LAST)
        if place.is_resumed:
            place.resume(source)
        else:
            # It was left by a break; a look at a batch that was not trained on is no epoch.
            if self.plan.taken and not pace.has_ended and pace.turns != place.first_turn:
                self.mark_ended()
            if pace.has_ended:
                run.early_stop.check_name(pace.epoch + 1)
            pace.begin_pass()
            if pace.budget.passes is not None:
                self._long_pass = LONG_PASS if pace.budget.steps_per_pass is None else 2 * pace.budget.steps_per_pass
            place.begin(source)
        self.trainer.before_first_batch()

    def _has_ended(self, begun: int) -> bool:
        """Whether the run is over at its end, once all losses are reported; ``begun``: its step as the loop began."""
        run, pace = self.run, self.run.pace
        self.trainer.settle()
        asks_probe = run.controller.experiment.asks_probe and not pace.leaves_out
        if not (pace.is_stopped or (pace.is_over and not asks_probe)):
            return False
        draws.draw_nothing(run)
        # Within epochs() the time may run out before the first batch.
        if pace.turns == begun and not self.is_in_epochs:
            run_state.say_if_spent(run)
        return True

    def is_at_end(self) -> bool:
        """Whether the budget is spent once all batches that are out are reported, or the run was stopped."""
        pace = self.run.pace
        is_open = pace.budget.is_open
        return pace.is_stopped or (not is_open and pace.progress_at(pace.step + pace.num_out) >= 1)

    def _is_full(self) -> bool:
        """Whether as many batches were handed out in this pass as the loader has, probes included.

        An epoch is then over, so that a loop is no longer than ``len(loader)``: its last batches are left out.
        """
        pace, num_probes = self.run.pace, self.run.pace.probes_in_epoch
        return num_probes > 0 and pace.leaves_out and self.plan.taken + num_probes >= self.place.length

    def _has_place(self) -> bool:
        """Whether a probe may be handed out before the loop ends."""
        pace = self.run.pace
        return not (pace.is_stopped or (pace.leaves_out and (self.is_at_end() or self._is_full())))

    def between_steps(self) -> None:
        """Do what is due between two steps."""
        run, is_heard = self.run, self.run.announcer.is_heard
        if is_heard:
            run.emitter.start_timing()
        self.trainer.between_steps()
        if is_heard:
            run.emitter.stop_timing()

    def end_pass(self) -> None:
        """End a run through the loader, if anything of it was trained on.

        Who knows that the batch in hand was the last may call it before the loop asks for another one.
        """
        run, pace = self.run, self.run.pace
        self.trainer.settle()
        if pace.has_ended:
            # It was trained on before the run was resumed, or ended already.
            return
        taken = self.place.num_taken
        if pace.turns == self.place.first_turn:
            handed = taken - self.place.taken_before
            run.announcer.warn_once("empty pass", NEVER_REPORTED.format(handed) if handed else NO_BATCH)
            self.plan.taken = 0
            # It would be asked for ever.
            self.num_iterations -= 1
            return
        told, given = pace.budget.steps_per_pass, taken + self.plan.left_out + pace.probes_in_epoch * pace.leaves_out
        if told not in (None, given) and run.agreement.ranks is None:
            run.announcer.note_once("other length", OTHER_LENGTH.format(given, told))
        self.mark_ended()
        run.controller.end_update()
        self.between_steps()
        run.leave_epoch()
        if pace.is_over:
            draws.draw_nothing(run)

    def mark_ended(self) -> None:
        """Note that a pass has ended, and tell listeners."""
        run, pace = self.run, self.run.pace
        with run.turns.take("draw", pace.step, is_changing=True):
            pace.has_ended = True
            lr, tally = run.rates.shown(run.rates.scheduled(pace.progress)), run._tally
            run._tally, run._epoch_ended = type(tally)(), True
            if run.announcer.is_heard:
                run.emitter.epoch_done(
                    epoch=pace.epoch, progress=pace.progress, lr=lr, tally=tally, seconds=pace.seconds
                )

    # Batches.

    def _take_next(self, measure: BatchMeasure) -> Any:
        """The next batch of the loader; `_NONE` if there is none, here or on another rank."""
        run, place, is_heard = self.run, self.place, self.run.announcer.is_heard
        began = time.perf_counter() if is_heard else 0.0
        if self._is_full():
            # The loader comes to its end, as one that knows its place must.
            for _ in itertools.islice(place.batches, run.pace.probes_in_epoch + 1):
                pass
            item = _NONE
        else:
            if place.looks_ahead:
                place.before = hold_random_state()
            item = next(place.batches, _NONE)
        if is_heard:
            run.emitter.data_seconds += time.perf_counter() - began
        size = meet(run, None if item is _NONE else measure.of(item))
        if size is None:
            return _NONE
        if is_heard:
            run.emitter.start_timing()
        self.open = self.take(item, size, place.samples.of(item, place.batches))
        if self.plan.taken == self._long_pass:
            run.announcer.note_once("long pass", NO_END.format(self._long_pass))
        chunk: Any = self.open.chunk
        if chunk.item is not None:
            # Weights may be tested with it.
            run.controller.note_start()
        if is_heard:
            run.emitter.stop_timing()
        return item

    def take(self, item: Any, size: Size, members: Members | None = None, *, is_of_loader: bool = True) -> Ticket:
        """Take a batch, as the training on it begins.

        Args:
            item: What the loader gave.
            size: Its size.
            members: Its samples; None if they are not known.
            is_of_loader: Whether it is of a loader; else there is nothing but the step.
        """
        run, pace, turns, plan = self.run, self.run.pace, self.run.turns, self.plan
        kept = keep(self, item) if is_of_loader else None
        if plan.is_full:
            run.hand_over()
        if not run.controller.is_quiet:
            with turns.take("draw", pace.step, is_changing=True):
                run.controller.inquiry.hide_true()
        while True:
            number = pace.step + pace.num_out
            is_plain = run.rates.own is not None and run.controller.is_quiet
            lr = 1.0 if is_plain else run.rates.at(pace.progress_at(number))
            with turns.lock:
                if turns.busy is None and pace.step + pace.num_out == number:
                    turns.busy = number
                    began = run._tally.began
                    if began != began:
                        draws.start_clock(run)
                    epoch = pace.epoch
                    batch = plan.take(kept, size, epoch, members=members)
                    chunk: Any = batch.chunk
                    chunk.rates[0] = lr
                    if is_of_loader:
                        plan.taken += 1
                        out = self.place.out
                        # The others that are reported are left out where they are counted.
                        while out and out[0].states[0]:
                            del out[0]
                        out.append(chunk)
                    pace.tokens += size.tokens
                    pace.num_out += 1
                    # As `draws.number` says, without its call.
                    draw = run._num_draws
                    run._num_draws = draw + 1
                    turns.busy = None
                    return new_tuple(Ticket, (number, epoch, batch[2], lr, None, draw, chunk, 0))
            turns.wait("draw", number)

    def give_up_open(self) -> None:
        """Pass over the batch in hand, if it was not reported: it does not count as a step."""
        ticket, self.open = self.open, None
        if ticket is not None and ticket.batch.is_out:
            # A loop that has trained and was left by a break knows that it did not train on its last batch.
            is_left = self._iteration is None and self.run.pace.turns != self.place.first_turn
            self.give_up(ticket, is_noted=not is_left)

    def give_up(self, ticket: Ticket, *, is_noted: bool) -> None:
        """Close a batch that is not reported.

        Args:
            ticket: The batch; it is out.
            is_noted: Whether to say so once, as nobody asked for it.
        """
        run = self.run
        with run.turns.take("give_up", run.pace.step, is_changing=True):
            run.controller.experiment.lose(ticket)
            if ticket.chunk.is_probe:
                refusal.close_unlearned(run, ticket)
            else:
                run.pace.tokens -= ticket.chunk.size.tokens  # type: ignore[attr-defined]
                self.plan.abandon(ticket.batch)
                run.pace.num_out -= 1
            run.announcer.tell(events.BatchAbandoned, epoch=ticket.epoch, drawn_again=ticket.chunk.is_probe)
            if is_noted:
                run.announcer.warn_once("abandoned", NOT_REPORTED.format(step=ticket.step))

    # Losses.

    def take_step(self) -> Ticket | None:
        """The step that a loss belongs to where no batch is open; None if the budget is spent.

        Raises:
            RuntimeError: a loop over the batches is under way, and its batch was reported already.
        """
        run = self.run
        if self.is_iterating:
            raise RuntimeError(
                f"update_with_loss() was called at step {run.pace.step} with no batch open; the last one was reported "
                "already; report each batch once."
            )
        self.place.resume_alone()
        if not self.has_asked:
            run.controller.experiment.let_probe(False)
            self.trainer.between_steps()
        self.has_asked = False
        if self.is_at_end():
            run.announcer.warn_once(
                "spent",
                f"the run is over at step {run.pace.step}; losses reported from here on are not watched. End your loop "
                "where is_over is true, or iterate over steps().",
            )
            return None
        return self.take(None, Size(), is_of_loader=False)

    def report(
        self, loss: Any, part_size: Any, grad_norm: Any, skipped: bool, predictions: Any, ids: Any = None
    ) -> Outcome:
        """Report the loss of the batch in hand, or of a step without one; see `R8Scheduler.update_with_loss`."""
        run = self.run
        ticket = self.open
        if ticket is None:
            ticket = self.open = self.take_step()
        if ticket is None:
            return Outcome(GOOD, run.rates.shown(1.0), None)
        ticket = self.open = tell_ids(run, ticket, ids)
        note_rows(run, ticket, loss)
        outcome = run._report(ticket, loss, part_size, grad_norm, skipped, predictions)
        self.open = None
        if run.rates.own is not None:
            return outcome._replace(lr=run.rates.shown(outcome.lr))
        return outcome

    def explain(self, error: Any) -> None:
        """Add to an exception of the user's loop, from Python 3.11 on, that there was no batch, if there was none."""
        if self._is_repeated and hasattr(error, "add_note"):
            error.add_note(AFTER_LAST)

    # What outlives the process.

    def position(self) -> dict[str, Any]:
        """How far the run is in the user's loader."""
        return self.place.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `position` returned: the next iteration goes on from there."""
        self.place.load_state_dict(state)
        self._iteration = self.open = None

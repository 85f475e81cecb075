"""The feed: the batches of the user's own loader on their way through a run.

A run takes them as they come: one at a time, when the loop asks for it, from the one iterator that the loop would have
made. Nothing is fetched ahead, and nothing is drawn from a random generator.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ... import events
from ...guard.verdict import GOOD
from ...sampling.loader_plan import LoaderBatch, LoaderPlan, Size
from ...sampling.ticket import Outcome, Ticket, new_tuple
from .. import draws, run_state
from . import replay
from .batch_size import BatchMeasure, bytes_of, copied
from .samples import OF_ONE_PROCESS, BatchSamples, find

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
ENDLESS = (
    "steps() has no loader whose end num_epochs= could count, so this loop does not end by itself: give num_steps=, "
    "num_tokens= or train_duration_seconds=, or iterate over batches(loader)."
)
OTHER_LENGTH = (
    "a run through the loader gave {} batches, where its length or steps_per_epoch says {}: rates of R8's and the "
    "progress follow what it says, so give the right steps_per_epoch."
)
NO_END = (
    "a run through the loader has given {:,} batches so far and not ended, and num_epochs= waits for its end; if it "
    "has none, give num_steps=, num_tokens= or train_duration_seconds=."
)
MOST_SILENT = 1000
"""Steps without a loss after which the loop gets an error."""

LONG_PASS = 100_000
"""Batches of a run through a loader without a length after which it is said that epochs wait for its end."""

MOST_KEPT_BYTES = 2**26
"""Largest batch that is kept to be handed out again."""


class FeedSettings(NamedTuple):
    """How a run treats the user's loader.

    Attributes:
        keeps_witness: Whether the batch after a backup is kept, to be handed out again where weights are tested.
        after_restore: "next" or "again"; see `R8Scheduler`.
        resume_data: "replay", "indices" or "start"; see `R8Scheduler`.
    """

    keeps_witness: bool = True
    after_restore: str = "next"
    resume_data: str = "replay"


class FeedTrainer(Protocol):
    """Trains on the batches of a feed: an adapter that joins it; see `_adapters.prefetch.Trainer`."""

    def settle(self) -> object:
        """Report every loss that is held back."""

    def before_iteration(self) -> None:
        """An iteration is about to begin."""

    def before_first_batch(self) -> None:
        """The first batch of an iteration is about to be taken."""

    def between_steps(self) -> None:
        """A batch is asked for, between two steps of the training."""

    def before_probe(self) -> None:
        """A probe is about to be handed out."""

    def hand_out(self, item: Any) -> object:
        """A batch is handed out, of which the next loss is."""


class PlainTrainer:
    """The trainer where no adapter has joined: a loop that reports each loss at once.

    Args:
        run: The engine.
    """

    def __init__(self, run: Engine) -> None:
        self.between_steps = run.between_steps

    def settle(self) -> None:
        """Do nothing."""

    before_iteration = before_first_batch = before_probe = settle

    def hand_out(self, item: Any) -> None:
        """Do nothing."""


class Feed:
    """Takes batches from the user's loader, and knows how far it is.

    Args:
        run: The engine.
        plan: Counts them.
        settings: How the loader is treated.

    Attributes:
        run: As given.
        trainer: Trains on the batches.
        open: The batch in hand; None once it is reported.
        has_asked: Whether `steps` has given a step that is not reported yet.
    """

    def __init__(self, run: Engine, plan: LoaderPlan, settings: FeedSettings) -> None:
        self.run, self._plan, self.settings = run, plan, settings
        self.open: Ticket | None = None
        self.trainer: FeedTrainer = PlainTrainer(run)
        self._iteration: object = None
        self._source: Any = None
        self._batches: Any = None
        self._samples = BatchSamples(run)
        self._start: dict[str, Any] | None = None
        self._out: list[LoaderBatch] = []
        self._resumed: Mapping[str, Any] | None = None
        self.has_asked = self._has_begun = self._in_epochs = self._was_placed = False
        self._num_silent = self._updates = self._num_iterations = self._first_step = self._taken_before = 0
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
    def is_resumed(self) -> bool:
        """Whether a saved position waits for the next iteration."""
        return self._resumed is not None

    def take_resumed(self) -> Mapping[str, Any] | None:
        """The saved position that waits, which is no longer waiting then; None without one."""
        resumed, self._resumed = self._resumed, None
        return resumed

    @property
    def num_passes(self) -> int:
        """Runs through the loader that have ended."""
        return self.run.pace.passes + self.run.pace.has_ended

    @property
    def num_taken(self) -> int:
        """Items that the loader has given in this pass and that were trained on or passed over."""
        self._out = [batch for batch in self._out if _is_out(batch)]
        return self._plan.taken - len(self._out)

    @property
    def has_ids(self) -> bool:
        """Whether batches say which samples they hold, as far as is known."""
        return self._samples.is_known or bool(self.run.table.num_samples)

    # The iteration.

    def iterate(self, source: Any, measure: BatchMeasure, samples: BatchSamples) -> Iterator[Any]:
        """One run through the user's iterable, or what is left of it; see `R8Scheduler.batches`."""
        run, pace, controller, announcer = self.run, self.run.pace, self.run.controller, self.run.announcer
        self.give_up_open()
        this = self._iteration = object()
        self._num_iterations += 1
        self._samples = samples
        begun = pace.step + pace.num_out
        run.requests.stay_within(None)
        try:
            batches = self._batches = self._begin(source)
            while True:
                if self._iteration is not this:
                    raise RuntimeError(
                        "a batch was asked for by an iteration that another one has replaced; iterate over batches() "
                        "once at a time."
                    )
                if self.open is not None:
                    self.give_up_open()
                self.between_steps()
                samples.tell_quarantined()
                updates = controller.lineage.updates
                if self._updates > updates and not controller.is_open:
                    batches = self._batches = self._after_restore(source, batches)
                self._updates = updates
                if controller.experiment.asks_probe and not pace.is_stopped:
                    if not self._has_probe():
                        continue
                    item = self._take_probe()
                elif self.is_at_end():
                    self.trainer.settle()
                    if pace.is_stopped or (pace.is_over and not controller.experiment.asks_probe):
                        draws.draw_nothing(run)
                        # Within epochs() the time may run out before the first batch.
                        if pace.step == begun and not self._in_epochs:
                            run_state.say_if_spent(run)
                        return
                    continue
                else:
                    try:
                        item = self._timed_next(batches) if announcer.is_heard else next(batches)
                    except StopIteration:
                        self.meet(None)
                        self._end_pass()
                        return
                    size = self.meet(measure.of(item))
                    if size is None:
                        self._end_pass()
                        return
                    self._take_given(item, size, batches)
                self.trainer.hand_out(item)
                yield item
        except GeneratorExit:
            # A break: if the run goes on, the signals are taken again.
            run.requests.leave()
            raise
        finally:
            if self._iteration is this:
                self._iteration, self._has_begun = None, False

    def _begin(self, source: Any) -> Iterator[Any]:
        run, pace, plan = self.run, self.run.pace, self._plan
        self.trainer.before_iteration()
        run.controller.experiment.let_probe(self.settings.keeps_witness)
        self._samples.prepare(source)
        resumed = self.take_resumed()
        if resumed is not None:
            self._source, self._start, self._was_placed = source, resumed["start"], True
            self._first_step = pace.step - (plan.taken > 0)
            batches: Iterator[Any] = iter(())
            if not pace.has_ended:
                way, count = self.settings.resume_data, plan.taken + plan.left_out
                batches = replay.resume(run, source, resumed, count, way, opens=self._samples.open)
                plan.left_out *= way != "start"
                self._has_begun = True
            elif replay.goes_on(source):
                replay.open_at(source, resumed["loader"], self._samples.open, run.announcer)
            else:
                replay.set_order(source, resumed["now"].get("order"))
            if pace.has_ended:
                # The validation that is repeated, and the next epoch, draw from them.
                replay.set_generators(source, resumed["now"])
            self.trainer.before_first_batch()
            return batches
        # It was left by a break; a look at a batch that was not trained on is no epoch.
        if plan.taken and not pace.has_ended and pace.step != self._first_step:
            self.mark_ended()
        if pace.has_ended:
            run.early_stop.check_name(pace.epoch + 1)
        if self._was_placed:
            replay.forget_place(source)
            self._was_placed = False
        pace.begin_pass()
        self._first_step = pace.step
        if pace.budget.passes is not None:
            self._long_pass = LONG_PASS if pace.budget.steps_per_pass is None else 2 * pace.budget.steps_per_pass
        if not (_is_iterator(source) and source is self._source):
            plan.taken = plan.left_out = 0
            self._start = self._read_place(source)
        self._source, self._out, self._taken_before = source, [], plan.taken
        batches = self._samples.open(source)
        self._has_begun = True
        self.trainer.before_first_batch()
        return batches

    def is_at_end(self) -> bool:
        """Whether the budget is spent once all batches that are out are reported, or the run was stopped."""
        pace = self.run.pace
        is_open = pace.budget.is_open
        return pace.is_stopped or (not is_open and pace.progress_at(pace.step + pace.num_out) >= 1)

    def between_steps(self) -> None:
        """Do what is due between two steps."""
        run, is_heard = self.run, self.run.announcer.is_heard
        if is_heard:
            run.emitter.start_timing()
        self.trainer.between_steps()
        if is_heard:
            run.emitter.stop_timing()

    def _timed_next(self, batches: Iterator[Any]) -> Any:
        emitter, began = self.run.emitter, time.perf_counter()
        try:
            return next(batches)
        finally:
            emitter.data_seconds += time.perf_counter() - began

    def meet(self, size: Size | None) -> Size | None:
        """Agree on the size of the batch of all ranks together; None if the stream of one of them has ended.

        Args:
            size: That of the batch of this rank; None if it has none.
        """
        agreement = self.run.agreement
        if agreement.ranks is None:
            return size
        samples, tokens = (0, 0) if size is None else size
        everyone = agreement.gather([size is not None, samples, tokens])
        if all(has for has, _, _ in everyone):
            return Size(*map(sum, zip(*(each[1:] for each in everyone), strict=True)))
        if size is not None:
            ended = ", ".join(str(rank) for rank, (has, _, _) in enumerate(everyone) if not has)
            self.run.announcer.note_once(
                "uneven ends",
                f"a run through the loader ends for all ranks where that of rank {ended} does, so the batches that "
                "others have left are not trained on.",
            )
        return None

    def _end_pass(self) -> None:
        """End a run through the loader, if anything of it was trained on."""
        run, pace = self.run, self.run.pace
        self.trainer.settle()
        if pace.has_ended:
            # It was trained on before the run was resumed.
            return
        taken = self.num_taken
        if pace.step == self._first_step:
            handed = taken - self._taken_before
            run.announcer.warn_once("empty pass", NEVER_REPORTED.format(handed) if handed else NO_BATCH)
            self._plan.taken = 0
            # It would be asked for ever.
            self._num_iterations -= 1
            return
        told, given = pace.budget.steps_per_pass, taken + self._plan.left_out
        if told not in (None, given) and run.agreement.ranks is None:
            run.announcer.note_once("other length", OTHER_LENGTH.format(given, told))
        self.mark_ended()
        run.controller.end_update()
        self.between_steps()
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

    def _take_given(self, item: Any, size: Size, batches: Iterator[Any]) -> None:
        run, is_heard = self.run, self.run.announcer.is_heard
        if is_heard:
            run.emitter.start_timing()
        self.open = self.take(item, size, self._samples.of(item, batches))
        if self._plan.taken == self._long_pass:
            run.announcer.note_once("long pass", NO_END.format(self._long_pass))
        chunk: Any = self.open.batch.chunk
        if chunk.item is not None:
            # Weights may be tested with it.
            run.controller.note_start()
        if is_heard:
            run.emitter.stop_timing()

    def _is_wanted(self, item: Any) -> bool:
        """Whether to keep a batch, as weights may be tested with it."""
        run = self.run
        if item is None or not self.settings.keeps_witness:
            return False
        if not (run.controller.is_early or run.backup.awaits_witness or run.controller.witnesses.waiting is not None):
            return False
        if bytes_of(item) <= MOST_KEPT_BYTES:
            return True
        run.announcer.note_once(
            "large batch",
            f"batches of more than {MOST_KEPT_BYTES >> 20} MiB are not kept, so weights are not tested with them: "
            "what happens after refused losses depends on how many there are in a row.",
        )
        return False

    def take(self, item: Any, size: Size, members: Members | None = None, *, is_of_loader: bool = True) -> Ticket:
        """Take a batch, as the training on it begins.

        Args:
            item: What the loader gave.
            size: Its size.
            members: Its samples; None if they are not known.
            is_of_loader: Whether it is of a loader; else there is nothing but the step.
        """
        run, pace, turns, plan = self.run, self.run.pace, self.run.turns, self._plan
        kept = copied(item) if is_of_loader and self._is_wanted(item) else None
        if plan.is_full:
            run.hand_over()
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
                        out = self._out
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
                    return new_tuple(Ticket, (number, epoch, batch[2], lr, None, draw, batch))
            turns.wait("draw", number)

    def _has_probe(self) -> bool:
        """Whether the batch that a test asks for was kept; if not, the next losses decide."""
        asked = self.run.controller.experiment.asked
        is_kept = asked is not None and all(item is not None for item in asked.witness)
        is_kept = all(each[0] for each in self.run.agreement.gather([is_kept]))
        if not is_kept:
            self.run.controller.experiment.let_probe(False)
        return is_kept

    def _take_probe(self) -> Any:
        """Hand out a batch once more, to test weights with it."""
        run, pace = self.run, self.run.pace
        self.trainer.before_probe()
        with run.turns.take("draw", pace.next_step, is_changing=True):
            item = run.controller.experiment.draw()
            batch = self._plan.draw_again(item)
            run.controller.experiment.note_drawn(batch.chunk)
            lr = run.rates.now
            batch.chunk.rates[0] = lr
            pace.num_out += 1
            self.open = draws.number(run, pace.next_step - 1, pace.epoch, lr, batch)
        return copied(item)

    def give_up_open(self) -> None:
        """Pass over the batch in hand, if it was not reported: it does not count as a step."""
        ticket, self.open = self.open, None
        if ticket is not None and ticket.batch.is_out:
            # A loop that has trained and was left by a break knows that it did not train on its last batch.
            is_left = self._iteration is None and self.run.pace.step != self._first_step
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
            run.pace.tokens -= ticket.batch.chunk.size.tokens  # type: ignore[attr-defined]
            self._plan.abandon(ticket.batch)
            run.pace.num_out -= 1
            run.announcer.tell(events.BatchAbandoned, epoch=ticket.epoch, drawn_again=False)
            if is_noted:
                run.announcer.warn_once("abandoned", NOT_REPORTED.format(step=ticket.step))

    # Steps without an iterable.

    def steps(self) -> Iterator[int]:
        """Yield the number of each step until the budget is spent or the run is stopped; see `R8Scheduler.steps`."""
        run, pace = self.run, self.run.pace
        if pace.budget.passes is not None and not (self._num_iterations or self.num_passes):
            run.announcer.warn_once("endless", ENDLESS)
        run.controller.experiment.let_probe(False)
        run.requests.stay_within(None)
        self.trainer.before_iteration()
        self._resume_alone()
        try:
            while True:
                self._ask()
                if self.is_at_end():
                    self.trainer.settle()
                    draws.draw_nothing(run)
                    return
                before = pace.next_step
                yield before
                self._num_silent = 0 if pace.next_step != before else self._num_silent + 1
                if self._num_silent == MOST_SILENT:
                    run.announcer.warn_once("silent", f"steps() was asked {MOST_SILENT} times with no loss reported.")
        except GeneratorExit:
            run.requests.leave()
            raise

    def _ask(self) -> None:
        self.trainer.between_steps()
        self.has_asked = True

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
        self._resume_alone()
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

    def with_ids(self, ticket: Ticket, ids: Any) -> Ticket:
        """A batch in hand, now that its samples are told; None for those it was taken with.

        Raises:
            TypeError, ValueError: they are not ids, or the samples were told before.
        """
        if ids is None:
            return ticket
        if self.run.agreement.ranks is not None:
            self.run.announcer.warn_once("of one process", OF_ONE_PROCESS)
            return ticket
        chunk: Any = ticket.batch.chunk
        if chunk.members is not None:
            raise ValueError(
                "ids must be given to batches() or with the loss, not both, got them with the loss of step "
                f"{ticket.step}, whose samples batches() knows; leave them out there."
            )
        members = find(self.run, ids)
        self._plan.tell_members(chunk, members)
        return ticket._replace(indices=members.indices, batch=ticket.batch._replace(indices=members.indices))

    def note_rows(self, ticket: Ticket, loss: Any) -> None:
        """Say once that a loss has another number of rows than the ids of its batch, as its mean is all that counts."""
        chunk: Any = ticket.batch.chunk
        members = chunk.members
        if members is None or type(loss) is float:
            return
        shape = getattr(loss, "shape", None)
        given = len(loss) if shape is None and hasattr(loss, "__len__") else shape[0] if shape else members.num_rows
        if given != members.num_rows:
            self.run.announcer.warn_once(
                "uneven rows",
                f"a loss with {given} rows was reported for a batch with {members.num_rows} rows of samples, "
                "so only its mean counts, divided among them; to learn from each, report one or several values for "
                "each row of ids.",
            )

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
        ticket = self.open = self.with_ids(ticket, ids)
        self.note_rows(ticket, loss)
        outcome = run._report(ticket, loss, part_size, grad_norm, skipped, predictions)
        self.open = None
        if run.rates.own is not None:
            return Outcome(outcome.verdict, run.rates.shown(outcome.lr), outcome.rolled_back_to)
        return outcome

    def epochs(self) -> Iterator[int]:
        """Yield the numbers of epochs until the budget is spent; see `R8Scheduler.epoch_iterator`."""
        run, pace = self.run, self.run.pace
        self._in_epochs = True
        try:
            while True:
                self.give_up_open()
                self.trainer.settle()
                is_repeated = pace.has_ended and self._resumed is not None
                if not is_repeated:
                    # Listeners hear of the start once it is known what the batches say of their samples.
                    if run.emitter.has_started or pace.is_over:
                        self.trainer.between_steps()
                    if pace.is_over:
                        return
                # A pass that goes on after a resume may have nothing left but its end.
                before = pace.step, self._num_iterations, pace.passes, pace.has_ended
                yield pace.epoch + (pace.has_ended and not is_repeated)
                is_same = (self._num_iterations, pace.passes, pace.has_ended) == before[1:]
                # Steps without a loader never end an epoch, which a budget in epochs would wait for for ever.
                is_idle = pace.step == before[0] or pace.budget.passes is not None
                if is_same and is_idle and not (is_repeated or pace.is_over):
                    raise RuntimeError(
                        f"epoch {pace.epoch} ended with no batch reported; iterate over batches(loader), with a loader "
                        "that gives batches in each epoch, and report the loss of each."
                    )
        finally:
            self._in_epochs = False
            run.requests.leave()

    # What outlives the process, and what goes back.

    def _resume_alone(self) -> None:
        """Set the random generators of a saved run whose loader is not forwarded."""
        resumed = self.take_resumed()
        if resumed is not None:
            replay.set_generators(None, resumed["now"])

    def _after_restore(self, source: Any, batches: Iterator[Any]) -> Iterator[Any]:
        """The iterator to go on with, now that the model was restored."""
        run, undone = self.run, self._updates - self.run.controller.lineage.updates
        backup = run.backup.newest
        moment = None if backup is None or backup.updates != run.controller.lineage.updates else backup.moment
        saved = None if moment is None or moment.state is None else moment.state["plan"]
        again = None
        if self.settings.after_restore == "again" and saved is not None:
            again = replay.open_at(source, saved["loader"], self._samples.open, run.announcer)
        if again is not None and saved is not None:
            self._plan.taken, self._out, batches, self._was_placed = saved["taken"], [], again, True
            text = f"the loader goes back with the model: the {undone} batches since then come again."
        else:
            text = f"the loader goes on with its next batch: the {undone} batches since then do not come again."
        run.announcer.tell(events.Notice, text=text, is_warning=False)
        return batches

    def position(self) -> dict[str, Any]:
        """How far the run is in the user's loader."""
        # Before its iteration has begun, a loader would begin one to tell its state.
        is_under_way = self._has_begun and not self.run.pace.has_ended
        source = self._source if is_under_way or replay.goes_on(self._source) else None
        if self._resumed is not None:
            return dict(self._resumed)
        return {
            **self._plan.position(),
            "taken": self.num_taken,
            "loader": replay.read_loader(source, self._batches, self.run.announcer),
            "start": self._start,
            "now": self._read_place(self._source),
        }

    @staticmethod
    def _read_place(source: Any) -> dict[str, Any]:
        """What the batches from here on depend on."""
        return {**replay.read_generators(source), "order": replay.read_order(source)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `position` returned: the next iteration goes on from there."""
        ranks, own = self.run.agreement.ranks, dict(state)
        of_ranks = own.pop("ranks", None) or []
        if ranks is not None and ranks.rank < len(of_ranks):
            own |= of_ranks[ranks.rank]
        self._plan.load_state_dict(own)
        self._resumed, self._out, self.open = own, [], None
        self._iteration = None


def _is_iterator(source: Any) -> bool:
    """Whether an iterable is an iterator, which only goes on and never starts over."""
    return callable(getattr(type(source), "__next__", None))


def _is_out(batch: LoaderBatch) -> bool:
    return batch.states[0] == 0

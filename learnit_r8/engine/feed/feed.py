"""The feed: loops over the user's own batches, steps without any, epochs, and trainers that take batches themselves.

A run takes batches as they come: one at a time, when the loop asks for it, from the one iterator that the loop would
have made. Nothing is fetched ahead, and nothing is drawn from a random generator.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np

from ... import events
from ...guard.verdict import GOOD
from ...sources.chunk import FollowedChunk, Size
from ...sources.ticket import Outcome, Ticket
from ...state.tree import size_of
from ...table.names import Members
from .. import run_state
from ..engine import Engine
from ..run import Trainer
from . import replay
from .batch_size import MOST_KEPT_BYTES, SMALL_BYTES, BatchMeasure, Told, copied, read_size, shapes_of
from .followed import MOST_HELD, FollowedBatches
from .samples import OF_ONE_PROCESS, BatchSamples, Ids, Skip

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
    "has none, give num_steps=, train_duration_seconds= or batch_size=OwnBatches(num_tokens=...)."
)
NOT_AGAIN = "the loader goes on with its next batch: the {} batches since then do not come again."
REPLACED = "a batch was asked for by an iteration that another one has replaced; iterate over batches() once at a time."
AFTER_LAST = (
    "the run went on after the last batch of its epoch, so batches() gave none, and what follows them in your loop is "
    "repeated: before the loop over them, give what it computes a first value"
)
ENDLESS = (
    "steps() has no loader whose end num_epochs= could count, so this loop does not end by itself: give num_steps=, "
    "train_duration_seconds= or batch_size=OwnBatches(num_tokens=...), or iterate over batches(loader)."
)
DRAWN_TOO_EARLY = (
    "the run was resumed at step {}, and its loop does not iterate over steps(): what it drew at random before this "
    "first report is not what the saved run would have drawn. To resume exactly, write: for step in r8.steps():"
)
FROM_THE_START = (
    "the saved run was within an epoch, at step {}; the trainer starts that epoch over, so the batches that were "
    "trained on in it come again. Checkpoints between two epochs are exact."
)
OTHER_EPOCH = (
    "the training begins with epoch {}, and the saved run goes on with epoch {} at step {}: begin with current_epoch "
    "(in fit: initial_epoch=r8.current_epoch), or epochs are trained on twice or left out."
)

MOST_SILENT = 1000
"""Steps without a loss after which the loop gets an error."""

LOOKED_AT = 8
"""Batches of a pass whose shapes are looked at where there is more than one loader: where they differ, as of padded
texts, any may be handed out again."""

LONG_PASS = 100_000
"""Batches of a run through a loader without a length after which it is said that epochs wait for its end."""


class Batches:
    """The user's iterable, whose items a run passes on as they are; each iteration is an epoch.

    Args:
        feed: Takes them.
        source: The iterable.
        measure: Reads the size of a batch.
        samples: Finds out which samples it holds.

    What it has no attribute for is that of the iterable: ``len()``, ``set_epoch()`` and all others.
    """

    def __init__(self, feed: Feed, source: Any, measure: BatchMeasure, samples: BatchSamples) -> None:
        self._feed, self._source, self._measure, self._samples = feed, source, measure, samples

    def __iter__(self) -> Iterator[Any]:
        return self._feed.iterate(self._source, self._measure, self._samples)

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str) -> Any:
        if name in ("_source", "_feed", "_measure", "_samples"):
            raise AttributeError(name)
        return getattr(self._source, name)

    def __repr__(self) -> str:
        return f"Batches({self._source!r})"


_NONE: Any = object()
"""Stands for the next batch of a loader that has ended."""


class Feed:
    """Passes on batches from the user's loader, and takes their losses.

    Args:
        engine: Draws the batches that are offered to its source.
        source: Knows where in the loader the run is.

    Attributes:
        engine, source: As given.
        trainer: Trains on the batches.
        has_asked: Whether `steps` has given a step that is not reported yet.
        is_in_epochs: Whether a loop over epochs is under way.
        num_iterations: Iterations over the batches that have begun.
        is_counted: Whether a trainer counts the epochs.
    """

    def __init__(self, engine: Engine, source: FollowedBatches) -> None:
        self.engine, self.source = engine, source
        self.trainer = Trainer(engine.between_steps)
        self.is_counted = False
        self.has_asked = self.is_in_epochs = self._is_repeated = self._is_interrupted = self._is_ragged = False
        self._updates = self.num_iterations = 0
        self._long_pass = -1
        self._shapes: list[list[tuple[int, ...]]] = []
        # The last one: another may have its place in memory once it is gone.
        self._loader: Any = None
        self._has_many = False
        # Until batches() iterates over a loader that can.
        engine.table.storage.exclusions.are_left_out = False

    def join(self, trainer: Trainer) -> None:
        """Let an adapter train on the batches; it takes the place of the one that joined before."""
        self.trainer = trainer

    def expect_epochs_of(self, steps: int) -> None:
        """Have backups taken as often as epochs of so many steps ask for, unless the user has said how often."""
        self.engine.persistence.expect_epochs_of(steps)

    @property
    def current_epoch(self) -> int:
        """See `R8Scheduler.current_epoch`."""
        pace = self.engine.pace
        is_next = self.source.is_resumed and (self.is_counted or pace.is_finished)
        return pace.epoch + (pace.has_ended and (pace.epoch_follows or is_next))

    @property
    def num_passes(self) -> int:
        """Runs through the loader that have ended."""
        return self.engine.pace.passes + self.engine.pace.has_ended

    # Loops over batches.

    def measure(self, size: Told, tokens: Told) -> BatchMeasure:
        """What reads the size of batches; see `BatchMeasure`."""
        engine = self.engine
        return BatchMeasure(
            size, tokens, needs_tokens=engine.pace.budget.tokens is not None,
            tell_unknown=functools.partial(engine.announcer.note_once, "batch size"),
        )  # fmt: skip

    def batches(self, loader: Any, size: Told, tokens: Told, ids: Ids, skip: Skip) -> Batches:
        """The user's iterable, of which each iteration is an epoch; see `R8Scheduler.batches`."""
        engine = self.engine
        samples = BatchSamples(engine.table.storage, engine.announcer, engine.agreement, ids, skip)
        return Batches(self, loader, self.measure(size, tokens), samples)

    def iterate(self, loader: Any, measure: BatchMeasure, samples: BatchSamples) -> Iterator[Any]:
        """One run through the user's iterable, or what is left of it; see `R8Scheduler.batches`."""
        engine, source, pace, controller = self.engine, self.source, self.engine.pace, self.engine.controller
        self.give_up_open()
        this = source.iteration = object()
        self.num_iterations += 1
        samples.follow(source.samples)
        source.samples = samples
        begun, exclusions = pace.turns + pace.num_out, engine.table.storage.exclusions
        engine.requests.stay_within(None)
        try:
            self._begin(loader)
            while True:
                if source.iteration is not this:
                    raise RuntimeError(REPLACED)
                if source.open is not None:
                    self.give_up_open()
                self.between_steps()
                if samples.told is not exclusions.quarantined:
                    samples.tell_quarantined()
                num_undone = self._updates - controller.lineage.updates
                if num_undone > 0 and not controller.is_open:
                    text = NOT_AGAIN.format(num_undone)
                    engine.announcer.tell(events.Notice, text=text, is_warning=False)
                self._updates = controller.lineage.updates
                may_probe = not (controller.is_quiet or pace.is_stopped) and controller.experiment.asks_probe
                if may_probe and not (pace.leaves_out and (self.is_at_end() or self._is_full())):
                    asked = controller.experiment.asked.witness
                    is_kept = all(item is not None and self._is_alike(item) for item in asked)
                    if not all(each[0] for each in engine.agreement.gather([is_kept])):
                        # The batch was not kept on all ranks, or is of another loader: the next losses decide.
                        controller.experiment.can_probe = False
                        continue
                    self.trainer.before_probe()
                    source.open = engine.draw_probe()
                    item = copied(source.open.chunk.item)  # type: ignore[union-attr]
                elif self.is_at_end():
                    if self._has_ended(begun):
                        return
                    continue
                elif (item := self._take_next(measure)) is _NONE:
                    self.end_pass()
                    return
                elif self._has_many and len(self._shapes) < LOOKED_AT:
                    self._shapes.append(shapes_of(item))
                    self._is_ragged = self._is_ragged or self._shapes[-1] != self._shapes[0]
                self.trainer.hand_out(item)
                yield item
        except GeneratorExit:
            # A break: if the run goes on, the signals are taken again.
            engine.requests.leave()
            raise
        except KeyboardInterrupt:
            self._is_interrupted = source.iteration is this
            raise
        finally:
            if source.iteration is this:
                source.iteration, source.has_begun = None, False

    def _is_alike(self, item: Any) -> bool:
        """Whether a batch has the shapes of this pass, where all have the same: a loop in stages takes no others."""
        return self._is_ragged or not self._shapes or shapes_of(item) == self._shapes[0]

    def _begin(self, loader: Any) -> None:
        engine, source, pace = self.engine, self.source, self.engine.pace
        self._has_many = self._has_many or not (self._loader is None or loader is self._loader)
        self._shapes, self._loader = [], loader
        pace.epoch_follows = False
        self.trainer.before_iteration()
        engine.controller.experiment.can_probe = source.settings.keep_witness
        source.samples.prepare(loader)
        self._is_repeated = source.is_resumed and pace.has_ended
        if self._is_repeated:
            engine.announcer.note_once("repeated", AFTER_LAST)
        self.end_left_pass()
        if not source.is_resumed:
            if pace.has_ended:
                engine.early_stop.check_name(pace.epoch + 1)
            pace.begin_pass()
            if pace.budget.passes is not None:
                self._long_pass = LONG_PASS if pace.budget.steps_per_pass is None else 2 * pace.budget.steps_per_pass
        inexact = "" if engine.saver is None else replay.inexact(loader)
        if inexact:
            engine.announcer.warn_once("inexact loader", inexact)
        if source.is_resumed:
            source.resume(loader)
        else:
            source.begin(loader)
        self.trainer.before_first_batch()

    def _has_ended(self, begun: int) -> bool:
        """Whether the run is over at its end, once all losses are reported; ``begun``: its step as the loop began."""
        engine, pace = self.engine, self.engine.pace
        self.trainer.settle()
        asks_probe = engine.controller.experiment.asks_probe and not pace.leaves_out
        if not (pace.is_stopped or (pace.is_over and not asks_probe)):
            return False
        engine.draw_nothing()
        # Within epochs() the time may run out before the first batch.
        if pace.turns == begun and not self.is_in_epochs:
            run_state.say_if_spent(engine.run)
        return True

    def is_at_end(self) -> bool:
        """Whether the budget is spent once all batches that are out are reported, or the run was stopped."""
        pace = self.engine.pace
        return pace.is_stopped or (not pace.budget.is_open and pace.progress_at(pace.step + pace.num_out) >= 1)

    def _is_full(self) -> bool:
        """Whether as many batches were handed out in this pass as the loader has, probes included.

        An epoch is then over, so that a loop is no longer than ``len(loader)``: its last batches are left out.
        """
        pace, num_probes = self.engine.pace, self.engine.pace.probes_in_epoch
        return num_probes > 0 and pace.leaves_out and self.source.taken + num_probes >= self.source.length

    def between_steps(self) -> None:
        """Do what is due between two steps."""
        began = self.engine.clock()
        self.trainer.between_steps()
        self.engine.own_seconds += self.engine.clock() - began

    def end_pass(self) -> None:
        """End a run through the loader, if anything of it was trained on.

        Who knows that the batch in hand was the last may call it before the loop asks for another one.
        """
        engine, source, pace = self.engine, self.source, self.engine.pace
        self.trainer.settle()
        if pace.has_ended:
            # It was trained on before the run was resumed, or ended already.
            return
        taken = source.num_taken
        if pace.turns == source.first_turn:
            handed = taken - source.taken_before
            engine.announcer.warn_once("empty pass", NEVER_REPORTED.format(handed) if handed else NO_BATCH)
            source.taken = 0
            # It would be asked for ever.
            self.num_iterations -= 1
            return
        told, given = pace.budget.steps_per_pass, taken + source.left_out
        # A probe takes the place of a batch, unless it comes after the last one.
        most = given + pace.probes_in_epoch * pace.leaves_out
        if told is not None and not given <= told <= most and engine.agreement.ranks is None:
            engine.announcer.note_once("other length", OTHER_LENGTH.format(given, told))
        self.mark_ended()
        engine.backup.end_update()
        self.between_steps()
        engine.leave_epoch()
        if pace.is_over:
            engine.draw_nothing()

    def end_left_pass(self) -> None:
        """End a pass that was left by a break; a look at a batch that was not trained on is no epoch.

        Where Ctrl-C has left it, it goes on where it was instead.
        """
        source, pace = self.source, self.engine.pace
        was_interrupted, self._is_interrupted = self._is_interrupted, False
        if not source.taken or source.is_resumed or pace.has_ended or pace.turns == source.first_turn:
            return
        may_go_on = was_interrupted and not pace.is_over and self.engine.agreement.ranks is None
        if not (may_go_on and source.go_on()):
            self.mark_ended()

    def end_whole_pass(self) -> None:
        """End the pass as the run is closed, if a break in its last batch has left it; of several processes, others may
        not have.
        """
        source, pace = self.source, self.engine.pace
        is_whole = source.num_taken + source.left_out >= source.length
        if is_whole and pace.budget.passes is not None and self.engine.agreement.ranks is None and not pace.has_ended:
            self.mark_ended()

    def mark_ended(self) -> None:
        """Note that a pass has ended, and tell listeners."""
        engine, pace = self.engine, self.engine.pace
        with engine.turns.take("draw", pace.step, is_changing=True):
            pace.has_ended = True
            lr, tally = engine.rates.shown(engine.rates.scheduled(pace.progress)), pace.end_epoch()
            engine.tell_epoch(pace.epoch, lr, tally)

    def _take_next(self, measure: BatchMeasure) -> Any:
        """The next batch of the loader; `_NONE` if there is none, here or on another rank."""
        engine, source, item = self.engine, self.source, _NONE
        began = engine.clock()
        if engine.pace.probes and self._is_full():
            # The loader comes to its end, as one that knows its place must.
            source.skip(engine.pace.probes_in_epoch + 1)
        else:
            item = source.fetch(_NONE)
        engine.data_seconds += engine.clock() - began
        size = None if item is _NONE else measure.of(item)
        if engine.agreement.ranks is not None:
            size = self.meet(size)
        if size is None:
            return _NONE
        began = engine.clock()
        members, num_left_out = source.samples.of(item, source.batches)
        source.left_out += num_left_out
        source.open = ticket = self.take(item, size, members)
        if source.taken == self._long_pass:
            engine.announcer.note_once("long pass", NO_END.format(self._long_pass))
        if ticket.chunk.item is not None:  # type: ignore[union-attr]
            # Weights may be tested with it.
            self.note_start()
        engine.own_seconds += engine.clock() - began
        return item

    def note_start(self) -> None:
        """Note the random generators as the training on a batch begins; see `RecoveryController.note_start`."""
        # While the loss of the first batch after a backup is on its way, others come that are not the first.
        if self.engine.pace.num_out == 1:
            self.engine.controller.note_start()

    def meet(self, size: Size | None) -> Size | None:
        """Agree on the size of the batch of all ranks together; None if the stream of one of them has ended.

        Args:
            size: That of the batch of this rank; None if it has none.
        """
        agreement = self.engine.agreement
        if agreement.ranks is None:
            return size
        samples, tokens = (0, 0) if size is None else size
        everyone = agreement.gather([size is not None, samples, tokens])
        if all(has for has, _, _ in everyone):
            return Size(*map(sum, zip(*(each[1:] for each in everyone), strict=True)))
        if size is not None:
            ended = ", ".join(str(rank) for rank, (has, _, _) in enumerate(everyone) if not has)
            self.engine.announcer.note_once(
                "uneven ends",
                f"a run through the loader ends for all ranks where that of rank {ended} does, so the batches that "
                "others have left are not trained on.",
            )
        return None

    def take(self, item: Any, size: Size, members: Members | None = None, *, is_of_loader: bool = True) -> Ticket:
        """Take a batch, as the training on it begins.

        Args:
            item: What the loader gave.
            size: Its size.
            members: Its samples; None if they are not known.
            is_of_loader: Whether it is of a loader; else there is nothing but the step.
        """
        engine, source, controller = self.engine, self.source, self.engine.controller
        # Nearly always no backup waits for one, and mostly R8 does not step.
        is_wanted = controller.norms.is_used or controller.wants_witness or controller.is_wary
        kept = self.keep(item) if is_of_loader and is_wanted else None
        if len(source.held) * size.samples >= MOST_HELD:
            engine.hand_over()
        indices = np.full(size.samples, -1) if members is None else members.indices
        chunk = FollowedChunk(source.table, engine.pace.passes, kept, *size, indices, members, given=item)
        source.offered = chunk, is_of_loader
        ticket = engine.draw_ahead(is_offered=True)
        assert ticket is not None
        return ticket

    def keep(self, item: Any) -> Any:
        """A copy of a batch that weights may be tested with; None where none is wanted, or it is too large."""
        if item is None or not self.source.settings.keep_witness:
            return None
        controller, size = self.engine.controller, size_of(item)
        is_cheap = size <= SMALL_BYTES and (controller.watches_explosions or controller.is_wary)
        if not (controller.wants_witness or is_cheap):
            return None
        if size <= MOST_KEPT_BYTES:
            return copied(item)
        self.engine.announcer.note_once(
            "large batch",
            f"batches of more than {MOST_KEPT_BYTES >> 20} MiB are not kept, so weights are not tested with them: "
            "what happens after refused losses depends on how many there are in a row.",
        )
        return None

    def give_up_open(self) -> None:
        """Pass over the batch in hand, if it was not reported: it does not count as a step."""
        ticket, self.source.open = self.source.open, None
        if ticket is not None and ticket.is_out:
            # A loop that has trained and was left by a break knows that it did not train on its last batch.
            is_left = self.source.iteration is None and self.engine.pace.turns != self.source.first_turn
            self.engine.give_up(ticket, on_purpose=is_left)

    # Loops over steps, and over epochs.

    def steps(self) -> Iterator[int]:
        """Yield the number of each step until the budget is spent or the run is stopped; see `R8Scheduler.steps`."""
        engine, pace, num_silent = self.engine, self.engine.pace, 0
        if pace.budget.passes is not None and not (self.num_iterations or self.num_passes):
            engine.announcer.warn_once("endless", ENDLESS)
        engine.controller.experiment.can_probe = False
        engine.requests.stay_within(None)
        self.trainer.before_iteration()
        self.source.resume_alone()
        try:
            while True:
                self.trainer.between_steps()
                self.has_asked = True
                if self.is_at_end():
                    self.trainer.settle()
                    engine.draw_nothing()
                    if engine.controller.is_open and not pace.is_stopped and engine.agreement.ranks is None:
                        # No probe follows, and the model may be read before the scheduler is closed.
                        engine.leave()
                    return
                before = pace.next_step
                self.trainer.hand_out(None)
                yield before
                num_silent = 0 if pace.next_step != before else num_silent + 1
                if num_silent == MOST_SILENT:
                    engine.announcer.warn_once(
                        "silent", f"steps() was asked {MOST_SILENT} times with no loss reported."
                    )
        except GeneratorExit:
            engine.requests.leave()
            raise

    def epochs(self) -> Iterator[int]:
        """Yield the numbers of epochs until the budget is spent; see `R8Scheduler.epoch_iterator`."""
        engine, pace = self.engine, self.engine.pace
        self.is_in_epochs = True
        try:
            while True:
                self.give_up_open()
                self.trainer.settle()
                self.end_left_pass()
                is_repeated = pace.has_ended and self.source.is_resumed
                if is_repeated and pace.is_over:
                    # It was over before it was resumed, which was said.
                    return
                if not is_repeated:
                    if pace.is_finished:
                        engine.look_again(pace.step)
                    # Listeners hear of the start once it is known what the batches say of their samples.
                    if engine.emitter.has_started or pace.is_over:
                        self.trainer.between_steps()
                    if pace.is_over:
                        return
                # A pass that goes on after a resume may have nothing left but its end.
                before = pace.turns, self.num_iterations, pace.passes, pace.has_ended
                pace.epoch_follows = pace.has_ended and not is_repeated
                self.source.note_head()
                yield pace.epoch + pace.epoch_follows
                is_same = (self.num_iterations, pace.passes, pace.has_ended) == before[1:]
                # Steps without a loader never end an epoch, which a budget in epochs would wait for for ever.
                is_idle = pace.turns == before[0] or pace.budget.passes is not None
                if is_same and is_idle and not (is_repeated or pace.is_over):
                    others = "" if pace.turns == before[0] else " What was reported is of no batch of batches()."
                    raise RuntimeError(
                        f"epoch {pace.epoch} ended with no batch reported; iterate over batches(loader), with a loader "
                        f"that gives batches in each epoch, and report the loss of each.{others}"
                    )
        finally:
            self.is_in_epochs = pace.epoch_follows = False
            engine.requests.leave()

    # Losses.

    def take_step(self) -> Ticket | None:
        """The step that a loss belongs to where no batch is open; None if the budget is spent.

        Raises:
            RuntimeError: a loop over the batches is under way, and its batch was reported already.
        """
        engine = self.engine
        if self.source.iteration is not None:
            raise RuntimeError(
                f"update_with_loss() was called at step {engine.pace.step} with no batch open; the last one was "
                "reported already; report each batch once."
            )
        if self.source.is_resumed:
            engine.announcer.warn_once("drawn too early", DRAWN_TOO_EARLY.format(engine.pace.step))
        self.source.resume_alone()
        if not self.has_asked:
            engine.controller.experiment.can_probe = False
            self.trainer.between_steps()
        self.has_asked = False
        if self.is_at_end():
            engine.announcer.warn_once(
                "spent",
                f"the run is over at step {engine.pace.step}; losses reported from here on are not watched. End your "
                "loop where is_over is true, or iterate over steps().",
            )
            return None
        return self.take(None, Size(), is_of_loader=False)

    def report(self, loss: Any, *, ids: Any = None, **extras: Any) -> Outcome:
        """Report the loss of the batch in hand, or of a step without one; see `R8Scheduler.update_with_loss`."""
        engine, source = self.engine, self.source
        ticket = source.open
        if ticket is None:
            ticket = source.open = self.take_step()
        if ticket is None:
            return Outcome(GOOD, engine.rates.shown(1.0), None)
        ticket = source.open = self.tell_ids(ticket, ids)
        self.note_rows(ticket, loss)
        outcome = engine.report(ticket, loss, **extras)
        source.open = None
        return outcome

    def tell_ids(self, ticket: Ticket, ids: Any) -> Ticket:
        """A batch in hand, now that its samples are told; None for those it was taken with.

        Raises:
            TypeError, ValueError: they are not ids, or the samples were told before.
        """
        if ids is None:
            return ticket
        if self.engine.agreement.ranks is not None:
            self.engine.announcer.warn_once("of one process", OF_ONE_PROCESS)
            return ticket
        chunk: Any = ticket.chunk
        if chunk.members is not None:
            raise ValueError(
                "ids must be given to batches() or with the loss, not both, got them with the loss of step "
                f"{ticket.step}, whose samples batches() knows; leave them out there."
            )
        members = self.source.samples.find(ids)
        self.source.tell_members(chunk, members)
        return ticket._replace(indices=members.indices)

    def note_rows(self, ticket: Ticket, loss: Any) -> None:
        """Say once that a loss has another number of rows than the ids of its batch, as its mean is all that counts."""
        chunk: Any = ticket.chunk
        members = chunk.members
        if members is None or type(loss) is float:
            return
        shape = getattr(loss, "shape", None)
        given = len(loss) if shape is None and hasattr(loss, "__len__") else shape[0] if shape else members.num_rows
        if given != members.num_rows:
            self.engine.announcer.warn_once(
                "uneven rows",
                f"a loss with {given} rows was reported for a batch with {members.num_rows} rows of samples, "
                "so only its mean counts, divided among them; to learn from each, report one or several values for "
                "each row of ids.",
            )

    def explain(self, error: Any) -> None:
        """Add to an exception of the user's loop, from Python 3.11 on, that there was no batch, if there was none."""
        if self._is_repeated and hasattr(error, "add_note"):
            error.add_note(AFTER_LAST)


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
        self._is_measured = False

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
        engine.controller.experiment.can_probe = False
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
        self._is_measured = item is not None
        size = feed.meet(Size() if item is None else self._measure.of(item)) or Size()
        feed.source.open = feed.take(item, size, is_of_loader=False)
        feed.note_start()
        return True

    def note_batch(self, item: Any) -> None:
        """Note the batch in hand, to take its loss once more where weights are tested; see `Callbacks.repeat`.

        Its samples are counted here, if it was not known as it began.
        """
        ticket = self._feed.source.open
        if ticket is None:
            return
        chunk: Any = ticket.chunk
        if not self._is_measured and (size := read_size(item)):
            chunk.size, chunk.indices = size, np.full(size, -1)
            self._feed.source.open = ticket._replace(indices=chunk.indices)
        chunk.given = item
        if self._feed.engine.persistence.callbacks.repeat is not None:
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

    def end_pass(self, *, ran_out: bool = False) -> None:
        """Note that an epoch has ended, before it is validated.

        Args:
            ran_out: Whether the data had ended where a batch was begun that is not reported: there was none.
        """
        feed = self._feed
        if ran_out and feed.source.open is not None:
            feed.engine.leave_out(feed.source.open, was_there=False)
            feed.source.open = None
        feed.trainer.settle()
        if not feed.engine.pace.has_ended:
            feed.mark_ended()
            feed.engine.backup.end_update()
        feed.engine.leave_epoch()

    def end_run(self) -> None:
        """Note that the trainer has ended."""
        self._feed.give_up_open()
        self._feed.engine.requests.leave()

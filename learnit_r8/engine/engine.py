"""The engine: the order in which the parts of a run act on a batch and on its loss, from top to bottom.

DRAW            the source hands out a batch (sources/planned.py, feed/followed.py), the schedule its rate
... the user trains ...
JUDGE           can the loss be learned from? (guard/)
LEARN           the source keeps the report, from which the table learns at the latest when it is read
or REFUSE       recovery/ says what follows
BETWEEN STEPS   what was asked for, and the backups and checkpoints that are due

The user's own parts (schedule, policy, guard, losses that raise while they are read) are asked before the first change,
and listeners hear of it after the last one; turns.py says what happens if a call is cut short in between.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import events
from ..guard.monitor import MOST_SUSPICION, Memory
from ..guard.verdict import GOOD, Verdict
from ..policies.registry import STEADY
from ..recovery.progress import EARLY_UPDATES, OF_ODD_DATA
from ..recovery.state import LOOK_MASK
from ..sources.chunk import OPEN, OUT_AGAIN, Batch
from ..sources.ticket import Outcome, Ticket, check_ticket
from ..table.losses import EXACT, Reading, read_number
from . import run_state
from .pace import Tally
from .run import Member, RankGroup, Run
from .turns import RunInterrupted

T = TypeVar("T")

LEFT = (
    "one of several processes has left the run at step {}, before its end: {}. Nothing was put back or saved, as the "
    "others may be elsewhere. To end a run early use stop(), which all follow, or call save_checkpoint() on all."
)


class Judged(NamedTuple):
    """A reported loss, judged; nothing is changed yet.

    Attributes:
        step: Steps reported before it.
        before: What the sentry remembered before it.
        state: The state of its batch before it.
        reading: The loss.
        expected: The loss that the table expected.
        verdict: The guard's verdict.
        memory: What the sentry remembers after it.
        lr: The scheduled learning rate after it; NaN during a search for one.
        suspicion: How close the guard is to refusing after it; NaN unless somebody asks.
        is_plain: Whether it is good, and there is no trouble.
    """

    step: int
    before: Memory
    state: int
    reading: Reading
    expected: float
    verdict: Verdict
    memory: Memory
    lr: float
    suspicion: float
    is_plain: bool


class Engine:
    """Draws batches and takes their losses; owns only the order of the parts.

    Args:
        run: The parts.

    Attributes:
        run: As given; the parts that others use are attributes, too.
        open_ticket: The batch of `R8Scheduler.batch_iterator` that is not reported yet.
        clock: Returns seconds; measures the two that follow.
        own_seconds: Time that the scheduler took since the last step.
        data_seconds: Time that the training waited for its data since then.
        adopt, look_again, look_at_weights: See `Persistence`.
        say_once: See `Announcer.say_once`.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.name, self.agreement = run, run.name, run.agreement
        self.source, self.table, self.pace = run.source, run.source.table, run.pace
        self.sentry, self.controller, self.persistence = run.sentry, run.controller, run.persistence
        self.backup, self.saver = run.persistence.backup, run.persistence.saver
        self.announcer, self.emitter, self.requests, self.turns = run.announcer, run.emitter, run.requests, run.turns
        self.rates, self.early_stop = run.rates, run.early_stop
        self.open_ticket: Ticket | None = None
        self.clock: Callable[[], float] = time.perf_counter
        self.own_seconds = self.data_seconds = 0.0
        self.adopt, self.look_at_weights = run.persistence.adopt, run.persistence.look_at_weights
        self.say_once, self.look_again = run.announcer.say_once, run.persistence.look_again
        run.controller.experiment.can_probe = run.source.can_probe
        self.table.learner.hold_back(self)

    # Draw.

    def draw_if_any(self) -> Ticket | None:
        """Draw the next batch; None if the budget is spent, all remaining steps are out, or the run was stopped."""
        began = self.clock()
        self.between_steps()
        ticket = self.draw_ahead()
        self.own_seconds += self.clock() - began
        return ticket

    def draw_ahead(self, is_fetched: bool = False, is_offered: bool = False) -> Ticket | None:
        """Draw the next batch while another one is being trained on; call `begin` when its own training begins.

        Args:
            is_fetched: Whether it is drawn long before it is trained on, so that it is never a probe.
            is_offered: Whether it was just offered to the source, as its training begins: it is drawn in any case.

        Returns:
            The ticket; None if the budget is spent, all remaining steps are out, or the run was stopped.
        """
        pace, turns, source, controller = self.pace, self.turns, self.source, self.controller
        while True:
            step = pace.step + pace.num_out
            progress = pace.progress_at(step)
            if (progress >= 1.0 or pace.is_stopped) and not is_offered:
                if is_fetched or not controller.experiment.asks_probe or pace.is_stopped or pace.leaves_out:
                    self.draw_nothing()
                    return None
                # After the last step of the budget.
                return self.draw_probe()
            epoch = (step + pace.left_out) // pace.steps_per_epoch + pace.passes
            # The schedule is the user's: if it raises, nothing has changed.
            lr = self.rates.scheduled(progress)
            if controller.is_quiet and self.rates.search is None and not math.isnan(pace.tally.began):
                # Nearly always the source has the next batch at hand.
                with turns.lock:
                    is_now = turns.busy is None and pace.step + pace.num_out == step
                    if is_now:
                        turns.busy = step
                        batch = source.next_at_hand(epoch)
                        ticket = None if batch is None else self._hand_out(batch, step, epoch, lr)
                        turns.busy = None
                        if ticket is not None:
                            return ticket
                if not is_now:
                    turns.wait("draw", step)
                    continue
            ticket = self._draw_specially(step, epoch, progress, lr, may_probe=not (is_fetched or is_offered))
            if ticket is not None:
                return ticket

    def _draw_specially(self, step: int, epoch: int, progress: float, lr: float, *, may_probe: bool) -> Ticket | None:
        """Draw the first batch of a chunk or of a pass, one of the search, a probe or a steady one.

        Returns:
            The ticket; None if another call came first.
        """
        pace, source, controller, is_searching = self.pace, self.source, self.controller, self.rates.search is not None
        if epoch > source.pass_number and not (pace.num_out or is_searching):
            # With batches out, an earlier epoch goes on: its metrics are still to come.
            self.early_stop.check_name(epoch)
        with self.turns.take("draw", step) as turn:
            if pace.next_step != step:
                return None
            turn.is_changing = True
            if is_searching:
                # Its batches are no steps of the run, and take none of its time.
                batch, lr = self.rates.draw()
                return self._hand_out(batch, step, -1, lr)
            pace.start()
            # After a resume, batches that are drawn again may be of the previous pass.
            if epoch > source.pass_number:
                not_exact = source.start_pass(epoch, pace.policy_progress(epoch, progress))
                if not_exact:
                    self.announcer.warn_once("not exact", not_exact)
            controller.live.hide()
            turn.is_changing = False
            lr, is_again = controller.limit.lr(lr), bool(source.returned)
            asks_probe = may_probe and controller.experiment.asks_probe
            is_of_pass = not asks_probe and (is_again or not controller.state.steady_left)
            # So is the policy: if it raises, nothing was drawn.
            ahead = source.look_ahead() if is_of_pass else None
            turn.is_changing = True
            if asks_probe:
                batch = self._probe()
            elif is_of_pass:
                batch = source.next(ahead)
            else:
                controller.state.steady_left -= 1
                batch = source.draw_outside(STEADY) or source.next()
            if is_again and is_of_pass:
                lr = batch.chunk.rates[batch.slot]
            return self._hand_out(batch, step, epoch, lr)

    def draw_probe(self) -> Ticket:
        """Hand out a batch once more, to test the weights with it; an experiment has asked for it."""
        pace, step = self.pace, self.pace.next_step
        with self.turns.take("draw", step, is_changing=True):
            self.controller.live.hide()
            epoch = max(0, pace.place - 1) // pace.steps_per_epoch + pace.passes
            return self._hand_out(self._probe(), step, epoch, self.rates.now)

    def _probe(self) -> Batch:
        experiment = self.controller.experiment
        batch = self.source.again(experiment.draw())
        batch.chunk.is_extra = not (self.pace.leaves_out and self.source.has_end)
        experiment.chunk = batch.chunk
        return batch

    def _hand_out(self, batch: Batch, step: int, epoch: int, lr: float) -> Ticket:
        """The ticket of a batch, which is out from now on; a batch of the search has no epoch and no place."""
        (chunk, slot, indices), pace = batch, self.pace
        if epoch >= 0:
            chunk.rates[slot] = lr
            pace.num_out += not chunk.is_extra
            pace.tokens += chunk.tokens
        draw, pace.num_draws = pace.num_draws, pace.num_draws + 1
        weights = None if chunk.weights is None else chunk.weights_of(slot)
        return Ticket(step, epoch, indices, lr, weights, draw, chunk, slot)

    def draw_nothing(self) -> None:
        """Note that there is no batch to draw: with none out, the run is left."""
        if self.turns.busy is not None:
            self.turns.wait("draw", self.pace.next_step)
        if not self.pace.num_out:
            self.requests.leave()
            # Time that is kept for a last break may end the run before its budget is used up.
            self.persistence.wake()

    def draw_epoch(self) -> list[Ticket]:
        """Draw the rest of the epoch at once; empty if the budget is spent or the run was stopped."""
        # Steady batches for an incident that is over would come too late.
        self.controller.state.steady_left = 0
        end = (self.pace.epoch + 1) * self.source.steps_per_pass
        tickets: list[Ticket] = []
        while self.pace.next_place < end and (ticket := self.draw_ahead()) is not None:
            tickets.append(ticket)
        return tickets

    def begin(self, ticket: Ticket, *, held_back: int = 0, is_late: bool = False) -> Ticket:
        """Begin training on a batch that was drawn ahead; whatever is due between two steps is done first.

        Args:
            ticket: The batch, as `draw_ahead` returned it; all batches drawn before it were trained on or given up.
            held_back: Number of those whose loss is known but not reported yet. While there are any, nothing is done
                between the steps, since model and scheduler are not at the same step.
            is_late: Whether its training has begun already, for adapters that call `between_steps` at a better time.

        Returns:
            The ticket with the current learning rate; its loss may confirm earlier backups.
        """
        if not (held_back or is_late):
            self.between_steps()
        step = self.pace.step + held_back
        # Batches of the learning-rate search have rates of their own.
        lr = ticket.lr if ticket.epoch < 0 else self.rates.at(step)
        if self.turns.busy is not None:
            self.turns.wait("begin", self.pace.step)
        with self.turns.lock:
            draw, self.pace.num_draws = self.pace.num_draws, self.pace.num_draws + 1
            return ticket._replace(step=self.pace.step + held_back, lr=lr, draw=draw)

    def hand_back(self, ticket: Ticket) -> None:
        """Return a batch that was not trained on, for instance after an interruption: it will be the next one drawn.

        Args:
            ticket: The batch; nothing happens if it is not out.
        """
        with self.turns.take("hand_back", self.pace.step) as turn:
            if ticket.is_out and ticket.epoch >= 0:
                turn.is_changing = True
                self.source.hand_back(ticket.batch)
                self.pace.num_out -= not ticket.chunk.is_extra

    # Judge.

    def report(
        # A call without a loss is one that forgets the ticket, which is told.
        self, ticket: Ticket, loss: Any = None, *, part_size: int | None = None, grad_norm: Any = None,
        skipped: bool = False, predictions: Any = None,
    ) -> Outcome:  # fmt: skip
        """Report the loss of a batch; see `R8Scheduler.report`."""
        if type(ticket) is not Ticket:
            check_ticket(ticket)
        turns, pace, sentry, began, outcome = self.turns, self.pace, self.sentry, self.clock(), None
        while outcome is None:
            judged = self._judge(ticket, loss, part_size, grad_norm, skipped, predictions)
            if not judged.is_plain:
                outcome = self._answer(ticket, judged, began)
                continue
            with turns.lock:
                # Unless another call has come between the judgement and this moment.
                is_same = pace.step == judged.step and sentry.present is judged.before
                is_now = turns.busy is None and is_same and ticket.chunk.states[ticket.slot] == judged.state
                if is_now:
                    turns.busy = ticket
                    ended = self._learn(ticket, judged)
                    turns.busy = None
            if not is_now:
                turns.wait("report", pace.step)
                continue
            if self.announcer.is_heard:
                self._tell_step(ticket, judged, ended, began)
            own = self.rates.own
            outcome = Outcome(GOOD, judged.lr if own is None else judged.lr * own, None)
        norms = self.controller.norms
        if grad_norm is None:
            return outcome
        norms.is_used = True
        if not (norms.is_on and outcome):
            return outcome
        norm = read_number("grad_norm", grad_norm)
        factor = norms.factor(norm)
        norms.note(norm)
        return outcome._replace(clip_factor=factor)

    def _judge(
        self, ticket: Ticket, loss: Any, part_size: int | None, grad_norm: Any, skipped: bool, predictions: Any
    ) -> Judged:
        """Read a loss and judge it; asks guard and schedule, and changes nothing.

        Raises:
            RuntimeError: the batch is not out, or the load callback reports it.
            TypeError, ValueError: the loss is not what is expected of a batch.
        """
        chunk, slot, sentry, controller, rates = ticket.chunk, ticket.slot, self.sentry, self.controller, self.rates
        step, storage, state, before = self.pace.step, self.table.storage, chunk.states[slot], sentry.present
        if state not in (OPEN, OUT_AGAIN) or chunk.table is not self.table or self.turns.busy is not None:
            self._check_out(ticket)
        reading = self.source.read(chunk, slot, loss, part_size, predictions)
        norm = None if grad_norm is None else read_number("grad_norm", grad_norm)
        if ticket.epoch < 0:
            # A loss of the search for a rate, which no other loss says anything about.
            _, verdict = sentry.guard.judge(sentry.guard.begin(), reading.mean)
            return Judged(step, before, state, reading, math.nan, verdict, sentry.present, math.nan, math.nan, False)
        is_quiet, lr, expected = controller.is_quiet, ticket.lr if rates.own is None else rates.own, math.nan
        # A report is not judged while weights are being tested: its own, or those it was trained with.
        is_testing = not is_quiet and controller.experiment.is_open
        if is_testing and (controller.live.current is not None or controller.experiment.takes(ticket)):
            if norm is not None and not math.isfinite(norm):
                # What counts is whether the weights are sound, and a norm shows that, too.
                reading = reading._replace(mean=math.nan)
            verdict, memory = Verdict.PROBED, sentry.present
        else:
            if not is_quiet and rates.own is None:
                # The guard hears the rate of the step that it judges, before recovery lowers it.
                lr = rates.scheduled_at(ticket.step)
            expected, typical, is_usual = chunk.expected[slot], chunk.typical, True
            if reading.part_size != EXACT and (expected == expected or typical == typical):
                expected, typical = map(self.table.learner.with_trend, (expected, typical))
            predicted = expected
            if reading.part_size != EXACT and expected < typical:
                # Estimates from batch means are too rough to expect less of a batch that was chosen by them.
                predicted, is_usual = typical, chunk.sweep >= 0
            found, memory = sentry.judge(reading.mean, predicted, typical, lr, norm, skipped, is_usual)
            is_first = controller.is_early and controller.lineage.updates <= EARLY_UPDATES
            is_high = reading.mean > OF_ODD_DATA * (controller.lineage.progress.recent or (math.inf,))[-1]
            is_doubtful = is_first or is_high or found is Verdict.SPIKE or controller.quarantine.counts
            verdict = self._doubt(ticket, reading.mean, found, is_first) if is_doubtful else found
            memory = sentry.present if verdict is not found else memory
        suspicion = math.nan
        if controller.lineage.updates & LOOK_MASK == LOOK_MASK or self.announcer.is_heard:
            suspicion = sentry.guard.suspicion(memory.losses)
        # Else it is the first of its kind, it comes late, or it may clear samples.
        is_plain = (
            is_quiet
            and verdict is GOOD
            and (reading.lowest >= 0 or storage.are_offsets)
            and reading.part_size == storage.part_size
            and not (chunk.is_late or controller.quarantine.counts)
        )
        after = rates.scheduled(self.pace.progress_at(step + 1))
        return Judged(step, before, state, reading, expected, verdict, memory, after, suspicion, is_plain)

    def _doubt(self, ticket: Ticket, loss: float, verdict: Verdict, is_first: bool) -> Verdict:
        """What becomes of the verdict by what recovery knows of samples, of the first steps and of high losses."""
        controller, quarantine = self.controller, self.controller.quarantine
        is_again = verdict is GOOD and quarantine.counts and quarantine.holds_any(ticket.indices)
        if is_again and self.sentry.expects_progress and controller.lineage.progress.would_stand_alone(loss):
            # Else it would be taken for a hard batch.
            return Verdict.SPIKE
        if verdict in (GOOD, Verdict.SPIKE) and self.sentry.watches_level and controller.is_of_odd_data(loss, ticket):
            return Verdict.SPIKE
        if verdict is Verdict.SPIKE and controller.is_of_a_kind(loss, ticket.indices):
            return GOOD
        if verdict is not GOOD or not is_first:
            return verdict
        # In a trainer that counts batches one that is looked into is left out for good.
        num_lost = len(ticket.indices) if self.pace.is_counted else 0
        is_early = controller.is_suspicious(loss, num_lost, len(ticket.indices))
        # A batch that comes again was looked into the first time.
        is_new = is_early and (ticket.chunk.states[ticket.slot] == OPEN or controller.is_far(loss, num_lost))
        return Verdict.EARLY if is_new and not controller.is_of_a_kind(loss, ticket.indices) else GOOD

    def _check_out(self, ticket: Ticket) -> None:
        """Raise RuntimeError for a ticket that is not out, or that the load callback reports."""
        if self.controller.live.is_restoring and self.turns.is_mine:
            raise RuntimeError(f"load_callback must not report losses, got one of step {ticket.step}.")
        if ticket.is_out and ticket.chunk.table is self.table:
            return
        if self.turns.busy is not None:
            # What another call is doing with it, or has left half done, is the reason.
            self.turns.wait("report", self.pace.step)
        raise RuntimeError(
            f"ticket of step {ticket.step} was already reported or dropped, or is of another run; report each batch "
            "once."
        )

    # Learn.

    def _learn(self, ticket: Ticket, judged: Judged) -> Tally | None:
        """Keep a good loss, and advance the run; the table learns when the chunk is used up, or somebody reads it.

        Returns:
            The tally of the epoch, if it has ended with this step.
        """
        table, pace, ended = self.table, self.pace, None
        reported, means, kind, lowest, predictions = judged.reading
        storage, trend, mean = table.storage, table.storage.batch_trend, reported
        self.sentry.present, storage.part_size = judged.memory, kind
        if trend.is_early:
            mean, means, lowest = trend.believed(mean, means, lowest)
        if lowest < 0 and not storage.are_offsets:
            table.learner.use_offsets()
        before = trend.value
        if trend.is_early:
            before = trend.observe_early(mean, reported)
        else:
            trend.value += trend.weight * (mean - before)
        if predictions is not None:
            storage.evidence.make_records(predictions)
        pace.num_out -= 1
        pace.step += 1
        tally = pace.tally
        tally.num_good += 1
        tally.total += reported
        tally.samples += len(ticket.indices)
        if pace.budget.seconds is not None:
            pace.begin_break()
        self.controller.accepted(reported, ticket, judged.lr, judged.suspicion, self.rates.own)
        if not (pace.step + pace.left_out) % self.source.steps_per_pass:
            pace.begin_epoch()
            ended = pace.end_epoch()
        self.source.report(ticket.chunk, ticket.slot, mean if storage.is_single else means, before, predictions)
        return ended

    def _tell_step(self, ticket: Ticket, judged: Judged, ended: Tally | None, began: float) -> None:
        """Tell listeners of a step that was learned from, and of the epoch that has ended with it."""
        pace, announcer, size, rate = self.pace, self.announcer, len(ticket.indices), self.rates.own
        lr = ticket.lr if rate is None else ticket.lr * rate
        own, self.own_seconds = self.own_seconds + self.clock() - began, 0.0
        waited, self.data_seconds = self.data_seconds, 0.0
        if announcer.wants_surveys:
            self.emitter.note_batch(ticket)
        announcer.deliver(
            events.StepDone(
                step=pace.step, seconds=pace.seconds, epoch=ticket.epoch, progress=pace.progress,
                loss=judged.reading.mean, expected_loss=judged.expected, lr=lr, batch_size=size,
                steady=ticket.chunk.pass_number < 0, own_seconds=own, data_seconds=waited,
                suspicion=judged.suspicion,
            )
        )  # fmt: skip
        if ended is not None:
            self.tell_epoch(pace.epoch - 1, lr, ended)

    def tell_epoch(self, epoch: int, lr: float, tally: Tally) -> None:
        """Tell listeners that all steps of an epoch were reported."""
        self.announcer.tell(
            events.EpochDone, epoch=epoch, progress=self.pace.progress, loss=tally.loss, lr=lr, samples=tally.samples,
            epoch_seconds=self.pace.seconds - tally.began,
        )  # fmt: skip

    # Refuse.

    def _answer(self, ticket: Ticket, judged: Judged, began: float) -> Outcome | None:
        """Act on a verdict; None if the loss must be judged again, as another call came first."""
        with self.turns.take("report", ticket.step) as turn:
            is_same = self.pace.step == judged.step and self.sentry.present is judged.before
            if not is_same or ticket.chunk.states[ticket.slot] != judged.state:
                return None
            turn.is_changing = True
            verdict, put_to = judged.verdict, None
            undo, is_undone = self.persistence.callbacks.undo, False
            if undo is not None and verdict is not GOOD and ticket.epoch >= 0:
                is_undone = undo()
            if ticket.epoch < 0:
                put_to = self.rates.take(ticket.batch, judged.reading.mean, ticket.lr, refused=verdict is not GOOD)
            elif verdict is Verdict.PROBED or ticket.chunk.is_probe:
                verdict, put_to = Verdict.PROBED, self._take_probe(ticket, judged)
            elif verdict is GOOD:
                ended = self._learn(ticket, judged)
                if self.announcer.is_heard:
                    self._tell_step(ticket, judged, ended, began)
            else:
                put_to = self._refuse(ticket, judged, is_undone=is_undone)
            self.pace.begin_break()
            is_unknown = self.rates.search is not None or math.isnan(judged.lr)
            lr = self.rates.now if is_unknown else self.controller.limit.lr(judged.lr)
            return Outcome(verdict, self.rates.shown(lr), put_to)

    def _refuse(self, ticket: Ticket, judged: Judged, *, is_undone: bool) -> int | None:
        """Learn nothing from a batch; returns the step of the state that was put back, None if none was.

        Args:
            ticket: The batch.
            judged: Its loss.
            is_undone: Whether the weights are known to be those of the loss.
        """
        reading, verdict, pace, controller = judged.reading, judged.verdict, self.pace, self.controller
        may_come_again = (
            verdict is Verdict.EARLY
            and self.source.can_put_back(ticket.batch)
            # Others are still to be drawn in this epoch.
            and pace.next_place < (ticket.epoch + 1) * self.source.steps_per_pass
            and not pace.is_counted
        )
        if may_come_again and not controller.is_far(reading.mean, 0):
            # It may be its batch, and most such losses are harmless: that comes again, so this was no step but a test.
            self.source.put_back(ticket.batch)
            pace.num_out -= 1
            pace.probes, pace.left_out = pace.probes + 1, pace.left_out + pace.leaves_out
            return controller.suspected(reading.mean, step=pace.step, lr=judged.lr, leaves_out=pace.leaves_out)
        self.sentry.keep(verdict, judged.memory)
        self._close(ticket)
        if verdict is Verdict.SKIPPED:
            return controller.skipped(ticket, reading, step=pace.step, lr=judged.lr)
        return controller.refused(
            ticket, reading, verdict, step=pace.step, lr=judged.lr, most_steady=self.source.most_steady(ticket.epoch),
            own_rate=self.rates.own, is_undone=is_undone,
        )  # fmt: skip

    def _take_probe(self, ticket: Ticket, judged: Judged) -> int | None:
        """Take the loss of a batch that tests weights, or that was trained on with weights under test."""
        experiment, chunk, put_to = self.controller.experiment, ticket.chunk, None
        if not experiment.takes(ticket):
            # It was drawn for weights that may be others by now.
            pass
        elif experiment.is_at_alarm and not experiment.is_fine(judged.reading.mean):
            # Some losses are high because of their step, as in a trial of what happens then: that one is over now.
            experiment.lose(ticket)
            self.pace.num_out += chunk.is_extra
            chunk.is_probe = chunk.is_extra = experiment.is_at_alarm = False
        else:
            step, unit = self.pace.step + (not chunk.is_probe), self.rates.shown(1.0)
            put_to = self.controller.probed(ticket, judged.reading.mean, step=step, lr=judged.lr, unit=unit)
        self._close(ticket)
        return put_to

    def _close(self, ticket: Ticket) -> None:
        """Close a batch that nothing is learned from, and count it."""
        chunk, pace = ticket.chunk, self.pace
        self.source.close(ticket.batch)
        pace.num_out -= not chunk.is_extra
        if chunk.is_probe:
            pace.probes, pace.left_out = pace.probes + 1, pace.left_out + (not chunk.is_extra)
        else:
            pace.step += 1
        if not chunk.is_extra:
            self._end_epoch(ticket)

    def _end_epoch(self, ticket: Ticket) -> None:
        if not self.pace.place % self.source.steps_per_pass:
            self.pace.begin_epoch()
            self.tell_epoch(self.pace.epoch - 1, self.rates.shown(ticket.lr), self.pace.end_epoch())

    def discard(self, ticket: Ticket, *, is_missed: bool = False) -> None:
        """Count a batch whose training was undone before its loss was judged: a step that nothing is learned from.

        For adapters that report late: when a refused loss restores the model, the batches trained on in the meantime
        belong to weights that were discarded.

        Args:
            ticket: The batch; nothing happens if it is not out.
            is_missed: Whether its loss never came, which is counted.
        """
        with self.turns.take("discard", self.pace.step) as turn:
            if not ticket.is_out:
                return
            turn.is_changing = True
            self.source.abandoned += is_missed
            if ticket.epoch < 0:
                self.rates.skip(ticket.batch)
                return
            self._close(ticket)
            self.controller.experiment.lose(ticket)

    def leave_out(self, ticket: Ticket, *, was_there: bool = True) -> None:
        """Give up a batch for which its epoch has no place left, as probes have taken it; it is no step.

        Args:
            ticket: The batch.
            was_there: Whether there was one; else its data had ended, and nothing is counted.
        """
        with self.turns.take("leave_out", self.pace.step) as turn:
            if ticket.is_out:
                turn.is_changing = True
                self.source.close(ticket.batch)
                self.source.displaced += was_there
                self.pace.num_out -= 1

    def give_up(self, ticket: Ticket, *, on_purpose: bool = False) -> None:
        """Give up a batch that will not be reported; see `R8Scheduler.give_up`."""
        with self.turns.take("give_up", self.pace.step) as turn:
            if not ticket.is_out:
                return
            turn.is_changing = True
            if ticket.epoch < 0:
                self.rates.skip(ticket.batch)
                return
            self.controller.experiment.lose(ticket)
            comes_again = is_probe = ticket.chunk.is_probe
            if is_probe:
                self._close(ticket)
            else:
                # A trainer that counts its batches has no turn left for one that comes again, and ends the epoch
                # without it.
                comes_again = self.source.abandon(ticket.batch, may_come_again=not self.pace.is_counted)
                self.pace.num_out -= 1
                self.pace.tokens -= ticket.chunk.tokens
            self.announcer.tell(events.BatchAbandoned, epoch=ticket.epoch, drawn_again=comes_again)
            if not on_purpose:
                self.announcer.warn_once("abandoned", self.source.abandoned_text.format(step=ticket.step))
            if self.source.counts_abandoned and not comes_again:
                self.pace.step += 1
                self._end_epoch(ticket)

    # Between two steps.

    def between_steps(self, held_back: int = 0, closing: bool = False) -> None:
        """Take backups and write checkpoints that are due; between steps, model and scheduler are at the same step.

        Args:
            held_back: Number of batches that were trained on and are not reported yet. While there are any, nothing
                but the survey of the samples for viewers is done.
            closing: Whether this is the last call.
        """
        pace, persistence, controller = self.pace, self.persistence, self.controller
        if self.turns.busy is not None:
            if controller.live.is_restoring and self.turns.is_mine:
                raise RuntimeError(f"load_callback must not draw batches, got a draw at step {pace.step}.")
            self.turns.wait("draw", pace.next_step)
        epoch_ended = pace.has_left_epoch and not held_back
        if not held_back:
            if not self.emitter.has_started:
                run_state.start(self.run)
            if self.requests.is_pending:
                self.own_seconds -= self.requests.answer(self.save_as_asked, cool_down=self.rates.begin_cool_down)
            # Where a signal to one rank has stopped the run, that rank has left by now and would not answer.
            if controller.state.is_look_due and not pace.is_stopped:
                persistence.backup_timer.take_in(persistence.callbacks.state)
                with self.turns.take("between_steps", pace.step, is_changing=True):
                    # A trial that ends here goes on with its own weights, of which a checkpoint may follow.
                    controller.live.hide()
                    controller.look_back(step=pace.step, lr=self.rates.scheduled_at(pace.step), progress=pace.progress)
            epoch_ended = pace.has_left_epoch
        if self.announcer.wants_surveys or (self.emitter.has_groups and self.announcer.is_heard):
            self.emitter.between_steps(pace.epoch, epoch_ended=epoch_ended, closing=closing)
        if held_back:
            return
        # Nearly always nothing is due.
        is_time = persistence.quiet_seconds != math.inf and pace.seconds >= persistence.quiet_seconds
        if closing or epoch_ended or is_time or pace.step >= persistence.quiet_steps:
            self._do_what_is_due(closing=closing)

    def _look_last(self, *, closing: bool = False) -> bool:
        """Test the last weights as the run ends, and end what is under way; returns whether a probe is drawn first."""
        pace, controller = self.pace, self.controller
        if not (closing or (pace.is_finished and not pace.num_out)):
            return False
        # No probe follows the last batch of a number of epochs.
        is_last = closing or pace.leaves_out
        if self.rates.search is None:
            with self.turns.take("draw", pace.step, is_changing=True):
                has_probe = controller.looks_last(step=pace.step, lr=self.rates.scheduled(1.0), may_probe=not is_last)
            if has_probe and not is_last:
                return True
        # Without an experiment it is a trial of a rate, which ends with the run.
        if controller.is_open and (is_last or not controller.experiment.is_open):
            with self.turns.take("close", pace.step, is_changing=True):
                controller.end_open_test(step=pace.step)
        return False

    def _do_what_is_due(self, *, closing: bool) -> None:
        """Take backups and write checkpoints that are due; with ``closing``, end what is under way."""
        pace, controller = self.pace, self.controller
        if self._look_last(closing=closing) or not controller.may_save:
            return
        with self.run.saving:
            epoch_ended = pace.has_left_epoch
            try:
                is_done = self.persistence.save_what_is_due(
                    pace.step, self.source.samples_in(pace.place), pace.seconds, pace.num_draws,
                    epoch_ended=epoch_ended, run_ended=closing or pace.is_finished, budget=pace.budget,
                    get_state=lambda: run_state.settled_state_of(self.run),
                    get_moment=functools.partial(run_state.moment_of, self.run, "draw"),
                    is_calm=not controller.state.refusals.bad_in_a_row and self.sentry.suspicion < MOST_SUSPICION,
                    may_back_up=not controller.is_open,
                    saved=controller.note_checkpoint, answer=self._answer_damage, may_save=lambda: controller.may_save,
                )  # fmt: skip
            except Exception:
                pace.has_left_epoch = False
                raise
            # Last: if any of this is interrupted, it is due again.
            if epoch_ended and is_done:
                pace.has_left_epoch = False

    def save_as_asked(self) -> None:
        """Write a checkpoint on request, such as a signal's, once the weights were looked at."""
        self.look_before_saving()
        # A checkpoint of this step does not know yet that the run has ended.
        has_ended = self.pace.ended_early is not None
        self.persistence.save_as_asked(lambda: run_state.settled_state_of(self.run), self.pace.step, again=has_ended)
        self.controller.note_checkpoint(self.pace.step)

    def look_before_saving(self) -> None:
        """Look at the weights before a checkpoint that is asked for, unless they are tested, or others must join."""
        if self.agreement.ranks is None and not self.controller.is_open:
            self.check_weights()

    def check_weights(self) -> bool:
        """Look at the weights now, and put back what is not finite; returns whether all was finite."""
        if damage := self.controller.live.look():
            self._answer_damage(damage)
        return not damage

    def _answer_damage(self, array: str) -> None:
        """Look into a model that holds non-finite numbers although its losses were finite."""
        step = self.pace.step
        if self.rates.search is not None:
            self.persistence.backup_timer.note_done(step)
            return
        with self.turns.take("between_steps", step, is_changing=True):
            self.controller.damaged(array, step=step, lr=self.rates.scheduled_at(step))

    def back_up(self, state: Any) -> None:
        """Copy a model state to RAM; see `R8Scheduler.update_cpu_backup`."""
        if self.rates.search is not None and self.emitter.has_started:
            return
        if self.controller.live.is_restoring and self.turns.is_mine:
            raise RuntimeError(f"load_callback must not make backups, got one at step {self.pace.step}.")
        with self.run.saving:
            damage = self.persistence.backup_timer.take(
                state, self.pace.step, self.pace.num_draws,
                lambda state: run_state.moment_of(self.run, "update_cpu_backup"),
            )  # fmt: skip
            if damage:
                self._answer_damage(damage)

    def leave_epoch(self, *, is_validated: bool = False) -> None:
        """Look at the weights, and put in those that count for true, as the user's code after an epoch may follow.

        The next draw takes them out. Nothing happens within an epoch, or a second time after it. All ranks call it at
        the same place.

        Args:
            is_validated: Whether a validation or a trainer's own save follows, wherever it is: then the weights are
                looked at within an epoch, and a second time after it, as other code may have changed them since.
        """
        pace, controller, is_between = self.pace, self.controller, self.pace.is_between_epochs
        is_first = is_between and controller.left_at != pace.place
        if not (is_validated or is_first) or pace.num_out or self.rates.search is not None:
            return
        controller.left_at = pace.place
        if not controller.is_on_trial:
            # The loss of a batch shows nothing of what its own step has done.
            self.check_weights()
        if is_between:
            # What follows the last epoch measures the weights that are kept.
            self._look_last()
        if is_between and controller.is_on_trial:
            with self.turns.take("leave_epoch", pace.step, is_changing=True):
                controller.show_true(step=pace.step)

    def leave(self) -> None:
        """Leave a run by an exception, or one of several ranks before its end: nothing is saved, and no rank is called.

        Where the run is alone, the weights that count for true are put in, and what is not finite is put back; of
        several ranks the others may be anywhere.
        """
        controller, step = self.controller, self.pace.step
        if self.agreement.ranks is None:
            try:
                self.check_weights()
                if controller.is_open:
                    with self.turns.take("close", step, is_changing=True):
                        controller.end_open_test(step=step)
            except Exception as error:
                # What has ended the run is the one to see.
                text = f"the run was left at step {step}, and its weights as they were: {error!r}"
                self.announcer.warn_once("left", text)
            return
        damage = controller.live.damage(is_shared=False)
        seen = [f"{damage!r} in the model's state is not finite"] * bool(damage)
        seen += ["the model holds weights that are only on trial"] * controller.is_on_trial
        seen += ["it has no checkpoint of this step"] * (self.saver is not None and not self.saver.has_saved(step))
        if seen:
            self.announcer.warn_once("left", LEFT.format(step, "; ".join(seen)))

    # For the table, which asks for the reports, and for adapters.

    def hand_over(self) -> None:
        """Have the table learn everything reported so far; any thread may call it.

        Nothing happens while another thread restores the model, or if a call was cut short: then views show less.
        """
        if self.turns.is_mine:
            self.source.hand_over()
        elif self.turns.is_free():
            with contextlib.suppress(RunInterrupted), self.turns.take("hand_over", self.pace.step):
                self.source.hand_over()

    def use_offsets(self, trend: float) -> None:
        """See `ReportHolder`."""
        self.source.use_offsets(trend)

    @property
    def member(self) -> Member:
        """The adapter that holds batches, as given to `join`."""
        return self.run.member

    def join(self, member: Member) -> None:
        """Let an adapter hold back batches and losses; it replaces the one that joined before."""
        self.run.member = member

    def settle(self) -> None:
        """Have the member report the losses that it holds back."""
        self.run.member.settle()

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; if there are listeners, the time that training waits for each is measured."""
        return self._timed(batches) if self.announcer.is_heard else batches

    def _timed(self, batches: Iterator[T]) -> Iterator[T]:
        while True:
            began = self.clock()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.data_seconds += self.clock() - began
            yield batch

    def may_be_due(self, step: int) -> bool:
        """Whether a backup or a checkpoint may be due once this many steps are reported."""
        return step >= self.persistence.quiet_steps or self.pace.seconds >= self.persistence.quiet_seconds

    def share(self, group: RankGroup, resume: str | os.PathLike[str] | None = None) -> None:
        """Act as one scheduler with those of the other ranks; call it before the first draw. See `run_state.share`."""
        run_state.share(self.run, group, resume)

    def deciding_state(self, samples: NDArray[np.int64]) -> list[Any]:
        """The state that decides the next steps, as plain values and arrays; of the table only some records.

        Args:
            samples: int64[K], their positions.
        """
        self.hand_over()
        # Batches of the user's own are other ones on each rank.
        table, recovery = self.table, self.controller.state_dict(has_batches=self.source.names_samples)
        numbers = [self.pace.state_dict(), recovery, self.sentry.state_dict(), table.trend, self.rates.now]
        evidence = table.storage.evidence.take(samples)
        return [numbers, table.storage.records.take(samples), *([] if evidence is None else [evidence])]

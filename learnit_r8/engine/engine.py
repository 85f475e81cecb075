"""The engine: the order in which the parts of a run act on a batch and on its loss.

policies/, sampling/            DRAW: which samples come next
... the user trains ...
guard/                          JUDGE: can the loss be learned from (if not: refusal.py)
table/                          LEARN: keep the report, from which the table learns at the latest when it is read
pace.py, rates/                 ADVANCE: progress and learning rate
events/                         TELL: listeners hear of it

The user's own parts (schedule, policy, guard, losses that raise while they are read) are asked before the first change,
and listeners hear of it after the last one; turns.py says what happens if a call is cut short in between. step.py
judges and learns; everything outside an ordinary step is in breaks.py, refusal.py, run_state.py, draws.py and
membership.py.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .._validation import shortened
from ..guard.verdict import GOOD
from ..sampling.tally import Tally
from ..sampling.ticket import Outcome, Ticket, new_tuple
from ..table.losses import read_number
from . import breaks, draws, membership, refusal, step
from .control import Requests
from .emitter import EventEmitter
from .feed.feed import Feed
from .rates.rates import Rates
from .turns import RunInterrupted, Turns

if TYPE_CHECKING:
    from .builder import Components

T = TypeVar("T")


class Engine:
    """Draws batches and takes their losses; owns only the order of the parts and the number of draws.

    Args:
        parts: What it is put together from.

    Attributes:
        open_ticket: The batch of `R8Scheduler.batch_iterator` that is not reported yet.
        backup: The model states in RAM.
        saver: Writes checkpoints; None without a folder.
        member: The adapter that holds batches, as given to `join`.
        agreement: Decides together with other ranks, if there are any.
        adopt, look_at_weights: See `Persistence`.
        say_once: See `Announcer.say_once`.
        requests: Requests to pause, stop or save.
        turns: Lets one call at a time change the run.
    """

    def __init__(self, parts: Components) -> None:
        # With more than 30 attributes, CPython 3.11 takes twice as long to read any attribute of this object.
        self.plan = parts.plan
        self.table = parts.plan.table
        self.pace = parts.pace
        self.sentry = parts.sentry
        self.persistence = parts.persistence
        self.announcer = parts.announcer
        self.backup = parts.persistence.backup
        self.saver = parts.persistence.saver
        self.emitter = EventEmitter(parts.announcer, parts.plan.table)
        self.controller = parts.controller
        self.search = parts.search
        self.rates = Rates(
            parts.make_schedule, pace=parts.pace, search=parts.search, controller=parts.controller, emitter=self.emitter
        )
        self.early_stop = parts.early_stop
        self.name = parts.name
        self.member: membership.Member = membership.NoMember()
        self.agreement = parts.agreement
        self.requests = Requests(
            parts.pace,
            parts.announcer,
            handle_signals=parts.handle_signals,
            cool_down_on=parts.cool_down_on,
            agreement=parts.agreement,
        )
        self.settings = parts.settings
        self._tally = Tally()
        self._num_draws = 0
        self.turns = Turns(self.table, self.announcer)
        # One thread at a time takes backups and writes checkpoints; others that draw meanwhile wait for it.
        self._saving = threading.RLock()
        self._epoch_ended = False
        self.open_ticket: Ticket | None = None
        self.adopt, self.look_at_weights = parts.persistence.adopt, parts.persistence.look_at_weights
        self.say_once = parts.announcer.say_once
        self.feed = None if parts.feed is None else Feed(self, parts.plan, parts.feed)  # type: ignore[arg-type]
        if self.feed is not None:
            self.controller.experiment.let_probe(False)
        self.table.learner.hold_back(self)

    def join(self, member: membership.Member) -> None:
        """Let an adapter hold back batches and losses; it replaces the one that joined before."""
        self.member = member

    def count_batches(self) -> None:
        """Note that a trainer counts the batches, too, and stops after so many."""
        self.pace.is_counted = True

    def settle(self) -> None:
        """Have the member report the losses that it holds back."""
        self.member.settle()

    def hand_over(self) -> None:
        """Have the table learn everything reported so far; any thread may call it.

        Nothing happens while another thread restores the model, or if a call was cut short: then views show less.
        """
        if self.turns.is_mine:
            self.plan.hand_over()
        elif self.turns.is_free():
            with contextlib.suppress(RunInterrupted), self.turns.take("hand_over", self.pace.step):
                self.plan.hand_over()

    def use_offsets(self, trend: float) -> None:
        """See `ReportHolder`."""
        self.plan.use_offsets(trend)

    def draw_if_any(self) -> Ticket | None:
        """Draw the next batch; None if the budget is spent, all remaining steps are out, or the run was stopped."""
        if not self.announcer.is_heard:
            self.between_steps()
            return self.draw_ahead()
        self.emitter.start_timing()
        self.between_steps()
        ticket = self.draw_ahead()
        self.emitter.stop_timing()
        return ticket

    def draw_ahead(self, is_fetched: bool = False) -> Ticket | None:
        """Draw the next batch while another one is being trained on; call `begin` when its own training begins.

        Args:
            is_fetched: Whether it is drawn long before it is trained on, so that it is never a probe.

        Returns:
            The ticket; None if the budget is spent, all remaining steps are out, or the run was stopped.
        """
        pace, plan, turns = self.pace, self.plan, self.turns
        while True:
            number, steps = pace.step + pace.num_out, pace.budget.steps
            place = number + pace.left_out
            progress = place / steps if steps is not None and place < steps else pace.progress_at(number)
            if progress >= 1.0 or pace.is_stopped:
                return draws.draw_last(self, number, may_probe=not is_fetched)
            chunk, epoch = plan.chunk, place // plan.steps_per_pass
            slot = chunk.drawn
            began = self._tally.began
            if (
                slot == plan.limit
                or plan.returned
                or epoch != chunk.pass_number
                or began != began
                or not self.controller.is_quiet
                or self.search._test is not None
            ):
                ticket = draws.draw_specially(self, number, may_probe=not is_fetched)
                if ticket is not None:
                    return ticket
                continue
            # Nearly always this is just the next batch of the chunk. The schedule first: a user's own may raise.
            rates = self.rates
            last, lr = rates.last
            if progress != last:
                lr = rates.scheduled(progress)
            with turns.lock:
                if (
                    turns.busy is None
                    and chunk.drawn == slot
                    and plan.chunk is chunk
                    and pace.step + pace.num_out == number
                ):
                    turns.busy = number
                    chunk.rates[slot] = lr
                    chunk.drawn = slot + 1
                    pace.num_out += 1
                    draw, indices = self._num_draws, chunk.views[slot]
                    self._num_draws = draw + 1
                    weights = None if chunk.weights is None else chunk.weights_of(slot)
                    turns.busy = None
                    return new_tuple(Ticket, (number, epoch, indices, lr, weights, draw, chunk, slot))
            turns.wait("draw", number)

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
        # Batches of the learning-rate search have rates of their own.
        lr = ticket.lr if ticket.epoch < 0 else self.rates.at(self.pace.progress_at(self.pace.step + held_back))
        if self.turns.busy is not None:
            self.turns.wait("begin", self.pace.step)
        # _replace() takes three times as long.
        _, epoch, indices, _, weights, _, chunk, slot = ticket
        with self.turns.lock:
            draw = self._num_draws
            self._num_draws = draw + 1
            return Ticket(self.pace.step + held_back, epoch, indices, lr, weights, draw, chunk, slot)

    def hand_back(self, ticket: Ticket) -> None:
        """Return a batch that was not trained on, for instance after an interruption: it will be the next one drawn.

        Args:
            ticket: The batch; nothing happens if it is not out.
        """
        with self.turns.take("hand_back", self.pace.step) as turn:
            if ticket.batch.is_out and ticket.epoch >= 0:
                turn.is_changing = True
                self.plan.hand_back(ticket.batch)
                self.pace.num_out -= not ticket.chunk.is_extra

    def between_steps(self, held_back: int = 0, closing: bool = False) -> None:
        """Take backups and write checkpoints that are due; between steps, model and scheduler are at the same step.

        Args:
            held_back: Number of batches that were trained on and are not reported yet. While there are any, nothing
                but the survey of the samples for viewers is done.
            closing: Whether this is the last call.
        """
        if self.turns.busy is not None:
            if self.persistence.is_restoring and self.turns.is_mine:
                raise RuntimeError(f"load_callback must not draw batches, got a draw at step {self.pace.step}.")
            self.turns.wait("draw", self.pace.next_step)
        if held_back:
            if self.announcer.wants_surveys:
                self.emitter.between_steps(self.pace.epoch, epoch_ended=False)
            return
        if not self.emitter.has_started:
            breaks.start(self)
        if self.requests.is_pending:
            breaks.answer_requests(self)
        # Where a signal to one rank has stopped the run, that rank has left by now and would not answer.
        if self.controller.is_look_due and not self.pace.is_stopped:
            refusal.look_back(self)
        epoch_ended = self._epoch_ended
        if self.announcer.wants_surveys:
            self.emitter.between_steps(self.pace.epoch, epoch_ended=epoch_ended, closing=closing)
        persistence, pace = self.persistence, self.pace
        step = pace.step
        # Nearly always nothing is due, and a step must not pay to find that out.
        limit, is_new = persistence.quiet_seconds, epoch_ended or closing
        if step < persistence.quiet_steps and not is_new and (limit == math.inf or pace.seconds < limit):
            return
        breaks.do_what_is_due(self, closing=closing)

    def leave_epoch(self) -> None:
        """Look at the weights, and put in those that count for true, as the user's code after an epoch may follow.

        The next draw takes them out. Nothing happens within an epoch, or a second time after it. All ranks call it at
        the same place.
        """
        pace, inquiry = self.pace, self.controller.inquiry
        has_ended = pace.has_ended if self.feed is not None else not pace.place % self.plan.steps_per_pass
        if not has_ended or pace.num_out or self.search.is_on or inquiry.left_at == pace.place:
            return
        inquiry.left_at = pace.place
        if not inquiry.is_on_trial:
            # The loss of a batch shows nothing of what its own step has done.
            refusal.check_weights(self)
        if inquiry.is_on_trial:
            with self.turns.take("leave_epoch", pace.step, is_changing=True):
                inquiry.show_true(step=pace.step)

    def report(
        self,
        ticket: Ticket,
        # Whoever forgets the ticket is told so.
        loss: Any = None,
        *,
        part_size: int | None = None,
        grad_norm: Any = None,
        skipped: bool = False,
        predictions: Any = None,
    ) -> Outcome:
        """Report the loss of a batch; see `R8Scheduler.report`."""
        if type(ticket) is not Ticket:
            raise TypeError(
                f"ticket must be what draw() returned, got {shortened(ticket)}. In a loop over batch_iterator() give "
                "the losses to update_with_loss()."
            )
        return self._report(ticket, loss, part_size, grad_norm, skipped, predictions)

    def _report(
        self, ticket: Ticket, loss: Any, part_size: int | None, grad_norm: Any, skipped: bool, predictions: Any
    ) -> Outcome:
        is_heard, turns = self.announcer.is_heard, self.turns
        pace, sentry = self.pace, self.sentry
        if is_heard:
            self.emitter.start_timing()
        while True:
            judged = step.judge(self, ticket, loss, part_size, grad_norm, skipped, predictions)
            number, losses, (chunk, slot, state), _, _, _, _, _, lr, _, is_plain = judged
            if not is_plain:
                outcome = refusal.report_in_turn(self, ticket, step.Judged(*judged))
                if outcome is not None:
                    return outcome if grad_norm is None else self._clipped(outcome, grad_norm)
                continue
            is_done, ended = False, None
            with turns.lock:
                # The last three as `is_now` says, without its call.
                if (
                    turns.busy is None
                    and pace.step == number
                    and sentry._losses is losses
                    and chunk.states[slot] == state
                ):
                    turns.busy = ticket
                    ended = step.learn(self, ticket, judged)
                    turns.busy = None
                    is_done = True
            if is_done:
                if is_heard:
                    self.emitter.stop_timing()
                    step.tell(self, ticket, step.Judged(*judged), ended)
                outcome = new_tuple(Outcome, (GOOD, lr, None, 1.0))
                return outcome if grad_norm is None else self._clipped(outcome, grad_norm)
            turns.wait("report", self.pace.step)

    def _clipped(self, outcome: Outcome, grad_norm: Any) -> Outcome:
        """The outcome with the factor of the gradient, whose norm was reported."""
        norms = self.controller.norms
        norms.is_used = True
        if not (norms.is_on and outcome):
            return outcome
        norm = read_number("grad_norm", grad_norm)
        factor = norms.factor(norm)
        norms.note(norm)
        return outcome._replace(clip_factor=factor)

    def is_now(self, judged: step.Judged) -> bool:
        """Whether no other call has come between a judgement and this moment."""
        chunk, slot, state = judged.place
        is_same = self.pace.step == judged.step and self.sentry._losses is judged.losses
        return is_same and chunk.states[slot] == state

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; if there are listeners, the time that training waits for each is measured."""
        return self.emitter.timed(batches) if self.announcer.is_heard else batches

    def may_be_due(self, step: int) -> bool:
        """Whether a backup or a checkpoint may be due once this many steps are reported."""
        return step >= self.persistence.quiet_steps or self.pace.seconds >= self.persistence.quiet_seconds

    def share(self, group: membership.RankGroup, resume: str | os.PathLike[str] | None = None) -> None:
        """Act as one scheduler with those of the other ranks; call it before the first draw. See `membership.share`."""
        membership.share(self, group, resume)

    def deciding_state(self, samples: NDArray[np.int64]) -> list[Any]:
        """The state that decides the next steps, as plain values and arrays; of the table only some records.

        Args:
            samples: int64[K], their positions.
        """
        self.hand_over()
        table, parts = self.table, (self.pace, self.controller, self.sentry)
        numbers = [*(part.state_dict() for part in parts), table.trend, self.rates.now]
        evidence = table.storage.evidence.take(samples)
        return [numbers, table.storage.records.take(samples), *([] if evidence is None else [evidence])]

    def draw_epoch(self) -> list[Ticket]:
        """Draw the rest of the epoch at once; empty if the budget is spent or the run was stopped."""
        return draws.rest_of_epoch(self)

    def discard(self, ticket: Ticket, *, is_missed: bool = False) -> None:
        """Count a batch whose training was undone before its loss was judged: a step that nothing is learned from.

        For adapters that report late: when a refused loss restores the model, the batches trained on in the meantime
        belong to weights that were discarded.

        Args:
            ticket: The batch; nothing happens if it is not out.
            is_missed: Whether its loss never came, which is counted.
        """
        with self.turns.take("discard", self.pace.step) as turn:
            if ticket.batch.is_out:
                turn.is_changing = True
                self.plan.abandoned += is_missed
                refusal.discard(self, ticket)

    def leave_out(self, ticket: Ticket) -> None:
        """Give up a batch for which its epoch has no place left, as probes have taken it; it is no step."""
        with self.turns.take("leave_out", self.pace.step) as turn:
            if ticket.batch.is_out:
                turn.is_changing = True
                self.plan.close(ticket.batch)
                self.plan.displaced += 1
                self.pace.num_out -= 1

    def give_up(self, ticket: Ticket, *, on_purpose: bool = False) -> None:
        """Give up a batch that will not be reported; see `R8Scheduler.give_up`."""
        if not ticket.batch.is_out:
            return
        if self.feed is not None:
            self.feed.give_up(ticket, is_noted=not on_purpose)
            return
        with self.turns.take("give_up", self.pace.step) as turn:
            if ticket.batch.is_out:
                turn.is_changing = True
                refusal.give_up(self, ticket, on_purpose)

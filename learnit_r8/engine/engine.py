"""The engine: in which order the parts act on a batch and on its loss.

policies/, sampling/            DRAW which samples come next
... the user trains ...
guard/                          JUDGE whether the loss is one to learn from (refusal.py: what if not)
table/                          LEARN running loss and use of every sample
pace.py, schedules/             MOVE ON: how far along, at what rate
events/                         TELL what happened

One flat class, since a step must not pay for calls between its parts. What is no part of an ordinary step is beside it,
in refusal.py, run_state.py, draws.py and ranks.py. Any call may be cut short by an exception between any two
bytecodes: marks.py says what it was about to change, interruption.py changes it back.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..guard.verdict import Verdict
from ..recovery.moment import moment_of
from ..recovery.ram_backup import NO_SLOTS
from ..recovery.restore import RestoreResult
from ..sampling.ticket import Outcome, Ticket, new_tuple
from ..schedules.schedule import check_rate
from ..table.losses import EXACT, Reading, check_kind, read_loss, read_number
from . import draws, membership, refusal, run_state
from .control import Requests
from .emitter import EventEmitter
from .interruption import Transaction, finish, mend, repeated
from .marks import AnswerMark, Marks, PlanMark, Snapshot, trouble_of
from .tally import Tally

if TYPE_CHECKING:
    from .builder import Components

T = TypeVar("T")


class Engine:
    """Draws batches and takes their losses; owns nothing but the order of the parts and the count of the draws.

    Args:
        parts: What it is put together from.

    Attributes:
        member: The adapter that has batches in hand, as `join` was given it.
        requests: What was asked of the run: to pause, to stop, to save.
    """

    def __init__(self, parts: Components) -> None:
        self.plan = parts.plan
        self.table = parts.plan.table
        self.pace = parts.pace
        self.schedule = parts.make_schedule(parts.peak_lr)
        self.sentry = parts.sentry
        self.persistence = parts.persistence
        self.announcer = parts.announcer
        self._backup = parts.persistence.backup
        self.emitter = EventEmitter(parts.announcer, parts.plan.table)
        self.controller = parts.controller
        self.search = parts.search
        self.name = parts.name
        self.member: membership.Member = membership.NoMember()
        self.say_once = parts.announcer.say_once
        self.requests = Requests(
            parts.pace,
            parts.announcer,
            functools.partial(run_state.save_as_asked, self),
            handle_signals=parts.handle_signals,
        )
        self._settings = parts.settings
        self._make_schedule = parts.make_schedule
        self._last_progress, self._last_lr = math.nan, math.nan
        self._tally = Tally()
        self._num_draws = 0
        # The model has one step at a time; threads that draw and report take turns all the same.
        self._lock = threading.RLock()
        self._epoch_ended = False
        # What calls note of themselves should they be cut short, and the one that was: see `mend`. With more than 30
        # attributes CPython 3.11 would take twice as long to read any of this object.
        self._marks = Marks()
        self._cut: Any = None
        self._has_started = False
        self.table.hold_back(self)

    def join(self, member: membership.Member) -> None:
        """Let an adapter hold batches and losses back; it takes the place of the one that joined before."""
        self.member = member

    def settle(self) -> None:
        """Let the member report the losses that it holds back."""
        self.member.settle()

    def hand_over(self) -> None:
        """Let the table learn what was reported, whichever thread asks it."""
        with self._lock:
            if self._cut is not None:
                finish(self)
            self.plan.hand_over()

    def before_offsets(self, trend: float) -> Callable[[bool], None]:
        """See `ReportHolder`."""
        return self.plan.before_offsets(trend)

    def draw_if_any(self) -> Ticket | None:
        """Draw the next batch; None if the budget is spent, every step left is out already, or the run was stopped."""
        ticket = None
        try:
            with self._lock:
                begun = self._marks.begun
                try:
                    if self.announcer.is_heard:
                        self.emitter.begin()
                        self.between_steps()
                        ticket = self.draw_ahead()
                        self.emitter.end()
                    else:
                        self.between_steps()
                        ticket = self.draw_ahead()
                except BaseException:
                    # Nothing is called before what was cut short is noted: it could be interrupted too.
                    if self._marks.begun is not None and self._marks.begun is not begun:
                        self._cut = self._marks.begun
                    mend(self)
                    raise
            return ticket
        except BaseException:
            if ticket is not None:
                self._cut = ticket
                mend(self)
            raise

    def draw_ahead(self) -> Ticket | None:
        """Draw like `draw_if_any` while another batch is being trained on; `begin` does what that would have done.

        Returns:
            The ticket; None if the budget is spent, every step left is out already, or the run was stopped.
        """
        if self._cut is not None:
            finish(self)
        pace, plan, marks, controller = self.pace, self.plan, self._marks, self.controller
        step = pace.step + pace.num_out
        progress = pace.progress_at(step)
        if progress >= 1 or pace.is_stopped:
            if not pace.num_out:
                self.requests.leave()
            return None
        begun, chunk, epoch = marks.begun, plan.chunk, step // plan.steps_per_pass
        slot, began, is_search = chunk.drawn, self._tally.began, self.search.is_on
        try:
            if (
                slot == plan.limit
                or plan.returned
                or is_search
                or began != began
                or controller.is_steadying
                or controller.replay.is_due
                or epoch != chunk.pass_number
            ):
                marks.begun = PlanMark(self)
                batch, lr, epoch = draws.for_search(self) if is_search else draws.elsewhere(self, epoch, progress)
            else:
                # Nearly always it is simply the next batch of the chunk, and that changes little.
                marks.begun = chunk, slot, pace.num_out, self._num_draws
                pace.start()
                # The schedule first: it may be the user's own and raise, and then no batch must be lost.
                lr = chunk.rates[slot] = self._lr_at(progress)
                batch = plan.draw()
                pace.num_out += 1
            self._num_draws += 1
            chunk, slot, indices = batch
            weights = None if chunk.weights is None else chunk.weights_of(slot)
            return new_tuple(Ticket, (step, epoch, indices, lr, weights, self._num_draws - 1, batch))
        except BaseException:
            if marks.begun is not None and marks.begun is not begun:
                self._cut = marks.begun
            mend(self)
            raise

    def begin(self, ticket: Ticket, *, held_back: int = 0, is_late: bool = False) -> Ticket:
        """Start to train on a batch that was drawn ahead; what is due between two steps is done first.

        Args:
            ticket: The batch, as `draw_ahead` gave it; those drawn before it were trained on or given up.
            held_back: How many of those have a loss that is known but not reported yet. What is due between two
                steps waits until there are none: only then do model and scheduler fit together.
            is_late: Whether its training has begun already, for adapters that call `between_steps` at a better time.

        Returns:
            The ticket as if it were drawn now: with the rate of now, and able to prove a backup taken before.
        """
        if not (held_back or is_late):
            self.between_steps()
        # The search gave its batches rates of their own.
        lr = ticket.lr if ticket.epoch < 0 else self._lr_after(held_back)
        self._num_draws += 1
        # Not _replace(), which takes thrice the time.
        _, epoch, indices, _, weights, _, batch = ticket
        return Ticket(self.pace.step + held_back, epoch, indices, lr, weights, self._num_draws - 1, batch)

    def hand_back(self, ticket: Ticket) -> None:
        """Take back a batch that was not trained on, after an interruption for instance: it is the next one drawn.

        Args:
            ticket: The batch; nothing happens if it is not out.
        """
        if self._cut is not None:
            finish(self)
        if ticket.batch.is_out and ticket.epoch >= 0:
            with self._lock, Transaction(self):
                self.plan.hand_back(ticket.batch)
                self.pace.num_out -= 1

    def between_steps(self, *, held_back: int = 0, closing: bool = False) -> None:
        """Do what must wait until the user's own step is complete: only then do model and scheduler fit together.

        Args:
            held_back: How many batches were trained on whose losses are not reported yet. While there are any, only
                the samples are surveyed for viewers, if it is time.
            closing: Whether this is the last time.
        """
        if self._cut is not None:
            finish(self)
        if held_back:
            if self.announcer.wants_surveys:
                self.emitter.between_steps(self.pace.epoch, epoch_ended=False)
            return
        if self.persistence.is_restoring:
            raise RuntimeError(f"load_callback must not draw batches, got a draw at step {self.pace.step}.")
        if not self._has_started:
            draws.start(self)
        if self.requests.is_pending:
            self.requests.answer()
        epoch_ended = self._epoch_ended
        if self.announcer.wants_surveys:
            self.emitter.between_steps(self.pace.epoch, epoch_ended=epoch_ended, closing=closing)
        persistence, pace = self.persistence, self.pace
        step = pace.step
        # Nearly always nothing is due, and a step must not pay for finding out.
        limit, is_new = persistence.quiet_seconds, epoch_ended or closing
        if step < persistence.quiet_steps and not is_new and (limit == math.inf or pace.seconds < limit):
            return
        self._do_what_is_due(step, epoch_ended=epoch_ended, closing=closing)

    def _do_what_is_due(self, step: int, *, epoch_ended: bool, closing: bool) -> None:
        persistence, pace = self.persistence, self.pace
        seconds = pace.seconds
        try:
            damage = persistence.between_steps(
                step,
                self.plan.samples_in(step),
                seconds,
                self._num_draws,
                epoch_ended=epoch_ended,
                run_ended=closing or pace.budget.progress(step, seconds) >= 1,
                budget=pace.budget,
                get_state=lambda: run_state.settled_state_of(self),
                get_moment=lambda: moment_of(self.sentry, self.table),
            )
            if damage:
                refusal.answer_damage(self, damage)
        except Exception:
            self._epoch_ended = False
            raise
        # Last, as everything here: what was interrupted is due again.
        if epoch_ended:
            self._epoch_ended = False

    def report(
        self, ticket: Ticket, loss: Any, *, part_size: int | None = None, grad_norm: Any = None, skipped: bool = False
    ) -> Outcome:
        """Judge, learn, move on, tell: what one trained batch sets in motion.

        Call it before ``backward()``, and skip ``backward()`` and ``step()`` where the outcome is false; or after
        ``step()``, where a refused loss is answered by restoring the model.

        Args:
            ticket: The batch, as `draw` gave it. In any order, each once.
            loss: The batch mean: a float, or a 0-dim array or tensor of numpy, torch, TensorFlow or JAX. Or
                float[B], the loss of each sample. Or with ``part_size``, float[P], the means of consecutive parts.
                The first report fixes which of the three. Tensors are detached.
            part_size: Samples in a part, >= 1; the last part of a batch may have fewer.
            grad_norm: Norm of the gradient of the batch, if you know it: the guard judges it by the same rule as the
                loss. A number, or a 0-dim array or tensor.
            skipped: Whether the optimizer's step was skipped because gradients overflowed, as a loss scaler does. The
                step counts and is no alarm; a finite loss is learned from. 20 in a row are still none.

        Returns:
            The verdict, the learning rate to use now, and the step the model was put back to.

        Raises:
            RuntimeError: this ticket was reported before, or is not of this run. A report that was interrupted, with
                KeyboardInterrupt for instance, may be repeated: it is done then, or was done and returns its outcome.
            TypeError: the loss is not a real number or a vector of them, the norm is no number, or the ticket is none.
            ValueError: the loss is of another length or kind than it must be. Nothing was changed.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        if self._cut is not None:
            finish(self)
        outcome = None
        try:
            with self._lock:
                sentry, trend, pace, controller = self.sentry, self.table.batch_trend, self.pace, self.controller
                tally, slots, healthy, trouble = self._tally, self._backup.slots, None, None
                if slots is not NO_SLOTS:
                    _, newest, trial, _, _, _ = slots
                    healthy = trial and trial.healthy, newest and newest.healthy
                if controller._state.tries or controller.quarantine.is_watching or controller.replay.is_on:
                    trouble = Snapshot(*trouble_of(self))
                # What a good loss changes, should this be cut short: the fields of ReportMark.
                mark = (
                    ticket, sentry._losses, sentry._norms, sentry._before_refusal, sentry.num_refused,
                    sentry.num_skipped, trend.value, trend.num_reports, trend.early_mark if trend.is_early else None,
                    pace.step, pace.num_out, controller._state, controller._num_equal, tally, tally.num_good,
                    tally.total, tally.samples, self._epoch_ended, slots, healthy, trouble,
                )  # fmt: skip
                try:
                    outcome = self._report(ticket, loss, part_size, grad_norm, skipped)
                except BaseException as error:
                    # Nothing is called before it is noted: that could be interrupted too.
                    self._cut = (
                        mark, error,
                        {"loss": loss, "part_size": part_size, "grad_norm": grad_norm, "skipped": skipped},
                    )  # fmt: skip
                    mend(self)
                    raise
            return outcome
        except BaseException as error:
            if outcome is None:
                outcome = repeated(self, ticket, error)
                if outcome is not None:
                    return outcome
            else:
                self._marks.finished = ticket, outcome
            raise

    def _report(self, ticket: Ticket, loss: Any, part_size: int | None, grad_norm: Any, skipped: bool) -> Outcome:
        if self.announcer.is_heard:
            self.emitter.begin()
        if not isinstance(ticket, Ticket):
            raise TypeError(f"ticket must be what draw() returned, got {ticket!r}.")
        if self.persistence.is_restoring:
            raise RuntimeError(f"load_callback must not report losses, got one of step {ticket.step}.")
        if not ticket.batch.is_out or ticket.batch.chunk.table is not self.table:
            raise RuntimeError(f"ticket of step {ticket.step} was reported or given up before, or is not of this run.")
        reading = read_loss(loss, len(ticket.indices), part_size)
        if len(ticket.indices) == 1 and self.table.part_size == EXACT:
            # The loss of a single sample, squeezed to no dimension.
            reading = Reading(reading.mean, np.atleast_1d(reading.means), EXACT, reading.lowest)
        if grad_norm is not None:
            grad_norm = read_number("grad_norm", grad_norm)
        kind = EXACT if self.table.batch_size == 1 else reading.part_size
        check_kind(kind, self.table.part_size)
        if ticket.epoch < 0:
            return self._report_search(ticket, reading)
        if self.controller.replay.is_on and math.isfinite(reading.mean):
            restored = refusal.compare_replay(self, ticket, reading)
            if restored is not None:
                return Outcome(Verdict.SKIPPED, self.lr, restored.step)
        batch, table, mean = ticket.batch, self.table, reading.mean
        expected, typical = table.with_trend(batch.expected), table.with_trend(batch.typical)
        predicted, is_usual = expected, True
        if expected < typical and table.part_size != EXACT:
            # Means say too little of a batch that was put together by them to lift its loss.
            predicted, is_usual = typical, batch.chunk.sweep >= 0
        verdict = self.sentry.judge(
            mean, predicted, typical, self._last_lr, grad_norm=grad_norm, skipped=skipped, is_usual=is_usual
        )
        if verdict is Verdict.GOOD:
            self.learn(ticket, reading, kind, expected)
            if self.announcer.is_heard:
                self.emitter.end()
            return new_tuple(Outcome, (verdict, self.lr, None))
        verdict, restored = refusal.answer(self, ticket, reading, kind, expected, verdict)
        return self._outcome(verdict, restored)

    def _outcome(self, verdict: Verdict, restored: RestoreResult | None) -> Outcome:
        outcome = Outcome(verdict, self.lr, None if restored is None else restored.step)
        if self._marks.answering is not None:
            self._marks.answering.outcome = outcome
        return outcome

    def learn(self, ticket: Ticket, reading: Reading, kind: int, expected: float) -> None:
        """Learn from a loss that is good, and move on."""
        table = self.table
        table.part_size = kind
        believed = table.batch_trend.believed(reading) if table.batch_trend.is_early else reading
        trend = table.observe(believed.mean, believed.lowest, reading.mean)
        pace, controller = self.pace, self.controller
        pace.num_out -= 1
        pace.step += 1
        if controller.replay.is_on:
            controller.replay.note(ticket.draw, ticket.indices, reading.mean)
        self._backup.confirm(ticket.draw, ticket.lr)
        self._tally.add(reading.mean, len(ticket.indices))
        controller.accepted(reading.mean, ticket.indices)
        if not pace.step % self.plan.steps_per_pass:
            self._end_epoch(ticket)
        # This makes the report complete, and whoever is told may read the table: all else comes before.
        self.plan.report(ticket.batch, believed.mean if table.batch_size == 1 else believed.means, trend)
        if self.announcer.is_heard:
            self.emitter.step_done(
                ticket,
                progress=self.pace.progress,
                loss=reading.mean,
                expected_loss=expected,
                suspicion=self.sentry.suspicion,
            )
        if self._marks.ended is not None:
            self._tell_epoch()

    def close_unlearned(self, ticket: Ticket) -> None:
        """Count a step of which nothing is learned."""
        # In this order: a batch that is settled is counted.
        self.pace.num_out -= 1
        self.pace.step += 1
        self.plan.settle(ticket.batch)
        self.end_epoch_if_complete(ticket)

    def end_epoch_if_complete(self, ticket: Ticket) -> None:
        """Tell that an epoch has ended, if it has with the step of this batch."""
        if not self.pace.step % self.plan.steps_per_pass:
            self._end_epoch(ticket)
        self._tell_epoch()

    def _end_epoch(self, ticket: Ticket) -> None:
        self._marks.ended = ticket, self._tally
        self._tally, self._epoch_ended = Tally(), True

    def _tell_epoch(self) -> None:
        if self._marks.ended is None:
            return
        ticket, tally = self._marks.ended
        self.emitter.epoch_done(
            epoch=self.pace.epoch - 1,
            progress=self.pace.progress,
            lr=ticket.lr,
            tally=tally,
            seconds=self.pace.seconds,
        )
        self._marks.ended = None

    def _report_search(self, ticket: Ticket, reading: Reading) -> Outcome:
        self._marks.answering = AnswerMark(self, ticket)
        guard = self.sentry.guard
        _, verdict = guard.judge(guard.begin(), reading.mean)
        restored = self.search.take(ticket.batch, reading.mean, ticket.lr, refused=verdict is not Verdict.GOOD)
        self.use_found_lr()
        return self._outcome(verdict, restored)

    def discard(self, ticket: Ticket) -> None:
        """Count a batch whose training was undone before its loss was judged: a step, of which nothing is learned.

        For adapters that report late: when a loss is refused and the model put back, the batches trained on since are
        of the weights that were given up.

        Args:
            ticket: The batch; nothing happens if it is not out.
        """
        if self._cut is not None:
            finish(self)
        if not ticket.batch.is_out:
            return
        with self._lock, Transaction(self):
            if ticket.epoch < 0:
                self.search.skip(ticket.batch)
                self.use_found_lr()
            else:
                self.close_unlearned(ticket)

    def give_up(self, ticket: Ticket, *, on_purpose: bool = False) -> None:
        """Take back a batch that will not be reported: it is drawn once more at the end of its epoch.

        The second time it counts as a refused step.

        Args:
            ticket: The batch; nothing happens if it is not out.
            on_purpose: Whether the user said so, and need not be told.
        """
        if self._cut is not None:
            finish(self)
        if not ticket.batch.is_out:
            return
        with self._lock, Transaction(self):
            refusal.give_up(self, ticket, on_purpose)

    @property
    def lr(self) -> float:
        """The learning rate to use now."""
        pace = self.pace
        return self.search.lr or self._lr_at(pace.progress_at(pace.step))

    def lr_after(self, held_back: int) -> float | None:
        """The learning rate to use once so many more batches are reported; None while one is searched for."""
        return None if self.search.is_on else self._lr_after(held_back)

    def _lr_after(self, held_back: int) -> float:
        return self._lr_at(self.pace.progress_at(self.pace.step + held_back))

    def _lr_at(self, progress: float) -> float:
        return self.controller.lr(self._last_lr if progress == self._last_progress else self.scheduled_lr(progress))

    def scheduled_lr(self, progress: float) -> float:
        """The learning rate of the schedule."""
        # Asked after a report and at the next draw; with a budget in steps the second answer is the first.
        if progress != self._last_progress:
            self._last_lr, self._last_progress = check_rate(self.schedule(progress), progress), progress
        return self._last_lr

    def use_found_lr(self) -> None:
        """Follow a schedule with the peak that was searched for, once it is found."""
        if self.search.found_lr is not None:
            self.schedule = self._make_schedule(self.search.found_lr)
            self._last_progress = math.nan
            if self._has_started:
                self.emitter.lr_planned(self.schedule)

    @property
    def global_step(self) -> int:
        """Batches reported so far, refused ones included."""
        if self._cut is not None:
            mend(self)
        return self.pace.step

    def undo_epoch(self, tally: Tally, epoch_ended: bool) -> None:
        """Count in this tally again, and tell of no end of the epoch that did not come."""
        self._tally, self._epoch_ended, self._marks.ended = tally, epoch_ended, None

    def undo_draws(self, num_draws: int) -> None:
        """Number the next draw as before one that was cut short."""
        self._num_draws = num_draws

    def cut_short(self, mark: Any) -> None:
        """Note a call that was cut short, to be mended; None once it is."""
        self._cut = mark

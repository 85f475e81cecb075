"""The engine: the order in which the parts of a run act on a batch and on its loss.

policies/, sampling/            DRAW: which samples come next
... the user trains ...
guard/                          JUDGE: can the loss be learned from (if not: refusal.py)
table/                          LEARN: update the estimates of the batch's samples
pace.py, schedules/             ADVANCE: progress and learning rate
events/                         TELL: listeners hear of it

One flat class, because a step must not pay for calls between its parts. Everything outside an ordinary step is in
modules beside it: refusal.py, run_state.py, draws.py and membership.py. An exception may interrupt any call between any
two bytecodes: marks.py records what the call was about to change, interruption.py undoes it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..guard.verdict import Verdict
from ..recovery.incident_state import CALM
from ..recovery.moment import moment_of
from ..recovery.ram_backup import NO_SLOTS
from ..recovery.restore import RestoreResult
from ..sampling.chunk import OPEN, OUT_AGAIN
from ..sampling.ticket import Outcome, Ticket, new_tuple
from ..schedules.schedule import check_rate
from ..table.losses import EXACT, Reading, check_kind, read_loss, read_number
from . import draws, ending, membership, refusal, run_state
from .control import Requests
from .emitter import EventEmitter
from .interruption import Transaction, finish, mend, repeated
from .marks import AnswerMark, Marks, PlanMark, Snapshot, trouble_of
from .tally import Tally

if TYPE_CHECKING:
    from .builder import Components

T = TypeVar("T")


class Engine:
    """Draws batches and takes their losses; owns only the order of the parts and the number of draws.

    Args:
        parts: What it is put together from.

    Attributes:
        member: The adapter that holds batches, as given to `join`.
        requests: Requests to pause, stop or save.
    """

    def __init__(self, parts: Components) -> None:
        self.plan = parts.plan
        self.table = parts.plan.table
        self.pace = parts.pace
        self.schedule = parts.make_schedule(None)
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
            cool_down=functools.partial(ending.begin, self),
            handle_signals=parts.handle_signals,
            cool_down_on=parts.cool_down_on,
            waited=self.emitter.leave_out,
        )
        self._settings = parts.settings
        self._make_schedule = parts.make_schedule
        self._last_progress, self._last_lr = math.nan, math.nan
        self._tally = Tally()
        self._num_draws = 0
        # The model takes one step at a time, but several threads may draw and report, or look at the table.
        self._lock = self.table.lock
        self._epoch_ended = False
        # What every call records in case it is interrupted, and the call that was: see `mend`. With more than 30
        # attributes, CPython 3.11 takes twice as long to read any attribute of this object.
        self._marks = Marks()
        self._cut: Any = None
        self._has_started = False
        self.table.learner.hold_back(self)

    def join(self, member: membership.Member) -> None:
        """Let an adapter hold back batches and losses; it replaces the one that joined before."""
        self.member = member

    def settle(self) -> None:
        """Have the member report the losses that it holds back."""
        self.member.settle()

    def hand_over(self) -> None:
        """Have the table learn everything reported so far; any thread may call it."""
        with self._lock:
            if self._cut is not None:
                finish(self)
            self.plan.hand_over()

    def before_offsets(self, trend: float) -> Callable[[bool], None]:
        """See `ReportHolder`."""
        return self.plan.before_offsets(trend)

    def draw_if_any(self) -> Ticket | None:
        """Draw the next batch; None if the budget is spent, all remaining steps are out, or the run was stopped."""
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
                    # Record the interrupted call before calling anything, since that could be interrupted too.
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
        """Draw the next batch while another one is being trained on; call `begin` when its own training begins.

        Returns:
            The ticket; None if the budget is spent, all remaining steps are out, or the run was stopped.
        """
        if self._cut is not None:
            finish(self)
        pace, plan, marks, controller = self.pace, self.plan, self._marks, self.controller
        step = pace.step + pace.num_out
        progress = pace.progress_at(step)
        if progress >= 1 or pace.is_stopped:
            if not pace.num_out:
                self.requests.leave()
                # Time that is kept for a last break may end the run before its budget is used up.
                self.persistence.wake()
            return None
        begun, chunk, epoch = marks.begun, plan.chunk, step // plan.steps_per_pass
        slot, began, is_search = chunk.drawn, self._tally.began, self.search.is_on
        try:
            if (
                slot == plan.limit
                or plan.returned
                or is_search
                or began != began
                or controller._state.steady_left > 0
                or controller.replay.is_due
                or epoch != chunk.pass_number
            ):
                marks.begun = PlanMark(self)
                batch, lr, epoch = draws.for_search(self) if is_search else draws.elsewhere(self, epoch, progress)
            else:
                # Nearly always this is just the next batch of the chunk, which changes little.
                marks.begun = chunk, slot, pace.num_out, self._num_draws
                pace.start()
                # The schedule first: a user's own may raise, and then no batch must be lost.
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
        lr = ticket.lr if ticket.epoch < 0 else self._lr_after(held_back)
        self._num_draws += 1
        # _replace() takes three times as long.
        _, epoch, indices, _, weights, _, batch = ticket
        return Ticket(self.pace.step + held_back, epoch, indices, lr, weights, self._num_draws - 1, batch)

    def hand_back(self, ticket: Ticket) -> None:
        """Return a batch that was not trained on, for instance after an interruption: it will be the next one drawn.

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
        """Take backups and write checkpoints that are due; between steps, model and scheduler are at the same step.

        Args:
            held_back: Number of batches that were trained on and are not reported yet. While there are any, nothing
                but the survey of the samples for viewers is done.
            closing: Whether this is the last call.
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
        # Nearly always nothing is due, and a step must not pay to find that out.
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
                run_ended=closing or pace.is_finished,
                budget=pace.budget,
                get_state=lambda: run_state.settled_state_of(self),
                get_moment=lambda: moment_of(self.sentry, self.table),
            )
            if damage:
                refusal.answer_damage(self, damage)
        except Exception:
            self._epoch_ended = False
            raise
        # Last: if any of this is interrupted, it is due again.
        if epoch_ended:
            self._epoch_ended = False

    def report(
        self,
        ticket: Ticket,
        loss: Any,
        *,
        part_size: int | None = None,
        grad_norm: Any = None,
        skipped: bool = False,
        predictions: Any = None,
    ) -> Outcome:
        """Report the loss of a batch: judge it, learn from it, advance the run and tell listeners.

        Call it before ``backward()``, and skip ``backward()`` and ``step()`` if the outcome is false; or call it after
        ``step()``: a refused loss then restores the model.

        Args:
            ticket: The batch, as `draw` returned it. Batches may be reported in any order, each once.
            loss: The batch mean: a float, or a 0-dim array or tensor of numpy, torch, TensorFlow or JAX. Or
                float[B], the loss of each sample. Or with ``part_size``, float[P], the means of consecutive parts.
                The first report fixes which of the three. Tensors are detached.
            part_size: Samples in a part, >= 1; the last part of a batch may have fewer.
            grad_norm: Norm of the batch's gradient, if known: the guard judges it by the same rule as the loss. A
                number, or a 0-dim array or tensor.
            skipped: Whether the optimizer's step was skipped because gradients overflowed, as a loss scaler does. The
                step counts, raises no alarm however often it happens, and a finite loss is learned from.
            predictions: `Predictions` of the same samples, from which `SampleTable.suspects` judges their labels; with
                one loss per sample only. They are learned from if the loss is.

        Returns:
            The verdict, the learning rate to use now, and the step that the model was restored to.

        Raises:
            RuntimeError: this ticket was reported before, or belongs to another run. A report that was interrupted,
                by KeyboardInterrupt for instance, may be repeated; if it was complete, its outcome is returned.
            TypeError: the loss is not a real number or a vector of them, the norm is not a number, or the ticket not
                a ticket.
            ValueError: the loss has another length or kind than it must have. Nothing was changed.
            TrainingDiverged: losses are still refused after everything was tried.
        """
        if self._cut is not None:
            finish(self)
        outcome = None
        try:
            with self._lock:
                sentry, pace, controller, trend = (
                    self.sentry,
                    self.pace,
                    self.controller,
                    self.table.storage.batch_trend,
                )
                tally, slots, healthy, trouble = self._tally, self._backup.slots, None, None
                if slots is not NO_SLOTS:
                    _, newest, trial, _, _, _ = slots
                    healthy = trial and trial.healthy, newest and newest.healthy
                if controller._state.tries or controller.quarantine.is_watching or controller.replay.is_on:
                    trouble = Snapshot(*trouble_of(self))
                # What a good loss changes, in case this is interrupted: the fields of ReportMark.
                mark = (
                    ticket, sentry._losses, sentry._norms, sentry._before_refusal, sentry.num_refused,
                    sentry.num_skipped, trend.value, trend.num_reports, trend.early_mark if trend.is_early else None,
                    pace.step, pace.num_out, controller._state, controller._num_equal, tally, tally.num_good,
                    tally.total, tally.samples, self._epoch_ended, slots, healthy, trouble,
                )  # fmt: skip
                try:
                    outcome = self._report(ticket, loss, part_size, grad_norm, skipped, predictions)
                except BaseException as error:
                    # Recorded before anything is called, since that could be interrupted too.
                    self._cut = (
                        mark, error,
                        {"loss": loss, "part_size": part_size, "grad_norm": grad_norm, "skipped": skipped,
                         "predictions": predictions},
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

    def _report(
        self, ticket: Ticket, loss: Any, part_size: int | None, grad_norm: Any, skipped: bool, predictions: Any
    ) -> Outcome:
        if self.announcer.is_heard:
            self.emitter.begin()
        if not isinstance(ticket, Ticket):
            raise TypeError(f"ticket must be what draw() returned, got {ticket!r}.")
        if self.persistence.is_restoring:
            raise RuntimeError(f"load_callback must not report losses, got one of step {ticket.step}.")
        _, epoch, indices, _, _, _, batch = ticket
        chunk, slot, _ = batch
        state, table = chunk.states[slot], self.table
        storage, learner = table.storage, table.learner
        # As `Batch.is_out` says, without its call: this is asked at every step.
        if not (slot < chunk.drawn if state == OPEN else state == OUT_AGAIN) or chunk.table is not table:
            raise RuntimeError(
                f"ticket of step {ticket.step} was reported or given up before, or is not of this run; report each "
                "batch once."
            )
        reading = read_loss(loss, len(indices), part_size)
        if len(indices) == 1 and storage.part_size == EXACT:
            # The loss of a single sample, without its dimension.
            reading = Reading(reading.mean, np.atleast_1d(reading.means), EXACT, reading.lowest)
        if grad_norm is not None:
            grad_norm = read_number("grad_norm", grad_norm)
        kind = EXACT if table.batch_size == 1 else reading.part_size
        if kind != storage.part_size:
            check_kind(kind, storage.part_size)
        if predictions is not None:
            reading = storage.evidence.with_predictions(reading, predictions, kind)
        if epoch < 0:
            return self._report_search(ticket, reading)
        if self.controller.replay.is_on and math.isfinite(reading.mean):
            restored = refusal.compare_replay(self, ticket, reading)
            if restored is not None:
                return Outcome(Verdict.SKIPPED, self.lr, restored.step)
        mean = reading.mean
        expected, typical = learner.with_trend(chunk.expected[slot]), learner.with_trend(chunk.typical)
        predicted, is_usual = expected, True
        if expected < typical and storage.part_size != EXACT:
            # Estimates from batch means are too rough to expect less of a batch that was chosen by them.
            predicted, is_usual = typical, chunk.sweep >= 0
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
        if restored is not None:
            self.pace.begin_break()
        outcome = Outcome(verdict, self.lr, None if restored is None else restored.step)
        if self._marks.answering is not None:
            self._marks.answering.outcome = outcome
        return outcome

    def learn(self, ticket: Ticket, reading: Reading, kind: int, expected: float) -> None:
        """Learn from a good loss, and advance the run."""
        table = self.table
        storage = table.storage
        storage.part_size = kind
        if reading.predictions is not None:
            storage.evidence.begin(reading.predictions.num_classes)
        believed = storage.batch_trend.believed(reading) if storage.batch_trend.is_early else reading
        trend = table.learner.observe(believed.mean, believed.lowest, reading.mean)
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
        # This completes the report, and listeners may read the table: everything else comes first.
        self.plan.report(
            ticket.batch, believed.mean if table.batch_size == 1 else believed.means, trend, reading.predictions
        )
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
        """Count a step that nothing is learned from."""
        # In this order, because a settled batch is a counted one.
        self.pace.num_out -= 1
        self.pace.step += 1
        self.plan.settle(ticket.batch)
        self.end_epoch_if_complete(ticket)

    def end_epoch_if_complete(self, ticket: Ticket) -> None:
        """Tell listeners that an epoch has ended, if it ended with the step of this batch."""
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
        """Count a batch whose training was undone before its loss was judged: a step that nothing is learned from.

        For adapters that report late: when a refused loss restores the model, the batches trained on in the meantime
        belong to weights that were discarded.

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
        """Give up a batch that will not be reported: it is drawn once more at the end of its epoch.

        If it is given up a second time, it counts as a refused step.

        Args:
            ticket: The batch; nothing happens if it is not out.
            on_purpose: Whether the user asked for it, so that no notice is needed.
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
        """The learning rate to use once this many more batches are reported; None during the learning-rate search."""
        return None if self.search.is_on else self._lr_after(held_back)

    def _lr_after(self, held_back: int) -> float:
        return self._lr_at(self.pace.progress_at(self.pace.step + held_back))

    def _lr_at(self, progress: float) -> float:
        lr = self._last_lr if progress == self._last_progress else self.scheduled_lr(progress)
        return lr if self.controller._state is CALM else self.controller.lr(lr)

    def scheduled_lr(self, progress: float) -> float:
        """The learning rate of the schedule."""
        # Needed after a report and at the next draw; with a budget in steps both are the same.
        if progress != self._last_progress:
            lr = self.schedule(progress)
            # What `check_rate` checks first, without its call.
            if type(lr) is not float or not 0 <= lr < math.inf:
                lr = check_rate(lr, progress)
            self._last_lr, self._last_progress = lr, progress
        return self._last_lr

    def use_found_lr(self) -> None:
        """Follow the schedule whose peak the search has found, once it has."""
        if self.search.found_lr is not None:
            self.follow_schedule()

    def follow_schedule(self) -> None:
        """Follow the schedule of the peak rate, found or given, or the cool-down once there is one."""
        before = self.schedule
        self.schedule = self.pace.budget.cool_down or self._make_schedule(self.search.found_lr)
        self._last_progress = math.nan
        if self._has_started and self.schedule != before:
            self.emitter.lr_planned(self.schedule)

    @property
    def global_step(self) -> int:
        """Batches reported so far, refused ones included."""
        if self._cut is not None:
            mend(self)
        return self.pace.step

    def undo_epoch(self, tally: Tally, epoch_ended: bool) -> None:
        """Restore the tally, and forget the end of an epoch that was undone."""
        self._tally, self._epoch_ended, self._marks.ended = tally, epoch_ended, None

    def undo_draws(self, num_draws: int) -> None:
        """Number the next draw as if the interrupted one had not happened."""
        self._num_draws = num_draws

    def cut_short(self, mark: Any) -> None:
        """Record an interrupted call for `mend`; None once it is mended."""
        self._cut = mark

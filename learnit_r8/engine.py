"""The engine: in which order the parts act on a batch and on its loss.

plan.py, policies/          DRAW which samples come next
... the user trains ...
guard/                      JUDGE whether the loss is one to learn from (recovery.py, rescue.py: what if not)
running_losses.py, table.py LEARN running loss and use of every sample
pace.py, lr.py              MOVE ON: how far along, at what rate
events/                     TELL what happened
"""

from __future__ import annotations

import math
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import events
from .announcer import Announcer
from .chunk import Batch
from .guard import Guard, Sentry, Verdict
from .kinds import EXACT, check_kind
from .losses import Reading, read_loss, read_number
from .lr import Schedule, check_rate
from .moment import Moment, go_back, moment_of
from .pace import Pace
from .plan import Plan
from .policies import STEADY
from .recovery import Recovery
from .requests import Requests
from .rescue import Rescue
from .restoring import Restored
from .safekeeping import Safekeeping
from .search import Search
from .tally import Tally
from .telling import Telling
from .ticket import Outcome, Ticket


class Engine:
    """Draws batches and takes their losses; owns nothing but the order of the parts and the count of the draws.

    Args:
        plan: Which samples come next; holds the table.
        pace: How far along the run is.
        make_schedule: Returns the schedule for a peak learning rate.
        peak_lr: The peak to begin with.
        guard: Which losses count.
        recovery: What to do about the others.
        safekeeping: Backups and checkpoints.
        announcer: Who is told.
        search: Finds the peak learning rate before the run.
        name: Name of the run, "" if it has none.
        settings: The configuration as texts, for people.
        handle_signals: Whether signals that end the process wait for the end of the step and a checkpoint.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        pace: Pace,
        make_schedule: Callable[[float], Schedule],
        peak_lr: float,
        guard: Guard,
        recovery: Recovery,
        safekeeping: Safekeeping,
        announcer: Announcer,
        search: Search,
        name: str,
        settings: Mapping[str, str] = types.MappingProxyType({}),
        handle_signals: bool = False,
    ) -> None:
        self.plan = plan
        self.table = plan.table
        self.pace = pace
        self.schedule = make_schedule(peak_lr)
        self.sentry = Sentry(guard)
        self.safekeeping = safekeeping
        self.announcer = announcer
        self.telling = Telling(announcer, plan.table)
        self.rescue = Rescue(recovery, safekeeping, announcer, plan.table.name_of)
        backup = safekeeping.backup
        backup.is_calm = self._is_calm
        backup.trial_steps, backup.older_steps = recovery.trial_steps, recovery.older_steps
        self.search = search
        self._make_schedule = make_schedule
        self._last_progress, self._last_lr = math.nan, math.nan
        self._tally = Tally()
        self._num_draws = 0
        # The model has one step at a time; threads that draw and report take turns all the same.
        self._lock = threading.RLock()
        self._epoch_ended = False
        self._has_started = False
        self.name = name
        self._settings = settings
        # An adapter that holds losses back reports them here: before an epoch or the run ends, and before a checkpoint.
        self.settle: Callable[[], object] = _nothing
        self.requests = Requests(pace, announcer, self._save_as_asked, handle_signals=handle_signals)

    @property
    def is_stopped(self) -> bool:
        """Whether the run was asked to end before its budget is used up; see `Requests.stop`."""
        return self.pace.is_stopped

    @property
    def lr(self) -> float:
        """The learning rate to use now."""
        return self.search.lr or self._lr_at(self.pace.progress)

    def _lr_at(self, progress: float) -> float:
        return self.rescue.lr(self._scheduled_lr(progress))

    def _scheduled_lr(self, progress: float) -> float:
        # Asked after a report and at the next draw; with a budget in steps the second answer is the first.
        if progress != self._last_progress:
            self._last_lr, self._last_progress = check_rate(self.schedule(progress), progress), progress
        return self._last_lr

    def draw(self) -> Ticket:
        """Draw the next batch. Several may be out at a time.

        Raises:
            RuntimeError: the budget is spent, every step that is left is out already, or the run was stopped.
        """
        ticket = self.draw_if_any()
        if ticket is None and self.is_stopped:
            raise RuntimeError(
                f"draw() was called at step {self.pace.step} after the run was stopped; ask is_stopped, or use "
                "draw_if_any()."
            )
        if ticket is None:
            raise RuntimeError(
                f"draw() was called with {self.pace.next_step} steps reported or out after {self.pace.seconds:.1f} s, "
                f"and the budget is {self.pace.budget}."
            )
        return ticket

    def draw_if_any(self) -> Ticket | None:
        """Draw the next batch; None if the budget is spent, every step left is out already, or the run was stopped."""
        with self._lock:
            if not self.announcer.is_heard:
                self.between_steps()
                return self.draw_ahead()
            self.telling.begin()
            self.between_steps()
            ticket = self.draw_ahead()
            self.telling.end()
            return ticket

    def draw_ahead(self) -> Ticket | None:
        """Draw like `draw_if_any` while another batch is being trained on; `begin` does what that would have done.

        Returns:
            The ticket; None if the budget is spent, every step left is out already, or the run was stopped.
        """
        pace = self.pace
        step = pace.next_step
        progress = pace.progress_at(step)
        if progress >= 1 or pace.is_stopped:
            if not pace.num_out:
                self.requests.leave()
            return None
        if self.search.is_on:
            (batch, lr), epoch = self.search.draw(), -1
        else:
            pace.start()
            if not self._tally.has_begun:
                self._tally.began = pace.seconds
            epoch = step // self.plan.steps_per_pass
            # Batches that are drawn again after a resume may be of the pass before.
            if epoch > self.plan.pass_number:
                self._start_pass(epoch, progress)
            # The schedule first: it may be the user's own and raise, and then no batch must be lost.
            lr, returned = self._lr_at(progress), self.plan.has_returned
            batch = self._next_batch()
            rates = batch.chunk.rates
            if returned:
                lr = rates[batch.slot]
            rates[batch.slot] = lr
            pace.num_out += 1
        self._num_draws += 1
        return Ticket(step, epoch, batch.indices, lr, batch.chunk.weights_of(batch.slot), self._num_draws - 1, batch)

    def _start_pass(self, number: int, progress: float) -> None:
        plan = self.plan
        plan.start_pass(number, progress)
        if number and plan.policy.needs_exact and not plan.outlook.is_exact:
            self.announcer.warn_once(
                "not exact",
                f"policy {plan.policy.name!r} needs the loss of each sample, or of parts of at most 8, and was given "
                f"{self.table.source}: every sample is taken once an epoch. Report a vector of losses.",
            )

    def _next_batch(self) -> Batch:
        if self.rescue.is_steadying and not self.plan.has_returned:
            self.rescue.count_steady()
            steady = self.plan.draw_outside(STEADY)
            if steady is not None:
                return steady
        return self.plan.draw()

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
        lr = ticket.lr if ticket.epoch < 0 else self.lr_after(held_back)
        self._num_draws += 1
        return ticket._replace(step=self.pace.step + held_back, lr=lr, draw=self._num_draws - 1)

    def lr_after(self, held_back: int) -> float:
        """The learning rate to use once so many more batches are reported."""
        return self._lr_at(self.pace.progress_at(self.pace.step + held_back))

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
            RuntimeError: this ticket was reported before, or is not of this run.
            TypeError: the loss is not a real number or a vector of them, the norm is no number, or the ticket is none.
            ValueError: the loss is of another length or kind than it must be. Nothing was changed.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        with self._lock:
            return self._report(ticket, loss, part_size, grad_norm, skipped)

    def _report(self, ticket: Ticket, loss: Any, part_size: int | None, grad_norm: Any, skipped: bool) -> Outcome:
        if self.announcer.is_heard:
            self.telling.begin()
        if not isinstance(ticket, Ticket):
            raise TypeError(f"ticket must be what draw() returned, got {ticket!r}.")
        if self.safekeeping.is_restoring:
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
        batch, table, mean = ticket.batch, self.table, reading.mean
        expected = table.with_trend(batch.expected)
        verdict = self.sentry.judge(
            mean, expected, table.with_trend(batch.typical), self._last_lr, grad_norm=grad_norm, skipped=skipped
        )
        if verdict is Verdict.GOOD:
            self._learn(ticket, reading, kind, expected)
            if self.announcer.is_heard:
                self.telling.end()
            return Outcome(verdict, self.lr, None)
        restored = self._answer(ticket, reading, kind, expected, verdict)
        return Outcome(verdict, self.lr, None if restored is None else restored.step)

    def _answer(
        self, ticket: Ticket, reading: Reading, kind: int, expected: float, verdict: Verdict
    ) -> Restored | None:
        """Do what a verdict other than GOOD asks for; where the model was put back to, if it was."""
        if verdict is Verdict.DRIFT:
            self._learn(ticket, reading, kind, expected)
            self.rescue.drifted(reading.mean, self.lr)
            return None
        if verdict is Verdict.SKIPPED:
            self._close_unlearned(ticket)
            return None
        return self._refuse(ticket, reading, verdict)

    def _close_unlearned(self, ticket: Ticket) -> None:
        self.plan.settle(ticket.batch)
        self._count_step()
        self._end_epoch_if_complete(ticket)

    def _count_step(self) -> None:
        self.pace.num_out -= 1
        self.pace.step += 1

    def _learn(self, ticket: Ticket, reading: Reading, kind: int, expected: float) -> None:
        self.table.part_size = kind
        trend = self.table.observe(reading.mean, reading.lowest)
        self.plan.report(ticket.batch, reading.mean if self.table.batch_size == 1 else reading.means, trend)
        self._count_step()
        self.safekeeping.backup.confirm(ticket.draw)
        self.rescue.accepted(reading.mean)
        self._tally.add(reading.mean, len(ticket.indices))
        if self.announcer.is_heard:
            self.telling.step_done(
                ticket,
                progress=self.pace.progress,
                loss=reading.mean,
                expected_loss=expected,
                suspicion=self.sentry.suspicion,
            )
        self._end_epoch_if_complete(ticket)

    def _refuse(self, ticket: Ticket, reading: Reading, verdict: Verdict) -> Restored | None:
        self._close_unlearned(ticket)
        restored = self.rescue.refused(
            ticket,
            reading,
            verdict,
            scheduled_lr=self._scheduled_lr(self.pace.progress),
            most_steady=self._most_steady(ticket.epoch),
            draws=self._num_draws,
            step=self.pace.step,
            is_calm=not self._suspects(),
        )
        return self._gone_back(restored)

    def _most_steady(self, epoch: int) -> int:
        # The cataloguing pass is not cut short, and one incident costs at most a quarter of an epoch.
        return self.plan.steps_per_pass // 4 if epoch > 0 else 0

    def _gone_back(self, restored: Restored | None) -> Restored | None:
        """Let guard and plan follow a model that was put back."""
        if restored is not None and restored.moment is not None:
            go_back(restored.moment, self.sentry, self.table, forget=restored.forget)
        elif restored is not None and restored.guard is not None:
            num_refused = self.sentry.num_refused
            self.sentry.load_state_dict(self.sentry.adapted(restored.guard))
            self.sentry.num_refused = num_refused
        return restored

    def _is_calm(self) -> bool:
        return self.rescue.is_calm and not self._suspects()

    def _suspects(self) -> bool:
        return self.sentry.suspicion >= MOST_SUSPICION

    def _moment(self) -> Moment:
        return moment_of(self.sentry, self.table)

    def _end_epoch_if_complete(self, ticket: Ticket) -> None:
        if self.pace.step % self.plan.steps_per_pass:
            return
        tally, self._tally = self._tally, Tally()
        self._epoch_ended = True
        self.telling.epoch_done(
            epoch=self.pace.epoch - 1,
            progress=self.pace.progress,
            lr=ticket.lr,
            tally=tally,
            seconds=self.pace.seconds,
        )

    def _report_search(self, ticket: Ticket, reading: Reading) -> Outcome:
        guard = self.sentry.guard
        _, verdict = guard.judge(guard.begin(), reading.mean)
        restored = self.search.take(ticket.batch, reading.mean, ticket.lr, refused=verdict is not Verdict.GOOD)
        self._use_found_lr()
        return Outcome(verdict, self.lr, None if restored is None else restored.step)

    def _use_found_lr(self) -> None:
        if self.search.found_lr is not None:
            self.schedule = self._make_schedule(self.search.found_lr)
            self._last_progress = math.nan
            if self._has_started:
                self.telling.lr_planned(self.schedule)

    def hand_back(self, ticket: Ticket) -> None:
        """Take back a batch that was not trained on, after an interruption for instance: it is the next one drawn.

        Args:
            ticket: The batch; nothing happens if it is not out.
        """
        if ticket.batch.is_out and ticket.epoch >= 0:
            self.plan.hand_back(ticket.batch)
            self.pace.num_out -= 1

    def discard(self, ticket: Ticket) -> None:
        """Count a batch whose training was undone before its loss was judged: a step, of which nothing is learned.

        For adapters that report late: when a loss is refused and the model put back, the batches trained on since are
        of the weights that were given up.

        Args:
            ticket: The batch; nothing happens if it is not out.
        """
        if ticket.batch.is_out and ticket.epoch < 0:
            self.search.skip(ticket.batch)
            self._use_found_lr()
        elif ticket.batch.is_out:
            self._close_unlearned(ticket)

    def give_up(self, ticket: Ticket, *, on_purpose: bool = False) -> None:
        """Take back a batch that will not be reported: it is drawn once more at the end of its epoch.

        The second time it counts as a refused step.

        Args:
            ticket: The batch; nothing happens if it is not out.
            on_purpose: Whether the user said so, and need not be told.
        """
        if not ticket.batch.is_out:
            return
        if ticket.epoch < 0:
            self.search.skip(ticket.batch)
            self._use_found_lr()
            return
        drawn_again = self.plan.abandon(ticket.batch)
        self.pace.num_out -= 1
        self.announcer.tell(events.BatchAbandoned, epoch=ticket.epoch, drawn_again=drawn_again)
        if not on_purpose:
            self.announcer.warn_once("abandoned", ABANDONED.format(step=ticket.step))
        if not drawn_again:
            self.pace.step += 1
            self._end_epoch_if_complete(ticket)

    def between_steps(self, *, closing: bool = False) -> None:
        """Do what must wait until the user's own step is complete: only then do model and scheduler fit together.

        Args:
            closing: Whether this is the last time.
        """
        if self.safekeeping.is_restoring:
            raise RuntimeError(f"load_callback must not draw batches, got a draw at step {self.pace.step}.")
        if not self._has_started:
            self._start()
        if self.requests.is_pending:
            self.requests.answer()
        epoch_ended, self._epoch_ended = self._epoch_ended, False
        if self.announcer.wants_surveys:
            self.telling.between_steps(self.pace.epoch, epoch_ended=epoch_ended, closing=closing)
        if not self.safekeeping.has_work:
            return
        step, seconds = self.pace.step, self.pace.seconds
        damage = self.safekeeping.between_steps(
            step,
            self.plan.samples_in(step),
            seconds,
            self._num_draws,
            epoch_ended=epoch_ended,
            run_ended=closing or self.pace.budget.progress(step, seconds) >= 1,
            get_state=self._settled_state,
            get_moment=self._moment,
        )
        if damage:
            self._damaged(damage)

    def _damaged(self, array: str) -> Restored | None:
        """Put back a model that has a number in it that is not finite, though its losses were."""
        if self.search.is_on:
            return None
        step = self.pace.step
        restored = self.rescue.damaged(
            array,
            step=step,
            scheduled_lr=self._scheduled_lr(self.pace.progress),
            most_steady=self._most_steady(self.pace.epoch),
            draws=self._num_draws,
        )
        return self._gone_back(restored)

    def _settled_state(self) -> dict[str, Any]:
        """The state once nothing is held back any more: the model has taken those steps already."""
        self.settle()
        return self.state_dict()

    def _save_as_asked(self) -> None:
        self.safekeeping.save_as_asked(self._settled_state, self.pace.step)

    def _start(self) -> None:
        budget, table = self.pace.budget, self.table
        self.search.check_ready()
        self._has_started = True
        self.telling.run_started(
            settings=self._settings,
            schedule=self.schedule,
            name=self.name,
            num_samples=table.num_samples,
            batch_size=table.batch_size,
            steps_per_epoch=self.plan.steps_per_pass,
            total_steps=budget.steps,
            train_duration_seconds=budget.seconds,
            policy=self.plan.policy.name,
        )
        self.safekeeping.tell_loaded()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on with the very same batches, rates and tables; at any step, with tickets out too.

        Batches that are out are drawn again, first in line. The model, the callbacks and the budget are not in it.

        Returns:
            Nested dicts and lists of arrays and plain values.
        """
        return {
            "format": FORMAT,
            "data": self._identity(),
            "seed": self.plan.seed,
            "table": self.table.state_dict(),
            "plan": self.plan.state_dict(),
            "pace": self.pace.state_dict(),
            "rescue": self.rescue.state_dict(),
            "guard": self.sentry.state_dict(),
            "tally": self._tally.state_dict(),
            "num_draws": self._num_draws,
            "search": self.search.state_dict(),
        }

    def _identity(self) -> dict[str, Any]:
        """What a saved state must fit."""
        return {**self.table.identity(), "last_batch": self.plan.last_batch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; the next batch is the one that would have come.

        Raises:
            ValueError: it is incomplete, or of another data set, batch size, estimator or last_batch. Nothing was
                changed.
        """
        missing = _PARTS - state.keys()
        if missing or state["format"] != FORMAT:
            raise ValueError(
                f"state must be what state_dict() of this version returned (format {FORMAT}), got format "
                f"{state.get('format')!r} without {sorted(missing)}."
            )
        for name, value in self._identity().items():
            if state["data"].get(name) != value:
                remedy = "; resume_from_checkpoint() changes it" if name in CHANGED_BY_RESUME else ""
                raise ValueError(
                    f"{name} must be that of the saved run ({state['data'].get(name)!r}), got {value!r}{remedy}."
                )
        before = self.state_dict()
        try:
            self._take_over(state)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            self._take_over(before)
            raise ValueError(f"state must be what state_dict() returned, got a damaged one ({error!r}).") from error

    def _take_over(self, state: Mapping[str, Any]) -> None:
        self.plan.seed = state["seed"]
        self.table.load_state_dict(state["table"])
        self.plan.load_state_dict(state["plan"])
        self.pace.load_state_dict(state["pace"])
        self.rescue.load_state_dict(state["rescue"])
        self.sentry.load_state_dict(state["guard"])
        self._tally = Tally.from_state(state["tally"])
        self._num_draws = state["num_draws"]
        self.search.load_state_dict(state["search"])
        self._use_found_lr()
        self.telling.forget()
        self.safekeeping.count_from(self.pace.step, self.plan.samples_in(self.pace.step), self.pace.seconds)


def _nothing() -> None:
    """Where nothing is held back."""


MOST_SUSPICION = 0.25
"""Of the guard's alarm, where backups are still taken and proved. Source: research/reliability.md 1.5."""

FORMAT = 1
"""Of `Engine.state_dict`; raised by one when old states can no longer be read."""

CHANGED_BY_RESUME = {"num_samples", "batch_size", "last_batch"}
"""What `R8Scheduler.resume_from_checkpoint` makes a state fit to."""

_PARTS = {"format", "data", "seed", "table", "plan", "pace", "rescue", "guard", "tally", "num_draws", "search"}

ABANDONED = (
    "the batch of step {step} was not reported with update_with_loss(); such batches are drawn once more at the end of "
    "the epoch, and count as refused steps if they are not reported then. For a loader that works ahead use draw() and "
    "report()."
)

"""Drawing: which batch is next, at what rate, and what is done before it."""

from __future__ import annotations

import math

from .chunk import Batch
from .policies import STEADY
from .resumable import Resumable
from .ticket import Ticket, new_tuple


class Drawing(Resumable):
    """A run that hands out tickets; several may be out at a time."""

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
        chunk, slot, indices = batch
        weights = None if chunk.weights is None else chunk.weights_of(slot)
        return new_tuple(Ticket, (step, epoch, indices, lr, weights, self._num_draws - 1, batch))

    def _start_pass(self, number: int, progress: float) -> None:
        plan = self.plan
        plan.start_pass(number, progress)
        if number and plan.policy.needs_exact and not plan.outlook.is_exact:
            self.announcer.warn_once(
                "not exact",
                f"policy {plan.policy!r} needs the loss of each sample and was given {self.table.source}: "
                "no sample is left out for its loss. Report a vector of losses.",
            )

    def _next_batch(self) -> Batch:
        if self.rescue.replay.is_due and not self.plan.has_returned:
            return self.plan.draw_again(self.rescue.replay.draw(self._num_draws))
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
        # Not _replace(), which takes thrice the time.
        _, epoch, indices, _, weights, _, batch = ticket
        return Ticket(self.pace.step + held_back, epoch, indices, lr, weights, self._num_draws - 1, batch)

    def lr_after(self, held_back: int) -> float:
        """The learning rate to use once so many more batches are reported."""
        return self._lr_at(self.pace.progress_at(self.pace.step + held_back))

    def hand_back(self, ticket: Ticket) -> None:
        """Take back a batch that was not trained on, after an interruption for instance: it is the next one drawn.

        Args:
            ticket: The batch; nothing happens if it is not out.
        """
        if ticket.batch.is_out and ticket.epoch >= 0:
            self.plan.hand_back(ticket.batch)
            self.pace.num_out -= 1

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
        keeping, pace = self.safekeeping, self.pace
        step = pace.step
        # Nearly always nothing is due, and a step must not pay for finding out.
        quiet_seconds, is_new = keeping.quiet_seconds, epoch_ended or closing
        if step < keeping.quiet_steps and not is_new and (quiet_seconds == math.inf or pace.seconds < quiet_seconds):
            return
        seconds = pace.seconds
        damage = keeping.between_steps(
            step,
            self.plan.samples_in(step),
            seconds,
            self._num_draws,
            epoch_ended=epoch_ended,
            run_ended=closing or pace.budget.progress(step, seconds) >= 1,
            budget=pace.budget,
            get_state=self._settled_state,
            get_moment=self._moment,
        )
        if damage:
            self._damaged(damage)

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

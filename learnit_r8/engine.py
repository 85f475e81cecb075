"""The engine: in which order the parts act on a batch and on its loss.

drawing.py, plan.py, policies/  DRAW which samples come next
... the user trains ...
guard/                          JUDGE whether the loss is one to learn from (recovery.py, rescue.py: what if not)
running_losses.py, table.py     LEARN running loss and use of every sample
pace.py, lr.py                  MOVE ON: how far along, at what rate
events/                         TELL what happened

It is the uppermost of four layers, standing.py, resumable.py, drawing.py and engine.py, each of which uses only those
below it. They are one object, since a step must not pay for calls between them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import events
from .drawing import Drawing
from .guard import Verdict
from .kinds import EXACT, check_kind
from .losses import Reading, read_loss, read_number
from .restoring import Restored
from .tally import Tally
from .ticket import Outcome, Ticket, new_tuple

ABANDONED = (
    "the batch of step {step} was not reported with update_with_loss(); such batches are drawn once more at the end of "
    "the epoch, and count as refused steps if they are not reported then. For a loader that works ahead use draw() and "
    "report()."
)


class Engine(Drawing):
    """Draws batches and takes their losses; owns nothing but the order of the parts and the count of the draws.

    Args:
        parts: What it is put together from.
    """

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
        if self.rescue.replay.is_on and math.isfinite(reading.mean):
            restored = self._replay(ticket, reading)
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
            self._learn(ticket, reading, kind, expected)
            if self.announcer.is_heard:
                self.telling.end()
            return new_tuple(Outcome, (verdict, self.lr, None))
        verdict, restored = self._answer(ticket, reading, kind, expected, verdict)
        return Outcome(verdict, self.lr, None if restored is None else restored.step)

    def _replay(self, ticket: Ticket, reading: Reading) -> Restored | None:
        """Compare the loss of a batch that was trained on again; where the model was put back to if it is another."""
        restored = self.rescue.replayed(ticket, reading.mean, self._num_draws)
        if restored is not None:
            self._close_unlearned(ticket)
        return self._gone_back(restored)

    def _answer(
        self, ticket: Ticket, reading: Reading, kind: int, expected: float, verdict: Verdict
    ) -> tuple[Verdict, Restored | None]:
        """Do what a verdict other than GOOD asks for; what is made of it, and where the model was put back to."""
        if verdict is Verdict.RAISED and not self.rescue.doubts_level:
            restored = self.rescue.accept_level(lr=self.lr, draws=self._num_draws)
            if restored is not None:
                # What is usual for the guard begins anew with these losses.
                self._close_unlearned(ticket)
                return verdict, restored
            self.sentry.overrule()
            verdict = Verdict.DRIFT
        if verdict is Verdict.DRIFT:
            self._learn(ticket, reading, kind, expected)
            self.rescue.drifted(reading.mean, self.lr)
            return verdict, None
        if verdict is Verdict.SKIPPED:
            self._close_unlearned(ticket)
            return verdict, None
        return verdict, self._refuse(ticket, reading, verdict)

    def _close_unlearned(self, ticket: Ticket) -> None:
        self.plan.settle(ticket.batch)
        self._count_step()
        self._end_epoch_if_complete(ticket)

    def _count_step(self) -> None:
        self.pace.num_out -= 1
        self.pace.step += 1

    def _learn(self, ticket: Ticket, reading: Reading, kind: int, expected: float) -> None:
        table = self.table
        table.part_size = kind
        believed = table.believed(reading) if table.is_early else reading
        trend = table.observe(believed.mean, believed.lowest, reading.mean)
        self.plan.report(ticket.batch, believed.mean if table.batch_size == 1 else believed.means, trend)
        self._count_step()
        if self.rescue.replay.is_on:
            self.rescue.replay.note(ticket.draw, ticket.indices, reading.mean)
        self.safekeeping.backup.confirm(ticket.draw)
        self.rescue.accepted(reading.mean, ticket.indices)
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

    def reset_baseline(self) -> None:
        """Say that losses mean something else from here on: another scale, another term, other data.

        What was usual is forgotten: the next 80 losses or so are only looked at for whether they are finite. An
        incident that the change has caused ends, and the learning rate is the schedule's again. The model and what is
        known of the samples stay as they are.

        >>> from learnit_r8 import R8Scheduler
        >>> r8 = R8Scheduler(320, batch_size=32, num_steps=400)
        >>> for _ in r8.epoch_iterator():
        ...     for _ in r8.batch_iterator():
        ...         if r8.global_step == 200:
        ...             r8.reset_baseline()
        ...         _ = r8.update_with_loss(1.0 if r8.global_step < 200 else 1000.0)
        >>> r8.sentry.num_refused
        0
        """
        with self._lock:
            self.sentry.begin_anew()
            self.rescue.begin_anew()
            text = "what is usual of the losses was forgotten, as reset_baseline() was called."
            self.announcer.tell(events.Notice, text=text, is_warning=False)

    def release(self, indices: ArrayLike) -> None:
        """Draw samples again that are in quarantine, from the next chunk on.

        Args:
            indices: int[K], their positions; see `SampleTable.quarantined`. With several ranks, on all of them.

        Raises:
            TypeError: they are no whole numbers.
            ValueError: one of them is not in quarantine. Nothing was changed.
        """
        samples = np.atleast_1d(np.asarray(indices))
        if not samples.size:
            return
        if samples.dtype.kind not in "iu":
            raise TypeError(f"indices must be whole numbers, positions of samples, got {indices!r}.")
        with self._lock:
            held = self.table.is_quarantined(samples.astype(np.int64))
            if not held.all():
                raise ValueError(
                    f"indices must be in quarantine ({self.table.quarantined.tolist()[:20]}), got "
                    f"{samples[~held].tolist()[:20]} that are not."
                )
            self.table.release(samples.astype(np.int64))
            self.announcer.tell(events.SamplesReleased, samples=tuple(samples.tolist()))

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

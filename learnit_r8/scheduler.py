"""R8Scheduler: draw a batch, let the user train, learn from its loss, move on, tell everybody.

This class owns the order in which the parts act, and the counters. What a part does is in the part's own file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import events
from .budget import Budget
from .checkpoint import Checkpoint
from .chunk import Batch
from .guard import FiniteGuard, Guard, GuardState, Verdict
from .losses import Reading, read_loss
from .lr import Schedule, check_rate, make_schedule
from .order import MAX_SAMPLES
from .pace import Pace
from .plan import Plan
from .policies import SHUFFLE, STEADY, Policy, get_policy
from .range_test import RangeTest
from .recovery import Recovery
from .rescue import Rescue
from .safekeeping import Callbacks, Restored, Safekeeping
from .table import EXACT, SampleTable
from .tally import Tally
from .ticket import Outcome, Ticket


class R8Scheduler:
    """Asks for nothing but losses; says which samples to train on next, and at what learning rate.

    One step of training::

        plan, policies   which samples come next
        ... you train ...
        guard            is this loss one to learn from? (recovery, safekeeping: what to do if not)
        table            running loss and use of every sample
        budget, lr       how far along, at what rate
        events           what happened, for whoever listens

    Args:
        num_samples: N, samples in the data set, >= 1.
        batch_size: B, samples in a batch, >= 1.
        initial_lr: Highest learning rate of the schedule, > 0.
        num_epochs: Budget in epochs of ceil(N / B) steps; fractions are fine. Exactly one budget must be given.
        num_steps: Budget in steps.
        train_duration_seconds: Budget in seconds of wall time from the first draw, pauses (`paused`) excluded.
        scheduler_mode: "cosine", "linear", "constant", "one_cycle", or a function from progress in [0, 1] to a
            learning rate, which is used as it is.
        warmup_proportion: Share of the budget in which the rate rises to ``initial_lr``, in [0, 1]; by default
            0.05, and 0.3 for "one_cycle".
        min_lr: Last learning rate, in [0, initial_lr].
        auto_find_lr: Whether to search for the peak learning rate first, in place of ``initial_lr``. Needs a
            ``load_callback``, and a ``state_callback`` or a backup made before the first draw.
        policy: Which samples come next: "balanced", "quartile", "shuffle", "match_mean", "steady" or a `Policy`.
            The first epoch takes every sample once, shuffled, whatever the policy.
        estimator: How a batch mean is divided among its samples: "relative", or "additive" for the seed's rule.
        alpha: Weight of a new observation in the table, in (0, 1]; see `SampleTable`.
        groups: N labels (classes), fewer than B distinct ones: batches are balanced over them too.
        sample_ids: N names to show in place of indices.
        last_batch: What becomes of the last N mod B samples of an epoch: a "short" batch, "drop", or "fill".
        save_callback: ``(state_dict, filepath)``, writes the model to that path. With it, checkpoints go to
            ``checkpoint_dir`` (by default "checkpoints") after every epoch.
        load_callback: ``(source)``, puts a model state back: a path from ``save_callback``, or a backup. If it takes
            the keyword ``from_ram``, that says which.
        state_callback: ``()``, returns the model state; with it backups are taken without your help, the first one
            before the first step.
        backup_every: How often: steps, or a time such as "30s" (the default).
        checkpoint_dir: Folder of the checkpoints.
        checkpoint_every: How often: steps, or a time; by default every epoch.
        keep_checkpoints: Checkpoints of this run to keep, >= 1.
        guard: Which losses to refuse.
        recovery: What to do about refused ones.
        use_curses: Whether to show the run in the terminal: for now as plain lines on stderr.
        name: Name of the run, for listeners.
        listeners: Called with every event, in order; one that raises is dropped with a warning.
        seed: >= 0; the same seed gives the same batches on every machine.
        clock: Returns seconds, monotonic.

    Raises:
        ValueError: an argument outside its range, or not exactly one budget.
        TypeError: an argument of the wrong kind.

    >>> r8 = R8Scheduler(100, batch_size=10, num_epochs=3)
    >>> for epoch in r8.epoch_iterator():
    ...     for batch_indices, lr in r8.batch_iterator():
    ...         outcome = r8.update_with_loss(1.0)
    >>> r8.global_step, int(r8.table.usage_count.min())
    (30, 3)
    """

    def __init__(
        self,
        num_samples: int,
        *,
        batch_size: int,
        initial_lr: float = 0.01,
        num_epochs: float | None = None,
        num_steps: int | None = None,
        train_duration_seconds: float | None = None,
        scheduler_mode: str | Schedule = "cosine",
        warmup_proportion: float | None = None,
        min_lr: float = 0.0,
        auto_find_lr: bool = False,
        policy: str | Policy = "balanced",
        estimator: str = "relative",
        alpha: float | None = None,
        groups: ArrayLike | None = None,
        sample_ids: Sequence[Any] | None = None,
        last_batch: str = "short",
        save_callback: Callable[..., Any] | None = None,
        load_callback: Callable[..., Any] | None = None,
        state_callback: Callable[[], Any] | None = None,
        backup_every: int | str | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int | str | None = None,
        keep_checkpoints: int = 3,
        guard: Guard = FiniteGuard(),
        recovery: Recovery = Recovery(),
        use_curses: bool = False,
        name: str | None = None,
        listeners: Iterable[events.Listener] = (),
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        num_samples = whole_number("num_samples", num_samples, least=1, most=MAX_SAMPLES)
        batch_size = whole_number("batch_size", batch_size, least=1, most=MAX_SAMPLES)
        self.seed = whole_number("seed", seed, least=0, most=2**63)
        self.name = name or ""
        self.table = SampleTable(
            num_samples, batch_size=batch_size, estimator=estimator, alpha=alpha, groups=groups, sample_ids=sample_ids
        )
        self.plan = Plan(self.table, policy=get_policy(policy), seed=self.seed, last_batch=last_batch)
        self.steps_per_epoch = self.plan.steps_per_pass
        budget = Budget.of(num_epochs, num_steps, train_duration_seconds, self.steps_per_epoch)
        self._make_schedule = functools.partial(
            make_schedule, mode=scheduler_mode, warmup_proportion=warmup_proportion, min_lr=min_lr
        )
        self.schedule = self._make_schedule(initial_lr)
        self.safekeeping = Safekeeping(
            Callbacks(save_callback, load_callback, state_callback),
            backup_every=backup_every,
            checkpoint_dir=checkpoint_dir,
            checkpoint_every=checkpoint_every,
            keep=keep_checkpoints,
        )
        if auto_find_lr and (load_callback is None or callable(scheduler_mode)):
            raise ValueError(
                "auto_find_lr needs a load_callback to put the model back with, and a scheduler_mode given by name; got "
                f"load_callback={load_callback!r} and scheduler_mode={scheduler_mode!r}."
            )
        self._search = RangeTest.for_run(budget.steps) if auto_find_lr else None
        self.pace = Pace(budget, self.steps_per_epoch, clock)
        self.announcer = events.Announcer(listeners, lambda: (self.pace.step, self.pace.seconds))
        if use_curses:
            from .dashboard.plain import PlainLog

            self.announcer.add(PlainLog())
        self.guard = guard
        self.rescue = Rescue(recovery, self.safekeeping, self.announcer)
        self._guard_state = GuardState()
        self._tally = Tally()
        self._num_draws = 0
        self._found_lr: float | None = None
        self._open: Ticket | None = None
        self._epoch_ended = False
        self._has_started = False
        self._is_closed = False

    def epoch_iterator(self) -> Iterator[int]:
        """Yield 0-based epoch numbers until the budget is spent; after a ``break``, go on in the same epoch.

        Raises:
            RuntimeError: no batch was drawn since the last epoch number.
        """
        while True:
            self._between_steps()
            if self.pace.is_finished:
                return
            draws = self._num_draws
            yield self.current_epoch
            if self._num_draws == draws:
                raise RuntimeError(f"epoch {self.current_epoch} ended with no batch drawn; iterate over batch_iterator().")

    def batch_iterator(self) -> Iterator[tuple[NDArray[np.int64], float]]:
        """Yield ``(batch_indices, lr)`` to the end of the epoch, or of the time.

        Asking for the next batch gives up one that was not reported: it comes once more at the end of the epoch.

        Yields:
            int64[B], the samples to train on, fewer in a short last batch; and the learning rate.

        Raises:
            RuntimeError: the policy weights samples; those need `draw` and `report`.
        """
        epoch = self.current_epoch
        while True:
            self._give_up_open()
            self._between_steps()
            if self.pace.is_finished or (self._search is None and self.current_epoch != epoch):
                return
            ticket = self._open = self.draw()
            if ticket.weights is not None:
                raise RuntimeError(f"policy {self.plan.policy!r} weights samples: use draw() and report(), and ticket.weights.")
            yield ticket.indices, ticket.lr

    def update_with_loss(self, loss: Any, *, part_size: int | None = None) -> Outcome:
        """Report the loss of the batch that `batch_iterator` gave last; see `report`.

        Raises:
            RuntimeError: no batch is open.
        """
        if self._open is None:
            raise RuntimeError(f"update_with_loss() was called at step {self.global_step} with no batch open; draw one first.")
        return self.report(self._open, loss, part_size=part_size)

    def draw(self) -> Ticket:
        """Draw the next batch. Several may be out at a time.

        Raises:
            RuntimeError: the budget is spent, or every step that is left is out already.
        """
        self._between_steps()
        pace = self.pace
        step, seconds = pace.next_step, pace.seconds
        progress = pace.budget.progress(step, seconds)
        if progress >= 1:
            raise RuntimeError(f"draw() was called after {step} steps and {seconds:.1f} s, and the budget is {pace.budget}.")
        if self._search is not None:
            batch, epoch, lr = self.plan.draw_outside(SHUFFLE), -1, self._search.lr
            assert batch is not None
        else:
            pace.start()
            self._tally.begin(seconds)
            epoch = step // self.steps_per_epoch
            if epoch != self.plan.pass_number:
                self.plan.start_pass(epoch, progress)
            batch, lr = self._next_batch(), self._lr_at(progress)
            pace.num_out += 1
        self._num_draws += 1
        return Ticket(step, epoch, batch.indices, lr, batch.chunk.weights_of(batch.slot), self._num_draws - 1, batch)

    def _next_batch(self) -> Batch:
        if self.rescue.is_steadying:
            self.rescue.count_steady()
            steady = self.plan.draw_outside(STEADY)
            if steady is not None:
                return steady
        return self.plan.draw()

    def report(self, ticket: Ticket, loss: Any, *, part_size: int | None = None) -> Outcome:
        """Judge, learn, move on, tell: what one trained batch sets in motion.

        Call it before ``backward()``, and skip ``backward()`` and ``step()`` where the outcome is false; or after
        ``step()``, where a refused loss is answered by restoring the model.

        Args:
            ticket: The batch, as `draw` gave it. In any order, each once.
            loss: The batch mean: a float, or a 0-dim array or tensor of numpy, torch, TensorFlow or JAX. Or
                float[B], the loss of each sample. Or with ``part_size``, float[P], the means of consecutive parts.
                The first report fixes which of the three. Tensors are detached.
            part_size: Samples in a part, >= 1; the last part of a batch may have fewer.

        Returns:
            The verdict, the learning rate to use now, and the step the model was put back to.

        Raises:
            RuntimeError: this ticket was reported before, or is not of this run.
            TypeError: the loss is not a real number or a vector of them.
            ValueError: the loss is of another length or kind than it must be. Nothing was changed.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        if not ticket.batch.is_out:
            raise RuntimeError(f"ticket of step {ticket.step} was reported or given up before, or is not of this run.")
        reading = read_loss(loss, len(ticket.indices), part_size)
        kind = EXACT if self.table.batch_size == 1 else reading.part_size
        self.table.check_part_size(kind)
        if ticket.epoch < 0:
            return self._report_search(ticket, reading)
        expected = self.table.with_trend(ticket.batch.expected)
        self._guard_state, verdict = self.guard.judge(self._guard_state, reading.mean, expected)
        self._close(ticket)
        if verdict is Verdict.GOOD:
            self._learn(ticket, reading, kind, expected)
            return Outcome(verdict, self.lr, None)
        restored = self._refuse(ticket, reading, verdict)
        return Outcome(verdict, self.lr, None if restored is None else restored.step)

    def _close(self, ticket: Ticket) -> None:
        """The step is done, whatever comes of it."""
        self.pace.num_out -= 1
        self.pace.step += 1
        if ticket is self._open:
            self._open = None

    def _learn(self, ticket: Ticket, reading: Reading, kind: int, expected: float) -> None:
        self.table.part_size = kind
        trend = self.table.observe(reading.mean, reading.lowest)
        self.plan.report(ticket.batch, reading.means, trend)
        self.safekeeping.backup.confirm(ticket.draw)
        self.rescue.accepted()
        self._tally.add(reading.mean, len(ticket.indices))
        if self.announcer.is_heard:
            self.announcer.tell(
                events.StepDone,
                epoch=ticket.epoch,
                progress=self.progress,
                loss=reading.mean,
                expected_loss=expected,
                lr=ticket.lr,
                batch_size=len(ticket.indices),
                steady=ticket.batch.chunk.pass_number < 0,
            )
        self._end_epoch_if_complete(ticket)

    def _refuse(self, ticket: Ticket, reading: Reading, verdict: Verdict) -> Restored | None:
        self.plan.settle(ticket.batch)
        self._end_epoch_if_complete(ticket)
        # The cataloguing pass is not cut short, and one incident costs at most a quarter of an epoch.
        most_steady = self.steps_per_epoch // 4 if ticket.epoch > 0 else 0
        scheduled = self._scheduled_lr(self.progress)
        return self.rescue.refused(ticket, reading, verdict, scheduled_lr=scheduled, most_steady=most_steady)

    def _end_epoch_if_complete(self, ticket: Ticket) -> None:
        if self.global_step % self.steps_per_epoch:
            return
        tally, self._tally = self._tally, Tally()
        self._epoch_ended = True
        self.announcer.tell(
            events.EpochDone,
            epoch=ticket.epoch,
            progress=self.progress,
            loss=tally.loss,
            lr=ticket.lr,
            samples=tally.samples,
            epoch_seconds=self.pace.seconds - tally.began,
        )

    def _report_search(self, ticket: Ticket, reading: Reading) -> Outcome:
        self.plan.settle(ticket.batch)
        self._open = None
        _, verdict = self.guard.judge(GuardState(), reading.mean)
        search, restored = self._search, None
        if search is not None:
            search.take(reading.mean, refused=verdict is not Verdict.GOOD)
            if search.is_done:
                self._search = None
                self._found_lr = search.result
                self.schedule = self._make_schedule(search.result)
                restored = self.safekeeping.restore()
                self.announcer.tell(events.LrFound, lr=search.result, num_steps=search.num_steps)
        return Outcome(verdict, self.lr, None if restored is None else restored.step)

    def _give_up_open(self) -> None:
        """Take back the batch of `batch_iterator` that was not reported."""
        ticket, self._open = self._open, None
        if ticket is None or not ticket.batch.is_out:
            return
        if ticket.epoch < 0:
            self.plan.settle(ticket.batch)
            return
        drawn_again = self.plan.abandon(ticket.batch)
        self.pace.num_out -= 1
        self.announcer.tell(events.BatchAbandoned, epoch=ticket.epoch, drawn_again=drawn_again)
        self.announcer.say_once(
            "abandoned",
            f"the batch of step {ticket.step} was not reported with update_with_loss(); such batches are drawn once more at "
            "the end of the epoch, and count as refused steps if they are not reported then.",
        )
        if not drawn_again:
            self.pace.step += 1
            self._end_epoch_if_complete(ticket)

    def _between_steps(self) -> None:
        """What must wait until the user's own step is complete: only then do model and scheduler fit together."""
        if not self._has_started:
            self._start()
        keeping, step, seconds = self.safekeeping, self.global_step, self.pace.seconds
        if keeping.backup_is_due(step, seconds):
            keeping.take_backup(step, seconds, self._num_draws)
            self.announcer.tell(events.BackupTaken)
        at_end = self._epoch_ended or self.pace.budget.progress(step, seconds) >= 1
        self._epoch_ended = False
        if keeping.checkpoint_is_due(step, seconds, at_end=at_end):
            saved = keeping.try_to_save(self.state_dict(), step, seconds)
            if saved is not None:
                self._tell_saved(saved)

    def _tell_saved(self, saved: Checkpoint) -> None:
        model = None if saved.model_path is None else str(saved.model_path)
        self.announcer.tell(events.CheckpointSaved, path=str(saved.path), model_path=model)

    def _start(self) -> None:
        self._has_started = True
        budget, table = self.pace.budget, self.table
        if self._search is not None and self.safekeeping.callbacks.state is None and self.safekeeping.backup.is_empty:
            raise RuntimeError(
                "auto_find_lr needs a model state to go back to, got none: pass state_callback or call "
                "update_cpu_backup() before the first batch is drawn."
            )
        self.announcer.tell(
            events.RunStarted,
            name=self.name,
            num_samples=table.num_samples,
            batch_size=table.batch_size,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=budget.steps,
            train_duration_seconds=budget.seconds,
            policy=self.plan.policy.name,
        )

    @property
    def lr(self) -> float:
        """The learning rate to use now."""
        return self._lr_at(self.progress)

    def _lr_at(self, progress: float) -> float:
        return self._scheduled_lr(progress) * self.rescue.lr_factor

    def _scheduled_lr(self, progress: float) -> float:
        return check_rate(self.schedule(progress), progress)

    @property
    def global_step(self) -> int:
        """Batches reported so far, refused ones included."""
        return self.pace.step

    @property
    def total_steps(self) -> int | None:
        """Steps in the whole run; None with a time budget."""
        return self.pace.budget.steps

    @property
    def current_epoch(self) -> int:
        """The current epoch, 0-based."""
        return self.pace.epoch

    @property
    def progress(self) -> float:
        """Finished share of the budget, in [0, 1]."""
        return self.pace.progress

    @property
    def phase(self) -> str:
        """ "searching", "cataloguing", "steadying", "training" or "finished"."""
        if self._search is not None:
            return "searching"
        if self.pace.is_finished:
            return "finished"
        if self.current_epoch == 0:
            return "cataloguing"
        return "steadying" if self.rescue.is_steadying else "training"

    def summary(self) -> str:
        """What happened so far, for people: a few lines of text."""
        plan, table = self.plan, self.table
        lines = [
            f"step {self.global_step} of {self.total_steps or '?'}, epoch {self.current_epoch + 1}, {self.phase}, lr {self.lr:.3g}",
            f"{self._guard_state.num_refused} losses refused, {plan.abandoned} batches not reported, "
            f"{plan.displaced} left out for steady ones, {self.safekeeping.num_failed} checkpoints failed",
            f"losses of the samples ({table.source}):",
        ]
        lines += [
            f"  Q{number} {q.low:9.3g} to {q.high:<9.3g} mean {q.mean:<9.3g} used {q.uses:.1f} times"
            for number, q in enumerate(table.quartiles(), start=1)
        ]
        return "\n".join(lines)

    def log(self, step: int | None = None, **metrics: Any) -> None:
        """Tell listeners about validation metrics or anything else of your own.

        Args:
            step: The step they belong to; by default the current one.
            **metrics: Numbers, or 0-dim arrays or tensors.

        Raises:
            TypeError: a value is not a number.
        """
        values = {name: read_loss(value, 1).mean for name, value in metrics.items()}
        self.announcer.tell(events.MetricsLogged, metrics=values, at_step=self.global_step if step is None else step)

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """A ``with`` block whose time does not count towards ``train_duration_seconds``."""
        return self.pace.paused()

    def update_cpu_backup(self, state: Any) -> None:
        """Copy a model state to RAM, for the load callback to get back after a refused loss.

        Args:
            state: Anything `copy.deepcopy` copies: arrays, tensors, nests of them.
        """
        self.safekeeping.take_backup(self.global_step, self.pace.seconds, self._num_draws, state)
        self.announcer.tell(events.BackupTaken)

    def save_checkpoint(self) -> Checkpoint:
        """Write a checkpoint now.

        Raises:
            RuntimeError: neither checkpoint_dir nor save_callback was given.
            OSError: the disk refused; the checkpoints before are untouched.
        """
        saved = self.safekeeping.save(self.state_dict(), self.global_step, self.pace.seconds)
        self._tell_saved(saved)
        return saved

    def load_checkpoint(self, path: str | os.PathLike[str] | None = None) -> None:
        """Go on from a checkpoint: the scheduler's state, and the model through the load callback.

        Args:
            path: Its file; by default the newest valid one in ``checkpoint_dir``.

        Raises:
            NoValidCheckpoint: there is none that can be read.
            ValueError: it is damaged, or of another data set. Nothing was changed.
        """
        checkpoint = self.safekeeping.load(path)
        self.load_state_dict(checkpoint.state)
        self.safekeeping.put_back(checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on with the very same batches, rates and tables; at any step, with tickets out too.

        Batches that are out are drawn again, first in line. The model, the callbacks and the budget are not in it.

        Returns:
            Nested dicts and lists of arrays and plain values.
        """
        return {
            "format": 1,
            "data": self.table.identity(),
            "seed": self.seed,
            "table": self.table.state_dict(),
            "plan": self.plan.state_dict(),
            "pace": self.pace.state_dict(),
            "rescue": self.rescue.state_dict(),
            "guard": list(self._guard_state),
            "tally": self._tally.state_dict(),
            "num_draws": self._num_draws,
            "search": None if self._search is None else self._search.state_dict(),
            "found_lr": self._found_lr,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; the next batch is the one that would have come.

        Raises:
            ValueError: it is of another data set, batch size or estimator. Nothing was changed.
        """
        self.table.check_identity(state["data"])
        self.seed = self.plan.seed = state["seed"]
        self.table.load_state_dict(state["table"])
        self.plan.load_state_dict(state["plan"])
        self.pace.load_state_dict(state["pace"])
        self.rescue.load_state_dict(state["rescue"])
        self._guard_state = type(self._guard_state)(*state["guard"])
        self._tally = Tally.from_state(state["tally"])
        self._num_draws = state["num_draws"]
        self._search = None if state["search"] is None else RangeTest.from_state(state["search"])
        self._found_lr = state["found_lr"]
        if self._found_lr is not None:
            self.schedule = self._make_schedule(self._found_lr)
        self._open = None
        self.safekeeping.count_from(self.pace.step, self.pace.seconds)

    def close(self) -> None:
        """Finish: save what is due, tell listeners that the run ended. Safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._has_started:
            self._between_steps()
        self.announcer.tell(events.RunEnded, finished=self.pace.is_finished)

    def __enter__(self) -> R8Scheduler:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def whole_number(name: str, value: Any, *, least: int, most: int) -> int:
    """``value`` as an int; ValueError, naming the argument, unless it is whole and within its range."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number in [{least}, {most}], got {value!r}.")
    return int(value)

"""R8Scheduler: what a training loop calls."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import events
from .checkpoint import CheckpointStore
from .engine import Engine
from .guard import Guard, SpikeGuard
from .losses import read_number
from .lr import Schedule
from .parts import parts_of
from .policies import Policy
from .recovery import Recovery
from .resume import arguments_of, fitted
from .ticket import Outcome, Ticket
from .triggers import Condition

if TYPE_CHECKING:
    from .journal import Journal


class R8Scheduler(Engine):
    """Says which samples to train on next and at what learning rate, and wants to be told the loss.

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
        policy: Which samples come next: "balanced", "quartile", "shuffle", "match_mean", "steady", "focus" or a
            `Policy`. The first epoch takes every sample once, shuffled, whatever the policy.
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
        backup_every: When: steps, a time such as "5min", or a trigger; by default four times an epoch (at least 10
            steps apart) and every 30 s.
        checkpoint_dir: Folder of the checkpoints.
        checkpoint_every: When, likewise; by default every epoch. One is written at the end in any case.
        keep_checkpoints: Checkpoints of this run to keep, >= 1.
        monitor: Name of a metric given to `log`, whose best checkpoint is kept besides: `best_checkpoint`.
        mode: "min" if lower is better there, "max" if higher is.
        resume: "auto" goes on from the newest valid checkpoint in ``checkpoint_dir``, if there are any: running the
            same program again continues it, and a finished run has nothing left to do. A path goes on from that
            file. None begins anew. The model is put back by ``load_callback``, or when an adapter brings one.
        guard: Which losses to refuse.
        recovery: What to do about refused ones.
        use_curses: Whether to show the run in the terminal: on a screen, or as plain lines where there is none.
        run_dir: Folder for what happens in the run, for ``learnit-r8 watch`` and ``report`` (docs/dashboard.md); one
            of an earlier session is gone on with. True for a new one in "runs"; by default the same where
            ``use_curses`` is on, and none otherwise; False for none. With several ranks only the first writes.
        handle_signals: Whether Ctrl-C, SIGTERM and SIGHUP wait while the run is under way: the step is finished, a
            checkpoint saved, and then they do what they would have done (KeyboardInterrupt; exit with 128 + n;
            your own handler). A second one acts at once. Only where the training is in the main thread.
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
        self, num_samples: int, *, batch_size: int, initial_lr: float = 0.01,
        num_epochs: float | None = None, num_steps: int | None = None, train_duration_seconds: float | None = None,
        scheduler_mode: str | Schedule = "cosine", warmup_proportion: float | None = None, min_lr: float = 0.0,
        auto_find_lr: bool = False,
        policy: str | Policy = "balanced", estimator: str = "relative", alpha: float | None = None,
        groups: ArrayLike | None = None, sample_ids: Sequence[Any] | None = None, last_batch: str = "short",
        save_callback: Callable[..., Any] | None = None, load_callback: Callable[..., Any] | None = None,
        state_callback: Callable[[], Any] | None = None, backup_every: int | str | Condition | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None, checkpoint_every: int | str | Condition | None = None,
        keep_checkpoints: int = 3, monitor: str | None = None, mode: str = "min",
        resume: str | os.PathLike[str] | None = None,
        guard: Guard = SpikeGuard(), recovery: Recovery = Recovery(),
        use_curses: bool = False, run_dir: str | os.PathLike[str] | bool | None = None, handle_signals: bool = True,
        name: str | None = None, listeners: Iterable[events.Listener] = (),
        seed: int = 0, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        given = {argument: value for argument, value in locals().items() if argument not in ("self", "__class__")}
        super().__init__(parts_of(given))
        self._journal: Journal | None = None
        if use_curses or run_dir is not None:
            from .journal import open_journal

            table = self.table
            sizes = {"num_samples": str(table.num_samples), "batch_size": str(table.batch_size)}
            self._journal = open_journal(
                run_dir, is_shown=use_curses, name=self.name, configuration={**sizes, **self._settings}, table=table
            )
            if self._journal is not None:
                self.announcer.add(self._journal.listener)
        if use_curses:
            from .dashboard.live import Live

            self.announcer.add(Live(self.requests, folder=self.run_dir or ""))
        self._open: Ticket | None = None
        self._is_closed = False
        if resume is not None:
            self._resume(resume)

    @classmethod
    def resume_from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        save_callback: Callable[..., Any] | None = None,
        load_callback: Callable[..., Any] | None = None,
        *,
        remap: ArrayLike | None = None,
        **new_goal: Any,
    ) -> R8Scheduler:
        """Build the scheduler of a checkpoint again, and go on from there, with another goal if one is given.

        Progress is kept in samples, so a new batch size changes the number of steps done, and a new budget the place
        on the schedule. Without a new goal the batches are those that would have come, bit for bit.

        Args:
            path: A checkpoint's file, or a folder, whose newest valid one is taken.
            save_callback: As in `R8Scheduler`.
            load_callback: As in `R8Scheduler`; gets the model's file.
            remap: int[N], the position that each of the N samples had in the saved run, -1 for new ones. By default
                those of the saved run are the first, and any others are new.
            **new_goal: Arguments of `R8Scheduler` to change: ``num_epochs``, ``batch_size``, ``initial_lr``,
                ``num_samples`` ...; and those that a file cannot hold, such as ``groups`` or a policy of your own.

        Returns:
            The scheduler. Its checkpoints go to the folder of ``path``, unless ``checkpoint_dir`` is given.

        Raises:
            NoValidCheckpoint: the folder has none that can be read.
            ValueError: the file is damaged; there are fewer samples and no ``remap``; or something must be given again.
            RuntimeError: the load callback raised.
        """
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        store = CheckpointStore(folder, keep=1, run_id="")
        checkpoint = store.load(None if folder == Path(path) else path)
        arguments = arguments_of(checkpoint.config, {"checkpoint_dir": folder, **new_goal}, cls)
        r8 = cls(save_callback=save_callback, load_callback=load_callback, **arguments)
        r8._go_on_from(checkpoint, fitted(checkpoint.state, r8.table, r8.plan, remap))
        r8._say_if_finished()
        return r8

    @property
    def run_dir(self) -> Path | None:
        """The run folder; None without one."""
        return None if self._journal is None else self._journal.folder

    def epoch_iterator(self) -> Iterator[int]:
        """Yield 0-based epoch numbers until the budget is spent or the run stopped; after a ``break``, go on.

        Raises:
            RuntimeError: no batch was drawn since the last epoch number.
        """
        try:
            while True:
                self.settle()
                self.between_steps()
                if self.pace.is_over:
                    return
                draws = self._num_draws
                yield self.current_epoch
                if self._num_draws == draws and not self.pace.is_over:
                    raise RuntimeError(
                        f"epoch {self.current_epoch} ended with no batch drawn; iterate over batch_iterator()."
                    )
        finally:
            self.requests.leave()

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
            if self._open is not None:
                self.give_up(self._open)
            if not self.search.is_on and self.current_epoch != epoch:
                self.between_steps()
                return
            ticket = self._open = self.draw_if_any()
            if ticket is None:
                return
            if ticket.weights is not None:
                raise RuntimeError(
                    f"policy {self.plan.policy!r} weights samples: use draw() and report(), and ticket.weights."
                )
            yield ticket.indices, ticket.lr

    def update_with_loss(
        self, loss: Any, *, part_size: int | None = None, grad_norm: Any = None, skipped: bool = False
    ) -> Outcome:
        """Report the loss of the batch that `batch_iterator` gave last; see `report`.

        Raises:
            RuntimeError: no batch is open.
        """
        ticket = self._open
        if ticket is None:
            raise RuntimeError(
                f"update_with_loss() was called at step {self.global_step} with no batch open; draw one first."
            )
        outcome = self.report(ticket, loss, part_size=part_size, grad_norm=grad_norm, skipped=skipped)
        self._open = None
        return outcome

    def log(self, step: int | None = None, **metrics: Any) -> None:
        """Tell listeners about validation metrics or anything else of your own.

        Args:
            step: The step they belong to; by default the current one.
            **metrics: Numbers, or 0-dim arrays or tensors.

        Raises:
            TypeError: a value is not a number.
        """
        values = {name: read_number(name, value) for name, value in metrics.items()}
        at_step = self.global_step if step is None else step
        self.announcer.tell(events.MetricsLogged, metrics=values, at_step=at_step)
        self.safekeeping.note(values, at_step, self.global_step)

    def close(self) -> None:
        """Finish: save what is due, tell listeners that the run ended. Safe to call twice."""
        self._close(is_whole=sys.exc_info()[0] is None)

    def _close(self, *, is_whole: bool) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        try:
            # On the way out of an exception the user's step may be half done, and must not be saved.
            if self._has_started and is_whole:
                self.settle()
                self.between_steps(closing=True)
        finally:
            self.requests.leave()
            self.announcer.tell(events.RunEnded, finished=self.pace.is_finished)

    def __repr__(self) -> str:
        return f"R8Scheduler(step {self.global_step} of {self.total_steps or '?'}, {self.phase}, lr={self.lr:.3g})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        # What pickle, copy() and deepcopy() ask.
        raise TypeError(
            "an R8Scheduler cannot be pickled or copied, as it belongs to its process, callbacks and files. Build "
            "another one with the same arguments and load state_dict() into it, or use save_checkpoint() and "
            "resume_from_checkpoint()."
        )

    def __enter__(self) -> R8Scheduler:
        return self

    def __exit__(self, *error: object) -> None:
        # Unlike sys.exc_info(), this tells nothing of an exception that is being handled around the whole run.
        self._close(is_whole=not error or error[0] is None)

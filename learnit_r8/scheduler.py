"""R8Scheduler: what a training loop calls."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import events
from ._validation import loop_method, no_attribute, shortened
from .engine import run_state
from .engine.builder import build_run
from .engine.engine import Engine
from .engine.feed.feed import Batches, Feed, TrainerBatches
from .engine.feed.followed import FollowedBatches
from .engine.settings import AllSettings, Settings, check_names, flat, grouped, kept_defaults, suggest_settings
from .events.caller import say_at_exit
from .guard.monitor import USUAL_GUARD, GuardName
from .guard.verdict import Guard
from .policies.base import Policy
from .policies.registry import PolicyName
from .recovery.policy import Recovery
from .schedules.schedule import Schedule, ScheduleName
from .schedules.span import read_span, span_of
from .sources.refit import fit_state
from .sources.ticket import Outcome, Ticket, refuse_weights
from .state.early_stop import EarlyStopping
from .state.run_config import arguments_of
from .state.store import CheckpointStore
from .table.losses import read_number
from .triggers import Condition

if TYPE_CHECKING:
    from .engine.settings import (
        Backups,
        Checkpoints,
        Estimator,
        Monitor,
        NewGoal,
        OwnBatches,
        RateShape,
        RunDir,
        TokenBatches,
        Unpack,
    )
    from .journal.writer import Journal
    from .state.saver import BestCheckpoint
    from .state.store import Checkpoint

T = TypeVar("T")

OTHER_NAMES = {
    "step": "Report each batch with update_with_loss(losses), which moves batches and rate on.",
    "update": "Report each batch with update_with_loss(losses), which moves batches and rate on.",
    "get_last_lr": "The rate is r8.lr.",
    "get_lr": "The rate is r8.lr.",
    "learning_rate": "The rate is r8.lr.",
    "epoch": "It is r8.current_epoch.",
    "suspects": "It is r8.table.suspects().",
    "save": "It is r8.save_checkpoint().",
    "epochs": "Loop over epochs: for epoch in r8.epoch_iterator().",
    "loader": "Loop over batches: for batch, lr in r8.batch_iterator().",
    "train": "The loop stays yours: for epoch in r8.epoch_iterator().",
    "fit": "The loop stays yours: for epoch in r8.epoch_iterator().",
}
"""What to say of names that schedulers and trainers of other libraries have."""

EPOCH_AS_STEP = (
    "log(step={}) was called at step {}: it looks like the number of the epoch, where steps are counted, so no best "
    "model is kept of it. Leave step= out: the current step is meant."
)
HASTY = (
    "the run ends early ({}), and these values were logged at one step after the other: early_stopping counts values, "
    "so log what is monitored once an epoch, after its batches, or allow for more of them."
)

DRAWS_SAMPLES = "{}() draws samples, and this scheduler was built without num_samples; iterate over batches(loader)."
LOOPS = "Write: for epoch in r8.epoch_iterator(): for batch, lr in r8.batch_iterator()."


class R8Scheduler:
    """Decides which samples to train on next and at what learning rate; your loop reports each loss back.

    Args:
        num_samples: Number of samples in the data set, N >= 1. None if the batches are your own: `batches` passes on
            those of any loader, and `update_with_loss` alone is a step, too; see docs/any_training.md. There is no
            table then, so leave out its arguments.
        batch_size: Samples in a batch, B >= 1; only with ``num_samples``. `TokenBatches` makes batches of similar
            lengths; without ``num_samples``, `OwnBatches` says how your own are followed.
        initial_lr: Highest learning rate of the schedule, > 0.
        num_epochs: Budget in epochs of ceil(N / B) steps; fractions are fine. With your own batches, an epoch is one
            run through the iterable. Give exactly one budget; with "wsd", "constant" or "keep" you may give none: the
            run goes on until `cool_down` or `requests.stop` ends it.
        num_steps: Budget in steps.
        train_duration_seconds: Budget in seconds of wall time from the first draw, pauses (`paused`) excluded. Training
            ends early enough for one more break between two steps (validation) like the longest so far.
        scheduler_mode: "cosine", "linear", "constant", "one_cycle", "wsd" (warm-up, stable, decay), or a function from
            progress in [0, 1] to a learning rate, which is used as it is. With "keep" the rate is your own, whatever
            sets it, and `lr_factor` is the factor that recovery puts on it. `RateShape` says more: warm-up, decay,
            last rate.
        auto_find_lr: Whether to search for the peak learning rate first, in place of ``initial_lr``. Needs a
            ``load_callback``, and a ``state_callback`` or a backup made before the first draw.
        policy: Which samples come next: "balanced", "quartile", "shuffle", "focus" or a `Policy`. The
            first epoch takes every sample once, shuffled, whatever the policy.
        estimator: How a batch mean is divided among its samples: "relative" or "additive"; `Estimator` also says how
            fast it learns.
        groups: N labels (classes, sources): views and loggers have the mean loss of each; if there are fewer than B,
            batches are balanced over them, too.
        sample_ids: N names to show in place of indices.
        last_batch: What to do with the last N mod B samples of an epoch: a "short" batch, "drop", or "fill".
        save_callback: ``(state_dict, filepath)``, writes the model to that path. With it, a checkpoint is written to
            ``checkpoint_dir`` (by default "checkpoints") after every epoch. Without it, checkpoints hold what
            ``state_callback`` returns, where there is a ``load_callback``.
        load_callback: ``(source)``, loads a model state: from a path written by ``save_callback``, or the state itself.
            If it takes the keyword ``from_ram``, that says which; ``is_resume`` says whether the run continues in a new
            process, or from a checkpoint that you asked for, rather than after damage.
        state_callback: ``()``, returns the model state; with it, backups are taken automatically, the first one
            before the first step. With an adapter, these callbacks add to what that keeps (docs/any_training.md).
        backup_every: How often to take backups: steps, a time such as "5min", or a trigger; by default four times an
            epoch, or forty times a run without epochs (at least 10 steps apart), every 30 s, and closer in a young run
            if copies are cheap (docs/recovery.md). `Backups` also says where they outlive the process.
        checkpoint_dir: Folder of the checkpoints.
        checkpoint_every: How often to write checkpoints, in the same form; by default every epoch, every ten if they
            are of one step. The end of the run always writes one. `Checkpoints` also says how many are kept, by
            default three.
        monitor: Name of a metric given to `log`; the checkpoint with its best value is kept too: `best_checkpoint`.
            `Monitor` also says whether a lower value is better, where the name does not.
        early_stopping: Ends the run, as a success, after this many values of ``monitor`` without improvement: a number,
            or `EarlyStopping` (patience, min_delta). `load_best` restores the best model.
        resume: "auto" continues from the newest valid checkpoint in ``checkpoint_dir``, or from a newer backup that has
            outlived its process (`Backups`), if there is one: running the same program again continues the run,
            and a finished run does nothing. A folder that cannot be read, a checkpoint of another user, and a run that
            another process trains are errors. A path continues from that file. None starts a new run.
            ``load_callback`` loads the model, or an adapter does once it is attached.
        guard: Decides which losses to refuse: "spike", the default; "finite", which refuses only losses that are not
            finite, for losses that need not fall; or your own guard.
        recovery: Decides what to do about refused losses.
        use_curses: Whether to show the run in the terminal: on a full screen, or as plain lines if there is no screen.
        run_dir: Folder to record the run in, for ``learnit-r8 watch`` and ``report`` (docs/dashboard.md); the record
            of an earlier session is continued. True for a new folder in "runs", False for none; by default a new one
            if ``use_curses`` is on. With several ranks only the first one records. `RunDir`
            also says what is written of an incident.
        config: Your own hyperparameters, a dict of plain values, for the record of the run: ``learnit-r8 ls`` finds
            runs by them, and ``compare`` shows which differ.
        notes: A sentence on the run, for its record.
        tags: Words to find the run by, for its record.
        handle_signals: Whether Ctrl-C, SIGTERM and SIGHUP wait during the run until the step is finished and a
            checkpoint is saved; then they act as usual (KeyboardInterrupt; exit with 128 + n; your own handler). A
            second one does not wait for the step. Only possible in the main thread.
        name: Name of the run, for listeners.
        listeners: Called with every event, in order; a listener that raises is dropped with a warning.
        seed: >= 0; the same seed gives the same batches on every machine.
        clock: Returns monotonic seconds.

    Attributes:
        table: What is known about every sample: `SampleTable.loss`, `SampleTable.hardest`, `SampleTable.suspects`,
            `SampleTable.quartiles`, `SampleTable.quarantined`.
        schedule: The schedule, a function from progress in [0, 1] to a learning rate; ``lr`` is the rate to use now.
        pace: The position of the run: its step, its epoch, its training time in ``pace.seconds``.
        sentry: The guard at work: ``sentry.num_refused`` counts the losses it refused.
        controller: The recovery at work: ``controller.lr_factor`` is the share of the scheduled rate that is used now.
        requests: What other threads may ask of the run: `Requests.stop`, `Requests.save`, `Requests.pause`.
        policy: The policy that selects and arranges the samples.
        steps_per_epoch: Steps in an epoch, the same for every policy; `sys.maxsize` for your own batches, as the loader
            ends it.
        run_dir: The run folder; None without one.
        name: Name of the run, "" without one.
        host: The engine, for adapters; ``bridge/host.py`` lists the members that they may use.
        feed: Passes on your own batches, for adapters; None where the scheduler draws them.

    Raises:
        ValueError: an argument outside its range, or not exactly one budget.
        TypeError: an argument of the wrong kind.
        RunInUse: another process, or another thread of this one, trains the run to continue.
        OSError: its checkpoints cannot be read, or are another user's.

    >>> r8 = R8Scheduler(100, batch_size=10, num_epochs=3)
    >>> for epoch in r8.epoch_iterator():
    ...     for batch_indices, lr in r8.batch_iterator():
    ...         outcome = r8.update_with_loss(1.0)
    >>> r8.global_step, int(r8.table.usage_count.min())
    (30, 3)
    """

    @suggest_settings
    def __init__(
        self, num_samples: int | None = None, *, batch_size: int | TokenBatches | OwnBatches | None = None,
        initial_lr: float = 0.01, num_epochs: float | None = None, num_steps: int | None = None,
        train_duration_seconds: float | None = None, scheduler_mode: ScheduleName | Schedule | RateShape = "cosine",
        auto_find_lr: bool = False, policy: PolicyName | Policy = "balanced",
        estimator: Literal["relative", "additive"] | Estimator = "relative",
        groups: ArrayLike | None = None, sample_ids: Sequence[Any] | None = None,
        last_batch: Literal["short", "drop", "fill"] = "short",
        save_callback: Callable[..., Any] | None = None, load_callback: Callable[..., Any] | None = None,
        state_callback: Callable[[], Any] | None = None,
        backup_every: int | str | Condition | Backups | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        checkpoint_every: int | str | Condition | Checkpoints | None = None, monitor: str | Monitor | None = None,
        early_stopping: int | EarlyStopping | None = None, resume: str | os.PathLike[str] | None = None,
        guard: GuardName | Guard = USUAL_GUARD, recovery: Recovery = Recovery(), use_curses: bool = False,
        run_dir: str | os.PathLike[str] | bool | RunDir | None = None,
        config: Mapping[str, Any] | None = None, notes: str | None = None, tags: Sequence[str] = (),
        handle_signals: bool = True, name: str | None = None, listeners: Iterable[events.Listener] = (),
        seed: int = 0, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        arguments = {**locals()}
        del arguments["self"]
        settings = Settings.of(arguments)
        self.host = engine = Engine(build_run(settings))
        source = engine.source
        self.feed = Feed(engine, source) if isinstance(source, FollowedBatches) else None
        self.name, self.table, self.pace = engine.name, engine.table, engine.pace
        self.sentry, self.controller, self.requests = engine.sentry, engine.controller, engine.requests
        self.policy: Policy = source.policy
        self.steps_per_epoch = source.steps_per_pass
        # A step pays for no call that only passes arguments on.
        self.report = engine.report  # type: ignore[method-assign]
        if settings.given["resume"] is not None:
            # Before a run folder is made.
            run_state.check_resume(engine.run, settings.given["resume"])
        self._journal = _add_listeners(engine, settings)
        self.run_dir = None if self._journal is None else self._journal.folder
        self._given_up: int | None = None
        self._looping: int | None = None
        self._has_finished = self._speaks_at_exit = False
        if settings.given["resume"] is not None:
            run_state.resume_from(engine.run, settings.given["resume"])

    @classmethod
    def resume_from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        save_callback: Callable[..., Any] | None = None,
        load_callback: Callable[..., Any] | None = None,
        *,
        remap: ArrayLike | None = None,
        cool_down: int | str | None = None,
        **new_goal: Unpack[NewGoal],
    ) -> R8Scheduler:
        """Rebuild the scheduler of a checkpoint and continue from there, with changed arguments if any are given.

        Progress is kept in samples, so a new batch size changes the number of steps done, and a new budget changes
        the position on the schedule. Without changes the next batches are exactly those of the saved run.

        Args:
            path: A checkpoint's file, or a folder, for the newest valid one in it.
            save_callback: As in `R8Scheduler`.
            load_callback: As in `R8Scheduler`; gets the model's file.
            remap: int[N], the position that each of the N samples had in the saved run, -1 for new samples. By
                default the samples of the saved run come first, and all others are new.
            cool_down: Length of a cool-down that starts there, as a branch of the saved run: steps, or a text such as
                "2 epochs" or "20min". The checkpoint must be from the stable part.
            **new_goal: Arguments of `R8Scheduler` to change: ``num_epochs``, ``batch_size``, ``initial_lr``,
                ``num_samples`` ...; and those that a file cannot hold, such as ``groups`` or your own policy.
                A `RateShape` and its like replace the saved one, a plain value that value alone.

        Returns:
            The scheduler. It writes its checkpoints to the folder of ``path``, a branch to a new folder within it,
            unless ``checkpoint_dir`` is given.

        Raises:
            NoValidCheckpoint: the folder holds no readable checkpoint.
            ValueError: the file is damaged; there are fewer samples and no ``remap``; something must be given again; or
                the cool-down cannot start there.
            RuntimeError: the load callback raised.
        """
        check_names("resume_from_checkpoint()", new_goal, AllSettings.__annotations__)
        # Batches of one's own without a budget of tokens say nothing of the saved one.
        new = {name: value for name, value in flat(new_goal).items() if name != "num_tokens" or value is not None}
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        store = CheckpointStore(folder, keep=1, run_id="")
        checkpoint = store.load(None if folder == Path(path) else path)
        span = None if cool_down is None else read_span("cool_down", cool_down)
        own = folder if span is None else run_state.folder_of_branch(folder, checkpoint, new)
        saved, given = len(checkpoint.state["table"]["loss"]), {"checkpoint_dir": own, **new}
        arguments = arguments_of(checkpoint.config, given, kept_defaults(cls), num_samples=saved)
        r8 = cls(save_callback=save_callback, load_callback=load_callback, **grouped(arguments))
        state = fit_state(checkpoint.state, r8.host.source, remap)
        run_state.go_on_from(r8.host.run, checkpoint, state)
        if span is not None:
            r8.host.rates.begin_branch(span)
        run_state.say_if_finished(r8.host.run)
        return r8

    @property
    def schedule(self) -> Schedule:
        """The schedule, a function from progress in [0, 1] to a learning rate."""
        return self.host.rates.schedule

    @property
    def lr(self) -> float:
        """The learning rate to use now; with "keep", the one you have told times `lr_factor`, and NaN before that."""
        return self.host.rates.shown(self.host.rates.now)

    @property
    def lr_factor(self) -> float:
        """The factor that recovery puts on the scheduled rate or, with "keep", on your own; 1.0 if all is well."""
        lr = self.host.rates.scheduled_at(self.pace.step)
        return self.controller.limit.lr(lr) / lr if lr else 1.0

    @property
    def global_step(self) -> int:
        """Batches trained or refused so far; a probe, which only tests the weights, is none."""
        return self.pace.step

    @property
    def step_in_epoch(self) -> int:
        """Batches trained or refused in the current epoch, probes aside: the number of the batch in hand, 0-based."""
        return self.pace.step_in_epoch

    @property
    def probes_in_epoch(self) -> int:
        """Batches of the current epoch that were handed out once more to test the weights."""
        return self.pace.probes_in_epoch

    @property
    def handed_out(self) -> int:
        """Batches handed out in the current epoch and reported: ``step_in_epoch + probes_in_epoch``."""
        return self.pace.step_in_epoch + self.pace.probes_in_epoch

    @loop_method
    def epoch_iterator(self) -> Iterator[int]:
        """Yield 0-based epoch numbers until the budget is spent or the run is stopped; continues after a ``break``.

        Raises:
            RuntimeError: no batch was drawn since the last epoch number.
        """
        run_state.say_if_spent(self.host.run)
        self._say_if_closed()
        is_done = self.pace.is_finished or self.pace.ended_early is not None
        if is_done and not self.host.emitter.has_started:
            # It has ended before it was resumed: its record stays as it is.
            self.host.persistence.tell_loaded()
            return
        if self.feed is not None:
            yield from self.feed.epochs()
            return
        self.pace.counts_epochs = True
        here = threading.get_ident()
        if self._looping not in (None, here) and any(each.ident == self._looping for each in threading.enumerate()):
            raise RuntimeError(
                "epoch_iterator() was called while another thread loops over it: it and batch_iterator() are for one "
                "thread. Several threads use draw_if_any() and report()."
            )
        self._looping = here
        try:
            while True:
                self.host.settle()
                if self.pace.is_finished:
                    self.host.look_again(self.pace.step)
                self.host.between_steps()
                if self.pace.is_over:
                    return
                # A batch drawn earlier and given up now may be the last of the epoch.
                before = self.pace.num_draws, self.pace.turns
                yield self.current_epoch
                if (self.pace.num_draws, self.pace.turns) == before and not self.pace.is_over:
                    raise RuntimeError(
                        f"epoch {self.current_epoch} ended with no batch drawn; loop over batch_iterator() or loader()."
                    )
        finally:
            self._looping = None
            self.requests.leave()

    def _say_if_closed(self) -> None:
        if self.pace.is_closed and not self.pace.is_over:
            self.host.announcer.warn_once(
                "closed",
                f"the run was closed at step {self.pace.step}: what is trained from here on is not recorded in its "
                "folder, and not saved at its end. Build another R8Scheduler, or close this one later.",
            )

    @loop_method
    def batch_iterator(self) -> Iterator[tuple[NDArray[np.int64], float]]:
        """Yield ``(batch_indices, lr)`` until the epoch ends or the time is up.

        A batch that was not reported when the next one is asked for is drawn once more at the end of the epoch.

        Yields:
            int64[B], the samples to train on (fewer in a short last batch), and the learning rate to use.

        Raises:
            RuntimeError: the policy weights samples; those need `draw` and `report`.
        """
        if self.feed is not None:
            raise RuntimeError(DRAWS_SAMPLES.format("batch_iterator"))
        refuse_weights(self.policy)
        self._speak_at_exit()
        epoch, pace, host = self.current_epoch, self.pace, self.host
        if self._looping is None:
            # Within epoch_iterator() the time may run out before the first batch.
            run_state.say_if_spent(host.run)
        self.requests.stay_within(None)
        while True:
            left, host.open_ticket = host.open_ticket, None
            if left is not None and left.is_out:
                # It was not reported.
                self._given_up = left.step
                host.give_up(left)
            if (pace.step + pace.left_out) // pace.steps_per_epoch != epoch and host.rates.search is None:
                pace.loop_of_epoch = "batch_iterator()", "r8.epoch_iterator()"
                if pace.is_finished or self.requests.is_pending:
                    # Else what follows the epoch in the user's loop comes before a checkpoint of it.
                    self.host.between_steps()
                if not (self.pace.is_finished and self.controller.experiment.asks_probe):
                    self.host.leave_epoch()
                    return
            ticket = host.open_ticket = host.draw_if_any()
            if ticket is None:
                return
            if ticket.weights is not None:
                refuse_weights(self.policy, ticket)
            try:
                yield ticket.indices, ticket.lr
            except GeneratorExit:
                # A break: if the run goes on, the signals are taken again.
                self.requests.leave()
                raise

    @loop_method
    def batches(
        self,
        loader: Iterable[T],
        *,
        size: int | Callable[[Any], int] | None = None,
        tokens: int | Callable[[Any], int] | None = None,
        ids: Callable[[Any], Any] | str | int | None = None,
        skip: Callable[[list[Any]], object] | None = None,
    ) -> Batches:
        """Pass on your own batches, as they are, until the iterable or the budget ends; each iteration is an epoch.

        The iterable may be anything: a `DataLoader`, a stream, a generator, of any length. It is read one item at a
        time, when the loop asks for one, and you can use its other methods (``len()``, ``set_epoch()``) as before.
        A batch that is not reported does not count as a step.

        Args:
            loader: The iterable.
            size: Samples in a batch, or a function of it; by default the first dimension of its first array.
            tokens: Tokens in a batch, or a function of it, for a budget in tokens; by default the number of its
                "input_ids".
            ids: Which samples a batch holds, for the table: a function of it, or the key under which it has them. Whole
                numbers or texts, one for each row of the batch or several, as nested lists or an array of two
                dimensions. By default those of a map-style `DataLoader` are observed as its sampler draws them.
            skip: Called with a list of the ids in quarantine whenever there are others, so that your loader can leave
                them out. From what an observed sampler draws they are left out by themselves.

        Raises:
            RuntimeError: the scheduler was built with ``num_samples``, so that it draws the batches.
            TypeError: the loader is not iterable, a size neither a number nor a function, or ids no function or key.

        >>> r8 = R8Scheduler(num_steps=5, scheduler_mode="keep")
        >>> for epoch in r8.epoch_iterator():
        ...     for batch in r8.batches([[1.0, 2.0], [3.0]]):
        ...         if r8.update_with_loss(sum(batch)):
        ...             pass  # Take the step.
        >>> r8.global_step, r8.current_epoch
        (5, 2)
        """
        feed = self._own_feed("batches")
        if not isinstance(loader, Iterable):
            raise TypeError(f"loader must be an iterable of batches, got {loader!r}.")
        self._speak_at_exit()
        return feed.batches(loader, size, tokens, ids, skip)

    def follow(
        self,
        *,
        size: int | Callable[[Any], int] | None = None,
        tokens: int | Callable[[Any], int] | None = None,
        sets_generators: bool = True,
        counts_epochs: bool = False,
    ) -> TrainerBatches:
        """Follow a trainer that takes its batches by itself; callbacks of trainers tell the result of each batch.

        Args:
            size: Samples in a batch, or a function of it; by default the first dimension of its first array.
            tokens: Tokens in a batch, or a function of it.
            sets_generators: Whether a resumed run sets the random generators, as the trainer does not.
            counts_epochs: Whether the trainer counts the epochs from `current_epoch` on, and passes over what a resumed
                run had of one.

        Raises:
            RuntimeError: the scheduler was built with ``num_samples``, so that it draws the batches.

        >>> r8 = R8Scheduler(num_steps=5, scheduler_mode="keep")
        >>> batches = r8.follow()
        >>> batches.begin_run()
        >>> for batch in [[1.0, 2.0], [3.0]]:
        ...     batches.begin(batch)
        ...     outcome = r8.update_with_loss(sum(batch))
        True
        True
        >>> batches.end_run()
        """
        feed = self._own_feed("follow")
        return TrainerBatches(
            feed, feed.measure(size, tokens), sets_generators=sets_generators, counts_epochs=counts_epochs
        )

    @loop_method
    def steps(self) -> Iterator[int]:
        """Yield the number of each step until the budget is spent, for a loop without an iterable of batches.

        >>> r8 = R8Scheduler(num_steps=3, scheduler_mode="keep")
        >>> for step in r8.steps():
        ...     outcome = r8.update_with_loss(1.0)
        >>> r8.global_step
        3

        Raises:
            RuntimeError: the scheduler was built with ``num_samples``, so that it draws the batches.
        """
        return self._own_feed("steps").steps()

    def _own_feed(self, call: str) -> Feed:
        """The feed, for a call that is for the user's own batches; RuntimeError if R8 draws them."""
        if self.feed is None:
            raise RuntimeError(
                f"{call}() is for batches of your own, and this scheduler draws them from its {self.table.num_samples} "
                "samples; leave num_samples and batch_size out, or iterate over batch_iterator()."
            )
        self._say_if_closed()
        return self.feed

    def update_with_loss(
        self,
        loss: Any,
        *unnamed: Any,
        part_size: int | None = None,
        grad_norm: Any = None,
        skipped: bool = False,
        predictions: Any = None,
        lr: float | None = None,
        ids: Any = None,
    ) -> Outcome:
        """Report the loss of the last batch of `batch_iterator` or `batches`, or of a loader with `R8BatchSampler`.

        Without ``num_samples`` and outside of a loop over `batches`, each call is a step.

        Args:
            loss: The loss of each sample, float[B], the mean of the batch, or with ``part_size`` the means of its
                parts; see `report`. For your own batches, the mean, or an array of any shape, whose mean counts; if
                they say which samples they hold, a value for each row is the loss of that row.
            *unnamed: Refused.
            part_size: Samples in a part, >= 1.
            grad_norm: Norm of the batch's gradient, if known.
            skipped: Whether the optimizer's step was skipped because gradients overflowed.
            predictions: `Predictions` of the same samples.
            lr: The rate that you train with, for views and messages; only with ``scheduler_mode="keep"``.
            ids: The ids of the samples, where `batches` does not know them; see there.

        Returns:
            The outcome, false if the loss was refused; it holds the learning rate to use now.

        Raises:
            RuntimeError: no batch is open; the message says why.
            ValueError: a rate is given, although the scheduler sets it.
            TypeError, ValueError, TrainingDiverged: as for `report`.
        """
        if unnamed:
            raise TypeError(
                f"update_with_loss() takes the losses alone, got {shortened(unnamed[0])} after them: the scheduler "
                "knows its rate; with scheduler_mode='keep' give yours as lr=."
            )
        if lr is not None:
            self.host.rates.tell(lr)
        host = self.host
        extras: Any = {
            "part_size": part_size, "grad_norm": grad_norm, "skipped": skipped, "predictions": predictions,
        }  # fmt: skip
        if self.feed is not None:
            return self.feed.report(loss, ids=ids, **extras)
        if ids is not None:
            raise ValueError(f"ids must be left out where the scheduler draws the samples, got {ids!r:.60}.")
        ticket = host.open_ticket
        if ticket is None:
            return self._report_in_hand(loss, **extras)
        outcome = host.report(ticket, loss, **extras)
        host.open_ticket = None
        return outcome

    def _report_in_hand(self, loss: Any, **extras: Any) -> Outcome:
        """Report the loss of the batch that a loader handed out."""
        found = self.host.member.in_hand()
        if found is None:
            if not self.pace.num_draws:
                why = "draw one first, as the loss is of no batch of batch_iterator()"
            elif self._given_up is None or self._given_up < self.global_step - 1:
                why = "the last one was reported already; report each batch once"
            else:
                why = (
                    "the last one was dropped, as the next one was drawn or the epoch ended before it was reported; "
                    "call update_with_loss() within the loop, once for each batch"
                )
            raise RuntimeError(
                f"update_with_loss() was called at step {self.global_step} with no batch open; {why}. (With attach(), "
                "pass the losses to the adapter's report().)"
            )
        refuse_weights(self.policy, found)
        try:
            return self.report(self.host.begin(found, is_late=True), loss, **extras)
        finally:
            # A loss of a wrong shape leaves the batch out.
            if not found.is_out:
                self.host.member.take(found)

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
            grad_norm: Norm of the batch's gradient, if known: the batch is refused if it is not finite, or more than
                a hundred times as long as all before. A number, or a 0-dim array or tensor.
            skipped: Whether the optimizer's step was skipped because gradients overflowed, as a loss scaler does. The
                step counts, raises no alarm (up to 20 in a row), and the table learns a finite loss.
            predictions: `Predictions` of the same samples, from which `SampleTable.suspects` judges their labels; only
                with one loss per sample. The table learns them if it learns the loss.

        Returns:
            The verdict, the learning rate to use now, and the step that the model was restored to.

        Raises:
            RuntimeError: this ticket was reported before, or belongs to another run; or an earlier call was cut
                short, and the message says how to go on.
            TypeError: the loss is not a real number or a vector of them, the norm is not a number, or the ticket not
                a ticket.
            ValueError: the loss has the wrong length or kind. Nothing was changed.
            TrainingDiverged: losses are still refused after everything was tried.
        """
        return self.host.report(
            ticket, loss, part_size=part_size, grad_norm=grad_norm, skipped=skipped, predictions=predictions
        )

    def draw_if_any(self) -> Ticket | None:
        """Draw the next batch; None if the budget is spent, all remaining steps are out, or the run was stopped."""
        if self.feed is not None:
            raise RuntimeError(DRAWS_SAMPLES.format("draw"))
        return self.host.draw_if_any()

    def draw(self) -> Ticket:
        """Draw the next batch. Several batches may be out at a time.

        Raises:
            RuntimeError: the budget is spent, every remaining step is out already, or the run was stopped.
        """
        ticket = self.draw_if_any()
        if ticket is None and self.pace.is_stopped:
            raise RuntimeError(
                f"draw() was called at step {self.pace.step} after the run was stopped; check is_over, or use "
                "draw_if_any()."
            )
        if ticket is None:
            raise RuntimeError(
                f"draw() was called with {self.pace.next_step} steps reported or out after {self.pace.seconds:.1f} s, "
                f"and the budget is {self.pace.budget}."
            )
        return ticket

    def give_up(self, ticket: Ticket, *, on_purpose: bool = False) -> None:
        """Give up a batch that will not be reported: it is drawn once more at the end of its epoch.

        If you give it up a second time, it counts as a refused step.

        Args:
            ticket: The batch; nothing happens if it is not out.
            on_purpose: Whether this is intended, so that no notice is needed.
        """
        self.host.give_up(ticket, on_purpose=on_purpose)

    def cool_down(
        self,
        steps: int | None = None,
        *,
        epochs: float | None = None,
        seconds: float | None = None,
        until: str | datetime.datetime | None = None,
    ) -> None:
        """Let the rate fall from the next step on, in the shape ``decay_shape`` to ``min_lr``, then end the run.

        A second request replaces the first one if it ends sooner. Any thread may call it. Without arguments the
        cool-down takes ``decay_proportion`` of the whole run. It survives a resume; see docs/budgets.md.

        Args:
            steps: Its length in steps, >= 1.
            epochs: Its length in epochs, > 0.
            seconds: Its length in training seconds, > 0.
            until: Local wall time of its end, "20:30" today or "2026-11-22 06:00"; pauses and downtime count.

        Raises:
            ValueError: several are given, one is outside its range, the time is past, or the cool-down is longer than
                what is left of the run. Nothing was changed.
            RuntimeError: the run is over.

        >>> r8 = R8Scheduler(100, batch_size=10, scheduler_mode="wsd")
        >>> for epoch in r8.epoch_iterator():
        ...     for batch_indices, lr in r8.batch_iterator():
        ...         outcome = r8.update_with_loss(1.0)
        ...         if r8.global_step == 25:
        ...             r8.cool_down(steps=10)
        >>> r8.global_step
        35
        """
        span = span_of(steps=steps, epochs=epochs, seconds=seconds, until=until, wall=self.pace.wall())
        self.requests.cool_down(self.host.rates.check_cool_down(span))

    def log(self, step: int | None = None, *unnamed: Any, **metrics: Any) -> None:
        """Log validation metrics, or any other numbers, for listeners and for ``monitor``.

        While recovery tries other weights within an epoch, values say nothing of the run: they are shown with
        "_on_trial" after their names, and count neither as the best nor for early stopping. After an epoch the weights
        that count are in the model. A value that was logged at its step already, as by Keras, Lightning or Trainer,
        counts once.

        Args:
            step: The step that they belong to; by default the current one.
            *unnamed: Refused.
            **metrics: Numbers, or 0-dim arrays or tensors.

        Raises:
            TypeError: a value is not a number, or has no name.
        """
        if step is not None and (unnamed or not metrics or isinstance(step, str)):
            raise TypeError(
                f"log() takes metrics by their names, as in log(val_loss=0.5), got {shortened((step, *unnamed))}."
            )
        values = {}
        for name, value in metrics.items():
            try:
                values[name] = read_number(name, value)
            except (TypeError, ValueError) as error:
                raise type(error)(f"log() takes one number for each metric: {error}") from None
        at_step = self.global_step if step is None else step
        is_on_trial, early_stop = self.controller.is_on_trial, self.host.early_stop
        if not is_on_trial and not (values := early_stop.news_of(values, at_step)):
            return
        self.host.announcer.tell(events.MetricsLogged, metrics=values, at_step=at_step, is_on_trial=is_on_trial)
        if is_on_trial:
            # No value of the run: it counts neither for the best checkpoint nor for early stopping.
            return
        length = self.steps_per_epoch
        if self.global_step - at_step >= length > 1 and abs(at_step - self.current_epoch) <= 1:
            self.host.announcer.warn_once("epoch as step", EPOCH_AS_STEP.format(at_step, self.global_step))
        # Where checkpoints hold the best model, no copy of it is kept in RAM.
        state_of_best = None if self.host.saver is not None else self.host.persistence.callbacks.state
        reason = early_stop.note(values, at_step, state_of_best)
        if self.host.persistence.note(values, at_step, self.global_step):
            self.requests.save()
        if reason:
            if early_stop.is_hasty and length > 1:
                self.host.announcer.warn_once("hasty", HASTY.format(reason))
            self.stop(reason)

    def stop(self, reason: str = "") -> None:
        """End the run after this step, as a success: it has done enough before its budget is used up.

        The iterators end, a checkpoint is saved, and the state of the run is "finished early". The same program run
        again with ``resume="auto"`` trains no further. (`Requests.stop` is for requests from outside, which only
        interrupt a run.)

        Args:
            reason: The reason, for viewers to show.

        >>> r8 = R8Scheduler(100, batch_size=10, num_epochs=3)
        >>> for epoch in r8.epoch_iterator():
        ...     for batch_indices, lr in r8.batch_iterator():
        ...         outcome = r8.update_with_loss(1.0)
        ...     r8.stop("one epoch is enough")
        >>> r8.global_step, r8.phase
        (10, 'finished early')
        """
        if not self.pace.is_over:
            self.requests.finish(reason)

    def load_best(self) -> float:
        """Restore the best model, by ``monitor``, through the load callback.

        It comes from the best checkpoint; without a folder for checkpoints, from a copy in RAM that the state callback
        makes at each new best value. The scheduler stays where it is.

        Returns:
            The value of the metric.

        Raises:
            RuntimeError: there is no best model, no load callback, or it raised.
        """
        return run_state.load_best(self.host.run)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to continue with exactly the same batches, rates and tables; at any step.

        Batches that are out will be drawn again first. The model, the callbacks and the budget are not included.

        Returns:
            Nested dicts and lists of arrays and plain values.
        """
        return run_state.whole_state_of(self.host.run)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state; the next batch is the one that the saved run would have drawn.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: the state is incomplete, of a newer version, or of another data set, batch size, estimator or
                last_batch. Nothing was changed.
        """
        run_state.load_state(self.host.run, state)
        # Backups are of another run, or of weights that were trained on from those that are loaded.
        persistence = self.host.persistence
        persistence.backup.clear()
        persistence.wake()

    def save_checkpoint(self) -> Checkpoint:
        """Write a checkpoint now; of weights that are not finite, those of a backup, as `check` puts them back.

        Raises:
            RuntimeError: neither checkpoint_dir nor save_callback was given.
            OSError: writing failed; earlier checkpoints are untouched.
        """
        self.host.settle()
        self.host.look_before_saving()
        state = self.state_dict()
        with self.host.run.saving:
            saved = self.host.persistence.save(state, state["pace"]["step"])
            self.controller.note_checkpoint(state["pace"]["step"])
            return saved

    def load_checkpoint(self, path: str | os.PathLike[str] | None = None) -> None:
        """Continue from a checkpoint: load the scheduler's state, and the model through the load callback.

        Args:
            path: File of the checkpoint; by default the newest valid one in ``checkpoint_dir``.

        Raises:
            NoValidCheckpoint: there is no readable checkpoint.
            ValueError: it is damaged, or of another data set.
            OSError: there is no such file.
            RuntimeError: the load callback raised. In all these cases the scheduler is unchanged.
        """
        run_state.load_checkpoint(self.host.run, path)

    @property
    def best_checkpoint(self) -> BestCheckpoint | None:
        """The checkpoint with the best value of ``monitor`` so far; None if there is none yet."""
        return None if self.host.saver is None else self.host.saver.best

    def update_cpu_backup(self, state: Any) -> None:
        """Copy a model state to RAM, for the load callback to restore after a refused loss.

        Args:
            state: Anything that `copy.deepcopy` copies: arrays, tensors, nests of them. During the learning-rate search
                no backup is taken, as the search restores its own. A state with NaN in it, or with infinities that the
                first one did not have, is not kept: the model is restored instead.
        """
        self.host.back_up(state)

    def check(self) -> bool:
        """Look at the weights now, as before a backup, and put back what is not finite.

        For loops that use the model between two steps, as for the rollout of a policy, where no loss shows that its
        weights are damaged. Call it between two steps; on several ranks all must call it.

        Returns:
            Whether every number of what ``state_callback`` returns was finite, and no array of weights had changed at
            once. If not, it is afterwards, unless there is no backup yet, or the next batches test the weights first.
        """
        return self.host.check_weights()

    def restore_backup(self) -> int:
        """Go on from the newest backup in RAM: the model, the guard, the counters and the rates of one step.

        This repairs a run in which an exception cut a call short (`RunInterrupted`). The batches drawn since then come
        once more; what the table has learned from them stays.

        Returns:
            The step of the backup, which is ``global_step`` now.

        Raises:
            RuntimeError: there is no backup or no load callback, it raised, or the call was cut short while the table
                was storing what it had learned; use `load_checkpoint`.
        """
        return run_state.restore_backup(self.host.run)

    def reset_baseline(self) -> None:
        """Tell the guard that losses mean something else from here on: another scale, another term, other data.

        The guard forgets the losses so far, and treats the next 80 like the first ones of a run. An incident that is
        under way ends, and the learning rate follows the schedule again. The model and the table stay as they are.

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
        with self.host.turns.take("reset_baseline", self.pace.step, is_changing=True):
            self.sentry.begin_anew()
            self.controller.begin_anew()
            text = "reset_baseline() was called: the guard has forgotten the losses before it."
            self.host.announcer.tell(events.Notice, text=text, is_warning=False)

    def release(self, indices: ArrayLike) -> None:
        """Release samples from quarantine: they are drawn again from the next chunk on.

        Args:
            indices: int[K], their positions; see `SampleTable.quarantined`. With several ranks, call it on all.

        Raises:
            TypeError: they are not integers.
            ValueError: one of them is not in quarantine. Nothing was changed.
        """
        samples = np.atleast_1d(np.asarray(indices))
        if not samples.size:
            return
        if samples.dtype.kind not in "iu":
            raise TypeError(f"indices must be whole numbers, positions of samples, got {indices!r}.")
        with self.host.turns.take("release", self.pace.step) as turn:
            held = self.table.storage.exclusions.holds(samples.astype(np.int64))
            if not held.all():
                raise ValueError(
                    f"indices must be in quarantine ({self.table.quarantined.tolist()[:20]}), got "
                    f"{samples[~held].tolist()[:20]} that are not."
                )
            turn.is_changing = True
            self.table.storage.exclusions.release(samples.astype(np.int64))
            self.host.announcer.tell(events.SamplesReleased, samples=tuple(samples.tolist()))

    def summary(self) -> str:
        """Describe the run so far in a few lines of text."""
        source, table, saver, is_own = self.host.source, self.table, self.host.saver, self.feed is not None
        checkpoints = "no checkpoints: neither checkpoint_dir nor save_callback" if saver is None else saver.summary()
        left_out = "batches left out for tests of the weights, or low-loss ones after a restore"
        displaced = f"{left_out}: {source.displaced}; "
        # NaN where the rate is the user's own and was never told.
        rate = "" if self.lr != self.lr else f", lr {self.lr:.3g}"
        lines = [
            f"{self._position}, {self.phase}{rate}",
            f"losses refused: {self.sentry.num_refused}; batches not reported: {source.abandoned}; "
            f"{displaced * (source.displaced > 0)}{checkpoints}"
            f"{self.controller.summary(is_over=self.is_over or self.pace.is_closed)}",
        ]
        if is_own and not table.num_samples:
            return "\n".join([*lines, f"{events.NO_TABLE}."])
        quarters = [
            f"  Q{number} {q.low:9.3g} to {q.high:<9.3g} mean {q.mean:<9.3g} used {q.uses:.1f} times"
            for number, q in enumerate(table.quartiles(), start=1)
        ]
        return "\n".join([*lines, f"losses of the samples ({table.source}):", *quarters])

    @property
    def _position(self) -> str:
        """The step, and of how many; of a run that has ended without a known number, the step alone."""
        total = self.total_steps or ("" if self.phase in ("finished", "finished early") else "?")
        return f"step {self.global_step}" + (f" of {total}" if total else "")

    @property
    def total_steps(self) -> int | None:
        """Steps in the whole run; None with a budget in seconds, and as long as the end is not known."""
        return self.pace.budget.steps

    @property
    def current_epoch(self) -> int:
        """The current epoch, 0-based; of a resumed run whose trainer counts the epochs, the one that it begins with."""
        return self.pace.epoch if self.feed is None else self.feed.current_epoch

    @property
    def progress(self) -> float:
        """Finished share of the budget, in [0, 1]; 0 as long as the end is not known."""
        return self.pace.progress

    @property
    def is_over(self) -> bool:
        """Whether no more batches will be drawn: the budget is spent, or the run was stopped."""
        return self.pace.is_over

    @property
    def phase(self) -> str:
        """A word for what the run is doing.

        One of "searching", "cataloguing", "steadying", "training", "cooling down", "stopped", "finished early" or
        "finished". A run that was closed has finished if its budget is spent, or it had none and no exception ended it.
        """
        if self.pace.is_stopped:
            return "stopped" if self.pace.ended_early is None else "finished early"
        if self.host.rates.search is not None:
            return "searching"
        if self.pace.is_finished or self._has_finished:
            return "finished"
        if self.pace.is_closed:
            return "stopped"
        if self.pace.budget.cool_down is not None:
            return "cooling down"
        if self.current_epoch == 0 and self.feed is None:
            return "cataloguing"
        return "steadying" if self.controller.state.steady_left else "training"

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """A ``with`` block whose time does not count towards ``train_duration_seconds``."""
        return self.pace.paused()

    def close(self) -> None:
        """Finish the run: save what is due and tell listeners that it has ended. Safe to call twice."""
        self._close(is_whole=sys.exc_info()[0] is None)

    def _speak_at_exit(self) -> None:
        if not self._speaks_at_exit:
            self._speaks_at_exit = True
            say_at_exit(self)

    def _warn_at_exit(self, error: BaseException | None) -> None:
        if error is None:
            run_state.say_if_one_epoch(self.host.run)
        elif not self.pace.step:
            run_state.say_how_to_unpack(self.host.run, error, is_own=self.feed is not None)

    def _close(self, *, is_whole: bool) -> None:
        if self.pace.is_closed:
            return
        self.pace.is_closed = True
        if is_whole:
            run_state.say_if_one_epoch(self.host.run)
        try:
            host = self.host
            if not host.emitter.has_started or host.turns.is_cut:
                # A run whose state is not whole is not saved.
                pass
            elif is_whole and (host.agreement.ranks is None or self.pace.is_over):
                host.settle()
                if self.feed is not None:
                    self.feed.end_whole_pass()
                host.between_steps(closing=True)
            else:
                # While an exception is propagating, the user's step may be half done and must not be saved.
                host.leave()
        except Exception:
            raise
        except BaseException:
            # Interrupted: close() may be called again.
            self.pace.is_closed = False
            raise
        finally:
            self.requests.leave()
            if self.pace.is_closed and self.host.saver is not None:
                self.host.saver.store.release()
            pace, early = self.pace, self.pace.ended_early
            if is_whole:
                run_state.say_if_refused_last(self.host.run)
            # A loop of the user's own without a budget ends where it does.
            is_at_end = is_whole and self.feed is not None and pace.budget.is_open and not pace.is_stopped
            self._has_finished = pace.is_finished or early is not None or is_at_end
            self.host.announcer.tell(events.RunEnded, finished=self._has_finished, early=early)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name, OTHER_NAMES)

    def __repr__(self) -> str:
        return f"R8Scheduler({self._position}, {self.phase}, lr={self.lr:.3g})"

    def _repr_html_(self) -> str:
        """The summary, for a notebook."""
        import html

        return f"<pre>{html.escape(self.summary())}</pre>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Called by pickle, copy() and deepcopy().
        raise TypeError(
            "an R8Scheduler cannot be pickled or copied, as it belongs to its process, callbacks and files. Build "
            "another one with the same arguments and load state_dict() into it, or use save_checkpoint() and "
            "resume_from_checkpoint()."
        )

    def __iter__(self) -> NoReturn:
        raise TypeError("an R8Scheduler must be looped over by epochs, got a loop over itself. " + LOOPS)

    def __enter__(self) -> R8Scheduler:
        return self

    def __exit__(self, *error: object) -> None:
        if self.feed is not None and any(error):
            self.feed.explain(error[1])
        # Unlike sys.exc_info(), this knows nothing of an exception that is being handled around the whole run.
        self._close(is_whole=not error or error[0] is None)


def _add_listeners(engine: Engine, settings: Settings) -> Journal | None:
    """Have the journal, the recorder of incidents and the screen hear of the run, as far as there are any.

    Returns:
        The record of the run, in its run folder; None without one.
    """
    announcer, recorder, journal = engine.announcer, engine.controller.recorder, None
    if settings.given["use_curses"] or settings.run_dir.folder is not None:
        from .journal.run import git_commit
        from .journal.writer import open_journal

        table, git = engine.table, git_commit()
        engine.run.settings = {**engine.run.settings, **({"git": git} if git else {})}
        sizes = {"num_samples": str(table.num_samples), "batch_size": str(table.batch_size)}
        journal = open_journal(
            settings.run_dir.folder, is_shown=settings.given["use_curses"], name=engine.name,
            configuration={**sizes, **engine.run.settings}, table=table, requests=engine.requests,
        )  # fmt: skip
    if journal is not None:
        announcer.add(journal)
    folder = None if journal is None else journal.folder
    if recorder is not None:
        if folder is not None:
            recorder.write_to(folder)
        announcer.add(recorder)
    if settings.given["use_curses"]:
        from .dashboard.live import Live

        announcer.add(Live(engine.requests, folder=folder or ""))
    return journal

"""The parts of train_loop: batches that know where an epoch ends, the step, and what happens at an epoch's end."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .._adapters.prefetch import Prefetch
from ..checkpoint.state_fit import fit
from ..checkpoint.state_form import unpack
from ..loops.elapsed_data import batch_size
from ..loops.log_entries import Entries, Logs
from ..loops.state import LoopState
from ..triggers import every
from .checkpoints import newest_training, save_training
from .data import OneEpoch, ValidationBatches, fold_in, step_keys
from .managed_state import ManagedState, loss_in, predictions_of_batch
from .metrics import RunningMeans, format_metrics
from .processes import size_of

MOST_UNREAD = 32
"""Epochs whose means may wait on the device until somebody asks: reading them waits for all work queued there."""

_VALIDATION = 2**31 - 1
"""Folded into an epoch's key for its validation; the blocks of the steps' keys count from 0."""


class Validation:
    """A validation after each epoch.

    Args:
        step: ``(state, batch, rng_key)``, returns a state and metrics.
        batches: The same at each validation.
    """

    def __init__(self, step: Callable[..., Any], batches: ValidationBatches) -> None:
        self._step, self._batches = step, batches

    def run(self, state: Any, epoch_key: Any) -> dict[str, float]:
        """The metrics' means over the samples.

        Raises:
            ValueError: there is no batch.
        """
        means, keys = RunningMeans(), step_keys(fold_in(epoch_key, _VALIDATION))
        num_batches = 0
        for batch in self._batches:
            _, metrics = self._step(state, batch, next(keys))
            means.add(metrics, batch_size(batch))
            num_batches += 1
        if not num_batches:
            raise ValueError(f"val_data_iterator must give at least one batch, got none from {self._batches!r}.")
        return means.read()


@dataclass(eq=False, repr=False)
class Training:
    """The moving parts of one `train_loop`, whose arguments these are.

    Attributes:
        history: A list of one value an epoch for each metric.
    """

    train_step: Callable[..., Any]
    data: Any
    num_epochs: int | None
    key: Any
    validation: Validation | None
    folder: Path | None
    checkpoint_every: int
    show_progress: bool
    scheduler: Any
    logs_steps: bool
    ids: Any
    backup_every: Any

    def __post_init__(self) -> None:
        self.history: dict[str, list[float]] = {}
        self._r8 = scheduler = self.scheduler
        self._is_own = scheduler is not None and scheduler.host.feed is not None
        self._prefetch: Any = None if scheduler is None or self._is_own else Prefetch.of(scheduler)
        self._first_epoch = 0 if scheduler is None else scheduler.current_epoch
        self._ticket: Any = None
        self._unread: list[RunningMeans] = []
        self._ticket_epoch: int | None = None
        self._num_ended = -1
        self._begin(self._first_epoch)

    def _begin(self, epoch: int, step: int = 0) -> None:
        self._epoch, self._means, self._began = epoch, RunningMeans(), time.monotonic()
        self._epoch_key = fold_in(self.key, epoch)
        self._keys = step_keys(self._epoch_key, step)

    def resume(self, state: Any) -> Any:
        """The state of the newest checkpoint, and everything else set as it was then; without one, as given."""
        assert self.folder is not None
        if self._is_own:
            raise ValueError(
                "resume must be False with a scheduler of your own batches, got True; give the scheduler "
                "checkpoint_dir and resume='auto', which brings the state and the data back."
            )
        content = newest_training(self.folder)
        if content is None:
            return state
        training = content["training"]
        if (training["scheduler"] is None) != (self._r8 is None):
            raise ValueError(f"scheduler must be given if the saved run had one, and only then, got {self._r8!r}.")
        if self._r8 is not None:
            self._check_same_place(training["epoch"])
            self._r8.load_state_dict(training["scheduler"])
        self.key = fit(unpack(training["key"]), self.key, "rng_key")
        self.history = {name: values.tolist() for name, values in training["history"].items()}
        self._first_epoch = training["epoch"]
        self._begin(self._first_epoch)
        return fit(unpack(content["state"]), state)

    def tasks(self) -> dict[Any, Any]:
        """What the loop calls, and when."""
        return {"on_start": self.begin, every(1): [self.step, self.end_epoch]}

    def _check_same_place(self, epoch: int) -> None:
        """Raise ValueError if the scheduler was resumed from somewhere else."""
        r8 = self._r8
        saved = epoch * r8.steps_per_epoch
        saved = saved if r8.total_steps is None else min(saved, r8.total_steps)
        if r8.pace.place not in (0, saved):
            raise ValueError(
                f"resume must be False for a scheduler that was resumed itself, got True with one at step "
                f"{r8.global_step} and a checkpoint of step {saved}; use resume=True with a fresh scheduler, or resume="
                '"auto" and checkpoint_dir of R8Scheduler, which then keeps the state too.'
            )

    def begin(self, loop_state: LoopState) -> None:
        """Let the scheduler keep the state of the loop."""
        if self._r8 is not None:
            self._managed = ManagedState.at(loop_state, self._r8, self.backup_every, step=self.train_step)

    def batches(self) -> Iterator[Any]:
        """The batches of all epochs."""
        if self._is_own:
            return self._watched()
        return self._drawn() if self._r8 is not None else self._given()

    def _given(self) -> Iterator[Any]:
        assert self.num_epochs is not None
        for epoch in range(self._first_epoch, self.num_epochs):
            self._begin(epoch)
            yield from self.data.of(epoch)

    def _watched(self) -> Iterator[Any]:
        """Yield the user's own batches, which the scheduler watches."""
        r8, feed = self._r8, self._r8.host.feed
        assert self.num_epochs is not None
        if feed.place.is_resumed:
            # Those of the epoch itself are left to the feed, unless it had them all.
            self.data.pass_over(feed.num_passes)
        for epoch in range(self._first_epoch, self.num_epochs):
            if r8.is_over:
                return
            self._begin(epoch, feed.place.num_taken if feed.place.is_resumed else 0)
            yield from r8.batches(OneEpoch(self.data, epoch), size=size_of, ids=self.ids)

    def _drawn(self) -> Iterator[Any]:
        r8 = self._r8
        try:
            while self.num_epochs is None or r8.current_epoch < self.num_epochs:
                ticket = self._ticket = self._prefetch.draw_now()
                if ticket is None:
                    return
                self._follow(ticket)
                batch, weights = self.data(ticket.indices), self._prefetch.weights_of(ticket)
                yield batch if weights is None else _weighted(batch, weights)
        finally:
            # A batch whose step was interrupted is the next one drawn.
            self._prefetch.hand_back()
            r8.requests.leave()

    def _follow(self, ticket: Any) -> None:
        """Begin the epoch of a batch, if it is another one; also in the middle, after a resume of the scheduler."""
        if self._ticket_epoch != ticket.epoch:
            self._ticket_epoch = ticket.epoch
            self._begin(max(ticket.epoch, 0), self._r8.handed_out)

    def step(self, loop_state: LoopState) -> Any:
        """Train on a batch."""
        r8, ticket, batch = self._r8, self._ticket, loop_state.batch
        before = loop_state.state if r8 is None else self._managed.for_step(None if ticket is None else ticket.lr)
        state, metrics = self.train_step(before, batch, self._take(batch))
        if r8 is not None:
            metrics = dict(metrics)
            if not self._report(state, metrics):
                return None
            # Where the rate was lowered for this step, it has its own again.
            state = loop_state.state
        self._means.add(metrics, batch_size(batch))
        return (Logs(metrics=Entries(metrics)) if self.logs_steps else None), state

    def _take(self, batch: Any) -> Any:
        """The key of the next step, whose batch is held until the one after it."""
        key = next(self._keys)
        if self._r8 is not None and self._managed.examiner is not None:
            self._managed.examiner.take(batch, key, () if self._ticket is None else self._ticket.indices)
        return key

    def _report(self, state: Any, metrics: dict[str, Any]) -> Any:
        """Report what a step's metrics say of the loss; what is no metric is taken out of them."""
        loss, predictions = loss_in(metrics), metrics.pop("predictions", None)
        metrics.pop("losses", None)
        if self._is_own:
            return self._managed.judge(state, loss, self._r8.update_with_loss)
        report = functools.partial(self._prefetch.report, predictions=predictions_of_batch(predictions))
        return self._managed.judge(state, loss, report, num_samples=len(self._ticket.indices))

    def end_epoch(self, loop_state: LoopState) -> Logs | None:
        """Validate, remember, save and show, if this step was the last one of its epoch."""
        if not self._is_last() or self._epoch == self._num_ended:
            # The second: a batch that tests weights may follow the last one.
            return None
        self._num_ended = self._epoch
        if self._is_own:
            self._r8.host.feed.end_pass()
        elif self._r8 is not None:
            self._r8.host.leave_epoch()
        self._means.close()
        self._unread.append(self._means)
        self._means = RunningMeans()
        validated = {} if self.validation is None else self.validation.run(loop_state.state, self._epoch_key)
        val = {f"val_{name}": value for name, value in validated.items()}
        if self._r8 is not None and val:
            self._r8.log(**val)
        is_saved = self._is_saved()
        if not (val or is_saved or self.show_progress or self.logs_steps or len(self._unread) == MOST_UNREAD):
            return None
        new = self.read(val)
        if is_saved:
            self._save(loop_state.state)
        if self.show_progress:
            self._show(new)
        logs = Logs()
        for name, value in new.items():
            logs.add_stateful_metric(name, value)
        return logs

    def read(self, val: Mapping[str, float] = MappingProxyType({})) -> dict[str, float]:
        """Read the epochs that are still on the device into the history; the metrics of the last one.

        Args:
            val: What its validation has found.
        """
        new: dict[str, float] = {}
        for number, means in enumerate(self._unread, start=1):
            new = {f"train_{name}": value for name, value in means.read().items()}
            new.update(val if number == len(self._unread) else {})
            self.history = _with_epoch(self.history, new)
        self._unread.clear()
        return new

    def _show(self, metrics: Mapping[str, float]) -> None:
        of = "" if self.num_epochs is None else f"/{self.num_epochs}"
        seconds = time.monotonic() - self._began
        print(f"epoch {self._epoch + 1}{of}: {format_metrics(metrics)} ({seconds:.1f} s)", flush=True)

    def _is_last(self) -> bool:
        if self._r8 is None or self._is_own:
            return bool(self.data.is_last)
        is_over = self._r8.current_epoch > self._epoch or self._r8.progress >= 1
        return bool(self._ticket.epoch >= 0 and is_over)

    def _is_saved(self) -> bool:
        done = self._epoch + 1
        is_drawn = self._r8 is not None and not self._is_own
        is_final = done == self.num_epochs or (is_drawn and self._r8.progress >= 1)
        return self.folder is not None and (is_final or done % self.checkpoint_every == 0)

    def _save(self, state: Any) -> None:
        assert self.folder is not None
        epoch = self._epoch + 1
        save_training(state, self.folder, epoch=epoch, history=self.history, key=self.key, scheduler=self._r8)


def _with_epoch(history: Mapping[str, list[float]], new: Mapping[str, float]) -> dict[str, list[float]]:
    """A history with one more epoch: every list has a value for each, NaN where an epoch had no such metric.

    >>> _with_epoch({"loss": [2.0]}, {"loss": 1.0, "error": 0.5})
    {'loss': [2.0, 1.0], 'error': [nan, 0.5]}
    """
    missing = [math.nan] * max(map(len, history.values()), default=0)
    names = [*history, *(name for name in new if name not in history)]
    return {name: [*history.get(name, missing), new.get(name, math.nan)] for name in names}


def _weighted(batch: Any, weights: Any) -> dict[str, Any]:
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"data_iterator_fn must return a dictionary where the policy weights samples, which get batch['weights'], "
            f"got a {type(batch).__name__}."
        )
    return {**batch, "weights": weights}

"""The parts of train_loop: batches that know where an epoch ends, the step, and what happens at an epoch's end."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from .._validation import whole_number
from ..bridge.prefetch import Prefetch
from ..events.caller import warn
from ..events.codec import strict_json
from ..loops.checkpoints import numbered, save_state
from ..loops.elapsed_data import batch_size
from ..loops.log_entries import Entries, Logs
from ..loops.state import LoopState
from ..state.codec import decode, encode
from ..state.durable_io import replace
from ..state.tree import fit, pack, unpack
from ..triggers import every
from .data import OneEpoch, ValidationBatches, fold_in, step_keys
from .managed_state import ManagedState, loss_in, predictions_of_batch
from .processes import size_of

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler

BLOCK = 64
"""Values of a metric that are added up in one call on the device: a call for each would cost more than small steps."""


@dataclass(frozen=True)
class Metrics:
    """Named numbers of a batch or an epoch.

    Attributes:
        values: Their names and values; 0-dim arrays are fine.
    """

    values: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def average_metrics(batch_metrics: Sequence[Metrics], weights: Sequence[float] | None = None) -> Metrics:
    """Average over batches: each name over the batches that have it; a vector counts by its mean.

    Args:
        batch_metrics: One or more.
        weights: One for each, >= 0, the sizes of the batches for instance; by default all equal.

    Returns:
        Floats.

    Raises:
        ValueError: no metrics, or not one weight for each.

    >>> average_metrics([Metrics({"loss": 1.0}), Metrics({"loss": 2.0})], weights=[3, 1])["loss"]
    1.25
    """
    chosen = [1.0] * len(batch_metrics) if weights is None else list(weights)
    if not batch_metrics or len(chosen) != len(batch_metrics):
        raise ValueError(
            f"weights must have one entry for each of the metrics (at least 1), got {len(chosen)} for "
            f"{len(batch_metrics)}."
        )
    means = RunningMeans()
    for metrics, weight in zip(batch_metrics, chosen, strict=True):
        means.add(metrics.values, weight)
    return Metrics(means.read())


def format_metrics(metrics: Metrics | Mapping[str, Any], precision: int = 4) -> str:
    """Write metrics on one line.

    Args:
        metrics: Numbers or 0-dim arrays.
        precision: Digits after the point, >= 0.

    >>> format_metrics(Metrics({"loss": 1.5, "accuracy": 0.25}))
    'loss: 1.5000, accuracy: 0.2500'
    """
    values = metrics.values if isinstance(metrics, Metrics) else metrics
    return ", ".join(f"{name}: {float(value):.{precision}f}" for name, value in values.items())


def save_metrics_history(history: Mapping[str, Sequence[float]], path: str | os.PathLike[str]) -> None:
    """Write a history as strict JSON, ``{name: [value of each epoch]}``; numbers that are not finite become null."""
    lists = {name: [float(value) for value in values] for name, values in history.items()}
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace(file, strict_json(lists, non_finite=lambda value: None, indent=2).encode())


class RunningMeans:
    """Weighted means of metrics that stay on the device until `read`."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[list[Any], list[float]]] = {}
        self._sums: dict[str, list[Any]] = {}
        self._weights: dict[str, float] = {}

    def add(self, metrics: Mapping[str, Any], weight: float) -> None:
        """Take the metrics of a batch; nothing is read or computed for most of them yet. None and text are left out."""
        for name, value in _numbers(metrics):
            waiting = self._waiting.get(name)
            if waiting is None:
                waiting = self._waiting[name] = ([], [])
                self._weights.setdefault(name, 0.0)
                self._sums.setdefault(name, [])
            values, weights = waiting
            values.append(value)
            weights.append(weight)
            self._weights[name] += weight
            if len(values) == BLOCK:
                self._add_up(name)

    def _add_up(self, name: str) -> None:
        values, weights = self._waiting.pop(name)
        missing = BLOCK - len(values)
        # Blocks of one length compile once.
        same_type = (*values, *values[:1] * missing)
        self._sums[name].append(_weighted_sum(same_type, np.asarray([*weights, *[0.0] * missing], np.float32)))

    def close(self) -> None:
        """Add up what is left, so that little is kept on the device."""
        for name in list(self._waiting):
            self._add_up(name)

    def read(self) -> dict[str, float]:
        """The means; waits for the device, once."""
        self.close()
        sums = jax.device_get(self._sums)
        weights = self._weights
        return {
            name: math.fsum(map(float, parts)) / weights[name] if weights[name] else math.nan
            for name, parts in sums.items()
        }


def _numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The metrics that have a mean; those of nested ones as "outer.inner"."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", each) for inner, each in _numbers(value))
        elif value is not None and not isinstance(value, (str, bytes)):
            yield name, value


@jax.jit
def _weighted_sum(values: tuple[Any, ...], weights: Any) -> Any:
    means = jnp.stack([jnp.mean(jnp.asarray(value, float)) for value in values])
    # Not weights @ means: no weight times infinity would be NaN.
    return jnp.sum(jnp.where(weights > 0, means * weights, 0.0))


PREFIX = "checkpoint_"


def save_checkpoint(state: Any, directory: str | os.PathLike[str], step: int | None = None) -> Path:
    """Write a state to ``directory/checkpoint_<step>``, in place of one of that name.

    Args:
        state: A `TrainState`, or any pytree of arrays and numbers.
        directory: Made if it is missing.
        step: >= 0; by default ``state.step``.

    Returns:
        The file.

    Raises:
        ValueError: the step is not whole or below 0.
        TypeError: a leaf of the state cannot be saved.
    """
    number = int(state.step) if step is None else whole_number("step", step, least=0)
    path = Path(directory) / f"{PREFIX}{number}"
    save_state(path, state)
    return path


def load_checkpoint(path: str | os.PathLike[str], state: Any = None) -> Any:
    """Read a state.

    Args:
        path: The file.
        state: A state of the same structure, such as a fresh one; gives what a file cannot hold, the functions and
            the types of the optimizer.

    Returns:
        A state that can train on: parameters, optimizer, step and statistics as they were. Without ``state``, nested
        dicts, lists and tuples of numpy arrays.

    Raises:
        ValueError: the file is damaged, or of another structure than ``state``.
        OSError: there is no such file.
    """
    saved = unpack(decode(Path(path).read_bytes())["state"])
    return saved if state is None else fit(saved, state)


def pack_scheduler(r8: R8Scheduler) -> NDArray[np.uint8]:
    """The state of a scheduler as one array, for checkpoints of arrays alone, such as those of orbax.

    Call it between two steps, in a callback of `train_loop` for instance, and save it beside the training's state.

    Returns:
        uint8[any]; its length differs from step to step.
    """
    return np.frombuffer(encode(r8.state_dict()), np.uint8)


def unpack_scheduler(r8: R8Scheduler, packed: Any) -> None:
    """Let a scheduler go on from where `pack_scheduler` was called; restore the training's state yourself.

    Args:
        r8: Built with the same arguments.
        packed: uint8[any], as it was read from the checkpoint.

    Raises:
        ValueError: the array is damaged, or of a run over other samples.
    """
    r8.load_state_dict(decode(np.asarray(packed, np.uint8).tobytes()))


def save_training(
    state: Any, directory: Path, *, epoch: int, history: dict[str, list[float]], key: Any, scheduler: Any
) -> None:
    """Write a checkpoint of a whole training: the state, and all that `train_loop` needs to go on."""
    training = {
        "epoch": epoch,
        "history": {name: np.asarray(values, dtype=np.float64) for name, values in history.items()},
        "key": pack(key),
        "scheduler": None if scheduler is None else scheduler.state_dict(),
    }
    save_state(directory / f"{PREFIX}{epoch}", state, training=training)


def newest_training(directory: Path) -> dict[str, Any] | None:
    """The content of the newest valid checkpoint of a training; None without. Warns of damaged ones and skips them."""
    for _, path in reversed(numbered(directory, PREFIX)):
        try:
            content = decode(path.read_bytes())
            if "training" not in content:
                raise ValueError(f"{path.name} must be written by train_loop(), got one with {sorted(content)}.")
        except (OSError, ValueError) as error:
            warn(f"a checkpoint was passed over: {path.name}: {error}")
            continue
        return content
    return None


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
        self._is_own = scheduler is not None and scheduler.feed is not None
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
        r8, feed = self._r8, self._r8.feed
        assert self.num_epochs is not None
        if feed.source.is_resumed:
            # Those of the epoch itself are left to the feed, unless it had them all.
            self.data.pass_over(feed.num_passes)
        for epoch in range(self._first_epoch, self.num_epochs):
            if r8.is_over:
                return
            self._begin(epoch, feed.source.num_taken if feed.source.is_resumed else 0)
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
        is_drawn = self._r8 is not None and not self._is_own
        if is_drawn:
            is_last = self._ticket.epoch >= 0 and (self._r8.current_epoch > self._epoch or self._r8.progress >= 1)
        else:
            is_last = self.data.is_last
        if not is_last or self._epoch == self._num_ended:
            # The second: a batch that tests weights may follow the last one.
            return None
        self._num_ended = self._epoch
        if self._is_own:
            self._r8.feed.end_pass()
        elif self._r8 is not None:
            self._r8.host.leave_epoch()
        self._means.close()
        self._unread.append(self._means)
        self._means = RunningMeans()
        validated = {} if self.validation is None else self.validation.run(loop_state.state, self._epoch_key)
        val = {f"val_{name}": value for name, value in validated.items()}
        if self._r8 is not None and val:
            self._r8.log(**val)
        done = self._epoch + 1
        is_final = done == self.num_epochs or (is_drawn and self._r8.progress >= 1)
        is_saved = self.folder is not None and (is_final or done % self.checkpoint_every == 0)
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

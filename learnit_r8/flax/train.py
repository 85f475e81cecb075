"""train_loop: epochs of a jitted step, with validation, checkpoints and a history."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from numpy.typing import NDArray

from .._validation import whole_number
from ..bridge.host import check_scheduler
from ..bridge.prefetch import Prefetch
from ..engine.feed.replay import NOT_LOADED, has_position
from ..events.caller import warn
from ..events.codec import strict_json
from ..loops.checkpoints import numbered, save_state
from ..loops.elapsed_data import batch_size, opened
from ..loops.log_entries import Entries, Logs
from ..loops.run import LoopState, loop
from ..sources.random_generators import hold_random_state
from ..state.codec import decode, encode
from ..state.durable_io import replace
from ..state.tree import fit, pack, unpack
from ..triggers import every
from .managed_state import ManagedState, loss_in, predictions_of_batch
from .processes import size_of, whole

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..triggers import Condition


KEYS_AT_ONCE = 64
"""Random keys that are made in one call on the device."""

_NONE_LEFT: Any = object()
_UNREAD: Any = object()


def train_loop(
    state: Any,
    train_step_fn: Any,
    data_iterator_fn: Any,
    num_epochs: int | None = None,
    num_batches: int | None = None,
    rng_key: Any = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    val_step_fn: Any = None,
    val_data_iterator: Any = None,
    val_num_batches: int | None = None,
    show_progress: bool = True,
    *,
    scheduler: R8Scheduler | None = None,
    resume: bool = False,
    callbacks: Any = None,
    ids: Any = None,
    backup_every: int | str | Condition | None = None,
) -> tuple[Any, dict[str, list[float]]]:
    """Train for some epochs, validate after each, save checkpoints, and keep the metrics.

    Means are weighted by the sizes of the batches, and read from the device when somebody asks for them. The keys of
    the steps follow from ``rng_key``, the epoch and the step alone. On Ctrl-C it ends and returns what it has so far.

    Args:
        state: A `TrainState`, or whatever the step takes and returns.
        train_step_fn: ``(state, batch, rng_key)``, returns the new state and a dictionary of metrics: numbers, 0-dim
            arrays, or vectors, which count by their mean.
        data_iterator_fn: A function that returns an epoch's batches (given the epoch, 0-based, if it takes
            ``epoch``); or an iterable of them; or an iterator, from which each epoch takes its share. With a scheduler,
            ``(indices)``, returns the batch of these samples.
        num_epochs: Epochs, >= 1, including those before a resume; with a scheduler you may leave it out.
        num_batches: Most batches in an epoch, >= 1; None for all. An epoch of fewer batches is a shorter epoch.
        rng_key: A key of ``jax.random``.
        checkpoint_dir: Folder for ``checkpoint_<epochs>``, the last epoch always among them; None for none.
        checkpoint_every: Epochs between two checkpoints, >= 1.
        val_step_fn: ``(state, batch, rng_key)``, returns a state, which is dropped, and metrics.
        val_data_iterator: Batches to validate on: a function, called at each validation; an iterable; or an iterator,
            whose first ``val_num_batches`` batches are kept.
        val_num_batches: How many, >= 1; None for all.
        show_progress: Whether to print a line an epoch.
        scheduler: One without ``num_samples`` keeps the batches and, with ``scheduler_mode="keep"``, the rates as they
            are, and heals the state. Any other draws the batches, sets the ``learning_rate`` of
            ``optax.inject_hyperparams``, and reads ``metrics["losses"]``, float[B], if there is such an entry, else
            ``metrics["loss"]``; and with the losses ``metrics["predictions"]``, what
            `learnit_r8.flax.predictions_of` returned. It keeps the state (backups in RAM; checkpoints if it has a
            ``checkpoint_dir``), beside what your own callbacks keep: a refused batch leaves the state as it was, or
            replaces it with an older one. The step may donate it. A policy's weights are ``batch["weights"]``.
        resume: Whether to continue from the newest valid checkpoint in ``checkpoint_dir``, if there is one: with its
            state, key, history and scheduler.
        callbacks: As in `learnit_r8.loops.loop`; called at each step. Logs have the step's metrics by their names,
            and at an epoch's end those of the history.
        ids: Which samples a batch holds, for a scheduler without ``num_samples``: the key of their ids, or a function
            of a batch; see `R8Scheduler.batches`. With ``metrics["losses"]`` there is a table then.
        backup_every: When to copy the state to main memory, for a scheduler; see `ManagedState`. By default every 30
            seconds and four times an epoch.

    Returns:
        The final state, and for each metric a list with one value per epoch, "train_..." and "val_...".

    Raises:
        ValueError: an argument out of its range or missing, an epoch without batches, or no loss for the scheduler.
        TypeError: a function is not one.
    """
    _check_step("train_step_fn", train_step_fn)
    if rng_key is None or (resume and checkpoint_dir is None):
        raise ValueError(
            f"rng_key must be given, and checkpoint_dir to resume, got {rng_key!r} and {checkpoint_dir!r}."
        )
    data = _data(data_iterator_fn, num_batches, scheduler)
    draws = scheduler is not None and scheduler.feed is None
    if ids is not None and (scheduler is None or draws):
        raise ValueError(f"ids must be left out without a scheduler of your own batches, got {ids!r}.")
    if backup_every is not None and scheduler is None:
        raise ValueError(f"backup_every must be left out without a scheduler, got {backup_every!r}.")
    if num_batches and scheduler is not None and scheduler.feed is not None:
        scheduler.feed.expect_epochs_of(num_batches)
    if num_epochs is not None or not draws:
        num_epochs = whole_number("num_epochs", num_epochs, least=1)
    training = Training(
        train_step_fn,
        data=data,
        num_epochs=num_epochs,
        key=rng_key,
        validation=_validation(val_step_fn, val_data_iterator, val_num_batches),
        folder=None if checkpoint_dir is None else Path(checkpoint_dir),
        checkpoint_every=whole_number("checkpoint_every", checkpoint_every, least=1),
        show_progress=show_progress,
        scheduler=scheduler,
        logs_steps=callbacks is not None,
        ids=ids,
        backup_every=backup_every,
    )
    tasks = {"on_start": training.begin, every(1): [training.step, training.end_epoch]}
    final, _, _ = loop(training.resume(state) if resume else state, training.batches, tasks, callbacks)
    return final, training.history


def _check_step(name: str, step: Any) -> None:
    if not callable(step):
        raise TypeError(f"{name} must be a function of state, batch and rng_key, got {step!r}.")


def _validation(step: Any, source: Any, num_batches: int | None) -> Callable[[Any, Any], dict[str, float]] | None:
    """What returns the metrics' means over the samples, of a state and the key of an epoch; None without validation."""
    most = None if num_batches is None else whole_number("val_num_batches", num_batches, least=1)
    if (step is None) != (source is None):
        raise ValueError(f"val_step_fn and val_data_iterator must be given together, got {step!r} and {source!r}.")
    if step is None:
        return None
    _check_step("val_step_fn", step)
    # Of an iterator the same batches at every validation.
    kept = list(itertools.islice(source, most)) if isinstance(source, Iterator) else source

    def validate(state: Any, epoch_key: Any) -> dict[str, float]:
        means, keys, num_batches = RunningMeans(), step_keys(fold_in(epoch_key, _VALIDATION)), 0
        for batch in itertools.islice(opened(kept), most):
            _, metrics = step(state, batch, next(keys))
            means.add(metrics, batch_size(batch))
            num_batches += 1
        if not num_batches:
            raise ValueError(f"val_data_iterator must give at least one batch, got none from {source!r}.")
        return means.read()

    return validate


def _data(source: Any, num_batches: int | None, scheduler: Any) -> Any:
    most = None if num_batches is None else whole_number("num_batches", num_batches, least=1)
    if scheduler is None:
        return EpochBatches(source, most)
    check_scheduler("scheduler", scheduler)
    if scheduler.feed is not None:
        return EpochBatches(source, most, keeps_generators=True)
    if not callable(source):
        raise TypeError(f"data_iterator_fn must be a function of indices where a scheduler draws, got {source!r}.")
    if most is not None and most != scheduler.steps_per_epoch:
        raise ValueError(
            f"num_batches must be the scheduler's {scheduler.steps_per_epoch} or left out, got {num_batches!r}."
        )
    return source


READ_EVERY = 256
"""Steps whose metrics are kept on the device before they are read: reading each would make it wait."""


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
        self._unread: list[tuple[dict[str, Any], float]] = []
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._weights: defaultdict[str, float] = defaultdict(float)

    def add(self, metrics: Mapping[str, Any], weight: float) -> None:
        """Take the metrics of a batch, which are not read yet. None and text are left out."""
        self._unread.append((dict(_numbers(metrics)), weight))
        if len(self._unread) == READ_EVERY:
            self.read()

    def read(self) -> dict[str, float]:
        """The means so far; waits for the device, once."""
        for metrics, weight in jax.device_get(jax.tree.map(whole, self._unread)):
            for name, value in metrics.items():
                self._weights[name] += weight
                # No weight times infinity would be NaN.
                self._sums[name] += weight * float(np.mean(np.asarray(value, float))) if weight else 0.0
        self._unread.clear()
        return {
            name: total / self._weights[name] if self._weights[name] else math.nan for name, total in self._sums.items()
        }


def _numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The metrics that have a mean; those of nested ones as "outer.inner"."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", each) for inner, each in _numbers(value))
        elif value is not None and not isinstance(value, (str, bytes)):
            yield name, value


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


_VALIDATION = 2**31 - 1
"""Folded into an epoch's key for its validation; the blocks of the steps' keys count from 0."""


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
    validation: Callable[[Any, Any], dict[str, float]] | None
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
            self._managed = ManagedState(
                self._r8, loop_state.state, backup_every=self.backup_every, _place=loop_state, _step=self.train_step
            )

    def batches(self) -> Iterator[Any]:
        """The batches of all epochs."""
        return self._given() if self._prefetch is None else self._drawn()

    def _given(self) -> Iterator[Any]:
        """Yield the user's own batches, which the scheduler watches if there is one."""
        r8, data = self._r8, self.data
        source = None if r8 is None else r8.feed.source
        assert self.num_epochs is not None
        if source is not None and source.is_resumed:
            # Those of the epoch itself are left to the feed, unless it had them all.
            data.pass_over(r8.feed.num_passes)
        for epoch in range(self._first_epoch, self.num_epochs):
            if r8 is not None and r8.is_over:
                return
            self._begin(epoch, source.num_taken if source is not None and source.is_resumed else 0)
            data.number = epoch
            yield from data if r8 is None else r8.batches(data, size=size_of, ids=self.ids)

    def _drawn(self) -> Iterator[Any]:
        r8 = self._r8
        with contextlib.closing(self._prefetch.tickets()) as tickets:
            while self.num_epochs is None or r8.current_epoch < self.num_epochs:
                ticket = self._ticket = next(tickets, None)
                if ticket is None:
                    return
                if self._ticket_epoch != ticket.epoch:
                    # Also in the middle of it, after a resume of the scheduler.
                    self._ticket_epoch = ticket.epoch
                    self._begin(max(ticket.epoch, 0), r8.handed_out)
                batch, weights = self.data(ticket.indices), self._prefetch.weights_of(ticket)
                yield batch if weights is None else _weighted(batch, weights)

    def step(self, loop_state: LoopState) -> Any:
        """Train on a batch."""
        ticket, batch, key = self._ticket, loop_state.batch, next(self._keys)
        if self._r8 is None:
            state, metrics = self.train_step(loop_state.state, batch, key)
        else:
            managed = self._managed
            if managed.examiner is not None:
                managed.examiner.take(batch, key, () if ticket is None else ticket.indices)
            after, metrics = self.train_step(managed.for_step(None if ticket is None else ticket.lr), batch, key)
            metrics = dict(metrics)
            if not self._report(after, metrics):
                return None
            # Where the rate was lowered for this step, it has its own again.
            state = loop_state.state
        self._means.add(metrics, batch_size(batch))
        return (Logs(metrics=Entries(metrics)) if self.logs_steps else None), state

    def _report(self, state: Any, metrics: dict[str, Any]) -> Any:
        """Report what metrics say of the loss; with batches of R8's, what is no metric is taken out of them."""
        loss = loss_in(metrics)
        if self._is_own:
            return self._managed.judge(state, loss, self._r8.update_with_loss)
        predictions = metrics.pop("predictions", None)
        metrics.pop("losses", None)
        report = functools.partial(self._prefetch.report, predictions=predictions_of_batch(predictions))
        return self._managed.judge(state, loss, report, num_samples=len(self._ticket.indices))

    def end_epoch(self, loop_state: LoopState) -> Logs | None:
        """Validate, remember, save and show, if this step was the last one of its epoch."""
        is_drawn = self._prefetch is not None
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
        means, self._means = self._means.read(), RunningMeans()
        validated = {} if self.validation is None else self.validation(loop_state.state, self._epoch_key)
        val = {f"val_{name}": value for name, value in validated.items()}
        if self._r8 is not None and val:
            self._r8.log(**val)
        new = {**{f"train_{name}": value for name, value in means.items()}, **val}
        # Every list has a value for each epoch, NaN where one had no such metric.
        missing = [math.nan] * max(map(len, self.history.values()), default=0)
        for name in {**self.history, **new}:
            self.history[name] = [*self.history.get(name, missing), new.get(name, math.nan)]
        done = self._epoch + 1
        is_final = done == self.num_epochs or (is_drawn and self._r8.progress >= 1)
        if self.folder is not None and (is_final or done % self.checkpoint_every == 0):
            self._save(loop_state.state, self.folder)
        if self.show_progress:
            self._show(new)
        logs = Logs()
        for name, value in new.items():
            logs.add_stateful_metric(name, value)
        return logs

    def _show(self, metrics: Mapping[str, float]) -> None:
        of = "" if self.num_epochs is None else f"/{self.num_epochs}"
        seconds = time.monotonic() - self._began
        print(f"epoch {self._epoch + 1}{of}: {format_metrics(metrics)} ({seconds:.1f} s)", flush=True)

    def _save(self, state: Any, folder: Path) -> None:
        """Write a checkpoint of the whole training: the state, and all that is needed to go on."""
        training = {
            "epoch": self._epoch + 1,
            "history": {name: np.asarray(values, dtype=np.float64) for name, values in self.history.items()},
            "key": pack(self.key),
            "scheduler": None if self._r8 is None else self._r8.state_dict(),
        }
        save_state(folder / f"{PREFIX}{self._epoch + 1}", state, training=training)


def _weighted(batch: Any, weights: Any) -> dict[str, Any]:
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"data_iterator_fn must return a dictionary where the policy weights samples, which get batch['weights'], "
            f"got a {type(batch).__name__}."
        )
    return {**batch, "weights": weights}


def takes_epoch(source: Any) -> bool:
    """Whether it is a function with a parameter ``epoch``."""
    try:
        return callable(source) and "epoch" in inspect.signature(source).parameters
    except (TypeError, ValueError):
        return False


class EpochBatches:
    """The batches of one epoch after the other, as an iterable, and which one is the last of its epoch.

    Args:
        source: A function that returns an iterable (given the epoch, 0-based, if it takes ``epoch``); an iterable, gone
            through once an epoch; or an iterator, of which each epoch takes the next batches.
        num_batches: Most batches in an epoch; None for all.
        keeps_generators: Whether to keep the random generators as they are before a batch is taken.

    Attributes:
        number: Which epoch is iterated over, 0-based; to be set before.
        goes_on: Whether an epoch begins where the one before it ended, by the iterator's own account.
    """

    # No ``__dict__``: a resumed run looks through that of a loader for what the order of its batches follows from.
    __slots__ = (
        "_batches", "_coming", "_generators", "_keeps_generators", "_num_batches", "_position", "_source", "_taken",
        "_takes_epoch", "_to_load", "goes_on", "number",
    )  # fmt: skip

    def __init__(self, source: Any, num_batches: int | None, *, keeps_generators: bool = False) -> None:
        self._generators: Any = None
        self._keeps_generators = keeps_generators
        if not callable(source):
            opened(source)
        self._source, self._num_batches = source, num_batches
        self._takes_epoch = takes_epoch(source)
        self.goes_on = isinstance(source, Iterator) and has_position(source)
        self._batches: Any = iter(())
        self._coming: Any = _NONE_LEFT
        self.number, self._taken, self._position = 0, 0, None
        self._to_load: Mapping[str, Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of the epoch.

        Raises:
            ValueError: there is none.
        """
        self._taken, self._batches = 0, self._open()
        saved, self._to_load = self._to_load, None
        if saved is not None:
            self._taken = saved["taken"] if saved["epoch"] == self.number else 0
            self._find_place(saved["iterator"])
        num_before, self._coming = self._taken, _UNREAD
        if self.is_last and not num_before:
            raise ValueError(
                f"data_iterator_fn must give at least one batch an epoch, got none in epoch {self.number}; an iterator "
                "can be read only once, so pass a function or a list."
            )
        while not self.is_last:
            batch, self._coming = self._coming, _UNREAD
            self._taken += 1
            yield batch

    def _open(self) -> Any:
        return opened(self._source(epoch=self.number) if self._takes_epoch else self._source)

    def _find_place(self, state: Any) -> None:
        try:
            self._batches.set_state(state)
        except ValueError as error:
            # A DataLoader of grain compares the repr of its source, which may hold an address.
            if self.goes_on:
                raise
            warn(NOT_LOADED.format(str(error).splitlines()[0]))
            self._batches = itertools.islice(self._open(), self._taken, None)

    @property
    def is_last(self) -> bool:
        """Whether the batch that was yielded last ends the epoch; takes the next one, so ask after training on it."""
        if self._coming is _UNREAD:
            # Before the next one is taken, which belongs to the next step.
            self._position = self._batches.get_state() if has_position(self._batches) else None
            self._generators = hold_random_state() if self._keeps_generators else None
            is_full = self._num_batches is not None and self._taken >= self._num_batches
            self._coming = _NONE_LEFT if is_full else next(self._batches, _NONE_LEFT)
        return self._coming is _NONE_LEFT

    @property
    def generators_before_next(self) -> Any:
        """The generators before the batch after the one in hand, if that was taken and they are kept; else None."""
        return None if self._coming is _UNREAD or self._coming is _NONE_LEFT else self._generators

    def state_dict(self) -> dict[str, Any] | None:
        """Where an iterator with a state of its own is, as grain's are; None for others."""
        is_read = self._coming is not _UNREAD
        state = self._position if is_read else self._batches.get_state() if has_position(self._batches) else None
        return None if state is None else {"epoch": self.number, "taken": self._taken, "iterator": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next epoch that is asked for begin where `state_dict` was called."""
        self._to_load = state

    def pass_over(self, num_epochs: int) -> None:
        """Take what so many epochs had out of an iterator that gives all epochs and cannot be brought to a place."""
        if isinstance(self._source, Iterator) and self._num_batches is not None and not self.goes_on:
            count = num_epochs * self._num_batches
            next(itertools.islice(self._source, count, count), None)


def step_keys(epoch_key: Any, start: int = 0) -> Iterator[Any]:
    """The random keys of an epoch's steps, from one of them on; a few dozen are made at a time."""
    for block in itertools.count(start // KEYS_AT_ONCE):
        yield from itertools.islice(_split(epoch_key, block), start % KEYS_AT_ONCE, None)
        start = 0


fold_in = jax.jit(jax.random.fold_in)
"""``jax.random.fold_in``, which costs ten times as much where it is not jitted."""


@jax.jit
def _split(epoch_key: Any, block: Any) -> Any:
    return jax.random.split(jax.random.fold_in(epoch_key, block), KEYS_AT_ONCE)

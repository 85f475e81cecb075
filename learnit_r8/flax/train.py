"""train_loop: epochs of a jitted step, with validation, checkpoints and a history."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._validation import whole_number
from ..bridge.host import check_scheduler
from ..loops.run import loop
from .data import EpochBatches, ValidationBatches
from .epochs import Training, Validation

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..triggers import Condition


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
        backup_every=_backup_every(backup_every, num_batches, scheduler),
    )
    final, _, _ = loop(training.resume(state) if resume else state, training.batches, training.tasks(), callbacks)
    training.read()
    return final, training.history


def _check_step(name: str, step: Any) -> None:
    if not callable(step):
        raise TypeError(f"{name} must be a function of state, batch and rng_key, got {step!r}.")


def _backup_every(given: Any, num_batches: int | None, scheduler: Any) -> Any:
    if scheduler is None:
        if given is not None:
            raise ValueError(f"backup_every must be left out without a scheduler, got {given!r}.")
        return None
    if num_batches and scheduler.feed is not None:
        scheduler.feed.expect_epochs_of(num_batches)
    return given


def _validation(step: Any, source: Any, num_batches: int | None) -> Validation | None:
    most = None if num_batches is None else whole_number("val_num_batches", num_batches, least=1)
    if (step is None) != (source is None):
        raise ValueError(f"val_step_fn and val_data_iterator must be given together, got {step!r} and {source!r}.")
    if step is None:
        return None
    _check_step("val_step_fn", step)
    return Validation(step, ValidationBatches(source, most))


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

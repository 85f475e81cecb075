"""The budget of a Lightning Trainer, as settings of R8Scheduler."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch.utilities import CombinedLoader

from ..schedules.budget import batches_of


def budget_of(trainer: Any, steps_per_epoch: int, *, may_be_open: bool = False) -> dict[str, Any]:
    """``num_steps``, ``train_duration_seconds`` where the Trainer has a time limit only, or nothing: an open budget.

    Args:
        trainer: A `lightning.Trainer`.
        steps_per_epoch: Batches in an epoch, >= 1.
        may_be_open: Whether the schedule needs no end.

    Raises:
        ValueError: the Trainer has no limit, and the schedule needs one.
    """
    limit = trainer.limit_train_batches
    num_batches = min(steps_per_epoch, limit) if isinstance(limit, int) else int(steps_per_epoch * limit)
    # A second fit() of a Trainer trains what its limits leave; a checkpoint goes on with the whole run.
    is_second = trainer.ckpt_path is None
    epochs_before, steps_before = trainer.current_epoch * is_second, trainer.global_step * is_second
    counts = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        counts.append((trainer.max_epochs - epochs_before) * num_batches)
    if trainer.max_steps is not None and trainer.max_steps >= 0:
        counts.append(batches_of(trainer.max_steps - steps_before, num_batches, trainer.accumulate_grad_batches))
    if counts:
        return {"num_steps": max(1, min(counts))}
    seconds = [timer._duration for timer in trainer.callbacks if type(timer).__name__ == "Timer"]
    if seconds and seconds[0] is not None:
        return {"train_duration_seconds": seconds[0]}
    if may_be_open:
        return {}
    raise ValueError(
        f"the Trainer must have a budget, got max_epochs={trainer.max_epochs!r} and max_steps={trainer.max_steps!r}; "
        "give it max_epochs, max_steps or max_time, or R8Loader one of its own (num_steps=...)."
    )


NOT_TOGETHER = (
    "an R8Loader must give a batch to each step of fit(), got CombinedLoader(..., {!r}), where it does not; use "
    "'max_size_cycle' or 'min_size', or keep your own loaders, with R8Callback() alone."
)


def num_batches_of(trainer: Any, loader: Any) -> int:
    """Batches of an epoch as Lightning counts them, before a limit: where ``fit`` got several loaders, of them all.

    Args:
        trainer: A `lightning.Trainer`, in ``fit``.
        loader: The R8Loader among what it is trained on.

    Raises:
        ValueError: some steps of the Trainer would have no batch of the R8Loader.
    """
    given = trainer.fit_loop._data_source.instance
    if isinstance(given, CombinedLoader):
        mode, loaders = given._mode, given.flattened
    else:
        mode, loaders = "max_size_cycle", CombinedLoader(given).flattened
    if loader not in loaders or len(loaders) == 1:
        # A module or a data module makes them later; what they are is checked then.
        return len(loader)
    lengths = [len(each) if hasattr(each, "__len__") else math.inf for each in loaders]
    found = min(lengths) if mode == "min_size" else max(lengths)
    if mode == "sequential" or (mode == "max_size" and len(loader) < found):
        raise ValueError(NOT_TOGETHER.format(mode))
    return len(loader) if found == math.inf else int(found)

"""What TrainingArguments say of a training, as settings of R8Scheduler, and its state in Trainer's checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..schedules.budget import batches_of
from ..torch.serialization import as_arrays

if TYPE_CHECKING:
    from ..torch import Adapter
    from ..torch.own_loop.loader_adapter import LoaderAdapter

NOT_A_CHECKPOINT = (
    "resume_from_checkpoint must be a checkpoint of a training with R8Mixin, got {!r}, which holds no state of R8; to "
    "start from its weights only, load them into the model and leave resume_from_checkpoint out."
)

NOT_USED = (
    "{} of the TrainingArguments is not used, as R8Scheduler sets the rate: a warm-up, then a cosine, unless r8 holds "
    "scheduler_mode and warmup_proportion; to keep Trainer's own rates, give r8={{'scheduler_mode': 'keep'}}."
)

OWN = "to keep the Trainer's own batches, give r8={'batches': False}"

ALONG = "learnit_r8"
"""The entry of the state."""


NOT_ALONG = (
    "resume_from_checkpoint must be a checkpoint of a training with R8Mixin, got one that has no state of it; to begin "
    "with its weights only, load them into the model and leave resume_from_checkpoint out."
)


def budget_of(args: Any, num_samples: int, batch_size: int, *, drops: bool) -> dict[str, int]:
    """``num_epochs``, or ``num_steps`` where there are no whole epochs.

    Args:
        args: The TrainingArguments.
        num_samples: N.
        batch_size: B, of all processes together.
        drops: Whether an epoch leaves out a last batch that is smaller.
    """
    num_batches = num_samples // batch_size if drops else -(-num_samples // batch_size)
    per_epoch = -(-num_batches // args.gradient_accumulation_steps)
    if args.max_steps > 0:
        updates = args.max_steps
    elif float(args.num_train_epochs).is_integer():
        return {"num_epochs": int(args.num_train_epochs)}
    else:
        updates = math.ceil(args.num_train_epochs * per_epoch)
    return {"num_steps": batches_of(updates, num_batches, args.gradient_accumulation_steps)}


def check_sampling(trainer: Any) -> None:
    """Raise ValueError if arguments, or the class of a Trainer, ask for an order of the samples of their own."""
    args = trainer.args
    strategy = getattr(args, "train_sampling_strategy", "random")
    if strategy != "random":
        raise ValueError(
            f"train_sampling_strategy must be 'random', as R8Scheduler draws the batches, got {strategy!r}; {OWN}."
        )
    if getattr(args, "group_by_length", False):
        raise ValueError(f"group_by_length must be False, as R8Scheduler draws the batches, got True; {OWN}.")
    kind = getattr(args, "batch_sampler", None)
    if kind is not None and getattr(kind, "value", kind) != "batch_sampler":
        # That of sentence-transformers.
        raise ValueError(f"batch_sampler must be left out, as R8Scheduler draws the batches, got {kind!r}; {OWN}.")
    for owner in type(trainer).__mro__:
        is_foreign = not owner.__module__.startswith(("transformers.", "learnit_r8."))
        if is_foreign and "_get_train_sampler" in vars(owner):
            raise ValueError(
                f"a Trainer must draw its samples at random, as R8Scheduler takes the place of that, got "
                f"{owner.__name__} with a _get_train_sampler() of its own; {OWN}."
            )


def unused_rates(args: Any) -> str:
    """A sentence on arguments of the rate that R8Scheduler does not use; "" if none was given."""
    kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    given = [] if kind == "linear" else [f"lr_scheduler_type={kind!r}"]
    for name in ("warmup_steps", "warmup_ratio"):
        if getattr(args, name, None):
            given.append(f"{name}={getattr(args, name)!r}")
    return NOT_USED.format(", ".join(given)) if given else ""


def saved_batch_size(args: Any, resume: Any) -> int | None:
    """B of the training that wrote a checkpoint; None if there is no checkpoint, which Trainer says itself.

    Args:
        args: The TrainingArguments.
        resume: A path, or True for the last checkpoint in the output folder.

    Raises:
        ValueError: the checkpoint is of a training without R8Scheduler.
    """
    from transformers.trainer_utils import get_last_checkpoint

    last: Any = get_last_checkpoint
    folder = last(args.output_dir) if resume is True else resume
    if folder is None or not os.path.isdir(folder):
        return None
    path = os.path.join(folder, "scheduler.pt")
    state = torch.load(path, map_location="cpu", weights_only=True) if os.path.exists(path) else {}
    data = state.get(ALONG, state).get("data")
    if not isinstance(data, Mapping) or "batch_size" not in data:
        raise ValueError(NOT_A_CHECKPOINT.format(folder))
    return int(data["batch_size"])


def save_along(rates: Any, adapter: Adapter | LoaderAdapter) -> None:
    """Let a learning-rate scheduler of Trainer's save and load R8Scheduler's state with its own.

    Its class becomes one derived from its own, so that Trainer still knows what kind it is.

    Args:
        rates: The learning-rate scheduler.
        adapter: Has the state.
    """
    kind: Any = type(rates)

    class Along(kind):  # type: ignore[misc, valid-type, unused-ignore]
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), ALONG: adapter.lr_scheduler.state_dict()}

        def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
            own = dict(state_dict)
            if ALONG not in own:
                raise ValueError(NOT_ALONG)
            adapter.load_scheduler(as_arrays(own.pop(ALONG)))
            super().load_state_dict(own)

    Along.__name__ = kind.__name__
    rates.__class__ = Along

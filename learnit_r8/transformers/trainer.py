"""R8Mixin: makes a Trainer take its batches, and its learning rate, from an R8Scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..torch import Adapter, attach
from ..torch.loader import make_loader
from .callback import R8Callback
from .losses import SampleLosses, is_packed, losses_of
from .sampler import WholeEpoch

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

DECIDED = ("batch_size", "accumulate", "max_grad_norm", "ahead")
"""Settings that come from the TrainingArguments."""

PACKED = (
    "rows of this data set hold several documents each, so the losses known are those of rows, not of documents; a row "
    "is a sample."
)


class R8Mixin:
    """Goes before the Trainer among the bases: ``class MyTrainer(R8Mixin, Trainer): pass``; SFTTrainer likewise.

    Batch size, budget, accumulation and the peak rate are those of the TrainingArguments; ``lr_scheduler_type`` and
    ``warmup_ratio`` are not used, as R8Scheduler sets the rate. Trainer's own checkpoints hold R8Scheduler's state, and
    ``resume_from_checkpoint`` goes on with the very same batches.

    Args:
        r8: Settings for `R8Scheduler`, such as ``{"policy": "focus", "run_dir": True}``; also ``sets_lr``.

    Raises:
        TypeError: ``r8`` is no dict.
        ValueError: it holds a setting that comes from the TrainingArguments, or a learning-rate scheduler was given
            in ``optimizers``.
    """

    loss_is_scaled_for_ga = False
    """The loss is a mean over a batch, to be divided by the batches of a step."""

    def __init__(self, *args: Any, r8: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self._r8_settings = _checked({} if r8 is None else r8)
        self._r8_adapter: Adapter | None = None
        super().__init__(*args, **kwargs)
        trainer: Any = self
        given = trainer.lr_scheduler
        if given is not None:
            raise ValueError(
                f"optimizers must hold no rate scheduler, as R8Scheduler sets the rate, got a {type(given).__name__}; "
                "give optimizers=(optimizer, None)."
            )
        trainer.add_callback(R8Callback(self._adapter))

    @property
    def r8(self) -> Adapter:
        """The adapter; its ``scheduler`` is the R8Scheduler.

        Raises:
            RuntimeError: the training has not begun.
        """
        return self._adapter()

    def _adapter(self) -> Adapter:
        if self._r8_adapter is None:
            raise RuntimeError("r8 was asked for before train() was called; the scheduler is built there.")
        return self._r8_adapter

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train, as the Trainer does; with ``resume_from_checkpoint`` go on from its checkpoint."""
        self._r8_adapter = None
        self._r8_resumes = bool(resume_from_checkpoint)
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)  # type: ignore[misc]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The loader of the batches that R8Scheduler draws."""
        trainer: Any = self
        if self._r8_adapter is None:
            self._r8_adapter = self._attach()
        args = trainer.args
        settings: dict[str, Any] = {
            "collate_fn": trainer.data_collator,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory and torch.cuda.is_available(),
            "persistent_workers": args.dataloader_persistent_workers,
        }
        if args.dataloader_prefetch_factor is not None:
            settings["prefetch_factor"] = args.dataloader_prefetch_factor
        sampler: Any = WholeEpoch(self._r8_adapter.sampler, skips=self._r8_resumes and not args.ignore_data_skip)
        dataset = _without_unused_columns(trainer, trainer.train_dataset)
        return make_loader(dataset, sampler, numbered=False, settings=settings)

    def _attach(self) -> Adapter:
        trainer: Any = self
        args = trainer.args
        settings = dict(self._r8_settings)
        size = trainer._train_batch_size * args.world_size
        accumulate = args.gradient_accumulation_steps
        dataset = trainer.train_dataset
        if args.dataloader_drop_last:
            settings.setdefault("last_batch", "drop")
        resume = settings.get("resume")
        if self._r8_resumes:
            settings.pop("resume", None)
        if not any(settings.get(name) for name in ("num_epochs", "num_steps", "train_duration_seconds")):
            settings |= _budget(args, dataset, size, drops=settings.get("last_batch") == "drop")
        trainer.create_optimizer()
        adapter = attach(
            trainer.model,
            trainer.optimizer,
            _without_unused_columns(trainer, dataset),
            batch_size=size,
            accumulate=accumulate,
            ahead=accumulate - 1,
            **settings,
        )
        if self._r8_resumes and resume is not None:
            text = f"train() was given resume_from_checkpoint; resume={resume!r} of r8 is left out of account."
            adapter.scheduler.say_once("resume", text, is_warning=False)
        return adapter

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning-rate scheduler of Trainer: one that shows R8Scheduler's rates, and saves its state."""
        if not self._r8_settings.get("sets_lr", True):
            return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]
        self.lr_scheduler = self._adapter().lr_scheduler
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def sample_losses(self, model: Any, inputs: Mapping[str, Any], outputs: Any) -> SampleLosses | None:
        """The losses of samples, to be overridden for tasks other than classification of samples or tokens.

        Args:
            model: The model, as Trainer calls it.
            inputs: The batch, with ``labels``.
            outputs: What the model returned.

        Returns:
            The losses; None for the model's own mean, from which those of samples are estimated.
        """
        labels, logits = inputs.get("labels"), outputs.get("logits") if isinstance(outputs, Mapping) else None
        if labels is None or logits is None or labels.is_floating_point() or logits.shape[:-1] != labels.shape:
            return None
        trainer: Any = self
        if is_packed(inputs):
            self._adapter().scheduler.say_once("packed", PACKED, is_warning=False)
        smoothing = trainer.args.label_smoothing_factor
        return losses_of(logits, labels, shifted=_shifts(trainer, model), smoothing=smoothing)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss of a batch; in training the losses of its samples are noted for R8Scheduler."""
        if not model.training:
            return super().compute_loss(  # type: ignore[misc]
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        labels = dict(inputs)
        # Without num_items_in_batch, as a mean over the batch.
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)  # type: ignore[misc]
        own = self.sample_losses(model, labels, outputs)
        if own is None:
            noted = self._adapter().loss(loss)
        else:
            noted = self._adapter().loss(own.losses, mask=own.mask)
        return (noted, outputs) if return_outputs else noted


def _checked(r8: Any) -> dict[str, Any]:
    if not isinstance(r8, Mapping):
        raise TypeError(f"r8 must be a dict of settings for R8Scheduler, got {r8!r}.")
    decided = sorted(set(DECIDED) & set(r8))
    if decided:
        raise ValueError(
            f"{decided[0]} must be left out of r8, the TrainingArguments decide it, got {r8[decided[0]]!r}."
        )
    return dict(r8)


def _budget(args: Any, dataset: Any, size: int, *, drops: bool) -> dict[str, Any]:
    if args.max_steps <= 0:
        return {"num_epochs": args.num_train_epochs}
    count = len(dataset)
    num_batches = count // size if drops else -(-count // size)
    whole, rest = divmod(args.max_steps, -(-num_batches // args.gradient_accumulation_steps))
    return {"num_steps": whole * num_batches + min(rest * args.gradient_accumulation_steps, num_batches)}


def _without_unused_columns(trainer: Any, dataset: Any) -> Any:
    try:
        import datasets
    except ImportError:
        return dataset
    if not isinstance(dataset, datasets.Dataset):
        return dataset
    return trainer._remove_unused_columns(dataset, description="Training")


def _shifts(trainer: Any, model: Any) -> bool:
    found = getattr(trainer, "_loss_shifts_labels", None)
    if found is not None:
        return bool(found)
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    plain = trainer.accelerator.unwrap_model(model)
    return type(plain).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()

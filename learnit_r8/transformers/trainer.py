"""R8Mixin: makes a Trainer take its batches, and its learning rate, from an R8Scheduler."""

from __future__ import annotations

import functools
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler
from transformers import TrainerCallback

from ..engine.settings import OwnBatches as OwnBatchesValue
from ..engine.settings import head_of
from ..events.caller import warn
from ..schedules.budget import BUDGETS, batches_of, has_budget
from ..torch.adapter import Adapter
from ..torch.attachment import attach
from ..torch.loader import make_loader
from ..torch.trainer_step import LAST_LOSSES, LastForward, gradients_of, no_loss, note_counts, uncounted
from .losses import SampleLosses, compare, document_losses, find_losses

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from ..engine.feed.feed import TrainerBatches
    from ..engine.settings import CommonSettings
    from ..torch import R8BatchSampler

    class TrainerSettings(CommonSettings, total=False):
        """Settings that do not come from the TrainingArguments."""

        batch_size: OwnBatchesValue
        ema: Any
        also: Mapping[str, Any]
        batches: bool


NOT_A_CHECKPOINT = (
    "resume_from_checkpoint must be a checkpoint of a training with R8Mixin, got {!r}, which holds no state of R8; to "
    "start from its weights only, load them into the model and leave resume_from_checkpoint out."
)

NOT_USED = (
    "{} of the TrainingArguments is not used, as R8Scheduler sets the rate: a warm-up, then a cosine, unless r8 holds "
    "scheduler_mode and warmup_proportion; to keep Trainer's own rates, give r8={{'scheduler_mode': 'keep'}}."
)

NOT_EVALUATED = (
    "monitor={!r} is no metric of the Trainer's evaluations, whose names begin with 'eval_', as 'eval_loss': name "
    "one of these, or give it to trainer.r8.scheduler.log() yourself."
)

OWN = "to keep the Trainer's own batches, give r8={'batches': False}"

ALONG = "learnit_r8"
"""The entry of the state."""


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


def save_along(rates: Any, adapter: Adapter, resume: Any) -> None:
    """Let a learning-rate scheduler of Trainer's save and load R8Scheduler's state with its own.

    Its class becomes one derived from its own, so that Trainer still knows what kind it is.

    Args:
        rates: The learning-rate scheduler.
        adapter: Has the state.
        resume: The checkpoint to go on from, for a message.
    """
    kind: Any = type(rates)

    class Along(kind):  # type: ignore[misc, valid-type, unused-ignore]
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), ALONG: adapter.lr_scheduler.state_dict()}

        def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
            own = dict(state_dict)
            if ALONG not in own:
                raise ValueError(NOT_A_CHECKPOINT.format(resume))
            adapter.lr_scheduler.load_state_dict(own.pop(ALONG))
            super().load_state_dict(own)

    Along.__name__ = kind.__name__
    rates.__class__ = Along


class R8Callback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """What R8 does as a Trainer goes on; `R8Mixin` adds it.

    Args:
        trainer: The Trainer. It reports losses before the step, unless there is a loss scaler.
    """

    def __init__(self, trainer: R8Mixin) -> None:
        self._trainer = trainer

    @property
    def _batches(self) -> TrainerBatches | None:
        """What R8 learns of batches that are the Trainer's own; None where the scheduler draws them."""
        return self._trainer._r8_batches

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin the run, where the batches are the Trainer's own."""
        if self._batches is not None:
            self._batches.begin_run()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the epoch, where the batches are the Trainer's own."""
        if self._batches is not None:
            self._batches.begin_pass(int(state.epoch or 0))

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the losses of a batch whose gradient is added to others."""
        self._trainer._r8_report()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the losses of the batch, and end the training if the budget is spent."""
        self._trainer._r8_report()
        adapter = self._trainer._r8_current()
        if control.should_save or control.should_evaluate:
            # On all processes: the first one alone writes the scheduler's state. An evaluation may ask for a save.
            adapter.flush()
            if control.should_training_stop and self._batches is not None:
                # The last weights are tested before they are evaluated.
                self._batches.end_pass()
            else:
                adapter.scheduler.host.leave_epoch(is_validated=True)
        if adapter.scheduler.pace.is_stopped if self._trainer._r8_ends_itself else adapter.scheduler.is_over:
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the losses on their way before evaluation and checkpoints."""
        self._trainer._r8_current().flush()
        if self._batches is not None:
            self._batches.end_pass()
        else:
            self._trainer._r8_current().scheduler.host.leave_epoch()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Tell the scheduler's listeners the metrics of an evaluation."""
        found = {name: value for name, value in (logs or {}).items() if name.startswith("eval_")}
        numbers: dict[str, Any] = {name: value for name, value in found.items() if isinstance(value, (int, float))}
        if numbers:
            self._trainer._r8_current().scheduler.log(**numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Finish the run."""
        if self._batches is not None:
            self._batches.end_run()
        self._trainer._r8_current().close()


DECIDED = ("batch_size", "accumulate", "max_grad_norm", "ahead")
"""Settings that come from the TrainingArguments."""

OTHER_PROBLEMS = ("regression", "multi_label_classification")
"""What a model's config calls tasks without one class a sample."""

AS_TRAINER = (
    "the Trainer sets the random generators of a resumed run only once its first batches are fetched: a run that goes "
    "on within an epoch has the same samples, but other random augmentation; with batches that R8 draws it is the same."
)

MAKES_LOADERS = {
    "get_train_dataloader", "_get_dataloader", "_remove_unused_columns", "_get_collator_with_removed_columns",
}  # fmt: skip
"""What a loader is made with, in methods of Trainer's, that leaves out columns."""

RESUMED = "train() was given resume_from_checkpoint, so resume={!r} of r8 is ignored."

NOT_OF_SAMPLES = (
    "losses of samples are estimated from means of batches: the model returned losses for {} rows of a batch of {} "
    "samples; override sample_losses(model, inputs, outputs) to know them."
)

OTHER_LOADER = (
    "get_train_dataloader() of {} gives batches that R8 knows nothing of: return super().get_train_dataloader() there, "
    "or give r8={{'batches': False}} to keep your own."
)


class R8Mixin:
    """Goes before the Trainer among the bases: ``class MyTrainer(R8Mixin, Trainer): pass``; or SFTTrainer.

    Batch size, budget, accumulation and the peak rate are those of the TrainingArguments; ``lr_scheduler_type`` and
    ``warmup_ratio`` are not used, as R8Scheduler sets the rate. Trainer's own checkpoints hold R8Scheduler's state, and
    ``resume_from_checkpoint`` goes on with the very same batches.

    Args:
        r8: Settings for `R8Scheduler`, such as ``{"policy": "focus", "run_dir": True}``; with
            ``"scheduler_mode": "keep"`` the rate is the Trainer's own. With ``"batches": False`` the batches are, too:
            its loader and sampler, streams, ``group_by_length``, whatever a subclass makes of them; there is no table
            of samples then, and without an incident the weights are to the bit those of the Trainer alone.

    Raises:
        TypeError: ``r8`` is not a dict.
        ValueError: it holds a setting that comes from the TrainingArguments, or a learning-rate scheduler was given
            in ``optimizers`` where R8Scheduler sets the rate.
    """

    if TYPE_CHECKING:
        compute_loss: Any
        training_step: Any
        create_optimizer: Any

        def __getattr__(self, name: str) -> Any:
            """What else the Trainer has."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        before = cls.__mro__[: cls.__mro__.index(R8Mixin)]
        if any("get_train_dataloader" in vars(each) for each in before if not issubclass(each, R8Mixin)):
            names = ", ".join(each.__name__ for each in cls.__bases__)
            raise TypeError(
                "R8Mixin must come before the Trainer among the bases, as its methods would never be called, got class "
                f"{cls.__name__}({names})."
            )

    def __init__(self, *args: Any, r8: TrainerSettings | None = None, **kwargs: Any) -> None:
        if not hasattr(super(), "get_train_dataloader"):
            raise TypeError(
                f"R8Mixin must have a Trainer beside it, class MyTrainer(R8Mixin, Trainer), got {type(self)}."
            )
        self._r8_settings = _checked({} if r8 is None else r8)
        self._r8_adapter: Adapter | None = None
        self._r8_draws = bool(self._r8_settings.pop("batches", True))
        # Where the batches are the Trainer's own: what R8 learns of them, and the mean loss of that in hand.
        self._r8_batches: TrainerBatches | None = None
        self._r8_noted: torch.Tensor | None = None
        self._r8_ends_itself = False
        self._r8_shifts: bool | None = None
        self._r8_last_losses = deque[torch.Tensor](maxlen=LAST_LOSSES)
        self._r8_classes: int | None = None
        self._r8_compares = True
        self._r8_resumes: Any = None
        # Of a training step: whether its batch was judged, None outside one; the gradients before a batch it refuses.
        self._r8_is_judged: bool | None = None
        self._r8_kept: list[tuple[torch.nn.Parameter, torch.Tensor | None]] = []
        super().__init__(*args, **kwargs)
        given = self.lr_scheduler
        if given is not None and not self._r8_keeps_rates:
            raise ValueError(
                f"optimizers must hold no rate scheduler, as R8Scheduler sets the rate, got a {type(given).__name__}; "
                "give optimizers=(optimizer, None), or r8={'scheduler_mode': 'keep'}."
            )
        self.add_callback(R8Callback(self))
        # Around the method of the object, since a class made of this one may have a compute_loss of its own.
        self.compute_loss = functools.partial(self._r8_compute_loss, self.compute_loss)
        self.training_step = functools.partial(self._r8_training_step, self.training_step)

    @property
    def r8(self) -> Adapter:
        """The adapter; its ``scheduler`` is the R8Scheduler.

        Raises:
            RuntimeError: the training has not begun.
        """
        return self._r8_current()

    def _r8_current(self) -> Adapter:
        if self._r8_adapter is None:
            if self._r8_draws and self.is_in_train:
                raise RuntimeError(OTHER_LOADER.format(type(self).__name__))
            raise RuntimeError("r8 was asked for before train() was called; the scheduler is built there.")
        return self._r8_adapter

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train, as the Trainer does; with ``resume_from_checkpoint`` go on from its checkpoint."""
        if self._r8_draws:
            check_sampling(self)
        monitor = head_of(self._r8_settings.get("monitor"))
        if isinstance(monitor, str) and not monitor.startswith("eval_"):
            warn(NOT_EVALUATED.format(monitor))
        self._r8_adapter = self._r8_shifts = self._r8_classes = None
        self._r8_last_losses.clear()
        self._r8_resumes = resume_from_checkpoint
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        """See `Trainer`; R8 ends before that, as weights of long ago are no damage."""
        self._r8_current().close()
        super()._load_best_model()  # type: ignore[misc]

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The loader of the batches that R8Scheduler draws; with ``"batches": False`` the Trainer's own.

        Raises:
            ValueError: the checkpoint to go on from is of a training without R8Scheduler.
        """
        if not self._r8_draws:
            return super().get_train_dataloader()  # type: ignore[misc, no-any-return]
        args = self.args
        size: int = self._train_batch_size * args.world_size
        if self._r8_resumes and (saved := saved_batch_size(args, self._r8_resumes)) is not None:
            # That of the checkpoint, so that the batches stay the same.
            size = saved
        adapter: Any = self._r8_adapter
        if adapter is None or adapter.scheduler.table.batch_size != size:
            # The second time with auto_find_batch_size, after there was too little memory.
            adapter = self._r8_draw(size)
        dataset, collate = _columns_used(self)
        settings: dict[str, Any] = {
            "collate_fn": collate,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory and torch.cuda.is_available(),
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
        }
        skips = bool(self._r8_resumes) and not args.ignore_data_skip
        sampler: Any = WholeEpoch(adapter.sampler, skips=skips)
        # The Trainer sets the random generators of a resumed run once it has fetched the first batch.
        return make_loader(dataset, sampler, settings=settings, is_ahead=True)

    def _r8_attach(self, dataset: Any, settings: dict[str, Any]) -> Adapter:
        """Build the scheduler."""
        resume = settings.pop("resume", None) if self._r8_resumes else None
        accumulate = self.args.gradient_accumulation_steps
        adapter = self._r8_adapter = attach(self.model, self.optimizer, dataset, accumulate=accumulate, **settings)
        if resume is not None:
            adapter.scheduler.host.say_once("resume", RESUMED.format(resume), is_warning=False)
        return adapter

    def _r8_draw(self, size: int) -> Adapter:
        """Have the scheduler draw the batches."""
        args, settings = self.args, dict(self._r8_settings)
        if args.dataloader_drop_last:
            settings.setdefault("last_batch", "drop")
        dataset, _ = _columns_used(self)
        # One that is None, ``num_epochs=None``, is an open budget, see docs/budgets.md.
        if not any(name in settings for name in BUDGETS) and hasattr(dataset, "__len__"):
            settings |= budget_of(args, len(dataset), size, drops=settings.get("last_batch") == "drop")
        settings.setdefault("seed", args.seed if args.data_seed is None else args.data_seed)
        own = self.create_optimizer
        own()

        def keep_optimizer() -> Any:
            # Trainer makes one as it begins; a method of the user's may make another, which R8Scheduler would not know.
            self.create_optimizer = own
            return self.optimizer

        self.create_optimizer = keep_optimizer
        settings.setdefault("run_batch", lambda inputs: self._r8_loss_by(self._r8_model, inputs, self._r8_how[0]))
        settings |= {"batch_size": size, "ahead": args.gradient_accumulation_steps - 1}
        adapter = self._r8_attach(dataset, settings)
        r8, given = adapter.scheduler, self._train_batch_size * args.world_size
        r8.pace.is_counted = True
        if not self._r8_keeps_rates and (unused := unused_rates(args)):
            r8.host.say_once("unused rates", unused)
        if size != given:
            r8.host.say_once(
                "batch size",
                f"the batches have {size} samples, as in the checkpoint: {size // args.world_size} for each of "
                f"{args.world_size} processes, in place of {self._train_batch_size}.",
                is_warning=False,
            )
        return adapter

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning-rate scheduler of Trainer: one that shows R8Scheduler's rates, and saves its state."""
        own = super().create_scheduler(num_training_steps, optimizer) if self._r8_keeps_rates else None  # type: ignore[misc]
        if not self._r8_draws:
            self._r8_watch(num_training_steps)
        if own is not None:
            save_along(own, self._r8_current(), self._r8_resumes)
            return own
        self.lr_scheduler = self._r8_current().lr_scheduler
        self._created_lr_scheduler = True
        return self.lr_scheduler

    @property
    def _r8_keeps_rates(self) -> bool:
        mode = self._r8_settings.get("scheduler_mode", None if self._r8_draws else "keep")
        return bool(head_of(mode) == "keep")

    def _r8_watch(self, num_training_steps: int) -> None:
        """Begin to watch a training on the Trainer's own batches."""
        args, settings = self.args, dict(self._r8_settings)
        self._r8_ends_itself = not has_budget(settings)
        if self._r8_ends_itself:
            settings |= _budget_of(args, num_training_steps, settings.get("batch_size") or OwnBatchesValue())
        settings.setdefault("run_batch", lambda inputs: self._r8_repeat((inputs, self._r8_how)))
        adapter = self._r8_attach(None, {"repeat": self._r8_repeat, **settings})
        # Trainer sets the random generators as it resumes.
        self._r8_batches = adapter.scheduler.follow(sets_generators=False)
        if args.save_strategy != "no":
            adapter.scheduler.host.say_once("as Trainer", AS_TRAINER, is_warning=False)

    def sample_losses(self, model: Any, inputs: Mapping[str, Any], outputs: Any) -> SampleLosses | None:
        """The losses of samples; override it for tasks other than classification of samples or tokens.

        R8Scheduler learns them; the model is trained on the Trainer's own loss. For a classifier with one label a
        sample they include the logits, so that `SampleTable.suspects` can judge the labels.

        Args:
            model: The model, as Trainer calls it.
            inputs: The batch, with ``labels``.
            outputs: What the model returned.

        Returns:
            The losses; None for the Trainer's own mean, from which those of samples are estimated.
        """
        smoothing = self.args.label_smoothing_factor
        if self._r8_shifts is None:
            self._r8_shifts = _shifts(self, model)
        found = find_losses(outputs, inputs.get("labels"), shifted=self._r8_shifts, smoothing=smoothing)
        if found is None or (found.losses.ndim == 1 and self._r8_config_says(model, "problem_type") in OTHER_PROBLEMS):
            return None
        if found.logits is None:
            return found
        # Scores are of the model's classes, or of as many as in the first batch, not of choices or pairs.
        if self._r8_classes is None:
            self._r8_classes = self._r8_config_says(model, "num_labels", found.logits.shape[1])
        is_of_classes = found.logits.shape[1] == self._r8_classes
        return found if is_of_classes else found._replace(logits=None, targets=None)

    def _r8_config_says(self, model: Any, name: str, default: Any = None) -> Any:
        return getattr(getattr(self.accelerator.unwrap_model(model), "config", None), name, default)

    def _r8_training_step(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the Trainer's ``training_step`` returns; of a batch that is refused it leaves no gradient.

        A class may go backward again within it, as adversarial training does from the same batch with other weights.
        """
        self._r8_is_judged = False
        try:
            loss = own(*args, **kwargs)
            for parameter, gradient in self._r8_kept:
                parameter.grad = gradient
        finally:
            self._r8_is_judged, self._r8_kept = None, []
        return loss

    def _r8_compute_loss(
        self, own: Callable[..., Any], model: Any, inputs: Any, return_outputs: bool = False, **more: Any
    ) -> Any:
        """What the Trainer's ``compute_loss`` returns; in training, the losses of the batch's samples are noted too."""
        # A training step has one batch, and that one loss, however often it is computed.
        if not model.training or self._r8_is_judged:
            return own(model, inputs, return_outputs, **more)
        is_in_step = self._r8_is_judged is not None
        if is_in_step:
            self._r8_is_judged = True
        given, adapter, batches = dict(inputs), self._r8_current(), self._r8_batches
        # An epoch may end with fewer batches in a step.
        self._r8_own, self._r8_model = own, model
        self._r8_how = more, self.current_gradient_accumulation_steps
        if batches is not None:
            batches.begin(inputs)
        # The Trainer may take the labels out of it.
        adapter.hold(given)
        if batches is not None:
            batches.note_batch((dict(inputs), self._r8_how))
        found: Any = None
        put_back = note_counts(self, skipped="_r8")
        with LastForward(model, lambda: adapter.num_ranks == 1) as step:
            found = own(model, inputs, return_outputs, **more)
        if step.has_raised:
            loss, found = no_loss(model), (None, step.outputs)
        else:
            loss = found[0] if return_outputs else found
        if batches is not None:
            self._r8_noted = self._r8_of_batch(loss.detach(), self._r8_how)
        elif step.has_raised:
            adapter.loss(adapter.unknown_losses())
        else:
            loss = self._r8_note(model, given, step.outputs, loss)
        # A loss scaler takes no step without gradients.
        if getattr(self.accelerator, "scaler", None) is None:
            with adapter.before_gradient():
                is_learned = self._r8_report()
            if is_learned:
                self._r8_last_losses.append(loss.detach())
            else:
                put_back()
                loss = no_loss(model, *self._r8_last_losses)
                if is_in_step:
                    self._r8_kept = gradients_of(model.parameters())
        return (loss, found[1]) if return_outputs else loss

    def _r8_of_batch(self, loss: torch.Tensor, how: tuple[Mapping[str, Any], int]) -> torch.Tensor:
        """The mean loss of a batch, where the Trainer has divided by the items of all batches of a step."""
        more, accumulated = how
        is_part = more.get("num_items_in_batch") is not None and self.compute_loss_func is None
        return loss * accumulated if is_part else loss

    def _r8_report(self) -> bool:
        """Report what was noted of the batch, if it was not yet; returns whether it is to be learned from."""
        adapter, batches = self._r8_current(), self._r8_batches
        if batches is None:
            return not adapter.has_noted or bool(adapter.report())
        noted, self._r8_noted = self._r8_noted, None
        return noted is None or not batches.is_watched or bool(adapter.report(noted))

    def _r8_loss_by(self, model: Any, inputs: Any, more: Mapping[str, Any]) -> Any:
        """The loss of a batch, as the Trainer computes that in hand; what it counts does not count a second time."""
        if not model.training:
            # It was evaluated since; each step of the Trainer begins so.
            model.train()
        with uncounted(self, skipped="_r8"), self.compute_loss_context_manager():
            return self._r8_own(model, dict(inputs), **more)

    def _r8_repeat(self, held: Any) -> torch.Tensor:
        """The mean loss of a batch of the Trainer's own, as it was reported."""
        inputs, how = held
        # The wrapper of several processes expects a backward pass, which may still come for the batch in hand.
        is_wrapped = isinstance(self._r8_model, DistributedDataParallel)
        model = self._r8_model.module if is_wrapped else self._r8_model
        return self._r8_of_batch(self._r8_loss_by(model, inputs, how[0]), how)

    def _r8_note(self, model: Any, inputs: Mapping[str, Any], outputs: Any, loss: torch.Tensor) -> Any:
        """Note the losses of a batch; returns the loss to train on."""
        adapter = self._r8_current()
        ticket = adapter.in_hand
        with torch.set_grad_enabled(ticket.weights is not None):
            own = self.sample_losses(model, inputs, outputs)
            own = (
                None if own is None else self._r8_of_samples(own, inputs, -(-len(ticket.indices) // adapter.num_ranks))
            )
            of_batch = self._r8_of_batch(loss, self._r8_how)
            if own is not None:
                noted = adapter.loss(own.losses, mask=own.mask, ticket=ticket, logits=own.logits, targets=own.targets)
                if ticket.weights is None:
                    adapter.judge_with(loss)
            else:
                noted = adapter.loss(of_batch, ticket=ticket)
        if ticket.weights is None:
            return loss
        more, accumulated = self._r8_how
        if self._r8_compares and adapter.num_ranks == accumulated == 1:
            self._r8_compares = False
            compare(own, of_batch, adapter.scheduler.host)
        # The policy's weights belong to losses of samples, so the mean of these is trained on.
        return noted if more.get("num_items_in_batch") is None else noted / accumulated

    def _r8_of_samples(self, own: SampleLosses, inputs: Mapping[str, Any], count: int) -> SampleLosses | None:
        """The losses if they are those of the batch's samples, or of documents that are; else None."""
        if len(own.losses) == count:
            return own
        documents = document_losses(own, inputs.get("position_ids"), count)
        if documents is None:
            text = NOT_OF_SAMPLES.format(len(own.losses), count)
            self._r8_current().scheduler.host.say_once("not of samples", text, is_warning=False)
        return documents


def _checked(r8: Any) -> dict[str, Any]:
    if not isinstance(r8, Mapping):
        raise TypeError(f"r8 must be a dict of settings for R8Scheduler, got {r8!r}.")
    settings = dict(r8)
    follows = settings.get("batches") is False and isinstance(settings.get("batch_size"), OwnBatchesValue)
    decided = sorted(set(DECIDED) & set(settings) - ({"batch_size"} if follows else set()))
    if decided:
        raise ValueError(
            f"{decided[0]} must be left out of r8, the TrainingArguments decide it, got {settings[decided[0]]!r}."
        )
    if "batch" in settings or not isinstance(settings.get("batches", True), bool):
        raise TypeError(f"batches in r8 must be True or False, got {settings}.")
    return settings


def _columns_used(trainer: Any) -> tuple[Any, Any]:
    """The training data and the collator, as Trainer makes them: without columns that the model does not take.

    Those of sentence-transformers make loaders of their own, whose collator takes columns of text that no model names.
    """
    dataset, collate = trainer.train_dataset, trainer.data_collator
    names = (vars(each).get("get_train_dataloader") for each in type(trainer).__mro__ if each is not R8Mixin)
    code = getattr(next(filter(None, names)), "__code__", None)
    if code is not None and not MAKES_LOADERS & set(code.co_names):
        return dataset, collate
    try:
        import datasets
    except ImportError:
        is_table = False
    else:
        is_table = isinstance(dataset, datasets.Dataset)
    if is_table:
        return trainer._remove_unused_columns(dataset, description="Training"), collate
    return dataset, trainer._get_collator_with_removed_columns(collate, description="Training")


def _shifts(trainer: Any, model: Any) -> bool:
    """Whether a token's logits are for the label of the next one."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if getattr(trainer, "_loss_shifts_labels", False):
        return True
    # It is false for models such as GPT2LMHeadModel, whose name does not say which loss they have.
    plain = trainer.accelerator.unwrap_model(model)
    if type(plain).__name__.startswith("Peft"):
        plain = plain.base_model.model
    return type(plain).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


class WholeEpoch(Sampler[Any]):
    """The batches of an R8BatchSampler; in mid-epoch as many empty ones come first as Trainer is about to skip.

    Trainer counts its accumulated gradients from the batches that it skips, so it must be left to skip some.

    Args:
        sampler: Draws the batches; it goes on where it was by itself.
        skips: Whether Trainer skips the batches that a checkpoint has had, as the next iteration begins.

    Attributes:
        r8: The scheduler.
    """

    def __init__(self, sampler: R8BatchSampler, *, skips: bool) -> None:
        self._sampler, self._skips, self.r8 = sampler, skips, sampler.r8

    def __iter__(self) -> Iterator[Any]:
        if self._skips:
            self._skips = False
            for _ in range(self.r8.pace.place % self.r8.steps_per_epoch):
                yield []
        yield from self._sampler

    def __len__(self) -> int:
        return len(self._sampler)


def _budget_of(args: Any, num_updates: int, own: OwnBatchesValue) -> dict[str, Any]:
    """Return the Trainer's own budget, for views only, as the Trainer ends the training itself."""
    if args.max_steps > 0:
        # Fewer batches where an epoch ends within an accumulated gradient.
        return {"num_steps": args.max_steps * args.gradient_accumulation_steps}
    if not float(args.num_train_epochs).is_integer():
        return {}
    # So that backups are taken four times an epoch; the last accumulated gradient may be of fewer batches.
    epochs = int(args.num_train_epochs)
    steps = max(1, num_updates * args.gradient_accumulation_steps // epochs)
    return {"num_epochs": epochs, "batch_size": replace(own, steps_per_epoch=steps)}

"""R8Callback: reports the losses of a training with Lightning, and ends it with the budget."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import lightning
import torch

from ..schedules.budget import BUDGETS
from ..schedules.schedule import OPEN_MODES
from ..table.labels.predictions import Predictions
from ..torch.losses import check_labels
from ..torch.own_loop.last_forward import LastForward
from .budget import budget_of
from .loader import R8Loader

if TYPE_CHECKING:
    from ..torch import Adapter

RESUMED = "fit() was given ckpt_path, so resume={!r} of R8Loader is ignored."

WEIGHTED = (
    "policy must give no weights under Lightning, where training_step computes the loss that is trained on, got some; "
    "use a loop of your own with learnit_r8.torch.attach()."
)


class R8Callback(lightning.Callback):  # type: ignore[misc, unused-ignore]
    """Goes into ``Trainer(callbacks=[...])``, with the loader that `fit` trains on.

    ``training_step`` returns the loss as ever; the losses of samples are then estimated from means of batches. Where it
    returns ``{"loss": losses.mean(), "losses": losses.detach()}`` they are known. With
    ``return learnit_r8.lightning.cross_entropy(logits, targets)``, or with what
    `learnit_r8.torch.predictions.predictions_of` returned as ``"predictions"``, `SampleTable.suspects` judges labels.

    Args:
        loader: The R8Loader.

    Raises:
        TypeError: it is something else.
    """

    def __init__(self, loader: R8Loader) -> None:
        if not isinstance(loader, R8Loader):
            raise TypeError(f"loader must be an R8Loader, got {loader!r}.")
        self._loader = loader
        self._saved: dict[str, Any] = {}
        self._own_step: Any = None
        self._has_raised = False

    def state_dict(self) -> dict[str, Any]:
        """The whole state of the scheduler, for Lightning's checkpoints; called on all processes."""
        return {} if self._loader.adapter is None else self._loader.whole_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds until the training begins."""
        self._saved = state_dict

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Build the scheduler: the optimizer is there, and the checkpoint not loaded yet.

        Raises:
            ValueError: the module has several optimizers or a rate scheduler of its own, there is no budget, or the
                checkpoint is not of a training with R8Loader, or of another data set.
        """
        _check(trainer, self._loader, self._saved)
        # Around the method of the object, as a callback hears of an exception only when the training is over.
        self._own_step = pl_module.training_step
        pl_module.training_step = functools.partial(self._training_step, pl_module)
        loader, settings = self._loader, self._loader.settings
        loader.keep_batch_size(self._saved if trainer.ckpt_path is not None else {})
        if not any(settings.get(name) is not None for name in BUDGETS):
            settings |= budget_of(trainer, len(loader), may_be_open=settings.get("scheduler_mode") in OPEN_MODES)
        ckpt_path, resume = trainer.ckpt_path, settings.get("resume")
        if ckpt_path is not None:
            settings.pop("resume", None)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        adapter = loader.attach(
            pl_module,
            trainer.optimizers[0],
            is_chained=trainer.limit_train_batches != 1.0,
            accumulate=trainer.accumulate_grad_batches,
            scaler=scaler,
            **settings,
        )
        if ckpt_path is None:
            return
        loader.go_on_from(self._saved)
        if resume is not None:
            adapter.scheduler.host.say_once("resume", RESUMED.format(resume), is_warning=False)

    def _training_step(self, pl_module: Any, *args: Any, **kwargs: Any) -> Any:
        """What ``training_step`` returns; nothing where it raises and its values are seen to be not finite.

        Lightning takes no step then.
        """
        self._has_raised = False
        with LastForward(pl_module) as forward:
            try:
                return self._own_step(*args, **kwargs)
            except Exception as error:
                if self._adapter.num_ranks > 1 or not forward.explains(error):
                    raise
                self._has_raised = True
                return None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Raise ValueError unless the training is on the loader."""
        given = trainer.fit_loop._combined_loader.flattened
        if not any(each is self._loader for each in given):
            raise ValueError(f"fit() must be given the R8Loader of R8Callback to train on, got {given!r}.")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Report the losses of the batch.

        Raises:
            TypeError: ``training_step`` has returned no loss.
            ValueError: the policy gives losses weights; or there are predictions without the losses of samples.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        adapter = self._adapter
        if self._has_raised:
            adapter.refuse()
            self._end_if_over(trainer)
            return
        if adapter.in_hand.weights is not None:
            raise ValueError(WEIGHTED)
        losses, predictions = _losses(outputs), _predictions(outputs)
        if losses is not None:
            adapter.report(losses, predictions=predictions)
        elif outputs is None and trainer.lightning_module.automatic_optimization:
            adapter.skip()
        else:
            loss = _loss(outputs)
            if predictions is not None:
                check_labels(loss.reshape(()))
            if trainer.lightning_module.automatic_optimization:
                # Lightning has divided it, to add up gradients.
                loss = loss * trainer.accumulate_grad_batches
            adapter.report(loss.detach())
        if batch_idx % max(1, trainer.log_every_n_steps) == 0:
            pl_module.log("lr", adapter.scheduler.lr, prog_bar=True, batch_size=1)
        self._end_if_over(trainer)

    def _end_if_over(self, trainer: Any) -> None:
        if self._adapter.scheduler.is_over:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Report the losses on their way before validation and checkpoints; end the training with the budget."""
        adapter = self._adapter
        adapter.flush()
        if adapter.scheduler.is_over:
            # A budget in seconds may be spent between two epochs: the next one would have no batch that could say so.
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish the run."""
        self._give_back(pl_module)
        self._adapter.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Finish the run, of which a step may be half done."""
        self._give_back(pl_module)
        if self._loader.adapter is not None:
            self._loader.adapter.__exit__(type(exception), exception, None)

    def _give_back(self, pl_module: Any) -> None:
        """Give the module its own ``training_step`` back."""
        own, self._own_step = self._own_step, None
        if own is not None:
            del pl_module.training_step
            if pl_module.training_step != own:
                # It had one that is not its class's.
                pl_module.training_step = own

    @property
    def _adapter(self) -> Adapter:
        assert self._loader.adapter is not None
        return self._loader.adapter


def _check(trainer: Any, loader: R8Loader, saved: dict[str, Any]) -> None:
    if trainer.ckpt_path is not None and "scheduler" not in saved:
        raise ValueError(
            f"ckpt_path must be a checkpoint of a training with R8Loader, got {trainer.ckpt_path!r}, which has no "
            "state of one; to begin with its weights only, load them into the module and leave ckpt_path out."
        )
    if len(trainer.optimizers) != 1:
        raise ValueError(
            f"configure_optimizers() must return one optimizer for R8Callback, got {len(trainer.optimizers)}."
        )
    schedulers = [type(each.scheduler).__name__ for each in trainer.lr_scheduler_configs]
    if schedulers and not loader.keeps_rates:
        raise ValueError(
            f"configure_optimizers() must return no rate scheduler, as R8Scheduler sets the rate, got {schedulers}; "
            "leave it out, or give R8Loader scheduler_mode='keep'."
        )


def _losses(outputs: Any) -> torch.Tensor | None:
    found = outputs.get("losses") if isinstance(outputs, dict) else None
    return None if found is None else found.detach()


def _predictions(outputs: Any) -> Predictions | None:
    found = outputs.get("predictions") if isinstance(outputs, dict) else None
    # The user's own entry of this name may be anything.
    return found if isinstance(found, Predictions) else None


def _loss(outputs: Any) -> torch.Tensor:
    found = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if not isinstance(found, torch.Tensor):
        raise TypeError(
            f"training_step() must return the loss, or a dict with 'loss' or 'losses', for R8Callback, got {outputs!r}."
        )
    return found

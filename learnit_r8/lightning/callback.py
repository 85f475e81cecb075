"""R8Callback: reports the losses of a training with Lightning, and ends it with the budget."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging

from ..bridge.host import expect_rivals
from ..engine.settings import OwnBatches, head_of
from ..guard.verdict import Verdict
from ..schedules.budget import batches_of, has_budget
from ..schedules.schedule import OPEN_MODES
from ..sources.ticket import Outcome
from ..table.labels.predictions import Predictions
from ..torch.attachment import attach
from ..torch.losses import check_labels, cross_entropies, read_losses
from ..torch.predictions import predictions_of
from ..torch.trainer_step import LastForward, gradients_of, note_counts, uncounted
from .loader import WEIGHTED, R8Loader

if TYPE_CHECKING:
    from ..engine.feed.feed import TrainerBatches
    from ..engine.settings import CommonSettings, Unpack
    from ..scheduler import R8Scheduler
    from ..torch import Adapter

    class R8CallbackSettings(CommonSettings, total=False):
        """Settings for a training on loaders of the user's own."""

        batch_size: OwnBatches
        also: Mapping[str, Any]


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
    epochs_before, steps_before = 0, 0
    if _resumed_from(trainer) is None:
        epochs_before, steps_before = trainer.current_epoch, trainer.global_step
    counts = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        counts.append((trainer.max_epochs - epochs_before) * num_batches)
    if trainer.max_steps is not None and trainer.max_steps >= 0:
        left, batches, epoch = trainer.max_steps - steps_before, 0, epochs_before
        while left > 0:
            added, epoch = _num_added(trainer, epoch), epoch + 1
            updates = min(left, -(-max(1, num_batches) // added))
            left, batches = left - updates, batches + batches_of(updates, num_batches, added)
        counts.append(batches)
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


STEPPED = (
    "a batch was refused only after training_step had taken its steps, so it may have been learned from: with manual "
    "optimization a batch is left out if all of its losses went through manual_backward before the first step of an "
    "optimizer, and nothing but the only one is returned."
)


def _resumed_from(trainer: Any) -> Any:
    """The checkpoint that fit() was given, or None.

    Finders of a rate or a batch size train for a while where the fit starts, and go back by a checkpoint of their own,
    whose path stays behind.
    """
    return trainer.ckpt_path if trainer._checkpoint_connector._loaded_checkpoint else None


RESUMED = "fit() was given ckpt_path, so resume={!r} of R8Loader is ignored."
NOT_RESUMED = (
    "the model goes on from step {:,} of R8's checkpoint, but Lightning begins at epoch 0, with its counts, schedules "
    "and callbacks: give fit(..., ckpt_path=) a checkpoint of Lightning's, which holds R8's state, too."
)


@contextlib.contextmanager
def _logging_to(module: Any, log: Callable[..., None]) -> Iterator[None]:
    """A ``with`` block in which a module's ``log``, which its ``log_dict`` calls too, is another function."""
    own = module.__dict__.get("log")
    module.__dict__["log"] = log
    try:
        yield
    finally:
        del module.__dict__["log"]
        if own is not None:
            module.__dict__["log"] = own


class R8Callback(lightning.Callback):  # type: ignore[misc, unused-ignore]
    """Goes into ``Trainer(callbacks=[...])``, with the loader that `fit` trains on, or alone.

    Alone, it keeps loaders, rates and the Trainer's budget as they are, and heals the module: any loaders, streams,
    several optimizers, manual optimization. As long as nothing goes wrong, the weights are bit for bit those of the
    same Trainer without it.

    With an `R8Loader`, ``training_step`` returns the loss as usual; the losses of samples are then estimated from means
    of batches. If it returns ``{"loss": losses.mean(), "losses": losses.detach()}`` they are known. With
    ``return learnit_r8.lightning.cross_entropy(logits, targets)``, or with what
    `learnit_r8.torch.predictions.predictions_of` returned as ``"predictions"``, `SampleTable.suspects` judges labels.

    Args:
        loader: The R8Loader; None to keep your own loaders.
        **settings: For `R8Scheduler`, without an R8Loader; ``scheduler_mode`` is "keep" unless another is given.
            ``also`` names what else belongs to the training, as for `learnit_r8.torch.attach`.

    Raises:
        TypeError: the loader is something else.
        ValueError: settings are given together with an R8Loader, which takes them itself.
    """

    def __init__(self, loader: R8Loader | None = None, **settings: Unpack[R8CallbackSettings]) -> None:
        if not (loader is None or isinstance(loader, R8Loader)):
            raise TypeError(
                f"loader must be an R8Loader, or be left out to keep your own, got {loader!r}; give yours to fit()."
            )
        if loader is not None and settings:
            raise ValueError(f"{min(settings)} must be given to R8Loader, got it in an R8Callback that has one.")
        self._loader = loader
        self._settings: dict[str, Any] = {**settings}
        self._attached: Adapter | None = None
        self._saved: dict[str, Any] = {}
        # Where the loaders are the user's own: what R8 learns of their batches, and the losses of manual optimization.
        self._batches: TrainerBatches | None = None
        self._manual: list[torch.Tensor] = []
        self._last_manual = 0
        self._own_step: Any = None
        self._has_raised = self._is_told = self._is_learned = False
        # Of manual optimization: how many losses there were at its first step of an optimizer, whether these were all,
        # as far as was seen, what looks at each step; which parameters had a step, and the gradients before the batch.
        self._num_at_step: int | None = None
        self._stepped: set[int] = set()
        self._kept: list[tuple[torch.nn.Parameter, torch.Tensor | None]] = []
        self._knows_all = False
        self._step_hooks: list[Any] = []
        self._outputs: Any = None
        self._metrics: dict[str, Any] = {}

    @property
    def scheduler(self) -> R8Scheduler:
        """The scheduler.

        Raises:
            RuntimeError: the training has not begun.
        """
        if self._attached is None:
            raise RuntimeError("scheduler was asked for before fit() was called; the scheduler is built there.")
        return self._attached.scheduler

    @property
    def _adapter(self) -> Adapter:
        assert self._attached is not None
        return self._attached

    @property
    def _keeps_rates(self) -> bool:
        """Whether the learning rate is left to the module's own scheduler."""
        settings = {"scheduler_mode": "keep", **self._settings} if self._loader is None else self._loader.settings
        return bool(head_of(settings.get("scheduler_mode")) == "keep")

    def state_dict(self) -> dict[str, Any]:
        """The whole state of the scheduler, for Lightning's checkpoints; called on all processes."""
        if self._attached is None:
            return {}
        if self._loader is None:
            return {"scheduler": self._attached.lr_scheduler.state_dict()}
        return self._loader.whole_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds until the training begins."""
        self._saved = state_dict

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Build the scheduler: the optimizer is there, and the checkpoint not loaded yet.

        Raises:
            ValueError: the module has several optimizers or a rate scheduler of its own, there is no budget, or the
                checkpoint is not of a training with R8Loader, or of another data set.
        """
        _check(trainer, draws=self._loader is not None, keeps_rates=self._keeps_rates, saved=self._saved)
        # Around the method of the object, as a callback hears of an exception only when the training is over.
        self._own_step = pl_module.training_step
        # Lightning looks at its arguments, to see whether it takes the number of the batch.
        step = functools.partial(self._training_step, pl_module)
        pl_module.training_step = functools.update_wrapper(step, self._own_step)
        settings = dict(self._settings) if self._loader is None else self._loader.settings
        ckpt_path, resume = _resumed_from(trainer), settings.get("resume")
        if ckpt_path is not None:
            settings.pop("resume", None)
        settings |= {
            "accumulate": _num_added(trainer),
            "scaler": getattr(trainer.precision_plugin, "scaler", None),
            "also": {**_others(trainer, pl_module), **settings.get("also", {})},
        }
        if pl_module.automatic_optimization:
            # Else the step itself takes those of the optimizer.
            run_again = functools.partial(_run_again, trainer, pl_module, self._own_step)
            settings.setdefault("run_batch", run_again)
            if self._loader is None:
                settings["repeat"] = run_again
        saved = {} if ckpt_path is None else self._saved
        if self._loader is None:
            self._watch(trainer, pl_module, saved, settings)
        else:
            self._attach_loader(self._loader, trainer, pl_module, saved, settings)
        if ckpt_path is not None and resume is not None:
            self.scheduler.host.say_once("resume", RESUMED.format(resume), is_warning=False)

    def _watch(self, trainer: Any, pl_module: Any, saved: dict[str, Any], settings: dict[str, Any]) -> None:
        """Begin to watch a training on loaders of the user's own."""
        counts_epochs = trainer.max_epochs is not None and trainer.max_epochs >= 0 > trainer.max_steps
        if counts_epochs and not has_budget(settings):
            # For views: only the Trainer ends it.
            settings["num_epochs"] = trainer.max_epochs
        adapter = self._attached = attach(pl_module, trainer.optimizers[0], None, **settings)
        if saved:
            adapter.lr_scheduler.load_state_dict(saved["scheduler"])
        elif adapter.scheduler.global_step:
            adapter.scheduler.host.say_once("not resumed", NOT_RESUMED.format(adapter.scheduler.global_step))
        self._batches = adapter.scheduler.follow()
        self._batches.begin_run()
        fetcher = trainer.fit_loop._data_fetcher
        if (
            saved
            and fetcher is not None
            and not any(hasattr(each, "load_state_dict") for each in trainer.fit_loop._combined_loader.flattened)
        ):
            # The module has asked for the number of steps, so the loader has begun with other generators.
            iter(fetcher)
        if not pl_module.automatic_optimization:
            own, parameters = pl_module.manual_backward, list(pl_module.parameters())

            def manual_backward(loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
                if not self._manual:
                    self._kept, self._stepped = gradients_of(parameters, self._stepped), set()
                self._manual.append(loss.detach())
                self._last_manual = loss.data_ptr()
                own(loss, *args, **kwargs)

            pl_module.manual_backward = manual_backward
            if getattr(trainer.precision_plugin, "scaler", None) is None:
                # A loss scaler takes no step without gradients.
                look = functools.partial(self._before_manual_step, trainer)
                self._step_hooks = [each.register_step_pre_hook(look) for each in trainer.optimizers]

    def _before_manual_step(self, trainer: Any, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Leave out the step of a batch that is not to be learned from: without gradients it changes nothing.

        Where the turn before had gone backward from all of its losses by its first step, the batch is judged here.
        Otherwise, as with a generator that comes after its discriminator, a loss that is not finite leaves out the
        steps to come.
        """
        if self._num_at_step is None:
            self._num_at_step = len(self._manual)
        self._stepped.update(id(each) for group in optimizer.param_groups for each in group["params"])
        if self._knows_all and self._manual and not self._is_told:
            self._is_told, self._is_learned = True, bool(self._report(trainer, None))
        is_refused = self._is_told and not self._is_learned
        if not is_refused and self._adapter.num_ranks == 1:
            # Several processes hear later, all at once, that a loss of one is not finite.
            is_refused = not all(bool(each.isfinite().all()) for each in self._manual)
        if is_refused:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def _attach_loader(
        self, loader: R8Loader, trainer: Any, pl_module: Any, saved: dict[str, Any], settings: dict[str, Any]
    ) -> None:
        loader.keep_batch_size(saved)
        if not has_budget(settings):
            is_open = head_of(settings.get("scheduler_mode")) in OPEN_MODES
            settings |= budget_of(trainer, len(loader), may_be_open=is_open)
        is_chained = trainer.limit_train_batches != 1.0
        self._attached = loader.attach(pl_module, trainer.optimizers[0], is_chained=is_chained, **settings)
        if saved:
            loader.go_on_from(saved)

    def _training_step(self, pl_module: Any, *args: Any, **kwargs: Any) -> Any:
        """What ``training_step`` returns; a loss without a gradient where its own is refused or could not be computed.

        A loss is reported before the optimizer takes its step, if it is known by then, and what was logged with it is
        logged only if it counts; else the module's metrics are put back, too.
        """
        outputs, self._has_raised, self._num_at_step, self._kept = None, False, None, []
        self._manual.clear()
        logged: list[tuple[Any, Any]] = []
        self._adapter.hold((args, kwargs))
        if self._batches is not None:
            self._batches.note_batch((args, kwargs))
        put_back = note_counts(pl_module, skipped="_")
        with (
            LastForward(pl_module, lambda: self._adapter.num_ranks == 1) as step,
            _logging_to(pl_module, lambda *log, **more: logged.append((log, more))),
        ):
            outputs = self._own_step(*args, **kwargs)
        self._has_raised = step.has_raised
        trainer, is_automatic = pl_module.trainer, pl_module.automatic_optimization
        if self._num_at_step is not None:
            # One that was judged has none left, unless more came after it.
            num_seen = 0 if self._is_told else self._num_at_step
            returned = _returned(outputs)
            is_same = isinstance(returned, torch.Tensor) and returned.data_ptr() == self._last_manual
            is_heard = outputs is None or (is_same and self._num_at_step == 1)
            self._knows_all = is_heard and num_seen == len(self._manual) and self._num_at_step > 0
        # A loss scaler takes no step without gradients.
        if is_automatic and getattr(trainer.precision_plugin, "scaler", None) is not None:
            self._outputs = outputs
        elif not self._is_told:
            # An optimizer may ask for the loss several times a step. With manual optimization the step is taken.
            stepped_on: list[torch.Tensor] = [] if self._num_at_step is None else self._manual
            with self._adapter.before_gradient() if is_automatic else contextlib.nullcontext():
                outcome = self._report(trainer, outputs)
            self._is_told, self._is_learned = True, bool(outcome)
            # Those that are not finite have left out the steps after them; one that tests the weights is a good batch.
            is_test = isinstance(outcome, Outcome) and outcome.verdict is Verdict.PROBED
            if stepped_on and not (outcome or is_test) and all(bool(each.isfinite().all()) for each in stepped_on):
                self.scheduler.host.say_once("stepped", STEPPED)
        if not self._has_raised and (self._is_learned or not self._is_told):
            for log, more in logged:
                pl_module.log(*log, **more)
            return outputs
        put_back()
        for parameter, gradient in self._kept:
            # Those of a refused batch must not be added to the next one's.
            if id(parameter) not in self._stepped:
                parameter.grad = gradient
        connector = trainer._logger_connector
        if connector.should_reset_tensors("training_step"):
            # The first log of an epoch does so, and no other one.
            trainer._results.reset(metrics=False, fx="training_step")
            connector._current_fx = "training_step"
        # Without a loss Lightning takes no step.
        if outputs is None or not is_automatic:
            return outputs
        # A loss of the same value from which no gradient comes.
        if isinstance(outputs, Mapping):
            return {**outputs, "loss": outputs["loss"].detach().clone().requires_grad_()}
        return outputs.detach().clone().requires_grad_()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Raise ValueError unless the training is on the loader alone."""
        if self._loader is None:
            # Infinite if Lightning does not know it.
            if self.scheduler.feed is not None and 0 < trainer.num_training_batches < math.inf:
                self.scheduler.feed.expect_epochs_of(int(trainer.num_training_batches))
            return
        given = trainer.fit_loop._combined_loader.flattened
        if len(given) != 1 or given[0] is not self._loader:
            raise ValueError(
                f"fit() must be given the R8Loader of R8Callback to train on, and no other loader, got {given!r}; to "
                "keep several, write R8Callback() alone."
            )

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Count the epoch, where the loaders are the user's own."""
        if self._batches is not None:
            self._batches.begin_pass(trainer.current_epoch)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Do what is due between two steps, where the loaders are the user's own."""
        self._is_told = False
        if self._batches is not None:
            self._batches.begin(batch)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Look at the gradient, which Lightning computes within the optimizer's step."""
        if self._attached is not None and getattr(trainer.precision_plugin, "scaler", None) is None:
            self._adapter.look_before_step(optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Report the losses of the batch, if that was not done before its step; end the training with the budget.

        Raises:
            TypeError: ``training_step`` has returned no loss.
            ValueError: the policy gives losses weights; or there are predictions without the losses of samples.
            TrainingDiverged: losses stay refused after everything was tried.
        """
        own, self._outputs = self._outputs, None
        if not self._is_told:
            self._report(trainer, own)
        r8 = self.scheduler
        if self._batches is not None:
            if trainer.is_last_batch:
                self._batches.end_pass()
            trainer.should_stop = trainer.should_stop or self._is_over
            return
        if batch_idx % max(1, trainer.log_every_n_steps) == 0:
            pl_module.log("lr", r8.lr, prog_bar=True, batch_size=1)
        if trainer.is_last_batch:
            # Validation comes next.
            self._adapter.flush()
            r8.host.leave_epoch()
        ends_itself = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        if r8.is_over and not ends_itself and trainer.global_step != trainer.max_steps:
            # Told to stop, it validates once more.
            trainer.should_stop = True

    @property
    def _is_over(self) -> bool:
        """Whether the Trainer must be told to end: the run was stopped, or has spent a budget that R8 was given."""
        ends_itself = self._loader is None and not has_budget(self._settings)
        return self.scheduler.pace.is_stopped if ends_itself else self.scheduler.is_over

    def _report(self, trainer: Any, outputs: Any) -> Outcome | bool:
        """Report what ``training_step`` has returned; what is true is to be learned from."""
        adapter, batches = self._adapter, self._batches
        if batches is not None and not batches.is_watched:
            return True
        if self._has_raised:
            return adapter.refuse()
        is_skipped = outputs is None and trainer.lightning_module.automatic_optimization
        manual, self._manual = self._manual, []
        if batches is not None:
            # What it has returned, or the sum of the losses that it went backward from.
            found = torch.stack([each.mean().float() for each in manual]).sum() if manual else None
            expect_rivals(self.scheduler, len(manual), len(trainer.optimizers))
            return is_skipped or adapter.report(_loss(outputs, found))
        if adapter.in_hand.weights is not None:
            raise ValueError(WEIGHTED)
        returned = outputs if isinstance(outputs, dict) else {}
        losses, predictions = returned.get("losses"), returned.get("predictions")
        if not isinstance(predictions, Predictions):
            # The user's own entry of this name may be anything.
            predictions = None
        if losses is None and is_skipped:
            adapter.skip()
            return True
        if losses is None:
            losses = _loss(outputs)
            if predictions is not None:
                check_labels(losses.reshape(()))
            return adapter.report(losses)
        if trainer.lightning_module.automatic_optimization and isinstance(returned.get("loss"), torch.Tensor):
            adapter.judge_with(returned["loss"])
        return adapter.report(losses.detach(), predictions=predictions)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Report the losses on their way, as the weights that are kept are to be validated."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._adapter.flush()
            self.scheduler.host.leave_epoch(is_validated=True)
            self._metrics = dict(trainer.callback_metrics)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Pass on what a validation within ``fit`` has logged."""
        before, self._metrics = self._metrics, {}
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        # Those of the training are the same objects still.
        found = {name: value for name, value in trainer.callback_metrics.items() if value is not before.get(name)}
        numbers = {name: float(value) for name, value in found.items() if name != "step" and _is_number(value)}
        if numbers:
            self.scheduler.log(self.scheduler.global_step, **numbers)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Report the losses on their way before validation and checkpoints; end the training with the budget."""
        adapter = self._adapter
        adapter.flush()
        if self._batches is not None:
            self._batches.end_pass()
        if adapter.num_ranks == 1 and adapter.scheduler.requests.is_pending:
            # Else another epoch would begin after the value with which the run ends early.
            adapter.scheduler.host.between_steps()
        # A budget in seconds may be spent between two epochs: the next one would have no batch that could say so.
        trainer.should_stop = trainer.should_stop or self._is_over

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish the run."""
        self._give_back(pl_module)
        self._adapter.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Finish the run, of which a step may be half done."""
        self._give_back(pl_module)
        if self._attached is not None:
            self._attached.__exit__(type(exception), exception, None)

    def _give_back(self, pl_module: Any) -> None:
        """Give the module its own methods back."""
        if self._batches is not None:
            self._batches.end_run()
            if not pl_module.automatic_optimization:
                vars(pl_module).pop("manual_backward", None)
                for hook in self._step_hooks:
                    hook.remove()
        own, self._own_step = self._own_step, None
        if own is not None:
            del pl_module.training_step
            if pl_module.training_step != own:
                # It had one that is not its class's.
                pl_module.training_step = own


def _is_number(value: Any) -> bool:
    return value.numel() == 1 if isinstance(value, torch.Tensor) else isinstance(value, (int, float))


def _run_again(trainer: Any, module: Any, own_step: Callable[..., Any], held: Any) -> Any:
    """The loss of a batch that ``training_step`` was given; what it logs or counts does not count a second time."""
    args, kwargs = held
    silence = _logging_to(module, lambda *_, **__: None)
    with uncounted(module, skipped="_"), silence, trainer.precision_plugin.train_step_context():
        outputs = own_step(*args, **kwargs)
    return _returned(outputs)


def _others(trainer: Any, module: torch.nn.Module) -> dict[str, Any]:
    """What else is trained: further optimizers, and what callbacks keep, as averaged weights or a classifier."""
    found = {f"optimizer {number}": each for number, each in enumerate(trainer.optimizers[1:], start=2)}
    known = {*map(id, module.modules()), *map(id, trainer.optimizers)}
    found |= _kept_by_callbacks(trainer, known)
    for number, callback in enumerate(trainer.callbacks, start=1):
        if isinstance(callback, StochasticWeightAveraging):
            # What the next average is weighted by; changed in place.
            get, put = functools.partial(_num_averaged, callback), functools.partial(setattr, callback, "n_averaged")
            found[f"averaged {number}"] = (get, put, "heal")
    # Those behind R8Callback make theirs as the fit begins.
    later = functools.partial(_kept_by_callbacks, trainer, known | {*map(id, found.values())})

    def load(state: Mapping[str, Any]) -> None:
        for name, part in later().items():
            if name in state:
                part.load_state_dict(state[name])

    found["made later"] = (lambda: {name: part.state_dict() for name, part in later().items()}, load, "heal")
    return found


def _kept_by_callbacks(trainer: Any, known: set[int]) -> dict[str, Any]:
    """The networks and optimizers that callbacks hold, by name, but for those whose ids are known."""
    return {
        f"callback {number} {name}": part
        for number, callback in enumerate(trainer.callbacks, start=1)
        for name, part in vars(callback).items()
        if isinstance(part, (torch.nn.Module, torch.optim.Optimizer)) and id(part) not in known
    }


def _num_averaged(callback: Any) -> Any:
    count = callback.n_averaged
    return None if count is None else count.clone()


def _check(trainer: Any, *, draws: bool, keeps_rates: bool, saved: dict[str, Any]) -> None:
    ckpt_path = _resumed_from(trainer)
    if ckpt_path is not None and "scheduler" not in saved:
        raise ValueError(
            f"ckpt_path must be a checkpoint of a training with R8Callback, got {ckpt_path!r}, which holds no "
            "state of R8; to start from its weights only, load them into the module and leave ckpt_path out."
        )
    least = "one optimizer" if draws else "an optimizer"
    if len(trainer.optimizers) != 1 and (draws or not trainer.optimizers):
        raise ValueError(
            f"configure_optimizers() must return {least} for R8Callback, got {len(trainer.optimizers)}"
            f"{'; keep your own loaders, with R8Callback() alone' if trainer.optimizers else ''}."
        )
    for callback in trainer.callbacks:
        if isinstance(callback, StochasticWeightAveraging) and not keeps_rates:
            raise ValueError(
                "StochasticWeightAveraging must be left out where R8Scheduler sets the rate, as it sets one of its "
                f"own, got {callback!r}; give scheduler_mode='keep', or use EMAWeightAveraging."
            )
    schedulers = [type(each.scheduler).__name__ for each in trainer.lr_scheduler_configs]
    if schedulers and not keeps_rates:
        raise ValueError(
            f"configure_optimizers() must return no rate scheduler, as R8Scheduler sets the rate, got {schedulers}; "
            "leave it out, or set scheduler_mode='keep'."
        )


def _num_added(trainer: Any, epoch: int | None = None) -> int:
    """Batches of a step in an epoch, or the most: a callback that changes their number does so as an epoch begins."""
    added = int(trainer.accumulate_grad_batches)
    for each in trainer.callbacks:
        if isinstance(each, GradientAccumulationScheduler):
            numbers = each.scheduling.values()
            added = max(added, *numbers) if epoch is None else each.get_accumulate_grad_batches(epoch)
    return added


def _returned(outputs: Any) -> Any:
    """What ``training_step`` has returned as its loss."""
    return outputs.get("loss") if isinstance(outputs, Mapping) else outputs


def _loss(outputs: Any, manual: torch.Tensor | None = None) -> torch.Tensor:
    """The loss that ``training_step`` has returned, or that of manual optimization."""
    found = _returned(outputs)
    found = found if isinstance(found, torch.Tensor) else manual
    if found is None:
        raise TypeError(
            "training_step() must return the loss, or a dict with 'loss' or 'losses', or call manual_backward(loss), "
            f"for R8Callback, got {outputs!r}."
        )
    return found.detach()


def cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> dict[str, Any]:
    """The cross entropy of a batch, for ``training_step`` to return.

    Nothing waits for the device: the numbers come back with the losses, some steps later.

    Args:
        logits: float[B, C]; or float[B] or float[B, 1], the logit of class 1 of two.
        targets: int[B], classes in [0, C); -1 or -100 for samples without a label: their loss is 0, and the mean is
            that of the others.
        class_weights: float[C]; the loss is the weighted mean, as that of `torch.nn.CrossEntropyLoss`. The losses
            reported have no weights.
        label_smoothing: In [0, 1], as in torch.

    Returns:
        "loss", 0-dim, to train on; "losses", float[B], detached; and "predictions", from which
        `SampleTable.suspects` judges labels. More entries may be added.

    Raises:
        TypeError: logits or targets are not tensors.
        ValueError: they are not those of a classification with one label a sample; or, on a CPU, a target is outside
            [0, C).

    >>> sorted(cross_entropy(torch.zeros(2, 3), torch.tensor([0, 2])))
    ['loss', 'losses', 'predictions']
    """
    losses, weights = cross_entropies(logits, targets, class_weights=class_weights, label_smoothing=label_smoothing)
    read = read_losses(losses, len(targets), weights=weights)
    return {"loss": read.loss, "losses": read.values, "predictions": predictions_of(logits, targets)}

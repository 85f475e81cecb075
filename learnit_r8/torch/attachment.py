"""attach(): puts a training with torch under an R8Scheduler."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from .._validation import shortened, whole_number
from ..bridge.group_rates import GroupRates, own_rate_of, plain_optimizer, rates_of
from ..engine.feed.batch_size import copied
from ..engine.settings import Backups, OwnBatches, head_of, suggest_settings, whole
from ..sources.random_generators import hold_random_state, random_state, set_random_state, state_of
from ..state.callbacks import Callbacks, Generators, Repeat, join_callbacks
from .adapter import Adapter
from .distributed.shards import check_shards, reshard
from .distributed.together import Sharing, Together, sharing_here
from .ensemble_targets import EnsembleTargets
from .flight.examiner import Examiner
from .flight.hand import Hand
from .flight.untouched import untouched
from .loader import check_dataset, is_own_loader, length_of
from .loss_pipeline import Training
from .lr_scheduler import peak_under_schedules
from .prepared import plain_model
from .readback import SingleProcess
from .state import AVERAGES, TARGETS, AlsoPart, ModelState, carried_of, copies_of, networks_of, read_also
from .stepper import SecondRun, Stepper

if TYPE_CHECKING:
    from ..engine.settings import SchedulerSettings, Unpack
    from ..scheduler import R8Scheduler

NO_MEMORY = "the model is sharded, or RANK in the environment is not {}, the rank of this process"
"""Why backups must not outlive the process."""

MAXIMIZES = (
    "the optimizer has maximize=True, so its losses should rise and do not show damage: guard='finite', which refuses "
    "only those that are not finite, takes the place of the usual one. Pass guard= for another."
)


@suggest_settings
def attach(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: Any,
    *,
    scaler: Any = None,
    ema: Any = None,
    accumulate: int = 1,
    max_grad_norm: float | None = None,
    also: Mapping[str, Any] | None = None,
    ahead: int = 0,
    sharing: Sharing | None = None,
    run_batch: Callable[[Any], Any] | None = None,
    repeat: Callable[[Any], torch.Tensor] | None = None,
    **settings: Unpack[SchedulerSettings],
) -> Adapter:
    """Let a scheduler draw the batches of a training, set its learning rate, and keep its model.

    Without ``batch_size`` the batches are your own: ``dataset`` is then your loader, any iterable of batches of any
    size and length, or None; and the rate is yours, too, unless you give ``scheduler_mode``. The training is then
    watched, and its model healed.

    Backups and checkpoints hold the model, the optimizer, the scaler, the averaged weights and the states of the
    random generators; no callback is needed. Checkpoints are written if ``checkpoint_dir`` is given.

    Args:
        model: The model, on its device; compiled, sharded (`fully_shard`) or wrapped for
            data parallelism if it is to be.
        optimizer: Its optimizer. All parameter groups follow the scheduler and keep the ratios of their rates.
        dataset: The data, with N samples: anything with a length that a `torch.utils.data.DataLoader` takes. Without
            ``batch_size`` your own loader.
        scaler: A `torch.amp.GradScaler`.
        ema: Averaged weights, such as `torch.optim.swa_utils.AveragedModel`: saved and restored with the model.
        accumulate: Batches whose gradients are added up for one step of the optimizer, >= 1. What is left over at the
            end of an epoch makes a step of its own, with the gradients divided by this number all the same.
        max_grad_norm: Largest norm of the gradient, > 0; larger ones are clipped. None does not clip.
        also: What else belongs to the training, by name: anything with ``state_dict()`` and ``load_state_dict()``, or
            a pair of functions that read and load a state. Networks, optimizers and loss scalers are restored with the
            model after damage; others (schedules, positions, the best value) only when a run is resumed. ``(part,
            "heal")`` and ``(part, "resume")`` override this. ``state_callback`` and ``load_callback`` of your own add
            to what is kept, too, and are called at both times.
        ahead: Batches that something between loader and training fetches in advance, as accelerate and Lightning do.
        sharing: Selects this process's part of a batch: by default `Together` if ``torch.distributed`` is initialised
            with several processes; otherwise nothing is shared.
        run_batch: Returns the loss of a batch as the loader gives it, without a step. It runs a refused batch once
            more, watched, to name the module, the sample or the parameter where it went wrong; without it only the
            model runs again. Where `Adapter.step` takes the steps on a CPU, it also computes a step once more whose
            loss or gradient is not finite, to tell transient faults from lasting ones. It is called only then.
        repeat: Returns the loss of what `TrainerBatches.note_batch` got, for a trainer whose loop takes no other batch.
        **settings: For `R8Scheduler`: ``batch_size``, one of ``num_epochs``, ``num_steps`` and
            ``train_duration_seconds``, and so on. ``initial_lr`` is by default the highest of the optimizer's own; with
            ``scheduler_mode="keep"`` the rate is whatever other code sets.

    Raises:
        TypeError: the data set has no length or no index, or an argument has the wrong type.
        ValueError: the model is on the meta device or sharded in a way that cannot be kept, the optimizer holds none of
            its parameters, or an argument is outside its range.

    >>> from torch.nn.functional import mse_loss
    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.randn(64, 3), torch.zeros(64, 1)
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> data = torch.utils.data.TensorDataset(x, y)
    >>> adapter = attach(model, optimizer, data, batch_size=16, num_epochs=2)
    >>> for epoch in adapter.epochs():
    ...     for xs, ys in adapter.loader():
    ...         loss = adapter.loss(mse_loss(model(xs), ys, reduction="none"))
    ...         outcome = adapter.step(loss)
    >>> adapter.scheduler.global_step, adapter.table.source
    (8, 'exact')

    >>> batches = [torch.randn(4, 3), torch.randn(2, 3)]
    >>> adapter = attach(model, optimizer, batches, num_epochs=2)
    >>> for epoch in adapter.epochs():
    ...     for batch in adapter.batches():
    ...         optimizer.zero_grad()
    ...         loss = model(batch).square().mean()
    ...         if adapter.report(loss):
    ...             loss.backward()
    ...             optimizer.step()
    >>> adapter.scheduler.global_step
    4
    """
    is_own = is_own_loader(dataset, settings)
    if is_own and ahead:
        raise ValueError("ahead is for batches that the scheduler draws; give batch_size, too.")
    shared = _checked_sharing(model, optimizer, scaler, ema, sharing)
    own: SchedulerSettings = {**settings}
    size = redraw = None
    if is_own:
        own.setdefault("scheduler_mode", "keep")
        length = length_of(dataset)
        if shared.gather is not None:
            # The shortest ends the epoch of all.
            lengths = shared.gather(length)
            length = None if None in lengths else min(lengths)
        followed = own.get("batch_size")
        followed = followed if isinstance(followed, OwnBatches) else OwnBatches()
        if own.get("num_epochs") is not None and length and followed.steps_per_epoch is None:
            own["batch_size"] = replace(followed, steps_per_epoch=length)
    else:
        check_dataset(dataset)
        size, redraw, ahead = len(dataset), getattr(dataset, "__getitem__", None), whole_number("ahead", ahead, least=0)
    parts, accumulate = read_also(also), whole_number("accumulate", accumulate, least=1)
    stepper = Stepper(optimizer, scaler=scaler, accumulate=accumulate, max_grad_norm=max_grad_norm)
    training = _keep(
        model, optimizer, own, shared, size=size, scaler=scaler, ema=ema, parts=parts, ahead=ahead, stepper=stepper,
        run_batch=run_batch, redraw=redraw, repeat=repeat,
    )  # fmt: skip
    return Adapter(training, dataset)


def _keep(
    model: torch.nn.Module, optimizer: Any, settings: SchedulerSettings, sharing: Sharing, *, size: int | None,
    scaler: Any, ema: Any, parts: dict[str, AlsoPart], ahead: int, stepper: Stepper,
    run_batch: Callable[[Any], Any] | None, redraw: Callable[[int], Any] | None,
    repeat: Callable[[Any], torch.Tensor] | None,
) -> Training:  # fmt: skip
    """Let a new scheduler keep a model; ``size`` is None for batches of the user's."""
    if size is not None and sharing.size == 1 and getattr(settings.get("policy"), "weighs", False):
        parts[TARGETS] = AlsoPart(EnsembleTargets(size), is_healed=False)
    keeps_rates = head_of(settings.get("scheduler_mode")) == "keep"
    asks_peak = not keeps_rates and "initial_lr" not in settings
    peak, peak_text = (peak_under_schedules(optimizer) if asks_peak else None) or (None, "")
    rates = None if keeps_rates else _checked_rates(optimizer, peak)
    state = ModelState(
        model, optimizer, scaler=scaler, ema=ema, rank=sharing.rank, gather=sharing.gather, also=parts,
        keeps_options=keeps_rates, keeps_random=size is None,
    )  # fmt: skip
    # Says at once what it cannot hold.
    state.read()
    users = settings.pop("save_callback", None), settings.pop("load_callback", None)
    users_own = Callbacks.of_user(*users, settings.pop("state_callback", None))
    kept = join_callbacks(_callbacks_of(state, sharing), users_own)
    # A later process could not tell whose backups in shared memory would be.
    is_alone = sharing.size == 1 or os.environ.get("RANK") == str(sharing.rank)
    stays = "" if is_alone and not state.is_sharded else NO_MEMORY.format(sharing.rank)
    own = sharing.settings(_memory_settings(settings, stays))
    # Ranks must not continue from different states, so they choose one together.
    resume = own.pop("resume", None) if isinstance(sharing, Together) else None
    r8 = _new_scheduler(size, kept, own, optimizer, keeps_rates=keeps_rates)
    if peak_text:
        r8.host.say_once("peak", peak_text)
    sharing.check(r8, model, resume, accumulate=stepper.accumulate)
    may_undo = sharing.size == 1 and not state.is_sharded
    hand = _new_hand(r8, model, parts, may_undo=may_undo, is_whole=bool(run_batch))
    # On several ranks nothing runs again, but of a step without a loader only the inputs can be looked at.
    if run_batch is None and (sharing.size == 1 or size is None):
        hand.watch(model)
    examiner = Examiner(
        model, optimizer, scaler=scaler, run_batch=run_batch, hand=hand,
        sharing=sharing, redraw=redraw, others=networks_of(parts),
    )  # fmt: skip
    # Where batches are fetched ahead, the generators at the start of a step are not known.
    generators = None if ahead else Generators(hold_random_state, lambda held: set_random_state(state_of(held)))
    kept = replace(
        kept, generators=generators, examine=examiner.examine, in_hand=examiner.collect,
        repeat=_repeat_of(repeat, model, optimizer, sharing, is_sharded=state.is_sharded), advice=stepper.advice,
        undo=hand.undo if may_undo else None,
    )  # fmt: skip
    kept = r8.host.adopt(kept, witness_size=stepper.accumulate, **copies_of(model))
    optimizers = [optimizer, *(part.holder for part in parts.values() if hasattr(part.holder, "param_groups"))]
    second_run = SecondRun(model, stepper, hand, run_batch, r8, gather=sharing.gather)
    return Training(r8, model, optimizers, state, stepper, rates, sharing, hand, ahead, kept.own, second_run)


def _new_hand(
    r8: R8Scheduler, model: torch.nn.Module, parts: dict[str, AlsoPart], *, may_undo: bool, is_whole: bool
) -> Hand:
    """What holds the batch in hand, and buffers and what is carried on as it came; not where ranks judge late."""
    recorder = r8.controller.recorder
    hand = Hand(keeps_generators=recorder is not None and recorder.record != "names")
    if may_undo:
        hand.watch_buffers([plain_model(each) for each in (model, *networks_of(parts).values())], is_whole=is_whole)
        hand.watch_carried(carried_of(parts))
    return hand


def _callbacks_of(state: ModelState, sharing: Sharing) -> Callbacks:
    """What keeps the model."""

    def collect() -> dict[str, Any]:
        with sharing.watching():
            return state.collect(keeps=not state.rank)

    return Callbacks(
        state.save, state.load, state.read, collect if state.is_spread else None, not_healed=state.not_healed
    )


def _repeat_of(
    repeat: Callable[[Any], torch.Tensor] | None, model: torch.nn.Module, optimizer: Any, sharing: Sharing, *,
    is_sharded: bool,
) -> Repeat | None:  # fmt: skip
    """Takes the loss of a trainer's batch once more; of several processes all do so, each of its own part."""
    ask = sharing.gather
    # A trainer may gather the parts of a model that is sharded over processes around its own call.
    if repeat is None or (ask is not None and is_sharded):
        return None

    def loss_again(batch: Any) -> float:
        # What it draws is drawn, as the next batch of the same update was trained on after it; all else stays.
        with untouched(plain_model(model), optimizer):
            loss = float(repeat(copied(batch)).detach().mean())
            drawn = random_state()
        set_random_state(drawn)
        return loss

    if ask is None:
        return Repeat(lambda batch: batch is not None, loss_again)
    return Repeat(lambda batch: all(ask(batch is not None)), lambda batch: statistics.fmean(ask(loss_again(batch))))


def _checked_sharing(model: Any, optimizer: Any, scaler: Any, ema: Any, sharing: Any) -> Sharing:
    """How the processes here share, after a check that they can train the model."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {shortened(model)}.")
    if not hasattr(optimizer, "param_groups"):
        several = '; give the first, and the others as also={"second": ...}' if isinstance(optimizer, list) else ""
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {shortened(optimizer)}{several}.")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if torch.nn.parameter.is_lazy(tensor):
            raise ValueError(f"model must have its weights, got {name!r} of a lazy module; run a batch through it.")
        if tensor.is_meta:
            raise ValueError(f"model must have its weights, got {name!r} on the meta device; call to_empty() and load.")
    reshard(model)
    # Those that the optimizer steps must be the model's.
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    own = {id(each) for each in model.parameters()}
    if held and own and not held & own:
        raise ValueError(
            f"optimizer must hold parameters of the model, got {len(held)} tensors that are not among its {len(own)}; "
            "make the optimizer after anything that replaces the parameters (fully_shard(), to_empty(), another model)."
        )
    if scaler is not None and not hasattr(scaler, "is_enabled"):
        raise TypeError(f"scaler must be a torch.amp.GradScaler, got {scaler!r}.")
    if ema is not None and not hasattr(ema, "load_state_dict"):
        raise TypeError(
            f"ema must have state_dict() and load_state_dict(), got {ema!r}. Without these give {AVERAGES}."
        )
    if not (sharing is None or isinstance(sharing, (SingleProcess, Together))):
        raise TypeError(f"sharing must be a Together() or None, got {sharing!r}.")
    found: Sharing = sharing_here() if sharing is None else sharing
    check_shards(model, found.size)
    return found


def _memory_settings(settings: SchedulerSettings, stays: str) -> SchedulerSettings:
    """The settings of a new scheduler, without backups in shared memory if they must stay in the process.

    Raises:
        ValueError: they ask for such backups.
    """
    backups: Backups = whole("backup_every", settings.get("backup_every"))
    if not stays:
        return settings
    if backups.backup_dir:
        raise ValueError(f"backup_dir must be None or False if {stays}, got {backups.backup_dir!r}.")
    return {**settings, "backup_every": replace(backups, backup_dir=False)}


def _checked_rates(optimizer: Any, own: float | None) -> GroupRates:
    rates = GroupRates(optimizer, own)
    if not rates.highest > 0:
        raise ValueError(f"optimizer must have a group with a learning rate > 0, got {rates_of(optimizer)!r}.")
    plain = plain_optimizer(optimizer)
    if isinstance(plain, torch.optim.Optimizer):
        # Trainers load the optimizer with its rates as they resume: no other scheduler has set those.
        plain.register_load_state_dict_post_hook(lambda _: rates.expect_any())
    return rates


def _new_scheduler(
    size: int | None, kept: Callbacks, settings: SchedulerSettings, optimizer: Any, *, keeps_rates: bool
) -> R8Scheduler:
    from ..scheduler import R8Scheduler

    ours: SchedulerSettings = {"state_callback": kept.state, "load_callback": kept.load}
    if settings.get("checkpoint_dir") is not None or (kept.own and kept.own.save):
        ours["save_callback"] = kept.save
    should_rise = "guard" not in settings and any(group.get("maximize") for group in optimizer.param_groups)
    if should_rise:
        ours["guard"] = "finite"
    highest = own_rate_of(optimizer)
    if not (keeps_rates or "initial_lr" in settings or highest > 0):
        raise ValueError(
            f"optimizer must have a learning rate > 0, got {highest!r}, as a finished schedule leaves it; make a new "
            "optimizer, or give initial_lr."
        )
    if not keeps_rates:
        ours["initial_lr"] = highest
    given: SchedulerSettings = {**ours, **settings}
    r8 = R8Scheduler(size, **given)
    if should_rise:
        r8.host.say_once("maximize", MAXIMIZES)
    return r8

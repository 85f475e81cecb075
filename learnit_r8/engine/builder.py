"""Builder: makes the parts of a run from the arguments of R8Scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .._validation import check_choice, check_share, described, is_number, whole_number
from ..events.bus import Announcer
from ..events.steps import mode_of
from ..guard.monitor import USUAL_GUARD, Sentry, as_guard
from ..guard.spike import SpikeGuard
from ..guard.verdict import Guard
from ..policies.registry import get_policy
from ..recovery.agreement import Agreement
from ..recovery.backups import RamBackup
from ..recovery.persistence import Persistence
from ..recovery.record import FlightRecorder
from ..recovery.recovery import RecoveryController
from ..schedules import schedule as schedules
from ..schedules.budget import BUDGETS, OPEN_WARMUP, Budget, CoolDownRule
from ..schedules.range_test import RangeTest
from ..schedules.schedule import Schedule
from ..sources.lengths import Buckets
from ..sources.permutation import MAX_SAMPLES
from ..sources.planned import PlannedBatches
from ..sources.source import Source
from ..state.callbacks import Callbacks
from ..state.early_stop import EarlyStop
from ..table.table import SampleTable
from ..triggers.patience import MODES
from .control import Requests
from .emitter import EventEmitter
from .feed.followed import UNKNOWN_LENGTH, FollowedBatches
from .feed.replay import WAYS
from .pace import Pace, Rates
from .run import Run
from .settings import OF_RATES, Monitor, OwnBatches, Settings, TokenBatches
from .turns import Turns

USUAL_EPOCH = 400
"""Steps that are taken for an epoch of unknown length, where backups are taken as often as an epoch says."""

MOST_WARMUP = 1000
"""Most steps of the default warm-up of an open budget; it is an epoch, or this many steps."""

WHY_AN_END = (
    ": scheduler_mode={!r} gives the rate as a function of progress, which needs an end. 'wsd' and 'constant' train "
    "without one, until r8.cool_down() or r8.requests.stop()"
)


def build_run(settings: Settings) -> Run:
    """Build the parts of a run, each from the settings that it names; nothing outside the process is changed.

    Raises:
        ValueError: an argument is outside its range, or there is not exactly one budget.
        TypeError: an argument is of the wrong kind.
    """
    given = settings.given
    guard, is_usual, watches_level = _checked_guard(settings), given["guard"] is USUAL_GUARD, False
    is_own, agreement = given["num_samples"] is None, Agreement()
    if is_own and settings.shape.mode == "keep" and isinstance(guard, SpikeGuard):
        # Losses that rise in a warm-up say little about a rate that is the user's own; their level is watched.
        guard, watches_level = replace(guard, tests_progress=False), guard.tests_progress
    settings = replace(settings, given={**given, "guard": guard})
    given = settings.given
    own, shape = given["batch_size"] if isinstance(given["batch_size"], OwnBatches) else OwnBatches(), settings.shape
    planned = None if is_own else _planned_batches(settings)
    table = _own_table(settings, own) if planned is None else planned.table
    steps_per_epoch = steps_per_pass = UNKNOWN_LENGTH if planned is None else planned.steps_per_pass
    if own.steps_per_epoch is not None:
        steps_per_epoch = whole_number("steps_per_epoch", own.steps_per_epoch, least=1)
    budget = _build_budget(settings, own, steps_per_epoch)
    decay = schedules.DEFAULT_DECAY if shape.decay_proportion in (None, 1) else shape.decay_proportion
    pace = Pace(budget, steps_per_pass, given["clock"], rule=CoolDownRule(shape.min_lr, shape.decay_shape, decay))
    monitor = settings.monitor.name
    mode: Any = mode_of(monitor, settings.monitor.mode)
    check_choice("mode", mode, MODES)
    check_choice("record", settings.run_dir.record, ("names", "batch", "all"))
    sentry = Sentry(guard, watches_level=watches_level, is_usual=is_usual)
    announcer = Announcer(given["listeners"], pace.where)
    early_stop = EarlyStop(given["early_stopping"], monitor, mode, announcer)
    source: Source = planned or FollowedBatches(
        table, pace=pace, settings=own, announcer=announcer, agreement=agreement, seed=int(given["seed"])
    )
    if planned is not None:
        _tell_of_batches(planned, announcer)
    persistence = _build_persistence(
        settings, steps_per_epoch, budget, mode=mode, announcer=announcer, agreement=agreement
    )
    persistence.backup_timer.watches_moves = watches_level
    emitter = EventEmitter(announcer, table)
    controller = RecoveryController(
        given["recovery"], persistence, announcer, table, sentry, keeps_rates=shape.mode == "keep",
        recorder=_build_recorder(settings, persistence),
    )  # fmt: skip
    rates = Rates(
        _schedule_maker(settings, budget), pace=pace, search=_build_range_test(settings, budget, steps_per_epoch),
        source=source, controller=controller, emitter=emitter, announcer=announcer, persistence=persistence,
    )  # fmt: skip
    requests = Requests(pace, announcer, handle_signals=given["handle_signals"], agreement=agreement)
    shown = replace(settings, given={**given, "monitor": Monitor(monitor, mode=mode if monitor else None)})
    return Run(
        source, pace, sentry, persistence, controller, announcer, emitter, agreement, rates, early_stop,
        requests, Turns(table, announcer), given["name"] or "", shown.texts(),
    )  # fmt: skip


def _build_persistence(
    settings: Settings, steps_per_epoch: int, budget: Budget, *, mode: str, announcer: Announcer, agreement: Agreement
) -> Persistence:
    """What takes backups and writes checkpoints."""
    given = settings.given
    if steps_per_epoch == UNKNOWN_LENGTH:
        # Nobody knows the steps of an epoch: a short run has ten of them.
        steps_per_epoch = USUAL_EPOCH if budget.steps is None else min(USUAL_EPOCH, budget.steps // 10)
    has_folder = given["checkpoint_dir"] is not None or given["save_callback"] is not None
    return Persistence(
        Callbacks.of_user(given["save_callback"], given["load_callback"], given["state_callback"]),
        backup_every=settings.backups.every, backup_dir=settings.backups.backup_dir,
        checkpoint_dir=given["checkpoint_dir"], checkpoint_every=settings.checkpoints.every,
        keep=settings.checkpoints.keep_checkpoints,
        # Without a folder the best model is kept in RAM.
        monitor=settings.monitor.name if has_folder else None, mode=mode, config=settings.run_config(),
        steps_per_epoch=steps_per_epoch, announcer=announcer, agreement=agreement,
        backup=RamBackup(most=given["recovery"].keep_backups, saves_witnesses=given["num_samples"] is not None),
    )  # fmt: skip


def _build_recorder(settings: Settings, persistence: Persistence) -> FlightRecorder:
    """What writes the record of an incident, beside the checkpoints until there is a run folder."""

    given = settings.given

    def copy_state() -> Any:
        get = persistence.callbacks.state
        return None if get is None else persistence.backup.copy(get())

    folder = None if persistence.store is None else persistence.store.folder
    return FlightRecorder(settings.run_dir.record, folder, given["name"] or "", copy_state=copy_state)


def _checked_guard(settings: Settings) -> Guard:
    given = settings.given
    guard: Guard = as_guard(given["guard"])
    checked = {"judge": ("guard", guard), "suspicion": ("guard", guard), "max_refused": ("recovery", given["recovery"])}
    for method, (argument, value) in {**checked, "__call__": ("clock", given["clock"])}.items():
        if not hasattr(value, method):
            raise TypeError(f"{argument} must have a method {method}, got {value!r}.")
    return guard


def _planned_batches(settings: Settings) -> PlannedBatches:
    """The source of batches that the scheduler draws, with their table."""
    given = settings.given
    if isinstance(given["batch_size"], OwnBatches):
        raise ValueError(
            "batch_size must be a number or TokenBatches(...) with num_samples, as OwnBatches is for your own batches, "
            f"got {given['batch_size']!r}."
        )
    num_samples = whole_number("num_samples", given["num_samples"], least=1, most=MAX_SAMPLES)
    buckets = _build_buckets(settings, num_samples)
    size = buckets.largest if buckets is not None else given["batch_size"]
    batch_size = whole_number("batch_size", size, least=1, most=MAX_SAMPLES)
    seed = whole_number("seed", given["seed"], least=0, most=2**63)
    table = SampleTable(
        num_samples, batch_size=batch_size, estimator=settings.estimator.estimator, alpha=settings.estimator.alpha,
        groups=given["groups"], sample_ids=given["sample_ids"],
    )  # fmt: skip
    policy = get_policy(given["policy"])
    if buckets is not None and policy.selects:
        raise ValueError(f"policy must take every sample once a pass with lengths, got {given['policy']!r}.")
    source = PlannedBatches(table, policy=policy, seed=seed, last_batch=given["last_batch"], buckets=buckets)
    if given["groups"] is None and policy.needs_groups:
        raise ValueError(
            f"groups must be a label for each sample, as the policy {given['policy']!r} needs them, got None. "
            "If there are no classes, np.zeros(num_samples) puts all samples into one group."
        )
    return source


def _tell_of_batches(source: PlannedBatches, announcer: Announcer) -> None:
    """Tell the user of batches that are not what was probably meant."""
    table = source.table
    if (num_groups := len(table.storage.group_sizes)) >= table.batch_size:
        announcer.note_once(
            "groups",
            f"{num_groups:,} groups are reported, but batches of {table.batch_size} samples are not balanced over "
            "them: that takes fewer groups than samples in a batch.",
        )
    if table.batch_size > table.num_samples:
        announcer.warn_once(
            "batch_size",
            f"batch_size {table.batch_size} is more than the {table.num_samples} samples there are, so an epoch is "
            "one step; R8Scheduler takes num_samples first, then batch_size=.",
        )


def _build_buckets(settings: Settings, num_samples: int) -> Buckets | None:
    """The samples by their length; None without lengths."""
    given = settings.given
    batches = given["batch_size"]
    if not isinstance(batches, TokenBatches):
        return None
    if batches.lengths is None:
        raise ValueError(f"max_tokens needs lengths, the tokens of each sample, got {batches!r} without.")
    if batches.max_tokens is None:
        raise ValueError("lengths need max_tokens, the most tokens of a batch with its padding, got None.")
    if given["last_batch"] != "short":
        raise ValueError(f"last_batch must be 'short' with lengths, got {given['last_batch']!r}.")
    most = None if batches.batch_size is None else whole_number("batch_size", batches.batch_size, least=1)
    tokens = whole_number("max_tokens", batches.max_tokens, least=1)
    return Buckets(batches.lengths, tokens, num_samples=num_samples, most=most)


_OF_PLANS = {
    "batch_size": None, "lengths": None, "max_tokens": None, "policy": "balanced", "groups": None, "sample_ids": None,
    "last_batch": "short", "estimator": "relative", "alpha": None, "auto_find_lr": False,
}  # fmt: skip
"""Settings of batches that the scheduler draws, and their defaults."""


def _own_table(settings: Settings, own: OwnBatches) -> SampleTable:
    """The table of batches that come from the user's loader."""
    given = settings.given
    for name, value, _ in settings.items():
        default = _OF_PLANS.get(name, value)
        if value is not default and not (isinstance(value, str) and value == default):
            raise ValueError(
                f"{name} needs num_samples, so that the scheduler draws the batches, got {value!r} without it; attach "
                "draws them from a data set and batch_size= in place of a loader."
            )
    most = whole_number("max_ids", own.max_ids, least=1, most=MAX_SAMPLES)
    whole_number("seed", given["seed"], least=0, most=2**63)
    check_choice("resume_data", own.resume_data, WAYS)
    return SampleTable(0, batch_size=1, most_ids=most)


def _build_budget(settings: Settings, own: OwnBatches, steps_per_epoch: int) -> Budget:
    """The budget that one of the arguments gives; an open one where the mode needs none.

    Raises:
        ValueError: none or several of them are given, or it is no positive finite number, or no whole number of steps.
    """
    given, mode, warmup_steps = settings.given, settings.shape.mode, settings.shape.warmup_steps
    if warmup_steps is not None:
        warmup_steps = whole_number("warmup_steps", warmup_steps, least=0)
    amounts: dict[str, Any] = {**given, "num_tokens": own.num_tokens}
    chosen = {name: amounts[name] for name in BUDGETS if amounts[name] is not None}
    if not chosen and mode in schedules.OPEN_MODES:
        return Budget(warmup_steps=min(steps_per_epoch, MOST_WARMUP) if warmup_steps is None else warmup_steps)
    if len(chosen) != 1:
        why = "" if chosen else WHY_AN_END.format(mode)
        raise ValueError(f"exactly one of {', '.join(BUDGETS)} must be given, got {chosen or 'none of them'}{why}.")
    [(name, amount)] = chosen.items()
    if not (is_number(amount) and 0 < amount < math.inf):
        raise ValueError(f"{name} must be a number > 0 and finite, got {described(amount)}.")
    if name == "num_epochs" and given["num_samples"] is None:
        if own.steps_per_epoch is None and (mode not in schedules.OPEN_MODES or amount != int(amount)):
            raise ValueError(
                f"num_epochs={amount!r} of a loader needs steps_per_epoch with scheduler_mode={mode!r}, as nobody "
                "knows when an epoch ends: give steps_per_epoch, or a budget in num_steps, num_tokens or "
                "train_duration_seconds; or whole epochs with scheduler_mode 'keep' or 'constant'."
            )
        return Budget(passes=amount, steps_per_pass=own.steps_per_epoch)
    if name == "num_epochs":
        return Budget(steps=math.ceil(amount * steps_per_epoch), is_in_epochs=True)
    if name == "train_duration_seconds":
        return Budget(seconds=amount)
    if amount != int(amount):
        raise ValueError(f"{name} must be a whole number, got {amount!r}.")
    return Budget(tokens=int(amount)) if name == "num_tokens" else Budget(steps=int(amount))


def _build_range_test(settings: Settings, budget: Budget, steps_per_epoch: int) -> RangeTest | None:
    given = settings.given
    if not given["auto_find_lr"]:
        return None
    if given["load_callback"] is None or callable(settings.shape.mode):
        raise ValueError(
            "auto_find_lr needs a load_callback to restore the model, and a scheduler_mode given by name; "
            f"got load_callback={given['load_callback']!r} and scheduler_mode={settings.shape.mode!r}."
        )
    # Of an open run it takes an epoch at most, like a tenth of one that has ten.
    return RangeTest.for_run(10 * steps_per_epoch if budget.is_open else budget.steps)


def _schedule_maker(settings: Settings, budget: Budget) -> Callable[[float | None], Schedule]:
    """The function of a found peak rate, or None, that returns the schedule.

    Raises:
        ValueError: an unknown mode, or a number outside its range.
        TypeError: the mode is neither a text nor callable.
    """
    given, shape, mode = settings.given, settings.shape, settings.shape.mode
    warmup, steps, decay = shape.warmup_proportion, shape.warmup_steps, shape.decay_proportion
    if mode == "keep":
        for each, value, _ in settings.items():
            if each in OF_RATES and value != OF_RATES[each]:
                raise ValueError(
                    f"{each} must be left out with scheduler_mode='keep', as the rate is yours then, got {value!r}."
                )
        return lambda peak: schedules.Kept()
    if budget.is_open:
        if warmup is not None:
            raise ValueError(
                f"warmup_proportion needs a budget to be a share of, got {warmup!r} without one; give warmup_steps."
            )
        warmup = OPEN_WARMUP if budget.warmup_steps else 0.0
    elif steps is not None:
        if warmup is not None or budget.steps is None or callable(mode):
            raise ValueError(
                "warmup_steps needs a budget in steps or epochs, or none, a scheduler_mode given by name, and no "
                f"warmup_proportion, got {steps!r} with {budget} and warmup_proportion={warmup!r}."
            )
        warmup = min(1.0, steps / budget.steps)
    check_share("decay_proportion", 1 if decay is None else decay, has_zero=False)
    if not isinstance(shape.decay_shape, str) or shape.decay_shape not in schedules.SHAPES:
        raise ValueError(f"decay_shape must be one of {sorted(schedules.SHAPES)}, got {shape.decay_shape!r}.")
    if decay is not None and mode != "wsd":
        raise ValueError(f"decay_proportion needs scheduler_mode='wsd', got {decay!r} with {mode!r}.")
    if callable(mode):
        schedule = mode
        schedules.check_rate(schedule(0.0), 0.0)
        return lambda peak: schedule
    if not isinstance(mode, str):
        raise TypeError(f"scheduler_mode must be one of {schedules.MODES} or a function of progress, got {mode!r}.")
    check_choice("scheduler_mode", mode, schedules.MODES, " or a function of progress")
    name: str = mode

    def made(peak: float | None) -> Schedule:
        lr, floor = given["initial_lr"] if peak is None else peak, shape.min_lr
        if name == "one_cycle":
            return schedules.OneCycle(lr, warmup=0.3 if warmup is None else warmup, floor=floor)
        rising = 0.05 if warmup is None else warmup
        if name != "wsd" or budget.is_open or rising == 1:
            return schedules.Warmup(lr, "constant" if name == "wsd" else name, warmup=rising, floor=floor)
        # A long warm-up takes from the default decay, not from one that was asked for.
        falling = min(schedules.DEFAULT_DECAY, 1 - rising) if decay is None else decay
        return schedules.Warmup(lr, shape.decay_shape, warmup=rising, floor=floor, decay_share=falling)

    return made

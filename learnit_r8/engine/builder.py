"""Builder: makes the components of a run from the arguments of R8Scheduler."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .._validation import check_choice, whole_number
from ..checkpoint.callbacks import Callbacks, noting
from ..checkpoint.early_stop import EarlyStop
from ..checkpoint.saver import MODES
from ..events.bus import Announcer
from ..guard.monitor import Sentry
from ..guard.registry import as_guard
from ..guard.verdict import Guard
from ..policies.registry import get_policy
from ..recovery.agreement import Agreement
from ..recovery.controller import RecoveryController
from ..recovery.persistence import Persistence
from ..recovery.ram_backup import RamBackup
from ..sampling.permutation import MAX_SAMPLES
from ..sampling.plan import Plan
from ..schedules.budget import OPEN_WARMUP, Budget
from ..schedules.cool_down import CoolDownRule
from ..schedules.range_test import RangeTest
from ..schedules.schedule import DEFAULT_DECAY, Schedule, make_schedule
from ..schedules.span import Span, read_span
from ..table.table import SampleTable
from .lr_search import LrSearch
from .pace import Pace
from .settings import Settings
from .signals import NAMES as ENDING


@dataclass(frozen=True)
class Components:
    """The components of an engine.

    Attributes:
        plan: Draws batches; holds the table.
        pace: The position of the run.
        make_schedule: Returns the schedule for a peak learning rate that was found; None for the given one.
        sentry: Judges losses with the guard.
        persistence: Takes backups and checkpoints.
        controller: Answers refused losses.
        announcer: Passes events to listeners.
        agreement: Decides together with other ranks, if there are any.
        search: Finds the peak learning rate before the run.
        early_stop: Ends the run before its budget is used up.
        name: Name of the run, "" if it has none.
        settings: The configuration as texts, for display.
        handle_signals: Whether signals that end the process wait for the end of the step and a checkpoint.
        cool_down_on: Number of the signal that asks for a cool-down, and its length; None for none.
    """

    plan: Plan
    pace: Pace
    make_schedule: Callable[[float | None], Schedule]
    sentry: Sentry
    persistence: Persistence
    controller: RecoveryController
    announcer: Announcer
    agreement: Agreement
    search: LrSearch
    early_stop: EarlyStop
    name: str
    settings: Mapping[str, str]
    handle_signals: bool
    cool_down_on: tuple[int, Span] | None


def build_components(given: Settings) -> Components:
    """Build the components, each from the settings that it names; nothing outside the process is changed.

    Raises:
        ValueError: an argument is outside its range, or there is not exactly one budget.
        TypeError: an argument is of the wrong kind.
    """
    guard, recovery = _checked_guard(given), given.recovery
    plan = _build_plan(given)
    budget = _build_budget(given, plan.steps_per_pass)
    pace = Pace(budget, plan.steps_per_pass, given.clock, rule=_build_cool_down_rule(given))
    check_choice("mode", given.mode, MODES)
    test = _build_range_test(given, budget, plan.steps_per_pass)
    agreement = Agreement()
    announcer = Announcer(given.listeners, lambda: (pace.step, pace.seconds))
    if plan.table.batch_size > plan.table.num_samples:
        announcer.warn_once(
            "batch_size",
            f"batch_size {plan.table.batch_size} is more than the {plan.table.num_samples} samples there are, so an "
            "epoch is one step; num_samples comes first, then batch_size=.",
        )
    sentry = Sentry(guard)
    has_folder = given.checkpoint_dir is not None or given.save_callback is not None
    early_stop = EarlyStop(given.early_stopping, given.monitor, given.mode, announcer)
    callbacks = Callbacks(given.save_callback, given.load_callback, given.state_callback)
    persistence = Persistence(
        replace(callbacks, state=noting(callbacks.state)),
        backup_every=given.backup_every,
        backup_dir=given.backup_dir,
        checkpoint_dir=given.checkpoint_dir,
        checkpoint_every=given.checkpoint_every,
        keep=given.keep_checkpoints,
        # Without a folder the best model is kept in RAM.
        monitor=given.monitor if has_folder else None,
        mode=given.mode,
        config=replace(given, guard=guard).run_config(),
        steps_per_epoch=plan.steps_per_pass,
        announcer=announcer,
        agreement=agreement,
        backup=RamBackup(most=recovery.keep_backups),
    )
    return Components(
        plan=plan,
        pace=pace,
        make_schedule=_schedule_maker(given, budget),
        sentry=sentry,
        persistence=persistence,
        controller=RecoveryController(recovery, persistence, announcer, plan.table, sentry),
        announcer=announcer,
        agreement=agreement,
        search=LrSearch(test, plan=plan, persistence=persistence, announcer=announcer),
        early_stop=early_stop,
        name=given.name or "",
        settings=replace(given, guard=guard).texts(),
        handle_signals=given.handle_signals,
        cool_down_on=_checked_signal(given),
    )


def _checked_guard(given: Settings) -> Guard:
    guard = as_guard(given.guard)
    for argument, value, method in (
        ("guard", guard, "judge"),
        ("guard", guard, "suspicion"),
        ("recovery", given.recovery, "max_refused"),
        ("clock", given.clock, "__call__"),
    ):
        if not hasattr(value, method):
            raise TypeError(f"{argument} must have a method {method}, got {value!r}.")
    return guard


def _build_plan(given: Settings) -> Plan:
    num_samples = whole_number("num_samples", given.num_samples, least=1, most=MAX_SAMPLES)
    batch_size = whole_number("batch_size", given.batch_size, least=1, most=MAX_SAMPLES)
    seed = whole_number("seed", given.seed, least=0, most=2**63)
    table = SampleTable(
        num_samples,
        batch_size=batch_size,
        estimator=given.estimator,
        alpha=given.alpha,
        groups=given.groups,
        sample_ids=given.sample_ids,
    )
    plan = Plan(table, policy=get_policy(given.policy), seed=seed, last_batch=given.last_batch)
    if given.groups is not None and not plan.policy.uses_groups:
        raise ValueError(
            "groups need a policy that uses them ('balanced', 'focus', even_groups() or your own), got "
            f"{given.policy!r}."
        )
    if given.groups is None and plan.policy.needs_groups:
        raise ValueError(
            f"groups must be a label for each sample, as the policy {given.policy!r} needs them, got None. "
            "If there are no classes, np.zeros(num_samples) puts all samples into one group."
        )
    return plan


def _build_budget(given: Settings, steps_per_epoch: int) -> Budget:
    warmup_steps = given.warmup_steps
    if warmup_steps is not None:
        warmup_steps = whole_number("warmup_steps", warmup_steps, least=0)
    return Budget.of(
        given.num_epochs,
        given.num_steps,
        given.train_duration_seconds,
        steps_per_epoch,
        mode=given.scheduler_mode,
        warmup_steps=warmup_steps,
    )


def _build_cool_down_rule(given: Settings) -> CoolDownRule:
    share = given.decay_proportion
    return CoolDownRule(given.min_lr, given.decay_shape, DEFAULT_DECAY if share is None or share == 1 else share)


def _build_range_test(given: Settings, budget: Budget, steps_per_epoch: int) -> RangeTest | None:
    if not given.auto_find_lr:
        return None
    if given.load_callback is None or callable(given.scheduler_mode):
        raise ValueError(
            "auto_find_lr needs a load_callback to restore the model, and a scheduler_mode given by name; "
            f"got load_callback={given.load_callback!r} and scheduler_mode={given.scheduler_mode!r}."
        )
    # Of an open run it takes an epoch at most, like a tenth of one that has ten.
    return RangeTest.for_run(10 * steps_per_epoch if budget.is_open else budget.steps)


def _schedule_maker(given: Settings, budget: Budget) -> Callable[[float | None], Schedule]:
    """The function of a found peak rate, or None, that returns the schedule."""
    warmup, steps = given.warmup_proportion, given.warmup_steps
    if budget.is_open:
        if warmup is not None:
            raise ValueError(
                f"warmup_proportion needs a budget to be a share of, got {warmup!r} without; give warmup_steps."
            )
        warmup = OPEN_WARMUP if budget.warmup_steps else 0.0
    elif steps is not None:
        if warmup is not None or budget.steps is None or callable(given.scheduler_mode):
            raise ValueError(
                "warmup_steps needs a budget in steps or epochs, or none, a scheduler_mode given by name, and no "
                f"warmup_proportion, got {steps!r} with {budget} and warmup_proportion={warmup!r}."
            )
        warmup = min(1.0, steps / budget.steps)

    def made(peak: float | None) -> Schedule:
        return make_schedule(
            given.initial_lr if peak is None else peak,
            mode=given.scheduler_mode,
            warmup_proportion=warmup,
            min_lr=given.min_lr,
            decay_proportion=given.decay_proportion,
            decay_shape=given.decay_shape,
            is_open=budget.is_open,
        )

    return made


def _checked_signal(given: Settings) -> tuple[int, Span] | None:
    """The signal that asks for a cool-down, and the length of that."""
    asked: Any = given.cool_down_on
    if asked is None:
        return None
    if not (isinstance(asked, (tuple, list)) and len(asked) == 2):
        raise ValueError(f'cool_down_on must be a signal and a length, ("SIGUSR1", "10min"), got {asked!r}.')
    name, span = asked[0], read_span("the length in cool_down_on", asked[1])
    found = getattr(signal, name, None) if isinstance(name, str) and name.startswith("SIG") else None
    if not isinstance(found, signal.Signals) or name in (*ENDING, "SIGKILL", "SIGSTOP"):
        raise ValueError(
            f'the signal in cool_down_on must be one that this system has and that ends no run, such as "SIGUSR1", '
            f"got {name!r}."
        )
    if not given.handle_signals:
        raise ValueError("cool_down_on needs handle_signals=True, got False.")
    return int(found), span

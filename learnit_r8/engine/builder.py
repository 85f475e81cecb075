"""Builder: makes the components of a run from the arguments of R8Scheduler."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from .._validation import check_choice, whole_number
from ..checkpoint.callbacks import Callbacks
from ..checkpoint.run_config import config_of
from ..checkpoint.saver import MODES
from ..events.bus import Announcer
from ..guard.monitor import Sentry
from ..guard.registry import as_guard
from ..guard.verdict import Guard
from ..policies.base import Policy
from ..policies.registry import get_policy
from ..recovery.controller import RecoveryController
from ..recovery.persistence import Persistence
from ..recovery.policy import Recovery
from ..recovery.ram_backup import RamBackup
from ..sampling.permutation import MAX_SAMPLES
from ..sampling.plan import Plan
from ..schedules.budget import OPEN_WARMUP, Budget
from ..schedules.cool_down import CoolDownRule
from ..schedules.range_test import RangeTest
from ..schedules.schedule import DEFAULT_DECAY, Schedule, make_schedule
from ..schedules.span import Span, read_span
from ..table.table import SampleTable
from ..triggers import Condition
from .emitter import settings_of
from .lr_search import LrSearch
from .pace import Pace
from .signals import NAMES as ENDING

_NOT_SETTINGS = frozenset({"listeners", "name", "num_samples", "batch_size"})
"""Arguments of R8Scheduler that events hold anyway, or that are of no use in them."""


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
        search: Finds the peak learning rate before the run.
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
    search: LrSearch
    name: str
    settings: Mapping[str, str]
    handle_signals: bool
    cool_down_on: tuple[int, Span] | None


def build_components(given: Mapping[str, Any]) -> Components:
    """Build the components; each function below takes the arguments that it names.

    Args:
        given: All arguments of `R8Scheduler`, by name.

    Raises:
        ValueError: an argument is outside its range, or there is not exactly one budget.
        TypeError: an argument is of the wrong kind.
    """
    given = {**given, "guard": as_guard(given["guard"])}
    plan = _plan_of(**given)
    budget = _budget_of(plan.steps_per_pass, **given)
    pace = Pace(budget, plan.steps_per_pass, given["clock"], rule=_cool_down_rule(**given))
    _check_methods(**given)
    test = _range_test_of(budget, plan.steps_per_pass, **given)
    announcer = Announcer(given["listeners"], lambda: (pace.step, pace.seconds))
    sentry = Sentry(given["guard"])
    recovery: Recovery = given["recovery"]
    backup = RamBackup(most=recovery.keep_backups)
    persistence = _persistence_of(plan.steps_per_pass, announcer, config_of(given), backup, **given)
    controller = RecoveryController(recovery, persistence, announcer, plan.table, sentry)
    return Components(
        plan=plan,
        pace=pace,
        make_schedule=_schedule_maker(budget, **given),
        sentry=sentry,
        persistence=persistence,
        controller=controller,
        announcer=announcer,
        search=LrSearch(test, plan=plan, persistence=persistence, announcer=announcer),
        name=given["name"] or "",
        settings=settings_of(given, without=_NOT_SETTINGS),
        handle_signals=given["handle_signals"],
        cool_down_on=_checked_signal(**given),
    )


def _budget_of(
    steps_per_epoch: int,
    *,
    num_epochs: float | None,
    num_steps: int | None,
    train_duration_seconds: float | None,
    scheduler_mode: str | Schedule,
    warmup_steps: int | None,
    **_others: object,
) -> Budget:
    if warmup_steps is not None:
        warmup_steps = whole_number("warmup_steps", warmup_steps, least=0)
    return Budget.of(
        num_epochs,
        num_steps,
        train_duration_seconds,
        steps_per_epoch,
        mode=scheduler_mode,
        warmup_steps=warmup_steps,
    )


def _schedule_maker(
    budget: Budget,
    *,
    initial_lr: float,
    scheduler_mode: str | Schedule,
    warmup_proportion: float | None,
    warmup_steps: int | None,
    min_lr: float,
    decay_proportion: float | None,
    decay_shape: str,
    **_others: object,
) -> Callable[[float | None], Schedule]:
    """The function of a found peak rate, or None, that returns the schedule."""
    if budget.is_open:
        if warmup_proportion is not None:
            raise ValueError(
                f"warmup_proportion needs a budget to be a share of, got {warmup_proportion!r} without; give "
                "warmup_steps."
            )
        warmup_proportion = OPEN_WARMUP if budget.warmup_steps else 0.0
    elif warmup_steps is not None:
        if warmup_proportion is not None or budget.steps is None or callable(scheduler_mode):
            raise ValueError(
                "warmup_steps needs a budget in steps or epochs, or none, a scheduler_mode given by name, and no "
                f"warmup_proportion, got {warmup_steps!r} with {budget} and warmup_proportion={warmup_proportion!r}."
            )
        warmup_proportion = min(1.0, warmup_steps / budget.steps)

    def made(peak: float | None) -> Schedule:
        return make_schedule(
            initial_lr if peak is None else peak,
            mode=scheduler_mode,
            warmup_proportion=warmup_proportion,
            min_lr=min_lr,
            decay_proportion=decay_proportion,
            decay_shape=decay_shape,
            is_open=budget.is_open,
        )

    return made


def _checked_signal(*, cool_down_on: Any, handle_signals: bool, **_others: object) -> tuple[int, Span] | None:
    """The signal that asks for a cool-down, and the length of that."""
    if cool_down_on is None:
        return None
    if not (isinstance(cool_down_on, (tuple, list)) and len(cool_down_on) == 2):
        raise ValueError(f'cool_down_on must be a signal and a length, ("SIGUSR1", "10min"), got {cool_down_on!r}.')
    name, span = cool_down_on[0], read_span("the length in cool_down_on", cool_down_on[1])
    found = getattr(signal, name, None) if isinstance(name, str) and name.startswith("SIG") else None
    if not isinstance(found, signal.Signals) or name in (*ENDING, "SIGKILL", "SIGSTOP"):
        raise ValueError(
            f'the signal in cool_down_on must be one that this system has and that ends no run, such as "SIGUSR1", '
            f"got {name!r}."
        )
    if not handle_signals:
        raise ValueError("cool_down_on needs handle_signals=True, got False.")
    return int(found), span


def _cool_down_rule(
    *, min_lr: float, decay_proportion: float | None, decay_shape: str, **_others: object
) -> CoolDownRule:
    share = DEFAULT_DECAY if decay_proportion is None or decay_proportion == 1 else decay_proportion
    return CoolDownRule(min_lr, decay_shape, share)


def _plan_of(
    *,
    num_samples: int,
    batch_size: int,
    estimator: str,
    alpha: float | None,
    groups: ArrayLike | None,
    sample_ids: Sequence[Any] | None,
    policy: str | Policy,
    seed: int,
    last_batch: str,
    **_others: object,
) -> Plan:
    num_samples = whole_number("num_samples", num_samples, least=1, most=MAX_SAMPLES)
    batch_size = whole_number("batch_size", batch_size, least=1, most=MAX_SAMPLES)
    seed = whole_number("seed", seed, least=0, most=2**63)
    table = SampleTable(
        num_samples, batch_size=batch_size, estimator=estimator, alpha=alpha, groups=groups, sample_ids=sample_ids
    )
    plan = Plan(table, policy=get_policy(policy), seed=seed, last_batch=last_batch)
    if groups is not None and not plan.policy.uses_groups:
        raise ValueError(
            f"groups need a policy that uses them ('balanced', 'focus', even_groups() or your own), got {policy!r}."
        )
    if groups is None and plan.policy.needs_groups:
        raise ValueError(
            f"groups must be a label for each sample, as the policy {policy!r} needs them, got None. "
            "If there are no classes, np.zeros(num_samples) puts all samples into one group."
        )
    return plan


def _check_methods(
    *, guard: Guard, recovery: Recovery, clock: Callable[[], float], mode: str, **_others: object
) -> None:
    check_choice("mode", mode, MODES)
    for argument, value, method in (
        ("guard", guard, "judge"),
        ("guard", guard, "suspicion"),
        ("recovery", recovery, "max_refused"),
        ("clock", clock, "__call__"),
    ):
        if not hasattr(value, method):
            raise TypeError(f"{argument} must have a method {method}, got {value!r}.")


def _range_test_of(
    budget: Budget,
    steps_per_epoch: int,
    *,
    auto_find_lr: bool,
    load_callback: Callable[..., Any] | None,
    scheduler_mode: str | Schedule,
    **_others: object,
) -> RangeTest | None:
    if not auto_find_lr:
        return None
    if load_callback is None or callable(scheduler_mode):
        raise ValueError(
            "auto_find_lr needs a load_callback to restore the model, and a scheduler_mode given by name; "
            f"got load_callback={load_callback!r} and scheduler_mode={scheduler_mode!r}."
        )
    # Of an open run it takes an epoch at most, like a tenth of one that has ten.
    return RangeTest.for_run(10 * steps_per_epoch if budget.is_open else budget.steps)


def _persistence_of(
    steps_per_epoch: int,
    announcer: Announcer,
    config: Mapping[str, Any],
    backup: RamBackup,
    *,
    save_callback: Callable[..., Any] | None,
    load_callback: Callable[..., Any] | None,
    state_callback: Callable[[], Any] | None,
    backup_every: int | str | Condition | None,
    checkpoint_dir: str | os.PathLike[str] | None,
    checkpoint_every: int | str | Condition | None,
    backup_dir: str | os.PathLike[str] | bool | None,
    keep_checkpoints: int | str,
    monitor: str | None,
    mode: str,
    **_others: object,
) -> Persistence:
    return Persistence(
        Callbacks(save_callback, load_callback, state_callback),
        backup_every=backup_every,
        backup_dir=backup_dir,
        checkpoint_dir=checkpoint_dir,
        checkpoint_every=checkpoint_every,
        keep=keep_checkpoints,
        monitor=monitor,
        mode=mode,
        config=config,
        steps_per_epoch=steps_per_epoch,
        announcer=announcer,
        backup=backup,
    )

"""Builder: makes the components of a run from the arguments of R8Scheduler."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from .._validation import whole_number
from ..checkpoint.callbacks import Callbacks
from ..checkpoint.run_config import config_of
from ..events.bus import Announcer
from ..guard.monitor import MOST_SUSPICION, Sentry
from ..guard.verdict import Guard
from ..policies.base import Policy
from ..policies.registry import get_policy
from ..recovery.controller import RecoveryController
from ..recovery.persistence import Persistence
from ..recovery.policy import Recovery
from ..recovery.ram_backup import RamBackup
from ..sampling.permutation import MAX_SAMPLES
from ..sampling.plan import Plan
from ..schedules.budget import Budget
from ..schedules.range_test import RangeTest
from ..schedules.schedule import Schedule, make_schedule
from ..table.table import SampleTable
from ..triggers import Condition
from .emitter import settings_of
from .lr_search import LrSearch
from .pace import Pace

_NOT_SETTINGS = frozenset({"listeners", "name", "num_samples", "batch_size"})
"""Arguments of R8Scheduler that events hold anyway, or that are of no use in them."""


@dataclass(frozen=True)
class Components:
    """The components of an engine.

    Attributes:
        plan: Draws batches; holds the table.
        pace: The position of the run.
        make_schedule: Returns the schedule for a peak learning rate.
        peak_lr: The first peak learning rate.
        sentry: Judges losses with the guard.
        persistence: Takes backups and checkpoints.
        controller: Answers refused losses.
        announcer: Passes events to listeners.
        search: Finds the peak learning rate before the run.
        name: Name of the run, "" if it has none.
        settings: The configuration as texts, for display.
        handle_signals: Whether signals that end the process wait for the end of the step and a checkpoint.
    """

    plan: Plan
    pace: Pace
    make_schedule: Callable[[float], Schedule]
    peak_lr: float
    sentry: Sentry
    persistence: Persistence
    controller: RecoveryController
    announcer: Announcer
    search: LrSearch
    name: str
    settings: Mapping[str, str]
    handle_signals: bool


def build_components(given: Mapping[str, Any]) -> Components:
    """Build the components; each function below takes the arguments that it names.

    Args:
        given: All arguments of `R8Scheduler`, by name.

    Raises:
        ValueError: an argument is outside its range, or there is not exactly one budget.
        TypeError: an argument is of the wrong kind.
    """
    plan = _plan_of(**given)
    budget = Budget.of(given["num_epochs"], given["num_steps"], given["train_duration_seconds"], plan.steps_per_pass)
    pace = Pace(budget, plan.steps_per_pass, given["clock"])
    _check_methods(**given)
    test = _range_test_of(budget, **given)
    announcer = Announcer(given["listeners"], lambda: (pace.step, pace.seconds))
    sentry = Sentry(given["guard"])

    def is_calm() -> bool:
        return controller.is_calm and sentry.suspicion < MOST_SUSPICION

    recovery: Recovery = given["recovery"]
    backup = RamBackup(trial_steps=recovery.trial_steps, older_steps=recovery.older_steps, is_calm=is_calm)
    persistence = _persistence_of(plan.steps_per_pass, announcer, config_of(given), backup, **given)
    controller = RecoveryController(recovery, persistence, announcer, plan.table)
    return Components(
        plan=plan,
        pace=pace,
        make_schedule=functools.partial(
            make_schedule,
            mode=given["scheduler_mode"],
            warmup_proportion=given["warmup_proportion"],
            min_lr=given["min_lr"],
        ),
        peak_lr=given["initial_lr"],
        sentry=sentry,
        persistence=persistence,
        controller=controller,
        announcer=announcer,
        search=LrSearch(test, plan=plan, persistence=persistence, announcer=announcer),
        name=given["name"] or "",
        settings=settings_of(given, without=_NOT_SETTINGS),
        handle_signals=given["handle_signals"],
    )


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


def _check_methods(*, guard: Guard, recovery: Recovery, clock: Callable[[], float], **_others: object) -> None:
    for argument, value, method in (
        ("guard", guard, "judge"),
        ("guard", guard, "suspicion"),
        ("recovery", recovery, "refused"),
        ("clock", clock, "__call__"),
    ):
        if not hasattr(value, method):
            raise TypeError(f"{argument} must have a method {method}, got {value!r}.")


def _range_test_of(
    budget: Budget,
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
    return RangeTest.for_run(budget.steps)


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
    keep_checkpoints: int,
    monitor: str | None,
    mode: str,
    **_others: object,
) -> Persistence:
    return Persistence(
        Callbacks(save_callback, load_callback, state_callback),
        backup_every=backup_every,
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

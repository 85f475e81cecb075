"""The settings of R8Scheduler as types, for functions that hand them on, and their names in other libraries."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from .._validation import did_you_mean

if TYPE_CHECKING:
    from typing import Literal

    from numpy.typing import ArrayLike

    from .. import events
    from ..guard.registry import GuardName
    from ..guard.verdict import Guard
    from ..policies.base import Policy
    from ..policies.registry import PolicyName
    from ..recovery.policy import Recovery
    from ..schedules.schedule import Schedule, ScheduleName, ShapeName
    from ..triggers import Condition

    if sys.version_info >= (3, 11):
        from typing import Unpack as Unpack
    else:
        from typing_extensions import Unpack as Unpack

F = TypeVar("F", bound=Callable[..., Any])


class CommonSettings(TypedDict, total=False):
    """Those that all ways of building a scheduler take; see `R8Scheduler` for what they mean."""

    initial_lr: float
    num_epochs: float | None
    num_steps: int | None
    train_duration_seconds: float | None
    scheduler_mode: ScheduleName | Schedule
    warmup_proportion: float | None
    warmup_steps: int | None
    decay_proportion: float | None
    decay_shape: ShapeName
    min_lr: float
    auto_find_lr: bool
    policy: PolicyName | Policy
    estimator: Literal["relative", "additive"]
    alpha: float | None
    groups: ArrayLike | None
    sample_ids: Sequence[Any] | None
    last_batch: Literal["short", "drop", "fill"]
    state_callback: Callable[[], Any] | None
    backup_every: int | str | Condition | None
    backup_dir: str | os.PathLike[str] | bool | None
    checkpoint_dir: str | os.PathLike[str] | None
    checkpoint_every: int | str | Condition | None
    keep_checkpoints: int | Literal["thin"]
    monitor: str | None
    mode: Literal["min", "max"]
    resume: str | os.PathLike[str] | None
    guard: GuardName | Guard
    recovery: Recovery
    use_curses: bool
    run_dir: str | os.PathLike[str] | bool | None
    handle_signals: bool
    cool_down_on: tuple[str, int | str] | None
    name: str | None
    listeners: Iterable[events.Listener]
    seed: int
    clock: Callable[[], float]


class SchedulerSettings(CommonSettings, total=False):
    """All keywords of `R8Scheduler`.

    >>> settings: SchedulerSettings = {"batch_size": 32, "num_epochs": 3, "policy": "focus"}
    """

    batch_size: int
    save_callback: Callable[..., Any] | None
    load_callback: Callable[..., Any] | None


class NewGoal(CommonSettings, total=False):
    """What `R8Scheduler.resume_from_checkpoint` may change."""

    num_samples: int
    batch_size: int


ELSEWHERE = {
    "initial_lr": ("lr", "learning_rate", "peak_lr", "max_lr", "base_lr"),
    "num_epochs": ("epochs", "max_epochs", "n_epochs", "num_train_epochs"),
    "num_steps": ("steps", "max_steps", "n_steps", "total_steps", "iterations"),
    "train_duration_seconds": ("max_time", "duration", "seconds", "time"),
    "batch_size": ("bs", "batch", "per_device_train_batch_size"),
    "scheduler_mode": ("schedule", "lr_schedule", "lr_scheduler", "lr_scheduler_type", "schedule_mode"),
    "warmup_proportion": ("warmup", "warmup_ratio", "warmup_share"),
    "min_lr": ("final_lr", "end_lr", "eta_min"),
    "auto_find_lr": ("auto_lr_find", "find_lr", "lr_find"),
    "policy": ("sampler", "sampling", "strategy"),
    "groups": ("labels", "classes", "targets", "y"),
    "sample_ids": ("ids", "sample_names", "file_names"),
    "last_batch": ("drop_last",),
    "backup_every": ("backup", "backup_interval"),
    "checkpoint_dir": ("save_dir", "ckpt_dir", "checkpoints", "checkpoint_path", "output_dir"),
    "checkpoint_every": ("save_every", "save_steps", "checkpoint_interval"),
    "keep_checkpoints": ("keep", "save_total_limit", "max_to_keep"),
    "resume": ("resume_from", "resume_from_checkpoint"),
    "use_curses": ("screen", "dashboard", "ui", "curses", "tui", "progress_bar"),
    "run_dir": ("log_dir", "logdir", "logging_dir", "run_folder"),
    "listeners": ("callbacks", "hooks"),
    "seed": ("random_state", "random_seed"),
}
"""What other libraries call the settings."""


def names_settings(function: F) -> F:
    """Have a function say which setting a keyword that it does not know may stand for.

    Args:
        function: A function whose keywords are settings; of those in ``**settings`` those of `R8Scheduler`.
    """
    # Not inspect.signature(), which takes longer than all of this module.
    code = function.__code__
    known = set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    if code.co_flags & inspect.CO_VARKEYWORDS:
        known |= SchedulerSettings.__annotations__.keys()

    @functools.wraps(function)
    def checked(*args: Any, **settings: Any) -> Any:
        for name in settings:
            if name not in known:
                raise TypeError(
                    f"{_called(function)} got an unexpected keyword argument {name!r}.{_meant(name, known)}"
                )
        return function(*args, **settings)

    return checked  # type: ignore[return-value]


def _called(function: Callable[..., Any]) -> str:
    return f"{function.__qualname__.removesuffix('.__init__')}()"


def _meant(name: str, known: set[str]) -> str:
    for setting, others in ELSEWHERE.items():
        if setting in known and name.lower() in others:
            return f" Did you mean {setting!r}?"
    return did_you_mean(name, sorted(known))

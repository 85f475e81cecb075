"""The settings of R8Scheduler: facts about each, and their types for functions that pass them on."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import numpy as np

from .._validation import did_you_mean
from ..checkpoint.run_config import RunConfig, describe
from .values import (
    CHANGEABLE,
    DEFAULTS,
    IDENTITY,
    KINDS,
    NOTED,
    WITHIN,
    Backups,
    Checkpoints,
    Estimator,
    Monitor,
    OwnBatches,
    RateShape,
    RunDir,
    TokenBatches,
    about,
    check_flags,
    expand_home,
    flat_items,
    how_to_write,
    whole,
)  # fmt: skip

if TYPE_CHECKING:
    from typing import Literal

    from numpy.typing import ArrayLike

    from .. import events
    from ..checkpoint.early_stop import EarlyStopping
    from ..guard.monitor import GuardName
    from ..guard.verdict import Guard
    from ..policies.base import Policy
    from ..policies.registry import PolicyName
    from ..recovery.policy import Recovery
    from ..schedules.schedule import Schedule, ScheduleName
    from ..triggers import Condition

    if sys.version_info >= (3, 11):
        from typing import Unpack as Unpack
    else:
        from typing_extensions import Unpack as Unpack

MOST_TEXT, MOST_RECORDED = 200, 1000
"""Characters of a setting that are shown, and of what the user records."""

_KINDS = {"U": "text", "S": "bytes", "O": "objects"}
"""Kinds of arrays whose dtype says nothing to people."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All arguments of `R8Scheduler`, as they were given; the parts of a run are built from them.

    A new one stands in the signature and the docstring of `R8Scheduler`, and here; nowhere else.
    """

    num_samples: int | None = field(metadata=about(kept=CHANGEABLE, is_shown=False))
    batch_size: int | TokenBatches | OwnBatches | None = field(metadata=about(kept=CHANGEABLE, is_shown=False))
    initial_lr: float = field(metadata=about(kept=CHANGEABLE))
    num_epochs: float | None = field(metadata=about(kept=CHANGEABLE))
    num_steps: int | None = field(metadata=about(kept=CHANGEABLE))
    train_duration_seconds: float | None = field(metadata=about(kept=CHANGEABLE))
    scheduler_mode: RateShape = field(metadata=about(kept=CHANGEABLE))
    auto_find_lr: bool
    policy: PolicyName | Policy = field(metadata=about(kept=IDENTITY))
    estimator: Estimator = field(metadata=about(kept=IDENTITY))
    groups: ArrayLike | None = field(metadata=about(kept=IDENTITY))
    sample_ids: Sequence[Any] | None
    last_batch: Literal["short", "drop", "fill"] = field(metadata=about(kept=IDENTITY))
    save_callback: Callable[..., Any] | None
    load_callback: Callable[..., Any] | None
    state_callback: Callable[[], Any] | None
    backup_every: Backups = field(metadata=about(kept=NOTED))
    checkpoint_dir: str | os.PathLike[str] | None
    checkpoint_every: Checkpoints = field(metadata=about(kept=NOTED))
    monitor: Monitor = field(metadata=about(kept=NOTED, is_of_rank_0=True))
    early_stopping: int | EarlyStopping | None
    resume: str | os.PathLike[str] | None
    guard: GuardName | Guard = field(metadata=about(kept=IDENTITY))
    recovery: Recovery = field(metadata=about(kept=IDENTITY))
    use_curses: bool = field(metadata=about(is_of_rank_0=True))
    run_dir: RunDir = field(metadata=about(is_of_rank_0=True))
    config: Mapping[str, Any] | None = field(metadata=about(is_shown=False))
    notes: str | None = field(metadata=about(is_shown=False))
    tags: Sequence[str] = field(metadata=about(is_shown=False))
    handle_signals: bool = field(metadata=about(kept=NOTED))
    name: str | None = field(metadata=about(kept=NOTED, is_shown=False))
    listeners: Iterable[events.Listener] = field(metadata=about(is_shown=False))
    seed: int = field(metadata=about(kept=NOTED))
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        check_flags(self, "use_curses", "auto_find_lr", "handle_signals")
        expand_home(self, "checkpoint_dir", "resume")

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Settings:
        """The settings of a call: an argument that was given alone becomes the value that may refine it."""
        return cls(**{name: whole(name, value) for name, value in arguments.items()})

    def items(self) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
        """Each setting by its own name, with its metadata; those of batches that the run does not have are left out."""
        for each in fields(self):
            yield from flat_items(each.name, getattr(self, each.name), each.metadata)

    def run_config(self) -> RunConfig:
        """What checkpoints hold of them."""
        kept = {name: (value, data["kept"]) for name, value, data in self.items() if data.get("kept")}
        return RunConfig(
            {name: describe(name, value) for name, (value, _) in kept.items()},
            identity=tuple(name for name, (_, role) in kept.items() if role == IDENTITY),
            changeable=tuple(name for name, (_, role) in kept.items() if role == CHANGEABLE),
        )

    def texts(self) -> dict[str, str]:
        """Short texts for display, without those that are None or say nothing, as of rates that are the user's own."""
        unused = OF_RATES if self.scheduler_mode.mode == "keep" else ()
        shown = {name: value for name, value, data in self.items() if data.get("is_shown", True)}
        texts = {name: text_of(value) for name, value in shown.items() if value is not None and name not in unused}
        return texts | self._record()

    def _record(self) -> dict[str, str]:
        """What the user wants to have on record of the run, as texts.

        Raises:
            TypeError: it is of another kind.
        """
        if self.config is not None and not (
            isinstance(self.config, Mapping) and all(isinstance(name, str) for name in self.config)
        ):
            raise TypeError(f"config must be a dict with names as keys, got {self.config!r}.")
        if self.notes is not None and not isinstance(self.notes, str):
            raise TypeError(f"notes must be a string, got {self.notes!r}.")
        if isinstance(self.tags, str) or not all(isinstance(tag, str) for tag in self.tags):
            raise TypeError(f"tags must be a list of strings, got {self.tags!r}.")
        record = {f"config.{name}": str(value) for name, value in _flat(self.config or {})}
        record |= {"notes": self.notes} if self.notes else {}
        record |= {"tags": ", ".join(self.tags)} if self.tags else {}
        return {name: text[:MOST_RECORDED] for name, text in record.items()}


OF_RATES = {
    "initial_lr": 0.01, "min_lr": 0.0, "warmup_proportion": None, "warmup_steps": None, "decay_proportion": None,
    "auto_find_lr": False,
}  # fmt: skip
"""Settings of rates that the scheduler sets, and their defaults."""

ELSEWHERE = {
    "lr": "initial_lr", "learning_rate": "initial_lr", "max_lr": "initial_lr", "bs": "batch_size",
    "per_device_train_batch_size": "batch_size", "max_epochs": "num_epochs",
    "num_train_epochs": "num_epochs", "max_steps": "num_steps", "total_steps": "num_steps",
    "max_time": "train_duration_seconds", "schedule": "scheduler_mode", "lr_scheduler": "scheduler_mode",
    "lr_scheduler_type": "scheduler_mode", "warmup_ratio": "warmup_proportion", "sampler": "policy",
    "labels": "groups", "ids": "sample_ids", "drop_last": "last_batch", "output_dir": "checkpoint_dir",
    "save_steps": "checkpoint_every", "save_total_limit": "keep_checkpoints", "patience": "early_stopping",
    "resume_from_checkpoint": "resume", "callbacks": "listeners",
}  # fmt: skip
"""What trainers of other libraries call some settings; nearly right names are recognised without a table."""

OF_LOADERS = {
    "shuffle": "The scheduler decides which samples come next; policy= says how.",
    "num_workers": "It is a setting of the loader: adapter.loader(...) takes it.",
    "gradient_clip_val": "attach(..., max_grad_norm=) clips gradients.",
    "amp": "attach(..., scaler=GradScaler()) is for half precision; autocast is the loop's.",
    "device": "The model is on its device, and the loop moves the batches there.",
    "gradient_accumulation_steps": "attach(..., accumulate=) adds up the gradients of several batches.",
}
"""What to say of settings of a DataLoader, a trainer or the loop; with the names above a table of thirty."""

OF_RANK_0 = frozenset(each.name for each in fields(Settings) if each.metadata.get("is_of_rank_0"))
"""Settings of the scheduler of rank 0 alone."""


def _flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dicts, by their names with dots.

    Raises:
        TypeError: one of them is no plain value.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
            continue
        value = value.item() if isinstance(value, np.generic) else value
        parts = value if isinstance(value, (list, tuple)) else [value]
        if not all(part is None or isinstance(part, (bool, int, float, str)) for part in parts):
            raise TypeError(
                f"config must hold plain values (numbers, strings, None, lists and dicts of them), got {value!r} for "
                f"{above}{name!s}."
            )
        yield f"{above}{name}", value


def text_of(value: Any) -> str:
    """A setting as a short text.

    >>> text_of([0, 1, 0, 1]), text_of("balanced"), text_of(len)
    ('list of 4', 'balanced', 'len')
    """
    if isinstance(value, (str, os.PathLike)):
        text = str(os.fspath(value))
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        kind = _KINDS.get(getattr(value.dtype, "kind", ""), value.dtype)
        text = f"{kind}[{', '.join(map(str, value.shape))}]" if value.shape else str(value.item())
    elif isinstance(value, (list, tuple, dict, set)):
        text = f"{type(value).__name__} of {len(value)}"
    elif callable(value) and hasattr(value, "__name__"):
        text = value.__name__
    else:
        text = repr(value)
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 3] + "..."


class CommonSettings(TypedDict, total=False):
    """Those that all ways of building a scheduler take; see `R8Scheduler` for what they mean."""

    initial_lr: float
    num_epochs: float | None
    num_steps: int | None
    train_duration_seconds: float | None
    scheduler_mode: ScheduleName | Schedule | RateShape
    auto_find_lr: bool
    policy: PolicyName | Policy
    estimator: Literal["relative", "additive"] | Estimator
    groups: ArrayLike | None
    sample_ids: Sequence[Any] | None
    last_batch: Literal["short", "drop", "fill"]
    state_callback: Callable[[], Any] | None
    backup_every: int | str | Condition | Backups | None
    checkpoint_dir: str | os.PathLike[str] | None
    checkpoint_every: int | str | Condition | Checkpoints | None
    monitor: str | Monitor | None
    early_stopping: int | EarlyStopping | None
    resume: str | os.PathLike[str] | None
    guard: GuardName | Guard
    recovery: Recovery
    use_curses: bool
    run_dir: str | os.PathLike[str] | bool | RunDir | None
    config: Mapping[str, Any] | None
    notes: str | None
    tags: Sequence[str]
    handle_signals: bool
    name: str | None
    listeners: Iterable[events.Listener]
    seed: int
    clock: Callable[[], float]


class SchedulerSettings(CommonSettings, total=False):
    """All keywords of `R8Scheduler`.

    >>> settings: SchedulerSettings = {"batch_size": 32, "num_epochs": 3, "policy": "focus"}
    """

    batch_size: int | TokenBatches | OwnBatches | None
    save_callback: Callable[..., Any] | None
    load_callback: Callable[..., Any] | None


class NewGoal(CommonSettings, total=False):
    """What `R8Scheduler.resume_from_checkpoint` may change."""

    num_samples: int | None
    batch_size: int | TokenBatches | OwnBatches | None


def kept_defaults(make: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of the settings that checkpoints hold, by name.

    Args:
        make: `R8Scheduler`, whose signature has them.
    """
    given = {name: each.default for name, each in inspect.signature(make).parameters.items()}
    kept = [*fields(Settings), *(each for kind in KINDS for each in fields(kind))]
    return {each.name: ({**given, **DEFAULTS})[each.name] for each in kept if each.metadata.get("kept")}


def check_names(call: str, settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise TypeError for a keyword that a call does not know, and say which setting it may stand for.

    Args:
        call: What was called, as messages name it.
        settings: The keywords.
        known: Those that it knows.
    """
    for name in settings:
        if name in known:
            continue
        moved = [each for each in settings if each in WITHIN] if name in WITHIN else []
        meant = ELSEWHERE.get(name.lower(), "")
        if moved:
            hint = f" It stands within another argument: write {how_to_write(moved, settings)}."
        elif meant in WITHIN:
            hint = f" Did you mean {how_to_write([meant], {meant: settings[name]})}?"
        elif meant in known:
            hint = f" Did you mean {meant!r}?"
        else:
            hint = f" {OF_LOADERS[name]}" if name in OF_LOADERS else did_you_mean(name, sorted({*known, *WITHIN}))
        raise TypeError(f"{call} got an unexpected keyword argument {name!r}.{hint}")


def suggest_settings(function: F) -> F:
    """Have a function say which setting a keyword that it does not know may stand for.

    A decorator, as Python refuses such a keyword before the function could.

    Args:
        function: A function whose keywords are settings; of those in ``**settings`` those of `R8Scheduler`.
    """
    known = function.__annotations__.keys() - {"return"}
    if "settings" in known:
        known = known - {"settings"} | SchedulerSettings.__annotations__.keys()

    @functools.wraps(function)
    def checked(*args: Any, **settings: Any) -> Any:
        if function.__name__ == "__init__" and len(args) > 2:
            first = args[1] if isinstance(args[1], int) else "len(data)"
            raise TypeError(
                f"{_called(function)} takes one positional argument, the first, got {len(args) - 1}: name the "
                f"others, as in {_called(function)[:-1]}{first}, batch_size=32, num_epochs=5)."
            )
        check_names(_called(function), settings, known)
        return function(*args, **settings)

    return checked  # type: ignore[return-value]


def _called(function: Callable[..., Any]) -> str:
    return f"{function.__qualname__.removesuffix('.__init__')}()"

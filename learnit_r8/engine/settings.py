"""The settings of R8Scheduler: facts about each, and their types for functions that pass them on."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import numpy as np

from .._validation import did_you_mean
from ..checkpoint.run_config import RunConfig, describe

if TYPE_CHECKING:
    from typing import Literal

    from numpy.typing import ArrayLike

    from .. import events
    from ..checkpoint.early_stop import EarlyStopping
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

MOST_TEXT, MOST_RECORDED = 200, 1000
"""Characters of a setting that are shown, and of what the user records."""

MOST_IDS = 10_000_000
"""Samples that a table which grows with the ids of batches holds at most, unless more are asked for: 160 MB."""

_KINDS = {"U": "text", "S": "bytes", "O": "objects"}
"""Kinds of arrays whose dtype says nothing to people."""

F = TypeVar("F", bound=Callable[..., Any])


CHANGEABLE, IDENTITY, NOTED = "changeable", "identity", "noted"
"""What a checkpoint holds a setting for: see `RunConfig`; those that are only noted may change silently."""


def _about(*, kept: str | None = None, is_shown: bool = True, is_of_rank_0: bool = False) -> Mapping[str, Any]:
    """Return the metadata of a setting: everything but its type.

    Args:
        kept: What checkpoints hold it for; None if they do not.
        is_shown: Whether listeners hear of it with the others; they hear of some separately.
        is_of_rank_0: Whether it is for the scheduler of rank 0 alone.
    """
    return {"kept": kept, "is_shown": is_shown, "is_of_rank_0": is_of_rank_0}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All arguments of `R8Scheduler`, as they were given; the parts of a run are built from them.

    A new one stands in the signature and the docstring of `R8Scheduler`, and here; nowhere else.
    """

    num_samples: int | None = field(metadata=_about(kept=CHANGEABLE, is_shown=False))
    batch_size: int | None = field(metadata=_about(kept=CHANGEABLE, is_shown=False))
    lengths: ArrayLike | None = field(metadata=_about(kept=IDENTITY))
    max_tokens: int | None = field(metadata=_about(kept=IDENTITY))
    initial_lr: float = field(metadata=_about(kept=CHANGEABLE))
    num_epochs: float | None = field(metadata=_about(kept=CHANGEABLE))
    num_steps: int | None = field(metadata=_about(kept=CHANGEABLE))
    train_duration_seconds: float | None = field(metadata=_about(kept=CHANGEABLE))
    num_tokens: int | None = field(metadata=_about(kept=CHANGEABLE))
    steps_per_epoch: int | None = field(metadata=_about(kept=CHANGEABLE))
    scheduler_mode: ScheduleName | Schedule = field(metadata=_about(kept=CHANGEABLE))
    warmup_proportion: float | None = field(metadata=_about(kept=CHANGEABLE))
    min_lr: float = field(metadata=_about(kept=CHANGEABLE))
    warmup_steps: int | None = field(metadata=_about(kept=CHANGEABLE))
    decay_proportion: float | None = field(metadata=_about(kept=CHANGEABLE))
    decay_shape: ShapeName = field(metadata=_about(kept=CHANGEABLE))
    auto_find_lr: bool
    policy: PolicyName | Policy = field(metadata=_about(kept=IDENTITY))
    estimator: Literal["relative", "additive"] = field(metadata=_about(kept=IDENTITY))
    alpha: float | None = field(metadata=_about(kept=IDENTITY))
    groups: ArrayLike | None = field(metadata=_about(kept=IDENTITY))
    sample_ids: Sequence[Any] | None
    last_batch: Literal["short", "drop", "fill"] = field(metadata=_about(kept=IDENTITY))
    save_callback: Callable[..., Any] | None
    load_callback: Callable[..., Any] | None
    state_callback: Callable[[], Any] | None
    backup_every: int | str | Condition | None = field(metadata=_about(kept=NOTED))
    backup_dir: str | os.PathLike[str] | bool | None
    checkpoint_dir: str | os.PathLike[str] | None
    checkpoint_every: int | str | Condition | None = field(metadata=_about(kept=NOTED))
    keep_checkpoints: int | Literal["thin"] = field(metadata=_about(kept=NOTED))
    monitor: str | None = field(metadata=_about(kept=NOTED, is_of_rank_0=True))
    mode: Literal["min", "max"] | None = field(metadata=_about(kept=NOTED, is_of_rank_0=True))
    early_stopping: int | EarlyStopping | None
    resume: str | os.PathLike[str] | None
    guard: GuardName | Guard = field(metadata=_about(kept=IDENTITY))
    recovery: Recovery = field(metadata=_about(kept=IDENTITY))
    use_curses: bool = field(metadata=_about(is_of_rank_0=True))
    run_dir: str | os.PathLike[str] | bool | None = field(metadata=_about(is_of_rank_0=True))
    record: Literal["names", "batch", "all"] = field(metadata=_about(kept=NOTED))
    keep_witness: bool = field(metadata=_about(kept=NOTED))
    after_restore: Literal["next", "again"] = field(metadata=_about(kept=NOTED))
    resume_data: Literal["replay", "indices", "start"] = field(metadata=_about(kept=NOTED))
    max_ids: int = field(metadata=_about(kept=NOTED))
    config: Mapping[str, Any] | None = field(metadata=_about(is_shown=False))
    notes: str | None = field(metadata=_about(is_shown=False))
    tags: Sequence[str] = field(metadata=_about(is_shown=False))
    handle_signals: bool = field(metadata=_about(kept=NOTED))
    cool_down_on: tuple[str, int | str] | None
    name: str | None = field(metadata=_about(kept=NOTED, is_shown=False))
    listeners: Iterable[events.Listener] = field(metadata=_about(is_shown=False))
    seed: int = field(metadata=_about(kept=NOTED))
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        for name in ("use_curses", "auto_find_lr", "keep_witness", "handle_signals"):
            if isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        for name in ("run_dir", "checkpoint_dir", "backup_dir", "resume"):
            path = getattr(self, name)
            if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith("~"):
                # No shell has seen it, and a folder of the name "~" is what nobody means.
                object.__setattr__(self, name, os.path.expanduser(path))

    def run_config(self) -> RunConfig:
        """What checkpoints hold of them."""
        kept = {each.name: each.metadata.get("kept") for each in fields(self)}
        return RunConfig(
            {name: describe(name, getattr(self, name)) for name, role in kept.items() if role},
            identity=tuple(name for name, role in kept.items() if role == IDENTITY),
            changeable=tuple(name for name, role in kept.items() if role == CHANGEABLE),
        )

    def texts(self) -> dict[str, str]:
        """Short texts for display, without those that are None or say nothing, as of rates that are the user's own."""
        names = [each.name for each in fields(self) if each.metadata.get("is_shown", True)]
        unused = OF_RATES if self.scheduler_mode == "keep" else ()
        shown = {name: getattr(self, name) for name in names if name not in unused}
        return {name: text_of(value) for name, value in shown.items() if value is not None} | self._record()

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

KEPT = frozenset(each.name for each in fields(Settings) if each.metadata.get("kept"))
"""Settings that checkpoints hold."""

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
    num_tokens: int | None
    steps_per_epoch: int | None
    scheduler_mode: ScheduleName | Schedule
    warmup_proportion: float | None
    warmup_steps: int | None
    decay_proportion: float | None
    decay_shape: ShapeName
    min_lr: float
    auto_find_lr: bool
    lengths: ArrayLike | None
    max_tokens: int | None
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
    mode: Literal["min", "max"] | None
    early_stopping: int | EarlyStopping | None
    resume: str | os.PathLike[str] | None
    guard: GuardName | Guard
    recovery: Recovery
    use_curses: bool
    run_dir: str | os.PathLike[str] | bool | None
    record: Literal["names", "batch", "all"]
    keep_witness: bool
    after_restore: Literal["next", "again"]
    resume_data: Literal["replay", "indices", "start"]
    max_ids: int
    config: Mapping[str, Any] | None
    notes: str | None
    tags: Sequence[str]
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

    batch_size: int | None
    save_callback: Callable[..., Any] | None
    load_callback: Callable[..., Any] | None


class NewGoal(CommonSettings, total=False):
    """What `R8Scheduler.resume_from_checkpoint` may change."""

    num_samples: int | None
    batch_size: int | None


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
        for name in settings:
            if name not in known:
                if ELSEWHERE.get(name.lower()) in known:
                    hint = f" Did you mean {ELSEWHERE[name.lower()]!r}?"
                else:
                    hint = f" {OF_LOADERS[name]}" if name in OF_LOADERS else did_you_mean(name, sorted(known))
                raise TypeError(f"{_called(function)} got an unexpected keyword argument {name!r}.{hint}")
        return function(*args, **settings)

    return checked  # type: ignore[return-value]


def _called(function: Callable[..., Any]) -> str:
    return f"{function.__qualname__.removesuffix('.__init__')}()"

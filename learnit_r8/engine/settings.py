"""The settings of R8Scheduler: facts about each, and their types for functions that pass them on."""

# Without postponed annotations, as those of the settings are read.

import functools
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from .. import events
from .._validation import did_you_mean
from ..checkpoint.early_stop import EarlyStopping
from ..checkpoint.run_config import RunConfig, describe
from ..guard.monitor import GuardName
from ..guard.verdict import Guard
from ..policies.base import Policy
from ..policies.registry import PolicyName
from ..recovery.policy import Recovery
from ..schedules.schedule import Schedule, ScheduleName
from ..triggers import Condition
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
    at_home,
    check_flag,
    flat_items,
    how_to_write,
    whole,
)

if TYPE_CHECKING:
    if sys.version_info >= (3, 11):
        from typing import Unpack as Unpack
    else:
        from typing_extensions import Unpack as Unpack

MOST_TEXT, MOST_RECORDED = 200, 1000
"""Characters of a setting that are shown, and of what the user records."""

_KINDS = {"U": "text", "S": "bytes", "O": "objects"}
"""Kinds of arrays whose dtype says nothing to people."""

F = TypeVar("F", bound=Callable[..., Any])


class CommonSettings(TypedDict, total=False):
    """Those that all ways of building a scheduler take; see `R8Scheduler` for what they mean.

    A new argument stands in the signature and the docstring of `R8Scheduler`, and in one of these classes; nowhere
    else.
    """

    initial_lr: Annotated[float, about(kept=CHANGEABLE)]
    num_epochs: Annotated[float | None, about(kept=CHANGEABLE)]
    num_steps: Annotated[int | None, about(kept=CHANGEABLE)]
    train_duration_seconds: Annotated[float | None, about(kept=CHANGEABLE)]
    scheduler_mode: Annotated[ScheduleName | Schedule | RateShape, about(kept=CHANGEABLE)]
    auto_find_lr: bool
    policy: Annotated[PolicyName | Policy, about(kept=IDENTITY)]
    estimator: Annotated[Literal["relative", "additive"] | Estimator, about(kept=IDENTITY)]
    groups: Annotated[ArrayLike | None, about(kept=IDENTITY)]
    sample_ids: Sequence[Any] | None
    last_batch: Annotated[Literal["short", "drop", "fill"], about(kept=IDENTITY)]
    state_callback: Callable[[], Any] | None
    backup_every: Annotated[int | str | Condition | Backups | None, about(kept=NOTED)]
    checkpoint_dir: str | os.PathLike[str] | None
    checkpoint_every: Annotated[int | str | Condition | Checkpoints | None, about(kept=NOTED)]
    monitor: Annotated[str | Monitor | None, about(kept=NOTED, is_of_rank_0=True)]
    early_stopping: int | EarlyStopping | None
    resume: str | os.PathLike[str] | None
    guard: Annotated[GuardName | Guard, about(kept=IDENTITY)]
    recovery: Annotated[Recovery, about(kept=IDENTITY)]
    use_curses: Annotated[bool, about(is_of_rank_0=True)]
    run_dir: Annotated[str | os.PathLike[str] | bool | RunDir | None, about(is_of_rank_0=True)]
    config: Annotated[Mapping[str, Any] | None, about(is_shown=False)]
    notes: Annotated[str | None, about(is_shown=False)]
    tags: Annotated[Sequence[str], about(is_shown=False)]
    handle_signals: Annotated[bool, about(kept=NOTED)]
    name: Annotated[str | None, about(kept=NOTED, is_shown=False)]
    listeners: Annotated[Iterable[events.Listener], about(is_shown=False)]
    seed: Annotated[int, about(kept=NOTED)]
    clock: Callable[[], float]


class SchedulerSettings(CommonSettings, total=False):
    """All keywords of `R8Scheduler`.

    >>> settings: SchedulerSettings = {"batch_size": 32, "num_epochs": 3, "policy": "focus"}
    """

    batch_size: Annotated[int | TokenBatches | OwnBatches | None, about(kept=CHANGEABLE, is_shown=False)]
    save_callback: Callable[..., Any] | None
    load_callback: Callable[..., Any] | None


class AllSettings(SchedulerSettings, total=False):
    """The same with the argument that is not a keyword."""

    num_samples: Annotated[int | None, about(kept=CHANGEABLE, is_shown=False)]


class NewGoal(CommonSettings, total=False):
    """What `R8Scheduler.resume_from_checkpoint` may change."""

    num_samples: Annotated[int | None, about(kept=CHANGEABLE, is_shown=False)]
    batch_size: Annotated[int | TokenBatches | OwnBatches | None, about(kept=CHANGEABLE, is_shown=False)]


def about_setting(name: str) -> Mapping[str, Any]:
    """The facts about an argument, as `about` says."""
    metadata: tuple[Mapping[str, Any], ...] = getattr(AllSettings.__annotations__[name], "__metadata__", ())
    return metadata[0] if metadata else about()


@dataclass(frozen=True)
class Settings:
    """All arguments of `R8Scheduler`, as they were given; the parts of a run are built from them.

    Attributes:
        given: Each by its name; those that may be refined are whole.
        shape, estimator, backups, checkpoints, monitor, run_dir: These, for those who read what refines them.
    """

    given: AllSettings
    shape: RateShape
    estimator: Estimator
    backups: Backups
    checkpoints: Checkpoints
    monitor: Monitor
    run_dir: RunDir

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "Settings":
        """The settings of a call: an argument that was given alone becomes the value that may refine it."""
        given: Any = {name: whole(name, value) for name, value in arguments.items()}
        for name in ("use_curses", "auto_find_lr", "handle_signals"):
            check_flag(name, given[name])
        for name in ("checkpoint_dir", "resume"):
            given[name] = at_home(given[name])
        refined = ("scheduler_mode", "estimator", "backup_every", "checkpoint_every", "monitor", "run_dir")
        return cls(given, *(given[name] for name in refined))

    def items(self) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
        """Each setting by its own name, with its metadata; those of batches that the run does not have are left out."""
        for name, value in self.given.items():
            yield from flat_items(name, value, about_setting(name))

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
        unused = OF_RATES if self.shape.mode == "keep" else ()
        shown = {name: value for name, value, data in self.items() if data.get("is_shown", True)}
        texts = {name: text_of(value) for name, value in shown.items() if value is not None and name not in unused}
        return texts | self._record()

    def _record(self) -> dict[str, str]:
        """What the user wants to have on record of the run, as texts.

        Raises:
            TypeError: it is of another kind.
        """
        config, notes, tags = self.given["config"], self.given["notes"], self.given["tags"]
        if config is not None and not (isinstance(config, Mapping) and all(isinstance(name, str) for name in config)):
            raise TypeError(f"config must be a dict with names as keys, got {config!r}.")
        if notes is not None and not isinstance(notes, str):
            raise TypeError(f"notes must be a string, got {notes!r}.")
        if isinstance(tags, str) or not all(isinstance(tag, str) for tag in tags):
            raise TypeError(f"tags must be a list of strings, got {tags!r}.")
        record = {f"config.{name}": str(value) for name, value in _flat(config or {})}
        record |= {"notes": notes} if notes else {}
        record |= {"tags": ", ".join(tags)} if tags else {}
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

OF_RANK_0 = frozenset(name for name in AllSettings.__annotations__ if about_setting(name)["is_of_rank_0"])
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


def kept_defaults(make: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of the settings that checkpoints hold, by name.

    Args:
        make: `R8Scheduler`, whose signature has them.
    """
    given = {name: each.default for name, each in inspect.signature(make).parameters.items()}
    within = {each.name: each.metadata for kind in KINDS for each in fields(kind) if each.metadata}
    kept = {**{name: about_setting(name) for name in AllSettings.__annotations__}, **within}
    return {name: ({**given, **DEFAULTS})[name] for name, facts in kept.items() if facts["kept"]}


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

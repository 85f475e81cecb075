"""The settings of R8Scheduler: the values that hold those which belong together, facts about each, and their types.

Each value stands in the place of the argument that it refines.
"""

# Without postponed annotations, as those of the settings are read.

import functools
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from .. import events
from .._validation import did_you_mean, stable_repr
from ..guard.monitor import GuardName
from ..guard.verdict import Guard
from ..policies.base import Policy
from ..policies.registry import PolicyName
from ..recovery.policy import Recovery
from ..schedules.schedule import Schedule, ScheduleName, ShapeName
from ..state.early_stop import EarlyStopping
from ..state.run_config import RunConfig, describe
from ..triggers.trigger import Condition

if TYPE_CHECKING:
    if sys.version_info >= (3, 11):
        from typing import Unpack as Unpack
    else:
        from typing_extensions import Unpack as Unpack

MOST_IDS = 10_000_000
"""Samples that a table which grows with the ids of batches holds at most, unless more are asked for: 160 MB."""

CHANGEABLE, IDENTITY, NOTED = "changeable", "identity", "noted"
"""What a checkpoint holds a setting for: see `RunConfig`; those that are only noted may change silently."""


def about(*, kept: str | None = None, is_shown: bool = True, is_of_rank_0: bool = False) -> Mapping[str, Any]:
    """Return the metadata of a setting: everything but its type.

    Args:
        kept: What checkpoints hold it for; None if they do not.
        is_shown: Whether listeners hear of it with the others; they hear of some separately.
        is_of_rank_0: Whether it is for the scheduler of rank 0 alone.
    """
    return {"kept": kept, "is_shown": is_shown, "is_of_rank_0": is_of_rank_0}


def at_home(path: Any) -> Any:
    """A path with the user's folder in place of a "~": no shell has seen it, and nobody means a folder named so."""
    is_path = isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith("~")
    return os.path.expanduser(path) if is_path else path


def check_flag(name: str, value: Any) -> None:
    """Raise TypeError if what must be True or False is a text, which would count as True."""
    if isinstance(value, str):
        raise TypeError(f"{name} must be True or False, got {value!r}.")


@dataclass(frozen=True)
class RateShape:
    """The shape of the learning rate, as ``scheduler_mode`` of `R8Scheduler`.

    Args:
        mode: As ``scheduler_mode`` alone.
        warmup_proportion: Share of the budget in which the rate rises to ``initial_lr``, in [0, 1]; by default
            0.05, and 0.3 for "one_cycle".
        warmup_steps: Steps in which the rate rises, in place of ``warmup_proportion``, >= 0; without a budget by
            default an epoch, at most 1000.
        decay_proportion: Share of the budget in which the rate of "wsd" falls, in (0, 1]; by default 0.2.
        decay_shape: Shape of that decay and of every cool-down: "sqrt" (1 - sqrt), "linear" or "cosine".
        min_lr: Last learning rate, in [0, initial_lr].

    >>> from learnit_r8 import R8Scheduler
    >>> r8 = R8Scheduler(64, batch_size=8, num_steps=10, scheduler_mode=RateShape("linear", warmup_steps=4))
    >>> r8.lr < r8.schedule(0.4)
    True
    """

    mode: ScheduleName | Schedule = "cosine"
    _: KW_ONLY
    warmup_proportion: float | None = field(default=None, metadata=about(kept=CHANGEABLE))
    warmup_steps: int | None = field(default=None, metadata=about(kept=CHANGEABLE))
    decay_proportion: float | None = field(default=None, metadata=about(kept=CHANGEABLE))
    decay_shape: ShapeName = field(default="sqrt", metadata=about(kept=CHANGEABLE))
    min_lr: float = field(default=0.0, metadata=about(kept=CHANGEABLE))


@dataclass(frozen=True)
class TokenBatches:
    """Batches of samples of similar length, as ``batch_size`` of `R8Scheduler`.

    Args:
        lengths: Tokens of each sample, int[N], >= 1: a batch holds samples of similar length, as many as fit into
            ``max_tokens``, and balanced among those as far as that allows.
        max_tokens: Most tokens in a batch, its samples padded to the longest of them.
        batch_size: Most samples in a batch, >= 1; None for as many as fit.

    >>> from learnit_r8 import R8Scheduler
    >>> R8Scheduler(4, batch_size=TokenBatches([2, 2, 4, 4], max_tokens=8), num_epochs=1).steps_per_epoch
    2
    """

    batch_size: int | None = field(default=None, kw_only=True)
    lengths: ArrayLike | None = field(default=None, metadata=about(kept=IDENTITY))
    max_tokens: int | None = field(default=None, metadata=about(kept=IDENTITY))


@dataclass(frozen=True, kw_only=True)
class OwnBatches:
    """How batches of your own are followed, as ``batch_size`` of `R8Scheduler` without ``num_samples``.

    Args:
        num_tokens: Budget in tokens, read from the batches or as you tell `R8Scheduler.batches`.
        steps_per_epoch: Steps in a run through your iterable, if the schedule must know it in advance.
        keep_witness: Whether to keep your own batch after a backup (up to 64 MiB), so that it can be handed out again
            to test the weights; otherwise the losses alone decide.
        resume_data: How a resumed run finds its place in your loader, if that has no ``load_state_dict()``: "replay"
            draws and drops the batches before it; "start" starts the epoch over.
        max_ids: Most samples that the table holds, >= 1; the visits of others are only counted.

    >>> from learnit_r8 import R8Scheduler
    >>> r8 = R8Scheduler(batch_size=OwnBatches(num_tokens=10), initial_lr=0.1)
    >>> for batch in r8.batches([[1.0, 2.0]] * 4, tokens=5):
    ...     outcome = r8.update_with_loss(1.0)
    >>> r8.global_step
    2
    """

    num_tokens: int | None = field(default=None, metadata=about(kept=CHANGEABLE))
    steps_per_epoch: int | None = field(default=None, metadata=about(kept=CHANGEABLE))
    keep_witness: bool = field(default=True, metadata=about(kept=NOTED))
    resume_data: Literal["replay", "start"] = field(default="replay", metadata=about(kept=NOTED))
    max_ids: int = field(default=MOST_IDS, metadata=about(kept=NOTED))

    def __post_init__(self) -> None:
        check_flag("keep_witness", self.keep_witness)


@dataclass(frozen=True)
class Estimator:
    """How the table learns losses, as ``estimator`` of `R8Scheduler`.

    Args:
        estimator: As ``estimator`` alone.
        alpha: Weight of a new observation in the table, in (0, 1]; see `SampleTable`.
    """

    estimator: Literal["relative", "additive"] = "relative"
    _: KW_ONLY
    alpha: float | None = field(default=None, metadata=about(kept=IDENTITY))


@dataclass(frozen=True)
class Backups:
    """When backups are taken and where they are also written, as ``backup_every`` of `R8Scheduler`.

    Args:
        every: As ``backup_every`` alone.
        backup_dir: Folder in memory to which the backups of the state callback are also written, so that they outlive a
            process that is killed (docs/budgets.md); by default the system's, if there is one and checkpoints are
            written. False for none.
    """

    every: int | str | Condition | None = None
    _: KW_ONLY
    backup_dir: str | os.PathLike[str] | bool | None = field(default=None, metadata=about())

    def __post_init__(self) -> None:
        object.__setattr__(self, "backup_dir", at_home(self.backup_dir))


@dataclass(frozen=True)
class Checkpoints:
    """When checkpoints are written and how many are kept, as ``checkpoint_every`` of `R8Scheduler`.

    Args:
        every: As ``checkpoint_every`` alone.
        keep_checkpoints: Number of checkpoints of this run to keep, >= 1; or "thin" for the newest three and at most 16
            others, spread over the run, to branch from (`R8Scheduler.resume_from_checkpoint`).
    """

    every: int | str | Condition | None = None
    _: KW_ONLY
    keep_checkpoints: int | Literal["thin"] = field(default=3, metadata=about(kept=NOTED))


@dataclass(frozen=True)
class Monitor:
    """A metric and which of its values are better, as ``monitor`` of `R8Scheduler`.

    Args:
        name: As ``monitor`` alone.
        mode: "min" if a lower value is better, "max" if a higher one is; by default as the name says: a higher
            accuracy, F1 score or AUC is better, and a lower value of all that has no such word in its name.
    """

    name: str | None = None
    _: KW_ONLY
    mode: Literal["min", "max"] | None = field(default=None, metadata=about(kept=NOTED, is_of_rank_0=True))


@dataclass(frozen=True)
class RunDir:
    """Where a run is recorded and what of its incidents, as ``run_dir`` of `R8Scheduler`.

    Args:
        folder: As ``run_dir`` alone.
        record: What is written of an incident, into the folder "incidents" of the run folder, or of the checkpoints
            where there is none: "names", which samples it was, and no data; "batch", also the batch and the random
            generators at its start; "all", also the refused and the restored weights.
    """

    folder: str | os.PathLike[str] | bool | None = None
    _: KW_ONLY
    record: Literal["names", "batch", "all"] = field(default="names", metadata=about(kept=NOTED))

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", at_home(self.folder))


ARGUMENTS: Mapping[Callable[..., Any], str] = {
    RateShape: "scheduler_mode", TokenBatches: "batch_size", OwnBatches: "batch_size", Estimator: "estimator",
    Backups: "backup_every", Checkpoints: "checkpoint_every", Monitor: "monitor", RunDir: "run_dir",
}  # fmt: skip
"""The argument of `R8Scheduler` that each of them may be given as."""

KINDS: tuple[Any, ...] = tuple(ARGUMENTS)

WITHIN = {each.name: kind for kind in KINDS for each in fields(kind) if each.metadata}
"""The settings that were arguments of their own once, and where they stand now."""

HEADS = {kind: next((each.name for each in fields(kind) if not each.metadata), None) for kind in KINDS}
"""What each of them calls that which the argument may also be given as alone."""


def whole(argument: str, value: Any) -> Any:
    """An argument that may be given alone as the value that refines it; one that stands for a number stays as it is."""
    kind: Any = next((kind for kind, name in ARGUMENTS.items() if name == argument != "batch_size"), None)
    if kind is None or isinstance(value, kind):
        return value
    if isinstance(value, KINDS) or (isinstance(value, type) and value in KINDS):
        raise TypeError(f"{argument} must be given alone or as {kind.__name__}(...), got {value!r}.")
    return kind(value)


def head_of(value: Any) -> Any:
    """What an argument would be without what refines it.

    >>> head_of(RateShape("keep")), head_of("keep")
    ('keep', 'keep')
    """
    head = HEADS.get(type(value))
    return value if type(value) not in HEADS else None if head is None else getattr(value, head)


def flat_items(argument: str, value: Any, metadata: Mapping[str, Any]) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Each setting that an argument holds, with its metadata, by the names that checkpoints and views give them."""
    if not isinstance(value, KINDS):
        yield argument, value, metadata
        return
    for each in fields(value):
        content = getattr(value, each.name)
        yield (each.name, content, each.metadata) if each.metadata else (argument, content, metadata)


def flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that arguments hold, each by its own name.

    >>> flat({"run_dir": RunDir("run", record="all"), "seed": 1})
    {'run_dir': 'run', 'record': 'all', 'seed': 1}
    """
    return {name: each for argument, value in arguments.items() for name, each, _ in flat_items(argument, value, {})}


def grouped(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that hold these settings, the inverse of `flat`.

    >>> grouped({"monitor": "dice", "mode": "max", "seed": 1})
    {'seed': 1, 'monitor': Monitor(name='dice', mode='max')}
    """
    arguments = {name: value for name, value in settings.items() if name not in WITHIN}
    kinds = dict.fromkeys(WITHIN[name] for name in settings if name in WITHIN)
    for kind in kinds:
        argument, head = ARGUMENTS[kind], HEADS[kind]
        given = {name: value for name, value in settings.items() if WITHIN.get(name) is kind}
        alone = arguments.pop(argument, None)
        if alone is not None and (head is None or isinstance(alone, KINDS)):
            raise ValueError(f"{argument} must be given without {min(given)} beside it, got {alone!r}.")
        arguments[argument] = kind(**given, **({} if alone is None or head is None else {head: alone}))
    return arguments


def how_to_write(names: Iterable[str], given: Mapping[str, Any]) -> str:
    """How settings that were arguments once are written now, with the values that were given.

    Args:
        names: Their names.
        given: All keywords of the call.

    >>> how_to_write(["warmup_steps"], {"scheduler_mode": "wsd", "warmup_steps": 20})
    "scheduler_mode=RateShape('wsd', warmup_steps=20)"
    """
    texts = []
    for kind in dict.fromkeys(WITHIN[name] for name in names):
        alone, head = given.get(ARGUMENTS[kind]), HEADS[kind]
        held = {name: value for name, value in given.items() if WITHIN.get(name) is kind}
        if isinstance(alone, kind):
            own = {each.name: getattr(alone, each.name) for each in fields(kind)}
            changed = {each.name: own[each.name] for each in fields(kind) if own[each.name] is not each.default}
            held = {**changed, **held}
            alone = None if head is None or head == "batch_size" else held.pop(head, None)
        shown = [f"{name}={_short(value)}" for name, value in held.items()]
        if head is not None and alone is not None and not isinstance(alone, KINDS):
            shown = [*shown, f"{head}={_short(alone)}"] if head == "batch_size" else [_short(alone), *shown]
        texts.append(f"{ARGUMENTS[kind]}={kind.__name__}({', '.join(shown)})")
    return ", ".join(texts)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else "..."


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
        text = stable_repr(value)
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 3] + "..."


def kept_defaults(make: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of the settings that checkpoints hold, by name.

    Args:
        make: `R8Scheduler`, whose signature has them.
    """
    given = {name: each.default for name, each in inspect.signature(make).parameters.items()}
    alone = {name: given[name] for name in AllSettings.__annotations__ if about_setting(name)["kept"]}
    within = [each for kind in KINDS for each in fields(kind)]
    return alone | {each.name: each.default for each in within if each.metadata.get("kept")}


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

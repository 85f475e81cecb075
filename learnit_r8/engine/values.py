"""Arguments of R8Scheduler that belong together: each group stands in the place of the one that it refines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Literal

    from numpy.typing import ArrayLike

    from ..schedules.schedule import Schedule, ScheduleName, ShapeName
    from ..triggers import Condition

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
        cool_down_on: A signal that asks for a cool-down, and its length, ``("SIGUSR1", "10min")``, for batch systems
            that send one before the end: steps, or a text such as "500 steps", "2 epochs", "10min".

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
    cool_down_on: tuple[str, int | str] | None = field(default=None, metadata=about())


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
        after_restore: What your loader does after the model was restored: "next", it goes on with its next batch; or
            "again", it goes back, too, if it has ``state_dict()`` and ``load_state_dict()``.
        resume_data: How a resumed run finds its place in your loader, if that has no ``load_state_dict()``: "replay"
            draws and drops the batches before it; "indices" draws and drops only the indices of a `DataLoader`, which
            gives the same samples but different random augmentation; "start" starts the epoch over.
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
    after_restore: Literal["next", "again"] = field(default="next", metadata=about(kept=NOTED))
    resume_data: Literal["replay", "indices", "start"] = field(default="replay", metadata=about(kept=NOTED))
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

DEFAULTS = {each.name: each.default for kind in KINDS for each in fields(kind) if each.metadata}


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

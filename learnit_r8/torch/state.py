"""The state of a training: model, optimizer, loss scaler, averaged weights and random generators."""

from __future__ import annotations

import functools
import gc
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..bridge.group_rates import plain_optimizer
from ..events.caller import warn
from ..sources.random_generators import random_state, random_state_of, set_random_state
from ..state import codec, kinds
from ..state.callbacks import OWN
from ..state.tree import copy_into, copy_to_host, fill, hold, not_finite, pack, unpack
from .distributed.shards import Shards, is_sharded
from .prepared import inner_optimizers, plain_model

if TYPE_CHECKING:
    from .ensemble_targets import EnsembleTargets

NOT_HELD = "backups and checkpoints cannot hold {}: it is left out, and stays as it is when they are put back."

DAMAGED_COPY = (
    "the model was healed, but a copy of its weights or their average ({}), which attach() was not given, holds "
    'numbers that are not finite, and keeps them. Name it: attach(..., ema=averages), or also={{"averages": averages}}.'
)

MOST_SEARCHES = 8
"""Most searches for a damaged copy, which look at each object of the program, some 50 ms."""

OF_RANKS = "random of ranks"
"""Key of the random generators of all ranks, in their order, in a state that several ranks have gathered."""


class ModelState:
    """Reads, saves and restores everything that a training with torch changes.

    Args:
        model: The model; wrappers of `torch.compile` and DistributedDataParallel are looked through.
        optimizer: Its optimizer, or None.
        scaler: A `torch.amp.GradScaler`, or None.
        ema: Averaged weights, anything with ``state_dict`` and ``load_state_dict``, or None.
        rank: Number of this process among those that train together. If a state lacks the random generators of a rank,
            that rank gets some derived from those of the first; otherwise all would drop out and augment alike.
        gather: Returns the values of all ranks, on each of them; None for a process that trains alone.
        also: What else belongs to the training, by name.
        keeps_options: Whether the options of optimizers, including their rates, stay as they are when damage is
            healed, as they are the user's own.
        keeps_random: Whether the random generators stay as they are then, too, as the batches are the user's own.

    Attributes:
        num_loads: How often a state was restored.
        is_resumed: Whether the run goes on from a state of another process.
        is_sharded: Whether this process holds only parts of the model.
        is_spread: Whether other processes hold a part of the state.
        not_healed: The names of the parts that come back on resume alone.
        rank: As given.
    """

    keeps_model = True

    def __init__(
        self,
        model: Any,
        optimizer: Any = None,
        *,
        scaler: Any = None,
        ema: Any = None,
        rank: int = 0,
        gather: Callable[[Any], list[Any]] | None = None,
        also: Mapping[str, AlsoPart] | None = None,
        keeps_options: bool = False,
        keeps_random: bool = False,
    ) -> None:
        model = plain_model(model)
        named = {"model": model, "optimizer": optimizer, "scaler": scaler, "ema": ema}
        also = {} if also is None else also
        self._parts = {name: part for name, part in named.items() if part is not None}
        self._parts |= {name: part.holder for name, part in also.items()}
        resumed = {name for name, part in also.items() if not part.is_healed}
        for name, part in [*self._parts.items()]:
            inner = {f"{name} {key}": each for key, each in inner_optimizers(part).items() if not self.holds(each)}
            self._parts |= inner
            if name in resumed:
                resumed |= inner.keys()
        self._keeps_options, self._keeps_random = keeps_options, keeps_random
        self.not_healed = frozenset(resumed)
        self.is_sharded = isinstance(model, torch.nn.Module) and is_sharded(model)
        self._shards = Shards() if self.is_sharded else None
        self.is_spread = self.is_sharded or gather is not None
        self.num_loads, self.is_resumed, self._num_searches = 0, False, 0
        self.rank = rank
        self._gather = gather
        self._generators: Mapping[str, Any] | None = None
        self._left_out: dict[str, str] = {}

    @property
    def targets(self) -> EnsembleTargets | None:
        """What the network has said of each sample; None unless a policy weighs them."""
        return self._parts.get(TARGETS)

    def holds(self, part: Any) -> bool:
        """Whether something is among the parts, or within what accelerate has wrapped around it."""
        return any(part is each or part is getattr(each, "scheduler", None) for each in self._parts.values())

    def parameters(self) -> Iterator[torch.Tensor]:
        """The parameters of all networks and optimizers among the parts."""
        for part in self._parts.values():
            if isinstance(part, torch.nn.Module):
                yield from part.parameters()
            for group in getattr(part, "param_groups", ()):
                yield from group["params"]

    def read(self) -> dict[str, Any]:
        """Return the state of this process as it is, not copied: for a sharded model, its shards.

        What no file could hold is left out, and a warning says so once.
        """
        state = {name: part.state_dict() for name, part in self._parts.items()}
        if self._shards is not None:
            state = {name: self._shards.local(part, name) for name, part in state.items()}
        return {**self._held(state), "random": random_state()}

    def collect(self, *, keeps: bool = True) -> dict[str, Any]:
        """The state of the whole training, for `save`: whole tensors, and the random generators of all ranks.

        Every rank must call it.

        Args:
            keeps: Whether to return the tensors of a sharded model on this rank; they are empty else.
        """
        state = {name: part.state_dict() for name, part in self._parts.items()}
        if self._shards is not None:
            state = {name: self._shards.whole(part, keeps=keeps) for name, part in state.items()}
        of_ranks = self.collect_generators()
        return {**self._held(state), "random": of_ranks[0], **({} if self._gather is None else {OF_RANKS: of_ranks})}

    def collect_generators(self) -> list[Any]:
        """The random generators of all ranks, in their order; every rank must call it."""
        # As tensors, which `torch.load` reads with ``weights_only=True``.
        own = as_tensors(random_state())
        return [own] if self._gather is None else self._gather(own)

    def _held(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state without what no file could hold, which a warning names once."""
        held: dict[str, Any] = hold(state, self._left_out, NOT_HELD)
        return held

    def save(self, state_dict: Mapping[str, Any], filepath: str | os.PathLike[str]) -> None:
        """Write what `read` or `collect` returned, and what is beside it; see `files.save`.

        Args:
            state_dict: Holds it under "model", as `R8Scheduler` passes it to a ``save_callback``.
            filepath: The file.

        Raises:
            TypeError: something in it is neither a tensor nor a plain value.
        """
        save(state_dict["model"], filepath)

    def load(self, source: Any, *, from_ram: bool = False, is_resume: bool = False) -> Any:
        """Restore everything, and clear the gradients; after damage, restore only the parts meant for that.

        Returns what the user's own callbacks keep beside it; None if nothing.

        Args:
            source: The path of a file that `save` wrote, or with ``from_ram`` a copy of what `read` returned, which is
                not used afterwards.
            from_ram: Which of the two.
            is_resume: Whether the run goes on in another process.

        Raises:
            ValueError: it has other parts, or one of them does not fit. Then nothing was changed.
        """
        found = source if from_ram else load(source)
        state, beside = self._filled(found), found.get(OWN)
        if from_ram and self._shards is not None:
            state = {name: self._shards.joined(part, name) for name, part in state.items()}
        self.check(state)
        may_search = not (is_resume or self.is_sharded) and self._num_searches < MOST_SEARCHES
        # Beside weights that are finite, as where a test puts another state in, no copy is damaged.
        is_damaged = may_search and bool(not_finite(self._parts["model"].state_dict()))
        self._put_back(state, heals=not is_resume)
        if is_damaged:
            self._num_searches += 1
            if found := damaged_copy(self._parts["model"]):
                self._num_searches = MOST_SEARCHES
                warn(DAMAGED_COPY.format(found))
        self.is_resumed = self.is_resumed or is_resume
        if self._keeps_random and not is_resume:
            return beside
        generators = state["random"] if from_ram else self._own_generators(state)
        set_random_state(generators)
        # A loader draws from the generators when it starts, which must not count.
        self._generators = generators if is_resume or not from_ram else None
        return beside

    def _filled(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return a saved state, with the present values of what had been left out of it, and nothing beside it."""
        parts = {} if self.is_sharded else self._parts
        if TARGETS in self._parts and TARGETS not in state:
            # Of before there were any.
            state = {**state, TARGETS: self._parts[TARGETS].state_dict()}
        return {
            name: fill(part, parts[name].state_dict()) if name in parts else part
            for name, part in state.items()
            if name != OWN
        }

    def take_over(self, state: Mapping[str, Any]) -> None:
        """Load what `collect` returned, or a copy of it, which is not used afterwards.

        Raises:
            ValueError: it has other parts, or one of them does not fit. Then nothing was changed.
        """
        state = self._filled(state)
        self.check(state)
        self._put_back(state)
        set_random_state(self._own_generators(state))
        self._generators = None

    def _put_back(self, state: Mapping[str, Any], *, heals: bool = False) -> None:
        left = self.not_healed if heals else ()
        parts = {name: state[name] for name in self._parts if name not in left}
        if self._shards is not None:
            # Of whole tensors, the shards of this rank.
            for name, saved in parts.items():
                own, cut = self._parts[name], self._shards.cut
                self._shards.local(own.state_dict(), name)
                is_optimizer = name == "optimizer"
                parts[name] = self._shards.cut_optimizer(saved, own, name) if is_optimizer else cut(saved, name)
        optimizers = [part for part in self._parts.values() if hasattr(part, "param_groups")]
        # Such as their rates.
        options = [
            [{name: own for name, own in group.items() if name != "params"} for group in each.param_groups]
            for each in optimizers
            if heals and self._keeps_options
        ]
        sharing = [
            (each, inner)
            for each in optimizers
            for inner in inner_optimizers(each).values()
            if inner.param_groups is each.param_groups
        ]
        for name, part in parts.items():
            _load(self._parts[name], part, is_sharded=self.is_sharded)
        for each, inner in sharing:
            # As it loads, each makes groups of its own.
            inner.param_groups = each.param_groups
        for optimizer, kept in zip(optimizers, options, strict=False):
            for group, own in zip(optimizer.param_groups, kept, strict=True):
                group.update(own)
        for optimizer in optimizers:
            # The gradients belong to the weights that were replaced.
            plain_optimizer(optimizer).zero_grad()
        self.num_loads += 1

    def _own_generators(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The random generators of this rank in a state that `collect` or `read` returned."""
        return self.own_generators(state.get(OF_RANKS, [state["random"]]))

    def own_generators(self, of_ranks: Sequence[Any]) -> dict[str, Any]:
        """The random generators of this rank among those that `collect_generators` returned, on any number of ranks."""
        if self.rank < len(of_ranks):
            return of_ranks[self.rank]  # type: ignore[no-any-return]
        return random_state_of(of_ranks[0], self.rank)

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError unless a state that `collect` or `read` returned could be put back."""
        expected = {*self._parts, "random"}
        if state.keys() - {OF_RANKS} != expected:
            raise ValueError(f"the saved state must have the parts {sorted(expected)}, got {sorted(state)}.")
        shapes, given = _shapes(self._parts["model"].state_dict()), _shapes(state["model"])
        if shapes != given:
            names = sorted(name for name in {*shapes, *given} if shapes.get(name) != given.get(name))
            raise ValueError(
                f"the saved model must have the tensors of this one, got others for {names[:5]} ({len(names)} differ); "
                "another checkpoint_dir, or resume=None, begins a new run."
            )
        if "optimizer" in expected:
            _check_optimizer(self._parts["optimizer"], state["optimizer"])

    def resume_generators(self) -> None:
        """Restore the random generators of the file that was loaded last, once."""
        if self._generators is not None:
            set_random_state(self._generators)
            self._generators = None


def damaged_copy(model: torch.nn.Module) -> str:
    """What holds numbers of a healed model that are not finite where its own are, by the same names: a network of its
    class, or a dict; "" if nothing in the program does.
    """
    own = model.state_dict()
    meant = not_finite(own).keys()
    # A model of an earlier training that nothing holds any more is no copy.
    gc.collect()
    for each in gc.get_objects():
        is_network = type(each) is type(model)
        if is_network or (type(each) in (dict, OrderedDict) and own.keys() == each.keys()):
            held = each.state_dict() if is_network else each
            if own.keys() == held.keys() and not not_finite(held).keys() <= meant:
                return type(each).__name__
    return ""


def copies_of(model: torch.nn.Module) -> dict[str, Any]:
    """The functions that `R8Scheduler` is to copy a model's states with; none for a model in main memory."""
    is_on_device = any(each.is_cuda for each in model.parameters())
    return {"clone": copy_to_host, "copy_into": functools.partial(copy_into, to_host=True)} if is_on_device else {}


def _load(holder: Any, state: Any, *, is_sharded: bool) -> None:
    """Have a part load its state, but for tensors that no state can hold: they are those that it has."""
    if isinstance(holder, torch.nn.Module) and not is_sharded:
        kept = {key: value for key, value in state.items() if not (kinds.is_tensor(value) and kinds.why_not(value))}
        if len(kept) < len(state):
            holder.load_state_dict(kept, strict=False)
            return
    holder.load_state_dict(state)


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in state.items()}


_OPTIONS = {"lr_decay": "Adagrad", "rho": "Adadelta", "alpha": "RMSprop", "betas": "Adam", "momentum": "SGD"}
"""Options that tell optimizers apart, as torch's own have them."""


def _check_optimizer(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """Raise ValueError unless a saved optimizer is of this kind, and has groups of as many kinds.

    torch loads one of another kind, and fails at the next step. One that wraps others may save other things, which its
    own load_state_dict() must check.
    """
    groups = getattr(optimizer, "param_groups", None), saved.get("param_groups")
    own, other = (next((kind for name, kind in _OPTIONS.items() if each and name in each[0]), None) for each in groups)
    if None not in (own, other) and own != other:
        raise ValueError(
            f"the saved optimizer must be of the kind of this one, {type(optimizer).__name__}, got one with options of "
            f"{other}; give that one, or start over without resume."
        )
    sizes, given = (None if each is None else [len(group["params"]) for group in each] for each in groups)
    if None not in (sizes, given) and sizes != given:
        raise ValueError(
            f"the saved optimizer must have parameter groups of {sizes} tensors like this one, got groups of {given}; "
            "make the groups that the run added later before attach(), where frozen parameters take no step."
        )


TARGETS = "ensemble targets"

OF_THE_TRAINING = ("model", "optimizer", "scaler", "ema", "random", "random of ranks", TARGETS, OWN)
"""Names of the parts that every state has."""

AVERAGES = 'also={"averages": (get, set, "heal")}, where get() returns their state and set(state) puts it back'
"""How averages are given that have no state of their own to read and load."""

WHEN = ("heal", "resume")


class AlsoPart(NamedTuple):
    """A part of a training.

    Attributes:
        holder: Has ``state_dict()`` and ``load_state_dict()``.
        is_healed: Whether it is restored with the model after damage, too; otherwise only when a run is resumed.
    """

    holder: Any
    is_healed: bool


def read_also(also: Any) -> dict[str, AlsoPart]:
    """Read the parts that `attach` was given as ``also``.

    Raises:
        TypeError: it is not a dict, or a part is neither something with a state nor a pair of functions.
        ValueError: a name is taken, or what follows a part is neither "heal" nor "resume".
    """
    if also is None:
        return {}
    if not isinstance(also, Mapping):
        raise TypeError(f"also must be a dict of parts by their names, got {also!r}.")
    taken = [name for name in also if name in OF_THE_TRAINING or not isinstance(name, str)]
    if taken:
        name = taken[0]
        said = f" Give it to attach() as {name}=." if name in ("ema", "scaler") else ""
        if name == "ema" and not hasattr(also[name], "load_state_dict"):
            # ``ema=`` would refuse it.
            said = f" Choose another name: {AVERAGES}."
        raise ValueError(f"also must have names other than {OF_THE_TRAINING}, texts, got {name!r}.{said}")
    return {name: _read(name, part) for name, part in also.items()}


def networks_of(parts: Mapping[str, AlsoPart]) -> dict[str, torch.nn.Module]:
    """The networks among the parts, by their names."""
    return {name: part.holder for name, part in parts.items() if isinstance(part.holder, torch.nn.Module)}


def carried_of(parts: Mapping[str, AlsoPart]) -> list[Any]:
    """The parts that the script changes by itself and that are put back with the weights, such as a hidden state."""
    return [part.holder for part in parts.values() if part.is_healed and not _is_trained(part.holder)]


def _read(name: str, given: Any) -> AlsoPart:
    part, when = given, ""
    if isinstance(given, tuple) and given and isinstance(given[-1], str):
        part, when = given[0] if len(given) == 2 else given[:-1], given[-1]
        if when not in WHEN:
            raise ValueError(f"the part {name!r} of also must be put back at 'heal' or 'resume', got {when!r}.")
    if isinstance(part, tuple) and len(part) == 2 and all(map(callable, part)):
        holder: Any = SimpleNamespace(state_dict=part[0], load_state_dict=part[1])
    elif hasattr(part, "state_dict") and hasattr(part, "load_state_dict"):
        holder = part
    else:
        raise TypeError(
            f"the part {name!r} of also must have state_dict() and load_state_dict(), or be a pair of functions that "
            f"read and load its state, got {part!r}."
        )
    # Without a word, what changes with the weights goes back with them.
    return AlsoPart(holder, when == "heal" if when else _is_trained(holder))


def _is_trained(holder: Any) -> bool:
    """Whether a part is a network, an optimizer or a loss scaler."""
    return isinstance(holder, torch.nn.Module) or hasattr(holder, "param_groups") or hasattr(holder, "get_scale")


SUFFIX = ".safetensors"


def save(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a state in the container of all files; its name gets the ending ``.safetensors``.

    Raises:
        TypeError: a value cannot be held; the message gives its dotted key.
    """
    path = os.fspath(path)
    codec.save(pack(state), path if path.endswith(SUFFIX) else path + SUFFIX)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save` wrote; tensors are on the CPU.

    Raises:
        ValueError: it is something else.
    """
    state: dict[str, Any] = unpack(codec.read(Path(path)))
    return state


def as_tensors(state: Any) -> Any:
    """The same nest with arrays as tensors, so that ``torch.load(weights_only=True)`` reads it."""
    if isinstance(state, np.ndarray):
        # torch has no unsigned kinds for most of what it can do, and old versions none at all.
        wide = state.astype(np.int64) if state.dtype.kind == "u" and state.dtype.itemsize > 1 else state
        return torch.from_numpy(np.ascontiguousarray(wide).copy())
    if isinstance(state, Mapping):
        return {name: as_tensors(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return (tuple if type(state) is tuple else list)(map(as_tensors, state))
    return state.item() if isinstance(state, np.generic) else state


def as_arrays(state: Any) -> Any:
    """The same nest with tensors as arrays, as `R8Scheduler.load_state_dict` takes it."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().numpy()
    if isinstance(state, Mapping):
        return {name: as_arrays(value) for name, value in state.items()}
    return [as_arrays(value) for value in state] if isinstance(state, (list, tuple)) else state

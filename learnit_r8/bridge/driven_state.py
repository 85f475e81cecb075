"""DrivenState: the state that a loop drives, copied for backups and checkpoints and restored into the loop.

Objects that change in place (torch modules and optimizers, NNX modules) are restored in place; everything else
(numbers, arrays, JAX pytrees) is replaced, and the loop's next step gets the restored one.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..sources.random_generators import random_state, set_random_state
from ..state import codec
from ..state.callbacks import IS_OWN_WEIGHT, IS_WEIGHT, OWN, Callbacks
from ..state.tree import (
    LeftOut,
    fit,
    hold,
    is_holder,
    is_key,
    is_module,
    is_of_optax,
    map_leaves,
    nnx_of,
    not_finite,
    open_node,
    pack,
    unpack,
)

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..sources.ticket import Outcome

_NOTHING: Any = object()

HIDDEN = (
    "step {:,}: the step has made numbers of the state not finite, which the loss need not show, as where a rectifier "
    "turns NaN into 0: its batch is refused, as will be any other that does so."
)

NOT_HELD = "checkpoints cannot hold {}: it is left out, and stays as it is when they are loaded."


class Place(Protocol):
    """Where a loop keeps the state: the next step gets what is there."""

    state: Any


class DrivenState:
    """Reads, saves and puts back the state of a loop.

    Args:
        place: Where the loop keeps it.
        gather: Makes a whole array of one whose parts are on several processes; None where there is one process.
    """

    def __init__(self, place: Place, *, gather: Callable[[Any], Any] | None = None) -> None:
        self._place, self._gather = place, gather
        self._after: Any = _NOTHING
        self._num_loads = 0
        self._left_out: dict[str, str] = {}
        # Of the objects of NNX, which a step changes before its loss is reported.
        self._holders: list[Any] = []
        self._variables: list[Any] = []
        self._before: list[Any] | None = None
        # Beginnings of the keys of weights.
        self._weights: tuple[str, ...] | None = ()

    def callbacks(self) -> Callbacks:
        """The callbacks that a scheduler adopts."""
        collect = None if self._gather is None else self.collect
        return Callbacks(self.save, self.load, self.read, collect, undo=self.undo, is_weight=self._is_weight)

    def _is_weight(self, key: str) -> object:
        if self._weights is None:
            return IS_OWN_WEIGHT(key.removeprefix("state."))
        # Adapters name such a part so.
        return IS_WEIGHT(f"model.{key}" if key.startswith(self._weights) else key)

    @property
    def has_model(self) -> bool:
        """Whether there is something to put back: an array, a float, or an object that changes in place."""
        return _has_model(self._place.state)

    def keep(self) -> None:
        """Hold the arrays of NNX objects before a step, which makes others, for `undo`; nothing is copied."""
        state = self._place.state
        holders = [each for each in (state if isinstance(state, tuple) else (state,)) if nnx_of(each) is not None]
        if [*map(id, holders)] != [*map(id, self._holders)]:
            # To look for them takes a hundred times as long as to read them.
            nnx: Any = sys.modules["flax.nnx"]
            found = (each for _, each in nnx.iter_graph(holders) if isinstance(each, nnx.Variable))
            self._holders, self._variables = holders, [each for each in found if hasattr(each, "get_raw_value")]
        self._before = [each.get_raw_value() for each in self._variables]

    def undo(self) -> bool:
        """Put back what `keep` holds, once, but for arrays that the step was given to keep.

        Returns:
            Whether the state is now as before the step.
        """
        before, self._before = self._before, None
        if before is None or _is_given_away(before):
            return False
        for variable, value in zip(self._variables, before, strict=True):
            variable.set_raw_value(value)
        return not self.is_given_away

    def judge(self, r8: R8Scheduler, after: Any, loss: Any, report: Callable[[Any], Outcome]) -> Outcome:
        """Report the loss of a step; ``after`` takes the place of the state before it if the loss is good.

        A refused step leaves the state as it was before, or the one that was put back. Buffers that the step was given
        to keep (donated) are gone: then the state after it stays until another is put back.

        Args:
            r8: The scheduler.
            after: The state after the step.
            loss: The loss, or those of the samples or of parts.
            report: Reports it; gets NaN in its place where the step has made the state not finite.
        """
        loss = loss_to_report(r8, loss, lambda: {"state": map_leaves(lambda leaf, *_: leaf, after, holders=True)})
        num_loads, is_good = self._num_loads, False
        self._after = after
        try:
            outcome = report(loss)
            is_good = bool(outcome)
            return outcome
        finally:
            self._after, self._before = _NOTHING, None
            if is_good or (self._num_loads == num_loads and _is_given_away(self._place.state)):
                self._place.state = after

    @property
    def is_given_away(self) -> bool:
        """Whether a jitted step was given buffers of the state to keep."""
        return _is_given_away(self._place.state)

    def _live(self) -> Any:
        state = self._place.state
        return self._after if self._after is not _NOTHING and _is_given_away(state) else state

    def read(self) -> dict[str, Any]:
        """The state as nested dicts and lists of arrays, not copied, and how to make a state of such a nest.

        The random generators of the process go with it.
        """
        live = self._live()
        self._weights = _places_of_weights(live)
        leaves, make = take_apart(live)
        # A copy of a state has the same function: it holds on to no leaf.
        return {"state": leaves, "form": LeftOut("a function", make), "random": random_state()}

    def collect(self) -> dict[str, Any]:
        """The state as `save` writes it; where it is on several processes, all of them must call it."""
        live, gather = self._live(), self._gather
        if gather is not None:
            live = map_leaves(lambda leaf, *_: gather(leaf), live, holders=True)
        state = hold(live, self._left_out, NOT_HELD, holders=True)
        return {"state": pack(state, holders=True), "random": random_state()}

    def save(self, state_dict: Mapping[str, Any], filepath: str | os.PathLike[str]) -> None:
        """Write the state to a file without pickled objects.

        Args:
            state_dict: Under "model", what the user's own callbacks keep beside it, and of several processes what
                `collect` returned.
            filepath: The file.
        """
        model = state_dict.get("model", {})
        beside = {OWN: model[OWN]} if OWN in model else {}
        codec.save({**self.collect(), **beside} if self._gather is None else model, filepath)

    def load(self, source: Any, *, from_ram: bool = False, is_resume: bool = False) -> Any:
        """Put a state back; returns what the user's own callbacks keep beside it, None if nothing.

        Args:
            source: The path of a file that `save` wrote, or with ``from_ram`` a copy of what `read` returned, which is
                not used afterwards.
            from_ram: Which of the two.
            is_resume: Whether another process has made the copy: then it takes the form of the live state.

        Raises:
            ValueError: it is of another structure.
        """
        if not from_ram:
            source = codec.decode(Path(source).read_bytes())
            restored = fit(unpack(source["state"]), self._live())
        else:
            make = source["form"].value or take_apart(self._live())[1]
            restored = make(source["state"])
        self._place.state = restored
        self._num_loads += 1
        if is_resume or not from_ram:
            set_random_state(source["random"])
        return source.get(OWN)


def loss_to_report(r8: R8Scheduler, loss: Any, get_state: Callable[[], Any], *, is_last: bool = False) -> Any:
    """The loss of a step; where that is finite but the step has made numbers of the state not finite, NaN in its place,
    which is said. Looked for after it has happened, and in the last step of an epoch, which no other one follows.

    Args:
        r8: The scheduler.
        loss: The loss, or those of the samples or of parts.
        get_state: Returns the state after the step, as a state callback does.
        is_last: Whether the step is known to be the last one of an epoch of the user's own data.
    """
    state, persistence = r8.controller.state, r8.controller.live.persistence
    is_looked_at = state.watches_steps or is_last or r8.pace.ends_epoch(r8.global_step + 1)
    # Several processes would have to agree.
    if not is_looked_at or persistence.agreement.ranks is not None:
        return loss
    # One that is not finite is refused in any case.
    if not_finite({"loss": loss}) or persistence.backup_timer.meant.issuperset(not_finite(get_state())):
        return loss
    state.watch_steps()
    r8.host.say_once("hidden", HIDDEN.format(r8.global_step + 1))
    return np.full(np.shape(loss), np.nan)


def _places_of_weights(state: Any) -> tuple[str, ...] | None:
    """Beginnings of the keys of weights: those of networks, else of what stands before the state of an optimizer. None
    where only names tell.
    """
    if is_module(state):
        return ("state.",)
    node = open_node(state)
    names = [] if node is None else [name for name, part in node.parts.items() if is_module(part)]
    if not names and type(state) is not tuple:
        return None
    if not names and state and open_node(state[0]) is not None and not is_of_optax(state[0]):
        names = [0]
    return tuple(f"state.{name}." for name in names)


def take_apart(value: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The leaves of a state in dicts, and a function that makes a state of such leaves."""
    if is_holder(value) and hasattr(value, "load_state_dict"):
        return value.state_dict(), lambda saved: _loaded(value, saved)
    if (nnx := nnx_of(value)) is not None:
        leaves, make = take_apart(nnx.state(value))

        def update(saved: Any) -> Any:
            nnx.update(value, make(saved))
            return value

        return leaves, update
    node = open_node(value)
    if node is None:
        return _leaf(value)
    pairs = {name: take_apart(part) for name, part in node.parts.items()}
    build, makers = node.build, {name: make for name, (_, make) in pairs.items()}
    return (
        {name: leaves for name, (leaves, _) in pairs.items()},
        lambda saved: build([make(saved[name]) for name, make in makers.items()]),
    )


def _loaded(holder: Any, saved: Any) -> Any:
    holder.load_state_dict(saved)
    if hasattr(holder, "zero_grad"):
        # The gradients belong to the weights that were replaced.
        holder.zero_grad()
    return holder


def _leaf(leaf: Any) -> tuple[Any, Callable[[Any], Any]]:
    jax: Any = sys.modules.get("jax")
    if jax is None or not isinstance(leaf, jax.Array):
        # A copy of a wrapped function, such as jax.nn.relu, is another one, for which a jitted step compiles again.
        is_function = hasattr(leaf, "__wrapped__") or isinstance(leaf, functools.partial)
        return (None, lambda saved: leaf) if is_function else (leaf, lambda saved: saved)
    if not (leaf.is_fully_addressable or is_key(leaf)):
        return _parts_here(jax, leaf)
    if is_key(leaf):
        kind = jax.random.key_impl(leaf)
        return np.asarray(jax.random.key_data(leaf)), lambda saved: jax.random.wrap_key_data(
            jax.numpy.array(saved), impl=kind
        )
    sharding, committed, is_weak = leaf.sharding, leaf.committed, leaf.weak_type

    def put(saved: Any) -> Any:
        # The same kind of array as before: another one would make the user's jitted step compile again.
        if is_weak and not saved.ndim:
            return jax.numpy.asarray(saved.item())
        # A copy, as the array on the CPU would otherwise share the memory of the saved one.
        return jax.device_put(jax.numpy.array(saved), sharding) if committed else jax.numpy.array(saved)

    return np.asarray(leaf), put


def _parts_here(jax: Any, leaf: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The parts of an array that are on the devices of this process, by their place in it."""
    shape, sharding = leaf.shape, leaf.sharding
    # Copies on several devices are one part.
    parts = {str(shard.index): shard.data for shard in leaf.addressable_shards}
    return (
        {index: np.asarray(part) for index, part in parts.items()},
        lambda saved: jax.make_array_from_callback(shape, sharding, lambda index: saved[str(index)].copy()),
    )


def _has_model(value: Any) -> bool:
    if hasattr(value, "load_state_dict") or nnx_of(value) is not None or isinstance(value, float):
        return True
    node = open_node(value)
    return hasattr(value, "shape") if node is None else any(map(_has_model, node.parts.values()))


def _is_given_away(state: Any) -> bool:
    """Whether a jitted step was given buffers of this state to keep."""
    jax: Any = sys.modules.get("jax")
    if jax is None:
        return False
    return any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in jax.tree_util.tree_leaves(state))

"""The user's save, load and state callbacks, in each of the forms that they may have."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from .._validation import shortened
from ..events.caller import warn
from . import codec
from .tree import fill, from_bytes, hold, pack, to_bytes, unpack

OWN = "callbacks"
"""Name of what the user's own callbacks keep, in the states of adapters."""

NOT_HELD = "checkpoints cannot hold {} of state_callback: load_callback gets the present value."


class RankLost(RuntimeError):
    """Another process of the training died, hangs, or stopped on its own.

    Unlike other errors of a save it ends the run.
    """


class Generators(NamedTuple):
    """Reads and sets all random generators that a training draws from.

    Attributes:
        get: ``()``: returns their states.
        set: ``(states)``: sets them.
    """

    get: Callable[[], Any]
    set: Callable[[Any], Any]


class Repeat(NamedTuple):
    """Takes the loss of a batch once more outside of the training loop, for a trainer whose loop takes no other batch.

    Attributes:
        holds: ``(batch)``: whether a batch, as the plan draws it again, is still at hand.
        loss: ``(batch)``: its mean loss with the weights as they are, which stay so.
    """

    holds: Callable[[Any], bool]
    loss: Callable[[Any], float]


CLIP = "clip the norm of the gradient at 1.0, if nothing does so yet"
"""Clipping at 1.0 saved most of the runs that were lost without; measured in benchmarks/natural.py."""


_OF_OPTIMIZER = r"(?!(.*[._])?opt(im|ax|_|s?\.))"
IS_WEIGHT = re.compile(_OF_OPTIMIZER + r"(model|(.*\.)?params)\.").match
"""Whether a dotted key of a state is that of a weight, as adapters name them, and no number of an optimizer's."""

_BESIDE = (
    "acc|adam|avg|buffer|cache|carry|confusion|count|ema|epoch|grad|hidden|hist|iter|loss|memory|metric|moment|replay|"
    "rng|seed|statist|stats|step|sum|target|total|velocity|mu[._]|nu[._]|[1-9]|[mv]([._\\d]|$|[Wb]\\w?(\\.|$))"
)
IS_OWN_WEIGHT = re.compile(f"{_OF_OPTIMIZER}(?!{_BESIDE}).").match
"""The same for a state of the user's own, whose names are free: none of an optimizer's, of a count or of a memory."""


@dataclass(frozen=True)
class Callbacks:
    """The user's callbacks.

    Attributes:
        save: ``(state_dict, filepath)`` or ``(filepath)``: writes the model.
        load: ``(source)``, with the keywords ``from_ram`` and ``is_resume`` or without: restores a model state from a
            path or a backup, as a run goes on in a new process or as damage is healed.
        state: ``()``: returns the model state for a backup.
        collect: ``()``: returns the model state for `save`, where that is another one; called on all ranks.
        generators: The random generators, so that dropout and augmentation repeat when a batch is drawn again.
        examine: ``(refusal)``: looks for the cause of a refusal and returns a finding (`recovery.cause`).
        in_hand: ``()``: copies of the refused batch and of the random generators at its start, by name, for the record
            of an incident.
        undo: ``()``: puts back the state before the last step, if it is known, where a step is taken before its loss is
            reported; called once a loss was refused, before anybody looks at the weights. Returns whether these are
            now known to be those of the loss.
        repeat: Takes the loss of a batch once more; None where the loop does.
        advice: What to do about updates that are too large, in words.
        own: The user's own callbacks that these, an adapter's, were joined with; None where there are none.
        not_healed: Names of the parts of the state that are put back on resume alone: nobody heals what is in them.
        is_weight: Whether a dotted key of the state is that of a weight.

    Raises:
        TypeError: one is neither callable nor None, or does not accept the arguments it will be called with.
    """

    save: Callable[..., Any] | None = None
    load: Callable[..., Any] | None = None
    state: Callable[[], Any] | None = None
    collect: Callable[[], Any] | None = None
    generators: Generators | None = None
    examine: Callable[[Any], Any] | None = None
    in_hand: Callable[..., dict[str, Any]] | None = None
    undo: Callable[[], bool] | None = None
    repeat: Repeat | None = None
    advice: str = CLIP
    own: Callbacks | None = None
    not_healed: frozenset[str] = frozenset()
    is_weight: Callable[[str], object] = IS_WEIGHT

    def __post_init__(self) -> None:
        for name in ("save", "load", "state"):
            check_callback(f"{name}_callback", getattr(self, name))

    @classmethod
    def of_user(cls, save: Any, load: Any, state: Any) -> Callbacks:
        """Make those that `R8Scheduler` was given."""
        given = cls(save, load, state)
        if state is None:
            return given
        return replace(given, state=functools.partial(_state_of, state), is_weight=IS_OWN_WEIGHT)

    def with_file(self) -> Callbacks:
        """With a save callback that writes what `state` returns, where the user gave none; see `StateFile`."""
        if self.save is not None or self.load is None or self.state is None or keeps_model(self.load):
            return self
        file = StateFile(self.load, self.state)
        return replace(self, save=file.save, load=file.load)

    def model_state(self, newest: Any) -> Any:
        """The model state for `save`.

        Args:
            newest: That of the newest backup, for a run without another way to it.

        Raises:
            RankLost: it was not collected, while the other ranks are still collecting.
        """
        if self.collect is None:
            return newest if self.state is None else self.state()
        try:
            return self.collect()
        except RankLost:
            raise
        except Exception as error:
            # The others would take this rank's next message for an answer.
            raise RankLost(
                f"the state of the model must be collected from all ranks, but this one raised {error!r}. Start again "
                "from the last checkpoint."
            ) from error


def _state_of(callback: Callable[[], Any]) -> Any:
    """What the user's state callback returns; its exceptions say who called it, from Python 3.11 on."""
    try:
        state = callback()
        for part in (state, *(state.values() if isinstance(state, dict) else ())):
            if hasattr(part, "load_state_dict"):
                kind = type(part).__name__
                raise TypeError(f"state_callback must return a state, got the {kind} itself; return its state_dict().")
        return state
    except Exception as error:
        if hasattr(error, "add_note"):
            error.add_note(
                "raised by state_callback, which R8Scheduler calls without arguments for a backup or a checkpoint; "
                "it must return the state of the model"
            )
        raise


def keeps_model(load: Any) -> bool:
    """Whether a load callback is an adapter's that was given to `R8Scheduler` itself, as `attach` does."""
    return hasattr(getattr(load, "__self__", None), "keeps_model")


class StateFile:
    """Writes a model's state to the file of a checkpoint, and reads it for the user's load callback.

    Args:
        load: The user's, which gets a state from a file too.
        state: Returns the state.
    """

    def __init__(self, load: Callable[..., Any], state: Callable[[], Any]) -> None:
        self._load, self._state = load, state
        self._left_out: dict[str, str] = {}

    def save(self, state_dict: Mapping[str, Any], filepath: str) -> None:
        """Write the model's state."""
        codec.save(pack(hold(state_dict["model"], self._left_out, NOT_HELD)), filepath)

    def load(self, source: Any, *, from_ram: bool = False, is_resume: bool = False) -> None:
        """Hand a state, or that of a file, to the user's callback; or the path, if a save callback has written that."""
        if not from_ram:
            with contextlib.suppress(ValueError):
                source, from_ram = unpack(codec.read(Path(source))), True
                source = fill(source, self._state())
        load_with(self._load, source, from_ram=from_ram, is_resume=is_resume)


FORMS = {
    "save_callback": "(state_dict, filepath) or (filepath)",
    "load_callback": "(source), with the keywords from_ram= and is_resume= or without",
    "state_callback": "()",
}
"""Accepted signatures of each callback."""


def check_callback(name: str, callback: Any) -> None:
    """Raise TypeError unless a callback, passed as the argument ``name``, is None or has an accepted signature."""
    if callback is None:
        return
    if not callable(callback):
        what = "; pass the function, not what it returns" if name == "state_callback" else ""
        raise TypeError(f"{name} must be a function or None, got {shortened(callback)}{what}.")
    given = {"save_callback": 1 if _takes_path_only(callback) else 2, "load_callback": 1, "state_callback": 0}[name]
    is_load = name == "load_callback"
    keywords = [each for each in _parameters(callback) if is_load and each in ("from_ram", "is_resume")]
    try:
        # A decorated function takes what its wrapper takes, not what __wrapped__ shows.
        signature = inspect.signature(callback, follow_wrapped=False)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*[None] * given, **dict.fromkeys(keywords, True))
    except TypeError:
        raise TypeError(f"{name} must take {FORMS[name]}, got {callback!r} with the signature {signature}.") from None


def call_save(callback: Callable[..., Any], state: dict[str, Any], filepath: str) -> None:
    """Call ``callback(state_dict, filepath)``, or ``callback(filepath)`` if it takes only a path.

    That is so if it has one parameter, or requires only the first and its name contains "path" or "file".
    """
    if _takes_path_only(callback):
        callback(filepath)
    else:
        callback(state, filepath)


def call_load(callback: Callable[..., Any], source: Any, *, from_ram: bool, is_resume: bool = False) -> None:
    """Call ``callback(source)``, with the keywords ``from_ram`` and ``is_resume`` if it has them.

    Raises:
        RuntimeError: the callback raised; the message says what it was given.
    """
    try:
        load_with(callback, source, from_ram=from_ram, is_resume=is_resume)
    except Exception as error:
        given = f"the RAM backup, a {type(source).__name__}" if from_ram else f"the path {source!r}"
        raise RuntimeError(f"load_callback must restore the model from {given}, but raised {error!r}.") from error


def load_with(callback: Any, source: Any, **given: bool) -> Any:
    """Call a load callback with those of the keywords that it has; returns what it does."""
    names = _parameters(callback)
    return callback(source, **{name: value for name, value in given.items() if name in names})


def _parameters(callback: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(callback).parameters
    except (TypeError, ValueError):
        # Some built-in functions have no signature; they get the documented arguments.
        return {}


def _takes_path_only(callback: Callable[..., Any]) -> bool:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = _parameters(callback).values()
    taken = [p for p in known if p.kind in positional]
    required = [p for p in taken if p.default is p.empty]
    if any(p.kind is p.VAR_POSITIONAL for p in known) or len(required) > 1 or not taken:
        return False
    return len(taken) == 1 or any(word in taken[0].name for word in ("path", "file"))


def join_callbacks(kept: Callbacks, own: Callbacks) -> Callbacks:
    """An adapter's callbacks together with the user's own; see `JoinedCallbacks`.

    Raises:
        ValueError: of the user's state and load callbacks one is missing, and there is no save callback.
    """
    if kept.state is None or kept.load is None:
        state, is_weight = (own.state, own.is_weight) if own.state else (kept.state, kept.is_weight)
        return replace(
            kept, save=own.save or kept.save, load=own.load or kept.load, state=state, is_weight=is_weight
        )  # fmt: skip
    if own.save is None and (own.state is None) != (own.load is None):
        names = ("load_callback", "state_callback") if own.load is None else ("state_callback", "load_callback")
        raise ValueError("{} must be given together with {}, got it left out.".format(*names))
    if own == Callbacks():
        return kept
    both = JoinedCallbacks(kept, own)
    # What the user's own files are to hold is not spread over the ranks.
    collect = both.collect if kept.collect is not None and (own.save is None or own.state is None) else None
    return replace(kept, save=both.save, load=both.load, state=both.state, collect=collect, own=own)


class JoinedCallbacks:
    """Callbacks of the user's own beside those of an adapter: a state holds what both keep.

    The adapter's is put back first. Files that the user's save callback writes are the user's alone, and so is loading
    them.

    Args:
        kept: The adapter's; its ``save`` also writes what a state holds under `OWN`, and its ``load`` returns that.
        own: The user's.
    """

    keeps_model = True

    def __init__(self, kept: Callbacks, own: Callbacks) -> None:
        self._kept: Any = kept
        self._own = own
        self._left_out: dict[str, str] = {}

    def state(self) -> dict[str, Any]:
        """What both return."""
        own = {} if self._own.state is None else {OWN: self._own.state()}
        return {**self._kept.state(), **own}

    def collect(self) -> dict[str, Any]:
        """What the adapter collects, and the user's own state of this rank."""
        own = {} if self._own.state is None else {OWN: self._own.state()}
        return {**self._kept.collect(), **own}

    def save(self, state_dict: Mapping[str, Any], filepath: str) -> None:
        """Write a state to a file."""
        own, model = self._own, state_dict["model"]
        if own.save is not None:
            call_save(own.save, {**state_dict, "model": model.get(OWN, model)}, filepath)
            return
        packed = [to_bytes(hold(model[OWN], self._left_out, NOT_HELD))]
        call_save(self._kept.save, {**state_dict, "model": {**model, OWN: packed}}, filepath)

    def load(self, source: Any, *, from_ram: bool = False, is_resume: bool = False) -> None:
        """Restore a state, the adapter's part first."""
        kept, own, when = self._kept, self._own, {"from_ram": from_ram, "is_resume": is_resume}
        if not from_ram and own.save is not None:
            load_with(own.load or kept.load, source, **when)
            return
        names = source.keys() if from_ram and isinstance(source, Mapping) else set()
        has_own = OWN in names
        if from_ram and own.load and not (has_own or names >= kept.state().keys()):
            # The user gave it to update_cpu_backup().
            load_with(own.load, source, **when)
            return
        beside = load_with(kept.load, source, **when)
        if own.state is None or own.load is None:
            return
        if has_own:
            beside = source[OWN]
        elif not from_ram and beside is not None:
            beside = fill(from_bytes(beside[0]), own.state())
        else:
            warn("the saved state holds nothing of state_callback, as it had none, so load_callback was not called.")
            return
        # A state, from a file too.
        load_with(own.load, beside, from_ram=True, is_resume=is_resume)

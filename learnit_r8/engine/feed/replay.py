"""Replay: brings the user's loader to where a saved run was, and the random generators with it."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from ...sources.random_generators import random_state, set_random_state, state_of
from ...state.tree import clone, leave_out, pack, unpack

if TYPE_CHECKING:
    from ...events.bus import Announcer

WAYS = ("replay", "start")

NOT_LOADED = (
    "the iterator of the loader refused its saved state, so batches are drawn and skipped to find its place ({})."
)

LASTING_WORKERS = (
    "the loader has persistent_workers=True, and what such workers draw at random goes on from epoch to epoch, in no "
    "file: a run resumed after the first epoch gets the same samples in the same order, but other random "
    "augmentation; leave persistent_workers out if it must be exact."
)
OWN_STATE = (
    "the loader finds its place by its own state, which leaves out the random generators of its workers and of batches "
    "fetched ahead: a run resumed within an epoch gets the same samples in the same order, but other random "
    "augmentation; give a plain DataLoader if it must be exact."
)

LOUD_SECONDS = 2.0
"""Seconds of drawing and dropping after which it reports its progress, and again whenever they have doubled."""

HOLDERS = ("", "sampler", "batch_sampler", "batch_sampler.sampler", "dataset")
"""Where to look in a loader for its own random generator."""

SAMPLERS = HOLDERS[1:4]
MOST_NUMBERS = 2**18
"""Most numbers of a sampler that are kept; more would make checkpoints slow."""

USUAL_NAMES = ("generator", "rng", "_generator")
"""What generators are called first in a saved run, whatever else holds them."""


def set_generators(source: Any, state: Mapping[str, Any] | None) -> None:
    """Put back the random generators that `read_start` has read."""
    if state is None:
        return
    set_random_state(state["global"])
    for generator, own in zip(_own_generators(source), state["own"], strict=False):
        _set(generator, own)


def read_start(source: Any, random: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the batches of a loader from here on depend on: the global random generators, read already where ``random``
    is given, its own ones, and what its order follows from besides.
    """
    # One that has taken the next batch already tells where from.
    held = getattr(source, "generators_before_next", None)
    now = state_of(held) if type(held) is tuple else random or random_state()
    own = [_state_of(each) for each in _own_generators(source)]
    order = [
        {name: clone(vars(holder)[name]) for name in (*names, *counts)} for holder, names, counts in _kept_of(source)
    ]
    return {"global": now, "own": own, "order": order}


def set_order(source: Any, saved: Mapping[str, Any], at: str) -> None:
    """Put back the "order" that `read_start` returned, in place where others may hold it, too.

    Args:
        source: The loader.
        saved: The position of the saved run.
        at: "start", of the epoch, or "now". A number of a data set counts batches if these differ; else it is a
            setting, which the script may have changed since.
    """
    held, others = ((saved[each] or {}).get("order") or [] for each in (at, "now" if at == "start" else "start"))
    for (holder, _, counts), values, other in zip(_kept_of(source), held, chain(others, repeat({})), strict=False):
        for name, value in values.items():
            if name in counts and other.get(name, value) == value:
                continue
            now = vars(holder).get(name)
            if type(now) is list and type(value) is list:
                now[:] = value
            elif type(now) is np.ndarray and now.shape == np.shape(value) and now.flags.writeable:
                now[...] = value
            else:
                setattr(holder, name, value)


def _kept_of(source: Any) -> list[tuple[Any, list[str], list[str]]]:
    """What the order of a loader follows from besides generators, as holders and the names of their attributes, and of
    those that may count what was drawn.

    Of samplers of the user's own these are the lists, arrays and numbers, as some shuffle theirs in place; of loaders
    and data sets the numbers of epochs that they count themselves, of data sets the other whole numbers, too, if they
    change as batches are drawn; and the whole numbers of a loader that starts over.
    """
    found = _distinct(_at(loader, path) for loader in _loaders_of(source) for path in SAMPLERS)
    # Those whose classes are not torch's.
    own = [each for each in found if hasattr(each, "__dict__") and not type(each).__module__.startswith("torch.")]
    kept = [(each, [name for name, value in vars(each).items() if _count(value) <= MOST_NUMBERS], list[str]())
            for each in own]  # fmt: skip
    for path, each in ((path, _at(loader, path)) for loader in _loaders_of(source) for path in ("", "dataset")):
        whole = [name for name, value in getattr(each, "__dict__", {}).items() if type(value) is int]
        epochs = [name for name in whole if "epoch" in name or name == "iteration"]
        kept.append((each, epochs, [name for name in whole if path and name not in epochs]))
    if starts_over(source):
        kept.append((source, [name for name, value in vars(source).items() if _is_of_order(value)], []))
    return kept


def _is_of_order(value: Any) -> bool:
    """Whether a value is a whole number, or as many as an order of samples may have."""
    if type(value) is list:
        return 0 < len(value) <= MOST_NUMBERS and all(type(each) is int for each in value)
    is_array = type(value) is np.ndarray and value.dtype.kind in "iu"
    return type(value) is int or (is_array and value.size <= MOST_NUMBERS)


def _distinct(things: Iterable[Any]) -> list[Any]:
    """The same objects, each once."""
    return list({id(each): each for each in things}.values())


def _count(value: Any) -> int:
    """The numbers in a number, an array, or a list of them; beyond all bounds for anything else."""
    if type(value) in (int, float, bool):
        return 1
    if type(value) is np.ndarray:
        return value.size if value.dtype.kind in "biuf" else MOST_NUMBERS + 1
    if type(value) is not list or len(value) > MOST_NUMBERS:
        return MOST_NUMBERS + 1
    total = 0
    for each in value:
        total += _count(each)
        if total > MOST_NUMBERS:
            break
    return total


def _loaders_of(source: Any) -> list[Any]:
    """A loader, and those in its attributes, as one that fetches ahead or takes turns between two has them."""
    return [source, *(each for each in getattr(source, "__dict__", {}).values() if hasattr(each, "dataset"))]


def _at(source: Any, path: str) -> Any:
    for name in filter(None, path.split(".")):
        source = getattr(source, name, None)
    return source


def _own_generators(source: Any) -> list[Any]:
    """The generators in the attributes of a loader and its parts: a sampler may call its own as it likes."""
    holders: list[Any] = []
    for holder in (_at(loader, path) for loader in _loaders_of(source) for path in HOLDERS):
        if hasattr(holder, "__dict__") and not isinstance(holder, type):
            holders.append(vars(holder))
    # Those of the usual names first, as saved runs have them in this order.
    candidates = [holder.get(name) for holder in holders for name in USUAL_NAMES]
    candidates += [each for holder in holders for each in holder.values() if _is_generator(each)]
    known = ("get_state", "bit_generator")
    return [each for each in _distinct(candidates) if any(hasattr(each, name) for name in known) or _is_generator(each)]


_NO_GENERATORS = frozenset((type(None), bool, int, float, str, tuple, list, dict))
"""What loaders mostly hold; a look at torch's own classes takes longer."""


def _is_generator(thing: Any) -> bool:
    """Whether an object is a random generator, whatever its attribute is called."""
    if type(thing) in _NO_GENERATORS:
        return False
    torch: Any = sys.modules.get("torch")
    kinds = (random.Random, np.random.Generator, np.random.RandomState)
    # That of the system has no state.
    is_kind = isinstance(thing, kinds if torch is None else (*kinds, torch.Generator))
    return is_kind and not isinstance(thing, random.SystemRandom)


def _state_of(generator: Any) -> Any:
    if hasattr(generator, "bit_generator"):
        return dict(generator.bit_generator.state)
    if isinstance(generator, random.Random):
        return generator.getstate()
    state = generator.get_state()
    return state.cpu().numpy().copy() if hasattr(state, "numpy") else state


def _set(generator: Any, state: Any) -> None:
    if hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
        return
    if isinstance(generator, random.Random):
        version, words, spare = state
        generator.setstate((version, tuple(words), spare))
        return
    torch: Any = sys.modules.get("torch")
    generator.set_state(torch.from_numpy(state.copy()) if torch is not None and hasattr(state, "dtype") else state)


def read_loader(source: Any, batches: Any, announcer: Announcer) -> dict[str, Any] | None:
    """The state of a loader, or of its iterator, in a form that files hold; None if none has one that can be held.

    Args:
        source: The loader; None before its iteration has begun.
        batches: Its iterator.
        announcer: Says why it cannot be held.
    """
    if source is None or not (_has_state(source) or has_position(batches)):
        return None
    state = source.state_dict() if _has_state(source) else batches.get_state()
    if state is None:
        return None
    found: dict[str, str] = {}
    state = leave_out(state, found)
    if found:
        name, what = next(iter(found.items()))
        announcer.note_once(
            "loader state",
            f"the state of the loader cannot be saved, as {name!r} of it is {what}: a resumed run finds its place as "
            "resume_data says.",
        )
        return None
    return pack(clone(state))


def _has_state(source: Any) -> bool:
    """Whether a loader can be brought to a place; one of accelerate's can be if it is over a stream with a state."""
    inner = getattr(source, "base_dataloader", source)
    if inner is not source and hasattr(getattr(inner, "dataset", None), "__getitem__"):
        # It has no state of the sampler that accelerate puts in, so another order would come.
        return False
    return all(hasattr(each, name) for each in (source, inner) for name in ("state_dict", "load_state_dict"))


def is_iterator(source: Any) -> bool:
    """Whether an iterable is an iterator, which only goes on and never starts over."""
    return callable(getattr(type(source), "__next__", None))


def starts_over(source: Any) -> bool:
    """Whether a loader of the user's is an iterator, and yet of a length: it begins anew once it has run out."""
    own = type(source)
    return (
        is_iterator(source)
        and hasattr(own, "__len__")
        and hasattr(source, "__dict__")
        and own.__module__[:6] != "torch."
    )


def looks_ahead(source: Any) -> bool:
    """Whether an iterable may fetch the next batch, in this process, before it gives one.

    So do loaders that accelerate has prepared, timm's, and others that hold a `DataLoader` without workers, which have
    generators of their own.
    """
    return any(getattr(each, "num_workers", None) == 0 for each in _loaders_of(source)[1:])


def inexact(source: Any) -> str:
    """What a resumed run draws at random otherwise than the saved one would have; "" if nothing."""
    if _lasting(source):
        return LASTING_WORKERS
    is_ahead = hasattr(source, "base_dataloader") and looks_ahead(source)
    is_read_apart = bool(getattr(source, "num_workers", None)) or is_ahead
    return OWN_STATE if is_read_apart and _has_state(source) else ""


def begin_as_once(source: Any) -> None:
    """Have a loader draw the random number of its first iteration, where the saved run has had that one.

    It draws one as it starts workers that stay, and accelerate begins an iteration of a `StatefulDataLoader` as it
    prepares it: these must not come between the numbers of a later epoch.
    """
    begun = [
        each for each in _loaders_of(source)[1:] if getattr(each, "__dict__", {}).get("_initial_iter_for_state_dict")
    ]
    for each in [*without_workers(source), *begun]:
        iter(each)


def without_workers(source: Any) -> list[Any]:
    """The loaders whose workers are to stay and have not begun."""
    return [each for each in _lasting(source) if each._iterator is None]


def _lasting(source: Any) -> list[Any]:
    torch_data: Any = sys.modules.get("torch.utils.data")
    if torch_data is None:
        return []
    own_iter = torch_data.DataLoader.__iter__
    return [
        each
        for each in _loaders_of(source)
        if getattr(type(each), "__iter__", None) is own_iter and each.persistent_workers and each.num_workers
    ]


def goes_on(source: Any) -> bool:
    """Whether the next run through an iterable begins where this one ends, so that its place counts at an end, too."""
    return is_iterator(source) or getattr(source, "goes_on", False)


def forget_place(source: Any) -> None:
    """Have a stream of Hugging Face that was brought to a place begin at its start again, as a new run through it does.

    It would begin at that place for as long as nobody gives it another epoch.
    """
    for each in (_at(source, path) for path in ("", "dataset")):
        if type(each).__module__.startswith("datasets.") and hasattr(each, "load_state_dict"):
            each.load_state_dict(None)


def has_position(batches: Any) -> bool:
    """Whether an iterator can tell where it is, and be brought there, as grain's can."""
    return hasattr(batches, "get_state") and hasattr(batches, "set_state")


def open_at(
    source: Any, saved: Any, opens: Callable[[Any, int], Iterator[Any]], announcer: Announcer
) -> Iterator[Any] | None:
    """The iterator of a loader where it was when `read_loader` was called; None if it cannot be brought there.

    Args:
        source: The loader.
        saved: What `read_loader` returned.
        opens: Begins to iterate over a loader.
        announcer: Says why it cannot.
    """
    if saved is None:
        return None
    if _has_state(source):
        source.load_state_dict(unpack(saved))
        return opens(source, 0)
    batches: Any = opens(source, 0)
    if not has_position(batches):
        return None
    try:
        batches.set_state(unpack(saved))
    except ValueError as error:
        # A DataLoader of grain compares the repr of its source, which may hold an address.
        if goes_on(source):
            raise
        announcer.warn_once("loader state", NOT_LOADED.format(str(error).splitlines()[0]))
        return None
    return batches  # type: ignore[no-any-return]


def resume(
    announcer: Announcer, source: Any, saved: Mapping[str, Any], count: int, way: str, *,
    opens: Callable[[Any, int], Iterator[Any]],
) -> Iterator[Any]:  # fmt: skip
    """The iterator whose next item is the one that the saved run would have got.

    Args:
        announcer: Tells the user of batches that come again or are skipped.
        source: The user's iterable.
        saved: The position of the saved run.
        count: Items that it has taken in this pass.
        way: One of `WAYS`.
        opens: Begins to iterate over a loader, of which so many items come as they came to the saved run.

    Raises:
        ValueError: the loader ended before the position of the saved run: it is another one.
    """
    batches = open_at(source, saved["loader"], opens, announcer)
    if batches is not None:
        pass
    elif way == "start":
        batches = opens(source, 0)
        if count:
            announcer.warn_once(
                "from the start",
                f"the loader starts over, as resume_data='start' asks: the {count} batches that the saved run had "
                "trained on in this epoch come again.",
            )
    else:
        set_generators(source, saved["start"])
        set_order(source, saved, "start")
        batches = drop(announcer, opens(source, count), count, saved.get("before"))
    set_generators(source, saved["now"])
    return batches


def drop(
    announcer: Announcer, batches: Iterator[Any], count: int, before: Mapping[str, Any] | None = None
) -> Iterator[Any]:
    """Draw this many items from an iterator, drop them, and return it.

    Args:
        announcer: Tells the user of the batches.
        batches: The iterator.
        count: How many.
        before: The random generators for the last one; None for as they are.

    Raises:
        ValueError: it ended before.
    """
    began, took, said = time.perf_counter(), 0.0, 0.0
    for number in range(count):
        if number == count - 1 and before is not None:
            set_random_state(before)
        try:
            next(batches)
        except StopIteration:
            raise ValueError(
                f"the loader must be that of the saved run, which had taken {count} batches of this epoch, got one "
                f"that ends after {number}; to start over, give resume_data='start'."
            ) from None
        took = time.perf_counter() - began
        if took > max(LOUD_SECONDS, 2 * said):
            said = took
            left = took / (number + 1) * (count - number - 1)
            print(f"resuming: {number + 1} of {count} batches skipped, {left:.0f} s left", file=sys.stderr, flush=True)
    if said:
        print(f"resuming: {count} batches skipped in {took:.0f} s", file=sys.stderr, flush=True)
    if count:
        announcer.note_once(
            "passed over", f"{count} batches were drawn from the loader and skipped, to go on where the run was."
        )
    return batches

"""Where batches come from: functions, lists, loaders and one-pass iterators, all for many epochs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from ..engine.feed.replay import NOT_LOADED, has_position
from ..events.caller import warn
from ..loops.elapsed_data import opened
from ..sources.random_generators import hold_random_state

KEYS_AT_ONCE = 64
"""Random keys that are made in one call on the device."""

_NONE_LEFT: Any = object()
_UNREAD: Any = object()


def takes_epoch(source: Any) -> bool:
    """Whether it is a function with a parameter ``epoch``."""
    try:
        return callable(source) and "epoch" in inspect.signature(source).parameters
    except (TypeError, ValueError):
        return False


class EpochBatches:
    """The batches of one epoch after the other, as an iterable, and which one is the last of its epoch.

    Args:
        source: A function that returns an iterable (given the epoch, 0-based, if it takes ``epoch``); an iterable, gone
            through once an epoch; or an iterator, of which each epoch takes the next batches.
        num_batches: Most batches in an epoch; None for all.
        keeps_generators: Whether to keep the random generators as they are before a batch is taken.

    Attributes:
        number: Which epoch is iterated over, 0-based; to be set before.
        goes_on: Whether an epoch begins where the one before it ended, by the iterator's own account.
    """

    # No ``__dict__``: a resumed run looks through that of a loader for what the order of its batches follows from.
    __slots__ = (
        "_batches", "_coming", "_generators", "_keeps_generators", "_num_batches", "_position", "_source", "_taken",
        "_takes_epoch", "_to_load", "goes_on", "number",
    )  # fmt: skip

    def __init__(self, source: Any, num_batches: int | None, *, keeps_generators: bool = False) -> None:
        self._generators: Any = None
        self._keeps_generators = keeps_generators
        if not callable(source):
            opened(source)
        self._source, self._num_batches = source, num_batches
        self._takes_epoch = takes_epoch(source)
        self.goes_on = isinstance(source, Iterator) and has_position(source)
        self._batches: Any = iter(())
        self._coming: Any = _NONE_LEFT
        self.number, self._taken, self._position = 0, 0, None
        self._to_load: Mapping[str, Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of the epoch.

        Raises:
            ValueError: there is none.
        """
        self._taken, self._batches = 0, self._open()
        saved, self._to_load = self._to_load, None
        if saved is not None:
            self._taken = saved["taken"] if saved["epoch"] == self.number else 0
            self._find_place(saved["iterator"])
        num_before, self._coming = self._taken, _UNREAD
        if self.is_last and not num_before:
            raise ValueError(
                f"data_iterator_fn must give at least one batch an epoch, got none in epoch {self.number}; an iterator "
                "can be read only once, so pass a function or a list."
            )
        while not self.is_last:
            batch, self._coming = self._coming, _UNREAD
            self._taken += 1
            yield batch

    def _open(self) -> Any:
        return opened(self._source(epoch=self.number) if self._takes_epoch else self._source)

    def _find_place(self, state: Any) -> None:
        try:
            self._batches.set_state(state)
        except ValueError as error:
            # A DataLoader of grain compares the repr of its source, which may hold an address.
            if self.goes_on:
                raise
            warn(NOT_LOADED.format(str(error).splitlines()[0]))
            self._batches = itertools.islice(self._open(), self._taken, None)

    @property
    def is_last(self) -> bool:
        """Whether the batch that was yielded last ends the epoch; takes the next one, so ask after training on it."""
        if self._coming is _UNREAD:
            # Before the next one is taken, which belongs to the next step.
            self._position = self._batches.get_state() if has_position(self._batches) else None
            self._generators = hold_random_state() if self._keeps_generators else None
            is_full = self._num_batches is not None and self._taken >= self._num_batches
            self._coming = _NONE_LEFT if is_full else next(self._batches, _NONE_LEFT)
        return self._coming is _NONE_LEFT

    @property
    def generators_before_next(self) -> Any:
        """The generators before the batch after the one in hand, if that was taken and they are kept; else None."""
        return None if self._coming is _UNREAD or self._coming is _NONE_LEFT else self._generators

    def state_dict(self) -> dict[str, Any] | None:
        """Where an iterator with a state of its own is, as grain's are; None for others."""
        is_read = self._coming is not _UNREAD
        state = self._position if is_read else self._batches.get_state() if has_position(self._batches) else None
        return None if state is None else {"epoch": self.number, "taken": self._taken, "iterator": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next epoch that is asked for begin where `state_dict` was called."""
        self._to_load = state

    def pass_over(self, num_epochs: int) -> None:
        """Take what so many epochs had out of an iterator that gives all epochs and cannot be brought to a place."""
        if isinstance(self._source, Iterator) and self._num_batches is not None and not self.goes_on:
            count = num_epochs * self._num_batches
            next(itertools.islice(self._source, count, count), None)


def step_keys(epoch_key: Any, start: int = 0) -> Iterator[Any]:
    """The random keys of an epoch's steps, from one of them on; a few dozen are made at a time."""
    for block in itertools.count(start // KEYS_AT_ONCE):
        yield from itertools.islice(_split(epoch_key, block), start % KEYS_AT_ONCE, None)
        start = 0


fold_in = jax.jit(jax.random.fold_in)
"""``jax.random.fold_in``, which costs ten times as much where it is not jitted."""


@jax.jit
def _split(epoch_key: Any, block: Any) -> Any:
    return jax.random.split(jax.random.fold_in(epoch_key, block), KEYS_AT_ONCE)

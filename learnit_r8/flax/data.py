"""Where batches come from: functions, lists, loaders and one-pass iterators, all for many epochs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import jax

from ..loops.elapsed_data import opened

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
    """The batches of an epoch, and which one is its last.

    Args:
        source: A function that returns an iterable (given the epoch, 0-based, if it takes ``epoch``); an iterable, gone
            through once an epoch; or an iterator, of which each epoch takes the next batches.
        num_batches: Most batches in an epoch; None for all.

    """

    def __init__(self, source: Any, num_batches: int | None) -> None:
        if not callable(source):
            opened(source)
        self._source, self._num_batches = source, num_batches
        self._takes_epoch = takes_epoch(source)
        self._batches: Iterator[Any] = iter(())
        self._coming: Any = _NONE_LEFT

    def of(self, epoch: int) -> Iterator[Any]:
        """Yield the batches of an epoch, 0-based.

        Raises:
            ValueError: there is none.
        """
        source = self._source
        self._batches = itertools.islice(
            opened(source(epoch=epoch) if self._takes_epoch else source), self._num_batches
        )
        self._coming = _UNREAD
        if self.is_last:
            raise ValueError(
                f"data_iterator_fn must give at least one batch an epoch, got none in epoch {epoch}; an iterator can "
                "be read only once, so pass a function or a list."
            )
        while not self.is_last:
            batch, self._coming = self._coming, _UNREAD
            yield batch

    @property
    def is_last(self) -> bool:
        """Whether the batch that was yielded last ends the epoch; takes the next one, so ask after training on it."""
        if self._coming is _UNREAD:
            self._coming = next(self._batches, _NONE_LEFT)
        return self._coming is _NONE_LEFT


class OneEpoch:
    """One epoch of them, as an iterable.

    Args:
        batches: Those of all epochs.
        number: Which, 0-based.
    """

    def __init__(self, batches: EpochBatches, number: int) -> None:
        self._batches, self._number = batches, number

    def __iter__(self) -> Iterator[Any]:
        return self._batches.of(self._number)


class ValidationBatches:
    """The same batches at every validation.

    Args:
        source: A function, called each time; an iterable, gone through each time; or an iterator, whose first
            ``num_batches`` batches are kept.
        num_batches: How many, None for all.
    """

    def __init__(self, source: Any, num_batches: int | None) -> None:
        self._source, self._num_batches = source, num_batches
        if isinstance(source, Iterator):
            self._source = list(itertools.islice(source, num_batches))

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(opened(self._source), self._num_batches)


def step_keys(epoch_key: Any, start: int = 0) -> Iterator[Any]:
    """The random keys of an epoch's steps, from one of them on; a few dozen are made at a time."""
    for block in itertools.count(start // KEYS_AT_ONCE):
        yield from itertools.islice(_block_of_keys(epoch_key, block), start % KEYS_AT_ONCE, None)
        start = 0


def _block_of_keys(epoch_key: Any, block: int) -> Any:
    return iter(_split(epoch_key, block))


fold_in = jax.jit(jax.random.fold_in)
"""``jax.random.fold_in``, which costs ten times as much where it is not jitted."""


@jax.jit
def _split(epoch_key: Any, block: Any) -> Any:
    return jax.random.split(jax.random.fold_in(epoch_key, block), KEYS_AT_ONCE)

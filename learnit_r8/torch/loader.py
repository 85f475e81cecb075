"""Loaders whose errors name the sample, and whose batches can know their ticket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch.utils.data
from torch.utils.data import DataLoader, default_collate

if TYPE_CHECKING:
    from .sampler import R8BatchSampler

DECIDED = ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last")


class SampleError(RuntimeError):
    """A sample of the data set could not be read; the message names it."""


class Named(torch.utils.data.Dataset[Any]):
    """A data set whose errors name the sample, for the batches of `R8BatchSampler`.

    Args:
        dataset: Any with a length and an index.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._fetch_many: Callable[[Any], Any] | None = getattr(dataset, "__getitems__", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:
            raise SampleError(f"sample {index} could not be read: {type(error).__name__}: {error}") from error

    def __getitems__(self, indices: Any) -> Any:
        """The items of a batch, as the data set's own ``__getitems__`` gives them if it has one."""
        if self._fetch_many is None:
            return [self[index] for index in indices]
        try:
            return self._fetch_many(indices)
        except Exception as error:
            shown = list(indices)
            raise SampleError(
                f"one of the samples {shown} could not be read: {type(error).__name__}: {error}"
            ) from error


class Numbered(Named):
    """The same for batches of a numbered `R8BatchSampler`: items come with the batch's number."""

    def __getitems__(self, indices: Any) -> Any:
        """The number of the batch, and its items."""
        number, rows = indices
        return number, super().__getitems__(rows)


class NumberedCollate:
    """Collates the items of a numbered batch.

    Args:
        collate: Does so without numbers.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate

    def __call__(self, numbered: tuple[int, Any]) -> tuple[int, Any]:
        """``(number, batch)``."""
        number, items = numbered
        return number, self._collate(items)


def make_loader(
    dataset: Any, sampler: R8BatchSampler, *, numbered: bool, settings: Mapping[str, Any]
) -> DataLoader[Any]:
    """See `Adapter.loader`."""
    decided = sorted(set(DECIDED) & set(settings))
    if decided:
        raise ValueError(f"{decided[0]} must be left out, the scheduler decides it, got {settings[decided[0]]!r}.")
    if not numbered:
        return DataLoader(Named(dataset), batch_sampler=sampler, **settings)
    collate = NumberedCollate(settings.get("collate_fn") or default_collate)
    return DataLoader(Numbered(dataset), batch_sampler=sampler, **{**settings, "collate_fn": collate})

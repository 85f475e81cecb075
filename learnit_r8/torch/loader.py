"""Loaders whose errors name the sample, and whose batches can know their ticket."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate, get_worker_info

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..telling import Telling
    from .sampler import R8BatchSampler

DECIDED = ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last")


class SampleError(RuntimeError):
    """A sample of the data set could not be read; the message names it."""


def _unreadable(index: Any, error: Exception) -> SampleError:
    return SampleError(f"sample {index} could not be read: {type(error).__name__}: {error}")


class Named(Dataset[Any]):
    """A data set whose errors name the sample, for the batches of `R8BatchSampler`.

    Workers read each batch with random numbers of its own, so that augmentation is the same for any number of them, and
    after a resume.

    Args:
        dataset: Any with a length and an index.
        seed: With the samples of a batch the seed of its random numbers.
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        self.dataset = dataset
        self._seed = seed
        self._fetch_many: Callable[[Any], Any] | None = getattr(dataset, "__getitems__", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:
            raise _unreadable(index, error) from error

    def __getitems__(self, indices: Any) -> Any:
        """The items of a batch, as the data set's own ``__getitems__`` gives them if it has one."""
        if get_worker_info() is not None:
            _seed_generators(self._seed, indices)
        if self._fetch_many is None:
            return self._fetch_each(indices)
        try:
            return self._fetch_many(indices)
        except Exception as error:
            shown = list(indices)
            if hasattr(type(self.dataset), "__getitem__"):
                # A subset reads many, but of a data set that reads them one by one: then it can be told which it is.
                self._fetch_each(shown)
            raise SampleError(
                f"one of the samples {shown} could not be read: {type(error).__name__}: {error}"
            ) from error

    def _fetch_each(self, indices: Any) -> list[Any]:
        # Not through __getitem__ above: it would be one more call for each sample.
        dataset, items, index = self.dataset, [], None
        try:
            for index in indices:
                items.append(dataset[index])
        except Exception as error:
            raise _unreadable(index, error) from error
        return items


def _seed_generators(seed: int, indices: Any) -> None:
    """Seed torch's, numpy's and Python's generators by what a batch is; the same samples come in another order later.

    What torch seeds a worker with is another number whenever a loader begins, and differs from worker to worker.
    """
    key = hashlib.blake2b(np.asarray(indices, np.int64).tobytes(), digest_size=4, key=seed.to_bytes(8, "little"))
    number = int.from_bytes(key.digest(), "little")
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


class Columns(Named):
    """A `TensorDataset`, whose rows are taken all at once: what `default_collate` makes of them one by one.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: TensorDataset) -> None:
        super().__init__(dataset)
        self._fetch_many = self._take

    def _take(self, indices: Any) -> list[torch.Tensor]:
        rows = torch.as_tensor(indices)
        return [tensor[rows] for tensor in self.dataset.tensors]


class Numbered(Dataset[Any]):
    """The same for batches of a numbered `R8BatchSampler`: items come with the batch's number.

    Args:
        named: The same.
    """

    def __init__(self, named: Named) -> None:
        self.dataset = named

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, indices: Any) -> Any:
        """The number of the batch, and its items."""
        number, rows = indices
        return number, self.dataset.__getitems__(rows)


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


def takes_arrays(dataset: Any) -> bool:
    """Whether a data set has a ``__getitems__`` of its own; those of torch's and datasets' own want lists of ints."""
    if isinstance(dataset, Columns):
        return True
    if isinstance(dataset, (Named, Numbered)):
        return takes_arrays(dataset.dataset)
    own = getattr(type(dataset), "__getitems__", None)
    return own is not None and getattr(own, "__module__", "").partition(".")[0] not in ("torch", "datasets")


def make_loader(
    dataset: Any, sampler: R8BatchSampler, *, numbered: bool, settings: Mapping[str, Any]
) -> DataLoader[Any]:
    """See `Adapter.loader`."""
    decided = sorted(set(DECIDED) & set(settings))
    if decided:
        raise ValueError(f"{decided[0]} must be left out, the scheduler decides it, got {settings[decided[0]]!r}.")
    collate, named = settings.get("collate_fn"), Named(dataset, sampler.r8.plan.seed)
    if collate is None and type(dataset) is TensorDataset and all(map(_has_rows, dataset.tensors)):
        collate, named = _as_is, Columns(dataset)
    if numbered:
        collate = NumberedCollate(collate or default_collate)
    items = Numbered(named) if numbered else named
    loader = TimedLoader(items, batch_sampler=sampler, **{**settings, "collate_fn": collate})
    loader.r8 = sampler.r8
    return loader


class TimedLoader(DataLoader[Any]):
    """A loader that tells how long the training waits for it, where somebody listens.

    Attributes:
        r8: The scheduler to tell; None tells nobody.
    """

    r8: R8Scheduler | None = None

    def __iter__(self) -> Any:
        batches = super().__iter__()
        return batches if self.r8 is None or not self.r8.announcer.is_heard else _timed(batches, self.r8.telling)


def _timed(batches: Iterator[Any], telling: Telling) -> Iterator[Any]:
    while True:
        began = telling.now()
        try:
            batch = next(batches)
        except StopIteration:
            return
        telling.data_seconds += telling.now() - began
        yield batch


def _has_rows(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided


def _as_is(batch: Any) -> Any:
    return batch

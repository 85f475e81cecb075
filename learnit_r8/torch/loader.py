"""Loaders whose errors name the sample, and whose batches can carry the number of their ticket."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate, get_worker_info

from .._validation import check_release, whole_number
from ..bridge.prefetch import Prefetch
from ..engine.settings import OwnBatches
from ..sources.random_generators import random_state, set_random_state
from .flight.hand import Hand
from .prepared import SampleError, prepare, takes_arrays

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from .sampler import R8BatchSampler

DECIDED = ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last")


class LoaderSettings(TypedDict, total=False):
    """The settings of a `torch.utils.data.DataLoader` that the scheduler does not decide."""

    num_workers: int
    collate_fn: Callable[[list[Any]], Any] | None
    pin_memory: bool
    timeout: float
    worker_init_fn: Callable[[int], None] | None
    multiprocessing_context: Any
    generator: torch.Generator | None
    prefetch_factor: int | None
    persistent_workers: bool
    pin_memory_device: str
    in_order: bool


def length_of(loader: Any) -> int | None:
    """Batches in a run through a loader; None if it does not know."""
    try:
        return len(loader)
    except TypeError:
        # A DataLoader over a stream has the method, which raises.
        return None


def is_own_loader(dataset: Any, settings: Mapping[str, Any]) -> bool:
    """Whether batches come from the user's own loader.

    Raises:
        ValueError: it is a data set, of which a batch size must be given.
    """
    if "batch_size" in settings and not isinstance(settings["batch_size"], OwnBatches):
        return False
    is_stream = isinstance(dataset, torch.utils.data.IterableDataset)
    if isinstance(dataset, torch.utils.data.Dataset) and not is_stream:
        raise ValueError(
            f"batch_size must be given with a data set, from which the scheduler draws batches, got {dataset!r} "
            "without; or give your own DataLoader in its place, to keep its batches."
        )
    if dataset is not None and not isinstance(dataset, Iterable):
        raise TypeError(f"the loader must be an iterable of batches, or None, got {dataset!r}.")
    return True


COLLECT = (
    "For a stream, collect as many samples as fit in memory or on disk and train on those; or leave batch_size out of "
    "attach(), to keep your own loader's batches."
)


def check_dataset(dataset: Any) -> None:
    """Raise TypeError unless a scheduler can say which samples of it come next."""
    if isinstance(dataset, torch.utils.data.DataLoader):
        raise TypeError(
            f"dataset must be the data set itself, got {dataset!r}; give its .dataset, and pass its other arguments "
            "(num_workers, collate_fn) to adapter.loader(); or leave batch_size out of attach(), to keep its batches."
        )
    if isinstance(dataset, (tuple, list)) and dataset and all(hasattr(each, "shape") for each in dataset):
        shapes = [tuple(each.shape) for each in dataset]
        if shapes[0] and len({shape[:1] for shape in shapes}) == 1 < shapes[0][0] != len(dataset):
            raise TypeError(
                "dataset must have a length and an index, both of samples, got the columns of one, of the shapes "
                f"{shapes[:4]}; give torch.utils.data.TensorDataset(x, y)."
            )
    if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"dataset must have a length and an index, as the scheduler says which samples come next, got {dataset!r}. "
            f"{COLLECT}"
        )
    if not hasattr(dataset, "__getitem__") and not hasattr(dataset, "__getitems__"):
        raise TypeError(f"dataset must have an index, got {dataset!r}.")


def _unreadable(index: Any, error: Exception) -> SampleError:
    return SampleError(f"sample {index} could not be read: {type(error).__name__}: {error}")


class SampleReader(Dataset[Any]):
    """Reads the samples of a data set, for the batches of `R8BatchSampler`; its errors name the sample.

    Workers read each batch with random numbers of its own, so that augmentation is the same for any number of them, and
    after a resume. So does this process where batches are fetched ahead, and `BatchCollate` puts its generators back.

    Args:
        dataset: Any with a length and an index.
        seed: With the samples of a batch the seed of its random numbers.
        fetch_many: Returns the items of a batch; by default the data set's own ``__getitems__``, if it has one.
        is_ahead: Whether batches are fetched ahead.
        is_numbered: Whether a batch comes as ``(number, indices)``, and goes as ``(number, items)``.

    Attributes:
        is_numbered: As given.
        takes_arrays: Whether a batch may be an int64 array.
        states: The random generators before the newest batch, where they are to be put back.
    """

    def __init__(
        self, dataset: Any, seed: int, fetch_many: Callable[[Any], Any] | None = None, *, is_ahead: bool = False,
        is_numbered: bool = False,
    ) -> None:  # fmt: skip
        self.dataset, self._is_ahead, self.is_numbered = dataset, is_ahead, is_numbered
        self.states: Any = None
        self.takes_arrays = fetch_many is not None or takes_arrays(dataset)
        self._seed = seed
        self._fetch_many = getattr(dataset, "__getitems__", None) if fetch_many is None else fetch_many

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:
            raise _unreadable(index, error) from error

    def __getitems__(self, indices: Any) -> Any:
        """The items of a batch, as the data set's own ``__getitems__`` gives them if it has one."""
        if get_worker_info() is None:
            if not self._is_ahead:
                return self._fetch(indices)
            self.states = random_state()
        return self.fetch_as_worker(indices)

    def fetch_as_worker(self, indices: Any) -> Any:
        """The items of a batch, read with random numbers of its own; the same samples come in another order later."""
        # What torch seeds a worker with is another number whenever a loader begins, and differs from worker to worker.
        samples = np.asarray(indices[1] if self.is_numbered else indices, np.int64)
        key = hashlib.blake2b(samples.tobytes(), digest_size=4, key=self._seed.to_bytes(8, "little"))
        number = int.from_bytes(key.digest(), "little")
        torch.manual_seed(number)
        np.random.seed(number)
        random.seed(number)
        return self._fetch(indices)

    def _fetch(self, given: Any) -> Any:
        number, indices = given if self.is_numbered else (None, given)
        try:
            items = self._fetch_each(indices) if self._fetch_many is None else self._fetch_many(indices)
            return (number, items) if self.is_numbered else items
        except SampleError:
            raise
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


def _take_rows(tensors: Sequence[torch.Tensor], indices: Any) -> list[torch.Tensor]:
    """What `default_collate` makes of single rows, taken all at once."""
    rows = torch.as_tensor(indices)
    return list(map(itemgetter(rows), tensors))


class BatchCollate:
    """Collates the items of a batch that has a number, or that is fetched before the one in hand is trained on.

    What it draws then would come between the model's random numbers, and a resumed run fetches it anew; so the
    generators are put back.

    Args:
        collate: Collates items without a number.
        reader: Reads them.
    """

    def __init__(self, collate: Callable[[Any], Any], reader: SampleReader) -> None:
        self._collate, self._reader = collate, reader

    def __call__(self, items: Any) -> Any:
        """The batch, or ``(number, batch)``."""
        try:
            if not self._reader.is_numbered:
                return self._collate(items)
            number, items = items
            return number, self._collate(items)
        finally:
            states, self._reader.states = self._reader.states, None
            # A worker's own go on.
            if states is not None:
                set_random_state(states)


def make_loader(
    dataset: Any, sampler: R8BatchSampler, *, numbered: bool, settings: Mapping[str, Any], is_ahead: bool = False
) -> TimedLoader:
    """See `Adapter.loader`."""
    decided = sorted(set(DECIDED) & set(settings))
    if decided:
        raise ValueError(f"{decided[0]} must be left out, the scheduler decides it, got {settings[decided[0]]!r}.")
    whole_number("num_workers", settings.get("num_workers", 0), least=0)
    collate, fetch_many = settings.get("collate_fn"), None
    is_table = type(dataset) is TensorDataset and all(each.layout is torch.strided for each in dataset.tensors)
    if collate is None and is_table:
        # What is read is the batch already.
        collate, fetch_many = list, functools.partial(_take_rows, dataset.tensors)
    reader = SampleReader(dataset, sampler.r8.host.seed, fetch_many, is_ahead=is_ahead, is_numbered=numbered)
    if is_ahead or numbered:
        collate = BatchCollate(collate or default_collate, reader)
    if settings.get("generator") is None:
        # Torch's global generator belongs to the model: beginning an epoch, or resuming in one, must not draw from it.
        settings = {**settings, "generator": torch.Generator().manual_seed(sampler.r8.host.seed % 2**63)}
    return TimedLoader(reader, batch_sampler=sampler, **{**settings, "collate_fn": collate})


class TimedLoader(DataLoader[Any]):
    """A loader that tells the scheduler of its batch sampler how long the training waits for each batch."""

    _device: torch.device | None = None
    _hand: Hand | None = None

    def leave_to(self, device: torch.device) -> None:
        """Put batches on a device, as accelerate's own loaders do, which would split batches that are split already."""
        check_release("accelerate", "1.11")
        self._device = device
        # What accelerator.prepare() looks for.
        self._is_accelerate_prepared = True

    def hold_in(self, hand: Hand) -> None:
        """Hold each batch until the next one, so that it can run again."""
        self._hand = hand

    def __iter__(self) -> Any:
        batches: Any = super().__iter__()
        # A trainer may have put a batch sampler of its own in place of the scheduler's.
        r8: R8Scheduler | None = getattr(self.batch_sampler, "r8", None)
        # A worker's own preparations are not made in this process.
        if r8 is not None and self.num_workers and self.worker_init_fn is None:
            batches = WithProbes(batches, self, Prefetch.of(r8))
        if self._device is not None:
            batches = prepare(batches, self, self._device)
        batches = batches if r8 is None else r8.host.timed(batches)
        return batches if self._hand is None else map(self._hand.hold, batches)


class WithProbes:
    """The batches of a loader with workers; probes come first, and are fetched in this process.

    Args:
        fetched: The batches, fetched ahead.
        loader: Their loader.
        batches: Holds them.
    """

    def __init__(self, fetched: Iterator[Any], loader: TimedLoader, batches: Prefetch) -> None:
        self._fetched, self._loader, self._batches = fetched, loader, batches
        batches.r8.controller.experiment.can_probe = batches.reader.can_probe

    def __iter__(self) -> WithProbes:
        return self

    def __next__(self) -> Any:
        batches, r8 = self._batches, self._batches.r8
        is_under_way = batches.waiting or r8.pace.next_place < batches.reader.end
        if is_under_way or r8.is_over or r8.requests.is_pending:
            batches.trainer.between_steps()
        if r8.controller.experiment.asks_probe:
            return self._fetch(batches.reader.draw_probe())
        end = min(batches.reader.end, r8.total_steps or batches.reader.end)
        if batches.waiting and r8.pace.next_place - len(batches.waiting) >= end:
            # Probes have taken their places.
            batches.trainer.settle()
            batches.leave_out()
            return self._fetch_last()
        try:
            return next(self._fetched)
        except StopIteration:
            return self._fetch_last()

    def _fetch_last(self) -> Any:
        """Fetch a probe before the run ends, if its last losses were unusual; else the epoch is over."""
        batches, r8 = self._batches, self._batches.r8
        batches.trainer.settle()
        if r8.is_over and not batches.waiting and r8.controller.experiment.can_probe:
            probe = batches.reader.draw_probe()
            if probe is not None:
                return self._fetch(probe)
        r8.host.leave_epoch()
        raise StopIteration

    def _fetch(self, rows: Any) -> Any:
        """Fetch a batch with the random numbers that a worker would have drawn; those of the model stay."""
        if rows is None:
            raise StopIteration
        loader, states = self._loader, random_state()
        reader: Any = loader.dataset
        try:
            return loader.collate_fn(reader.fetch_as_worker(rows))
        finally:
            set_random_state(states)

"""The batches of R8Scheduler for any `DataLoader`: the batch sampler, and loaders whose errors name the sample."""

from __future__ import annotations

import functools
import hashlib
import random
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
import torch.utils.data
from torch.utils.data import BatchSampler, DataLoader, Dataset, TensorDataset, default_collate, get_worker_info
from torch.utils.data.dataloader import _BaseDataLoaderIter

from .._validation import check_release, whole_number
from ..bridge.host import num_left
from ..bridge.prefetch import Prefetch
from ..engine.settings import OwnBatches
from ..sources.random_generators import random_state, set_random_state
from ..sources.ticket import Ticket, refuse_weights
from .flight.hand import Hand
from .prepared import SampleError, prepare, takes_arrays
from .readback import ALONE, num_processes

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..sources.ticket import Outcome
    from .distributed.together import Sharing

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


class SampleReader(Dataset[Any]):
    """Reads the samples of a data set, and makes the batches of `R8BatchSampler`; its errors name the sample.

    Workers read each batch with random numbers of its own, so that augmentation is the same for any number of them, and
    after a resume; so does this process where batches are fetched ahead.

    Args:
        dataset: Any with a length and an index.
        seed: With the samples of a batch the seed of its random numbers.
        fetch_many: Returns the items of a batch; by default the data set's own ``__getitems__``, if it has one.
        collate: Makes a batch of them.
        is_ahead: Whether batches are fetched ahead.

    Attributes:
        takes_arrays: Whether a batch may be an int64 array.
    """

    def __init__(
        self, dataset: Any, seed: int, fetch_many: Callable[[Any], Any] | None, collate: Callable[[Any], Any], *,
        is_ahead: bool,
    ) -> None:  # fmt: skip
        self.dataset, self._collate, self._is_ahead = dataset, collate, is_ahead
        self.takes_arrays = fetch_many is not None or takes_arrays(dataset)
        self._seed = seed
        self._fetch_many = getattr(dataset, "__getitems__", None) if fetch_many is None else fetch_many

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:
            raise SampleError(f"sample {index} could not be read: {type(error).__name__}: {error}") from error

    def __getitems__(self, indices: Any) -> Any:
        """A batch, of what the data set's own ``__getitems__`` gives if it has one."""
        if get_worker_info() is not None:
            return self._make_as_worker(indices)
        return self.make_apart(indices) if self._is_ahead else self._collate(self._fetch(indices))

    def make_apart(self, indices: Any) -> Any:
        """A batch with the random numbers that a worker would draw; those of this process stay.

        They are the model's: a batch that is made before the one in hand is trained on must not come between them.
        """
        states = random_state()
        try:
            return self._make_as_worker(indices)
        finally:
            set_random_state(states)

    def _make_as_worker(self, indices: Any) -> Any:
        """A batch with random numbers of its own; the same samples come in another order later."""
        # What torch seeds a worker with is another number whenever a loader begins, and differs from worker to worker.
        samples = np.asarray(indices, np.int64).tobytes()
        key = hashlib.blake2b(samples, digest_size=4, key=self._seed.to_bytes(8, "little"))
        number = int.from_bytes(key.digest(), "little")
        torch.manual_seed(number)
        np.random.seed(number)
        random.seed(number)
        return self._collate(self._fetch(indices))

    def _fetch(self, indices: Any) -> Any:
        try:
            return [self[index] for index in indices] if self._fetch_many is None else self._fetch_many(indices)
        except SampleError:
            raise
        except Exception as error:
            shown = list(indices)
            if hasattr(type(self.dataset), "__getitem__"):
                # A subset reads many, but of a data set that reads them one by one: then it can be told which it is.
                for index in shown:
                    self[index]
            raise SampleError(
                f"one of the samples {shown} could not be read: {type(error).__name__}: {error}"
            ) from error


def _take_rows(tensors: Sequence[torch.Tensor], indices: Any) -> list[torch.Tensor]:
    """What `default_collate` makes of single rows, taken all at once."""
    rows = torch.as_tensor(indices)
    return list(map(itemgetter(rows), tensors))


def as_made(batch: Any) -> Any:
    """A batch that a `SampleReader` has made, for the loader that would collate it."""
    return batch


def refuse_decided(settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a setting of a loader is one that the scheduler decides."""
    decided = sorted(set(DECIDED) & set(settings))
    if decided:
        raise ValueError(f"{decided[0]} must be left out, the scheduler decides it, got {settings[decided[0]]!r}.")


def make_loader(dataset: Any, sampler: Any, *, settings: Mapping[str, Any], is_ahead: bool = False) -> TimedLoader:
    """See `Adapter.loader`."""
    refuse_decided(settings)
    whole_number("num_workers", settings.get("num_workers", 0), least=0)
    collate, fetch_many = settings.get("collate_fn"), None
    pass_on: Callable[[Any], Any] = as_made
    is_table = type(dataset) is TensorDataset and all(each.layout is torch.strided for each in dataset.tensors)
    if collate is None and is_table:
        # What is read is the batch already.
        collate, fetch_many, pass_on = list, functools.partial(_take_rows, dataset.tensors), list
    seed = sampler.r8.host.source.seed
    reader = SampleReader(dataset, seed, fetch_many, collate or default_collate, is_ahead=is_ahead)
    if settings.get("generator") is None:
        # Torch's global generator belongs to the model: beginning an epoch, or resuming in one, must not draw from it.
        settings = {**settings, "generator": torch.Generator().manual_seed(seed % 2**63)}
    return TimedLoader(reader, batch_sampler=sampler, **{**settings, "collate_fn": pass_on})


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
        """Make a probe in this process."""
        if rows is None:
            raise StopIteration
        reader: Any = self._loader.dataset
        return reader.make_apart(rows)


class R8BatchSampler(torch.utils.data.Sampler[Any]):
    """Goes as ``batch_sampler`` into a `torch.utils.data.DataLoader`; each iteration is one epoch.

    The loader may have workers and run ahead as far as it likes. After a ``break`` the next iteration goes on in the
    same epoch with the batch that was in hand. Batches that are handed out and not reported come once more at the end
    of the epoch.

    Args:
        r8: The scheduler.
        as_list: Whether a batch is a list of ints; else it is an int64 array, which ``dataset.__getitems__`` can index
            with at once. By default an array for data sets with a ``__getitems__`` of their own, and a list for others.
        ahead: Batches that something between loader and training fetches in advance, as accelerate and Lightning do.
        sharing: Selects this process's part of a batch.

    Attributes:
        r8: The scheduler.

    Raises:
        TypeError: ``r8`` is not an R8Scheduler.
        ValueError: ``ahead`` is negative, or the scheduler takes batches of the user's own.

    >>> from learnit_r8 import R8Scheduler
    >>> sampler = R8BatchSampler(R8Scheduler(6, batch_size=4, num_epochs=1))
    >>> loader = torch.utils.data.DataLoader(range(6), batch_sampler=sampler)
    >>> [bool(sampler.report(batch / 6)) for batch in loader]
    [True, True]
    """

    def __init__(
        self,
        r8: R8Scheduler,
        *,
        as_list: bool | None = None,
        ahead: int = 0,
        sharing: Sharing = ALONE,
    ) -> None:
        self.r8, self.batches = r8, Prefetch.of(r8)
        if r8.feed is not None:
            raise ValueError("r8 must be an R8Scheduler with num_samples, which draws the batches, got one without.")
        self.ahead = whole_number("ahead", ahead, least=0)
        self._as_list = as_list
        self._sharing = sharing

    def __iter__(self) -> Iterator[Any]:
        self.batches.trainer.before_iteration()
        if self._sharing is ALONE and (count := num_processes()) > 1:
            self.r8.host.say_once(
                "whole batches",
                f"torch.distributed has {count} processes, and R8BatchSampler gives each of them whole batches: all "
                "train on the same samples. Use attach(), which shares the batches among them.",
            )
        return SamplerIterator(self.batches, self._hand_out, ahead=self.ahead)

    def __len__(self) -> int:
        """Batches of a whole epoch, as trainers assume; an iteration that goes on in mid-epoch gives what is left."""
        return self.r8.steps_per_epoch

    def _hand_out(self, ticket: Ticket, dataset: Any) -> Any:
        indices: Any = ticket.indices if self._sharing is ALONE else self._sharing.part(ticket.indices)
        if self._as_list is None:
            self._as_list = not takes_arrays(dataset)
        return indices.tolist() if self._as_list else indices

    def report(self, loss: Any, *, part_size: int | None = None) -> Outcome:
        """Report the loss of the oldest batch handed out, for loops without an adapter; see `R8Scheduler.report`.

        Args:
            loss: As the scheduler takes it.
            part_size: Samples in a part of the loss.

        Raises:
            RuntimeError: it is not clear which batch it is; or the policy weights samples.
        """
        found = find_batch(self.batches, ahead=self.ahead)
        refuse_weights(self.r8.policy, found)
        outcome = self.r8.report(self.r8.host.begin(found, is_late=True), loss, part_size=part_size)
        self.batches.take(found)
        return outcome

    def skip(self) -> None:
        """Pass over the batch in hand; it comes once more at the end of the epoch."""
        find_batch(self.batches, ahead=self.ahead)
        self.batches.give_up_oldest(on_purpose=True)


FRAMES = 6
"""How far up the stack a loader is looked for; wrappers of batch samplers add some."""

NOTHING_REPORTED = (
    "an epoch of {} batches ended with no loss reported, so the batches are chosen without knowing the losses and no "
    "rate is set: call adapter.step(adapter.loss(losses)) or adapter.report(losses) for each batch, or report(losses) "
    "of an R8BatchSampler. Where a trainer owns the loop, use learnit_r8.lightning or learnit_r8.transformers."
)


class SamplerIterator:
    """One iteration over the batches of an epoch, or over what is left of it.

    Args:
        batches: Holds the batches.
        hand_out: ``(ticket, dataset)``, returns the batch as the loader gets it.
        ahead: Batches that something between loader and training fetches in advance.

    Attributes:
        epoch: The epoch, 0-based.
        length: Batches of it.
        end: The place of the first batch after it.
        can_probe: Whether a loader may fetch a probe itself: nothing between it and the training works ahead.
    """

    def __init__(self, batches: Prefetch, hand_out: Callable[[Ticket, Any], Any], *, ahead: int) -> None:
        self.epoch, self.length = -1, 0
        self._num_asked = self._num_drawn = self._num_ahead = self._num_probes = 0
        self._is_exhausted = False
        self._batches = batches
        self._hand_out = hand_out
        self._ahead, self.can_probe = ahead, not ahead
        self._loader: Any = None
        self.end = 0
        self._dataset: Any = None
        self._has_begun = False

    def __iter__(self) -> SamplerIterator:
        return self

    def __next__(self) -> Any:
        if not self._has_begun:
            self._begin()
        batches = self._batches
        self._num_asked += 1
        if batches.reader is not self:
            raise RuntimeError(
                "a batch was asked for by an iteration that another one has replaced; iterate over a loader once at a "
                "time."
            )
        r8 = batches.r8
        is_at_end = r8.pace.next_place >= self.end
        if is_at_end and not self._num_ahead and r8.is_over:
            # A probe may follow, where the last losses were unusual.
            batches.trainer.settle()
            is_at_end = False
        if not is_at_end or r8.requests.is_pending:
            batches.trainer.between_steps()
        ticket = None if is_at_end else batches.draw(is_fetched=self._num_ahead > 0)
        if ticket is None:
            self._is_exhausted = True
            self._warn_if_silent()
            if not self._num_ahead:
                batches.trainer.settle()
            batches.r8.host.leave_epoch()
            raise StopIteration
        self._is_exhausted = False
        self._num_drawn += 1
        if self._num_drawn == self.length:
            # The last one: a trainer that stops at len(loader) asks no more, and there may be one epoch only.
            self._warn_if_silent()
        return self._hand_out(ticket, self._dataset)

    def _begin(self) -> None:
        self._has_begun = True
        loader = _loader_above()
        if loader is not None:
            _check(loader)
            self._loader, self._dataset = weakref.ref(loader), loader._dataset
            self._num_ahead = loader._num_workers * (getattr(loader, "_prefetch_factor", None) or 0)
        # With workers the loader itself must be able to fetch a probe; see `WithProbes`.
        self._batches.r8.controller.experiment.can_probe = not (self._ahead or self._num_ahead)
        batches, r8 = self._batches, self._batches.r8
        batches.trainer.before_first_batch()
        before = batches.reader
        if before is not None and (before.is_silent() or before.is_finished):
            batches.discard_epoch(before.epoch)
        batches.open(self)
        self.epoch, self.length = r8.current_epoch, num_left(r8)
        self.end = (self.epoch + 1) * r8.steps_per_epoch
        # A budget of time may run out between a look of the loop over epochs, which ends then, and here.
        if r8.is_over and not (r8.pace.is_stopped or r8.pace.counts_epochs):
            r8.host.say_once(
                "no batches left",
                f"the budget is spent after {r8.global_step} steps: R8BatchSampler gives no more batches.",
            )

    def draw_probe(self) -> Any:
        """Draw a probe, for a loader that fetches it itself; None if there is none left."""
        batches, delivered = self._batches, self.num_delivered
        ticket = batches.draw_probe(0 if delivered is None else max(0, delivered - batches.num_taken))
        if ticket is None:
            return None
        self._num_probes += 1
        return self._hand_out(ticket, self._dataset)

    @property
    def is_finished(self) -> bool:
        """Whether the loader handed out every batch: it asks once with each one, and ahead at the beginning."""
        asked = self._num_asked if self._num_ahead else self._num_asked - 1
        return self._is_exhausted and asked >= self._num_drawn + self._num_ahead

    def is_silent(self) -> bool:
        """Whether the loader handed out an epoch of several batches, and no loss of any of them came; says so once.

        A trainer that stops at ``len(loader)`` never finishes an iteration: the next one would give the same batches.
        """
        batches = self._batches
        num_handed_out = min(self._num_drawn, self._num_asked - self._num_ahead)
        if batches.num_taken or not 1 < self.length <= num_handed_out:
            return False
        batches.r8.host.say_once("nothing reported", NOTHING_REPORTED.format(self.length))
        return True

    def _warn_if_silent(self) -> None:
        """Say so once if batches were trained on and no loss of any of them came, as the last ones are handed out."""
        num_asked_before = self._num_asked - self._num_ahead - 1
        # One batch may be fetched in advance by the trainer, and the one before it is in hand.
        if not self._batches.num_taken and num_asked_before - self._ahead > 2:
            self._batches.r8.host.say_once("nothing reported", NOTHING_REPORTED.format(self.length))

    def in_hand(self) -> Ticket:
        """The batch that the next loss belongs to; see `find_batch`."""
        return find_batch(self._batches, ahead=self._ahead)

    @property
    def num_delivered(self) -> int | None:
        """Batches that the loader handed out; None where no `DataLoader` iterates."""
        loader = None if self._loader is None else self._loader()
        delivered = getattr(loader, "_num_yielded", None)
        return None if delivered is None else delivered + self._num_probes


def find_batch(batches: Prefetch, *, ahead: int) -> Ticket:
    """The batch that a loss belongs to, the oldest that waits.

    Args:
        batches: Holds it.
        ahead: Batches that something between loader and training fetches in advance.

    Raises:
        RuntimeError: no batch waits, or it is not clear which batch it is.
    """
    iteration: SamplerIterator | None = batches.reader
    delivered = None if iteration is None else iteration.num_delivered
    if delivered is not None and delivered != batches.num_taken + 1:
        _skip_to_last(batches, delivered, ahead)
    if not batches.waiting:
        raise RuntimeError(
            "a loss must be of a batch that was handed out and not reported yet, got none out: it is of no batch of "
            "adapter.loader(). Batches come from the adapter's loader: for batch in adapter.loader(). Losses of a "
            "validation go to adapter.log(val_loss=...) alone."
        )
    return next(iter(batches.waiting.values()))


def _skip_to_last(batches: Prefetch, delivered: int, ahead: int) -> None:
    """Give up batches that were handed out before the last one and not reported."""
    missed = delivered - batches.num_taken - 1
    if missed < 0:
        raise RuntimeError(
            f"a loss was reported with {delivered} batches handed out and as many reported; report each batch once."
        )
    missed -= ahead
    if missed > 0 and not batches.num_taken:
        raise RuntimeError(
            f"the first loss must come before the next batch is fetched, got {missed + 1 + ahead} batches handed "
            "out. If something fetches ahead of the training (accelerate, Lightning), say so with ahead=1; a batch "
            "that you leave out is to be passed over with skip()."
        )
    for _ in range(min(missed, len(batches.waiting) - 1)):
        batches.give_up_oldest()


def _loader_above() -> Any:
    """Find the DataLoader's iterator that asks for a batch; None if other code asks."""
    frame = sys._getframe(2)
    for _ in range(FRAMES):
        asking = frame.f_locals.get("self")
        if isinstance(asking, _BaseDataLoaderIter):
            return asking
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


def _check(loader: Any) -> None:
    """Raise ValueError if a loader makes batches of batches, or some would be taken for others."""
    if loader._num_workers > 1 and not getattr(loader, "_in_order", True):
        raise ValueError(
            "in_order must be True where R8Scheduler draws the batches, as a loss is that of the oldest one that was "
            "handed out, got False; leave it out."
        )
    sampler = loader._index_sampler
    if getattr(sampler, "skip_batches", 0) and isinstance(sampler.batch_sampler, R8BatchSampler):
        raise ValueError(
            "skip_first_batches() must be left out where R8Scheduler draws the batches, as the loader goes on where it "
            f"was by itself, got {sampler.skip_batches} batches to skip; iterate over the loader as it is."
        )
    if type(sampler) is BatchSampler:
        raise ValueError(
            f"sampler must be left out and R8BatchSampler given as batch_sampler to the DataLoader, got {sampler!r}; "
            "or "
            "give it as sampler with batch_size=None, for data sets that take an array as index."
        )

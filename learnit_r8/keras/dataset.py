"""R8Dataset: the batches that R8Scheduler draws, as Keras wants them."""

from __future__ import annotations

import functools
import multiprocessing
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from .._adapters.prefetch import Prefetch
from .._adapters.rows import check_rows, leaves, share, take_rows, take_shared
from .._validation import whole_number
from .fit_frame import callbacks_of_fit, method_of_model
from .pipeline import Pipeline, as_tensors, is_in_memory

if TYPE_CHECKING:
    from ..sampling.ticket import Ticket
    from ..scheduler import R8Scheduler
    from .sample_pipeline import SamplePipeline


class R8Dataset(keras.utils.PyDataset):  # type: ignore[misc]
    """The data of ``model.fit`` in the order of a scheduler; give `R8Callback` to ``fit`` along with it.

    The batches of an epoch are drawn when it begins, so that workers may run ahead as far as they like. Under
    TensorFlow plain arrays are copied once, as by ``fit`` itself, and their rows gathered by TensorFlow's own threads.

    Args:
        x: Inputs with N rows: an array or tensor, anything with a length and an index (whose items are stacked), or
            a list, tuple or dict of those.
        y: Targets, in the same form; None for a model that needs none.
        r8: The scheduler of N samples; it must not search for a learning rate.
        sample_weight: Weights of the samples in the training loss, in the same form. Losses are reported without them.
        workers: Threads or processes that gather batches ahead of time, >= 1; 1 is no extra one. Keras' own workers
            are not used: they keep batches from one epoch for the next.
        use_multiprocessing: Whether the workers are processes. They are started afresh, so the program needs
            ``if __name__ == "__main__":``, and the data is copied to each of them once.
        max_queue_size: Most batches gathered ahead, >= 1.

    Raises:
        TypeError: a column has no length or no index, or ``r8`` is not a scheduler.
        ValueError: a column of another length than N, or the scheduler searches for a learning rate.

    Attributes:
        drawn: The batches of the epoch.
        is_finished: Whether the run was over before, as one that is resumed and had ended: ``fit`` trains nothing then.
        is_bare: Whether a batch is the inputs alone, and ``fit`` on them would hand them on without a tuple.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        r8: R8Scheduler,
        *,
        sample_weight: Any = None,
        workers: int = 1,
        use_multiprocessing: bool = False,
        max_queue_size: int = 10,
    ) -> None:
        super().__init__()
        self.drawn = Prefetch.of_epochs(r8)
        self.is_finished = r8.is_over
        self.is_bare = (
            y is None and sample_weight is None and not isinstance(x, (tuple, list)) and not r8.policy.selects
        )
        for name, data in (("x", x), ("y", y), ("sample_weight", sample_weight)):
            check_rows(name, data, r8.table.num_samples)
        self._data = (x, y, sample_weight)
        self._num_workers = whole_number("workers", workers, least=1, most=1024)
        self._max_queue = whole_number("max_queue_size", max_queue_size, least=1, most=2**16)
        self._use_processes = use_multiprocessing
        self._fetched: set[int] = set()
        self._pool: Executor | None = None
        self._gathered: dict[int, Future[Any]] = {}
        self._pipeline: Pipeline | None = None
        # A batch must have a weight in every epoch or in none, and a policy weights only from the second on.
        self._is_weighted = sample_weight is not None or r8.policy.selects

    @classmethod
    def from_tensor_slices(cls, tensors: Any, r8: R8Scheduler) -> SamplePipeline:
        """A ``tf.data`` pipeline in the scheduler's order, in place of ``tf.data.Dataset.from_tensor_slices``.

        ``map``, ``batch``, ``padded_batch``, ``prefetch`` and ``with_options`` of what it returns are those of
        TensorFlow, and ``with_seeds`` gives random augmentations seeds that a resumed run repeats. Give the last stage
        to `R8Callback` and to ``fit``, on any back end.

        Args:
            tensors: Arrays or tensors of N rows, such as images, paths or ``range(N)``, or a tuple or dict of them.
            r8: The scheduler of N samples; its policy must not weight them.

        Raises:
            ImportError: TensorFlow is not installed.
            TypeError, ValueError: as for R8Dataset.
        """
        from .sample_pipeline import SamplePipeline

        return SamplePipeline(tensors, r8)

    @classmethod
    def from_dataset(cls, dataset: Any, r8: R8Scheduler) -> SamplePipeline:
        """The same over the samples of a ``tf.data.Dataset``, which are held in memory, as by its ``cache()``.

        Args:
            dataset: A ``tf.data.Dataset`` of N single samples of one shape, each time in the same order.
            r8: As for `from_tensor_slices`.

        Raises:
            ImportError: TensorFlow is not installed.
            TypeError: it is no ``tf.data.Dataset``.
            ValueError: it is batched, shuffles or repeats, or as for R8Dataset.
        """
        from .sample_pipeline import SamplePipeline, samples_of

        return SamplePipeline(samples_of(dataset, r8.table.num_samples), r8)

    @property
    def r8(self) -> R8Scheduler:
        """The scheduler."""
        return self.drawn.r8

    def __len__(self) -> int:
        """Batches of the epoch: all of them, or what is left of it where a run goes on in the middle.

        Raises:
            RuntimeError: the budget is spent.
        """
        _check_trains()
        if self.is_finished:
            # Keras looks at a batch before it asks its callbacks.
            return 1
        return self.drawn.epoch_length or len(self.drawn.draw_epoch())

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """The batch at a position of the epoch: ``(x,)``, ``(x, y)`` or ``(x, y, sample_weight)``.

        Args:
            index: In [0, len).

        Raises:
            RuntimeError: the budget is spent.
            IndexError: an abandoned loader asks after the end of its epoch.
        """
        tickets = self.drawn.epoch
        batch: tuple[Any, ...]
        if self.is_finished:
            batch = self._first()
            return batch
        if not tickets:
            if isinstance(threading.current_thread(), threading._DummyThread):
                # A thread of TensorFlow's, ahead of a training that has stopped: it must not draw.
                raise IndexError(f"index must be of an epoch that has begun, got {index!r} between two epochs.")
            tickets = self.drawn.draw_epoch()
        self._fetched.add(index)
        batch = self._batch(index, tickets[index])
        return batch

    def _first(self) -> Any:
        """A batch to look at, where none is drawn."""
        return tuple(each for each in take_rows(self._data, np.arange(1)) if each is not None)

    def _batch(self, index: int, ticket: Ticket) -> Any:
        x, y, own = self._rows(index, ticket.indices)
        if self._is_weighted:
            return x, y, _product(own, ticket.weights, len(ticket.indices))
        return (x,) if y is None else (x, y)

    def _rows(self, index: int, indices: NDArray[np.int64]) -> Any:
        if self._num_workers == 1 and not self._use_processes:
            return take_rows(self._data, indices)
        if self._pool is None and self._use_processes:
            # A fork of a process in which a framework's threads run may hang.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._num_workers, context, initializer=share, initargs=(self._data,))
        elif self._pool is None:
            self._pool = ThreadPoolExecutor(self._num_workers)
        take = take_shared if self._use_processes else functools.partial(take_rows, self._data)
        gathered, tickets = self._gathered, self.drawn.epoch
        for later in range(index, min(index + self._max_queue, len(tickets))):
            if later not in gathered:
                gathered[later] = self._pool.submit(take, tickets[later].indices)
        gathered.pop(index - 2, None)
        return gathered[index].result()

    def on_epoch_begin(self) -> None:
        """Check the ``fit``; Keras calls it before it asks for batches.

        Raises:
            RuntimeError: ``fit`` was called without an `R8Callback` of this data set.
        """
        _check_trains()
        callbacks = callbacks_of_fit()
        if callbacks is not None and not any(getattr(each, "dataset", None) is self for each in callbacks):
            raise RuntimeError(f"callbacks must hold an R8Callback of the R8Dataset in fit(), got {callbacks!r}.")

    def quick_batches(self, element_spec: Any) -> Any:
        """The epoch as a ``tf.data.Dataset``; None where rows are not plain arrays, or change on their way.

        Args:
            element_spec: What a batch is, as tensor specs.
        """
        is_own = type(self).__getitem__ is not R8Dataset.__getitem__
        if is_own or self._num_workers > 1 or self._use_processes or self.r8.policy.selects:
            return None
        columns = tuple(data for data in self._data if data is not None)
        if not all(is_in_memory(leaf) for _, leaf in leaves("data", columns)):
            return None
        if self._pipeline is None:
            self._pipeline = Pipeline(as_tensors(keras.tree.lists_to_tuples(columns), element_spec), self.r8)
        return self._pipeline.batches(self.drawn.epoch, prefetch=-1)

    def start_epoch(self) -> None:
        """Draw what is left of the epoch. The callback calls it."""
        self._fetched.clear()
        self._gathered.clear()
        self.drawn.draw_epoch()

    def was_fetched(self, index: int) -> bool:
        """Whether somebody has asked for this batch of the epoch."""
        return index in self._fetched

    def end_epoch(self) -> None:
        """Give back what was not trained on. The callback calls it."""
        self._gathered.clear()
        self.drawn.hand_back()

    def close(self) -> None:
        """End the workers and let go of the tensors; the next epoch makes new ones."""
        self._pipeline = None
        self.end_workers()

    def end_workers(self) -> None:
        """End the workers. The callback calls it."""
        self._gathered.clear()
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)


def _check_trains() -> None:
    """Raise ValueError in ``predict`` and ``evaluate``, where the order and the budget of a training make no sense."""
    method = method_of_model()
    if method in ("predict", "evaluate"):
        raise ValueError(
            f"x must be the arrays themselves in {method}(), got an R8Dataset, whose batches are for training, in the "
            "order drawn."
        )


def _product(own: Any, weights: NDArray[np.float32] | None, count: int) -> Any:
    """Multiply the two weights of each sample; without either they are 1."""
    if own is None:
        return np.ones(count, np.float32) if weights is None else weights
    if weights is None:
        return own
    return keras.tree.map_structure(lambda each: each * weights.reshape(-1, *[1] * (each.ndim - 1)), own)

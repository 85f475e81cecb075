"""R8Dataset: the batches that R8Scheduler draws, as Keras wants them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from .._validation import no_attribute, whole_number
from ..bridge.prefetch import Prefetch
from ..bridge.rows import check_rows, leaves, take_rows
from .train_function import callbacks_of_fit, method_of_model

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..sources.ticket import Ticket


MOST_AHEAD = 10
"""Batches that workers gather ahead."""


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
        workers: Threads that gather up to ten batches ahead of time, >= 1; 1 is no extra one. Keras' own workers are
            not used: they keep batches from one epoch for the next.

    Raises:
        TypeError: a column has no length or no index, or ``r8`` is not a scheduler.
        ValueError: a column of another length than N, or the scheduler searches for a learning rate.

    Attributes:
        r8: As given.
        drawn: The batches of the epoch.
        is_finished: Whether the run was over before, as one that is resumed and had ended: ``fit`` trains nothing then.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        r8: R8Scheduler,
        *,
        sample_weight: Any = None,
        workers: int = 1,
    ) -> None:
        super().__init__()
        self.r8, self.drawn = r8, Prefetch.of_epochs(r8)
        self.is_finished = r8.is_over
        # A subclass may make more of a batch.
        self._is_own = type(self).__getitem__ is not R8Dataset.__getitem__
        for name, data in (("x", x), ("y", y), ("sample_weight", sample_weight)):
            check_rows(name, data, r8.table.num_samples)
        self._data = (x, y, sample_weight)
        self._num_workers = whole_number("workers", workers, least=1, most=1024)
        self._pool: ThreadPoolExecutor | None = None
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
        return SamplePipeline(samples_of(dataset, r8.table.num_samples), r8)

    @property
    def is_bare(self) -> bool:
        """Whether a batch is the inputs alone, which a plain ``fit`` on them hands on without a tuple."""
        x, y, _ = self._data
        return not (self._is_own or self._is_weighted or y is not None or isinstance(x, (tuple, list)))

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
        if self.is_finished:
            return self._first()
        if not tickets:
            if isinstance(threading.current_thread(), threading._DummyThread):
                # A thread of TensorFlow's, ahead of a training that has stopped: it must not draw.
                raise IndexError(f"index must be of an epoch that has begun, got {index!r} between two epochs.")
            tickets = self.drawn.draw_epoch()
        return self._batch(index, tickets[index])

    def _first(self) -> tuple[Any, ...]:
        """A batch to look at, where none is drawn."""
        return tuple(each for each in take_rows(self._data, np.arange(1)) if each is not None)

    def _batch(self, index: int, ticket: Ticket) -> tuple[Any, ...]:
        x, y, own = self._rows(index, ticket.indices)
        if self._is_weighted:
            return x, y, _product(own, ticket.weights, len(ticket.indices))
        return (x,) if y is None else (x, y)

    def _rows(self, index: int, indices: NDArray[np.int64]) -> Any:
        if self._num_workers == 1:
            return take_rows(self._data, indices)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._num_workers)
        gathered, tickets = self._gathered, self.drawn.epoch
        for later in range(index, min(index + MOST_AHEAD, len(tickets))):
            if later not in gathered:
                gathered[later] = self._pool.submit(take_rows, self._data, tickets[later].indices)
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
        if self._is_own or self._num_workers > 1 or self.r8.policy.selects:
            return None
        import tensorflow as tf

        columns = tuple(data for data in self._data if data is not None)
        for _, leaf in leaves("data", columns):
            # Not a file that looks like an array.
            if not (tf.is_tensor(leaf) or (type(leaf) is np.ndarray and leaf.dtype.kind in "fiub")):
                return None
        if self._pipeline is None:
            # In main memory, of the kinds of number that a batch has.
            with tf.device("CPU"):
                tensors = tf.nest.map_structure(
                    lambda spec, data: tf.cast(data, spec.dtype), element_spec, keras.tree.lists_to_tuples(columns)
                )
            self._pipeline = Pipeline(tensors, self.r8)
        return self._pipeline.batches(self.drawn.epoch, prefetch=-1)

    def _forget(self) -> None:
        """Let go of the batches that were gathered ahead."""
        self._gathered.clear()

    def start_epoch(self) -> None:
        """Draw what is left of the epoch. The callback calls it."""
        self._forget()
        self.drawn.draw_epoch()

    def end_epoch(self) -> None:
        """Give back what was not trained on. The callback calls it."""
        self._forget()
        self.drawn.hand_back()

    def close(self) -> None:
        """End the workers and let go of the tensors; the next epoch makes new ones."""
        self._pipeline = None
        self.end_workers()

    def end_workers(self) -> None:
        """End the workers. The callback calls it."""
        self._forget()
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


_ORDER = "The scheduler decides which samples come when: leave it out{}."
_ONE_EACH = "Each sample must come out once, in its place: do it before R8Dataset.from_dataset()."
REFUSED = {
    "shuffle": _ORDER.format(""),
    "repeat": _ORDER.format(", and give fit() the epochs"),
    "take": _ORDER.format(", and build the scheduler with fewer samples"),
    "skip": _ORDER.format(", and build the scheduler with fewer samples"),
    "shard": _ORDER.format("; fit() under a MirroredStrategy splits the batches"),
    "cache": "The order is another one in each epoch: cache the samples before R8Dataset.from_dataset().",
    "unbatch": "Stages that take single samples come before batch().",
    **dict.fromkeys(
        ("filter", "flat_map", "interleave", "window", "concatenate", "rebatch", "group_by_window", "take_while",
         "bucket_by_sequence_length", "ragged_batch", "enumerate", "scan", "zip", "unique", "rejection_resample"),
        _ONE_EACH,
    ),
}  # fmt: skip
"""Stages of ``tf.data`` that would change which sample comes when, and what to do."""


class SamplePipeline(R8Dataset):
    """A ``tf.data`` pipeline in the order of a scheduler; `R8Dataset.from_tensor_slices` makes it.

    Its methods are those of ``tf.data.Dataset`` that leave each sample in its place; each returns a new pipeline. The
    places of the samples travel through all stages beside them, and are compared with the order drawn at the end.

    Args:
        tensors: N rows each: a tensor, or a tuple or dict of them.
        r8: The scheduler of N samples.
    """

    def __init__(self, tensors: Any, r8: R8Scheduler) -> None:
        import tensorflow as tf

        check_rows("tensors", tensors, r8.table.num_samples)
        super().__init__(tensors, None, r8)
        refuse_weights(r8)
        with tf.device("CPU"):
            columns = take_rows(tensors, np.zeros(0, np.int64), lambda column, _: tf.convert_to_tensor(column))
        self._size = min(r8.table.batch_size, r8.table.num_samples)
        self._order = order = EpochOrder(r8)
        # "gathered" in batches, which the user knows nothing of; cut into "samples"; or in the user's "batches".
        self._form = "gathered"
        self._stages: list[Callable[[Any, bool], Any]] = []
        numbers = tf.data.Dataset.range(r8.steps_per_epoch)

        def source(*, is_whole: bool) -> Any:
            # Each function costs some milliseconds an epoch.
            drawn = numbers if is_whole else numbers.take_while(lambda number: tf.gather(order.counts, number) > 0)
            return drawn.map(lambda number: (order.places(number), order.rows(columns, number)))

        self._source = source
        self._built = source(is_whole=True)
        self._batches: dict[tuple[bool, bool], Any] = {}
        self._forget()

    def _forget(self) -> None:
        self._iterator: Any = None
        self._num_read = 0
        self._last: Any = None

    def _then(self, stage: Callable[[Any, bool], Any], form: str | None = None) -> SamplePipeline:
        """This pipeline and another stage, of the data set and whether only the last batch of the epoch is short."""
        new = copy.copy(self)
        new._stages, new._form = [*self._stages, stage], form or self._form
        new._built, new._batches = stage(self._built, True), {}
        return new

    def _cut(self) -> SamplePipeline:
        """The same with elements as the user knows them: single samples before `batch`."""
        return self._then(lambda dataset, _: dataset.unbatch(), "samples") if self._form == "gathered" else self

    @property
    def is_bare(self) -> bool:
        """Whether a batch is one tensor, which a plain ``fit`` hands on without a tuple."""
        return not isinstance(self.element_spec, (tuple, dict))

    @property
    def element_spec(self) -> Any:
        """What an element is, as specs of tensors."""
        return self._cut()._built.element_spec[1]

    def map(self, map_func: Callable[..., Any], *args: Any, **options: Any) -> SamplePipeline:
        """As ``tf.data.Dataset.map``, which takes the other arguments.

        Raises:
            ValueError: ``deterministic`` is False.
        """
        if options.get("deterministic") is False:
            raise ValueError("deterministic must not be False in map(), as samples would change places; leave it out.")

        def beside(places: Any, data: Any) -> Any:
            return places, map_func(*data) if isinstance(data, tuple) else map_func(data)

        return self._cut()._then(lambda dataset, _: dataset.map(beside, *args, **options))

    def with_seeds(self) -> SamplePipeline:
        """Put a seed beside each sample, ``(sample, seed)``: int64[2] for ``tf.image.stateless_random_...``.

        It follows from the seed of the run, the step and the place in the batch, so a resumed run repeats it. After
        `batch` seeds are int64[B, 2].
        """
        import tensorflow as tf

        order, size = self._order, self._size

        def seed(places: Any, data: Any) -> Any:
            draws = tf.gather(order.steps, places // size) * size + places % size
            return places, (data, tf.stack([tf.fill(tf.shape(places), order.seed), draws], axis=-1))

        return self._cut()._then(lambda dataset, _: dataset.map(seed))

    def batch(self, batch_size: int | None = None, drop_remainder: bool = False, **options: Any) -> SamplePipeline:
        """The scheduler's batches; for the other arguments see ``tf.data.Dataset.batch``.

        Args:
            batch_size: The scheduler's, or left out.
            drop_remainder: Must be False; ``last_batch="drop"`` of R8Scheduler leaves the short batch out.

        Raises:
            ValueError: another size, a remainder to drop, or batches already.
        """
        self._check_batch("batch", batch_size, drop_remainder)
        if self._form == "gathered":
            return self._then(lambda dataset, _: dataset, "batches")
        return self._then(self._in_batches(lambda dataset: dataset.batch(self._size, **options)), "batches")

    def padded_batch(
        self, batch_size: int | None = None, padded_shapes: Any = None, padding_values: Any = None, **options: Any
    ) -> SamplePipeline:
        """The scheduler's batches, of samples of different shapes; see ``tf.data.Dataset.padded_batch`` and `batch`.

        Raises:
            ValueError: as `batch`.
        """
        import tensorflow as tf

        self._check_batch("padded_batch", batch_size, options.pop("drop_remainder", False))
        shapes = padded_shapes
        if shapes is None:
            shapes = tf.nest.map_structure(lambda spec: spec.shape, self.element_spec)
        values = None if padding_values is None else (None, padding_values)

        def batches(dataset: Any) -> Any:
            return dataset.padded_batch(self._size, ([], shapes), values, **options)

        return self._cut()._then(self._in_batches(batches), "batches")

    def _check_batch(self, name: str, batch_size: int | None, drop_remainder: bool) -> None:
        if self._form == "batches":
            raise ValueError(f"the pipeline must be batched once, got {name}({batch_size!r}) of batches.")
        own = self.r8.table.batch_size
        if batch_size is not None and batch_size != own:
            raise ValueError(
                f"batch_size must be the scheduler's {own} in {name}(), or be left out, got {batch_size!r}."
            )
        if drop_remainder:
            raise ValueError(f"drop_remainder must be False in {name}(), got True; give R8Scheduler last_batch='drop'.")

    def _in_batches(self, batches: Callable[[Any], Any]) -> Callable[[Any, bool], Any]:
        order, size = self._order, self._size

        def stage(dataset: Any, is_regular: bool) -> Any:
            if is_regular:
                return batches(dataset)
            # A function for each sample, but short batches in mid-epoch come only with batches that are drawn again.
            return dataset.group_by_window(
                lambda place, _: place // size, lambda _, window: batches(window),
                window_size_func=lambda number: order.counts[number],
            )  # fmt: skip

        return stage

    def prefetch(self, buffer_size: int, **options: Any) -> SamplePipeline:
        """As ``tf.data.Dataset.prefetch``."""
        return self._then(lambda dataset, _: dataset.prefetch(buffer_size, **options))

    def with_options(self, options: Any, **others: Any) -> SamplePipeline:
        """As ``tf.data.Dataset.with_options``.

        Raises:
            ValueError: they give up the order.
        """
        if options.deterministic is False:
            raise ValueError("options must not have deterministic=False, as samples would change places.")
        return self._then(lambda dataset, _: dataset.with_options(options, **others))

    def apply(self, transformation_func: Callable[[Any], Any]) -> Any:
        """As ``tf.data.Dataset.apply``: what the function makes of this pipeline."""
        return transformation_func(self)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name, REFUSED)

    def on_epoch_begin(self) -> None:
        """Check the ``fit``; Keras calls it before it asks for batches.

        Raises:
            RuntimeError: the pipeline has no `batch`, or ``fit`` no `R8Callback` of it.
        """
        self._check_is_batched()
        super().on_epoch_begin()

    def _check_is_batched(self) -> None:
        if self._form != "batches":
            raise RuntimeError(
                "the pipeline must be batched before fit(), got single samples; call "
                f"batch({self.r8.table.batch_size})."
            )

    def _batch(self, index: int, ticket: Ticket) -> Any:
        if self._iterator is None or index < self._num_read - 1:
            self._forget()
            self._iterator = self.quick_batches(None).as_numpy_iterator()
        while self._num_read <= index:
            self._last = next(self._iterator)
            self._num_read += 1
        return self._last if isinstance(self._last, (tuple, dict)) else (self._last,)

    def _first(self) -> Any:
        import tensorflow as tf

        def zeros(spec: Any) -> Any:
            return np.zeros([length or 1 for length in spec.shape], spec.dtype.as_numpy_dtype)

        found = tf.nest.map_structure(zeros, self.element_spec)
        return found if isinstance(found, (tuple, dict)) else (found,)

    def quick_batches(self, element_spec: Any) -> Any:
        """The ``tf.data.Dataset`` of the epoch."""
        self._check_is_batched()
        tickets = self.drawn.epoch
        self._order.set(tickets)
        kind = (
            len(tickets) == self.r8.steps_per_epoch,
            all(len(ticket.indices) == self._size for ticket in tickets[:-1]),
        )
        if kind not in self._batches:
            self._batches[kind] = self._compared(*kind)
        return self._batches[kind]

    def _compared(self, is_whole: bool, is_regular: bool) -> Any:
        """The data set of batches as ``fit`` takes them, whose places are compared with the order."""
        import tensorflow as tf

        order, dataset = self._order, self._built
        if not (is_whole and is_regular):
            dataset = self._source(is_whole=is_whole)
            for stage in self._stages:
                dataset = stage(dataset, is_regular)

        def compare(number: Any, element: Any) -> Any:
            places, data = element
            are_own = tf.reduce_all(tf.equal(places, order.places(number)))
            # `tf.debugging.Assert` would add two functions.
            with tf.control_dependencies([tf.raw_ops.Assert(condition=are_own, data=[MOVED])]):
                return tf.nest.map_structure(tf.identity, data)

        return dataset.enumerate().map(compare)


MOVED = "The samples of a batch must come out in the places they were drawn in"
UNBATCHED = "leave batch() out (batch_size=None), and call it on what from_dataset() returns"


def samples_of(dataset: Any, num_samples: int) -> Any:
    """All samples of a ``tf.data.Dataset`` as tensors, to be gathered by index.

    Args:
        dataset: Of single samples, finite, each time in the same order.
        num_samples: How many there must be.

    Raises:
        TypeError: it is something else.
        ValueError: it shuffles, repeats, or is batched, or its samples have different shapes.
    """
    import tensorflow as tf

    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(f"dataset must be a tf.data.Dataset of samples, got {dataset!r}.")
    if has_stage(dataset, "Shuffle"):
        raise ValueError(
            "dataset must come in the same order each time, got one that shuffles: leave shuffle() out (shuffle=False "
            "of image_dataset_from_directory and its like); the scheduler draws the order."
        )
    count = dataset.cardinality()
    if count == tf.data.INFINITE_CARDINALITY:
        raise ValueError("dataset must end, got one that repeats; leave repeat() out, and give fit() the epochs.")
    try:
        tensors = next(iter(dataset.batch(num_samples + 1)))
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"dataset must have samples of one shape, got {dataset.element_spec}; if they are batches, {UNBATCHED}; "
            "if not, give their paths or numbers to from_tensor_slices(), and load them in map()."
        ) from error
    found = len(tf.nest.flatten(tensors)[0])
    if found != num_samples:
        raise ValueError(
            f"dataset must have the scheduler's {num_samples} samples, got {found} elements of {dataset.element_spec}; "
            f"if they are batches, {UNBATCHED}."
        )
    return tensors


class Pipeline:
    """Batches of rows, in TensorFlow's own threads.

    Args:
        columns: N rows each: a tensor, or a tuple or dict of them; None for the indices, int64[B], alone.
        r8: The scheduler, which sets the number and the size of an epoch's batches.

    Attributes:
        dataset: ``tf.data.Dataset`` of the batches of a whole epoch.
    """

    def __init__(self, columns: Any, r8: R8Scheduler) -> None:
        import tensorflow as tf

        self._order = EpochOrder(r8)
        options = tf.data.Options()
        # Optimizing two stages anew each epoch costs more than it saves.
        options.experimental_optimization.apply_default_optimizations = False
        numbers = tf.data.Dataset.range(r8.steps_per_epoch)
        self.dataset = numbers.map(lambda number: self._order.rows(columns, number)).with_options(options)

    def batches(self, tickets: Sequence[Ticket], *, prefetch: int) -> Any:
        """The ``tf.data.Dataset`` of these batches, in order.

        Args:
            tickets: At most those of a whole epoch.
            prefetch: Batches to gather ahead, >= 0; -1 lets TensorFlow choose.
        """
        self._order.set(tickets)
        return self.dataset.take(len(tickets)).prefetch(prefetch)


class EpochOrder:
    """The samples of an epoch, batch by batch, in variables, so that a pipeline that reads them is built once.

    Args:
        r8: The scheduler, which sets the number and the size of an epoch's batches.

    Attributes:
        counts: int64[K], samples in each batch; 0 after the last one.
        steps: int64[K], the step of each batch.
        seed: int64, that of the run.
    """

    def __init__(self, r8: R8Scheduler) -> None:
        import tensorflow as tf

        most_batches, batch_size = r8.steps_per_epoch, min(r8.table.batch_size, r8.table.num_samples)
        with tf.device("CPU"):
            self._indices = tf.Variable(tf.zeros((most_batches, batch_size), tf.int64), trainable=False)
            self.counts = tf.Variable(tf.zeros((most_batches,), tf.int64), trainable=False)
            self.steps = tf.Variable(tf.zeros((most_batches,), tf.int64), trainable=False)
            self.seed = tf.Variable(r8.host.source.seed % 2**63, trainable=False, dtype=tf.int64)
        self._r8 = r8

    def set(self, tickets: Sequence[Ticket]) -> None:
        """Note the batches, at most those of a whole epoch."""
        indices, counts = np.zeros(self._indices.shape, np.int64), np.zeros(self.counts.shape, np.int64)
        steps = np.zeros_like(counts)
        for number, ticket in enumerate(tickets):
            counts[number], steps[number] = len(ticket.indices), ticket.step
            indices[number, : counts[number]] = ticket.indices
        self._indices.assign(indices)
        self.counts.assign(counts)
        self.steps.assign(steps)
        # A resumed run has that of the saved one.
        self.seed.assign(self._r8.host.source.seed % 2**63)

    def places(self, number: Any) -> Any:
        """int64[counts[number]], the places of a batch's samples in the order of the epoch."""
        import tensorflow as tf

        first = number * self._indices.shape[1]
        return tf.range(first, first + tf.gather(self.counts, number))

    def rows(self, columns: Any, number: Any) -> Any:
        """The rows of a batch, by its number; the indices where ``columns`` is None."""
        import tensorflow as tf

        # Of few operations: an epoch begins with the optimization of each.
        indices = tf.slice(tf.gather(self._indices, number), [0], [tf.gather(self.counts, number)])
        return indices if columns is None else tf.nest.map_structure(lambda each: tf.gather(each, indices), columns)


def refuse_weights(r8: R8Scheduler) -> None:
    """Raise ValueError if a policy weights samples, which batches alone cannot tell."""
    if r8.policy.selects:
        raise ValueError(
            f"policy must not weight samples here, got {r8.policy!r}; use R8Dataset(x, y, r8), or draw() and report()."
        )


def has_stage(dataset: Any, name: str) -> bool:
    """Whether a ``tf.data.Dataset`` has a stage of a kind, such as "Shuffle" or "Cache"."""
    inputs: tuple[Any, ...] = getattr(dataset, "_inputs", tuple)()
    return name in type(dataset).__name__ or any(has_stage(each, name) for each in inputs)

"""Your own training loops under ``tf.function``: R8Scheduler's batches as tensors, its rate as a variable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .._validation import how_to_install, import_needed, whole_number
from ..bridge.prefetch import Prefetch
from ..bridge.rows import check_rows
from ..state.callbacks import Callbacks
from .dataset import Pipeline, refuse_weights
from .state import ModelState

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..sources.ticket import Outcome


def batch_dataset(
    r8: R8Scheduler, data: Any = None, *, prefetch: int = 2, model: Any = None, optimizer: Any = None
) -> Batches:
    """The scheduler's batches as tensors, gathered ahead of the training by ``tf.data``.

    Args:
        r8: The scheduler of N samples; it must not search for a learning rate, nor its policy weight samples.
        data: N rows each: an array or tensor, or a tuple or dict of them; None for the indices, int64[B], alone.
        prefetch: Batches to gather ahead, >= 0; -1 lets TensorFlow choose.
        model: The Keras model that the loop trains, built, for backups, checkpoints and restores. Without it the
            scheduler needs callbacks, see `model_callbacks`, or nothing is restored.
        optimizer: Its optimizer; by default the one it was compiled with.

    Returns:
        The batches, to iterate over once an epoch.

    Raises:
        ImportError: TensorFlow is not installed.
        TypeError: ``r8`` is not a scheduler, or a column has no length.
        ValueError: a column of another length than N, ``prefetch`` below -1, a scheduler that cannot be used, or a
            model without optimizer.
        RuntimeError: the model is not built.
    """
    if model is not None:
        state = ModelState(model, optimizer)
        r8.host.adopt(Callbacks(state.save, state.load, state.read))
    return Batches(r8, data, prefetch=prefetch)


class Batches:
    """One epoch each time it is iterated over; report the loss of every batch before asking for the next.

    A batch that is not reported comes once more at the end of the epoch. After a ``break`` the next iteration continues
    in the same epoch. Arguments and errors are those of `batch_dataset`.

    Attributes:
        lr: float32 ``tf.Variable``, the rate to use now; an optimizer reads it through ``lambda: batches.lr``.
        element_spec: What a batch is, its length left open: the ``input_signature`` of a ``tf.function`` that is
            not traced again for a short last batch.
    """

    def __init__(self, r8: R8Scheduler, data: Any = None, *, prefetch: int = 2) -> None:
        tf = import_needed("tensorflow", "batch_dataset() needs TensorFlow", how_to_install("tensorflow"))
        self._num_gathered = whole_number("prefetch", prefetch, least=-1)
        self._prefetch = Prefetch.of_epochs(r8)
        refuse_weights(r8)
        data = tuple(data) if isinstance(data, list) else data
        check_rows("data", data, r8.table.num_samples)
        self.lr = tf.Variable(r8.lr, dtype=tf.float32, trainable=False, name="r8_lr")
        columns = None if data is None else tf.nest.map_structure(tf.convert_to_tensor, data)
        self._pipeline = Pipeline(columns, r8)
        spec = self._pipeline.dataset.element_spec
        self.element_spec = tuple(spec) if isinstance(spec, (tuple, list)) else (spec,)

    def __len__(self) -> int:
        """Batches of the epoch, or what is left of it."""
        return self._prefetch.epoch_length

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches to the end of the epoch, or of the budget.

        Yields:
            ``data`` with the rows of the batch, as tensors.

        Raises:
            RuntimeError: the budget is spent.
        """
        prefetch, r8 = self._prefetch, self._prefetch.r8
        epoch = r8.current_epoch
        try:
            while r8.current_epoch == epoch and not r8.is_over:
                # Batches given up on the way wait to be drawn again.
                for batch in self._pipeline.batches(prefetch.draw_epoch(), prefetch=self._num_gathered):
                    self.lr.assign(prefetch.begin().lr, read_value=False)
                    yield batch
                    prefetch.give_up()
                    if r8.requests.is_pending:
                        r8.host.between_steps()
                    if r8.is_over:
                        break
        finally:
            prefetch.hand_back()
            r8.requests.leave()
        if r8.is_over or r8.requests.is_pending:
            r8.host.between_steps()
        # Nobody knows whether another epoch follows; if so, they are taken again.
        r8.requests.leave()

    def report(self, losses: Any, predictions: Any = None) -> Outcome:
        """Report the losses of the batch in hand; see `R8Scheduler.report`.

        Args:
            losses: float[B], the loss of each sample, or one number, their mean.
            predictions: With the losses of samples, what `learnit_r8.keras.predictions_of` returned, to judge labels.

        Raises:
            RuntimeError: there is no batch in hand, or it was reported.
            ValueError: losses or predictions do not fit the batch. Nothing was changed.
        """
        return self._prefetch.report(losses, predictions=predictions)

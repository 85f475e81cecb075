"""R8Callback: reports the losses of ``model.fit``, sets its learning rate, and sets up backups and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from ..engine.feed.batch_size import MOST_KEPT_BYTES
from ..state.callbacks import Repeat
from ..state.tree import size_of
from ..triggers import Condition
from .dataset import R8Dataset
from .devices import TOO_FEW, num_replicas, scope_of, split, strategy_of
from .fit_callback import FitCallback
from .losses import LossRecorder
from .own_batches import OwnBatchesCallback
from .train_function import callbacks_of_fit, check_alone, local_of_fit, scope_of_fit, yield_steps

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..sources.ticket import Ticket

MOST_WITNESSES = 32
"""Batches that are kept before those are dropped with which no weights can be tested any more."""

FINISHED = "the run was over, at step {}, when it was resumed: fit() trains nothing."

OTHER_DATA = (
    "x must be the R8Dataset of the R8Callback in fit(), got {}, which knows nothing of the scheduler's order; for a "
    "PyDataset of your own, make it a subclass of R8Dataset that changes the batch in __getitem__; for tf.data use "
    "R8Dataset.from_tensor_slices(), or R8Callback(R8Scheduler()) without samples."
)

REFUSED = {
    "LearningRateScheduler": "the scheduler sets the rate at each step: give it the curve as scheduler_mode, or 'keep'",
    "ReduceLROnPlateau": "the scheduler sets the rate at each step: choose its initial_lr, or scheduler_mode='keep'",
    "BackupAndRestore": "it would restore Keras' epochs, but not the scheduler: use checkpoint_dir and "
    "resume='auto' of R8Scheduler",
}
"""Callbacks of Keras that would do nothing or harm, and what to do instead."""


RATE_CALLBACKS = "LearningRateScheduler", "ReduceLROnPlateau"


class R8Callback(FitCallback):
    """Goes with an `R8Dataset` into ``model.fit(dataset, shuffle=False, callbacks=[R8Callback(dataset)])``.

    After each step it reports the loss of every sample in that step, before weights of samples and classes, and with a
    cross entropy of single labels also what the model predicts, so that `SampleTable.suspects` judges the labels. To
    undo a refused loss it restores model and optimizer, and the running means that Keras shows (by up to 16 batches).
    Before each step it sets the learning rate on the optimizer; with ``scheduler_mode="keep"`` the rate or schedule
    stays yours, and only recovery lowers it. At the end of an epoch it passes what Keras logged on to
    `R8Scheduler.log`, and when the budget is spent it stops the training. Callbacks that you gave the scheduler add to
    what it keeps.

    With an `R8Scheduler` without ``num_samples`` in place of the data set, ``fit`` trains on whatever it is given: see
    `OwnBatchesCallback`.

    Args:
        dataset: What ``fit`` trains on; or a scheduler that draws no batches.
        model: The model, built and compiled, to attach before ``fit``: then `R8Scheduler.load_checkpoint` restores it.
        backup_every: When to copy the model to RAM: steps, a time such as "5min", or a trigger; by default as
            `R8Scheduler` takes them.

    Raises:
        TypeError: ``dataset`` is not an R8Dataset.
        ValueError: the model is not compiled, its learning rate is a schedule where the scheduler sets it, it takes
            several steps at a time, or several processes train it; for ``backup_every`` an interval that cannot be
            read.
        RuntimeError: the model is not built.

    Attributes:
        dataset: As given.
    """

    def __new__(cls, dataset: Any = None, *args: Any, **kwargs: Any) -> R8Callback:
        """Make a callback of the kind that the data needs."""
        is_own = cls is R8Callback and getattr(dataset, "feed", None) is not None
        callback: Any = OwnBatchesCallback(dataset, *args, **kwargs) if is_own else super().__new__(cls)
        return callback  # type: ignore[no-any-return]

    def __init__(
        self, dataset: R8Dataset | R8Scheduler, model: Any = None, *, backup_every: int | str | Condition | None = None
    ) -> None:
        if not isinstance(dataset, R8Dataset):
            raise TypeError(
                f"dataset must be an R8Dataset, or an R8Scheduler without num_samples to keep your own data, got "
                f"{dataset!r}."
            )
        self.dataset = dataset
        self._prefetch = dataset.drawn
        self._ticket: Ticket | None = None
        self._witnesses: dict[bytes, Any] = {}
        super().__init__(dataset.drawn.r8, model, backup_every)

    def _optimizers_of(self, model: Any) -> list[Any]:
        optimizer = getattr(model, "optimizer", None)
        if optimizer is None:
            raise ValueError(f"model must be compiled with an optimizer, got {model!r} without one; call compile().")
        if model.steps_per_execution != 1:
            raise ValueError(
                f"steps_per_execution must be 1 with an R8Dataset, got {model.steps_per_execution!r}: losses of "
                "samples come back after each step. To be healed alone, give R8Callback an R8Scheduler without "
                "num_samples."
            )
        return [optimizer]

    def _recorder_of(self, model: Any) -> LossRecorder:
        return LossRecorder.of(model, self._r8.table.batch_size)

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Check what can only be checked now, and attach the model."""
        check_alone(self)
        check_fit(self.dataset)
        self.dataset.end_epoch()
        model: Any = self.model
        loss = model._compile_loss
        if not (model.built and model.optimizer.built and (loss is None or loss.built)):
            with scope_of(self.model):
                self.model._symbolic_build(data_batch=self.dataset[0])
        self._begin_fit()
        self._r8.requests.stay_within(scope_of_fit(self.model))

    def _repeat(self, recorder: Any) -> Repeat:
        def loss(indices: Any) -> float:
            recorder.function.repeat(self._witnesses[np.asarray(indices).tobytes()])
            return float(np.mean(recorder.losses(len(indices))))

        return Repeat(lambda indices: np.asarray(indices).tobytes() in self._witnesses, loss)

    def _keep_witness(self, batch: Any) -> None:
        """Keep the batch in hand where weights may be tested with it."""
        r8, ticket, witnesses = self._r8, self._ticket, self._witnesses
        assert ticket is not None
        if batch is None or not r8.controller.wants_witness or size_of(batch) > MOST_KEPT_BYTES:
            return
        newest = ticket.indices.tobytes()
        witnesses[newest] = batch
        if len(witnesses) > MOST_WITNESSES:
            known = {each.tobytes() for backup in r8.controller.witnesses.known() for each in backup.witness}
            self._witnesses = {name: kept for name, kept in witnesses.items() if name in {newest, *known}}

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Draw the epoch."""
        # SwapEMAWeights may come later.
        self._take_weights_back(epoch)
        iterator, r8 = local_of_fit("epoch_iterator"), self._r8
        if self.dataset.is_finished:
            # The run was over when it was resumed.
            if iterator is not None:
                iterator._enumerate_iterator = lambda: yield_steps(iter(()), self.model)
            self.model.stop_training = True
            r8.host.say_once("finished", FINISHED.format(r8.global_step), is_warning=False)
            return
        self.dataset.start_epoch()
        assert self._recorder is not None
        self._recorder.begin()
        if iterator is None:
            return
        if iterator._num_batches is not None:
            # Keras counts the batches once a fit; an epoch that goes on after an interruption has fewer.
            iterator._num_batches = len(self.dataset)
        self._hasten(iterator)

    def _hasten(self, iterator: Any) -> None:
        """Let TensorFlow gather the batches, where it can, in place of the Python generator that Keras made."""
        replaced, replicas = getattr(iterator, "_distributed_dataset", None), num_replicas(self.model)
        if replaced is None:
            if self.dataset.is_bare:
                # As below, where a batch is what Python makes it.
                batches = type(iterator)._get_iterator
                iterator._get_iterator = lambda: (columns[0] for columns in batches(iterator))
            return
        if replicas > 1:
            replaced = iterator.data_adapter.get_tf_dataset()
            smallest = min(len(ticket.indices) for ticket in self._prefetch.epoch)
            if smallest < replicas:
                raise ValueError(TOO_FEW.format(replicas, smallest))
        if getattr(iterator.data_adapter, "class_weight", None) is None:
            quick = self.dataset.quick_batches(replaced.element_spec)
            replaced = replaced if quick is None else quick
        if self.dataset.is_bare and isinstance(replaced.element_spec, tuple):
            # A step of the user's own sees what a plain ``fit(x)`` would give it.
            replaced = replaced.map(lambda *columns: columns[0])
        iterator._distributed_dataset = split(replaced, strategy_of(self.model)) if replicas > 1 else replaced

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Set the learning rate."""
        prefetch, state, r8 = self._prefetch, self._state, self._r8
        assert state is not None
        # At the beginning of an epoch the loader has still drawn in the run before, and draws again.
        state.resume_random(is_set=r8.pace.place % r8.steps_per_epoch > 0)
        self._ticket = prefetch.begin()
        self._set_rate(self._ticket.lr)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Report the losses of the batch."""
        recorder: Any = self._recorder
        r8, ticket = self._r8, self._ticket
        assert ticket is not None
        losses = self._loss_to_report(recorder.losses(len(ticket.indices)))
        if not recorder.is_exact:
            r8.host.say_once(
                "keras loss",
                "the model's loss is one number for the whole batch: losses of samples are estimated. Compile it with "
                "a loss that gives one for each sample (Keras takes the mean itself).",
            )
        if r8.host.rates.are_own:
            r8.host.rates.tell(self._rates.value)
        predictions = recorder.predictions()
        self._keep_witness(recorder.function.batch)
        with self._reporting():
            self._prefetch.report(losses, predictions=predictions)
            if r8.requests.is_pending:
                # Now, as Keras has begun the next batch when it asks again.
                r8.host.between_steps()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Pass on what Keras logged; write the checkpoint that is due."""
        if not self.dataset.is_finished:
            self.dataset.end_epoch()
            with self._own_weights(epoch):
                super().on_epoch_end(epoch, logs)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Give back what was not trained on, and end the workers."""
        self._r8.requests.leave()
        self.dataset.end_epoch()
        self.dataset.end_workers()


def check_fit(dataset: R8Dataset) -> None:
    """Check the arguments of the ``fit`` that is running.

    Args:
        dataset: What it is to train on.

    Raises:
        ValueError: an argument that does not work with a scheduler; the message says what does.
    """
    # Other data come first: what else is wrong is a consequence.
    x = local_of_fit("x")
    # Where a callback is asked without a fit, there is nothing to check.
    if not isinstance(x, R8Dataset) and local_of_fit("epoch_iterator") is not None:
        raise ValueError(OTHER_DATA.format(type(x).__name__))
    if local_of_fit("shuffle"):
        raise ValueError("shuffle must be False in fit(), as the scheduler decides the order; got True.")
    steps, most = local_of_fit("steps_per_epoch"), dataset.r8.steps_per_epoch
    if steps is not None and steps != most:
        raise ValueError(f"steps_per_epoch must be left out in fit(), or be the scheduler's {most}, got {steps!r}.")
    keeps_rates = dataset.r8.host.rates.are_own
    for callback in callbacks_of_fit() or []:
        for name, reason in REFUSED.items():
            if not (keeps_rates and name in RATE_CALLBACKS) and isinstance(callback, getattr(keras.callbacks, name)):
                raise ValueError(f"callbacks must not have a {name}, got {callback!r}: {reason}.")

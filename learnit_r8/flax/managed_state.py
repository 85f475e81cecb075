"""ManagedState: the state of a training that a scheduler keeps, in `train_loop` and in loops of the user's own."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ..bridge.driven_state import DrivenState, Place
from ..bridge.host import check_scheduler
from ..table.labels.predictions import Predictions, check_shapes
from .examiner import Examiner
from .processes import SharedProcesses, whole
from .state import is_of_devices, lr_of, with_lr

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler
    from ..sources.ticket import Outcome
    from ..triggers import Condition

NOT_LOWERED = (
    "the learning rate is compiled into the step: recovery cannot lower it there, and only puts the state back. To let "
    "it, make the optimizer with optax.inject_hyperparams."
)

MANAGED_AGAIN = (
    "ManagedState() was called again for a scheduler, which keeps the newest state alone: give several networks to one "
    "ManagedState, as a tuple."
)
_KEPT: weakref.WeakSet[R8Scheduler] = weakref.WeakSet()
"""The schedulers that keep the state of a loop of the user's own."""


class ManagedState:
    """The state of a hand-written loop, in the backups and checkpoints of a scheduler.

    Give each step what `for_step` returns, and what the step returned to `report`. A good loss makes that the state; a
    bad one leaves the state as it was, or an older one takes its place. A step may donate its state, and the state may
    be spread over several devices, with ``jit`` and shardings or with ``pmap``.

    Args:
        scheduler: The scheduler; where it has resumed, the state becomes that of its checkpoint.
        state: A `TrainState`, any pytree, or a tuple of NNX objects, which change in place.
        backup_every: When to copy the state to main memory: steps, "30s", or a trigger. By default every 30 seconds and
            four times an epoch, or forty times a run without epochs, and closer in a young run.

    Attributes:
        examiner: Looks for the cause of a refusal in `train_loop`; else None.

    Raises:
        TypeError: the scheduler is something else.
        ValueError: an interval cannot be read; or on several processes, as `docs/flax.md` says.

    >>> import jax, optax
    >>> from learnit_r8 import R8Scheduler
    >>> from learnit_r8.flax import TrainState
    >>> state = TrainState.create(apply_fn=None, params={"w": jax.numpy.ones(2)}, tx=optax.sgd(0.1))
    >>> r8 = R8Scheduler(scheduler_mode="keep", num_steps=3)
    >>> managed = ManagedState(r8, state)
    >>> for batch in r8.batches([np.ones(2)] * 3):
    ...     before = managed.for_step()
    ...     loss, grads = jax.value_and_grad(lambda params: (params["w"] @ batch) ** 2)(before.params)
    ...     outcome = managed.report(before.apply_gradients(grads=grads), loss)
    >>> int(managed.state.step)
    3
    """

    def __init__(
        self,
        scheduler: R8Scheduler,
        state: Any,
        *,
        backup_every: int | str | Condition | None = None,
        _place: Place | None = None,
        _step: Callable[..., Any] | None = None,
    ) -> None:
        check_scheduler("scheduler", scheduler)
        if _place is None and scheduler in _KEPT:
            scheduler.host.say_once("managed again", MANAGED_AGAIN)
        _KEPT.add(scheduler)
        self._r8 = scheduler
        self._place: Place = SimpleNamespace(state=state) if _place is None else _place
        self._processes = SharedProcesses.of(scheduler)
        self._driven = DrivenState(self._place, gather=None if self._processes is None else whole)
        self._own_rate: float | None = None
        self.examiner: Examiner | None = None
        if self._driven.has_model:
            callbacks = self._driven.callbacks()
            if _step is not None and self._processes is None:
                self.examiner = examiner = Examiner(self._driven, _step)
                callbacks = replace(callbacks, examine=examiner.examine, in_hand=examiner.collect)
            scheduler.host.adopt(callbacks, backup_every=backup_every)

    @classmethod
    def at(
        cls,
        place: Place,
        scheduler: R8Scheduler,
        backup_every: int | str | Condition | None,
        *,
        step: Callable[..., Any],
    ) -> ManagedState:
        """One whose state is kept elsewhere, as `learnit_r8.loops.loop` does; ``step`` runs a refused batch again."""
        return cls(scheduler, place.state, backup_every=backup_every, _place=place, _step=step)

    @property
    def state(self) -> Any:
        """The state as it is now, with your own learning rate where that is kept."""
        return self._place.state

    def for_step(self, lr: float | None = None) -> Any:
        """The state for the next step, with the learning rate that it is to train with.

        Args:
            lr: The rate; by default the scheduler's. Not used where the rates are your own.

        Raises:
            ValueError: the scheduler sets the rate, and no optimizer was made with ``optax.inject_hyperparams``.
        """
        r8, state = self._r8, self._place.state
        self._own_rate = None
        self._driven.keep()
        if not r8.host.rates.are_own:
            return with_lr(state, r8.lr if lr is None else lr)
        factor = r8.lr_factor
        if factor == 1:
            return state
        own = lr_of(state)
        if own is None:
            r8.host.say_once("rate in the step", NOT_LOWERED)
            return state
        self._own_rate = own
        return with_lr(state, own * factor)

    def report(self, state: Any, loss: Any) -> Outcome:
        """Report the loss of the batch in hand; see `R8Scheduler.update_with_loss`.

        Args:
            state: What the step returned.
            loss: A number, or float[B], the losses of the samples of the batch; of ``pmap``, float[D, B / D].

        Returns:
            False if the step does not count: `state` is then as before the step, or an older one.

        Raises:
            TrainingDiverged: losses stay refused after everything was tried.
        """
        return self.judge(state, loss, self._r8.update_with_loss)

    def judge(
        self, after: Any, loss: Any, report: Callable[[Any], Outcome], *, num_samples: int | None = None
    ) -> Outcome:
        """As `report`, with the function that reports the loss.

        Args:
            after: The state after the step.
            loss: As for `report`.
            report: ``(loss)``.
            num_samples: B, where it is known.
        """
        if self._own_rate is not None:
            after = with_lr(after, self._own_rate)
        loss = loss_of_batch(whole(loss), num_samples)
        if self._processes is not None:
            self._processes.meet(loss)
        return self._driven.judge(after, lambda: report(loss))


def loss_of_batch(loss: Any, num_samples: int | None = None) -> Any:
    """A loss as `R8Scheduler.report` takes it: of ``pmap``, the devices' parts one after the other.

    Args:
        loss: A number or an array.
        num_samples: B, where it is known.
    """
    shape: tuple[int, ...] = getattr(loss, "shape", ())
    if num_samples is None:
        return loss.reshape(-1) if len(shape) == 2 and is_of_devices(loss) else loss
    if len(shape) > 1 and shape[0] != num_samples and math.prod(shape) == num_samples:
        return np.asarray(loss).reshape(-1)
    # One mean for each device.
    return loss.mean() if len(shape) == 1 and shape[0] != num_samples and is_of_devices(loss) else loss


def predictions_of_batch(predictions: Any) -> Any:
    """Predictions as `R8Scheduler.report` takes them: of ``pmap``, the devices' parts one after the other."""
    classes = getattr(predictions, "num_classes", None)
    if classes is None or not getattr(classes, "shape", ()):
        return predictions
    rows = (np.asarray(row).reshape(-1) for row in predictions[:3])
    return type(predictions)(*rows, int(np.asarray(classes)[0]))


def loss_in(metrics: Mapping[str, Any]) -> Any:
    """What a step's metrics say of the loss: that of the samples, or their mean."""
    loss = metrics.get("losses", metrics.get("loss"))
    if loss is None:
        raise ValueError(f'metrics must have "losses" or "loss" for the scheduler, got {sorted(metrics)}.')
    return loss


def predictions_of(logits: Any, targets: Any) -> Predictions:
    """The predictions of a batch, to report with its losses.

    Args:
        logits: float[B, C], or log probabilities; or float[B] or float[B, 1], the logit of class 1 of two.
        targets: int[B], classes in [0, C); checked when they are reported.

    Returns:
        Arrays on the device. Return `pack` of them from a jitted function: ``num_classes`` is a static int.

    Raises:
        ValueError: the shapes or dtypes are not these; see `learnit_r8.predictions_of`.
    """
    targets = jnp.asarray(targets)
    check_shapes(jnp.shape(logits), targets.shape, is_whole=bool(jnp.issubdtype(targets.dtype, jnp.integer)))
    scores = jax.lax.stop_gradient(jnp.asarray(logits)).astype(jnp.float32)
    if scores.ndim == 1 or scores.shape[1] == 1:
        scores = jnp.stack([jnp.zeros(scores.shape[0]), scores.reshape(-1)], 1)
    classes = scores.shape[1]
    given = targets.astype(jnp.int32)
    own = jnp.take_along_axis(scores, given[:, None], 1)[:, 0]
    rival = jnp.where(jax.nn.one_hot(given, classes, dtype=bool), -jnp.inf, scores).max(1)
    return Predictions(rival - own, scores.argmax(1), given, classes)

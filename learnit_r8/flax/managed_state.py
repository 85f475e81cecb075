"""ManagedState: the state of a training that a scheduler keeps, and the search for where an incident of it began."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.training import train_state

from ..bridge.driven_state import DrivenState, Place, take_apart
from ..bridge.host import check_scheduler
from ..bridge.place_search import PlaceSearch, Shown, Subject, bad_arrays, first_bad
from ..recovery.cause import Finding, Refusal
from ..state.tree import leaves, map_leaves, nnx_of, open_node
from ..table.labels.predictions import Predictions, check_shapes
from .processes import SharedProcesses, whole

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
        # Those of `train_loop`: where `learnit_r8.loops.loop` keeps the state, and what runs a refused batch again.
        check_scheduler("scheduler", scheduler)
        if _place is None and scheduler in _KEPT:
            scheduler.host.say_once("managed again", MANAGED_AGAIN)
        _KEPT.add(scheduler)
        self._r8 = scheduler
        self._place: Place = SimpleNamespace(state=state) if _place is None else _place
        self._processes = SharedProcesses(scheduler) if jax.process_count() > 1 else None
        self._driven = DrivenState(self._place, gather=None if self._processes is None else whole)
        self._own_rate: float | None = None
        self.examiner: Examiner | None = None
        if self._driven.has_model:
            callbacks = self._driven.callbacks()
            if _step is not None and self._processes is None:
                self.examiner = examiner = Examiner(self._driven, _step)
                callbacks = replace(callbacks, examine=examiner.examine, in_hand=examiner.collect)
            scheduler.host.adopt(callbacks, backup_every=backup_every)

    @property
    def state(self) -> Any:
        """The state as it is now, with your own learning rate where that is kept.

        Set it where the loop changes the state between two steps, such as statistics that it averages over devices.
        """
        return self._place.state

    @state.setter
    def state(self, state: Any) -> None:
        self._place.state = state

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
            r8.controller.limit.is_ignored = True
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
        return self._driven.judge(self._r8, after, loss, report)


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


NO_LAYERS = "no module of linen or nnx was called in the step, so that none is named"
DONATED = "the step was given the state to keep, so that only the states after it and those of backups can be run"


class Examiner(Subject):
    """Looks for the cause of a refusal with the user's own step; the state of the loop stays as it is.

    Args:
        driven: The state.
        step: ``(state, batch, key)``, as `train_loop` takes it.
    """

    def __init__(self, driven: DrivenState, step: Callable[..., Any]) -> None:
        self._driven, self._step = driven, step
        self._hand: tuple[Any, Any, Sequence[int]] | None = None
        self._last: tuple[Any, Any, Sequence[int]] | None = None
        self._parts: tuple[int, ...] = ()
        self._watched: Any = None
        self._seen: dict[int, tuple[str, str, tuple[int, ...]]] = {}
        self._num_modules = 0

    def take(self, batch: Any, key: Any, samples: Sequence[int]) -> None:
        """Hold a batch, its key and its samples by reference, as its step begins; and those of the step before."""
        self._last, self._hand = self._hand, (batch, key, samples)

    def examine(self, refusal: Refusal) -> Finding:
        """Find where an incident began."""
        self.is_exact = not self._driven.is_given_away
        present = self._driven.read()
        assert self._hand is not None
        self._present, self._parts = present, _parts_of_devices(present["form"].value(present["state"]), self._hand[0])
        self.batch = self._join(self._hand[0])
        self.before = None if self._last is None else (self._join(self._last[0]), self._last[2])
        try:
            found = PlaceSearch(refusal, self).solve()
            if not self._num_modules:
                return found._replace(missing=NO_LAYERS)
            return found if self.is_exact else found._replace(missing=DONATED)
        finally:
            # What changes in place, as modules of nnx, has its state again; all else was never changed.
            present["form"].value(present["state"])
            self.batch = self.before = None

    def collect(self) -> dict[str, Any]:
        """The refused batch, for a record."""
        assert self._hand is not None
        return {"batch": {"batch": _arrays(self._hand[0]), "is_inputs": False, "is_training": True}}

    def bad_weights(self) -> dict[str, int]:
        """See `Subject`."""
        return _bad_floats(self._present["state"])

    def run(self, batch: Any, weights: Any) -> Shown:
        """See `Subject`."""
        saved = self._present if weights is None else weights
        state = saved["form"].value(saved["state"])
        if self._watched is None:
            # Within another step it may keep no buffers.
            compile_anew: Any = jax.jit if _nnx_in(state) is None else _nnx_in(state).jit
            self._watched = compile_anew(lambda *given: self._step(*given))
        batch = _divided(batch, self._parts)
        self._seen.clear()
        with _watching(state, self._tell), _traced_anew():
            assert self._hand is not None
            after, metrics = self._watched(state, batch, self._hand[1])
            jax.effects_barrier()  # type: ignore[no-untyped-call]
        losses = np.asarray(metrics.get("losses", metrics.get("loss")), np.float32)
        losses = losses.reshape(-1) if losses.shape == self._parts else losses
        size = len(losses) if losses.ndim and len(losses) == self._num_rows else 0
        what, rows = first_bad(losses, size)
        place = self._seen[min(self._seen)] if self._seen else ("", what, rows)
        gradient = ""
        if not (self._seen or what):
            gradient = next(iter(_bad_floats(take_apart(after)[0])), "")
        return Shown(float(losses.mean()), *place, gradient=gradient)

    def _tell(self, name: str, output: Any) -> None:
        """Have it noted, as the step runs, whether the output of a module is finite; while the step is traced."""
        number = self._num_modules = self._num_modules + 1
        for each in jax.tree_util.tree_leaves(output):
            if hasattr(each, "dtype") and jax.numpy.issubdtype(each.dtype, jax.numpy.floating):
                bad = ~jax.numpy.isfinite(each)
                rows = bad.reshape(each.shape[0], -1).any(1) if each.ndim else bad
                jax.debug.callback(functools.partial(self._note, number, name), rows, jax.numpy.isnan(each).any())

    def _note(self, number: int, name: str, rows: Any, has_nan: Any) -> None:
        bad = np.flatnonzero(rows).tolist()
        if bad:
            is_told = np.ndim(rows) and len(rows) == self._num_rows and len(bad) < len(rows)
            self._seen.setdefault(number, (name, "NaN" if has_nan else "Inf", tuple(bad) if is_told else ()))

    def _join(self, batch: Any) -> Any:
        """The arrays of a batch; of ``pmap`` the devices' parts one after the other, as samples are counted."""

        def join(leaf: Any, *_: Any) -> Any:
            return leaf.reshape(-1, *leaf.shape[2:]) if self._parts and np.shape(leaf)[:2] == self._parts else leaf

        return map_leaves(join, _arrays(batch))

    @property
    def _num_rows(self) -> int:
        return next((len(each) for _, each in leaves(self.batch) if np.ndim(each)), 0)


def _parts_of_devices(state: Any, batch: Any) -> tuple[int, ...]:
    """How ``pmap`` has divided a batch: the devices, and the samples of each; () if the step is not one of ``pmap``."""
    nnx = _nnx_in(state)
    state = state if nnx is None else nnx.state(state)
    arrays = [each for each in jax.tree_util.tree_leaves(state) if isinstance(each, jax.Array)]
    parts = {np.shape(each)[:2] for _, each in leaves(batch) if np.ndim(each) > 1}
    if not arrays or len(parts) != 1 or not all(map(is_of_devices, arrays)):
        return ()
    found: tuple[int, ...] = parts.pop()
    return found if found[0] == len(arrays[0]) and found[1] > 1 else ()


def _divided(batch: Any, parts: tuple[int, ...]) -> Any:
    """A batch as ``pmap`` takes it."""
    if not parts:
        return batch
    size = parts[0] * parts[1]
    return map_leaves(
        lambda leaf, *_: leaf.reshape(*parts, *leaf.shape[1:]) if np.ndim(leaf) and len(leaf) == size else leaf, batch
    )


def _arrays(batch: Any) -> Any:
    return map_leaves(lambda leaf, *_: np.asarray(leaf) if hasattr(leaf, "shape") else leaf, batch)


def _bad_floats(state: Any) -> dict[str, int]:
    named = [(name, each) for name, each in leaves(state) if hasattr(each, "dtype")]
    return bad_arrays([(n, each) for n, each in named if np.dtype(each.dtype).kind in "fV"], np.asarray)


def _nnx_in(state: Any) -> Any:
    """Flax's ``nnx`` if one of its objects is in a state; else None."""
    found = nnx_of(state)
    node = None if found is not None else open_node(state)
    parts = () if node is None else node.parts.values()
    return found or next((nnx for part in parts if (nnx := _nnx_in(part)) is not None), None)


@contextlib.contextmanager
def _traced_anew() -> Iterator[None]:
    """A ``with`` block in which nothing was traced before: what the step has compiled within it is kept for each value
    of a setting that warns of shapes, and changes no number.
    """
    config: Any = jax.config
    value = "warn" if config.jax_numpy_rank_promotion == "allow" else "allow"
    with warnings.catch_warnings(), jax.numpy_rank_promotion(value):
        warnings.filterwarnings("ignore", ".*rank promotion")
        yield


@contextlib.contextmanager
def _watching(state: Any, tell: Callable[[str, Any], None]) -> Iterator[None]:
    """A ``with`` block in which the modules of linen and nnx tell their outputs, the innermost first."""

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == "__call__":
            module = context.module
            tell(".".join(module.path) or type(module).__name__, output)
        return output

    nnx = _nnx_in(state)
    changed: list[tuple[type, Any]] = []
    paths: dict[int, tuple[str, Any]] = {}
    if nnx is not None:
        modules = [each for _, each in nnx.iter_graph(state) if isinstance(each, nnx.Module)]
        for kind in {type(each) for each in modules if callable(each)}:
            changed.append((kind, vars(kind).get("__call__")))
            kind.__call__ = _telling(kind.__call__, tell, nnx, paths)
    try:
        with nn.intercept_methods(intercept):
            yield
    finally:
        for kind, call in changed:
            if call is None:
                del kind.__call__
            else:
                kind.__call__ = call


def _telling(call: Any, tell: Callable[[str, Any], None], nnx: Any, paths: dict[int, tuple[str, Any]]) -> Any:
    """A call of modules that tells their outputs, by their path in the outermost module that was called."""

    @functools.wraps(call)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        if id(self) not in paths:
            # Within a compiled step modules are other objects. They are held, as an id may come again.
            for path, each in nnx.iter_graph(self):
                if isinstance(each, nnx.Module):
                    paths[id(each)] = ".".join(map(str, path)) or type(self).__name__, each
        output = call(self, *args, **kwargs)
        tell(paths[id(self)][0], output)
        return output

    return watched


class TrainState(train_state.TrainState):  # type: ignore[no-untyped-call]
    """Flax's training state, with the batch statistics of models that have any.

    ``TrainState.create(apply_fn=, params=, tx=, batch_stats=)`` makes one; ``state.apply_gradients(grads=)`` the next.

    Attributes:
        batch_stats: A nest of arrays; None for models without batch normalisation.
    """

    batch_stats: Any = None


def is_of_devices(array: Any) -> bool:
    """Whether the first dimension of an array is that of the devices, as ``pmap`` makes it."""
    if not isinstance(array, jax.Array) or not array.ndim or not array.is_fully_addressable:
        return False
    devices = array.sharding.device_set
    return len(devices) == array.shape[0] > 1 and array.sharding.shard_shape(array.shape)[0] == 1


def with_lr(state: Any, lr: float) -> Any:
    """The state with another learning rate; that of an NNX optimizer is set in place.

    Args:
        state: Something with an ``opt_state``, as a `TrainState` or an NNX optimizer; or a tuple, list or dictionary
            with one of these, or an optimizer's state itself, in it.
        lr: For every ``learning_rate`` of ``optax.inject_hyperparams``, whatever wraps it.

    Raises:
        ValueError: no optimizer was made with ``optax.inject_hyperparams``, or its ``learning_rate`` is a schedule.
    """
    rate, is_set = np.float32(lr), False

    def change(part: Any) -> Any:
        nonlocal is_set
        is_set = True
        return _with_rate(part, rate)

    new = _changed(state, change)
    if not is_set:
        raise ValueError(
            "state.tx must be made with optax.inject_hyperparams for the scheduler to set its learning_rate, as in "
            f"optax.inject_hyperparams(optax.adam)(learning_rate=0.0), got "
            f"{type(getattr(state, 'opt_state', state)).__name__}."
        )
    return new


def lr_of(state: Any) -> float | None:
    """The learning rate of ``optax.inject_hyperparams`` in a state as `with_lr` takes it; None if none can be set."""
    found: list[Any] = []

    def look(part: Any) -> Any:
        found.append(part)
        return part

    _changed(state, look)
    if not found or "learning_rate" in getattr(found[0], "hyperparams_states", {}):
        return None
    return float(np.max(np.asarray(found[0].hyperparams["learning_rate"])))


def _changed(part: Any, change: Callable[[Any], Any]) -> Any:
    """A part of a state in which each state of ``optax.inject_hyperparams`` is what a function makes of it."""
    if isinstance(part, nnx.Rngs):
        # It makes a stream for an attribute of any name.
        return part
    if "learning_rate" in (getattr(part, "hyperparams", None) or {}):
        return change(part)
    if hasattr(part, "opt_state"):
        opt_state = _changed(part.opt_state, change)
        # An NNX optimizer was changed in place.
        return part if opt_state is part.opt_state else part.replace(opt_state=opt_state)
    if isinstance(part, Mapping):
        # A nested state of NNX is another object each time that it is asked for.
        before = dict(part.items())
        pairs = {name: _changed(value, change) for name, value in before.items()}
        return part if all(new is before[name] for name, new in pairs.items()) else type(part)(pairs)  # type: ignore[call-arg]
    if not isinstance(part, (tuple, list)):
        return part
    values = [_changed(each, change) for each in part]
    if all(new is old for new, old in zip(values, part, strict=True)):
        return part
    return type(part)(*values) if hasattr(part, "_fields") else type(part)(values)


def _with_rate(part: Any, lr: np.float32) -> Any:
    hyperparams = part.hyperparams
    if "learning_rate" in getattr(part, "hyperparams_states", {}):
        raise ValueError(
            "learning_rate must be a number in optax.inject_hyperparams where a scheduler sets it, got a schedule, "
            "which would overwrite it at each step; give its curve as scheduler_mode of R8Scheduler."
        )
    before = hyperparams["learning_rate"]
    # The same type at every step: another one would make the user's jitted function compile again. A replicated state
    # has one for each device.
    rate = np.full(getattr(before, "shape", ()), lr, dtype=getattr(before, "dtype", np.float32))
    if hasattr(before, "set_value"):
        before.set_value(jax.numpy.asarray(rate))
        return part
    return part._replace(hyperparams={**hyperparams, "learning_rate": rate})

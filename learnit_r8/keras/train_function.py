"""The training function of a model: what its steps return for us, the state before its last call, and its batch.

Keras takes a step before anybody hears of its loss. So that a refused one costs its batch and nothing else, the state
before each step is kept until the loss is judged; and so that weights can be tested, the function takes a batch again.
To read the variables one by one would cost more than a small step: TensorFlow copies them within its compiled step, JAX
is not given the state to overwrite, and torch copies all of them with one call.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from .devices import num_replicas
from .state import ModelState, as_numpy, random_state, rate_of, set_random_state

if TYPE_CHECKING:
    from .live_values import RateFactor

MOST_KEPT = 2**27
"""Most numbers of a state that is kept before each step; of a larger one, only the metrics are."""


OURS = "r8_step"
"""The entry of a step's logs in which it returns what is ours."""


class TrainFunction:
    """Stands around the training function of a model, which it makes anew, and stays there for good.

    Args:
        model: A Keras model.

    Attributes:
        batch: That of the last call, as ``train_step`` got it; None where it is not known, as that of several steps.
        end_iteration: See `watch`.
        rates: What lowers the rates of a step.
    """

    def __init__(self, model: Any) -> None:
        self.batch: Any = None
        self.rates: RateFactor | None = None
        self.end_iteration: Callable[[], object] = lambda: None
        self._model, self._back_end = model, keras.backend.backend()
        self._state: ModelState | None = None
        self._values: dict[str, Any] = {}
        self._is_within = self._is_lasting = False
        self._function: Callable[..., Any] | None = None
        self._spec: Any = None
        self._before: Any = None
        # The logs of the last step that is not undone, and of the one before it.
        self._logs: Any = None
        self._logs_before: Any = None
        # In this epoch.
        self._num_calls = self._num_undone = 0
        self._is_traced, self._is_kept = False, True
        # Those that a step changes; of TensorFlow's those that it keeps by itself, with their copies; and the others.
        self._variables: list[Any] = []
        self._kept: list[tuple[Any, Any]] = []
        # Optimizers that the first step builds.
        self._unbuilt: list[Any] = []
        self._read: Callable[[Any], Any] = list
        make = getattr(model.make_train_function, "__wrapped__", model.make_train_function)

        @functools.wraps(make)
        def make_train_function(*args: Any, **kwargs: Any) -> Any:
            make(*args, **kwargs)
            if model.train_function is not self:
                self._function = self._remade(model.train_function)
                model.train_function = self
            return model.train_function

        show = model._get_metrics_result_or_logs
        show = getattr(show, "__wrapped__", show)

        @functools.wraps(show)
        def get_metrics(logs: Any) -> Any:
            # What Keras asks for first of all once it has iterated over an epoch.
            caller = inspect.currentframe()
            if caller is not None and caller.f_back is not None and caller.f_back.f_code.co_name == "fit":
                self.end_iteration()
                if 0 < self._num_calls == self._num_undone:
                    # Means of nothing, which are 0: the best loss there is, for good.
                    return {}
                if self._num_undone:
                    # A step of the user's may return more than the metrics, of which those of the last step are shown.
                    logs = self._logs
            return show(logs)

        model.make_train_function, model._get_metrics_result_or_logs = make_train_function, get_metrics
        # A step traced before returns nothing of ours.
        model.train_function = None

    def watch(self, state: ModelState, end_iteration: Callable[[], object]) -> None:
        """Keep a state before each step from now on.

        Args:
            state: The state.
            end_iteration: Called when ``fit`` has iterated over an epoch, before validation and all callbacks.
        """
        self._state, self.end_iteration = state, end_iteration
        self.begin_epoch()
        # A step that is traced stays: traced again, its operations of ``tf.random`` would begin anew.
        is_traced = self._model.train_function is not None and self._is_traced
        if self._back_end == "tensorflow" and self.shows_batch and not is_traced:
            import tensorflow as tf

            # It is yet to be traced, and keeps what it changes before it changes it.
            self._kept = []
            for each in self._find_variables():
                with tf.device(each.value.device):
                    self._kept.append((each, tf.Variable(each.value, trainable=False)))

    def begin_epoch(self) -> None:
        """Look for all variables again; the model may have been compiled again."""
        self._num_calls = self._num_undone = 0
        self._before = None

    @property
    def shows_batch(self) -> bool:
        """Whether a call takes one batch, on one device."""
        return self._model.steps_per_execution == 1 and num_replicas(self._model) == 1

    # What a step returns.

    def put(self, logs: Any, values: Mapping[str, Any]) -> Any:
        """The logs of a step and these values; None where nobody would take them out, as in a loop of the user's."""
        return {**logs, OURS: values} if self._is_within and isinstance(logs, Mapping) else None

    def take(self) -> dict[str, Any]:
        """What the last step returned, once."""
        values, self._values = self._values, {}
        return values

    def __call__(self, *args: Any) -> Any:
        """Take a step, as Keras asks for it."""
        args = args if self._state is None else self._begin(args)
        return self._call(*args) if self.rates is None else self.rates.take_step(self._call, *args)

    def _call(self, *args: Any) -> Any:
        assert self._function is not None
        self._is_within = True
        try:
            done = self._function(*args)
        finally:
            self._is_within = False
        # JAX hands the state on beside the logs.
        logs = done[0] if isinstance(done, tuple) else done
        self._values = logs.pop(OURS, {}) if isinstance(logs, dict) else {}
        self._logs_before, self._logs = self._logs, logs
        return done

    # The state before a step, and its batch.

    def _remade(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The training function of one batch at a time, with what is needed of a step; else that of Keras."""
        model = self._model
        if self._back_end == "tensorflow" and self.shows_batch:
            return self._of_tensorflow()
        is_compiled = self._back_end == "jax" and model.jit_compile and not model.run_eagerly
        is_whole = is_compiled and keras.distribution.distribution() is None
        self._is_lasting = is_whole and self._is_small(self._carried())
        # That of JAX which Keras makes gives the state away (donate_argnums).
        made: Callable[..., Any] = (
            model._make_function(sys.modules["jax"].jit(model.train_step)) if self._is_lasting else function
        )
        return made

    def _of_tensorflow(self) -> Callable[..., Any]:
        """What Keras makes, but that it keeps the state and the batch.

        It returns the logs without an ``Optional`` around them, of which each number costs as much as ten variables.
        """
        import tensorflow as tf

        model = self._model
        # None in a batch of the user's comes as an Optional.
        opened: Callable[..., Any] = getattr(model, "_autoconvert_optionals", lambda step: step)(model.train_step)

        def on_data(data: Any) -> Any:
            return model.distribute_strategy.run(opened, args=(data,))

        def on_iterator(iterator: Any) -> Any:
            data = iterator.get_next()
            self._is_traced = True
            for variable, copy in self._kept:
                copy.assign(variable.value)
            return on_data(data), data

        if not model.run_eagerly:
            more = {"reduce_retracing": True, "autograph": False}
            on_data = tf.function(on_data, jit_compile=model.jit_compile, **more)
            on_iterator = tf.function(on_iterator, **more)

        def function(iterator: Any) -> Any:
            if isinstance(iterator, tf.data.Iterator):
                logs, self.batch = on_iterator(iterator)
                return logs
            return on_data(next(iter(iterator)))

        return function

    def _begin(self, args: Any) -> Any:
        """Keep the state before a step and note its batch; the arguments to call the function with."""
        assert self._state is not None
        self._before = None
        # Metrics are built in the first step, and an optimizer may be.
        if not self._num_calls:
            self._unbuilt = self._state.unbuilt()
        if self._num_calls < 2:
            self._variables = self._find_variables()
            self._read = self._reader()
        self._num_calls += 1
        self._before = self._read(args[0])
        self.batch, iterator = None, args[-1]
        if self._back_end == "tensorflow":
            self._spec = getattr(iterator, "element_spec", None)
        elif self.shows_batch and self._back_end == "jax":
            self.batch = next(iterator)
            return args[0], iter([self.batch])
        elif self.shows_batch:
            self.batch = iterator[0]
        return args

    def _find_variables(self) -> list[Any]:
        """The variables that a step changes, but for rates and our own."""
        assert self._state is not None
        # On JAX the trainer carries them, and to ask the state for them would bring them back.
        kinds = self._carried() if self._back_end == "jax" else self._state.variables()
        self._is_kept = self._is_small(kinds)
        kinds = kinds if self._is_kept else [self._model.metrics_variables]
        return [each for kind in kinds for each in kind if not each.path.startswith("r8_")]

    @staticmethod
    def _is_small(kinds: list[list[Any]]) -> bool:
        total: int = sum(math.prod(each.shape) for kind in kinds for each in kind)
        return total <= MOST_KEPT

    def _reader(self) -> Callable[[Any], Any]:
        """A function that copies what no step keeps by itself; it takes the first argument of the step."""
        if self._back_end == "jax":
            return self._read_carried
        if self._back_end == "tensorflow":
            kept = {id(each.value) for each, _ in self._kept} if self._is_traced or not self._num_calls else set()
            self._variables = [each for each in self._variables if id(each.value) not in kept]
            import tensorflow as tf

            # Later steps do not write to these tensors.
            return lambda _: [tf.convert_to_tensor(each.value) for each in self._variables]
        torch: Any = sys.modules["torch"]
        values = [each.value.detach() for each in self._variables]
        copies = [each.clone() for each in values]

        def read(_: Any) -> list[Any]:
            torch._foreach_copy_(copies, values)
            return copies

        return read

    def _read_carried(self, carried: Any) -> Any:
        """What JAX's trainer carries, as it is before a step."""
        if self._is_lasting:
            return carried
        # The step is given its arguments to keep.
        return _copier()(carried) if self._is_kept else [[], [], [], _copier()(carried[3])]

    def undo(self) -> bool:
        """Put back the state before the last step, if it is known, once; returns whether the weights were among it."""
        before, self._before = self._before, None
        if before is None:
            return False
        self._num_undone += 1
        self._logs = self._logs_before
        if self._back_end == "jax":
            self._model.jax_state_sync()
            rate = rate_of(self._model.optimizer)
            # Some are not kept.
            pairs = [pair for each in map(zip, self._carried(), before) for pair in each if pair[0] is not rate]
        else:
            # Some may be built since.
            self._model.reset_metrics()
            if self._num_calls == 1 and self._state is not None:
                self._state.renew(self._unbuilt)
            pairs = [*self._kept, *zip(self._variables, before, strict=True)]
        for variable, value in pairs:
            if not variable.path.startswith("r8_"):
                variable.assign(value)
        return self._is_kept

    def _carried(self) -> list[list[Any]]:
        """The variables that the trainer of JAX carries."""
        model = self._model
        of_model = [model.trainable_variables, model.non_trainable_variables]
        return [*of_model, model.optimizer.variables, model.metrics_variables]

    def repeat(self, batch: Any) -> None:
        """Take a step on a batch with the present state, for what it returns; the state stays as it is.

        Args:
            batch: What `batch` was after an earlier step.
        """
        random, in_hand, logs = random_state(), self.batch, (self._logs_before, self._logs)
        # What the last step has kept is overwritten.
        self._before = None
        if self._back_end == "jax":
            self._model.jax_state_sync()
            state = self._read_carried(tuple([each.value for each in variables] for variables in self._carried()))
            _, done = self._call(state, iter([batch]))
            for variable, value in zip(self._model.metrics_variables, done[3], strict=True):
                if variable.path.startswith("r8_"):
                    variable.assign(value)
        else:
            assert self._state is not None
            variables = [each for kind in self._state.variables() for each in kind if not each.path.startswith("r8_")]
            before = [np.array(as_numpy(each)) for each in variables]
            try:
                self._call([batch] if self._back_end == "torch" else self._iterator_of(batch))
            finally:
                for variable, value in zip(variables, before, strict=True):
                    variable.assign(value)
        self.batch, (self._logs_before, self._logs) = in_hand, logs
        set_random_state(random)

    def _iterator_of(self, batch: Any) -> Any:
        """An iterator of TensorFlow's over one batch, of the kind that the function was traced for."""
        import tensorflow as tf

        try:
            variant = tf.data.experimental.to_variant(tf.data.Dataset.from_tensors(batch))
            return iter(tf.data.experimental.from_variant(variant, self._spec))
        except (TypeError, ValueError):
            # It is traced once more.
            return iter([batch])


@functools.cache
def _copier() -> Callable[..., Any]:
    jax: Any = sys.modules["jax"]
    return jax.jit(lambda state: jax.tree.map(jax.numpy.copy, state))  # type: ignore[no-any-return]


def local_of_fit(name: str) -> Any:
    """A variable of the ``fit`` that is running in this thread; None if there is none, or none of that name."""
    found = (frame.f_locals for frame in _of_models(inspect.currentframe()) if frame.f_code.co_name == "fit")
    return next(found, {}).get(name)


def scope_of_fit(model: Any) -> Callable[[FrameType | None], bool]:
    """Whether the ``fit`` of a model is running; a ``fit`` that an exception ends does not tell its callbacks."""

    def is_running(frame: FrameType | None) -> bool:
        return any(each.f_code.co_name == "fit" and each.f_locals["self"] is model for each in _of_models(frame))

    return is_running


def yield_steps(steps: Iterator[Any], model: Any) -> Iterator[Any]:
    """What a Keras iterator yields in an epoch of the ``fit`` that is running, in which there may be no step to take.

    JAX's trainer cannot do without the logs of a last step: it gets one that does nothing and that no callback hears.

    Args:
        steps: What is left of the epoch, as Keras counts it.
        model: The one that is fitted.
    """
    first = next(steps, None)
    if first is not None:
        yield first
        yield from steps
        return
    if keras.backend.backend() != "jax":
        return
    callbacks: Any = local_of_fit("callbacks")
    names, train_function = ("on_train_batch_begin", "on_train_batch_end"), model.train_function
    heard = {name: getattr(callbacks, name) for name in names}

    def end_step(*_: Any) -> None:
        model.train_function = train_function
        vars(callbacks).update(heard)

    model.train_function = lambda state, _: ({}, state)
    vars(callbacks).update(zip(names, (lambda *_: None, end_step), strict=True))
    yield 0, 0, iter(())


def method_of_model() -> str:
    """Which method of a model is running in this thread: "fit", "evaluate" or "predict"; "" if there is none."""
    return next((frame.f_code.co_name for frame in _of_models(inspect.currentframe())), "")


def _of_models(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames from this one outwards in which a model is fitted, evaluated or predicts."""
    while frame is not None:
        is_method = frame.f_code.co_name in ("fit", "evaluate", "predict")
        if is_method and isinstance(frame.f_locals.get("self"), keras.Model):
            yield frame
        frame = frame.f_back


def check_alone(callback: Any) -> None:
    """Raise ValueError if ``fit`` was given another callback of the same kind: both would count its batches."""
    same = [each for each in callbacks_of_fit() or () if type(each) is type(callback)]
    if len(same) > 1:
        raise ValueError(f"callbacks of fit() must hold one R8Callback, got {len(same)}; leave the others out.")


def callbacks_of_fit() -> list[Any] | None:
    """The callbacks of the ``fit`` that is running in this thread; None if there is none."""
    if local_of_fit("epoch_iterator") is None:
        return None
    # On JAX and torch a first batch is looked at before Keras makes a list of what it was given.
    given = local_of_fit("callbacks")
    given = getattr(given, "callbacks", given)
    return [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]

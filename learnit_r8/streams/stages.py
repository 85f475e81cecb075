"""Events, and stages: functions from a stream to a stream. A stage asks for an event only when it will use it.

`best` keeps a copy of the best weights, because every event of a stream holds the one live model.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Literal, TypeVar

from .._validation import whole_number
from ..events.steps import mode_of
from ..triggers import Condition, Elapsed, ElapsedCounter
from ..triggers.patience import Patience, Record
from ..triggers.trigger import Every

AnyEvent = Mapping[str, Any]
"""An event: a dictionary of what one epoch or step was like."""

F = TypeVar("F", bound=Callable[..., Any])

Stage = Callable[[Iterable[Any]], Iterator[Any]]
"""Makes a stream of another one; its memory belongs to that one stream."""


def stage_maker(function: F) -> F:
    """Decorate a function that makes a stage: where it is given the events, the error says how to write it."""
    name = function.__name__
    text = f"{name}() makes a stage, which pipe() gives the events: write pipe(events, {name}(...))"

    @functools.wraps(function)
    def checked(*given: Any, **named: Any) -> Any:
        if given and isinstance(given[0], Iterator):
            raise TypeError(f"{text}, got the events themselves.")
        return function(*given, **named)

    checked.error = f"{text}, got {name} itself."  # type: ignore[attr-defined]
    return checked  # type: ignore[return-value]


def pipe(stream: Iterable[Any], *stages: Stage) -> Iterator[Any]:
    """Send a stream through stages, left to right. Lazy: nothing trains until it is read.

    Args:
        stream: Events, or anything else that can be iterated.
        *stages: Functions from an iterable to an iterator.

    Raises:
        TypeError: the stream cannot be iterated, or a stage is not callable.

    >>> list(pipe([3.0, 2.0, 1.0], take(2)))
    [3.0, 2.0]
    """
    for stage in stages:
        _check_callable("stages", stage)
        if hasattr(stage, "error"):
            raise TypeError(stage.error)
    result = iter(stream)
    for stage in stages:
        result = stage(result)
    return result


@stage_maker
def take(n: int) -> Stage:
    """Pass on the first ``n`` events and ask for no more, so that exactly ``n`` epochs are trained.

    Args:
        n: Events, >= 0.

    Raises:
        ValueError: not a whole number, or below 0.

    >>> source = iter(range(10))
    >>> list(take(2)(source)), next(source)
    ([0, 1], 2)
    """
    count = whole_number("n", n, least=0)
    return lambda events: islice(events, count)


@stage_maker
def augment(fn: Callable[[Any], AnyEvent | None]) -> Stage:
    """Add what ``fn(event)`` returns to every event; the original event stays unchanged.

    Args:
        fn: Returns a dictionary of entries to add, or None.

    Raises:
        TypeError: it is not callable; later, it returned something else.

    >>> list(pipe([{"a": 1}], augment(lambda event: {"b": event["a"] + 1})))
    [{'a': 1, 'b': 2}]
    """
    _check_callable("fn", fn)

    def stage(events: Iterable[Any]) -> Iterator[Any]:
        for event in events:
            more = fn(event)
            if more is None:
                yield event
            elif isinstance(more, Mapping):
                yield merged(event, more)
            else:
                raise TypeError(f"fn of augment() must return a dictionary or None, got {more!r} from {fn!r}.")

    return stage


@stage_maker
def tap(fn: Callable[[Any], object], every: int | Condition = 1, start: int | None = None) -> Stage:
    """Call ``fn(event)`` every so often, and pass every event on unchanged.

    Args:
        fn: Called before the event is passed on; its result is ignored.
        every: Events between two calls, >= 1; or a trigger or function of `Elapsed`, asked about each event.
        start: Number of the first event to call for, >= 1; by default ``every``: with 3 it is events 3, 6, 9.

    Raises:
        TypeError: ``fn`` is not callable.
        ValueError: ``every`` or ``start`` is out of its range, or ``start`` comes with a trigger.

    >>> _ = list(pipe(range(1, 8), tap(print, every=3)))
    3
    6
    """
    _check_callable("fn", fn)
    is_number = not callable(every)
    if callable(every):
        if start is not None:
            raise ValueError(f"start must come with a number for every, got {start!r} with {every!r}; see after().")
        trigger = every
    else:
        interval = whole_number("every", every, least=1)
        trigger = Every("steps", interval, interval if start is None else whole_number("start", start, least=1))

    def stage(events: Iterable[Any]) -> Iterator[Any]:
        counter = ElapsedCounter()
        last: Elapsed | None = None
        for event in events:
            now: Elapsed | None = counter.count() if is_number else getattr(event, "elapsed", None)
            if now is None:
                before = 0 if last is None else last.samples
                samples = event.get("samples", before) if isinstance(event, Mapping) else before
                now = counter.count(samples=int(samples) - before)
            elif last is not None:
                # A stage in between may have left events out.
                now = last.then(*now[:3])
            last = now
            if trigger(now):
                fn(event)
            yield event

    return stage


@stage_maker
def tick(fn: Callable[[], object], every: int | Condition = 1, start: int | None = None) -> Stage:
    """Call ``fn()`` for every event, such as a learning-rate scheduler's ``step``; see `tap` for the rest.

    Args:
        fn: Called without arguments, before the event is passed on.
        every: As in `tap`.
        start: As in `tap`.

    Raises:
        TypeError: ``fn`` is not callable.
        ValueError: ``every`` or ``start`` is out of its range.

    >>> calls = []
    >>> _ = list(pipe("abc", tick(lambda: calls.append("tick"))))
    >>> calls
    ['tick', 'tick', 'tick']
    """
    _check_callable("fn", fn)
    return tap(lambda event: fn(), every, start)


@stage_maker
def early_stop(key: str, patience: int, mode: Literal["min", "max"] | None = None, min_delta: float = 0.0) -> Stage:
    """End the stream with the event that is the ``patience``-th in a row without a better value.

    A value that is not finite is never the best one, and uses up patience.

    Args:
        key: Name of the number to watch; every event must have it.
        patience: Events without improvement to accept, >= 1.
        mode: "min" if lower is better, "max" if higher is; by default as the name says, see `is_lower_better`.
        min_delta: Least difference that counts as better, >= 0, in the unit of the number.

    Raises:
        ValueError: an argument out of its range.
        KeyError: later, an event has no such key.
        TypeError: later, the value is not a number.

    >>> [e["loss"] for e in pipe([{"loss": x} for x in (5, 4, 4, 6, 1)], early_stop("loss", patience=2))]
    [5, 4, 4, 6]
    """
    better = mode_of(key, mode)
    Patience(patience, better, min_delta)

    def stage(events: Iterable[Any]) -> Iterator[Any]:
        rule = Patience(patience, better, min_delta)
        for event in events:
            rule.improves(number(event, key))
            yield event
            if rule.is_over:
                return

    return stage


@stage_maker
def ema(
    key: str,
    *,
    decay: float | None = None,
    half_life: float | None = None,
    out_key: str | None = None,
    bias_correction: bool = True,
) -> Stage:
    r"""Add an exponential moving average of a number: :math:`m \leftarrow d m + (1 - d) x` from :math:`m = 0`.

    With the correction of Adam (Kingma & Ba, arXiv:1412.6980), :math:`m / (1 - d^t)`, the first average is the first
    value. A value that is not finite changes nothing: the average is that of the others, NaN before there is one.

    Args:
        key: Name of the number; every event must have it.
        decay: Weight :math:`d` of the past, in [0, 1).
        half_life: Or the number of events, > 0, after which a value has half its weight.
        out_key: Name of the average; by default ``key + "_ema"``.
        bias_correction: Whether to divide by :math:`1 - d^t`.

    Raises:
        ValueError: not exactly one of ``decay`` and ``half_life``, or out of its range.
        KeyError: later, an event has no such key.
        TypeError: later, the value is not a number.

    >>> [e["x_ema"] for e in pipe([{"x": 1.0}, {"x": 4.0}], ema("x", decay=0.5, bias_correction=False))]
    [0.5, 2.25]
    """
    if (decay is None) == (half_life is None):
        raise ValueError(f"exactly one of decay and half_life must be given, got {decay!r} and {half_life!r}.")
    if half_life is not None:
        if not (isinstance(half_life, (int, float)) and 0 < half_life < math.inf):
            raise ValueError(f"half_life must be finite and > 0 events, got {half_life!r}.")
        decay = 0.5 ** (1 / half_life)
    if not (isinstance(decay, (int, float)) and 0 <= decay < 1):
        raise ValueError(f"decay must be in [0, 1), got {decay!r}.")
    weight = float(decay)
    name = f"{key}_ema" if out_key is None else out_key

    def stage(events: Iterable[Any]) -> Iterator[Any]:
        total, remainder, shown = 0.0, 1.0, math.nan
        for event in events:
            value = number(event, key)
            if math.isfinite(value):
                total = weight * total + (1 - weight) * value
                remainder *= weight
                shown = total / (1 - remainder) if bias_correction else total
            yield merged(event, {name: shown})

    return stage


def _check_callable(name: str, value: Any) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {value!r}.")


class Best:
    """The best event of the stream it was piped into, and the weights of that moment, in RAM.

    Attributes:
        value: The best value; None before there is one.
        event: The event it came with, without the model.
        weights: A copy of the model's ``state_dict()`` at that event.
    """

    def __init__(self, key: str, mode: str, min_delta: float) -> None:
        self._key, self._mode, self._min_delta = key, mode, min_delta
        Record(mode, min_delta)
        self._forget()

    def _forget(self) -> None:
        self.value: float | None = None
        self.event: dict[str, Any] | None = None
        self.weights: Any = None
        self._model: Any = None

    def __call__(self, events: Iterable[Any]) -> Iterator[Any]:
        """Pass every event on unchanged; a stream read later starts afresh."""
        self._forget()
        record = Record(self._mode, self._min_delta)
        for event in events:
            value = number(event, self._key)
            if record.improves(value):
                model: Any = event.get("model")
                if not hasattr(model, "state_dict"):
                    raise TypeError(f"event['model'] must have a state_dict() for best() to keep, got {model!r}.")
                self.weights = copy.deepcopy(model.state_dict())
                self.value, self._model = value, model
                self.event = {name: item for name, item in event.items() if name != "model"}
            yield event

    def restore(self, model: Any = None) -> None:
        """Put the best weights back.

        Args:
            model: Where to; by default the model of the stream.

        Raises:
            RuntimeError: no event had a finite value yet.
        """
        if self.value is None:
            raise RuntimeError(f"restore() needs an event with a finite {self._key!r}, got none so far.")
        (self._model if model is None else model).load_state_dict(self.weights)


@stage_maker
def best(key: str, mode: Literal["min", "max"] | None = None, min_delta: float = 0.0) -> Best:
    """Make a stage that remembers the best event and its weights; see `Best` for what it can tell.

    Args:
        key: Name of the number to watch; every event must have it, and a "model" with a ``state_dict()``.
        mode: "min" if lower is better, "max" if higher is; by default as the name says, see `is_lower_better`.
        min_delta: Least difference that counts as better, >= 0.

    Raises:
        ValueError: an argument out of its range.
        KeyError: later, an event has no such key.
        TypeError: later, the value is not a number, or the model has no ``state_dict()``.
    """
    return Best(key, mode_of(key, mode), min_delta)


class Event(dict[str, Any]):
    """A dictionary that describes one epoch or step, and knows how far training had come.

    Attributes:
        elapsed: Steps (those that ``event["step"]`` counts), samples and seconds so far, for triggers; None in an
            event that no stream of this package made.
    """

    elapsed: Elapsed | None = None


def merged(event: Mapping[str, Any], more: Mapping[str, Any]) -> Event:
    """A copy of an event with more entries.

    >>> merged(Event(step=1, train_loss=0.5), {"lr": 0.1})
    {'step': 1, 'train_loss': 0.5, 'lr': 0.1}
    """
    new = Event({**event, **more})
    new.elapsed = getattr(event, "elapsed", None)
    return new


def number(event: Mapping[str, Any], key: str) -> float:
    """``event[key]`` as a float, from a 0-dim array or tensor too.

    Raises:
        KeyError: the event has no such key.
        TypeError: the value is not one real number.
    """
    try:
        value = event[key]
    except KeyError:
        raise KeyError(f"key must be one of the event's keys {sorted(event)}, got {key!r}.") from None
    scalar = as_scalar(value)
    if not isinstance(scalar, (int, float)):
        raise TypeError(f"event[{key!r}] must be a real number or a 0-dim array or tensor, got {value!r}.")
    return float(scalar)


def as_scalar(value: Any) -> Any:
    """A 0-dim array or tensor as a Python scalar; anything else as it is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value

"""loop: calls the callbacks that are due at each batch of a data set."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ..triggers import Condition, Elapsed, as_trigger
from ..triggers.when import Every
from .elapsed_data import StopRule, as_stop, counted, opened
from .log_entries import History
from .state import Call, LoopState, inject

_depth: contextvars.ContextVar[int] = contextvars.ContextVar("depth", default=0)

Step = tuple[Condition | None, tuple[Call, ...]]
"""When, None for every step, and what."""

HOOKS = ("on_start", "on_step", "on_end")
"""Methods that make an object a callback."""


class Tasks(NamedTuple):
    """What a loop calls.

    Attributes:
        start: Before the first batch.
        steps: At each step, in order.
        end: After the last batch, whatever happened.
    """

    start: tuple[Call, ...]
    steps: tuple[Step, ...]
    end: tuple[Call, ...]


def loop(
    state: Any,
    dataset: Any,
    tasks: Any = None,
    callbacks: Any = None,
    *,
    stop: Any = None,
    history: History | None = None,
    elapsed: Elapsed | None = None,
    metadata: Any = None,
    catch_keyboard_interrupt: bool = True,
) -> tuple[Any, History, Elapsed]:
    """Go through a data set and call, at each batch, the callbacks that are due.

    A callback takes up to four of ``state``, ``batch``, ``elapsed`` and ``loop_state``, by name where its parameters
    have these names and by position otherwise. It returns None, a new state, logs, or ``(logs or None, state or
    None)``. An object may have ``on_start``, ``on_step`` (else it is called itself) and ``on_end``; the last is
    called whatever happens.

    Args:
        state: Anything: a number, an array, a pytree, a torch module; given to callbacks and replaced by theirs.
        dataset: An iterable of batches, or a function that returns one.
        tasks: ``{when: callback or callbacks}``. ``when`` is a trigger such as ``every(10)``, a function of `Elapsed`,
            a number of steps or a time such as "30s"; or "on_start" or "on_end", which run once.
        callbacks: Callbacks for every step, after the tasks.
        stop: Steps in all, a time such as "5min", a `Period`, a trigger, or a function of `Elapsed`; by default the
            data set's end. It is checked before a batch is taken.
        history: Rows to go on from; new ones are added to it.
        elapsed: Steps, samples and seconds to go on from, as a loop returned them.
        metadata: Anything, for callbacks that look at ``loop_state.metadata``.
        catch_keyboard_interrupt: Whether Ctrl-C ends the loop, which then returns what it has so far. A loop inside
            another one passes it on.

    Returns:
        The state, the logs of all steps that had any, and the steps, samples and seconds that are finished.

    Raises:
        TypeError: the data set is not iterable, or something is not a callback.
        ValueError: a key of the tasks, or ``stop``, does not say when.

    >>> from learnit_r8.triggers import every
    >>> loop(0, range(10), {every(1): lambda state, batch: state + batch})[0]
    45
    """
    plan = read_tasks(tasks, callbacks)
    condition, total = as_stop(stop)
    batches = opened(dataset)
    start = Elapsed() if elapsed is None else elapsed
    here = LoopState(state, start, History() if history is None else history, total=total, metadata=metadata)
    _turn(here, batches, plan, StopRule(condition, start), owns_batches=batches is not dataset)
    if here.is_interrupted and (_depth.get() or not catch_keyboard_interrupt):
        raise KeyboardInterrupt
    return here.state, here.history, here.elapsed


def _turn(here: LoopState, batches: Iterator[Any], plan: Tasks, watch: StopRule, *, owns_batches: bool) -> None:
    """Run a loop to its end; the callbacks for the end are called even if it raises."""
    token = _depth.set(_depth.get() + 1)
    try:
        here.call(plan.start)
        here.commit()
        _steps(here, batches, plan.steps, watch)
    except KeyboardInterrupt:
        here.is_interrupted = True
    except BaseException as error:
        here.error = error
        raise
    finally:
        try:
            _end(here, batches if owns_batches else None, plan, watch)
        finally:
            _depth.reset(token)


def _steps(here: LoopState, batches: Iterator[Any], tasks: tuple[Step, ...], watch: StopRule) -> None:
    finished = here.elapsed
    if here.stop_iteration:
        return
    try:
        for elapsed, batch in counted(batches, watch, finished):
            here.batch, here.state_before, here.elapsed = batch, here.state, elapsed
            for condition, calls in tasks:
                if condition is None or condition(elapsed):
                    here.call(calls)
            here.commit()
            finished = elapsed
            if here.stop_iteration:
                return
    finally:
        here.elapsed = finished


def _end(here: LoopState, batches: Any, plan: Tasks, watch: StopRule) -> None:
    """Call the callbacks for the end; the logs of an unfinished step are dropped."""
    here.logs.clear()
    here.elapsed = here.elapsed._replace(time=max(here.elapsed.time, watch.seconds()))
    endings: list[Any] = [functools.partial(here.call, (call,)) for call in plan.end]
    if hasattr(batches, "close"):
        endings.append(batches.close)
    try:
        call_each(endings)
    finally:
        here.commit()


def read_tasks(tasks: Any, callbacks: Any) -> Tasks:
    """Read the two arguments of a loop.

    Args:
        tasks: ``{when: callback or callbacks}``, or None. When is a trigger, a number of steps, a time such as
            "30s", "on_start" or "on_end".
        callbacks: Callbacks for every step, after the tasks; or None.

    Raises:
        TypeError: no mapping, or one of them is not a callback.
        ValueError: a key says no time.
    """
    if tasks is not None and not isinstance(tasks, Mapping):
        raise TypeError(f"tasks must be a dictionary {{when: callbacks}}, got {tasks!r}.")
    plan = dict(tasks or {})
    start, end = _as_list("tasks", plan.pop("on_start", None)), _as_list("tasks", plan.pop("on_end", None))
    written = [(when, one) for when, value in plan.items() for one in _as_list("tasks", value)]
    extra = _as_list("callbacks", callbacks)
    objects = [one for _, one in written] + extra
    return Tasks(
        (*_calls("tasks", start), *_hooks(objects, "on_start")),
        (
            *((_condition(when), _calls("tasks", _as_list("tasks", value))) for when, value in plan.items()),
            *(((None, _calls("callbacks", extra)),) if extra else ()),
        ),
        (*_calls("tasks", end), *_hooks(objects, "on_end")),
    )


def _condition(when: Any) -> Condition | None:
    condition = as_trigger("tasks' key", when)
    # Asking a trigger costs as much as a small step.
    is_always = isinstance(condition, Every) and (condition.unit, condition.interval) == ("steps", 1)
    return None if is_always and condition.offset <= 1 else condition  # type: ignore[attr-defined]


def _calls(name: str, callbacks: Iterable[Any]) -> tuple[Call, ...]:
    return tuple(inject(name, one) for one in callbacks if callable(one) or hasattr(one, "on_step"))


def _hooks(callbacks: Iterable[Any], hook: str) -> tuple[Call, ...]:
    """The methods of this name, once for each object even if it stands in several places."""
    found: dict[int, Call] = {}
    for callback in callbacks:
        if hasattr(callback, hook) and id(callback) not in found:
            found[id(callback)] = inject(hook, getattr(callback, hook))
    return tuple(found.values())


def _as_list(name: str, value: Any) -> list[Any]:
    """One callback or several, as a list.

    Raises:
        TypeError: neither.
    """
    if value is None:
        return []
    several = list(value) if isinstance(value, (list, tuple)) else [value]
    for one in several:
        if not (callable(one) or any(hasattr(one, hook) for hook in HOOKS)):
            raise TypeError(f"{name} must hold functions or objects with one of {HOOKS}, got {one!r}.")
    return several


def call_each(calls: Iterable[Callable[[], Any]]) -> None:
    """Call all of them, even if one of them raises; then raise the first error."""
    first: BaseException | None = None
    for call in calls:
        try:
            call()
        except BaseException as error:
            first = first or error
    if first is not None:
        raise first

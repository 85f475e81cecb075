"""loop: calls the callbacks that are due at each batch of a data set; their arguments are read once from signatures."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..events.caller import warn
from ..triggers import Condition, Elapsed, always, as_trigger
from .elapsed_data import Period, as_stop, counted, opened
from .log_entries import Entries, History, Logs

NAMES = ("state", "batch", "elapsed", "loop_state")
"""What a callback may ask for, by name, or by position in this order."""

Call = Callable[[Any], Any]
"""A callback as a function of the loop's state."""


def inject(name: str, callback: Any) -> Call:
    """``callback`` as a function of the loop's state.

    A parameter of a known name gets what it names; another one gets what belongs to its position, or keeps its
    default; ``*args`` get the rest.

    Args:
        name: The argument it came in, for messages.
        callback: A function of up to four arguments.

    Raises:
        TypeError: it is not callable, has no readable signature, or needs something else.
    """
    step = getattr(callback, "on_step", callback)
    if not callable(step):
        raise TypeError(f"{name} must be functions of up to four of {NAMES}, got {callback!r}.")
    try:
        signature = inspect.signature(step)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must have signatures that can be read (use a lambda), got {callback!r}.") from None
    values: dict[str, Any] = {}
    for place, parameter in enumerate(signature.parameters.values()):
        if parameter.kind is parameter.VAR_POSITIONAL:
            # What comes after a default cannot be given by position.
            values[parameter.name] = NAMES[place:] if len(values) == place else ()
        elif parameter.name in NAMES:
            values[parameter.name] = parameter.name
        elif parameter.kind is not parameter.VAR_KEYWORD and parameter.default is parameter.empty:
            if parameter.kind is parameter.KEYWORD_ONLY or place >= len(NAMES):
                raise TypeError(f"{name} must need nothing but {NAMES}, got {callback!r} with {parameter.name!r}.")
            values[parameter.name] = NAMES[place]
    given = signature.bind_partial()
    given.arguments.update(values)
    positional, keywords = given.args, given.kwargs
    return lambda here: step(
        *(getattr(here, name) for name in positional), **{key: getattr(here, name) for key, name in keywords.items()}
    )


DICTIONARY = (
    "the state of the loop changes from {} to {}, as a callback returned that: metrics go in logs().add_metric(name, "
    "value), and a callback returns those logs, or (logs, state)."
)


@dataclass(slots=True, eq=False, repr=False)
class LoopState:
    """Where a loop is; callbacks get it as ``loop_state``.

    Attributes:
        state: The user's state now; may be set.
        state_before: The user's state before this step.
        batch: The batch of this step; None before the first.
        elapsed: Steps, samples and seconds, this step included.
        logs: The logs of this step so far.
        history: The rows of the steps before.
        total: When the loop is to stop, if that is a number of steps, samples or seconds; else None.
        metadata: Whatever the caller of the loop passed in.
        stop_iteration: Set it, and this step is the last one.
        is_interrupted: Whether the loop ends because of Ctrl-C.
        error: The exception that the loop ends with; None if it ends well.
    """

    state: Any
    elapsed: Elapsed
    history: History
    total: Period | None = None
    metadata: Any = None
    batch: Any = None
    stop_iteration: bool = False
    is_interrupted: bool = False
    error: BaseException | None = None
    logs: Logs = field(default_factory=Logs)
    state_before: Any = field(init=False)

    def __post_init__(self) -> None:
        self.state_before = self.state

    @property
    def loop_state(self) -> LoopState:
        """Itself, so that every name a callback can ask for is an attribute."""
        return self

    def call(self, calls: Iterable[Call]) -> None:
        """Call callbacks in order and take what they return."""
        for call in calls:
            result = call(self)
            if result is not None:
                self.take(result)

    def take(self, result: Any) -> None:
        """Take what a callback returned: logs, ``(logs or None, state or None)``, or a state, also a falsy one."""
        if isinstance(result, Logs):
            self.logs.merge(result)
        elif type(result) is tuple and len(result) == 2 and (result[0] is None or isinstance(result[0], Logs)):
            if result[0] is not None:
                self.logs.merge(result[0])
            if result[1] is not None:
                self.state = result[1]
        else:
            if type(result) is not type(self.state) and not isinstance(self.state, (Mapping, type(None))):
                # A dictionary, or a pair with one, in place of another state: they are metrics, as elsewhere.
                is_pair = type(result) is tuple and len(result) == 2 and isinstance(result[0], type(self.state))
                metrics, what = (result[1], "(state, dict)") if is_pair else (result, type(result).__name__)
                if isinstance(metrics, dict) and metrics:
                    warn(DICTIONARY.format(type(self.state).__name__, what))
            self.state = result

    def commit(self) -> None:
        """Put the logs of this step into the history, if there are any, and begin new ones."""
        row = self.logs
        if row:
            steps, samples, time = self.elapsed[:3]
            row["elapsed"] = Entries(steps=steps, samples=samples, time=time)
            self.history.append(row)
            self.logs = Logs()


_depth: contextvars.ContextVar[int] = contextvars.ContextVar("depth", default=0)

HOOKS = ("on_start", "on_step", "on_end")
"""Methods that make an object a callback."""


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
        elapsed: Steps, samples and seconds to go on from, as a loop returned them; by default those of a resumed run
            whose batches are `scheduled`.
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
    start, steps, end = read_tasks(tasks, callbacks)
    until = None if stop is None else as_stop("stop", stop)
    batches = opened(dataset)
    finished = getattr(dataset, "resumed_at", Elapsed()) if elapsed is None else elapsed
    total = until if isinstance(until, Period) else None
    here = LoopState(state, finished, History() if history is None else history, total=total, metadata=metadata)
    origin, token = time.monotonic() - finished.time, _depth.set(_depth.get() + 1)
    with contextlib.ExitStack() as endings:
        # They are called from the last to the first, each of them whatever the others raise.
        endings.callback(_depth.reset, token)
        endings.callback(here.commit)
        if batches is not dataset and hasattr(batches, "close"):
            endings.callback(batches.close)
        for call in reversed(end):
            endings.callback(here.call, (call,))
        try:
            here.call(start)
            here.commit()
            for now, batch in () if here.stop_iteration else counted(batches, until, finished, origin):
                here.batch, here.state_before, here.elapsed = batch, here.state, now
                for condition, calls in steps:
                    if condition(now):
                        here.call(calls)
                here.commit()
                finished = now
                if here.stop_iteration:
                    break
        except KeyboardInterrupt:
            here.is_interrupted = True
        except BaseException as error:
            here.error = error
            raise
        finally:
            # A step that was cut short does not count.
            here.logs.clear()
            here.elapsed = finished._replace(time=max(finished.time, time.monotonic() - origin))
    if here.is_interrupted and (_depth.get() or not catch_keyboard_interrupt):
        raise KeyboardInterrupt
    return here.state, here.history, here.elapsed


def read_tasks(tasks: Any, callbacks: Any) -> tuple[list[Call], list[tuple[Condition, list[Call]]], list[Call]]:
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
    plan = {when: _as_list("tasks", value) for when, value in (tasks or {}).items()}
    start, end, extra = plan.pop("on_start", []), plan.pop("on_end", []), _as_list("callbacks", callbacks)
    # Each once, even if it stands in several places.
    objects = {id(one): one for one in [*(one for several in plan.values() for one in several), *extra]}.values()
    steps = [(as_trigger("tasks' key", when), _calls("tasks", several)) for when, several in plan.items()]
    return (
        [*_calls("tasks", start), *_hooks(objects, "on_start")],
        [*steps, (always, _calls("callbacks", extra))],
        [*_calls("tasks", end), *_hooks(objects, "on_end")],
    )


def _calls(name: str, callbacks: Iterable[Any]) -> list[Call]:
    return [inject(name, one) for one in callbacks if callable(one) or hasattr(one, "on_step")]


def _hooks(callbacks: Iterable[Any], hook: str) -> list[Call]:
    return [inject(hook, getattr(one, hook)) for one in callbacks if hasattr(one, hook)]


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

"""LoopState: where a loop is; and callbacks, whose arguments are read once from their signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..events.caller import warn
from ..triggers import Elapsed
from .elapsed_data import Period
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

"""Tasks: the callbacks of a loop and when they are due, read once from the user's arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ..triggers import Condition, as_trigger
from ..triggers.when import Every
from .inject import Call, inject

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

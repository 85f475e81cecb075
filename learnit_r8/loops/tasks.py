"""Tasks: the callbacks of a loop and when they are due, read once from the user's arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ..triggers import Condition, as_trigger
from ..triggers.when import Every
from .inject import Call, injected

Step = tuple[Condition | None, tuple[Call, ...]]
"""When, None for every step, and what."""

HOOKS = (
    "on_start",
    "on_step",
    "on_end",
    "on_epoch_start",
    "on_epoch_end",
    "on_train_step",
    "on_reset_step",
    "on_test_start",
    "on_test_step",
    "on_test_end",
    "on_predict_step",
)
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
    start, end = as_list("tasks", plan.pop("on_start", None)), as_list("tasks", plan.pop("on_end", None))
    written = [(when, one) for when, value in plan.items() for one in as_list("tasks", value)]
    extra = as_list("callbacks", callbacks)
    objects = [one for _, one in written] + extra
    return Tasks(
        (*_calls("tasks", start), *hooks(objects, "on_start")),
        (*_steps(plan), *(((None, _calls("callbacks", extra)),) if extra else ())),
        (*_calls("tasks", end), *hooks(objects, "on_end")),
    )


def _steps(plan: Mapping[Any, Any]) -> Iterable[Step]:
    for when, value in plan.items():
        yield _condition(when), _calls("tasks", as_list("tasks", value))


def read_named(tasks: Any, callbacks: Any, names: tuple[str, ...]) -> dict[str, tuple[Step, ...]]:
    """Read the arguments of a loop whose tasks have names.

    Args:
        tasks: ``{name: callbacks}`` or ``{name: {when: callbacks}}``, or None.
        callbacks: Objects with methods of these names; or None.
        names: Which names there are.

    Returns:
        For each name, when and what.

    Raises:
        TypeError: no mapping, or one of them is not a callback.
        ValueError: a name that this loop does not have.
    """
    if tasks is not None and not isinstance(tasks, Mapping):
        raise TypeError(f"tasks must be a dictionary {{name: callbacks}}, got {tasks!r}.")
    unknown = [name for name in tasks or {} if name not in names]
    if unknown:
        raise ValueError(f"tasks must have the keys {names}, got {unknown}.")
    objects = as_list("callbacks", callbacks)
    named = {name: (*_named_steps(name, (tasks or {}).get(name)), (None, hooks(objects, name))) for name in names}
    started = [one for value in (tasks or {}).values() for one in _objects_of(value) if one not in objects]
    return {**named, "on_start": (*named["on_start"], (None, hooks(started, "on_start")))}


def _objects_of(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [one for each in value.values() for one in _objects_of(each)]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _named_steps(name: str, value: Any) -> Iterable[Step]:
    if isinstance(value, Mapping):
        return _steps(value)
    return [(None, _calls(f"tasks[{name!r}]", as_list(f"tasks[{name!r}]", value)))]


def _condition(when: Any) -> Condition | None:
    condition = as_trigger("tasks' key", when)
    # Asking a trigger costs as much as a small step.
    is_always = isinstance(condition, Every) and (condition.unit, condition.interval) == ("steps", 1)
    return None if is_always and condition.offset <= 1 else condition  # type: ignore[attr-defined]


def _calls(name: str, callbacks: Iterable[Any]) -> tuple[Call, ...]:
    return tuple(injected(name, one) for one in callbacks if callable(one) or hasattr(one, "on_step"))


def hooks(callbacks: Iterable[Any], hook: str) -> tuple[Call, ...]:
    """The methods of this name, once for each object even if it stands in several places."""
    found: dict[int, Call] = {}
    for callback in callbacks:
        if hasattr(callback, hook) and id(callback) not in found:
            found[id(callback)] = injected(hook, getattr(callback, hook))
    return tuple(found.values())


def as_list(name: str, value: Any) -> list[Any]:
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

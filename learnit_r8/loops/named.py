"""train_loop, test_loop, predict_loop: loops whose tasks have names instead of triggers, built from `loop`."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

from ..triggers import Condition, Elapsed, every, never
from .elapse import opened
from .history import History
from .inject import Call
from .inner import inner_loop
from .period import as_period
from .run import run_loop
from .state import LoopState
from .tasks import Step, Tasks, read_named, read_tasks

on_start = "on_start"
on_epoch_start = "on_epoch_start"
on_train_step = "on_train_step"
on_reset_step = "on_reset_step"
on_test_start = "on_test_start"
on_test_step = "on_test_step"
on_test_end = "on_test_end"
on_predict_step = "on_predict_step"
on_epoch_end = "on_epoch_end"
on_end = "on_end"

_TEST = (on_test_start, on_reset_step, on_test_step, on_test_end)
_TRAIN = (on_start, on_epoch_start, on_train_step, *_TEST, on_epoch_end, on_end)


def train_loop(
    state: Any,
    dataset: Any,
    tasks: Any = None,
    callbacks: Any = None,
    *,
    test_dataset: Any = None,
    epoch_duration: Any = None,
    test_name: str = "test",
    stop: Any = None,
    history: History | None = None,
    elapsed: Elapsed | None = None,
    metadata: Any = None,
    catch_keyboard_interrupt: bool = True,
) -> tuple[Any, History, Elapsed]:
    """Train in epochs, with a test after each.

    Within a step: ``on_epoch_start`` and ``on_reset_step`` if an epoch begins, ``on_train_step``, and if the epoch
    ends the test (``on_test_start``, ``on_reset_step``, ``on_test_step`` for each batch, ``on_test_end``, on a state
    that is dropped afterwards) and ``on_epoch_end``; then the callbacks. The test's entries are called
    "metric_test". The last epoch ends with the run, however short, but not with Ctrl-C.

    Args:
        state: As in `loop`.
        dataset: As in `loop`; with a ``stop``, one that can be iterated again is repeated until then.
        tasks: ``{name: callback or callbacks}`` or ``{name: {when: callbacks}}``; left as it is.
        callbacks: Called at every step, and objects with methods of these names.
        test_dataset: Batches for ``on_test_step``: an iterable that can be iterated again, or a function.
        epoch_duration: Steps, a time such as "5min", or a `Period` of one unit; by default the length of the data
            set if it has one, else the whole run is one epoch.
        test_name: What is appended to the names of the test's entries.
        stop: As in `loop`.
        history: As in `loop`.
        elapsed: As in `loop`.
        metadata: As in `loop`.
        catch_keyboard_interrupt: As in `loop`.

    Returns:
        As `loop`.

    Raises:
        TypeError: something is no data set or no callback.
        ValueError: an unknown name, ``stop`` or ``epoch_duration`` that does not say when, or a test data set that
            cannot be gone through twice.
    """
    named = read_named(tasks, callbacks, _TRAIN)
    is_epoch_end = _epoch_end(dataset, epoch_duration)
    epochs = _Epochs(named, _tester(named, test_dataset, test_name))
    plan = Tasks(
        _at_once(named[on_start]),
        (
            (lambda _: epochs.is_new, (epochs.start,)),
            *named[on_train_step],
            (is_epoch_end, (epochs.end,)),
            *read_tasks(None, callbacks).steps,
        ),
        (epochs.finish, *_at_once(named[on_end])),
    )
    return run_loop(
        state,
        dataset if stop is None else lambda: _repeated(dataset),
        plan,
        stop=stop,
        history=history,
        elapsed=elapsed,
        metadata=metadata,
        catch_keyboard_interrupt=catch_keyboard_interrupt,
    )


def test_loop(state: Any, dataset: Any, tasks: Any = None, callbacks: Any = None, **options: Any) -> Any:
    """Go through a data set to test on: ``on_start``, ``on_test_start``, ``on_reset_step``, then ``on_test_step``.

    Args:
        state: As in `loop`.
        dataset: As in `loop`.
        tasks: ``{name: callback or callbacks}`` or ``{name: {when: callbacks}}``; left as it is.
        callbacks: Called at every step, and objects with methods of these names.
        **options: As in `loop`.

    Returns:
        As `loop`.

    Raises:
        TypeError: something is no data set or no callback.
        ValueError: an unknown name.
    """
    return _simple_loop(state, dataset, tasks, callbacks, (on_start, *_TEST, on_end), on_test_step, options)


# Its name would make pytest take it for a test wherever it is imported.
test_loop.__test__ = False  # type: ignore[attr-defined]


def predict_loop(state: Any, dataset: Any, tasks: Any = None, callbacks: Any = None, **options: Any) -> Any:
    """Go through a data set to predict: ``on_start``, ``on_predict_step`` for each batch, ``on_end``.

    Args:
        state: As in `loop`.
        dataset: As in `loop`.
        tasks: ``{name: callback or callbacks}`` or ``{name: {when: callbacks}}``; left as it is.
        callbacks: Called at every step, and objects with methods of these names.
        **options: As in `loop`.

    Returns:
        As `loop`.

    Raises:
        TypeError: something is no data set or no callback.
        ValueError: an unknown name.

    >>> from learnit_r8.loops import logs
    >>> double = lambda state, batch: logs().add_output("twice", state * batch)
    >>> predict_loop(2, [1, 2, 3], {on_predict_step: double})[1].collect("twice")
    [2, 4, 6]
    """
    names = (on_start, on_predict_step, on_end)
    return _simple_loop(state, dataset, tasks, callbacks, names, on_predict_step, options)


def _simple_loop(
    state: Any, dataset: Any, tasks: Any, callbacks: Any, names: tuple[str, ...], step: str, options: dict[str, Any]
) -> tuple[Any, History, Elapsed]:
    named = read_named(tasks, callbacks, names)
    before, after = names[: names.index(step)], names[names.index(step) + 1 :]
    plan = Tasks(
        tuple(call for name in before for call in _at_once(named[name])),
        (*named[step], *read_tasks(None, callbacks).steps),
        tuple(call for name in after for call in _at_once(named[name])),
    )
    return run_loop(state, dataset, plan, **options)


class _Epochs:
    """What belongs to an epoch as a whole."""

    def __init__(self, named: dict[str, tuple[Step, ...]], test: Call | None) -> None:
        self.is_new = True
        self._starting = _at_once(named[on_epoch_start]) + _at_once(named[on_reset_step])
        self._ending = (*((test,) if test is not None else ()), *_at_once(named[on_epoch_end]))

    def start(self, here: LoopState) -> None:
        self.is_new = False
        here.call(self._starting)

    def end(self, here: LoopState) -> None:
        self.is_new = True
        here.call(self._ending)

    def finish(self, here: LoopState) -> None:
        """End the epoch that the end of the run has cut short."""
        if not (self.is_new or here.is_interrupted or here.error):
            self.end(here)


def _at_once(steps: tuple[Step, ...]) -> tuple[Call, ...]:
    """Callbacks of a name that is not asked at every step; their triggers see where the run is."""
    return tuple(_asked(condition, calls) for condition, calls in steps)


def _asked(condition: Condition | None, calls: tuple[Call, ...]) -> Call:
    def call(here: LoopState) -> None:
        if condition is None or condition(here.elapsed):
            here.call(calls)

    return call


def _tester(named: dict[str, tuple[Step, ...]], dataset: Any, name: str) -> Call | None:
    """The test at an epoch's end, as a call of the outer loop; None without a test data set."""
    if dataset is None:
        return None
    if isinstance(dataset, Iterator):
        raise ValueError(
            f"test_dataset must be something to go through once an epoch, got {dataset!r}; pass a function."
        )
    before = _at_once(named[on_test_start]) + _at_once(named[on_reset_step])
    plan = Tasks(before, named[on_test_step], _at_once(named[on_test_end]))
    test = inner_loop(name, lambda state: run_loop(state, dataset, plan))
    return lambda here: test(here.state)


def _epoch_end(dataset: Any, duration: Any) -> Condition:
    if duration is None:
        duration = len(dataset) or None if isinstance(dataset, Sized) else getattr(dataset, "steps_per_epoch", None)
    if duration is None:
        return never
    limits = as_period("epoch_duration", duration).limits()
    if len(limits) != 1 or not limits[0][1]:
        raise ValueError(f"epoch_duration must be > 0 and of one unit, got {duration!r}.")
    return every(**dict(limits))  # type: ignore[arg-type]


def _repeated(dataset: Any) -> Iterator[Any]:
    """The batches of a data set again and again, if it can be gone through again and has any."""
    batches, is_empty = opened(dataset), False
    while not is_empty:
        is_empty = True
        for batch in batches:
            is_empty = False
            yield batch
        if batches is dataset:
            return
        batches = opened(dataset)

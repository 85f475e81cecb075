"""Learning-rate schedulers of torch's kind: one that shows R8's rates, and what the user's own ones say of theirs."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, ExponentialLR, LRScheduler, OneCycleLR

from ..bridge.group_rates import is_close, is_set_by_r8, plain_optimizer, rates_of
from .state import ModelState, as_arrays, as_tensors

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler

HELD = "a {} holds the optimizer, whose rate R8 sets"

STARTS_OVER = (
    "the run was resumed, but its {} starts over from step 0, as R8 was not given it, so the learning rate is not that "
    'of the interrupted run. Write attach(..., also={{"schedule": schedule}}); the checkpoints so far do not hold it.'
)

NUM_LOOKS = 3
"""Steps of the optimizer after a resume that show how a schedule counts."""


def peak_under_schedules(optimizer: Any) -> tuple[float, str] | None:
    """The highest rate of an optimizer as its schedules of torch show it, as the present one may be what they wrote.

    Without a schedule the present rate is the user's: a loaded optimizer carries the ``initial_lr`` of another run.
    The same holds under a `ReduceLROnPlateau`, which leaves no trace in the optimizer.

    Returns:
        The rate, and a sentence on where it comes from; None if no schedule holds the optimizer, or R8 has set it.

    Raises:
        ValueError: they do not show it.
    """
    groups = optimizer.param_groups
    # To look for schedules takes as long as a hundred small steps.
    if is_set_by_r8(optimizer) or not any("initial_lr" in group for group in groups):
        return None
    schedules = _used_schedules(optimizer)
    if not schedules:
        return None
    # Of one that is made of others, itself.
    outer = max(schedules, key=lambda each: len(getattr(each, "_schedulers", ())))
    held, now = HELD.format(type(outer).__name__), rates_of(optimizer)
    # A loaded optimizer may carry the max_lr of another run, too.
    has_max = any(isinstance(each, OneCycleLR) or not type(each).__module__.startswith("torch.") for each in schedules)
    is_hidden = any(isinstance(each, CyclicLR) for each in schedules)
    keys = [] if is_hidden else ["max_lr", "initial_lr"][not has_max :]
    shown = {key: [float(group[key]) for group in groups] for key in keys if all(key in group for group in groups)}
    if not (max(now) > 0 and any(all(map(is_close, now, rates)) for rates in shown.values())):
        others = "".join(f", {key} {max(rates):.6g}" for key, rates in shown.items())
        raise ValueError(
            f"initial_lr must be given, the peak of R8's schedule: {held}, got its lr {max(now):.6g}{others}. Or take "
            "that schedule out; or keep it, with scheduler_mode='keep'."
        )
    key, rates = next(iter(shown.items()))
    differs = "" if all(map(is_close, now, rates)) else f", not {max(now):.6g}, its present rate"
    text = (
        f"{held}: the peak is {max(rates):.6g}, its {key}{differs}. Take that schedule out; initial_lr= gives another."
    )
    return max(rates), text


def _used_schedules(optimizer: Any) -> list[Any]:
    """The live schedules, without those that are no longer used and wait in a cycle for the collector."""
    if not _live_schedules(optimizer):
        return []
    gc.collect()
    return _live_schedules(optimizer)


def _live_schedules(optimizer: Any) -> list[Any]:
    """The schedules of torch's kind that somebody holds; an optimizer does not know which ones it has."""
    found: list[Any] = []
    holders: list[Any] = [optimizer, plain_optimizer(optimizer)]
    known = set(map(id, holders))
    while holders:
        # Faster by far than a look at each object: torch alone makes 300,000.
        others = [each for each in gc.get_referrers(*holders) if id(each) not in known and each is not holders]
        known.update(map(id, others))
        # Not by isinstance(), for which a proxy may load or import what it stands for.
        found += [each for each in others if issubclass(type(each), LRScheduler) and type(each) is not R8LRScheduler]
        # An attribute may be held by way of the object's dictionary, and the optimizer by way of what is wrapped around
        # it; the variables of a module are neither.
        holders = [
            each
            for each in others
            if issubclass(type(each), Optimizer)
            or (type(each) is dict and "__name__" not in each and any(each.get("optimizer") is one for one in holders))
        ]
    return found


class _Rated(Protocol):
    """What an adapter gives: its optimizer, and the scheduler's state once the losses on their way have come."""

    optimizer: Any
    scheduler: R8Scheduler

    def flush(self) -> None: ...

    def load_scheduler(self, state: Mapping[str, Any]) -> None: ...


class R8LRScheduler(LRScheduler):
    """Shows the rates that R8Scheduler sets, and saves its state; stepping it changes nothing.

    Args:
        adapter: Sets the rates.
    """

    def __init__(self, adapter: _Rated) -> None:
        # The constructor of the base class would take a step, and count those of the optimizer.
        self._adapter = adapter
        self.optimizer = adapter.optimizer
        # Accelerate counts in it the steps of an accumulated gradient.
        self._step_count = 0
        self.base_lrs = [group.get("initial_lr", group["lr"]) for group in adapter.optimizer.param_groups]

    @property
    def last_epoch(self) -> int:  # type: ignore[override]
        """Steps reported so far, which is what torch counts here."""
        return self._adapter.scheduler.global_step

    def step(self, *_: Any) -> None:
        """Do nothing: the rate moves on with each batch reported."""

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """The rate of each parameter group."""
        return rates_of(self.optimizer)

    get_lr = get_last_lr  # type: ignore[assignment]

    def state_dict(self) -> dict[str, Any]:
        """The whole scheduler's state as tensors and plain values; ``torch.load(weights_only=True)`` reads it.

        The losses on their way are waited for.
        """
        self._adapter.flush()
        state: dict[str, Any] = as_tensors(self._adapter.scheduler.state_dict())
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ValueError: it is of another run.
        """
        self._adapter.load_scheduler(as_arrays(state_dict))


class ScheduleWatch:
    """Warns if a schedule of the user's starts over in a resumed run, as its state was not kept.

    The counts of the schedule at the first steps of the optimizer tell: a schedule by steps that starts over counts up
    from 0; one by epochs has counted at most the epoch that a resume repeats the end of, though more are over.

    Args:
        optimizer: A `torch.optim.Optimizer`, or what wraps one.
        state: Knows whether the run was resumed, and which parts it has restored; an attribute, too.
        accumulate: Batches in a step of the optimizer.
    """

    def __init__(self, optimizer: Any, state: ModelState, *, accumulate: int) -> None:
        self._optimizer, self.state, self._accumulate = optimizer, state, accumulate
        self._num_looks = 0
        self._counts: list[tuple[Any, list[int]]] = []

    def look(self, r8: R8Scheduler) -> None:
        """Look at the counts, before a step of the optimizer in a resumed run, which knows the epoch, and warns."""
        if self._num_looks == NUM_LOOKS:
            return
        # Before the first step of the optimizer there is nothing to start over from.
        if self._num_looks == 0 and r8.global_step > self._accumulate:
            self._counts = [(each, []) for each in self._unknown()]
        self._num_looks += 1
        for schedule, counts in self._counts:
            # One that is a chain of others does not count by itself.
            chain = schedule, *getattr(schedule, "_schedulers", ())
            counts.append(max(getattr(each, "last_epoch", 0) for each in chain))
        if self._num_looks < NUM_LOOKS:
            return
        for schedule, (first, second, last) in self._counts:
            if 0 == first < second < last or (first <= 1 and last < r8.current_epoch):
                r8.host.say_once("schedule", STARTS_OVER.format(type(schedule).__name__))
        self._counts = []

    def _unknown(self) -> list[Any]:
        """The schedules of the optimizer whose state R8 does not keep."""
        found = _used_schedules(self._optimizer)
        parts = {id(part) for each in found for part in getattr(each, "_schedulers", ())}
        # The next rate of an ExponentialLR depends on nothing but the last one, which the optimizer holds.
        return [
            each
            for each in found
            if id(each) not in parts and type(each) is not ExponentialLR and not self.state.holds(each)
        ]

"""PAMIQ's schedulers: they keep to a grid, and repeat none of the faults of those they are called after."""

from __future__ import annotations

import copy
import math
import pickle
import sys
import threading
import time
from datetime import timedelta

import pytest

from learnit_r8.triggers import Scheduler, StepIntervalScheduler, TimeIntervalScheduler


def poll(scheduler, clock, *, seconds, every_seconds=1.0):
    """Update until so many seconds later."""
    end = clock.now + seconds
    while clock.now < end:
        clock.now += every_seconds
        scheduler.update()


class TestPamiqDefects:
    """What the schedulers that these classes are called after get wrong."""

    def test_a_missed_tick(self, clock):
        """The question is put once an update, and its answer holds: no interval can end between two readings."""
        calls = []
        scheduler = TimeIntervalScheduler(10, lambda: calls.append(clock.now - 1000))
        clock.readings = 0
        # The clock jumps over the line after its first reading of the update.
        readings = iter([1009.9, 1010.1])
        time_source = lambda: next(readings)  # noqa: E731
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "monotonic", time_source)
            scheduler.update()
        assert calls == []
        clock.now = 1010.2
        scheduler.update()

        assert len(calls) == 1

    def test_one_clock_reading_a_decision(self, clock):
        scheduler = TimeIntervalScheduler(10, lambda: None)
        for now in (1005, 1010, 1011):
            clock.now, clock.readings = now, 0

            scheduler.update()

            assert clock.readings == 1

    def test_drift_with_a_slow_callback(self, clock):
        """A callback of 7 s in an interval of 10 s still comes every 10 s."""
        calls = []

        def slow():
            calls.append(clock.now - 1000)
            clock.now += 7

        poll(TimeIntervalScheduler(10, slow), clock, seconds=60)

        assert calls == [10, 20, 30, 40, 50, 60]

    def test_drift_with_rare_updates(self, clock):
        """Polled every 4 s, an interval of 10 s comes at the first poll after each line."""
        calls = []
        scheduler = TimeIntervalScheduler(10, lambda: calls.append(clock.now - 1000))

        poll(scheduler, clock, seconds=60, every_seconds=4)

        assert calls == [12, 20, 32, 40, 52, 60]

    def test_no_tick_is_lost_during_a_slow_callback(self, clock):
        """Lines that go by while a callback runs are one occasion, at the next update."""
        calls = []

        def slow():
            calls.append(clock.now - 1000)
            clock.now += 25 if len(calls) == 1 else 0

        poll(TimeIntervalScheduler(10, slow), clock, seconds=50)

        assert calls == [10, 36, 40, 50]

    def test_strictly_greater(self, clock):
        """Exactly at the interval it fires."""
        calls = []
        scheduler = TimeIntervalScheduler(10, lambda: calls.append(1))
        clock.now += 10

        scheduler.update()

        assert calls == [1]

    @pytest.mark.parametrize("interval", [0.1, 0.7, 1 / 3])
    def test_strictly_greater_by_rounding(self, clock, interval):
        """A clock that moves by the interval fires at each update, whatever the rounding of its differences."""
        calls = []
        scheduler = TimeIntervalScheduler(interval, lambda: calls.append(1))
        for _ in range(1000):
            clock.now += interval
            scheduler.update()

        assert len(calls) == 1000

    def test_interval_zero_with_a_coarse_clock(self, clock):
        """Interval 0 fires at every update, also when the clock stands still."""
        calls = []
        scheduler = TimeIntervalScheduler(0, lambda: calls.append(1))

        scheduler.update()
        scheduler.update()

        assert calls == [1, 1]

    @pytest.mark.parametrize("make", [StepIntervalScheduler, TimeIntervalScheduler])
    def test_a_failing_callback(self, make, clock):
        """It uses up its occasion like any other, and the callbacks after it run."""
        calls = []

        def fail():
            raise OSError("disk full")

        scheduler = make(
            2, [lambda: calls.append("a"), fail, lambda: calls.append("b"), fail, lambda: calls.append("c")]
        )
        errors = 0
        for _ in range(6):
            clock.now += 1
            try:
                scheduler.update()
            except OSError:
                errors += 1

        assert (errors, calls) == (3, ["a", "b", "c"] * 3)

    def test_an_interrupt_is_not_delayed(self):
        """Ctrl-C in a callback ends the update at once."""
        calls = []

        def interrupt():
            raise KeyboardInterrupt

        scheduler = StepIntervalScheduler(1, [interrupt, lambda: calls.append(1)])

        with pytest.raises(KeyboardInterrupt):
            scheduler.update()
        assert calls == []

    def test_removing_a_callback_inside_a_callback(self):
        """The next one is called all the same, and the removed one no more."""
        calls = []

        def once():
            calls.append("once")
            scheduler.remove_callback(once)

        scheduler = StepIntervalScheduler(1, [once, lambda: calls.append("other")])
        scheduler.update()
        scheduler.update()

        assert calls == ["once", "other", "other"]

    def test_wall_clock(self, clock, monkeypatch):
        """A step of the wall clock neither fires nor blocks anything."""
        calls = []
        scheduler = TimeIntervalScheduler(10, lambda: calls.append(1))
        monkeypatch.setattr(time, "time", lambda: 1e12)

        scheduler.update()

        assert calls == []

    @pytest.mark.parametrize("value", [0, -1, 2.5, math.nan, "3", None, True])
    def test_checks_of_steps(self, value):
        with pytest.raises(ValueError, match=r"interval must be a whole number >= 1, got"):
            StepIntervalScheduler(value)

    @pytest.mark.parametrize("value", [-1, math.nan, math.inf, "3", None, True])
    def test_checks_of_seconds(self, value):
        with pytest.raises(ValueError, match=r"interval must be finite seconds >= 0, got"):
            TimeIntervalScheduler(value)

    def test_no_state_dict_steps(self):
        """After a restart the count goes on."""
        calls = []
        first = StepIntervalScheduler(5)
        for _ in range(8):
            first.update()
        second = StepIntervalScheduler(5, lambda: calls.append(1))
        second.load_state_dict(first.state_dict())
        second.update()
        assert calls == []

        second.update()

        assert calls == [1]

    def test_no_state_dict_seconds(self, clock):
        """After a restart the time goes on, without the time in between."""
        calls = []
        first = TimeIntervalScheduler(10)
        poll(first, clock, seconds=16)
        state = first.state_dict()
        clock.now += 500
        second = TimeIntervalScheduler(10, lambda: calls.append(clock.now - 1516))
        second.load_state_dict(state)

        poll(second, clock, seconds=15)

        assert calls == [4, 14]

    def test_no_offset(self, clock):
        """The first occasion can be chosen: at once, as it used to be, or after any time."""
        steps, now, later = [], [], []
        by_step = StepIntervalScheduler(10, offset=1)
        by_step.register_callback(lambda: steps.append(by_step.state_dict()["steps"]))
        for _ in range(25):
            by_step.update()
        at_once = TimeIntervalScheduler(10, lambda: now.append(clock.now - 1000), offset=0)
        delayed = TimeIntervalScheduler(10, lambda: later.append(clock.now - 1000), offset=3)
        for _ in range(25):
            at_once.update()
            delayed.update()
            clock.now += 1

        rare = TimeIntervalScheduler(1e7, lambda: now.append("rare"), offset=0)
        rare.update()
        assert now.pop() == "rare"
        assert (steps, now, later) == ([1, 11, 21], [0, 10, 20], [3, 13, 23])
        with pytest.raises(ValueError, match=r"offset must be a whole number >= 1, got 0"):
            StepIntervalScheduler(3, offset=0)
        with pytest.raises(ValueError, match=r"offset must be finite seconds >= 0, got -1"):
            TimeIntervalScheduler(3, offset=-1)

    def test_no_limit(self):
        """A callback that removes itself sets the limit."""
        calls = []

        def twice():
            calls.append(1)
            if len(calls) == 2:
                scheduler.remove_callback(twice)

        scheduler = StepIntervalScheduler(1, twice)
        for _ in range(5):
            scheduler.update()

        assert len(calls) == 2

    def test_not_thread_safe(self):
        """Updates from several threads are all counted, and each occasion is taken once."""
        calls = []

        class Hesitating(StepIntervalScheduler):
            def is_available(self):
                answer = super().is_available()
                # Gives the other threads time to ask as well.
                for _ in range(20):
                    str(answer)
                return answer

        scheduler = Hesitating(10, lambda: calls.append(1))
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        threads = [threading.Thread(target=lambda: [scheduler.update() for _ in range(2500)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)

        assert len(calls) == 1000

    def test_saving_follows_any_condition(self):
        """A scheduler of one's own fires when its condition says so; never is the trigger for not at all."""

        class WhenBetter(Scheduler):
            loss = 1.0

            def is_available(self):
                return self.loss < 0.5

        calls = []
        scheduler = WhenBetter(lambda: calls.append(scheduler.loss))
        for scheduler.loss in (0.9, 0.4, 0.6, 0.3):
            scheduler.update()

        assert calls == [0.4, 0.3]


class TestScheduler:
    def test_is_abstract(self):
        with pytest.raises(TypeError, match="abstract"):
            Scheduler()

    def test_asks_and_updates_once(self):
        """A subclass that overrides both: each is called once an update, and each callback once."""
        log = []

        class Mine(Scheduler):
            def is_available(self):
                log.append("is_available")
                return True

            def update(self):
                log.append("update")
                super().update()

        Mine(lambda: log.append("callback")).update()

        assert log == ["update", "is_available", "callback"]

    def test_a_condition_may_hold_an_occasion_back(self):
        """What a subclass's condition delays is not lost: it comes when the condition allows it."""

        class OnlyOdd(StepIntervalScheduler):
            def is_available(self):
                return super().is_available() and self.state_dict()["steps"] % 2 == 1

        calls = []
        scheduler = OnlyOdd(4, lambda: calls.append(scheduler.state_dict()["steps"]))
        for _ in range(13):
            scheduler.update()

        assert calls == [5, 9, 13]

    def test_takes_one_callback_several_or_none(self):
        calls = []
        one, two = (lambda: calls.append(1)), (lambda: calls.append(2))
        StepIntervalScheduler(1).update()
        StepIntervalScheduler(1, one).update()
        StepIntervalScheduler(1, (one, two)).update()
        StepIntervalScheduler(interval=1, callbacks=iter([two])).update()

        assert calls == [1, 1, 2, 2]

    def test_registers_and_removes_bound_methods(self):
        class Owner:
            def __init__(self):
                self.calls = 0

            def act(self):
                self.calls += 1

        owner = Owner()
        scheduler = StepIntervalScheduler(1, owner.act)
        scheduler.update()
        scheduler.remove_callback(owner.act)
        scheduler.update()

        assert owner.calls == 1

    def test_removing_what_is_not_there(self):
        with pytest.raises(ValueError, match=r"callback must be one that is registered, got <built-in function print>"):
            StepIntervalScheduler(1).remove_callback(print)

    def test_callbacks_are_callable(self):
        with pytest.raises(TypeError, match=r"callback must be a function without arguments, got 5"):
            StepIntervalScheduler(1, [5])
        with pytest.raises(TypeError, match=r"callback must be a function without arguments, got None"):
            StepIntervalScheduler(1).register_callback(None)

    def test_an_update_inside_a_callback_does_not_hang(self):
        calls = []

        def again():
            calls.append(1)
            if len(calls) < 3:
                scheduler.update()

        scheduler = StepIntervalScheduler(1, again)
        scheduler.update()

        assert len(calls) == 3

    def test_asking_does_not_take_the_occasion(self):
        scheduler = StepIntervalScheduler(1, lambda: None)
        assert not scheduler.is_available()
        calls = []
        held = StepIntervalScheduler(2, lambda: calls.append(1))
        held.update()
        held.is_available()
        held.update()

        assert calls == [1]

    def test_can_be_copied_and_pickled(self):
        """Trainers that hold one stay copyable."""
        scheduler = StepIntervalScheduler(3, print)
        scheduler.update()

        for twin in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
            twin.update()
            assert twin.state_dict() == {"steps": 2, "last": 0}

    def test_a_scheduler_without_memory_has_an_empty_state(self):
        class Mine(Scheduler):
            def is_available(self):
                return False

        scheduler = Mine()
        scheduler.load_state_dict(scheduler.state_dict())

        assert scheduler.state_dict() == {}

    def test_timedelta(self, clock):
        calls = []
        scheduler = TimeIntervalScheduler(timedelta(minutes=1), lambda: calls.append(clock.now - 1000))

        poll(scheduler, clock, seconds=125)

        assert calls == [60, 120]

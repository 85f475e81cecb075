"""Counters and clocks of triggers: what they accept, and that they go on elsewhere where they were."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from learnit_r8.triggers import ElapsedCounter, TimeIntervalScheduler, every


@pytest.mark.parametrize("given", [{"steps": -1}, {"samples": -1}, {"steps": 0.5}])
def test_a_counter_never_goes_back(given):
    """What is finished cannot become less."""
    with pytest.raises(ValueError, match=r"must be a whole number >= 0, got (-1|0.5)"):
        ElapsedCounter().count(**given)


@pytest.mark.parametrize("seconds", [np.int64(2), np.float32(2)])
def test_times_may_be_numbers_of_numpy(seconds):
    """A number is a number."""
    assert every(time=seconds).interval == 2.0


def test_a_pickled_scheduler_goes_on_on_another_clock(monkeypatch):
    """The clock of another process begins elsewhere; an occasion comes after the seconds that were left."""
    now, called = [1000.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    timed = TimeIntervalScheduler(10)
    counter = ElapsedCounter()
    now[0] += 7
    saved = pickle.dumps((timed, counter))
    now[0] = 5.0
    timed, counter = pickle.loads(saved)
    timed.register_callback(lambda: called.append(now[0]))
    for _ in range(5):
        now[0] += 1
        timed.update()

    assert called == [8.0]
    assert counter.count().time == pytest.approx(12)

"""Triggers: pure questions about Elapsed, and the counter that makes one."""

from __future__ import annotations

import copy
import math
from datetime import timedelta
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.triggers import (
    Elapsed,
    ElapsedCounter,
    after,
    always,
    at,
    every,
    never,
)


def run(steps, *, samples=4, seconds=0.5, stride=1):
    """The questions of a run that is asked after every ``stride`` steps."""
    last = (0, 0, 0.0)
    for step in range(stride, steps + 1, stride):
        now = (step, step * samples, step * seconds)
        yield Elapsed(*now, *last)
        last = now


def fired(trigger, **how):
    return [elapsed.steps for elapsed in run(60, **how) if trigger(elapsed)]


TRIGGERS = {
    "every steps": (lambda: every(steps=20), [20, 40, 60]),
    "every, positional": (lambda: every(20), [20, 40, 60]),
    "every samples": (lambda: every(samples=80), [20, 40, 60]),
    "every samples, no multiple": (lambda: every(samples=90), [23, 45]),
    "every seconds": (lambda: every(time=10), [20, 40, 60]),
    "every timedelta": (lambda: every(time=timedelta(seconds=10)), [20, 40, 60]),
    "every with offset": (lambda: every(steps=20, steps_offset=5), [5, 25, 45]),
    "every with a late offset": (lambda: every(steps=20, steps_offset=45), [45]),
    "after.every": (lambda: after(5).every(20), [5, 25, 45]),
    "after.every seconds": (lambda: after(time=5).every(time=10), [10, 30, 50]),
    "after.every, other unit": (lambda: after(time=15).every(20), [40, 60]),
    "after": (lambda: after(58), [58, 59, 60]),
    "after samples": (lambda: after(samples=236), [59, 60]),
    "at": (lambda: at(7), [7]),
    "at several": (lambda: at(7, 9, 11), [7, 9, 11]),
    "at samples": (lambda: at(samples=30), [8]),
    "at seconds": (lambda: at(time=1.2), [3]),
    "always": (lambda: always, list(range(1, 61))),
    "never": (lambda: never, []),
    "and": (lambda: every(4) & every(6), [12, 24, 36, 48, 60]),
    "or": (lambda: every(20) | at(7), [7, 20, 40, 60]),
    "not": (lambda: ~after(3), [1, 2]),
    "nested": (lambda: every(20) & ~(at(40) | never), [20, 60]),
    "function on the right": (lambda: every(10) & (lambda elapsed: elapsed.steps > 30), [40, 50, 60]),
    "function on the left": (lambda: (lambda elapsed: elapsed.steps == 3) | every(30), [3, 30, 60]),
    "function and": (lambda: (lambda elapsed: elapsed.steps > 50) & every(30), [60]),
}


@pytest.fixture(params=TRIGGERS, ids=str)
def case(request):
    make, expected = TRIGGERS[request.param]
    return make(), expected


class TestEveryTrigger:
    """The suite that every trigger passes."""

    def test_fires_where_it_says(self, case):
        trigger, expected = case

        assert fired(trigger) == expected

    def test_answers_with_a_bool(self, case):
        trigger, _ = case

        assert {type(trigger(elapsed)) for elapsed in run(60)} == {bool}

    def test_asking_changes_nothing(self, case):
        """Two runs, or two askers, with the same trigger do not disturb each other."""
        trigger, expected = case

        assert [e.steps for e in run(60) if trigger(e) | trigger(e)] == expected == fired(trigger)

    def test_is_never_equal_to_another_and_can_be_a_key(self, case):
        trigger, _ = case

        assert {trigger: 1, ~~trigger: 2}[trigger] == 1

    def test_has_no_truth_of_its_own(self, case):
        trigger, _ = case

        with pytest.raises(TypeError, match=r"combined with & \| ~"):
            bool(trigger)

    def test_does_not_read_the_clock(self, case, clock):
        trigger, _ = case

        fired(trigger)

        assert clock.readings == 0

    def test_can_be_copied(self, case):
        trigger, expected = case

        assert fired(copy.deepcopy(trigger)) == expected


def test_a_late_question_is_answered_yes_once():
    """Grid lines that went by unasked are one yes, and the next one is where it always was."""
    assert fired(every(10), stride=15) == [15, 30, 45, 60]
    assert [
        e.steps for e in (Elapsed(59), Elapsed(185, last_steps=59), Elapsed(190, last_steps=185)) if every(60)(e)
    ] == [185]


@given(st.lists(st.floats(0, 50), min_size=1, max_size=30), st.floats(0.01, 20))
def test_each_line_of_the_grid_is_answered_once(gaps, interval):
    """However irregular the questions, a yes means that the number of lines passed has grown."""
    last, trigger = 0.0, every(time=interval)
    for gap in gaps:
        now = last + gap

        assert trigger(Elapsed(time=now, last_time=last)) == (lines(now, interval) > lines(last, interval))
        last = now


def lines(now, interval):
    """Lines of a grid up to now; one that is a rounding error away counts."""
    return math.floor((now + 1e-6 * interval) / interval)


@pytest.mark.parametrize("interval", [0.1, 0.3, 1 / 3, 0.7, 60.0])
def test_questions_exactly_on_the_lines_are_all_answered_yes(interval):
    """Rounding neither delays a line nor merges it with the next one, however the clock's readings were made."""
    summed, total = [], 0.0
    for _ in range(2000):
        total += interval
        summed.append(total)
    for readings in (summed, [k * interval for k in range(1, 2001)], [(5e4 + t) - 5e4 for t in summed]):
        answers = [every(time=interval)(Elapsed(time=b, last_time=a)) for a, b in pairwise([0.0, *readings])]

        assert answers == [True] * 2000


def test_large_counts_are_exact():
    """What is whole is not rounded: one sample too few is too few."""
    trigger = every(samples=10**7)

    assert not trigger(Elapsed(samples=10**7 - 1, last_samples=10**7 - 33))
    assert trigger(Elapsed(samples=10**16, last_samples=10**16 - 1))


def test_samples_keep_to_the_grid_when_batches_do_not():
    """Batches of 32 and a grid of 100: the yes comes at the batch that crosses each hundred."""
    answers = [e.samples for e in run(20, samples=32) if every(samples=100)(e)]

    assert answers == [128, 224, 320, 416, 512, 608]


def test_both_sides_of_a_combination_are_asked():
    """A function that counts its questions counts all of them, whatever the other side says."""
    asked = []
    count = lambda elapsed: asked.append(elapsed.steps)  # noqa: E731

    list(map(always | count, run(3)))
    list(map(never & count, run(3)))

    assert asked == [1, 2, 3, 1, 2, 3]


def test_a_trigger_reads_the_names_of_any_object():
    here = SimpleNamespace(steps=10, samples=0, time=0.0, last_steps=9, last_samples=0, last_time=0.0)

    assert every(10)(here)


class TestElapsedCounter:
    def test_counts_and_remembers_the_question_before(self, clock):
        counter = ElapsedCounter()
        counter.count(samples=32)
        clock.now += 5

        assert counter.count(samples=8) == Elapsed(2, 40, 5.0, 1, 32, 0.0)

    def test_reads_the_clock_once_a_count(self, clock):
        counter = ElapsedCounter()
        clock.readings = 0

        counter.count()

        assert clock.readings == 1

    def test_goes_on_after_a_restart(self, clock):
        """Time between two processes does not count, and no line of the grid comes twice."""
        counter = ElapsedCounter()
        clock.now += 7
        counter.count(steps=9, samples=90)
        state = counter.state_dict()
        clock.now += 1000

        counter = ElapsedCounter()
        counter.load_state_dict(state)
        clock.now += 4

        assert counter.count() == Elapsed(10, 90, 11.0, 9, 90, 7.0)


# fmt: off
MISTAKES = [
    *[(lambda value=value: every(steps=value), ValueError, "(steps must be a whole number >= 1|exactly one of)")
      for value in (0, -1, 2.5, "3", True, math.nan, None)],
    *[(lambda value=value: every(time=value), ValueError, "time must be finite seconds > 0, got")
      for value in (0, -1, math.nan, math.inf, "3", True)],
    *[(lambda make=make: make(), ValueError, "exactly one of steps, samples and time must be given, got none")
      for make in (every, after, at, after(3).every)],
    *[(lambda make=make: make(samples=3, time=5), ValueError,
       r"exactly one of steps, samples and time must be given, got \{")
      for make in (every, after, at, after(3).every)],
    *[(lambda make=make: make(3, time=5), ValueError, "exactly one of")
      for make in (every, after, at, after(3).every)],
    (lambda: every(time=3, steps_offset=5), ValueError, "steps_offset must come with steps, got 5 with time"),
    (lambda: every(3, steps_offset=-5), ValueError, "steps_offset must be a whole number >= 0, got -5"),
    (lambda: at(3, 0), ValueError, "steps must be a whole number >= 1, got 0"),
    *[(lambda combine=combine: combine(), TypeError, "unsupported operand")
      for combine in (lambda: every(3) & 5, lambda: 5 | every(3), lambda: every(3) | None, lambda: 5 & every(3))],
]
# fmt: on


@pytest.mark.parametrize(("act", "error", "text"), MISTAKES, ids=[text[:45] for *_, text in MISTAKES])
def test_a_mistake_is_named(act, error, text):
    """By the argument or call, with what was given."""
    with pytest.raises(error, match=text):
        act()

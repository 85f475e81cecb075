"""Triggers that are asked only when they may say yes fire when those that are asked at every step do."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import R8Scheduler
from learnit_r8.testing import FakeClock
from learnit_r8.triggers import Elapsed, after, always, at, every, never, quiet_until

LEAVES = st.one_of(
    st.builds(every, st.integers(1, 9), steps_offset=st.integers(0, 5)),
    st.builds(lambda seconds: every(time=seconds), st.floats(0.1, 5.0)),
    st.builds(lambda samples: every(samples=samples), st.integers(1, 50)),
    st.builds(lambda step: at(step, step + 3), st.integers(1, 20)),
    st.builds(lambda seconds: at(time=seconds), st.floats(0.1, 20.0)),
    st.builds(after, st.integers(0, 20)),
    st.builds(lambda step, steps: after(step).every(steps), st.integers(0, 20), st.integers(1, 9)),
    st.sampled_from([always, never, lambda elapsed: elapsed.steps in (3, 4, 11)]),
)
TRIGGERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda a, b: every(7) | a | b, inner, inner),
        st.builds(lambda a, b: every(2) & a & b, inner, inner),
        st.builds(lambda a: ~(every(3) | a), inner),
    ),
    max_leaves=4,
)


def fired(condition, moments, *, asks_always):
    """The steps at which a condition says yes."""
    found, asked, until = [], Elapsed(), (0.0, 0.0)
    for step, seconds in enumerate(moments):
        if not asks_always and step < until[0] and seconds < until[1]:
            continue
        asked = Elapsed(step, 4 * step, seconds, asked.steps, asked.samples, asked.time)
        if condition(asked):
            found.append(step)
        until = quiet_until(condition, asked)
    return found


@given(TRIGGERS, st.lists(st.floats(0.0, 2.0), min_size=30, max_size=60))
def test_fires_at_the_same_steps(condition, pauses):
    """Whatever the trigger and however long the steps take."""
    moments = [math.fsum(pauses[:count]) for count in range(len(pauses))]

    assert fired(condition, moments, asks_always=False) == fired(condition, moments, asks_always=True)


@pytest.mark.parametrize(
    ("condition", "until"),
    [
        (every(10), (30, math.inf)),
        (every(10, steps_offset=25), (25, math.inf)),
        (at(7, 22, 40), (22, math.inf)),
        (after(21), (21, math.inf)),
        (after(20), (0, 0)),
        (never, (math.inf, math.inf)),
        (always, (0, 0)),
        (every(samples=8), (0, 0)),
        (lambda elapsed: False, (0, 0)),
        (~every(10), (0, 0)),
        (every(10) | at(26), (26, math.inf)),
        (every(10) & every(15), (30, math.inf)),
    ],
)
def test_how_long(condition, until):
    """Up to the next line or point; not at all where nobody can tell."""
    assert quiet_until(condition, Elapsed(steps=20, time=9.0)) == until


def test_nothing_is_asked_while_nothing_is_due(tmp_path):
    """A run asks its parts what is due only when something may be; a step in between pays for a comparison."""
    clock, asked = FakeClock(), []
    r8 = R8Scheduler(
        6400, batch_size=64, num_steps=90, clock=clock, checkpoint_dir=tmp_path, checkpoint_every=40,
        state_callback=lambda: {"w": 0}, load_callback=lambda state: None, backup_every="30s",
    )  # fmt: skip
    persistence = r8.host.persistence
    save = persistence.save_what_is_due
    persistence.save_what_is_due = lambda step, *rest, **more: (asked.append(step), save(step, *rest, **more))[1]
    for _ in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            clock.advance(1.0)
            r8.update_with_loss(0.5 - 0.001 * r8.global_step)

    assert sorted(set(asked)) == [0, 30, 40, 60, 80, 90]

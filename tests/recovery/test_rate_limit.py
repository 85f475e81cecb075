import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.recovery.rate_limit import HOLD_STEPS, RateLimit

ACTIONS = st.lists(
    st.one_of(
        st.just(("restored",)),
        st.just(("confirm",)),
        st.just(("forget",)),
        st.tuples(st.just("lower"), st.floats(1e-6, 10.0)),
        st.tuples(st.just("good"), st.integers(1, 200)),
    ),
    max_size=20,
)


def limit_after(actions):
    """A limit after a script, and after each part of it."""
    limit = RateLimit(0.5, 16)
    for name, *given_ in actions:
        if name == "good":
            for _ in range(given_[0]):
                limit.accepted(1.0)
        elif name == "lower":
            limit.lower(given_[0], by=2.0)
        else:
            getattr(limit, name)()
    return limit


@given(ACTIONS, st.floats(1e-9, 1e3))
def test_never_above_the_schedule(actions, scheduled):
    """Whatever happens, the rate is above zero and never exceeds the scheduled one."""
    assert 0 < limit_after(actions).lr(scheduled) <= scheduled


@given(ACTIONS)
def test_comes_back(actions):
    """With calm updates the rate is on its schedule again in the end."""
    limit = limit_after(actions)
    for _ in range(50_000):
        if limit.accepted(1.0):
            break

    assert not limit.is_on
    assert limit.lr(1.0) == 1.0


@given(ACTIONS)
def test_state(actions):
    """A limit saved as plain values at any time goes on as the original does."""
    limit, other = limit_after(actions), RateLimit(0.5, 16)
    other.load_state_dict(json.loads(json.dumps(limit.state_dict())))
    for _ in range(300):
        assert other.is_on == limit.is_on
        assert other.lr(1.0) == limit.lr(1.0)
        limit.accepted(1.0)
        other.accepted(1.0)


def test_gentle_steps():
    """After a restore the rate is multiplied for so many calm updates, and then at once back."""
    limit = RateLimit(0.5, 3)
    limit.restored()
    rates = []
    for _ in range(5):
        rates.append(limit.lr(1.0))
        limit.accepted(1.0)

    assert rates == [0.5, 0.5, 0.5, 1.0, 1.0]


def test_ceiling_is_relative_to_the_rate_that_failed():
    """A ceiling lies below the rate at which a healthy state was damaged, and not below the least."""
    limit = RateLimit(0.5, 3)
    limit.lower(0.8, by=2.0)
    assert limit.lr(1.0) == pytest.approx(0.4)
    limit.lower(0.8, by=10.0, least=0.125)

    assert limit.lr(1.0) == 0.125


def test_rate_that_failed_comes_late():
    """The ceiling is held, then rises to twice as much, and passes that only later."""
    limit = RateLimit(1.0, 0)
    limit.lower(1.0, by=10.0)
    ceilings = []
    for _ in range(4 * HOLD_STEPS + 1):
        limit.accepted(1.0)
        ceilings.append(limit.ceiling)

    assert set(ceilings[:HOLD_STEPS]) == {0.1}
    assert max(ceilings[: 4 * HOLD_STEPS - 1]) == 0.2
    assert ceilings[-1] > 0.2


def test_rate_below_a_ceiling_falls_as_the_schedule_does():
    """A ceiling is a peak: of a schedule that has fallen to a tenth, a tenth of the ceiling is left."""
    limit = RateLimit(1.0, 0)
    limit.lower(1.0, by=2.0)
    rates = []
    for scheduled in (0.4, 1.0, 2.0, 0.2):
        rates.append(limit.lr(scheduled))
        limit.accepted(scheduled)

    assert rates == [0.4, 0.5, 0.5, pytest.approx(0.05)]


def test_a_level_within_its_noise_does_not_hold_the_ceiling():
    """The ceiling rises while the losses are as good as their noise tells, and goes back where they are far worse."""
    limit = RateLimit(1.0, 0)
    limit.lower(1.0, by=10.0)
    for _ in range(2 * HOLD_STEPS):
        limit.note_level(1.0, 0.2)
        limit.note_level(1.2, 0.2)
        limit.accepted(1.0)
    risen = limit.ceiling
    limit.note_level(1.6, 0.2)

    assert (risen, limit.ceiling) == (0.2, 0.1)


def test_a_level_that_gets_worse_holds_the_ceiling():
    """While the losses are clearly worse than they were below the ceiling, it stays, however long that takes."""
    limit = RateLimit(1.0, 0)
    limit.lower(1.0, by=10.0)
    limit.note_level(1.0, 0.0)
    limit.note_level(1.3, 0.0)
    for _ in range(4 * HOLD_STEPS):
        limit.accepted(1.0)

    assert limit.ceiling == 0.1


def test_confirmed_ceiling_is_held_longer():
    """A lower rate that proved better is held four times as long."""
    limit = RateLimit(1.0, 0)
    limit.lower(1.0, by=2.0)
    limit.confirm()
    for _ in range(4 * HOLD_STEPS):
        limit.accepted(1.0)

    assert limit.ceiling == 0.5

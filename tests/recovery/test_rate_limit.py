import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.recovery.rate_limit import HOLD_STEPS, MOST_HITS, TRIAL_AFTER, RateLimit

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


def test_a_rate_that_the_step_ignores_is_asked_for_once():
    """Compiled into it: each heal lowered the ceiling further, down to 4e-18 of the rate, and nothing changed."""
    limit = limit_after([])
    limit.is_share = limit.is_ignored = True
    for _ in range(3):
        limit.lower(1.0, by=10.0)

    assert limit.was_lowered
    assert limit.ceiling_text == "0.1 of yours, which the compiled step ignores,"


def ceilings_of(limit, count, level=math.nan):
    """The ceilings after so many calm updates, with this level of the losses at every sixteenth."""
    ceilings = []
    for number in range(1, count + 1):
        if not number % 16:
            limit.note_level(level, 0.0)
        limit.accepted(1.0)
        ceilings.append(limit.ceiling)
    return ceilings


def test_a_ceiling_holds_until_the_level_before_the_damage_is_back():
    """Then it is over; without that a higher one is tried after 64 calm updates, and the next after 96 more."""
    limit, other = RateLimit(1.0, 0), RateLimit(1.0, 0)
    for each in (limit, other):
        each.lower(1.0, by=10.0, goal=0.5, step=7)
    ceilings = ceilings_of(limit, 160, 0.6)

    assert set(ceilings[:63]) == {0.1}
    assert set(ceilings[63:159]) == {0.2}
    assert ceilings[159] == 0.4
    assert ceilings_of(other, 32, 0.4) == [0.1] * 31 + [math.inf]
    assert other.past == "learning rate at most 0.1 from step 7 to 0"


def test_a_higher_rate_that_fails_is_tried_again_twice_as_late():
    """A level that gets worse, or weights that are restored, end its trial; so does what comes after it was over."""
    limit = RateLimit(1.0, 0)
    limit.lower(1.0, by=10.0)
    firsts = []
    for fails in (lambda: limit.note_level(1.3, 0.0), limit.restored, lambda: None):
        limit.note_level(1.0, 0.0)
        firsts.append(next(number for number in range(1, 1000) if limit.accepted(1.0) or limit.ceiling > 0.1))
        fails()
        limit.note_level(1.0, 0.0)

    assert firsts == [64, 128, 256]


@pytest.mark.parametrize(("level", "is_share", "ceiling"), [(0.97, True, 0.2), (0.99, True, 0.1), (0.99, False, 0.2)])
def test_a_higher_rate_of_the_users_own_holds_only_if_the_losses_are_better(level, is_share, ceiling):
    """Where no level from before the damage is waited for; each trial of one comes twice as late as the one before."""
    limit = RateLimit(1.0, 0, is_share)
    limit.lower(1.0, by=10.0)
    on_trial = ceilings_of(limit, 64, 1.0)[-1]

    assert (on_trial, limit.hits) == (0.2, int(is_share))
    assert ceilings_of(limit, 32, level)[-1] == ceiling


def test_no_higher_rate_is_tried_while_the_level_is_worse():
    """Losses that have risen under the ceiling, if not by far, wait until they are back."""
    limit = RateLimit(1.0, 0)
    limit.lower(1.0, by=10.0)
    limit.note_level(1.0, 0.0)
    limit.note_level(1.15, 0.0)
    ceilings = ceilings_of(limit, 100, 1.15)
    limit.note_level(1.0, 0.0)
    limit.accepted(1.0)

    assert set(ceilings) == {0.1}
    assert limit.ceiling == 0.2


def test_what_a_ceiling_waits_for_is_said():
    """From when it holds, and until when: the level, and the trial of a higher rate."""
    limit = RateLimit(1.0, 0)
    limit.lower(1.0, by=10.0, goal=0.53, step=74)

    assert limit.until_text() == (
        "until the median of 32 losses is 0.53 again, or a trial of a higher one holds, the next after 64 good steps"
    )
    assert limit.since == 74


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
    """A higher one is tried while the losses are as good as their noise tells, and ends where they are far worse."""
    limit = RateLimit(1.0, 0)
    limit.lower(1.0, by=10.0)
    for _ in range(2 * HOLD_STEPS):
        limit.note_level(1.0, 0.2)
        limit.note_level(1.2, 0.2)
        limit.accepted(1.0)
    risen = limit.ceiling
    limit.note_level(1.6, 0.2)

    assert (risen, limit.ceiling) == (0.2, 0.1)


def test_confirmed_ceiling_is_held_longer():
    """A lower rate that proved better is held four times as long."""
    limit = RateLimit(1.0, 0)
    limit.lower(1.0, by=2.0)
    limit.confirm()
    for _ in range(4 * HOLD_STEPS):
        limit.accepted(1.0)

    assert limit.ceiling == 0.5


def test_a_ceiling_may_be_held_as_long_as_one_ever_is():
    """So it is after losses that have exploded: a higher one is tried late from the start on."""
    limit = RateLimit(1.0, 0)
    limit.lower(1.0, by=2.0, hits=MOST_HITS)
    for _ in range(TRIAL_AFTER * 2**MOST_HITS - 1):
        limit.accepted(1.0)
    before = limit.ceiling
    limit.accepted(1.0)

    assert (before, limit.ceiling) == (0.5, 1.0)

from hypothesis import example, given
from hypothesis import strategies as st

from learnit_r8.recovery.refusals import BROKEN, LEAST_BAD, MOST_BAD, Refusals


def test_two_in_a_row_are_worth_a_look():
    """One loss that is not finite is left out; the second in a row is looked into."""
    refusals = Refusals()
    refusals.refused(is_finite=False)
    assert not refusals.is_worth_looking
    refusals.refused(is_finite=False)

    assert refusals.is_worth_looking


def test_good_batch_ends_the_row():
    """A good batch between two bad ones is a free test: the weights are healthy."""
    refusals = Refusals()
    for _ in range(9):
        refusals.refused(is_finite=False)
        refusals.good()

    assert (refusals.in_a_row, refusals.is_worth_looking) == (0, False)


def test_only_weights_that_get_further_end_the_count_in_vain():
    """A good batch after which the weights are no further than before leaves the count as it is, on file, too."""
    refusals, again = Refusals(), Refusals()
    refusals.refused(is_finite=False)
    refusals.probed()
    refusals.good(gains=False)
    again.load_state_dict(refusals.state_dict())
    assert (again.in_a_row, again.in_vain) == (0, 2)
    again.good()

    assert again.in_vain == 0


@given(st.lists(st.booleans(), max_size=99))
@example([True] * 9)
def test_limit_stays_within_its_bounds(script):
    """The row that is looked into doubles while weights prove healthy, and shrinks with good batches, within bounds."""
    refusals = Refusals()
    for is_healthy in script:
        refusals.weights_are_healthy() if is_healthy else refusals.good()
        assert LEAST_BAD <= refusals.bad_limit <= MOST_BAD


@given(st.lists(st.booleans(), max_size=300))
def test_counts_of_the_last_hundred(script):
    """Share and verdict are those of the last hundred batches, and all is well after as many good ones."""
    refusals = Refusals()
    for is_refused in script:
        refusals.refused(is_finite=True) if is_refused else refusals.good()
    assert refusals.is_broken == (sum(script[-100:]) > BROKEN)
    assert 0 < refusals.share_of(0) < 1
    assert refusals.share_of(100) <= refusals.share_of(0)
    for _ in range(100):
        refusals.good()

    assert refusals.is_none

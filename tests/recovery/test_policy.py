import pytest
from learnit_r8.recovery.incident_state import RecoveryState

from learnit_r8 import Recovery

SHORT = Recovery(factors=(0.5, 0.1), hold_steps=2, ramp_steps=4, steady_steps=3, heal_steps=3, max_tries=2)


def after(recovery, events):
    """The state after a text of refused (x) and good (.) losses."""
    state = RecoveryState()
    for event in events:
        state = recovery.refused(state, 99) if event == "x" else recovery.accepted(state)
    return state


@pytest.mark.parametrize(
    ("events", "factor"),
    [
        ("", 1.0),
        ("x", 0.5),
        ("x..", 0.5),
        ("x...", 0.625),
        ("x....", 0.75),
        ("x.....", 0.875),
        ("x......", 1.0),
        ("xx", 0.1),
        ("xxx", 0.1),
        ("x..x", 0.1),
    ],
)
def test_factor_drops_holds_and_ramps(events, factor):
    """The factor drops with every refusal, holds for hold_steps good ones, and rises linearly over ramp_steps."""
    assert SHORT.lr_factor(after(SHORT, events)) == pytest.approx(factor)


def test_new_incident_never_raises_the_factor():
    """A refusal while the rate still ramps starts no higher than the rate was."""
    assert SHORT.lr_factor(after(SHORT, "xx...x")) == pytest.approx(0.1 + 0.9 / 4)


@pytest.mark.parametrize(("events", "tries"), [("x", 1), ("x..", 1), ("x...", 0), ("x..x", 2), ("x..x...", 0)])
def test_heal_steps_good_losses_in_a_row_end_an_incident(events, tries):
    """Tries go back to zero after heal_steps good losses in a row, not before."""
    assert after(SHORT, events).tries == tries


@pytest.mark.parametrize(("events", "gives_up"), [("x", False), ("xx", False), ("xxx", True), ("xx...x", False)])
def test_incident_is_given_up_after_max_tries(events, gives_up):
    """The refusal after max_tries gives up; a healed incident starts counting anew."""
    assert SHORT.gives_up(after(SHORT, events)) is gives_up


@pytest.mark.parametrize(("limit", "steady"), [(99, 3), (3, 3), (1, 1), (0, 0)])
def test_steady_steps_are_limited(limit, steady):
    """A refusal asks for steady_steps batches, and no more than the limit."""
    assert SHORT.refused(RecoveryState(), limit).steady_left == steady


def test_without_ramp_the_factor_returns_at_once():
    """With ramp_steps=0 the factor jumps back to 1 after the hold."""
    recovery = Recovery(hold_steps=2, ramp_steps=0)

    assert [recovery.lr_factor(after(recovery, "x" + "." * good)) for good in range(4)] == [0.5, 0.5, 1.0, 1.0]


def test_all_is_well_after_the_ramp():
    """After the ramp the state is that of a run in which nothing happened."""
    assert after(SHORT, "x......") == RecoveryState()


@pytest.mark.parametrize("factors", [(), (0.0,), (0.5, 1.1), (-1,), (float("nan"),)])
def test_factors_are_shares(factors):
    """Factors outside (0, 1], or none at all, are refused."""
    with pytest.raises(ValueError, match=r"factors must be a tuple of numbers in \(0, 1\], got"):
        Recovery(factors=factors)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hold_steps", -1),
        ("ramp_steps", 1.5),
        ("steady_steps", None),
        ("heal_steps", 0),
        ("max_tries", -1),
        ("max_tries", "4"),
    ],
)
def test_counts_are_whole(name, value):
    """A count that is not whole, or too small, is refused by name and value."""
    with pytest.raises(ValueError, match=rf"{name} must be a whole number >= [01], got {value!r}"):
        Recovery(**{name: value})

import pytest

from learnit_r8.engine.pace import Pace
from learnit_r8.schedules.budget import Budget, CoolDown, CoolDownRule
from learnit_r8.schedules.schedule import SHAPES
from learnit_r8.schedules.span import Span
from tests.drive import FakeClock


def ending(budget, span, *, step=50, seconds=0.0, num_out=0, lr=0.1, floor=0.0, epoch=8):
    clock = FakeClock()
    clock.wall = lambda: 1000.0
    pace = Pace(budget, epoch, clock, rule=CoolDownRule(floor))
    pace.start()
    clock.advance(seconds)
    pace.step, pace.num_out = step, num_out
    return pace.with_cool_down(span, lr)


@pytest.mark.parametrize("shape", SHAPES)
def test_rate_of_a_cool_down_has_its_closed_form(shape):
    """From the rate at its beginning to the floor, in its shape, over the rest of the progress."""
    rate = CoolDown(0.6, 0.1, 0.01, shape, 60)

    assert rate(0.3) == rate(0.6) == 0.1
    assert rate(0.7) == pytest.approx(0.01 + 0.09 * SHAPES[shape](0.25))
    assert rate(1.0) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("span", "step", "end"),
    [
        (Span("steps", 10), 50, Budget(steps=60)),
        (Span("epochs", 1.5), 50, Budget(steps=62)),
        (Span("seconds", 30), 50, Budget(seconds=40.0)),
        (Span("until", 1005), 50, Budget(seconds=15.0)),
        (Span("share", 0.2), 40, Budget(steps=50)),
    ],
)
def test_open_run_gets_the_end_that_was_asked_for(span, step, end):
    """The end is so many steps or seconds from here, or the share of the whole run."""
    found = ending(Budget(), span, step=step, seconds=10.0)

    assert (found.steps, found.seconds) == (end.steps, end.seconds)
    assert found.cool_down.begin == pytest.approx(step / end.steps if end.steps else 10 / end.seconds)


def test_batches_that_are_out_belong_to_the_run():
    """A cool-down never ends before batches that were drawn ahead."""
    assert ending(Budget(), Span("steps", 1), num_out=6).steps == 56


@pytest.mark.parametrize(
    ("budget", "span"),
    [
        (Budget(steps=100), Span("steps", 51)),
        (Budget(steps=100), Span("seconds", 10.1)),
        (Budget(seconds=20.0), Span("seconds", 10.5)),
        (Budget(seconds=20.0), Span("steps", 51)),
        (Budget(seconds=20.0), Span("until", 1011)),
    ],
)
def test_cool_down_longer_than_what_is_left_is_refused(budget, span):
    """Whatever its unit; steps and seconds are compared at the speed so far."""
    with pytest.raises(ValueError, match="a cool-down must not be longer than what is left of the run, got"):
        ending(budget, span, seconds=10.0)


@pytest.mark.parametrize("budget", [Budget(steps=100), Budget(seconds=20.0)])
def test_cool_down_of_all_that_is_left_is_fine(budget):
    """The rest of the run may be the cool-down."""
    span = Span("steps", 50) if budget.steps else Span("seconds", 10.0)
    found = ending(budget, span, seconds=10.0)

    assert (found.steps, found.seconds) == (budget.steps, budget.seconds)


def test_share_takes_at_most_what_is_left():
    """A cool-down of no given length near the end of a run takes the rest of it."""
    found = ending(Budget(steps=52), Span("share", 0.2))

    assert (found.steps, found.cool_down.begin) == (52, 50 / 52)


def test_cool_down_below_its_floor_keeps_the_rate():
    """A rate that is lower than the floor is not raised by a cool-down."""
    found = ending(Budget(), Span("steps", 10), lr=0.05, floor=0.1)

    assert (found.cool_down.lr, found.cool_down.floor) == (0.05, 0.05)


def test_epochs_beyond_all_runs_are_refused_when_they_are_counted():
    """As many epochs as may be typed are more steps than a run of large epochs has."""
    with pytest.raises(ValueError, match="steps must be a whole number of at most 1e"):
        ending(Budget(), Span("epochs", 1e12), epoch=10**6)

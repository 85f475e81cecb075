import sys

import pytest

from learnit_r8.engine.pace import Pace
from learnit_r8.schedules.budget import Budget
from learnit_r8.schedules.span import Span
from tests.drive import FakeClock, Weights, make


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def pace(clock):
    clock.advance(1000)
    return Pace(Budget(seconds=100.0), 4, clock)


def test_paused_time_does_not_count(pace, clock):
    """Time inside paused() does not count, also when the block raises."""
    pace.start()

    def interrupted():
        with pace.paused():
            clock.advance(60)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    clock.advance(1)

    assert pace.seconds == 1


def test_pauses_nest(pace, clock):
    """An inner paused() does not end the outer one."""
    pace.start()
    with pace.paused():
        with pace.paused():
            clock.advance(5)
        clock.advance(5)

    assert pace.seconds == 0


def test_pause_before_the_start_starts_nothing(pace, clock):
    """A pause before the first draw does not start the clock."""
    with pace.paused():
        clock.advance(5)
    clock.advance(5)

    assert pace.seconds == 0


def test_clock_that_is_set_back_does_not_run_backwards(pace, clock):
    """A clock that jumps back takes no time away and stops no time: it is counted on from where it was."""
    clock.now = 7200.0
    pace.start()
    readings = []
    for clock.now in (7210.0, 10.0, 15.0, 3.0, 4.0, 9000.0):
        readings.append(pace.seconds)

    assert readings == [10.0, 10.0, 15.0, 15.0, 16.0, 9012.0]
    clock.now = 2.0
    with pace.paused():
        clock.now = -1.0
        assert pace.seconds == 9012.0


@pytest.mark.parametrize(
    ("budget", "step", "progress"),
    [
        (Budget(steps=4), 0, 0.0),
        (Budget(steps=4), 1, 0.25),
        (Budget(steps=4), 9, 1.0),
        (Budget(warmup_steps=10), 5, 0.25),
        (Budget(warmup_steps=10), 99, 0.5),
        (Budget(passes=2, steps_per_pass=10), 5, 0.25),
        (Budget(passes=2.5, steps_per_pass=10), 25, 1.0),
    ],
)
def test_progress_is_the_finished_share(budget, step, progress):
    """Progress is steps over those of the budget, and never above 1; before an open end, half the warm-up's share."""
    assert Pace(budget, 10).progress_at(step) == progress


def test_only_the_end_of_the_last_pass_is_the_end():
    """A loader may be longer than it was told."""
    pace = Pace(Budget(passes=2, steps_per_pass=10), sys.maxsize)
    assert 0.99 < pace.progress_at(25) < 1
    pace.passes, pace.has_ended = 1, True

    assert pace.progress_at(19) == 1


def test_downtime_does_not_count(pace, clock):
    """A state keeps its seconds in another process, whatever that process's clock shows."""
    pace.start()
    pace.step, pace.num_out = 3, 1
    clock.advance(40)
    state = pace.state_dict()
    other_clock = FakeClock()
    other = Pace(Budget(seconds=100.0), 4, other_clock)
    other.load_state_dict(state)
    other_clock.advance(500)
    assert (other.step, other.num_out, other.seconds) == (3, 0, 40)
    other.start()
    other_clock.advance(2)

    assert other.seconds == 42


def test_step_in_the_epoch_begins_anew(pace):
    """Where epochs have their own length, steps and probes are counted from the beginning of each."""
    pace.step, pace.probes = 5, 2
    pace.begin_epoch()
    pace.step, pace.probes = 8, 3

    assert (pace.step_in_epoch, pace.probes_in_epoch) == (3, 1)


def test_state_holds_every_count(pace):
    """What a pace counts is the same in a resumed run; the tally is saved beside it."""
    pace.start()
    pace.step, pace.probes, pace.left_out, pace.longest_break = 9, 4, 2, 1.5
    pace.begin_epoch(1)
    pace.passes, pace.has_ended, pace.tokens = 3, True, 77
    other = Pace(Budget(seconds=100.0), 4, pace.clock)
    other.load_state_dict(pace.state_dict())
    fields = vars(pace).keys() - {"_running", "_spent", "_break", "tally"}

    assert {name: vars(other)[name] for name in fields} == {name: vars(pace)[name] for name in fields}


def test_restoring_a_backup_gives_no_time_back(clock):
    """After restore_backup() the seconds that were used are used."""
    model = Weights()
    r8 = make(train_duration_seconds=100, clock=clock, state_callback=model.get, load_callback=model.load)
    r8.report(r8.draw(), 1.0)
    clock.advance(30)
    r8.restore_backup()

    assert r8.pace.seconds == 30


def test_end_of_a_cool_down_survives_being_saved(pace, clock):
    """The end that a cool-down has set comes back from plain values, and a state without one has the given budget."""
    pace.start()
    without = pace.state_dict()
    pace.end_at(pace.with_cool_down(Span("seconds", 10), 0.1))
    ending = pace.budget
    other = Pace(Budget(seconds=100.0), 4, clock)
    other.load_state_dict(pace.state_dict())
    pace.load_state_dict(without)

    assert other.budget == ending
    assert (without["ending"], pace.budget) == (None, Budget(seconds=100.0))

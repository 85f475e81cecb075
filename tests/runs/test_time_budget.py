"""Time budgets: which time counts, and where runs end."""

import pytest

from learnit_r8 import events
from tests.drive import FakeClock, TickingClock, make, steps


def timed(seconds, clock, per_step, *, more=None, **arguments):
    """Steps of a run with a time budget whose every step takes per_step seconds."""
    r8 = make(train_duration_seconds=seconds, clock=clock, **arguments)
    count = 0
    for epoch in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            clock.advance(per_step)
            r8.update_with_loss(1.0)
            count += 1
        if more is not None:
            more(r8, epoch)
    return r8, count


@pytest.mark.parametrize(("seconds", "per_step", "count"), [(10, 1, 10), (10, 4, 3), (0.5, 1, 1), (7, 0.5, 14)])
def test_time_budget_ends_on_time(seconds, per_step, count):
    """A time budget ends the run with the step in which the time is up, in mid-epoch, without an error."""
    r8, done = timed(seconds, FakeClock(), per_step)

    assert (done, r8.progress, r8.phase, r8.total_steps) == (count, 1.0, "finished", None)


def test_time_budget_counts_validation():
    """Time between epochs counts towards a time budget."""
    clock = FakeClock()
    _, count = timed(10, clock, 1, more=lambda r8, epoch: clock.advance(2))

    assert count == 6


def test_time_budget_leaves_pauses_out():
    """Time inside paused() does not count towards a time budget."""
    clock = FakeClock()

    def pause(r8, epoch):
        with r8.paused():
            clock.advance(1000)

    _, count = timed(10, clock, 1, more=pause)

    assert count == 10


def test_time_before_the_first_draw_does_not_count():
    """Loading data between building the scheduler and the first batch costs none of the budget."""
    clock = FakeClock()
    r8 = make(train_duration_seconds=3, clock=clock)
    clock.advance(1000)

    assert r8.progress == 0


def test_time_budget_reaches_later_epochs():
    """With a time budget epochs are counted, and the policy is used from the second one on."""
    epochs = []
    timed(10, FakeClock(), 1, more=lambda r8, epoch: epochs.append(epoch))

    assert epochs == [0, 1, 2, 3]


def test_time_that_ends_in_validation_is_no_error():
    """Time that runs out between an epoch's number and its first batch ends the run."""
    clock = FakeClock()
    r8 = make(train_duration_seconds=10, clock=clock)
    epochs = []
    for epoch in r8.epoch_iterator():
        epochs.append(epoch)
        clock.advance(8)
        for _ in r8.batch_iterator():
            clock.advance(1)
            r8.update_with_loss(1.0)

    assert epochs == [0, 1]


@pytest.mark.parametrize("tick", [0.01, 0.3, 0.7, 1.0, 1.7, 2.3])
def test_time_that_ends_between_two_looks_at_the_clock_is_no_error(tick):
    """Whenever the time runs out, also between the check and the draw, the run ends without an error."""
    r8 = make(train_duration_seconds=50, clock=TickingClock(tick))
    for _ in steps(r8):
        r8.update_with_loss(1.0)

    assert r8.progress == 1


def test_time_that_ends_in_a_backup_is_no_error():
    """Time that runs out while a backup is taken ends the run without an error."""
    clock = FakeClock()

    def state():
        clock.advance(4)
        return {}

    r8 = make(train_duration_seconds=10, state_callback=state, load_callback=dict, backup_every="3s", clock=clock)
    for _ in steps(r8):
        clock.advance(1)
        r8.update_with_loss(1.0)

    assert r8.phase == "finished"


def test_speed_leaves_validation_out():
    """The time of an epoch is from its first draw to its last report, without the validation after it."""
    clock, heard = FakeClock(), []
    r8 = make(num_epochs=2, clock=clock, listeners=[heard.append])
    for _ in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            clock.advance(1)
            r8.update_with_loss(1.0)
        clock.advance(100)

    assert [event.epoch_seconds for event in heard if isinstance(event, events.EpochDone)] == [3, 3]


@pytest.mark.parametrize("at", [1, 5, 9])
@pytest.mark.parametrize("hours", [-5, -0.001])
def test_clock_that_jumps_back_costs_no_step(at, hours):
    """A clock that is set back does not end the run: its time continues from where it was, also in events."""
    clock, told = FakeClock(), []
    clock.advance(1e5)
    r8 = make(
        train_duration_seconds=10,
        clock=clock,
        state_callback=dict,
        load_callback=dict,
        backup_every="2s",
        listeners=[told.append],
    )
    count = 0
    for _ in steps(r8):
        clock.advance(1)
        count += 1
        if count == at:
            clock.now += 3600 * hours
        r8.update_with_loss(1.0)
    r8.close()
    seconds = [event.seconds for event in told]

    assert r8.phase == "finished"
    assert count in (11, 14)
    assert seconds == sorted(seconds)
    assert all(0 <= each <= 11 for each in seconds)

"""Time budgets: which time counts, and where runs end."""

import contextlib

import pytest

from learnit_r8 import events
from tests.drive import FakeClock, TickingClock, make, steps


def timed(seconds, clock, per_step=1, *, more=None, **arguments):
    """A run with a time budget whose every step takes per_step seconds; the epoch, phase and rate of each step."""
    r8, seen = make(train_duration_seconds=seconds, clock=clock, **arguments), []
    for epoch in r8.epoch_iterator():
        for _, lr in r8.batch_iterator():
            seen.append((epoch, r8.phase, lr))
            clock.advance(per_step)
            r8.update_with_loss(1.0)
        if more is not None:
            more(r8)
    return r8, seen


@pytest.mark.parametrize(("seconds", "per_step", "count"), [(10, 1, 10), (10, 4, 3), (0.5, 1, 1), (7, 0.5, 14)])
def test_time_budget_ends_on_time(seconds, per_step, count):
    """A time budget ends the run with the step in which the time is up, in mid-epoch, without an error."""
    r8, seen = timed(seconds, FakeClock(), per_step)

    assert (len(seen), r8.progress, r8.phase, r8.total_steps) == (count, 1.0, "finished", None)


def test_time_budget_has_epochs_and_a_schedule():
    """Epochs count up, batches are data-aware from the second on, and the rate ends its schedule with the time."""
    _, seen = timed(9, FakeClock())
    rates = [lr for _, _, lr in timed(100, FakeClock())[1]]

    assert [step[:2] for step in seen] == [(0, "cataloguing")] * 3 + [(1, "training")] * 3 + [(2, "training")] * 3
    assert max(rates) > 0.0099
    assert rates[-1] < 0.0001


@pytest.mark.parametrize(("seconds", "is_paused", "count"), [(2, False, 6), (1000, True, 10)])
def test_time_between_epochs_counts_unless_paused(seconds, is_paused, count):
    """Validation counts towards the budget, time inside paused() does not."""
    clock = FakeClock()

    def wait(r8):
        with r8.paused() if is_paused else contextlib.nullcontext():
            clock.advance(seconds)

    assert len(timed(10, clock, more=wait)[1]) == count


def test_time_before_the_first_draw_does_not_count():
    """Loading data between building the scheduler and the first batch costs none of the budget."""
    clock = FakeClock()
    r8 = make(train_duration_seconds=3, clock=clock)
    clock.advance(1000)

    assert r8.progress == 0


def test_time_that_ends_in_validation_is_no_error():
    """Time that runs out between an epoch's number and its first batch ends the run."""
    clock, epochs = FakeClock(), []
    r8 = make(train_duration_seconds=10, clock=clock)
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
    slow = {"state_callback": lambda: clock.advance(4) or {}, "load_callback": dict, "backup_every": "3s"}

    assert timed(10, clock, **slow)[0].phase == "finished"


def test_speed_leaves_validation_out():
    """The time of an epoch is from its first draw to its last report, without the validation after it."""
    clock, heard = FakeClock(), []
    timed(206, clock, more=lambda r8: clock.advance(100), listeners=[heard.append])

    assert [event.epoch_seconds for event in heard if isinstance(event, events.EpochDone)] == [3, 3]


@pytest.mark.parametrize("at", [1, 5, 9])
@pytest.mark.parametrize("hours", [-5, -0.001])
def test_clock_that_jumps_back_costs_no_step(at, hours):
    """A clock that is set back does not end the run: its time continues from where it was, also in events."""
    clock, told, count = FakeClock(), [], 0
    clock.advance(1e5)
    more = {"state_callback": dict, "load_callback": dict, "backup_every": "2s", "listeners": [told.append]}
    r8 = make(train_duration_seconds=10, clock=clock, **more)
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

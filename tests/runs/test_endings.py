"""Runs whose end is asked for on the way: open budgets, cool-downs, deadlines, and what comes second."""

import datetime
import signal

import pytest

from learnit_r8 import R8Scheduler, RateShape, events
from learnit_r8.engine.settings import grouped
from tests.drive import NAN, FakeClock, Weights, advance_to, batch_loss, make, search_through, steps, train


def endless(**more):
    """Ten steps an epoch, no end; the rate rises over five steps to 1."""
    given = {"scheduler_mode": "wsd", "initial_lr": 1.0, "warmup_steps": 5, "decay_shape": "linear", **more}
    return R8Scheduler(40, batch_size=4, **grouped(given))


def drawn_with(r8, asks, until=None):
    """The batches and rates of a run to its end, or to a step; ``asks`` by step."""
    drawn = []
    for _, indices, lr in steps(r8):
        drawn.append((indices.tolist(), lr))
        r8.update_with_loss(batch_loss(indices))
        if r8.global_step in asks:
            asks[r8.global_step](r8)
        if r8.global_step == until:
            break
    return drawn


def rates_with(r8, asks):
    """The rates of a run to its end; ``asks`` by step."""
    return [lr for _, lr in drawn_with(r8, asks)]


def test_wsd_rises_stays_and_falls():
    """Step t of T trains at the rate of progress t / T: warm-up, stable part, decay."""
    r8 = make(num_steps=20, scheduler_mode="wsd", initial_lr=1.0, warmup_steps=4, decay_proportion=0.25,
              decay_shape="linear")  # fmt: skip
    rates = [lr for _, _, lr in train(r8)]

    assert rates[:4] == pytest.approx([0.1, 0.325, 0.55, 0.775])
    assert rates[4:15] == [1.0] * 11
    assert rates[15:] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("asked", [1, 3, 5, 10, 11, 27])
@pytest.mark.parametrize("length", [1, 4, 13])
@pytest.mark.parametrize("shape", ["linear", "sqrt", "cosine"])
def test_cool_down_ends_exactly_where_it_was_asked_to(asked, length, shape):
    """Asked at any step, the last step is the one that was asked for, at the rate ``schedule((T - 1) / T)``."""
    r8 = endless(decay_shape=shape)
    rates = rates_with(r8, {asked: lambda r8: r8.cool_down(length)})
    total = asked + length

    assert (len(rates), r8.global_step, r8.total_steps, r8.is_over) == (total, total, total, True)
    assert rates[-1] == r8.schedule((total - 1) / total)
    assert rates[asked] == pytest.approx(min(1.0, 0.1 + 0.9 * asked / 5))
    assert rates[asked:] == sorted(rates[asked:], reverse=True)


@pytest.mark.parametrize("mode", ["cosine", "linear", "one_cycle", "constant", lambda progress: 0.5])
def test_run_with_a_budget_may_be_cooled_down_too(mode):
    """From the rate that it has, whatever the schedule was."""
    r8 = make(num_steps=100, scheduler_mode=mode, decay_shape="linear")
    before = make(num_steps=100, scheduler_mode=mode)
    rates = rates_with(r8, {30: lambda r8: r8.cool_down(10)})

    assert len(rates) == 40
    assert rates[30:] == pytest.approx([before.schedule(0.3) * (1 - k / 10) for k in range(10)])


def test_cool_down_in_epochs_and_of_no_given_length():
    """Epochs are counted in steps; without a length the cool-down is the decay's share of the whole run."""
    assert len(rates_with(endless(), {20: lambda r8: r8.cool_down(epochs=1.5)})) == 35
    assert len(rates_with(endless(decay_proportion=0.2), {20: lambda r8: r8.cool_down()})) == 25


@pytest.mark.parametrize(
    ("given", "asks", "rates"),
    [
        ({"min_lr": 0.4}, {10: 3}, [1.0, 0.8, 0.6]),
        ({}, {10: 20, 14: 4}, [1.0, 0.95, 0.9, 0.85, 0.8, 0.6, 0.4, 0.2]),
    ],
    ids=["min_lr is the floor", "a shorter second request counts, from the rate that it finds"],
)
def test_rates_of_a_cool_down(given, asks, rates):
    """The decay goes from the rate of the moment to min_lr."""
    asks = {step: lambda r8, length=length: r8.cool_down(length) for step, length in asks.items()}

    assert rates_with(endless(**given), asks)[10:] == pytest.approx(rates)


def test_requests_that_cannot_be_are_errors_and_change_nothing():
    """A time that is past, a second end later than the first, and one of a run that is over."""
    r8 = endless(clock=Clocks())
    advance_to(r8, 10)
    with pytest.raises(ValueError, match="until must be in the future, got '11:00' at 2026-11-21 12:00:00"):
        r8.cool_down(until="11:00")
    assert r8.total_steps is None
    r8.cool_down(20)
    advance_to(r8, 14)
    with pytest.raises(ValueError, match=r"must not be longer than what is left of the run, got 17 steps at step 14 "):
        r8.cool_down(17)
    assert len(train(r8)) + 14 == 30
    with pytest.raises(RuntimeError, match=r"cool_down\(\) was called at step 30 of a run that is over"):
        r8.cool_down(1)


def test_two_requests_before_one_step(recwarn):
    """Of two requests that are made at once the one that ends sooner counts, and the other one is named."""
    for lengths in ((4, 20), (20, 4)):
        heard = []
        r8 = endless(listeners=[heard.append])
        ask = {10: lambda r8, lengths=lengths: [r8.cool_down(length) for length in lengths]}

        assert len(rates_with(r8, ask)) == 14
        notices = [event.text for event in heard if isinstance(event, events.Notice)]
        assert ("is ignored: a cool-down must not be longer" in "".join(notices)) is (lengths[0] == 4)


def test_listeners_hear_of_the_end():
    """One event tells the new end, and the planned rates change."""
    heard = []
    rates_with(endless(listeners=[heard.append]), {10: lambda r8: r8.cool_down(5)})
    begun = [event for event in heard if isinstance(event, events.CoolDownBegan)]

    assert [(event.step, event.total_steps, event.until, event.lr) for event in begun] == [(10, 15, None, 1.0)]
    assert heard[0].total_steps is heard[0].train_duration_seconds is None
    assert sum(isinstance(event, events.LrPlanned) for event in heard) == 1


def test_open_run_knows_no_progress():
    """Until the end is known progress is 0, there are no total steps, and epochs go on."""
    r8 = endless()
    advance_to(r8, 25)

    assert (r8.progress, r8.total_steps, r8.current_epoch, r8.is_over, r8.lr) == (0.0, None, 2, False, 1.0)
    assert "step 25 of ?" in repr(r8)
    r8.cool_down(25)
    advance_to(r8, 30)

    assert (r8.progress, r8.total_steps, r8.phase) == (0.6, 50, "cooling down")


def test_policies_count_epochs_in_an_open_run():
    """What a policy does at a share of the budget it does after so many of twenty epochs, at most half of them."""
    r8 = endless()
    seen = []
    for epoch in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            r8.update_with_loss(batch_loss(indices))
        seen.append(r8.host.source._context.progress)
        if epoch == 12:
            r8.cool_down(epochs=3)

    assert seen[:13] == [min(0.5, epoch / 20) for epoch in range(13)]
    assert seen[13:] == [130 / 160, 140 / 160, 150 / 160]


def test_search_in_an_open_run_takes_an_epoch_at_most():
    """The search for a rate ends, and its rate is that of the cool-down too."""
    weights = Weights()
    r8 = R8Scheduler(4000, batch_size=4, scheduler_mode=RateShape("wsd", warmup_steps=0), auto_find_lr=True,
                     state_callback=weights.get, load_callback=weights.load)  # fmt: skip
    assert search_through(r8) <= 1000
    found = r8.host.rates.found_lr
    r8.cool_down(10)
    rates = [lr for _, _, lr in train(r8)]

    assert len(rates) == 10
    assert rates[0] == found > 0


def test_incident_in_a_cool_down_changes_neither_its_end_nor_its_schedule():
    """Refused steps count, and a batch that was to blame lowers no rate."""
    weights = Weights()
    r8 = endless(state_callback=weights.get, load_callback=weights.load, backup_every=10)
    advance_to(r8, 120)
    r8.cool_down(60)
    rates = [lr for _, _, lr in train(r8, bad=(140,))]

    assert (r8.global_step, r8.sentry.num_refused) == (180, 1)
    assert r8.schedule(179 / 180) == pytest.approx(1 / 60)
    assert rates[21] == r8.schedule(141 / 180)


@pytest.mark.parametrize("step", [8, 10, 12, 19])
def test_cool_down_survives_a_resume(step, tmp_path):
    """Resumed before, at the beginning and in the middle of a cool-down, the rates and batches are the same."""
    asks = {10: lambda r8: r8.cool_down(10)}
    expected = drawn_with(endless(checkpoint_dir=tmp_path / "a"), asks)
    first = endless(checkpoint_dir=tmp_path / "b")
    drawn_with(first, asks, until=step)
    first.host.between_steps()
    first.save_checkpoint()
    again = endless(checkpoint_dir=tmp_path / "b", resume="auto")

    assert drawn_with(again, asks) == expected[step:]
    assert again.total_steps == 20


def test_new_budget_replaces_the_end_of_a_cool_down(tmp_path):
    """Who resumes with another budget wants that one."""
    r8 = endless(checkpoint_dir=tmp_path)
    advance_to(r8, 10)
    r8.cool_down(10)
    advance_to(r8, 15)
    r8.save_checkpoint()
    again = R8Scheduler.resume_from_checkpoint(tmp_path, num_steps=60)

    assert (again.total_steps, again.phase) == (60, "training")
    assert R8Scheduler.resume_from_checkpoint(tmp_path).total_steps == 20


def test_state_without_a_cool_down_undoes_one():
    """Loading a state of before the request takes the request back."""
    r8 = endless()
    advance_to(r8, 10)
    before = r8.state_dict()
    r8.cool_down(10)
    advance_to(r8, 15)
    r8.load_state_dict(before)

    assert (r8.total_steps, r8.lr, r8.global_step) == (None, 1.0, 10)


class Clocks(FakeClock):
    """A monotonic clock and a wall clock that go on together; the wall alone while no process runs."""

    def __init__(self):
        super().__init__()
        self.start = datetime.datetime(2026, 11, 21, 12, 0, 0).timestamp()
        self.down = 0.0

    def wall(self):
        return self.start + self.now + self.down


def rates_over(r8, clock, asks=None):
    """The rates of a run whose every step takes a second."""
    rates = []
    for _, _, lr in steps(r8):
        rates.append(lr)
        clock.advance(1)
        r8.update_with_loss(1.0)
        (asks or {}).get(r8.global_step, lambda r8: None)(r8)
    return rates


def test_ends_in_seconds():
    """A decay is a share of the time; a length in seconds counts training, an end at a time of the day takes pauses."""
    clock = FakeClock()
    r8 = make(train_duration_seconds=10, scheduler_mode="wsd", warmup_proportion=0, decay_proportion=0.5,
              decay_shape="linear", initial_lr=1.0, clock=clock)  # fmt: skip
    assert rates_over(r8, clock) == pytest.approx([1.0] * 6 + [0.8, 0.6, 0.4, 0.2])

    rates = rates_over(endless(clock=clock), clock, {20: lambda r8: r8.cool_down(seconds=10)})
    assert rates[20:] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])

    def pause(r8):
        with r8.paused():
            clock.advance(10)

    clock = Clocks()
    rates = rates_over(endless(clock=clock), clock, {20: lambda r8: r8.cool_down(until="12:00:40"), 25: pause})
    assert (clock.now, len(rates)) == (40, 30)
    assert rates[25] == pytest.approx(1 - (25 / 30 - 0.5) / 0.5)
    assert rates[-1] < 0.1


def test_downtime_counts_until_a_wall_time(tmp_path):
    """After a resume the end is at the same time of the day; a run that comes back later is finished."""
    clock = Clocks()
    r8 = endless(clock=clock, checkpoint_dir=tmp_path)
    for _ in steps(r8):
        clock.advance(1)
        r8.update_with_loss(1.0)
        if r8.global_step == 20:
            r8.cool_down(until="12:00:40")
        if r8.global_step == 22:
            break
    r8.save_checkpoint()
    clock.down = 10
    again = endless(clock=clock, checkpoint_dir=tmp_path, resume="auto")

    assert (len(rates_over(again, clock)), clock.wall() - clock.start) == (8, 40)
    clock.down = 100
    with pytest.warns(RuntimeWarning, match="nothing to do"):
        late = endless(clock=clock, checkpoint_dir=tmp_path, resume="auto")
    assert late.is_over


def test_signal_asks_for_a_cool_down(recwarn):
    """A handler of the user's begins a cool-down as a batch system tells of the end; a second signal moves nothing."""
    heard = []
    r8 = endless(listeners=[heard.append])
    before = signal.signal(signal.SIGUSR1, lambda *_: r8.requests.cool_down("7 steps", "by SIGUSR1"))
    try:
        rates = rates_with(r8, {step: lambda r8: signal.raise_signal(signal.SIGUSR1) for step in (10, 12)})
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert len(rates) == 17
    assert [event.reason for event in heard if isinstance(event, events.CoolDownBegan)] == ["by SIGUSR1"]


def test_loop_of_ones_own_ends_with_the_cool_down():
    """`draw` and `report` with several batches out end at the step that was asked for."""
    r8 = endless()
    count = 0
    while (tickets := [ticket for _ in range(3) if (ticket := r8.draw_if_any()) is not None]) != []:
        for ticket in tickets:
            r8.report(ticket, 1.0)
            count += 1
        if count == 12:
            r8.cool_down(4)

    assert (count, r8.global_step) == (16, 16)


def validated(budget, breaks, step_seconds=1.0):
    """Seconds at the end of a run with validation of these lengths after its epochs, the last one repeated."""
    clock = FakeClock()
    r8 = make(train_duration_seconds=budget, clock=clock, scheduler_mode="constant")
    for epoch in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            clock.advance(step_seconds)
            r8.update_with_loss(1.0)
        clock.advance(breaks[min(epoch, len(breaks) - 1)])
    return clock.now, r8


@pytest.mark.parametrize("breaks", [[0.0], [5.0], [2.0, 5.0, 3.0], [7.0, 1.0]])
def test_deadline_holds_with_the_last_validation(breaks):
    """A budget in seconds ends with the last validation, where that takes no longer than the longest before."""
    end, r8 = validated(100, breaks)

    assert 100 - max(breaks) - 3 - 1 <= end <= 100 + 1
    assert r8.is_over


def test_deadline_holds_after_a_resume():
    """The longest break is part of the saved state."""
    _, r8 = validated(50, [6.0])
    again = make(train_duration_seconds=100, clock=FakeClock(), scheduler_mode="constant")
    again.load_state_dict(r8.state_dict())

    assert again.pace.longest_break == r8.pace.longest_break == 6.0


def test_deadline_holds_with_a_restore(tmp_path):
    """Time that a restore takes is training time: the end does not move."""
    clock, weights = FakeClock(), Weights()

    def load(source, from_ram=False):
        clock.advance(8)
        weights.load(source, from_ram)

    r8 = make(train_duration_seconds=200, clock=clock, state_callback=weights.get, load_callback=load, backup_every=5)
    for _, indices, _ in steps(r8):
        clock.advance(1)
        r8.update_with_loss(NAN if r8.global_step in (90, 140) else batch_loss(indices))

    assert r8.sentry.num_refused == 2
    assert 195 <= clock.now <= 201


def test_final_checkpoint_is_written_where_time_was_kept(tmp_path):
    """A run that ends early for its last validation has its last checkpoint all the same."""
    clock = FakeClock()
    r8 = make(train_duration_seconds=40, clock=clock, checkpoint_dir=tmp_path, checkpoint_every=1000)
    for _ in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            clock.advance(1)
            r8.update_with_loss(1.0)
        clock.advance(5)

    assert [path.name for path in tmp_path.glob("ck_*")] == ["ck_000000000001.r8"]
    assert R8Scheduler.resume_from_checkpoint(tmp_path, train_duration_seconds=99).global_step == r8.global_step


def files_of(folder):
    return sorted(path.name for path in folder.glob("*.r8"))


def trunk(folder, until=60):
    """An open run with a checkpoint every ten steps."""
    weights = Weights()
    r8 = endless(checkpoint_dir=folder, checkpoint_every=10, keep_checkpoints="thin", state_callback=weights.get,
                 load_callback=weights.load, save_callback=weights.save)  # fmt: skip
    advance_to(r8, until)
    r8.host.between_steps()
    return r8


def branch(folder, number, cool_down, **more):
    weights = Weights()
    return R8Scheduler.resume_from_checkpoint(
        folder / f"ck_{number:012d}.r8",
        weights.save,
        weights.load,
        cool_down=cool_down,
        state_callback=weights.get,
        **more,
    )


def test_branches_are_the_runs_that_had_been_cooled_down_there(tmp_path):
    """Three cool-downs from checkpoints of one run give the batches and rates of three runs asked on the way."""
    trunk(tmp_path / "trunk")
    for number, step in ((2, 20), (3, 30), (5, 50)):
        asked = endless()
        advance_to(asked, step)
        asked.cool_down(12)

        assert train(branch(tmp_path / "trunk", number, "12 steps")) == train(asked)


def test_branches_leave_the_run_alone(tmp_path):
    """A branch has a folder of its own: the run's files stay, and it goes on from its own newest one."""
    trunk(tmp_path)
    before = files_of(tmp_path)
    for name in ("cool-down-20", "cool-down-20-2"):
        train(branch(tmp_path, 2, 5))
        assert files_of(tmp_path / name) == ["ck_000000000001.r8"]
    assert files_of(tmp_path) == before
    weights = Weights()
    again = endless(
        checkpoint_dir=tmp_path, resume="auto", load_callback=weights.load, state_callback=weights.get,
        save_callback=weights.save,
    )  # fmt: skip

    assert (again.global_step, again.total_steps) == (60, None)


def test_branch_survives_a_resume(tmp_path):
    """A branch that was stopped goes on to the end of its cool-down."""
    trunk(tmp_path)
    r8 = branch(tmp_path, 3, 20, checkpoint_dir=tmp_path / "mine")
    advance_to(r8, 40)
    r8.save_checkpoint()
    weights = Weights()
    again = R8Scheduler.resume_from_checkpoint(
        tmp_path / "mine", weights.save, weights.load, state_callback=weights.get
    )

    assert (again.global_step, again.total_steps) == (40, 50)
    assert train(again)[0][2] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("cool_down", "more", "text"),
    [
        (5, {"num_steps": 50}, r"at most one of cool_down and num_epochs, .* must be given, got cool_down and \['num_"),
        ("soon", {}, "cool_down must be a number of steps >= 1"),
    ],
)
def test_branches_that_cannot_be_are_refused(cool_down, more, text, tmp_path):
    """A second end, and a length that is none."""
    trunk(tmp_path, 20)
    with pytest.raises(ValueError, match=text):
        branch(tmp_path, 2, cool_down, **more)

    assert not list(tmp_path.glob("cool-down-*"))


def test_branch_of_a_decay_is_refused(tmp_path):
    """From where the rate falls already, by a cool-down or by the schedule, there is no branch; nor beyond the end."""
    cooled = endless(checkpoint_dir=tmp_path / "a", checkpoint_every=10)
    advance_to(cooled, 10)
    cooled.cool_down(20)
    train(cooled)
    planned = make(num_steps=40, scheduler_mode="wsd", checkpoint_dir=tmp_path / "b", checkpoint_every=10,
                   decay_proportion=0.5)  # fmt: skip
    train(planned)
    with pytest.raises(ValueError, match="cool_down needs a checkpoint of the stable part, got one of step 20"):
        R8Scheduler.resume_from_checkpoint(tmp_path / "a" / "ck_000000000002.r8", cool_down=5)
    with pytest.raises(ValueError, match="cool_down needs a checkpoint of the stable part, got one of step 30"):
        R8Scheduler.resume_from_checkpoint(tmp_path / "b" / "ck_000000000003.r8", cool_down=5)
    with pytest.raises(ValueError, match="must not be longer than what is left"):
        R8Scheduler.resume_from_checkpoint(tmp_path / "b" / "ck_000000000002.r8", cool_down=25)


def test_thinned_checkpoints_are_spread_over_the_run(tmp_path):
    """The newest three and at most 16 others, evenly over the whole run; a resume goes on with the same grid."""
    r8 = endless(checkpoint_dir=tmp_path, checkpoint_every=2, keep_checkpoints="thin")
    advance_to(r8, 100)
    r8.host.between_steps()
    assert [int(name[3:15]) for name in files_of(tmp_path)] == [*range(4, 49, 4), 49, 50]
    again = endless(checkpoint_dir=tmp_path, checkpoint_every=2, keep_checkpoints="thin", resume="auto")
    advance_to(again, 200)
    again.host.between_steps()

    assert [int(name[3:15]) for name in files_of(tmp_path)] == [*range(8, 97, 8), 98, 99, 100]

"""auto_find_lr in whole runs: the rate it finds, the steps it takes, and the state it leaves."""

import math

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, RateShape, events
from learnit_r8.engine.settings import grouped
from tests.drive import NAN, Weights, make, search_step, search_through, steps
from tests.softmax import SoftmaxRegression


def searching(model, **more):
    return R8Scheduler(
        len(model.y), batch_size=32, num_epochs=1, initial_lr=123.0, scheduler_mode=RateShape(warmup_proportion=0),
        auto_find_lr=True, load_callback=model.load, **grouped(more),
    )  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("exact", [False, True])
def test_search_finds_a_sensible_rate(exact, seed):
    """auto_find_lr on a softmax regression finds a rate between 1e-3 and 3, in 50 steps, and the run then learns."""
    model, heard, snapshots = SoftmaxRegression(), [], []
    model.weights += np.random.default_rng(seed).normal(0, 0.01, model.weights.shape)
    start = model.weights.copy()
    r8 = searching(model, state_callback=model.get, listeners=[heard.append], seed=seed)
    rates = []
    for indices, lr in r8.batch_iterator():
        if r8.phase != "searching":
            snapshots.append(model.weights.copy())
        else:
            assert (r8.global_step, r8.progress, r8.table.source) == (0, 0.0, "nothing yet")
            assert np.isnan(r8.table.loss).all()
        rates.append(lr)
        losses = model.forward(indices)
        model.step(lr)
        r8.update_with_loss(losses if exact else losses.mean())
    (found,) = [event for event in heard if isinstance(event, events.LrFound)]

    assert found.num_steps <= 50
    assert 1e-3 <= found.lr <= 3
    assert rates[0] == 1e-6
    assert rates[found.num_steps] == r8.schedule.peak_lr == found.lr
    assert snapshots[0].tobytes() == start.tobytes()
    assert r8.global_step == r8.steps_per_epoch
    assert r8.table.usage_count.tolist() == [1] * len(model.y)


def test_search_may_take_a_tenth_of_the_run():
    """A long run searches for at most a tenth of its steps, outside its budget."""
    model = Weights()
    r8 = make(num_steps=900, auto_find_lr=True, load_callback=model.load, state_callback=model.get)
    for _ in range(89):
        r8.report(r8.draw(), 1.0)
    assert r8.phase == "searching"
    with pytest.warns(RuntimeWarning, match="the loss never turned up: initial_lr is used"):
        r8.report(r8.draw(), 1.0)

    assert (r8.phase, r8.global_step, r8.total_steps) == ("cataloguing", 0, 900)
    assert r8.schedule.peak_lr == 0.01


def test_search_does_not_use_up_time():
    """The time of the search does not count towards a time budget."""
    from tests.drive import FakeClock

    clock, model = FakeClock(), Weights()
    r8 = make(
        train_duration_seconds=5, auto_find_lr=True, load_callback=model.load, state_callback=model.get, clock=clock
    )
    while r8.phase == "searching":
        clock.advance(100)
        search_step(r8)

    assert (r8.progress, len(train_timed(r8, clock))) == (0.0, 5)


def train_timed(r8, clock):
    seen = []
    for _, indices, _ in steps(r8):
        clock.advance(1)
        r8.update_with_loss(1.0)
        seen.append(indices)
    return seen


def test_search_goes_on_after_one_refused_loss():
    """One refused loss may be one bad batch: the model is restored, and the search continues."""
    model = Weights()
    r8 = make(auto_find_lr=True, load_callback=model.load, state_callback=model.get)
    for _ in range(9):
        search_step(r8)
    model.values = np.array([NAN, NAN])
    outcome = r8.report(r8.draw(), NAN)
    assert (bool(outcome), model.values.tolist(), r8.phase) == (False, [0, 0], "searching")
    search_through(r8)

    assert 1e-4 < r8.schedule.peak_lr < 1e-2


def test_search_ends_at_two_refused_losses():
    """Two refused losses in a row end the search, restore the model and are no incident."""
    model = Weights()
    r8 = make(auto_find_lr=True, load_callback=model.load, state_callback=model.get)
    losses = iter([2.0 - 0.01 * step for step in range(30)])
    for loss in losses:
        r8.report(r8.draw(), loss)
    model.values = np.array([NAN, NAN])
    r8.report(r8.draw(), NAN)
    outcome = r8.report(r8.draw(), NAN)

    assert (bool(outcome), model.values.tolist(), r8.phase) == (False, [0, 0], "cataloguing")
    assert (r8.controller.lr_factor, r8.schedule.peak_lr) == (1.0, pytest.approx(0.1 * 1e-6 * 1e7 ** (29 / 49)))


def test_tickets_drawn_ahead_do_not_spoil_a_search():
    """A search assigns each loss to its own rate, and batches drawn before its end cannot harm the model after it.

    The last step is not applied: the model was restored, and the loss came from the old weights.
    """
    found = []
    for depth in (1, 8):
        model, out = Weights(), []
        r8 = make(64, auto_find_lr=True, load_callback=model.load, state_callback=model.get)
        while r8.phase == "searching" or out:
            while r8.phase == "searching" and len(out) < depth:
                out.append(r8.draw())
            ticket = out.pop(0)
            model.values = model.values + ticket.lr
            outcome = r8.report(ticket, 1.0 + max(0.0, ticket.lr - 0.01))
        assert (bool(outcome), outcome.rolled_back_to, model.values.tolist()) == (False, 0, [0, 0])
        found.append(r8.schedule.peak_lr)

    assert found[0] == found[1]


def test_backups_during_the_search_do_not_replace_its_start():
    """Without a state_callback it goes back to the backup that was made before it, not to one made every 50 steps."""
    model = Weights()
    r8 = make(auto_find_lr=True, load_callback=model.load)
    r8.update_cpu_backup(model.get())
    while r8.phase == "searching":
        ticket = r8.draw()
        model.values = model.values + 1
        if r8.global_step % 50 == 0:
            r8.update_cpu_backup(model.get())
        r8.report(ticket, 1.0 + max(0.0, ticket.lr - 0.01))

    assert model.values.tolist() == [0, 0]


def test_search_needs_a_state_to_go_back_to():
    """auto_find_lr without a state_callback or backup is refused before the first batch, each time."""
    r8 = make(auto_find_lr=True, load_callback=print)
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match="auto_find_lr needs a model state to go back to, got none: pass state_callback or call"
        ):
            r8.draw()


def test_found_rate_survives_a_resume():
    """The rate found is part of the state: a resumed run does not search again."""
    model = Weights()
    r8 = make(num_epochs=4, auto_find_lr=True, load_callback=model.load, state_callback=model.get)
    search_through(r8)
    while r8.global_step < 3:
        r8.report(r8.draw(), 1.0)
    fresh = make(num_epochs=4, auto_find_lr=True, load_callback=model.load, state_callback=model.get)
    fresh.load_state_dict(r8.state_dict())

    assert (fresh.phase, fresh.lr) == ("training", r8.lr)
    assert not math.isclose(fresh.lr, make(num_epochs=4).lr)


def test_search_that_never_reports_ends():
    """A search for a learning rate whose batches are never reported ends with an error after its number of steps."""
    r8 = make(12, num_epochs=2, auto_find_lr=True, load_callback=print, state_callback=dict)
    drawn = []

    def train():
        for step in steps(r8):
            drawn.append(step)

    with pytest.raises(
        RuntimeError, match="auto_find_lr needs at least 8 good losses to begin with, got 0 in 50 steps"
    ):
        train()

    assert len(drawn) == 50

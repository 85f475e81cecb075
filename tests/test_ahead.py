"""Drawing the rest of an epoch at once, and what the engine offers for it."""

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.ahead import EpochAhead
from learnit_r8.callbacks import Callbacks
from learnit_r8.gather import check_rows, take_rows


def scheduler(**arguments):
    """Twenty samples in batches of four, two epochs."""
    return R8Scheduler(20, **{"batch_size": 4, "num_epochs": 2, **arguments})


def train(ahead, steps):
    """Report losses of the samples; the batches and rates."""
    seen = []
    for _ in range(steps):
        ticket = ahead.begin()
        seen.append((ticket.indices.tolist(), ticket.lr))
        ahead.report(1.0 + ticket.indices % 3)
    return seen


def test_same_run_as_one_batch_at_a_time():
    """Batches drawn ahead, rates and table are those of batch_iterator."""
    ahead, twin = EpochAhead(scheduler()), scheduler()
    seen = []
    for _ in range(2):
        ahead.draw()
        seen += train(ahead, 5)
        ahead.hand_back()
    expected = []
    for _ in twin.epoch_iterator():
        for indices, lr in twin.batch_iterator():
            expected.append((indices.tolist(), lr))
            twin.update_with_loss(1.0 + indices % 3)

    assert seen == expected
    assert np.array_equal(ahead.r8.table.loss, twin.table.loss)


def test_what_was_not_reported_comes_first():
    """After an interruption the batches drawn and not reported come again, in their order."""
    ahead = EpochAhead(scheduler())
    order = [ticket.indices.tolist() for ticket in ahead.draw()]
    train(ahead, 2)
    ahead.begin()

    assert len(ahead) == 5
    assert [ticket.indices.tolist() for ticket in ahead.draw()] == order[2:]
    assert len(ahead) == 3


def test_begun_batch_proves_a_backup():
    """A backup taken in mid-epoch is trusted once the batch begun after it had a good loss, though drawn before."""
    restored = []
    ahead = EpochAhead(scheduler(load_callback=restored.append))
    ahead.draw()
    train(ahead, 1)
    ahead.r8.update_cpu_backup("first")
    train(ahead, 1)
    ahead.begin()
    ahead.r8.update_cpu_backup("on trial")
    ahead.report(np.full(4, np.nan))

    assert restored == ["first"]


def test_backup_taken_after_a_batch_began_is_not_proven_by_it():
    """The loss of a batch says nothing of weights from after its update."""
    restored = []
    ahead = EpochAhead(scheduler(load_callback=restored.append))
    ahead.draw()
    ahead.r8.update_cpu_backup("first")
    train(ahead, 1)
    ahead.begin()
    ahead.r8.update_cpu_backup("after the update")
    ahead.report(np.ones(4))
    ahead.begin()
    ahead.report(np.full(4, np.nan))

    assert restored == ["first"]


def test_budget_in_mid_epoch():
    """Steps beyond the budget are not drawn."""
    ahead = EpochAhead(scheduler(num_epochs=None, num_steps=3))

    assert len(ahead) == 3
    assert len(ahead.draw()) == 3


def test_spent_budget():
    """With nothing left to draw the error says so."""
    ahead = EpochAhead(scheduler(num_epochs=None, num_steps=1))
    ahead.draw()
    train(ahead, 1)
    with pytest.raises(RuntimeError, match=r"the budget must not be spent where training goes on, got 1 steps"):
        ahead.draw()


def test_time_budget_that_is_up():
    """Nothing is drawn once the time is up."""
    now = [0.0]
    ahead = EpochAhead(scheduler(num_epochs=None, train_duration_seconds=1, clock=lambda: now[0]))
    ahead.draw()
    now[0] = 2.0
    train(ahead, 1)
    with pytest.raises(RuntimeError, match="the budget must not be spent"):
        ahead.draw()


def test_own_callbacks_come_before_adopted_ones():
    """What the user handed in stays; what is missing is filled in."""
    own, other = (lambda: 1), (lambda: 2)
    r8 = scheduler(state_callback=own)
    r8.safekeeping.adopt(Callbacks(state=other, load=print))

    assert (r8.safekeeping.callbacks.state, r8.safekeeping.callbacks.load) == (own, print)


def test_rows_of_nests():
    """Every column of a nest gives the rows asked for; a list of numbers is a column."""
    data = {"a": np.arange(5), "b": [[0, 1, 2, 3, 4], np.eye(5)], "c": None}
    rows = take_rows(data, np.array([4, 1]))

    assert rows["a"].tolist() == rows["b"][0].tolist() == [4, 1]
    assert rows["b"][1].tolist() == np.eye(5)[[4, 1]].tolist()
    assert rows["c"] is None


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (np.ones(4), ValueError, r"x must have the scheduler's 5 samples, got 4\."),
        ([np.ones(5), {"a": np.ones(4)}], ValueError, r"x\[1\]\['a'\] must have the scheduler's 5 samples, got 4\."),
        (iter([1]), TypeError, r"x must have a length and an index, got <list_iterator"),
    ],
)
def test_bad_columns(data, error, message):
    """The column that does not fit is named."""
    with pytest.raises(error, match=message):
        check_rows("x", data, 5)

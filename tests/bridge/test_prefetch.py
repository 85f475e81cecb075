"""Drawing the rest of an epoch at once, and what the engine offers for it."""

import numpy as np
import pytest

from learnit_r8 import Focus, R8Scheduler
from learnit_r8.bridge.prefetch import Prefetch
from learnit_r8.bridge.rows import check_rows, take_rows
from learnit_r8.loops import scheduled
from learnit_r8.state.callbacks import Callbacks
from learnit_r8.streams import step_stream


def scheduler(**arguments):
    """Twenty samples in batches of four, two epochs."""
    return R8Scheduler(20, **{"batch_size": 4, "num_epochs": 2, **arguments})


def train(prefetch, steps):
    """Report losses of the samples; the batches and rates."""
    seen = []
    for _ in range(steps):
        ticket = prefetch.begin()
        seen.append((ticket.indices.tolist(), ticket.lr))
        prefetch.report(1.0 + ticket.indices % 3)
    return seen


def test_same_run_as_one_batch_at_a_time():
    """Batches drawn ahead, rates and table are those of batch_iterator."""
    prefetch, twin = Prefetch.of(scheduler()), scheduler()
    seen = []
    for _ in range(2):
        prefetch.draw_epoch()
        seen += train(prefetch, 5)
        prefetch.hand_back()
    expected = []
    for _ in twin.epoch_iterator():
        for indices, lr in twin.batch_iterator():
            expected.append((indices.tolist(), lr))
            twin.update_with_loss(1.0 + indices % 3)

    assert seen == expected
    assert np.array_equal(prefetch.r8.table.loss, twin.table.loss)


def test_what_was_not_reported_comes_first():
    """After an interruption the batches drawn and not reported come again, in their order."""
    prefetch = Prefetch.of(scheduler())
    order = [ticket.indices.tolist() for ticket in prefetch.draw_epoch()]
    train(prefetch, 2)
    prefetch.begin()

    assert prefetch.epoch_length == 5
    assert [ticket.indices.tolist() for ticket in prefetch.draw_epoch()] == order[2:]
    assert prefetch.epoch_length == 3


@pytest.mark.filterwarnings("ignore:policy Focus.* needs predictions of one class a sample")
def test_weights_have_one_form_from_the_first_batch_on():
    """A step that cannot take weights fails in its first batch, not after a fifth of the run; others have none."""
    for guard, expected in (("weigh", [[1.0] * 4] * 20), (True, [None] * 20)):
        settings, seen = {"policy": Focus(noise_guard=guard), "groups": np.zeros(20)}, []
        r8 = scheduler(**settings)
        for drawn in scheduled(r8, np.arange(20)):
            seen.append(drawn.weights)
            Prefetch.of(r8).report(np.ones(4))

        def step(indices, lr, weights=None, seen=seen):
            seen.append(weights)
            return indices + 1.0

        list(step_stream(scheduler(**settings), step))

        assert [weights if weights is None else weights.tolist() for weights in seen] == expected


def test_begun_batch_proves_a_backup():
    """A backup taken in mid-epoch is trusted once the batch begun after it had a good loss, though drawn before."""
    restored = []
    prefetch = Prefetch.of(scheduler(load_callback=restored.append))
    prefetch.draw_epoch()
    train(prefetch, 1)
    prefetch.r8.update_cpu_backup("first")
    train(prefetch, 1)
    prefetch.begin()
    prefetch.r8.update_cpu_backup("on trial")
    prefetch.report(np.full(4, np.nan))

    assert restored == ["first"]


def test_backup_taken_after_a_batch_began_is_not_proven_by_it():
    """The loss of a batch says nothing of weights from after its update."""
    restored = []
    prefetch = Prefetch.of(scheduler(load_callback=restored.append))
    prefetch.draw_epoch()
    prefetch.r8.update_cpu_backup("first")
    train(prefetch, 1)
    prefetch.begin()
    prefetch.r8.update_cpu_backup("after the update")
    prefetch.report(np.ones(4))
    prefetch.begin()
    prefetch.report(np.full(4, np.nan))

    assert restored == ["first"]


def test_budget_in_mid_epoch():
    """Steps beyond the budget are not drawn."""
    prefetch = Prefetch.of(scheduler(num_epochs=None, num_steps=3))

    assert prefetch.epoch_length == 3
    assert len(prefetch.draw_epoch()) == 3


def test_spent_budget():
    """With nothing left to draw the error says so."""
    prefetch = Prefetch.of(scheduler(num_epochs=None, num_steps=1))
    prefetch.draw_epoch()
    train(prefetch, 1)
    with pytest.raises(RuntimeError, match=r"the budget must not be spent where training goes on, got 1 steps"):
        prefetch.draw_epoch()


def test_time_budget_that_is_up():
    """Nothing is drawn once the time is up."""
    now = [0.0]
    prefetch = Prefetch.of(scheduler(num_epochs=None, train_duration_seconds=1, clock=lambda: now[0]))
    prefetch.draw_epoch()
    now[0] = 2.0
    train(prefetch, 1)
    with pytest.raises(RuntimeError, match="the budget must not be spent"):
        prefetch.draw_epoch()


def test_own_callbacks_stay_beside_adopted_ones():
    """What the user handed in is called in addition, and what is missing is filled in."""
    r8 = scheduler(state_callback=lambda: 1, load_callback=print)
    r8.host.adopt(Callbacks(state=lambda: {"model": 2}, load=print))
    alone = scheduler(state_callback=lambda: 1)
    alone.host.adopt(Callbacks(load=print))

    assert r8.host.persistence.callbacks.state() == {"model": 2, "callbacks": 1}
    assert (alone.host.persistence.callbacks.state(), alone.host.persistence.callbacks.load) == (1, print)


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


def test_a_scheduler_has_one_prefetch():
    """Everything that works ahead for a scheduler holds its batches in the same place."""
    r8 = scheduler()

    assert Prefetch.of(r8) is Prefetch.of_epochs(r8) is r8.host.member


def test_no_epoch_is_drawn_while_a_rate_is_searched_for():
    """A search gives each batch its rate when the loss of the one before is known."""
    r8 = scheduler(auto_find_lr=True, load_callback=print, state_callback=dict)
    with pytest.raises(ValueError, match="auto_find_lr must be False if batches are drawn ahead, got True"):
        Prefetch.of_epochs(r8)


def test_a_loss_of_a_wrong_shape_leaves_the_batch_in_hand():
    """Where nothing was reported the batch can be reported once more."""
    prefetch = Prefetch.of(scheduler())
    prefetch.draw_epoch()
    prefetch.begin()
    with pytest.raises(ValueError, match="loss"):
        prefetch.report(np.ones(3))

    assert prefetch.report(np.ones(4))
    assert prefetch.current is None


def test_what_was_begun_and_not_reported_comes_first():
    """A batch whose training was interrupted is drawn before those that wait."""
    prefetch = Prefetch.of(scheduler())
    order = [prefetch.draw().indices.tolist() for _ in range(3)]
    prefetch.begin()
    prefetch.hand_back()

    assert [prefetch.draw().indices.tolist() for _ in range(3)] == order


class Trainer:
    """An adapter that notes what it is asked for."""

    def __init__(self):
        self.calls = []

    def settle(self):
        self.calls.append("settle")

    def forget(self):
        self.calls.append("forget")


def test_the_trainer_hears_of_saved_and_loaded_states(tmp_path):
    """Before a checkpoint the trainer reports what it holds back, and forgets it when a state is loaded."""
    r8, trainer = scheduler(checkpoint_dir=tmp_path), Trainer()
    Prefetch.of(r8).join(trainer)
    r8.save_checkpoint()
    r8.load_state_dict(r8.state_dict())

    assert trainer.calls == ["settle", "forget"]


def test_an_epoch_drawn_at_once_has_no_batch_for_an_incident_that_is_over():
    """Batches of easy samples would come too late where a whole epoch is drawn ahead."""
    prefetch = Prefetch.of(r8 := scheduler(policy="shuffle"))
    prefetch.draw_epoch()
    train(prefetch, 5)
    r8.controller.state.steady_left, r8.controller.is_quiet = 3, False
    drawn = [ticket.indices for ticket in prefetch.draw_epoch()]

    assert sorted(np.concatenate(drawn)) == list(range(20))

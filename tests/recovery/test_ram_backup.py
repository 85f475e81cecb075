import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import RamBackup
from learnit_r8.recovery.ram_backup import Reach


@pytest.fixture
def backup():
    """A backup that trusts a state after a single good loss."""
    return RamBackup(trial_steps=1)


def test_empty_backup_restores_nothing(backup):
    """Before the first offer there is nothing to restore."""
    assert (backup.is_empty, backup.restore(), backup.newest) == (True, None, None)


def test_state_on_trial_is_restored_if_none_is_good_yet(backup):
    """The very first state is better than none."""
    backup.offer("first", step=0, draws=0)

    assert backup.restore()[:2] == ("first", 0)


def test_unproven_state_is_skipped(backup):
    """A state not proven by a good loss is not restored while an older good one exists."""
    backup.offer("good", step=0, draws=0)
    backup.confirm(0)
    backup.offer("broken", step=1, draws=1)

    assert backup.restore()[:2] == ("good", 0)


def test_only_a_batch_drawn_later_proves_a_state(backup):
    """The good loss of a batch drawn before the state was taken is no evidence about it."""
    backup.offer("good", step=0, draws=0)
    backup.confirm(0)
    backup.offer("new", step=5, draws=7)
    backup.confirm(6)
    assert backup.newest[:2] == ("new", 5)
    assert backup.restore()[:2] == ("good", 0)
    backup.offer("new", step=5, draws=7)
    backup.confirm(7)

    assert backup.restore()[:2] == ("new", 5)


def test_restoring_ends_the_trial(backup):
    """Good losses after a restore do not confirm the state that was on trial: they come from the older one."""
    backup.offer("good", step=0, draws=0)
    backup.confirm(0)
    backup.offer("broken", step=1, draws=1)
    backup.restore()
    backup.confirm(99)

    assert backup.restore()[:2] == ("good", 0)


@pytest.mark.parametrize(
    "state",
    [np.array([1.0, 2.0]), {}, [], 0, np.zeros(0), {"w": np.ones(2)}, torch.ones(2)],
    ids=lambda state: type(state).__name__,
)
def test_any_value_is_a_backup(backup, state):
    """Arrays, tensors and empty values are backups like any other."""
    backup.offer(state, step=3, draws=3)
    restored = backup.restore()

    assert not backup.is_empty
    assert repr(restored.state) == repr(state)


def test_state_is_copied_in(backup):
    """Later changes of the weights do not change the backup."""
    weights = {"w": np.zeros(2)}
    backup.offer(weights, step=0, draws=0)
    weights["w"][:] = 9

    assert backup.restore().state["w"].tolist() == [0, 0]


@pytest.mark.parametrize("is_good", [False, True])
def test_state_is_copied_out(backup, is_good):
    """Restoring twice gives the same values, whatever was done to the first copy."""
    backup.offer({"w": np.zeros(2)}, step=0, draws=0)
    if is_good:
        backup.confirm(0)
    backup.restore().state["w"][:] = 9

    assert backup.restore().state["w"].tolist() == [0, 0]


def test_clone_is_used_both_ways():
    """A user's own copying function makes every copy."""
    backup = RamBackup(clone=lambda state: [*state, "copy"])
    backup.offer(["state"], step=0, draws=0)

    assert backup.restore().state == ["state", "copy", "copy"]


def steps_of(backup, reach=Reach.GOOD):
    """The steps of the states to try, the best first."""
    return [slot.step for slot in backup.options(reach)]


def filled(**more):
    """A backup after 300 good steps, one state offered every ten."""
    backup = RamBackup(**more)
    for step in range(300):
        if step % 10 == 0:
            backup.offer(step, step=step, draws=step)
        backup.confirm(step)
    return backup


def test_good_means_64_good_losses():
    """A state is good once 64 batches drawn after it had good losses, not before."""
    backup = RamBackup()
    backup.offer("first", step=0, draws=0)
    for draw in range(64):
        assert backup.slots.good is None
        backup.confirm(draw)

    assert backup.slots.good.state == "first"


def test_offers_during_a_trial_do_not_prolong_it():
    """States offered more often than a trial lasts do not replace the one on trial."""
    backup = filled()

    assert steps_of(backup) == [180, 0, 240, 290]


@pytest.mark.parametrize(
    ("reach", "first"), [(Reach.NEWEST, [290, 240, 180, 0]), (Reach.GOOD, [180, 0]), (Reach.OLDER, [0, 180])]
)
def test_reach_says_which_state_comes_first(reach, first):
    """NEWEST starts at the newest state with a good loss, GOOD at the good one, OLDER at the one before."""
    assert steps_of(filled(), reach)[: len(first)] == first


def test_unproven_states_come_last():
    """States that no good loss has followed are tried last."""
    backup = filled()
    backup.offer("new", step=300, draws=300)

    assert steps_of(backup, Reach.NEWEST) == [290, 240, 180, 0, 300]


def test_newest_is_kept_until_its_successor_is_proven():
    """A new offer does not drop the newest proven state before a good loss has followed the new one."""
    backup = RamBackup()
    for step in (0, 10, 20):
        backup.offer(step, step=step, draws=step)
        assert steps_of(backup, Reach.NEWEST)[0] == max(0, step - 10)
        backup.confirm(step)

    assert steps_of(backup, Reach.NEWEST) == [20, 0]


def test_older_state_is_far_apart():
    """The older good state is replaced only when the good one is older_steps later."""
    assert steps_of(filled(older_steps=121), Reach.OLDER)[0] == 0
    assert steps_of(filled(older_steps=120), Reach.OLDER)[0] == 120


def test_suspicion_starts_the_trial_again():
    """Good losses do not count while the guard suspects something."""
    calm = [True]
    backup = RamBackup(trial_steps=8, is_calm=lambda: calm[0])
    backup.offer("state", step=0, draws=0)
    for draw in range(16):
        calm[0] = draw not in (6, 7)
        backup.confirm(draw)
        assert (backup.slots.good is None) == (draw < 15)


def test_going_back_forgets_what_came_later():
    """After a restore of the good state only it and older ones remain; newer ones came from damaged weights."""
    backup = filled()
    backup.restore(draws=300)

    assert sorted(steps_of(backup)) == [0, 180]


def test_going_back_to_the_newest_forgets_nothing_else():
    """After a restore of the newest state all others are still there."""
    backup = filled()
    backup.restore(Reach.NEWEST, draws=300)

    assert steps_of(backup, Reach.NEWEST) == [290, 240, 180, 0]


def test_older_becomes_good_when_it_was_restored():
    """After a restore of the older state, that state is the good one."""
    backup = filled()
    backup.restore(Reach.OLDER, draws=300)

    assert steps_of(backup) == [0]


def test_batches_still_out_prove_nothing():
    """The losses of batches drawn before a restore are not counted for the restored state."""
    backup = RamBackup(trial_steps=2)
    backup.offer("state", step=0, draws=0)
    backup.restore(draws=5)
    for draw in (3, 4):
        backup.confirm(draw)

    assert backup.slots.trial.healthy == 0


def test_memory_is_reused():
    """In the long run no new arrays are made: five buffers suffice."""
    made = []

    def copy_into(buffer, state):
        buffer[:] = state
        return buffer

    backup = RamBackup(lambda state: made.append(1) or state.copy(), copy_into)
    for step in range(2000):
        if step % 10 == 0:
            backup.offer(np.full(3, step), step=step, draws=step)
        backup.confirm(step)

    assert len(made) <= 5
    assert [slot.state.tolist() == [slot.step] * 3 for slot in backup.options()] == [True] * 4


@given(st.lists(st.sampled_from(["offer", "good", "newest", "restore", "older", "unsettle"]), max_size=60))
def test_every_state_is_what_it_was_when_taken(script):
    """Whatever happens, each kept state has the values of its own step, and the slots are in order."""
    backup = RamBackup(trial_steps=3, older_steps=4)
    for step, action in enumerate(script, start=1):
        if action == "offer":
            backup.offer(np.full(2, step), step=step, draws=step)
        elif action == "good":
            backup.confirm(step)
        elif action == "unsettle":
            backup.unsettle()
        else:
            reach = {"newest": Reach.NEWEST, "restore": Reach.GOOD, "older": Reach.OLDER}[action]
            restored = backup.restore(reach, draws=step)
            assert restored is None or restored.state.tolist() == [restored.step] * 2
        slots = [
            s
            for s in (
                backup.slots.older,
                backup.slots.good,
                backup.slots.trial,
                backup.slots.before,
                backup.slots.newest,
            )
            if s
        ]
        assert [slot.state.tolist() for slot in slots] == [[slot.step] * 2 for slot in slots]
        assert [slot.step for slot in slots] == sorted(slot.step for slot in slots)
        assert len({id(each) for each in [*(slot.state for slot in slots), *backup._spares]}) <= 5
        assert not {id(slot.state) for slot in slots} & {id(spare) for spare in backup._spares}


def test_failed_copy_leaves_the_rest():
    """A state that cannot be copied leaves the stored ones unchanged."""
    backup = filled()
    with pytest.raises(TypeError, match=r"state must be something that can be copied, got generator"):
        backup.offer((n for n in range(3)), step=300, draws=300)

    assert steps_of(backup) == [180, 0, 240, 290]


def test_cleared_backup_is_empty():
    """clear() forgets everything."""
    backup = filled()
    backup.clear()

    assert (backup.is_empty, backup.restore(), backup.newest) == (True, None, None)

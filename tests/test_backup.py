import numpy as np
import pytest
import torch

from learnit_r8 import RamBackup


@pytest.fixture
def backup():
    return RamBackup()


def test_empty_backup_restores_nothing(backup):
    """Before the first offer there is nothing to restore."""
    assert (backup.is_empty, backup.restore(), backup.newest) == (True, None, None)


def test_state_on_trial_is_restored_if_none_is_good_yet(backup):
    """The very first state is better than none."""
    backup.offer("first", step=0, draws=0)

    assert backup.restore() == ("first", 0)


def test_unproven_state_is_passed_over(backup):
    """A state not proven by a good loss is not restored while an older good one exists."""
    backup.offer("good", step=0, draws=0)
    backup.confirm(0)
    backup.offer("broken", step=1, draws=1)

    assert backup.restore() == ("good", 0)


def test_only_a_batch_drawn_later_proves_a_state(backup):
    """The good loss of a batch drawn before the state was taken says nothing about it."""
    backup.offer("good", step=0, draws=0)
    backup.confirm(0)
    backup.offer("new", step=5, draws=7)
    backup.confirm(6)
    assert backup.newest == ("new", 5)
    assert backup.restore() == ("good", 0)
    backup.offer("new", step=5, draws=7)
    backup.confirm(7)

    assert backup.restore() == ("new", 5)


def test_restoring_ends_the_trial(backup):
    """A state on trial when the model was restored is not trusted by later good losses: they are of the older state."""
    backup.offer("good", step=0, draws=0)
    backup.confirm(0)
    backup.offer("broken", step=1, draws=1)
    backup.restore()
    backup.confirm(99)

    assert backup.restore() == ("good", 0)


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
    """What the user does to the weights afterwards does not reach the backup."""
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

import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.schedules.budget import Budget, batches_of


def budget_of(per_epoch=4, **given):
    return R8Scheduler(per_epoch, batch_size=1, handle_signals=False, **given).pace.budget


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "steps"), [(3, 4, 12), (2.5, 4, 10), (2.1, 4, 9), (1e-9, 4, 1), (1, 1, 1)]
)
def test_epochs_become_steps_rounded_up(epochs, per_epoch, steps):
    """A budget of epochs is ceil(num_epochs * steps_per_epoch) steps, and at least one."""
    assert budget_of(per_epoch, num_epochs=epochs) == Budget(steps=steps, is_in_epochs=True)


def test_steps_are_taken_as_they_are():
    """A budget of steps does not depend on the epoch's length."""
    assert budget_of(num_steps=7) == Budget(steps=7)


def test_whole_number_of_steps_is_an_int():
    """Steps given as a whole float are counted as an int."""
    assert type(budget_of(num_steps=7.0).steps) is int


def test_seconds_are_taken_as_they_are():
    """A budget of seconds has no number of steps."""
    assert budget_of(train_duration_seconds=60.0) == Budget(seconds=60.0)


def test_updates_become_batches():
    """With accumulated gradients an epoch's last update may be of fewer batches."""
    assert [batches_of(updates, 7, 2) for updates in (1, 4, 5, 8)] == [2, 7, 9, 14]

import numpy as np
import pytest

from learnit_r8.testing import ToyTask


def test_toy_learns():
    """A sensible rate brings the loss of the toy task down; one that is far too high does not."""
    losses = {}
    for lr in (0.05, 50.0):
        task = ToyTask(256)
        for step in range(200):
            task.losses(np.arange(16) + 16 * (step % 16))
            task.step(lr)
        losses[lr] = task.loss()

    assert losses[0.05] < 0.3
    assert not losses[50.0] < 2


def test_toy_survives_a_file(tmp_path):
    """load restores what save wrote."""
    task, other = ToyTask(64), ToyTask(64, seed=1)
    task.losses(np.arange(8))
    task.step(0.1)
    task.save({}, tmp_path / "toy")
    other.load(tmp_path / "toy")

    for ours, theirs in zip(task.weights + task.velocity, other.weights + other.velocity, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_evaluating_changes_no_gradient():
    """The loss of all samples may be asked for between losses() and step()."""
    tasks = [ToyTask(64), ToyTask(64)]
    for number, task in enumerate(tasks):
        task.losses(np.arange(8))
        if number:
            task.loss()
        task.step(0.1)

    assert tasks[0].loss() == tasks[1].loss()


@pytest.mark.parametrize(("arguments", "name"), [({"num_samples": 0}, "num_samples"), ({"seed": -1}, "seed")])
def test_toy_arguments_are_counts(arguments, name):
    """Sizes and seeds of the toy task are whole numbers."""
    with pytest.raises(ValueError, match=f"{name} must be a whole number"):
        ToyTask(**arguments)

"""Lasting faults: weights that decay over a whole run, and a rate that stays too high."""

import pytest

from learnit_r8 import R8Scheduler, events
from learnit_r8.testing import FaultPlan, ToyTask, record_events


def train(*, steps, decay=1.0, faults=FaultPlan(), seed=0):
    """A toy run at a constant rate; from step 600 on each update shrinks the weights until a state is put back."""
    task, heard = ToyTask(seed=seed), record_events()
    r8 = R8Scheduler(
        2048, batch_size=32, num_steps=steps, initial_lr=0.05, scheduler_mode="constant", seed=seed, backup_every=20,
        listeners=[heard], state_callback=task.state, load_callback=task.load,
    )  # fmt: skip
    for _ in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            step = r8.global_step
            if r8.update_with_loss(float(task.losses(indices).mean())):
                task.step(faults.rate(step, lr))
                if step >= 600 and not heard.of(events.RolledBack):
                    for weight in task.weights:
                        weight *= decay
    return task, heard


def steps_of(heard, kind, reason=None):
    return [event.step for event in heard.of(kind) if reason is None or event.reason == reason]


def test_slow_decay():
    """Weights that are worn down slowly are found damaged, and the state of before comes back."""
    with pytest.warns(RuntimeWarning, match="the weights were damaged"):
        task, heard = train(steps=1600, decay=0.9)

    assert heard.of(events.RolledBack)[0].to_step <= 620
    assert task.loss() < 0.2


@pytest.mark.filterwarnings("ignore:losses were far too high:RuntimeWarning")
@pytest.mark.parametrize(("by", "seed"), [(10.0, 0), (1000.0, 1)])
def test_second_explosion(by, seed):
    """After a restore, each further explosion is seen as soon as the first."""
    faults = FaultPlan(lr=range(600, 1400), lr_by=by)
    _, heard = train(steps=1400, faults=faults, seed=seed)
    refused = steps_of(heard, events.BatchRefused)

    assert len(refused) >= 2
    assert refused[0] - 600 < 64
    assert refused[1] - refused[0] < 96
    assert heard.of(events.LrCapped)

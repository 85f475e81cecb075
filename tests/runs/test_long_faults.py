"""Lasting faults: a loss that rises over a whole run, and a rate that stays too high."""

import pytest

from learnit_r8 import R8Scheduler, events
from learnit_r8.testing import FaultPlan, ToyTask, record_events


def train(*, steps, rise=0.0, faults=FaultPlan(), seed=0):
    """A toy run at a constant rate; from step 600 on its reported loss rises by ``rise`` a step,
    until the model is put back."""
    task, heard = ToyTask(seed=seed), record_events()
    r8 = R8Scheduler(
        2048, batch_size=32, num_steps=steps, initial_lr=0.05, scheduler_mode="constant", seed=seed, backup_every=20,
        listeners=[heard], state_callback=task.state, load_callback=task.load,
    )  # fmt: skip
    for _ in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            step = r8.global_step
            loss = float(task.losses(indices).mean()) + rise * max(0, step - 600)
            outcome = r8.update_with_loss(loss)
            if outcome:
                task.step(faults.rate(step, lr))
            elif outcome.rolled_back_to is not None:
                rise = 0.0
    return task, heard


def steps_of(heard, kind, reason=None):
    return [event.step for event in heard.of(kind) if reason is None or event.reason == reason]


@pytest.mark.parametrize("seed", range(3))
def test_slow_drift(seed):
    """A slow rise lowers the rate, with one warning; after 128 more steps an older backup is restored."""
    with pytest.warns(RuntimeWarning, match="crept up") as said:
        _, heard = train(steps=2000, rise=1.3e-3, seed=seed)
    capped = steps_of(heard, events.LrCapped, "drift")
    refused = steps_of(heard, events.BatchRefused)

    assert 600 < capped[0] < refused[0]
    assert [event.reason for event in heard.of(events.BatchRefused)][:1] == ["lasting drift"]
    assert refused[0] - capped[0] == pytest.approx(128, abs=1)
    assert heard.of(events.RolledBack)[0].to_step < capped[0] - 256
    assert ["crept up" in str(warning.message) for warning in said].count(True) == 1


@pytest.mark.filterwarnings("ignore:the losses have crept up:RuntimeWarning")
@pytest.mark.parametrize("by", [10.0, 100.0, 1000.0])
@pytest.mark.parametrize("seed", range(2))
def test_second_explosion(by, seed):
    """After a restore, each further explosion is seen as soon as the first, until the rate is low enough."""
    faults = FaultPlan(lr=range(600, 1400), lr_by=by)
    task, heard = train(steps=1400, faults=faults, seed=seed)
    refused = steps_of(heard, events.BatchRefused)

    assert len(refused) >= 2
    assert refused[0] - 600 < 64
    assert refused[1] - refused[0] < 96
    assert task.loss() < 0.5

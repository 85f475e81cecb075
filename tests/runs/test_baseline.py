"""reset_baseline(): from its step on, losses on another scale are no damage."""

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, events
from learnit_r8.testing import ToyTask, record_events


def train(r8, task, *, steps, scale=1.0):
    """Steps whose losses are reported times ``scale``, with unchanged gradients."""
    end = r8.global_step + steps
    while r8.global_step < end:
        ticket = r8.draw()
        if r8.report(ticket, float(task.losses(ticket.indices).mean()) * scale):
            task.step(ticket.lr)


def build(heard, task, **more):
    return R8Scheduler(
        2048, batch_size=32, num_steps=1600, initial_lr=0.05, listeners=[heard],
        state_callback=task.state, load_callback=task.load, backup_every=20, **more,
    )  # fmt: skip


def test_loss_scale_changes():
    """After reset_baseline() a loss a thousand times as high is usual: nothing is refused, and no rate lowered."""
    task, heard = ToyTask(), record_events()
    r8 = build(heard, task)
    train(r8, task, steps=600)
    r8.reset_baseline()
    train(r8, task, steps=1000, scale=1000.0)

    assert r8.sentry.num_refused == 0
    assert not heard.of(events.BatchRefused, events.RolledBack, events.LrCapped)
    assert task.loss() < 0.1


def test_without_it_an_experiment():
    """Without it an experiment finds that the weights are not the cause, and the new level is accepted, aloud."""
    task, heard = ToyTask(), record_events()
    r8 = build(heard, task)
    train(r8, task, steps=600)
    with pytest.warns(RuntimeWarning, match="Nothing was restored, and the new level counts as normal"):
        train(r8, task, steps=1000, scale=1000.0)

    assert not heard.of(events.RolledBack, events.LrCapped)
    assert len(heard.of(events.IncidentEnded)) == 1
    assert len(heard.of(events.BatchRefused, events.Probed)) < 60
    assert task.loss() < 0.1


def test_an_incident_ends_with_it():
    """Called after the first refusal, it ends the incident and the experiment."""
    task, heard = ToyTask(), record_events()
    r8 = build(heard, task)
    train(r8, task, steps=600)
    while not r8.sentry.num_refused:
        train(r8, task, steps=1, scale=1000.0)
    r8.reset_baseline()
    train(r8, task, steps=500, scale=1000.0)

    assert r8.sentry.num_refused == len(heard.of(events.IncidentEnded)) == 1
    assert not heard.of(events.RolledBack, events.Probed)
    assert r8.lr == r8.schedule(r8.progress)


def test_it_is_saved_and_heard_of():
    """A saved state has the number of resets, and the events show why the guard was blind for a while."""
    heard = record_events()
    r8, other = (R8Scheduler(640, batch_size=32, num_steps=900, listeners=each) for each in ([heard], []))
    r8.reset_baseline()
    other.load_state_dict(r8.state_dict())

    assert other.sentry.baseline == 1
    assert "reset_baseline()" in heard.of(events.Notice)[0].text


def test_earlier_backups_bring_no_old_unit():
    """Where NaN in the weights soon after brings back an earlier backup, the guard does not return to the old unit."""
    task, heard = ToyTask(), record_events()
    r8 = build(heard, task)
    train(r8, task, steps=600)
    r8.reset_baseline()
    train(r8, task, steps=8, scale=1000.0)
    for weight in task.weights:
        weight[:] = np.nan
    with pytest.warns(RuntimeWarning, match="the weights were damaged"):
        train(r8, task, steps=500, scale=1000.0)

    assert heard.of(events.RolledBack)[0].to_step <= 600
    assert len(heard.of(events.RolledBack)) == 1
    assert task.loss() < 0.1

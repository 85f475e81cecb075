"""What is to be done is said where updates are too large, once, and as what it is: not tested."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from learnit_r8 import events
from learnit_r8.events.incident import fold
from learnit_r8.testing import record_events
from learnit_r8.torch import attach
from tests.torch_common import descend

NUM_STEPS = 400


def train(
    *, lr=0.05, jump=None, times=1e4, num_steps=NUM_STEPS, poison=None, steps=True, warmup=0, rows=8, masked=False,
    **settings,
):  # fmt: skip
    """A small regression, at some steps with many times the rate; returns what was said, and told."""
    torch.manual_seed(0)
    model, dice = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)), torch.Generator().manual_seed(1)
    if masked:
        model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    optimizer, heard = torch.optim.SGD(model.parameters(), lr), record_events()
    batches = [torch.randn(rows, 4, generator=dice) for _ in range(num_steps)]
    with (
        warnings.catch_warnings(record=True) as caught,
        attach(model, optimizer, batches, num_steps=num_steps, listeners=[heard], **settings) as adapter,
    ):
        warnings.simplefilter("always")
        for x in adapter.batches():
            step = adapter.scheduler.global_step
            rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
            optimizer.param_groups[0]["lr"] = lr * times if jump and step in jump else lr * rise
            y = x.sum(1, keepdim=True)
            loss = mse_loss(model(x), y * (1e6 if step == poison else 1.0))
            if steps:
                adapter.step(loss)
            elif adapter.report(loss):
                descend(optimizer, loss)
    return [str(each.message) for each in caught], heard, adapter


def advice_in(said):
    return [each for each in said if "What may help, and was not tested here" in each]


@pytest.mark.parametrize(("steps", "masked"), [(True, False), (False, False), (True, True)])
def test_the_first_updates_that_are_too_large_are_named_with_what_to_pass(steps, masked):
    """Once, however often they come; without run_batch it is probable. An infinite mask is no damage of the weights."""
    said, heard, _ = train(jump=(100, 180), num_steps=220, steps=steps, masked=masked)

    causes = heard.of(events.CauseFound)
    assert {each.fault for each in causes} == {"update"}
    assert "probably the updates since step" in causes[0].text
    (advice,) = advice_in(said)
    assert "max_grad_norm=1.0 to attach()" in advice
    assert "clip_grad_norm_(model.parameters(), 1.0)" in advice


def test_who_clips_already_is_not_told_to():
    """At a rate that no clipping at so high a norm helps."""
    (advice,) = advice_in(train(jump=(100,), num_steps=140, max_grad_norm=1e6)[0])
    assert "lower max_grad_norm=1e+06, or the rate" in advice


def test_a_bad_batch_gets_no_advice():
    """Its loss is high, and the weights have not moved: it is left out."""
    said, heard, adapter = train(poison=150, num_steps=200)

    assert adapter.scheduler.sentry.num_refused == 1
    assert not advice_in(said)
    before, cause = heard.of(events.CauseFound)
    assert (before.fault, cause.fault, cause.is_certain) == ("unknown", "input", False)
    assert "step 151: probably the batch itself, as the weights are healthy; all that the model" in cause.text
    assert "its loss was not tested, and the weights have moved by" in cause.text


def test_updates_are_named_once_a_test_has_found_the_weights_damaged():
    """The search for the cause comes before the test, and may have found none; the incident has the later sentence."""
    _, heard, _ = train(jump=(155,), times=100, backup_every=8)
    incidents = ()
    for event in heard:
        incidents = fold(incidents, event, 0)

    assert "probably the updates since step 152 were too large, as the weights were damaged" in incidents[-1].cause
    assert incidents[-1].advice.startswith("Lower the rate")
    assert [each.fault for each in heard.of(events.CauseFound)][-2:] == ["unknown", "update"]


def test_a_rate_that_is_too_high_from_the_start_is_said_with_the_one_that_held():
    """The rate of one's own, in the first steps; said once it has held."""
    # Backups that follow the clock would differ on a busy machine.
    said, heard, _ = train(lr=10.0, backup_every=8)

    (text,) = [each for each in said if each.startswith("the rate is probably too high from the start: ")]
    assert "of yours held for" in text
    assert heard.of(events.IncidentEnded)


def notes_in(heard):
    return [each for each in heard.of(events.Notice) if "the untrained model: unless that is expected" in each.text]


@pytest.mark.parametrize("warmup", [0, 200])
def test_a_standstill_is_noted_once_the_rate_has_reached_its_peak(warmup):
    """A rate that is far too low; nothing is tested, and nothing is said in a warning or a second time."""
    said, heard, adapter = train(lr=1e-7, warmup=warmup, rows=2048, num_steps=warmup + 120)

    (note,) = notes_in(heard)
    assert warmup + 64 <= note.step < warmup + 96
    assert not note.is_warning
    assert not said
    assert adapter.scheduler.pace.probes == 0


def test_progress_is_no_standstill_and_a_resumed_warm_up_goes_on(tmp_path):
    """A run that learns; and one that was resumed while its rate rose, whose peak counts from there."""
    assert not notes_in(train(warmup=100, num_steps=240)[1])
    settings = {"lr": 1e-7, "rows": 2048, "warmup": 200, "checkpoint_dir": tmp_path, "resume": "auto"}
    train(num_steps=150, **settings)
    (note,) = notes_in(train(num_steps=320, **settings)[1])
    assert note.step >= 264

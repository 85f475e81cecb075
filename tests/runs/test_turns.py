"""A probe is one turn of the user's loop and no step: what scripts count stays within what they expect."""

import itertools
import warnings

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, events
from learnit_r8.testing import ToyTask

QUIET = {"handle_signals": False}
NUM_BATCHES, NUM_EPOCHS = 16, 4


class Batches:
    """A loader with a length, whose batches are rows of the toy task."""

    def __init__(self, num_batches=NUM_BATCHES):
        self._rows = np.arange(2048).reshape(-1, 16)[:num_batches]

    def __len__(self):
        return len(self._rows)

    def __iter__(self):
        yield from self._rows


class Run:
    """A run of the toy task, whose weights break at some turns.

    Args:
        is_planned: Whether R8 draws the batches.
        breaks: Turns, counted over the run, before which the weights are broken.
        **settings: For the scheduler.
    """

    def __init__(self, is_planned, breaks=(40,), **settings):
        self.task, self.heard, self.turns, self.breaks = ToyTask(), [], [], set(breaks)
        if is_planned:
            settings = {"num_samples": 16 * NUM_BATCHES, "batch_size": 16, "initial_lr": 0.02, **settings}
        else:
            settings = {"scheduler_mode": "keep", **settings}
        if "num_steps" not in settings:
            settings = {"num_epochs": NUM_EPOCHS, **settings}
        self.r8 = R8Scheduler(
            state_callback=self.task.state, load_callback=self.task.load, backup_every=5, listeners=[self.heard.append],
            **QUIET, **settings,
        )  # fmt: skip
        self.loader = None if is_planned else Batches()
        self._num_turns = 0

    def batches(self):
        if self.loader is None:
            return (indices for indices, _ in self.r8.batch_iterator())
        return self.r8.batches(self.loader)

    def epoch(self):
        """Train for an epoch; returns its turns: whether each was a step, and the counts before and after it."""
        r8, turns = self.r8, []
        for indices in self.batches():
            if self._num_turns in self.breaks:
                self.task.weights[0][:] = np.nan
            self._num_turns += 1
            before = r8.global_step, r8.step_in_epoch, r8.handed_out
            if r8.update_with_loss(float(self.task.losses(indices).mean())):
                self.task.step(0.02)
            turns.append((before, (r8.global_step, r8.step_in_epoch, r8.probes_in_epoch, r8.handed_out)))
        self.turns.append(turns)
        return turns

    def train(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with self.r8:
                for _ in self.r8.epoch_iterator():
                    self.epoch()
        return self

    def of(self, kind):
        return [event for event in self.heard if isinstance(event, kind)]


@pytest.mark.parametrize("is_planned", [False, True])
@pytest.mark.parametrize("breaks", [(40,), (5,), (62,), (20, 55), (14, 15, 31)])
def test_an_epoch_is_no_longer_than_its_loader(is_planned, breaks):
    """Each loop yields as many batches as the loader has, tests of the weights included, and the run is finished."""
    run = Run(is_planned, breaks).train()
    r8 = run.r8

    assert run.of(events.Probed)
    assert [len(turns) for turns in run.turns] == [NUM_BATCHES] * NUM_EPOCHS
    assert (r8.phase, r8.progress, r8.is_over) == ("finished", 1.0, True)
    assert run.of(events.RunEnded)[-1].finished
    assert r8.global_step == NUM_BATCHES * NUM_EPOCHS - r8.pace.probes
    assert np.isfinite(run.task.loss())


@pytest.mark.parametrize("is_planned", [False, True])
def test_counters_of_scripts_stay_in_range(is_planned):
    """A table of rates by step, and a check of the number of the batch, are what scripts die of."""
    run = Run(is_planned, (20, 55))
    rates, r8 = np.linspace(0.02, 0.01, NUM_BATCHES * NUM_EPOCHS), run.r8
    with warnings.catch_warnings(), r8:
        warnings.simplefilter("ignore")
        for _, turn in zip(itertools.count(), r8.epoch_iterator(), strict=False):
            assert turn < NUM_EPOCHS
            for batch_idx, indices in enumerate(run.batches()):
                # A mean over the batches that are left, as schedules by fractions of an epoch take it.
                rate = rates[r8.global_step] / (batch_idx < NUM_BATCHES)
                assert rates[turn * NUM_BATCHES + r8.step_in_epoch] > 0
                if turn == 1 and batch_idx == 4 and r8.probes_in_epoch == 0:
                    run.task.weights[0][:] = np.nan
                if r8.update_with_loss(float(run.task.losses(indices).mean())):
                    run.task.step(rate)

    assert run.of(events.Probed)
    assert r8.phase == "finished"


@pytest.mark.parametrize("is_planned", [False, True])
def test_what_is_counted(is_planned):
    """Steps count batches trained or refused, never probes; both together are what was handed out."""
    run = Run(is_planned, (20, 40)).train()
    flat = [turn for turns in run.turns for turn in turns]

    assert sum(len(turns) for turns in run.turns) == run.r8.global_step + run.r8.pace.probes
    for turns in run.turns:
        # The last one of an epoch that R8 draws begins the next epoch.
        for number, (_, (_, step, probes, handed_out)) in enumerate(turns[: -1 if is_planned else None], start=1):
            assert handed_out == step + probes == number
        assert turns[0][0][1:] == (0, 0) or not is_planned
    assert all(after[0] - before[0] in (0, 1) for before, after in flat)
    assert sum(after[0] == before[0] for before, after in flat) == run.r8.pace.probes == len(run.of(events.Probed)) > 0


@pytest.mark.parametrize("is_planned", [False, True])
def test_the_incident_says_what_is_left_out(is_planned):
    """As many batches as there were tests."""
    run = Run(is_planned, (20,)).train()
    texts = [event.text for event in run.of(events.IncidentEnded)]
    count = len(run.of(events.Probed))

    many = "place of one batch" if count == 1 else f"places of {count} batches"
    assert any(text.endswith(f"of the weights took the {many}.") for text in texts)


@pytest.mark.parametrize("is_planned", [False, True])
def test_a_goal_in_steps_is_reached_in_full(is_planned):
    """Nothing is left out: all steps are done, beside the tests."""
    run = Run(is_planned, (20, 40), num_steps=NUM_BATCHES * NUM_EPOCHS).train()
    handed_out = sum(len(turns) for turns in run.turns)

    assert run.of(events.Probed)
    assert run.r8.global_step == NUM_BATCHES * NUM_EPOCHS == handed_out - len(run.of(events.Probed))
    assert len(run.turns) == NUM_EPOCHS
    assert run.r8.phase == "finished"
    assert not any("left out" in event.text for event in run.of(events.IncidentEnded))


@pytest.mark.parametrize("is_planned", [False, True])
def test_a_resume_in_mid_epoch_keeps_the_counts(is_planned):
    """A run that goes on after a test of its weights counts on, and its epoch is as long as any other."""
    first = Run(is_planned, (20,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first_turns = []
        for _ in first.r8.epoch_iterator():
            for indices in first.batches():
                if len(first_turns) == 20:
                    first.task.weights[0][:] = np.nan
                if first.r8.update_with_loss(float(first.task.losses(indices).mean())):
                    first.task.step(0.02)
                first_turns.append(first.r8.global_step)
                if len(first_turns) == 28:
                    break
            if len(first_turns) == 28:
                break
        assert first.r8.probes_in_epoch > 0
        counts = [first.r8.global_step, first.r8.step_in_epoch, first.r8.probes_in_epoch, first.r8.handed_out]
        second = Run(is_planned, ())
        second.r8.load_state_dict(first.r8.state_dict())
        second.task.load(first.task.state(), from_ram=True)

        assert counts == [
            second.r8.global_step, second.r8.step_in_epoch, second.r8.probes_in_epoch, second.r8.handed_out,
        ]  # fmt: skip
        second.train()

    assert counts[-1] == 28 - NUM_BATCHES
    assert [len(turns) for turns in second.turns] == [2 * NUM_BATCHES - 28] + [NUM_BATCHES] * (NUM_EPOCHS - 2)
    assert second.r8.phase == "finished"


def test_nothing_of_a_stream_without_a_length_is_left_out():
    """It ends where it does, and the incident says nothing else."""
    run = Run(False, (20,))
    run.loader = type("Stream", (), {"__iter__": lambda self: iter(Batches())})()
    run.train()
    num_probes = len(run.of(events.Probed))

    assert num_probes > 0
    assert sum(len(turns) for turns in run.turns) == NUM_BATCHES * NUM_EPOCHS + num_probes
    assert run.r8.global_step == NUM_BATCHES * NUM_EPOCHS
    assert not any("left out" in event.text for event in run.of(events.IncidentEnded))


def test_the_counts_of_an_epoch_begin_with_it():
    """Where a loop over epochs gives a number, the counts are of this epoch; a loop from them on trains it whole."""
    r8 = R8Scheduler(num_epochs=3, scheduler_mode="keep")
    before = []
    for _ in r8.epoch_iterator():
        before.append((r8.step_in_epoch, r8.probes_in_epoch, r8.handed_out))
        for _ in r8.batches(range(r8.step_in_epoch, 4)):
            r8.update_with_loss(1.0)
        assert r8.handed_out == 4

    assert before == 3 * [(0, 0, 0)]
    assert r8.global_step == 12

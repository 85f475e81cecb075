"""A run that never was: realistic events for the tests of the screen, the same every time."""

import functools
import math

import numpy as np

from learnit_r8 import SampleTable, events
from learnit_r8.dashboard.render.frame import render
from learnit_r8.dashboard.state.ui_state import Scene, UiState
from learnit_r8.dashboard.state.view import View
from learnit_r8.dashboard.theme import choose_theme
from learnit_r8.events.condenser import Condenser
from learnit_r8.schedules.schedule import Warmup
from learnit_r8.table.losses import EXACT
from learnit_r8.table.survey import Surveyor
from tests.drive import observe

NUM_SAMPLES, BATCH_SIZE, EPOCHS = 50_000, 128, 30
PER_EPOCH = -(-NUM_SAMPLES // BATCH_SIZE)
TOTAL = PER_EPOCH * EPOCHS
SPIKE_STEP = 4704
STEP_SECONDS = 0.311
SCHEDULE = Warmup(0.1)
SETTINGS = {
    "initial_lr": "0.1",
    "num_epochs": "30",
    "scheduler_mode": "cosine",
    "seed": "0",
    "save_callback": "save_model",
    "python": "3.12.1",
    "numpy": "2.1.0",
    "machine": "gpu03",
}


class FakeTable:
    """A real table that learns made-up losses, one per sample: some easy, some hard, one in fifty mislabelled."""

    def __init__(self):
        rng = np.random.default_rng(7)
        self.table = SampleTable(NUM_SAMPLES, batch_size=BATCH_SIZE)
        self.table.storage.part_size = EXACT
        self.difficulty = rng.gamma(2.0, 0.5, NUM_SAMPLES)
        self.wrong = rng.random(NUM_SAMPLES) < 0.02
        self.rng = rng
        observe(self.table, 2.3, 2.3)
        self.surveyor = Surveyor(self.table, clock=lambda: 0.0)

    def losses(self, epoch):
        fitted = 2.3 * np.exp(-0.28 * epoch / (0.3 + self.difficulty)) * self.difficulty
        fitted = np.where(self.wrong, 5.5 + 0.15 * epoch, np.minimum(fitted, 2.2))
        return fitted * self.rng.lognormal(0, 0.15, NUM_SAMPLES) + 0.01

    def learn_epoch(self, epoch):
        self.table.learner.learn(
            np.arange(NUM_SAMPLES), self.losses(epoch), None, np.full(NUM_SAMPLES, self.table.trend)
        )

    def survey(self, step, seconds, epoch, *, epoch_ended):
        shares = (0.25, 0.242, 0.258, 0.25)
        fields = self.surveyor.survey(seconds, epoch=epoch, epoch_ended=epoch_ended, batch_share=shares)
        return events.SamplesSurveyed(step, seconds, **fields)


def fake_events(steps=4812):
    """Events of a run up to a step: a search of nothing, a spike with a rollback, checkpoints, validation."""
    rng = np.random.default_rng(3)
    table = FakeTable()
    seconds = 0.0
    plan = tuple(SCHEDULE(place / 128) for place in range(129))
    yield events.RunStarted(
        0, 0.0, "cifar10-r56", NUM_SAMPLES, BATCH_SIZE, PER_EPOCH, TOTAL, None, "balanced", SETTINGS, plan
    )
    factor_until, factor = 0, 1.0
    for step in range(1, steps + 1):
        epoch = (step - 1) // PER_EPOCH
        seconds += STEP_SECONDS * (1 + 0.03 * math.sin(step))
        trend = 0.33 + 2.0 * math.exp(-step / 1500)
        lr = SCHEDULE(step / TOTAL) * factor
        if step == SPIKE_STEP:
            yield events.BatchRefused(step, seconds, epoch, 9.31, lr, lr / 2, 1, (), "spike")
            yield events.RolledBack(step, seconds, step - 16, "backup")
            factor, factor_until = 0.5, step + 400
            continue
        if step == factor_until:
            factor = 1.0
            yield events.LrRestored(step, seconds)
        if step == SPIKE_STEP + 100:
            yield events.IncidentEnded(step, seconds)
        loss = trend * rng.lognormal(0, 0.06) * (2.6 if step in (1403, 1404) else 1.0)
        yield events.StepDone(
            step, seconds, epoch, step / TOTAL, loss, trend, lr, BATCH_SIZE, SPIKE_STEP < step <= SPIKE_STEP + 20,
            0.0019, 0.0203, 0.9 if step == SPIKE_STEP - 1 else max(0.0, 0.1 * math.sin(step / 9)),
        )  # fmt: skip
        if step % PER_EPOCH == 0:
            table.learn_epoch(epoch)
            yield events.EpochDone(step, seconds, epoch, step / TOTAL, trend, lr, NUM_SAMPLES, PER_EPOCH * STEP_SECONDS)
            yield table.survey(step, seconds, epoch + 1, epoch_ended=True)
            accuracy = 0.93 - 0.6 * math.exp(-step / 1800)
            seconds += 4.0
            yield events.MetricsLogged(
                step, seconds, step, {"accuracy": accuracy, "val_loss": 0.36 + 1.9 * math.exp(-step / 1300)}
            )
            if epoch % 3 == 2:
                yield events.CheckpointSaved(step, seconds, f"runs/ckpt/ck_{step:08d}.r8", "model.pt")


@functools.cache
def fake_view(steps=4812):
    """The view of that run; do not change it."""
    view = View()
    fold_all(view, fake_events(steps))
    return view


def fold_all(view, events_told):
    condenser = Condenser(view.fold)
    for event in events_told:
        condenser(event)
    condenser.flush()
    return view


THEME = choose_theme({"TERM": "xterm-256color"}, encoding="utf-8")
OUTPUT = tuple(f"loading shard {number} of 40" for number in range(1, 41))
SCENE = Scene(output=OUTPUT, num_output=40, num_unread=3, ui_share=0.0011, folder="runs/2026-11-20-cifar10-r56")


def screen(view, width, height, /, *, theme=THEME, scene=SCENE, **ui):
    """The screen as text, one line a row, without the spaces at its right."""
    lines = render(view, UiState(**ui), width, height, theme, scene)
    return ["".join(text for text, _ in line).rstrip() for line in lines]

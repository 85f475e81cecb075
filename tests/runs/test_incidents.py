"""Incidents in sequence: damage older than the newest good backup, outliers, and the texts about them."""

import math

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, SpikeGuard, events
from learnit_r8.testing import ToyTask, record_events

POISONED, SHOWN = 800, 1000


class Poisoned(ToyTask):
    """A task whose state carries a mark: set at a step, copied with the state, and bad once the damage shows."""

    def __init__(self, show, seed=0):
        super().__init__(1024, seed)
        self.mark = np.zeros(2)
        self.average = np.zeros(3)
        self.show = show

    def state(self):
        return {**super().state(), "mark": self.mark, "average": self.average}

    def load(self, source, from_ram=True):
        super().load(source, from_ram)
        self.mark, self.average = source["mark"].copy(), source["average"].copy()

    def shows(self, step):
        return bool(self.mark[0]) and (step >= SHOWN if self.show == "at once" else self.mark[1] >= SHOWN - POISONED)


def train(task, kind, *, at=POISONED, listeners=(), num_steps=3000):
    r8 = R8Scheduler(
        1024, batch_size=32, num_steps=num_steps, initial_lr=0.02, backup_every=50, scheduler_mode="constant",
        state_callback=task.state, load_callback=task.load, listeners=listeners,
    )  # fmt: skip
    poisoned = False
    start = task.loss()
    for _ in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            step = r8.global_step
            if step == at and not poisoned:
                poisoned, task.mark[0] = True, 1
            task.mark[1] += task.mark[0]
            losses = task.losses(indices)
            if task.shows(step):
                losses = {"nan": losses * math.nan, "spike": losses + 3 * start, "raised": losses + start / 3}.get(
                    kind, losses
                )
                task.average[0] = math.nan if kind == "array" else 0.0
            if r8.update_with_loss(losses):
                task.step(lr)
    return r8


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["nan", "spike", "raised"])
def test_poison_older_than_the_newest_backups_heals(kind):
    """Damage that is four backups older than its first sign is undone by the newest state without it."""
    task, heard = Poisoned("at once"), record_events()
    train(task, kind, listeners=[heard])
    backs = [event.to_step for event in heard.of(events.RolledBack)]
    taken = [event.step for event in heard.of(events.BackupTaken)]

    assert not task.mark[0]
    assert len(backs) == 1
    assert backs[0] in taken
    assert 500 <= backs[0] <= POISONED
    assert not heard.of(events.LrCapped)
    assert task.loss() < 0.1


@pytest.mark.parametrize("seed", range(6))
def test_one_nan_among_batch_means_is_one_refusal(seed):
    """After one NaN, steady batches are not mistaken for spikes although estimates are mostly noise."""
    rng, heard = np.random.default_rng(seed), record_events()
    r8 = R8Scheduler(
        2000, batch_size=32, num_steps=900, listeners=[heard], state_callback=lambda: [0.0],
        load_callback=lambda state: None, seed=seed,
        # The losses here come from no weights at all, so those of the first steps are not tested.
        guard=SpikeGuard(tests_progress=False),
    )  # fmt: skip
    hardness = rng.lognormal(0, 0.5, 2000)
    for _ in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            trend = 1.0 + 0.3 * math.exp(-r8.global_step / 300)
            loss = trend * float((hardness[indices] * rng.lognormal(0, 0.5, len(indices))).mean())
            r8.update_with_loss(math.nan if r8.global_step == 400 else loss)

    assert len(heard.of(events.BatchRefused)) == 1


@pytest.mark.parametrize("exact", [True, False])
def test_one_early_outlier_leaves_nothing_behind(exact):
    """One reported loss that is far too high poisons neither the table, nor the suspects, nor the thresholds."""

    def run(at, by):
        task, heard = ToyTask(1024), record_events()
        r8 = R8Scheduler(
            1024, batch_size=32, num_steps=700, initial_lr=0.02, listeners=[heard], state_callback=task.state,
            load_callback=task.load,
        )  # fmt: skip
        for _ in r8.epoch_iterator():
            for indices, lr in r8.batch_iterator():
                losses = task.losses(indices)
                task.step(lr)
                scale = by if r8.global_step == at else 1.0
                r8.update_with_loss(losses * scale if exact else losses.mean() * scale)
        return r8, [event.step for event in heard.of(events.BatchRefused)]

    clean, _ = run(-1, 1.0)
    for at, by in [(3, 1e9), (25, 50.0)] if exact else [(7, 10.0), (79, 20.0)]:
        r8, refused = run(at, by)

        assert set(refused) <= {at + 1}
        assert len(r8.table.suspects().indices) == len(clean.table.suspects().indices) == 0
        assert r8.table.untrained_loss == pytest.approx(clean.table.untrained_loss, rel=0.1)
    assert np.nanmax(r8.table.loss) < 10

"""Incidents in sequence: damage older than the newest good backup, outliers, and the texts about them."""

import itertools
import math

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, SpikeGuard, TrainingDiverged, events
from learnit_r8.guard import Verdict
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


@pytest.mark.parametrize("show", ["at once", "fuse"])
@pytest.mark.parametrize("kind", ["nan", "spike", "raised", "array"])
def test_poison_older_than_the_good_backup_heals(kind, show):
    """If damage is much older than its first sign, going strictly back gets past it, and training ends well."""
    task, heard = Poisoned(show), record_events()
    train(task, kind, listeners=[heard])
    incidents = [[]]
    for event in heard.of(events.RolledBack, events.IncidentEnded):
        incidents.append([]) if isinstance(event, events.IncidentEnded) else incidents[-1].append(event.to_step)

    assert not task.mark[0]
    assert incidents.pop() == []
    assert incidents[-1][-1] <= POISONED
    assert len(incidents) <= 3
    for steps in incidents:
        assert steps == sorted(steps, reverse=True)
        assert max(steps.count(step) for step in steps) <= 2
    assert task.loss() < 0.1


def test_every_incident_has_a_whole_ladder():
    """A healed incident does not limit the next: the run gets past two causes of damage, one after the other."""
    task, heard = Poisoned("at once"), record_events()
    train(task, "spike", listeners=[heard], num_steps=1600)
    task.mark[:] = 0
    ends = heard.of(events.IncidentEnded)

    assert len(ends) == 1
    assert "damaged since a step between" in ends[0].text or "damaged since before step" in ends[0].text


def test_raised_by_the_data_ends_in_a_ceiling():
    """If losses stay higher with every state, the data is the cause: the run continues from the first one restored."""
    task, heard = ToyTask(2048), record_events()
    r8 = R8Scheduler(
        2048, batch_size=32, num_steps=2600, initial_lr=0.02, listeners=[heard], state_callback=task.state,
        load_callback=task.load, backup_every=50,
    )  # fmt: skip
    start = task.loss()

    def run():
        for _ in r8.epoch_iterator():
            for indices, lr in r8.batch_iterator():
                rise = 0.15 * start if r8.global_step >= 2000 else 0.0
                if r8.update_with_loss(task.losses(indices) + rise):
                    task.step(lr)

    with pytest.warns(RuntimeWarning, match="the data or the loss have changed at about step 20"):
        run()
    back = [event.to_step for event in heard.of(events.RolledBack)]

    assert r8.global_step == 2600
    assert min(back) < back[0] == back[-1]
    assert heard.of(events.LrCapped)[-1].reason == "raised"
    assert "the data or the loss have changed" in heard.of(events.IncidentEnded)[-1].text


@pytest.mark.parametrize("seed", range(6))
def test_one_nan_among_batch_means_is_one_refusal(seed):
    """After one NaN, steady batches are not mistaken for spikes although estimates are mostly noise."""
    rng, heard = np.random.default_rng(seed), record_events()
    r8 = R8Scheduler(
        2000, batch_size=32, num_steps=900, listeners=[heard], state_callback=lambda: [0.0],
        load_callback=lambda state: None, seed=seed,
    )  # fmt: skip
    hardness = rng.lognormal(0, 0.5, 2000)
    for _ in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            trend = 1.0 + 0.3 * math.exp(-r8.global_step / 300)
            loss = trend * float((hardness[indices] * rng.lognormal(0, 0.5, len(indices))).mean())
            r8.update_with_loss(math.nan if r8.global_step == 400 else loss)

    assert len(heard.of(events.BatchRefused)) == 1


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("at", "by"), [(3, 1e9), (5, 100.0), (7, 10.0), (25, 50.0), (30, 1e6), (79, 20.0)])
def test_one_early_outlier_leaves_nothing_behind(exact, at, by):
    """One reported loss that is far too high poisons neither the table, nor the suspects, nor the thresholds."""

    def run(by):
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

    r8, refused = run(by)
    clean, _ = run(1.0)

    assert set(refused) <= {at + 1}
    assert len(r8.table.suspects().indices) == len(clean.table.suspects().indices) == 0
    assert r8.table.untrained_loss == pytest.approx(clean.table.untrained_loss, rel=0.1)
    assert np.nanmax(r8.table.loss) < 10


@pytest.mark.parametrize("shift", [0.0, -100.0])
@pytest.mark.parametrize("at", [10, 30, 79])
def test_early_blow_up_is_caught(at, shift):
    """Early losses three times as high as any before, or as far above their range, are refused within four steps."""
    guard, rng = SpikeGuard(), np.random.default_rng(at)
    state, verdicts = guard.begin(), []
    for step in range(at + 4):
        loss = 2 + 0.2 * rng.random() + (20 * (step >= at)) + shift
        state, verdict = guard.judge(state, loss)
        verdicts.append(verdict)

    assert verdicts[:at] == [Verdict.GOOD] * at
    assert Verdict.SPIKE in verdicts[at:]


def test_restored_to_the_first_step_the_guard_still_knows_the_first_losses():
    """After a restore to the state before the first loss, losses far beyond the first ones are refused."""
    guard = SpikeGuard()
    later = guard.begin()
    for loss in itertools.islice(itertools.cycle([2.0, 2.2, 1.8]), 100):
        later, _ = guard.judge(later, loss)
    state, verdicts = guard.informed(guard.returned(guard.begin()), later), []
    for _ in range(4):
        state, verdict = guard.judge(state, 50.0)
        verdicts.append(verdict)

    assert verdicts[2] is Verdict.SPIKE


def test_divergence_names_the_possible_causes():
    """TrainingDiverged says whether restored states were refused at once, and which causes that leaves."""
    task = ToyTask(512)
    r8 = R8Scheduler(
        512, batch_size=32, num_steps=900, initial_lr=0.02, state_callback=task.state, load_callback=task.load,
        backup_every=20,
    )  # fmt: skip

    def run():
        for _ in r8.epoch_iterator():
            for indices, lr in r8.batch_iterator():
                if r8.update_with_loss(task.losses(indices) * (math.nan if r8.global_step > 500 else 1.0)):
                    task.step(lr)

    with pytest.raises(TrainingDiverged, match=r"refused at once.*the loss function or the code have been at fault"):
        run()

    assert task.loss() < 0.5  # the first state that was put back, as no other was any better


def test_the_ladder_goes_on_after_a_resume(tmp_path):
    """A run resumed in the middle of an incident continues back in time and tries no newer state."""
    heard = record_events()

    def build(task):
        return R8Scheduler(
            1024, batch_size=32, num_steps=1500, initial_lr=0.02, scheduler_mode="constant", listeners=[heard],
            load_callback=task.load, save_callback=task.save, checkpoint_dir=tmp_path, checkpoint_every=100,
            keep_checkpoints=9, resume="auto",
        )  # fmt: skip

    def run(r8, task, until):
        for _ in r8.epoch_iterator():
            for indices, lr in r8.batch_iterator():
                # Whatever is younger than 500 steps is damaged; the saved file says how old it is.
                bad = r8.global_step >= 700 and task.age > 500
                if r8.update_with_loss(task.losses(indices) + 20.0 * bad):
                    task.step(lr)
                    task.age += 1
                if r8.global_step == until:
                    return

    class Aged(ToyTask):
        age = 0

        def save(self, state_dict, filepath):
            super().save(state_dict, filepath)
            with open(filepath, "ab") as file:
                file.write(self.age.to_bytes(8, "little"))

        def load(self, source, from_ram=False):
            super().load(source, from_ram)
            with open(source, "rb") as file:
                self.age = int.from_bytes(file.read()[-8:], "little")

    first = Aged(1024)
    run(build(first), first, 706)
    before = [event.to_step for event in heard.of(events.RolledBack)]
    second = Aged(1024)
    r8 = build(second)
    r8.load_state_dict(r8.state_dict())
    run(r8, second, None)

    assert before
    assert r8.global_step == 1500
    assert second.age < 1400
    assert second.loss() < 0.2

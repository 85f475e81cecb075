"""What goes wrong costs no more than it must: experiments tell bad batches, damaged weights and new levels apart."""

import functools
import math
import threading
from pathlib import Path

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, Recovery, TrainingDiverged, Verdict, events
from learnit_r8.testing import FaultPlan, ToyTask, record_events
from tests.drive import run_threads

N, B = 1024, 32


def build(task, *, listeners=(), **more):
    more = {"num_steps": 1200, "initial_lr": 0.05, "backup_every": 25} | more
    return R8Scheduler(
        N, batch_size=B, state_callback=task.state, load_callback=task.load, listeners=listeners, **more
    )  # fmt: skip


def damage(task):
    """Weights of another task, as after a flipped sign: finite, and much worse."""
    task.weights[2] *= -3.0


def train(task, reported=lambda step, indices, losses: losses, *, faults=None, damaged=(), **more):
    """A run of the quick start's loop; what is reported, rates that are at fault, and steps whose update damages."""
    faults, heard = faults or FaultPlan(), record_events()
    r8 = build(task, listeners=[heard], **more)
    damaged = set(damaged)
    for _ in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            step = r8.global_step
            losses = task.losses(indices)
            if r8.update_with_loss(reported(step, indices, losses)):
                task.step(faults.rate(step, lr))
                if step in damaged:
                    damaged.remove(step)
                    damage(task)
    return r8, heard


@functools.cache
def undisturbed(**more):
    """The loss that the task ends with."""
    task = ToyTask(N)
    train(task, **more)
    return task.loss()


@pytest.mark.filterwarnings("ignore:sample.* no longer drawn:RuntimeWarning")
@pytest.mark.parametrize(("exact", "share", "most"), [(False, 0.3, 3), (True, 0.1, 0)], ids=["means", "exact"])
def test_nan_batches_cost_themselves(exact, share, most):
    """A tenth or a third of NaN batches cost those batches: nothing is restored, no rate lowered, no sample blamed."""
    task, is_bad = ToyTask(N), np.random.default_rng(1).random(1600) < share

    bad = iter(is_bad.tolist())

    def reported(step, indices, losses):
        losses = losses if exact else losses.mean()
        return losses * math.nan if next(bad) else losses

    r8, heard = train(task, reported)
    probes = heard.of(events.Probed)

    bad_probes = [each for each in probes if not math.isfinite(each.loss)]

    assert not heard.of(events.RolledBack, events.LrCapped)
    assert len(r8.table.quarantined) <= most
    assert len(heard.of(events.BatchRefused)) + len(bad_probes) == pytest.approx(is_bad[: r8.pace.turns].sum(), abs=2)
    assert all(each.lr == r8.schedule((each.step - 1) / 1200) for each in heard.of(events.StepDone))
    assert task.loss() < 1.1 * undisturbed(num_steps=int((1 - share) * 1200)) + 1e-3


@pytest.mark.parametrize("steps", [(0, 1, 2), (3, 9, 15)])
def test_nan_losses_in_warm_up(steps):
    """Three NaN losses in the warm-up restore nothing, lower no rate, and change the end of the run by nothing."""
    task = ToyTask(N)
    _, heard = train(task, lambda step, _, losses: losses.mean() * (math.nan if step in steps else 1.0))

    assert not heard.of(events.RolledBack, events.LrCapped)
    assert task.loss() < 1.1 * undisturbed() + 1e-3


@pytest.mark.filterwarnings("ignore:more than half of the last 100 batches:RuntimeWarning")
@pytest.mark.parametrize(("exact", "count", "share"), [(False, 6, 1.0), (True, 50, 0.6)], ids=["means", "exact"])
def test_bad_samples_are_found(exact, count, share):
    """Samples whose losses are NaN, also only sometimes, are quarantined, and the others are all learned."""
    rng, task = np.random.default_rng(2), ToyTask(N)
    bad = rng.choice(N, count, replace=False)

    def reported(step, indices, losses):
        losses = np.where(np.isin(indices, bad) & (rng.random(B) < share), math.nan, losses)
        return losses if exact else losses.mean()

    with pytest.warns(RuntimeWarning, match="no longer drawn"):
        r8, heard = train(task, reported, num_steps=1600)
    found = set(r8.table.quarantined.tolist())

    assert found <= set(bad.tolist())
    assert len(found) >= (count if share == 1.0 else 0.5 * count)
    assert not heard.of(events.RolledBack, events.LrCapped)
    assert task.loss() < 0.1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_three_damages_within_fifteen_steps():
    """Each of three damages soon after one another is undone, and no restore passes healthy states."""
    task = ToyTask(N)
    _, heard = train(task, damaged=(600, 606, 612))
    backs = [event.to_step for event in heard.of(events.RolledBack)]

    assert backs
    assert min(backs) >= 600 - 2 * 25
    assert task.loss() < 1.1 * undisturbed() + 1e-3


def test_first_restore_is_said_aloud():
    """The first restore of a run warns, with the reason and where to read."""
    with pytest.warns(RuntimeWarning, match=r"the weights were damaged, restored to step \d+, .*docs/recovery.md"):
        train(ToyTask(N), damaged=(600,), num_steps=700)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("at", [1, 2, 5, 20, 79])
def test_loss_of_1e9_is_refused_from_the_second_step_on(at):
    """A loss that is constant and then 1e9 is refused at once, at any step from the second on."""
    task, heard = ToyTask(N), record_events()
    r8 = build(task, listeners=[heard])
    for _ in range(at):
        r8.report(r8.draw(), 1.0)
    outcome = r8.report(r8.draw(), 1e9)

    assert not outcome
    assert len(heard.of(events.BatchRefused)) == 1


@pytest.mark.parametrize("at", [5, 20, 60])
def test_a_batch_with_a_somewhat_high_loss_in_the_first_steps_comes_again(at):
    """No batch of a healthy training is left out for it, and the probe that finds the weights healthy costs no step."""
    task, seen, high = ToyTask(N), [], []
    first = task.losses(np.arange(N)).mean()

    def reported(step, indices, losses):
        seen.append(indices.tolist())
        if len(seen) == at:
            high.append(indices.tolist())
            return 3 * first
        return losses.mean()

    r8, heard = train(task, reported, num_steps=2 * N // B)

    assert not heard.of(events.BatchRefused, events.RolledBack)
    assert [(each.step, each.reason) for each in heard.of(events.Probed)] == [(at - 1, "early")]
    assert r8.global_step == 2 * N // B == len(seen) - 2
    start = (at - 1) // (N // B) * (N // B)
    end = start + N // B + 2
    assert seen[end - 1] == high[0]
    assert {each for batch in seen[start:end] for each in batch} == set(range(N))


@pytest.mark.parametrize("at", [5, 20, 60])
def test_a_high_loss_that_is_tied_to_its_step_costs_no_restore(at):
    """Whoever tries what happens reports such a loss at a step, whatever its batch: the probe is drawn again."""
    task = ToyTask(N)
    first = task.losses(np.arange(N)).mean()
    _, heard = train(task, lambda step, indices, losses: 3 * first if step == at else losses.mean(), num_steps=200)

    assert not heard.of(events.BatchRefused, events.RolledBack)
    assert [each.step for each in heard.of(events.Probed)] == [at + 1]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("at", [5, 20, 60])
def test_weights_that_are_somewhat_worse_in_the_first_steps_are_looked_into(at):
    """Damage that a somewhat high loss shows is undone, although its batch was trained on."""
    task = ToyTask(N)
    _, heard = train(task, damaged=[at], num_steps=400)

    assert heard.of(events.RolledBack)
    assert task.loss() < 1.5 * undisturbed(num_steps=400)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("lr", [5.0, pytest.param(50.0, marks=pytest.mark.slow)])
def test_rate_too_high_from_the_start(lr):
    """At a rate 100 or 1,000 times too high from the start, the rate falls until it holds."""
    task = ToyTask(N)
    r8, heard = train(task, initial_lr=lr, num_steps=1500)

    assert heard.of(events.RolledBack, events.LrCapped)
    assert task.loss() < 0.2
    assert r8.controller.state_dict()["incidents"]["num_restored"] >= 1


@pytest.mark.parametrize("rise", [0.5, pytest.param(2.0, marks=pytest.mark.slow)])
def test_term_added_to_the_loss(rise):
    """A term that is added to the loss restores nothing, and the new level is accepted, once and aloud."""
    task = ToyTask(N)
    with pytest.warns(RuntimeWarning, match=r"Nothing was restored, and the new level\s+counts as normal"):
        _, heard = train(task, lambda step, _, losses: losses.mean() + rise * (step >= 700))
    refused = heard.of(events.BatchRefused)

    assert not heard.of(events.RolledBack, events.LrCapped)
    assert len(refused) + len(heard.of(events.Probed)) < 100
    assert task.loss() < 1.1 * undisturbed() + 1e-3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("last", [1, 2])
def test_damage_in_the_last_updates(last):
    """Damage in one of the last two updates is undone before the run ends."""
    task = ToyTask(N)
    r8, heard = train(task, damaged=(600 - 1 - last,), num_steps=600)

    assert r8.global_step == 600
    assert heard.of(events.RolledBack)
    assert task.loss() < 0.2


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("draws_again", [True, False], ids=["drawn again", "closed at once"])
@pytest.mark.parametrize("guard", ["spike", "finite"])
def test_weights_that_the_last_update_has_made_nan_are_not_what_a_run_leaves(tmp_path, guard, draws_again):
    """No later loss would show them: the newest backup comes back before the last checkpoint, also after a resume."""
    task = ToyTask(N)
    more = {"guard": guard, "checkpoint_dir": tmp_path, "save_callback": task.save, "resume": "auto"}
    for num_steps in (60, 120):
        is_damaged = False
        r8 = build(task, num_steps=num_steps, **more)
        while (ticket := r8.draw_if_any()) is not None:
            if r8.report(ticket, task.losses(ticket.indices)):
                task.step(ticket.lr)
            if r8.global_step == num_steps and not is_damaged:
                is_damaged = True
                for each in task.weights:
                    each[:] = math.nan
                if not draws_again:
                    break
        r8.close()

        assert r8.global_step == num_steps
        assert all(np.isfinite(each).all() for each in task.weights)
        loss = task.loss()
        assert loss < 0.5
        r8.load_checkpoint()
        assert task.loss() == loss


@pytest.mark.parametrize("loss", [math.nan, 1e9])
def test_unseen_state_is_restored_at_once(loss):
    """Where there are only `update_cpu_backup` and a load callback, as in the document, one such loss restores."""
    loaded = []
    r8 = R8Scheduler(N, batch_size=B, num_steps=300, load_callback=loaded.append)
    r8.update_cpu_backup({"weight": 1.0})
    for _ in range(100):
        r8.report(r8.draw(), 1.0 + 0.01 * (r8.global_step % 7))
    r8.update_cpu_backup({"weight": 2.0})
    r8.report(r8.draw(), 1.0)
    outcomes = [r8.report(r8.draw(), loss)]
    if not loaded:
        outcomes.append(r8.report(r8.draw(), loss))
    # Without ``state_callback`` nothing can look at the weights: that they were damaged is not known.
    with pytest.warns(RuntimeWarning, match="no test of the weights could be made, restored to step 100"):
        outcomes += [r8.report(r8.draw(), 1.0) for _ in range(8)]

    first = next(outcome for outcome in outcomes if outcome.verdict is not Verdict.GOOD)

    assert first.rolled_back_to == 100
    assert loaded[0] == {"weight": 2.0}


def test_losses_that_stay_nan_end_the_run():
    """After ``max_refused`` refused batches in a row the run ends; healthy weights are left as they are."""
    task = ToyTask(N)
    with pytest.raises(TrainingDiverged, match="60 batches in a row were refused"):
        train(task, lambda step, _, losses: losses * (1 if step < 500 else math.nan), recovery=Recovery(max_refused=60))

    assert task.loss() < 0.5


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_checkpoint_while_a_probe_is_open(tmp_path):
    """Between the first probe and what is found no checkpoint is written and no backup taken."""
    task = ToyTask(N)
    _, heard = train(
        task, damaged=(600,), num_steps=660, checkpoint_dir=tmp_path, checkpoint_every=lambda now: now.steps > 597,
        save_callback=task.save, backup_every=lambda now: now.steps > 597 or now.steps % 25 == 0,
    )  # fmt: skip
    kinds = heard.of(events.Probed, events.RolledBack, events.CheckpointSaved, events.BackupTaken)
    first = next(n for n, event in enumerate(kinds) if isinstance(event, events.Probed))
    found = next(n for n, event in enumerate(kinds) if isinstance(event, events.RolledBack))

    assert all(isinstance(event, events.Probed) for event in kinds[first:found])
    assert task.loss() < 0.2


@pytest.mark.parametrize("every", [{}, {"backup_every": 20}], ids=["at its own look", "at a backup"])
def test_a_checkpoint_holds_no_damage_that_is_mended_at_its_step(every, tmp_path):
    """A run that was killed soon after would go on from it."""
    task, more, saved = ToyTask(N), np.zeros(3), []

    def load(state, from_ram):
        task.load(state["task"], from_ram)
        more[:] = state["more"]

    def save(given, path):
        saved.append((r8.global_step, bool(np.isfinite(more).all())))
        Path(path).touch()

    r8 = R8Scheduler(
        N, batch_size=32, num_steps=80, initial_lr=0.05, state_callback=lambda: {"task": task.state(), "more": more},
        load_callback=load, save_callback=save, checkpoint_dir=tmp_path, checkpoint_every=20, **every,
    )  # fmt: skip
    for _ in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            if r8.update_with_loss(task.losses(indices).mean()):
                task.step(lr)
                more[1] = np.nan if r8.global_step == 40 and len(saved) == 1 else more[1]

    assert saved[:3] == [(20, True), (40, True), (60, True)]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("out", [pytest.param(2, marks=pytest.mark.slow), 5])
def test_probes_with_batches_out(out):
    """Damage heals although several batches are drawn ahead; what was computed meanwhile is not learned."""
    task, heard = ToyTask(N), record_events()
    r8 = build(task, listeners=[heard])
    tickets, is_damaged = [], False
    while True:
        while len(tickets) < out and (ticket := r8.draw_if_any()) is not None:
            tickets.append(ticket)
        if not tickets:
            break
        ticket = r8.host.begin(tickets.pop(0))
        if r8.report(ticket, float(task.losses(ticket.indices).mean())):
            task.step(ticket.lr)
            if r8.global_step == 600 and not is_damaged:
                is_damaged = True
                damage(task)

    assert r8.global_step == 1200
    assert heard.of(events.RolledBack)
    assert task.loss() < 0.1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_probes_with_two_threads():
    """Two threads that take turns heal as one does: a probe goes to whichever draws next."""
    task, heard = ToyTask(N), record_events()
    r8 = build(task, listeners=[heard])
    lock, damaged = threading.Lock(), []

    def work():
        while (ticket := r8.draw_if_any()) is not None:
            with lock:
                if r8.report(ticket, float(task.losses(ticket.indices).mean())):
                    task.step(ticket.lr)
                if r8.global_step >= 600 and not damaged:
                    damaged.append(r8.global_step)
                    damage(task)

    run_threads(2, work)

    assert r8.global_step == 1200
    assert heard.of(events.RolledBack)
    assert task.loss() < 0.1


@pytest.mark.parametrize("at", [2, 5, 7, 13, 20])
@pytest.mark.parametrize("resumed_at", [None, 1], ids=["", "resumed"])
@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
def test_early_damage_undoes_half_of_the_steps_at_most(at, resumed_at, tmp_path):
    """By default NaN in the weights of a young run undoes little of it, also where it was resumed before."""
    heard, task = record_events(), ToyTask(N)
    more = {"backup_every": None, "checkpoint_dir": tmp_path, "save_callback": task.save, "resume": "auto"}
    for end in (resumed_at, at + 8):
        r8 = build(task, listeners=[heard], **more) if end else None
        for indices, lr in r8.batch_iterator() if end else ():
            if r8.update_with_loss(task.losses(indices)):
                task.step(lr)
                if r8.global_step == at and not heard.of(events.RolledBack):
                    for array in (*task.weights, *task.velocity):
                        array[...] = math.nan
            if r8.global_step >= end:
                r8.save_checkpoint()
                break
    [back] = heard.of(events.RolledBack)

    assert at - back.to_step <= at / 2
    assert np.isfinite(task.loss())

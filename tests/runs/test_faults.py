"""Fault by fault: numbers, callbacks and misuse that a run survives, or refuses with what to do.

Faults of the guard are in tests/guard, of files and signals in tests/checkpoint and tests/engine, wrong arguments in
test_bad_input.py and tests/test_scheduler.py.
"""

import hashlib
import itertools
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from learnit_r8 import R8Scheduler, Recovery, TrainingDiverged, events
from learnit_r8.testing import FaultPlan, ToyTask, record_events
from tests.drive import INF, NAN, Weights, advance_to, batch_loss, known, make, steps, train


def fingerprint(state):
    """All arrays in a dict of lists."""
    digest = hashlib.sha256()
    for arrays in state.values():
        for array in arrays:
            digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()


def toy_run(faults, *, num_steps=400, order="after", batch_size=16, callbacks=None, lr=0.05, **more):
    """A toy task trained with faults; returns the task, its scheduler and the events."""
    task, heard = ToyTask(512), record_events()
    own = faults.callbacks(state=task.state, load=task.load) if callbacks is None else callbacks(task)
    more = {"backup_every": 10} | more if "state_callback" in own else more
    r8 = R8Scheduler(
        512, batch_size=batch_size, num_steps=num_steps, initial_lr=lr, listeners=[heard], **own, **more
    )  # fmt: skip
    for _, indices, rate in steps(r8):
        step = r8.global_step
        losses = task.losses(indices)
        scale = np.asarray(faults.loss(step, 1.0))
        if order == "after":
            task.step(faults.rate(step, rate), float(scale))
            r8.update_with_loss(losses.mean() * scale)
        elif r8.update_with_loss(losses.mean() * scale):
            task.step(faults.rate(step, rate), float(scale))
    return task, r8, heard


@pytest.mark.parametrize("order", ["before", "after"])
def test_nan_at_any_step(order):
    """A NaN at any of the first 200 steps restores the model bit for bit, and no NaN remains."""
    for step in range(0, 200, 13):
        prints = {}
        faults = FaultPlan(nan=[step])

        def callbacks(task, prints=prints):
            def state():
                prints[len(prints)] = fingerprint(task.state())
                return task.state()

            return {"state_callback": state, "load_callback": task.load}

        task, r8, heard = toy_run(faults, num_steps=step + 1, order=order, callbacks=callbacks)
        (back,) = heard.of(events.RolledBack)

        assert back.to_step <= step
        assert fingerprint(task.state()) == prints[back.to_step // 10]
        assert np.isfinite(r8.table.loss[r8.table.usage_count > 0]).all()


@pytest.mark.parametrize("value", [INF, -INF])
def test_infinities_in_the_first_steps(value):
    """An infinite loss of either sign in the first ten steps is handled like NaN."""
    for step in range(10):
        model = Weights()
        r8 = make(64, num_epochs=3, state_callback=model.get, load_callback=model.load)
        advance_to(r8, step)
        model.values = np.array([NAN, 1.0])
        outcome = r8.report(r8.draw(), value)

        assert (outcome.rolled_back_to, model.values.tolist()) == (0, [0, 0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_nan_where_no_loss_sees_it(optimizer, seed):
    """NaN in a row of an embedding that no batch uses is found at the next backup, named, and undone."""
    torch.manual_seed(seed)
    table = torch.nn.Embedding(11, 3)
    head = torch.nn.Linear(3, 2)
    net = torch.nn.ModuleDict({"table": table, "head": head})
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
    updater = kind(net.parameters(), 0.01)
    heard = record_events()
    r8 = R8Scheduler(
        64, batch_size=8, num_steps=60, listeners=[heard], backup_every=10,
        state_callback=lambda: {"net": net.state_dict(), "optimizer": updater.state_dict()},
        load_callback=lambda state: (net.load_state_dict(state["net"]), updater.load_state_dict(state["optimizer"])),
    )  # fmt: skip
    for _, indices, _ in steps(r8):
        loss = torch.nn.functional.cross_entropy(head(table(torch.tensor(indices % 10))), torch.tensor(indices % 2))
        updater.zero_grad()
        loss.backward()
        updater.step()
        r8.update_with_loss(loss)
        if r8.global_step == 33:
            with torch.no_grad():
                table.weight[10] = NAN

    assert [(event.step, event.array) for event in heard.of(events.DamageFound)] == [(40, "net.table.weight")]
    assert [(event.step, event.to_step) for event in heard.of(events.RolledBack)] == [(40, 30)]
    assert table.weight.isfinite().all()


def test_finite_models_are_not_damaged():
    """Numbers whose sum overflows, and infinities present from the start, are no damage."""
    state = {"mask": np.array([0.0, -INF]), "large": np.full(9, 1e308)}
    heard = []
    train(make(64, num_epochs=9, state_callback=lambda: state, load_callback=print, listeners=[heard.append]))

    assert not [event for event in heard if isinstance(event, (events.DamageFound, events.RolledBack))]


def test_array_that_is_always_nan_ends_the_run():
    """An array that is NaN again after every restore ends in TrainingDiverged, which names it."""
    scratch, heard = {"w": np.zeros(2), "metric": np.zeros(1)}, []

    def load(state):
        scratch["metric"] = state["metric"]

    r8 = make(
        64, num_epochs=9, state_callback=lambda: scratch, load_callback=load, backup_every=10, listeners=[heard.append]
    )

    def run():
        for _, indices, _ in steps(r8):
            scratch["metric"] = np.array([NAN]) if r8.global_step > 20 else scratch["metric"]
            r8.update_with_loss(batch_loss(indices))

    with pytest.raises(TrainingDiverged, match=r"(?s)leave it out of the state.*'metric' was not finite"):
        run()


def test_two_isolated_faults_heal_twice():
    """An array that becomes NaN from time to time is restored each time, and backups continue afterwards."""
    scratch, heard = {"w": np.zeros(2), "ema": np.zeros(1)}, record_events()

    def load(state):
        scratch["ema"] = state["ema"]

    r8 = make(64, num_epochs=20, state_callback=lambda: scratch, load_callback=load, backup_every=10, listeners=[heard])
    for _, indices, _ in steps(r8):
        if r8.global_step in (55, 205):
            scratch["ema"] = np.array([NAN])
        r8.update_with_loss(batch_loss(indices))

    assert [(event.step, event.to_step) for event in heard.of(events.RolledBack)] == [(60, 50), (210, 200)]
    assert len(heard.of(events.IncidentEnded)) == 2
    assert heard.of(events.BackupTaken)[-1].step > 300
    assert np.isfinite(scratch["ema"]).all()


def test_damaged_backup_is_not_trusted():
    """A state taken during a divergence is never restored, as 64 good losses must follow first."""
    model = Weights()
    r8 = make(64, num_epochs=99, state_callback=model.get, load_callback=model.load, backup_every=5)
    for _, indices, _ in steps(r8):
        step = r8.global_step
        model.values = np.full(2, float(step))
        if step == 200:
            break
        r8.update_with_loss(batch_loss(indices))
    before = r8.host.persistence.restore()

    assert before.step <= 200 - 64
    assert model.values[0] <= before.step


@pytest.mark.parametrize("start", [0, 3, 70, 300])
def test_permanent_nan(start):
    """A loss that stays NaN ends in TrainingDiverged after five restores, not counting those that went further back."""
    heard = record_events()
    task = ToyTask(512)
    faults = FaultPlan(nan=range(start, 600))
    r8 = R8Scheduler(
        512, batch_size=16, num_steps=600, backup_every=10, listeners=[heard],
        **faults.callbacks(state=task.state, load=task.load),
    )  # fmt: skip

    def run():
        for _, indices, lr in steps(r8):
            losses = task.losses(indices)
            scale = faults.loss(r8.global_step, 1.0)
            task.step(lr, scale)
            r8.update_with_loss(losses.mean() * scale)

    with pytest.raises(TrainingDiverged, match=r"What was tried:\n  step \d+: loss nan, not finite, lr"):
        run()

    steps_back = [event.to_step for event in heard.of(events.RolledBack)]
    further = sum(later < earlier for earlier, later in itertools.pairwise(steps_back))
    if further:
        # None was any better than the first one.
        assert steps_back.pop() == steps_back[0]
    assert len(steps_back) == 5 + further
    assert steps_back == sorted(steps_back, reverse=True)
    assert r8.global_step - start < 200
    assert all(np.isfinite(array).all() for array in task.weights + task.velocity)
    assert len(heard.of(events.GaveUp)) == 1


@pytest.mark.parametrize("batch_size", [1, 8])
def test_healthy_runs_are_left_alone(batch_size):
    """A run without faults restores nothing and lowers no rate, also at batch sizes 1 and 8."""
    _, _, heard = toy_run(FaultPlan(), num_steps=1500, batch_size=batch_size, lr=0.01 if batch_size == 1 else 0.05)

    assert not heard.of(events.BatchRefused, events.RolledBack, events.LrCapped)


def test_lowered_rate_survives_a_resume():
    """The factor, the ceiling and their return are part of the state."""

    def scheduler():
        return make(
            64, num_epochs=99, scheduler_mode="constant", warmup_proportion=0, initial_lr=1.0, load_callback=print
        )

    def rates(r8, count):
        found = []
        for _ in range(count):
            ticket = r8.draw()
            found.append(ticket.lr)
            r8.report(ticket, 1.0)
        return found

    r8 = scheduler()
    r8.update_cpu_backup(0)
    r8.report(r8.draw(), 1.0)
    for _ in range(2):
        r8.report(r8.draw(), NAN)
    rates(r8, 50)
    fresh = scheduler()
    fresh.load_state_dict(r8.state_dict())

    assert "learning rate capped at 0.1, since it went wrong at 0.5" in fresh.summary()
    assert rates(fresh, 600) == rates(r8, 600)
    assert "learning rate capped" not in fresh.summary()


def test_losses_that_do_not_change():
    """After eight equal losses in a row the weights are checked at once, without waiting for the next backup."""
    model, heard = Weights(), record_events()
    r8 = make(
        64, num_epochs=99, state_callback=model.get, load_callback=model.load, backup_every=500, listeners=[heard]
    )
    for _, indices, _ in steps(r8):
        if r8.global_step == 100:
            model.values = np.array([NAN, 0.0])
        r8.update_with_loss(batch_loss(indices) if r8.global_step < 100 else 0.0)
        if r8.global_step == 120:
            break

    assert [event.step for event in heard.of(events.DamageFound)][:1] == [108]
    assert np.isfinite(model.values).all()


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_load_callback_that_raises(fails):
    """A load callback that raises gets the next state; each failure is reported and counts as a try."""
    task, heard = ToyTask(512), record_events()
    faults = FaultPlan(nan=[300], load=range(301 - fails, 301))
    r8 = R8Scheduler(
        512, batch_size=16, num_steps=310, backup_every=10, listeners=[heard],
        **faults.callbacks(state=task.state, load=task.load),
    )  # fmt: skip
    for _, indices, lr in steps(r8):
        losses = task.losses(indices)
        scale = faults.loss(r8.global_step, 1.0)
        task.step(lr, scale)
        r8.update_with_loss(losses.mean() * scale)

    assert len(heard.of(events.RestoreFailed)) == fails
    assert len(heard.of(events.RolledBack)) == 1
    assert all(np.isfinite(array).all() for array in task.weights)


def test_load_callback_that_always_raises():
    """If every state fails, the error names all causes and a partly restored model; the scheduler stays consistent."""

    def broken(state):
        raise KeyError(f"layer{state}")

    r8 = make(64, num_epochs=9, load_callback=broken, recovery=Recovery(trial_steps=4))
    for step in range(20):
        r8.update_cpu_backup(step)
        r8.report(r8.draw(), 1.0)
    before = known(r8)
    with pytest.raises(RuntimeError, match=r"(?s)layer18.*layer1[0-9].*The model may be partly restored\."):
        r8.report(r8.draw(), NAN)

    np.testing.assert_equal(known(r8), before)
    assert r8.global_step == 21
    train(r8)
    assert r8.progress == 1


def test_load_callback_that_does_nothing():
    """A load callback that restores nothing is detected from the state: the run ends early and says why."""
    model = Weights()
    r8 = make(64, num_epochs=9, state_callback=model.get, load_callback=lambda state: None)
    advance_to(r8, 5)
    model.values = np.array([NAN, NAN])
    with pytest.raises(TrainingDiverged, match=r"'w' was not finite afterwards: does load_callback restore it\?"):
        r8.report(r8.draw(), NAN)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("draw", "load_callback must not draw batches"),
        ("report", "load_callback must not report losses"),
        ("update_cpu_backup", "load_callback must not make backups"),
    ],
)
def test_load_callback_that_calls_the_scheduler(what, message):
    """A load callback that draws, reports or backs up is refused with an error that names it, and nothing hangs."""

    def load(state):
        if what == "draw":
            r8.draw()
        elif what == "report":
            r8.report(other, 1.0)
        else:
            r8.update_cpu_backup({})

    r8 = make(64, num_epochs=9, load_callback=load)
    r8.update_cpu_backup({})
    other = r8.draw()
    with pytest.raises(RuntimeError, match=message):
        r8.report(r8.draw(), NAN)
    assert r8.report(other, 1.0)


def torch_model():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], 0.1)

    def step():
        weight.grad = torch.ones(3)
        optimizer.step()

    return lambda: {"w": {"weight": weight}, "o": optimizer.state_dict()}, step, lambda: weight.detach().numpy()


def tf_model():
    tf = pytest.importorskip("tensorflow")
    weight = tf.Variable([1.0, 1.0, 1.0])
    return lambda: {"w": {"weight": weight}}, lambda: weight.assign_add([1.0, 1.0, 1.0]), weight.numpy


def jax_model():
    jax = pytest.importorskip("jax")
    held = {"weight": jax.numpy.ones(3)}
    # The old array's memory is given to the new one.
    add = jax.jit(lambda weight: weight + 1, donate_argnums=0)

    def step():
        held["weight"] = add(held["weight"])

    return lambda: {"w": held}, step, lambda: np.asarray(held["weight"])


def numpy_model():
    weight = np.ones(3)

    def step():
        np.add(weight, 1, out=weight)

    return lambda: {"w": {"weight": weight}}, step, lambda: weight


@pytest.mark.parametrize("build", [numpy_model, torch_model, tf_model, jax_model])
def test_live_references(build):
    """A state callback may return the live weights: ten optimizer steps later the backup is unchanged."""
    get, step, values = build()
    got = []
    r8 = make(64, num_epochs=9, state_callback=get, load_callback=got.append)
    ticket = r8.draw()
    for _ in range(10):
        step()
    assert values().tolist() != [1, 1, 1]
    r8.report(ticket, NAN)
    weight = got[0]["w"]["weight"]

    assert np.asarray(weight.detach() if hasattr(weight, "detach") else weight).tolist() == [1, 1, 1]


@pytest.mark.parametrize("step", [*range(0, 70, 6), 63, 64, 65])
def test_before_there_is_a_good_backup(step):
    """If no state is proven yet, a refused loss restores a finite one."""
    task, r8, heard = toy_run(FaultPlan(nan=[step]), num_steps=120)

    assert len(heard.of(events.RolledBack)) == 1
    assert task.loss() < 1.5
    assert r8.global_step == 120


def test_without_callbacks():
    """Without any callback a loss that stays NaN ends the run with an error that says what to pass."""
    r8 = make(64, num_epochs=9)
    with (
        pytest.warns(RuntimeWarning, match="nothing to restore"),
        pytest.raises(TrainingDiverged, match=r"The model was never restored: pass load_callback with state_callback"),
    ):
        train(r8, bad=range(99))


def test_no_memory_for_a_backup():
    """If there is no memory for a backup, the previous one is kept, with one warning, and the run continues."""

    class Huge:
        def __deepcopy__(self, memo):
            raise MemoryError

    states = [{"w": np.ones(1)}, *[Huge()] * 99]
    got = []
    r8 = make(64, num_epochs=3, state_callback=lambda: states.pop(0), backup_every=5, load_callback=got.append)
    with pytest.warns(
        RuntimeWarning, match=r"there was no memory for the backup at step \d+; the previous one is kept"
    ) as caught:
        advance_to(r8, 40)
    r8.host.persistence.callbacks = type(r8.host.persistence.callbacks)(load=got.append)
    r8.report(r8.draw(), NAN)

    assert len(caught) == 1
    assert got == [{"w": np.ones(1)}]


def test_state_callback_that_raises():
    """An error of the state callback reaches the caller at the draw, and the run can continue after it."""
    task, heard = ToyTask(512), record_events()
    faults = FaultPlan(state=[50])
    r8 = R8Scheduler(
        512, batch_size=16, num_steps=100, backup_every=10, listeners=[heard],
        **faults.callbacks(state=task.state, load=task.load),
    )  # fmt: skip
    raised = []
    while r8.progress < 1:
        faults.loss(r8.global_step, 1.0)
        try:
            ticket = r8.draw()
        except RuntimeError as error:
            raised.append((r8.global_step, str(error)))
            continue
        r8.report(ticket, 1.0 + r8.global_step % 3)

    assert raised == [(50, "state_callback fails on purpose after step 50")]
    assert [event.step for event in heard.of(events.BackupTaken)] == [0, 10, 20, 30, 40, 60, 70, 80, 90]
    assert set(r8.table.usage_count.tolist()) <= {3, 4}


def test_state_callback_that_returns_nothing():
    """A state callback without a return statement is refused before the first batch."""
    with pytest.raises(TypeError, match=r"state_callback must return the state of the model, got None"):
        make(state_callback=lambda: None).draw()


def test_backup_of_another_structure():
    """A model that grows during the run is backed up and restored with its new structure."""
    state, got = {"a": np.ones(2)}, []
    r8 = make(64, num_epochs=9, state_callback=lambda: state, load_callback=got.append, backup_every=1)
    for _ in range(4):
        r8.report(r8.draw(), 1.5)
    state["b"] = np.zeros(3)
    state["a"] = np.ones(5)
    for _ in range(4):
        r8.report(r8.draw(), 1.7)
    r8.report(r8.draw(), NAN)

    assert {name: len(array) for name, array in got[0].items()} == {"a": 5, "b": 3}


def test_load_callback_may_change_its_state():
    """Changes that the load callback makes to the state it got do not change the backup."""
    model = Weights()

    def load(state):
        model.load(state, from_ram=True)
        state["w"] += 100

    r8 = make(64, num_epochs=9, state_callback=model.get, load_callback=load)
    for _ in range(3):
        r8.report(r8.draw(), NAN)
        assert model.values.tolist() == [100, 100]


def test_batches_drawn_before_a_restore_are_no_new_try():
    """Losses of batches open during the restore do not count as tries."""
    model, heard = Weights(), record_events()
    r8 = make(64, num_epochs=9, state_callback=model.get, load_callback=model.load, listeners=[heard])
    advance_to(r8, 3)
    out = [r8.draw() for _ in range(6)]
    outcomes = [r8.report(ticket, NAN) for ticket in out]

    assert [outcome.rolled_back_to for outcome in outcomes] == [0, *[None] * 5]
    assert not any(outcomes)
    assert [event.tries for event in heard.of(events.BatchRefused)] == [1] * 6


def test_bundle_is_written(tmp_path):
    """A diverged run leaves a file with the attempts and the last losses in the checkpoint folder."""
    model = Weights()
    r8 = make(
        64, num_epochs=9, state_callback=model.get, load_callback=model.load, save_callback=model.save,
        checkpoint_dir=tmp_path,
    )  # fmt: skip
    with pytest.raises(TrainingDiverged) as error:
        train(r8, bad=range(20, 99))
    content = json.loads(Path(error.value.bundle).read_text(), parse_constant=lambda name: pytest.fail(name))

    assert str(tmp_path) in str(error.value)
    assert [attempt["step"] for attempt in content["attempts"]] == [21, 22, 23, 24, 25, 26]
    assert content["losses"][-6:] == ["nan"] * 6
    assert len(content["losses"]) == 26


def test_full_disk_prevents_only_the_bundle(tmp_path):
    """If the diagnosis file cannot be written, the error still says everything."""
    r8 = make(64, num_epochs=9, checkpoint_dir=tmp_path / "file" / "saved")
    (tmp_path / "file").write_text("")
    with (
        pytest.warns(RuntimeWarning, match="nothing to restore"),
        pytest.raises(TrainingDiverged, match="What was tried") as error,
    ):
        train(r8, bad=range(99))

    assert error.value.bundle is None


def test_checkpoints_are_tried_like_backups(tmp_path):
    """Backups and checkpoints are tried by age, each at least twice as far back as the one before."""
    model, heard = Weights(), record_events()
    r8 = make(
        64, num_epochs=99, state_callback=model.get, load_callback=model.load, save_callback=model.save,
        checkpoint_dir=tmp_path, checkpoint_every=50, keep_checkpoints=9, listeners=[heard],
    )  # fmt: skip
    with pytest.raises(TrainingDiverged):
        train(r8, bad=range(430, 999))
    back = heard.of(events.RolledBack)[:-1]
    distances = [431 - event.to_step for event in back]
    rungs = sorted(set(distances))

    assert distances == sorted(distances)
    assert {event.source[:3] for event in back} == {"bac", "ck_"}
    assert all(later >= 2 * earlier for earlier, later in itertools.pairwise(rungs[:-1]))
    assert len(back) == 5 + len(rungs) - 1


def test_threads():
    """Four threads that draw and report at once lose nothing: every step is counted, every sample is in the table."""
    r8 = make(4000, batch_size=4, num_epochs=10)
    errors = []

    def work():
        try:
            while (ticket := r8.draw_if_any()) is not None:
                r8.report(ticket, batch_loss(ticket.indices))
        except RuntimeError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert (r8.global_step, r8.pace.num_out) == (10_000, 0)
    assert set(r8.table.usage_count.tolist()) == {10}


def test_a_thread_that_reads_the_table():
    """A thread that reads the table repeatedly while another trains makes no report count twice."""
    r8 = make(4000, batch_size=20, num_epochs=20)

    def read():
        while not r8.pace.is_finished:
            r8.table.quartiles()

    reader = threading.Thread(target=read)
    reader.start()
    while (ticket := r8.draw_if_any()) is not None:
        r8.report(ticket, 1 + 0.001 * (ticket.indices % 7))
    reader.join()

    assert set(r8.table.usage_count.tolist()) == {20}


def test_torch_weights_spoilt_after_the_step_are_healed():
    """In a real torch network, three steps at a rate a thousand times too high are undone, and the loss falls again."""
    torch.manual_seed(0)
    task = ToyTask(512)
    x, y = torch.tensor(task.inputs, dtype=torch.float32), torch.tensor(task.labels)
    net = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    faults = FaultPlan(lr=[300, 301, 302])
    heard = record_events()

    def load(state):
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])

    r8 = R8Scheduler(
        512, batch_size=16, num_steps=600, initial_lr=0.05, backup_every=10, listeners=[heard], load_callback=load,
        state_callback=lambda: {"net": net.state_dict(), "optimizer": optimizer.state_dict()},
    )  # fmt: skip
    for _, indices, lr in steps(r8):
        for group in optimizer.param_groups:
            group["lr"] = faults.rate(r8.global_step, lr)
        loss = torch.nn.functional.cross_entropy(net(x[indices]), y[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        r8.update_with_loss(loss)
    final = float(torch.nn.functional.cross_entropy(net(x), y).detach())

    assert 1 <= len(heard.of(events.RolledBack)) <= 3
    assert len(heard.of(events.IncidentEnded)) == 1
    assert final < 0.3


def test_loss_that_stays_higher_says_what_to_do():
    """A permanent jump of the loss looks like damage: the run ends soon, and the error says what to do."""
    rng = np.random.default_rng(0)
    r8 = R8Scheduler(100, batch_size=10, num_epochs=100, state_callback=lambda: [0.0], load_callback=lambda state: None)

    def run():
        for _ in steps(r8):
            r8.update_with_loss((1 if r8.global_step < 300 else 10) + 0.1 * rng.random())

    with pytest.raises(TrainingDiverged, match=r"reset_baseline\(\).* resume with guard=FiniteGuard\(\)"):
        run()

    assert r8.global_step < 330

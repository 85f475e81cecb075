"""Fault by fault: numbers, callbacks and misuse that a run survives, or refuses with what to do.

Faults of the guard are in tests/guard, of files and signals in tests/state and tests/engine, wrong arguments in
test_bad_input.py and tests/test_scheduler.py.
"""

import hashlib
import re

import numpy as np
import pytest
import torch

from learnit_r8 import R8Scheduler, RateShape, Recovery, TrainingDiverged, events
from learnit_r8.engine.settings import grouped
from learnit_r8.recovery.policy import RestoreError
from learnit_r8.recovery.record import read_record
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
        512, batch_size=batch_size, num_steps=num_steps, initial_lr=lr, listeners=[heard],
        **grouped(dict(**own, **more))
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


@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
@pytest.mark.parametrize("order", ["before", "after"])
def test_nan_at_any_step(order):
    """A NaN at any of the first 200 steps costs its batch; if the update came first, the weights come back."""
    for step in range(0, 200, 13):
        task, r8, heard = toy_run(FaultPlan(nan=[step]), num_steps=step + 40, order=order)

        assert len(heard.of(events.RolledBack)) == (order == "after")
        assert len(heard.of(events.BatchRefused)) == 1
        assert not heard.of(events.LrCapped)
        assert task.loss() < 3.5
        assert np.isfinite(r8.table.loss[r8.table.usage_count > 0]).all()


@pytest.mark.parametrize("value", [INF, -INF])
def test_infinities_in_the_first_steps(value):
    """An infinite loss of either sign in the first ten steps is handled like NaN: damaged weights come back."""
    for step in range(10):
        model = Weights()
        r8 = make(64, num_epochs=3, state_callback=model.get, load_callback=model.load)
        advance_to(r8, step)
        model.values = np.array([NAN, 1.0])
        outcome = r8.report(r8.draw(), value)

        assert not outcome
        assert model.values.tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_nan_where_no_loss_sees_it(optimizer, seed):
    """NaN in a row of an embedding that no batch uses is found at the next backup, named, and mended."""
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
    assert ["taken from the backup of step 30" in each.text for each in heard.of(events.Notice)] == [True]
    assert "losses refused: 0;" in r8.summary()
    assert "after a refused loss" not in r8.summary()
    assert not heard.of(events.RolledBack)
    assert table.weight.isfinite().all()


@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
def test_damage_that_comes_back_at_once_is_traced_state_by_state():
    """Backups that hold the cause of a NaN that no loss sees are passed over one by one, twice in a run."""
    task, heard = ToyTask(512), record_events()
    average, is_sick = np.zeros(2), np.zeros(1)

    def get():
        return {"task": task.state(), "average": average, "is_sick": is_sick}

    def load(state):
        task.load(state["task"], from_ram=True)
        average[:], is_sick[:] = state["average"], state["is_sick"]

    r8 = R8Scheduler(
        512, batch_size=16, num_steps=800, initial_lr=0.05, state_callback=get, load_callback=load, backup_every=20,
        listeners=[heard], recovery=Recovery(keep_backups=50),
    )  # fmt: skip
    for _, indices, rate in steps(r8):
        step = r8.global_step
        is_sick[0] = is_sick[0] or step in (205, 505)
        if r8.update_with_loss(task.losses(indices).mean()):
            task.step(rate)
        if is_sick[0] and not (205 <= step < 285 or 505 <= step < 585):
            average[0] = NAN

    restored = [event.to_step for event in heard.of(events.RolledBack)]
    assert not is_sick[0]
    assert np.isfinite(average).all()
    # The first search ends at the newest state without the cause, the second one too.
    assert restored[-1] == 500
    assert 200 in restored
    assert len(restored) <= 12


def test_finite_models_are_not_damaged():
    """Numbers whose sum overflows, and infinities present from the start, are no damage."""
    state = {"mask": np.array([0.0, -INF]), "large": np.full(9, 1e308)}
    heard = []
    train(make(64, num_epochs=9, state_callback=lambda: state, load_callback=print, listeners=[heard.append]))

    assert not [event for event in heard if isinstance(event, (events.DamageFound, events.RolledBack))]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_array_that_is_always_nan_is_left_alone():
    """An array that is NaN again and again without any refused loss is not checked any more, which is said."""
    scratch, heard = {"w": np.zeros(2), "metric": np.zeros(1)}, record_events()

    def load(state):
        scratch["metric"] = state["metric"]

    r8 = make(64, num_epochs=40, state_callback=lambda: scratch, load_callback=load, backup_every=10, listeners=[heard])

    def run():
        for _, indices, _ in steps(r8):
            scratch["metric"] = np.array([NAN]) if r8.global_step > 20 else scratch["metric"]
            r8.update_with_loss(batch_loss(indices))

    with pytest.warns(RuntimeWarning, match="'metric' in the model's state is not finite again and again"):
        run()

    assert r8.pace.is_finished
    assert heard.of(events.BackupTaken)[-1].step > 600


def test_two_isolated_faults_heal_twice():
    """An array that becomes NaN from time to time is mended each time, and backups continue afterwards."""
    scratch, heard = {"w": np.zeros(2), "ema": np.zeros(1)}, record_events()

    def load(state):
        scratch["ema"] = state["ema"]

    r8 = make(64, num_epochs=20, state_callback=lambda: scratch, load_callback=load, backup_every=10, listeners=[heard])
    for _, indices, _ in steps(r8):
        if r8.global_step in (55, 205):
            scratch["ema"] = np.array([NAN])
        r8.update_with_loss(batch_loss(indices))

    assert [each.step for each in heard.of(events.Notice) if "taken from the backup of step" in each.text] == [60, 210]
    assert len(heard.of(events.IncidentEnded)) == 2
    assert heard.of(events.BackupTaken)[-1].step > 300
    assert np.isfinite(scratch["ema"]).all()


class Broken(FaultPlan):
    """Losses that are NaN from a step on, also where a batch is drawn again at the same step."""

    def __init__(self, start):
        super().__init__()
        self._start = start

    def loss(self, step, loss):
        return loss * np.nan if step >= self._start else loss


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("start", [0, 3, 70, 300])
def test_permanent_nan(start, order):
    """A loss that stays NaN ends in TrainingDiverged after ``max_refused`` refusals, and leaves finite weights."""
    tasks = []

    def callbacks(task):
        tasks.append(task)
        return {"state_callback": task.state, "load_callback": task.load}

    with pytest.raises(TrainingDiverged, match="80 batches in a row were refused, the last loss \\(nan\\)"):
        toy_run(
            Broken(start), num_steps=600, order=order, callbacks=callbacks,
            recovery=Recovery(max_refused=80),
        )  # fmt: skip

    assert all(np.isfinite(array).all() for array in tasks[0].weights + tasks[0].velocity)
    assert tasks[0].loss() < (3.5 if start < 70 else 1.5)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_healthy_runs_are_left_alone(batch_size):
    """A run without faults restores nothing and lowers no rate, also at batch sizes 1 and 8."""
    _, _, heard = toy_run(FaultPlan(), num_steps=1500, batch_size=batch_size, lr=0.01 if batch_size == 1 else 0.05)

    assert not heard.of(events.RolledBack, events.LrCapped)
    assert len(heard.of(events.Probed)) <= 8


@pytest.mark.filterwarnings("ignore:losses were far too high:RuntimeWarning")
def test_lowered_rate_survives_a_resume():
    """The factor after a restore, the ceiling and their return are part of the state."""
    task = ToyTask(512)

    def scheduler(num_steps=2000):
        return R8Scheduler(
            512, batch_size=16, num_steps=num_steps, scheduler_mode=RateShape("constant", warmup_proportion=0),
            initial_lr=0.05,
            state_callback=task.state, load_callback=task.load, backup_every=10,
        )  # fmt: skip

    def rates(r8, count, by=1.0):
        found = []
        for _ in range(count):
            ticket = r8.draw()
            found.append(ticket.lr)
            if r8.report(ticket, task.losses(ticket.indices).mean()):
                task.step(by * ticket.lr)
        return found

    r8 = scheduler()
    rates(r8, 300)
    while r8.controller.limit.ceiling == INF:
        rates(r8, 1, by=300.0)
    rates(r8, 5)
    while r8.controller.is_open:
        rates(r8, 1)
    fresh = scheduler()
    fresh.load_state_dict(r8.state_dict())

    assert "learning rate at most 0." in fresh.summary()
    assert fresh.lr == r8.lr < 0.05
    assert rates(fresh, 600)[-1] == 0.05
    assert re.search(r"learning rate at most 0.\d+ from step \d+ to \d+", fresh.summary())


@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
def test_losses_that_do_not_change():
    """Within four updates after eight equal losses in a row the weights are checked, long before the next backup."""
    model, heard = Weights(), record_events()
    # An epoch of so many batches does not end in between; at its end the weights are looked at, too.
    r8 = make(
        6400, num_epochs=99, state_callback=model.get, load_callback=model.load, backup_every=500, listeners=[heard]
    )
    for _, indices, _ in steps(r8):
        if r8.global_step == 100:
            model.values = np.array([NAN, 0.0])
        r8.update_with_loss(batch_loss(indices) if r8.global_step < 100 else 0.0)
        if r8.global_step == 120:
            break

    assert 108 <= heard.of(events.DamageFound)[0].step < 112
    assert np.isfinite(model.values).all()


@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
@pytest.mark.parametrize("is_damaged", [True, False])
def test_losses_that_jump(is_damaged):
    """Within five updates weights are checked, as a rectifier may hide their NaN; of sound ones no backup is taken."""
    model, heard = Weights(), record_events()
    r8 = make(
        6400, num_epochs=99, state_callback=model.get, load_callback=model.load, listeners=[heard],
        **grouped({"backup_every": 500, "guard": "finite"})
    )  # fmt: skip
    for _, indices, _ in steps(r8):
        if r8.global_step == 101 and is_damaged:
            model.values = np.array([NAN, 0.0])
        r8.update_with_loss(batch_loss(indices) + 50.0 * (r8.global_step >= 101 and not heard.of(events.DamageFound)))
        if r8.global_step == 130:
            break

    assert [event.step in range(103, 107) for event in heard.of(events.DamageFound)] == [True] * is_damaged
    assert np.isfinite(model.values).all()
    assert is_damaged or not any(event.step > 100 for event in heard.of(events.BackupTaken))


@pytest.mark.filterwarnings("ignore:losses or weights were not finite:RuntimeWarning")
@pytest.mark.parametrize("fails", [1, 2, 3])
def test_load_callback_that_raises(fails):
    """A load callback that raises gets another state; each failure is reported."""
    faults = FaultPlan(nan=[300], load=range(301 - fails, 301))
    task, _, heard = toy_run(faults, num_steps=340)

    assert len(heard.of(events.RestoreFailed)) == fails
    assert len(heard.of(events.RolledBack)) == 1
    assert task.loss() < 1.0


def test_load_callback_that_always_raises():
    """If every state fails, the error names all causes and a partly restored model; the scheduler stays consistent."""

    def broken(state):
        raise KeyError(f"layer{state}")

    r8 = make(64, num_epochs=9, load_callback=broken, recovery=Recovery(trust_steps=4))
    for step in range(20):
        r8.update_cpu_backup(step)
        r8.report(r8.draw(), 1.0)
    before = known(r8)
    with pytest.raises(RuntimeError, match=r"(?s)layer19.*layer18.*The model may be partly restored\."):
        r8.report(r8.draw(), NAN)

    np.testing.assert_equal(known(r8), before)
    assert r8.global_step == 21
    while r8.progress < 1:
        r8.report(r8.draw(), 1.0)
    assert r8.progress == 1


def test_load_callback_that_does_nothing():
    """A load callback that restores nothing is detected from the state, and the error says so."""
    model = Weights()
    r8 = make(64, num_epochs=9, state_callback=model.get, load_callback=lambda state: None)
    advance_to(r8, 5)
    model.values = np.array([NAN, NAN])
    with pytest.raises(RestoreError, match=r"'w' was not finite afterwards: does load_callback restore it\?"):
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
    tf = pytest.importorskip("tests.keras_common").tf
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


@pytest.mark.parametrize(
    "build", [numpy_model, torch_model, pytest.param(tf_model, marks=pytest.mark.program), jax_model]
)
def test_live_references(build):
    """A state callback may return the live weights: ten optimizer steps later the backup is unchanged."""
    get, step, values = build()
    got = []
    r8 = make(64, num_epochs=9, state_callback=get, load_callback=got.append)
    r8.draw()
    for _ in range(10):
        step()
    assert values().tolist() != [1, 1, 1]
    r8.restore_backup()
    weight = got[0]["w"]["weight"]

    assert np.asarray(weight.detach() if hasattr(weight, "detach") else weight).tolist() == [1, 1, 1]


def test_without_callbacks():
    """Without any callback a loss that stays NaN ends the run with an error that says what to pass."""
    r8 = make(64, num_epochs=9, recovery=Recovery(max_refused=40))
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
    r8.restore_backup()

    assert len(caught) == 1
    assert got == [{"w": np.ones(1)}]


def test_backup_of_another_structure():
    """A model that grows during the run is backed up and restored with its new structure."""
    state, got = {"a": np.ones(2)}, []
    r8 = make(64, num_epochs=9, state_callback=lambda: state, load_callback=got.append, backup_every=1)
    for _ in range(4):
        r8.report(r8.draw(), 1.5)
    state["b"] = np.zeros(3)
    state["a"] = np.ones(5)
    for _ in range(4):
        r8.report(r8.draw(), 1.5)
    r8.restore_backup()

    assert {name: len(array) for name, array in got[0].items()} == {"a": 5, "b": 3}


def test_load_callback_may_change_its_state():
    """Changes that the load callback makes to the state it got do not change the backup."""
    model = Weights()

    def load(state):
        model.load(state, from_ram=True)
        state["w"] += 100

    r8 = make(64, num_epochs=9, state_callback=model.get, load_callback=load)
    r8.draw()
    for _ in range(3):
        r8.restore_backup()
        assert model.values.tolist() == [100, 100]


def test_bundle_is_written(tmp_path):
    """The error of a diverged run says where its record is, with the attempts and the losses before them."""
    model = Weights()
    r8 = make(
        64, num_epochs=9, state_callback=model.get, load_callback=model.load, save_callback=model.save,
        checkpoint_dir=tmp_path, recovery=Recovery(max_refused=30),
    )  # fmt: skip
    with pytest.raises(TrainingDiverged) as error:
        train(r8, bad=range(20, 99))
    content = read_record(tmp_path / "incidents" / "1")
    probes = [each for each in content["timeline"] if each["kind"] == "Probed"]

    assert str(tmp_path / "incidents") in str(error.value)
    assert (content["step"], content["state"]) == (21, "gave up")
    assert content["num_refused"] + len(probes) == 30
    assert len(content["refusals"][0]["losses_before"]) == 20


@pytest.mark.filterwarnings("ignore:the checkpoint at step")
def test_full_disk_prevents_only_the_bundle(tmp_path):
    """If the record cannot be written, the error still says everything."""
    r8 = make(64, num_epochs=9, checkpoint_dir=tmp_path / "file" / "saved", recovery=Recovery(max_refused=30))
    (tmp_path / "file").write_text("")
    with (
        pytest.warns(RuntimeWarning, match="nothing to restore"),
        pytest.warns(RuntimeWarning, match="record of an incident could not be written"),
        pytest.raises(TrainingDiverged, match="30 batches in a row were refused"),
    ):
        train(r8, bad=range(99))


@pytest.mark.filterwarnings("ignore:losses were far too high:RuntimeWarning")
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

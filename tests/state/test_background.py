"""Checkpoints of a large table: copied, then written by a thread while the run goes on."""

import copy
import threading

import numpy as np
import pytest

from learnit_r8 import CheckpointStore, R8Scheduler
from learnit_r8.engine.settings import grouped
from learnit_r8.events import CheckpointSaved
from learnit_r8.recovery import persistence
from learnit_r8.state import codec
from learnit_r8.testing import ToyTask, record_events

SIZE, BATCH = 3000, 10
FIELDS = ("loss", "last", "mean", "usage_count")


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """Tables of any size count as large."""
    monkeypatch.setattr(persistence, "LARGE", 1)


@pytest.fixture
def gate(monkeypatch):
    """Who writes a checkpoint waits here."""
    opened, write = threading.Event(), codec.write

    def waiting(*arguments):
        assert opened.wait(30)
        write(*arguments)

    monkeypatch.setattr("learnit_r8.state.store.write", waiting)
    yield opened
    opened.set()


def build(folder, **more):
    settings = {"num_epochs": 4, "checkpoint_dir": folder, "checkpoint_every": 200, "keep_checkpoints": 99, **more}
    return R8Scheduler(SIZE, batch_size=BATCH, seed=3, **grouped(settings))


def go_on(r8, count):
    """The samples of the next batches."""
    drawn = []
    for _ in range(count):
        ticket = r8.draw()
        drawn.append(ticket.indices.tolist())
        r8.report(ticket, 1.0 + ticket.indices % 7 / 8)
    return drawn


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def newest(folder):
    return CheckpointStore(folder, keep=1, run_id="").load().state


def test_run_goes_on_while_a_checkpoint_is_written(tmp_path, gate):
    """Steps, epochs and plans go on; the file holds the state of the step at which it was due."""
    told = record_events()
    r8 = build(tmp_path, listeners=[told])
    go_on(r8, 200)
    expected = copy.deepcopy(r8.state_dict())
    go_on(r8, 450)
    assert not told.of(CheckpointSaved)
    assert not [name for name in files(tmp_path) if name.endswith(".r8") and not name.startswith("tmp")]
    gate.set()
    r8.host.persistence.saver._writing[1]._thread.join(30)
    go_on(r8, 16)
    [saved] = told.of(CheckpointSaved)
    state = CheckpointStore(tmp_path, keep=1, run_id="").load(saved.path).state

    assert state["pace"]["step"] == 200
    for name in FIELDS:
        np.testing.assert_array_equal(state["table"][name], expected["table"][name])
    again = R8Scheduler.resume_from_checkpoint(saved.path, checkpoint_every=10**6)
    other = build(tmp_path / "other", checkpoint_every=10**6)
    other.load_state_dict(expected)
    assert go_on(again, 500) == go_on(other, 500)


def test_small_table_is_written_at_once(tmp_path, monkeypatch):
    """A run with few samples waits for its checkpoint, which holds the same as one written by a thread."""
    found = []
    for limit in (1, SIZE + 1):
        monkeypatch.setattr(persistence, "LARGE", limit)
        r8 = build(tmp_path / str(limit))
        go_on(r8, 201)
        assert (r8.host.persistence.saver._writing is None) == (limit > SIZE)
        r8.host.persistence.saver.wait()
        found.append([newest(tmp_path / str(limit))["table"][name].tobytes() for name in FIELDS])

    assert found[0] == found[1]


def test_closing_waits(tmp_path, gate):
    """A run that ends waits for the checkpoint that is being written, and writes its last one."""
    r8 = build(tmp_path)
    go_on(r8, 210)
    threading.Timer(0.2, gate.set).start()
    r8.close()

    assert [name for name in files(tmp_path) if name.startswith("ck_")] == ["ck_000000000001.r8", "ck_000000000002.r8"]


def test_disk_that_refuses(tmp_path, monkeypatch):
    """A thread that cannot write costs a warning, at a later step, and the run goes on; the next one is written."""
    r8 = build(tmp_path)

    def refuse(*_):
        raise OSError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr("learnit_r8.state.store.write_new", refuse)
        go_on(r8, 201)
        with pytest.warns(RuntimeWarning, match=r"checkpoint at step 200 could not be written(.|\n)*no space left"):
            r8.host.persistence.saver.wait()
    go_on(r8, 200)
    r8.host.persistence.saver.wait()

    assert r8.host.persistence.saver.num_failed == 1
    assert files(tmp_path) == ["ck_000000000001.r8"]


def test_best_checkpoint_is_of_its_step(tmp_path, gate):
    """A metric that is logged while its checkpoint is being written pins that one, and no other."""
    r8 = build(tmp_path, monitor="accuracy", mode="max", checkpoint_every=300)
    go_on(r8, 300)
    r8.host.between_steps()
    assert r8.host.persistence.saver._writing is not None
    r8.log(accuracy=0.5)
    gate.set()
    go_on(r8, 30)
    assert (r8.best_checkpoint.step, r8.best_checkpoint.value) == (300, 0.5)
    assert CheckpointStore(tmp_path, keep=1, run_id="").load(r8.best_checkpoint.path).state["pace"]["step"] == 300
    r8.log(accuracy=0.7)
    go_on(r8, 30)

    assert (r8.best_checkpoint.step, r8.best_checkpoint.value) == (330, 0.7)


def test_loading_does_not_change_what_is_written(tmp_path, gate):
    """A state that replaces all records while a checkpoint is being written does not wait for it, nor change it."""
    r8 = build(tmp_path)
    state = copy.deepcopy(r8.state_dict())
    go_on(r8, 200)
    last = r8.table.last
    go_on(r8, 1)
    r8.load_state_dict(state)
    gate.set()
    r8.host.persistence.saver.wait()

    assert np.isnan(r8.table.loss).all()
    np.testing.assert_array_equal(newest(tmp_path)["table"]["last"] > 0, ~np.isnan(last))


def test_model_put_back_while_a_checkpoint_is_written(tmp_path, gate):
    """Before a model is put back the checkpoint that is being written is whole, and may be what to go back to."""
    toy = ToyTask(16)
    r8 = build(tmp_path, save_callback=toy.save, load_callback=toy.load)
    go_on(r8, 201)
    gate.set()
    outcome = r8.report(r8.draw(), np.full(BATCH, np.nan))

    assert outcome.rolled_back_to == 200

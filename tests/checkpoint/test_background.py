"""Checkpoints of a large table: written by a thread while the run goes on, as of the step at which they were due."""

import copy
import pickle
import threading

import numpy as np
import pytest

from learnit_r8 import CheckpointStore, R8Scheduler
from learnit_r8.events import CheckpointSaved
from learnit_r8.table import records, table
from learnit_r8.testing import ToyTask, record_events

SIZE, BATCH = 3000, 10
FIELDS = ("loss", "last", "mean", "usage_count")


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """Tables of any size count as large, and are read some records at a time."""
    monkeypatch.setattr(table, "LARGE", 1)
    monkeypatch.setattr(records, "_BLOCK", 700)


@pytest.fixture
def gate(monkeypatch):
    """Who reads a large table waits here, after the first of its records."""
    opened = threading.Event()
    blocks = records.Column.blocks

    def waiting(column):
        for number, block in enumerate(blocks(column)):
            if number == 1:
                assert opened.wait(30)
            yield block

    monkeypatch.setattr(records.Column, "blocks", waiting)
    yield opened
    opened.set()


def build(folder, **more):
    settings = {"num_epochs": 4, "checkpoint_dir": folder, "checkpoint_every": 200, "keep_checkpoints": 99, **more}
    return R8Scheduler(SIZE, batch_size=BATCH, seed=3, **settings)


def go_on(r8, count):
    """The samples of the next batches."""
    drawn = []
    for _ in range(count):
        ticket = r8.draw()
        drawn.append(ticket.indices.tolist())
        r8.report(ticket, 1.0 + ticket.indices % 7 / 8)
    return drawn


def files(folder):
    return sorted(path.name for path in folder.iterdir())


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
    go_on(r8, 1)
    [saved] = told.of(CheckpointSaved)
    state = CheckpointStore(tmp_path, keep=1, run_id="").load(saved.path).state

    assert state["pace"]["step"] == 200
    for name in FIELDS:
        np.testing.assert_array_equal(state["table"][name], expected["table"][name])
    again = R8Scheduler.resume_from_checkpoint(saved.path, checkpoint_every=10**6)
    other = build(tmp_path / "other", checkpoint_every=10**6)
    other.load_state_dict(expected)
    assert go_on(again, 500) == go_on(other, 500)


def test_file_is_that_of_a_copied_table(tmp_path, monkeypatch):
    """A thread writes the very values that are written without one."""
    contents = []
    for limit in (1, 10**9):
        monkeypatch.setattr(table, "LARGE", limit)
        r8 = build(tmp_path / str(limit))
        go_on(r8, 230)
        r8.host.persistence.saver.settle()
        state = CheckpointStore(tmp_path / str(limit), keep=1, run_id="").load().state
        contents.append([state["table"][name].tobytes() for name in FIELDS])

    assert contents[0] == contents[1]


def test_closing_waits(tmp_path, gate):
    """A run that ends waits for the checkpoint that is being written, and writes its last one."""
    r8 = build(tmp_path)
    go_on(r8, 210)
    threading.Timer(0.2, gate.set).start()
    r8.close()

    assert [name for name in files(tmp_path) if name.startswith("ck_")] == ["ck_000000000001.r8", "ck_000000000002.r8"]


def test_disk_that_refuses(tmp_path, gate, monkeypatch):
    """A thread that cannot write costs a warning, at the next step, and the run goes on; the next one is written."""
    r8 = build(tmp_path)
    go_on(r8, 201)
    gate.set()
    r8.host.persistence.saver.settle()

    def refuse(*_):
        raise OSError("no space left")

    with monkeypatch.context() as broken:
        broken.setattr("learnit_r8.checkpoint.store.write_new", refuse)
        go_on(r8, 200)
        with pytest.warns(RuntimeWarning, match=r"checkpoint at step 400 could not be written(.|\n)*no space left"):
            r8.host.persistence.saver.settle()
    go_on(r8, 200)
    r8.host.persistence.saver.settle()

    assert r8.host.persistence.saver.num_failed == 1
    assert [name for name in files(tmp_path) if not name.startswith("ck_")] == []


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


def test_loading_waits_for_the_reader(tmp_path, gate):
    """A state that replaces all records waits until the checkpoint of before is written."""
    r8 = build(tmp_path)
    state = copy.deepcopy(r8.state_dict())
    go_on(r8, 200)
    loss = r8.table.last
    go_on(r8, 1)
    threading.Timer(0.2, gate.set).start()
    r8.load_state_dict(state)
    r8.host.persistence.saver.settle()

    assert np.isnan(r8.table.loss).all()
    np.testing.assert_array_equal(
        CheckpointStore(tmp_path, keep=1, run_id="").load().state["table"]["last"] > 0, ~np.isnan(loss)
    )


def test_model_put_back_while_a_checkpoint_is_written(tmp_path, gate):
    """Before a model is put back the checkpoint that is being written is whole, and may be what to go back to."""
    toy = ToyTask(16)
    r8 = build(tmp_path, save_callback=toy.save, load_callback=toy.load)
    go_on(r8, 201)
    gate.set()
    outcome = r8.report(r8.draw(), np.full(BATCH, np.nan))

    assert outcome.rolled_back_to == 200


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each)), np.array])
def test_column_is_an_array_wherever_one_is_asked_for(copied):
    """What a save callback gets and pickles holds ordinary arrays."""
    known = records.Records(SIZE)
    known.put(np.arange(SIZE), known.take(np.arange(SIZE)))
    column = records.Column(known.snapshot(), "usage_count")
    found = copied(column)

    assert type(found) is np.ndarray
    assert (found.dtype, found.shape) == (column.dtype, column.shape)


def test_snapshot_that_was_thrown_away_holds_nobody_up():
    """A state that was never written does not block what replaces the records."""
    known = records.Records(SIZE)
    snapshot = known.snapshot()
    del snapshot
    known.release_snapshots()
    open_one = known.snapshot()
    open_one.close()
    known.release_snapshots()

    with pytest.raises(RuntimeError, match="must be read before it is closed"):
        open_one.rows(0, 10)

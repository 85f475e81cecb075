"""The memory of a large table: allocated without a write, queued writes seen at once, and snapshots for readers."""

import ctypes
import os
import sys
import threading

import numpy as np
import pytest

from learnit_r8.policies import get_policy
from learnit_r8.sampling.plan import Plan
from learnit_r8.table import memory, records
from learnit_r8.table.losses import WHOLE_BATCH
from learnit_r8.table.memory import Warming
from learnit_r8.table.records import RECORD, Records
from learnit_r8.table.table import SampleTable

SIZE = 2**19
"""Samples whose records take eight megabytes."""


class Late(Warming):
    """Memory that becomes ready when the test says so."""

    def __init__(self, rows):
        self.num_ready, self._rows, self._is_refused, self._thread = 0, rows, False, threading.main_thread()

    def advance(self, seconds):
        """Nothing happens by itself."""


@pytest.fixture
def late(monkeypatch):
    """Tables of any size have memory that is not ready."""
    monkeypatch.setattr(records, "Warming", Late)
    monkeypatch.setattr(records, "LEAST_BYTES", 0)


def some(count, value):
    found = np.zeros(count, RECORD)
    found["loss"] = value
    return found


def test_memory_becomes_ready_in_the_background():
    """A thread makes all of it ready, then ends."""
    warming = Warming(np.zeros(SIZE, np.complex128))
    while not warming.is_done:
        warming.advance(0.1)

    assert warming.num_ready == SIZE


def test_memory_is_not_written_to():
    """Values that another thread writes while the memory is made ready stay."""
    rows = np.zeros(SIZE, np.complex128)
    warming = Warming(rows)
    places = np.arange(0, SIZE, 7)
    rows[places] = places
    while not warming.is_done:
        warming.advance(0.01)

    assert np.array_equal(rows[places], places)
    assert not np.delete(rows, places).any()


@pytest.mark.parametrize("is_linux", [True, False])
def test_system_without_the_call(monkeypatch, is_linux):
    """If the system cannot allocate in the background, the writing thread touches some memory at a time."""

    class Refusing:
        def __init__(self, name):
            self.madvise = type("madvise", (), {"__call__": lambda *_: -1})()

    monkeypatch.setattr(ctypes, "CDLL", Refusing)
    monkeypatch.setattr(sys, "platform", "linux" if is_linux else "darwin")
    rows = np.full(SIZE, 3 + 4j)
    warming = Warming(rows)
    if is_linux:
        warming._thread.join()
    for done in range(1, SIZE // memory._TOUCHED_ROWS + 1):
        warming.advance(0.1)
        assert warming.num_ready == done * memory._TOUCHED_ROWS

    assert warming.is_done
    assert (rows == 3 + 4j).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forked_child_does_not_wait_for_the_thread(late):
    """A child, which has no such thread, writes at once, including the queued records."""
    table = Records(100)
    table.put(np.arange(50), some(50, 1.0))
    table._warming._thread = threading.Thread()
    child = os.fork()
    if not child:
        table.put(np.arange(50, 60), some(10, 2.0))
        Warming.advance(table._warming, 10.0)
        is_right = table.settle_some() and table.is_ready and table.whole["loss"].sum() == 70
        os._exit(0 if is_right else 1)

    assert os.waitpid(child, 0)[1] == 0


def test_memory_of_a_dropped_table_is_freed():
    """A table that is dropped does not wait for the thread."""
    warming = Warming(np.zeros(2**23, np.complex128))
    thread = warming._thread
    del warming
    thread.join(10)

    assert not thread.is_alive()


def test_late_writes_are_seen_at_once(late):
    """A queued record reads as if it were written; of several the last counts."""
    for read in (lambda r: r.take(np.arange(9))["loss"], lambda r: r["loss"], lambda r: r.whole["loss"]):
        table = Records(9)
        table.put(np.array([7, 2, 4]), some(3, 1.0))
        table.put(np.array([2, 5]), some(2, 3.0))

        assert not table.is_ready
        assert read(table).tolist() == [0, 0, 3, 0, 1, 3, 0, 1, 0]


def test_late_writes_go_where_memory_is_ready(late):
    """Queued records are written where the memory is ready, and not beyond."""
    table = Records(1000)
    order = np.random.default_rng(0).permutation(1000)
    table.put(order, some(1000, order))
    for ready in (0, 400, 400, 999, 1000):
        table._warming.num_ready = ready
        table.settle_some()
        assert table._words.view(RECORD)["loss"][:ready].tolist() == list(range(ready))
        assert not table._words.view(RECORD)["loss"][ready:].any()

    assert table.is_ready
    assert table._warming is None


def test_steps_wait_if_too_many_records_are_queued(late, monkeypatch):
    """If too many records are queued, each step waits a little; batches and table are the same."""

    def run():
        table = SampleTable(3000, batch_size=10)
        table.part_size = WHOLE_BATCH
        plan, asked, drawn = Plan(table, policy=get_policy("balanced")), [], []
        monkeypatch.setattr(plan._planner, "_chunk_size", 100)
        advance = table.records._warming.advance
        monkeypatch.setattr(table.records._warming, "advance", lambda seconds: (asked.append(seconds), advance(0)))
        warming = table.records._warming
        for number in range(2):
            plan.start_pass(number, 0.0)
            for step in range(plan.steps_per_pass):
                batch = plan.draw()
                drawn.append(batch.indices.tolist())
                state = plan.state_dict()["limit"] if step % 77 == 7 else 10
                assert state == 10
                plan.report(batch, 1.0 + step % 5, table.observe(1.0, 1.0))
                warming.num_ready = min(3000, warming.num_ready + 4)
        return asked, drawn, table.loss.tolist()

    monkeypatch.setattr(records, "MOST_WAITING", 2)
    patient, drawn, known = run()
    monkeypatch.setattr(records, "MOST_WAITING", 24 * 150 / (16 * 3000))
    hurried, drawn_late, known_late = run()

    assert set(patient) == {0.0}
    assert sum(seconds > 0 for seconds in hurried) > 50
    assert (drawn, known) == (drawn_late, known_late)


def test_snapshot_stays_as_it_was():
    """A reader of a snapshot gets the records of the time it was taken, whatever is written meanwhile, even twice."""
    table = Records(5000)
    rng = np.random.default_rng(0)
    table.put(np.arange(5000), some(5000, rng.random(5000)))
    before = table.whole.copy()
    snapshot = table.snapshot()
    read = []
    for start in range(0, 5000, 900):
        for _ in range(3):
            indices = rng.permutation(5000)[:700]
            table.put(indices, some(700, rng.random(700)))
        read.append(snapshot.rows(start, min(start + 900, 5000)))

    assert np.array_equal(np.concatenate(read), before)
    assert not np.array_equal(table.whole, before)
    snapshot.close()
    table.release_snapshots()


def test_snapshot_is_right_while_others_write():
    """A thread that reads while another writes gets no new record, neither whole nor in part."""
    table = Records(60_000)
    table.put(np.arange(60_000), some(60_000, 1.0))
    stop = threading.Event()
    wrong = []

    def read():
        while not stop.is_set():
            with lock:
                snapshot, expected = table.snapshot(), table._words[0]
            for start in range(0, 60_000, 7000):
                wrong.append((snapshot.rows(start, min(60_000, start + 7000)).view(np.complex128) != expected).any())
            snapshot.close()

    lock = threading.Lock()
    thread = threading.Thread(target=read)
    thread.start()
    everything = np.arange(60_000)
    for value in range(200):
        with lock:
            table.put(everything, some(60_000, value))
        table.put(everything[::3], some(20_000, value))
    stop.set()
    thread.join()

    assert wrong
    assert not any(wrong)

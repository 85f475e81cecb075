"""The records: memory that is there from the beginning, and copies that are made slice by slice."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from learnit_r8.table import records as module
from learnit_r8.table.records import RECORD, Records


def some(count, value):
    found = np.zeros(count, RECORD)
    for name in ("loss", "last", "mean"):
        found[name] = value
    return found


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's count of resident pages")
def test_memory_is_there_when_the_table_is_made():
    """The pages are touched at construction, so that no step waits for the system to clear them."""
    size = 2_000_000
    everyone, values = np.arange(size), some(size, 1.0)
    before = resident_bytes()
    records = Records(size)
    made = resident_bytes()
    records.put(everyone, values)

    assert made - before >= 0.99 * 16 * size
    assert resident_bytes() - made <= 0.01 * 16 * size


def test_records_come_back():
    """What was put is what is taken, and copied by field."""
    records, order = Records(1000), np.random.default_rng(0).permutation(1000)
    records.put(order, some(1000, order))

    assert records.take(np.array([7, 3]))["loss"].tolist() == [7, 3]
    assert records.columns(["last"])["last"].tolist() == list(range(1000))
    assert set(records.columns()) == set(RECORD.names)


class Counting:
    """A lock that counts how often it was taken, and knows whether it is held."""

    count, is_held = 0, False

    def __enter__(self):
        self.count, self.is_held = self.count + 1, True

    def __exit__(self, *_):
        self.is_held = False


@pytest.mark.parametrize(
    ("where", "count"), [(slice(None), 1000), (slice(700, 1300), 300), (np.arange(0, 1000, 2), 500)]
)
def test_lock_is_held_for_a_slice_at_a_time(where, count, monkeypatch):
    """Copying holds the lock while it copies some records, and lets others have it in between."""
    monkeypatch.setattr(module, "SLICE", 100)
    lock, records, seen = Counting(), Records(1000), []
    for _, part in records.slices(lock, where):
        assert lock.is_held
        seen.append(len(part))

    assert not lock.is_held
    assert lock.count == len(seen) == count // 100
    assert sum(seen) == count


def test_copies_hold_no_half_written_slice(monkeypatch):
    """Beside a thread that learns, each slice of a copy is of one moment, in all of its fields."""
    monkeypatch.setattr(module, "SLICE", 1000)
    records, lock, stop = Records(20_000), threading.RLock(), threading.Event()
    everyone = np.arange(20_000)

    def learn():
        value = 0
        while not stop.is_set():
            value += 1
            with lock:
                records.put(everyone, some(20_000, value))

    thread = threading.Thread(target=learn)
    thread.start()
    copies, end = [], time.monotonic() + 30
    # On a busy machine the thread may not get its turn within 50 copies.
    while len(copies) < 50 or (len({copy["loss"][-1] for copy in copies}) < 2 and time.monotonic() < end):
        copies.append(records.columns(["loss", "mean"], lock))
    stop.set()
    thread.join()

    assert len({copy["loss"][-1] for copy in copies}) > 1
    for copy in copies:
        np.testing.assert_array_equal(copy["loss"], copy["mean"])
        assert (np.ptp(copy["loss"].reshape(-1, 1000), axis=1) == 0).all()

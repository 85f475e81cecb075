"""The journal: what is written, at what cost, and what it never does to a run."""

import errno
import os
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import events
from learnit_r8.events.condenser import FIRST
from learnit_r8.journal import writer
from learnit_r8.journal.run import Run, _is_sane
from learnit_r8.journal.samples import sample_epochs, samples_of
from learnit_r8.journal.writer import Journal
from tests.drive import NAN, FakeClock, make, train
from tests.events.any_events import any_event
from tests.journal.run_folders import lines_of
from tests.journal.test_summary import step


def journal(folder, clock=None, **more):
    """A journal that writes when it is told to."""
    clock = clock or FakeClock()
    written = Journal(folder, clock=clock, wall=lambda: 1000 + clock.now, **more)
    # Its thread writes when it is closed.
    written.every_seconds = 3600.0
    return written


def told(folder):
    """The events in a journal, as they are read back."""
    return [record.event for record in Run(folder).records()]


SPECIAL = (events.StepDone, events.StepsDone, events.RunStarted, events.SamplesSurveyed, events.RunEnded)


@given(st.lists(any_event().filter(lambda event: not isinstance(event, SPECIAL)), max_size=8))
def test_events_survive_the_journal(tmp_path_factory, happened):
    """Events other than steps come back from the folder, equal and in order."""
    folder = tmp_path_factory.mktemp("run")
    kept = [event for event in happened if _is_sane(event)]
    written = journal(folder)
    for event in kept:
        written(event)
    written.close()
    back = told(folder)

    assert [type(event) for event in back] == [*map(type, kept), events.ProcessLeft]
    np.testing.assert_equal([vars(event) for event in back[:-1]], [vars(event) for event in kept])


def test_lines_are_strict_json_with_a_header_and_a_time(tmp_path):
    """The first line names the schema, and every line is strict JSON with the wall time."""
    clock = FakeClock()
    written = journal(tmp_path, clock)
    written(events.BackupTaken(3, 1.5))
    clock.advance(2.0)
    written(events.MetricsLogged(3, 1.5, 3, {"a": NAN}))
    written.write_due()

    assert lines_of(tmp_path) == [
        {"kind": "Journal", "schema": 1, "time": 1000.0},
        {"kind": "BackupTaken", "step": 3, "seconds": 1.5, "time": 1002.0},
        {
            "kind": "MetricsLogged",
            "step": 3,
            "seconds": 1.5,
            "at_step": 3,
            "metrics": {"a": "nan"},
            "is_on_trial": False,
            "time": 1002.0,
        },
    ]


def test_steps_are_summed_up(tmp_path):
    """Of a thousand steps at once all but the first become one record that keeps their extremes."""
    written = journal(tmp_path)
    for number in range(1, 1001):
        written(step(number, 9.0 if number == 500 else 1.0, seconds=0.0))
    written(events.RunEnded(1000, 0.2, False))
    *first, rest = [event for event in told(tmp_path) if isinstance(event, events.StepsDone)]

    assert [event.num_steps for event in first] == [1] * FIRST
    many = 1000 - FIRST
    assert (rest.step, rest.num_steps, rest.lowest, rest.highest, rest.last_loss) == (1000, many, 1.0, 9.0, 1.0)
    assert rest.loss == pytest.approx(1 + 8 / many)
    assert (rest.samples, rest.num_steady) == (many * 32, many // 2)


def test_heartbeat_every_ten_seconds(tmp_path):
    """A run that does not step leaves a sign of life every ten seconds, with where it was."""
    clock = FakeClock()
    written = journal(tmp_path, clock)
    written(step(7, seconds=3.0))
    for _ in range(100):
        clock.advance(0.25)
        written.write_due()

    assert [line["kind"] for line in lines_of(tmp_path)[2:]] == ["Alive", "Alive"]
    assert lines_of(tmp_path)[-1]["step"] == 7


def test_full_disk_warns_once_and_the_run_goes_on(tmp_path, monkeypatch):
    """While the disk refuses, training goes on with one warning; later events are written again."""
    clock = FakeClock()
    written = journal(tmp_path, clock)
    really = os.write

    def full(descriptor, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer.os, "write", full)
    for number in range(3):
        clock.advance(11)
        written(events.BackupTaken(number, 0.0))
        written.write_due()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            written(events.BackupTaken(number, 0.0))
        assert [str(warning.message) for warning in caught if number] == []
        if not number:
            assert "cannot be written and may lack events: [Errno 28]" in str(caught[0].message)
    monkeypatch.setattr(writer.os, "write", really)
    clock.advance(11)
    written(events.BackupTaken(99, 0.0))
    written.write_due()

    assert [event.step for event in told(tmp_path) if isinstance(event, events.BackupTaken)][-1] == 99
    assert written.num_lost > 0


def test_writing_continues_when_the_folder_comes_back(tmp_path):
    """A folder that was away for a while, as one on a network may be, gets what happens after that."""
    clock = FakeClock()
    written = journal(tmp_path / "run", clock)
    (tmp_path / "run").rename(tmp_path / "away")
    written(events.BackupTaken(1, 0.0))
    written.write_due()
    with pytest.warns(RuntimeWarning, match="deleted or moved away"):
        written(events.BackupTaken(2, 0.0))
    # It is not tried at every step, which might wait for the network each time.
    clock.advance(1)
    written.write_due()
    (tmp_path / "away").rename(tmp_path / "run")
    clock.advance(11)
    written(events.BackupTaken(3, 0.0))
    written.write_due()

    assert [event.step for event in told(tmp_path / "run")] == [2, 3]
    assert written.num_lost == 1


def test_memory_is_bounded_while_nothing_can_be_written(tmp_path, monkeypatch):
    """A disk that hangs costs lines, not memory."""
    monkeypatch.setattr(writer, "MOST_WAITING", 50)
    written = journal(tmp_path)
    for number in range(10_000):
        written(events.Notice(number, 0.0, str(number), is_warning=False))

    assert len(written._waiting) <= 51
    assert len(written._lines) <= 50
    assert written.num_lost > 0


def test_later_session_is_appended(tmp_path):
    """A second session appends to its folder: nothing is lost, a half-written line harms only itself."""
    first = journal(tmp_path, name="first")
    first(events.BackupTaken(1, 0.0))
    first.close()
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"kind": "BackupTaken", "st')
    second = journal(tmp_path, name="second")
    second(events.BackupTaken(2, 0.0))
    second.close()
    run = Run(tmp_path)
    steps = [record.event.step for record in run.records() if isinstance(record.event, events.BackupTaken)]

    assert steps == [1, 2]
    assert run.num_damaged == 1
    assert len(run.about()["sessions"]) == 2
    assert run.about()["name"] == "second"


def test_samples_taken_while_others_are_written_are_kept(tmp_path):
    """A write that happens while the table is copied does not lose the copy."""
    r8 = make(20, batch_size=4, num_epochs=1)
    train(r8)

    def copy(epoch, step):
        written.write_due()
        return samples_of(r8.table, epoch, step)

    written = journal(tmp_path, samples=copy)
    written(events.RunStarted(0, 0.0, "", 20, 4, 5, 5, None, "balanced"))
    written(events.EpochDone(5, 1.0, 0, 1.0, 1.0, 0.1, 20, 1.0))
    written.write_due()

    assert sample_epochs(tmp_path) == [0]

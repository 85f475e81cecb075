"""A run read from its folder: its events, its state, and how it is found."""

import os

import numpy as np
import pytest

from learnit_r8 import events
from learnit_r8.dashboard.watch import look
from learnit_r8.events.text import seconds_text
from learnit_r8.journal.run import Run, UnreadableRun, find_run, runs_in, this_process
from tests.drive import FakeClock
from tests.journal.run_folders import STARTED, folder_with, line, read, state_at, steps


def test_growing_file_is_followed(tmp_path):
    """Each poll gives what was added since; half a line waits for its other half."""
    folder_with(tmp_path, STARTED)
    run = Run(tmp_path)
    assert read(run) == [0]
    whole = line(steps(5))
    for text, expected in ((whole[:30], []), ("", []), (whole[30:], [5]), (line(steps(6)) * 2, [6, 6])):
        with open(tmp_path / "events.jsonl", "a") as file:
            file.write(text)

        assert read(run) == expected
    assert run.num_damaged == 0


def test_replaced_file_is_read_anew(tmp_path):
    """A journal that was replaced, or cut, is read from its beginning."""
    folder_with(tmp_path, STARTED, steps(5), steps(10))
    run = Run(tmp_path)
    assert read(run) == [0, 5, 10]
    (tmp_path / "events.jsonl").write_text(line(STARTED) + line(steps(3)))

    assert read(run) == [0, 3]
    assert run.lines.num_restarts == 1


def test_missing_journal_is_named_in_the_error(tmp_path):
    """A folder without a journal, and none at all, are named in the error."""
    with pytest.raises(UnreadableRun, match="run must hold a journal, got"):
        Run(tmp_path)
    with pytest.raises(UnreadableRun, match="run must be a folder, got"):
        Run(tmp_path / "nothing")
    run = Run(folder_with(tmp_path, STARTED))
    (tmp_path / "events.jsonl").unlink()
    for read_on in (run.poll, run.glance):
        with pytest.raises(UnreadableRun, match="run must hold a journal, got"):
            read_on()


DAMAGED = ["", "[]", "3", "{", "[" * 100_000, "\x00", '{"name": 3, "sessions": 7}', '{"sessions": [1]}']


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_description_is_no_obstacle(tmp_path, content):
    """Whatever is in run.json, the events are read and the state is told."""
    folder_with(tmp_path, STARTED, steps(5))
    (tmp_path / "run.json").write_text(content)
    run = Run(tmp_path)

    assert read(run) == [0, 5]
    assert state_at(tmp_path, 1010.0) == ("running", "")
    assert run.name == tmp_path.name


@pytest.mark.parametrize(
    ("happened", "now", "expected"),
    [
        ([], 1000, ("empty", "no record yet")),
        ([STARTED, steps(5)], 1005, ("running", "")),
        ([STARTED, steps(5)], 1044, ("stalled", "no sign of life for 44 s")),
        ([STARTED, steps(5)], 1000 + 7200, ("stalled", "no sign of life for 2.0 h")),
        ([STARTED, steps(5), events.RunEnded(5, 0.5, False)], 9999, ("stopped", "")),
        ([STARTED, steps(5), events.RunEnded(5, 0.5, True)], 9999, ("finished", "")),
        ([STARTED, steps(5), events.ProcessLeft(5, 0.5, "")], 9999, ("stopped", "")),
        ([STARTED, steps(5, progress=1.0), events.ProcessLeft(5, 0.5, "")], 9999, ("finished", "")),
        ([STARTED, events.RunEnded(5, 0.5, False), events.ProcessLeft(5, 0.5, "E: x")], 9999, ("died", "E: x")),
        ([STARTED, events.RunEnded(5, 0.5, False), STARTED, steps(5)], 1001, ("running", "")),
    ],
)
def test_state_of_a_run(tmp_path, happened, now, expected):
    """The last record and its age give the state."""
    assert state_at(folder_with(tmp_path, *happened), float(now)) == expected


def test_run_that_is_started_again_after_it_diverged(tmp_path):
    """A program that is run again in the same folder trains: what ended the run before does not count."""
    gave_up = events.GaveUp(9, 9.0, "everything was tried")
    folder = folder_with(tmp_path, STARTED, gave_up, STARTED, steps(5))

    assert state_at(folder, 1000.0) == ("running", "")


def test_run_without_steps_is_stalled(tmp_path):
    """A process that lives but has not stepped for a minute, and three times its longest pause, is stalled."""
    clock = FakeClock()
    clock.now = 1000.0
    folder_with(tmp_path, STARTED, steps(5))
    words = []
    for _ in range(8):
        clock.advance(10)
        folder_with(tmp_path, events.Alive(5, 0.5), when=clock.now)
        words.append(state_at(tmp_path, clock.now))

    assert words[:6] == [("running", "")] * 6
    assert words[6:] == [("stalled", "no step for 70 s"), ("stalled", "no step for 80 s")]
    folder_with(tmp_path, steps(6), when=clock.now)
    clock.advance(100)
    folder_with(tmp_path, events.Alive(6, 0.6), when=clock.now)

    assert state_at(tmp_path, clock.now) == ("running", "")


@pytest.mark.parametrize(
    ("event", "waited", "expected"),
    [
        (events.RunPaused(5, 0.5, "by a key"), 5000, ("running", "paused")),
        (events.RunResumed(5, 0.5), 55, ("running", "")),
        (events.RunResumed(5, 0.5), 65, ("stalled", "no step for 65 s")),
        (events.EpochDone(5, 0.5, 0, 0.5, 1.0, 0.1, 10, 1.0), 500, ("running", "")),
        (events.EpochDone(5, 0.5, 0, 0.5, 1.0, 0.1, 10, 1.0), 650, ("stalled", "no step for 11 min")),
    ],
)
def test_pauses_and_validations_are_no_stalls(tmp_path, event, waited, expected):
    """A run that was paused is not stalled, and after an epoch a validation has ten minutes."""
    folder_with(tmp_path, STARTED, steps(5), event)
    folder_with(tmp_path, events.Alive(5, 0.5), when=1000.0 + waited)

    assert state_at(tmp_path, 1000.0 + waited) == expected


def test_dead_process_is_told(tmp_path):
    """A run whose process is gone has died, or finished if its budget was used up."""
    gone = {**this_process(), "process_started": 1}
    died = folder_with(tmp_path / "a", STARTED, steps(5), process=gone)
    done = folder_with(tmp_path / "b", STARTED, steps(5, progress=1.0), process=gone)

    assert state_at(died, 1001.0) == ("died", "the process is gone")
    assert state_at(done, 1001.0) == ("finished", "")


def test_progress_of_an_earlier_run_in_the_folder_does_not_count(tmp_path):
    """A run that died before its first step has not finished because one before it in the folder had."""
    gone = {**this_process(), "process_started": 1}
    folder = folder_with(tmp_path, STARTED, steps(5, progress=1.0), STARTED, process=gone)

    assert state_at(folder) == ("died", "the process is gone")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (200_000, "2.3 days")],
)
def test_durations_are_short(seconds, text):
    """A duration has one unit."""
    assert seconds_text(seconds) == text


def test_preview_shows_the_whole_course(tmp_path):
    """Of a long journal a small part is read at first, in order, from its start to its end."""
    folder_with(tmp_path, STARTED, *(steps(number) for number in range(1, 10_001)))
    run = Run(tmp_path)
    seen = [record.event.step for record in run.glance()]

    assert 500 < len(seen) < 4000
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, 10_000)
    assert max(np.diff(seen)) < 10_000 / 40
    assert look(tmp_path, is_glance=True, now=1100.0).state[:2] == ("stalled", "no sign of life for 2 min")
    assert len(read(Run(tmp_path))) == 10_001


def test_glance_at_a_short_journal_is_all_of_it(tmp_path):
    """A short journal is read at once, and its state is known."""
    run = Run(folder_with(tmp_path, STARTED, steps(5)))

    assert [record.event.step for record in run.glance()] == [0, 5]
    assert run.lines.is_at_end


def test_run_is_found_by_name(tmp_path):
    """A run is named by its folder, by the folder of runs, by the beginning of its name, or is the newest."""
    for number, name in enumerate(["20260101-a", "20260102-b", "20260103-c"]):
        folder_with(tmp_path / name, STARTED)
        os.utime(tmp_path / name / "events.jsonl", (number, number))
    (tmp_path / "no-run").mkdir()

    assert find_run(None, tmp_path).name == "20260103-c"
    assert find_run(str(tmp_path), "nowhere").name == "20260103-c"
    assert find_run(str(tmp_path / "20260101-a"), "nowhere").name == "20260101-a"
    assert find_run("20260102", tmp_path).name == "20260102-b"
    assert [run.name for run in runs_in(tmp_path)] == ["20260103-c", "20260102-b", "20260101-a"]
    with pytest.raises(UnreadableRun, match=r"or one in .* \(20260103-c, 20260102-b, 20260101-a\), got 'x'"):
        find_run("x", tmp_path)
    with pytest.raises(UnreadableRun, match="got no run folder there"):
        find_run(None, tmp_path / "nowhere")

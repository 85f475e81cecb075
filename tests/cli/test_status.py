"""``status`` and ``ls``."""

import dataclasses
import json
import os
import time

import pytest

from learnit_r8 import events
from tests.cli.commands import GONE, SEVEN, printed
from tests.journal.run_folders import STARTED, folder_with, steps


def test_status_is_one_line(run, capsys):
    """`status` prints name, state, progress, loss and rate in one line."""
    assert printed(capsys, "status", run) == (
        4,
        [
            "it  died (the process is gone)  35.0%  epoch 4/100  step 350/1,000  "
            "loss 0.005714 (smoothed 0.006019)  lr 0.05"
        ],
    )


@pytest.mark.parametrize(("finished", "share"), [(True, "100.0%"), (False, "0.0%")])
def test_a_run_without_a_known_end_is_whole_once_it_has_finished(tmp_path, capsys, finished, share):
    """Over data of the user's own no budget may be given: "finished" is not beside 0 %."""
    started = dataclasses.replace(STARTED, total_steps=None)
    folder = folder_with(tmp_path, started, steps(5, progress=0.0), events.RunEnded(5, 9.0, finished), process=GONE)

    assert printed(capsys, "status", folder)[1][0].split("  ")[2] == share


@pytest.mark.parametrize(
    ("happened", "code"),
    [
        ([events.RunEnded(350, 9.0, True)], 0), ([events.RunEnded(350, 9.0, False)], 5),
        ([events.ProcessLeft(350, 9.0, "ValueError: x")], 4), ([], 4),
    ],
)  # fmt: skip
def test_exit_code_of_status_is_the_state(tmp_path, capsys, happened, code):
    """The exit code is 0 for a run that is well, and another one for each way in which it is not."""
    folder = folder_with(tmp_path, STARTED, steps(5), *happened, process=GONE)

    assert printed(capsys, "status", folder)[0] == code


def test_running_and_stalled_runs(tmp_path, capsys):
    """While it runs speed and time left are told; silence of a process that is there is a stall."""
    running = folder_with(tmp_path / "a", STARTED, *SEVEN, when=time.time())
    stalled = folder_with(tmp_path / "b", STARTED, *SEVEN, when=time.time() - 300)
    code, (line,) = printed(capsys, "status", running)

    assert code == 0
    assert line.endswith("lr 0.05  20 samples/s  left 5:25")
    assert printed(capsys, "status", stalled)[0] == 3


def test_status_as_json(run, capsys):
    """`status --json` is strict JSON, with null for what is not known."""

    def refuse(text):
        raise AssertionError(text)

    code, (line,) = printed(capsys, "status", run, "--json")
    facts = json.loads(line, parse_constant=refuse)

    assert (code, facts["state"], facts["step"], facts["seconds_left"]) == (4, "died", 350, None)
    assert facts["metrics"]["loss"] == 0.5


def test_ls_lists_runs(run, capsys):
    """`ls` has a line for every run, the newest first, and one for a run that cannot be read."""
    os.utime(run / "events.jsonl", (1, 1))
    folder_with(run.parent / "20260102-b", STARTED)
    code, lines = printed(capsys, "ls", run.parent)

    assert code == 0
    assert lines[0].split() == ["run", "state", "done", "step", "smoothed", "metric", "course", "written"]
    assert [line.split()[0] for line in lines[1:]] == ["20260102-b", "20260101-it"]
    assert lines[2].split()[1:5] == ["died", "35.0%", "350/1,000", "0.006019"]


def test_ls_names_a_run_that_cannot_be_read(run, capsys):
    """A damaged run costs its own line only, as text and as JSON."""
    bad = run.parent / "20260103-bad"
    bad.mkdir()
    (bad / "events.jsonl").symlink_to(run / "events.jsonl")
    _, lines = printed(capsys, "ls", run.parent)
    _, (text,) = printed(capsys, "ls", run.parent, "--json")

    assert sorted(line.split()[1] for line in lines[1:]) == ["died", "unreadable"]
    assert sum("error" in facts for facts in json.loads(text)) == 1

import re
import shutil
from pathlib import Path

import pytest

from learnit_r8 import events
from learnit_r8.cli import _parser
from learnit_r8.cli.demo import POISON_PROGRESS
from learnit_r8.journal.run import Run
from learnit_r8.journal.samples import sample_epochs
from tests.cli.commands import printed
from tests.terminals import Terminal


def test_demo_as_a_command(tmp_path, capsys, monkeypatch):
    """`demo` runs in plain lines without a terminal, and leaves nothing behind unless it is told to.

    Then there is a real run: every epoch, one refused loss, a recovery, and samples in its folder.
    """
    monkeypatch.chdir(tmp_path)
    assert printed(capsys, "demo", "--seconds", "0.01")[0] == 0
    assert list(tmp_path.iterdir()) == []
    _, lines = printed(capsys, "demo", "--seconds", "0.01", "--run-dir", "kept")
    kinds = [type(record.event) for record in Run(tmp_path / "kept").records()]

    assert lines[-1] == "now: learnit-r8 replay kept, or learnit-r8 report kept --open"
    assert kinds.count(events.BatchRefused) >= 1
    assert {events.IncidentEnded, events.RunEnded} <= set(kinds)
    assert sample_epochs(tmp_path / "kept")[-1] == 19


def test_demo_shows_its_accident_in_ten_seconds():
    """README promises that: the weights go bad within ten seconds of the default length."""
    options = _parser().parse_args(["demo"])

    assert POISON_PROGRESS * options.seconds <= 10


@pytest.mark.program
def test_demo_is_left_with_ctrl_c_and_can_be_seen_again(tmp_path):
    """Ctrl-C ends the demo without a traceback, and what it offers to replay is there."""
    code = "import sys; from learnit_r8.cli import main; sys.exit(main(['demo', '--seconds', '100']))"
    with Terminal(["-c", code], cwd=tmp_path) as terminal:
        terminal.wait_for("TRAINING")
        terminal.press("\x03")
        end = terminal.wait_for_end()
        folder = re.search(r"learnit-r8 replay (\S+)", terminal.after)[1]

    assert end == 130
    assert "Traceback" not in terminal.after
    assert Run(folder).name == "demo"
    shutil.rmtree(Path(folder).parent)

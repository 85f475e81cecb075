"""``learnit-r8 prove``: its words, its exit codes, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from learnit_r8.cli import main
from tests.cli.commands import ROOT


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to run in, and a folder for the copies."""
    (tmp_path / "project").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path


def test_a_command_that_does_not_train(here, capsys):
    """Nothing can be said of it: exit code 2, as text, as JSON and as a page."""
    words = ["--", sys.executable, "-c", "print('hello')"]

    assert main(["prove", "--report", "page.md", *words]) == 2
    assert capsys.readouterr().out.startswith("CANNOT SAY: no optimizer of torch made a step")
    assert main(["prove", "--json", *words]) == 2
    assert json.loads(capsys.readouterr().out)["code"] == 2
    assert (here / "project" / "page.md").read_text().startswith("# learnit-r8 prove\n\n**CANNOT SAY: no optimizer")


def test_a_proof_needs_a_command(here, capsys):
    """Without a command the command line is wrong."""
    assert main(["prove"]) == 2
    assert "command must be the words of a command, got []; give it after --." in capsys.readouterr().err


def test_a_place_that_is_not_there_is_no_difference(here, capsys):
    """What keeps the proof from beginning ends with 2, as 1 says that a training differs."""
    assert main(["prove", "--work", str(here / "nowhere"), "--", "python"]) == 2
    assert str(here / "nowhere") in capsys.readouterr().err


COMMAND = ["-m", "learnit_r8", "prove", "--work"]
CALL = [
    "-c",
    "import sys; from learnit_r8.testing import assert_resumes; assert_resumes(sys.argv[2:], work=sys.argv[1])",
]
FOREVER = "import os, time; print(os.getpid(), file=open('there', 'w'), flush=True); time.sleep(600)"


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc")
@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGINT, COMMAND), (signal.SIGINT, CALL), (signal.SIGTERM, CALL), (signal.SIGKILL, COMMAND)],
)
def test_whatever_ends_a_proof_nothing_stays_behind(here, number, words):
    """Ctrl-C (pressed twice, too), a signal that nobody hears, and kill -9: what was started ends, the copies go."""
    proof = subprocess.Popen(
        [sys.executable, *words, here / "work", sys.executable, "-c", FOREVER],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        # Who runs the tests in the background may have Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not (started := [each for each in (here / "work").glob("*/copy*/project/there") if each.stat().st_size]):
        assert proof.poll() is None
    child = int(started[0].read_text())
    proof.send_signal(number)
    proof.send_signal(number)

    said = proof.communicate(timeout=60)[1]
    assert ("interrupted; what was started has ended" in said) == (number == signal.SIGINT and words[0] == "-m")
    assert proof.returncode in (-number, 130)
    end = time.monotonic() + 60
    while list((here / "work").iterdir()) or os.path.exists(f"/proc/{child}"):
        assert time.monotonic() < end

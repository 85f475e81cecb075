"""``learnit-r8 prove``: its words, its exit codes, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys

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


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_behind(here, number):
    """Ctrl-C ends what was started, and removes the copies, pressed twice in a hurry, too."""
    code = "import os, time; print(os.getpid(), file=open('there', 'w'), flush=True); time.sleep(600)"
    proof = subprocess.Popen(
        [sys.executable, "-m", "learnit_r8", "prove", "--work", here / "work", "--", sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (started := [each for each in (here / "work").glob("*/copy*/project/there") if each.stat().st_size]):
        assert proof.poll() is None
    child = int(started[0].read_text())
    proof.send_signal(number)

    proof.send_signal(number)

    assert "interrupted; what was started has ended" in proof.communicate(timeout=60)[1]
    assert proof.returncode == 130
    assert list((here / "work").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)

"""The program that kills and cuts the power, at the size of an everyday check."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "benchmarks/durability.py", *arguments, "--skip-time"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(told, states):
    """Nothing was lost, and what the simulation must see it sees."""
    found = re.search(r"power cut: (\d+) states: 0 acknowledged", told)
    assert int(found[1]) >= states
    assert ": 0 acknowledged checkpoints lost, 0 unreadable, 0 manual repairs" in told
    assert len(re.findall(r"power cut without flushing .*: [1-9]\d* acknowledged checkpoints lost", told)) == 3


@pytest.mark.slow
def test_nothing_is_lost():
    """40 kills, every power cut of 110 saves: nothing is lost."""
    check(run("--kills", "40"), states=2000)


@pytest.mark.slow
def test_nothing_is_lost_in_ten_thousand_kills():
    """The same with 10,000 kills."""
    check(run("--kills", "10000"), states=2000)

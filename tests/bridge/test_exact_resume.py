"""Killed in the middle of a step and gone on with in another process, a run ends in the same weights, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bridge.resume_jobs import WAYS

ROOT = Path(__file__).parents[2]
NEEDS = {"tf.function": "tensorflow", "immutable loop": "numpy", "immutable steps": "numpy"}
pytestmark = pytest.mark.skipif(os.name != "posix", reason="kill -9")


def session(way, folder, *kill_at):
    """The digest of a session; None if it was killed."""
    command = [sys.executable, "-m", "tests.bridge.resume_jobs", way, str(folder), *map(str, kill_at)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.stdout.splitlines()[-1] if done.returncode == 0 else None


@pytest.mark.program
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way == "immutable loop" else pytest.mark.slow) for way in WAYS]
)
def test_a_killed_run_goes_on_exactly(way, tmp_path):
    """With dropout and batch normalisation; killed twice, in the first epoch and in a later one."""
    pytest.importorskip(NEEDS.get(way, "torch"))
    whole = session(way, tmp_path / "whole")

    assert session(way, tmp_path / "parts", 7) is None
    assert session(way, tmp_path / "parts", 29) is None
    assert session(way, tmp_path / "parts") == whole

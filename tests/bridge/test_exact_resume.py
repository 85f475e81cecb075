"""Killed in the middle of a step and gone on with in another process, a run ends in the same weights, to the bit."""

from __future__ import annotations

import os
import signal

import pytest

from tests.bridge.resume_jobs import WAYS
from tests.programs import ROOT, ended

NEEDS = {"tf.function": "tensorflow", "immutable loop": "numpy", "immutable steps": "numpy"}
pytestmark = pytest.mark.skipif(os.name != "posix", reason="kill -9")


def session(way, folder, *kill_at):
    """The digest of a session; None if it was killed."""
    status, printed, errors = ended(ROOT, "-m", "tests.bridge.resume_jobs", way, folder, *kill_at)
    assert status in (0, -signal.SIGKILL), errors
    return printed.splitlines()[-1] if status == 0 else None


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

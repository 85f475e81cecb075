"""Row 9: a run that was killed goes on as if it had not been."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from . import task
from .cells import rule
from .run import run

pytestmark = pytest.mark.program

ROOT = Path(__file__).parents[2]
STEPS = task.EPOCHS * task.STEPS
KILLS = {"30 %": [19], "60 %": [38], "end of an epoch": [47], "90 %": [58], "twice": [19, 25]}
"""The turns of the loop at which processes are killed, counted in each; then one runs to its end."""


def program(name, folder, kill_at=None):
    """A process that runs a column in a folder: what it returned."""
    command = [sys.executable, "-m", "tests.contract.job", name, str(folder), str(folder / "end.npz")]
    command += [] if kill_at is None else [str(kill_at)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == (-9 if kill_at is not None else 0), done.stderr[-3000:]


@rule()
def test_killed(column, request, tmp_path):
    """Killed in mid-epoch, at an epoch's end, twice: weights and optimizer are equal to the bit, and so the steps."""
    whole = run(column)
    expected = {**whole.weights, **{f"optimizer{at}": each for at, each in enumerate(whole.optimizer)}}
    wrong = {}
    for name, kills in KILLS.items():
        folder = tmp_path / name.replace(" ", "")
        folder.mkdir()
        for kill_at in [*kills, None]:
            program(request.node.callspec.params["column"], folder, kill_at)
        with np.load(folder / "end.npz") as end:
            differ = [each for each in expected if not np.array_equal(expected[each], end[each])]
            if differ or end["num_steps"] != STEPS:
                wrong[name] = f"{', '.join(differ) or 'nothing'} differs, {end['num_steps']} steps"

    assert wrong == {}

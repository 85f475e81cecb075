"""Row 9: a run that was killed goes on as if it had not been."""

import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest

from . import task
from .cells import rule

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = task.EPOCHS * task.STEPS
IN_MID_EPOCH = {"30 %": [19], "60 %": [38], "90 %": [58], "twice": [19, 25]}
BETWEEN_EPOCHS = {"once": [50], "twice": [18, 20]}
"""The turns of the loop at which processes are killed, counted in each; then one runs to its end."""


class Job:
    """A process that has imported a column's framework, and forks for each run.

    Args:
        name: Of the column.
        log: The file that what it prints goes to.
    """

    def __init__(self, name, log):
        self.log = log
        command = [sys.executable, "-m", "tests.contract.job", name]
        with log.open("w") as told:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=dict(os.environ), text=True, stdin=PIPE, stdout=PIPE, stderr=told
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(self, folder, every, kill_at=None):
        """Run the column in a folder, to the end or until it kills itself."""
        self.process.stdin.write(json.dumps([str(folder), str(folder / "end.npz"), every, kill_at]) + "\n")
        self.process.stdin.flush()
        ended = self.process.stdout.readline().strip()
        assert ended == ("0" if kill_at is None else "-9"), self.log.read_text()[-3000:]


def differences(name, kills, folder, every):
    """What differs after each of the ways to be killed."""
    wrong, ends = {}, {}
    with Job(name, folder / "told") as job:
        # What ran in this process before may have changed how its framework computes.
        for way, turns in {"": [], **kills}.items():
            own = folder / f"way {way}"
            own.mkdir()
            for kill_at in [*turns, None]:
                job.run(own, every, kill_at)
            with np.load(own / "end.npz") as end:
                ends[way] = dict(end)
    whole = ends.pop("")
    for way, end in ends.items():
        differ = [each for each in whole if not np.array_equal(whole[each], end[each])]
        if differ or end["num_steps"] != STEPS:
            wrong[way] = f"{', '.join(differ) or 'nothing'} differs, {end['num_steps']} steps"
    return wrong


@rule()
def test_killed_in_mid_epoch(column, request, tmp_path):
    """Killed in mid-epoch, also twice: weights and optimizer are equal to the bit, and the number of steps is right."""
    assert differences(request.node.callspec.params["column"], IN_MID_EPOCH, tmp_path, every=5) == {}


@rule()
def test_killed_between_epochs(column, request, tmp_path):
    """The same from a checkpoint of an epoch's end."""
    assert differences(request.node.callspec.params["column"], BETWEEN_EPOCHS, tmp_path, every=task.STEPS) == {}

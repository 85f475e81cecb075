"""Programs that tests start: in a folder of their own, with the package on their path."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def started(folder, *command):
    """A Python program that runs there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    # That of the tests would keep an example from setting the number of its devices.
    environment.pop("XLA_FLAGS", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=folder, env=environment, **pipes)


def printed_by(folder, *command, code=0):
    """What it prints; it must end with this code."""
    program = started(folder, *command)
    printed, error = program.communicate(timeout=300)
    assert program.returncode == code, error
    return printed

"""Programs that tests start: in a folder of their own, with the package on their path."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def started(folder, *command, **environment):
    """A Python program that runs there, with some more variables of its environment."""
    own = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    # That of the tests would keep an example from setting the number of its devices.
    own.pop("XLA_FLAGS", None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=folder, env={**own, **environment}, **pipes)


def ended(folder, *command, **environment):
    """The status that it ends with, what it prints, and its errors."""
    program = started(folder, *command, **environment)
    printed, error = program.communicate(timeout=900)
    return program.returncode, printed, error


def printed_by(folder, *command, code=0, **environment):
    """What it prints; it must end with this code."""
    status, printed, error = ended(folder, *command, **environment)
    assert status == code, printed[-3000:] + error[-3000:]
    return printed


def torchrun(folder, *command, size=2):
    """What a program prints that torchrun starts in so many processes."""
    return printed_by(folder, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}", *command)

"""Runs of a column in processes of their own, to be killed: a process that has imported the framework forks for each.

python -m tests.contract.job COLUMN < LINES, each of which is a JSON list: FOLDER, OUT, EVERY, KILL_AT; for each it
prints how its process has ended, less than 0 for a signal.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from .conftest import load
from .run import Case, run


def train(name, folder, out, every, kill_at):
    """One run, whose end is written to a file."""
    found = run(load(name), Case(folder=Path(folder), every=every, kill_at=kill_at))
    state = {**found.weights, **{f"optimizer{at}": each for at, each in enumerate(found.optimizer)}}
    np.savez(out, **state, num_steps=found.r8.global_step)


def main(name):
    # Only imported: what has begun to compute cannot be forked.
    load(name)
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            code = 1
            try:
                train(name, *json.loads(line))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])

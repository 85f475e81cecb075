"""One run of a column in a process of its own, to be killed.

python -m tests.contract.job COLUMN FOLDER OUT EVERY [KILL_AT]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from .conftest import load
from .run import Case, run


def main(name, folder, out, every, kill_at=None):
    case = Case(folder=Path(folder), every=int(every), kill_at=None if kill_at is None else int(kill_at))
    found = run(load(name), case)
    state = {**found.weights, **{f"optimizer{at}": each for at, each in enumerate(found.optimizer)}}
    np.savez(out, **state, num_steps=found.r8.global_step)


if __name__ == "__main__":
    main(*sys.argv[1:])

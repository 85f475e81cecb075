"""accelerate prepares the adapter's loader and saves its state, on one process and on two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[2]


def run(folder, *more, processes=1):
    command = [str(ROOT / "examples" / "accelerate_digits.py"), str(folder / "saved"), *more]
    if processes > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if "steps, weights" in line]


@pytest.mark.parametrize("processes", [1, 2])
def test_resumes_by_its_own_checkpoint(tmp_path, processes):
    """Saved by save_state in mid-epoch and resumed by load_state, weights and tables are those of a whole run."""
    whole = run(tmp_path, processes=processes)
    resumed = run(tmp_path, "load", processes=processes)

    assert len(whole) == processes
    assert set(whole) == set(resumed)
    assert whole[0].startswith("87 steps")

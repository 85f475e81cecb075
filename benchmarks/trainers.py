"""Killed at step k and resumed by the framework's checkpoint; a NaN in every position; the time of a step.

Weights and tables of the resumed run are compared bit by bit with those of a whole one, in `trainers_cells.py`; steps
are timed in `trainers_steps.py`. The digits, with dropout, on the CPU, seed 0 of torch. ``--quick`` does a part.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FRAMEWORKS = ("lightning", "transformers", "accelerate")


def cells(framework, ranks, options):
    """What all processes found, the least of each: ``{"resumed": {setting: (good, all)}, "healed": ...}``."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *launch, __file__, "--only", framework, "--folder", folder, *options]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{framework} on {ranks} processes: {done.stderr[-3000:]}")
        found = [json.loads((Path(folder) / f"{framework}-{rank}.json").read_text()) for rank in range(ranks)]
    return {kind: {name: min(each[kind][name] for each in found) for name in found[0][kind]} for kind in found[0]}


def main():
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a part of the grid")
    parser.add_argument("--only", choices=FRAMEWORKS, help="one framework")
    parser.add_argument("--no-times", action="store_true", help="the grid alone")
    parser.add_argument("--folder", type=Path, help="where a process that this program starts writes its counts")
    given = parser.parse_args()
    if given.folder is not None:
        from trainers_cells import count_cells

        count_cells(given.only, given.folder, is_quick=given.quick)
        return
    options = ["--quick"] if given.quick else []
    for framework in [given.only] if given.only else FRAMEWORKS:
        for ranks in [1] if given.quick else [1, 2]:
            found = cells(framework, ranks, options)
            for kind, settings in found.items():
                for setting, (good, count) in settings.items():
                    print(f"{framework}, {ranks} process(es), {setting}: {kind} {good} of {count}", flush=True)
    if not (given.no_times or given.quick):
        subprocess.run([sys.executable, str(HERE / "trainers_steps.py")], check=True)


if __name__ == "__main__":
    main()

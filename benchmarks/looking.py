"""What the commands cost that look at a run: the CPU time of whole processes, in turns.

python benchmarks/looking.py            ten rounds, a minute
python benchmarks/looking.py --quick    two
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

from overhead import processor

ROOT = Path(__file__).parent.parent
COMMANDS = {"status": ["RUN"], "ls": ["RUN"], "watch": ["--once", "RUN"], "compare": ["RUN", "RUN"]}
MUST = {"--help": 0.15, "status": 0.5}
"""Seconds."""


def commands(repeats: int) -> None:
    """The time of commands on a run that a demo has left."""
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        _time("-m", "learnit_r8", "demo", "--seconds", "2", "--run-dir", run)
        print(f"\nCommands, whole processes in turns, {repeats} rounds; Python and numpy alone beside them")
        print("             CPU time, median (lowest to highest)   wall time, best     must")
        kinds = {
            "python -c ''": ["-c", ""], "import numpy": ["-c", "import numpy"],
            "--help": ["-m", "learnit_r8", "--help"],
            **{name: ["-m", "learnit_r8", name, *rest] for name, rest in COMMANDS.items()},
        }  # fmt: skip
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
        for _ in range(repeats):
            for name, arguments in kinds.items():
                taken[name].append(_time(*(run if each == "RUN" else each for each in arguments)))
        for name, times in taken.items():
            cpu = sorted(1e3 * each for each, _ in times)
            spread = f"{statistics.median(cpu):>9.0f} ms ({cpu[0]:.0f} to {cpu[-1]:.0f})"
            must = f"{MUST[name]:.2f} s" if name in MUST else ""
            print(f"  {name:<14}{spread:<34}{1e3 * min(wall for _, wall in times):>9.0f} ms   {must:>9}")


def _time(*arguments: str) -> tuple[float, float]:
    """CPU time of a process with its children, and its wall time, in seconds."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    print(processor())
    commands(2 if parser.parse_args().quick else 10)


if __name__ == "__main__":
    main()

"""A million steps with an incident in every ten thousand: are memory, files and journal bounded?

A line of eight numbers is learned from 65,536 examples, in numpy, so that a step is hardly more than what R8 does; with
backups, checkpoints, a run folder and a loss for each sample. In turn a loss is NaN, the weights become NaN, they are
blown up, a loss is a thousand times too high, the rate is a thousand times too high for ten steps, the disk is full
when a checkpoint is written. Four times the run is closed before its end and resumed.

Printed at every tenth of the run: resident memory, the objects that Python's collector knows, threads, open files, all
files that were written with their bytes, bytes of the journal. At the end what happened, the records of the journal,
how far the weights are from the truth, and by how much each figure grew in the second half of the run, with the most
that it may. Ends with 1 if something grew by more, or nothing was learned.

    python benchmarks/endurance.py            a million steps, some minutes
    python benchmarks/endurance.py --quick    twenty thousand, an incident in every 250
"""

from __future__ import annotations

import argparse
import errno
import gc
import os
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from learnit_r8 import R8Scheduler, events

NUM_EXAMPLES, BATCH, RATE = 2**16, 8, 0.02
SESSIONS, LOOKS = 5, 10
INCIDENTS = ("loss NaN", "weights NaN", "weights x 1e4", "loss x 1000", "rate x 1000", "full disk")
GLITCH = 10

MOST = {"memory MB": 8.0, "objects": 5_000, "threads": 1, "open files": 4, "files": 16, "MB": 4.0, "journal MB": 2.0}
"""The most that each may grow by in the second half of the run. When the files of incidents and checkpoints reach their
limits depends on how fast the thread that writes is: 6 to 10 come in a short run's second half; a leak is 30."""


class Line:
    """The model: eight numbers, and what happens to them.

    Args:
        every: Steps from one incident to the next.
    """

    def __init__(self, every: int) -> None:
        rng = np.random.default_rng(0)
        self.truth, self.every = rng.normal(size=8), every
        self.inputs = rng.normal(size=(NUM_EXAMPLES, 8))
        self.targets = self.inputs @ self.truth + 0.1 * rng.normal(size=NUM_EXAMPLES)
        self.weights = np.zeros(8)
        self.struck: Counter[str] = Counter()
        self.fails = False
        self._next = every // 2

    def state(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def load(self, source: Any, from_ram: bool = False) -> None:
        self.weights = source["weights"] if from_ram else np.load(source)

    def save(self, state_dict: Any, filepath: str) -> None:
        if self.fails:
            self.fails = False
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), filepath)
        with open(filepath, "wb") as file:
            np.save(file, self.weights)

    def step(self, indices: Any, lr: float, step: int) -> tuple[Any, Any]:
        """The losses of a batch, with the incident of this step if one is due, and how the weights are to change."""
        incident = INCIDENTS[sum(self.struck.values()) % len(INCIDENTS)] if step >= self._next else ""
        if incident:
            self._next += self.every
            self.struck[incident] += 1
            self.fails = incident == "full disk"
            if incident.startswith("weights"):
                self.weights = self.weights * (np.nan if incident == "weights NaN" else 1e4)
        if self.struck["rate x 1000"] and step < self._next - self.every + GLITCH and self._is_last("rate x 1000"):
            lr *= 1000
        rows = self.inputs[indices]
        errors = rows @ self.weights - self.targets[indices]
        losses = errors * errors
        if incident == "loss NaN":
            losses[0] = np.nan
        elif incident == "loss x 1000":
            losses *= 1000
        return losses, lr * 2 / len(rows) * (errors @ rows)

    def _is_last(self, incident: str) -> bool:
        return INCIDENTS[(sum(self.struck.values()) - 1) % len(INCIDENTS)] == incident

    @property
    def distance(self) -> float:
        """How far the weights are from the truth, as a share of it."""
        return float(np.linalg.norm(self.weights - self.truth) / np.linalg.norm(self.truth))


class Counted:
    """A listener that counts what happens, and keeps nothing."""

    KINDS = (
        events.BatchRefused,
        events.RolledBack,
        events.CheckpointSaved,
        events.BackupTaken,
        events.Notice,
        events.IncidentEnded,
        events.GaveUp,
    )

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, event: Any) -> None:
        if isinstance(event, self.KINDS):
            self.counts[type(event).__name__] += 1


def size_of(path: Path) -> int | None:
    """Bytes of a file; None of what is none, or is gone by now."""
    try:
        return path.stat().st_size if path.is_file() else None
    except FileNotFoundError:
        return None


def look(folder: Path) -> dict[str, float]:
    """What may grow, now."""
    gc.collect()
    # Folders are put in place and cleared away meanwhile by the thread that writes checkpoints: `os.walk` passes over
    # one that is gone, which `Path.rglob` of Python 3.11 raises.
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    sizes = [size for path in paths if (size := size_of(path)) is not None]
    journal = folder / "run" / "events.jsonl"
    has_proc = Path("/proc/self").is_dir()
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if has_proc else 0
    return {
        "memory MB": pages * os.sysconf("SC_PAGESIZE") / 2**20 if has_proc else 0.0,
        "objects": len(gc.get_objects()),
        "threads": threading.active_count(),
        "open files": len(os.listdir("/proc/self/fd")) if has_proc else 0,
        "files": len(sizes),
        "MB": sum(sizes) / 2**20,
        "journal MB": journal.stat().st_size / 2**20 if journal.exists() else 0.0,
    }


def session(line: Line, folder: Path, num_steps: int, until: int, heard: Counted, looks: list[Any]) -> None:
    """Begin or resume the run, and train until a step."""
    r8 = R8Scheduler(
        NUM_EXAMPLES, batch_size=BATCH, num_steps=num_steps, initial_lr=RATE, resume="auto", run_dir=folder / "run",
        checkpoint_dir=folder / "checkpoints", checkpoint_every=max(500, num_steps // 100), listeners=[heard],
        state_callback=line.state, load_callback=line.load, save_callback=line.save,
        backup_every=min(2000, line.every // 5),
    )  # fmt: skip
    every = num_steps // LOOKS
    for _ in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            losses, change = line.step(indices, lr, r8.global_step)
            if r8.update_with_loss(losses):
                line.weights = line.weights - change
            if r8.global_step >= (len(looks) + 1) * every:
                looks.append((r8.global_step, look(folder)))
                print(
                    f"{r8.global_step:>10,}" + "".join(f"{value:>12,.1f}" for value in looks[-1][1].values()),
                    flush=True,
                )
            if r8.global_step >= until < num_steps:
                r8.close()
                return
    r8.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="twenty thousand steps")
    parser.add_argument("--steps", type=int, default=10**6)
    options = parser.parse_args()
    num_steps = 20_000 if options.quick else options.steps
    warnings.simplefilter("ignore")
    line, heard, looks = Line(num_steps // 80 if options.quick else 10_000), Counted(), []
    began, cpu = time.perf_counter(), time.process_time()
    print(f"{'step':>10}" + "".join(f"{name:>12}" for name in MOST), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(1, SESSIONS + 1):
            session(line, folder, num_steps, num_steps * number // SESSIONS, heard, looks)
        records = sum(1 for _ in (folder / "run" / "events.jsonl").open("rb"))
    print(f"\n{num_steps:,} steps, {SESSIONS} sessions: {time.perf_counter() - began:.0f} s, ", end="")
    print(f"{time.process_time() - cpu:.0f} s of CPU; {records:,} records in the journal; distance {line.distance:.4f}")
    print("incidents: " + ", ".join(f"{count} {name}" for name, count in line.struck.items()))
    print("heard: " + ", ".join(f"{count} {name}" for name, count in sorted(heard.counts.items())))
    first, last = looks[LOOKS // 2 - 1][1], looks[-1][1]
    too_much = [name for name, most in MOST.items() if last[name] - first[name] > most]
    for name, most in MOST.items():
        print(f"  {name:<11} grew by {last[name] - first[name]:>10,.1f} (most {most:,})")
    print("bounded" if not too_much else f"NOT bounded: {', '.join(too_much)}")
    return bool(too_much) or line.distance > 0.1


if __name__ == "__main__":
    sys.exit(main())

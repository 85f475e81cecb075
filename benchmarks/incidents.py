"""What becomes of whole trainings in which things go wrong, or nothing does: one table a group.

Each table has what must be beside what was measured: for the package, for plain training without it ("plain"), for
training that leaves bad batches out by hand ("oracle"), and, with ``--against``, for the package of another checkout.
Figures are means over runs with their standard error, or counts of runs. Below them are the scores of each setting, in
points: accuracy on data held out, or the share of variance explained.

    python benchmarks/incidents.py                       all groups, about half an hour on two cores
    python benchmarks/incidents.py clusters rates        these groups
    python benchmarks/incidents.py --runs 24             so many runs of each
    python benchmarks/incidents.py --quick               a few, under a minute
    python benchmarks/incidents.py --against ../other    another checkout beside this one
    python benchmarks/incidents.py --against ../other step-cost

What goes wrong is in `incident_faults.py` and `incident_poison.py`, the groups are in `incident_groups.py`, the figures
in `incident_figures.py`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from incident_figures import Record, Results
from incident_groups import GROUPS, Group
from incident_poison import Poison, run_poison
from incident_runs import ARMS
from overhead import processor

import learnit_r8
from learnit_r8 import R8Scheduler

STEP_COST = "step-cost"
COST_STEPS, COST_SIZES = 20_000, ((50_000, 32), (1_000_000, 256))
"""Steps of one measurement of what a good step costs, and the samples and batches that it is measured with."""


def run_one(job: tuple[str, Any]) -> Record:
    """One run, in a process of the pool."""
    arm, case = job
    warnings.simplefilter("ignore")
    with np.errstate(all="ignore"):
        return run_poison(case) if isinstance(case, Poison) else ARMS[arm](case)


def run_group(pool: Any, group: Group, cases: Sequence[Any], arms: Sequence[str]) -> dict[str, list[Record]]:
    """The records of all runs of a group, by arm."""
    jobs = [(arm, case) for arm in arms for case in cases]
    records = list(pool.imap(run_one, jobs, chunksize=2))
    return {arm: records[n * len(cases) : (n + 1) * len(cases)] for n, arm in enumerate(arms)}


def run_elsewhere(folder: Path, *arguments: str) -> Any:
    """Start this program with the package of another checkout."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, os.path.abspath(__file__), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def records_elsewhere(folder: Path, name: str, runs: int, jobs: int) -> list[Record]:
    """The package's records of a group, with the package of another checkout."""
    process = run_elsewhere(folder, name, "--runs", str(runs), "--jobs", str(jobs), "--records")
    answer = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"{folder} ended with {process.returncode} in group {name}.")
    records: list[Record] = json.loads(answer)
    return records


def print_group(group: Group, name: str, results: Results, seconds: dict[str, float]) -> None:
    """The group's table."""
    arms = [arm for arm in results.records if arm != "oracle"]
    seeds = sorted({case.seed for case in results.cases})
    spent = ", ".join(f"{arm} {value:.0f} s" for arm, value in seconds.items())
    print(f"\n{name}: {group.title}\n{len(results.cases)} runs, seeds {seeds[0]} to {seeds[-1]}; {spent}")
    for line in group.note.splitlines():
        print(line)
    rows = [["", "must", *arms]]
    for figure in group.figures:
        shown = figure.arms and ("against", *figure.arms)
        rows.append([figure.text, figure.must])
        rows[-1] += ["" if shown and arm not in shown else figure.measure(results, arm) for arm in arms]
    print_rows(rows)
    if any("score" in record for record in results.records["package"]):
        print_settings(results)


def print_settings(results: Results) -> None:
    """Mean score of each setting by arm, and what the package did."""
    arms = list(results.records)
    packages = [arm for arm in arms if arm in ("package", "against")]
    names = {"gave up": "gave up", "refused": "refused", "restores": "restores", "lost": "undone"}
    rows = [["  setting", "runs", *arms, *(f"{arm}: {text}" for arm in packages for text in names.values())]]
    settings = np.array([case.setting for case in results.cases])
    for setting in dict.fromkeys(sorted(settings)):
        chosen = settings == setting
        row = [f"  {setting}", str(int(chosen.sum()))]
        row += [f"{results.column(arm, 'score')[chosen].mean():.1f}" for arm in arms]
        row += [f"{results.column(arm, name)[chosen].mean():.2g}" for arm in packages for name in names]
        rows.append(row)
    print_rows(rows)


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def measure_step(size: int, batch_size: int) -> float:
    """CPU microseconds of this thread for a good step after the first epoch: to draw a batch and report its mean."""
    losses, first = (1.5 + 0.1 * np.sin(np.arange(1024))).tolist(), size // batch_size + 438
    r8 = R8Scheduler(size, batch_size=batch_size, num_steps=COST_STEPS + first, handle_signals=False)
    began, step = 0.0, 0
    for _ in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            if step == first:
                began = time.thread_time()
            r8.update_with_loss(losses[step & 1023])
            step += 1
    return 1e6 * (time.thread_time() - began) / COST_STEPS


def serve_steps() -> None:
    """Measure once for each line that comes in, with the samples and the batch size that it names."""
    for line in sys.stdin:
        print(measure_step(*map(int, line.split())), flush=True)


def print_step_cost(folders: dict[str, Path], times: int, size: int, batch_size: int) -> None:
    """The cost of a good step, the packages in turns."""
    servers = {name: run_elsewhere(folder, "--serve-steps") for name, folder in folders.items()}
    measured: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(times + 1):
        for name, server in servers.items():
            server.stdin.write(f"{size} {batch_size}\n")
            server.stdin.flush()
            measured[name].append(float(server.stdout.readline()))
    for server in servers.values():
        server.stdin.close()
        server.wait()
    sizes = f"N = {size:,}, B = {batch_size}"
    print(f"\n{STEP_COST}: a good step, CPU microseconds, {sizes}; {times} x {COST_STEPS} steps, in turns")
    rows = [["", "must", *measured], ["median", "+ .3" if len(folders) > 1 else ""], ["lowest, highest", ""]]
    for values in measured.values():
        kept = values[1:]
        rows[1].append(f"{statistics.median(kept):.2f}")
        rows[2].append(f"{min(kept):.2f}, {max(kept):.2f}")
    if len(measured) > 1:
        pairs = list(zip(*measured.values(), strict=True))[1:]
        rows.append(["median of the differences", "<= .3", f"{statistics.median(a - b for a, b in pairs):+.2f}", ""])
        rows.append(["median of the ratios", "", f"{statistics.median(a / b for a, b in pairs):.3f}", ""])
    print_rows(rows)


def read_options() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join([*GROUPS, STEP_COST]))
    parser.add_argument("--quick", action="store_true", help="a few runs of each group")
    parser.add_argument("--runs", type=int, help="runs of each group, in place of its own number")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, whose package runs too")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--records", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve-steps", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.groups) - {*GROUPS, STEP_COST}
    if unknown:
        parser.error(f"GROUP must be one of {', '.join([*GROUPS, STEP_COST])}, got {sorted(unknown)}.")
    if options.against is not None and not (options.against / "learnit_r8").is_dir():
        parser.error(f"--against must be a folder with the package, got {str(options.against)!r}.")
    return options


def main() -> None:
    options = read_options()
    if options.serve_steps:
        serve_steps()
        return
    against = options.against and options.against.resolve()
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        if options.records:
            (name,) = options.groups
            cases = GROUPS[name].cases(options.runs)
            print(json.dumps(run_group(pool, GROUPS[name], cases, ["package"])["package"]))
            return
        here = Path(learnit_r8.__file__).parents[1]
        print(f"{processor()}, {os.cpu_count()} cores, {options.jobs} processes; {here}", flush=True)
        if against:
            print(f"against: {against}", flush=True)
        for name, group in GROUPS.items():
            if options.groups and name not in options.groups:
                continue
            runs = options.runs or (min(group.runs, 2) if options.quick else group.runs)
            cases, records, seconds = group.cases(runs), dict[str, list[Record]](), dict[str, float]()
            for arm in group.arms:
                began = time.perf_counter()
                records |= run_group(pool, group, cases, [arm])
                seconds[arm] = time.perf_counter() - began
            if against:
                began = time.perf_counter()
                records["against"] = records_elsewhere(against, name, runs, options.jobs)
                seconds["against"] = time.perf_counter() - began
            print_group(group, name, Results(cases, records), seconds)
    if not options.groups or STEP_COST in options.groups:
        folders = {"package": here} | ({"against": against} if against else {})
        for size, batch_size in COST_SIZES:
            print_step_cost(folders, 2 if options.quick else 20, size, batch_size)


if __name__ == "__main__":
    main()

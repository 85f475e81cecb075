"""Transient faults in trainings with JAX and Keras: how many runs end within 10 % of the loss of the undisturbed run.

    python benchmarks/frameworks.py            4 seeds, one fault a run and two: eleven ways, about ten minutes
    python benchmarks/frameworks.py --quick    1 seed, one NaN a run, under a minute
    python benchmarks/frameworks.py --way "flax, nnx" --faults 2 --kinds rate --seeds 1    as one line of JSON

Faults: a batch of NaN, weights 30 times as large, a rate 1,000 times as high for five steps. The task is linear with
noise, 512 samples, 600 steps of 16. The first way is there to compare with: what fails there too is not the adapters'
fault. Ratios are of the mean squared error over all samples after the last step.
Must: 100 % of at least 120 runs with one fault.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from framework_faults import KINDS
from framework_ways import WAYS, measure

HEALED = 1.1
REFERENCE = "torch attach"


def in_process(way: str, num_faults: int, kinds: tuple[str, ...], seeds: range) -> list[dict[str, Any]]:
    """The ratios of one way, measured in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--faults", str(num_faults)]
    command += ["--kinds", *kinds, "--seeds", *map(str, seeds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results


def show(way: str, results: list[dict[str, Any]], kinds: tuple[str, ...]) -> tuple[int, int]:
    """Print the line of a way; the runs that healed, and how many there were."""
    cells, failed = [], []
    for kind in kinds:
        ratios = [each["ratio"] for each in results if each["kind"] == kind]
        cells.append(f"{sum(ratio <= HEALED for ratio in ratios):3} of {len(ratios)}")
        failed += [
            f"{kind}, seed {each['seed']}: {each['ratio']:.3g}x"
            for each in results
            if each["kind"] == kind and not each["ratio"] <= HEALED
        ]
    print(f"  {way:24}" + "".join(f"{cell:>12}" for cell in cells) + ("   " + "; ".join(failed)), flush=True)
    return len(results) - len(failed), len(results)


def table(num_faults: int, kinds: tuple[str, ...], seeds: range, workers: int) -> None:
    """Print the lines of all ways, with so many faults a run."""
    print(f"\n{num_faults} fault{'s' if num_faults > 1 else ''} a run: healed to within 10 %")
    print(f"  {'':24}" + "".join(f"{kind:>12}" for kind in kinds))
    healed = count = 0
    with ThreadPoolExecutor(workers) as pool:
        runs = pool.map(lambda way: in_process(way, num_faults, kinds, seeds), WAYS)
        for way, results in zip(WAYS, runs, strict=True):
            good, total = show(way, results, kinds)
            if way != REFERENCE:
                healed, count = healed + good, count + total
    must = "   must: all of at least 120" if num_faults == 1 else ""
    print(f"  the adapters together: {healed} of {count} ({math.floor(1000 * healed / count) / 10} %){must}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and one kind of fault, under a minute")
    parser.add_argument("--way", choices=list(WAYS), help="only this one, in this process")
    parser.add_argument("--faults", type=int, choices=(1, 2), default=1, help="in a run of --way")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of faults of --way")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of --way")
    given = parser.parse_args()
    if given.way is not None:
        print(json.dumps(measure(given.way, given.faults, given.kinds, given.seeds)))
        return
    quick = given.quick
    workers = min(4, os.cpu_count() or 1)
    kinds, seeds = (KINDS[:1], range(1)) if quick else (KINDS, range(4))
    print(f"seeds {seeds.start} to {seeds.stop - 1}, {workers} processes")
    for num_faults in (1,) if quick else (1, 2):
        table(num_faults, kinds, seeds, workers)


if __name__ == "__main__":
    main()

"""What training waits for and what memory it takes: tables, checkpoints and first epochs, up to N = 1e8.

How long a table takes to make, in time of the processor and of the wall; how long each of the first three checkpoints
stops the training; the longest step of the first epoch in wall time, with nothing between the steps and with a
millisecond. What a step of the loop costs, beside torch's sampler, is in loop_step.py; questions to a large table, and
incidents with one, in large.py.

    python benchmarks/overhead.py              all of it, some minutes and 4 GB of memory and disk
    python benchmarks/overhead.py --large 0    up to N = 1e7
    python benchmarks/overhead.py --quick      the smallest sizes, under a minute
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from learnit_r8 import R8Scheduler, SampleTable

LOSSES = [1.5 + 0.1 * math.sin(number) for number in range(1024)]
"""Losses of batches, over and over."""

FIRST_STEPS = 20_000
"""Steps of a first epoch that are looked at: beyond, all memory is ready."""


def processor() -> str:
    """Name of the processor, family and model where the system tells them."""
    try:
        with open("/proc/cpuinfo") as file:
            about = dict(
                line.strip().split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line
            )
        facts = {name.strip(): value.strip() for name, value in about.items()}
        return f"{facts['model name']} (family {facts['cpu family']}, model {facts['model']})"
    except (OSError, KeyError, ValueError):
        return platform.processor() or platform.machine()


def timed(epoch: Callable[[], None]) -> tuple[float, float]:
    """CPU and wall seconds."""
    wall, cpu = time.perf_counter(), time.thread_time()
    epoch()
    return time.thread_time() - cpu, time.perf_counter() - wall


def first_epoch(size: int, batch_size: int, seconds: float) -> tuple[float, float, float]:
    """Wall milliseconds of a new run: the constructor and the first batch, the longest step after it, and the median.

    A step is what the scheduler does between two trainings: report and draw.

    Args:
        size: N.
        batch_size: B.
        seconds: What training on a batch takes.
    """
    began = time.perf_counter()
    r8 = R8Scheduler(size, batch_size=batch_size, num_epochs=2)
    next(r8.epoch_iterator())
    steps = []
    for number, _ in enumerate(r8.batch_iterator()):
        steps.append(time.perf_counter() - began)
        if number == FIRST_STEPS or (seconds and number * seconds > 10):
            break
        if seconds:
            time.sleep(seconds)
        began = time.perf_counter()
        r8.update_with_loss(LOSSES[number & 1023])
    return steps[0] * 1e3, max(steps[1:]) * 1e3, statistics.median(steps) * 1e3


def print_first_epochs(sizes: list[int], repeats: int) -> None:
    """The longest step of a first epoch, of several runs, and the spread."""
    print(
        f"\n{'first epoch, B = 256':<30}{'first ms':>10}{'longest step ms':>17}{'of the runs':>20}"
        f"{'median us':>11}  must / aim"
    )
    for size in sizes:
        for seconds in (0.0, 0.001):
            results = [first_epoch(size, 256, seconds) for _ in range(repeats)]
            first, longest, usual = (statistics.median(result[place] for result in results) for place in range(3))
            runs = f"{min(result[1] for result in results):.1f} to {max(result[1] for result in results):.1f}"
            goal = {10**7: "10 / 2", 10**8: "20 / 4"}.get(size, "")
            name = f"N = {size:,}, " + ("steps of 1 ms" if seconds else "bare")
            print(f"  {name:<30}{first:10.2f}{longest:17.2f}{runs:>20}{usual * 1e3:11.1f}  {goal}".rstrip(), flush=True)


def construction(size: int, repeats: int) -> tuple[float, float]:
    """CPU and wall seconds to make a table: medians."""
    times = [timed(lambda: SampleTable(size, batch_size=256)) for _ in range(repeats)]  # type: ignore[arg-type,return-value]
    return statistics.median(cpu for cpu, _ in times), statistics.median(wall for _, wall in times)


def checkpoint_stops(size: int, due: int = 300) -> tuple[float, float, float]:
    """CPU milliseconds that each of three checkpoints stops the training, first, second and third."""
    stops: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        r8 = R8Scheduler(size, batch_size=256, num_epochs=2, checkpoint_dir=folder, checkpoint_every=due)
        while len(stops) < 3:
            began = time.thread_time()
            ticket = r8.draw()
            if r8.global_step and not r8.global_step % due:
                stops.append((time.thread_time() - began) * 1e3)
                r8.host.persistence.saver.wait()  # type: ignore[union-attr]
            r8.report(ticket, LOSSES[r8.global_step & 1023])
    return stops[0], stops[1], stops[2]


def print_memory_costs(sizes: list[int]) -> None:
    """What it costs to make a table and to copy it for a checkpoint."""
    print(
        "\nmaking a table, and the stop by its first three checkpoints (must .3 s per 1e7, 15 ms per 1e6, at most 1 s)"
    )
    for size in sizes:
        cpu, wall = construction(size, 5)
        stops = ", ".join(f"{stop:.1f}" for stop in checkpoint_stops(size))
        print(f"  N = {size:,}: {cpu:.3f} s of CPU ({wall:.3f} s); {stops} ms of CPU", flush=True)


def beside_the_table(size: int, batch_size: int) -> float:
    """Peak of everything beside the table, over two epochs, in megabytes."""
    tracemalloc.start()
    r8 = R8Scheduler(size, batch_size=batch_size, num_epochs=2, handle_signals=False)
    for _ in r8.epoch_iterator():
        for number, _ in enumerate(r8.batch_iterator()):
            r8.update_with_loss(LOSSES[number & 1023])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (peak - 16 * size) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest size only")
    parser.add_argument("--large", type=int, default=10**8, help="samples of the largest table; 0 for none")
    options = parser.parse_args()
    print(f"{processor()}, numpy {np.__version__}, Python {platform.python_version()}", flush=True)
    beyond = [options.large] if options.large else []
    print_memory_costs([10**6] if options.quick else [10**6, 10**7, *beyond])
    print_first_epochs([10**6] if options.quick else [10**7, *beyond], 3)
    size = 50_000 if options.quick else 10**6
    print(f"\nmemory beside the 16 bytes a sample, N = {size:,}, B = 32: {beside_the_table(size, 32):.2f} MB (must 5)")


if __name__ == "__main__":
    main()

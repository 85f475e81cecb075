"""What drawing and reporting costs, beside torch's samplers and a bare numpy shuffle.

Every repetition runs all rows one after the other in this process: one epoch unmeasured, so that a row does not pay
for the caches and the heap as the row before left them, and one epoch measured; the table shows medians.
"CPU" is the time of this thread, which other programs on the machine disturb least. "draw + report" is the core as an
adapter calls it (`Plan.draw`, `SampleTable.observe`, `Plan.report`), "public loop" is `batch_iterator` and
`update_with_loss` with everything on but listeners. Peers draw only: they have nothing to report to.

    python benchmarks/overhead.py            all of it, about fifteen minutes
    python benchmarks/overhead.py --quick    the smallest size, a few seconds
"""

from __future__ import annotations

import argparse
import collections
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, WeightedRandomSampler

from learnit_r8 import R8Scheduler, SampleTable
from learnit_r8.policies import get_policy
from learnit_r8.sampling.permutation import raw_words
from learnit_r8.sampling.plan import Plan
from learnit_r8.table.losses import EXACT, WHOLE_BATCH

BASE = "torch BatchSampler(RandomSampler)"
MUST = {
    (50_000, 32): (0.70, 0.36), (50_000, 256): (0.60, 0.36), (50_000, 2048): (0.50, 0.24),
    (1_000_000, 32): (0.55, 0.28), (1_000_000, 256): (0.42, 0.24), (1_000_000, 2048): (0.40, 0.20),
    (10_000_000, 32): (0.45, 0.23), (10_000_000, 256): (0.40, 0.18),
}  # fmt: skip
"""Ratio of draw + report to the base in CPU time: must, aim."""


def exhaust(batches: Iterable[object]) -> None:
    collections.deque(batches, maxlen=0)


def packed_sort_shuffle(size: int, batch_size: int, key: int) -> Iterator[np.ndarray]:
    """The floor: a shuffle by sorting 64-bit words of 32 random bits and the index, handed out in slices."""
    words = raw_words([key], size) >> np.uint64(32) << np.uint64(32) | np.arange(size, dtype=np.uint64)
    words.sort()
    order = (words & np.uint64(2**32 - 1)).astype(np.int64)
    for start in range(0, size, batch_size):
        yield order[start : start + batch_size]


class Core:
    """Whole epochs of draw + report, one at each call."""

    def __init__(self, size: int, batch_size: int, *, exact: bool, as_lists: bool = False) -> None:
        self.table = SampleTable(size, batch_size=batch_size)
        self.table.part_size = EXACT if exact else WHOLE_BATCH
        self.plan = Plan(self.table, policy=get_policy("balanced"))
        self.losses = np.random.default_rng(0).random(batch_size) + 0.5
        self.exact = exact
        self.as_lists = as_lists
        self.epoch = -1
        self()

    def __call__(self) -> None:
        plan, table, losses = self.plan, self.table, self.losses
        self.epoch += 1
        plan.start_pass(self.epoch, 0.0)
        for _ in range(plan.steps_per_pass):
            batch = plan.draw()
            if self.as_lists:
                batch.indices.tolist()
            trend = table.observe(1.5, 1.5)
            plan.report(batch, losses[: len(batch.indices)] if self.exact else 1.5, trend)
        plan.hand_over()


class PublicLoop:
    """Whole epochs of the loop a user writes, one at each call."""

    def __init__(self, size: int, batch_size: int, *, epochs: int) -> None:
        self.r8 = R8Scheduler(size, batch_size=batch_size, num_epochs=epochs)
        self.epochs = self.r8.epoch_iterator()
        self()

    def __call__(self) -> None:
        next(self.epochs)
        for _ in self.r8.batch_iterator():
            self.r8.update_with_loss(1.5)


def rows(size: int, batch_size: int, repeats: int) -> dict[str, Callable[[], None]]:
    """Name and one epoch of everything measured at a size."""
    data = range(size)
    weights = torch.rand(size)
    keys = iter(range(10**6))
    alone = DistributedSampler(data, num_replicas=1, rank=0)  # type: ignore[arg-type]
    measured: dict[str, Callable[[], None]] = {
        BASE: lambda: exhaust(BatchSampler(RandomSampler(data), batch_size, False)),
        "ours, draw + report of means": Core(size, batch_size, exact=False),
        "ours, draw + report of vectors": Core(size, batch_size, exact=True),
        "ours, the same of means, as lists": Core(size, batch_size, exact=False, as_lists=True),
        "ours, public loop": PublicLoop(size, batch_size, epochs=2 * repeats + 2),
        "torch BatchSampler(DistributedSampler)": lambda: exhaust(BatchSampler(alone, batch_size, False)),
        "numpy packed-sort shuffle (floor)": lambda: exhaust(packed_sort_shuffle(size, batch_size, next(keys))),
    }
    # torch.multinomial, behind this sampler, refuses more weights than this.
    if size <= 2**24:
        measured["torch BatchSampler(WeightedRandomSampler)"] = lambda: exhaust(
            BatchSampler(WeightedRandomSampler(weights, size), batch_size, False)  # type: ignore[arg-type]
        )
    return measured


def timed(epoch: Callable[[], None]) -> tuple[float, float]:
    """CPU and wall seconds."""
    wall, cpu = time.perf_counter(), time.thread_time()
    epoch()
    return time.thread_time() - cpu, time.perf_counter() - wall


def measure(size: int, batch_size: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Median CPU and wall seconds an epoch, by row."""
    measured = rows(size, batch_size, repeats)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in measured}
    for _ in range(repeats):
        for name, epoch in measured.items():
            epoch()
            times[name].append(timed(epoch))
    return {
        name: (statistics.median(cpu for cpu, _ in all_times), statistics.median(wall for _, wall in all_times))
        for name, all_times in times.items()
    }


def print_epochs(sizes: list[int], batch_sizes: list[int], repeats: int) -> dict[tuple[int, int], float]:
    """The main table; microseconds a step of ours, by size."""
    steps_cost = {}
    print(f"{'one epoch':<44}{'CPU ms':>9}{'ratio':>7}{'wall':>7}{'ns/sample':>11}{'us/step':>9}  must / aim")
    for size in sizes:
        for batch_size in batch_sizes:
            result = measure(size, batch_size, repeats)
            base_cpu, base_wall = result[BASE]
            print(f"N = {size:,}, B = {batch_size}")
            for name, (cpu, wall) in result.items():
                steps = -(-size // batch_size)
                goal = ""
                if name == "ours, draw + report of means":
                    steps_cost[size, batch_size] = cpu / steps * 1e6
                    goal = " / ".join(f"{value:.2f}" for value in MUST.get((size, batch_size), ()))
                if name == "ours, public loop" and batch_size == 32:
                    goal = "10 us / 5 us"
                print(
                    f"  {name:<42}{cpu * 1e3:9.2f}{cpu / base_cpu:7.2f}{wall / base_wall:7.2f}"
                    f"{cpu / size * 1e9:11.1f}{cpu / steps * 1e6:9.2f}  {goal}".rstrip()
                )
    return steps_cost


def first_batch(size: int, repeats: int) -> tuple[float, float]:
    """Median wall milliseconds from the constructor to the first batch: ours, torch's."""

    def ours() -> None:
        R8Scheduler(size, batch_size=32, num_epochs=1).draw()

    def peer() -> None:
        next(iter(BatchSampler(RandomSampler(range(size)), 32, False)))

    times = [(timed(ours)[1], timed(peer)[1]) for _ in range(repeats)]
    return statistics.median(t[0] for t in times) * 1e3, statistics.median(t[1] for t in times) * 1e3


def worst_step(size: int, batch_size: int, repeats: int) -> float:
    """Median over epochs of the longest draw + report, in milliseconds of CPU."""
    core = Core(size, batch_size, exact=False)
    plan, table = core.plan, core.table
    worst = []
    for _ in range(repeats):
        core.epoch += 1
        plan.start_pass(core.epoch, 0.0)
        longest = 0.0
        for _ in range(plan.steps_per_pass):
            began = time.thread_time()
            batch = plan.draw()
            plan.report(batch, 1.5, table.observe(1.5, 1.5))
            longest = max(longest, time.thread_time() - began)
        worst.append(longest)
    return statistics.median(worst) * 1e3


def memory(size: int, batch_size: int) -> float:
    """Peak of everything beside the table, over two epochs, in megabytes."""
    tracemalloc.start()
    core = Core(size, batch_size, exact=True)
    core()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (peak - 16 * size) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest size only")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 1_000_000, 10_000_000])
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 256, 2048])
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [50_000] if options.quick else options.sizes
    repeats = 3 if options.quick else options.repeats
    steps_cost = print_epochs(sizes, options.batches, repeats)
    print(f"\n{'N':>12}{'first batch ms':>16}{'torch':>9}{'worst step ms, B=32':>21}{'B=512':>8}{'memory MB':>11}")
    for size in sizes:
        ours, peer = first_batch(size, repeats)
        worst = [worst_step(size, batch_size, min(repeats, 3) if size > 10**6 else repeats) for batch_size in (32, 512)]
        beside = memory(min(size, 10**6), 32)
        print(f"{size:12,}{ours:16.2f}{peer:9.2f}{worst[0]:21.2f}{worst[1]:8.2f}{beside:11.2f}")
    print("must: first batch 5 ms (aim 2) at N = 1e7; worst step 2 ms (aim 0.6)")
    print("memory: the peak beside the table's 16 bytes a sample (at N = 1e6 for larger N); must: 5 MB")
    small, large = (50_000, 256), (10_000_000, 256)
    if small in steps_cost and large in steps_cost:
        print(f"step at N = 1e7 over N = 5e4, B = 256: {steps_cost[large] / steps_cost[small]:.2f} (must 2.5, aim 1.5)")


if __name__ == "__main__":
    main()

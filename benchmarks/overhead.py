"""What drawing and reporting costs, beside torch's samplers and a bare numpy shuffle.

Every repetition runs all rows one after the other in this process: one epoch unmeasured, so that a row does not pay
for the caches and the heap as the row before left them, and one epoch measured; the table shows medians.
"CPU" is the time of this thread, which other programs on the machine disturb least. "draw + report" is the core as an
adapter calls it (`next`, `observe` of the table, `report`), "public loop" is `batch_iterator` and `update_with_loss`
with everything on but listeners. Peers draw only: they have nothing to report to. Losses differ from
batch to batch; with equal ones the guard would never get beyond its first thresholds.

Then what it takes to make a table, and how long a checkpoint stops the training; in wall time the longest step of the
first epoch, with nothing between the steps and with a millisecond, up to N = 1e8, and what `quartiles()` takes there;
and which part of a step takes how much of it.

    python benchmarks/overhead.py                      all of it, about twenty minutes and 4 GB of memory and disk
    python benchmarks/overhead.py --quick              the smallest sizes, under a minute
    python benchmarks/overhead.py --waits --large 0    tables, checkpoints and first epochs alone, up to N = 1e7
"""

from __future__ import annotations

import argparse
import collections
import math
import os
import platform
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, WeightedRandomSampler

from learnit_r8 import R8Scheduler, SampleTable, SpikeGuard
from learnit_r8.policies import get_policy
from learnit_r8.sampling.permutation import raw_words
from learnit_r8.sampling.planned import PlannedBatches
from learnit_r8.table.losses import EXACT, WHOLE_BATCH, read_loss

BASE = "torch BatchSampler(RandomSampler)"
MUST = {
    (50_000, 32): (0.70, 0.36), (50_000, 256): (0.60, 0.36), (50_000, 2048): (0.50, 0.24),
    (1_000_000, 32): (0.55, 0.28), (1_000_000, 256): (0.42, 0.24), (1_000_000, 2048): (0.40, 0.20),
    (10_000_000, 32): (0.45, 0.23), (10_000_000, 256): (0.40, 0.18),
}  # fmt: skip
"""Ratio of draw + report to the base in CPU time: must, aim."""


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
        self.table.storage.part_size = EXACT if exact else WHOLE_BATCH
        self.plan = PlannedBatches(self.table, policy=get_policy("balanced"))
        self.losses = np.random.default_rng(0).random(batch_size) + 0.5
        self.exact = exact
        self.as_lists = as_lists
        self.epoch = -1
        self()

    def __call__(self) -> None:
        plan, table, losses = self.plan, self.table, self.losses
        self.epoch += 1
        plan.start_pass(self.epoch, 0.0)
        for step in range(plan.steps_per_pass):
            batch = plan.next()
            if self.as_lists:
                batch.indices.tolist()
            loss = LOSSES[step & 1023]
            trend = table.learner.observe(loss, loss)
            plan.report(batch.chunk, batch.slot, losses[: len(batch.indices)] if self.exact else loss, trend)
        plan.hand_over()


class PublicLoop:
    """Whole epochs of the loop a user writes, one at each call."""

    def __init__(self, size: int, batch_size: int, *, epochs: int) -> None:
        self.r8 = R8Scheduler(size, batch_size=batch_size, num_epochs=epochs)
        self.epochs = self.r8.epoch_iterator()
        self()

    def __call__(self) -> None:
        next(self.epochs)
        r8 = self.r8
        for step, _ in enumerate(r8.batch_iterator()):
            r8.update_with_loss(LOSSES[step & 1023])


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
            batch = plan.next()
            plan.report(batch.chunk, batch.slot, 1.5, table.learner.observe(1.5, 1.5))
            longest = max(longest, time.thread_time() - began)
        worst.append(longest)
    return statistics.median(worst) * 1e3


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


def table_of(size: int) -> SampleTable:
    """A table whose samples were all used three times."""
    table = SampleTable(size, batch_size=256)
    table.storage.part_size = EXACT
    losses = np.random.default_rng(0).gamma(1, 1, 10**6).astype(np.float32)
    known = table.storage.records.take(np.arange(10**6))
    known["usage_count"] = 3
    for field in ("loss", "last", "mean"):
        known[field] = losses
    for start in range(0, size, 10**6):
        part = np.arange(start, min(start + 10**6, size))
        table.storage.records.put(part, known[: len(part)].copy())
    table.storage.num_seen = size
    return table


def quartile_seconds(size: int) -> tuple[float, float]:
    """Seconds of `quartiles()`, and how far its ends are from where they belong, as a share of N in rank."""
    table = table_of(size)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        quarters = table.quartiles()
        took.append(time.perf_counter() - began)
    loss = table.loss[: 10**6]
    ranks = [float(np.mean(loss < quarter.low)) for quarter in quarters]
    return statistics.median(took), max(abs(rank - place / 4) for place, rank in enumerate(ranks))


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


def print_large(size: int) -> None:
    """Rows that only a large table has."""
    seconds, rank = quartile_seconds(size)
    print(
        f"\nN = {size:,}: quartiles() {seconds:.3f} s, ends within {rank:.3%} of N in rank (must .5 s, .1 %; aim .1 s)"
    )


def shares(size: int, batch_size: int, repeats: int) -> dict[str, float]:
    """Microseconds a step of the public loop and of its parts, each run alone: medians of epochs."""
    core, loop = Core(size, batch_size, exact=False), PublicLoop(size, batch_size, epochs=4 * repeats + 4)
    steps = -(-size // batch_size)
    guard, memory = SpikeGuard(), SpikeGuard().begin()

    def judging() -> None:
        state = memory
        for step in range(steps):
            loss = LOSSES[step & 1023]
            state, _ = guard.judge(state, loss, 1.5, 1.5, 0.01)

    def reading() -> None:
        for step in range(steps):
            read_loss(LOSSES[step & 1023], batch_size)

    def rating() -> None:
        schedule, controller = loop.r8.host.rates.scheduled, loop.r8.controller
        for step in range(steps):
            controller.lr(schedule(step / steps))

    def telling() -> None:
        next(listened.epochs)
        r8 = listened.r8
        for step, _ in enumerate(r8.batch_iterator()):
            r8.update_with_loss(LOSSES[step & 1023])

    listened = PublicLoop(size, batch_size, epochs=4 * repeats + 4)
    listened.r8.host.announcer.add(lambda event: None)
    parts = {
        "public loop": loop, "draw + report": core, "guard": judging, "reading the loss": reading,
        "rate, schedule and ceiling": rating, "public loop with a listener": telling,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats):
        for name, part in parts.items():
            times[name].append(timed(part)[0] / steps * 1e6)
    return {name: statistics.median(all_times) for name, all_times in times.items()}


def print_shares(size: int, batch_size: int, repeats: int) -> None:
    """Where a step of the public loop goes."""
    found = shares(size, batch_size, repeats)
    whole = found["public loop"]
    events_cost = found["public loop with a listener"] - whole
    named = {name: found[name] for name in ("draw + report", "guard", "reading the loss", "rate, schedule and ceiling")}
    named["order of the parts, marks, counters"] = whole - sum(named.values())
    print(f"\npublic loop, N = {size:,}, B = {batch_size}: {whole:.2f} us a step, of CPU, in a hot loop")
    for name, cost in named.items():
        print(f"  {name:<36}{cost:7.2f} us{cost / whole:7.0%}")
    print(f"  and with a listener{'':<17}{events_cost:7.2f} us more")


def memory(size: int, batch_size: int) -> float:
    """Peak of everything beside the table, over two epochs, in megabytes."""
    tracemalloc.start()
    core = Core(size, batch_size, exact=True)
    core()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (peak - 16 * size) / 1e6


def print_steps(sizes: list[int], batch_sizes: list[int], repeats: int, *, quick: bool) -> None:
    """What a step costs, and which part of it takes how much."""
    steps_cost = print_epochs(sizes, batch_sizes, repeats)
    print(f"\n{'N':>12}{'first batch ms':>16}{'torch':>9}{'worst step ms, B=32':>21}{'B=512':>8}{'memory MB':>11}")
    for size in sizes:
        ours, peer = first_batch(size, repeats)
        worst = [worst_step(size, batch_size, min(repeats, 3) if size > 10**6 else repeats) for batch_size in (32, 512)]
        beside = memory(min(size, 10**6), 32)
        print(f"{size:12,}{ours:16.2f}{peer:9.2f}{worst[0]:21.2f}{worst[1]:8.2f}{beside:11.2f}")
    print("must: first batch 5 ms (aim 2) at N = 1e7; worst step 2 ms (aim 0.6)")
    print("memory: the peak beside the table's 16 bytes a sample (at N = 1e6 for larger N); must: 5 MB")
    print_shares(50_000, 32, repeats)
    if not quick:
        print_shares(1_000_000, 256, repeats)
    small, large = (50_000, 256), (10_000_000, 256)
    if small in steps_cost and large in steps_cost:
        print(f"step at N = 1e7 over N = 5e4, B = 256: {steps_cost[large] / steps_cost[small]:.2f} (must 2.5, aim 1.5)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest size only")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 1_000_000, 10_000_000])
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 256, 2048])
    parser.add_argument("--large", type=int, default=10**8, help="samples of the largest table; 0 for none")
    parser.add_argument("--waits", action="store_true", help="only what training waits for: tables, checkpoints, ...")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, numpy {np.__version__}, Python {platform.python_version()}", flush=True)
    repeats = 3 if options.quick else options.repeats
    if not options.waits:
        print_steps([50_000] if options.quick else options.sizes, options.batches, repeats, quick=options.quick)
    beyond = [options.large] if options.large else []
    print_memory_costs([10**6] if options.quick else [10**6, 10**7, *beyond])
    print_first_epochs([10**6] if options.quick else [10**7, *beyond], min(repeats, 3))
    if options.large and not options.quick:
        print_large(options.large)


if __name__ == "__main__":
    main()

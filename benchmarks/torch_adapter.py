"""What the PyTorch adapter costs: loaders, training steps and backups against plain ones and two peers.

    python benchmarks/torch_adapter.py [--quick]

The sides of a ratio take turns in one process, and which goes first alternates; a ratio is that of one turn, and
printed are the median with the lowest and highest. Times are processor time of this process (for steps, of the thread
that trains), which other programs disturb less, but wall time where there are workers or a GPU. What is there at the
start is kept out of the garbage collector (gc.freeze): a full collection takes as long as an epoch, and falls on
whoever is next; and the C library keeps the heap, as what it gives back depends on chance and is charged to whoever
comes next. One thread.

Loaders hand out rows of a tensor [N, 16], B = 256, an epoch each turn. Their time is that spent in them, planning and
drawing the batches included; nothing is trained, but every loss is reported, and the line below has the time of that
too. Steps (torch_steps.py) are of a small CNN on 28 x 28 pixels, B = 128, a few each turn; "ours" is everything on:
the balanced policy, losses of samples, the guard, the rate, and RAM backups four times an epoch; "plain once more"
tells how far equal sides differ. "items" are read sample by sample, by both sides alike. Peers: InfoBatch's sampler,
written from its paper (Qin et al., arXiv:2303.04947: r = 0.5, samples below the mean loss pruned at random, the rest of
them at double weight), and torch's WeightedRandomSampler; they train on fewer or other samples, so their time is given
per step. GPU figures (ResNet-18, B = 512, half precision) need a GPU: where there is none it says "not measured".
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch_steps import Clock, Sides, made_up, resnet18, small_cnn
from torch_steps import in_turns as in_turns_of_steps

from learnit_r8 import R8Scheduler, RamBackup
from learnit_r8.checkpoint.tree import clone, copy_into
from learnit_r8.torch import ModelState, R8BatchSampler, attach

KEPT = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TOP_PAD_": "67108864"}
"""For the C library of Linux; others do not read it."""


class Rows(torch.utils.data.Dataset[Any]):
    """Rows of a tensor, a batch at a time."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.rows[index]

    def __getitems__(self, indices: Any) -> torch.Tensor:
        return self.rows[indices]


def as_is(batch: Any) -> Any:
    return batch


Epoch = Callable[[Callable[[], float]], float]


def epoch_of(loader: Any, report: Callable[[float], Any] | None = None) -> Epoch:
    """An epoch of a loader with its losses reported; returns the seconds spent in the loader."""

    def run(clock: Callable[[], float]) -> float:
        began = clock()
        batches, seconds = iter(loader), 0.0
        for number in range(len(loader)):
            next(batches)
            seconds += clock() - began
            if report is not None:
                # No loss is so high that its batch comes again.
                report(1.0 + number % 7 / 100)
            began = clock()
        return seconds

    return run


def loaders(dataset: Any, workers: int, rounds: int, **settings: Any) -> tuple[Epoch, Epoch]:
    """An epoch of a shuffling loader, and one of ours with every loss reported."""
    settings = {"num_workers": workers, "persistent_workers": workers > 0, **settings}
    plain = DataLoader(dataset, batch_size=256, shuffle=True, **settings)
    sampler = R8BatchSampler(R8Scheduler(len(dataset), batch_size=256, num_epochs=rounds + 2))
    ours = DataLoader(dataset, batch_sampler=sampler, **settings)
    return epoch_of(plain), epoch_of(ours, sampler.report)


def indexed(dataset: TensorDataset, rounds: int) -> tuple[Epoch, Epoch]:
    """A shuffling loader against ours given as sampler with batch_size=None: a TensorDataset indexed once a batch."""
    plain, _ = loaders(dataset, 0, rounds)
    sampler = R8BatchSampler(R8Scheduler(len(dataset), batch_size=256, num_epochs=rounds + 2), as_list=False)
    return plain, epoch_of(DataLoader(dataset, sampler=sampler, batch_size=None), sampler.report)


def of_adapter(dataset: TensorDataset, workers: int, rounds: int) -> tuple[Epoch, Epoch]:
    """A shuffling loader against the adapter's, which takes the rows of a TensorDataset at once."""
    plain, _ = loaders(dataset, workers, rounds)
    model = nn.Linear(1, 1)
    adapter = attach(model, torch.optim.SGD(model.parameters(), 0.1), dataset, batch_size=256, num_epochs=rounds + 2)
    loader = adapter.loader(num_workers=workers, persistent_workers=workers > 0)
    return plain, epoch_of(loader, lambda loss: adapter.report(torch.tensor(loss)))


def in_turns(sides: tuple[Epoch, Epoch], rounds: int, clock: Callable[[], float] = time.process_time) -> Any:
    """float[2, sides, rounds], seconds in the loader, and of the whole epoch, after one round to warm up."""
    gc.collect()
    gc.freeze()
    seconds = np.zeros((rounds + 1, len(sides), 2))
    for number in range(rounds + 1):
        order = range(len(sides)) if number % 2 else reversed(range(len(sides)))
        for which in order:
            began = clock()
            within = sides[which](clock)
            seconds[number, which] = within, clock() - began
    return seconds[1:].T


def spread(ratios: Any) -> str:
    return f"{statistics.median(ratios):6.3f}x [{min(ratios):.3f} .. {max(ratios):.3f}]"


def print_ratio(name: str, one: Any, other: Any, unit: float, label: str, must: str, aim: str) -> None:
    each = f"{np.median(one) * unit:.3g} -> {np.median(other) * unit:.3g} {label}"
    print(f"{name:52} {each:24} {spread(other / one):26} {must:>6} {aim:>6}", flush=True)


def measure_loaders(count: int, rounds: int) -> None:
    rows = torch.randn(count, 16)
    data = TensorDataset(rows)
    # Three processes on two cores: single rounds differ by a factor of two.
    for workers, clock, turns in ((0, time.process_time, rounds), (2, time.perf_counter, 3 * rounds)):
        for name, sides, aim in (
            ("__getitems__", loaders(Rows(rows), workers, turns, collate_fn=as_is), "0.5"),
            ("__getitem__ only", loaders(data, workers, turns), ""),
            ("TensorDataset, adapter.loader()", of_adapter(data, workers, turns), "0.5"),
        ):
            within, whole = in_turns(sides, turns, clock)
            print_ratio(f"loader, {name}, {workers} workers", *within, 1e3, "ms", "1.02", aim)
            print_ratio("  with a report of each loss", *whole, 1e3, "ms", "", "")
    within, whole = in_turns(indexed(data, rounds), rounds)
    print_ratio("loader, TensorDataset, sampler= and batch_size=None", *within, 1e3, "ms", "1.02", "0.5")
    print_ratio("  with a report of each loss", *whole, 1e3, "ms", "", "")


def measure_steps(turns: int, steps: int) -> None:
    sides = Sides("cpu", small_cnn, made_up(128 * steps, (1, 28, 28)), batch=128)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        named = {
            "plain": sides.plain("items"),
            "plain once more": sides.plain("items", 2),
            "ours": sides.ours("items"),
            "ours with a run folder": sides.ours("items", run_dir=folder),
            "InfoBatch": sides.info_batch(),
            "WeightedRandomSampler": sides.weighted(),
        }
        print_steps("cpu, items", named, turns, "1.02", "1.005", time.thread_time)
        pair = {"plain": sides.plain("tensors"), "ours": sides.ours("tensors")}
        print_steps("cpu, TensorDataset", pair, turns, "1.02", "1.005", time.thread_time)
    print_parts(sides.clocks)


def print_steps(
    name: str, sides: dict[str, Any], turns: int, must: str, aim: str, clock: Callable[[], float] = time.perf_counter
) -> None:
    gc.collect()
    gc.freeze()
    wait = torch.cuda.synchronize if "H200" in name or "cuda" in name else lambda: None
    seconds = in_turns_of_steps(list(sides.values()), turns, clock, wait)
    for place, side in enumerate(sides):
        if place:
            limits = (must, aim) if side.startswith("ours") else ("", "")
            print_ratio(f"step on {name}: {side}", seconds[:, 0], seconds[:, place], 1e3, "ms", *limits)


def print_parts(clocks: dict[str, Clock]) -> None:
    print("\nparts of a step, us of processor time, median (a backup, a new epoch and the like are not in a median)")
    names = [name for name in clocks if not name.startswith("plain 2")]
    print(f"{'':16}" + "".join(f"{name:>20}" for name in names))
    for part in ("batch", "forward", "loss()", "step()", "backward", "optimizer", "clear"):
        each = [clocks[name].seconds.get(part) for name in names]
        shown = ["" if not seconds else f"{statistics.median(seconds) * 1e6:.0f}" for seconds in each]
        print(f"{part:16}" + "".join(f"{text:>20}" for text in shown))
    print("step() holds backward, optimizer and clear\n")


def measure_gpu(turns: int) -> None:
    """ResNet-18 in half precision; a wait for the device is what torch's own debug mode calls a synchronisation."""
    name = torch.cuda.get_device_name()
    sides = Sides("cuda", resnet18, made_up(512 * 20, (3, 32, 32)), batch=512, half=True)
    pair = {"plain": sides.plain("tensors"), "ours": sides.ours("tensors")}
    print_steps(f"cuda, {name}", pair, turns, "1.01", "1.00")
    counts = {side: count_waits(steps) for side, steps in pair.items()}
    print(f"waits for the device a step: {counts}")


def count_waits(steps: Iterator[None], count: int = 10) -> float:
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(count):
            next(steps)
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(each.message) for each in caught) / count


def measure_backup(rounds: int) -> None:
    """Copies of 25 million numbers; a backup looks at each of them too, in memory that is used again."""
    model = nn.Sequential(*[nn.Linear(2000, 2500) for _ in range(5)])
    count = sum(each.numel() for each in model.parameters()) / 1e6
    state = ModelState(model).read()
    buffer, backup = clone(state), RamBackup()
    ways = {
        "copied into the memory of an older one": (lambda step: copy_into(buffer, state), ("60 ms", "30 ms")),
        "copied into new memory": (lambda step: clone(state), ("", "")),
        "offered to RamBackup": (lambda step: backup.offer(state, step=step, draws=step), ("60 ms", "30 ms")),
    }
    for name, (copy, limits) in ways.items():
        seconds = []
        for step in range(rounds + 3):
            began = time.perf_counter()
            copy(step)
            seconds.append((time.perf_counter() - began) * 1e3)
        del seconds[:3]
        each = f"{statistics.median(seconds):.1f} ms [{min(seconds):.1f} .. {max(seconds):.1f}]"
        print(f"{f'{count:.0f} M parameters {name}':52} {each:51} {limits[0]:>6} {limits[1]:>6}", flush=True)


def keep_heap() -> None:
    """Begin again with a heap that is never given back to the system, unless this is so already."""
    if not KEPT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEPT})


def main() -> None:
    keep_heap()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter epochs, under a minute")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    count, steps, rounds, turns = (50_000, 40, 7, 16) if quick else (200_000, 100, 15, 150)
    print(f"torch {torch.__version__}, {rounds} rounds")
    print(f"{'':52} {'plain -> this':24} {'median [lowest .. highest]':26} {'must':>6} {'aim':>6}")
    measure_loaders(count, rounds)
    measure_steps(turns, steps)
    measure_backup(rounds)
    if torch.cuda.is_available():
        measure_gpu(turns)
    else:
        print("step of ResNet-18 on a GPU, and waits for it: not measured (no GPU)")


if __name__ == "__main__":
    main()

"""What the PyTorch adapter costs: loaders, training steps and backups against plain ones and two peers.

    python benchmarks/torch_adapter.py [--quick]

The sides of a ratio take turns in one process, an epoch each, and which goes first alternates; a ratio is that of one
turn, and printed are the median with the lowest and highest. Times are processor time of this process, which other
programs disturb less, but wall time where there are workers or a GPU. What is there at the start is kept out of the
garbage collector (gc.freeze): a full collection takes as long as an epoch, and falls on whoever is next. One thread.

Loaders hand out rows of a tensor [N, 16], B = 256; nothing is trained there, but every loss is reported. Steps are of a
small CNN on 28 x 28 pixels, B = 128; "ours" is everything on: the balanced policy, per-sample losses, the guard, the
learning rate, and RAM backups four times an epoch. Peers: InfoBatch's sampler, written from its paper (Qin et al.,
arXiv:2303.04947: r = 0.5, samples below the mean loss pruned at random, the rest of them at double weight), and torch's
WeightedRandomSampler; they train on fewer or other samples, so their time is given per step. GPU figures need a GPU:
where there is none it says "not measured".
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from learnit_r8 import R8Scheduler, RamBackup
from learnit_r8.copies import clone, copy_into
from learnit_r8.torch import ModelState, R8BatchSampler, attach

BATCH = 128


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


def loaders(dataset: Any, workers: int, rounds: int, **settings: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """An epoch of a shuffling loader, and one of ours with every loss reported."""
    settings = {"num_workers": workers, "persistent_workers": workers > 0, **settings}
    plain = DataLoader(dataset, batch_size=256, shuffle=True, **settings)
    sampler = R8BatchSampler(R8Scheduler(len(dataset), batch_size=256, num_epochs=rounds + 2))
    ours = DataLoader(dataset, batch_sampler=sampler, **settings)

    def run_plain() -> None:
        for _ in plain:
            pass

    def run_ours() -> None:
        for number, _ in enumerate(ours):
            sampler.report(1.0 + number % 7)

    return run_plain, run_ours


def indexed(dataset: TensorDataset, rounds: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """A shuffling loader against ours given as sampler with batch_size=None: a TensorDataset indexed once a batch."""
    plain, _ = loaders(dataset, 0, rounds)
    sampler = R8BatchSampler(R8Scheduler(len(dataset), batch_size=256, num_epochs=rounds + 2), as_list=False)
    ours = DataLoader(dataset, sampler=sampler, batch_size=None)

    def run_ours() -> None:
        for number, _ in enumerate(ours):
            sampler.report(1.0 + number % 7)

    return plain, run_ours


def cnn(device: str) -> nn.Module:
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(800, 10)).to(device)


class InfoBatch:
    """InfoBatch's sampler and loss, from its paper: kept samples below the mean loss count double."""

    def __init__(self, count: int) -> None:
        self.losses, self.weights = np.ones(count), np.ones(count)
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.losses)

    def __iter__(self) -> Iterator[int]:
        self.weights[:] = 1
        easy = np.flatnonzero(self.losses < self.losses.mean())
        kept = self.rng.choice(easy, len(easy) // 2, replace=False)
        self.weights[kept] = 2
        order = np.concatenate([np.flatnonzero(self.losses >= self.losses.mean()), kept])
        self.rng.shuffle(order)
        return iter(order.tolist())


Epoch = Callable[[], int]


def steps_of(device: str, steps: int, rounds: int) -> dict[str, Epoch]:
    """An epoch of training under each sampler; each returns its steps."""
    count = BATCH * steps
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(count, 1, 28, 28, generator=rng)
    y = torch.randint(10, (count,), generator=rng)
    data, rows = TensorDataset(x, y), torch.arange(count)
    parts = {name: cnn(device) for name in ("plain", "ours", "InfoBatch", "WeightedRandomSampler")}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9) for name, model in parts.items()}
    adapter = attach(parts["ours"], optimizers["ours"], data, batch_size=BATCH, num_epochs=rounds + 2)
    loader, plain = adapter.loader(), DataLoader(data, batch_size=BATCH, shuffle=True)
    info = InfoBatch(count)
    known = DataLoader(TensorDataset(x, y, rows), batch_size=BATCH, sampler=info)  # type: ignore[arg-type]
    weighted = DataLoader(data, batch_size=BATCH, sampler=WeightedRandomSampler(torch.rand(count), count))

    def train(name: str, loss: torch.Tensor) -> None:
        optimizers[name].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers[name].step()

    def run(name: str, batches: Any) -> int:
        for xs, ys in batches:
            train(name, cross_entropy(parts[name](xs.to(device)), ys.to(device)))
        if device != "cpu":
            torch.cuda.synchronize()
        return steps

    def run_ours() -> int:
        for xs, ys in loader:
            losses = cross_entropy(parts["ours"](xs.to(device)), ys.to(device), reduction="none")
            adapter.step(adapter.loss(losses))
        if device != "cpu":
            torch.cuda.synchronize()
        return steps

    def run_info() -> int:
        number = 0
        for xs, ys, indices in known:
            losses = cross_entropy(parts["InfoBatch"](xs.to(device)), ys.to(device), reduction="none")
            weights = torch.from_numpy(info.weights[indices.numpy()]).to(losses)
            info.losses[indices.numpy()] = losses.detach().cpu().numpy()
            train("InfoBatch", (losses * weights).mean())
            number += 1
        return number

    return {
        "plain": lambda: run("plain", plain),
        "ours": run_ours,
        "InfoBatch": run_info,
        "WeightedRandomSampler": lambda: run("WeightedRandomSampler", weighted),
    }


def in_turns(sides: list[Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.process_time) -> Any:
    """float[rounds, sides], seconds of each (per step, where a side returns its steps), after one round to warm up."""
    gc.collect()
    gc.freeze()
    seconds = np.zeros((rounds + 1, len(sides)))
    for number in range(rounds + 1):
        order = range(len(sides)) if number % 2 else reversed(range(len(sides)))
        for which in order:
            began = clock()
            steps = sides[which]()
            seconds[number, which] = (clock() - began) / (steps or 1)
    return seconds[1:]


def spread(ratios: Any) -> str:
    return f"{statistics.median(ratios):6.3f}x [{min(ratios):.3f} .. {max(ratios):.3f}]"


def print_ratio(name: str, one: Any, other: Any, unit: float, label: str, must: str, aim: str) -> None:
    each = f"{np.median(one) * unit:.3g} -> {np.median(other) * unit:.3g} {label}"
    print(f"{name:52} {each:24} {spread(other / one):26} {must:>6} {aim:>6}", flush=True)


def measure_loaders(count: int, rounds: int) -> None:
    rows = torch.randn(count, 16)
    for workers, clock in ((0, time.process_time), (2, time.perf_counter)):
        sides = loaders(Rows(rows), workers, rounds, collate_fn=as_is)
        turns = in_turns(list(sides), rounds, clock)
        print_ratio(f"loader, __getitems__, {workers} workers", *turns.T, 1e3, "ms", "1.02", "0.5")
        turns = in_turns(list(loaders(TensorDataset(rows), workers, rounds)), rounds, clock)
        print_ratio(f"loader, __getitem__ only, {workers} workers", *turns.T, 1e3, "ms", "1.02", "")
    turns = in_turns(list(indexed(TensorDataset(rows), rounds)), rounds)
    print_ratio("loader, TensorDataset, sampler= and batch_size=None", *turns.T, 1e3, "ms", "1.02", "")


def measure_steps(device: str, steps: int, rounds: int, must: str, aim: str) -> None:
    sides = steps_of(device, steps, rounds)
    turns = in_turns(list(sides.values()), rounds, time.process_time if device == "cpu" else time.perf_counter)
    for place, name in enumerate(sides):
        if place:
            limits = (must, aim) if name == "ours" else ("", "")
            print_ratio(f"training step on {device}, {name}", turns[:, 0], turns[:, place], 1e3, "ms", *limits)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter epochs, under a minute")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    count, steps, rounds = (50_000, 40, 5) if quick else (200_000, 100, 15)
    print(f"torch {torch.__version__}, {rounds} rounds")
    print(f"{'':52} {'plain -> this':24} {'median [lowest .. highest]':26} {'must':>6} {'aim':>6}")
    measure_loaders(count, rounds)
    measure_steps("cpu", steps, rounds, "1.02", "1.005")
    measure_backup(rounds)
    if torch.cuda.is_available():
        measure_steps("cuda", steps, rounds, "1.01", "1.00")
    else:
        print("training step on a GPU, and waits for it: not measured (no GPU)")


if __name__ == "__main__":
    main()

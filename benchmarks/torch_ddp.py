"""What sharing a scheduler costs: steps of a model under DDP on two gloo processes, plain and ours, in turns.

    python benchmarks/torch_ddp.py [--quick]

A small CNN on noise of 28 x 28 pixels, 400 steps an epoch, one thread each; 128 samples a rank, as on one process in
torch_adapter.py, and 64: what is ours costs the same for both. The plain side draws from a DistributedSampler; ours is
the same loop with attach(): per-sample losses, backups, exchanged losses, everything on. Both gather rows from the same
tensors, at the same constant rate: a warm-up on one side only would leave it other weights, with which a max-pooling
takes other time. The two, and the plain one once more to tell how far equal sides differ, take turns in one process, 16
steps each, in an order that rotates; a ratio is that of one turn. Figures are medians over the turns, in brackets the
first and last tenth. Before that: the time of an exchange; 2,000 steps on made-up losses with a NaN on a random rank
each 500, are the tables equal?
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import socket
import statistics
import time
import warnings
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from learnit_r8 import R8Scheduler
from learnit_r8.engine.values import grouped
from learnit_r8.torch import SharedRun, Together, attach

RANKS, SHARE, CLASSES, STRETCH = 2, 128, 10, 16


class Rows:
    """Tensors that are indexed with whole batches."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(count, 1, 28, 28, generator=generator)
        self.y = torch.randint(CLASSES, (count,), generator=generator)

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, indices: Any) -> Any:
        index = torch.as_tensor(indices)
        return self.x[index], self.y[index]


def cnn() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Flatten(), torch.nn.Linear(800, CLASSES),
    )  # fmt: skip


def training() -> tuple[Any, Any]:
    model = DistributedDataParallel(cnn())
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def plain_steps(rows: Rows, share: int) -> Iterator[None]:
    """Trains a step whenever it is asked."""
    model, optimizer = training()
    sampler = DistributedSampler(rows)
    loader = DataLoader(rows, batch_sampler=BatchSampler(sampler, share, drop_last=False), collate_fn=_as_it_is)
    for epoch in itertools.count():
        sampler.set_epoch(epoch)
        for x, y in loader:
            loss = cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def our_steps(rows: Rows, share: int) -> Iterator[None]:
    """Likewise under a scheduler."""
    model, optimizer = training()
    constant = {"scheduler_mode": "constant", "warmup_proportion": 0.0}
    # What it would choose by itself, did it not take the steps of the other sides for its own.
    sharing = Together(every=16)
    adapter = attach(
        model, optimizer, rows, batch_size=share * RANKS, num_epochs=1000, sharing=sharing, **grouped(constant)
    )
    for _ in adapter.epochs():
        for x, y in adapter.loader(collate_fn=_as_it_is):
            adapter.step(adapter.loss(cross_entropy(model(x), y, reduction="none")))
            yield


def _as_it_is(batch: Any) -> Any:
    return batch


def steps(rank: int, turns: int, share: int) -> None:
    rows = Rows(share * RANKS * 400)
    sides = plain_steps(rows, share), our_steps(rows, share), plain_steps(rows, share)
    taken = np.zeros((turns, len(sides), 2))
    for turn in range(-3, turns):
        for side in np.roll(range(len(sides)), turn).tolist():
            dist.barrier()
            began = time.perf_counter(), time.process_time()
            for _ in range(STRETCH):
                next(sides[side])
            if turn >= 0:
                taken[turn, side] = time.perf_counter() - began[0], time.process_time() - began[1]
    if rank == 0:
        print(f"{share} samples a rank, {turns} turns")
        for name, side in (("plain", 0), ("plain once more", 2), ("ours", 1)):
            wall, processor = np.median(taken[:, side], axis=0) / STRETCH * 1e3
            print(f"step of DDP, {name:16} {wall:12.3f} ms, of processor time {processor:.3f}")
        for name, side, must in (("plain once more", 2, ""), ("ours", 1, "(must <= 1.03)")):
            for kind, ratio in zip(("wall", "processor"), (taken[:, side] / taken[:, 0]).T, strict=True):
                low, middle, high = np.quantile(ratio, [0.1, 0.5, 0.9])
                print(f"ratio of {name:16} {kind:10} {must:15} {middle:8.3f} [{low:.3f}, {high:.3f}]")


def tables(rank: int, num_steps: int) -> None:
    # By chance the same sample may be the bad one twice.
    warnings.filterwarnings("ignore", "the loss of sample")
    weights = {"w": np.zeros(3)}
    r8 = R8Scheduler(
        50_000,
        batch_size=64,
        num_steps=num_steps,
        state_callback=lambda: weights,
        load_callback=weights.update,
        backup_every=64,
    )
    shared = SharedRun(r8)
    culprits = np.random.default_rng(0).integers(RANKS, size=num_steps)
    began = time.perf_counter()
    for _ in r8.epoch_iterator():
        for share in shared:
            step = share.ticket.step
            # Hard and easy samples, and what changes from step to step; losses that never change are no training.
            noise = (share.indices * 104_729 + step * 7907) % 997 / 997
            losses = 1.0 + (share.indices * 7919 % 101) / 50 + noise
            if step % 500 == 499 and culprits[step] == rank:
                losses[0] = np.nan
            shared.report(share.ticket, losses)
    seconds = time.perf_counter() - began
    digest = hashlib.sha256()
    for value in r8.table.state_dict().values():
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    digests: list[Any] = [None] * RANKS
    dist.all_gather_object(digests, digest.hexdigest())
    if rank == 0:
        print(f"steps on made-up losses           {num_steps:8d}, refused {r8.sentry.num_refused}")
        print(f"exchanges                         {shared.exchange.count:8d}")
        print(f"tables of all ranks equal         {len(set(digests)) == 1!s:>8}")
        print(f"everything of ours, a step        {seconds / num_steps * 1e6:8.1f} us")


def exchange(rank: int, turns: int) -> None:
    r8 = R8Scheduler(50_000, batch_size=SHARE * RANKS, num_epochs=1)
    shared = SharedRun(r8)
    seconds = []
    for _ in range(turns):
        began = time.perf_counter()
        shared.exchange.run([])
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        middle = statistics.median(seconds) * 1e6
        print(f"one exchange, {SHARE} samples a rank    {middle:8.1f} us, {middle / 16:.1f} a step")


def work(rank: int, port: int, quick: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    exchange(rank, 100 if quick else 1000)
    tables(rank, 1000 if quick else 2000)
    for share in (SHARE, SHARE // 2):
        steps(rank, 8 if quick else 200, share)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    quick = parser.parse_args().quick
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, args=(port, quick), nprocs=RANKS)


if __name__ == "__main__":
    main()

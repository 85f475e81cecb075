"""What `attach` costs a whole training: CPU time of a step beside that of the plain script, on the smallest network.

    python benchmarks/adapter_cost.py            seven rounds of 800 steps, fifteen of loaders
    python benchmarks/adapter_cost.py --quick    two rounds of 100, three of loaders

An MLP of 32-64-4 on batches of 32, one thread, R8's defaults: early backups and all. The three scripts run one after
the other in each round, and the least of the rounds counts, since what else runs on a machine only adds.

Then loaders, R8's over torch's: they hand out rows of a tensor [N, 16] in batches of 256, an epoch each turn, and
nothing is trained; the time is that spent in the loader, planning and drawing included, of this process, or wall time
where there are workers. And a step of a small CNN on 28 x 28 pixels, batches of 128, on a GPU too where there is one.
Those are ratios of one turn: median, lowest and highest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from overhead import processor
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from learnit_r8 import RateShape
from learnit_r8.torch import attach

BATCH, EPOCHS = 32, 4


def build(num_steps):
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(1)
    rows = num_steps // EPOCHS * BATCH
    x = torch.randn(rows, 32, generator=rng)
    data = TensorDataset(x, (x @ torch.randn(32, 4, generator=rng)).argmax(1))
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), data


def plain(num_steps):
    """The script without R8."""
    model, optimizer, data = build(num_steps)
    loader = DataLoader(data, BATCH, shuffle=True)
    for _ in range(EPOCHS):
        for x, y in loader:
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()


def own_loader(num_steps):
    """The same, watched: its batches and rates are its own."""
    model, optimizer, data = build(num_steps)
    adapter = attach(model, optimizer, DataLoader(data, BATCH, shuffle=True), num_epochs=EPOCHS, handle_signals=False)
    for _ in adapter.epochs():
        for x, y in adapter.batches():
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            if adapter.report(loss):
                loss.backward()
                optimizer.step()
    adapter.close()


def r8_batches(num_steps):
    """The same with R8's batches, and the losses of all samples."""
    model, optimizer, data = build(num_steps)
    adapter = attach(model, optimizer, data, batch_size=BATCH, num_epochs=EPOCHS, handle_signals=False)
    for _ in adapter.epochs():
        for x, y in adapter.loader():
            adapter.step(adapter.loss(cross_entropy(model(x), y, reduction="none")))
    adapter.close()


SCRIPTS = {"the plain script": plain, "attach, R8's batches": r8_batches, "attach, an own loader": own_loader}


class Rows(torch.utils.data.Dataset):
    """Rows of a tensor, read one by one."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def loaders(data, *, workers, rounds):
    """A shuffling loader, and that of an adapter, to which every loss is reported."""
    settings = {"num_workers": workers, "persistent_workers": workers > 0}
    model = nn.Linear(1, 1)
    adapter = attach(
        model, torch.optim.SGD(model.parameters(), 0.1), data, batch_size=256, num_epochs=rounds + 2,
        handle_signals=False,
    )  # fmt: skip
    plain = DataLoader(data, batch_size=256, shuffle=True, **settings)
    return (plain, None), (adapter.loader(**settings), lambda number: adapter.report(torch.tensor(1 + number % 7 / 99)))


def epoch(loader, report, clock):
    """Seconds that an epoch spends in a loader."""
    begun = clock()
    batches, seconds = iter(loader), 0.0
    for number in range(len(loader)):
        next(batches)
        seconds += clock() - begun
        if report is not None:
            report(number)
        begun = clock()
    return seconds


def cnn(device):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 10),
    ).to(device)  # fmt: skip


def plain_steps(data, device, rounds):
    """Asked for a step, trains one; with torch's loader."""
    model = cnn(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loader = DataLoader(data, 128, shuffle=True, drop_last=True)
    for _ in range(rounds):
        for x, y in loader:
            optimizer.zero_grad()
            cross_entropy(model(x.to(device)), y.to(device)).backward()
            optimizer.step()
            yield


def r8_steps(data, device, rounds):
    """The same with R8: its batches at a constant rate, the losses of all samples, backups four times an epoch."""
    model = cnn(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    adapter = attach(
        model, optimizer, data, batch_size=128, num_epochs=rounds, last_batch="drop", handle_signals=False,
        scheduler_mode=RateShape("constant", warmup_steps=0), backup_every=len(data) // 128 // 4,
    )  # fmt: skip
    for _ in adapter.epochs():
        for x, y in adapter.loader():
            loss = cross_entropy(model(x.to(device)), y.to(device), reduction="none")
            adapter.step(adapter.loss(loss))
            yield


def turns(sides, rounds, run):
    """A text: the ratio of the second side's seconds to the first's, each turn's, the first turn left out."""
    ratios = []
    for number in range(rounds + 1):
        seconds = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            seconds[which] = run(sides[which])
        ratios.append(seconds[1] / seconds[0])
    each = ratios[1:]
    return f"{statistics.median(each):.3f} x [{min(each):.3f} .. {max(each):.3f}]"


def measure_loaders(count, rounds):
    rows = torch.randn(count, 16)
    for workers, clock in ((0, time.process_time), (2, time.perf_counter)):
        for name, data in (("a TensorDataset", TensorDataset(rows)), ("rows one by one", Rows(rows))):
            sides = loaders(data, workers=workers, rounds=rounds)
            said = turns(sides, rounds, lambda side, clock=clock: epoch(*side, clock))
            print(f"loader, {name}, {workers} workers: {said}", flush=True)


def measure_steps(num_steps, rounds):
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        data = TensorDataset(torch.randn(128 * 40, 1, 28, 28), torch.randint(0, 10, (128 * 40,)))
        epochs = (rounds + 1) * num_steps // 40 + 1
        sides = [plain_steps(data, device, epochs), r8_steps(data, device, epochs)]

        def run(side, device=device):
            begun = time.perf_counter() if device == "cuda" else time.thread_time()
            for _ in range(num_steps):
                next(side)
            if device == "cuda":
                torch.cuda.synchronize()
            return (time.perf_counter() if device == "cuda" else time.thread_time()) - begun

        print(f"step of a small CNN, {device}: {turns(sides, rounds, run)}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rounds, num_steps = (2, 100) if given.quick else (7, 800)
    found = {name: [] for name in SCRIPTS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(rounds):
            for name, script in SCRIPTS.items():
                begun = time.process_time()
                script(num_steps)
                found[name].append((time.process_time() - begun) / num_steps * 1e6)
    base = min(found["the plain script"])
    print(f"{processor()}, torch {torch.__version__}: CPU time of a step in us, {num_steps} steps, least of {rounds}")
    for name, each in found.items():
        print(f"{name:24} {min(each):6.0f}   +{min(each) - base:4.0f}   {min(each) / base:.2f} x", flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measure_loaders(50_000 if given.quick else 200_000, 3 if given.quick else 15)
        measure_steps(4, 5 if given.quick else 100)


if __name__ == "__main__":
    main()

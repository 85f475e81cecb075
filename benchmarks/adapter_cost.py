"""What `attach` costs a whole training: CPU time of a step beside that of the plain script, on the smallest network.

python benchmarks/adapter_cost.py            seven rounds of 800 steps
python benchmarks/adapter_cost.py --quick    two rounds of 100

An MLP of 32-64-4 on batches of 32, one thread, R8's defaults: early backups and all. The three scripts run one after
the other in each round, and the least of the rounds counts, since what else runs on a machine only adds.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from overhead import processor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

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
        print(f"{name:24} {min(each):6.0f}   +{min(each) - base:4.0f}   {min(each) / base:.2f} x")


if __name__ == "__main__":
    main()

"""Training steps in processes of their own: a plain script against the same with the adapter, heap and all.

    python benchmarks/torch_alone.py [--quick]

In torch_adapter.py the sides share a process, and with it a heap. Alone, much depends on what lies last in it: when
that is free, the C library gives memory back to the system, and the next forward pass faults it in again, page by page,
which differs from process to process by up to a third of a step. So each side runs in many processes, in turns: the
small CNN of torch_adapter.py, B = 128, on one thread. "plain" clears the gradients before its backward pass, "cleared
first" before the forward pass, as many scripts do. Printed: processor time of a step and page faults in it, as the mean
over processes with its standard error, and the ratio to "plain".
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch_steps import Sides, made_up, small_cnn

BATCH = 128


def cleared_first(sides: Sides) -> Iterator[None]:
    """A loop with torch alone that clears the gradients before the forward pass."""
    model, optimizer, _ = sides.parts()
    while True:
        for x, y in DataLoader(sides.data["tensors"], batch_size=BATCH, shuffle=True):
            optimizer.zero_grad()
            sides.losses(model, x, y, "mean").backward()
            optimizer.step()
            yield


SIDES: dict[str, Callable[[Sides], Iterator[None]]] = {
    "plain": lambda sides: sides.plain("tensors"),
    "cleared first": cleared_first,
    "ours": lambda sides: sides.ours("tensors"),
}


def measure(side: str, steps: int) -> None:
    """Print seconds and page faults of a step."""
    torch.set_num_threads(1)
    training = SIDES[side](Sides("cpu", small_cnn, made_up(BATCH * 100, (1, 28, 28)), batch=BATCH))
    for _ in range(20):
        next(training)
    gc.collect()
    gc.freeze()
    began, faults = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        next(training)
    seconds, faults = time.thread_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    print(seconds / steps, faults / steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer processes and steps")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    processes, steps = (2, 20) if options.quick else (16, 200)
    if options.side:
        measure(options.side, steps)
        return
    taken = np.zeros((processes, len(SIDES), 2))
    for number in range(processes):
        for which in np.roll(range(len(SIDES)), number).tolist():
            command = [sys.executable, __file__, "--side", list(SIDES)[which], *(["--quick"] if options.quick else [])]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            taken[number, which] = [float(word) for word in printed.split()]
    error = taken.std(0, ddof=1) / processes**0.5
    for which, side in enumerate(SIDES):
        (seconds, faults), (spread, spread_of_faults) = taken[:, which].mean(0), error[which]
        ratio = seconds / taken[:, 0, 0].mean()
        print(
            f"{side:14} {seconds * 1e3:7.2f} +- {spread * 1e3:.2f} ms a step, {faults:6.0f} +- {spread_of_faults:.0f} "
            f"page faults, {ratio:.3f}x"
        )


if __name__ == "__main__":
    main()

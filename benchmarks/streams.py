"""What streams cost: against hand-written loops, and per event.

    python benchmarks/streams.py [--quick]

The sides of a ratio take turns in one process; figures are medians of processor time (which other programs on the
machine disturb less than wall time), with the lowest and highest in brackets.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from learnit_r8.streams import augment, collect, early_stop, ema, epoch_stream, pipe, take, tap, tick
from learnit_r8.triggers import every

ROWS, COLUMNS, BATCH = 10_000, 8, 256


def task() -> tuple[Any, Any, Any, Any, Any]:
    torch.manual_seed(0)
    x = torch.randn(ROWS, COLUMNS)
    y = x @ torch.randn(COLUMNS, 1) + 0.1 * torch.randn(ROWS, 1)
    model = nn.Linear(COLUMNS, 1)
    return x, y, model, torch.optim.SGD(model.parameters(), lr=0.01), nn.MSELoss()


def hand_written(epochs: int) -> float:
    """The loop of most tutorials: a gather for each batch, a loss read at each step."""
    x, y, model, optimizer, loss_fn = task()
    for _ in range(epochs):
        model.train()
        order, total = torch.randperm(len(x)), 0.0
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            optimizer.zero_grad()
            loss = loss_fn(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
    return total / len(x)


def streamed(epochs: int) -> float:
    x, y, model, optimizer, loss_fn = task()
    events = epoch_stream((x, y), model, optimizer, loss_fn, batch_size=BATCH)
    return float(collect(take(epochs)(events))[-1]["train_loss"])


def source(count: int) -> Iterator[dict[str, Any]]:
    for step in range(1, count + 1):
        yield {"step": step, "train_loss": 1.0 / step, "model": None}


def nothing(*_: Any) -> None:
    pass


def piped(count: int) -> None:
    stages = [
        augment(lambda event: {"val_loss": event["train_loss"]}),
        ema("val_loss", half_life=10),
        ema("train_loss", decay=0.9),
        tap(nothing),
        tap(nothing, every=10),
        tap(nothing, every=every(100)),
        tick(nothing),
        augment(nothing),
        early_stop("val_loss", patience=10),
        take(count),
    ]
    for _ in pipe(source(count), *stages):
        pass


def bare(count: int) -> None:
    for _ in source(count):
        pass


def in_turns(rounds: int, **work: Callable[[], Any]) -> dict[str, list[float]]:
    """Processor seconds of every piece of work in every round, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, run in work.items():
            began = time.process_time()
            run()
            if number:
                times[name].append(time.process_time() - began)
    return times


def show(what: str, values: list[float], must: str = "", aim: str = "") -> None:
    figures = f"{statistics.median(values):7.3f} [{min(values):.3f} .. {max(values):.3f}]"
    print(f"{what:64} {figures:28} {must:>6} {aim:>6}")


def loops(rounds: int, epochs: int) -> None:
    times = in_turns(rounds, hand=lambda: hand_written(epochs), stream=lambda: streamed(epochs))
    ratios = [a / b for a, b in zip(times["stream"], times["hand"], strict=True)]
    show("epoch_stream / hand-written loop, 10,000 x 8, B=256", ratios, "1.05", "1.00")


def stages(rounds: int, count: int) -> None:
    times = in_turns(rounds, piped=lambda: piped(count), bare=lambda: bare(count))
    microseconds = [1e6 * (a - b) / count for a, b in zip(times["piped"], times["bare"], strict=True)]
    show("pipe of ten stages, us per event beyond the source", microseconds, "15", "6")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, for a look")
    part = 10 if parser.parse_args().quick else 1
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, 11 rounds")
    print(f"{'':64} {'median [lowest .. highest]':28} {'must':>6} {'aim':>6}")
    loops(rounds=11, epochs=max(2, 40 // part))
    stages(rounds=11, count=20_000 // part)


if __name__ == "__main__":
    main()

"""Trainings with batches and rates of their own: are they left alone, are they healed, and what does a step cost?

    python benchmarks/wild.py            all scripts of wild_scripts.py, three places of the fault (some five minutes)
    python benchmarks/wild.py --quick    those without workers, one place
    python benchmarks/wild.py FOLDER     scripts of other people, in checkouts that wild_checkouts.py describes

Left alone: weights, optimizer state, random generators, order of the data and losses of the script with R8 and without,
compared to the bit; refusals. Healed: one NaN is written into the weights before a step early, in the middle and late
in the run; the mean of the last eight finite losses must be within 10 % of that of the undisturbed run, or within the
spread of three undisturbed seeds, and every weight finite. Cost: CPU time of our own calls in a step, of a loop over
batches that does nothing else, with R8 and without in turns; median of the rounds and their quartiles.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from wild_checkouts import check_all
from wild_scripts import SCRIPTS, Script, Streamed, Workers, seed_all

from learnit_r8 import R8Scheduler
from learnit_r8.torch import attach

PLACES = (0.1, 0.5, 0.85)
"""Shares of the run at which the fault strikes."""

BATCH = 32
"""Samples in a batch of the loop with a table."""

STEPS = 2000
"""Steps of a round in which the cost is measured."""


class Fault:
    """Writes one NaN into the weights, once.

    Args:
        at: The step before which it does.
    """

    def __init__(self, at: int) -> None:
        self.at, self.has_struck = at, False

    def __call__(self, step: int, script: Script) -> None:
        if step == self.at and not self.has_struck:
            self.has_struck = True
            with torch.no_grad():
                next(iter(script.model.parameters())).view(-1)[0] = float("nan")


def train(kind: type[Script], seed: int = 0, **settings: Any) -> Script:
    """Train a script from a seed."""
    seed_all(seed)
    script = kind(**settings)
    seed_all(seed + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return script.run()


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a state by their path."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from leaves(each, f"{path}.{name}")
    elif isinstance(value, (list, tuple)):
        for place, each in enumerate(value):
            yield from leaves(each, f"{path}.{place}")
    else:
        yield path, value


def is_equal(one: Any, two: Any) -> bool:
    """Whether two states are equal to the bit."""
    ones, twos = dict(leaves(one)), dict(leaves(two))
    return ones.keys() == twos.keys() and all(
        torch.equal(value, twos[path]) if isinstance(value, torch.Tensor) else value == twos[path]
        for path, value in ones.items()
    )


def level(script: Script) -> float:
    """The mean of its last finite losses."""
    last = [loss for loss in script.losses[-8:] if np.isfinite(loss)]
    return statistics.mean(last) if last else float("nan")


def is_healed(script: Script, levels: list[float]) -> bool:
    """Whether a run with a fault ended where undisturbed ones do; the first of those has its seed."""
    tensors = [each for part in script.parts() if isinstance(part, torch.nn.Module) for each in part.parameters()]
    if not all(bool(each.isfinite().all()) for each in tensors):
        return False
    room = max(0.1 * abs(levels[0]), max(levels) - min(levels))
    return bool(level(script) <= levels[0] + room)


def compare(kinds: list[type[Script]], places: tuple[float, ...]) -> None:
    """Print how each script fares."""
    faulty = f"with a NaN at {places}"
    print(f"{'script':<14} {'steps':>5} {'equal':>5} {'refused':>7} {'loss':>9} {faulty:>40} healed")
    equal = healed = faults = 0
    for kind in kinds:
        plain, watched = train(kind, with_r8=False), train(kind)
        same = is_equal(plain.state(), watched.state())
        steps = len(plain.losses)
        levels = [level(plain), *(level(train(kind, seed, with_r8=False)) for seed in (10, 20))]
        ends, count = [], 0
        for place in places:
            script = train(kind, hook=Fault(max(1, int(place * steps))))
            ends.append(level(script))
            count += is_healed(script, levels)
        equal, healed, faults = equal + same, healed + count, faults + len(places)
        refused = watched.r8.scheduler.sentry.num_refused
        shown = "  ".join(f"{end:.4g}" for end in ends)
        print(
            f"{kind.__name__:<14} {steps:>5} {'yes' if same else 'NO':>5} {refused:>7} {levels[0]:>9.4g} {shown:>40} "
            f"{count} of {len(places)}",
            flush=True,
        )
    print(f"equal to the bit: {equal} of {len(kinds)}; healed: {healed} of {faults}")


def loop_of_core(losses: list[Any], *, with_r8: bool) -> float:
    """CPU seconds of a step of a loop that does nothing."""
    r8 = R8Scheduler(scheduler_mode="keep", handle_signals=False) if with_r8 else None
    began = time.thread_time()
    if r8 is None:
        for _ in losses:
            pass
    else:
        for loss in r8.batches(losses, size=32):
            r8.update_with_loss(loss)
    return (time.thread_time() - began) / len(losses)


def loop_of_torch(losses: list[Any], *, with_r8: bool) -> float:
    """The same with the adapter of torch, which reads a tensor; both sides read it once."""
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tensors = [torch.tensor(loss) for loss in losses]
    adapter = attach(model, optimizer, tensors, backup_every=10**9, handle_signals=False) if with_r8 else None
    if adapter is not None:
        # The first backup is no step's.
        adapter.scheduler.host.between_steps()
    began = time.thread_time()
    if adapter is None:
        for loss in tensors:
            loss.item()
    else:
        for loss in adapter.batches(size=32):
            adapter.report(loss)
    return (time.thread_time() - began) / len(losses)


def loop_of_table(losses: list[Any], *, with_r8: bool) -> float:
    """A loop over a `DataLoader` whose indices are observed, with the losses of 32 samples a batch.

    Both sides read the losses once. The loader gives one number, as it is not what is measured.
    """
    rows = torch.tensor(np.random.default_rng(1).gamma(4, 0.2, (8, BATCH)), dtype=torch.float32)
    vectors = [rows[place % 8] for place in range(len(losses))]
    loader: Any = torch.utils.data.DataLoader(
        range(BATCH * len(losses)), batch_size=BATCH, shuffle=True, collate_fn=lambda each: each[0]
    )  # type: ignore[arg-type]
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    adapter = attach(model, optimizer, loader, backup_every=10**9, handle_signals=False) if with_r8 else None
    batches = iter(loader if adapter is None else adapter.batches(size=BATCH))
    # The permutation and the first backup are no step's.
    next(batches)
    if adapter is not None:
        adapter.report(vectors[0])
    began = time.thread_time()
    if adapter is None:
        for vector, _ in zip(vectors[1:], batches, strict=False):
            vector.numpy()
    else:
        for vector, _ in zip(vectors[1:], batches, strict=False):
            adapter.report(vector)
        adapter.scheduler.host.hand_over()
    return (time.thread_time() - began) / len(losses)


def cost(rounds: int) -> None:
    """Print what a step costs."""
    # Equal losses would have the weights looked at.
    losses = [float(loss) for loss in np.random.default_rng(0).gamma(4, 0.2, STEPS)]
    for name, loop in (("core", loop_of_core), ("attach", loop_of_torch), ("table", loop_of_table)):
        loop(losses, with_r8=True)
        more = []
        for _ in range(rounds):
            plain, ours = loop(losses, with_r8=False), loop(losses, with_r8=True)
            more.append(1e6 * (ours - plain))
        low, middle, high = statistics.quantiles(more, n=4) if rounds > 1 else more * 3
        print(f"{name:<7} {middle:6.1f} us CPU a step (quartiles {low:.1f} to {high:.1f}, {rounds} rounds of {STEPS})")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("folder", nargs="?", type=Path, help="checkouts of other people's scripts")
    parser.add_argument("--only", nargs="*", default=(), help="names of checkouts")
    given = parser.parse_args()
    quick = given.quick
    torch.set_num_threads(1)
    if given.folder is not None:
        print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, seeds 0, 10, 20")
        check_all(given.folder, PLACES[1:2] if quick else PLACES, tuple(given.only))
        return
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, seeds 0, 10, 20")
    slow = (Workers, Streamed)
    compare([kind for kind in SCRIPTS if not (quick and kind in slow)], PLACES[1:2] if quick else PLACES)
    cost(3 if quick else 20)


if __name__ == "__main__":
    main()

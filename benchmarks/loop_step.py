"""What a step of the loop that README shows costs: `epoch_iterator`, `batch_iterator` and `update_with_loss`.

The loop is that of a user, with a loss for each sample, all that is on by default, and nothing else in it; its epochs
and those of torch's own sampler take turns in one process, after one epoch of each that is not measured. Measured is
the CPU time of this thread. Printed are the median over the repetitions with the lowest and the highest, in
microseconds a step, the same for the sampler (which draws, and has nothing to report to), and what share of a step of
training of 5, 20 and 100 ms the loop would be.

    python benchmarks/loop_step.py            three batch sizes, two sizes of data, 9 repetitions: about a minute
    python benchmarks/loop_step.py --quick    one batch size of each, 3 repetitions
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from overhead import processor
from torch.utils.data import BatchSampler, RandomSampler

from learnit_r8 import R8Scheduler

CASES = [(50_000, 32), (50_000, 256), (50_000, 2048), (1_000_000, 32), (1_000_000, 256), (1_000_000, 2048)]
QUICK = [(50_000, 32), (50_000, 256)]
MOST_STEPS = 4000
"""Steps of an epoch that are measured: more of the largest data would only take longer."""
STEP_MS = (5, 20, 100)


def losses_of(batch_size: int) -> list[np.ndarray]:
    """Losses for each sample of some batches, over and over; with equal ones the guard would be spared work."""
    rng = np.random.default_rng(0)
    return [rng.gamma(2.0, 0.5, batch_size).astype(np.float32) for _ in range(64)]


def public_loop(num_samples: int, batch_size: int) -> Callable[[], float]:
    """A function that trains an epoch, or some steps of one, and returns its microseconds a step."""
    losses = losses_of(batch_size)
    r8 = R8Scheduler(num_samples, batch_size=batch_size, num_epochs=1000, last_batch="drop", handle_signals=False)

    def epoch() -> float:
        first = r8.global_step
        began = time.thread_time()
        for _ in r8.epoch_iterator():
            for _ in r8.batch_iterator():
                r8.update_with_loss(losses[r8.global_step % 64])
                if r8.global_step - first == MOST_STEPS:
                    break
            break
        return 1e6 * (time.thread_time() - began) / (r8.global_step - first)

    return epoch


def sampler(num_samples: int, batch_size: int) -> Callable[[], float]:
    """The same of torch's sampler, whose batches nobody trains on."""

    def epoch() -> float:
        batches = BatchSampler(RandomSampler(range(num_samples)), batch_size, drop_last=True)
        steps, began = 0, time.thread_time()
        for _ in batches:
            steps += 1
            if steps == MOST_STEPS:
                break
        return 1e6 * (time.thread_time() - began) / steps

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    repetitions = 3 if options.quick else 9
    print(f"{processor()}; CPU time of the thread, {repetitions} repetitions, median (lowest to highest)")
    shares = "".join(f"{f'of {each} ms':>11}" for each in STEP_MS)
    print(f"{'N':>9} {'B':>5}  {'loop, us a step':>26}{shares}  {'sampler alone, us':>26}")
    for num_samples, batch_size in QUICK if options.quick else CASES:
        loop, peer = public_loop(num_samples, batch_size), sampler(num_samples, batch_size)
        loop(), peer()
        pairs = [(loop(), peer()) for _ in range(repetitions)]
        ours, theirs = ([pair[place] for pair in pairs] for place in (0, 1))
        each = statistics.median(ours)
        parts = "".join(f"{each / (10 * ms):>10.2f}%" for ms in STEP_MS)
        texts = [f"{statistics.median(all_):.1f} ({min(all_):.1f} to {max(all_):.1f})" for all_ in (ours, theirs)]
        print(f"{num_samples:>9,} {batch_size:>5}  {texts[0]:>26}{parts}  {texts[1]:>26}", flush=True)


if __name__ == "__main__":
    main()

"""What drawing and reporting a step costs under a policy, over what it costs under "balanced"."""

from __future__ import annotations

import statistics
import time

from learning_runs import METHODS

# isort: split
import numpy as np

from learnit_r8 import R8Scheduler

BATCH_SIZE = 32
COUNTED = {
    "balanced": ("balanced", 0, "balanced"),
    "focus": ("focus", 0, "balanced"),
    "balanced, one group": ("balanced", 1, "balanced"),
    "focus + guard, one group": ("focus + guard", 1, "balanced, one group"),
    "balanced, ten groups": ("balanced", 10, "balanced"),
    "focus + guard, ten groups": ("focus + guard", 10, "balanced, ten groups"),
}
"""Method, how many groups it is told, and what it is compared with."""


class Course:
    """A run without a model: the losses fall over the epochs, and stay high for every tenth sample."""

    def __init__(self, method: str, num_groups: int, size: int, epochs: int) -> None:
        groups = np.arange(size) % num_groups if num_groups else None
        self.r8 = R8Scheduler(size, batch_size=BATCH_SIZE, num_epochs=epochs, policy=METHODS[method], groups=groups)
        rng = np.random.default_rng(0)
        self.high = np.where(rng.random(size) < 0.1, 3.0, 0.0).astype(np.float32)
        self.noise = rng.random(size).astype(np.float32)
        self.epoch = 0

    def __call__(self) -> float:
        """Thread CPU seconds per step of one more epoch, without making up the losses."""
        spent, steps = 0.0, 0
        level = np.float32(2.3 if self.epoch == 0 else 0.5)
        self.epoch += 1
        count = self.r8.steps_per_epoch
        while steps < count:
            begin = time.thread_time()
            ticket = self.r8.draw()
            spent += time.thread_time() - begin
            losses = np.maximum(self.high[ticket.indices], level) + self.noise[ticket.indices]
            begin = time.thread_time()
            self.r8.report(ticket, losses)
            spent += time.thread_time() - begin
            steps += 1
        return spent / count


def print_cost(repeats: int = 9, size: int = 50_000) -> None:
    """Print the median over the epochs between the sixth and the end of the skipping, methods in turn."""
    # The guard begins after four uses, at a tenth of the budget; nothing is skipped in the last tenth.
    epochs = max(20, 6 + 2 * repeats)
    courses = {name: Course(*what[:2], size, epochs) for name, what in COUNTED.items()}
    times: dict[str, list[float]] = {name: [] for name in COUNTED}
    for epoch in range(6 + repeats):
        for name, course in courses.items():
            spent = course()
            if epoch >= 6:
                times[name].append(spent)
    print(f"\nCPU time of the thread per step, draw and report of vectors, B = {BATCH_SIZE}, N = {size:,}:")
    for name, each in times.items():
        median, other = statistics.median(each), COUNTED[name][2]
        more = 1e6 * (median - statistics.median(times[other]))
        print(f"  {name:26} {1e6 * median:6.2f} us" + (f", {more:+.2f} us over {other}" if other != name else ""))

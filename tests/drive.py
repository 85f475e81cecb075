"""What the tests of whole runs share: a clock turned by hand, toy models, and the quick start's loop."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from learnit_r8 import Policy, R8Scheduler
from learnit_r8.engine.settings import grouped
from learnit_r8.testing import FakeClock

NAN, INF = float("nan"), float("inf")


class TickingClock(FakeClock):
    """Time that passes with every look at it, as it does outside of tests."""

    def __init__(self, tick):
        super().__init__()
        self.tick = tick

    def __call__(self):
        self.now += self.tick
        return self.now


class Weights:
    """A user's model of two numbers, with callbacks; it remembers what was put back."""

    def __init__(self):
        self.values = np.zeros(2)
        self.loaded = []

    def get(self):
        return {"w": self.values}

    def load(self, source, from_ram=False):
        self.loaded.append((source, from_ram))
        if from_ram:
            self.values = source["w"]
        else:
            with open(source, "rb") as file:
                self.values = np.load(file)

    def save(self, state_dict, filepath):
        with open(filepath, "wb") as file:
            np.save(file, state_dict["model"]["w"])


def observe(table, mean, lowest, reported=None):
    """Let the trend of a table learn a loss, as a good one does in a step; returns the trend before it."""
    trend = table.storage.batch_trend
    if lowest < 0 and not table.storage.are_offsets:
        table.learner.use_offsets()
    if trend.is_early:
        return trend.observe_early(mean, mean if reported is None else reported)
    before = trend.value
    trend.value += trend.weight * (mean - before)
    return before


class Weighing(Policy):
    """A user's policy that keeps all samples, from the second epoch on at this weight."""

    name = "weighing"
    selects = True

    def __init__(self, weight=2.0):
        self.weight = weight

    def select(self, chunk, context, rng):
        return np.ones(len(chunk.indices), bool), np.full(len(chunk.indices), self.weight, np.float32)


def make(num_samples=12, *, batch_size=4, **more):
    """A small scheduler: by default three steps an epoch, two epochs."""
    if not more.keys() & {"num_epochs", "num_steps", "train_duration_seconds"}:
        more["num_epochs"] = 2
    return R8Scheduler(num_samples, **grouped({"batch_size": batch_size, **more}))


def sample_losses(indices):
    """float64[B], between 0.5 and 2.5, fixed for each sample."""
    return 0.5 + (np.asarray(indices) * 7919 % 101) / 50


def batch_loss(indices):
    return float(sample_losses(indices).mean())


def steps(r8):
    """Epoch, samples and rate of every batch of the quick start's loop; the caller reports."""
    for epoch in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            yield epoch, indices, lr


def train(r8, bad=(), value=NAN):
    """Run to the end with losses that depend on the samples only; ``value`` at the steps in ``bad``."""
    seen = []
    for epoch, indices, lr in steps(r8):
        seen.append((epoch, indices.tolist(), lr))
        r8.update_with_loss(value if r8.global_step in bad else batch_loss(indices))
    return seen


def advance_to(r8, step, bad=(), value=NAN):
    """Run to a step with nothing open after it."""
    for _, indices, _ in steps(r8):
        r8.update_with_loss(value if r8.global_step in bad else batch_loss(indices))
        if r8.global_step >= step:
            return


def flat(batches):
    """All samples of some batches, in order."""
    return [index for batch in batches for index in batch]


def known(r8):
    """What the table knows, for comparison."""
    return {name: getattr(r8.table, name) for name in ("loss", "last", "mean", "usage_count")}


def evidence_of(r8):
    """What a run knows of labels, of all that was reported."""
    r8.table.learner.hand_over()
    return r8.table.storage.evidence.whole


def search_step(r8):
    """One step of a search for a learning rate, whose loss is flat up to a rate of 0.01 and rises beyond."""
    ticket = r8.draw()
    return r8.report(ticket, 1.0 + max(0.0, ticket.lr - 0.01))


def search_through(r8):
    """A whole such search; how many steps it took."""
    count = 0
    while r8.phase == "searching":
        search_step(r8)
        count += 1
    return count


def run_threads(count, work):
    """Run a function in several threads at once; raises what one of them raised."""
    with ThreadPoolExecutor(count) as pool:
        for each in [pool.submit(work) for _ in range(count)]:
            each.result()

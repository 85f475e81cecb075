"""What a hundred million samples make wait: questions that a person asks of the table, and incidents of a run.

    python benchmarks/large.py                  a hundred million samples: three minutes, eight gigabytes
    python benchmarks/large.py --quick          a million

Questions: CPU and wall seconds of `hardest(3)`, `ranking()` and `suspects()`, of a table in which every
sample was used and 2 % look mislabelled; with the losses alone, and with predictions. Three rounds, the median.

Incidents: a small network learns in a run of so many samples, with backups and a run folder. Its weights become NaN,
and are blown up; some samples have losses that are not finite; a tenth of a million samples goes to quarantine, and is
let out again; the run goes back to its backup; a batch mean falls below zero for the first time, which changes the
estimates of all samples. The longest time that a call of the loop took, of every kind. What a checkpoint stops a run of
so many samples is in overhead.py.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from learnit_r8 import R8Scheduler, SampleTable, events
from learnit_r8.table.labels.predictions import PredictionRows
from learnit_r8.table.losses import EXACT
from learnit_r8.testing import ToyTask, record_events

UNTRAINED, WRONG = 2.3, 0.02
BLOCK = 2**22
STEPS = 600
NAN, BLOWN_UP, BACK, TAKEN_OUT, RELEASED, SIGN = 150, 250, 350, 400, 500, 550
"""Steps at which something happens."""
BAD_FROM, NUM_BAD = 50, 3
NUM_TAKEN_OUT = 10**5
"""Step from which the first samples of a batch are bad, each time they are drawn."""


def table_of(size: int, *, predictions: bool) -> SampleTable:
    """A table of samples that were all used, of which some look mislabelled."""
    table = SampleTable(size, batch_size=256)
    storage, rng = table.storage, np.random.default_rng(0)
    storage.part_size, storage.num_seen, storage.batch_trend.untrained.value = EXACT, size, UNTRAINED
    if predictions:
        storage.evidence.make_records(PredictionRows(np.zeros((3, 1), np.float32), 10))
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        part = slice(start, start + count)
        is_wrong = rng.random(count) < WRONG
        # Right labels are as often on the other side as the mirror of the margins says; wrong ones nearly always.
        distance = rng.gamma(2.0, 1.0, count)
        margin = np.where(rng.random(count) < 1 / (1 + np.exp(1.2 * distance)), distance, -distance)
        margin[is_wrong] = rng.normal(5, 1.5, int(is_wrong.sum()))
        loss = np.logaddexp(0, margin) if predictions else np.where(is_wrong, 8 + rng.random(count), 0.1 * distance)
        records = storage.records.whole
        for field in ("loss", "last", "mean"):
            records[field][part] = loss
        records["usage_count"][part] = 6
        if storage.evidence.whole is not None:
            evidence = storage.evidence.whole
            evidence["margin"][part] = evidence["early"][part] = margin
            evidence["visits"][part], evidence["lead"][part] = 6, 12
            evidence["given"][part] = rng.integers(0, 10, count)
            evidence["leader"][part] = (evidence["given"][part] + 1) % 10
    return table


def print_questions(size: int, rounds: int) -> None:
    """CPU and wall seconds of each question, and what it found."""
    for predictions in (False, True):
        table = table_of(size, predictions=predictions)
        print(f"\n{size:,} samples, {'losses and predictions' if predictions else 'losses alone'}: CPU, wall seconds")
        questions: dict[str, Callable[[], Any]] = {
            "hardest(3)": lambda table=table: table.hardest(3),  # type: ignore[misc]
            "ranking()": table.ranking,
            "suspects()": table.suspects,
        }
        for name, ask in questions.items():
            took = []
            for _ in range(rounds):
                cpu, wall = time.thread_time(), time.perf_counter()
                found = ask()
                took.append((time.thread_time() - cpu, time.perf_counter() - wall))
            cpu, wall = (statistics.median(each) for each in zip(*took, strict=True))
            note = f"{len(found.indices):,} samples, {found.method or found.reason}" if name == "suspects()" else ""
            must = "must 2" if name in ("hardest(3)", "suspects()") and size == 10**8 else ""
            print(f"  {name:<14}{cpu:8.2f}{wall:8.2f}  {must:<8}{note}".rstrip(), flush=True)
        del table, questions, ask


class Run:
    """A run of so many samples, whose calls are timed.

    Args:
        size: N.
        folder: For its files.
        by_means: Whether means of batches are reported, in place of the loss of each sample.
    """

    def __init__(self, size: int, folder: Path, *, by_means: bool) -> None:
        self.task, self.by_means = ToyTask(), by_means
        self.took: dict[str, list[float]] = {}
        self.bad: set[int] = set()
        self.done: set[int] = set()
        self.heard = record_events()
        self.r8 = R8Scheduler(
            size, batch_size=256, num_epochs=2, initial_lr=0.05, backup_every=50, run_dir=folder / "run",
            listeners=[self.heard],
            state_callback=self.task.state, load_callback=self.task.load,
        )  # fmt: skip

    def timed(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call and note how long it took."""
        began = time.perf_counter()
        result = call(*arguments)
        self.took.setdefault(name, []).append(time.perf_counter() - began)
        return result

    def is_at(self, step: int) -> bool:
        """Whether this step is there for the first time."""
        if self.r8.global_step != step or step in self.done:
            return False
        self.done.add(step)
        return True

    def losses(self, indices: Any) -> Any:
        """What the loop reports for a batch."""
        step = self.r8.global_step
        if BAD_FROM <= step < BAD_FROM + 2:
            self.bad.update(indices[:NUM_BAD].tolist())
        losses = self.task.losses(indices % len(self.task.labels))
        if self.by_means:
            return float(losses.mean()) - (9 if step == SIGN else 0)
        losses[np.isin(indices, list(self.bad))] = np.nan
        return losses

    def damage(self) -> None:
        """Damage the weights where it is time to."""
        if self.is_at(NAN):
            self.task.weights[0][:] = np.nan
        elif self.is_at(BLOWN_UP):
            for weight in self.task.weights:
                weight *= 1e4

    def train(self) -> None:
        """Train for some steps."""
        next(self.r8.epoch_iterator())
        batches = iter(self.r8.batch_iterator())
        while self.r8.global_step < STEPS:
            indices, lr = self.timed("draw", next, batches)
            self.damage()
            if self.timed("report", self.r8.update_with_loss, self.losses(indices)):
                self.task.step(lr)
            if self.is_at(BACK):
                self.timed("restore_backup()", self.r8.restore_backup)
                batches = iter(self.r8.batch_iterator())
            if self.is_at(TAKEN_OUT):
                everyone = np.random.default_rng(0).integers(0, self.r8.table.num_samples, NUM_TAKEN_OUT)
                self.timed("quarantine", self.r8.table.storage.exclusions.quarantine, everyone)
            if self.is_at(RELEASED):
                self.timed("release()", self.r8.release, self.r8.table.quarantined)
        self.timed("close()", self.r8.close)


def print_incidents(size: int) -> None:
    """The longest calls of runs with incidents."""
    for by_means in (False, True):
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = Run(size, Path(folder), by_means=by_means)
            run.train()
        refused, restored = (len(run.heard.of(kind)) for kind in (events.BatchRefused, events.RolledBack))
        print(
            f"\n{size:,} samples, {'means of batches' if by_means else 'a loss for each'}, {STEPS} steps: {refused} "
            f"refused, {restored} restored"
        )
        for name, took in run.took.items():
            must = "" if name == "close()" else " (must 1 s)"
            print(f"  {name:<18} longest {max(took):7.3f} s, median {statistics.median(took) * 1e6:9.1f} us{must}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a million samples, one round")
    parser.add_argument("--size", type=float, default=1e8, help="number of samples")
    options = parser.parse_args()
    size = 10**6 if options.quick else int(options.size)
    print(f"{platform.processor() or platform.machine()}, numpy {np.__version__}, Python {platform.python_version()}")
    print_incidents(size)
    print_questions(size, 1 if options.quick else 3)


if __name__ == "__main__":
    main()

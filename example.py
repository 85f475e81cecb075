"""Trains a small network on scikit-learn's digits under R8Scheduler, with wrong labels and a NaN on purpose.

Run ``pip install .[demo]`` and ``python example.py``, or ``python example.py --screen`` to watch the training. The
network needs only numpy. 5 % of the labels are flipped, and in mid-training one weight becomes NaN. You see how the run
goes on, and which labels look wrong. ``python example.py --rate 30`` shows what becomes of a learning rate that is 600
times too high.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learnit_r8 import R8Scheduler, events
from learnit_r8.table.labels.suspects import Suspects

NUM_TRAIN, BATCH_SIZE, EPOCHS, PEAK_LR = 1200, 32, 20, 0.05
FLIPPED_SHARE = 0.05
SUSPECTS_AFTER = 5
# Between two backups: at one, the NaN would be found before any loss shows it.
POISON_STEP = 295
BACKUP_EVERY = 20
SCREEN_SECONDS = 0.025


class Task(NamedTuple):
    """Images float64[N, 64] in [0, 1] and labels int64[N], some of them wrong on purpose."""

    images: NDArray[np.float64]
    labels: NDArray[np.int64]
    true_labels: NDArray[np.int64]
    test_images: NDArray[np.float64]
    test_labels: NDArray[np.int64]

    @property
    def flipped(self) -> NDArray[np.bool_]:
        return self.labels != self.true_labels


def load_task(seed: int = 0) -> Task:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    images, labels = images[order] / 16, labels[order]
    given = labels[:NUM_TRAIN].copy()
    wrong = rng.choice(NUM_TRAIN, round(FLIPPED_SHARE * NUM_TRAIN), replace=False)
    given[wrong] = (given[wrong] + rng.integers(1, 10, len(wrong))) % 10
    return Task(images[:NUM_TRAIN], given, labels[:NUM_TRAIN], images[NUM_TRAIN:], labels[NUM_TRAIN:])


class Mlp:
    """64 inputs, 64 hidden units, 10 classes; stochastic gradient descent with momentum 0.9."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.weights = [rng.normal(0, 64**-0.5 * gain, (64, size)) for size, gain in ((64, 2**0.5), (10, 1))]
        self.weights += [np.zeros(64), np.zeros(10)]
        self.velocity = [np.zeros_like(weight) for weight in self.weights]

    def logits(self, images: NDArray[np.float64]) -> NDArray[np.float64]:
        w1, w2, b1, b2 = self.weights
        self.images, self.hidden = images, np.maximum(images @ w1 + b1, 0)
        return self.hidden @ w2 + b2

    def losses(self, images: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """Cross entropy of every sample, float64[B]."""
        logits = self.logits(images)
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        self.error = (np.exp(log_p) - np.eye(10)[labels]) / len(labels)
        return -log_p[np.arange(len(labels)), labels]

    def step(self, lr: float) -> None:
        """One step along the gradient of the mean of the last `losses`."""
        hidden_error = (self.error @ self.weights[1].T) * (self.hidden > 0)
        gradients = (self.images.T @ hidden_error, self.hidden.T @ self.error, hidden_error.sum(0), self.error.sum(0))
        for weight, velocity, gradient in zip(self.weights, self.velocity, gradients, strict=True):
            velocity *= 0.9
            velocity += gradient
            weight -= lr * velocity

    def accuracy(self, images: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
        return float((self.logits(images).argmax(axis=1) == labels).mean())

    def state(self) -> dict[str, list[NDArray[np.float64]]]:
        return {"weights": self.weights, "velocity": self.velocity}

    def load(self, state: dict[str, list[NDArray[np.float64]]]) -> None:
        self.weights, self.velocity = state["weights"], state["velocity"]

    def poison(self) -> None:
        for array in (*self.weights, *self.velocity):
            array[:] = np.nan


class Run(NamedTuple):
    """What is left of a run under the scheduler; ``early_loss`` is the table when the suspects were asked for."""

    r8: R8Scheduler
    accuracy: float
    suspects: Suspects
    early_loss: NDArray[np.float32]


def train_with_r8(
    task: Task,
    *,
    seed: int = 0,
    rate: float = PEAK_LR,
    poison_step: int = -1,
    listeners: Sequence[events.Listener] = (),
    screen: bool = False,
    run_dir: Path | None = None,
) -> Run:
    """The loop this example is about; on the screen it is slowed down, or it would be over at once."""
    model = Mlp(seed)
    with R8Scheduler(
        len(task.labels),
        batch_size=BATCH_SIZE,
        num_epochs=EPOCHS,
        initial_lr=rate,
        state_callback=model.state,
        load_callback=model.load,
        backup_every=BACKUP_EVERY,
        listeners=listeners,
        use_curses=screen,
        run_dir=run_dir,
        name="digits",
        seed=seed,
    ) as r8:
        for epoch in r8.epoch_iterator():
            for batch, lr in r8.batch_iterator():
                losses = model.losses(task.images[batch], task.labels[batch])
                if r8.update_with_loss(losses):
                    model.step(lr)
                if r8.global_step == poison_step:
                    model.poison()
                if screen:
                    time.sleep(SCREEN_SECONDS)
            accuracy = model.accuracy(task.test_images, task.test_labels)
            r8.log(test_accuracy=accuracy)
            # Later on the network has learnt the wrong labels by heart, and they no longer stand out.
            if epoch + 1 == SUSPECTS_AFTER:
                suspects, early_loss = r8.table.suspects(), r8.table.loss
    return Run(r8, accuracy, suspects, early_loss)


def train_plainly(task: Task, schedule: Callable[[float], float], *, seed: int = 0, poison_step: int = -1) -> float:
    """The same network, visits and schedule with a plain shuffle; returns the test accuracy."""
    model, rng = Mlp(seed), np.random.default_rng(seed)
    size = len(task.labels)
    orders = [rng.permutation(size) for _ in range(EPOCHS)]
    batches = [order[start : start + BATCH_SIZE] for order in orders for start in range(0, size, BATCH_SIZE)]
    for step, batch in enumerate(batches, start=1):
        model.losses(task.images[batch], task.labels[batch])
        model.step(schedule((step - 1) / len(batches)))
        if step == poison_step:
            model.poison()
    return model.accuracy(task.test_images, task.test_labels)


class Diary:
    """A listener that prints a line per epoch, and keeps the events."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []
        self.num_refused = 0

    def __call__(self, event: events.Event) -> None:
        self.events.append(event)
        match event:
            case events.BatchRefused():
                self.num_refused += 1
            case events.MetricsLogged():
                self.print_epoch(self.last(events.EpochDone), event.metrics["test_accuracy"])

    def print_epoch(self, done: Any, accuracy: float) -> None:
        if done.epoch == 0:
            print(" epoch   step    loss      lr   test")
        note = f"   {self.num_refused} loss refused" if self.num_refused else ""
        print(f"{done.epoch + 1:>6}{done.step:>7}{done.loss:>8.4f}{done.lr:>8.4f}{accuracy:>7.1%}{note}")
        self.num_refused = 0

    def last(self, kind: type[events.Event]) -> Any:
        return next(event for event in reversed(self.events) if isinstance(event, kind))


def print_accuracy(task: Task, run: Run, *, num_seeds: int) -> None:
    schedule, num_tests = run.r8.schedule, len(task.test_labels)
    poisoned, plain = train_plainly(task, schedule, poison_step=POISON_STEP), train_plainly(task, schedule)
    print(f"\nTest accuracy ({num_tests} images, all labels right; one image is {1 / num_tests:.2%})")
    print(f"  R8, weights become NaN after step {POISON_STEP}   {run.accuracy:.2%}")
    print(f"  plain shuffle, the same NaN             {poisoned:.2%}")
    print(f"  plain shuffle, no NaN                   {plain:.2%}")
    pairs = np.array([compare(seed, schedule) for seed in range(1, num_seeds + 1)])
    gain = pairs[:, 0] - pairs[:, 1]
    print(f"  {num_seeds} other seeds, no NaN: R8 {pairs[:, 0].mean():.2%}, plain {pairs[:, 1].mean():.2%}, ", end="")
    print(f"difference {100 * gain.mean():+.2f} +- {100 * gain.std(ddof=1) / num_seeds**0.5:.2f}")
    print("  Both visit every sample equally often, so expect the same accuracy, within")
    print("  noise. What R8 adds is the rest of this page.")


def compare(seed: int, schedule: Callable[[float], float]) -> tuple[float, float]:
    """Test accuracies with R8 and without, on another split, other flips and other weights."""
    task = load_task(seed)
    return train_with_r8(task, seed=seed).accuracy, train_plainly(task, schedule, seed=seed)


def print_recovery(r8: R8Scheduler, diary: Diary) -> None:
    refused, restored, healed = map(diary.last, (events.BatchRefused, events.RolledBack, events.IncidentEnded))
    later = [event for event in diary.events if isinstance(event, events.StepDone) and event.step > refused.step]
    steady = sum(event.steady for event in later)
    print("\nHow it recovered")
    print(f"  step {refused.step}   loss {refused.loss} refused: no weight update, no entry in the sample table;")
    print(f"             model restored from the {restored.source} of step {restored.to_step};")
    print(f"             a lower learning rate for some steps, {steady} batches of easy samples")
    print(f"  step {first_full_step(r8, later)}   learning rate back on the schedule")
    print(f"  step {healed.step}   the incident is over")


def first_full_step(r8: R8Scheduler, steps: list[events.StepDone]) -> int:
    """The first of these steps that was trained at the schedule's own learning rate."""
    # Batches that were left out for probes count for the schedule, too.
    total, left_out = r8.total_steps or 1, r8.pace.left_out
    return next(event.step for event in steps if event.lr == r8.schedule((event.step - 1 + left_out) / total))


def print_quartiles(task: Task, r8: R8Scheduler) -> None:
    loss = r8.table.loss
    print(f"\nThe training samples in four quarters by loss, at the end (losses are {r8.table.source})")
    print("           lowest   highest      mean    used   flipped labels")
    for number, q in enumerate(r8.table.quartiles(), start=1):
        flipped = int(task.flipped[(loss >= q.low) & (loss <= q.high)].sum())
        print(f"  Q{number}   {q.low:>10.5f}{q.high:>10.5f}{q.mean:>10.5f}{q.uses:>8.2f}{flipped:>8}")


def print_suspects(task: Task, suspects: Suspects) -> None:
    found = suspects.indices
    print(f"\nWhich labels look wrong? (asked after epoch {SUSPECTS_AFTER} of {EPOCHS})")
    if not len(found):
        print(f"  None: {suspects.reason}")
        return
    right, flipped = int(task.flipped[found].sum()), int(task.flipped.sum())
    print(f"  {len(found)} suspects, {right} of them among the {flipped} labels that were flipped:")
    print(f"  precision {right / len(found):.2f}, recall {right / flipped:.2f}; ", end="")
    print(f"{suspects.noise_rate:.1%} of the labels look wrong, {flipped / len(task.labels):.1%} are")
    print("\nThe ten most suspect, with the label they were given")
    for row in (found[:5], found[5:10]):
        print()
        print_side_by_side([picture(task, index) for index in row])


def picture(task: Task, index: int) -> list[str]:
    """The lines of one digit and its caption, 14 columns wide."""
    shades = shades_of_terminal()
    levels = np.minimum(task.images[index].reshape(8, 8) * len(shades), len(shades) - 1).astype(int)
    # The first column of pixels is blank in nearly all of them.
    lines = ["".join(2 * shades[level] for level in row[1:]) for row in levels]
    verdict = f"flipped from {task.true_labels[index]}" if task.flipped[index] else "not flipped"
    return [*lines, f"label {task.labels[index]}", verdict]


def shades_of_terminal() -> str:
    try:
        "░▒▓█".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return " .:*#"
    return " ░▒▓█"


def print_side_by_side(pictures: list[list[str]]) -> None:
    for lines in zip(*pictures, strict=True):
        print("  " + " ".join(f"{line:<14}" for line in lines).rstrip())


def print_high_rate(rate: float) -> None:
    print(f"A peak learning rate of {rate:g}, where {PEAK_LR} is right; test accuracy of three trainings\n")
    print("  seed      R8   plain shuffle")
    for seed in range(3):
        task = load_task(seed)
        # The losses overflow on purpose, and what R8 does about it is printed below.
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            run = train_with_r8(task, seed=seed, rate=rate)
            plain = train_plainly(task, run.r8.schedule, seed=seed)
        print(f"{seed:>6}{run.accuracy:>8.1%}{plain:>16.1%}")
    print(f"\nThe last of them, as R8 tells it: {run.r8.summary().partition('losses of the samples')[0]}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="compare over 3 other seeds instead of 20")
    parser.add_argument("--screen", action="store_true", help="show the run on the screen, slowed down to 20 s")
    parser.add_argument("--rate", type=float, help="only train three times at this peak learning rate, 30 for example")
    options = parser.parse_args(arguments)
    if options.rate is not None:
        print_high_rate(options.rate)
        return
    quick = options.quick
    began = time.perf_counter()
    task, diary = load_task(), Diary()
    run = train_with_r8(task, poison_step=POISON_STEP, listeners=[diary], screen=options.screen)
    print_accuracy(task, run, num_seeds=3 if quick else 20)
    print_recovery(run.r8, diary)
    print_quartiles(task, run.r8)
    print_suspects(task, run.suspects)
    print(f"\nAll of it took {time.perf_counter() - began:.1f} s.")


if __name__ == "__main__":
    main()

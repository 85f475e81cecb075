"""A learning rate that explodes three times in one training, and a run that ends as if nothing had happened.

A small network in numpy on scikit-learn's digits (``pip install scikit-learn``). Three times, for three steps each, the
optimizer uses a rate a hundred times too high: enough to lose everything it has learned. Three runs side by side:
undisturbed, disturbed and left alone, disturbed and healed by R8Scheduler.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from sklearn.datasets import load_digits

from learnit_r8 import FiniteGuard, R8Scheduler, events
from learnit_r8.testing import FaultPlan, RecordedEvents, record_events

EPOCHS, BATCH_SIZE, PEAK_LR, WEIGHT_DECAY = 40, 32, 0.1, 5e-3
EXPLOSIONS = (300, 700, 1100)
LENGTH, TIMES = 3, 100.0


class Mlp:
    """64 inputs, 32 hidden units, 10 classes; stochastic gradient descent with momentum and weight decay."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.weights = [rng.normal(0, 0.15, (64, 32)), np.zeros(32), rng.normal(0, 0.15, (32, 10)), np.zeros(10)]
        self.velocity = [np.zeros_like(weight) for weight in self.weights]

    def forward(self, images, labels):
        """Cross entropy of every sample, float64[B]; keeps what `step` needs."""
        w1, b1, w2, b2 = self.weights
        with np.errstate(all="ignore"):
            hidden = np.maximum(images @ w1 + b1, 0)
            logits = hidden @ w2 + b2
            logits -= logits.max(axis=1, keepdims=True)
            log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            error = (np.exp(log_p) - np.eye(10)[labels]) / len(labels)
            back = (error @ w2.T) * (hidden > 0)
            self.gradients = [images.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
        return -log_p[np.arange(len(labels)), labels]

    def step(self, lr):
        with np.errstate(all="ignore"):
            for weight, velocity, gradient in zip(self.weights, self.velocity, self.gradients, strict=True):
                velocity *= 0.9
                velocity += gradient + WEIGHT_DECAY * weight
                weight -= lr * velocity

    def state(self):
        return {"weights": self.weights, "velocity": self.velocity}

    def load(self, state):
        self.weights, self.velocity = state["weights"], state["velocity"]


def train(images, labels, explosions=(), *, heal=True) -> tuple[list[float], RecordedEvents]:
    """The loss on all images after every epoch, and what happened."""
    model, heard, losses = Mlp(), record_events(), []
    faults = FaultPlan(lr=[first + more for first in explosions for more in range(LENGTH)], lr_by=TIMES)
    # These three arguments are all that healing takes.
    healing = {"state_callback": model.state, "load_callback": model.load, "backup_every": 20}
    r8 = R8Scheduler(
        len(labels), batch_size=BATCH_SIZE, num_epochs=EPOCHS, initial_lr=PEAK_LR, listeners=[heard],
        **(healing if heal else {"guard": FiniteGuard()}),
    )  # fmt: skip
    for _epoch in r8.epoch_iterator():
        for batch, lr in r8.batch_iterator():
            step = r8.global_step
            loss = model.forward(images[batch], labels[batch]).mean()
            model.step(faults.rate(step, lr))
            # Left alone, the run ends at the first loss that is not finite.
            if not heal and not math.isfinite(loss):
                return losses + [math.nan] * (EPOCHS - len(losses)), heard
            r8.update_with_loss(loss)
        losses.append(float(model.forward(images, labels).mean()))
    return losses, heard


def print_story(heard: RecordedEvents) -> None:
    print("\nWhat the healed run did")
    for event in heard:
        match event:
            case events.BatchRefused():
                print(f"  step {event.step:4d}  {event.reason}: loss {event.loss:.3g} refused,", end=" ")
                print(f"lr {event.lr:.3g} -> {event.next_lr:.3g}")
            case events.RolledBack():
                print(f"  step {event.step:4d}  model restored from the {event.source} of step {event.to_step}")
            case events.LrCapped():
                print(f"  step {event.step:4d}  learning rate stays below {event.ceiling:.3g}")
            case events.Probed():
                weights = "present weights" if event.is_present else f"backup of step {event.of_step}"
                print(f"  step {event.step:4d}  probe of the {weights}: loss {event.loss:.3g}, once {event.record:.3g}")
            case events.IncidentEnded():
                print(f"  step {event.step:4d}  settled: {event.text}")
            case events.LrRestored():
                print(f"  step {event.step:4d}  learning rate back on its schedule")


def main() -> None:
    # The first restore warns; the story below tells of all of them.
    warnings.simplefilter("ignore")
    digits = load_digits()
    images, labels = digits.data / 16, digits.target
    undisturbed, _ = train(images, labels)
    alone, _ = train(images, labels, EXPLOSIONS, heal=False)
    healed, heard = train(images, labels, EXPLOSIONS)
    steps = math.ceil(len(labels) / BATCH_SIZE)
    print(f"Learning rate x {TIMES:g} for {LENGTH} steps from step {', '.join(map(str, EXPLOSIONS))}\n")
    print(f"{'epoch':>5}{'undisturbed':>13}{'left alone':>12}{'healed':>9}")
    for epoch, row in enumerate(zip(undisturbed, alone, healed, strict=True)):
        mark = "   explosion" if any(epoch * steps <= first < (epoch + 1) * steps for first in EXPLOSIONS) else ""
        print(f"{epoch + 1:>5}{row[0]:>13.4f}{row[1]:>12.4f}{row[2]:>9.4f}{mark}")
    print_story(heard)
    ratio = healed[-1] / undisturbed[-1]
    verdict = "within 10 %" if ratio <= 1.1 else "NOT within 10 %"
    print(f"\nLoss at the end: {healed[-1]:.4f} healed, {undisturbed[-1]:.4f} undisturbed: x {ratio:.2f}, {verdict}")


if __name__ == "__main__":
    main()

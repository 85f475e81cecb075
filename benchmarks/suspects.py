"""How well wrong labels are found: `SampleTable.suspects` on digits of which some labels were changed.

    python benchmarks/suspects.py [--quick]

A perceptron with one hidden layer is trained on 1,300 of the scikit-learn digits for 20 epochs, B = 32, and asked
after a quarter of the training. A share of the labels was changed to another class at random; "rare" means that the
classes get rarer in ten steps, the last a tenth of the first. AUC is the area under the ROC curve of the mean loss,
which the score rises with. The gates were tuned on seeds 0 to 4 and 20 to 31; these are seeds 300 and up.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from learnit_r8 import Policy, R8Scheduler

NUM_TRAIN = 1300


class Digits:
    """Digits to train on and to test with; some labels wrong, some classes rare.

    Attributes:
        x: float32[N, 64].
        labels: int64[N], as the training sees them.
        is_wrong: bool[N].
    """

    def __init__(self, seed: int, *, wrong: float = 0.0, rarest: float = 1.0) -> None:
        digits = load_digits()
        rng = np.random.default_rng([7, seed])
        order = rng.permutation(len(digits.target))
        x, y = torch.from_numpy((digits.data[order] / 16).astype(np.float32)), digits.target[order].astype(np.int64)
        self.test_x, self.test_y = x[NUM_TRAIN:], torch.from_numpy(y[NUM_TRAIN:])
        chance = rarest ** (y[:NUM_TRAIN] / 9)
        kept = np.flatnonzero(rng.random(NUM_TRAIN) < chance)
        self.x, true = x[:NUM_TRAIN][kept], y[:NUM_TRAIN][kept]
        self.is_wrong = rng.random(len(kept)) < wrong
        self.labels = np.where(self.is_wrong, (true + rng.integers(1, 10, len(kept))) % 10, true)


def train(
    data: Digits,
    seed: int,
    *,
    epochs: int,
    policy: str | Policy = "shuffle",
    groups: bool = False,
    stop: int | None = None,
) -> tuple[R8Scheduler, nn.Module]:
    """Train a perceptron; the scheduler and the model after the training, or after ``stop`` steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    labels = torch.from_numpy(data.labels)
    named = data.labels if groups else None
    r8 = R8Scheduler(
        len(labels), batch_size=32, num_epochs=epochs, initial_lr=0.1, policy=policy, seed=seed, groups=named
    )
    while r8.global_step != stop and (ticket := r8.draw_if_any()) is not None:
        rows = torch.from_numpy(ticket.indices)
        losses = functional.cross_entropy(model(data.x[rows]), labels[rows], reduction="none")
        optimizer.param_groups[0]["lr"] = ticket.lr
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        r8.report(ticket, losses.detach().numpy())
    return r8, model


def area(scores: np.ndarray, is_wrong: np.ndarray) -> float:
    """The probability that a wrong label has a higher score than a right one."""
    rank = np.argsort(np.argsort(scores))
    count = is_wrong.sum()
    return float((rank[is_wrong].mean() - (count - 1) / 2) / (len(rank) - count)) if count else float("nan")


def found_in(seed: int, wrong: float, rarest: float) -> list[float]:
    """AUC, share flagged, precision, recall, lower and upper estimate of the noise rate."""
    data = Digits(seed, wrong=wrong, rarest=rarest)
    is_rare = rarest < 1
    policy = "balanced" if is_rare else "shuffle"
    r8, _ = train(data, seed, epochs=20, policy=policy, groups=is_rare, stop=5 * -(-len(data.labels) // 32))
    suspects = r8.table.suspects()
    flagged = np.zeros(len(data.labels), bool)
    flagged[suspects.indices] = True
    right = int((flagged & data.is_wrong).sum())
    return [
        area(r8.table.mean, data.is_wrong),
        float(flagged.mean()),
        right / flagged.sum() if flagged.any() else float("nan"),
        right / data.is_wrong.sum() if wrong else float("nan"),
        *suspects.noise_range,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three seeds in place of twenty")
    seeds = range(300, 303) if parser.parse_args().quick else range(300, 320)
    torch.set_num_threads(1)
    print(f"digits, asked after epoch 5 of 20, {len(seeds)} seeds: medians [lowest .. highest]")
    print(f"{'wrong labels':20} {'AUC':>22} {'flagged':>22} {'precision':>22} {'recall':>22} {'estimated rate':>18}")
    for wrong, rarest in ((0, 1), (0, 0.1), (0.02, 1), (0.05, 1), (0.1, 1), (0.2, 1), (0.4, 1), (0.2, 0.1)):
        values = np.array([found_in(seed, wrong, rarest) for seed in seeds]).T
        cells = [spread(row.tolist()) for row in values[:4]]
        low, high = (statistics.median(row) for row in values[4:].tolist())
        name = f"{wrong:.0%}" + (", rare, groups=" if rarest < 1 else "")
        print(f"{name:20} " + " ".join(f"{cell:>22}" for cell in cells) + f" {low:>12.3f} .. {high:.3f}", flush=True)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} [{min(values):.3f} .. {max(values):.3f}]"


if __name__ == "__main__":
    main()

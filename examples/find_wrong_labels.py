"""Make some labels wrong, train a small network once, and see which of them are found; look at one page.

    pip install ".[demo,torch]"
    python examples/find_wrong_labels.py                          # the digits, one label in five made wrong
    LEARNIT_R8_DATA=FOLDER python examples/find_wrong_labels.py --cifar10 # FOLDER/cifar10_jpeg.npz (needs Pillow)

It writes wrong_labels.html, the page, and wrong_labels.csv, the list, and says what training on all labels would have
cost. docs/labels.md explains the result. For your own: learnit-r8 labels FOLDER|TABLE.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import pairwise
from pathlib import Path

import cifar10_parts
import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from learnit_r8 import Focus
from learnit_r8.cli.samples import write_csv
from learnit_r8.report import write_report
from learnit_r8.torch import attach

DIGITS = [str(digit) for digit in range(10)]
OBJECTS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", action="store_true")
    parser.add_argument("--samples", type=int, default=10_000, help="of --cifar10 (default 10,000)")
    parser.add_argument("--wrong", type=float, help="share of labels to make wrong; .2 of the digits, .1 of CIFAR-10")
    parser.add_argument("--epochs", type=int, help="default 40; 12 for CIFAR-10")
    parser.add_argument("--precision", type=float, default=0.5, help="share of the list to be wrong (default .5)")
    parser.add_argument("--out", type=Path, default=Path("wrong_labels.html"), metavar="FILE")
    return parser.parse_args()


def digits():
    """1,200 of scikit-learn's digits to train on, and the other 597 to test: float32[N, 1, 8, 8] and int64[N]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    inputs = torch.tensor(data.images[order, None] / 16, dtype=torch.float32)
    labels = data.target[order].astype(np.int64)
    return (inputs[:1200], labels[:1200]), (inputs[1200:], labels[1200:])


def cifar10(num_samples):
    """The first images of CIFAR-10, and a fifth as many to test: float32[N, 3, 32, 32] and int64[N]."""
    path = cifar10_parts.DATA / "cifar10_jpeg.npz"
    if not path.is_file():
        raise SystemExit(f"LEARNIT_R8_DATA must name a folder with cifar10_jpeg.npz, got none in {path.parent}.")
    parts = cifar10_parts.load(path.parent, num_samples)
    return [(images.float() / 127.5 - 1, labels.numpy()) for images, labels in parts]


def made_wrong(labels, share):
    """The labels, some of them replaced by others at random; and which."""
    rng = np.random.default_rng(0)
    is_wrong = rng.random(len(labels)) < share
    other = (labels + rng.integers(1, 10, len(labels))) % 10
    return np.where(is_wrong, other, labels), is_wrong


def network(is_large):
    """Two layers for digits, three convolutions for larger images."""
    if not is_large:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    widths = (3, 32, 64, 128)
    layers = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
        for a, b in pairwise(widths)
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 128, 10))


def train(inputs, given, test, classes, *, policy, epochs, run_dir=None):
    """The scheduler after a training on the given labels, and the accuracy on the test part."""
    torch.manual_seed(0)
    model = network(inputs[0].numel() > 1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    adapter = attach(
        model, optimizer, TensorDataset(inputs, torch.from_numpy(given)), batch_size=32, num_epochs=epochs,
        policy=policy, groups=np.array(classes)[given], last_batch="fill", run_dir=run_dir or False,
        name="find wrong labels",
    )  # fmt: skip
    for _ in adapter.epochs():
        for x, y in adapter.loader():
            adapter.step(adapter.cross_entropy(model(x), y))
    adapter.close()
    with torch.no_grad():
        model.eval()
        right = torch.cat([model(part).argmax(1) for part in test[0].split(500)]) == torch.from_numpy(test[1])
    return adapter.scheduler, 100 * float(right.float().mean())


def listed(suspects, classes):
    """A row for each suspect: index, label, the label it should have, votes, score, reason."""
    columns = (suspects.indices, suspects.given, suspects.suggested, suspects.votes, suspects.score, suspects.why)
    for index, given, suggested, votes, score, why in zip(*columns, strict=True):
        better = "" if suggested < 0 else classes[suggested]
        yield int(index), classes[given], better, int(votes), float(score), why


def main():
    options = arguments()
    torch.set_num_threads(1)
    (inputs, labels), test = cifar10(options.samples) if options.cifar10 else digits()
    classes, share, epochs = (OBJECTS, 0.1, 12) if options.cifar10 else (DIGITS, 0.2, 40)
    given, is_wrong = made_wrong(labels, share if options.wrong is None else options.wrong)
    epochs = options.epochs or epochs

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        # What losses tell is left out, before the network knows it by heart; what only predictions tell weighs less.
        guard = Focus(noise_guard="weigh")
        r8, guarded = train(inputs, given, test, classes, policy=guard, epochs=epochs, run_dir=run)
        suspects = r8.table.suspects(precision=options.precision)
        rows = list(listed(suspects, classes))
        with open(options.out.with_suffix(".csv"), "w", encoding="utf-8", newline="") as file:
            write_csv(file, ("index", "label", "should_be", "votes", "score", "why"), rows)
        write_report(run, options.out, thumbnail=lambda index: inputs[index], precision=options.precision)

    print(f"{len(given):,} samples, {len(rows):,} labels look wrong{' (' + suspects.reason + ')' if not rows else ''}")
    if suspects.caution:
        print(f"of this list {suspects.caution}; for one of --precision, train without the guard")
    for index, label, better, votes, _, _ in rows[:8]:
        print(f"  {index} says {label}; predicted at {votes} visits or more: {better or '?'}")
    found = is_wrong[suspects.indices]
    better = suspects.suggested[found] == labels[suspects.indices[found]]
    print(f"made wrong were {is_wrong.sum():,}: {found.sum():,} of them are on the list, {better.sum():,} with")
    print(f"the right label suggested; {(~found).sum():,} others are on it")
    _, plain = train(inputs, given, test, classes, policy="balanced", epochs=epochs)
    print(f"test accuracy, every label believed:       {plain:.1f} %")
    print(f"test accuracy, as many visits, the guard:  {guarded:.1f} %")
    print(f"look at {options.out}; the list is in {options.out.with_suffix('.csv')}")


if __name__ == "__main__":
    main()

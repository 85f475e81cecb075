"""Find the wrong labels of a data set: train a small network once, look at one page.

    pip install ".[demo,torch]"
    python examples/find_wrong_labels.py                          # the digits, one label in five made wrong
    python examples/find_wrong_labels.py --images FOLDER          # FOLDER/<label>/<any name>.png (needs Pillow)
    python examples/find_wrong_labels.py --table FILE --label COLUMN      # a CSV file with a header
    LEARNIT_R8_DATA=FOLDER python examples/find_wrong_labels.py --cifar10 # FOLDER/cifar10_jpeg.npz (needs Pillow)

It writes wrong_labels.html, the page, and wrong_labels.csv, the list. If it flipped labels itself, it says how many of
them it found, and what training on all of them would have cost. docs/labels.md explains the result.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from find_wrong_labels_data import Data, cifar10, digits, images, table
from torch import nn
from torch.utils.data import TensorDataset

from learnit_r8 import Focus
from learnit_r8.dashboard.export import write_csv
from learnit_r8.report import write_report
from learnit_r8.torch import attach


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--images", type=Path, metavar="FOLDER")
    source.add_argument("--table", type=Path, metavar="FILE")
    source.add_argument("--cifar10", action="store_true")
    parser.add_argument("--label", metavar="COLUMN", help="of --table")
    parser.add_argument("--samples", type=int, default=10_000, help="of --cifar10 (default 10,000)")
    parser.add_argument("--wrong", type=float, help="share of labels to make wrong; .2 of the digits, .1 of CIFAR-10")
    parser.add_argument("--epochs", type=int, help="default 40; 12 for images")
    parser.add_argument("--precision", type=float, default=0.5, help="share of the list to be wrong (default .5)")
    parser.add_argument("--out", type=Path, default=Path("wrong_labels.html"), metavar="FILE")
    return parser.parse_args()


def load(options) -> Data:
    if options.images:
        return images(options.images)
    if options.table:
        return table(options.table, options.label)
    return cifar10(options.samples) if options.cifar10 else digits()


def made_wrong(labels, num_classes, share):
    """The labels, some of them replaced by others at random; and which."""
    rng = np.random.default_rng(0)
    is_wrong = rng.random(len(labels)) < share
    other = (labels + rng.integers(1, num_classes, len(labels))) % num_classes
    return np.where(is_wrong, other, labels), is_wrong


def network(inputs, num_classes):
    """Two layers for tables and tiny images, three convolutions for larger ones."""
    if inputs[0].numel() < 1000:
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 128), nn.ReLU(), nn.Linear(128, num_classes))
    widths = (inputs.shape[1], 32, 64, 128)
    layers = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
        for a, b in pairwise(widths)
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 128, num_classes))


def train(data, given, *, policy, epochs, run_dir=None):
    """The scheduler after a training on the given labels, and the accuracy on the test part, if there is one."""
    torch.manual_seed(0)
    model = network(data.inputs, len(data.classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    adapter = attach(
        model, optimizer, TensorDataset(data.inputs, torch.from_numpy(given)), batch_size=32,
        num_epochs=epochs, policy=policy, groups=np.array(data.classes)[given], sample_ids=data.names,
        last_batch="fill", run_dir=run_dir or False, name="find wrong labels",
    )  # fmt: skip
    for _ in adapter.epochs():
        for inputs, labels in adapter.loader():
            adapter.step(adapter.cross_entropy(model(inputs), labels))
    adapter.close()
    if data.test is None:
        return adapter.scheduler, float("nan")
    with torch.no_grad():
        model.eval()
        right = torch.cat([model(part).argmax(1) for part in data.test[0].split(500)]) == torch.from_numpy(data.test[1])
    return adapter.scheduler, 100 * float(right.float().mean())


def listed(suspects, data):
    """A row for each suspect: index, name, label, the label it should have, votes, score, reason."""
    columns = (suspects.indices, suspects.given, suspects.suggested, suspects.votes, suspects.score, suspects.why)
    for index, given, suggested, votes, score, why in zip(*columns, strict=True):
        name = str(index) if data.names is None else str(data.names[index])
        better = "" if suggested < 0 else data.classes[suggested]
        yield int(index), name, data.classes[given], better, int(votes), float(score), why


def main():
    options = arguments()
    torch.set_num_threads(1)
    data = load(options)
    has_own_labels = bool(options.images or options.table)
    share = options.wrong if options.wrong is not None else 0.0 if has_own_labels else 0.1 if options.cifar10 else 0.2
    given, is_wrong = made_wrong(data.labels, len(data.classes), share)
    epochs = options.epochs or (40 if data.inputs[0].numel() < 1000 else 12)

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        # The guard leaves out what looks wrong, before the network knows it by heart.
        r8, guarded = train(data, given, policy=Focus(noise_guard=True), epochs=epochs, run_dir=run)
        suspects = r8.table.suspects(precision=options.precision)
        rows = list(listed(suspects, data))
        with open(options.out.with_suffix(".csv"), "w", encoding="utf-8", newline="") as file:
            write_csv(file, ("index", "name", "label", "should_be", "votes", "score", "why"), rows)
        write_report(run, options.out, thumbnail=data.picture, describe=data.describe, precision=options.precision)

    print(f"{len(given):,} samples, {len(rows):,} labels look wrong{' (' + suspects.reason + ')' if not rows else ''}")
    for _, name, label, better, votes, _, _ in rows[:8]:
        print(f"  {name} says {label}; predicted at {votes} visits or more: {better or '?'}")
    if share:
        found = is_wrong[suspects.indices]
        better = suspects.suggested[found] == data.labels[suspects.indices[found]]
        print(f"made wrong were {is_wrong.sum():,}: {found.sum():,} of them are on the list, {better.sum():,} with")
        print(f"the right label suggested; {(~found).sum():,} others are on it")
        _, plain = train(data, given, policy="balanced", epochs=epochs)
        print(f"test accuracy, every label believed:       {plain:.1f} %")
        print(f"test accuracy, as many visits, the guard:  {guarded:.1f} %")
    print(f"look at {options.out}; the list is in {options.out.with_suffix('.csv')}")


if __name__ == "__main__":
    main()

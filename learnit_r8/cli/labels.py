"""``learnit-r8 labels``: train a small network once, and write a page of the labels that look wrong."""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..dashboard.text import clean
from ..events.codec import strict_json
from ..journal.run import free_of_runs
from ..table.labels.suspects import Suspects
from .label_data import LabelledData, read_images, read_table

LARGE, EPOCHS, IMAGE_EPOCHS = 1000, 40, 12
"""Numbers of a sample from which it is an image for convolutions; epochs for other samples and for these."""


def labels(options: argparse.Namespace) -> int:
    """Train, write the page, and say what was found."""
    source = Path(options.source)
    data = read_images(source) if source.is_dir() else read_table(source, options.label)
    out = free_of_runs(options.out)
    try:
        import torch
    except ImportError:
        raise ValueError("labels trains a network with torch, which is not installed: pip install torch.") from None

    from ..report import write_report

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        table = _trained(data, options, Path(folder) / "run", torch)
        found = table.suspects(precision=options.precision)
        write_report(
            Path(folder) / "run", out, thumbnail=data.picture, describe=data.describe, precision=options.precision
        )
    rows = _rows_of(found, data)
    if options.json:
        facts = {
            "page": str(out),
            "num_samples": len(data.labels),
            "num_suspects": len(rows),
            "precision": found.precision,
            "method": found.method,
            "reason": found.reason,
            "samples": rows,
        }
        print(strict_json(facts, non_finite=lambda value: None))
        return 0
    reason = f" ({found.reason})" if found.reason else ""
    print(f"{len(data.labels):,} samples, {len(rows):,} labels look wrong{reason}; the page is {clean(str(out))}")
    for row in rows[: options.top]:
        better = row["predicted_label"] or "?"
        print(clean(f"  {row['name']} says {row['given_label']}, should perhaps be {better}"))
    return 0


def _rows_of(found: Suspects, data: LabelledData) -> list[dict[str, Any]]:
    """What is said of each label that looks wrong, most suspicious first."""
    columns = (found.indices, found.given, found.suggested, found.votes, found.score)
    return [
        {
            "index": index,
            "name": str(index) if data.names is None else data.names[index],
            "given_label": data.classes[given],
            "predicted_label": data.classes[better] if better >= 0 else None,
            "votes": votes,
            "score": score,
        }
        for index, given, better, votes, score in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _network(inputs: Any, num_classes: int, nn: Any) -> Any:
    """Two layers for tables and tiny images, three convolutions for larger ones."""
    size = int(np.prod(inputs.shape[1:]))
    if size < LARGE:
        return nn.Sequential(nn.Flatten(), nn.Linear(size, 128), nn.ReLU(), nn.Linear(128, num_classes))
    layers = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
        for a, b in itertools.pairwise((inputs.shape[1], 32, 64, 128))
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 128, num_classes))


def _trained(data: LabelledData, options: argparse.Namespace, run: Path, torch: Any) -> Any:
    """The table of a training, up to the epochs or the minutes asked for."""
    from .. import Focus
    from ..torch import attach

    model = _network(data.inputs, len(data.classes), torch.nn)
    usual = EPOCHS if data.inputs[0].size < LARGE else IMAGE_EPOCHS
    budget: dict[str, Any] = {"num_epochs": options.epochs or usual}
    if options.minutes is not None:
        budget = {"train_duration_seconds": 60 * options.minutes}
    # Each batch takes a sample of each class at least.
    batch = min(max(32, 2 * len(data.classes)), len(data.labels))
    groups = np.array(data.classes)[data.labels] if len(data.classes) < batch else None
    inputs, targets = torch.from_numpy(data.inputs), torch.from_numpy(data.labels)
    adapter = attach(
        model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        torch.utils.data.TensorDataset(inputs, targets), batch_size=batch, groups=groups, sample_ids=data.names,
        policy=Focus(noise_guard=True) if groups is not None else "balanced", last_batch="fill", run_dir=run,
        name="labels", seed=0, **budget,
    )  # fmt: skip
    r8, bar = adapter.scheduler, sys.stderr.isatty() and not options.json
    for _ in adapter.epochs():
        for x, y in adapter.loader():
            adapter.step(adapter.cross_entropy(model(x), y))
            if bar:
                print(f"\r{r8.progress:4.0%} {'#' * int(40 * r8.progress):40}", end="", file=sys.stderr)
    if bar:
        print(file=sys.stderr)
    adapter.close()
    return r8.table

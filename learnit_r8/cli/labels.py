"""``learnit-r8 labels``: train a small network on images or a table, and list the labels that look wrong."""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._validation import import_needed
from ..events.codec import strict_json
from ..events.text import clean
from ..journal.run import free_of_runs
from ..journal.samples import verdict_text
from ..state.durable_io import open_output
from ..table.labels.suspects import Suspects
from .samples import write_csv

COLUMNS = ("index", "name", "given_label", "predicted_label", "votes", "score")
"""The columns of the list."""

LARGE, EPOCHS, IMAGE_EPOCHS = 1000, 40, 12
"""Numbers of a sample from which it is an image for convolutions; epochs for other samples and for these."""


def labels(options: argparse.Namespace) -> int:
    """Train, write the page and the list, and say what was found."""
    source = Path(options.source)
    data = read_images(source) if source.is_dir() else read_table(source, options.label)
    out, listed = free_of_runs(options.out), free_of_runs(options.list)
    _check_outputs(source, {"--out": out, "--list": listed})
    torch = import_needed("torch", "labels trains a network, and needs torch", "pip install torch")
    from ..report import write_report

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        table = _trained(data, options, Path(folder) / "run", torch)
        found = table.suspects(precision=options.precision)
        look: dict[str, Any] = {"thumbnail": data.picture, "describe": data.describe}
        write_report(Path(folder) / "run", out, precision=options.precision, **look)
    rows = _rows_of(found, data)
    with open(open_output(listed), "w", encoding="utf-8", newline="") as file:
        write_csv(file, COLUMNS, [[row[name] for name in COLUMNS] for row in rows])
    if options.json:
        facts = {
            "page": str(out), "list": str(listed), "label_column": data.label_column, "id_column": data.id_column,
            "num_samples": len(data.labels), "num_suspects": len(rows), "precision": found.precision,
            "method": found.method, "reason": found.reason, "samples": rows,
        }  # fmt: skip
        print(strict_json(facts, non_finite=lambda value: None))
        return 0
    for line in _said(found, data):
        print(clean(line, 400))
    for row in rows[: options.top]:
        better = row["predicted_label"] or "?"
        print(clean(f"  {row['name']} says {row['given_label']}, should perhaps be {better}"))
    print(f"look at {clean(str(out))}; the whole list is in {clean(str(listed))}")
    return 0


def _check_outputs(source: Path, outputs: dict[str, Path]) -> None:
    """Raise ValueError unless what a training finds can be written, and overwrites nothing that it needs."""
    taken = {source.resolve(): "the table itself"}
    for name, path in outputs.items():
        place = path.resolve()
        if place in taken:
            raise ValueError(f"{name} must not be {taken[place]}, got {str(path)!r}.")
        if place.is_dir() or not os.access(place if place.exists() else place.parent, os.W_OK):
            raise ValueError(f"{name} must be a file that can be written in a folder that is there, got {str(path)!r}.")
        taken[place] = f"the file of {name}"


def _said(found: Suspects, data: LabelledData) -> Iterator[str]:
    """How many labels look wrong, and how sure that is."""
    if data.label_column:
        ids = f", ids in {data.id_column!r}" if data.id_column else ""
        yield f"labels are in the column {data.label_column!r}{ids}"
    if data.left_out:
        yield f"left out: {', '.join(data.left_out)}"
    yield verdict_text(found)


def _rows_of(found: Suspects, data: LabelledData) -> list[dict[str, Any]]:
    """What is said of each label that looks wrong, most suspicious first."""
    columns = (found.indices, found.given, found.suggested, found.votes, found.score)
    rows = []
    for index, given, better, votes, score in zip(*(column.tolist() for column in columns), strict=True):
        name, suggested = data.names[index] if data.names else str(index), data.classes[better] if better >= 0 else None
        rows.append(dict(zip(COLUMNS, (index, name, data.classes[given], suggested, votes, score), strict=True)))
    return rows


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


SIDE = 32
"""Pixels a side of the images in a folder, for the network."""

MOST_VALUES = 50
"""Most different texts in a column of a table that is used."""

LABEL_NAMES, ID_NAMES = {"label", "labels", "class", "target", "y"}, {"", "id", "index", "name", "file", "path", "key"}
"""What columns of labels and of ids are called, the latter at the end of their names."""

MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
"""What cells without a value hold."""

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}


class LabelledData(NamedTuple):
    """A data set with one label a sample.

    Attributes:
        inputs: float32[N, ...].
        labels: int64[N], classes.
        classes: The names of the classes.
        names: N names of samples; None for their numbers.
        label_column, id_column: Where labels and names stand in a table; "" for none.
        left_out: Rows and columns of a table that say nothing, in words.
        picture: Returns a picture of a sample for the page; None without.
        describe: Returns a text about it; None without.
    """

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]
    classes: list[str]
    names: list[str] | None = None
    picture: Callable[[int], Any] | None = None
    describe: Callable[[int], str] | None = None
    label_column: str = ""
    id_column: str = ""
    left_out: tuple[str, ...] = ()


def read_images(folder: Path) -> LabelledData:
    """The images in a folder, in one folder for each label, as torchvision's ImageFolder takes them.

    Raises:
        ValueError: there are no two labels, or an image cannot be read.
    """
    image_library = import_needed("PIL.Image", "labels of images needs Pillow", "pip install pillow")
    classes = sorted(each.name for each in folder.iterdir() if each.is_dir())
    paths = [path for name in classes for path in sorted((folder / name).rglob("*")) if path.suffix.lower() in ENDINGS]
    names = [path.relative_to(folder).as_posix() for path in paths]
    classes = sorted({name.partition("/")[0] for name in names})
    if len(classes) < 2:
        need = "source must be a folder with a folder of images for each of two labels or more"
        raise ValueError(f"{need}, got {len(classes)} in {str(folder)!r}.")

    def picture(index: int, side: int = 64) -> NDArray[np.uint8]:
        try:
            with image_library.open(paths[index]) as image:
                return np.asarray(image.convert("RGB").resize((side, side)), np.uint8)
        except (OSError, ValueError) as error:
            raise ValueError(f"{names[index]} must be an image, got one that cannot be read: {error}.") from None

    pixels = np.stack([picture(index, SIDE) for index in range(len(paths))])
    labels = np.array([classes.index(name.partition("/")[0]) for name in names])
    return LabelledData(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1, labels, classes, names, picture)


def read_table(path: Path, column: str | None) -> LabelledData:
    """A CSV file with a header: numbers are standardised, texts with up to 50 different values become one column each.

    Missing numbers (empty, NA, NaN, null, none, ?) take the mean of their column; columns of one value and rows without
    a label are left out. The column of labels is that which is called so, or else the only one with few different
    texts; a column of ids, if there is one, names the samples.

    Raises:
        ValueError: the column of labels is none of the table's, or not to be guessed, or holds one label only, or
            hardly one twice; or no other can be used.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.DictReader(file, restval="") if row]
    longer = next((number for number, row in enumerate(rows, 1) if None in row), None)
    if longer is not None:
        need = f"{str(path)!r} must be a CSV file with the names of its columns first"
        raise ValueError(f"{need}, got more values than names in its row {longer}.")
    if not rows or (column is not None and column not in rows[0]):
        known = ", ".join(rows[0]) if rows else "empty"
        raise ValueError(f"--label must be a column of {str(path)!r} ({known}), got {column}.")
    column = _label_column(rows, str(path)) if column is None else column
    ids = next((name for name in rows[0] if name != column and _is_id(name, [row[name] for row in rows])), "")
    every, rows = rows, [row for row in rows if row[column].strip()]
    unlabelled = len(every) - len(rows)
    classes = sorted({row[column] for row in rows})
    names = [name for name in rows[0] if name not in (column, ids)] if rows else []
    parts = {name: _numbers([row[name] or "" for row in rows]) for name in names}
    inputs = [part for part in parts.values() if part is not None]
    unused = [name for name, part in parts.items() if part is None]
    left_out = [f"{unlabelled:,} rows without a label"] if unlabelled else []
    left_out += [f"columns of one value or too many texts ({', '.join(unused)})"] if unused else []
    if len(classes) < 2 or not inputs:
        need = f"{str(path)!r} must have two labels or more and a column to predict them from"
        raise ValueError(f"{need}, got {len(classes)} and {len(inputs)}.")
    if 2 * len(classes) > len(rows):
        got = f"{len(classes):,} labels in {len(rows):,} rows of {column!r}: names and measured numbers are no labels"
        raise ValueError(f"--label must be a column whose labels each stand in several rows, got {got}.")
    labels = np.array([classes.index(row[column]) for row in rows])

    def describe(index: int) -> str:
        return ", ".join(f"{name} {value}" for name, value in rows[index].items() if name != column)

    return LabelledData(
        np.concatenate(inputs, axis=1).astype(np.float32), labels, classes, [row[ids] for row in rows] if ids else None,
        describe=describe, label_column=column, id_column=ids, left_out=tuple(left_out),
    )  # fmt: skip


def _label_column(rows: list[dict[str, str]], path: str) -> str:
    """The column of labels of a table whose user has not named it."""
    called = [name for name in rows[0] if name.strip().lower() in LABEL_NAMES]
    values = {name: {row[name] for row in rows} for name in rows[0]}
    few = [name for name, texts in values.items() if 2 <= len(texts) <= min(MOST_VALUES, len(rows) // 4)]
    # Measured numbers and switches of 0 and 1 have few values, too; names of classes are seldom numbers.
    texts = [name for name in few if not any(_is_number(text) for text in values[name])]
    likely = called or (few if len(few) == 1 else texts)
    if len(likely) != 1:
        what = f"several that may be it ({', '.join(likely or few)})" if likely or few else "no column with few values"
        raise ValueError(f"--label must name the column of labels in {path!r}, got none, and {what}.")
    return likely[0]


def _is_id(name: str, texts: list[str]) -> bool:
    """Whether a column names the samples: all different, and called so, or no numbers, or counted in steps of one."""
    if len(set(texts)) < len(texts):
        return False
    if name.strip().lower().replace(" ", "_").rpartition("_")[2] in ID_NAMES:
        return True
    if not all(_is_number(text) for text in texts):
        return not any(_is_number(text) for text in texts)
    return all(float(after) - float(before) == 1 for before, after in itertools.pairwise(texts))


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _numbers(texts: list[str]) -> NDArray[np.float64] | None:
    """float64[N, K], a column as numbers of mean 0 and spread 1, or 0 and 1; None for one value, or texts of too many
    kinds.
    """
    texts = [text.strip() for text in texts]
    try:
        values = np.array([np.nan if text.lower() in MISSING else float(text) for text in texts])
    except ValueError:
        kinds = sorted(set(texts))
        alike = np.array([[text == kind for kind in kinds] for text in texts], float)
        return alike if 1 < len(kinds) <= MOST_VALUES else None
    known = np.isfinite(values)
    if not known.any() or not np.ptp(values[known]) > 0:
        return None
    values = np.where(known, values, values[known].mean())
    scaled: NDArray[np.float64] = ((values - values.mean()) / max(values.std(), 1e-9))[:, None]
    return scaled

"""The table of the contract: its columns, the cells that cannot be, and those that are red today, with their harm."""

from __future__ import annotations

from typing import NamedTuple

import pytest


class Place(NamedTuple):
    """Where a column is.

    Attributes:
        module: Of its driver, beside this one.
        framework: What it imports, to group tests by.
        own: Whether its batches and rates are its own.
        page: What a reader calls it.
    """

    module: str
    framework: str
    own: bool
    page: str


COLUMNS = {
    "numpy": Place("columns_numpy", "numpy", False, "your loop, R8's batches"),
    "numpy own": Place("columns_numpy", "numpy", True, "your loop, your batches"),
    "attach": Place("columns_torch", "torch", False, "`attach`, R8's batches"),
    "attach loader": Place("columns_torch", "torch", True, "`attach`, a DataLoader"),
    "attach stream": Place("columns_torch", "torch", True, "`attach`, a stream"),
    "epoch_stream": Place("columns_streams", "torch", False, "`epoch_stream`"),
    "loops": Place("columns_streams", "torch", False, "`loop` over `scheduled` batches"),
    "accelerate": Place("columns_accelerate", "accelerate", False, "accelerate, R8's batches"),
    "accelerate own": Place("columns_accelerate", "accelerate", True, "accelerate, your prepared loader"),
    "lightning": Place("columns_lightning", "lightning", False, "Lightning, `R8Loader`"),
    "lightning own": Place("columns_lightning", "lightning", True, "Lightning, your loader"),
    "trainer": Place("columns_transformers", "transformers", False, "Hugging Face Trainer, R8's batches"),
    "trainer own": Place("columns_transformers", "transformers", True, "Hugging Face Trainer, its own batches"),
    "keras": Place("columns_keras", "keras", False, "Keras `fit`, `R8Dataset`"),
    "keras own": Place("columns_keras", "keras", True, "Keras `fit`, your PyDataset"),
    "keras tf.data": Place("columns_keras", "keras", True, "Keras `fit`, your tf.data"),
    "keras step": Place("columns_keras", "keras", True, "Keras `fit`, your `train_step`"),
    "train_loop": Place("columns_flax", "flax", False, "Flax `train_loop`, R8's batches"),
    "train_loop own": Place("columns_flax", "flax", True, "Flax `train_loop`, your data"),
    "managed state": Place("columns_flax", "flax", True, "`ManagedState`, a TrainState"),
    "managed nnx": Place("columns_flax", "flax", True, "`ManagedState`, NNX"),
    "managed equinox": Place("columns_flax", "equinox", True, "`ManagedState`, Equinox"),
}
OWN = [name for name, place in COLUMNS.items() if place.own]
DRAWN = [name for name, place in COLUMNS.items() if not place.own]

CANNOT: dict[tuple[str, str], str] = {
    (
        "killed_in_mid_epoch",
        "lightning own",
    ): "Lightning gives an interrupted epoch the first batches of the loader again"
}
"""By rule and column: what a framework cannot keep, and why. The page of limits shows it."""

MEANINGLESS = {
    ("words_of_a_heal", name): "a refused step leaves its state as it was, so there is nothing to put back"
    for name in ("loops", "train_loop", "train_loop own", "managed state", "managed nnx", "managed equinox")
}
"""By rule and column: why there is nothing to ask."""

RED: dict[tuple[str, str], str] = {}
"""By rule and column: the harm that is there today. Who mends it takes the line out."""


MAY_DIFFER = {
    "lightning": (1, "the loss that an epoch logs, as the mean of samples' losses is rounded otherwise"),
}
"""By column: by how many units in the last place of a float32 its logged losses may differ, and why."""


SLOW = ["keras tf.data", "keras step", "train_loop", "managed nnx", "managed equinox"]
"""Columns that run with ``-m slow`` alone, as one like them runs by default."""

PROGRAM = {
    (row, name)
    for row, names in {
        "healthy_quiet": ("keras", "train_loop own"),
        "hidden_nan": ("keras own", "train_loop own"),
        "huge_batch": ("keras", "keras own", "train_loop own"),
        "metrics": ("keras own", "train_loop own"),
        "nan_batch": ("keras own", "train_loop own"),
        "recurring_hidden_nan": tuple(name for name in COLUMNS if name not in ("attach loader", "lightning own")),
        "nan_weight_after_a_resume": ("keras own", "train_loop own", "lightning own", "trainer own"),
    }.items()
    for name in names
}
"""By rule and column: tests that run with ``-m program``, as one like them runs by default and each takes seconds."""


def rule(columns=tuple(COLUMNS)):
    """Let a test of a rule run in each of these columns."""

    def decorate(test):
        row = test.__name__.removeprefix("test_")
        params = []
        for name in columns:
            marks = [pytest.mark.slow] if name in SLOW else [pytest.mark.program] * ((row, name) in PROGRAM)
            without = CANNOT.get((row, name)) or MEANINGLESS.get((row, name))
            if without:
                marks.append(pytest.mark.skip(reason=without))
            if (row, name) in RED:
                marks.append(pytest.mark.xfail(strict=True, reason=RED[row, name]))
            params.append(pytest.param(name, id=name, marks=marks))
        return pytest.mark.parametrize("column", params, indirect=True)(test)

    return decorate


HEADING = "## What a framework cannot keep"
"""Of the section of the page of limits that holds the table."""


def table():
    """The rows of the page of limits, in Markdown: rule, way of training, why."""
    lines = ["| rule | way of training | why not |", "|---|---|---|"]
    for (row, column), why in sorted(CANNOT.items()):
        lines.append(f"| {row.replace('_', ' ')} | {COLUMNS[column].page} | {why} |")
    return "\n".join(lines)

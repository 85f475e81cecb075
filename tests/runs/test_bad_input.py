"""Every wrong argument is named, with its value, when the scheduler is built, before anything is changed."""

import re

import numpy as np
import pytest

from learnit_r8 import Policy, R8Scheduler
from learnit_r8.engine.values import grouped
from tests.drive import make

GOOD = {"num_samples": 12, "batch_size": 4, "num_epochs": 2}

TABLE = [
    *[
        ({"num_samples": value}, ValueError, r"num_samples must be a whole number (in \[1, \d+\]|>= 1), got")
        for value in (0, -1, 1.5, "12", True, 2**33, [12], float("nan"))
    ],
    ({"num_samples": None}, ValueError, "batch_size needs num_samples, so that the scheduler draws the batches, got 4"),
    *[
        ({"batch_size": value}, ValueError, r"batch_size must be a whole number (in \[1, \d+\]|>= 1), got")
        for value in (0, -4, 4.0, "4", None, False)
    ],
    *[
        ({"seed": value}, ValueError, r"seed must be a whole number (in \[0, \d+\]|>= 0), got")
        for value in (-1, 0.5, None, "0", True)
    ],
    (
        {"num_epochs": None},
        ValueError,
        "exactly one of num_epochs, num_steps, train_duration_seconds, num_tokens must be given, got none of them",
    ),
    (
        {"num_steps": 5},
        ValueError,
        r"exactly one of num_epochs, .* must be given, got \{'num_epochs': 2, 'num_steps': 5\}",
    ),
    ({"train_duration_seconds": 5}, ValueError, "exactly one of"),
    *[
        ({"num_epochs": value}, ValueError, "num_epochs must be a number > 0 and finite, got")
        for value in (0, -1, float("inf"), float("nan"), "2", True)
    ],
    *[
        ({"num_epochs": None, "num_steps": value}, ValueError, "num_steps must be a")
        for value in (0, -1, 1.5, "2", float("inf"))
    ],
    *[
        (
            {"num_epochs": None, "train_duration_seconds": value},
            ValueError,
            "train_duration_seconds must be a number > 0 and finite, got",
        )
        for value in (0, -1.0, "30s")
    ],
    *[
        ({"initial_lr": value}, ValueError, "initial_lr must be > 0 and finite, got")
        for value in (0, -0.1, float("inf"), float("nan"), "0.1", None)
    ],
    ({"min_lr": 0.02}, ValueError, r"min_lr must be in \[0, initial_lr=0\.01\], got"),
    ({"min_lr": -1}, ValueError, r"min_lr must be in \[0, initial_lr=0\.01\], got"),
    *[
        ({"warmup_proportion": value}, ValueError, r"warmup_proportion must be in \[0, 1\], got")
        for value in (-0.1, 1.1, float("nan"), "a third")
    ],
    ({"scheduler_mode": "cosin"}, ValueError, "scheduler_mode must be one of .* or a function of progress, got"),
    ({"scheduler_mode": None}, TypeError, "scheduler_mode must be one of .* or a function of progress, got"),
    ({"policy": "balance"}, ValueError, r"policy must be one of \['balanced', .*\] or a Policy, got"),
    ({"policy": Policy}, TypeError, "policy must be a name or a Policy, got"),
    ({"policy": None}, TypeError, "policy must be a name or a Policy, got"),
    ({"estimator": "relativ"}, ValueError, r"estimator must be one of \['additive', 'relative'\], got"),
    ({"estimator": None}, ValueError, "estimator must be one of"),
    *[({"alpha": value}, ValueError, r"alpha must be in \(0, 1\], got") for value in (0, -0.1, 1.1, float("nan"))],
    ({"alpha": "0.1"}, (TypeError, ValueError), r"alpha must be in \(0, 1\], got"),
    ({"groups": [0, 1]}, ValueError, r"groups must have shape \(12,\), one label per sample, got \(2,\)"),
    ({"sample_ids": ["a"]}, ValueError, "sample_ids must have num_samples=12 entries, got 1"),
    ({"sample_ids": 5}, (TypeError, ValueError), "sample_ids must"),
    ({"last_batch": "long"}, ValueError, r"last_batch must be one of \('short', 'drop', 'fill'\), got"),
    (
        {"batch_size": 13, "last_batch": "drop"},
        ValueError,
        "last_batch='drop' needs num_samples >= batch_size=13, got 12",
    ),
    *[
        ({f"{name}_callback": "f"}, TypeError, f"{name}_callback must be a function or None, got")
        for name in ("save", "load", "state")
    ],
    *[
        (
            {f"{name}_callback": lambda one, two, three: None},
            TypeError,
            rf"{name}_callback must take .* signature \(one",
        )
        for name in ("save", "load", "state")
    ],
    (
        {"load_callback": lambda: None},
        TypeError,
        r"load_callback must take \(source\), with the keywords .* or without, got",
    ),
    *[
        (
            {"backup_every": value, "state_callback": dict},
            ValueError,
            "backup_every must be a number of steps >= 1, a time such as",
        )
        for value in (0, "30", 1.5)
    ],
    ({"backup_every": 5}, ValueError, "backup_every needs a state_callback that returns the model state, got"),
    *[
        (
            {"checkpoint_every": value, "checkpoint_dir": "x"},
            ValueError,
            "checkpoint_every must be a number of steps >= 1, a time such as",
        )
        for value in (-1, "1 week", True)
    ],
    ({"checkpoint_every": 5}, ValueError, "checkpoint_every needs a checkpoint_dir or a save_callback, got"),
    ({"checkpoint_dir": ""}, ValueError, "checkpoint_dir must name a folder, got"),
    ({"checkpoint_dir": 5}, (TypeError, ValueError), "checkpoint_dir must name a folder, got"),
    *[
        ({"keep_checkpoints": value}, ValueError, "keep_checkpoints must be a whole number >= 1, got")
        for value in (0, -1, 1.5, None)
    ],
    ({"auto_find_lr": True}, ValueError, "auto_find_lr needs a load_callback to restore the model"),
    (
        {"auto_find_lr": True, "load_callback": print, "scheduler_mode": abs},
        ValueError,
        "auto_find_lr needs .* a scheduler_mode given by name",
    ),
    (
        {"scheduler_mode": lambda progress: -1.0},
        ValueError,
        "scheduler_mode must return a learning rate >= 0 and finite, got",
    ),
    ({"listeners": [print, "print"]}, TypeError, "listeners must be callables that take an event, got"),
    ({"listeners": print}, TypeError, "listeners must be"),
    ({"guard": "spikes"}, (TypeError, ValueError), "guard must"),
    ({"recovery": None}, TypeError, "recovery must"),
    ({"clock": 3.0}, TypeError, "clock must"),
]


def name_of(wrong):
    """A test's name without memory addresses, which differ between processes."""
    return re.sub(" at 0x[0-9a-f]+", "", str(wrong))[:50]


@pytest.mark.parametrize(("wrong", "kind", "text"), TABLE, ids=[name_of(row[0]) for row in TABLE])
def test_wrong_argument_is_named(wrong, kind, text, tmp_path, monkeypatch):
    """A wrong argument is refused by name, and nothing is written or reported before."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=text):
        R8Scheduler(**grouped({**GOOD, **wrong}))

    assert list(tmp_path.iterdir()) == []


SHOWN = [
    row
    for row in TABLE
    if len(row[0]) == 1
    and row[2].endswith("got")
    and not row[0].keys() & {"listeners", "scheduler_mode"}
    # Of a sequence its length is shown, as it may be the data set.
    and not isinstance(next(iter(row[0].values())), list)
]


@pytest.mark.parametrize(("wrong", "kind", "text"), SHOWN, ids=[name_of(row[0]) for row in SHOWN])
def test_wrong_value_is_shown(wrong, kind, text):
    """The error ends with the given value."""
    (value,) = wrong.values()
    with pytest.raises(kind) as error:
        R8Scheduler(**grouped({**GOOD, **wrong}))

    assert re.search(rf"got {re.escape(repr(value))}", str(error.value))


def test_only_num_samples_is_positional():
    """All arguments except the number of samples are keyword-only."""
    with pytest.raises(TypeError, match="takes one positional argument"):
        R8Scheduler(12, 4, num_epochs=2)


@pytest.mark.parametrize("name", ["momentum", "shuffle"])
def test_unknown_argument_is_refused(name):
    """An unknown argument is refused, not ignored."""
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        make(**{name: None})


def test_unknown_name_among_policies_lists_them():
    """The error for an unknown policy lists all policies."""
    with pytest.raises(ValueError, match=r"\['balanced', 'focus', 'quartile', 'shuffle'\]"):
        make(policy="x")


@pytest.mark.parametrize(
    "right",
    [
        {"num_epochs": 1},
        {"num_epochs": 0.5},
        {"num_epochs": np.float64(1.5)},
        {"num_epochs": None, "num_steps": 1},
        {"num_epochs": None, "num_steps": np.int64(3)},
        {"initial_lr": 1},
        {"initial_lr": np.float32(0.5)},
        {"min_lr": 0.01},
        {"warmup_proportion": 0},
        {"warmup_proportion": 1},
        {"alpha": 1},
        {"groups": np.arange(12) % 3},
        {"groups": ["cat", "dog"] * 6},
        {"sample_ids": [f"{i}.png" for i in range(12)]},
        {"batch_size": 100},
        {"keep_checkpoints": 1},
        {"seed": 2**63},
    ],
    ids=str,
)
def test_edge_of_each_range_is_accepted(right):
    """The ends of every range, and numpy numbers, are accepted."""
    assert R8Scheduler(**grouped({**GOOD, **right})).draw().lr >= 0

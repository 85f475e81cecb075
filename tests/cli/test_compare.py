"""``compare``."""

import dataclasses
import json

import pytest

from learnit_r8 import events
from learnit_r8.dashboard.state.comparison import figures_of, settings_of
from learnit_r8.dashboard.state.view import View
from learnit_r8.events.steps import is_lower_better
from tests.cli.commands import GONE, SEVEN, printed
from tests.dashboard.state.told import start, steps
from tests.journal.run_folders import STARTED, folder_with


@pytest.fixture
def better(tmp_path):
    """A run with another rate and a better accuracy."""
    started = dataclasses.replace(STARTED, name="other", settings={"initial_lr": "0.2", "machine": "here"})
    logged = events.MetricsLogged(300, 150.0, 300, {"=accuracy": 0.875, "loss": 0.75})
    return folder_with(tmp_path / "20260104-other", started, *SEVEN, logged, process=GONE)


def test_runs_beside_each_other(run, better, capsys):
    """`compare` prints the figures of both runs, marks the better one, and names only settings that differ."""
    code, lines = printed(capsys, "compare", run, better)
    rows = {line.split("  ")[0]: line.split()[-3:] for line in lines if line}

    assert code == 0
    assert lines[0].split() == ["20260101-it", "20260104-other"]
    assert rows["=accuracy, best"][-3:] == ["0.75", "0.875", "*"]
    assert rows["loss, last"][-3:] == ["0.5", "*", "0.75"]
    assert "*" not in "".join(rows["best smoothed loss"])
    assert lines[-1].split() == ["initial_lr", "0.2"]
    assert not any(line.startswith("machine") for line in lines)


def test_comparison_as_json(run, better, capsys):
    """As JSON the figures can be read by programs."""
    _, (line,) = printed(capsys, "compare", run, better, "--json")
    facts = json.loads(line)

    assert facts["figures"]["=accuracy, best"] == [0.75, 0.875]
    assert facts["better"]["=accuracy, best"] == 1
    assert facts["settings"] == {"initial_lr": ["", "0.2"]}


@pytest.mark.parametrize(("name", "lower"), [
    ("accuracy", False), ("val_loss", True), ("loss", True), ("f1", False), ("eval/loss", True), ("accuracyless", True),
    ("word-error-rate", True), ("top5_error", True), ("valAcc", False), ("acc@1", False), ("mAP50", False),
    ("negative_log_likelihood", True), ("energy", True),
])  # fmt: skip
def test_losses_are_better_when_lower(name, lower):
    """Whether a metric is better when lower is told by the words of its name."""
    assert is_lower_better(name) is lower


def test_run_without_a_metric_is_no_worse():
    """A metric that only one run has is shown, and nobody is better."""
    views = [View(), View()]
    for view in views:
        view.fold(start())
        view.fold(steps(1, 1.0))
    views[1].fold(events.MetricsLogged(1, 1.0, 1, {"accuracy": 0.5}))
    row = next(row for row in figures_of(views) if row.name == "accuracy, best")

    assert row.values[1] == 0.5
    assert row.better == -1
    assert settings_of(views) == []

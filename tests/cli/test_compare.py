"""``compare``."""

import dataclasses
import json
import re
import shutil

import pytest

from learnit_r8 import events
from learnit_r8.cli import main
from learnit_r8.dashboard.state.view import View
from learnit_r8.events.steps import is_lower_better
from learnit_r8.report.comparison import figures_of, settings_of
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
    columns, *rows = [re.split(r"  +", line) for line in lines if line][:-1]
    best, other = (dict(zip(columns, row, strict=False)) for row in rows)

    assert code == 0
    assert [best["run"], other["run"]] == ["20260104-other", "20260101-it"]
    assert (best["=accuracy, best"], other["=accuracy, best"]) == ("0.875 *", "0.75")
    assert (best["loss, best"], other["loss, best"]) == ("0.75", "0.5 *")
    assert best["initial_lr"] == "0.2"
    assert "machine" not in columns
    assert lines[-1].startswith("Cannot tell whether that is more than chance: the best leads the next by 0.125")


def test_a_whole_folder_is_compared_and_seeds_make_the_verdict(tmp_path, capsys):
    """`compare FOLDER` takes every run in it; whether the best is better follows from what seeds alone make."""
    accuracies = {("0.1", 0): 0.7, ("0.1", 1): 0.72, ("0.3", 0): 0.9, ("0.3", 1): 0.91, ("0.5", 0): 0.905}
    accuracies |= {("9", 0): 0.1, ("9", 1): 0.6}
    for (rate, seed), accuracy in accuracies.items():
        started = dataclasses.replace(STARTED, name="", settings={"config.rate": rate, "seed": str(seed)})
        logged = events.MetricsLogged(300, 150.0, 300, {"accuracy": accuracy})
        folder_with(tmp_path / f"{rate}-{seed}", started, *SEVEN[1:], logged, process=GONE)
        (tmp_path / f"{rate}-{seed}" / "run.json").write_text("{}")
    code, lines = printed(capsys, "compare", tmp_path)

    assert code == 0
    assert [line.split()[0] for line in lines[1:6]] == ["0.3-1", "0.5-0", "0.3-0", "0.1-1", "0.1-0"]
    # The bad kind, which varies by much, says nothing about the best two.
    assert lines[-1].startswith("Cannot tell: the best leads the next by 0 in accuracy, where seeds alone make 0.0")
    shutil.rmtree(tmp_path / "0.5-0")
    assert printed(capsys, "compare", tmp_path)[1][-1].startswith("Better: the best leads the next by 0.195")


def test_comparison_opens_in_the_browser(run, better, monkeypatch, capsys):
    """--open alone writes the page beside the runs, shows it, and prints the table, too."""
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    code, lines = printed(capsys, "compare", run, better, "--open")
    page = run.parent / "compared.html"

    assert code == 0
    assert lines[0].startswith(f"{page} (")
    assert opened == [page.resolve().as_uri()]
    assert any(line.startswith("20260104-other") for line in lines)


def test_folder_without_runs_is_refused(tmp_path, capsys):
    assert main(["compare", str(tmp_path)]) == 1
    assert "got no run folder there" in capsys.readouterr().err


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
    row = figures_of(views)["accuracy, best"]

    assert row.values[1] == 0.5
    assert row.better == -1
    assert settings_of(views) == {}

"""Any number of runs: beside each other, over each other, sorted by a metric, found by what was noted of them."""

import json
import os
import re
import subprocess

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, events
from learnit_r8.cli import main
from learnit_r8.dashboard.render.curves import curve_of
from learnit_r8.dashboard.state.view import View
from learnit_r8.journal.run import Run, git_commit
from learnit_r8.report.comparison import write_comparison
from tests.cli.commands import printed
from tests.report.test_page import Page, rendered

VALUES = {"fast": [3.0, 1.0, 2.0], "slow": [4.0, 3.0, 2.5], "never": [9.0, 8.0, np.nan]}


@pytest.fixture
def runs(tmp_path):
    """Three runs whose validation losses are above."""
    for rate, (name, values) in enumerate(VALUES.items(), start=1):
        with R8Scheduler(
            20, batch_size=5, num_epochs=3, initial_lr=rate / 10, name=name, run_dir=tmp_path / "runs" / name,
            config={"rate": rate / 10, "net": {"width": 8 * rate}}, notes=f"the {name} one", tags=["sweep", name],
        ) as r8:  # fmt: skip
            for epoch in r8.epoch_iterator():
                for batch, _ in r8.batch_iterator():
                    r8.update_with_loss(rate + batch / 20)
                r8.log(val_loss=values[epoch], accuracy=rate / 10)
    return tmp_path / "runs"


def test_three_runs_beside_each_other(runs, capsys):
    """`compare` takes any number: the best is starred, with its step; settings and config that differ are listed."""
    code, lines = printed(capsys, "compare", *(runs / name for name in VALUES))
    columns, *rows = [re.split(r"  +", line) for line in lines if line][:-1]
    found = {row[0]: dict(zip(columns, row, strict=False)) for row in rows}

    assert code == 0
    assert list(found) == ["fast", "slow", "never"]
    assert [row["val_loss, best"] for row in found.values()] == ["1 *", "2.5", "8"]
    assert [row["val_loss, best at step"] for row in found.values()] == ["8", "12", "8"]
    assert [row["accuracy, best"] for row in found.values()] == ["0.1", "0.2", "0.3 *"]
    assert [row["initial_lr"] for row in found.values()] == ["0.1", "0.2", "0.3"]
    assert [row["net.width"] for row in found.values()] == ["8", "16", "24"]
    assert "run_dir" not in columns


def test_one_run_is_no_comparison(runs, capsys):
    assert main(["compare", str(runs / "fast")]) == 1
    assert "compare needs two runs or more, got 1" in capsys.readouterr().err


def test_one_page_has_all_curves_over_each_other(runs, tmp_path, capsys):
    """Each chart has a curve of each run, in looks of their own; values are below the pointer; nothing is loaded."""
    code, _ = printed(capsys, "compare", *(runs / name for name in VALUES), "--html", tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    curves = page.charts("val_loss")

    assert code == 0
    assert page.titles == ["Runs", "Loss of the batches, smoothed", "val_loss", "accuracy"]
    assert {name: one["y"][0] for name, one in curves.items()} == {"fast": 3, "slow": 4, "never": 9}
    assert len({one["look"] for one in curves.values()}) == 3
    (chart,) = page.blocks("val_loss", "chart")
    assert [point["label"] for point in chart["points"]] == ["best: fast, 1 at step 8"]
    assert chart["ends"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_best_of_six_and_the_step_of_a_nan_are_text_in_the_picture(tmp_path):
    """Of six runs the picture alone names the best beside its mark, every run at its line, and the step of a NaN."""
    for place in range(6):
        with R8Scheduler(
            40, batch_size=4, num_epochs=4, run_dir=tmp_path / f"run-{place}", name="sweep", seed=place,
            config={"rate": place},
        ) as r8:  # fmt: skip
            for epoch in r8.epoch_iterator():
                for batch, _ in r8.batch_iterator():
                    r8.update_with_loss(np.ones(len(batch)) * (np.nan if place == 2 and r8.global_step == 21 else 1.0))
                r8.log(val_loss=abs(place - 3) + 1 / (1 + epoch))
    path = write_comparison([tmp_path / f"run-{place}" for place in range(6)], tmp_path / "six.html")
    page = Page(path.read_text())
    names = [row[0] for row in page.blocks("Runs", "table")[0]["rows"]]

    assert names[0] == "rate=3"
    assert set(names) == {f"rate={place}" for place in range(6)}
    assert page.blocks("val_loss", "chart")[0]["points"][0]["label"] == "best: rate=3, 0.25 at step 40"
    marks = page.blocks("Loss of the batches, smoothed", "chart")[0]["marks"]
    assert [mark["label"] for mark in marks] == ["rate=2, step 22: loss nan"]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", rendered(path))
    assert {"best: rate=3, 0.25 at step 40", "rate=2, step 22: loss nan", *names} <= set(texts)


def test_runs_of_one_name_are_told_apart_and_texts_are_safe(tmp_path):
    """As those of a sweep: the names of their folders are shown."""
    for place in range(8):
        run_dir = tmp_path / f"<b>{place}"
        with R8Scheduler(4, batch_size=2, num_epochs=1, name="<b>it</b>", run_dir=run_dir) as r8:
            for _ in r8.batch_iterator():
                r8.update_with_loss(1.0)
            r8.log(**{"<i>": 1.0})
    text = write_comparison([tmp_path / f"<b>{place}" for place in range(8)], tmp_path / "out.html").read_text()
    page = Page(text)

    assert {"b", "i"}.isdisjoint(page.tags)
    assert [row[0] for row in page.blocks("Runs", "table")[0]["rows"]] == [f"<b>{place}" for place in range(8)]
    assert len({one["look"] for one in page.charts("<i>").values()}) == 8


def test_a_curve_ends_where_its_run_has_ended(tmp_path):
    """The last value of a run that was stopped is not drawn on to the end of a longer one."""
    long, short = View(), View()
    for view, last in ((long, 100), (short, 40)):
        for step in range(20, last + 1, 20):
            view.fold(events.MetricsLogged(step, float(step), step, {"val_loss": 100.0 / step}))
    whole, part = (curve_of(view, "val_loss", 50, 0, 100) for view in (long, short))

    assert np.isfinite(whole[10:]).all()
    assert np.flatnonzero(np.isfinite(part)).tolist() == list(range(10, 20))
    lone = curve_of(short, "val_loss", 2, 39, 100)
    assert np.isfinite(lone).tolist() == [True, False]


def test_ls_sorts_by_the_best_value(runs, capsys):
    """The best run comes first, whichever direction is better, with its best value and the step of that."""
    code, lines = printed(capsys, "ls", runs, "--sort", "val_loss")
    rows = [re.split(r"  +", line) for line in lines]
    _, rising = printed(capsys, "ls", runs, "--sort", "accuracy", "--top", "1")
    _, (text,) = printed(capsys, "ls", runs, "--sort", "val_loss", "--json")

    assert code == 0
    assert (rows[0][5], rows[0][-1]) == ("metric", "notes")
    assert [(row[0], row[5], row[-1]) for row in rows[1:]] == [
        ("fast", "val_loss 1 @8", "the fast one; sweep, fast"),
        ("slow", "val_loss 2.5 @12", "the slow one; sweep, slow"),
        ("never", "val_loss 8 @8", "the never one; sweep, never"),
    ]
    assert rising[1].split()[0] == "never"
    assert json.loads(text)[0]["best"] == {"value": 1.0, "step": 8}
    assert json.loads(text)[0]["record"]["config.rate"] == "0.1"


def test_ls_says_which_metrics_there_are(runs, capsys):
    assert main(["ls", str(runs), "--sort", "val_los"]) == 1
    error = capsys.readouterr().err

    assert "--sort must be a metric that a run has logged (accuracy, val_loss), got 'val_los'." in error
    assert "Did you mean 'val_loss'?" in error


@pytest.mark.parametrize(
    ("wanted", "found"), [("SLOW", ["slow"]), ("rate=0.3", ["never"]), ("sweep", list(VALUES)), ("width=8", ["fast"])]
)
def test_ls_finds_runs_by_their_record(runs, capsys, wanted, found):
    """Names, notes, tags and config are searched, in any case."""
    _, lines = printed(capsys, "ls", runs, "--find", wanted)

    assert sorted(line.split()[0] for line in lines[1:]) == sorted(found)


@pytest.fixture
def git(tmp_path, monkeypatch):
    """Runs git in a folder with a program, which is the one that runs."""
    monkeypatch.setattr("sys.argv", [str(tmp_path / "train.py")])
    (tmp_path / "train.py").write_text("1\n")

    def run(*arguments, folder=tmp_path):
        who = ["-c", "user.name=x", "-c", "user.email=x@x"]
        done = subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    return run


def test_the_commit_of_the_program_is_recorded(tmp_path, monkeypatch, git):
    """The commit, wherever git keeps it: as a file, packed, detached, of a branch with a slash, or of a worktree."""
    assert git_commit() == ""
    git("init", "-q")
    assert git_commit() == ""
    git("add", ".")
    git("commit", "-qm", "one")
    first = git("rev-parse", "HEAD")[:12]
    assert git_commit() == first
    git("pack-refs", "--all")
    assert git_commit() == first
    git("checkout", "-qb", "h/other")
    git("commit", "-qm", "two", "--allow-empty")
    second = git("rev-parse", "HEAD")[:12]
    assert git_commit() == second != first
    git("worktree", "add", "-q", "side", first)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "side" / "train.py")])
    assert git_commit() == first
    git("checkout", "-qb", "of/side", folder=tmp_path / "side")
    git("commit", "-qm", "three", "--allow-empty", folder=tmp_path / "side")
    third = git("rev-parse", "HEAD", folder=tmp_path / "side")[:12]
    assert git_commit() == third
    git("pack-refs", "--all")
    assert git_commit() == third
    with R8Scheduler(4, batch_size=2, num_epochs=1, run_dir=tmp_path / "run") as r8:
        r8.draw()
    assert Run(tmp_path / "run").about()["configuration"]["git"] == third


def test_a_received_repository_runs_nothing(tmp_path, git):
    """Whatever program the configuration of a repository names, recording a run does not run it."""
    git("init", "-q")
    (tmp_path / ".gitattributes").write_text("*.py filter=x\n")
    git("add", ".")
    git("commit", "-qm", "one")
    spy = tmp_path / "spy.sh"
    spy.write_text(f"#!/bin/sh\ntouch {tmp_path}/owned\ncat\n")
    spy.chmod(0o755)
    for name in ("core.fsmonitor", "filter.x.clean", "core.hooksPath", "core.pager"):
        git("config", name, str(spy))
    os.utime(tmp_path / "train.py", (1, 1))
    with R8Scheduler(4, batch_size=2, num_epochs=1, run_dir=tmp_path / "run") as r8:
        r8.draw()

    assert not (tmp_path / "owned").exists()
    assert len(Run(tmp_path / "run").about()["configuration"]["git"]) == 12


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("HEAD", "ref: ../../secret"),
        ("HEAD", "ref: refs/heads/../../../secret"),
        ("HEAD", "ref: refs/heads/gone"),
        ("HEAD", "ref: HEAD"),
        ("HEAD", ""),
        ("HEAD", "\0" * 9000),
        ("HEAD", "a secret of forty letters, as any file has"),
        ("refs/heads/loop", "ref: refs/heads/loop"),
        ("commondir", "/dev"),
        ("packed-refs", "\xff"),
    ],
)
def test_a_repository_that_is_none_has_no_commit(tmp_path, git, name, content):
    """Damaged files of git, and those that lead elsewhere, are no commit, and no error."""
    git("init", "-q", "-b", "loop")
    (tmp_path / "secret").write_text("a" * 40)
    path = tmp_path / ".git" / name
    path.write_text(content)

    assert git_commit() == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"config": ["lr"]}, r"config must be a dict with names as keys, got \['lr'\]"),
        ({"config": {1: 2}}, "config must be a dict with names as keys"),
        ({"config": {"net": {"f": len}}}, "config must hold plain values .* for net.f"),
        ({"notes": 3}, "notes must be a string, got 3"),
        ({"tags": "sweep"}, "tags must be a list of strings, got 'sweep'"),
        ({"tags": [1]}, r"tags must be a list of strings, got \[1\]"),
    ],
)
def test_a_wrong_record_is_named(given, message):
    with pytest.raises(TypeError, match=message):
        R8Scheduler(4, batch_size=2, num_epochs=1, **given)

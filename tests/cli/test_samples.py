"""``samples``."""

import csv
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from learnit_r8.cli import main
from learnit_r8.journal.samples import write_samples
from tests.cli.commands import ROOT, printed
from tests.journal.run_folders import STARTED, folder_with
from tests.report.sample_files import samples


def test_samples_is_a_table(run, capsys):
    """`samples` lists the hardest ones; control sequences in names are gone."""
    assert printed(capsys, "samples", run, "--top", "2") == (
        0,
        [
            "it, epoch 3, step 7; losses: exact",
            "#  sample      loss  last  mean  uses",
            "1  =cmd()         3   2.5     3     4",
            "3  cat 猫.png     2   1.5     2     6",
        ],
    )


def test_samples_as_csv(run, capsys):
    """`samples --csv` can be read by programs, and runs nothing in a spreadsheet."""
    _, lines = printed(capsys, "samples", run, "--csv", "--top", "2", "--epoch", "3")

    assert list(csv.reader(lines)) == [
        ["index", "name", "loss", "last", "mean", "uses"],
        ["1", "'=cmd()", "3", "2.5", "3", "4"],
        ["3", "cat 猫.png", "2", "1.5", "2", "6"],
    ]


@pytest.fixture
def noisy(tmp_path):
    """A run of a hundred samples with names, the first ten worse than untrained until the model knows them by heart."""
    folder, names = folder_with(tmp_path / "20260103-noisy", STARTED), {index: f"img{index}" for index in range(100)}
    learnt = np.linspace(0.1, 0.3, 100, dtype=np.float32)
    high = np.where(np.arange(100) < 10, np.linspace(3.9, 3, 100, dtype=np.float32), learnt)
    uses = np.full(100, 5)
    for epoch, loss in enumerate((high, learnt)):
        write_samples(folder, [samples(epoch, loss, uses=uses, names=names)])
    return folder


def test_suspects_are_listed(noisy, capsys):
    """`samples --suspects` lists those of an epoch, most suspect first, and their share."""
    code, lines = printed(capsys, "samples", noisy, "--suspects", "--epoch", "1")

    assert code == 0
    assert lines[0] == (
        "it, epoch 1, step 5; 10 of 100 judged look mislabelled (10.0%); "
        "of all labels an estimated 10.0% are wrong (between 10.0% and 10.0%)"
    )
    assert lines[1].split() == ["#", "sample", "loss", "last", "mean", "uses", "score", "why"]
    assert [line.split()[:2] for line in lines[2:]] == [[str(index), f"img{index}"] for index in range(10)]
    assert all(line.endswith("  1.000  always high") for line in lines[2:])


def test_an_epoch_with_more_suspects_is_named(noisy, capsys):
    """By default the newest samples are judged, as the run itself would; where earlier ones had more, that is said."""
    _, lines = printed(capsys, "samples", noisy, "--suspects")

    assert lines[0].startswith("it, epoch 2, step 6; no suspects: ")
    assert lines[-1] == "more at the end of epoch 1: 10 (samples --suspects --epoch)"


def test_suspects_as_csv(noisy, capsys):
    """As CSV they are all there, or as many as were asked for, with score and reason."""
    rows = list(csv.DictReader(printed(capsys, "samples", noisy, "--suspects", "--csv", "--epoch", "1")[1]))
    fewer = printed(capsys, "samples", noisy, "--suspects", "--csv", "--top", "3", "--epoch", "1")[1]

    assert [(row["index"], row["why"]) for row in rows] == [(str(index), "always high") for index in range(10)]
    assert all(float(row["score"]) > 0.99 and row["uses"] == "5" for row in rows)
    assert len(fewer) == 1 + 3


def test_no_suspects_is_said(noisy, capsys):
    """Where no sample is suspect, or not in the epoch that was asked for, the reason is said, and the table empty."""
    _, lines = printed(capsys, "samples", noisy, "--suspects", "--epoch", "2")

    assert lines[0].startswith("it, epoch 2, step 6; no suspects: ")
    assert len(lines) == 2
    assert len(printed(capsys, "samples", noisy, "--suspects", "--epoch", "2", "--csv")[1]) == 1


def test_estimates_are_called_so(tmp_path, capsys):
    """Where only batch means were reported, the table says how far to trust it."""
    folder = folder_with(tmp_path, STARTED)
    write_samples(folder, [samples(0, np.ones(4), source="batch means of 32")._replace(is_exact=False)])

    assert "losses: batch means of 32, estimates: rough" in printed(capsys, "samples", folder)[1][0]


def test_run_without_samples_is_said(tmp_path, capsys):
    """`samples` of a run that has none says so; a damaged file's reason is given, without control sequences."""
    folder = folder_with(tmp_path, STARTED)
    assert main(["samples", str(folder)]) == 1
    assert "run must hold a samples file, got none" in capsys.readouterr().err
    (folder / "samples-000000.safetensors").write_bytes(b"x")

    assert main(["samples", str(folder)]) == 1
    assert "samples-000000.safetensors must be a whole samples file" in capsys.readouterr().err


def test_terminal_without_the_characters_gets_others(run):
    """Where the output knows no such characters, they are replaced, and the command goes on."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "learnit_r8", "samples", str(run)], env=environ, capture_output=True, timeout=120
    )

    assert done.returncode == 0
    assert b"cat ?.png" in done.stdout


def test_epoch_that_was_not_kept_names_those_that_were(run, capsys):
    """Not every epoch has a samples file; the message says which have."""
    assert main(["samples", str(run), "--epoch", "2"]) == 1
    assert "--epoch must be one whose samples were kept (3), got 2." in capsys.readouterr().err


def test_suspects_as_json(noisy, capsys):
    """As JSON there is one object: where it is from, the verdict, and every suspect with cleanlab's columns too."""
    _, lines = printed(capsys, "samples", noisy, "--suspects", "--json", "--top", "2", "--epoch", "1")
    facts = json.loads("\n".join(lines))

    assert (facts["name"], facts["epoch"], facts["num_suspects"], facts["num_judged"]) == ("it", 0, 10, 100)
    assert facts["noise_range"] == [pytest.approx(0.1), pytest.approx(0.1)]
    assert [row["index"] for row in facts["samples"]] == [0, 1]
    assert facts["samples"][0]["is_label_issue"] is True
    assert facts["samples"][0]["label_score"] == pytest.approx(math.exp(-3.9))
    assert facts["samples"][0]["given_label"] is None


def test_hardest_as_json(run, capsys):
    """`samples --json` lists the hardest ones; names have no control sequences."""
    facts = json.loads("\n".join(printed(capsys, "samples", run, "--json")[1]))

    assert [row["name"] for row in facts["samples"]][:2] == ["=cmd()", "cat 猫.png"]
    assert "score" not in facts["samples"][0]


def test_labels_are_shown_where_they_are_known(noisy, capsys):
    """With groups the table has a column for the label that each suspect was given, and so has the CSV."""
    high = np.where(np.arange(100) < 10, np.float32(3.9), np.float32(0.1))
    file = samples(4, high, uses=np.full(100, 5))
    groups = {"group": np.arange(100, dtype=np.uint16) % 2, "group_labels": ("cat", "dog")}
    write_samples(noisy, [file._replace(**groups)])
    _, lines = printed(capsys, "samples", noisy, "--suspects", "--epoch", "5")
    rows = list(csv.DictReader(printed(capsys, "samples", noisy, "--suspects", "--epoch", "5", "--csv")[1]))

    assert lines[1].split() == ["#", "sample", "loss", "last", "mean", "uses", "score", "label", "why"]
    assert sorted(line.split()[7] for line in lines[2:]) == ["cat"] * 5 + ["dog"] * 5
    assert sorted(row["given_label"] for row in rows) == ["cat"] * 5 + ["dog"] * 5
    assert {row["predicted_label"] for row in rows} == {""}


def test_one_form_at_a_time(noisy):
    """CSV and JSON cannot both be asked for."""
    with pytest.raises(SystemExit, match="2"):
        main(["samples", str(noisy), "--csv", "--json"])

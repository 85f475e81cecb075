"""``export`` and ``report``."""

import csv
import json
import subprocess
import sys

import pytest

from tests.cli.commands import ROOT, printed


@pytest.mark.parametrize(
    ("of", "first"),
    [
        ("steps", {"step": "50", "loss": "0.04", "num_steps": "50"}),
        ("epochs", {"epoch": "2", "loss": "0.0075", "samples": "1000"}),
        ("metrics", {"step": "300", "name": "'=accuracy", "value": "0.75"}),
        ("events", {"kind": "RunStarted", "level": "info"}),
    ],
)
def test_export_as_csv(run, capsys, of, first):
    """`export` writes what was asked for, a row each, with a header."""
    _, lines = printed(capsys, "export", run, "--of", of)
    row = next(iter(csv.DictReader(lines)))

    assert {name: row[name] for name in first} == first


@pytest.mark.parametrize("of", ["steps", "epochs", "metrics", "events"])
def test_export_as_json_lines(run, capsys, tmp_path, of):
    """`export --format jsonl --out` writes a file of strict JSON, as many rows as the CSV."""
    out = tmp_path / "out.jsonl"
    printed(capsys, "export", run, "--of", of, "--format", "jsonl", "--out", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]

    assert len(rows) == len(printed(capsys, "export", run, "--of", of)[1]) - 1


def test_report_is_written(run, capsys, tmp_path):
    """`report --html` writes the page and says where."""
    code, (line,) = printed(capsys, "report", run, "--html", tmp_path / "out.html")

    assert code == 0
    assert line.startswith(str(tmp_path / "out.html"))
    assert (tmp_path / "out.html").read_text().startswith("<!doctype html>")


def test_reader_that_leaves_early_is_no_error(run):
    """`learnit-r8 export | head -1` ends without a traceback."""
    with open(run / "events.jsonl", "a") as file:
        file.write((run / "events.jsonl").read_text() * 2000)
    command = f"{sys.executable} -m learnit_r8 export {run} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, cwd=ROOT, timeout=120)

    assert done.stdout.startswith(b"time,step")
    assert done.stderr == b""

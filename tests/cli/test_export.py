"""``export`` and ``report``."""

import csv
import io
import json
import subprocess
import sys

import pytest

from learnit_r8.cli import main
from learnit_r8.cli.samples import write_csv
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


def test_reader_that_leaves_early_is_no_error(run):
    """`learnit-r8 export | head -1` ends without a traceback."""
    with open(run / "events.jsonl", "a") as file:
        file.write((run / "events.jsonl").read_text() * 2000)
    command = f"{sys.executable} -m learnit_r8 export {run} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, cwd=ROOT, timeout=120)

    assert done.stdout.startswith(b"time,step")
    assert done.stderr == b""


@pytest.mark.parametrize("command", [["export", "--out"], ["report", "--html"]])
@pytest.mark.parametrize(
    "name", ["run.json", "events.jsonl", "samples-000002.safetensors", "output.log", "ck_00000007.r8"]
)
def test_no_command_overwrites_the_files_of_a_run(command, name, run, tmp_path, capsys):
    """A file that a run keeps is not written over, not even through a link."""
    (run / name).touch()
    before = (run / name).read_bytes()
    link = tmp_path / "link.txt"
    link.symlink_to(run / name)
    codes = [printed(capsys, command[0], run, command[1], out)[0] for out in (run / name, link)]

    assert codes == [1, 1]
    assert (run / name).read_bytes() == before


def test_report_is_written_beside_the_run(run, monkeypatch, capsys):
    """Without a file the page goes to the run folder; --open shows it in the browser."""
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    code, (line,) = printed(capsys, "report", run, "--open")

    assert code == 0
    assert line.startswith(f"{run / 'report.html'} (")
    assert opened == [(run / "report.html").resolve().as_uri()]
    assert printed(capsys, "report", run)[0] == 0


def test_browser_that_cannot_be_opened_is_said(run, monkeypatch, capsys):
    """Over ssh there is no browser: the page is written, and one line says so."""
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    assert main(["report", str(run), "--open"]) == 0
    assert capsys.readouterr().err == "learnit-r8: no browser could be opened\n"


def test_csv_cells_are_safe():
    """Texts that a spreadsheet would take for formulas are quoted; numbers stay numbers, nothing stays empty."""
    stream = io.StringIO()
    write_csv(stream, ["a"], [["=1"], ["+1"], ["-1"], ["@x"], ["\tx"], [-1.5], [None], ["x"]])

    assert [row[0] if row else "" for row in csv.reader(io.StringIO(stream.getvalue()))][1:] == [
        "'=1", "'+1", "'-1", "'@x", "'\tx", "-1.5", "", "x",
    ]  # fmt: skip

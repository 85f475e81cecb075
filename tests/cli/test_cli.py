"""The commands: what they print, with which exit code, from which runs."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from learnit_r8 import events
from learnit_r8.cli import _HOME, _parser, main
from learnit_r8.cli.demo import run as run_demo
from learnit_r8.dashboard.export import write_csv
from learnit_r8.journal import Run
from learnit_r8.journal.run_info import this_process
from learnit_r8.journal.samples import sample_epochs, write_samples
from tests.journal.test_run_folder import STARTED, folder_with, steps
from tests.report.test_report import samples

ROOT = Path(__file__).parents[2]
SEVEN = [events.StepsDone(n, n / 2, 50, n // 100, n / 1000, 2 / n, 1 / n, 3 / n, 2 / n, 2 / n, 0.05, 500, 0)
         for n in range(50, 351, 50)]  # fmt: skip
GONE = {**this_process(), "process_started": 1}


@pytest.fixture
def run(tmp_path):
    """A folder with some steps, an alert, metrics and samples; its process is gone."""
    refused = events.BatchRefused(350, 175.0, 3, float("nan"), 0.05, 0.025, 1, (), "not finite")
    logged = events.MetricsLogged(300, 150.0, 300, {"=accuracy": 0.75, "loss": 0.5})
    done = events.EpochDone(300, 150.0, 2, 0.35, 0.0075, 0.05, 1000, 50.0)
    folder = folder_with(tmp_path / "20260101-it", STARTED, *SEVEN, done, logged, refused, process=GONE)
    loss = np.array([0.1, 3.0, 0.2, 2.0])
    names = {1: "=cmd()", 3: "\x1b[31mcat 猫.png"}
    write_samples(
        folder, [samples(2, loss, last=np.float32([0.1, 2.5, 0.2, 1.5]), uses=np.array([3, 4, 5, 6]), names=names)]
    )
    return folder


def printed(capsys, *arguments):
    """Exit code and lines of a command."""
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out.splitlines()


def test_status_is_one_line(run, capsys):
    """`status` prints name, state, progress, loss and rate in one line."""
    assert printed(capsys, "status", run) == (
        4,
        ["it  died (the process is gone)  35.0%  epoch 4/100  step 350/1,000  loss 0.005714 (ema 0.006019)  lr 0.05"],
    )


@pytest.mark.parametrize(
    ("happened", "code"),
    [
        ([events.RunEnded(350, 9.0, True)], 0), ([events.RunEnded(350, 9.0, False)], 5),
        ([events.ProcessLeft(350, 9.0, "ValueError: x")], 4), ([], 4),
    ],
)  # fmt: skip
def test_exit_code_of_status_is_the_state(tmp_path, capsys, happened, code):
    """The exit code is 0 for a run that is well, and another one for each way in which it is not."""
    folder = folder_with(tmp_path, STARTED, steps(5), *happened, process=GONE)

    assert printed(capsys, "status", folder)[0] == code


def test_running_and_stalled_runs(tmp_path, capsys):
    """While it runs speed and time left are told; silence of a process that is there is a stall."""
    import time

    running = folder_with(tmp_path / "a", STARTED, *SEVEN, when=time.time())
    stalled = folder_with(tmp_path / "b", STARTED, *SEVEN, when=time.time() - 300)
    code, (line,) = printed(capsys, "status", running)

    assert code == 0
    assert line.endswith("lr 0.05  20 samples/s  left 5:25")
    assert printed(capsys, "status", stalled)[0] == 3


def test_status_as_json(run, capsys):
    """`status --json` is strict JSON, with null for what is not known."""

    def refuse(text):
        raise AssertionError(text)

    code, (line,) = printed(capsys, "status", run, "--json")
    facts = json.loads(line, parse_constant=refuse)

    assert (code, facts["state"], facts["step"], facts["seconds_left"]) == (4, "died", 350, None)
    assert facts["metrics"]["loss"] == 0.5


def test_ls_lists_runs(run, capsys):
    """`ls` has a line for every run, the newest first, and one for a run that cannot be read."""
    os.utime(run / "events.jsonl", (1, 1))
    folder_with(run.parent / "20260102-b", STARTED)
    code, lines = printed(capsys, "ls", run.parent)

    assert code == 0
    assert [line.split()[0] for line in lines] == ["20260102-b", "20260101-it"]


def test_samples_is_a_table(run, capsys):
    """`samples` lists the hardest ones; control sequences in names are gone."""
    assert printed(capsys, "samples", run, "--top", "2") == (
        0,
        [
            "it, epoch 3, step 7; losses: exact",
            "        #  sample           loss       last       mean   uses",
            "        1  =cmd()              3        2.5          3      4",
            "        3  cat 猫.png          2        1.5          2      6",
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
    """`samples --suspects` lists those of the first file that has any, most suspect first, and their share."""
    code, lines = printed(capsys, "samples", noisy, "--suspects")

    assert code == 0
    assert lines[0] == ("it, epoch 1, step 5; 10 look mislabelled, 10.0% of 100 judged (between 10.0% and 10.0%)")
    assert lines[1].split() == ["#", "sample", "loss", "last", "mean", "uses", "score", "why"]
    assert [line.split()[:2] for line in lines[2:]] == [[str(index), f"img{index}"] for index in range(10)]
    assert all(line.endswith("  1.000  always high") for line in lines[2:])


def test_suspects_as_csv(noisy, capsys):
    """As CSV they are all there, or as many as were asked for, with score and reason."""
    rows = list(csv.DictReader(printed(capsys, "samples", noisy, "--suspects", "--csv")[1]))
    fewer = printed(capsys, "samples", noisy, "--suspects", "--csv", "--top", "3")[1]

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


def test_csv_cells_are_safe():
    """Texts that a spreadsheet would take for formulas are quoted; numbers stay numbers, nothing stays empty."""
    stream = io.StringIO()
    write_csv(stream, ["a"], [["=1"], ["+1"], ["-1"], ["@x"], ["\tx"], [-1.5], [None], ["x"]])

    assert [row[0] if row else "" for row in csv.reader(io.StringIO(stream.getvalue()))][1:] == [
        "'=1", "'+1", "'-1", "'@x", "'\tx", "-1.5", "", "x",
    ]  # fmt: skip


def test_report_is_written(run, capsys, tmp_path):
    """`report --html` writes the page and says where."""
    code, (line,) = printed(capsys, "report", run, "--html", tmp_path / "out.html")

    assert code == 0
    assert line.startswith(str(tmp_path / "out.html"))
    assert (tmp_path / "out.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("command", ["status", "samples", "export", "watch", "replay", "ls"])
def test_missing_run_is_an_error_of_one_line(command, tmp_path, capsys):
    """Where there is no run, one line says so, with exit code 1 and no traceback."""
    code = main([command, str(tmp_path)])
    err = capsys.readouterr().err

    assert code == 1
    assert err.startswith(f"learnit-r8 {command}: run")
    assert err.count("\n") == 1


def test_run_without_samples_is_said(tmp_path, capsys):
    """`samples` of a run that has none says so; a damaged file's reason is given, without control sequences."""
    folder = folder_with(tmp_path, STARTED)
    assert main(["samples", str(folder)]) == 1
    assert "run must hold a samples file, got none" in capsys.readouterr().err
    (folder / "samples-000000.npz").write_bytes(b"x")

    assert main(["samples", str(folder)]) == 1
    assert "samples-000000.npz must be a whole samples file" in capsys.readouterr().err


def test_control_sequences_in_names_reach_no_terminal(tmp_path, capsys):
    """A name with control sequences reaches no terminal."""
    started = events.RunStarted(0, 0.0, "\x1b[2J", 100, 10, 10, 1000, None, "balanced")
    folder = folder_with(tmp_path, started, steps(5), events.ProcessLeft(5, 1.0, "\x1b]0;x\x07bad"))
    (folder / "run.json").write_text('{"name": "\\u001b[31mred\\u202e"}')
    for command in ("status", "ls", "export", "watch", "replay"):
        main([command, str(folder.parent if command == "ls" else folder)])

    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "\u202e" not in captured.out


@pytest.mark.parametrize(
    "arguments",
    [[], ["x"], ["samples", "--top", "0"], ["samples", "--top", "x"], ["replay", "--speed", "-1"], ["report"],
     ["replay", "--speed", "nan"], ["watch", "--view", "x"], ["samples", "--top", "9" * 30]],
)  # fmt: skip
def test_wrong_command_line_is_refused(arguments, capsys):
    """A wrong command line ends with code 2 and a usage."""
    with pytest.raises(SystemExit) as error:
        main(arguments)

    assert error.value.code == 2
    assert "usage: learnit-r8" in capsys.readouterr().err


def program(*arguments, **more):
    """The program in a process of its own."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "learnit_r8", *map(str, arguments)],
        env=environ,
        capture_output=True,
        timeout=120,
        **more,
    )


def test_program_is_the_command(run):
    """``python -m learnit_r8`` prints, and exits with the command's code."""
    done = program("status", run)

    assert done.returncode == 4
    assert done.stdout.decode().startswith("it  died")
    assert done.stderr == b""


def test_reader_that_leaves_early_is_no_error(run):
    """`learnit-r8 export | head -1` ends without a traceback."""
    with open(run / "events.jsonl", "a") as file:
        file.write((run / "events.jsonl").read_text() * 2000)
    command = f"{sys.executable} -m learnit_r8 export {run} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, cwd=ROOT, timeout=120)

    assert done.stdout.startswith(b"time,step")
    assert done.stderr == b""


def test_terminal_without_the_characters_gets_others(run):
    """Where the output knows no such characters, they are replaced, and the command goes on."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "learnit_r8", "samples", str(run)], env=environ, capture_output=True, timeout=120
    )

    assert done.returncode == 0
    assert b"cat ?.png" in done.stdout


HELP = """
import sys
from learnit_r8.cli import main
try:
    main([*sys.argv[1:]])
except SystemExit:
    pass
print(*sys.modules, sep="\\n", file=sys.stderr)
"""
HEAVY = {"torch", "tensorflow", "jax", "keras", "flax", "matplotlib", "pandas", "rich"}


def modules_of(*arguments):
    command = [sys.executable, "-c", HELP, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    return set(done.stderr.split())


def test_help_loads_no_numpy():
    """`--help` loads no numpy, no curses and no framework, so that it is there at once."""
    loaded = modules_of("--help")

    assert not loaded & {"numpy", "curses", "json", "learnit_r8.scheduler"} | loaded & HEAVY


@pytest.mark.parametrize("command", [["status"], ["samples"], ["watch", "--once"], ["replay", "--once"], ["export"]])
def test_no_command_loads_a_framework(run, command):
    """A command that looks at a run loads no framework, and no scheduler; without a screen no curses either."""
    loaded = modules_of(*command, run)

    assert not loaded & (HEAVY | {"curses", "_curses", "learnit_r8.scheduler"})
    assert "learnit_r8.journal" in loaded


def test_doctor_has_a_line_for_every_topic(capsys):
    """`doctor` has a line on the terminal, the locale, curses, the frameworks and the runs, without loading them."""
    code, lines = printed(capsys, "doctor")
    found = dict(line.split(None, 1) for line in lines)

    assert code == 0
    assert {"learnit_r8", "python", "terminal", "locale", "drawing", "curses", "screen", "torch", "jax", "runs"} <= {
        *found
    }
    assert found["numpy"] == np.__version__
    assert not modules_of("doctor") & HEAVY


def test_demo_trains_and_recovers(tmp_path):
    """The demo is a real run: every epoch, one refused loss, a recovery, samples and suspects in its folder."""
    r8 = run_demo(tmp_path / "run", 0.0, sleep=lambda seconds: None, use_curses=False)
    kinds = [type(record.event) for record in Run(tmp_path / "run").records()]

    assert r8.global_step == r8.total_steps
    assert kinds.count(events.BatchRefused) >= 1
    assert events.IncidentEnded in kinds
    assert sample_epochs(tmp_path / "run")[-1] == 19


def test_demo_as_a_command(tmp_path, capsys, monkeypatch):
    """`demo` runs in plain lines without a terminal, and leaves nothing behind unless it is told to."""
    monkeypatch.chdir(tmp_path)
    code, lines = printed(capsys, "demo", "--seconds", "0.01")
    assert code == 0
    assert list(tmp_path.iterdir()) == []
    code, lines = printed(capsys, "demo", "--seconds", "0.01", "--run-dir", "kept")

    assert lines[-1] == "now: learnit-r8 replay kept, or learnit-r8 report kept --html report.html"
    assert (tmp_path / "kept" / "events.jsonl").is_file()


def test_commands_of_the_guide_exist():
    """Every command line in the guide is one that the parser takes, and every picture in it is there."""
    guide = (ROOT / "docs" / "dashboard.md").read_text()
    lines = [line.split("#")[0].split()[1:] for line in guide.splitlines() if line.startswith("learnit-r8 ")]
    for arguments in lines:
        _parser().parse_args(arguments)

    assert {arguments[0] for arguments in lines} == set(_HOME) - {"demo"}
    for picture in re.findall(r"\(\.\./(assets/[^)]*)\)", guide):
        assert (ROOT / picture).is_file()


def test_every_command_has_a_function():
    """Every command of the parser is there to be called, and documented."""
    import importlib

    for name, home in _HOME.items():
        assert getattr(importlib.import_module(home, "learnit_r8.cli"), name).__doc__


def test_epoch_that_was_not_kept_names_those_that_were(run, capsys):
    """Not every epoch has a samples file; the message says which have."""
    assert main(["samples", str(run), "--epoch", "2"]) == 1
    assert "--epoch must be one whose samples were kept (3), got 2." in capsys.readouterr().err


def test_speed_that_is_no_number_is_named(capsys):
    """The error shows the value, not the function that converts it."""
    with pytest.raises(SystemExit):
        main(["replay", "--speed", "fast"])

    assert "must be a number above 0, got 'fast'." in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that closes descriptors")
def test_closed_output_keeps_the_exit_code(run):
    """Started with its output closed, a command still says by its exit code how the run is."""
    command = f"exec {sys.executable} -m learnit_r8 status {run} >&-"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (4, "")

"""The program: which command is run, with which exit code, and what it loads."""

import importlib
import json
import os
import re
import subprocess
import sys

import pytest

from learnit_r8 import events
from learnit_r8.cli import _HOME, _parser, main
from learnit_r8.journal.run import find_run
from tests.cli.commands import ROOT, printed
from tests.journal.run_folders import STARTED, folder_with, steps

COMMANDS = tuple(_parser()._subparsers._group_actions[0].choices)


@pytest.mark.parametrize("command", ["status", "samples", "export", "watch", "replay", "ls"])
def test_missing_run_is_an_error_of_one_line(command, tmp_path, capsys):
    """Where there is no run, one line says so, with exit code 1 and no traceback."""
    code = main([command, str(tmp_path)])
    err = capsys.readouterr().err

    assert code == 1
    assert err.startswith(f"learnit-r8 {command}: run")
    assert err.count("\n") == 1


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
    [["x"], ["samples", "--top", "0"], ["samples", "--top", "x"], ["compare"],
     ["watch", "--view", "x"], ["samples", "--top", "9" * 30]],
)  # fmt: skip
def test_wrong_command_line_is_refused(arguments, capsys):
    """A wrong command line ends with code 2 and a usage."""
    with pytest.raises(SystemExit) as error:
        main(arguments)

    assert error.value.code == 2
    assert "usage: learnit-r8" in capsys.readouterr().err


def test_nothing_like_it_gets_no_suggestion(capsys):
    """Where nothing is similar, nothing is suggested."""
    with pytest.raises(SystemExit):
        main(["watch", "--qqq"])

    assert "did you mean" not in capsys.readouterr().err


def test_no_command_prints_the_help(capsys):
    """Without a command the program says what it can do."""
    code, lines = printed(capsys)

    assert code == 0
    assert all(any(line.strip().startswith(name) for line in lines) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_what_the_command_takes(command, capsys):
    """RUN is explained where a run is taken, and nowhere else; a folder of runs is not called a run."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = capsys.readouterr().out.split()

    assert ("RUN is a run folder" in " ".join(words)) == bool({"RUN", "[RUN]"} & set(words[: words.index("options:")]))
    assert command != "ls" or "which run" not in " ".join(words)


WITH_JSON = sorted(set(COMMANDS) - {"ask", "demo", "convert", "export", "labels", "mcp", "prove"})


@pytest.mark.parametrize("command", WITH_JSON)
def test_every_command_speaks_json(command, run, tmp_path, monkeypatch, capsys):
    """With --json a command prints strict JSON only, with null for what is not known."""
    monkeypatch.setenv("BROWSER", "true")
    arguments = {"compare": [run, run], "ls": [run.parent], "watch": [run, "--once"]}.get(command, [run])
    if command == "report":
        arguments = [run, "--html", tmp_path / "page.html"]
    _, lines = printed(capsys, command, *arguments, "--json")

    assert all(json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert lines


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


WRITERS = {"learnit_r8.scheduler", "learnit_r8.journal.writer", "learnit_r8.table.table", "learnit_r8.state.store"}
"""What trains and writes, which one line on a run does not need."""


def modules_of(*arguments):
    command = [sys.executable, "-c", HELP, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    return set(done.stderr.split())


def test_help_loads_no_numpy():
    """`--help` loads no numpy, no curses and no framework, so that it is there at once."""
    loaded = modules_of("--help")

    assert (
        not loaded & {"numpy", "curses", "json", "learnit_r8.scheduler", "learnit_r8.dashboard", "dataclasses"}
        | loaded & HEAVY
    )


@pytest.mark.parametrize("command", [["status"], ["samples"], ["watch", "--once"]])
def test_no_command_loads_a_framework(run, command):
    """A command that looks at a run loads no framework, and no scheduler; without a screen no curses either."""
    loaded = modules_of(*command, run)

    assert not loaded & (HEAVY | {"curses", "_curses", "learnit_r8.scheduler"})
    assert "learnit_r8.journal" in loaded
    assert command != ["status"] or not loaded & WRITERS


def test_commands_of_the_guide_exist():
    """Every command line in the guide is one that the parser takes, and every picture in it is there."""
    guide = (ROOT / "docs" / "dashboard.md").read_text()
    lines = [line.split("#")[0].split()[1:] for line in guide.splitlines() if line.startswith("learnit-r8 ")]
    for arguments in lines:
        _parser().parse_args(arguments)

    assert {arguments[0] for arguments in lines} == set(COMMANDS) - {"demo"}
    for picture in re.findall(r"\(\.\./(assets/[^)]*)\)", guide):
        assert (ROOT / picture).is_file()


def test_every_command_has_a_function():
    """Every command of the parser is there to be called, and documented."""
    for name in COMMANDS:
        assert getattr(importlib.import_module(f"learnit_r8.cli.{_HOME.get(name, name)}"), name).__doc__


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that closes descriptors")
def test_closed_output_keeps_the_exit_code(run):
    """Started with its output closed, a command still says by its exit code how the run is."""
    command = f"exec {sys.executable} -m learnit_r8 status {run} >&-"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (4, "")


def test_a_run_is_found_without_its_time(tmp_path, capsys, monkeypatch):
    """The beginning of a name may leave out the time before it; a mistyped one is told which is meant."""
    for name in ("20260101-101010-digits", "20260102-101010-digits", "20260103-101010-letters"):
        folder_with(tmp_path / name, STARTED)
    monkeypatch.setenv("R8_RUNS", str(tmp_path))

    assert find_run("letters").name == "20260103-101010-letters"
    assert find_run("dig").name in ("20260101-101010-digits", "20260102-101010-digits")
    assert main(["status", "leters"]) == 1
    assert "Did you mean 'letters'?" in capsys.readouterr().err

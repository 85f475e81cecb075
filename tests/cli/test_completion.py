"""``completion``: what a shell completes."""

import argparse
import shutil
import subprocess
import sys

import pytest

from learnit_r8.cli import _parser, main
from tests.cli.commands import printed

SHELLS = ("bash", "zsh", "fish")
COMMANDS = next(each for each in _parser()._actions if isinstance(each, argparse._SubParsersAction)).choices


def completed(script, words, folder):
    """What bash offers for the last of some words."""
    listed = " ".join(f"'{word}'" for word in words)
    ask = (
        f"COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; COMP_LINE='{' '.join(words)}'; "
        '$(complete -p learnit-r8 | sed "s/.*-F \\([^ ]*\\).*/\\1/"); printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_values_and_runs(tmp_path, monkeypatch, capsys):
    """In bash the beginning of a command, an option, a value or a run is completed."""
    pytest.importorskip("shtab")
    monkeypatch.delenv("R8_RUNS", raising=False)
    (tmp_path / "runs" / "first-run").mkdir(parents=True)
    script = "\n".join(printed(capsys, "completion", "bash")[1])

    assert completed(script, ["learnit-r8", "sta"], tmp_path) == ["status"]
    assert completed(script, ["learnit-r8", "samples", "--sus"], tmp_path) == ["--suspects"]
    assert completed(script, ["learnit-r8", "export", "--of", "ep"], tmp_path) == ["epochs"]
    assert completed(script, ["learnit-r8", "watch", "--theme", "no"], tmp_path) == ["none"]
    assert "first-run" in completed(script, ["learnit-r8", "watch", "fir"], tmp_path)
    assert "first-run" in completed(script, ["learnit-r8", "compare", "other", "fir"], tmp_path)
    assert completed(script, ["learnit-r8", "completion", "f"], tmp_path) == ["fish"]


@pytest.mark.parametrize("shell", SHELLS)
def test_script_names_every_command_and_option(shell, capsys):
    """The script is made from the parser: each command and option is in it, and the shell can read it."""
    pytest.importorskip("shtab")
    script = "\n".join(printed(capsys, "completion", shell)[1])
    for name, command in COMMANDS.items():
        assert name in script
        shown = [each for each in command._actions if each.help != argparse.SUPPRESS]
        assert all(option.lstrip("-") in script for each in shown for option in each.option_strings)
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=60)


def test_without_shtab_the_extra_is_named(monkeypatch, capsys):
    """Without the library the command says which extra brings it."""
    monkeypatch.setitem(sys.modules, "shtab", None)

    assert main(["completion", "bash"]) == 1
    assert 'completion needs shtab: pip install ".[completion]" in a clone' in capsys.readouterr().err

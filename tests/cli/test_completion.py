"""``completion``: what a shell completes."""

import shutil
import subprocess

import pytest

from learnit_r8.cli.completion import commands
from tests.cli.commands import printed

SHELLS = ("bash", "zsh", "fish")


def completed(script, words, folder):
    """What bash offers for the last of some words."""
    listed = " ".join(f"'{word}'" for word in words)
    ask = f'COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _learnit_r8; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_values_and_runs(tmp_path, monkeypatch, capsys):
    """In bash the beginning of a command, an option, a value or a run is completed."""
    monkeypatch.delenv("R8_RUNS", raising=False)
    (tmp_path / "runs" / "first-run").mkdir(parents=True)
    script = "\n".join(printed(capsys, "completion", "bash")[1])

    assert completed(script, ["learnit-r8", "sta"], tmp_path) == ["status"]
    assert completed(script, ["learnit-r8", "samples", "--sus"], tmp_path) == ["--suspects"]
    assert completed(script, ["learnit-r8", "export", "--of", "ep"], tmp_path) == ["epochs"]
    assert "first-run" in completed(script, ["learnit-r8", "watch", "fir"], tmp_path)
    assert completed(script, ["learnit-r8", "completion", "f"], tmp_path) == ["fish"]


@pytest.mark.parametrize("shell", SHELLS)
def test_script_names_every_command_and_option(shell, capsys):
    """The script is made from the parser: each command and option is in it, and the shell can read it."""
    script = "\n".join(printed(capsys, "completion", shell)[1])
    for command in commands():
        assert command.name in script
        assert all(option.lstrip("-") in script for option in command.options)
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=60)

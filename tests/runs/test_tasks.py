"""What a newcomer sets out to do, from the README and the site alone: the scripts run, and type checkers read them."""

import re
import time
from pathlib import Path

import pytest

from tests.programs import printed_by, started

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "examples" / "tasks"
WRONG = {
    "own_loop.py": ("num_epochs=5", "epochs=5"),
    "torch_script.py": ("num_epochs=10", "nmu_epochs=10"),
    "find_labels.py": ("batch_size=20", "batchsize=20"),
    "resume_after_kill.py": ("checkpoint_every=10", "checkpoint_steps=10"),
    "early_stopping.py": ("early_stopping=5", "early_stop=5"),
    "watched.py": ("run_dir=folder", "log_dir=folder"),
}


def test_own_loop_is_put_back_after_a_nan(tmp_path):
    printed = printed_by(tmp_path, TASKS / "own_loop.py")

    assert re.search("losses refused: [12];", printed)
    assert "model restored once" in printed
    assert float(re.search(r"largest error: ([\d.]+)", printed)[1]) < 0.1


def test_a_run_stops_early_and_has_its_best_model_back(tmp_path):
    last = printed_by(tmp_path, TASKS / "early_stopping.py").splitlines()[-1]
    epochs, now, best = re.search(r"after (\d+) of 200 epochs; .* back: ([\d.]+) \(([\d.]+) when", last).groups()

    assert last.startswith("finished early")
    assert int(epochs) < 100
    assert now == best


@pytest.mark.program
def test_torch_script_learns(tmp_path):
    pytest.importorskip("torch")

    assert float(re.search(r"accuracy ([\d.]+)%", printed_by(tmp_path, TASKS / "torch_script.py"))[1]) > 95


def test_wrong_labels_are_found(tmp_path):
    """At least four in five of the wrong labels, with at most one false alarm in ten."""
    printed = printed_by(tmp_path, TASKS / "find_labels.py")
    named, right, wrong = map(int, re.search(r"(\d+) suspects, (\d+) .* the (\d+) wrong", printed).groups())

    assert right >= 0.8 * wrong
    assert right >= 0.9 * named


def test_killed_run_continues_to_the_same_end(tmp_path):
    """The weights are those of a run that was not killed, to the last digit."""
    script = TASKS / "resume_after_kill.py"
    printed_by(tmp_path, script, "killed", "--die-at", 65, code=9)
    resumed, whole = printed_by(tmp_path, script, "killed"), printed_by(tmp_path, script, "whole")

    assert resumed.splitlines()[0] == "begins at step 60"
    assert resumed.splitlines()[-1] == whole.splitlines()[-1]


def test_run_is_seen_from_another_terminal(tmp_path):
    """While it goes on, by the name that it prints."""
    program = started(tmp_path, TASKS / "watched.py", "watched")
    try:
        *_, folder = program.stdout.readline().split()
        until = time.monotonic() + 20
        while not (tmp_path / folder / "events.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.05)
        status = printed_by(tmp_path, "-m", "learnit_r8", "status", folder)
        picture = printed_by(tmp_path, "-m", "learnit_r8", "watch", "--once", folder)
        _, error = program.communicate(timeout=60)
    finally:
        program.kill()

    assert program.returncode == 0, error
    assert status.startswith("watched")
    assert "/80" in picture
    assert "loss" in picture


@pytest.mark.program
def test_type_checker_reads_the_scripts_and_finds_wrong_keywords(tmp_path):
    """mypy --strict passes, and names the line of a keyword that does not exist, and of a policy that does not."""
    pytest.importorskip("mypy")
    pytest.importorskip("torch")
    wrong = []
    for name, (right, misspelt) in WRONG.items():
        text = (TASKS / name).read_text(encoding="utf-8")
        assert text.count(right) == 1
        wrong.append(tmp_path / f"wrong_{name}")
        wrong[-1].write_text(text.replace(right, misspelt), encoding="utf-8")
    text = (TASKS / "torch_script.py").read_text(encoding="utf-8")
    wrong.append(tmp_path / "wrong_policy.py")
    wrong[-1].write_text(text.replace('policy="balanced"', 'policy="balance"'), encoding="utf-8")
    command = ["-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml", *sorted(TASKS.glob("*.py")), *wrong]
    printed = printed_by(ROOT, *command, code=1)
    found = {Path(line.partition(":")[0]).name for line in printed.splitlines() if ": error:" in line}

    assert found == {path.name for path in wrong}, printed


def test_every_task_is_shown():
    """The tutorial names the script of each."""
    tutorial = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")

    assert sorted(WRONG) == sorted(path.name for path in TASKS.glob("*.py"))
    assert [name for name in WRONG if f"examples/tasks/{name}" not in tutorial] == []

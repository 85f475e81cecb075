"""The guide pages on triggers, streams, loops and Flax: every block runs on its own, and its assertions hold; the
examples too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


NEEDS = {"flax.md": "learnit_r8.flax", "recipes.md": "torch", "streams.md": "torch", "triggers.md": "torch"}


@pytest.mark.program
@pytest.mark.parametrize(
    "page",
    [
        "budgets.md", "flax.md", "guard.md", "index.md", "loops.md", "recipes.md", "recovery.md", "streams.md",
        "triggers.md",
    ],
)  # fmt: skip
def test_blocks_of_the_page_run(page, monkeypatch, tmp_path):
    if page in NEEDS:
        pytest.importorskip(NEEDS[page], exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    for number, code in enumerate(blocks, start=1):
        exec(compile(code, f"{page} block {number}", "exec"), {})


def run(cwd, name, *arguments):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plain_example(tmp_path):
    """It stops early, near the true weights."""
    printed = run(tmp_path, "plain_loop.py")
    stopped = int(re.search(r"stopped after (\d+)", printed)[1])

    assert stopped < 2000
    assert float(re.search(r"error of a weight: ([\d.]+)", printed)[1]) < 0.02


@pytest.mark.program
def test_digits_example(tmp_path):
    """It learns the digits, and goes on from its checkpoints."""
    pytest.importorskip("sklearn")
    pytest.importorskip("learnit_r8.flax", exc_type=ImportError)
    printed = run(tmp_path, "flax_digits.py", "--epochs", "6")
    again = run(tmp_path, "flax_digits.py", "--epochs", "6", "--resume")

    assert float(re.search(r"accuracy ([\d.]+) after 6", printed)[1]) > 0.9
    assert again.splitlines()[-1] == printed.splitlines()[-1]
    assert (tmp_path / "runs" / "digits" / "history.json").exists()


HOUSES = "longitude,latitude,housing_median_age,total_rooms,total_bedrooms,population,households,median_income"


@pytest.mark.program
@pytest.mark.parametrize(("scheduler", "has_houses"), [([], True), (["--scheduler"], False)])
def test_housing_example(tmp_path, monkeypatch, scheduler, has_houses):
    """It trains on the table of houses where there is one, skipping rows with gaps, else on the digits."""
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    if has_houses:
        pytest.importorskip("pandas")
        rows = [",".join(str((7 * i * k) % 11 + i / 10) for k in range(1, 9)) + f",{i * 1000}" for i in range(100)]
        rows[5] = rows[5].replace(",", ",,", 1).rsplit(",", 1)[0]
        table = "\n".join([f"{HOUSES},median_house_value", *rows])
        (tmp_path / "california_housing.csv").write_text(table)
    monkeypatch.setenv("LEARNIT_R8_DATA", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = [
        sys.executable,
        str(ROOT / "examples" / "housing_stream.py"),
        "--epochs",
        "10",
        "--runs",
        "runs",
        *scheduler,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "best val_loss" in done.stdout
    assert (tmp_path / "runs" / ("california_housing.jsonl" if has_houses else "digits.jsonl")).exists()

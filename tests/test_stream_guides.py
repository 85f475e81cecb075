"""The guide pages on triggers and streams: every block runs on its own, and its assertions hold; the example too."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", ["triggers.md", "streams.md"])
def test_blocks_of_the_page_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    for number, code in enumerate(blocks, start=1):
        exec(compile(code, f"{page} block {number}", "exec"), {})


HOUSES = "longitude,latitude,housing_median_age,total_rooms,total_bedrooms,population,households,median_income"


@pytest.mark.parametrize("scheduler", [[], ["--scheduler"]])
@pytest.mark.parametrize("has_houses", [True, False])
def test_housing_example(tmp_path, monkeypatch, scheduler, has_houses):
    """It trains on the table of houses where there is one, skipping rows with gaps, else on the digits."""
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

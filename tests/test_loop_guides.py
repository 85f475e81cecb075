"""The guide pages on loops and Flax: every block runs on its own, and its assertions hold; the examples too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", ["loops.md", "flax.md", "which.md"])
def test_blocks_of_the_page_run(page, monkeypatch, tmp_path):
    if page == "flax.md":
        pytest.importorskip("learnit_r8.flax", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    for number, code in enumerate(blocks, start=1):
        exec(compile(code, f"{page} block {number}", "exec"), {})


@pytest.mark.parametrize("page", ["loops.md", "flax.md", "which.md"])
def test_links_of_the_page_lead_somewhere(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    missing = [link for link in re.findall(r"\]\((\w+\.md)\)", text) if not (ROOT / "docs" / link).exists()]

    assert not missing


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


def test_digits_example(tmp_path):
    """It learns the digits, and goes on from its checkpoints."""
    pytest.importorskip("sklearn")
    pytest.importorskip("learnit_r8.flax", exc_type=ImportError)
    printed = run(tmp_path, "flax_digits.py", "--epochs", "6")
    again = run(tmp_path, "flax_digits.py", "--epochs", "6", "--resume")

    assert float(re.search(r"accuracy ([\d.]+) after 6", printed)[1]) > 0.9
    assert again.splitlines()[-1] == printed.splitlines()[-1]
    assert (tmp_path / "runs" / "digits" / "history.json").exists()

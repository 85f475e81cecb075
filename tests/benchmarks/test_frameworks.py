"""The ways of training of benchmarks/frameworks.py heal a NaN and damaged weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
WAYS = pytest.importorskip("framework_ways").WAYS


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_training_heals(way):
    """The run ends within 10 % of the loss of the undisturbed one."""
    command = [sys.executable, str(ROOT / "benchmarks/frameworks.py"), "--way", way, "--kinds", "nan", "weights"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)

    ratios = {each["kind"]: each["ratio"] for each in json.loads(done.stdout.splitlines()[-1])}
    assert max(ratios.values()) < 1.1, ratios

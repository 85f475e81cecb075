"""Keras on its other back ends, each in a process of its own, passes the same rules."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras")

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("back_end", ["jax", "torch"])
def test_back_end(back_end):
    """In the columns and the ways of Keras."""
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow or not slow",
        "-k", "keras and not back_end", str(Path(__file__).parent),
    ]  # fmt: skip
    environment = {**os.environ, "KERAS_BACKEND": back_end, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-3000:]

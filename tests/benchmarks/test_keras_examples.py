"""Examples of keras.io, checked by ``benchmarks/keras_examples.py``."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras")
pytest.importorskip("tensorflow")
BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "keras_examples.py"


@pytest.mark.program
def test_two_of_the_examples():
    """A GAN, and layers unfrozen in a second fit: equal to the bit, healed, resumed after a kill."""
    command = [sys.executable, str(BENCHMARK), "--only", "dcgan", "transfer_learning"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert "equal 2, healed 2, resumed 2 of 2" in done.stdout, done.stdout + done.stderr[-2000:]

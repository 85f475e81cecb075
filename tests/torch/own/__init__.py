"""Trainings with batches and rates of their own, as the scripts of ``benchmarks/wild.py`` are."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))

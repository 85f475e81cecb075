"""A copy of the package that is changed, and programs that run with it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import learnit_r8


def copy_package(folder):
    """A copy in this folder; returns its path."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(Path(learnit_r8.__file__).parent, folder / "learnit_r8", ignore=ignored))


def replace_in(path, old, new):
    """Replace a text that is in the file once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new), encoding="utf-8")


def run_beside(folder, code):
    """Run a program beside the copy in this folder; returns the lines that it prints."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()

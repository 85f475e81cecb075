"""The examples of the torch adapter run, and differ from their plain versions in five lines."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def run(path, *options, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LEARNIT_R8_DATA": str(folder)}
    command = [sys.executable, str(path), *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def code_lines(path):
    """The lines of a program without its docstring and blank ones."""
    code = path.read_text(encoding="utf-8").split('"""', 2)[2]
    return [line for line in code.splitlines() if line.strip()]


@pytest.mark.parametrize("name", ["torch_cifar10", "torch_charlm"])
def test_five_lines(name):
    """An example differs from its plain version in at most five lines."""
    own, plain = code_lines(EXAMPLES / f"{name}.py"), code_lines(EXAMPLES / f"{name}_plain.py")

    assert 0 < len([line for line in own if line not in plain]) <= 5


@pytest.mark.parametrize("name", ["torch_charlm", "torch_charlm_plain"])
def test_characters(name, tmp_path):
    """The transformer learns the made-up text, which stands in for Shakespeare."""
    printed = run(EXAMPLES / f"{name}.py", "--steps", "60", folder=tmp_path)

    assert float(re.search(r"loss on the rest of the text: ([\d.]+)", printed)[1]) < 2.0


@pytest.mark.parametrize("name", ["torch_cifar10", "torch_cifar10_plain"])
def test_images(name, tmp_path):
    """The network trains on the digits, which stand in for CIFAR-10."""
    printed = run(EXAMPLES / f"{name}.py", "--epochs", "2", "--width", "4", folder=tmp_path)

    assert len(re.findall(r"epoch \d: test accuracy [\d.]+%", printed)) == 2


def test_diff_in_the_guide_is_that_of_the_example():
    """What docs/pytorch.md shows as added is in the example."""
    guide = (ROOT / "docs" / "pytorch.md").read_text(encoding="utf-8")
    diff = re.search(r"```diff\n(.*?)```", guide, flags=re.DOTALL)[1]
    added = [line[1:].strip() for line in diff.splitlines() if line.startswith("+")]
    example = (EXAMPLES / "torch_cifar10.py").read_text(encoding="utf-8")
    kept = example.replace("BATCH_SIZE", "128").replace("options.epochs", "EPOCHS").replace("collate_fn=as_is, ", "")
    kept = kept.replace("128, LR", "BATCH_SIZE, LR")

    assert len(added) <= 5
    assert [line for line in added if line not in kept] == []

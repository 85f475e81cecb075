"""The examples of the torch adapter run, and differ from their plain versions in five lines."""

import difflib
import re

import pytest

from tests.programs import ROOT, printed_by

pytest.importorskip("torch")

EXAMPLES = ROOT / "examples"
NAMES = ["torch_cifar10", "torch_charlm", "ddp"]
GUIDE = (ROOT / "docs" / "pytorch.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"^```diff\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE)


def code_lines(path):
    """The lines of a program without its docstring and blank ones."""
    code = path.read_text(encoding="utf-8").split('"""', 2)[2]
    return [line for line in code.splitlines() if line.strip()]


def changed_lines(name):
    """The lines that an example takes out of its plain version, and puts in, as ``diff`` marks them."""
    own, plain = code_lines(EXAMPLES / f"{name}.py"), code_lines(EXAMPLES / f"{name}_plain.py")
    return [line for line in difflib.ndiff(plain, own) if line[0] in "+-"]


@pytest.mark.parametrize("name", NAMES)
def test_five_lines(name):
    """An example has at most five lines that its plain version has not."""
    added = [line for line in changed_lines(name) if line.startswith("+")]

    assert 0 < len(added) <= 5


@pytest.mark.parametrize(("name", "shown"), list(zip(NAMES[:2], DIFFS, strict=True)))
def test_diff_in_the_guide_is_that_of_the_example(name, shown):
    """docs/pytorch.md shows every line that an example changes, and no other."""
    marked = {line for line in shown.splitlines() if line[0] in "+-"}

    assert marked == {line[0] + line[2:] for line in changed_lines(name)}


@pytest.mark.program
@pytest.mark.parametrize("name", ["torch_charlm", pytest.param("torch_charlm_plain", marks=pytest.mark.slow)])
def test_characters(name, tmp_path):
    """The transformer learns the made-up text, which stands in for Shakespeare."""
    printed = printed_by(tmp_path, EXAMPLES / f"{name}.py", "--steps", 60, LEARNIT_R8_DATA=str(tmp_path))

    assert float(re.search(r"loss on the rest of the text: ([\d.]+)", printed)[1]) < 2.0


@pytest.mark.program
@pytest.mark.parametrize("name", ["torch_cifar10", pytest.param("torch_cifar10_plain", marks=pytest.mark.slow)])
def test_images(name, tmp_path):
    """The network trains on the digits, which stand in for CIFAR-10."""
    options = "--epochs", 2, "--width", 4
    printed = printed_by(tmp_path, EXAMPLES / f"{name}.py", *options, LEARNIT_R8_DATA=str(tmp_path))

    assert len(re.findall(r"epoch \d: test accuracy [\d.]+%", printed)) == 2

"""The example of the guide runs, and says what the guide says."""

import re
from pathlib import Path

import pytest

from learnit_r8.cli import main

GUIDE = (Path(__file__).parents[3] / "docs" / "incidents.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_example_of_the_guide(tmp_path, monkeypatch, capsys):
    """From the training to the sentence, and to the same failure again."""
    monkeypatch.chdir(tmp_path)
    sentence = re.search(r"^```text\n(.*?)\n```$", GUIDE, flags=re.DOTALL | re.MULTILINE)[1]
    space = {}
    for block in re.findall(r"^```python\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE):
        exec(compile(block, "train.py", "exec"), space)

    assert space["incident"].cause == sentence
    for line in re.findall(r"^learnit-r8 (incidents .*?) +#", GUIDE, flags=re.MULTILINE):
        assert main(line.split()) == 0
        assert sentence[:60] in capsys.readouterr().out

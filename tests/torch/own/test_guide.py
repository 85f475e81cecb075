"""docs/any_training.md: what it counts is so."""

import re
from pathlib import Path

from wild_scripts import SCRIPTS

GUIDE = (Path(__file__).parents[3] / "docs" / "any_training.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"^```diff\n(.*?)^```$", GUIDE, flags=re.DOTALL | re.MULTILINE)


def test_the_first_diff_has_two_lines_and_the_step():
    """Beside the three lines of the step, which are indented, and their condition, two lines are new."""
    new = [line[1:].strip() for line in DIFFS[0].splitlines() if line.startswith("+")]
    old = [line[1:].strip() for line in DIFFS[0].splitlines() if line.startswith("-")]

    assert len(set(new) - set(old)) == 3


def test_the_guide_counts_the_kinds_of_scripts():
    """Seventeen, as it says."""
    assert f"Tests hold { {17: 'seventeen'}[len(SCRIPTS)] } kinds of scripts" in " ".join(GUIDE.split())

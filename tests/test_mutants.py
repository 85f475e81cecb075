"""The list of planted defects stays one that can be planted; `tests/mutants.py` plants them."""

import shlex

from tests.mutants import MUTANTS, ROOT, check


def test_every_defect_fits_the_code():
    """What each one changes is in the code once, and the tests that should find it are there."""
    assert len(MUTANTS) >= 100
    assert check() == []
    files = [each.tests.partition(" -k ")[0].replace(" -m program", "").replace(" -m slow", "") for each in MUTANTS]
    paths = {path for some in files for path in shlex.split(some)}
    assert [path for path in sorted(paths) if not (ROOT / "tests" / path).exists()] == []

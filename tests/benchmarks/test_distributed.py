"""benchmarks/distributed.py: runs that torchrun restarts, and ranks that fail."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import distributed

ATTEMPTS = 3


@pytest.mark.slow
def test_a_run_that_torchrun_restarts_ends_as_if_unbroken(tmp_path):
    """A rank kills itself; all are started again, resume by themselves, and end equal to the bit, dropout included."""
    unbroken, found = distributed.torchrun(_made(tmp_path / "unbroken"), 0), [None]
    for number in range(ATTEMPTS):
        # That ranks find each other again is torch's part, and fails at times, also without us.
        if None in found:
            found = distributed.torchrun(_made(tmp_path / str(number)), 23)

    assert found == unbroken
    assert None not in found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_failures_in_any_order_end_or_go_on(capfd, seed):
    """No rank hangs beyond the stated time, tables stay equal, and what is left resumes to what it would have been."""
    distributed.failures(5, seed)
    lines = {line[:40].strip(): line[84:].split() for line in capfd.readouterr().out.splitlines()}

    assert [found[1][:2] for name, found in lines.items() if "hangs" in name] == ["0;"]
    assert [found[1] for name, found in lines.items() if "wrong" in name or "unequal" in name] == ["0", "0"]


def _made(folder):
    folder.mkdir()
    return str(folder)

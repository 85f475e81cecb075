"""benchmarks/distributed.py: ranks that fail, and runs that torchrun starts again."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import distributed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_failures_in_any_order_end_or_go_on(capfd, seed):
    """No rank hangs beyond the stated time, our errors name the rank, and what is left resumes to the same run."""
    distributed.failures(5, seed)
    printed = capfd.readouterr().out
    lines = {line[:40].strip(): line[84:].split() for line in printed.splitlines()}

    # Torch's own errors name no rank; ours do, and nothing that follows from one takes its place.
    assert "RunInterrupted" not in printed
    assert [found[1][:2] for name, found in lines.items() if name.startswith("hangs")] == ["0;"]
    assert [found[1] for name, found in lines.items() if "wrong" in name or "unequal" in name] == ["0", "0"]


@pytest.mark.slow
def test_restarts_end_as_if_unbroken(capfd):
    """Every rank that torchrun starts again meets the others, and they go on from one state, equal to the bit."""
    distributed.restarts(3, seed=5)
    found = {line[:70].split(",")[0].strip(): line[86:].strip() for line in capfd.readouterr().out.splitlines()}
    number = found["restarts by torchrun --max-restarts"]

    assert int(number) >= 3
    assert found["of these"] == found["the run ended equal to the bit to an unbroken one"] == number
    assert found["ranks went on from different states"] == "0"

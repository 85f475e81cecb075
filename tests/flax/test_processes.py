"""Two processes of jax.distributed on a CPU: verdicts, restores, checkpoints and requests are common."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.programs import started

pytest.importorskip("jax")
pytest.importorskip("optax")
pytest.importorskip("flax")
pytestmark = pytest.mark.program
JOBS = Path(__file__).parent / "process_jobs.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each process found."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [started(folder, JOBS, rank, port, folder) for rank in range(2)]
    said = [process.communicate(timeout=400)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said[0][-3000:] + said[1][-3000:]
    return [json.loads((folder / f"found{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("batches", ["own", "drawn"])
def test_a_fault_of_one_process_is_answered_by_both(found, batches):
    """A NaN in the data of one process: both refuse the same loss, go back together, and end with equal weights."""
    one, other = (each[batches] for each in found)

    assert one["whole"] == other["whole"]
    assert one["healed"] == other["healed"]
    assert one["whole"][3] == 0
    assert one["healed"][3] >= 1
    assert one["healed"][1] < 1.5 * one["whole"][1] + 0.1


@pytest.mark.parametrize("batches", ["own", "drawn"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(found, batches):
    """Weights that are spread over both processes come back to the bit, from the checkpoint that one of them wrote."""
    for each in found:
        assert each[batches]["resumed"] == each[batches]["whole"]


def test_a_request_of_one_process_is_answered_by_both(found):
    """Asked to stop on one process, both end at the same step."""
    assert found[0]["stopped"] == found[1]["stopped"]
    assert 21 <= found[0]["stopped"] <= 23


def test_what_is_not_shared_is_named(found):
    """A loss of each process's own, and a run folder on another process than the first."""
    for rank, each in enumerate(found):
        assert f"all processes must report the same loss at step 0, got {rank + 1}.0 on process" in each["local loss"]
        assert "on all processes but the first, got one on process 1" in each["folder"]

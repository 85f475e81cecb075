"""Two and four virtual devices: shardings under `jit`, `pmap`, NNX, donated states; all healed, and resumed exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.programs import printed_by

pytest.importorskip("jax")
pytest.importorskip("optax")
pytest.importorskip("flax")
pytestmark = pytest.mark.program
JOBS = Path(__file__).parent / "device_jobs.py"
CASES = [(kind, 2) for kind in ("repeated", "spread", "donated", "pmap", "nnx")]
CASES += [(kind, 4) for kind in ("spread", "pmap", "nnx")]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What was found on two devices and then, in the same folder, on four."""
    folder = tmp_path_factory.mktemp("devices")
    for count in (2, 4):
        printed_by(folder, JOBS, count, folder)
    return {count: json.loads((folder / f"found{count}.json").read_text()) for count in (2, 4)}


@pytest.mark.parametrize("batches", ["drawn", "own"])
@pytest.mark.parametrize(("kind", "count"), CASES)
def test_a_spread_state_is_healed_and_resumed_exactly(found, kind, batches, count):
    """Two NaN are refused and cost little; killed in mid-epoch the run ends with the same bits; losses are exact."""
    loss, refused, source, healed_loss, num_refused, _, is_exact = found[count][f"{kind} {batches}"]

    assert (refused, source) == (0, "exact")
    assert num_refused == 2
    assert healed_loss < 1.15 * loss
    assert is_exact


def test_a_loop_by_hand(found):
    """ManagedState does in a loop of the user's own what train_loop does."""
    for count in (2, 4):
        loss, refused, _, healed_loss, num_refused, _, _ = found[count]["by hand"]
        assert (refused, num_refused) == (0, 2)
        assert healed_loss < 1.15 * loss
        assert loss == pytest.approx(found[count]["spread own"][0], rel=1e-5)


def test_the_cause_is_looked_for_under_pmap(found):
    """The sample is named by its place in the whole batch, not in a device's part; the step is run as it was given."""
    for count in (2, 4):
        samples, bad, fault, is_certain, text = found[count]["cause"]
        assert (samples, fault, is_certain) == ([bad], "input", True), text


def test_another_number_of_devices(found):
    """A state with shardings goes on; that of pmap has a copy for each device, which the message says."""
    moved = found[4]["moved"]

    assert moved["spread"][0] == pytest.approx(found[4]["spread own"][0], rel=1e-3)
    assert "state.step must be saved with the shape (4,), got (2,)" in moved["pmap"]
    assert "pmap keeps a copy for each device" in moved["pmap"]

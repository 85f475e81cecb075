"""Files of model states that 7ddda59 wrote are read; `tests/saved_states.py` says what was in them."""

import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from learnit_r8._adapters.driven_state import DrivenState
from learnit_r8.checkpoint.shared_memory import SharedBackups
from learnit_r8.checkpoint.state_tree import clone
from tests.saved_states import NEST, of_jax, of_keras, of_torch
from tests.state_common import first_difference

torch = pytest.importorskip("torch")

FILES = Path(__file__).parent / "saved_7ddda59"


def zeroed(model):
    with torch.no_grad():
        for each in [*model.parameters(), *model.buffers()]:
            each.zero_()
    return model


@pytest.mark.parametrize("name", ["torch", "torch.safetensors"])
def test_files_of_attach(name, tmp_path):
    """Model, optimizer and generators of a file that attach() had written go on as they were."""
    from learnit_r8.torch import ModelState, serialization

    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    source = FILES / ("torch.pt" if name == "torch" else name)
    model, optimizer = of_torch()
    before = clone(model.state_dict()), clone(optimizer.state_dict())
    shutil.copy(source, tmp_path / name)
    saved = serialization.load(tmp_path / name)

    assert saved.pop("extra")["a"] == NEST["a"]
    serialization.save(saved, tmp_path / "without")
    [path] = tmp_path.glob("without*")
    ModelState(zeroed(model), optimizer).load(path)
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert first_difference(before, (model.state_dict(), optimizer.state_dict())) == ""
    assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())


def test_files_of_loops():
    """A nest of JAX and a model of torch that a loop had saved are put back."""
    pytest.importorskip("jax")
    model, _ = of_torch()
    before = clone(model.state_dict())
    place = SimpleNamespace(state=(of_jax(), zeroed(model)))
    DrivenState(place).load(FILES / "loop")

    check_jax(place.state[0])
    assert first_difference(before, model.state_dict()) == ""


def test_files_of_flax():
    """A checkpoint of a Flax state is read with a state of its kind, and without one."""
    pytest.importorskip("flax")
    from learnit_r8.flax import load_checkpoint

    check_jax(load_checkpoint(FILES / "flax", of_jax()))
    plain = load_checkpoint(FILES / "flax")
    assert plain["half"].dtype.name == "bfloat16"
    assert plain["nest"]["0"] == {"0": 1, "1": {"0": 2.5, "1": None}}


def check_jax(state):
    import jax

    one = of_jax()
    assert jax.numpy.array_equal(jax.random.key_data(state.pop("key")), jax.random.key_data(one.pop("key")))
    assert [each.dtype.name for each in (state["w"], state["half"])] == ["float32", "bfloat16"]
    assert first_difference(jax.tree.map(np.asarray, state), jax.tree.map(np.asarray, one)) == ""


def test_files_of_keras():
    """Variables of a Keras model and its optimizer are put back."""
    pytest.importorskip("keras")
    from learnit_r8.keras.state import ModelState

    model = of_keras()
    state = ModelState(model)
    before = clone(state.read())
    for each in [*model.trainable_variables, *model.optimizer.variables[2:]]:
        each.assign(np.zeros(each.shape))
    state.load(FILES / "keras.npz")

    assert first_difference({**before, "random": []}, {**state.read(), "random": []}) == ""


def test_generations(tmp_path):
    """A backup that had been left in shared memory is found, with its model."""
    backups = SharedBackups(
        tmp_path / "memory", tmp_path / "run", rank=0, num_ranks=1, note=pytest.fail, is_default=False
    )
    backups._parent.mkdir(mode=0o700, parents=True)
    backups._folder.mkdir(parents=True)
    shutil.copy(FILES / "generation.r8", backups._folder / "gen_000000000003.r8")
    found, proved, _ = backups.newest([])
    model, _ = of_torch()

    assert first_difference({"model": model.state_dict(), "nest": NEST}, dict(found.model_state)) == ""
    assert proved == []

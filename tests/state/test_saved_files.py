"""Files of 01c0f9e2, converted, are read; `tests/saved_states.py` says what was in them."""

import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from learnit_r8.bridge.driven_state import DrivenState
from learnit_r8.cli import main
from learnit_r8.state.codec import OlderFile, decode
from learnit_r8.state.generations import Generations
from learnit_r8.state.tree import clone, unpack
from tests.saved_states import NEST, of_jax, of_keras, of_torch
from tests.state_common import first_difference

torch = pytest.importorskip("torch")

FILES = Path(__file__).parent / "saved_01c0f9e2"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files as today's version has them."""
    folder = tmp_path_factory.mktemp("older") / "saved"
    shutil.copytree(FILES, folder)
    assert main(["convert", str(folder)]) == 0
    return folder.with_name("saved-converted")


def zeroed(model):
    with torch.no_grad():
        for each in [*model.parameters(), *model.buffers()]:
            each.zero_()
    return model


@pytest.mark.parametrize("name", ["torch.pt", "torch.safetensors"])
def test_files_of_attach(name, files):
    """Model, optimizer, generators and what was beside them in a file that attach() had written go on as they were."""
    from learnit_r8.torch import ModelState

    model, optimizer = of_torch()
    before = clone(model.state_dict()), clone(optimizer.state_dict())
    [beside] = ModelState(zeroed(model), optimizer).load(files / name)
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)

    assert first_difference(before, (model.state_dict(), optimizer.state_dict())) == ""
    assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())
    assert first_difference(NEST, unpack(decode(beside.tobytes()))) == ""


def test_files_of_loops(files):
    """A nest of JAX and a model of torch that a loop had saved are put back."""
    pytest.importorskip("jax")
    model, _ = of_torch()
    before = clone(model.state_dict())
    place = SimpleNamespace(state=(of_jax(), zeroed(model)))
    DrivenState(place).load(files / "loop")

    check_jax(place.state[0])
    assert first_difference(before, model.state_dict()) == ""


def test_files_of_flax(files):
    """A checkpoint of a Flax state is read with a state of its kind, and without one."""
    pytest.importorskip("flax")
    from learnit_r8.flax import load_checkpoint

    check_jax(load_checkpoint(files / "checkpoint_5", of_jax()))
    plain = load_checkpoint(files / "checkpoint_5")
    assert plain["half"].dtype.name == "bfloat16"
    assert plain["nest"][0] == [1, (2.5, None)]


def check_jax(state):
    import jax

    one = of_jax()
    assert jax.numpy.array_equal(jax.random.key_data(state.pop("key")), jax.random.key_data(one.pop("key")))
    assert [each.dtype.name for each in (state["w"], state["half"])] == ["float32", "bfloat16"]
    assert first_difference(jax.tree.map(np.asarray, state), jax.tree.map(np.asarray, one)) == ""


def test_files_of_keras(files):
    """Variables of a Keras model and its optimizer are put back."""
    pytest.importorskip("keras")
    from learnit_r8.keras.state import ModelState

    model = of_keras()
    state = ModelState(model)
    before = clone(state.read())
    for each in [*model.trainable_variables, *model.optimizer.variables[2:]]:
        each.assign(np.zeros(each.shape))
    state.load(files / "keras.npz")

    assert first_difference({**before, "random": []}, {**state.read(), "random": []}) == ""


def test_generations(files, tmp_path):
    """A backup that had been left in shared memory is found, with its model."""
    backups = Generations(
        tmp_path / "memory", tmp_path / "run", rank=0, num_ranks=1, note=pytest.fail, is_default=False
    )
    backups._parent.mkdir(mode=0o700, parents=True)
    backups._folder.mkdir(parents=True)
    shutil.copy(files / "generation.r8", backups._folder / "gen_000000000003.r8")
    found = backups.newest([])
    model, _ = of_torch()

    assert first_difference({"model": model.state_dict(), "nest": NEST}, dict(found.model_state)) == ""


def test_an_older_generation_is_no_fresh_start(tmp_path):
    """A backup that an older version left in shared memory is an error that names the command."""
    backups = Generations(
        tmp_path / "memory", tmp_path / "run", rank=0, num_ranks=1, note=pytest.fail, is_default=False
    )
    backups._parent.mkdir(mode=0o700, parents=True)
    backups._folder.mkdir(parents=True)
    shutil.copy(FILES / "generation.r8", backups._folder / "gen_000000000003.r8")
    with pytest.raises(OlderFile, match=r"gen_000000000003\.r8' of an older one in .*; run learnit-r8 convert"):
        backups.newest([])

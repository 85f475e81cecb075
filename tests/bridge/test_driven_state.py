"""The state that a loop drives: which of its arrays are weights, so that somebody looks at them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.bridge.driven_state import DrivenState
from learnit_r8.state.tree import sums_of


def weights_of(state):
    """The keys of the arrays that count as weights."""
    driven = DrivenState(SimpleNamespace(state=state))
    callbacks = driven.callbacks()
    return {each.key for each in sums_of(callbacks.state()) if callbacks.is_weight(each.key)}


def test_torch_modules():
    """In a tuple with their optimizer, as loops of one's own hand them on."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()

    assert weights_of((model, optimizer)) == {"state.0.weight", "state.0.bias"}
    assert weights_of(model) == {"state.weight", "state.bias"}


W, B = np.ones((2, 2)), np.ones(2)


@pytest.mark.parametrize(
    ("state", "known"),
    [
        ({"weights": {"w": W}, "opt_state": {"mu": {"w": W}}}, {"state.weights.w"}),
        ({"params": {"optical": W}, "optimizer": {"params": W}}, {"state.params.optical"}),
        (({"w": W}, {"m": W, "v": W}, 3), {"state.0.w"}),
        ({"net": [W], "rng": B, "ema": {"w": W}}, {"state.net.0"}),
        ({"params": {"w": W}, "opt_state": {"params": {"w": W}}}, {"state.params.w"}),
        ((W, {"m": W}), set()),
    ],
    ids=["dict", "name", "tuple", "beside", "params", "arrays"],
)
def test_states_with_names_of_the_users_own(state, known):
    """All but what by its name is an optimizer's, or counted or remembered; of a tuple the first part."""
    assert weights_of(state) == known


def test_bare_schedulers_look_at_weights_of_any_name():
    """As with adapters; the moments of an optimizer written by hand are none."""
    r8 = R8Scheduler(8, batch_size=2, num_epochs=1, state_callback=lambda: None, load_callback=lambda state: None)
    names = ["W1", "net.w", "adopted.kernel", "embedding", "value.w", "m.W1", "v_W1", "mW1", "opt.w", "adam_m.w", "m"]
    is_weight = r8.host.persistence.backup_timer.is_weight

    assert [each for each in names if is_weight(each)] == names[:5]


@pytest.mark.program
def test_modules_of_nnx():
    """A model, its optimizer and its metrics, as the pages of Flax have them; moments are no weights."""
    nnx, optax = pytest.importorskip("flax.nnx"), pytest.importorskip("optax")
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    state = model, optimizer, nnx.MultiMetric(loss=nnx.metrics.Average("loss"))

    assert weights_of(state) == {"state.0.kernel.value", "state.0.bias.value"}


@pytest.mark.program
def test_modules_of_equinox():
    """A model and the state of its optimizer."""
    equinox, optax, jax = (pytest.importorskip(name) for name in ("equinox", "optax", "jax"))
    model = equinox.nn.Linear(2, 2, key=jax.random.key(0))

    state = model, optax.adam(1e-3).init(equinox.filter(model, equinox.is_array))
    assert weights_of(state) == {"state.0.weight", "state.0.bias"}


@pytest.mark.program
def test_parameters_in_a_plain_tree():
    """Before the state of their optimizer, with moments or without."""
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    params = {"w": jax.numpy.ones((2, 2))}
    for optimizer in (optax.adam(1e-3), optax.sgd(1e-3), optax.inject_hyperparams(optax.adam)(1e-3)):
        state = params, optimizer.init(params), {"loss": jax.numpy.ones(3)}
        assert weights_of(state) == {"state.0.w"}
        assert weights_of(state[1:]) == set()

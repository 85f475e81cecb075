"""ManagedState over a module that is a pytree with functions among its leaves, as those of Equinox are."""

import numpy as np
import pytest

from learnit_r8 import R8Scheduler

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
r8flax = pytest.importorskip("learnit_r8.flax", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore")
jnp = jax.numpy

X = np.random.default_rng(0).normal(size=(64, 8)).astype("f4")
Y = X.sum(1, keepdims=True)
TX = optax.adam(0.03)
EPOCHS, BATCHES = 6, 8


@jax.tree_util.register_pytree_with_keys_class
class Network:
    """Two layers and an activation."""

    def __init__(self, one, two, activation):
        self.one, self.two, self.activation = one, two, activation

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey(name), value) for name, value in vars(self).items()], None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)

    @classmethod
    def make(cls):
        rng = np.random.default_rng(1)
        return cls(*(jnp.asarray(rng.normal(size=shape).astype("f4")) for shape in ((8, 4), (4, 1))), jnp.tanh)


def arrays_of(network):
    """The module with None in place of what is no array: ``eqx.filter``."""
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else None, network)


@jax.jit
def compiled(arrays, held, x, y):
    def loss_of(arrays):
        return jnp.mean((jnp.tanh(x @ arrays.one) @ arrays.two - y) ** 2)

    loss, grads = jax.value_and_grad(loss_of)(arrays)
    updates, held = TX.update(grads, held, arrays)
    return optax.apply_updates(arrays, updates), held, loss


def train(folder=None, *, hurt_at=None, leave_at=None):
    """The state at the end, and the scheduler; None where the run was left."""
    network = Network.make()
    files = {} if folder is None else {"checkpoint_dir": folder, "checkpoint_every": 3, "resume": "auto"}
    r8 = R8Scheduler(scheduler_mode="keep", num_epochs=EPOCHS, handle_signals=False, **files)
    managed = r8flax.ManagedState(r8, (network, TX.init(arrays_of(network))))
    num_begun = 0
    for _ in r8.epoch_iterator():
        for first in r8.batches([*range(0, len(X), 8)]):
            if num_begun == leave_at:
                r8.host.saver.store.release()
                return None
            network, held = managed.for_step()
            arrays, held, loss = compiled(arrays_of(network), held, X[first : first + 8], Y[first : first + 8])
            if num_begun == hurt_at:
                # Behind the loss, so that the ruined state becomes the run's.
                arrays = jax.tree.map(lambda each: each * np.nan, arrays)
            num_begun += 1
            managed.report((Network(arrays.one, arrays.two, network.activation), held), loss)
    r8.close()
    return managed.state, r8


def test_a_module_is_healed_and_resumed(tmp_path):
    """Weights that become NaN are put back, the activation stays; left in mid-epoch, it ends with the same bits."""
    whole, r8 = train()
    healed, _ = train(hurt_at=30)
    train(tmp_path, leave_at=20)
    parts, resumed = train(tmp_path)

    assert all(np.isfinite(each).all() for each in jax.tree.leaves(arrays_of(healed[0])))
    assert healed[0].activation is parts[0].activation is jnp.tanh
    assert r8.global_step == resumed.global_step == EPOCHS * BATCHES
    one, two = (jax.tree.leaves((arrays_of(network), held)) for network, held in (whole, parts))
    assert all(map(np.array_equal, one, two))

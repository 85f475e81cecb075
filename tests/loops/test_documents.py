"""Every Python block of the two documents on loops runs against this package, with only its import lines changed.

Deviations, each an error of the documents themselves, a gap that the reader is to fill, or no Python:

- ciclo: ``assert batches = [...]`` is no Python; ``==`` here.
- ciclo: ``train_step`` predicts from all of ``X`` for one batch; ``x`` here.
- ciclo: its gradient is a tuple and its state a dictionary, and ``jax.tree_map`` is gone; ``jax.tree.map`` over a
  dictionary here.
- ciclo: three blocks are signatures and no Python; what they say is tested by hand. ``Logs`` is not imported there.
- beagle: ``loss`` is undefined in the batch-norm example; the mean squared error here.
- beagle: a one-pass ``val_data_iterator()`` for many epochs: no deviation, its first batches are kept.
- beagle: the signature of ``train_loop`` is no Python; it is compared with ours. ``return`` stands outside a function.
- beagle: ``...`` and names such as ``my_dataloader`` are the reader's: given here. ``/checkpoints`` is a temporary
  folder.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

import learnit_r8.loops

jax = pytest.importorskip("jax")
linen = pytest.importorskip("flax.linen")
optax = pytest.importorskip("optax")
flax_training = pytest.importorskip("learnit_r8.flax", exc_type=ImportError)
jnp = jax.numpy

DOCUMENTS = Path(__file__).parents[1] / "documents"


def blocks(name):
    """The Python blocks of a document, with the import lines changed and nothing else."""
    text = (DOCUMENTS / name).read_text(encoding="utf-8")
    return [
        re.sub(r"^import ciclo$", "import learnit_r8.loops as ciclo", code, flags=re.MULTILINE).replace(
            "from beagle.training import", "from learnit_r8.flax import"
        )
        for code in re.findall(r"^```python[^\n]*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    ]


CICLO, BEAGLE = blocks("ciclo.md"), blocks("beagle_training.md")
NO_PYTHON = ("def schedule(elapsed: Elapsed)", "def callback([state", "def step(state, batch) -> state")
CICLO_ERRORS = {
    "assert batches = [": "assert batches == [",
    "y_pred = w * X + b": "y_pred = w * x + b",
    "jax.tree_map(lambda x, g: x - 0.1 * g, state, grad)": (
        'jax.tree.map(lambda x, g: x - 0.1 * g, state, dict(zip("wb", grad)))'
    ),
}


def test_all_blocks_are_found():
    assert (len(CICLO), len(BEAGLE)) == (21, 8)


def test_ciclo_blocks_run(capsys):
    """All blocks, one after the other, as a reader would type them."""
    names = {"Logs": learnit_r8.loops.Logs}
    np.random.seed(0)
    num_run = 0
    for number, code in enumerate(CICLO, start=1):
        if code.startswith(NO_PYTHON):
            continue
        for error, right in CICLO_ERRORS.items():
            code = code.replace(error, right)
        exec(compile(code, f"ciclo block {number}", "exec"), names)
        num_run += 1
        if "states, batches" in code:
            assert names["states"] == [0, 1, 3, 6, 10, 15, 21, 28, 36, 45]
            assert names["batches"] == list(range(10))

    assert num_run == len(CICLO) - 3
    assert names["elapsed"].steps == 10_000
    assert float(names["state"]["w"]) == pytest.approx(0.8, abs=0.15)
    assert float(names["state"]["b"]) == pytest.approx(0.1, abs=0.08)
    steps, losses = names["history"].collect("steps", "mse")
    assert steps == list(range(100, 10_001, 100))
    assert losses[-1] < losses[0]
    assert capsys.readouterr().out.startswith("10000/10000 [====")


def test_ciclo_signatures():
    """A schedule is a function of Elapsed; a callback takes nothing to four arguments, also misspelt ones."""
    seen = []

    def schedule(elapsed: learnit_r8.loops.Elapsed) -> bool:
        return elapsed.steps == 2

    def callback(state, batch, elasped, loop_state):
        seen.append((state, batch, elasped.steps, loop_state.state))

    learnit_r8.loops.loop(7, "abc", {schedule: callback})

    assert seen == [(7, "b", 2, 7)]


class Network(linen.Module):
    """A small model, with batch statistics where asked."""

    with_statistics: bool = False

    @linen.compact
    def __call__(self, x, train=False):
        x = linen.relu(linen.Dense(4)(x))
        if self.with_statistics:
            x = linen.BatchNorm(use_running_average=not train)(x)
        return linen.Dense(2)(x)


@pytest.fixture
def reader():
    """The names that the beagle document leaves to its reader."""
    rng = np.random.default_rng(0)
    model = Network()
    params = model.init(jax.random.PRNGKey(0), jnp.zeros((1, 3)))["params"]
    state = flax_training.TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(0.01))
    return {
        "my_dataloader": [
            {"x": rng.normal(size=(8, 3)).astype("f4"), "y": rng.normal(size=(8, 2)).astype("f4")} for _ in range(50)
        ],
        "val_dataloader": [
            {"x": rng.normal(size=(8, 3)).astype("f4"), "y": rng.integers(2, size=8)} for _ in range(12)
        ],
        "initial_state": state,
        "state": state,
        "model": model,
        "params": params,
        "batch_stats": {"mean": jnp.zeros(4)},
        "jax": jax,
        "jnp": jnp,
    }


@pytest.mark.program
def test_beagle_blocks_run(reader, tmp_path, capsys):
    """All blocks but the signature, one after the other, as a reader would type them."""
    run = 0
    for number, code in enumerate(BEAGLE, start=1):
        if "state: TrainState," in code:
            continue
        code = code.replace("'/checkpoints", f"'{tmp_path}")
        if code.startswith("return"):
            code = "def multiple(new_state, total_loss, recon_loss, kl_loss, accuracy):\n" + textwrap.indent(code, "  ")
        code = code.replace(
            "return loss, updates", "loss = jnp.mean((outputs - batch['y']) ** 2)\n        return loss, updates"
        )
        code = code.replace("    ...,\n", "    *earlier,\n")
        if "*earlier" in code:
            data, step = reader["data_iterator_fn"], reader["plain_step"]
            reader["earlier"] = (reader["initial_state"], step, data, 4, 50, jax.random.PRNGKey(0))
        exec(compile(code, f"beagle block {number}", "exec"), reader)
        run += 1
        if "Quick" in code or "my_model" in code:
            reader["plain_step"] = reader["train_step"]
            assert int(reader["final_state"].step) == 5000
            assert len(reader["history"]["train_loss"]) == 100
            assert len(list((tmp_path / "my_model").glob("checkpoint_*"))) == 10
        if "restored_state" in code:
            same = jax.tree.map(np.array_equal, reader["restored_state"].params, reader["state"].params)
            assert all(jax.tree.leaves(same))
    printed = capsys.readouterr().out.splitlines()

    assert run == len(BEAGLE) - 1
    assert "loss: 1.5000" in printed
    assert len(reader["history"]["val_accuracy"]) == len(reader["history"]["train_loss"]) == 4
    assert reader["multiple"](1, 2, 3, 4, 5)[1]["kl_loss"] == 4


@pytest.mark.program
def test_beagle_batch_norm_step_trains(reader):
    """The step with batch statistics, on a model that has them."""
    [code] = [code for code in BEAGLE if "mutable=" in code]
    code = code.replace(
        "return loss, updates", "loss = jnp.mean((outputs - batch['y']) ** 2)\n        return loss, updates"
    )
    exec(code, reader)
    model = Network(with_statistics=True)
    variables = model.init(jax.random.PRNGKey(0), jnp.zeros((1, 3)))
    state = flax_training.TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=optax.adam(0.01),
        batch_stats=variables["batch_stats"],
    )
    final, history = flax_training.train_loop(
        state, reader["train_step"], reader["my_dataloader"], 3, 50, jax.random.PRNGKey(1), show_progress=False
    )

    assert history["train_loss"][-1] < history["train_loss"][0]
    assert not np.array_equal(final.batch_stats["BatchNorm_0"]["mean"], state.batch_stats["BatchNorm_0"]["mean"])


def test_beagle_signature():
    """train_loop has the document's parameters in its order, with its defaults."""
    [code] = [code for code in BEAGLE if "state: TrainState," in code]
    written = re.findall(r"^    (\w+): [^=\n]+?(?: = (\w+))?,$", code, flags=re.MULTILINE)
    ours = list(inspect.signature(flax_training.train_loop).parameters.values())

    assert len(written) == 12
    for (name, default), parameter in zip(written, ours, strict=False):
        assert parameter.name == name
        assert not default or repr(parameter.default) == default

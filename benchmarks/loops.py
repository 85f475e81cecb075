"""What the loops cost: against a bare loop, per step.

    python benchmarks/loops.py [--quick]

The sides take turns in one process; figures are medians of processor time, with the lowest and highest in brackets. The
bare loop of Flax is given its random key and keeps no metrics; the other sides derive a key and keep a running mean.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen
from streams import in_turns, show

from learnit_r8.flax import TrainState, train_loop
from learnit_r8.loops import every, logs, loop

ROWS, COLUMNS, BATCH = 6400, 64, 128


def plain_step(state: int, batch: int) -> Any:
    return logs().add_metric("loss", 0.5), state + batch


def bare_step(state: int, batch: int) -> Any:
    return 0.5, state + batch


def looped(count: int) -> None:
    loop(0, range(count), {every(1): [plain_step]})


def bare(count: int) -> None:
    state, history = 0, []
    for batch in range(count):
        loss, state = bare_step(state, batch)
        history.append(loss)


class Network(linen.Module):
    """Two hidden layers."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        for width in (128, 128):
            x = linen.relu(linen.Dense(width)(x))
        return linen.Dense(10)(x)


@jax.jit
def train_step(state: Any, batch: Any, rng_key: Any) -> Any:
    def loss_fn(params: Any) -> Any:
        logits = state.apply_fn({"params": params}, batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), {"loss": loss}


def task() -> tuple[Any, list[Any], Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    y = rng.integers(10, size=ROWS)
    batches = [
        {"x": jnp.asarray(x[start : start + BATCH]), "y": jnp.asarray(y[start : start + BATCH])}
        for start in range(0, ROWS, BATCH)
    ]
    model = Network()
    params = model.init(jax.random.PRNGKey(0), x[:1])["params"]
    return TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-3)), batches, jax.random.PRNGKey(1)


def bare_flax(start: Any, epochs: int) -> Callable[[], None]:
    state, batches, key = start

    def run() -> None:
        now = state
        for _ in range(epochs):
            for batch in batches:
                now, _ = train_step(now, batch, key)
        jax.block_until_ready(now.params)

    return run


def looped_flax(start: Any, epochs: int) -> Callable[[], None]:
    state, batches, key = start

    def run() -> None:
        final, _ = train_loop(state, train_step, lambda: batches, epochs, len(batches), key, show_progress=False)
        jax.block_until_ready(final.params)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the work, for a look")
    part = 5 if parser.parse_args().quick else 1
    print(f"jax {jax.__version__}, CPU, 11 rounds")
    print(f"{'':64} {'median [lowest .. highest]':28} {'must':>6} {'aim':>6}")

    count = 20_000 // part
    times = in_turns(11, loop=lambda: looped(count), bare=lambda: bare(count))
    show("loop with one callback and one metric, us per step", [1e6 * t / count for t in times["loop"]], "15", "6")
    show("the same by hand, us per step", [1e6 * t / count for t in times["bare"]])

    epochs = 30 // part
    start = task()
    times = in_turns(11, loop=looped_flax(start, epochs), bare=bare_flax(start, epochs))
    num_steps = epochs * len(start[1])
    ratio = [a / b for a, b in zip(times["loop"], times["bare"], strict=True)]
    show("Flax train_loop / bare jitted loop without metrics, 50 steps", ratio, "1.15", "1.03")
    show("bare jitted loop, us per step", [1e6 * t / num_steps for t in times["bare"]])


if __name__ == "__main__":
    main()

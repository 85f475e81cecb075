"""The Flax train_loop: what it computes, its defects elsewhere by name, and that a resumed run is the same run."""

from __future__ import annotations

import itertools
import json
import math
import sys

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, load_weights
from learnit_r8.loops import early_stopping, load_state, save_state

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
linen = pytest.importorskip("flax.linen")
r8flax = pytest.importorskip("learnit_r8.flax", exc_type=ImportError)
step_keys = pytest.importorskip("learnit_r8.flax.train").step_keys
jnp = jax.numpy

X = np.random.default_rng(0).normal(size=(64, 4)).astype("f4")
Y = (X @ np.array([1.0, -2.0, 0.5, 0.0], "f4"))[:, None]
KEY = jax.random.PRNGKey(7)


class Network(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(1)(linen.tanh(linen.Dense(3)(x)))


MODEL = Network()
TX = optax.inject_hyperparams(optax.adam)(learning_rate=0.01)


def fresh(tx=TX):
    return r8flax.TrainState.create(
        apply_fn=MODEL.apply, params=MODEL.init(jax.random.PRNGKey(1), X[:1])["params"], tx=tx
    )


@jax.jit
def train_step(state, batch, rng_key):
    """Trains with noise, so that the keys matter."""

    def loss_fn(params):
        noise = 0.1 * jax.random.normal(rng_key, batch["y"].shape)
        losses = ((MODEL.apply({"params": params}, batch["x"]) - batch["y"] - noise) ** 2).mean(axis=1)
        return losses.mean(), losses

    (loss, losses), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), {"loss": loss, "losses": losses}


def mean_step(state, batch, rng_key):
    """Trains nothing, and tells the mean of the batch."""
    return state, {"mean": batch["x"].mean()}


def val_step(state, batch, rng_key):
    return state.replace(step=-1), {"error": jnp.abs(batch["y"]).mean(), "key": jax.random.uniform(rng_key)}


def rows(indices):
    """The samples that a scheduler has drawn."""
    return {"x": X[indices], "y": Y[indices]}


DRAWN = {"data": rows, "epochs": None, "num_batches": None}
"""Of a training whose batches a scheduler draws."""


def batches(size=16):
    return [{"x": X[start : start + size], "y": Y[start : start + size]} for start in range(0, 64, size)]


def train(state=None, step=train_step, data=batches, epochs=3, num_batches=4, key=KEY, **options):
    return r8flax.train_loop(
        fresh() if state is None else state, step, data, epochs, num_batches, key, show_progress=False, **options
    )


def same(one, other):
    equal = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), one, other)
    return all(jax.tree.leaves(equal))


@pytest.mark.program
def test_an_epoch_is_the_loop_by_hand():
    """train_loop trains what a plain loop with the same keys does, bit for bit."""
    final, history = train(epochs=2)
    by_hand = fresh()
    for epoch in range(2):
        keys, seen = step_keys(jax.random.fold_in(KEY, epoch)), []
        for batch in batches():
            by_hand, metrics = train_step(by_hand, batch, next(keys))
            seen.append(r8flax.Metrics(metrics))
    mean = r8flax.average_metrics(seen, weights=[len(batch["x"]) for batch in batches()])

    assert same(final, by_hand)
    assert int(final.step) == 8
    assert history["train_loss"][1] == pytest.approx(mean["loss"])


OPTIMIZERS = {
    "adam": optax.adam(0.01),
    "chain": optax.chain(optax.clip(1.0), optax.adamw(optax.cosine_decay_schedule(0.1, 9))),
    "masked": optax.masked(optax.sgd(0.1, momentum=0.9), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    "injected": TX,
    "multi": optax.MultiSteps(optax.adam(0.1), 2),
}
SELDOM = [pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS if name != "chain"]


@pytest.mark.parametrize("name", [pytest.param("chain", marks=pytest.mark.program), *SELDOM])
def test_a_restored_state_trains_on_the_same(tmp_path, name):
    """The state of any optimizer comes back whole, with the step and the key: beagle's came back as lists."""
    tx = OPTIMIZERS[name]
    half, _ = train(fresh(tx), epochs=1)
    r8flax.save_checkpoint(half, tmp_path, step=1)
    restored = r8flax.load_checkpoint(tmp_path / "checkpoint_1", fresh(tx))

    assert jax.tree.structure(restored) == jax.tree.structure(half)
    assert same(restored, half)
    assert same(train(restored)[0], train(half)[0])


def test_load_without_a_template(tmp_path):
    """The one-argument form returns nested dictionaries of arrays."""
    path = r8flax.save_checkpoint(fresh(), tmp_path)
    loaded = r8flax.load_checkpoint(path)

    assert path.name == "checkpoint_0"
    assert loaded["params"]["Dense_1"]["kernel"].shape == (4, 3)
    assert loaded["step"] == 0
    assert set(loaded) == {"step", "params", "opt_state", "batch_stats"}


def test_unusual_leaves_are_saved(tmp_path):
    """bfloat16, typed keys and batch statistics come back as they were."""
    state = {"b": jnp.ones(3, jnp.bfloat16), "key": jax.random.key(3), "n": None, "i": jnp.arange(2)}
    save_state(tmp_path / "s", state)
    back = load_state(tmp_path / "s", {**state, "key": jax.random.key(0)})

    assert back["b"].dtype == jnp.bfloat16
    assert jnp.array_equal(jax.random.key_data(back["key"]), jax.random.key_data(state["key"]))
    assert r8flax.load_checkpoint(tmp_path / "s")["b"].dtype == jnp.bfloat16
    assert isinstance(back["i"], jax.Array)


def test_saving_a_step_twice(tmp_path):
    """beagle: the second save of a step raised; here it takes the place of the first."""
    r8flax.save_checkpoint({"a": np.zeros(1)}, tmp_path, step=5)
    path = r8flax.save_checkpoint({"a": np.ones(1)}, tmp_path, step=5)

    assert r8flax.load_checkpoint(path)["a"] == [1]
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint_5"]


def test_data_shorter_than_num_batches():
    """beagle: a bare StopIteration came out; here it is a shorter epoch, and an empty one an error."""
    final, history = train(num_batches=99)
    assert int(final.step) == 12
    assert len(history["train_loss"]) == 3

    with pytest.raises(ValueError, match="data_iterator_fn must give at least one batch an epoch, got none in epoch 1"):
        train(data=iter(batches()))


def test_validation_data_of_one_pass():
    """beagle: a one-pass val_data_iterator was used up in the second epoch; here its first batches are kept."""
    _, history = train(step=mean_step, val_step_fn=val_step, val_data_iterator=iter(batches()), val_num_batches=2)

    assert history["val_error"] == [pytest.approx(float(np.abs(Y[:32]).mean()), rel=1e-6)] * 3


def test_validation_functions_are_called_again():
    """A function gives the batches of each validation anew; a list is gone through each time."""
    called = itertools.count()

    def data():
        next(called)
        return iter(batches())

    train(step=mean_step, val_step_fn=val_step, val_data_iterator=data)
    _, history = train(step=mean_step, val_step_fn=val_step, val_data_iterator=batches(), val_num_batches=1)

    assert next(called) == 3
    assert len(set(history["val_error"])) == 1


def test_val_num_batches_none_means_one_batch():
    """beagle: no val_num_batches silently meant one batch; here it means all."""
    _, history = train(step=mean_step, epochs=1, val_step_fn=val_step, val_data_iterator=batches())

    assert history["val_error"] == [pytest.approx(float(np.abs(Y).mean()), rel=1e-6)]


def test_validation_changes_training():
    """beagle: validation took keys away from training; here the run is the same with it, and its state is dropped."""
    without, _ = train()
    with_it, history = train(val_step_fn=val_step, val_data_iterator=batches)

    assert same(without, with_it)
    assert len(set(history["val_key"])) == 3


def test_means_not_weighted_by_batch_size():
    """beagle: a short last batch counted as much as the others."""
    _, history = train(step=mean_step, epochs=1)
    _, per_epoch = train(step=mean_step, epochs=1, data=lambda: batches(24), num_batches=None)

    assert history["train_mean"] == [pytest.approx(float(X.mean()), abs=1e-7)]
    assert per_epoch["train_mean"] == [pytest.approx(float(X.mean()), abs=1e-7)]


def test_metrics_averaged_over_the_first_batch_keys():
    """beagle: a key that came or went was an error or lost, and a vector an error; here each key counts where it is."""
    steps = itertools.count()

    def step(state, batch, rng_key):
        number = next(steps)
        metrics = {"vector": jnp.array([number, number + 2.0])}
        if number == 1:
            metrics["rare"] = 5.0
        if number > 3:
            metrics["later"] = math.inf
        return state, metrics

    _, history = train(step=step, epochs=2, data=lambda: [np.zeros(10)] * 4)

    assert history["train_vector"] == [2.5, 6.5]
    assert history["train_rare"] == [5.0, pytest.approx(math.nan, nan_ok=True)]
    assert history["train_later"] == [pytest.approx(math.nan, nan_ok=True), math.inf]


def test_a_device_sync_per_metric_per_batch(monkeypatch):
    """beagle: each metric of each batch was read; here epochs are read once they are wanted."""
    reads = []
    get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: reads.append(1) or get(tree))

    def step(state, batch, rng_key):
        return state, {name: batch["x"].mean() for name in "abc"}

    for epochs, expected in [(2, 2), (33, 33)]:
        reads.clear()
        _, history = train(step=step, data=lambda: batches() * 5, num_batches=20, epochs=epochs)
        assert len(reads) == expected
        assert history["train_a"] == [pytest.approx(float(X.mean()), abs=1e-7)] * epochs


def test_output(capsys):
    """beagle: a bar and prints wrote into each other, with no switch; here it is a line an epoch, or nothing."""
    train()
    assert capsys.readouterr().out == ""

    r8flax.train_loop(fresh(), mean_step, batches, 2, 4, KEY)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:22] for line in lines] == ["epoch 1/2: train_mean:", "epoch 2/2: train_mean:"]


@pytest.mark.parametrize("data", [batches(), batches, lambda: tuple(batches()), lambda epoch: iter(batches())])
def test_data_iterator_fn_returning_a_list(data):
    """beagle: a function that returned a list was a TypeError; lists, functions and iterators all do."""
    assert same(train(data=data)[0], train(data=iter(batches() * 3))[0])


def interrupt_at_six(elapsed):
    if elapsed.steps == 6:
        raise KeyboardInterrupt


def run_in_two(tmp_path, stop_at, make_options):
    """A run that is cut off after some epochs, and one that goes on from its checkpoints with a fresh state."""

    def interrupt(loop_state):
        if "stateful_metrics" in loop_state.logs and len(loop_state.history) and stop_at(loop_state):
            raise KeyboardInterrupt

    train(checkpoint_dir=tmp_path, callbacks=[interrupt], **make_options())
    return train(checkpoint_dir=tmp_path, key=jax.random.PRNGKey(99), resume=True, **make_options())


@pytest.mark.parametrize("num_epochs_before", [1, pytest.param(2, marks=pytest.mark.program)])
def test_missing_resume(tmp_path, num_epochs_before):
    """beagle: no resume; here a run cut off in the middle goes on as the uninterrupted one, its key and history too."""

    def data(epoch):
        order = np.random.default_rng(epoch).permutation(64)
        return [{"x": X[rows], "y": Y[rows]} for rows in np.split(order, range(16, 64, 16))]

    options = {"data": data, "val_step_fn": val_step, "val_data_iterator": batches}
    whole, history = train(**options)
    resumed, continued = run_in_two(
        tmp_path, lambda here: here.elapsed.steps == 4 * num_epochs_before, lambda: dict(options)
    )

    assert same(whole, resumed)
    assert history == continued


def test_resume_with_a_scheduler(tmp_path):
    """The scheduler goes on too: same batches, rates, state."""

    def options():
        return {**DRAWN, "scheduler": R8Scheduler(64, batch_size=16, num_epochs=3, seed=2)}

    whole, history = train(**options())
    resumed, continued = run_in_two(tmp_path, lambda here: here.elapsed.steps == 8, options)

    assert same(whole, resumed)
    assert history == continued
    assert int(whole.step) == 12


def test_a_scheduled_run_goes_on_in_the_middle_of_an_epoch():
    """After Ctrl-C the returned state and the scheduler train on as if nothing had happened, with the same keys."""

    r8, whole_r8 = (R8Scheduler(64, batch_size=16, num_epochs=3, seed=2) for _ in range(2))
    whole, _ = train(**DRAWN, scheduler=whole_r8)
    half, _ = train(**DRAWN, scheduler=r8, callbacks=interrupt_at_six)
    rest, history = train(half, **DRAWN, scheduler=r8)

    assert int(half.step) == 6
    assert same(whole, rest)
    assert len(history["train_loss"]) == 2


def test_resume_passes_over_damaged_files(tmp_path):
    """The newest valid checkpoint counts; without any the run begins; a changed shape or scheduler is an error."""
    whole, history = train(checkpoint_dir=tmp_path, resume=True)
    (tmp_path / "checkpoint_3").write_bytes((tmp_path / "checkpoint_3").read_bytes()[:-9])
    r8flax.save_checkpoint(fresh(), tmp_path, step=4)

    with pytest.warns(RuntimeWarning, match=r"passed over: checkpoint_(3|4)"):
        again, continued = train(checkpoint_dir=tmp_path, resume=True)

    assert same(whole, again)
    assert history == continued
    (tmp_path / "checkpoint_4").unlink()
    r8 = R8Scheduler(64, batch_size=16, num_epochs=3)
    with pytest.raises(ValueError, match="scheduler must be given if the saved run had one, and only then, got R8"):
        train(data=rows, num_batches=None, scheduler=r8, checkpoint_dir=tmp_path, resume=True)
    (tmp_path / "ck").mkdir()
    assert same(train(checkpoint_dir=tmp_path / "ck", resume=True)[0], whole)


def test_checkpoints_every_so_many_epochs(tmp_path):
    """checkpoint_every counts epochs; the last one is always there."""
    train(epochs=5, checkpoint_dir=tmp_path / "new", checkpoint_every=2)

    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [f"checkpoint_{step}" for step in (2, 4, 5)]


def test_callbacks_of_loops_work_here():
    """early_stopping sees the epochs' metrics, other callbacks those of the steps."""
    seen = []
    _, history = train(
        epochs=9,
        step=mean_step,
        val_step_fn=val_step,
        val_data_iterator=batches,
        callbacks=[early_stopping("val_error", 2), lambda loop_state: seen.append(float(loop_state.logs.mean))],
    )

    assert len(history["val_error"]) == 3
    assert len(seen) == 12


def test_a_refused_batch_is_not_trained_on():
    """A NaN is not in the means, and the state before it is kept; validation metrics go to the scheduler's log."""
    events, taken = [], []
    r8 = R8Scheduler(60, batch_size=20, num_epochs=1, guard="finite", listeners=[events.append])

    def take(indices):
        taken.append(indices)
        return X[indices]

    def step(state, batch, rng_key):
        return state.replace(step=state.step + 1), {"loss": [1.0, math.nan, 3.0][len(taken) - 1]}

    given = {"data": take, "epochs": None, "num_batches": 3, "scheduler": r8}
    final, history = train(step=step, **given, val_step_fn=val_step, val_data_iterator=batches)

    assert final.step == 2
    assert history["train_loss"] == [2.0]
    assert "val_error" in next(event for event in events if type(event).__name__ == "MetricsLogged").metrics


def test_num_epochs_ends_a_scheduled_run_early():
    r8 = R8Scheduler(64, batch_size=16, num_epochs=5, guard="finite")
    final, _history = train(**{**DRAWN, "epochs": 2}, scheduler=r8)

    assert int(final.step) == 8
    assert r8.current_epoch == 2


@pytest.mark.program
def test_typed_keys(tmp_path):
    """A key of the typed kind trains, is saved, and goes on."""
    arguments = (train_step, batches, 2, 4, jax.random.key(3))
    whole, _ = r8flax.train_loop(fresh(), *arguments, checkpoint_dir=tmp_path, show_progress=False)
    (tmp_path / "checkpoint_2").unlink()
    resumed, _ = r8flax.train_loop(fresh(), *arguments, checkpoint_dir=tmp_path, show_progress=False, resume=True)

    assert same(whole, resumed)


def test_ctrl_c_returns_what_there_is():
    final, history = train(callbacks=[interrupt_at_six])

    assert int(final.step) == 6
    assert len(history["train_loss"]) == 1


def test_metrics():
    """Metrics are averaged and written without changing what was given."""
    one, two = r8flax.Metrics({"a": 1.0, "b": 2}), r8flax.Metrics({"a": jnp.array([3.0, 5.0])})

    assert r8flax.average_metrics([one, two]).values == {"a": 2.5, "b": 2.0}
    assert r8flax.average_metrics([one], weights=[0]).values["a"] is not None
    assert r8flax.format_metrics({"a": 1}, precision=1) == "a: 1.0"
    with pytest.raises(ValueError, match="weights must have one entry for each of the metrics"):
        r8flax.average_metrics([])
    with pytest.raises(AttributeError):
        one.values = {}


def test_history_is_written_as_strict_json(tmp_path):
    """Missing folders are made, and numbers that are not finite become null."""
    r8flax.save_metrics_history({"a": [1.0, math.nan, np.float32(0.5)]}, tmp_path / "new" / "history.json")

    assert json.loads((tmp_path / "new" / "history.json").read_text()) == {"a": [1.0, None, 0.5]}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"step": 3}, TypeError, "train_step_fn must be a function of state, batch and rng_key, got 3"),
        ({"val_step_fn": 3, "val_data_iterator": []}, TypeError, "val_step_fn must be a function"),
        ({"val_step_fn": val_step}, ValueError, "val_step_fn and val_data_iterator must be given together"),
        ({"resume": True}, ValueError, "rng_key must be given, and checkpoint_dir to resume"),
        ({"epochs": 0}, ValueError, "num_epochs must be a whole number >= 1, got 0"),
        ({"epochs": None}, ValueError, "num_epochs must be a whole number >= 1, got None"),
        ({"num_batches": 1.5}, ValueError, "num_batches must be a whole number >= 1, got 1.5"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be a whole number >= 1, got 0"),
        ({"val_num_batches": 0}, ValueError, "val_num_batches must be a whole number >= 1, got 0"),
        ({"data": 3}, TypeError, "dataset must be an iterable"),
        ({"scheduler": 3}, TypeError, "scheduler must be an R8Scheduler, got 3"),
        (
            {"scheduler": R8Scheduler(8, batch_size=4, num_epochs=1), "data": []},
            TypeError,
            "data_iterator_fn must be a function of indices where a scheduler draws",
        ),
        (
            {"scheduler": R8Scheduler(8, batch_size=4, num_epochs=1)},
            ValueError,
            "num_batches must be the scheduler's 2 or left out, got 4",
        ),
        (
            {"scheduler": R8Scheduler(8, batch_size=4, num_epochs=1), "num_batches": 2, "step": mean_step,
             "data": lambda i: {"x": X[i]}},
            ValueError,
            r'metrics must have "losses" or "loss" for the scheduler, got \[\'mean\'\]',
        ),
        (
            {"val_step_fn": val_step, "val_data_iterator": []},
            ValueError,
            "val_data_iterator must give at least one batch, got none",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message):
        train(**options)


def test_what_is_missing_is_named(monkeypatch):
    """Without jax the import names the extra."""
    for name in [name for name in sys.modules if name.startswith("learnit_r8.flax")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optax", None)

    with pytest.raises(ImportError, match=r"learnit_r8.flax needs jax, flax and optax, .* pip install .\.\[jax\]"):
        __import__("learnit_r8.flax")


def test_a_stop_ends_train_loop():
    """A scheduler that is asked to stop ends train_loop after the step in hand."""
    r8 = R8Scheduler(64, batch_size=16, num_epochs=9, guard="finite")

    def step(state, batch, rng_key):
        if r8.global_step == 3:
            r8.requests.stop()
        return train_step(state, batch, rng_key)

    final, _ = train(step=step, **DRAWN, scheduler=r8)

    assert (int(final.step), r8.global_step) == (4, 4)


def test_weights_of_a_checkpoint_are_loaded_in_their_own_nest(tmp_path):
    with R8Scheduler(40, batch_size=20, num_epochs=1, checkpoint_dir=tmp_path) as r8:
        r8flax.ManagedState(r8, {"w": jnp.arange(3.0)})
        for _ in r8.batch_iterator():
            r8.update_with_loss(1.0)

    assert load_weights(tmp_path)["w"].tolist() == [0.0, 1.0, 2.0]

"""Flax trainings that a scheduler drives: faults heal in every kind of state; rates, metrics and data as they are."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from learnit_r8 import Focus, R8Scheduler
from tests.drive import Weighing
from tests.healing_common import NUM_STEPS, Faults, X, Y, assert_healed
from tests.trial_common import Sight, begin_trial, digest

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
r8flax = pytest.importorskip("learnit_r8.flax", exc_type=ImportError)
managed_state = pytest.importorskip("learnit_r8.flax.managed_state", exc_type=ImportError)
nnx = pytest.importorskip("flax.nnx")
pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore:.*the weights were damaged")]
jnp = jax.numpy

KEY = jax.random.key(5)
TX = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)


def scheduler(**more):
    return R8Scheduler(512, **{"batch_size": 16, "num_steps": NUM_STEPS, "initial_lr": 0.05, **more})


def fresh(tx=TX):
    return r8flax.TrainState.create(apply_fn=None, params={"w": jnp.zeros((4, 1))}, tx=tx)


def compiled(donates=False):
    def step(state, batch, key):
        params = jax.tree.map(lambda w: w * batch["by"], state.params)
        losses, grads = jax.value_and_grad(
            lambda params: (
                ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean(),
                ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean(1),
            ),
            has_aux=True,
        )(params)
        new = state.replace(params=params).apply_gradients(grads=jax.tree.map(lambda g: g * batch["rate"], grads))
        return new, {"loss": losses[0], "losses": losses[1]}

    return jax.jit(step, donate_argnums=0 if donates else ())


def batches(r8, faults):
    def of(indices):
        now = r8.global_step + r8.pace.probes
        by, rate = np.float32(faults.weights_by(now)), np.float32(faults.rate(now, 1.0))
        return {"x": faults.inputs(now, X[indices]), "y": Y[indices], "by": by, "rate": rate}

    return of


def last_loss(w):
    return float(((X @ np.asarray(w) - Y) ** 2).mean())


def run(faults, step=None, r8=None, **more):
    r8 = scheduler() if r8 is None else r8
    step = compiled() if step is None else step
    state, _ = r8flax.train_loop(
        fresh(), step, batches(r8, faults), rng_key=KEY, scheduler=r8, show_progress=False, **more
    )
    return last_loss(state.params["w"])


@pytest.mark.filterwarnings("ignore:losses:RuntimeWarning")
@pytest.mark.parametrize("donates", [False, True])
def test_a_train_state_heals(donates):
    """Weights are put back after each fault, also where the step was given the buffers of the state to keep."""
    step = compiled(donates)

    assert_healed(lambda faults: run(faults, step))
    # One trace for a fresh state, one for all others: restored arrays are of the same kind.
    assert step._cache_size() <= 2


def test_one_resume_at_a_time(tmp_path):
    """A scheduler that was resumed elsewhere and a checkpoint of train_loop do not mix."""
    step = compiled()
    run(Faults(None), step, scheduler(), num_epochs=2, checkpoint_dir=tmp_path / "loop")
    with scheduler(checkpoint_dir=tmp_path / "r8") as other:
        run(Faults(None), step, other, num_epochs=3)
    second = scheduler(checkpoint_dir=tmp_path / "r8", resume="auto")

    with pytest.raises(ValueError, match=r"resume must be False for a scheduler that was resumed itself"):
        run(Faults(None), step, second, checkpoint_dir=tmp_path / "loop", resume=True)


PAIR = {"w": "a", "v": "b"}


@pytest.mark.parametrize(
    "tx",
    [
        TX,
        optax.chain(optax.clip(1.0), TX),
        optax.named_chain(("clip", optax.clip(1.0)), ("step", TX)),
        optax.multi_transform({"a": TX, "b": TX}, PAIR),
        optax.masked(TX, {"w": True, "v": False}),
    ],
)
def test_the_rate_reaches_optimizers_of_every_nesting(tx):
    """The rate is set wherever inject_hyperparams stands, in all of them."""
    params = {"w": jnp.zeros(2), "v": jnp.zeros(2)}
    state = r8flax.TrainState.create(apply_fn=None, params=params, tx=tx)

    set_ = managed_state.with_lr(state, 0.5)
    new = set_.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))

    assert new.params["w"].tolist() == [-0.5, -0.5]
    assert jax.tree.structure(set_) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("tx", "said"),
    [
        (
            optax.inject_hyperparams(optax.sgd)(learning_rate=optax.constant_schedule(0.1)),
            r"learning_rate must be a number in optax\.inject_hyperparams",
        ),
        (optax.adam(0.1), "state.tx must be made with optax.inject_hyperparams .* got tuple"),
    ],
)
def test_a_rate_that_cannot_be_set_is_refused(tx, said):
    """A schedule in inject_hyperparams would overwrite the scheduler's rate; without it there is none to set."""
    with pytest.raises(ValueError, match=said):
        managed_state.with_lr(fresh(tx), 0.5)


def test_a_generator_may_reuse_its_buffer():
    """Every batch is trained on before the next one is asked for."""
    buffer, seen = np.zeros(2, "f4"), []

    def data():
        for number in range(3):
            buffer[:] = number
            yield {"x": buffer}

    def step(state, batch, key):
        seen.append(float(batch["x"][0]))
        return state, {"loss": 0.0}

    r8flax.train_loop(0, step, data, 2, rng_key=KEY, show_progress=False)

    assert seen == [0, 1, 2, 0, 1, 2]


def test_metrics_of_all_kinds():
    """What has no mean is left out, and nested metrics are named by their place."""

    def step(state, batch, key):
        return state, {"loss": 2.0, "note": "text", "none": None, "by": {"class": 1.0}}

    _, history = r8flax.train_loop(0, step, [{"x": X[:2]}], 1, rng_key=KEY, show_progress=False)

    assert history == {"train_loss": [2.0], "train_by.class": [1.0]}


def test_weights_need_a_dictionary():
    """A policy that weights says that the batch must be a dictionary."""
    r8 = scheduler(policy=Weighing(), num_steps=None, num_epochs=3)

    def step(state, batch, key):
        x = batch["x"] if isinstance(batch, dict) else batch[0]
        return state, {"losses": np.abs(x[:, 0]) + 0.1}

    with pytest.raises(TypeError, match="must return a dictionary where the policy weights"):
        r8flax.train_loop(fresh(), step, lambda indices: (X[indices],), rng_key=KEY, scheduler=r8, show_progress=False)


def test_weights_are_there_from_the_first_batch_on():
    """A step compiled for weights needs no other form of the batch while nothing is weighed yet."""
    seen = []
    settings = {"policy": Focus(noise_guard="weigh"), "groups": np.zeros(512), "num_steps": 3}

    def step(state, batch, key):
        seen.append(batch["weights"].tolist())
        return state, {"losses": np.ones(16)}

    def of(indices):
        return {"x": X[indices]}

    r8flax.train_loop(fresh(), step, of, rng_key=KEY, scheduler=scheduler(**settings), show_progress=False)

    assert seen == [[1.0] * 16] * 3


def test_a_checkpoint_keeps_the_placement(tmp_path):
    """What is loaded is placed as the state it is loaded into."""
    state = jax.device_put(fresh(), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    path = r8flax.save_checkpoint(state, tmp_path)

    loaded = r8flax.load_checkpoint(path, state)

    assert loaded.params["w"].sharding == state.params["w"].sharding
    assert loaded.params["w"].committed


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_donated", [False, True])
def test_objects_of_nnx_are_as_before_a_refused_step(is_donated):
    """A model, its optimizer and its generators change before the loss is known, and a NaN undoes that, twice in a
    run; a step that was given its state to keep has an older one take its place."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.norm = nnx.Linear(8, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)

    @nnx.jit(donate_argnums=(0, 1) if is_donated else ())
    def step(model, optimizer, x):
        def loss_of(model):
            return (model.dropout(model.norm(model.linear(x))) ** 2).mean()

        loss, grads = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, grads)
        return loss

    def arrays():
        leaves = [each for part in state for each in jax.tree.leaves(nnx.state(part))]
        is_key = [jax.dtypes.issubdtype(each.dtype, jax.dtypes.prng_key) for each in leaves]
        return [
            np.asarray(jax.random.key_data(each) if key else each) for each, key in zip(leaves, is_key, strict=True)
        ]

    model = Net(nnx.Rngs(params=0, dropout=1))
    state = model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    r8 = R8Scheduler(scheduler_mode="keep", num_steps=12, handle_signals=False)
    managed = r8flax.ManagedState(r8, state, backup_every=2)
    rng, seen = np.random.default_rng(0), []
    for number, batch in enumerate(r8.batches([rng.normal(size=(16, 8)).astype("f4") for _ in range(12)])):
        before = arrays()
        loss = step(*managed.for_step(), batch * np.nan if number in (5, 8) else batch)
        outcome = managed.report(state, loss)
        after = arrays()
        if number in (5, 8):
            seen.append((bool(outcome), all(map(np.array_equal, before, after))))
            assert all(np.isfinite(each).all() for each in after if each.dtype.kind == "f")
    r8.close()

    assert seen == [(False, True)] * 2 if not is_donated else len(seen) == 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("is_late", "rate"), [(False, 0.5), (True, 0.2)])
def test_a_damaged_weight_accuses_no_sample(is_late, rate):
    """With dropout, NaN in a weight spares some losses of its batch; the samples of the others are not quarantined,
    though some of them are in the next such batch, too."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 1, rngs=rngs)
            self.dropout = nnx.Dropout(rate, rngs=rngs)

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss_of(model):
            losses = ((model.last(model.dropout(jnp.tanh(model.first(x)))) - y) ** 2).mean(1)
            return losses.mean(), losses

        (_, losses), grads = nnx.value_and_grad(loss_of, has_aux=True)(model)
        optimizer.update(model, grads)
        return losses

    model = Net(nnx.Rngs(params=0, dropout=1))
    state, hit, num_hit = (model, nnx.Optimizer(model, TX, wrt=nnx.Param)), set(), 0
    r8 = scheduler(num_steps=None, num_epochs=6, handle_signals=False)
    managed = r8flax.ManagedState(r8, state)
    for _ in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            given = managed.for_step(lr) if is_late else None
            is_hit = num_hit < 3 and (r8.global_step == 80 or bool(hit & set(indices.tolist())))
            if is_hit:
                model.first.kernel.set_value(model.first.kernel.get_value().at[0, 0].set(jnp.nan))
            losses = step(*(given or managed.for_step(lr)), X[indices], Y[indices])
            if is_hit:
                num_hit, hit = num_hit + 1, hit | set(indices[~np.isfinite(np.asarray(losses))].tolist())
            managed.report(state, losses)
    r8.close()

    assert num_hit == 3
    assert len(r8.table.quarantined) == 0


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_running_statistics_that_a_batch_ruins_are_put_back(scale):
    """One finite batch far out of range ruins what validation uses, and no loss of training shows it."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.norm = nnx.Linear(4, 4, rngs=rngs), nnx.BatchNorm(4, momentum=0.9, rngs=rngs)

    @nnx.jit
    def step(model, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda model: (model.norm(model.linear(x))[:, 0] - 1).mean() ** 2)(model)
        optimizer.update(model, grads)
        return loss

    model = Net(nnx.Rngs(0))
    state = model, nnx.Optimizer(model, optax.sgd(1e-3), wrt=nnx.Param)
    r8, data = R8Scheduler(scheduler_mode="keep", num_steps=32, handle_signals=False), X[:512].reshape(32, 16, 4)
    managed = r8flax.ManagedState(r8, state)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number, batch in enumerate(r8.batches(list(data))):
            managed.report(state, step(*managed.for_step(), batch * (scale if number == 25 else 1)))
        r8.close()

    said = [str(each.message) for each in caught if "times as large as ever before" in str(each.message)]
    assert len(said) == (scale > 1), said
    assert float(jnp.abs(model.norm.mean[...]).max()) < float(model.norm.var[...].max()) < 100


@pytest.mark.parametrize("mode", ["batch", "ema"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_running_statistics_of_equinox_are_put_back_with_their_count(mode, scale):
    """Those in an `eqx.nn.State`; the number of batches that they are weighed by goes back with them."""
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        linear: eqx.nn.Linear
        norm: eqx.nn.BatchNorm

        def __init__(self, key):
            self.linear = eqx.nn.Linear(4, 4, key=key)
            self.norm = eqx.nn.BatchNorm(4, "batch", momentum=0.9, mode=mode)

        def __call__(self, x, state):
            return self.norm(self.linear(x), state)

    @eqx.filter_jit
    def step(model, state, x):
        def loss_of(model):
            out, after = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)
            return (out[:, 0] - 1).mean() ** 2, after

        (loss, state), grads = eqx.filter_value_and_grad(loss_of, has_aux=True)(model)
        return (eqx.apply_updates(model, jax.tree.map(lambda g: -1e-3 * g, grads)), state), loss

    r8, data = R8Scheduler(scheduler_mode="keep", num_steps=32, handle_signals=False), X[:512].reshape(32, 16, 4)
    managed = r8flax.ManagedState(r8, eqx.nn.make_with_state(Net)(KEY))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number, batch in enumerate(r8.batches(list(data))):
            managed.report(*step(*managed.for_step(), batch * (scale if number == 25 else 1)))
        r8.close()

    said = [str(each.message) for each in caught if "times as large as ever before" in str(each.message)]
    assert len(said) == (scale > 1), said
    held = managed.state[1].substate(managed.state[0].norm)._state
    mean, var = held[f"Net.norm.{mode}_state_index"]
    assert float(jnp.abs(mean).max()) < float(var.max()) < 100
    if mode == "batch":
        assert (held["Net.norm.batch_counter"] < 32) == (scale > 1)


def test_validation_sees_no_weights_on_trial():
    """Where an epoch ends within a trial it sees those from before it; the next epoch goes on with the trial's own."""
    sight, step, ended = Sight(), compiled(), []
    # A trial ends within an epoch of 11 steps.
    r8 = scheduler(batch_size=48, num_steps=132, guard="spike")

    def seen(state, batch, key):
        sight.begin([state.params["w"]])
        new, metrics = step(state, batch, key)
        sight.end([new.params["w"]])
        return new, metrics

    def validate(state, batch, key):
        sight.leave([state.params["w"]], r8)
        ended.append(1)
        if len(ended) == 4:
            sight.aside = digest([state.params["w"]])
            begin_trial(r8)
        return state, {}

    more = {"val_step_fn": validate, "val_data_iterator": lambda: iter([0])}
    run(Faults(None), seen, r8, **more)

    sight.check()

"""train_loop over data of one's own with a scheduler beside it: to the bit what it is without, healed, resumed."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from learnit_r8 import Backups, OwnBatches, R8Scheduler
from learnit_r8.bridge.driven_state import take_apart
from learnit_r8.loops import every, logs, loop, report_to, scheduled
from learnit_r8.state.tree import clone
from learnit_r8.streams import step_stream
from tests.healing_common import X, Y

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")
r8flax = pytest.importorskip("learnit_r8.flax", exc_type=ImportError)
managed_state = pytest.importorskip("learnit_r8.flax.managed_state", exc_type=ImportError)
nnx = pytest.importorskip("flax.nnx")
pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore")]
jnp = jax.numpy

EPOCHS, BATCHES = 5, 32
SCHEDULE = optax.adam(optax.cosine_decay_schedule(0.05, EPOCHS * BATCHES))
NUMBER = optax.inject_hyperparams(optax.adam)(learning_rate=0.02)


@jax.jit
def step(state, batch, key):
    keep = jax.random.bernoulli(key, 0.9, batch["x"].shape)

    def loss_of(params):
        return ((batch["x"] * keep @ params["w"] - batch["y"]) ** 2).mean()

    loss, grads = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=grads), {"loss": loss}


@jax.jit
def losses_step(state, batch, key):
    def loss_of(params):
        losses = ((batch["x"] @ params["w"] - batch["y"]) ** 2).mean(-1)
        return losses.mean(), losses

    grads, losses = jax.grad(loss_of, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads), {"losses": losses}


donating = jax.jit(step.__wrapped__, donate_argnums=0)


class Data:
    """Batches of an epoch; one of them, over all, is NaN when it is first read."""

    def __init__(self, nan_at=None):
        self._nan_at, self.num_read = nan_at, 0

    def __call__(self, epoch):
        rows = np.random.default_rng(epoch).permutation(len(X))
        for number in range(BATCHES):
            at = rows[16 * number : 16 * number + 16]
            self.num_read += 1
            factor = np.float32("nan") if self.num_read == self._nan_at else np.float32(1)
            yield {"x": X[at] * factor, "y": Y[at]}


def fresh(tx):
    return r8flax.TrainState.create(apply_fn=None, params={"w": jnp.zeros((4, 1))}, tx=tx)


def train(r8, *, tx=SCHEDULE, data=None, train_step=step, epochs=EPOCHS, **more):
    return r8flax.train_loop(
        fresh(tx), train_step, data or Data(), num_epochs=epochs, rng_key=jax.random.key(1), scheduler=r8,
        show_progress=False, **more,
    )  # fmt: skip


def equal(one, two):
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))


@pytest.mark.parametrize(("tx", "train_step"), [(SCHEDULE, step), (NUMBER, donating)], ids=["schedule", "donated"])
def test_nothing_changes_without_an_incident_and_a_nan_is_healed(tx, train_step):
    """State and history are those without a scheduler, an optimizer's own schedule included; a NaN costs a batch."""
    plain, history = train(None, tx=tx, train_step=train_step)
    r8 = R8Scheduler(scheduler_mode="keep")
    watched, seen = train(r8, tx=tx, train_step=train_step)

    assert equal(plain, watched)
    assert history == seen
    assert (r8.global_step, r8.current_epoch, r8.sentry.num_refused) == (EPOCHS * BATCHES, EPOCHS - 1, 0)

    r8 = R8Scheduler(scheduler_mode="keep", batch_size=OwnBatches(steps_per_epoch=BATCHES))
    healed, seen = train(r8, tx=tx, train_step=train_step, data=Data(nan_at=70))
    assert r8.sentry.num_refused >= 1
    assert seen["train_loss"][-1] < 1.1 * history["train_loss"][-1]
    assert len(seen["train_loss"]) == EPOCHS
    assert np.isfinite(healed.params["w"]).all()


class Killed(Exception):
    pass


def resumed(folder, make_data, kill_at=50, **more):
    """A run that was killed and one that goes on, with a fresh scheduler and fresh data."""

    def scheduler():
        return R8Scheduler(scheduler_mode="keep", checkpoint_dir=folder, checkpoint_every=20, resume="auto")

    def kill(loop_state):
        if loop_state.elapsed.steps == kill_at:
            raise Killed

    with pytest.raises(Killed):
        train(scheduler(), data=make_data(), callbacks=[kill], **more)
    r8 = scheduler()
    assert r8.global_step == kill_at // 20 * 20
    state, _ = train(r8, data=make_data(), **more)
    assert r8.global_step == EPOCHS * BATCHES
    return state


class Positioned:
    """An iterator that goes on over all epochs and tells where it is, as grain's do."""

    def __init__(self):
        self.next = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.next += 1
        at = np.random.default_rng(self.next).integers(len(X), size=16)
        return {"x": X[at], "y": Y[at]}

    def get_state(self):
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]


def plain_iterator():
    return (batch for epoch in range(EPOCHS) for batch in Data()(epoch))


@pytest.mark.parametrize("kill_at", [50, 64], ids=["within an epoch", "after an epoch"])
@pytest.mark.parametrize("make_data", [Positioned, plain_iterator])
def test_an_iterator_over_all_epochs_goes_on(tmp_path, make_data, kill_at):
    """It is brought to its place by its own state, without reading, or by reading what the saved run had read."""
    whole, _ = train(R8Scheduler(scheduler_mode="keep"), data=make_data(), num_batches=BATCHES)

    assert equal(whole, resumed(tmp_path, make_data, kill_at, num_batches=BATCHES))


class Rows:
    """A source of grain; its repr holds an address."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return {"x": X[index], "y": Y[index], "id": np.int64(index)}


class NamedRows(Rows):
    def __repr__(self):
        return "NamedRows()"


def grain_loader(rows):
    grain = pytest.importorskip("grain")
    sampler = grain.samplers.IndexSampler(
        len(X), num_epochs=1, shuffle=True, seed=3, shard_options=grain.sharding.NoSharding()
    )
    return grain.DataLoader(data_source=rows, sampler=sampler, operations=[grain.transforms.Batch(16)])


def grain_map(rows):
    return pytest.importorskip("grain").MapDataset.source(rows).seed(1).shuffle().batch(16)


GRAIN = {
    "map": lambda: grain_map(Rows()),
    "iterable": lambda: grain_map(Rows()).to_iter_dataset(),
    "endless iterator": lambda: iter(grain_map(Rows()).repeat().to_iter_dataset()),
    "loader": lambda: grain_loader(NamedRows()),
    "loader that does not know its source": lambda: grain_loader(Rows()),
}


@pytest.mark.parametrize("kind", GRAIN)
def test_grain(tmp_path, kind):
    """Batches of grain come as they are, their ids make a table, and a run that was killed goes on exactly."""
    more = {"num_batches": BATCHES, "ids": "id", "train_step": losses_step}
    r8 = R8Scheduler(scheduler_mode="keep")
    whole, _ = train(r8, data=GRAIN[kind](), **more)

    assert (r8.table.source, r8.table.num_samples) == ("exact", len(X))
    assert equal(whole, resumed(tmp_path, GRAIN[kind], **more))


def test_tf_data(tmp_path):
    """A pipeline of TensorFlow is read through its numpy iterator; augmentation with a seed of its own repeats."""
    tf = pytest.importorskip("tensorflow")

    def make_data():
        data = tf.data.Dataset.from_tensor_slices({"x": X, "y": Y, "id": np.arange(len(X))})
        data = data.shuffle(len(X), seed=1, reshuffle_each_iteration=False).batch(16).prefetch(2)
        return lambda epoch: data.as_numpy_iterator()

    more = {"ids": "id", "train_step": losses_step}
    r8 = R8Scheduler(scheduler_mode="keep")
    whole, _ = train(r8, data=make_data(), **more)

    assert (r8.table.source, r8.table.num_samples) == ("exact", len(X))
    assert equal(whole, resumed(tmp_path, make_data, **more))


def test_the_rate_of_inject_hyperparams_is_lowered_for_a_step():
    """Where recovery lowers the rate it is lowered in the state for the step, and whole after it."""
    state = fresh(NUMBER)

    assert managed_state.lr_of(state) == pytest.approx(0.02)
    assert managed_state.lr_of(managed_state.with_lr(state, 0.01)) == pytest.approx(0.01)
    assert managed_state.lr_of(fresh(SCHEDULE)) is None


def lowered():
    """A scheduler of own rates that recovery holds at a hundredth of them."""
    r8 = R8Scheduler(scheduler_mode="keep", num_steps=4)
    state = r8.controller.state_dict()
    r8.controller.load_state_dict({**state, "limit": {**state["limit"], "ceiling": 0.01}})
    return r8


@pytest.mark.parametrize("tx", [optax.sgd(0.1, momentum=0.9), optax.adam(optax.constant_schedule(0.1))])
def test_an_optimizer_of_nnx_whose_rate_cannot_be_set_is_handed_out_as_it_is(tx):
    """Its state shows another object for each part each time, which is no change."""
    model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    managed = r8flax.ManagedState(lowered(), (model, nnx.Optimizer(model, tx, wrt=nnx.Param)))

    with pytest.warns(RuntimeWarning, match="compiled into the step: recovery cannot lower it there"):
        assert managed.for_step() is managed.state


def test_a_schedule_in_the_chain_is_told_not_to_be_lowered():
    """It is compiled into the step: the state is handed out as it is, with one warning, in place of a lower rate."""
    r8 = lowered()
    factor = r8.lr_factor
    managed = r8flax.ManagedState(r8, fresh(SCHEDULE))

    assert factor < 1
    with pytest.warns(RuntimeWarning, match="compiled into the step: recovery cannot lower it there"):
        assert managed.for_step() is managed.state
    assert managed.for_step() is managed.state
    assert "at most 0.01 of yours, which the compiled step ignores," in r8.summary()
    other = r8flax.ManagedState(lowered(), fresh(NUMBER))
    assert managed_state.lr_of(other.for_step()) == pytest.approx(0.02 * factor)


def test_a_state_that_the_loop_sets_between_steps_is_trained_on_and_kept():
    """As where statistics are averaged over devices after an epoch; a refused batch leaves that one."""
    r8 = R8Scheduler(scheduler_mode="keep", num_epochs=3)
    managed = r8flax.ManagedState(r8, fresh(NUMBER))
    data = Data(nan_at=BATCHES + 1)
    for epoch in range(3):
        for batch in r8.batches(data(epoch)):
            before = managed.for_step()
            new, metrics = step(before, batch, jax.random.PRNGKey(0))
            if not managed.report(new, metrics["loss"]):
                assert managed.state is before
        managed.state = managed.state.replace(step=1000 * (epoch + 1))

    assert r8.sentry.num_refused == 1
    assert int(before.step) == 2000 + BATCHES - 1
    assert int(managed.state.step) == 3000


def test_what_cannot_be_is_refused(tmp_path):
    """train_loop's own resume beside such a scheduler, and no number of epochs."""
    with pytest.raises(ValueError, match="resume must be False with a scheduler of your own batches"):
        train(R8Scheduler(scheduler_mode="keep"), resume=True, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="ids must be left out without a scheduler of your own batches"):
        train(None, ids="id")
    with pytest.raises(ValueError, match="backup_every must be left out without a scheduler"):
        train(None, backup_every=5)
    with pytest.raises((TypeError, ValueError), match="num_epochs must be"):
        train(R8Scheduler(scheduler_mode="keep"), epochs=None)


def test_backups_by_the_number_of_batches():
    """A donated state goes back by less than an epoch, not to the start."""
    backup_steps = []

    def note(event):
        if type(event).__name__ == "BackupTaken":
            backup_steps.append(event.step)

    r8 = R8Scheduler(scheduler_mode="keep", listeners=[note])
    train(r8, train_step=donating, num_batches=BATCHES, epochs=2)
    # Those of a young run between them depend on how long a copy takes.
    assert {0, 10, 20, 30, 40, 50, 60} <= set(backup_steps)

    backup_steps.clear()
    train(R8Scheduler(scheduler_mode="keep", listeners=[note]), epochs=2, backup_every=32)
    assert backup_steps == [0, 32, 64]


def test_a_killed_run_with_random_augmentation_goes_on_to_the_bit(tmp_path):
    """The next batch is taken, from numpy's global generator, before the checkpoint after this one is written."""

    class Killed(BaseException):
        pass

    def noisy(epoch):
        for batch in Data()(epoch):
            yield {**batch, "x": batch["x"] + np.random.normal(0, 0.1, batch["x"].shape).astype(np.float32)}

    def trained(folder, kill_at=None, seed=0):
        np.random.seed(seed)
        r8 = R8Scheduler(
            scheduler_mode="keep", num_epochs=2, guard="finite", checkpoint_dir=folder, checkpoint_every=5,
            resume="auto", backup_every=Backups(backup_dir=False), handle_signals=False,
        )  # fmt: skip
        losses = []

        def noted(state, batch, key):
            if r8.global_step == kill_at:
                raise Killed
            state, metrics = step(state, batch, key)
            losses.append(float(metrics["loss"]))
            return state, metrics

        with r8:
            state, _ = train(r8, data=noisy, train_step=noted, epochs=2)
        return losses, state.params["w"].tolist()

    whole = trained(tmp_path / "whole")
    for kill_at in (8, BATCHES + 1, BATCHES + 9):
        with pytest.raises(Killed):
            trained(tmp_path / str(kill_at), kill_at)
        losses, weights = trained(tmp_path / str(kill_at), seed=5)

        assert len(losses) in (2 * BATCHES - kill_at // 5 * 5, BATCHES), kill_at
        assert losses == whole[0][-len(losses) :], kill_at
        assert weights == whole[1], kill_at


def test_what_the_last_update_has_damaged_is_said():
    """No loss follows it: what came from a backup as the run was closed stands in a warning and in the summary."""
    ones = jax.numpy.ones(3)
    r8 = R8Scheduler(scheduler_mode="keep")
    managed = r8flax.ManagedState(r8, {"a": ones, "b": ones, "c": ones})

    def train():
        for at in range(3):
            for number in r8.batches(range(20)):
                state, is_last = managed.for_step(), (at, number) == (2, 19)
                managed.report(
                    {**state, "a": state["a"] * (math.nan if is_last else 1.0)}, 1.0 / (20 * at + number + 1)
                )
        r8.close()

    with pytest.warns(RuntimeWarning, match="state.a had numbers that are not finite, and came from the backup of"):
        train()

    assert np.isfinite(managed.state["a"]).all()
    assert "weights not finite: step 60: state.a had numbers that are not finite" in r8.summary()


def test_a_killed_run_goes_on_to_the_bit_from_a_backup_in_shared_memory(tmp_path):
    """The state's form, a function, is in no file: the live state has it."""

    class Killed(BaseException):
        pass

    def trained(folder, kill_at=None):
        np.random.seed(0)
        r8 = R8Scheduler(
            scheduler_mode="keep", num_epochs=2, guard="finite", checkpoint_dir=folder / "ck", checkpoint_every=10_000,
            resume="auto", backup_every=Backups(backup_dir=folder / "shm"), handle_signals=False,
        )  # fmt: skip
        losses = []

        def noted(state, batch, key):
            if r8.global_step == kill_at:
                generations = r8.host.persistence.generations
                generations._thread.join()
                generations._release()
                raise Killed
            state, metrics = step(state, batch, key)
            losses.append(float(metrics["loss"]))
            return state, metrics

        begun = r8.global_step
        state, _ = train(r8, train_step=noted, epochs=2, backup_every=10)
        return begun, losses, state.params["w"].tolist()

    _, losses, weights = trained(tmp_path / "whole")
    with pytest.raises(Killed):
        trained(tmp_path / "killed", BATCHES + 9)
    begun, rest, again = trained(tmp_path / "killed")

    assert begun >= 10
    assert rest == losses[begun:]
    assert again == weights


def hidden_loss(w, x, y):
    """A NaN of the batch makes 0 of a hidden unit, as rectifiers of some devices do, but its gradient is NaN."""
    hidden = x @ w["in"]
    return ((jnp.where(hidden > 0, hidden, 0.0) @ w["out"] - y) ** 2).mean()


def weights_of_rectifiers():
    rng = np.random.default_rng(0)
    return {"in": jnp.array(rng.normal(size=(4, 8)) / 2), "out": jnp.array(rng.normal(size=(8, 1)) / 3)}


@jax.jit
def pytree_step(w, x, y):
    loss, gradient = jax.value_and_grad(hidden_loss)(w, x, y)
    return jax.tree.map(lambda each, by: each - 0.05 * by, w, gradient), loss


@nnx.jit
def nnx_step(model, x, y):
    loss, gradient = jax.value_and_grad(hidden_loss)({"in": model["in"][...], "out": model["out"][...]}, x, y)
    for name in ("in", "out"):
        model[name][...] -= 0.05 * gradient[name]
    return loss


@pytest.mark.parametrize("is_nnx", [False, True])
def test_batches_of_nan_with_finite_losses_are_left_out_as_by_hand(is_nnx):
    """The first one is found by a look at the state; from then on each step is looked at, and its batch refused."""
    bad = {2, 7, 20, 33, 34, 57}
    batches = [(x["x"] * np.float32("nan") if n in bad else x["x"], x["y"]) for n, x in enumerate([*Data()(0)] * 2)]
    r8 = R8Scheduler(scheduler_mode="keep", num_epochs=1, handle_signals=False, clock=lambda: 0.0)
    by_hand = start = weights_of_rectifiers()
    managed = r8flax.ManagedState(
        r8, (nnx.Dict({name: nnx.Param(each) for name, each in start.items()}),) if is_nnx else start
    )
    num_counted = 0
    for x, y in r8.batches(batches):
        state = managed.for_step()
        after, loss = (state, nnx_step(*state, x, y)) if is_nnx else pytree_step(state, x, y)
        assert np.isfinite(loss)
        if managed.report(after, loss) and np.isfinite(x).all():
            by_hand, num_counted = pytree_step(by_hand, x, y)[0], num_counted + 1
    r8.close()
    found = managed.state[0] if is_nnx else managed.state

    for name, each in by_hand.items():
        np.testing.assert_allclose(found[name][...], each, rtol=1e-5)
    # Two tests of the weights took the place of a batch each.
    assert (num_counted, r8.sentry.num_refused) == (len(batches) - len(bad) - 2, len(bad) - 1)


@pytest.mark.parametrize("is_nnx", [False, True])
def test_a_nan_with_a_finite_loss_in_the_last_step_of_an_epoch(is_nnx):
    """No step follows whose loss would show it: its batch is refused, and the state is that of before it, whole."""
    x = np.random.default_rng(0).normal(size=(256, 4)).astype("f4")
    y = x.sum(1, keepdims=True)
    r8 = R8Scheduler(
        len(x), batch_size=32, num_epochs=2, scheduler_mode="keep", handle_signals=False, clock=lambda: 0.0
    )
    by_hand = start = weights_of_rectifiers()
    managed = r8flax.ManagedState(
        r8, (nnx.Dict({name: nnx.Param(each) for name, each in start.items()}),) if is_nnx else start
    )
    batches = (indices for _ in r8.epoch_iterator() for indices, _ in r8.batch_iterator())
    for number, indices in enumerate(batches):
        rows_now = x[indices] if number % 8 < 7 else np.full((32, 4), np.nan, "f4")
        state = managed.for_step()
        step = (rows_now, y[indices])
        after, loss = (state, nnx_step(*state, *step)) if is_nnx else pytree_step(state, *step)
        assert np.isfinite(loss)
        assert bool(managed.report(after, loss)) is (number % 8 < 7)
        if number % 8 < 7:
            by_hand = pytree_step(by_hand, *step)[0]
    r8.close()
    found = managed.state[0] if is_nnx else managed.state

    for name, each in by_hand.items():
        np.testing.assert_allclose(found[name][...], each, rtol=1e-6)


def test_a_function_in_the_state_is_not_copied():
    """A copy of an activation of JAX is another function, for which a jitted step is compiled again."""
    partial = functools.partial(jax.nn.leaky_relu, negative_slope=0.1)
    leaves, make = take_apart({"relu": jax.nn.relu, "jitted": jax.nn.tanh, "part": partial, "w": jnp.ones(2)})
    made = make(clone(leaves))

    assert (made["relu"], made["jitted"], made["part"]) == (jax.nn.relu, jax.nn.tanh, partial)
    assert made["w"].tolist() == [1.0, 1.0]


def test_a_second_stage_with_another_optimizer_gets_no_state_of_the_first():
    """Weights damaged in the first step of the stage, before it has a backup of its own."""

    @jax.jit
    def pull(state, x, y):
        loss, grads = jax.value_and_grad(lambda w: ((x @ w["w"] - y) ** 2).mean())(state.params)
        return state.apply_gradients(grads=grads), loss

    params = {"w": jnp.zeros((4, 1))}
    with R8Scheduler(scheduler_mode="keep") as r8:
        for tx, hurt_at in ((optax.sgd(0.1, momentum=0.9), None), (optax.adam(1e-3), 1)):
            managed = r8flax.ManagedState(r8, fresh(tx).replace(params=params))
            for number, batch in enumerate(r8.batches(list(Data()(0)))):
                if number == hurt_at:
                    managed.state = managed.state.replace(params={"w": managed.state.params["w"] * 1e3})
                managed.report(*pull(managed.for_step(), batch["x"], batch["y"]))
            before, params = params, managed.state.params

    assert "model restored once" in r8.summary()
    assert np.abs(params["w"] - before["w"]).max() < 0.1


@pytest.mark.filterwarnings("ignore:weights changed at once", "ignore:.*the largest number of")
def test_a_layer_of_zeros_is_put_back_in_a_model_of_nnx():
    """In a tuple with its optimizer, as NNX's pages have it: no loss is far too high, and it comes from a backup."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 32, 4)).astype(np.float32)
    # With so much noise, losses are hardly higher for it.
    y = (np.tanh(x @ rng.normal(size=(4, 1))) + rng.normal(size=(16, 32, 1))).astype(np.float32)

    @nnx.jit
    def step(model, optimizer, x, y):
        loss, gradient = nnx.value_and_grad(lambda model: jnp.square(model(x) - y).mean())(model)
        optimizer.update(model, gradient)
        return loss

    def train(at=None):
        first, last = nnx.Linear(4, 16, rngs=nnx.Rngs(0)), nnx.Linear(16, 1, rngs=nnx.Rngs(1))
        model = nnx.Sequential(first, nnx.relu, last)
        optimizer = nnx.Optimizer(model, optax.adam(0.003), wrt=nnx.Param)
        r8 = R8Scheduler(scheduler_mode="keep", num_epochs=12, handle_signals=False, clock=lambda: 0.0)
        managed = r8flax.ManagedState(r8, (model, optimizer))
        for _ in r8.epoch_iterator():
            for batch in r8.batches(list(zip(x, y, strict=True))):
                if r8.global_step == at:
                    first.kernel.set_value(0 * first.kernel[...])
                    at = None
                state = managed.for_step()
                managed.report(state, step(*state, *batch))
        r8.close()
        return float(np.abs(first.kernel[...]).max()), r8.summary()

    largest, summary = train()
    assert "weights tested" not in summary
    healed, summary = train(at=105)
    assert "changed at once: one incident" in summary
    assert healed > 0.8 * largest


@pytest.mark.filterwarnings("ignore:a loss was refused")
@pytest.mark.parametrize("is_stream", [False, True])
def test_losses_of_nan_cost_a_loop_or_a_stream_no_state_of_nnx(is_stream):
    """A step has changed the objects in place before its loss is reported: what they held before is put back."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(640, 4)).astype(np.float32)
    y = x @ np.array([[1.0], [-2.0], [0.5], [0.0]], np.float32)
    model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.05), wrt=nnx.Param)
    taken = []

    @nnx.jit
    def change(model, optimizer, x, y):
        loss, gradient = nnx.value_and_grad(lambda model: jnp.square(model(x) - y).mean())(model)
        optimizer.update(model, gradient)
        return loss

    def step(state, rows):
        taken.append(rows)
        return change(*state, x[rows] * (np.nan if len(taken) % 10 == 0 else 1.0), y[rows])

    r8 = R8Scheduler(640, batch_size=16, num_epochs=3, initial_lr=0.05, handle_signals=False)
    if is_stream:
        list(step_stream(r8, lambda state, rows, lr: (state, step(state, rows)), state=(model, optimizer)))
    else:

        def logged(state, batch):
            return logs().add_metric("loss", step(state, batch.data)), state

        loop((model, optimizer), scheduled(r8, np.arange(640)), {every(1): [logged, report_to(r8)]})
    summary = r8.summary()

    assert "losses refused: 1" in summary
    assert "restored" not in summary
    assert "from the backup" not in summary
    assert "learning rate at most" not in summary
    assert float(jnp.square(model(x) - y).mean()) < 1e-3

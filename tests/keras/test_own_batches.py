"""R8Callback with a scheduler that draws nothing: ``fit`` keeps its data, rates and steps, and is healed."""

import contextlib
import gc
import warnings
import weakref

import pytest

pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
pytest.importorskip("tests.keras_common")

import keras
import numpy as np

from learnit_r8 import R8Scheduler, events
from learnit_r8.keras import R8Callback, model_callbacks
from learnit_r8.keras.examiner import Examiner
from learnit_r8.keras.state import ModelState
from learnit_r8.testing import record_events
from tests.keras import resumed_fits
from tests.keras.own_fits import (
    BACK_END,
    BATCHES,
    FITS,
    LOSS,
    QUICK,
    RATES,
    Gan,
    Hurt,
    TwoOptimizers,
    X,
    Y,
    batches_of,
    classifier,
    outcome,
    own_step,
    schedule,
    share_of_step,
)
from tests.keras_common import on_tensorflow
from tests.programs import ROOT, printed_by

pytestmark = pytest.mark.filterwarnings("ignore")

MARKS = {True: pytest.mark.program, False: pytest.mark.slow}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=MARKS[name in QUICK]) for name in FITS],
)
def test_nothing_changes_without_an_incident_and_a_nan_is_healed(name):
    """Weights, optimizer and history are those of ``fit`` alone, losses are those of the steps; one NaN goes back."""
    assert outcome(name) == "equal, healed"


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_moving_statistics_that_a_batch_ruins_are_put_back(scale):
    """One finite batch far out of range ruins what validation uses, and no loss of training shows it."""
    layers = [keras.Input((8,)), keras.layers.Dense(16), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    model, x = keras.Sequential(layers), X.copy()
    model.compile(keras.optimizers.SGD(0.05), LOSS)
    x[480:488] *= scale

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, Y, 8, shuffle=False, verbose=0, callbacks=[R8Callback(R8Scheduler(scheduler_mode="keep"))])

    said = [str(each.message) for each in caught if "moving_variance' was" in str(each.message)]
    assert len(said) == (scale > 1), said
    assert max(np.abs(each).max() for each in model.get_weights()) < 100


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_one_of_the_first_batches_that_is_far_out_of_range_is_left_out(scale):
    """The size of a batch of Keras' is known as its loss is judged: of 16 samples or more a first loss tells enough."""
    model, x, heard = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)]), X.copy(), record_events()
    model.compile("adam", LOSS)
    x[96:128] *= scale
    r8 = R8Scheduler(scheduler_mode="keep", listeners=[heard])
    model.fit(x, Y, batch_size=32, shuffle=False, verbose=0, callbacks=[R8Callback(r8)])

    refused = [each.step for each in heard.of(events.BatchRefused)]
    assert refused == [4] * (scale > 1)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=MARKS[at < 2]) for at, name in enumerate(resumed_fits.FITS)],
)
def test_a_fit_left_in_mid_epoch_goes_on_there(name):
    """Begun with `current_epoch`, it trains on what the epoch has left, in its order: steps and weights are those of
    ``fit`` without R8, left once or twice."""
    assert resumed_fits.outcome(name) == "equal"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("back_end", "module", "flags"),
    [
        ("jax", "own_fits", []), ("jax", "own_fits", ["--devices"]), ("torch", "own_fits", []),
        ("jax", "resumed_fits", []), ("torch", "resumed_fits", []),
    ],
)  # fmt: skip
def test_other_back_ends(back_end, module, flags):
    """The same on JAX, also on two devices with their data in parallel, and on torch."""
    devices = "--xla_force_host_platform_device_count=2"
    printed_by(ROOT, "-m", f"tests.keras.{module}", *flags, KERAS_BACKEND=back_end, XLA_FLAGS=devices)


@pytest.mark.slow
def test_two_replicas(monkeypatch):
    """Under MirroredStrategy the loss is that of the whole batch, and the mirrored variables go back."""

    def mirrored():
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            return classifier(schedule())

    monkeypatch.setitem(
        FITS, "replicas", (mirrored, lambda: {"x": tf.data.Dataset.from_tensor_slices((X, Y)).batch(32)})
    )
    assert outcome("replicas") == "equal, healed"


def test_a_short_fit_is_backed_up():
    """A fit that ends long before 30 s has several backups an epoch, from its first on, where its length is known."""
    backups = []
    r8 = R8Scheduler(
        scheduler_mode="keep",
        listeners=[lambda event: backups.append(event.step) if type(event).__name__ == "BackupTaken" else None],
    )
    classifier().fit(X[:320], Y[:320], batch_size=8, verbose=0, callbacks=[R8Callback(r8)])

    # Those of a young run between them depend on how long a copy takes.
    assert {0, 10, 20, 30, 40} <= set(backups)


@pytest.mark.parametrize("kind", RATES)
def test_recovery_lowers_a_rate_for_the_step_alone(kind):
    """The rate of a step is the user's times the factor of recovery, a schedule's too; after it, it is whole again."""
    assert share_of_step(RATES[kind], 0.25) == pytest.approx(0.25, rel=1e-4)
    plain, model = classifier(RATES[kind]()), classifier(RATES[kind]())
    callback = R8Callback(R8Scheduler(scheduler_mode="keep"))
    lower = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda *_, **__: setattr(callback._rates, "factor", 0.25)
    )
    plain.fit(X, Y, verbose=0)
    model.fit(X, Y, verbose=0, callbacks=[callback, lower])

    assert callback._rates.was_lowered
    assert float(model.optimizer.learning_rate) == pytest.approx(float(plain.optimizer.learning_rate))
    assert isinstance(model.optimizer._learning_rate, keras.Variable) is (kind == "a number")


@pytest.mark.parametrize("hook", ["on_train_batch_begin", "on_train_batch_end"])
@pytest.mark.parametrize("is_before", [True, False])
def test_a_rate_that_a_callback_sets_while_recovery_lowers_it(hook, is_before):
    """It is the user's from then on, wherever the callback stands, and reads the user's rate before; so that a rate
    that was 100 times as large for three steps, which recovery had lowered meanwhile, does not stay for good."""

    class Decay(keras.callbacks.Callback):
        """Notes the rate at each step, and makes it a tenth at the fourth."""

        rates, step = [], 0

    def decay(self, batch, logs=None):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        self.rates.append(float(self.model.optimizer.learning_rate))
        self.step += 1
        if self.step == 4:
            self.model.optimizer.learning_rate = 0.001

    setattr(Decay, hook, decay)
    mine, r8, factors = Decay(), R8Callback(R8Scheduler(scheduler_mode="keep")), []
    lower = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda *_, **__: setattr(r8._rates, "factor", 0.25),
        on_train_batch_end=lambda *_, **__: factors.append(r8._rates.was_lowered),
    )
    model = classifier()
    model.optimizer.learning_rate = 0.01
    model.fit(X[:64], Y[:64], batch_size=8, verbose=0, callbacks=[mine, r8, lower] if is_before else [r8, mine, lower])

    assert mine.rates == pytest.approx([0.01] * 4 + [0.001] * 4)
    assert factors == [True] * 8
    assert float(model.optimizer.learning_rate) == pytest.approx(0.001)


@pytest.mark.skipif(not on_tensorflow(), reason="only TensorFlow's trainer begins a batch that never comes")
def test_a_rate_that_is_lowered_as_data_of_no_known_length_end_is_the_users_again():
    """Keras begins a batch more there; callbacks and the next epoch saw the lowered rate, which stayed for good."""

    class Ruin(keras.callbacks.Callback):
        """Makes weights 100 times as large late in the second epoch, and notes the rates at the end of each."""

        rates, step = [], 0

        def on_train_batch_begin(self, batch, logs=None):
            self.step += 1
            if self.step == 2 * len(X) // 8 - 6:
                for each in self.model.trainable_variables:
                    each.assign(100 * each)

        def on_epoch_end(self, epoch, logs=None):
            self.rates.append(float(self.model.optimizer.learning_rate))

    ruin, r8, model = Ruin(), R8Scheduler(scheduler_mode="keep"), classifier()
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).filter(lambda x, y: True)
    rate = float(model.optimizer.learning_rate)
    with r8:
        model.fit(data, epochs=4, verbose=0, callbacks=[ruin, R8Callback(r8)])

    assert "model restored" in r8.summary()
    assert ruin.rates == [rate] * 4


@pytest.mark.skipif(not on_tensorflow(), reason="only here may a length be unknown")
@pytest.mark.parametrize("is_known", [True, False])
def test_a_nan_that_the_loss_does_not_show_at_an_epochs_end(is_known):
    """A rectifier that makes 0 of NaN hides it in the last batch of epochs, and of the run: each step is undone whole,
    and validation measures the weights as if it had been left out by hand. A first epoch of no known length may tell
    its own end alone."""
    given = np.random.default_rng(0).normal(size=(64, 8)).astype("f4")
    bad = np.append(given[:56], np.full((8, 8), np.nan, "f4"), 0)

    def data(x, first):
        """Batches; those of the first epoch are others."""
        if is_known:
            return tf.data.Dataset.from_tensor_slices((x, np.nan_to_num(x[:, 0] + 1))).batch(8)
        turns = iter([first, x, x])

        def batches():
            rows = next(turns)
            yield from ((each, given[:8, 0] + 1) for each in rows.reshape(-1, 8, 8))

        return tf.data.Dataset.from_generator(batches, output_signature=(tf.TensorSpec((8, 8)), tf.TensorSpec((8,))))

    def fitted(x, *callbacks):
        keras.utils.set_random_seed(0)
        hidden = keras.layers.Dense(8, activation=lambda x: keras.ops.where(x > 0, x, 0.0))
        model = keras.Sequential([keras.Input((8,)), hidden, keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.01), "mse")
        tested = given, given.sum(1)
        found = model.fit(data(x, given), epochs=3, verbose=0, validation_data=tested, callbacks=[*callbacks])
        return found.history["val_loss"], model.get_weights()

    with R8Scheduler(scheduler_mode="keep") as r8:
        found, weights = fitted(bad, R8Callback(r8))
    by_hand, best = fitted(bad[:56])

    assert found == by_hand
    assert all(map(np.array_equal, weights, best))
    assert r8.sentry.num_refused == 2 + is_known


def test_what_cannot_be_watched_is_said():
    """A step without any loss, a model without an optimizer, and a schedule where the scheduler sets the rate."""

    class Silent(keras.Model):
        def __init__(self):
            super().__init__()
            self.net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])

        def call(self, x):
            return self.net(x)

        def train_step(self, *given):
            logs = {"size": keras.ops.mean(given[-1][0])}
            return (logs, given[0]) if BACK_END == "jax" else logs

    silent = Silent()
    silent.compile()
    with pytest.raises(RuntimeError, match=r"train_step must have a loss to be watched.*got \['size'\]"):
        silent.fit(X, Y, verbose=0, callbacks=[R8Callback(R8Scheduler(scheduler_mode="keep"))])

    with pytest.raises(ValueError, match="learning_rate must be a number"):
        classifier(schedule()).fit(X, Y, verbose=0, callbacks=[R8Callback(R8Scheduler(num_steps=9))])
    with pytest.raises(TypeError, match="or an R8Scheduler without num_samples"):
        R8Callback(R8Scheduler(8, batch_size=2, num_epochs=1))


def test_two_that_restore_a_run_are_refused(tmp_path):
    """After a kill `BackupAndRestore` would put the weights of an epoch's end over those of the checkpoint."""
    x = np.zeros((8, 2), "float32")

    for folder, expected in [
        (tmp_path, pytest.raises(ValueError, match="a BackupAndRestore beside checkpoint_dir")),
        (None, contextlib.nullcontext()),
    ]:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        restoring = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        with R8Scheduler(scheduler_mode="keep", checkpoint_dir=folder, handle_signals=False) as r8, expected:
            model.fit(x, x[:, 0], verbose=0, callbacks=[restoring, R8Callback(r8, model)])


def test_an_optimizer_that_is_not_built_is_named():
    """A saved run is not put back into a second optimizer without variables, if it trained others than the model's."""
    model, other = classifier(), keras.optimizers.Adam()
    other.build([keras.Variable(np.ones(3))])
    saved = ModelState(model, others=[other]).read()
    with pytest.raises(ValueError, match=r"the optimizer 2 must be built before a saved run goes on; call its build"):
        ModelState(model, others=[keras.optimizers.Adam()]).load(saved, from_ram=True)


def test_an_optimizer_is_built_as_the_saved_one_was():
    """Over the same weights of the model, in their order; one that has been built since is as at its beginning."""
    model, saved, fresh = classifier(), keras.optimizers.Adagrad(0.1), keras.optimizers.Adagrad(0.1)
    before = ModelState(model, others=[saved]).read()
    saved.apply([0 * each + 1 for each in model.trainable_variables[2:]], model.trainable_variables[2:])
    after = [np.array(each) for each in saved.variables]
    ModelState(model, others=[fresh]).load(ModelState(model, others=[saved]).read(), from_ram=True)
    loaded = [np.array(each) for each in fresh.variables]
    ModelState(model, others=[fresh]).load(before, from_ram=True)

    assert all(map(np.array_equal, loaded, after))
    assert [np.unique(each).tolist() for each in fresh.variables[2:]] == [[pytest.approx(0.1)]] * 2


class Probe(keras.Model):
    """Trains a head on a body that stays as it is, by a step of its own; two optimizers, one by default never used."""

    def __init__(self, several):
        super().__init__()
        keras.utils.set_random_seed(0)
        self.body = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="tanh")])
        self.head = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        self.tracker = keras.metrics.Mean(name="loss")
        if several:
            self.compile()
            self.second = keras.optimizers.Adam(0.02)
        else:
            self.compile(keras.optimizers.Adam(0.02))
            self.second = self.optimizer

    @property
    def metrics(self):
        return [self.tracker]

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((self.head(self.body(x)) - keras.ops.cast(y, "float32")[:, None]) ** 2)
        variables = self.head.trainable_variables
        self.second.apply(tape.gradient(loss, variables), variables)
        self.tracker.update_state(loss)
        return {"loss": self.tracker.result()}


class HurtsLayer(keras.callbacks.Callback):
    """Makes one layer's weights a hundred times as large after so many batches."""

    def __init__(self, layer, after):
        super().__init__()
        self.layer, self.left = layer, after

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if not self.left:
            self.layer.kernel.assign(100 * self.layer.kernel)


@pytest.mark.parametrize(("units", "after"), [(16, 2), (8, 2), (8, 40)])
def test_layers_unfrozen_between_fits_get_their_own_weights_back(units, after):
    """The variables that are trained are listed first, so that frozen ones change places; the optimizer is another."""
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(each, activation="relu") for each in (8, units, 8)]
    model = keras.Sequential([keras.Input((8,)), *layers, keras.layers.Dense(2)])
    layers[0].trainable = layers[1].trainable = False
    with R8Scheduler(scheduler_mode="keep") as r8:
        for rate, others in ((0.1, []), (5e-4, [HurtsLayer(layers[2], after)])):
            model.compile(keras.optimizers.SGD(rate, momentum=0.9), LOSS)
            before = [np.array(each.kernel) for each in layers]
            model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[R8Callback(r8), *others])
            for each in layers:
                each.trainable = True

    assert "model restored once" in r8.summary()
    for layer, kernel in zip(layers, before, strict=True):
        assert np.abs(layer.kernel - kernel).max() < 0.2


def test_a_model_compiled_again_keeps_the_rate_of_its_new_optimizer():
    """Though its arrays are like those of the former one, whose backups are there as the next fit begins."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)])
    with R8Scheduler(scheduler_mode="keep") as r8:
        for rate, others in ((0.1, []), (1e-3, [HurtsLayer(model.layers[0], 1)])):
            model.compile(keras.optimizers.SGD(rate, momentum=0.9), LOSS)
            model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[R8Callback(r8), *others])

    assert "model restored once" in r8.summary()
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3)


def test_nothing_holds_on_to_a_model_that_was_trained():
    """Neither what knows the state of an earlier ``fit``, nor anything else."""
    model = classifier()
    with R8Scheduler(scheduler_mode="keep") as r8:
        model.fit(X[:64], Y[:64], verbose=0, callbacks=[R8Callback(r8)])
    left = weakref.ref(model), weakref.ref(r8)
    del model, r8
    gc.collect()

    assert [each() for each in left] == [None, None]


@pytest.mark.parametrize("is_older", [False, True])
def test_files_give_each_layer_its_own_weights(tmp_path, is_older):
    """Also if another layer is frozen by then; older files have the weights first that are trained."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(4)])
    model.layers[0].trainable = False
    model.compile("sgd", "mse")
    state, before = ModelState(model), [np.array(each) for each in model.weights]
    saved = state.read()
    if is_older:
        values = list(saved["model"].values())
        saved = {**saved, "model": dict(enumerate(values[2:] + values[:2])), "by layer": False}
    state.save({"model": saved}, tmp_path / "f")
    for each in model.weights:
        each.assign(each + 1.0)
    model.layers[0].trainable = not is_older
    state.load(tmp_path / "f")

    assert all(np.array_equal(each, kept) for each, kept in zip(model.weights, before, strict=True))


@on_tensorflow
@pytest.mark.parametrize("several", [False, True])
def test_an_optimizer_is_built_by_its_first_step(several):
    """As without R8 over what the step trains; a refused step leaves it as it was, the first one too, at its rate."""

    def trained(r8=None):
        places = range(8) if r8 is not None else [1, 2, 3, 5, 6, 7]
        x = np.array(X[: 8 * 16].reshape(8, 16, -1))
        x[[0, 4]] = np.nan
        data = tf.data.Dataset.from_tensor_slices((x[[*places]], Y[: 8 * 16].reshape(8, 16)[[*places]]))
        model = Probe(several)
        model.fit(data, epochs=1, verbose=0, callbacks=[] if r8 is None else [R8Callback(r8)])
        return [np.array(each) for each in [*model.weights, *model.second.variables]]

    plain, r8 = trained(), R8Scheduler(scheduler_mode="keep", handle_signals=False)
    watched = trained(r8)
    r8.close()

    assert len(watched) == len(plain) == 4 + 2 + 4
    assert all(map(np.array_equal, watched, plain))
    assert "lr 0.02" in r8.summary()


class NoisyProbe(Probe):
    """Adds noise of TensorFlow's own generator to what it is given."""

    def train_step(self, data):
        x, y = data
        return super().train_step((x + tf.random.normal(tf.shape(x)), y))


@on_tensorflow
@pytest.mark.parametrize("several", [False, True])
def test_random_numbers_of_tensorflow_go_on_as_a_step_builds_its_optimizer(several):
    """Noise that a step draws does not come again, neither in the step after that nor in another fit."""

    def trained(callbacks):
        model = NoisyProbe(several)
        for _ in range(2):
            model.fit(X[:128], Y[:128], batch_size=16, shuffle=False, verbose=0, callbacks=callbacks)
        return [np.array(each) for each in [*model.weights, *model.second.variables]]

    with R8Scheduler(scheduler_mode="keep") as r8:
        watched = trained([R8Callback(r8)])
    assert all(map(np.array_equal, watched, trained([])))


def test_a_model_that_is_built_in_part():
    """A new layer on trained ones: the optimizer is built once all variables are there."""

    def trained(callbacks):
        keras.utils.set_random_seed(0)
        body = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        model = keras.Sequential([keras.layers.Dropout(0.1, seed=1), body, keras.layers.Dense(2)])
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(batches_of(X[:96], Y[:96]), epochs=2, verbose=0, callbacks=callbacks)
        return [np.array(each) for each in [*model.weights, *model.optimizer.variables]]

    assert all(map(np.array_equal, trained([R8Callback(R8Scheduler(scheduler_mode="keep"))]), trained([])))


@on_tensorflow
def test_a_loop_under_tf_function():
    """A tf.function loop over tf.data, with the model's two callbacks: equal to the bit, and a NaN healed."""

    def run(with_r8, nan_at=None):
        keras.utils.set_random_seed(0)
        layers = [keras.Input((8,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(2)]
        model, optimizer = keras.Sequential(layers), keras.optimizers.Adam(0.01)
        data = batches_of(X, Y)

        @tf.function
        def train_step(x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, model(x), from_logits=True))
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
            return loss

        r8 = None
        if with_r8:
            r8 = R8Scheduler(num_epochs=3, scheduler_mode="keep", backup_every=10, **model_callbacks(model, optimizer))
        number = 0
        for _ in r8.epoch_iterator() if with_r8 else range(3):
            for x, y in r8.batches(data) if with_r8 else data:
                number += 1
                if number == nan_at:
                    weights = model.get_weights()
                    model.set_weights([weights[0] * np.nan, *weights[1:]])
                loss = train_step(x, y)
                if with_r8:
                    r8.update_with_loss(loss)
        return r8, model.get_weights()

    r8, watched = run(True)
    assert all(map(np.array_equal, run(False)[1], watched))
    assert (r8.global_step, r8.sentry.num_refused) == (3 * BATCHES, 0)

    r8, healed = run(True, nan_at=34)
    assert r8.sentry.num_refused >= 1
    assert all(np.isfinite(each).all() for each in healed)


def test_no_batch_is_missed_where_data_of_unknown_length_end():
    """TensorFlow's trainer begins a batch before it asks for it: there was none that was not reported."""
    model, heard = classifier(), record_events()
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(32).filter(lambda x, y: True)
    r8 = R8Scheduler(scheduler_mode="keep", listeners=[heard])
    model.fit(data, epochs=2, verbose=0, callbacks=[R8Callback(r8)])
    r8.close()

    assert not heard.of(events.BatchAbandoned)
    assert r8.global_step == 2 * BATCHES
    assert "batches not reported: 0" in r8.summary()


def test_a_model_that_is_never_called_as_a_whole_has_its_bad_batch_named():
    """The model of a ``train_step`` of one's own may have no ``call``: the batch is looked at all the same."""
    x, heard = X.copy(), record_events()
    x[7, 3] = np.nan
    model = own_step(Gan)
    r8 = R8Scheduler(scheduler_mode="keep", guard="finite", listeners=[heard])
    model.fit(x, batch_size=32, shuffle=False, verbose=0, callbacks=[R8Callback(r8)])
    told = heard.of(events.CauseFound)[0]

    assert told.fault == "input"
    assert "probably the batch is not finite, for row 7 of the batch, whose input holds NaN at [3]" in told.text


def test_a_batch_runs_again_in_the_unit_of_the_losses_that_are_reported():
    """With weights of samples the loss of a healthy batch is not taken for a bad one."""
    model = classifier()
    examiner = Examiner(model, ModelState(model), lambda: None, weighs=True)
    examiner._present = examiner._state.read()
    weights = np.full(32, 1e-3, "f4")
    shown = examiner.run({"x": X[:32], "y": Y[:32], "sample_weight": weights}, None)
    once = examiner.run({"x": X[:32], "y": Y[:32], "sample_weight": None}, None)

    assert 0 < shown.loss < 2e-3 < 0.1 < once.loss


def test_a_variable_that_is_put_back_has_its_name():
    """Of Keras' variables messages say the path, not a number."""
    keras.utils.clear_session()
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2, name="head")], name="net")
    model.compile("sgd", LOSS)
    r8 = R8Scheduler(scheduler_mode="keep")
    hurt = Hurt(5)
    model.fit(X, Y, batch_size=32, verbose=0, callbacks=[R8Callback(r8, backup_every=2), hurt])
    r8.close()

    assert "model.net/head/kernel had numbers that are not finite" in r8.summary()


@pytest.mark.skipif(BACK_END == "jax", reason="its trainer carries the variables of one optimizer")
def test_losses_of_networks_with_an_optimizer_each_need_not_fall():
    """Known from the first step on, before its loss is judged; under one optimizer nothing shows it."""
    expects = {}
    for kind in (Gan, TwoOptimizers):
        r8 = R8Scheduler(scheduler_mode="keep")
        own_step(kind).fit(X, batch_size=32, verbose=0, callbacks=[R8Callback(r8)])
        r8.close()
        expects[kind] = r8.sentry.guard.expects_progress
        assert r8.sentry.present.losses.first.recent

    assert expects == {Gan: True, TwoOptimizers: False}

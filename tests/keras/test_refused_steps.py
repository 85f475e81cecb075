"""A refused step of ``fit`` costs its batch and nothing else, whoever owns the batches, on every back end."""

import numpy as np
import pytest

pytest.importorskip("keras")

import keras

from learnit_r8 import R8Scheduler, RateShape
from learnit_r8.keras import R8Callback, R8Dataset

from ..keras_common import At
from ..programs import ROOT, printed_by

pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("keras")]
NAN, HUGE = float("nan"), -1e6
STEPS, EPOCHS, BATCH = 12, 3, 8
LAST = EPOCHS * STEPS - 1
RNG = np.random.default_rng(0)
X = RNG.normal(size=(STEPS * BATCH, 6)).astype("f4")
Y = (X[:, :3] + 0.5 * RNG.normal(size=(len(X), 3))).argmax(1)


def relu(x):
    """As that of Keras, on all back ends: 0 of NaN, whose gradient is NaN."""
    return keras.ops.where(x > 0, x, 0.0)


def build(activation="tanh"):
    keras.utils.set_random_seed(0)
    # On torch dropout draws from a generator that a refused step has moved on.
    dropout = keras.layers.Dropout(0.0 if keras.backend.backend() == "torch" else 0.1)
    layers = [keras.Input((6,)), keras.layers.Dense(12, activation=activation), dropout]
    model = keras.Sequential([*layers, keras.layers.Dense(3)])
    rng = np.random.default_rng(2)
    model.set_weights([0.3 * rng.normal(size=each.shape) for each in model.get_weights()])
    more = {"jit_compile": False} if keras.backend.backend() == "tensorflow" else {}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, **more)
    return model


class Rows(keras.utils.PyDataset):
    """Batches of one's own, some of them bad or left out."""

    def __init__(self, faults=(), left_out=(), x=X):
        super().__init__()
        self.faults, self.left_out, self.x, self.epoch = dict(faults), left_out, x, 0

    def __len__(self):
        first = self.epoch * STEPS
        return STEPS - sum(first <= each < first + STEPS for each in self.left_out)

    def __getitem__(self, index):
        number = [each for each in range(LAST + 1) if each not in self.left_out][self._num_before() + index]
        rows = np.random.default_rng(number // STEPS).permutation(len(X)).reshape(STEPS, BATCH)[number % STEPS]
        return self.x[rows] * np.float32(self.faults.get(number, 1)), Y[rows]

    def _num_before(self):
        return sum(each not in self.left_out for each in range(self.epoch * STEPS))


class DrawnRows(R8Dataset):
    """Batches that R8 draws, some of them bad."""

    def __init__(self, r8, faults=(), x=X):
        super().__init__(np.arange(len(X)), None, r8)
        self.faults, self.x, self.epoch = dict(faults), x, 0

    def __getitem__(self, index):
        (rows,) = super().__getitem__(index)
        return self.x[rows] * np.float32(self.faults.get(self.epoch * STEPS + index, 1)), Y[rows]


class Notes(keras.callbacks.Callback):
    """What a callback of one's own sees: the weights before each step, and those behind an epoch with its numbers."""

    def __init__(self, data):
        super().__init__()
        self.data, self.before, self.ends, self.logged = data, [], [], []

    def _weights(self):
        if keras.backend.backend() == "jax" and getattr(self.model, "_jax_state", None):
            self.model.jax_state_sync()
        return [np.array(each) for each in self.model.get_weights()]

    def on_epoch_begin(self, epoch, logs=None):
        self.data.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self.before.append(self._weights())

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(self._weights())
        self.logged.append(dict(logs))


def made(kind, epochs=EPOCHS, data=None, **given):
    """Of either kind: scheduler, data, and R8's callback."""
    if kind == "own":
        r8 = R8Scheduler(scheduler_mode="keep", handle_signals=False)
        return r8, data or Rows(**given), R8Callback(r8)
    r8 = R8Scheduler(
        len(X), batch_size=BATCH, num_epochs=epochs, initial_lr=0.05, policy="shuffle", handle_signals=False,
        scheduler_mode=RateShape("constant", warmup_steps=0),
    )  # fmt: skip
    dataset = DrawnRows(r8, **given)
    return r8, dataset, R8Callback(dataset)


def train(kind, model, *callbacks, epochs=EPOCHS, **given):
    """A run with R8 of either kind, its callback last in the list: scheduler, notes, and the last weights."""
    r8, data, callback = made(kind, epochs, **given)
    notes = Notes(data)
    with r8:
        model.fit(
            data, epochs=epochs, verbose=0, shuffle=False, callbacks=[notes, *callbacks, callback],
            validation_data=(X, Y), validation_batch_size=len(X),
        )  # fmt: skip
    return r8, notes, notes._weights()


@pytest.mark.parametrize("kind", ["own", "drawn"])
def test_a_bad_batch_leaves_the_weights_as_they_were(kind):
    """A bad batch in mid-run, and one whose numbers are far too large as the last of the run, change no weight."""
    r8, notes, last = train(kind, build("softplus"), faults={16: NAN, LAST: HUGE})

    assert all(map(np.array_equal, notes.before[16], notes.before[17]))
    assert all(map(np.array_equal, notes.before[LAST], last))
    assert (r8.sentry.num_refused, r8.global_step, r8.lr_factor) == (2, LAST + 1, 1)


def test_a_bad_batch_is_one_that_is_left_out():
    """Weights, dropout and the losses that Keras logs are to the bit those of a plain fit without that batch."""
    faults = {17: NAN, 33: HUGE}
    _, notes, last = train("own", build("softplus"), faults=faults)
    model, data = build("softplus"), Rows(left_out=[*faults])
    plain = Notes(data)
    losses = []
    for epoch in range(EPOCHS):
        data.epoch = epoch
        history = model.fit(data, epochs=epoch + 1, initial_epoch=epoch, verbose=0, shuffle=False, callbacks=[plain])
        losses += history.history["loss"]

    assert [each["loss"] for each in notes.logged] == losses
    assert all(map(np.array_equal, last, model.get_weights()))


@pytest.mark.program
@pytest.mark.parametrize(("kind", "place"), [("own", 0), ("own", 4), ("drawn", 3)])
def test_callbacks_see_the_numbers_of_the_weights_that_are_kept(kind, place, tmp_path):
    """EarlyStopping, ModelCheckpoint and ReduceLROnPlateau, before R8Callback or behind it, in a run with bad batches,
    hidden ones and ruined weights at the ends of epochs: each number is that of the weights that are there then."""
    model, path = build(relu), str(tmp_path / "best.weights.h5")
    faults = {5: NAN, 2 * STEPS - 1: NAN, 2 * STEPS + 3: HUGE}
    r8, data, callback = made(kind, faults=faults)
    notes = Notes(data)
    stop = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    keeper = keras.callbacks.ModelCheckpoint(path, "val_loss", save_best_only=True, save_weights_only=True)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1)
    callbacks = [notes, stop, keeper, *[plateau] * (kind == "own")]
    callbacks.insert(place, callback)

    def ruin(model):
        model.set_weights([each * np.nan for each in model.get_weights()])

    callbacks.append(At(r8, STEPS - 1, ruin))
    with r8:
        model.fit(
            data, epochs=EPOCHS, verbose=0, shuffle=False, callbacks=callbacks, validation_data=(X, Y),
            validation_batch_size=len(X),
        )  # fmt: skip
    rate, seen = float(model.optimizer.learning_rate), []
    for weights in notes.ends:
        model.set_weights(weights)
        seen.append(model.evaluate(X, Y, batch_size=len(X), verbose=0))
    best = int(np.argmin(seen))
    model.load_weights(path)

    assert [each["val_loss"] for each in notes.logged] == pytest.approx(seen, rel=1e-5)
    assert all(0.1 < each["loss"] < 1.5 for each in notes.logged)
    assert (len(seen), stop.best, keeper.best) == (EPOCHS, *[pytest.approx(seen[best], rel=1e-5)] * 2)
    assert all(map(np.array_equal, stop.best_weights, notes.ends[best]))
    assert all(map(np.array_equal, model.get_weights(), notes.ends[best]))
    assert rate == pytest.approx(0.05)


def test_an_epoch_of_bad_batches_alone_logs_no_loss():
    """A loss of 0 would be the best there is, for good."""
    model, stop = build(), keras.callbacks.EarlyStopping("loss", patience=5)
    _, notes, _ = train("own", model, stop, faults=dict.fromkeys(range(STEPS, 2 * STEPS), NAN))

    assert ["loss" in each for each in notes.logged] == [True, False, True]
    assert 0.1 < stop.best == min(each["loss"] for each in notes.logged if "loss" in each)
    assert all(map(np.array_equal, notes.ends[0], notes.ends[1]))


@pytest.mark.program
@pytest.mark.parametrize("back_end", ["jax", "torch"])
def test_other_back_ends(back_end):
    """All of this holds there."""
    chosen = "-q", "-p", "no:cacheprovider", "-m", "program", "-k", "not other_back"
    printed_by(ROOT, "-m", "pytest", *chosen, __file__, KERAS_BACKEND=back_end, JAX_PLATFORMS="cpu")


def test_a_stray_write_gets_no_advice_for_large_updates():
    """A row of an embedding that few samples have: the array is named, and nothing is said of the norm of gradients."""
    keras.utils.set_random_seed(0)
    rows = np.random.default_rng(0).integers(0, 200, (512, 2))
    inputs = [keras.Input((2,)), keras.layers.Embedding(200, 8), keras.layers.Flatten()]
    model = keras.Sequential([*inputs, keras.layers.Dense(1)])
    model.compile("adam", "mse")

    def strike(batch, logs=None):
        if r8.global_step == 75:
            if keras.backend.backend() == "jax":
                model.jax_state_sync()
            table = keras.ops.convert_to_numpy(model.layers[0].embeddings).copy()
            table[3, 2] = 1e3
            model.layers[0].embeddings.assign(table)

    with R8Scheduler(512, batch_size=16, num_epochs=4, initial_lr=0.01) as r8:
        data = R8Dataset(rows, (rows.sum(1, keepdims=True) % 7 / 7).astype("f4"), r8)
        callbacks = [R8Callback(data), keras.callbacks.LambdaCallback(on_train_batch_begin=strike)]
        with pytest.warns(RuntimeWarning) as said:
            model.fit(data, epochs=4, shuffle=False, verbose=0, callbacks=callbacks)
    words = " ".join(str(each.message) for each in said)

    assert "the weights were damaged, restored to step" in words
    assert "probably a stray write" in words
    assert "What may help" not in words

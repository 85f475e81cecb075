"""`model.fit` under the scheduler, with real Keras on the digits."""

import _thread
import threading

import numpy as np
import pytest

pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

import keras

from learnit_r8 import Recovery, TrainingDiverged, events, load_weights
from learnit_r8.keras import R8Callback, R8Dataset
from learnit_r8.keras.state import as_numpy
from tests.keras_common import CROSS_ENTROPY, At, Watch, X, Y, classifier, fit, poison, scheduler


def coverage(batches):
    """How often each sample was trained on: the distinct counts."""
    return set(np.bincount(np.concatenate(batches), minlength=len(X)).tolist())


def test_nan_heals_inside_fit():
    """An array that turns NaN is put back to the bit, all else is as before the step that showed it, and training goes
    on."""
    heard = []
    r8 = scheduler(num_epochs=3, listeners=[heard.append])
    dataset = R8Dataset(X, Y, r8)
    model, watch = classifier(metrics=["accuracy"]), Watch(dataset)
    with pytest.warns(RuntimeWarning, match=r"came from the backup of step 16.*with the weights of step 20 it is good"):
        history = fit(model, dataset, At(r8, 20, poison), watch, epochs=3, callback=R8Callback(dataset, backup_every=4))
    [refused] = [event for event in heard if isinstance(event, events.BatchRefused)]
    before, after, backup = watch.weights[20], watch.weights[21], watch.weights[16]

    assert refused.step == 21
    assert np.array_equal(after[-2], backup[-2])
    assert not np.isfinite(before[-2]).any()
    assert all(map(np.array_equal, (*after[:-2], after[-1]), (*before[:-2], before[-1])))
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert all(np.isfinite(as_numpy(variable)).all() for variable in model.optimizer.variables)
    assert r8.table.usage_count.sum() > 20 * 32
    assert np.isfinite(history.history["loss"]).all()
    assert np.isfinite(r8.table.loss).all()


@pytest.mark.filterwarnings("ignore:losses or weights were not finite")
def test_too_many_refusals_end_fit():
    """TrainingDiverged comes out of fit."""
    r8 = scheduler(num_epochs=2, batch_size=100, recovery=Recovery(max_refused=1))
    dataset = R8Dataset(X, Y, r8)

    with pytest.raises(TrainingDiverged):
        fit(classifier(run_eagerly=True), dataset, At(r8, 3, poison))


@pytest.mark.parametrize("is_last", [False, True])
def test_averages_that_stand_in_for_the_weights_are_not_kept_as_these(is_last):
    """`SwapEMAWeights` has them in the model between two epochs, for the callbacks behind it; backups and the draw of
    the next epoch meet the weights."""
    weights, seen, drawn = [], [], []
    r8 = scheduler(num_epochs=3)
    dataset = R8Dataset(X, Y, r8)
    model = classifier(optimizer=keras.optimizers.SGD(0.01, momentum=0.9, use_ema=True))
    start, swap = dataset.start_epoch, keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    dataset.start_epoch = lambda: (drawn.append(model.get_weights()), start())
    behind = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: weights.append(model.get_weights()),
        on_epoch_end=lambda epoch, logs: seen.append(model.get_weights()),
    )
    callback = R8Callback(dataset, backup_every=16)
    callbacks = [swap, callback, behind] if is_last else [callback, swap, behind]
    model.fit(dataset, epochs=3, verbose=0, shuffle=False, callbacks=callbacks)

    def are_alike(one, other):
        return all(np.allclose(*each, rtol=0, atol=1e-6) for each in zip(one, other, strict=True))

    backups = {each.step: list(each.state["model"].values()) for each in r8.host.persistence.backup.backups}
    assert {16, 32} <= set(backups)
    for number, step in enumerate((16, 32)):
        assert are_alike(backups[step], weights[step - 1])
        assert are_alike(drawn[number + 1], weights[step - 1])
        assert not are_alike(seen[number], weights[step - 1])


@pytest.mark.program
def test_fit_called_twice_goes_on():
    """Two fits of two epochs are one of four: the same batches, rates and table."""
    runs = []
    for parts in ((4,), (2, 4)):
        dataset = R8Dataset(X, Y, scheduler())
        model, watch, first = classifier(dropout=0.3), Watch(dataset), 0
        for last in parts:
            fit(model, dataset, watch, epochs=last, initial_epoch=first)
            first = last
        runs.append((watch, dataset.r8.table.loss, model.get_weights()))
    (one, table, weights), (other, other_table, other_weights) = runs

    assert one.batches == other.batches
    assert one.rates == other.rates
    assert np.array_equal(table, other_table)
    assert all(map(np.array_equal, weights, other_weights))


def interrupt(_):
    raise KeyboardInterrupt


@pytest.mark.program
def test_interrupted_fit_goes_on_with_the_same_batch():
    """After Ctrl-C the next fit takes up the batch that was in hand, and every epoch still covers every sample."""
    dataset = R8Dataset(X, Y, scheduler(num_epochs=3))
    model, watch = classifier(), Watch(dataset)
    with pytest.raises(KeyboardInterrupt):
        fit(model, dataset, watch, At(dataset.r8, 20, interrupt), epochs=3)
    in_hand = watch.batches.pop()
    fit(model, dataset, watch, epochs=3, initial_epoch=dataset.r8.current_epoch)

    assert watch.batches[20] == in_hand
    assert [coverage(watch.batches[: 16 * epoch]) for epoch in (1, 2, 3)] == [{1}, {2}, {3}]
    assert dataset.r8.pace.is_finished


def test_plain_fit_after_an_interrupted_one_reports_nothing():
    """A fit without the callback trains as ever, though the model's step was left as it was when Ctrl-C came."""
    dataset = R8Dataset(X, Y, scheduler(num_epochs=3))
    model = classifier()
    with pytest.raises(KeyboardInterrupt):
        fit(model, dataset, At(dataset.r8, 20, interrupt), epochs=3)
    model.fit(X, Y, batch_size=32, verbose=0)

    assert dataset.r8.global_step == 20


@pytest.mark.program
def test_stopping_early_goes_on_too():
    """A callback that stops in mid-epoch loses no batch."""
    dataset = R8Dataset(X, Y, scheduler(num_epochs=2))
    model, watch = classifier(), Watch(dataset)
    fit(model, dataset, watch, At(dataset.r8, 5, lambda model: setattr(model, "stop_training", True)))
    assert dataset.r8.global_step == 6
    fit(model, dataset, watch, epochs=2)

    assert coverage(watch.batches) == {2}


def test_early_stopping_on_a_validation_metric():
    """Keras' own EarlyStopping ends the run, and its metrics reach the listeners through log()."""
    heard = []
    dataset = R8Dataset(X, Y, scheduler(num_epochs=4, batch_size=250, listeners=[heard.append]))
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=0, min_delta=100.0)
    model = classifier(metrics=["accuracy"], run_eagerly=True)
    fit(model, dataset, stopping, epochs=4, validation_data=(X[:64], Y[:64]), validation_batch_size=64)
    logged = [event for event in heard if isinstance(event, events.MetricsLogged)]

    assert [event.at_step for event in logged] == [2, 4]
    assert set(logged[0].metrics) == {"loss", "accuracy", "val_loss", "val_accuracy"}


@pytest.mark.filterwarnings("ignore:the last losses were unusual")
def test_the_last_epoch_is_validated_with_the_weights_that_are_kept():
    """What is wrong with the last weights is found before they are validated, not after it as the run ends."""
    dataset = R8Dataset(X, Y, scheduler(num_epochs=8, initial_lr=0.1))
    model = classifier()

    def shake(model):
        noise = np.random.default_rng(0)
        model.set_weights([each + 0.5 * noise.normal(size=each.shape) for each in model.get_weights()])

    spoil = At(dataset.r8, 8 * 16 - 3, shake)
    logged = fit(model, dataset, spoil, epochs=8, validation_data=(X, Y), validation_batch_size=len(X)).history
    dataset.r8.close()

    assert "the last losses were unusual" in dataset.r8.summary()
    assert logged["val_loss"][-1] == pytest.approx(model.evaluate(X, Y, batch_size=len(X), verbose=0), rel=1e-5)


def test_spent_budget_ends_fit():
    """When the steps are up fit ends, in mid-epoch and with epochs left; another fit says why it cannot go on."""
    dataset = R8Dataset(X, Y, scheduler(num_steps=7, batch_size=100))
    model, watch = classifier(run_eagerly=True), Watch(dataset)
    fit(model, dataset, watch, epochs=9)

    assert len(watch.batches) == 7
    with pytest.raises(RuntimeError, match=r"the budget must not be spent where training goes on, got 7 steps"):
        fit(model, dataset, epochs=9)


@pytest.mark.filterwarnings("ignore:losses or weights were not finite")
def test_nothing_is_traced_again():
    """Three epochs with a short last batch, a rollback, validation and a second fit trace the loss as often as one."""
    traces = []

    def loss(y_true, y_pred):
        # The search for the cause runs the refused batch eagerly.
        traces.extend([1] * (not tf.executing_eagerly()))
        return CROSS_ENTROPY.call(y_true, y_pred)

    dataset = R8Dataset(X, Y, scheduler(num_epochs=4))
    model = classifier(loss=loss)
    fit(model, dataset, epochs=1)
    first = len(traces)
    fit(model, dataset, At(dataset.r8, 30, poison), epochs=4, initial_epoch=1)

    assert dataset.r8.pace.is_finished
    assert len(traces) == first


BAD_DATA = {
    "short x": (lambda r8: R8Dataset(X[:9], Y, r8), ValueError, r"x must have the scheduler's 500 samples, got 9\."),
    "short y": (lambda r8: R8Dataset(X, Y[:9], r8), ValueError, r"y must have the scheduler's 500 samples, got 9\."),
    "in a dict": (lambda r8: R8Dataset({"a": X, "b": X[:9]}, Y, r8), ValueError, r"x\['b'\] must have the .* got 9\."),
    "in a list": (lambda r8: R8Dataset([X, X[:9]], Y, r8), ValueError, r"x\[1\] must have the .* got 9\."),
    "weights": (lambda r8: R8Dataset(X, Y, r8, sample_weight=Y[:9]), ValueError, r"sample_weight must .* got 9\."),
    "no length": (lambda r8: R8Dataset(iter(X), Y, r8), TypeError, r"x must have a length and an index, got <"),
    "no scheduler": (lambda r8: R8Dataset(X, Y, None), TypeError, r"r8 must be an R8Scheduler, got None\."),
    "workers": (lambda r8: R8Dataset(X, Y, r8, workers=0), ValueError, r"workers must be .*, got 0\."),
    "callback": (lambda r8: R8Callback(X), TypeError, r"dataset must be an R8Dataset, or an R8Scheduler .*, got array"),
    "interval": (
        lambda r8: R8Callback(R8Dataset(X, Y, r8), classifier(), backup_every="often"),
        ValueError,
        "backup_every must be",
    ),
    "search": (
        lambda r8: R8Dataset(X, Y, scheduler(auto_find_lr=True, load_callback=print)),
        ValueError,
        r"auto_find_lr must be False if batches are drawn ahead, got True",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(case):
    """What cannot be trained on is refused when it is built."""
    make, error, message = BAD_DATA[case]
    with pytest.raises(error, match=message):
        make(scheduler())


DECAY = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
BAD_MODELS = {
    "schedule": (
        lambda: classifier(optimizer=keras.optimizers.SGD(DECAY)),
        r"learning_rate must be a number in .*Decay",
    ),
    "steps": (
        lambda: classifier(steps_per_execution=4),
        r"steps_per_execution must be 1 with an R8Dataset, got 4:",
    ),
    "not compiled": (lambda: keras.Sequential([keras.Input((64,))]), r"model must be compiled .*; call compile\(\)"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_model(case):
    """A model that cannot be trained by the scheduler is refused, before and in fit."""
    make, message = BAD_MODELS[case]
    dataset = R8Dataset(X, Y, scheduler())
    with pytest.raises(ValueError, match=message):
        R8Callback(dataset, make())
    with pytest.raises(ValueError, match=message if case != "not compiled" else "call `compile"):
        fit(make(), dataset)


@pytest.mark.filterwarnings("ignore:losses or weights were not finite")
def test_model_that_is_not_built():
    """Before fit a model without variables is refused; in fit it is built before its first backup."""
    dataset = R8Dataset(X, Y, scheduler())
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(10)])
    model.compile("sgd", CROSS_ENTROPY)
    with pytest.raises(RuntimeError, match=r"model must be built, got .*; give it an Input\."):
        R8Callback(dataset, model)
    fit(model, dataset, At(dataset.r8, 1, poison))

    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_fit_without_the_callback():
    """Without the callback nothing would be reported: fit is refused before its first step, with others or none."""
    dataset = R8Dataset(X, Y, scheduler())
    for callbacks in (None, [keras.callbacks.LambdaCallback()], [R8Callback(R8Dataset(X, Y, scheduler()))]):
        with pytest.raises(RuntimeError, match=r"callbacks must hold an R8Callback of the R8Dataset in fit\(\), got"):
            classifier().fit(dataset, verbose=0, shuffle=False, callbacks=callbacks)

    assert dataset.r8.global_step == 0


def test_loader_left_behind_draws_nothing():
    """A thread of TensorFlow's that asks for a batch between two epochs gets none."""
    dataset, heard, done = R8Dataset(X, Y, scheduler()), [], threading.Event()

    def ask():
        try:
            dataset[3]
        except IndexError as error:
            heard.append(str(error))
        done.set()

    _thread.start_new_thread(ask, ())
    done.wait(10)

    assert heard == ["index must be of an epoch that has begun, got 3 between two epochs."]
    assert not dataset.drawn.epoch


def test_stop_ends_fit_after_the_step(tmp_path):
    """A run that is asked to stop is saved with the model of after the step in hand, and fit ends there.

    `load_weights` gives the variables as arrays, in the order of the model.
    """
    r8 = scheduler(batch_size=100, checkpoint_dir=tmp_path, checkpoint_every=99)
    dataset = R8Dataset(X, Y, r8)
    model, watch = classifier(run_eagerly=True), Watch(dataset)
    callback = R8Callback(dataset, model)
    fit(model, dataset, At(r8, 6, lambda model: r8.requests.stop()), watch, callback=callback, epochs=4)
    ended = model.get_weights()
    model.set_weights([0 * weight for weight in ended])
    r8.load_checkpoint()

    assert (len(watch.batches), r8.global_step) == (7, 7)
    assert all(map(np.array_equal, load_weights(tmp_path), ended))
    assert all(np.array_equal(one, other) for one, other in zip(model.get_weights(), ended, strict=True))

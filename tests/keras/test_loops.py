"""Loops of the user's own under `tf.function`: batches as tensors, the rate as a variable, no retracing."""

import signal
import sys

import numpy as np
import pytest

pytest.importorskip("keras")
pytest.importorskip("tensorflow")

import keras

from learnit_r8.keras import ModelState, batch_dataset, model_callbacks, sample_losses
from tests.drive import Weighing
from tests.keras_common import BACK_END, CROSS_ENTROPY, X, Y, classifier, poison, scheduler, tf, true_losses


class Loop:
    """A custom loop: a model, its batches, and a compiled step that counts how often it was traced."""

    def __init__(self, r8, model=None, *, is_kept=False):
        if BACK_END != "tensorflow":
            pytest.skip("models of other back ends do not run under tf.function")
        self.model = model or classifier()
        self.optimizer = keras.optimizers.SGD(lambda: self.batches.lr)
        kept = {"model": self.model, "optimizer": self.optimizer} if is_kept else {}
        self.batches = batch_dataset(r8, (X, Y, np.arange(len(X))), **kept)
        self.r8, self.traces, self.seen, self.rates = r8, 0, [], []
        self.optimizer.build(self.model.trainable_variables)
        self.step = tf.function(self._step, input_signature=self.batches.element_spec)

    def _step(self, x, y, indices):
        self.traces += 1
        with tf.GradientTape() as tape:
            losses = sample_losses(CROSS_ENTROPY, y, self.model(x, training=True))
            loss = tf.reduce_mean(losses)
        variables = self.model.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return losses

    def epoch(self, before=lambda step: None):
        for x, y, indices in self.batches:
            before(self.r8.global_step)
            self.seen.append(indices.numpy().tolist())
            self.rates.append(float(self.batches.lr))
            self.batches.report(self.step(x, y, indices))


def test_epochs_cover_every_sample_without_retracing():
    """Three epochs with short last batches: every sample once in each, one trace, exact losses, the rates of a loop."""
    loop, twin = Loop(scheduler(num_epochs=3)), scheduler(num_epochs=3)
    for _ in loop.r8.epoch_iterator():
        loop.epoch()
    rates = []
    for _ in twin.epoch_iterator():
        for _, lr in twin.batch_iterator():
            rates.append(lr)
            twin.update_with_loss(1.0)

    assert [len(batch) for batch in loop.seen[:16]] == [32] * 15 + [20]
    assert set(np.bincount(np.concatenate(loop.seen[32:])).tolist()) == {1}
    assert loop.traces == 1
    assert loop.r8.table.source == "exact"
    assert loop.rates == pytest.approx(rates, rel=1e-6)


def test_rows_are_those_of_the_indices():
    """A batch is the rows of its indices, from tensors, dicts and alone."""
    rows = batch_dataset(scheduler(), {"x": tf.constant(X), "index": np.arange(500)}, prefetch=0)
    for batch in rows:
        rows.report(1.0)
        assert np.array_equal(batch["x"].numpy(), X[batch["index"].numpy()])
    alone = batch_dataset(scheduler(), prefetch=-1)
    first = next(iter(alone))

    assert alone.element_spec == (tf.TensorSpec((None,), tf.int64),)
    assert first.shape == (32,)


def test_optimizer_reads_the_variable():
    """A step moves the weights by the rate of the variable, though the step was traced with another."""
    loop = Loop(scheduler(num_epochs=2, scheduler_mode="constant", warmup_proportion=0.0, initial_lr=1e-12))
    loop.epoch()
    before = loop.model.get_weights()
    loop.r8.host.rates.schedule = lambda progress: 0.1
    loop.epoch()

    assert not np.allclose(before[0], loop.model.get_weights()[0])
    assert loop.traces == 1


@pytest.mark.filterwarnings("ignore:losses or weights were not finite")
def test_batches_of_a_model_keep_it():
    """A model that batch_dataset is given needs no callbacks to be put back; a loop that is left gives signals back."""
    before = signal.getsignal(signal.SIGINT)
    loop = Loop(scheduler(num_epochs=9), is_kept=True)
    for _ in range(2):
        loop.epoch(before=lambda step: poison(loop.model) if step in (9, 25) else None)

    assert loop.r8.sentry.num_refused == 2
    assert all(np.isfinite(weight).all() for weight in loop.model.get_weights())
    assert signal.getsignal(signal.SIGINT) is before
    for _ in loop.batches:
        break
    assert signal.getsignal(signal.SIGINT) is before


def test_break_goes_on_in_the_same_epoch():
    """After a break the rest of the epoch comes, the batch in hand first of all."""
    loop = Loop(scheduler(num_epochs=1))
    for _, _, indices in loop.batches:
        in_hand = indices.numpy().tolist()
        break
    loop.epoch()

    assert loop.seen[0] == in_hand
    assert set(np.bincount(np.concatenate(loop.seen)).tolist()) == {1}
    assert len(loop.batches) == 0


@pytest.mark.filterwarnings("ignore:the batch of step")
def test_batch_not_reported_comes_again():
    """A batch that is not reported is drawn once more at the end of the epoch."""
    loop = Loop(scheduler(num_epochs=1))
    order = []
    for number, (x, y, indices) in enumerate(loop.batches):
        order.append(indices.numpy().tolist())
        if number != 3:
            loop.batches.report(loop.step(x, y, indices))

    assert order[16] == order[3]
    assert loop.r8.pace.is_finished


def test_report_without_a_batch():
    """There must be a batch to report, and each is reported once."""
    batches = batch_dataset(scheduler(), X)
    message = r"report\(\) was called at step 0 with no batch begun; begin one first\."
    with pytest.raises(RuntimeError, match=message):
        batches.report(1.0)
    for _ in batches:
        batches.report(1.0)
        with pytest.raises(RuntimeError, match=r"report\(\) was called at step 1 with"):
            batches.report(1.0)
        break


def test_resumes_exactly(tmp_path):
    """A checkpoint in mid-epoch goes on with the same batches, rates, table and weights, in new objects."""

    def build():
        model = classifier()
        optimizer = keras.optimizers.SGD(0.01)
        return Loop(scheduler(num_epochs=2, checkpoint_dir=tmp_path, **model_callbacks(model, optimizer)), model)

    whole = build()
    whole.epoch()
    whole.epoch()
    first = build()
    for x, y, indices in first.batches:
        first.batches.report(first.step(x, y, indices))
        if first.r8.global_step == 7:
            break
    saved = first.r8.save_checkpoint()
    second = build()
    second.r8.load_checkpoint(saved.path)
    second.epoch()
    second.epoch()

    assert second.seen == whole.seen[7:]
    assert second.rates == whole.rates[7:]
    assert np.array_equal(second.r8.table.loss, whole.r8.table.loss)
    assert all(map(np.array_equal, second.model.get_weights(), whole.model.get_weights()))


def test_losses_are_those_of_the_step():
    """What a compiled step reports equals what its weights give afterwards."""
    loop = Loop(scheduler(num_steps=5))
    weights = []
    loop.epoch(before=lambda step: weights.append(loop.model.get_weights()))

    assert loop.r8.table.last[loop.seen[-1]] == pytest.approx(
        true_losses(loop.model, weights[-1], loop.seen[-1]), rel=1e-4
    )


BAD = {
    "length": (lambda r8: batch_dataset(r8, (X, Y[:9])), ValueError, r"data\[1\] must have .* 500 samples, got 9\."),
    "no length": (lambda r8: batch_dataset(r8, iter(X)), TypeError, r"data must have a length and an index"),
    "prefetch": (lambda r8: batch_dataset(r8, X, prefetch=-2), ValueError, r"prefetch must be .* >= -1, got -2\."),
    "scheduler": (lambda r8: batch_dataset(X), TypeError, r"r8 must be an R8Scheduler, got array"),
    "policy": (
        lambda r8: batch_dataset(scheduler(policy=Weighing()), X),
        ValueError,
        r"policy must not weight samples here, got .*Weighing",
    ),
    "optimizer": (lambda r8: ModelState(keras.Sequential()), ValueError, r"model must be compiled, or an optimizer"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    """What cannot be looped over is refused when it is built."""
    make, error, message = BAD[case]
    with pytest.raises(error, match=message):
        make(scheduler())


def test_without_tensorflow(monkeypatch):
    """Where Keras runs on another back end without TensorFlow, the error names the extra."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r"batch_dataset\(\) needs TensorFlow.*\.\[tensorflow\]"):
        batch_dataset(scheduler(), X)


def test_state_of_another_model(tmp_path):
    """A file of another model is refused before anything is changed."""
    small, model = classifier(), classifier(optimizer=keras.optimizers.SGD(0.1))
    ModelState(small).save({"model": ModelState(small).read()}, tmp_path / "saved")
    state, before = ModelState(model), model.get_weights()
    with pytest.raises(ValueError, match=r"the saved optimizer must have variables of shapes"):
        state.load(tmp_path / "saved")

    assert all(map(np.array_equal, before, model.get_weights()))


def test_state_of_half_precision(tmp_path):
    """Variables that numpy has no type for survive a file."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="bfloat16")])
    state = ModelState(model, keras.optimizers.SGD(0.1))
    state.save({"model": state.read()}, tmp_path / "saved")
    before = next(iter(state.read()["model"].values())).copy()
    model.layers[0].kernel.assign(np.zeros((3, 2)))
    state.load(tmp_path / "saved")

    assert np.array_equal(next(iter(state.read()["model"].values())), before)


def test_stop_ends_the_batches():
    """A run that is asked to stop gives no batch after the step in hand."""
    loop = Loop(scheduler(num_epochs=3))
    loop.epoch()
    loop.epoch(before=lambda step: step == 20 and loop.r8.requests.stop())

    assert (loop.r8.global_step, len(loop.seen), loop.r8.pace.is_stopped) == (21, 21, True)


def test_a_rate_that_is_set_by_hand_comes_back_on_resume(tmp_path):
    """It is that of the step before, and not the one that the optimizer is made with; after damage it stays."""

    def made():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        optimizer = keras.optimizers.SGD(0.5)
        return optimizer, model_callbacks(model, optimizer)

    optimizer, callbacks = made()
    optimizer.learning_rate.assign(0.125)
    callbacks["save_callback"]({"model": callbacks["state_callback"]()}, str(tmp_path / "model"))
    optimizer, callbacks = made()
    held = [each.copy() for each in callbacks["state_callback"]()["model"].values()]
    callbacks["load_callback"](
        {**callbacks["state_callback"](), "model": held, "rate": [np.float32(0.25)]}, from_ram=True
    )

    assert float(optimizer.learning_rate) == 0.5
    callbacks["load_callback"](str(tmp_path / "model"), is_resume=True)
    assert float(optimizer.learning_rate) == 0.125

"""Keras' ``fit`` on any back end: an R8Dataset; and one's own data, a tf.data pipeline, a step of one's own."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from learnit_r8 import R8Scheduler
from learnit_r8.keras import R8Callback, R8Dataset

from . import task

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BACK_END = keras.backend.backend()
if BACK_END == "tensorflow":
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


class OwnStep(keras.Sequential):
    """A model with a step of its own, which does what Keras' does."""

    def train_step(self, *given):
        if BACK_END == "jax":
            return self.jax_step(*given)
        x, y = given[0]
        if BACK_END == "torch":
            self.zero_grad()
            loss = LOSS(y, self(x, training=True))
            loss.backward()
            with keras.src.backend.torch.core.torch.no_grad():
                self.optimizer.apply([each.value.grad for each in self.trainable_variables], self.trainable_variables)
        else:
            with tf.GradientTape() as tape:
                loss = LOSS(y, self(x, training=True))
            found = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(found, self.trainable_variables)
        self.metrics[0].update_state(loss)
        # One more than its metrics, so that Keras shows what the last step has returned.
        return {"loss": self.metrics[0].result(), "same_loss": self.metrics[0].result()}

    def jax_step(self, state, data):
        import jax

        trained, others, held, means = state
        x, y = data

        def loss_of(trained):
            logits, new = self.stateless_call(trained, others, x, training=True)
            return LOSS(y, logits), new

        (loss, others), found = jax.value_and_grad(loss_of, has_aux=True)(trained)
        trained, held = self.optimizer.stateless_apply(held, found, trained)
        # Each metric has its part of the variables, as in Keras' guide.
        size = len(self.metrics[0].variables)
        mean = self.metrics[0].stateless_update_state(means[:size], loss)
        logs = dict.fromkeys(("loss", "same_loss"), self.metrics[0].stateless_result(mean))
        return logs, (trained, others, held, [*mean, *means[size:]])


def build(run, kind=keras.Sequential):
    """The small network, compiled, with the first weights of the task."""
    keras.utils.set_random_seed(0)
    hidden = "tanh" if run.case.activation == "tanh" else lambda x: keras.ops.where(x > 0, x, 0.0)
    model = kind([keras.Input((8,)), keras.layers.Dense(16, activation=hidden), keras.layers.Dense(3)])
    model.set_weights(list(task.first_weights().values()))
    # To compile the graph with XLA takes longer than the run.
    more = {"jit_compile": False} if BACK_END == "tensorflow" else {}
    model.compile(keras.optimizers.SGD(task.RATE, momentum=task.MOMENTUM), LOSS, **more)
    return model


def read_weights(model):
    if BACK_END == "jax" and getattr(model, "_jax_state", None):
        model.jax_state_sync()
    return dict(zip(task.SHAPES, (np.array(each) for each in model.get_weights()), strict=True))


class Hurt(keras.callbacks.Callback):
    """User code before each epoch and step."""

    def __init__(self, run, data):
        super().__init__()
        self.run, self.data = run, data

    def on_epoch_begin(self, epoch, logs=None):
        self.data.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        factor, run = self.run.begin_turn(), self.run
        if run.rate is not None:
            self.model.optimizer.learning_rate = run.rate
        if factor is not None:
            weights = read_weights(self.model)
            self.model.set_weights([run.hurt(name, each, factor) for name, each in weights.items()])


class Notes(keras.callbacks.Callback):
    """User code behind an epoch."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def on_epoch_end(self, epoch, logs=None):
        self.run.end_epoch(read_weights(self.model), **logs)


class Rows(keras.utils.PyDataset):
    """The batches of one's own."""

    def __init__(self, run, epoch=0):
        super().__init__()
        self.run, self.epoch = run, epoch

    def __len__(self):
        return task.STEPS

    def __getitem__(self, index):
        # Keras looks at the first batch before it trains.
        return self.run.fetch(np.asarray(self.run.epoch_of_rows(self.epoch)[index]), self.epoch * task.STEPS + index)


class DrawnRows(R8Dataset):
    """The batches that R8 draws by their numbers."""

    def __init__(self, run, r8):
        super().__init__(np.arange(task.NUM_SAMPLES), None, r8)
        self.run, self.epoch = run, r8.current_epoch

    def __getitem__(self, index):
        (rows,) = super().__getitem__(index)
        return self.run.fetch(np.asarray(rows), self.epoch * task.STEPS + index)


class Keras:
    """An R8Dataset."""

    own, kind = False, keras.Sequential

    def train(self, run):
        given = {"batch_size": task.BATCH, "initial_lr": task.RATE, **task.CONSTANT, **run.settings, **run.files}
        run.r8 = r8 = R8Scheduler(task.NUM_SAMPLES, num_epochs=run.case.epochs, **given)
        dataset = DrawnRows(run, r8)
        model = build(run)
        callback = R8Callback(dataset, model)
        with r8:
            self.fit(run, model, dataset, callback, r8.current_epoch)
        self.write_down(run, model)

    def plain(self, run):
        model = build(run, self.kind)
        self.fit(run, model, self.data(run, 0))
        self.write_down(run, model)

    def fit(self, run, model, data, callback=None, initial_epoch=0):
        best = f"{run.case.folder or tempfile.mkdtemp()}/best.weights.h5"
        keeper = keras.callbacks.ModelCheckpoint(best, "val_loss", save_best_only=True, save_weights_only=True)
        others = [Hurt(run, data), Notes(run), keeper]
        callbacks = others if callback is None else [*others, callback] if run.case.r8_last else [callback, *others]
        model.fit(
            data, epochs=run.case.epochs, initial_epoch=initial_epoch, verbose=0, shuffle=False, callbacks=callbacks,
            validation_data=(task.VAL_X, task.VAL_Y), validation_batch_size=128,
        )  # fmt: skip
        run.best = best if os.path.exists(best) else None

    def data(self, run, epoch):
        return Rows(run, epoch)

    def write_down(self, run, model):
        run.weights = read_weights(model)
        run.optimizer = [keras.ops.convert_to_numpy(each).copy() for each in model.optimizer.variables]
        run.generators = np.random.get_state()[1].copy()
        if run.best is not None:
            model.load_weights(run.best)
            run.best = read_weights(model)


class KerasOwn(Keras):
    """A PyDataset of one's own."""

    own = True

    def train(self, run):
        run.r8 = r8 = R8Scheduler(scheduler_mode="keep", **run.settings, **run.files)
        model = build(run, self.kind)
        callback = R8Callback(r8, model)
        with r8:
            self.fit(run, model, self.data(run, r8.current_epoch), callback, r8.current_epoch)
        self.write_down(run, model)


class KerasTfData(KerasOwn):
    """A pipeline of tf.data."""

    def data(self, run, epoch):
        import tensorflow as tf

        begun = [epoch]

        def batches():
            at = begun[-1]
            for index, rows in enumerate(run.epoch_of_rows(at)):
                if index == task.STEPS - 1:
                    # Other back ends look at the first batches before they train.
                    begun.append(at + 1)
                yield run.fetch(rows, at * task.STEPS + index)

        spec = tf.TensorSpec((task.BATCH, 8), tf.float32), tf.TensorSpec((task.BATCH,), tf.int64)
        return tf.data.Dataset.from_generator(batches, output_signature=spec).apply(
            tf.data.experimental.assert_cardinality(task.STEPS)
        ).prefetch(2)  # fmt: skip


class KerasStep(KerasOwn):
    """A ``train_step`` of one's own."""

    kind = OwnStep


COLUMNS = {"keras": Keras, "keras own": KerasOwn, "keras tf.data": KerasTfData, "keras step": KerasStep}

"""Variables of TensorFlow's own that a model keeps beside those of Keras: undone, restored and resumed with them."""

import numpy as np
import pytest

pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

import keras

from learnit_r8 import R8Scheduler
from learnit_r8.keras import R8Callback
from learnit_r8.keras.state import own_variables

from ..keras_common import At, on_tensorflow

pytestmark = [on_tensorflow, pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("keras")]
EPOCHS, STEPS, BATCH = 3, 8, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(EPOCHS * STEPS, BATCH, 5)).astype("f4")
Y = X.sum(2, keepdims=True)


class Noise(keras.layers.Layer):
    """Draws from a generator of TensorFlow's."""

    def __init__(self):
        super().__init__(name="noise")
        self.generator = tf.random.Generator.from_seed(3)

    def call(self, x, training=False):
        return x + 0.05 * self.generator.normal(tf.shape(x)) if training else x


class Counting(keras.optimizers.Adam):
    """Counts its steps in a variable of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_applied = tf.Variable(0)

    def apply(self, *args, **kwargs):
        self.num_applied.assign_add(1)
        return super().apply(*args, **kwargs)


class Accumulating(keras.Model):
    """Adds gradients up in variables of its own, and applies them after each third batch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.count = tf.Variable(0)
        self.sums = [tf.Variable(tf.zeros_like(each)) for each in self.trainable_variables]
        # Of a user's own early stopping, say: not finite, and no damage.
        self.best = {"loss": tf.Variable(np.inf)}

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        for total, gradient in zip(self.sums, tape.gradient(loss, self.trainable_variables), strict=True):
            total.assign_add(gradient)
        self.count.assign_add(1)

        def apply():
            self.optimizer.apply_gradients(
                [
                    (tf.convert_to_tensor(each), variable)
                    for each, variable in zip(self.sums, self.trainable_variables, strict=True)
                ]
            )
            for total in self.sums:
                total.assign(tf.zeros_like(total))

        tf.cond(tf.equal(self.count % 3, 0), apply, lambda: None)
        return self.compute_metrics(x, y, None) | {"loss": loss}


def build():
    keras.utils.set_random_seed(0)
    given = keras.Input((5,))
    model = Accumulating(given, keras.layers.Dense(1)(Noise()(given)))
    model.compile(Counting(0.02), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def train(model, r8, *callbacks, left_out=(), bad=()):
    """Fit it over batches of one's own."""

    def batches(epoch):
        for number in range(epoch * STEPS, (epoch + 1) * STEPS):
            if number not in left_out:
                yield X[number] * np.float32(np.nan if number in bad else 1), Y[number]

    kinds = tf.TensorSpec((BATCH, 5)), tf.TensorSpec((BATCH, 1))
    around = [] if r8 is None else [R8Callback(r8, model)]
    for epoch in range(0 if r8 is None else r8.current_epoch, EPOCHS):
        data = tf.data.Dataset.from_generator(lambda epoch=epoch: batches(epoch), output_signature=kinds)
        model.fit(data, initial_epoch=epoch, epochs=epoch + 1, verbose=0, callbacks=[*around, *callbacks])
    return [np.array(each) for each in (*model.variables, *model.optimizer.variables)] + own_of(model)


def own_of(model):
    layers = (each for each in model.layers if isinstance(each, Noise))
    own = model.count, *model.sums, model.best["loss"], next(layers).generator.state, model.optimizer.num_applied
    return [np.array(each) for each in own]


def scheduler(**given):
    return R8Scheduler(scheduler_mode="keep", num_epochs=EPOCHS, handle_signals=False, **given)


@pytest.fixture(scope="module")
def plain():
    """All arrays at the end of the fit without R8."""
    return train(build(), None)


def test_all_of_them_are_found_once():
    model = build()
    names = [each.path.split(".")[1] for each in own_variables(model, model.optimizer)]
    assert names == ["best", "count", "sums", "sums", "generator", "num_applied"]


def test_nothing_is_changed_while_nothing_goes_wrong(plain):
    r8 = scheduler()
    ours = train(build(), r8)
    r8.close()
    assert not r8.sentry.num_refused
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_refused_step_leaves_them_as_they_were():
    r8 = scheduler()
    ours = train(build(), r8, bad=[10])
    r8.close()
    assert r8.sentry.num_refused == 1
    # What is meant to be infinite is not where it began.
    assert "best" not in r8.summary()
    # The generator, too: the batch was never trained on.
    for one, other in zip(ours, train(build(), None, left_out=[10]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_meant_to_be_infinite_has_no_last_batch_refused():
    """The weights are looked at in the last step of an epoch, before it is known what is meant so."""
    r8 = scheduler()
    build().fit(X.reshape(-1, 5), Y.reshape(-1, 1), batch_size=BATCH, verbose=0, callbacks=[R8Callback(r8)])
    r8.close()

    assert (r8.global_step, r8.sentry.num_refused) == (EPOCHS * STEPS, 0)


class Left(Exception):
    pass


def test_resume_is_exact(plain, tmp_path):
    """Left in the second epoch, two batches after gradients were applied."""

    def leave(model):
        raise Left

    settings = {"checkpoint_dir": tmp_path, "checkpoint_every": 2, "resume": "auto"}
    r8, model = scheduler(**settings), build()
    with pytest.raises(Left):
        train(model, r8, At(r8, 14, leave))
    r8.host.saver.store.release()
    r8 = scheduler(**settings)
    resumed = train(build(), r8)
    r8.close()
    for one, other in zip(resumed, plain, strict=True):
        np.testing.assert_array_equal(one, other)

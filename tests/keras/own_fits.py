"""``fit`` over data of one's own with R8Callback beside it, for any back end: equal to the bit, and one NaN healed.

KERAS_BACKEND=jax python -m tests.keras.own_fits     runs all that the back end has, a line each
"""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import sys
import warnings

import keras
import numpy as np

from learnit_r8 import R8Scheduler
from learnit_r8.keras import R8Callback

BACK_END = keras.backend.backend()
if BACK_END == "tensorflow":
    import tensorflow as tf

    # With more of them it adds in another order each time.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
EPOCHS, BATCHES, HURT = 4, 20, 33
rng = np.random.default_rng(0)
X = rng.normal(size=(640, 8)).astype("f4")
Y = (X[:, 0] > 0).astype("i4")
WEIGHTS = np.linspace(0.5, 1.5, len(X)).astype("f4")
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def classifier(rate=0.01, **options):
    layers = [keras.Input((8,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dropout(0.2)]
    model = keras.Sequential([*layers, keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(rate), LOSS, metrics=["accuracy"], **options)
    return model


def several():
    """Two inputs, two outputs with weights."""
    one, two = keras.Input((8,), name="one"), keras.Input((8,), name="two")
    joined = keras.layers.Dense(16, activation="tanh")(keras.layers.Concatenate()([one, two]))
    outputs = {"a": keras.layers.Dense(2, name="a")(joined), "b": keras.layers.Dense(1, name="b")(joined)}
    model = keras.Model([one, two], outputs)
    model.compile(keras.optimizers.Adam(0.01), {"a": LOSS, "b": "mse"}, loss_weights={"a": 1.0, "b": 0.5})
    return model


class OwnLoss(keras.Model):
    """A class with a loss of its own, built by its first batch, and closed to new variables from then on."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(2)

    def call(self, x):
        return self.head(self.hidden(x))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return LOSS(y, y_pred) + 0.01 * keras.ops.mean(keras.ops.square(self.hidden(x)))


def own_loss():
    model = OwnLoss()
    model.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"])
    return model


class OwnStep(keras.Model):
    """A model with a step of its own, on any back end: each of its losses has networks of its own to train.

    Args:
        tracks: Whether it names means of its losses as its metrics; else it returns the losses.
    """

    def __init__(self, *, tracks=True):
        super().__init__()
        self.random = keras.random.SeedGenerator(1)
        self.own = [keras.metrics.Mean(name=name) for name in self.names] if tracks else None

    @property
    def metrics(self):
        return super().metrics if self.own is None else self.own

    def gradients(self, x):
        """The losses by name, and the gradient of each trainable variable, taken by the back end."""
        nets = [net.trainable_variables for net in self.nets()]
        if BACK_END == "torch":
            import torch

            losses = self.losses_of(x)
            parts = zip(list(losses.values())[: len(nets)], nets, strict=True)
            return losses, [
                each
                for loss, variables in parts
                for each in torch.autograd.grad(loss, [each.value for each in variables], retain_graph=True)
            ]
        import tensorflow as tf

        with tf.GradientTape(persistent=True) as tape:
            losses = self.losses_of(x)
        parts = zip(list(losses.values())[: len(nets)], nets, strict=True)
        return losses, [each for loss, variables in parts for each in tape.gradient(loss, variables)]

    def train_step(self, *given):
        if BACK_END == "jax":
            return self.stateless_step(*given)
        losses, gradients = self.gradients(keras.utils.unpack_x_y_sample_weight(given[0])[0])
        variables = [each for net in self.nets() for each in net.trainable_variables]
        if BACK_END == "torch":
            import torch

            with torch.no_grad():
                self.descend(gradients, variables)
        else:
            self.descend(gradients, variables)
        for metric in self.own or ():
            metric.update_state(losses[metric.name])
        return {each.name: each.result() for each in self.own or ()} or losses

    def descend(self, gradients, variables):
        self.optimizer.apply(gradients, variables)

    def stateless_step(self, state, data):
        import jax

        trained, others, held, means = state
        x, nets = (
            keras.utils.unpack_x_y_sample_weight(data)[0],
            [{id(each) for each in net.trainable_variables} for net in self.nets()],
        )

        def of(trained, which):
            pairs = [*zip(self.trainable_variables, trained, strict=True)]
            pairs += zip(self.non_trainable_variables, others, strict=True)
            with keras.StatelessScope(state_mapping=pairs) as scope:
                losses = self.losses_of(x)
            new = [scope.get_current_value(each) for each in self.non_trainable_variables]
            new = [old if each is None else each for each, old in zip(new, others, strict=True)]
            return list(losses.values())[which], (losses, new)

        found = [jax.grad(of, has_aux=True)(trained, which) for which in range(len(nets))]
        losses, new = found[0][1]
        gradients = [
            next(each[0][place] for each, net in zip(found, nets, strict=True) if id(variable) in net)
            for place, variable in enumerate(self.trainable_variables)
        ]
        trained, held = self.optimizer.stateless_apply(held, gradients, trained)
        if self.own is None:
            return losses, (trained, new, held, means)
        kept, logs = [], {}
        for metric in self.own:
            mine = means[len(kept) : len(kept) + len(metric.variables)]
            mine = metric.stateless_update_state(mine, losses[metric.name])
            logs[metric.name] = metric.stateless_result(mine)
            kept += mine
        return logs, (trained, new, held, kept)


class Gan(OwnStep):
    """Two networks against each other, under one optimizer."""

    names = "d_loss", "g_loss"

    def __init__(self, **options):
        super().__init__(**options)
        layers = [keras.Input((8,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)]
        self.judge = keras.Sequential(layers)
        self.maker = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
        self.loss_of = keras.losses.BinaryCrossentropy(from_logits=True)

    def nets(self):
        return [self.judge, self.maker]

    def losses_of(self, x):
        ones = keras.ops.ones((keras.ops.shape(x)[0], 1))
        made = self.maker(keras.random.normal((keras.ops.shape(x)[0], 4), seed=self.random))
        d_loss = self.loss_of(ones, self.judge(x)) + self.loss_of(0 * ones, self.judge(made))
        return {"d_loss": d_loss, "g_loss": self.loss_of(ones, self.judge(made))}


class TwoOptimizers(Gan):
    """The same with an optimizer for each network, which JAX does not carry."""

    def compile(self):
        super().compile()
        self.optimizers = [keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3)]
        self.d_optimizer, self.g_optimizer = self.optimizers

    def descend(self, gradients, variables):
        count = len(self.judge.trainable_variables)
        self.d_optimizer.apply(gradients[:count], variables[:count])
        self.g_optimizer.apply(gradients[count:], variables[count:])


def own_step(kind, **options):
    model = kind(**options)
    # It is never called as a whole.
    model.built = True
    if kind is TwoOptimizers:
        model.compile()
    else:
        model.compile(keras.optimizers.Adam(1e-3))
    return model


def batches_of(x, y):
    """A pipeline of TensorFlow's with an augmentation, on every back end."""
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=3)
    return data.map(lambda x, y: (x * 1.0, y)).batch(32).prefetch(2)


def schedule():
    return keras.optimizers.schedules.ExponentialDecay(0.01, 20, 0.9)


RATES = {"a number": lambda: 0.01, "a schedule": schedule}
FITS = {
    "tf.data, schedule": (lambda: classifier(schedule()), lambda: {"x": batches_of(X, Y)}),
    "four at once": (
        lambda: classifier(steps_per_execution=4), lambda: {"x": X, "y": Y, "batch_size": 32},
    ),
    "a loss of one's own, not built": (own_loss, lambda: {"x": X, "y": Y, "batch_size": 32}),
    "several, sample weights": (
        several,
        lambda: {
            "x": [X, X], "y": {"a": Y, "b": X[:, :1]}, "batch_size": 32, "sample_weight": {"a": WEIGHTS, "b": WEIGHTS},
        },
    ),
}  # fmt: skip
STEPS = {
    "GAN": lambda: own_step(Gan),
    "GAN that returns its losses": lambda: own_step(Gan, tracks=False),
    "GAN with two optimizers": lambda: own_step(TwoOptimizers),
}
"""Models with a step of their own."""
if BACK_END == "jax":
    # Its trainer carries the variables of one.
    del STEPS["GAN with two optimizers"]
FITS |= {name: (make, lambda: {"x": batches_of(X, Y)}) for name, make in STEPS.items()}
QUICK = ("tf.data, schedule", "four at once", "a loss of one's own, not built")
if BACK_END == "torch":
    # It takes one step at a time.
    del FITS["four at once"]


class Hurt(keras.callbacks.Callback):
    """Writes a NaN into the first weight before a step."""

    def __init__(self, at):
        super().__init__()
        self._at, self._num_begun = at, 0

    def on_train_batch_begin(self, batch, logs=None):
        before, self._num_begun = self._num_begun, self._num_begun + self.model.steps_per_execution
        if before < self._at <= self._num_begun:
            if BACK_END == "jax":
                self.model.jax_state_sync()
            weight = self.model.trainable_variables[0]
            value = keras.ops.convert_to_numpy(weight).copy()
            value[0, 0] = np.nan
            weight.assign(value)


class Fit:
    """A training, and what came of it.

    Args:
        make: Returns the compiled model.
        data: Returns the arguments of ``fit``.
        with_r8: Whether R8Callback is there.
        hurt: Step at which a weight becomes NaN.
    """

    def __init__(self, make, data, *, with_r8=True, hurt=None, epochs=EPOCHS, guard="spike", **settings):
        keras.utils.set_random_seed(0)
        self.model, self.reported, callbacks = make(), [], []
        if with_r8:
            self.r8 = R8Scheduler(scheduler_mode="keep", guard=guard, listeners=[self._hear], **settings)
            callbacks.append(R8Callback(self.r8, backup_every=20))
        if hurt:
            callbacks.append(Hurt(hurt))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.history = self.model.fit(epochs=epochs, verbose=0, callbacks=callbacks, **data()).history

    def _hear(self, event):
        if type(event).__name__ == "StepDone":
            self.reported.append(event.loss)

    @property
    def arrays(self):
        """All that was trained."""
        optimizers = [each for each in vars(self.model).values() if isinstance(each, keras.optimizers.Optimizer)]
        variables = [*self.model.variables, *(each for one in optimizers for each in one.variables)]
        own = [each for each in variables if "r8" not in each.path]
        return [np.array(keras.ops.convert_to_numpy(each)) for each in own]

    @property
    def is_finite(self):
        return all(np.isfinite(each).all() for each in self.arrays)


def outcome(name):
    """ "equal, healed", or what is not."""
    make, data = FITS[name]
    # The losses of two networks against each other go up as well.
    settings = {"guard": "finite" if name in STEPS else "spike"}
    plain, watched = Fit(make, data, with_r8=False), Fit(make, data, **settings)
    if not all(map(np.array_equal, plain.arrays, watched.arrays)):
        return "not equal"
    if plain.history.keys() != watched.history.keys():
        return f"a history of {sorted(watched.history)}"
    # TensorFlow may sum the means that it shows in another order, where something else reads what goes into them.
    if not all(np.allclose(plain.history[each], watched.history[each], rtol=1e-6) for each in plain.history):
        return "another history"
    if watched.r8.global_step != EPOCHS * BATCHES or watched.r8.current_epoch != EPOCHS - 1:
        return f"{watched.r8.global_step} steps, epoch {watched.r8.current_epoch}"
    if watched.r8.sentry.num_refused:
        return f"{watched.r8.sentry.num_refused} refused"
    shown = np.sum(
        [each for key, each in plain.history.items() if key == "loss" or "loss" not in plain.history], axis=0
    )
    reports = watched.reported
    reported = reports[BATCHES - 1] if "returns" in name else np.mean(reports[:BATCHES])
    if abs(reported - shown[0]) > 1e-3 * shown[0]:
        return f"reported {reported}, not {shown[0]}"
    hurt = Fit(make, data, hurt=HURT, **settings)
    if not hurt.is_finite or hurt.r8.global_step != EPOCHS * BATCHES:
        return f"not healed: {hurt.r8.global_step} steps"
    first, last, healed = (np.mean(each) for each in (reports[:8], reports[-8:], hurt.reported[-8:]))
    if "GAN" not in name and healed > last + 0.25 * (first - last):
        return f"{healed}, not {last}"
    return "equal, healed"


def share_of_step(rate, factor):
    """How far the second step of a fit goes where recovery has put a factor on the rate, as a share of without it."""

    class Lower(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 1:
                callback._rates.factor = factor

    ends = []
    for num_steps, more in ((1, []), (2, []), (2, [Lower()])):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(rate()), "mse")
        # A backup would bring the values that JAX carries back to the variables.
        callback = R8Callback(R8Scheduler(scheduler_mode="keep"), backup_every=1000)
        x = np.tile(X, (num_steps, 1))
        model.fit(x, x[:, 0], batch_size=len(X), shuffle=False, verbose=0, callbacks=[callback, *more])
        ends.append(model.get_weights()[0])
    first, plain, lowered = ends
    return float(np.linalg.norm(lowered - first) / np.linalg.norm(plain - first))


if __name__ == "__main__":
    if BACK_END == "jax" and "--devices" in sys.argv:
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    found = {name: outcome(name) for name in FITS}
    for name, rate in RATES.items():
        share = share_of_step(rate, 0.25)
        found[f"a quarter of {name}"] = "equal, healed" if abs(share - 0.25) < 1e-4 else f"{share} of it"
    print(*(f"{name}: {said}" for name, said in found.items()), sep="\n")
    sys.exit(any(said != "equal, healed" for said in found.values()))

"""Row 10 for Keras: what a ``fit`` may have besides batches and a rate, healthy, healed and resumed."""

import pytest

pytest.importorskip("keras")

import keras
import numpy as np

from learnit_r8 import R8Scheduler
from learnit_r8.keras import R8Callback, R8Dataset

from . import task
from .columns_keras import BACK_END, LOSS
from .ways import Left, check_healed, check_healthy, check_resumed

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("keras")]
SHORT = 250
"""Samples of which the last batch of an epoch has 10."""
WEIGHTS = np.linspace(0.5, 1.5, task.NUM_SAMPLES).astype("f4")

WAYS = {
    "sample weights": {},
    "class weights": {"class_weight": {0: 1.0, 1: 2.0, 2: 0.5}},
    "accumulation": {"optimizer": {"gradient_accumulation_steps": 4}},
    "clipping": {"optimizer": {"global_clipnorm": 0.5}},
    "averaged weights": {"optimizer": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 24}},
    "bfloat16": {"policy": "mixed_bfloat16"},
    "float16, scaled losses": {"policy": "mixed_float16"},
    "evaluation in mid-epoch": {},
    "a short last batch": {"num_samples": SHORT},
    "normalization": {},
}
"""By name: what is given to ``fit``, to the optimizer, and else."""
KINDS = "own", "drawn"


class Rows(keras.utils.PyDataset):
    """Batches of one's own."""

    def __init__(self, count, weights):
        super().__init__()
        self.count, self.weights, self.epoch = count, weights, 0

    def __len__(self):
        return -(-self.count // task.BATCH)

    def __getitem__(self, index):
        rows = np.random.default_rng(self.epoch).permutation(self.count)[index * task.BATCH :][: task.BATCH]
        columns = task.X[rows], task.Y[rows]
        return columns if self.weights is None else (*columns, self.weights[rows])


class Script(keras.callbacks.Callback):
    """User code around the steps: counts epochs, evaluates in the middle of one, ruins a weight, or leaves."""

    def __init__(self, data, *, evaluates, hurt_at, leave_at):
        super().__init__()
        self.data, self.evaluates, self.hurt_at, self.leave_at, self.num_begun = data, evaluates, hurt_at, leave_at, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.data.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.num_begun == self.leave_at:
            raise Left
        if self.num_begun == self.hurt_at:
            if BACK_END == "jax":
                self.model.jax_state_sync()
            kernel = self.model.layers[0].kernel
            kernel.assign(np.full(kernel.shape, np.nan))
        self.num_begun += 1

    def on_train_batch_end(self, batch, logs=None):
        if self.evaluates and batch == 7:
            self.model.evaluate(task.VAL_X, task.VAL_Y, batch_size=128, verbose=0)


def train(way, kind, folder=None, *, hurt_at=None, leave_at=None):
    """All arrays at the end, the error, the scheduler, and the logged losses; without R8 for the kind "plain"."""
    given, keras_before = WAYS[way], keras.config.dtype_policy()
    count, weights = given.get("num_samples", task.NUM_SAMPLES), WEIGHTS if way == "sample weights" else None
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(given.get("policy", "float32"))
    try:
        layers = [keras.Input((8,)), keras.layers.Dense(16, "tanh")]
        layers += [keras.layers.BatchNormalization()] * (way == "normalization")
        model = keras.Sequential([*layers, keras.layers.Dense(3, dtype="float32")])
        optimizer = keras.optimizers.SGD(task.RATE, momentum=task.MOMENTUM, **given.get("optimizer", {}))
        more = {"jit_compile": False} if BACK_END == "tensorflow" else {}
        model.compile(optimizer, LOSS, weighted_metrics=[] if weights is not None else None, **more)
    finally:
        keras.config.set_dtype_policy(keras_before)
    files = {} if folder is None else {"checkpoint_dir": folder, "checkpoint_every": 3, "resume": "auto"}
    data, r8, callbacks, fit = Rows(count, weights), None, [], {}
    if kind == "own":
        r8 = R8Scheduler(scheduler_mode="keep", handle_signals=False, **files)
        callbacks = [R8Callback(r8, model)]
    elif kind == "drawn":
        r8 = R8Scheduler(
            count, batch_size=task.BATCH, num_epochs=task.EPOCHS, initial_lr=task.RATE, handle_signals=False,
            **task.CONSTANT, **files,
        )  # fmt: skip
        data = R8Dataset(task.X[:count], task.Y[:count], r8, sample_weight=weights)
        callbacks = [R8Callback(data, model)]
    script = Script(data, evaluates=way == "evaluation in mid-epoch", hurt_at=hurt_at, leave_at=leave_at)
    if r8 is not None:
        fit["initial_epoch"] = r8.current_epoch
    if "class_weight" in given:
        fit["class_weight"] = given["class_weight"]
    try:
        history = model.fit(
            data, epochs=task.EPOCHS, verbose=0, shuffle=False, callbacks=[*callbacks, script], **fit
        ).history
    except Left:
        r8.host.saver.store.release()
        raise
    if r8 is not None:
        r8.close()
    variables = [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]
    arrays = [np.array(keras.ops.convert_to_numpy(each)) for each in variables if "r8_" not in each.path]
    error = model.evaluate(task.X, task.Y, batch_size=task.NUM_SAMPLES, verbose=0)
    return arrays, error, r8, history["loss"]


@pytest.mark.parametrize("way", WAYS)
def test_healthy(way):
    """Weights, optimizer and logged losses are to the bit those without R8."""
    plain, watched = check_healthy(train, way, "own")

    assert plain[3] == watched[3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_healed(way, kind):
    """A weight that becomes NaN in mid-run is put back, and the run ends as well as the one without it."""
    whole, hurt = check_healed(train, way, kind)

    assert hurt[2].global_step == whole[2].global_step


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_resumed(way, kind, tmp_path):
    """Left in mid-epoch and run again, it ends with the same bits, after the same number of steps."""
    check_resumed(train, way, kind, tmp_path)

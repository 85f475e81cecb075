"""Several devices under ``fit``: losses of the right samples, mirrored variables that heal, other devices on resume."""

import socket

import numpy as np
import pytest

pytest.importorskip("keras")
pytest.importorskip("tensorflow")

import keras

from learnit_r8.keras import R8Callback, R8Dataset
from tests.keras_common import At, Watch, X, Y, classifier, fit, on_tensorflow, poison, scheduler, tf, true_losses
from tests.programs import ROOT, printed_by, started

pytestmark = [on_tensorflow, pytest.mark.program, pytest.mark.filterwarnings("ignore")]


def mirrored(count=2, **arguments):
    """The classifier on so many devices."""
    devices = [f"CPU:{number}" for number in range(count)]
    # The default's collective operations take only one number of devices a process.
    strategy = tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        return classifier(**arguments)


FORMS = {
    "arrays": lambda r8: R8Dataset(X, Y, r8),
    "Python": lambda r8: R8Dataset(X, Y, r8, workers=2),
    "pipeline": lambda r8: R8Dataset.from_tensor_slices((X, Y), r8).map(lambda x, y: (x, y)).batch().prefetch(2),
}
OTHERS = ("Python", "pipeline")


@pytest.mark.parametrize(
    "form", ["arrays", *(pytest.param(form, marks=pytest.mark.program) for form in list(FORMS)[1:])]
)
def test_losses_on_two_replicas_are_those_of_the_samples(form):
    """The table holds the loss of each sample, whichever replica had it, also in the short last batch."""
    model, r8 = mirrored(), scheduler(num_epochs=1, policy="shuffle")
    dataset = FORMS[form](r8)
    watch = Watch(dataset)
    fit(model, dataset, watch)

    for weights, batch in zip(watch.weights, watch.batches, strict=True):
        assert r8.table.loss[batch] == pytest.approx(true_losses(model, weights, batch), rel=1e-3, abs=1e-5)


@pytest.mark.program
def test_a_nan_heals_and_predictions_come_along():
    """Mirrored weights and optimizer go back; labels are judged as on one device."""
    model, r8 = mirrored(), scheduler(num_epochs=3, policy="shuffle")
    dataset = R8Dataset(X, Y, r8)
    fit(model, dataset, At(r8, 20, poison), callback=R8Callback(dataset, backup_every=5), epochs=3)

    assert r8.global_step == 48
    assert r8.sentry.num_refused
    assert all(np.isfinite(each).all() for each in model.get_weights())
    assert r8.table.suspects() is not None


@pytest.mark.program
@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 1)])
def test_resumes_on_another_number_of_devices(before, after, tmp_path):
    """The batches and rates are those of a run without the interruption, the weights up to rounding; it is said."""
    said = []

    def run(count, folder, stop_at=None):
        model = mirrored(count) if count > 1 else classifier()
        r8 = scheduler(
            num_epochs=2, checkpoint_dir=folder, resume="auto", policy="shuffle",
            listeners=[lambda event: said.append(getattr(event, "text", ""))],
        )  # fmt: skip
        dataset = R8Dataset(X, Y, r8)
        callback, watch = R8Callback(dataset, model), Watch(dataset)
        stop = [] if stop_at is None else [At(r8, stop_at, lambda model: r8.requests.stop())]
        fit(model, dataset, watch, *stop, callback=callback, epochs=2, initial_epoch=r8.current_epoch)
        r8.close()
        return model.get_weights(), watch.batches, watch.rates

    weights, batches, rates = run(before, tmp_path / "whole")
    assert not any("devices" in text for text in said)
    run(before, tmp_path / "parts", stop_at=20)
    resumed = run(after, tmp_path / "parts")

    assert resumed[1:] == (batches[-11:], rates[-11:])
    for one, other in zip(weights, resumed[0], strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    assert any(f"the saved run was on {before} devices, and goes on on {after}" in text for text in said)


def test_a_loss_of_the_whole_batch_is_the_mean_of_the_replicas():
    """Where the model has one number for the batch, the report is that of the whole batch."""

    def one_number(y_true, y_pred):
        losses = keras.losses.sparse_categorical_crossentropy(y_true, y_pred, from_logits=True)
        return tf.reduce_mean(losses)

    means = []
    for model in (classifier(loss=one_number), mirrored(loss=one_number)):
        r8 = scheduler(num_steps=1, policy="shuffle", listeners=[lambda e: means.append(getattr(e, "loss", None))])
        fit(model, R8Dataset(X, Y, r8))
    one, other = [each for each in means if isinstance(each, float)]

    assert one == pytest.approx(other, rel=1e-5)


def test_devices_that_do_not_fit():
    """A strategy that is entered after the model was made, and a batch smaller than its replicas."""
    model = classifier()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    late = pytest.raises(ValueError, match="on one device under MirroredStrategy of 2 devices; enter it before")
    with strategy.scope(), late:
        fit(model, R8Dataset(X, Y, scheduler()))
    r8 = scheduler(batch_size=249)

    with pytest.raises(ValueError, match="each of the strategy's 3 replicas a sample, got a batch of 2; give R8Sched"):
        fit(mirrored(3), R8Dataset(X, Y, r8))


ON_JAX = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import keras, numpy as np
from learnit_r8 import R8Scheduler
from learnit_r8.keras import R8Callback, R8Dataset
from tests.keras_common import At, X, Y, classifier, fit, poison, scheduler

def run(count):
    model, r8 = classifier(), scheduler(num_epochs=3, policy="shuffle")
    dataset = R8Dataset(X, Y, r8)
    def hurt(model):
        model.jax_state_sync()
        poison(model)
    fit(model, dataset, At(r8, 20, hurt), callback=R8Callback(dataset, backup_every=5), epochs=3)
    assert len(model.trainable_variables[0].value.sharding.device_set) == count
    return r8.table.loss, r8.sentry.num_refused, r8.global_step

model = classifier()
one = run(1)
for count in (2, 4):
    devices = [f"cpu:{number}" for number in range(count)]
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    several = run(count)
    assert one[1:] == several[1:] and one[1], (one[1:], several[1:])
    assert np.allclose(one[0], several[0], rtol=1e-2, atol=1e-3)
try:
    fit(model, R8Dataset(X, Y, scheduler()))
except ValueError as error:
    print(error)
"""


@pytest.mark.program
def test_data_parallel_on_jax():
    """On two and four devices a table is that of one, up to rounding, and a NaN goes back; a model from before is not
    trained."""
    printed = printed_by(ROOT, "-W", "ignore", "-c", ON_JAX, KERAS_BACKEND="jax")

    assert "on one device under DataParallel of 4 devices; enter it before" in printed


WORKER = """
import json, os, sys
ports, number = sys.argv[1].split(","), int(sys.argv[2])
cluster = {"worker": [f"localhost:{port}" for port in ports]}
os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": number}})
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import keras, numpy as np
from learnit_r8 import R8Scheduler
from learnit_r8.keras import R8Callback, R8Dataset
with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
for callback in (
    lambda: R8Callback(R8Scheduler(scheduler_mode="keep"), model),
    lambda: R8Callback(R8Dataset(np.ones((8, 4)), np.ones(8), R8Scheduler(8, batch_size=4, num_epochs=1)), model),
):
    try:
        callback()
    except ValueError as error:
        print(error)
os._exit(0)
"""


@pytest.mark.slow
def test_several_workers_are_refused():
    """Two processes of MultiWorkerMirroredStrategy hear by name what to use instead."""
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            ports.append(str(probe.getsockname()[1]))
    workers = [started(ROOT, "-c", WORKER, ",".join(ports), number) for number in range(2)]

    for worker in workers:
        printed = worker.communicate(timeout=300)[0]
        assert printed.count("trained by one process, got MultiWorkerMirroredStrategy") == 2, printed
        assert "Use a MirroredStrategy" in printed

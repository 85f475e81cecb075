"""`R8Dataset.from_tensor_slices`: stages of ``tf.data`` after the order drawn, with losses of the right samples."""

import numpy as np
import pytest

pytest.importorskip("keras")
pytest.importorskip("tensorflow")


from learnit_r8.keras import R8Callback, R8Dataset
from tests.drive import Weighing
from tests.keras_common import At, Watch, X, Y, classifier, fit, reconstructing, scheduler, tf, true_losses

pytestmark = [pytest.mark.program, pytest.mark.filterwarnings("ignore")]
AUTOTUNE = tf.data.AUTOTUNE


def double(x, y):
    """A step of the user's with an `if` that TensorFlow must translate."""
    if tf.reduce_sum(x) > 0:
        x = 2 * x
    return x, y


WAYS = {
    "batches": lambda data: data.batch(32).map(lambda x, y: (2 * x, y), AUTOTUNE).prefetch(AUTOTUNE),
    "samples": lambda data: data.map(double, num_parallel_calls=AUTOTUNE).batch(32).prefetch(2),
    "padded": lambda data: data.map(double).padded_batch(),
    "applied": lambda data: data.apply(lambda data: data.map(double)).batch(num_parallel_calls=2),
}


def test_losses_are_those_of_the_samples():
    """The table holds the losses of the samples that were drawn, computed apart from the training."""
    r8 = scheduler(num_epochs=1, policy="shuffle")
    dataset = WAYS["samples"](R8Dataset.from_tensor_slices((X, Y), r8))
    watch, model = Watch(dataset), classifier()
    fit(model, dataset, watch)

    assert sorted(sample for batch in watch.batches for sample in batch) == list(range(len(X)))
    for weights, batch in zip(watch.weights, watch.batches, strict=True):
        assert r8.table.loss[batch] == pytest.approx(true_losses(model, weights, batch, 2 * X), rel=1e-4, abs=1e-5)


def test_samples_that_come_in_other_places_end_the_fit():
    """The places are compared with the order drawn, batch by batch, whatever a stage has done."""
    dataset = R8Dataset.from_tensor_slices((X, Y), scheduler(num_epochs=1)).batch(32)
    moved = dataset._then(lambda batches, _: batches.shuffle(9, seed=0))

    with pytest.raises(tf.errors.InvalidArgumentError, match="must come out in the places they were drawn in"):
        fit(classifier(), moved)


def test_the_run_is_that_of_arrays():
    """Two epochs by loss, with validation between: the same batches, losses and weights as with R8Dataset(x, y, r8)."""
    runs = []
    for make in (lambda r8: R8Dataset(X, Y, r8), lambda r8: R8Dataset.from_tensor_slices((X, Y), r8).batch()):
        model, r8 = classifier(), scheduler(num_epochs=2)
        history = fit(model, make(r8), epochs=2, validation_data=(X, Y)).history
        runs.append((r8.table.loss, *model.get_weights(), history["val_loss"]))

    assert all(map(np.array_equal, *runs))


@pytest.mark.parametrize("way", WAYS)
def test_a_short_batch_in_mid_epoch(way):
    """Where a batch that is not the last of its epoch is short, each batch still has its own samples."""
    r8 = scheduler(num_epochs=2)
    dataset = WAYS[way](R8Dataset.from_tensor_slices((X, np.arange(len(X))), r8))
    tickets = dataset.drawn.draw_epoch()
    tickets[3], tickets[-1] = tickets[-1], tickets[3]

    for number, ticket in enumerate(tickets):
        x, rows = dataset[number]
        assert rows.tolist() == ticket.indices.tolist()
        assert np.array_equal(x, 2 * X[ticket.indices])
    assert np.array_equal(dataset[1][1], tickets[1].indices)


def test_seeds_are_repeated_by_a_resumed_run(tmp_path):
    """Augmented with seeds, a run that is cut in mid-epoch and resumed has the weights of the whole one."""

    def augment(sample, seed):
        x, y = sample
        return x + tf.random.stateless_normal([64], seed), y

    def run(folder, stop_at=None):
        model = classifier()
        r8 = scheduler(num_epochs=2, checkpoint_dir=folder, resume="auto", seed=5)
        dataset = R8Dataset.from_tensor_slices((X, Y), r8).with_seeds().map(augment, AUTOTUNE).batch(32)
        callback, first = R8Callback(dataset, model), r8.current_epoch
        stop = [] if stop_at is None else [At(r8, stop_at, lambda model: r8.requests.stop())]
        fit(model, dataset, *stop, callback=callback, epochs=2, initial_epoch=first)
        r8.close()
        return r8.global_step, model.get_weights()

    whole = run(tmp_path / "whole")
    first = run(tmp_path / "parts", stop_at=20)
    parts = run(tmp_path / "parts")

    assert first[0] == 21
    assert whole[0] == parts[0] == 32
    assert all(map(np.array_equal, whole[1], parts[1]))


def test_seeds_of_batches_are_those_of_their_samples():
    """Each sample has a seed of its own, whether asked for before or after batch()."""
    r8 = scheduler(num_epochs=2)
    data = R8Dataset.from_tensor_slices(X, r8)
    one, other = data.with_seeds().batch(), data.batch().with_seeds()
    seeds = [one[number][1] for number in range(16)]

    assert len(np.unique(np.concatenate(seeds), axis=0)) == len(X)
    assert all(np.array_equal(seeds[number], other[number][1]) for number in range(16))


def test_samples_of_a_dataset_and_class_weights():
    """The samples of a tf.data.Dataset are held in memory; class weights act on training, not on reports."""
    samples = tf.data.Dataset.from_tensor_slices((X, Y)).map(lambda x, y: (2 * x, y)).cache()
    r8 = scheduler(num_epochs=1, policy="shuffle")
    dataset = R8Dataset.from_dataset(samples, r8).batch(32)
    watch, model = Watch(dataset), classifier()
    fit(model, dataset, watch, class_weight=dict.fromkeys(range(10), 0.5))

    batch = watch.batches[0]
    assert r8.table.loss[batch] == pytest.approx(true_losses(model, watch.weights[0], batch, 2 * X), rel=1e-4)


def test_inputs_alone_and_a_finished_run(tmp_path):
    """One tensor a sample comes as in a plain fit; a run that is over trains nothing."""

    def run():
        kinds = []
        model = reconstructing(kinds)
        r8 = scheduler(num_epochs=1, checkpoint_dir=tmp_path, resume="auto")
        dataset = R8Dataset.from_tensor_slices(X, r8).batch()
        callback = R8Callback(dataset, model)
        fit(model, dataset, callback=callback)
        r8.close()
        return r8.global_step, kinds

    first, again = run(), run()

    assert first[0] == again[0] == 16
    assert first[1]
    assert tuple not in first[1]
    assert not again[1]


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda data: data.shuffle(9), AttributeError, "no attribute 'shuffle'. The scheduler decides which samples"),
        (lambda data: data.batch().repeat(), AttributeError, "leave it out, and give fit() the epochs"),
        (lambda data: data.map(double).cache(), AttributeError, "The order is another one in each epoch"),
        (lambda data: data.filter(bool), AttributeError, "Each sample must come out once"),
        (lambda data: data.bach(), AttributeError, "batch"),
        (lambda data: data.batch(16), ValueError, "batch_size must be the scheduler's 32 in batch(), or be left"),
        (lambda data: data.batch().batch(), ValueError, "batched once, got batch(None) of batches"),
        (lambda data: data.batch(32, True), ValueError, "give R8Scheduler last_batch='drop'"),
        (lambda data: data.map(double, deterministic=False), ValueError, "deterministic must not be False in map()"),
    ],
)  # fmt: skip
def test_stages_that_would_lose_track_are_refused(act, error, message):
    """What changes which sample comes when is refused by name as it is asked for, with what to do."""
    data = R8Dataset.from_tensor_slices((X, Y), scheduler())
    with pytest.raises(error) as raised:
        act(data)

    assert message in str(raised.value)


def test_options_that_give_up_the_order():
    """They are refused; others go."""
    data, options = R8Dataset.from_tensor_slices((X, Y), scheduler()).batch(), tf.data.Options()
    options.autotune.enabled = False
    assert data.with_options(options).element_spec == data.element_spec
    options.deterministic = False

    with pytest.raises(ValueError, match="options must not have deterministic=False"):
        data.with_options(options)


def test_single_samples_cannot_be_trained_on():
    """A pipeline without batch() is refused as fit begins, and so is an earlier stage in the callback."""
    data = R8Dataset.from_tensor_slices((X, Y), scheduler())
    with pytest.raises(RuntimeError, match=r"batched before fit\(\), got single samples; call batch\(32\)"):
        fit(classifier(), data)
    batches = data.batch()

    with pytest.raises(RuntimeError, match="callbacks must hold an R8Callback of the R8Dataset in fit"):
        fit(classifier(), batches.prefetch(2), callback=R8Callback(batches))


SAMPLES = tf.data.Dataset.from_tensor_slices((X, Y))


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (X, TypeError, "dataset must be a tf.data.Dataset of samples"),
        (SAMPLES.shuffle(9).map(double), ValueError, "got one that shuffles: leave shuffle"),
        (SAMPLES.repeat(), ValueError, "dataset must end, got one that repeats"),
        (SAMPLES.batch(32), ValueError, "must have samples of one shape, got (TensorSpec(shape=(None, 64)"),
        (SAMPLES.batch(30), ValueError, "if they are batches, leave batch() out"),
        (SAMPLES.take(9), ValueError, "must have the scheduler's 500 samples, got 9 elements"),
        (SAMPLES.map(lambda x, y: x[: y + 1]), ValueError, "must have samples of one shape"),
    ],
)
def test_datasets_that_are_not_of_samples(dataset, error, message):
    """A tf.data.Dataset that is batched, shuffles or repeats is refused, with what to do."""
    with pytest.raises(error) as raised:
        R8Dataset.from_dataset(dataset, scheduler())

    assert message in str(raised.value)


def test_policies_that_weight_samples():
    """They would need a weight in each batch."""
    with pytest.raises(ValueError, match="policy must not weight samples here"):
        R8Dataset.from_tensor_slices(X, scheduler(policy=Weighing()))

"""Ctrl-C after a run that was left before its end, in whatever way: it interrupts what runs then, the first time."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, Recovery
from learnit_r8.loops import early_stopping, every, logs, loop, report_to, scheduled
from learnit_r8.streams import epoch_stream, step_stream, take

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="signals of other processes"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("python_handles_ctrl_c"),
]
X = np.random.default_rng(0).normal(size=(64, 4)).astype("f4")
Y = X.sum(1, keepdims=True)


class Failure(Exception):
    """What ends a run."""


def scheduler(**more):
    few = Recovery(max_refused=5)
    return R8Scheduler(64, **{"batch_size": 16, "num_epochs": 9, "initial_lr": 0.01, "recovery": few, **more})


def fail(*_, **__):
    raise Failure


def kept(run, *arguments):
    """The exception that ends a run, whose traceback keeps all of its variables, as a notebook does."""
    with pytest.raises((Failure, RuntimeError)) as caught:
        run(*arguments)
    return caught


# Ways that need numpy alone. Each returns what is still in variables afterwards.


def break_out_of_batches(r8):
    for _ in r8.batch_iterator():
        r8.update_with_loss(1.0)
        break


def break_out_of_batches_without_a_report(r8):
    for _ in r8.batch_iterator():
        break


def break_out_of_epochs(r8):
    for _ in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            r8.update_with_loss(1.0)
        break


def fail_in_a_batch(r8):
    def train():
        for _ in r8.epoch_iterator():
            for _ in r8.batch_iterator():
                raise Failure

    with pytest.raises(Failure):
        train()


def fail_in_a_with_block(r8):
    def train():
        with r8:
            for _ in r8.batch_iterator():
                raise Failure

    return kept(train)


def draw_and_close(r8):
    r8.report(r8.draw(), 1.0)
    r8.close()


def stop_from_inside(r8):
    for _ in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            r8.update_with_loss(1.0)
            r8.requests.stop()


def ordinary_step(indices, lr):
    return 1.0


def take_steps(r8):
    stream = step_stream(r8, ordinary_step)
    return stream, list(take(3)(stream))


def break_out_of_steps(r8):
    stream = step_stream(r8, ordinary_step)
    for _ in stream:
        break
    return stream


def fail_in_a_step(r8):
    return kept(lambda: list(step_stream(r8, fail)))


def ordinary_callbacks(r8, when=every(1)):
    return {when: [lambda state, batch: (logs().add_metric("loss", 1.0), state), report_to(r8)]}


def loop_over_an_iterator(r8):
    batches = iter(scheduled(r8, X))
    return batches, loop(np.zeros(2), batches, ordinary_callbacks(r8), stop=3)


def loop_until_a_failure(r8):
    return kept(lambda: loop(np.zeros(2), scheduled(r8, X), ordinary_callbacks(r8), [fail]))


def loop_until_nothing_gets_better(r8):
    return loop(np.zeros(2), scheduled(r8, X), ordinary_callbacks(r8), [early_stopping("loss", 2)])


def break_out_of_scheduled_batches(r8):
    for _ in scheduled(r8, X):
        break


# Ways of torch, JAX and Keras.


def torch_epochs(r8):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(4, 1)
    data = torch.from_numpy(X), torch.from_numpy(Y)
    return epoch_stream(data, model, torch.optim.SGD(model.parameters(), 0.1), torch.nn.MSELoss(), scheduler=r8)


def take_epochs(r8):
    stream = torch_epochs(r8)
    return stream, list(take(2)(stream))


def fail_among_epochs(r8):
    def train():
        for _ in torch_epochs(r8):
            raise Failure

    return kept(train)


def flax_epochs(r8, step=None, **more):
    jax = pytest.importorskip("jax")
    r8flax = pytest.importorskip("learnit_r8.flax", exc_type=ImportError)
    optax = pytest.importorskip("optax")
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    state = r8flax.TrainState.create(apply_fn=None, params={"w": jax.numpy.zeros(2)}, tx=tx)
    step = step or (lambda state, batch, key: (state, {"loss": 1.0}))
    key = jax.random.key(0)
    return r8flax.train_loop(state, step, lambda rows: X[rows], rng_key=key, scheduler=r8, show_progress=False, **more)


def some_flax_epochs(r8):
    return flax_epochs(r8, num_epochs=2)


def flax_until_a_failure(r8):
    return kept(lambda: flax_epochs(r8, fail))


def flax_until_nothing_gets_better(r8):
    return flax_epochs(r8, callbacks=[early_stopping("loss", 2)])


def keras_fit(r8, *callbacks, epochs=9, x=X):
    keras = pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    from learnit_r8.keras import R8Callback, R8Dataset

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    dataset = R8Dataset(x, Y, r8)
    made = [each(model) if callable(each) else each for each in callbacks]
    model.fit(dataset, epochs=epochs, verbose=0, shuffle=False, callbacks=[R8Callback(dataset), *made])
    return model, dataset


def callback_of_keras(**events):
    return pytest.importorskip("keras").callbacks.LambdaCallback(**events)


def keras_until_a_callback_stops(r8):
    def stopping(model):
        return callback_of_keras(on_train_batch_end=lambda batch, logs: setattr(model, "stop_training", True))

    return keras_fit(r8, stopping)


def keras_until_a_failure(r8):
    return kept(lambda: keras_fit(r8, lambda model: callback_of_keras(on_train_batch_end=fail)))


def keras_until_it_diverges(r8):
    return kept(lambda: keras_fit(r8, x=X * np.float32("nan")))


def tensor_batches(r8, leave):
    pytest.importorskip("tensorflow")
    from learnit_r8.keras import batch_dataset

    for _ in (batches := batch_dataset(r8, X)):
        batches.report(1.0)
        if leave:
            break
    return batches


def break_out_of_tensor_batches(r8):
    return tensor_batches(r8, leave=True)


def one_epoch_of_tensor_batches(r8):
    return tensor_batches(r8, leave=False)


WAYS = [
    break_out_of_batches,
    break_out_of_batches_without_a_report,
    break_out_of_epochs,
    fail_in_a_batch,
    fail_in_a_with_block,
    draw_and_close,
    stop_from_inside,
    take_steps,
    break_out_of_steps,
    fail_in_a_step,
    loop_over_an_iterator,
    loop_until_a_failure,
    loop_until_nothing_gets_better,
    break_out_of_scheduled_batches,
    take_epochs,
    fail_among_epochs,
    some_flax_epochs,
    flax_until_a_failure,
    flax_until_nothing_gets_better,
    keras_until_a_callback_stops,
    keras_until_a_failure,
    keras_until_it_diverges,
    break_out_of_tensor_batches,
    one_epoch_of_tensor_batches,
]


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(way, marks=[pytest.mark.program] * ("flax" in way.__name__ or "keras" in way.__name__))
        for way in WAYS
    ],
    ids=lambda way: way.__name__,
)
def test_the_first_ctrl_c_interrupts_what_comes_after(way, capfd):
    """A run that was left swallows no signal, though everything of it is still in variables."""
    r8 = scheduler()
    left = way(r8)

    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert "the run ends after this step" not in capfd.readouterr().err
    assert r8.global_step < r8.total_steps
    del left


@pytest.mark.parametrize("way", [take_steps, loop_over_an_iterator, break_out_of_batches], ids=lambda way: way.__name__)
def test_a_second_run_waits_for_its_own_step(way, tmp_path, capfd):
    """Ctrl-C in a run that follows another one finishes the step, saves that run, and then interrupts."""
    left = way(scheduler())
    second = scheduler(checkpoint_dir=tmp_path, checkpoint_every=99)

    def train():
        for _ in second.batch_iterator():
            if second.global_step == 2:
                signal.raise_signal(signal.SIGINT)
            second.update_with_loss(1.0)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert (second.global_step, len(list(tmp_path.iterdir())) > 0) == (3, True)
    assert capfd.readouterr().err.count("the run ends after this step") == 1
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    del left


def test_a_stream_that_goes_on_waits_again(capfd):
    """A stream that was left and is read on finishes its step at Ctrl-C as before."""
    r8, steps = scheduler(), []

    def step(indices, lr):
        if r8.global_step == 4:
            signal.raise_signal(signal.SIGINT)
        steps.append(r8.global_step)
        return 1.0

    stream = step_stream(r8, step)
    list(take(3)(stream))
    with pytest.raises(KeyboardInterrupt):
        list(stream)

    assert steps == [0, 1, 2, 3, 4]
    assert "the run ends after this step" in capfd.readouterr().err


def test_a_plain_loop_after_a_stream_waits_for_its_steps(capfd):
    """Where a scheduler goes on in another kind of loop, that one's steps are finished."""
    r8 = scheduler()
    left = take_steps(r8)

    def train():
        for _ in r8.batch_iterator():
            signal.raise_signal(signal.SIGINT)
            r8.update_with_loss(1.0)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert r8.global_step == 4
    assert "the run ends after this step" in capfd.readouterr().err
    del left

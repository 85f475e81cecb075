"""Row 12: wrong use is said in the same words, whatever the loop is: attached twice, not reported, another loader.

A column is a small function, ``(mistake)``, which trains two epochs of four batches with that mistake, or None; a
framework whose trainer cannot make a mistake leaves it out.
"""

import functools
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from learnit_r8 import R8Scheduler
from learnit_r8.torch import attach

ROWS = 32
SAID = {
    "attached twice": r"attach\(\) was called again for an optimizer whose run has begun|must hold one R8Callback"
    r"|more than one stateful callback of type `R8Callback`|ManagedState\(\) was called again",
    "not reported": r"the batch of step \d+ was not reported",
    "never reported": r"no loss reported|not reported",
    "another loader": r"of no batch of|must be given the R8Loader|x must be the R8Dataset"
    r"|gives batches that R8 knows nothing of",
}
"""By mistake: what is said, as a warning or an error."""


def numpy_drawn(mistake):
    with R8Scheduler(ROWS, batch_size=8, num_epochs=2, initial_lr=0.1, handle_signals=False) as r8:
        for _ in r8.epoch_iterator():
            if mistake == "another loader":
                r8.update_with_loss(1.0)
            for number, (_, _) in enumerate(r8.batch_iterator()):
                if mistake != "never reported" and not (mistake == "not reported" and number == 1):
                    r8.update_with_loss(1.0)


def numpy_own(mistake):
    batches = [np.zeros((8, 4))] * 4
    with R8Scheduler(num_epochs=2, scheduler_mode="keep", handle_signals=False) as r8:
        for _ in r8.epoch_iterator():
            if r8.current_epoch > 2:
                break
            for number, _ in enumerate(batches if mistake == "another loader" else r8.batches(batches)):
                if mistake != "never reported" and not (mistake == "not reported" and number == 1):
                    r8.update_with_loss(1.0)
            if mistake == "never reported":
                break


def drawn(mistake, prepare=lambda *given: given):
    return _torch(mistake, prepare, batch_size=8)


def own(mistake, prepare=lambda *given: given):
    return _torch(mistake, prepare)


def _torch(mistake, prepare, **settings):
    network, data = torch.nn.Linear(4, 3), TensorDataset(torch.randn(ROWS, 4), torch.zeros(ROWS, dtype=torch.int64))
    model, optimizer = prepare(network, torch.optim.SGD(network.parameters(), 0.1))
    loader = DataLoader(data, batch_size=8)

    def attached():
        return attach(model, optimizer, data if settings else loader, num_epochs=2, handle_signals=False, **settings)

    with attached() as adapter:
        batches = adapter.loader() if settings else adapter.batches
        for epoch in adapter.epochs():
            if mistake == "attached twice" and epoch:
                with attached():
                    pass
            given = loader if mistake == "another loader" else batches if settings else batches()
            for number, (x, y) in enumerate(given):
                loss = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
                if mistake == "never reported" or (mistake == "not reported" and number == 1):
                    continue
                if adapter.report(loss):
                    optimizer.zero_grad()
                    loss.mean().backward()
                    optimizer.step()
            if mistake == "never reported":
                break


def accelerated(train):
    def column(mistake):
        accelerate = pytest.importorskip("accelerate")
        return train(mistake, accelerate.Accelerator(cpu=True).prepare)

    return column


def lightning_trainer(mistake, *, draws):
    lightning = pytest.importorskip("lightning")
    from learnit_r8.lightning import R8Callback, R8Loader

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = torch.nn.Linear(4, 3)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    data = TensorDataset(torch.randn(ROWS, 4), torch.zeros(ROWS, dtype=torch.int64))
    plain = DataLoader(data, batch_size=8)
    loader = R8Loader(data, batch_size=8) if draws else plain
    callbacks = [R8Callback(loader) if draws else R8Callback() for _ in range(1 + (mistake == "attached twice"))]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=2, callbacks=callbacks, accelerator="cpu", enable_checkpointing=False, **quiet
    )
    trainer.fit(Module(), plain if mistake == "another loader" else loader)


def hf_trainer(mistake, *, draws):
    transformers = pytest.importorskip("transformers")
    from learnit_r8.transformers import R8Mixin

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = torch.nn.Linear(4, 3)

        def forward(self, x, labels=None):
            return {"loss": torch.nn.functional.cross_entropy(self.network(x), labels)}

    class Trainer(R8Mixin, transformers.Trainer):
        def get_train_dataloader(self):
            return DataLoader(rows, 8) if mistake == "another loader" else super().get_train_dataloader()

    rows = [{"x": torch.randn(4), "labels": torch.tensor(0)} for _ in range(ROWS)]
    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(), num_train_epochs=2, per_device_train_batch_size=8, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    r8 = {"scheduler_mode": "keep"} if draws else {"batches": False}
    trainer = Trainer(model=Model(), args=arguments, train_dataset=rows, r8=r8)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


def keras_fit(mistake, *, draws):
    keras = pytest.importorskip("keras")
    from learnit_r8.keras import R8Callback, R8Dataset

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = np.ones((ROWS, 4), "f4"), np.ones((ROWS, 1), "f4")
    more = {"batch_size": 8, "initial_lr": 0.01} if draws else {"scheduler_mode": "keep"}
    with R8Scheduler(*[ROWS] * draws, num_epochs=2, handle_signals=False, **more) as r8:
        given = R8Dataset(x, y, r8) if draws else r8
        callbacks = [R8Callback(given) for _ in range(1 + (mistake == "attached twice"))]
        if draws and mistake != "another loader":
            model.fit(given, shuffle=False, epochs=2, verbose=0, callbacks=callbacks)
        else:
            model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=callbacks)


def managed_state(mistake, *, draws):
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    from learnit_r8.flax import ManagedState, TrainState

    rates = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    state = TrainState.create(apply_fn=None, params={"w": jax.numpy.ones(4)}, tx=rates)
    more = {"batch_size": 8, "initial_lr": 0.1} if draws else {"scheduler_mode": "keep"}
    with R8Scheduler(*[ROWS] * draws, num_epochs=2, handle_signals=False, **more) as r8:
        managed = [ManagedState(r8, state) for _ in range(1 + (mistake == "attached twice"))][-1]
        batches = [np.zeros((8, 4))] * 4
        for _ in r8.epoch_iterator():
            given = r8.batch_iterator() if draws else r8.batches(batches)
            for number, _ in enumerate(batches if mistake == "another loader" else given):
                new = managed.for_step()
                if mistake != "never reported" and not (mistake == "not reported" and number == 1):
                    managed.report(new, 1.0)
            if mistake == "never reported":
                break


COLUMNS = {
    "numpy": numpy_drawn, "numpy own": numpy_own, "attach": drawn, "attach loader": own,
    "accelerate": accelerated(drawn), "accelerate own": accelerated(own),
}  # fmt: skip
FRAMEWORKS = {"lightning": lightning_trainer, "trainer": hf_trainer, "keras": keras_fit, "managed state": managed_state}
COLUMNS |= {name: functools.partial(train, draws=True) for name, train in FRAMEWORKS.items()}
COLUMNS |= {f"{name} own": functools.partial(train, draws=False) for name, train in FRAMEWORKS.items()}
CANNOT_MAKE = {("numpy", "attached twice"), ("numpy own", "attached twice")}
# A Trainer is of one class, which is R8's or is not, and whoever keeps the batches takes those of any loader.
CANNOT_MAKE |= {("trainer", "attached twice"), ("trainer own", "attached twice")}
CANNOT_MAKE |= {(f"{name} own", "another loader") for name in ("lightning", "trainer", "keras")}
# These report what they train on by themselves.
CANNOT_MAKE |= {
    (f"{name}{own}", f"{when} reported")
    for name in ("lightning", "trainer", "keras") for own in ("", " own") for when in ("not", "never")
}  # fmt: skip
PARAMS = [
    pytest.param(name, marks=[pytest.mark.program] * (name.removesuffix(" own") in FRAMEWORKS)) for name in COLUMNS
]


def said_by(train, mistake):
    """The warnings and the error of a training with a mistake."""
    # Of these first weights the Trainer's second loss, of eight samples, is 1.6 times its first one: no mistake.
    torch.manual_seed(3)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            train(mistake)
        except (RuntimeError, ValueError) as error:
            said = [str(error)]
        else:
            said = []
    # A framework has warnings of its own, of other kinds.
    return [str(each.message) for each in seen if issubclass(each.category, RuntimeWarning)] + said


@pytest.mark.parametrize("column", PARAMS)
def test_right_use_is_silent(column):
    """Without a mistake nothing is said."""
    assert said_by(COLUMNS[column], None) == []


@pytest.mark.parametrize("mistake", SAID)
@pytest.mark.parametrize("column", PARAMS)
def test_wrong_use(column, mistake):
    """A mistake is said, in words that name it."""
    if (column, mistake) in CANNOT_MAKE:
        pytest.skip("nobody can make that mistake there")
    said = said_by(COLUMNS[column], mistake)

    assert any(re.search(SAID[mistake], each) for each in said), said


NOT_CLOSED = """
import sys
import numpy as np
from learnit_r8 import R8Scheduler

own, leaves = sys.argv[1] == "own", sys.argv[2] == "left"
given = {"scheduler_mode": "keep"} if own else {"num_samples": 32, "batch_size": 8, "initial_lr": 0.1}
r8 = R8Scheduler(num_epochs=2, run_dir="run", **given)
for _ in r8.epoch_iterator():
    for number, _ in enumerate(r8.batches([np.zeros(8)] * 4) if own else r8.batch_iterator()):
        r8.update_with_loss(1.0)
        if leaves and number == 1:
            sys.exit()
"""


@pytest.mark.parametrize("ends", ["trained", "left"])
@pytest.mark.parametrize("kind", ["drawn", "own"])
def test_a_run_that_is_not_closed_reads_as_it_ended(kind, ends, tmp_path):
    """Nothing is lost and nothing is said: a run that has had its epochs is finished, one that was left is stopped."""
    given = {
        "cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, "capture_output": True,
        "text": True, "check": False,
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", NOT_CLOSED, kind, ends], **given)
    said = subprocess.run([sys.executable, "-m", "learnit_r8", "status", "run"], **given)

    assert (done.returncode, done.stderr) == (0, "")
    assert ("finished" if ends == "trained" else "stopped") in said.stdout

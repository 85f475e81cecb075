"""Row 12: wrong use is said in the same words, whatever the loop is: attached twice, not reported, another loader.

A column is a small function, ``(mistake)``, which trains two epochs of four batches with that mistake, or None; a
framework whose trainer cannot make a mistake leaves it out.
"""

import re
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from learnit_r8 import R8Scheduler
from learnit_r8.torch import attach

ROWS = 32
SAID = {
    "attached twice": r"attach\(\) was called again for an optimizer whose run has begun",
    "not reported": r"the batch of step \d+ was not reported",
    "never reported": r"no loss reported|not reported",
    "another loader": r"of no batch of",
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


COLUMNS = {
    "numpy": numpy_drawn, "numpy own": numpy_own, "attach": drawn, "attach loader": own,
    "accelerate": accelerated(drawn), "accelerate own": accelerated(own),
}  # fmt: skip
CANNOT_MAKE = {("numpy", "attached twice"), ("numpy own", "attached twice")}


def said_by(train, mistake):
    """The warnings and the error of a training with a mistake."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            train(mistake)
        except RuntimeError as error:
            return [str(each.message) for each in seen] + [str(error)]
    return [str(each.message) for each in seen]


@pytest.mark.parametrize("column", COLUMNS)
def test_right_use_is_silent(column):
    """Without a mistake nothing is said."""
    assert said_by(COLUMNS[column], None) == []


@pytest.mark.parametrize("mistake", SAID)
@pytest.mark.parametrize("column", COLUMNS)
def test_wrong_use(column, mistake):
    """A mistake is said, in words that name it."""
    if (column, mistake) in CANNOT_MAKE:
        pytest.skip("nothing is attached")
    said = said_by(COLUMNS[column], mistake)

    assert any(re.search(SAID[mistake], each) for each in said), said

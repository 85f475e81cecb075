"""Workers of a loader under every way to start a process; forkserver is the default on Linux from Python 3.14 on."""

import multiprocessing
import warnings

import pytest
import torch

from learnit_r8.testing import FaultPlan
from learnit_r8.torch import attach


def train(method, workers, **more):
    """The samples of every batch and the weights of a short run, with a batch that is NaN."""
    torch.manual_seed(0)
    x = torch.arange(40.0)[:, None] / 40
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data, faults, order = torch.utils.data.TensorDataset(x), FaultPlan(nan=[6]), []
    adapter = attach(model, optimizer, data, batch_size=8, num_epochs=2, use_curses=False)
    loader = adapter.loader(num_workers=workers, multiprocessing_context=method, **more)
    for _ in adapter.epochs():
        for (xs,) in loader:
            order.append((xs[:, 0] * 40).round().int().tolist())
            adapter.step(adapter.loss(faults.loss(len(order), (model(xs)[:, 0] - xs[:, 0]) ** 2)))
    return order, [weight.tolist() for weight in model.parameters()]


@pytest.mark.parametrize(
    "method",
    [
        "fork",
        pytest.param("forkserver", marks=pytest.mark.program),
        pytest.param("spawn", marks=pytest.mark.slow),
    ],
)
def test_workers_of_every_start_method_give_the_same_training(method):
    """The batches, and the weights to the bit, are those without workers; nothing warns."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        alone, with_workers = train(None, 0), train(method, 1, persistent_workers=True)

    assert len(alone[0]) == 10
    assert with_workers == alone

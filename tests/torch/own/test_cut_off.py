"""A loop that ends by its own count leaves R8 no turn for a test of the weights."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from learnit_r8.torch import attach

STEPS = 155


@pytest.mark.parametrize("budget", [{"num_steps": STEPS}, {}])
@pytest.mark.filterwarnings("ignore:step .* an update was probably too large")
def test_weights_that_blew_up_before_the_last_batch_go_back_as_the_loop_breaks_off(budget):
    """Weights times -30 before the last batch: after `close` the model is the one that the end of the loop saw."""
    torch.manual_seed(0)
    x = torch.randn(640, 8)
    y = x[:, :3].argmax(1)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)

    adapter = attach(model, optimizer, loader, **budget)
    while adapter.scheduler.global_step < STEPS:
        for inputs, labels in adapter.batches():
            if adapter.scheduler.global_step == STEPS - 1:
                for each in model.parameters():
                    each.data.mul_(-30)
            loss = cross_entropy(model(inputs), labels)
            if adapter.report(loss):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if adapter.scheduler.global_step == STEPS:
                break
    with pytest.warns(RuntimeWarning, match="losses were far too high: the weights were damaged, restored to step"):
        adapter.close()

    assert loss > 100
    assert cross_entropy(model(x), y) < 0.1

"""What the probe notes of a real training, in its own process."""

import sys

import pytest
import torch

from learnit_r8.testing.prove.launches import Workshop
from learnit_r8.testing.prove.probe import Fence, Probe

pytestmark = pytest.mark.program

SCRIPT = """
import importlib.util, sys
# As libraries do that work without torch, too.
assert importlib.util.find_spec("torch")
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, *, images):
        return self.layer(images)

torch.manual_seed(0)
data = TensorDataset(torch.randn(40, 4), torch.arange(40) % 2)
net, criterion = Net(), nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for _ in range(2):
    for x, y in DataLoader(data, batch_size=8, sampler=range(16, 40)):
        if "functional" in sys.argv:
            loss = nn.functional.cross_entropy(x @ net.layer.weight.T, y)
        else:
            loss = criterion(net(images=x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for x, y in DataLoader(data, batch_size=8, sampler=range(16)):
            net.eval()
            criterion(net(images=x), y)
            net.train()
"""


@pytest.mark.parametrize("words", [[], ["functional"]])
def test_batches_are_those_that_train(tmp_path, words):
    """Not those of a validation, whose loss is a module in training mode; with keywords, or no module at all.

    Something may look for torch before it is imported.
    """
    (tmp_path / "train.py").write_text(SCRIPT)
    with Workshop(tmp_path) as shop:
        steps = shop.launch(shop.copy(), [sys.executable, "train.py", *words]).ranks[0]

    assert [each["x"][0][3][0] for each in steps] == [16, 24, 32, 16, 24, 32]
    assert all(len(each["x"]) == 1 for each in steps)
    assert all(bool(each["i"] and each["i"][0]) != bool(words) for each in steps)
    assert steps[-1]["end"] == "end"


def test_an_average_is_told_from_other_copies(tmp_path):
    """It moves with most steps, unlike a checkpoint that was read, or a backup that is taken anew now and then."""
    model = torch.nn.Linear(5, 3)
    average, backup, _read = ({name: x.detach().clone() for name, x in model.named_parameters()} for _ in range(3))
    probe, noted = Probe({"folder": str(tmp_path)}, Fence([], "")), []
    probe.torch = torch
    for probe.count in range(12):
        noted.append(len(probe.whole_state(torch.optim.SGD(model.parameters(), lr=0.1))["e"]))
        for copy in [average] if probe.count % 5 != 4 else [average, backup]:
            for each in copy.values():
                each += 1

    assert noted == [0, 0, *[1] * 10]


NESTED = """
import torch

class Outer(torch.optim.Optimizer):
    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self):
        self.inner.step()

net = torch.nn.Linear(4, 2)
optimizer = Outer(torch.optim.Adam(net.parameters(), lr=0.1))
for _ in range(5):
    optimizer.zero_grad()
    net(torch.ones(3, 4)).sum().backward()
    optimizer.step()
"""


def test_a_step_within_a_step_is_one(tmp_path):
    """An optimizer that steps another one, as a sharded one does, makes one step, with its own moments."""
    (tmp_path / "train.py").write_text(NESTED)
    with Workshop(tmp_path) as shop:
        steps = shop.launch(shop.copy(), [sys.executable, "train.py"]).ranks[0]

    assert [(each["n"], each["b"], len(each["l"])) for each in steps] == [(n, 1, 1) for n in range(1, 6)]
    assert steps[1]["names"] == ["exp_avg", "exp_avg_sq", "step"]

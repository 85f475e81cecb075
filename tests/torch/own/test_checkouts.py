"""Scripts of other people, checked by ``benchmarks/wild.py FOLDER``."""

import difflib
import json
from pathlib import Path

import pytest

from tests.programs import printed_by

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "wild.py"

SCRIPT = """\
import torch
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x = torch.randn(240, 4)
loader = DataLoader(TensorDataset(x, x.sum(1)), batch_size=20, shuffle=True)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(4):
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = (model(inputs).squeeze(1) - targets).square().mean() + 1
        loss.backward()
        optimizer.step()
"""

CHANGES = [
    ("import torch\n", "import torch\nfrom learnit_r8.torch import attach\n"),
    (
        "for epoch in range(4)",
        'adapter = attach(model, optimizer, loader, num_epochs=4, checkpoint_dir="r8", resume="auto")\n'
        "for epoch in range(adapter.scheduler.current_epoch, 4)",
    ),
    ("targets in loader", "targets in adapter.batches()"),
    (
        "        loss.backward()\n        optimizer.step()\n",
        "        if adapter.report(loss):\n            loss.backward()\n            optimizer.step()\n",
    ),
]


def checkout(folder, name, changes):
    """A checkout with its description."""
    (folder / name).mkdir()
    (folder / name / "train.py").write_text(SCRIPT)
    new = SCRIPT
    for old, other in changes:
        new = new.replace(old, other, 1)
    patch = difflib.unified_diff(SCRIPT.splitlines(True), new.splitlines(True), "a/train.py", "b/train.py")
    (folder / name / "r8.patch").write_text("".join(patch))
    spec = {"repository": "some/body", "commit": "0123456789abcdef", "command": "python train.py", "patch": "r8.patch"}
    (folder / name / "wild.json").write_text(json.dumps(spec))


@pytest.mark.program
def test_a_folder_of_checkouts_is_checked(tmp_path):
    """A script converted by the guide passes every check; one that reports no loss is found out."""
    checkout(tmp_path, "careless", CHANGES[:2])
    checkout(tmp_path, "converted", CHANGES)
    said = printed_by(tmp_path, "-W", "ignore", BENCHMARK, tmp_path, "--quick")
    careless, converted = said.split("converted: ")

    assert converted.startswith("some/body 0123456789, python train.py\n")
    assert "+5 -2 lines; 48 losses; equal to the bit: yes" in converted
    assert "went on after 24, equal to the bit" in converted
    assert " NOT (" in careless
    assert "possible: 2 of 2" in said
    assert "equal to the bit: 2; healed: 1 of 2" in said

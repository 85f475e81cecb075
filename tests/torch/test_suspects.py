"""Wrong labels of small networks, with the predictions that they are trained with and without."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from learnit_r8.torch import attach


def trained(share, num_classes, *, spread=2.0, predicts=True):
    """The table of a short training on clouds of points, and which labels are wrong: each by one class."""
    torch.manual_seed(1)
    centres, right = torch.randn(num_classes, 20) * spread, torch.arange(1500) % num_classes
    inputs = centres[right] + torch.randn(1500, 20)
    labels = torch.where(torch.rand(1500) < share, (right + 1) % num_classes, right)
    model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, num_classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    data = torch.utils.data.TensorDataset(inputs, labels)
    adapter = attach(model, optimizer, data, batch_size=64, num_epochs=8)
    for _ in adapter.epochs():
        for x, y in adapter.loader():
            logits = model(x)
            losses = cross_entropy(logits, y, reduction="none")
            adapter.step(adapter.loss(losses, **({"logits": logits, "targets": y} if predicts else {})))
    adapter.close()
    return adapter.scheduler.table, (labels != right).numpy()


@pytest.mark.parametrize(("num_classes", "predicts"), [(2, True), (3, False)])
def test_labels_wrong_in_one_way_are_found(num_classes, predicts):
    """Where a network fits the rest they are all found, with predictions as without."""
    table, is_wrong = trained(0.1, num_classes, predicts=predicts)
    suspects = table.suspects(precision=0.5)

    assert is_wrong[suspects.indices].mean() > 0.95
    assert len(suspects.indices) > 0.9 * np.count_nonzero(is_wrong)


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_nobody_is_named_where_all_labels_are_right(spread):
    """Neither by margins nor by losses, however hard the task."""
    table, _ = trained(0.0, 2, spread=spread)

    assert len(table.suspects(precision=0.5).indices) == 0

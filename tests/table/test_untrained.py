"""The loss of an untrained model."""

import pytest

from learnit_r8.table.trend import UntrainedLoss


@pytest.mark.parametrize("outlier", [None, 0, 5])
def test_untrained_loss_is_robust(outlier):
    """An outlier among the first losses does not move the untrained loss, wherever it is."""
    untrained = UntrainedLoss(3)
    for number, loss in enumerate([2.3, 2.2, 2.1, 2.0, 2.1, 1.9, 1.8, 1.9]):
        untrained.add(1e9 if number == outlier else loss)

    assert untrained.value == pytest.approx(2.2, rel=0.06)

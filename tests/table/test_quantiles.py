"""Quarters of very many samples, estimated from some of them."""

import numpy as np
import pytest

from learnit_r8 import SampleTable
from learnit_r8.table import table as table_module
from learnit_r8.table.radix import falling_order

VALUES = {
    "positive": lambda rng, count: rng.gamma(1, 1, count),
    "of both signs": lambda rng, count: rng.normal(0, 3, count),
    "few": lambda rng, count: rng.integers(-2, 3, count),
    "equal": lambda rng, count: np.full(count, 0.7),
    "infinite": lambda rng, count: np.where(rng.random(count) < 0.3, np.inf, rng.random(count)),
}


@pytest.mark.parametrize("kind", VALUES)
def test_order_in_which_values_fall(kind):
    """It is that of a stable sort: equal values, and zeros of both signs, as they come."""
    values = VALUES[kind](np.random.default_rng(0), 1000).astype(np.float32)
    values[::7], values[::11] = 0.0, -0.0

    assert falling_order(values).tolist() == np.argsort(-values, kind="stable").tolist()


@pytest.mark.parametrize("kind", VALUES)
def test_quarters_of_some_samples(kind, monkeypatch):
    """Estimated from one in ten samples, the limits of the quarters are close, in any order of the data."""
    monkeypatch.setattr(table_module, "MOST_RANKED", 10_000)
    loss = np.sort(VALUES[kind](np.random.default_rng(2), 100_000).astype(np.float32))
    table = SampleTable(100_000, batch_size=10, estimator="additive")
    assert table.quartiles() == []
    storage = table.storage
    storage.records.whole["loss"][:], storage.records.whole["usage_count"][:], storage.num_seen = loss, 3, 100_000
    for number, quarter in enumerate(table.quartiles()):
        # Four standard deviations of the rank of a quartile in a random part of this size.
        first, last = (np.searchsorted(loss, quarter.low, side) for side in ("left", "right"))
        assert first - 2000 <= number * 25_000 <= last + 2000
        assert (quarter.num_samples, quarter.uses) == (25_000, 3)
        assert quarter.low <= quarter.mean <= quarter.high

"""What is asked of large tables is answered as for small ones, without reading or sorting all of them at once."""

import numpy as np
import pytest

from learnit_r8.table import figures, label_noise
from learnit_r8.table.figures import top
from learnit_r8.table.label_noise import find_suspects


@pytest.mark.parametrize("count", [0, 1, 3, 40, 500])
@pytest.mark.parametrize("seed", range(4))
def test_highest_values_block_by_block(count, seed, monkeypatch):
    """Small blocks give what sorting all of them gives: equal values by their place, none that is not known."""
    monkeypatch.setattr(figures, "TOP_BLOCK", 7)
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 9, 300).astype(np.float32)
    values[rng.random(300) < 0.3] = np.nan
    values[rng.integers(0, 300, 3)] = [np.inf, -np.inf, -0.0]
    known = np.flatnonzero(~np.isnan(values))

    assert top(values, count).tolist() == known[np.argsort(-values[known], kind="stable")][:count].tolist()


def test_suspects_of_a_part_are_those_of_all(monkeypatch):
    """The components that are fitted to a part of a large table name the samples that those of all of it name."""
    rng = np.random.default_rng(0)
    size, is_wrong = 20_000, rng.random(20_000) < 0.05
    mean = np.where(is_wrong, 8 + rng.random(size), 0.3 * rng.random(size)).astype(np.float32)
    records = {"mean": mean, "last": mean, "usage_count": np.full(size, 6, np.uint16)}
    whole = find_suspects(records, 2.3, exact=True)
    monkeypatch.setattr(label_noise, "MOST_FITTED", 4_000)
    part = find_suspects(records, 2.3, exact=True)

    assert set(whole.indices) == set(part.indices) == set(np.flatnonzero(is_wrong))
    assert part.noise_rate == pytest.approx(whole.noise_rate)

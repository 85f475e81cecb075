"""What is asked of large tables is answered as for small ones, without reading or sorting all of them at once."""

import math
import tracemalloc

import numpy as np
import pytest

from learnit_r8 import SampleTable
from learnit_r8.table import label_noise
from learnit_r8.table import records as blocks
from learnit_r8.table.label_noise import find_suspects, rank
from learnit_r8.table.losses import EXACT
from learnit_r8.table.quantiles import top, top_of
from learnit_r8.table.records import spread
from tests.table.test_label_noise import overlapping


@pytest.mark.parametrize("count", [0, 1, 3, 40, 500])
@pytest.mark.parametrize("seed", range(4))
def test_highest_values_block_by_block(count, seed):
    """Small blocks give what sorting all of them gives: equal values by their place, none that is not known."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 9, 300).astype(np.float32)
    values[rng.random(300) < 0.3] = np.nan
    values[rng.integers(0, 300, 3)] = [np.inf, -np.inf, -0.0]
    known = np.flatnonzero(~np.isnan(values))
    size = max(7, count)
    blocks = [(start, values[start : start + size]) for start in range(0, 300, size)]

    assert top(values, count).tolist() == top_of(blocks, count).tolist()
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


def in_blocks(monkeypatch):
    """Have everything read in small blocks, and fitted to some of the samples."""
    monkeypatch.setattr(blocks, "BLOCK", 700)
    monkeypatch.setattr(label_noise, "MOST_FITTED", 7_200)


def test_labels_told_by_margins_of_a_part_are_those_of_all(monkeypatch):
    """Margins of some samples of a large table begin the list that those of all of them make, with more caution."""
    records, evidence, is_wrong = overlapping(0, count=12_000)
    evidence["given"] = np.arange(12_000) % 10
    whole = find_suspects(records, math.log(10), exact=True, evidence=evidence)
    in_blocks(monkeypatch)
    part = find_suspects(records, math.log(10), exact=True, evidence=evidence)

    assert part.method == whole.method == "mirrored margins"
    assert part.num_judged == whole.num_judged == 12_000
    assert set(part.indices) <= set(whole.indices)
    assert len(part.indices) > 0.6 * len(whole.indices)
    assert is_wrong[part.indices].mean() > 0.5
    assert (np.diff(evidence["margin"][part.indices]) <= 0).all()
    assert (np.diff(part.score) <= 0).all()
    low, high = part.noise_range
    assert low < is_wrong.mean() < high


def test_rare_groups_of_large_tables_have_few_suspects(monkeypatch):
    """A rare class that is hard is no list of suspects, whether or not one of it is among those looked at."""
    rng = np.random.default_rng(1)
    size, is_wrong = 20_000, rng.random(20_000) < 0.05
    group = np.zeros(size, np.uint16)
    group[:2000:10], group[7], group[19_999] = 4, 9, 60_000
    is_high = is_wrong | (group > 0)
    mean = np.where(is_high, 8 + rng.random(size), 0.3 * rng.random(size)).astype(np.float32)
    records = {"mean": mean, "last": mean, "usage_count": np.full(size, 6, np.uint16), "group": group}
    in_blocks(monkeypatch)
    suspects = find_suspects(records, 2.3, exact=True, by_group=True)

    assert set(np.flatnonzero(is_wrong & (group == 0))) <= set(suspects.indices)
    assert np.count_nonzero(group[suspects.indices] == 4) < 0.1 * np.count_nonzero(group == 4)


@pytest.mark.parametrize("has_evidence", [False, True])
def test_ranking_block_by_block(has_evidence, monkeypatch):
    """The most suspect labels are the same in small blocks; samples that were never seen are not among them."""
    records, evidence, _ = overlapping(3)
    records["usage_count"][::2] = evidence["visits"][::2] = 0
    evidence = evidence if has_evidence else None
    whole = rank(records, evidence, 40)
    monkeypatch.setattr(blocks, "BLOCK", 97)
    ranking = rank(records, evidence, 40)

    assert ranking.indices.tolist() == whole.indices.tolist()
    assert (ranking.indices % 2 == 1).all()


@pytest.mark.parametrize(("size", "count"), [(10, 10), (11, 10), (1000, 999), (10**8, 50)])
def test_positions_are_spread_over_all(size, count):
    """Positions of some samples are in order, none is there twice, and they are from everywhere."""
    places = spread(size, count)

    assert 0 <= places[0] < places[-1] < size
    assert (np.diff(places) > 0).all()
    assert np.diff(places, prepend=0, append=size).max() <= 2 * size / count + 1


def test_views_of_a_large_table_copy_a_block_at_a_time(monkeypatch):
    """The hardest and the suspect samples are found in memory that does not grow with the table."""
    in_blocks(monkeypatch)
    size, rng = 1_000_000, np.random.default_rng(0)
    wrong = np.arange(7, size, 100)
    table = SampleTable(size, batch_size=64)
    table.storage.part_size, table.storage.num_seen = EXACT, size
    table.storage.batch_trend.untrained.value = 2.3
    known = table.storage.records.whole
    known["loss"] = 0.3 * rng.random(size, np.float32)
    known["loss"][wrong] = 9 + np.arange(len(wrong)) / 1000
    known["last"] = known["mean"] = known["loss"]
    known["usage_count"] = 6
    tracemalloc.start()
    hardest, suspects, ranking = table.hardest(3), table.suspects(), table.ranking(3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert suspects.indices.tolist() == wrong[::-1].tolist()
    assert suspects.num_judged == size
    assert [sample.index for sample in hardest] == ranking.indices.tolist() == wrong[:-4:-1].tolist()
    # Less than a copy of any field takes.
    assert peak < 2 * size

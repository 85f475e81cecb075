"""The random order of a pass."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8.sources.permutation import MAX_SAMPLES, Permutation, raw_words

LIMIT = 2**14
"""Up to here the order is stored, beyond it computed."""


def slow_places(size, key, ranks):
    """The order of a size beyond the limit, written out with ``%`` and Python integers."""
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    words = [int(word) >> 32 for word in raw_words(key, 2 * (rows + columns))]
    shifts, start = [], 0
    for length, limit in [(columns, rows), (rows, columns)] * 2:
        shifts.append([word * limit >> 32 for word in words[start : start + length]])
        start += length
    places = []
    for place in ranks:
        while True:
            left, right = divmod(place, columns)
            for to_left, to_right in (shifts[:2], shifts[2:]):
                left = (left + to_left[right]) % rows
                right = (right + to_right[left]) % columns
            place = left * columns + right
            if place < size:
                break
        places.append(place)
    return places


def test_bijection():
    """An order holds every index once."""
    large = [1000, LIMIT - 1, LIMIT, LIMIT + 1, LIMIT + 2, 16_641, 20_000, 50_021, 65_536, 300_007]
    for size in [*range(1, 70), *large]:
        order = Permutation(size, [3, size])(0, size)
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(size)), size


@given(size=st.one_of(st.integers(1, 3000), st.integers(LIMIT - 3, 40_000)), key=st.integers(0, 2**63), data=st.data())
def test_slices(size, key, data):
    """A slice equals the same positions of the whole, also an empty one."""
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    order = Permutation(size, [key])

    assert np.array_equal(order(start, stop), order(0, size)[start:stop])


@pytest.mark.parametrize("size", [10, 20_000])
def test_caller_may_write(size):
    """Writing into a slice changes no later reading."""
    order = Permutation(size, [1])
    before = order(0, 10).copy()
    order(0, 10)[:] = 0

    assert np.array_equal(order(0, 10), before)


@pytest.mark.parametrize("size", [LIMIT + 1, 99_991, 1_000_003])
def test_against_slow_version(size):
    """Beyond the limit the order equals that of a slow version of the network, including repeated rounds."""
    ranks = [0, 1, 2, size // 3, size // 2, *range(size - 300, size)]
    order = Permutation(size, [8, 1])
    fast = [int(order(rank, rank + 1)[0]) for rank in ranks]

    assert fast == slow_places(size, [8, 1], ranks)


def test_largest():
    """The largest permutation neither overflows nor leaves its range."""
    order = Permutation(MAX_SAMPLES, [2])
    ranks = [*range(200), *range(MAX_SAMPLES - 200, MAX_SAMPLES)]
    places = np.concatenate([order(0, 200), order(MAX_SAMPLES - 200, MAX_SAMPLES)]).tolist()

    assert places == slow_places(MAX_SAMPLES, [2], ranks)


@pytest.mark.parametrize("size", [50, LIMIT, LIMIT + 1, 60_000])
def test_keys_differ(size):
    """Keys of one length that differ in a single number give different orders."""
    keys = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 2, 0], [0, 0, 2], [2**63, 0, 0]]

    assert len({Permutation(size, key)(0, size).tobytes() for key in keys}) == len(keys)


def test_every_order_is_equally_likely():
    """All 24 orders of four samples come up equally often."""
    orders, counts = np.unique([Permutation(4, [key])(0, 4) for key in range(4800)], axis=0, return_counts=True)

    assert len(orders) == 24
    assert chi_square_is_plausible(((counts - 200) ** 2 / 200).sum(), 23)


@pytest.mark.parametrize("size", [64, 4096, LIMIT + 5, 50_000])
def test_uniform_places(size):
    """Every part of the data is equally likely in every part of a pass: chi-square over 60 keys."""
    bins, keys = 16, 60
    counts, total = np.zeros((bins, bins)), 0.0
    part = np.arange(size) * bins // size
    for key in range(keys):
        table = np.zeros((bins, bins))
        np.add.at(table, (part, part[Permutation(size, [9, key])(0, size)]), 1)
        wanted = np.outer(np.bincount(part), np.bincount(part)) / size
        total += ((table - wanted) ** 2 / wanted).sum() * (size - 1) / size
        counts += table - wanted

    assert chi_square_is_plausible(total, keys * (bins - 1) ** 2)
    assert chi_square_is_plausible((counts**2 / wanted).sum() / keys * (size - 1) / size, (bins - 1) ** 2)


@pytest.mark.parametrize("size", [4000, LIMIT + 5, 50_000])
def test_neighbours_are_independent(size):
    """Consecutive positions are not correlated, and neighbours do not stay neighbours."""
    steps, lags = 0, []
    for key in range(20):
        order = Permutation(size, [4, key])(0, size)
        lags.append(np.corrcoef(order[:-1], order[1:])[0, 1])
        steps += int((np.abs(np.diff(order)) == 1).sum())

    # The sum of 20 correlations of N pairs has sd sqrt(20 / N); the neighbours are about Poisson of mean 40.
    assert abs(sum(lags)) < 5 * math.sqrt(20 / size)
    assert abs(steps - 40) < 5 * math.sqrt(40)


def test_pinned():
    """The order of a key is the same on every machine and in every version."""
    digest = hashlib.sha256()
    for size in (1, 7, 1000, LIMIT, LIMIT + 1, 100_000):
        digest.update(Permutation(size, [0, 1, 2])(0, size).astype("<i8").tobytes())

    assert Permutation(10, [0, 1])(0, 10).tolist() == PINNED_TEN
    assert digest.hexdigest() == PINNED_DIGEST


def chi_square_is_plausible(value, freedom):
    """Whether a chi-square value is within five standard deviations of its mean."""
    return abs(value - freedom) < 5 * math.sqrt(2 * freedom)


PINNED_TEN = [7, 3, 6, 0, 2, 4, 1, 9, 8, 5]
PINNED_DIGEST = "b7db715c1373f15977f60d143033ad85e3991f77fcb8ce83ba02d755ecda217d"

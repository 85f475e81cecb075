"""Ids that come with batches, of which a table grows."""

import numpy as np
import pytest

from learnit_r8.table.names import SampleIds
from learnit_r8.table.table import SampleTable


def test_new_ids_get_the_next_places():
    """An id keeps its place, whatever comes after it; rows may hold one or several, in lists or arrays."""
    ids = SampleIds(100)

    assert ids.find(["b", "a"]).indices.tolist() == [0, 1]
    assert ids.find(("a", "c", "a")).indices.tolist() == [1, 2, 1]
    rows = ids.find([["a", "d"], "b", []])
    assert rows.indices.tolist() == [1, 3, 0]
    assert rows.counts.tolist() == [2, 1, 0]
    assert rows.num_rows == 3
    assert ids.names == ["b", "a", "c", "d"]


def test_arrays_of_ids_are_read_as_lists_are():
    """One dimension is an id a row, the second several."""
    ids = SampleIds(100)
    pairs = ids.find(np.array([[7, 8], [8, 9]]))

    assert pairs.indices.tolist() == [0, 1, 1, 2]
    assert pairs.counts.tolist() == [2, 2]
    assert ids.find([np.int64(9), 7]).indices.tolist() == [2, 0]
    assert ids.find(np.array([[7], [9]])).counts is None


def test_ids_beyond_the_most_are_counted():
    """They have no place; those that are known keep theirs."""
    ids = SampleIds(2)

    assert ids.find([5, 6, 7]).indices.tolist() == [0, 1, -1]
    assert ids.find([7, 6]).indices.tolist() == [-1, 1]
    assert (ids.num_beyond, ids.names) == (2, [5, 6])
    positions = SampleIds(2)
    positions.expect(10)
    drawn = np.array([1, 5, -3])
    positions.keep_indices(drawn)
    assert drawn.tolist() == [1, -1, -1]
    assert positions.num_beyond == 2


@pytest.mark.parametrize(
    ("first", "then", "error", "text"),
    [
        (["a"], ["a", 3], ValueError, "ids must stay of one kind in a run.*got 3 where those before were texts"),
        ([1], [2, "b"], ValueError, "got 'b' where those before were integers"),
        ([1], [1.5], TypeError, "ids must be integers or texts, got 1.5, a float"),
        ([1], [True], TypeError, "got True"),
        ([1], [{"a"}], TypeError, "got {'a'}, a set"),
        ([1], [2**70], ValueError, "64 bits"),
        ([1], 7, TypeError, "ids must be a sequence with an id, or several, for each row"),
        (["a"], "abc", TypeError, "ids must be a sequence"),
    ],
)
def test_what_is_no_id_is_refused_and_adds_nothing(first, then, error, text):
    """The message names it, and none of the batch is kept."""
    ids = SampleIds(100)
    ids.find(first)
    if first == [1] and then == [True]:
        ids.find([5])

    before = list(ids.names)
    with pytest.raises(error, match=text):
        ids.find([*then, 99] if then == [True] else then)
    assert ids.names == before


@pytest.mark.parametrize("names", [["ä/1", "", "b\nc", "\ud800"], [3, -(2**63), 2**63 - 1], []])
def test_a_saved_table_knows_its_ids(names):
    """Places, losses and what comes next are those of the table that was saved."""
    one, two = (SampleTable(0, batch_size=1, most_ids=10) for _ in range(2))
    if names:
        one.storage.find(names, are_indices=False)
    one.storage.records.whole["usage_count"][:] = 1
    two.load_state_dict(one.state_dict())

    assert two.num_samples == len(names)
    assert [two.storage.name_of(place) for place in range(len(names))] == names
    assert two.usage_count.tolist() == [1] * len(names)
    if names:
        assert two.storage.find([names[1], type(names[0])(77)], are_indices=False).indices.tolist() == [1, len(names)]


def test_a_table_grows_while_it_is_read():
    """Views see whole arrays, of as many samples as there were when they began."""
    table = SampleTable(0, batch_size=1, most_ids=10**6)
    for size in (1, 5, 2000, 70_000, 300_000):
        table.storage.expect(size)
        table.storage.records.whole["usage_count"][-1] = 1

        assert len(table) == len(table.loss) == size
    assert np.flatnonzero(table.usage_count).tolist() == [0, 4, 1999, 69_999, 299_999]

"""The frame of a table, in pandas and polars."""

import importlib.util

import numpy as np
import pytest

from learnit_r8.table.labels.frame import make_frame
from tests.drive import make

WRONG = 6


def trained(**more):
    """A table in which the first six of sixty samples stay worse than untrained; the last is never used."""
    r8 = make(60, batch_size=10, num_epochs=6, **more)
    for _ in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            r8.update_with_loss(np.where(indices < WRONG, 3.0 + 0.1 * indices, 1.0 / (1 + r8.global_step)))
    return r8.table


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frame_has_the_columns_of_cleanlab_and_ours(library):
    """Each library gets a row for each sample: the verdict, a score from 0 = bad, and the label that was given."""
    pytest.importorskip(library)
    table = trained(groups=["cat", "dog", "cow"] * 20, sample_ids=[f"img{number}" for number in range(60)])
    frame = table.to_frame(library)

    assert type(frame).__module__.partition(".")[0] == library
    assert list(frame.columns)[:4] == ["is_label_issue", "label_score", "given_label", "predicted_label"]
    assert np.flatnonzero(frame["is_label_issue"].to_numpy()).tolist() == list(range(WRONG))
    assert frame["given_label"].to_list()[:4] == ["cat", "dog", "cow", "cat"]
    assert frame["sample"].to_list()[59] == "img59"
    np.testing.assert_allclose(frame["label_score"].to_numpy(), np.exp(-table.mean), rtol=1e-5)
    assert set(frame["why"].to_list()[:WRONG]) == {"always high"}


def test_whole_numbers_with_gaps_stay_whole():
    """Labels that are known for some samples only are not turned into floats."""
    pandas = pytest.importorskip("pandas")
    frame = make_frame({"given_label": [3, None, 5]}, "pandas")

    assert str(frame["given_label"].dtype) == "Int64"
    assert frame["given_label"][1] is pandas.NA


def test_without_a_library_the_error_says_what_to_install(monkeypatch):
    """Where neither library is there, or not the one asked for, the message names it; another name is refused."""
    table = trained()
    with pytest.raises(ValueError, match=r"^library must be one of pandas, polars, got 'spark'\.$"):
        table.to_frame("spark")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ImportError, match=r"^to_frame\(\) needs pandas or polars, which is not installed: pip install"):
        table.to_frame()
    with pytest.raises(ImportError, match=r"^to_frame\(\) needs polars, which is not installed: pip install polars\.$"):
        table.to_frame("polars")

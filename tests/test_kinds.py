"""Kinds of reports."""

import pytest

from learnit_r8.kinds import EXACT, WHOLE_BATCH, check_kind, source_of


def test_kind_of_reports_is_fixed():
    """Reports stay of the kind of the first."""
    check_kind(4, None)
    check_kind(EXACT, EXACT)

    with pytest.raises(ValueError, match=r"loss must stay of .* first \(one loss per sample\), got one mean per batch"):
        check_kind(WHOLE_BATCH, EXACT)
    with pytest.raises(ValueError, match=r"\(one loss per sample\), got means of parts of 4"):
        check_kind(4, EXACT)


def test_source_is_said_in_words():
    """Where estimates come from reads like a phrase."""
    assert [source_of(size, 32) for size in (None, EXACT, 4, WHOLE_BATCH)] == [
        "nothing yet",
        "exact",
        "parts of 4",
        "batch means of 32",
    ]

import pytest

from learnit_r8 import Recovery


@pytest.mark.parametrize("name", ["factor", "most_quarantined"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), None, "1"])
def test_shares(name, value):
    """Shares outside their range are refused by name and value."""
    with pytest.raises(ValueError, match=rf"{name} must be in [\[(]0, 1\], got {value!r}"):
        Recovery(**{name: value})


def test_factor_is_not_zero():
    """A rate of 0 would train nothing."""
    with pytest.raises(ValueError, match=r"factor must be in \(0, 1\], got 0"):
        Recovery(factor=0)


@pytest.mark.parametrize(
    ("name", "least"),
    [("keep_backups", 2), ("trust_steps", 1), ("max_refused", 1), ("gentle_steps", 0), ("steady_steps", 0)],
)
@pytest.mark.parametrize("below", [1, 1.5, None, "4"])
def test_counts_are_whole(name, least, below):
    """A count that is not whole, or too small, is refused by name and value."""
    value = least - 1 if below == 1 else below
    with pytest.raises(ValueError, match=rf"{name} must be a whole number >= {least}, got {value!r}"):
        Recovery(**{name: value})
    assert getattr(Recovery(**{name: least}), name) == least

import pytest

from learnit_r8.testing import FakeClock


def test_clock_does_not_go_back():
    """A FakeClock never goes back."""
    with pytest.raises(ValueError, match=r"seconds must be a finite number >= 0, got -1"):
        FakeClock().advance(-1)

"""The page of limits says what the contract says."""

from pathlib import Path

from .cells import HEADING, table

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"


def test_the_page_shows_the_cells_that_cannot_be():
    """Its table is the one of the contract."""
    section = PAGE.read_text(encoding="utf-8").partition(f"{HEADING}\n")[2].partition("\n## ")[0]
    shown = "\n".join(line for line in section.splitlines() if line.startswith("|"))

    assert shown == table()

"""The lists of samples: the hardest, and the suspects."""

from __future__ import annotations

import math
from typing import NamedTuple

from ...events import SamplesSurveyed
from ..text import clean, share
from .ui_state import UiState
from .view import View


class Row(NamedTuple):
    """A sample in a list."""

    name: str
    loss: float
    last: float
    uses: int
    history: tuple[float, ...]
    note: str


def rows_of(survey: SamplesSurveyed, listed: str) -> dict[int, Row]:
    """The samples of a list by their positions: "hardest" or "suspects"."""
    if listed == "suspects":
        kind, last = "suspect", (math.nan,) * len(survey.suspects)
        reasons = zip(survey.suspect_score, survey.suspect_why, strict=False)
        notes = [f"{share(score, 0):>5}  {clean(why, 20)}" for score, why in reasons]
    else:
        kind, last = "hardest", survey.hardest_last
        notes = ["suspect" if is_suspected else "" for is_suspected in survey.hardest_suspected]
    names, losses, uses, histories = (
        getattr(survey, f"{kind}_{part}") for part in ("names", "loss", "uses", "history")
    )
    rows = zip(getattr(survey, listed), names, losses, last, uses, histories, notes, strict=False)
    return {index: Row(clean(name, 60), *others) for index, name, *others in rows}


def listed_samples(ui: UiState, view: View) -> dict[int, Row]:
    """The samples in the chosen list that pass the filter, by their positions."""
    rows = {} if view.survey is None else rows_of(view.survey, ui.listed)
    wanted = ui.filter.lower()
    return {index: row for index, row in rows.items() if wanted in f"{index} {row.name}".lower()}

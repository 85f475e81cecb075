"""The lists of samples: the hardest, and the suspects."""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import NamedTuple

from ...events import SamplesSurveyed
from ...events.text import clean, share
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
    given: str = ""
    suggested: str = ""
    votes: int = 0

    @property
    def labels(self) -> str:
        """The label given and the one suggested, as text; "" where the first is unknown."""
        differs = self.suggested and self.suggested != self.given
        return f"{self.given} -> {self.suggested}" if differs else self.given


def rows_of(survey: SamplesSurveyed, listed: str) -> dict[int, Row]:
    """The samples of a list by their positions: "hardest" or "suspects"."""
    labels: dict[int, tuple[str, str, int]] = {}
    if listed == "suspects":
        kind, last = "suspect", (math.nan,) * len(survey.suspects)
        reasons = zip(survey.suspect_score, survey.suspect_why, strict=False)
        notes = [f"{share(score, 0):>5}  {clean(why, 20)}" for score, why in reasons]
        known = zip_longest(survey.suspects, survey.suspect_given, survey.suspect_suggested, survey.suspect_votes)
        for index, given, suggested, votes in (one for one in known if one[0] is not None):
            labels[index] = clean(given or "", 30), clean(suggested or "", 30), votes or 0
    else:
        kind, last = "hardest", survey.hardest_last
        notes = ["suspect" if is_suspected else "" for is_suspected in survey.hardest_suspected]
    names, losses, uses, histories = (
        getattr(survey, f"{kind}_{part}") for part in ("names", "loss", "uses", "history")
    )
    rows = zip(getattr(survey, listed), names, losses, last, uses, histories, notes, strict=False)
    return {index: Row(clean(name, 60), *others, *labels.get(index, ())) for index, name, *others in rows}


def known_samples(survey: SamplesSurveyed) -> dict[int, Row]:
    """The samples of both lists by their positions; of a sample in both, what the list of suspects says of it."""
    hardest = rows_of(survey, "hardest")
    suspects = rows_of(survey, "suspects")
    both = {index: row._replace(last=hardest[index].last) for index, row in suspects.items() if index in hardest}
    return {**hardest, **suspects, **both}


def listed_samples(ui: UiState, view: View) -> dict[int, Row]:
    """The samples in the chosen list that pass the filter, by their positions."""
    rows = {} if view.survey is None else rows_of(view.survey, ui.listed)
    wanted = ui.filter.lower()
    return {index: row for index, row in rows.items() if wanted in f"{index} {row.name}".lower()}

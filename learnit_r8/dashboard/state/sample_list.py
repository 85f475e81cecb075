"""The samples in the list of the samples view."""

from __future__ import annotations

from .ui_state import UiState
from .view import View


def listed_samples(ui: UiState, view: View) -> list[int]:
    """Positions of the samples in the chosen list that pass the filter."""
    survey = view.survey
    if survey is None:
        return []
    if ui.listed == "suspects":
        rows = zip(survey.suspects, survey.suspect_names, strict=False)
    else:
        rows = zip(survey.hardest, survey.hardest_names, strict=False)
    wanted = ui.filter.lower()
    return [index for index, name in rows if wanted in f"{index} {name}".lower()]

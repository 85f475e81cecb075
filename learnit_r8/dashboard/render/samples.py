"""The panels of single samples: the hardest, the suspects, one of them."""

from __future__ import annotations

import math
from typing import NamedTuple

from ...events import SamplesSurveyed
from ..keys import listed_samples
from ..looking import Looking
from ..text import Line, Span, clean, fit
from ..theme import Glyphs, Theme
from ..view import View
from ..words import number
from .parts import aligned, bar, cell, cropped, share, short, spark
from .quartiles import survey_rule

HISTORY = 12
"""Cells of the trace of one sample in a list."""


def hardest_panel(
    view: View, width: int, height: int, theme: Theme, looking: Looking | None = None, listed: str = "hardest"
) -> list[Line]:
    """The samples with the highest loss, or the suspects, with their history.

    Args:
        view: What is known.
        width: Cells.
        height: Rows.
        theme: Colours and characters.
        looking: With a selection to show, in the view of samples; None for a list to look at only.
        listed: What to list where nobody selects.
    """
    glyphs = theme.glyphs
    listed = looking.listed if looking else listed
    keys = "  l: the others, Enter: history" if looking else ""
    lines = [survey_rule(view, _heading(view, listed) + keys, width, glyphs)]
    survey = view.survey
    rows = {} if survey is None else _rows(survey, listed)
    chosen = [index for index in listed_samples(looking or Looking(listed=listed), view) if index in rows]
    if survey is None or not chosen:
        return [*lines, (Span(f"  {clean(_why_empty(view, looking, listed))}", "label"),)][:height]
    name_width = min(24, max(8, width - 53))
    loss_name, last_name = ("loss", f"{'last':>9} ") if listed == "hardest" else ("mean loss", "")
    head = f"  {'sample':<{name_width}}{loss_name:>9} {last_name}{'uses':>6}  last epochs"
    lines.append((Span(fit(head, width), "label"),))
    room = max(0, height - 2)
    selected = min(looking.selected, len(chosen) - 1) if looking else -1
    first = max(0, min(selected - room // 2, len(chosen) - room))
    losses = aligned([rows[index].loss for index in chosen], 9)
    for place in range(first, min(len(chosen), first + room)):
        line = _sample_row(rows[chosen[place]], losses[place], name_width, glyphs)
        if place == selected:
            line = (Span(fit("".join(text for text, _ in line), width), "selected"),)
        lines.append(cropped(line, width))
    return lines[:height]


def _heading(view: View, listed: str) -> str:
    survey = view.survey
    if listed == "hardest":
        return "hardest samples"
    if survey is None or not survey.num_suspects:
        return "suspects"
    return f"suspects: {survey.num_suspects:,} look mislabelled ({share(survey.noise_rate)})"


def _why_empty(view: View, looking: Looking | None, listed: str) -> str:
    if view.survey is None:
        return "known after the first look at the samples"
    if looking is not None and looking.filter:
        return f"none has {looking.filter!r} in its name"
    if listed == "suspects":
        if view.survey.trust != "exact":
            return "not shown: only the losses of single samples can tell; report a vector of losses"
        return view.survey.no_suspects or "none"
    return "none seen yet"


class Row(NamedTuple):
    """A sample in a list."""

    name: str
    loss: float
    last: float
    uses: int
    history: tuple[float, ...]
    note: str


def _rows(survey: SamplesSurveyed, listed: str) -> dict[int, Row]:
    """Name, loss, last loss, uses, history and note of each sample in a list, by position."""
    if listed == "suspects":
        columns = (
            survey.suspects,
            survey.suspect_names,
            survey.suspect_loss,
            (math.nan,) * len(survey.suspects),
            survey.suspect_uses,
            survey.suspect_history,
            tuple(
                f"{share(score, 0)} {clean(why, 20)}"
                for score, why in zip(survey.suspect_score, survey.suspect_why, strict=False)
            ),
        )
    else:
        columns = (
            survey.hardest,
            survey.hardest_names,
            survey.hardest_loss,
            survey.hardest_last,
            survey.hardest_uses,
            survey.hardest_history,
            tuple("suspect" if suspected else "" for suspected in survey.hardest_suspected),
        )
    return {
        index: Row(clean(name, 60), loss, last, uses, history, note)
        for index, name, loss, last, uses, history, note in zip(*columns, strict=False)
    }


def _sample_row(row: Row, loss: str, name_width: int, glyphs: Glyphs) -> Line:
    name, _, last, uses, history, note = row
    # In the decimals of the loss beside it.
    decimals = len(loss.partition(".")[2])
    before = f"{last:9.{decimals}f} " if math.isfinite(last) and "e" not in loss else short(last, 9) + " "
    return (
        Span(f"  {cell(name, name_width, glyphs)}"),
        Span(loss, "value"),
        Span(f" {before if last == last else ''}{uses:>6}  ", "label"),
        Span(spark(history, HISTORY, glyphs, least=0.0), "loss"),
        Span(f"  {note}", "warn"),
    )


def inspect_panel(view: View, index: int, width: int, height: int, theme: Theme) -> list[Line]:
    """All that is known of one sample."""
    glyphs = theme.glyphs
    survey = view.survey
    lines = [survey_rule(view, f"sample {index:,}", width, glyphs)]
    rows = {} if survey is None else {**_rows(survey, "suspects"), **_rows(survey, "hardest")}
    if index not in rows:
        return [*lines, (Span("  no longer in the list; Esc goes back", "label"),)][:height]
    name, loss, last, uses, history, note = rows[index]
    facts = [("name", name), ("loss", number(loss)), ("last loss", number(last)), ("uses", f"{uses:,}"), ("note", note)]
    lines += [(Span(f"  {label:<10}", "label"), Span(text, "value")) for label, text in facts if text]
    known = [(len(history) - place, value) for place, value in enumerate(history) if math.isfinite(value)]
    if known:
        lines += [(), (Span("  loss at the ends of the last epochs, newest first", "label"),)]
        most = max(value for _, value in known) or 1.0
        for ago, value in reversed(known):
            lines.append(
                (
                    Span(f"  {'newest' if ago == 1 else f'{ago - 1} before':<10}", "label"),
                    Span(short(value, 9) + " "),
                    *bar(max(0.0, value) / most, max(1, min(60, width - 24)), glyphs),
                )
            )
    return [cropped(line, width) for line in lines[:height]]

"""The samples page: the hardest samples or the suspects, or the history of one sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...events.samples import count_text
from ..state.sample_list import Row, known_samples, listed_samples
from ..state.ui_state import Scene, UiState
from ..state.view import View
from ..text import Line, Span, clean, fit, number
from ..theme import Glyphs, Theme
from .header import Rows, titled
from .parts import aligned, bar, cropped, remark, short, spark
from .quartiles import survey_rule

NOTE = 20
"""Width of a note where a label follows."""
HISTORY = 12
"""Cells of the history of a sample in a list."""


def samples_panel(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """The list a person selects from, or the sample that was selected."""
    if ui.inspected is not None:
        return inspect_panel(view, ui.inspected, width, theme)
    return hardest_panel(view, width, height, theme, ui)


samples_page = titled(samples_panel)


def hardest_panel(
    view: View, width: int, height: int, theme: Theme, ui: UiState | None = None, listed: str = "hardest"
) -> list[Line]:
    """The samples with the highest loss, or the suspects, with their history.

    On the samples page ``ui`` says which; elsewhere it is None, ``listed`` says so, and there is no selection.
    """
    glyphs = theme.glyphs
    listed = ui.listed if ui else listed
    keys = "  l: the others, Enter: history" if ui else ""
    lines = [survey_rule(view, _heading(view, listed) + keys, width, glyphs)]
    listed_rows = listed_samples(ui or UiState(listed=listed), view)
    indices, rows = list(listed_rows), list(listed_rows.values())
    marked = dict(ui.marked) if ui else {}
    if not rows:
        return [*lines, remark(clean(_why_empty(view, ui, listed)))]
    name_width = min(24, max(8, width - 53))
    loss_name, last_name = ("loss", f"{'last':>9} ") if listed == "hardest" else ("mean loss", "")
    reasons = "" if listed == "hardest" else "    score  reason"
    if any(row.labels for row in rows):
        reasons = f"{reasons:<{NOTE + 4}}label -> should be"
    head = f"  {'sample':<{name_width}}{loss_name:>9} {last_name}{'uses':>6}  {'last epochs':<{HISTORY}}{reasons}"
    lines.append((Span(fit(head, width), "label"),))
    room = max(0, height - 2)
    selected = min(ui.selected, len(rows) - 1) if ui else -1
    first = max(0, min(selected - room // 2, len(rows) - room))
    losses = aligned([row.loss for row in rows], 9)
    for place in range(first, min(len(rows), first + room)):
        line = _sample_row(rows[place], losses[place], name_width, glyphs, is_marked=indices[place] in marked)
        if place == selected:
            line = (Span(fit("".join(text for text, _ in line), width), "selected"),)
        lines.append(cropped(line, width))
    return lines


def _heading(view: View, listed: str) -> str:
    survey = view.survey
    if listed == "hardest":
        return "hardest samples"
    if survey is None or not survey.num_suspects:
        return "suspects"
    part = view.run is not None and survey.num_read < view.run.num_samples
    return f"suspects: {count_text(survey.num_suspects, survey.num_judged)}{', of a random part' * part}"


def _why_empty(view: View, ui: UiState | None, listed: str) -> str:
    if view.survey is None:
        return view.no_table or "known after the first look at the samples"
    if ui is not None and ui.filter:
        return f"none has {ui.filter!r} in its name"
    if listed == "suspects":
        if view.survey.trust != "exact":
            return "not shown: only the losses of single samples can tell; report a vector of losses"
        return view.survey.no_suspects or "none"
    return "none seen yet"


def _sample_row(row: Row, loss: str, name_width: int, glyphs: Glyphs, *, is_marked: bool) -> Line:
    name, _, last, uses, history, note = row[:6]
    # With the decimals of the loss beside it.
    decimals = len(loss.partition(".")[2])
    before = f"{last:9.{decimals}f} " if math.isfinite(last) and "e" not in loss else short(last, 9) + " "
    return (
        Span("* " if is_marked else "  ", "good"),
        Span(f"{fit(name, name_width - 1, glyphs.ellipsis)} "),
        Span(loss, "value"),
        Span(f" {before if last == last else ''}{uses:>6}  ", "label"),
        Span(spark(history, HISTORY, glyphs, least=min([0.0, *filter(math.isfinite, history)])), "loss"),
        Span(f"  {note}", "warn"),
        Span(f"{' ' * max(2, NOTE - len(note))}{row.labels}" if row.labels else "", "value"),
    )


def inspect_panel(view: View, index: int, width: int, theme: Theme) -> list[Line]:
    """Name, losses, uses and history of one sample."""
    glyphs = theme.glyphs
    survey = view.survey
    lines = [survey_rule(view, f"sample {index:,}", width, glyphs)]
    rows = {} if survey is None else known_samples(survey)
    if index not in rows:
        return [*lines, remark("no longer in the list; Esc goes back")]
    row = rows[index]
    name, loss, last, uses, history, note = row[:6]
    # The list of suspects does not say what each lost last.
    last_loss = "" if math.isnan(last) else number(last)
    facts = [("name", name), ("loss", number(loss)), ("last loss", last_loss), ("uses", f"{uses:,}"), ("note", note)]
    facts += [("label", row.given), ("should be", _suggestion(row))]
    lines += [(Span(f"  {label:<10}", "label"), Span(text, "value")) for label, text in facts if text]
    known = [(len(history) - place, value) for place, value in enumerate(history) if math.isfinite(value)]
    if known:
        lines += [(), (Span("  loss at the ends of the last epochs, newest first", "label"),)]
        low, high = (end(0.0, *(value for _, value in known)) for end in (min, max))
        span = high - low or 1.0
        for ago, value in reversed(known):
            when = Span(f"  {'newest' if ago == 1 else f'{ago - 1} before':<10}", "label")
            filled = bar((value - low) / span, max(1, min(60, width - 24)), glyphs)
            lines.append((when, Span(short(value, 9) + " "), *filled))
    return [cropped(line, width) for line in lines]


def _suggestion(row: Row) -> str:
    if not row.suggested or row.suggested == row.given:
        return ""
    return f"{row.suggested}, predicted at {row.votes:,} visits or more" if row.votes else row.suggested


def marked_rows(view: View, marked: Sequence[tuple[int, str]]) -> Rows:
    """The marked samples, with what is known now of those that are still in a list."""
    known = {} if view.survey is None else known_samples(view.survey)
    rows = (
        (index, name, row.given, row.suggested, row.loss, row.uses, row.note)
        if (row := known.get(index)) is not None
        else (index, name, None, None, None, None, None)
        for index, name in marked
    )
    return ("index", "name", "given_label", "predicted_label", "loss", "uses", "note"), rows


def samples_rows(view: View, scene: Scene) -> Rows:
    """The hardest samples."""
    survey = view.survey
    if survey is None:
        return ("index", "name", "loss", "last", "uses"), ()
    rows = zip(
        survey.hardest,
        map(clean, survey.hardest_names),
        survey.hardest_loss,
        survey.hardest_last,
        survey.hardest_uses,
        strict=False,
    )
    return ("index", "name", f"loss ({survey.source})", "last", "uses"), rows

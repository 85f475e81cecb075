"""The panels of all samples: the quartiles as a table and over time, histograms, moves between the quartiles."""

from __future__ import annotations

import numpy as np

from ...events import SamplesSurveyed
from ..state.ui_state import UiState
from ..state.view import View
from ..text import Line, Span, clean, fit, number, share
from ..theme import Glyphs, Theme
from .chart import LABEL, axis, dots, plot, scale_of_all
from .curves import window
from .parts import aligned, bar, cropped, joined, labelled, remark, rule, short, tower

QUARTILES = ("Q1", "Q2", "Q3", "Q4")
STYLES = ("q1", "q2", "q3", "q4")


def moved(survey: SamplesSurveyed) -> list[tuple[float, float]]:
    """Shares of all samples that entered and left each quartile; empty if unknown."""
    flow = survey.flow
    if len(flow) != 16:
        return []
    into = [sum(flow[4 * start + end] for start in range(4) if start != end) for end in range(4)]
    out = [sum(flow[4 * start + end] for end in range(4) if start != end) for start in range(4)]
    return list(zip(into, out, strict=True))


def is_ranked(survey: SamplesSurveyed | None) -> bool:
    """Whether there are quartiles to show."""
    return survey is not None and all(len(row) == 4 for row in (survey.low, survey.high, survey.mean, survey.uses))


def survey_rule(view: View, text: str, width: int, glyphs: Glyphs) -> Line:
    """A title with the source and trust of the values under it: "exact", "parts of 4: fair"."""
    survey = view.survey
    if survey is None:
        return rule(text, width, glyphs)
    words = survey.source if survey.source == survey.trust else f"{survey.source}: {survey.trust}"
    if view.run is not None and survey.num_read < view.run.num_samples:
        words += f", {survey.num_read:,} read"
    return rule(text, width, glyphs, clean(words, 60))


def quartile_line(view: View, width: int) -> Line:
    """The mean loss of each quartile, in one line."""
    survey = view.survey
    if survey is None or not is_ranked(survey):
        return ()
    parts = [
        (Span(name + " ", style), Span(number(mean, 3)))
        for name, style, mean in zip(QUARTILES, STYLES, survey.mean, strict=True)
    ]
    return (Span(" "), *joined(parts, width - 1, " "))


def quartile_panel(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """Loss range, mean, share of the data and of the last batch, uses, and moves of each quartile."""
    glyphs = theme.glyphs
    survey = view.survey
    has_groups = view.run is not None and view.run.policy == "balanced" and "groups" in view.run.settings
    groups = "; batches: groups first, then losses" if has_groups and width >= 64 else ""
    lines = [survey_rule(view, f"samples by loss{groups}", width, glyphs)]
    if survey is None or not is_ranked(survey):
        return [*lines, remark(view.no_table or "known once every sample was seen" if view.run else "")]
    wide = width >= 92
    moves = moved(survey)
    batch = f"{'last batch':<{19 if wide else 13}}"
    heads = f" {'':<3}{'loss from':>9} {'to':>9} {'mean':>9}  {'data':>5}  {batch}{'uses':>7}"
    heads += f"   {'in / out':>13}" if moves else ""
    lines.append((Span(fit(heads, width), "label"),))
    numbers = aligned([*survey.low, *survey.high, *survey.mean], 9)
    for row in range(4):
        texts = (numbers[row], numbers[4 + row], numbers[8 + row])
        lines.append(cropped(_quartile_row(survey, row, texts, moves, 12 if wide else 6, glyphs), width))
    return lines[:height]


def _quartile_row(
    survey: SamplesSurveyed,
    row: int,
    texts: tuple[str, str, str],
    moves: list[tuple[float, float]],
    bar_width: int,
    glyphs: Glyphs,
) -> Line:
    low, high, mean = texts
    data = f"{100 * survey.share[row]:4.0f}%" if len(survey.share) == 4 else "    ?"
    spans = [
        Span(f" {QUARTILES[row]} ", STYLES[row]),
        Span(f"{low} {high} "),
        Span(mean, "value"),
        Span(f"  {data}  ", "label"),
    ]
    if len(survey.batch_share) == 4:
        part = survey.batch_share[row]
        # Half of a batch from one quartile fills the bar.
        spans += [*bar(2 * part, bar_width, glyphs, STYLES[row]), Span(f" {100 * part:3.0f}%  ")]
    else:
        spans.append(Span(f"{'?':>{bar_width + 5}}  "))
    spans.append(Span(f"{short(round(survey.uses[row], 1), 7)}"))
    if moves:
        into, out = moves[row]
        spans.append(Span(f"  {100 * into:5.1f} /{100 * out:5.1f} %", "label"))
    return tuple(spans)


def histogram_line(view: View, width: int, theme: Theme) -> Line:
    """Losses and uses as histograms of one row."""
    survey = view.survey
    if survey is None or len(survey.loss_range) != 2 or len(survey.uses_range) != 2:
        return ()
    glyphs = theme.glyphs
    room = max(4, (width - 46) // 2)
    low, high = survey.loss_range
    least, most = survey.uses_range
    losses = Span(f" {tower(survey.loss_counts, room, 1, glyphs)[0]} ", "loss")
    loss = (*labelled("loss", number(low, 3), ""), losses, Span(number(high, 3)))
    uses = labelled("uses", f"{most} each", "")
    if most > least:
        bars = Span(f" {tower(survey.uses_counts, room, 1, glyphs)[0]} ", "metric")
        uses = (*labelled("uses", str(least), ""), bars, Span(str(most)))
    never = 1 - survey.num_seen / max(1, survey.num_read)
    return (Span(" "), *joined([loss, uses, labelled("never seen", share(never), "")], width - 1))


def loss_histogram(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """Histogram of the losses of the samples."""
    survey = view.survey
    ends = survey.loss_range if survey else ()
    texts = (number(ends[0], 3), f"{number(ends[1], 3)}+") if len(ends) == 2 else ("", "")
    how = "loss per sample" + (", log" if survey and survey.loss_is_log else "")
    how = how if width >= len(how) + 4 else how.replace(" per sample", "")
    return _histogram(how, survey.loss_counts if survey else (), texts, "loss", width, height, theme)


def uses_histogram(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """Histogram of the uses of the samples."""
    survey = view.survey
    ends = survey.uses_range if survey else ()
    texts = (f"{ends[0]}", f"{ends[1]}") if len(ends) == 2 else ("", "")
    return _histogram("uses per sample", survey.uses_counts if survey else (), texts, "metric", width, height, theme)


def _histogram(
    title: str, values: tuple[int, ...], ends: tuple[str, str], style: str, width: int, height: int, theme: Theme
) -> list[Line]:
    glyphs = theme.glyphs
    lines = [rule(title, width, glyphs)]
    if not values or height < 3:
        return lines[:height]
    inner = max(1, width - 2)
    lines += [(Span(" " + row, style),) for row in tower(values, inner, height - 2, glyphs)]
    first, last = ends
    # Without room for a gap the two would read as one number.
    text = f"{first}{last:>{inner - len(first)}}" if len(first) + len(last) < inner else last[:inner].rjust(inner)
    lines.append((Span(f" {text}", "label"),))
    return lines


def flow_panel(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """Moves of samples between the quartiles within an epoch."""
    survey = view.survey
    lines = [rule("moves in an epoch", width, theme.glyphs, "from row to column" if width >= 44 else "")]
    if survey is None or len(survey.flow) != 16:
        return [*lines, remark(view.no_table or "known after two epochs")]
    lines.append((Span("    to" + "".join(f"{name:>7}" for name in QUARTILES), "label"),))
    for start in range(4):
        row = survey.flow[4 * start : 4 * start + 4]
        total = sum(row) or 1.0
        cells = [Span(f"{100 * value / total:6.0f}%", "value" if end == start else "") for end, value in enumerate(row)]
        lines.append((Span(f"  {QUARTILES[start]}  ", STYLES[start]), *cells))
    learned = sum(survey.flow[4 * start + end] for start in range(4) for end in range(start))
    forgot = sum(survey.flow[4 * start + end] for start in range(4) for end in range(start + 1, 4))
    lines.append(
        (Span(" "), *joined([labelled("easier", share(learned), ""), labelled("harder", share(forgot), "")], width - 1))
    )
    return [cropped(line, width) for line in lines[:height]]


def ribbon_panel(view: View, ui: UiState, width: int, height: int, theme: Theme) -> list[Line]:
    """Bounds of the quartiles over the steps. An upper bound that stays while the others fall is noise, or too hard."""
    glyphs = theme.glyphs
    first, last = window(view, ui)
    cells = max(1, width - LABEL)
    title = rule("quartile bounds of the samples' loss", width, glyphs, "Q1|Q2, Q2|Q3, Q3|Q4")
    bounds = [point for point in view.bounds if len(point.values) == 5 and first <= point.step]
    if len(bounds) < 2:
        return [title, remark(view.no_table or "known after two surveys")]
    steps = np.array([point.step for point in bounds], float)
    values = np.array([point.values[1:4] for point in bounds], float).T
    places = first + (np.arange(cells * dots(glyphs)) + 0.5) / (cells * dots(glyphs)) * (last - first)
    curves = [np.interp(places, steps, row, left=np.nan, right=row[-1]) for row in values]
    scale = scale_of_all(curves, is_log=ui.log_scale)
    lines = [title, *plot(list(zip(curves, STYLES, strict=False)), max(1, height - 2), glyphs, scale)]
    lines.append(axis(cells, first, last, glyphs, [], (f"{first:,}", f"{last:,}")))
    return lines[:height]

"""The panels of samples: quartiles and histograms of all, the hardest, the suspects, the history of one."""

from __future__ import annotations

import math

import numpy as np

from ...events.samples import count_text
from ...events.text import clean, number
from ..state.ui_state import Row, Scene, UiState, listed_samples
from ..state.view import View
from ..text import Line, Span, aligned, bar, cropped, fit, remark, rule, short, spark, tower
from ..theme import Glyphs, Theme
from .chart import LABEL, axis, dots, plot, scale_of_all
from .curves import window

QUARTILES = ("Q1", "Q2", "Q3", "Q4")
QUARTILE_STYLES = ("q1", "q2", "q3", "q4")


def survey_rule(view: View, text: str, width: int, glyphs: Glyphs) -> Line:
    """A title with the source and trust of the values under it: "exact", "parts of 4: fair"."""
    survey = view.survey
    if survey is None:
        return rule(text, width, glyphs)
    words = survey.source if survey.source == survey.trust else f"{survey.source}: {survey.trust}"
    if view.run is not None and survey.num_read < view.run.num_samples:
        words += f", {survey.num_read:,} read"
    return rule(text, width, glyphs, clean(words, 60))


def quartile_panel(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """Loss range, mean, share of the data and of the last batch, and uses of each quartile."""
    glyphs = theme.glyphs
    survey = view.survey
    run = view.run
    has_groups = run is not None and run.policy == "balanced" and 0 < view.num_groups < run.batch_size
    groups = "; batches: groups first, then losses" if has_groups and width >= 64 else ""
    lines = [survey_rule(view, f"samples by loss{groups}", width, glyphs)]
    if survey is None or any(len(row) != 4 for row in (survey.low, survey.high, survey.mean, survey.uses)):
        return [*lines, remark(view.no_table or "known once every sample was seen" if view.run else "")]
    wide = width >= 92
    batch = f"{'last batch':<{19 if wide else 13}}"
    heads = f" {'':<3}{'loss from':>9} {'to':>9} {'mean':>9}  {'data':>5}  {batch}{'uses':>7}"
    lines.append((Span(fit(heads, width), "label"),))
    numbers = aligned([*survey.low, *survey.high, *survey.mean], 9)
    bar_width = 12 if wide else 6
    for row, (name, style) in enumerate(zip(QUARTILES, QUARTILE_STYLES, strict=True)):
        data = f"{100 * survey.share[row]:4.0f}%" if len(survey.share) == 4 else "    ?"
        spans = [Span(f" {name} ", style), Span(f"{numbers[row]} {numbers[4 + row]} ")]
        spans += [Span(numbers[8 + row], "value"), Span(f"  {data}  ", "label")]
        if len(survey.batch_share) == 4:
            part = survey.batch_share[row]
            # Half of a batch from one quartile fills the bar.
            spans += [*bar(2 * part, bar_width, glyphs, style), Span(f" {100 * part:3.0f}%  ")]
        else:
            spans.append(Span(f"{'?':>{bar_width + 5}}  "))
        spans.append(Span(f"{short(round(survey.uses[row], 1), 7)}"))
        lines.append(cropped(tuple(spans), width))
    return lines[:height]


def groups_panel(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """Mean loss, samples and course of each group that fits: those that get worse first, then the worst."""
    glyphs, groups = theme.glyphs, view.ranked_groups()
    shown = groups[: height - 2]
    many = f"{len(shown)} of {view.num_groups:,}, " if len(shown) < view.num_groups else ""
    lines = [survey_rule(view, f"groups: {many}rising and worst first", width, glyphs)]
    room = max(8, min(40, width - 44))
    lines.append((Span(fit(f" {'group':<{room}}{'samples':>10}{'mean loss':>11}  over time", width), "label"),))
    means = aligned([group.mean for group in shown], 10)
    for group, mean in zip(shown, means, strict=True):
        course = spark([point.value for point in group.points], HISTORY, glyphs)
        rising = f"  +{number(group.rise, 3)} above its lowest" if width >= 90 else f"  +{number(group.rise, 3)}"
        lines.append(cropped((
            Span(f" {fit(group.name, room, glyphs.ellipsis)}"), Span(f"{group.num_samples:>10,}", "label"),
            Span(f" {mean}", "value"), Span(f"  {course}", "loss"), Span(rising if group.rise else "", "warn"),
        ), width))  # fmt: skip
    return lines[:height]


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


def ribbon_panel(view: View, ui: UiState, width: int, height: int, theme: Theme) -> list[Line]:
    """Bounds of the quartiles over the steps. An upper bound that stays while the others fall is noise, or too hard."""
    glyphs = theme.glyphs
    first, last = window(view, ui)
    cells = max(1, width - LABEL)
    title = rule("quartile bounds of the samples' loss", width, glyphs, "Q1|Q2, Q2|Q3, Q3|Q4")
    bounds = [point for point in view.bounds if first <= point.step]
    if len(bounds) < 2:
        return [title, remark(view.no_table or "known after two surveys")]
    steps = np.array([point.step for point in bounds], float)
    values = np.array([point.values[1:4] for point in bounds], float).T
    places = first + (np.arange(cells * dots(glyphs)) + 0.5) / (cells * dots(glyphs)) * (last - first)
    curves = [np.interp(places, steps, row, left=np.nan, right=row[-1]) for row in values]
    scale = scale_of_all(curves, is_log=ui.log_scale)
    lines = [title, *plot(list(zip(curves, QUARTILE_STYLES, strict=False)), max(1, height - 2), glyphs, scale)]
    lines.append(axis(cells, first, last, glyphs, [], (f"{first:,}", f"{last:,}")))
    return lines[:height]


NOTE = 20
"""Width of a note where a label follows."""
HISTORY = 12
"""Cells of the history of a sample in a list."""


def samples_panel(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """The samples with the highest loss, or the suspects, with their history; or the one that was selected."""
    glyphs, survey, is_hardest = theme.glyphs, view.survey, ui.listed == "hardest"
    heading = "hardest samples" if is_hardest else "suspects"
    if not is_hardest and survey is not None and survey.num_suspects:
        is_part = view.run is not None and survey.num_read < view.run.num_samples
        heading += f": {count_text(survey.num_suspects, survey.num_judged)}{', of a random part' * is_part}"
    lines = [survey_rule(view, f"{heading}  l: the others", width, glyphs)]
    listed = listed_samples(ui, view)
    rows = list(listed.values())
    if not rows:
        return [*lines, remark(clean(_why_empty(view, ui)))]
    name_width = min(24, max(8, width - 53))
    loss_name, last_name = ("loss", f"{'last':>9} ") if is_hardest else ("mean loss", "")
    reasons = "" if is_hardest else "    score  reason"
    if any(row.labels for row in rows):
        reasons = f"{reasons:<{NOTE + 4}}label -> should be"
    head = f"  {'sample':<{name_width}}{loss_name:>9} {last_name}{'uses':>6}  {'last epochs':<{HISTORY}}{reasons}"
    lines.append((Span(fit(head, width), "label"),))
    room, selected = max(0, height - 2), min(ui.selected, len(rows) - 1)
    first = max(0, min(selected - room // 2, len(rows) - room))
    losses = aligned([row.loss for row in rows], 9)
    for place in range(first, min(len(rows), first + room)):
        line = _sample_row(rows[place], losses[place], name_width, glyphs)
        if place == selected:
            line = (Span(fit("".join(text for text, _ in line), width), "selected"),)
        lines.append(cropped(line, width))
    return lines


def _why_empty(view: View, ui: UiState) -> str:
    if view.survey is None:
        return view.no_table or "known after the first look at the samples"
    if ui.filter:
        return f"none has {ui.filter!r} in its name"
    if ui.listed == "hardest":
        return "none seen yet"
    if view.survey.trust != "exact":
        return "not shown: only the losses of single samples can tell; report a vector of losses"
    return view.survey.no_suspects or "none"


def _sample_row(row: Row, loss: str, name_width: int, glyphs: Glyphs) -> Line:
    # With the decimals of the loss beside it.
    last, decimals = row.last, len(loss.partition(".")[2])
    before = f"{last:9.{decimals}f} " if math.isfinite(last) and "e" not in loss else short(last, 9) + " "
    least = min([0.0, *filter(math.isfinite, row.history)])
    return (
        Span(f"  {fit(row.name, name_width - 1, glyphs.ellipsis)} "),
        Span(loss, "value"),
        Span(f" {before if last == last else ''}{row.uses:>6}  ", "label"),
        Span(spark(row.history, HISTORY, glyphs, least=least), "loss"),
        Span(f"  {row.note}", "warn"),
        Span(f"{' ' * max(2, NOTE - len(row.note))}{row.labels}" if row.labels else "", "value"),
    )

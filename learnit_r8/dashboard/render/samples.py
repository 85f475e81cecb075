"""The panels about samples: the quartile table, histograms, flow, hardest samples and suspects."""

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
from .parts import aligned, bar, cell, counts, cropped, joined, labelled, rule, share, short, spark, tower

QUARTILES = ("Q1", "Q2", "Q3", "Q4")
STYLES = ("q1", "q2", "q3", "q4")
HISTORY = 12
"""Cells of the trace of one sample in a list."""


def trust_of(survey: SamplesSurveyed | None, num_samples: int) -> str:
    """What per-sample values are, in words: "exact", "parts of 4: fair", "batch means of 32: rough"."""
    if survey is None:
        return ""
    read = "" if survey.num_read >= num_samples else f", {survey.num_read:,} read"
    words = survey.source if survey.source == survey.trust else f"{survey.source}: {survey.trust}"
    return clean(words + read, 60)


def moved(survey: SamplesSurveyed) -> list[tuple[float, float]]:
    """Share of all samples that came into each quartile, and that left it; nothing if unknown."""
    flow = survey.flow
    if len(flow) != 16:
        return []
    into = [sum(flow[4 * start + end] for start in range(4) if start != end) for end in range(4)]
    out = [sum(flow[4 * start + end] for end in range(4) if start != end) for start in range(4)]
    return list(zip(into, out, strict=True))


def is_ranked(survey: SamplesSurveyed | None) -> bool:
    """Whether there are quartiles to show."""
    return survey is not None and all(len(row) == 4 for row in (survey.low, survey.high, survey.mean, survey.uses))


def _title(view: View, text: str, width: int, glyphs: Glyphs) -> Line:
    num_samples = view.run.num_samples if view.run else 0
    return rule(text, width, glyphs, trust_of(view.survey, num_samples))


def quartile_line(view: View, width: int, theme: Theme) -> Line:
    """The mean loss of each quartile, in one line."""
    survey = view.survey
    if survey is None or not is_ranked(survey):
        return ()
    parts = [
        (Span(name + " ", style), Span(number(float(f"{mean:.3g}"))))
        for name, style, mean in zip(QUARTILES, STYLES, survey.mean, strict=True)
    ]
    return (Span(" "), *joined(parts, width - 1, " "))


def quartile_panel(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """Range, mean, share of the data and of the last batch, uses, and moves of each quarter of the samples."""
    glyphs = theme.glyphs
    survey = view.survey
    lines = [_title(view, "samples by loss", width, glyphs)]
    if survey is None or not is_ranked(survey):
        text = "known once every sample was seen" if view.run else ""
        return [*lines, (Span(f"  {text}", "label"),)][:height]
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
    parts: list[Line] = [
        (
            *labelled("loss", number(float(f"{low:.3g}")), ""),
            Span(f" {counts(survey.loss_counts, room, glyphs)} ", "loss"),
            Span(number(float(f"{high:.3g}"))),
        ),
        (
            *labelled("uses", str(least), ""),
            Span(f" {counts(survey.uses_counts, room, glyphs)} ", "metric"),
            Span(str(most)),
        )
        if most > least
        else labelled("uses", f"{most} each", ""),
        unseen_part(survey),
    ]
    return (Span(" "), *joined(parts, width - 1))


def unseen_part(survey: SamplesSurveyed) -> Line:
    """Which share was never seen."""
    never = 1 - survey.num_seen / max(1, survey.num_read)
    return labelled("never seen", share(never), "")


def loss_histogram(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """How many samples have which loss."""
    survey = view.survey
    ends = survey.loss_range if survey else ()
    texts = (number(float(f"{ends[0]:.3g}")), f"{number(float(f'{ends[1]:.3g}'))}+") if len(ends) == 2 else ("", "")
    how = "loss per sample" + (", log" if survey and survey.loss_is_log else "")
    how = how if width >= len(how) + 4 else how.replace(" per sample", "")
    return _histogram(how, survey.loss_counts if survey else (), texts, "loss", width, height, theme)


def uses_histogram(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """How many samples were used how often."""
    survey = view.survey
    ends = survey.uses_range if survey else ()
    texts = (f"{ends[0]}", f"{ends[1]}") if len(ends) == 2 else ("", "")
    return _histogram("uses per sample", survey.uses_counts if survey else (), texts, "metric", width, height, theme)


def _histogram(
    title: str,
    values: tuple[int, ...],
    ends: tuple[str, str],
    style: str,
    width: int,
    height: int,
    theme: Theme,
) -> list[Line]:
    glyphs = theme.glyphs
    lines = [rule(title, width, glyphs)]
    if not values or height < 3:
        return lines[:height]
    inner = max(1, width - 2)
    lines += [(Span(" " + row, style),) for row in tower(values, inner, height - 2, glyphs)]
    first, last = ends
    lines.append((Span(f" {first}{last:>{max(0, inner - len(first))}}", "label"),))
    return lines


def flow_panel(view: View, width: int, height: int, theme: Theme) -> list[Line]:
    """Where the samples of each quartile went within an epoch: is the hard part still being learned?"""
    survey = view.survey
    lines = [rule("moves in an epoch", width, theme.glyphs, "from row to column" if width >= 44 else "")]
    if survey is None or len(survey.flow) != 16:
        return [*lines, (Span("  known after two epochs", "label"),)][:height]
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
    lines = [_title(view, _heading(view, listed) + keys, width, glyphs)]
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
    lines = [_title(view, f"sample {index:,}", width, glyphs)]
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

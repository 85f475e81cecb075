"""The panels of text: events, captured output, configuration; the help, the footer, the question how to leave."""

from __future__ import annotations

from collections.abc import Sequence

from ..keys import MENU, TABLE, works
from ..looking import VIEWS, Looking, Scene
from ..text import Line, Span, clean, clip, fit
from ..theme import Theme
from ..view import Entry, View
from ..words import clock
from .parts import cropped, padded, rule, size_of

LEGEND = (
    ("", ""),
    ("line, haze", "mean, lowest to highest loss"),
    ("▲ ^", "a spike beyond the chart"),
    ("S B", "loss refused, model restored"),
    ("C R", "checkpoint saved, run resumed"),
    ("suspicion", "how near a loss is to refusal"),
    ("Q1 .. Q4", "quarters of the samples by loss"),
    ("in / out", "moved in an epoch, of all samples"),
    ("exact", "losses of single samples"),
    ("fair", "means of small parts of batches"),
    ("rough", "batch means: little is known"),
)
"""What the help says of the marks and words on the screen."""

LEAST_HELP = 38
"""Cells of a column of the help."""

_STYLES = {"info": "", "good": "good", "warn": "warn", "alert": "alert"}
_TAGS = {"info": "     ", "good": "ok   ", "warn": "WARN ", "alert": "ALERT"}


def chosen_entries(view: View, looking: Looking) -> list[Entry]:
    """Events that pass the filter, newest first."""
    wanted = looking.filter.lower() if looking.view == "events" else ""
    alerts = looking.alerts_only and looking.view == "events"
    entries = view.alerts if alerts else view.log
    return [entry for entry in reversed(entries) if not wanted or wanted in entry.text.lower()]


def events_panel(view: View, looking: Looking, width: int, height: int, theme: Theme) -> list[Line]:
    """What happened, newest first."""
    entries = chosen_entries(view, looking)
    note = f"{view.num_entries:,}, {view.num_alerts:,} warnings"
    if looking.view == "events" and (looking.alerts_only or looking.filter):
        note = f"{len(entries):,} of {note}"
    lines = [rule("events", width, theme.glyphs, note)]
    room = height - 1
    first = min(looking.scroll, max(0, len(entries) - room)) if looking.view == "events" else 0
    lines += [entry_line(entry, width, theme) for entry in entries[first : first + room]]
    if not entries:
        lines.append((Span("  nothing yet" if not looking.filter else "  none has that text", "label"),))
    return lines[:height]


def entry_line(entry: Entry, width: int, theme: Theme) -> Line:
    """One event: when, at which step, how bad, what."""
    when, step = f" {clock(entry.seconds):>8}", f"{entry.step:>9,} "
    text = clip(entry.text, max(0, width - len(when) - len(step) - 8), theme.glyphs.ellipsis)
    style = _STYLES[entry.level]
    return cropped(
        (Span(when, "label"), Span(f" {step}", "label"), Span(_TAGS[entry.level], style), Span(" " + text)), width
    )


def output_panel(looking: Looking, scene: Scene, width: int, height: int, theme: Theme) -> list[Line]:
    """What the program printed, newest last."""
    lines: Sequence[str] = scene.output
    if looking.filter:
        wanted = looking.filter.lower()
        lines = [line for line in lines if wanted in clean(line).lower()]
    title = rule("captured output", width, theme.glyphs, f"{scene.num_output:,} lines")
    if not lines:
        return [title, (Span("  nothing was printed" if not looking.filter else "  no line has that text", "label"),)][
            :height
        ]
    room = max(0, height - 1)
    last = len(lines) - min(looking.scroll, max(0, len(lines) - room))
    shown = lines[max(0, last - room) : last]
    return [title, *((Span(clip(clean(line, 4 * width), width, theme.glyphs.ellipsis)),) for line in shown)][:height]


def config_panel(view: View, looking: Looking, scene: Scene, width: int, height: int, theme: Theme) -> list[Line]:
    """How the run was set up, with which versions, where its files are."""
    run = view.run
    rows: list[tuple[str, str]] = []
    if run is not None:
        rows = [
            ("name", run.name or "-"),
            ("samples", f"{run.num_samples:,} in batches of {run.batch_size:,}"),
            (
                "steps",
                f"{run.total_steps:,}"
                if run.total_steps
                else f"as many as {run.train_duration_seconds:g} s allow"
                if run.train_duration_seconds
                else "?",
            ),
            ("steps an epoch", f"{run.steps_per_epoch:,}"),
            *({"policy": run.policy} | run.settings).items(),
        ]
    if scene.folder:
        rows.append(("run folder", scene.folder))
    wanted = looking.filter.lower()
    rows = [(clean(name, 30), clean(value, 300)) for name, value in rows]
    rows = [row for row in rows if wanted in f"{row[0]} {row[1]}".lower()]
    label = min(26, max((len(name) for name, _ in rows), default=0) + 2, max(8, width // 3))
    lines = [rule("configuration", width, theme.glyphs, f"{len(rows)}")]
    first = min(looking.scroll, max(0, len(rows) - (height - 1)))
    for name, value in rows[first : first + max(0, height - 1)]:
        lines.append(
            (
                Span("  " + fit(name, label), "label"),
                Span(clip(value, max(0, width - label - 2), theme.glyphs.ellipsis)),
            )
        )
    if not rows:
        lines.append((Span("  not known yet" if not looking.filter else "  none has that text", "label"),))
    return [cropped(line, width) for line in lines[:height]]


def help_panel(looking: Looking, width: int, height: int, theme: Theme) -> list[Line]:
    """Every key that works here, from the table that also drives them."""
    rows = [(binding.shown, binding.text) for binding in TABLE if looking.mode in binding.modes]
    lines = [rule("keys", width, theme.glyphs, "any key goes back")]
    entries = [f"  {shown:<11}{text}" for shown, text in (*rows, *LEGEND)]
    room = max(1, height - 1)
    across = min(-(-len(entries) // room), max(1, width // LEAST_HELP))
    down = -(-len(entries) // across)
    size = width // across
    for row in range(min(down, room)):
        parts = entries[row::down]
        lines.append(tuple(Span(fit(text, size, theme.glyphs.ellipsis)) for text in parts))
    return lines[:height]


def footer(looking: Looking, scene: Scene, width: int, theme: Theme) -> Line:
    """Views and keys, or what is being typed, or how to leave."""
    if looking.typing is not None:
        return cropped(
            (
                Span(" / ", "key"),
                Span(clean(looking.typing)),
                Span("_", "key"),
                Span("   Enter keeps, Esc goes back", "label"),
            ),
            width,
        )
    if looking.menu:
        return _menu_line(width)
    said = clip(clean(scene.said, 120), max(0, width // 2), theme.glyphs.ellipsis)
    end: Line = (Span(" " + said + " ", "warn"),) if said else ()
    room = width - size_of(end)
    line: list[Span] = [Span(" ")]
    room -= 1
    for shown, label, style in _footer_parts(looking, scene, room):
        text = f"{shown} {label}"
        if len(text) > room:
            continue
        line += [Span(shown, "key" if style != "selected" else style), Span(f" {label}", style or "label"), Span("  ")]
        room -= len(text) + 2
    return (*padded(tuple(line), width - size_of(end)), *end)


def _footer_parts(looking: Looking, scene: Scene, width: int) -> list[tuple[str, str, str]]:
    """Key, label and style of what fits, in the order of the table."""
    parts = []
    for binding in TABLE:
        if not binding.label or not works(binding, looking):
            continue
        label = binding.label
        is_view = binding.shown.isdigit()
        if is_view and int(binding.shown) == 5 and scene.num_unread:
            label += f"({scene.num_unread})"
        here = is_view and VIEWS[int(binding.shown) - 1] == looking.view
        parts.append((binding.shown, label, "selected" if here else ""))
    if looking.filter:
        parts.insert(0, ("/", f'"{clean(looking.filter, 20)}"', ""))
    return _fitting(parts, width - 1)


_RANKS = {"q": 0, "?": 1, "/": 3, "e": 3, "l": 3, "Enter": 3, "y": 4, "z": 4, "s": 5, "p": 5, "space": 7, "x": 8}
"""Which keys are named where there is little room: the lowest first; views come third."""


def _fitting(parts: list[tuple[str, str, str]], width: int) -> list[tuple[str, str, str]]:
    """The parts that fit, in their order; the most needed have the first choice."""
    kept = []
    for part in sorted(parts, key=lambda part: 0 if part[2] else _RANKS.get(part[0], 2)):
        size = len(part[0]) + len(part[1]) + 3
        if size <= width:
            kept.append(part)
            width -= size
    return [part for part in parts if part in kept]


def _menu_line(width: int) -> Line:
    texts = {key: action.value for key, action in MENU.items()}
    long = tuple(span for key, text in texts.items() for span in (Span(f" {key} ", "key"), Span(f"{text}  ", "value")))
    line: Line = (Span(" leave? ", "warn"), *long, Span("other: stay", "label"))
    if size_of(line) <= width:
        return line
    return cropped(
        (Span("leave? ", "warn"), Span("s", "key"), Span(" stop "), Span("d", "key"), Span(" detach")), width
    )

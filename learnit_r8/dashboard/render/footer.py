"""The footer, the help, and the question how to leave, made from the table of keys."""

from __future__ import annotations

from ..keys import MENU, TABLE, works
from ..state.ui_state import Scene, UiState
from ..state.view import View
from ..text import Line, Span, clean, clip, fit
from ..theme import Theme
from .parts import cropped, padded, rule, size_of

LEGEND = (
    ("", ""),
    ("line, haze", "mean, lowest to highest loss"),
    ("▲ ^", "a spike beyond the chart"),
    ("S B", "loss refused, model restored"),
    ("C R", "checkpoint saved, run resumed"),
    ("D", "cool-down (decay) began"),
    ("suspicion", "how near a loss is to refusal"),
    ("Q1 .. Q4", "quarters of the samples by loss"),
    ("in / out", "moved in an epoch, of all samples"),
    ("exact", "losses of single samples"),
    ("fair", "means of small parts of batches"),
    ("rough", "batch means: little is known"),
)
"""Marks and words on the screen, explained in the help."""


def help_panel(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """Every key of this mode, and the legend."""
    rows = [(binding.shown, binding.text) for binding in TABLE if ui.mode in binding.modes]
    entries = [f"  {shown:<11}{text}" for shown, text in (*rows, *LEGEND)]
    room = max(1, height - 1)
    # Only as many columns as cut no text: the rest can be scrolled to.
    across = min(-(-len(entries) // room), max(1, width // (max(map(len, entries)) + 1)))
    down = -(-len(entries) // across)
    size = width // across
    first = min(ui.help_scroll, max(0, down - room))
    note = "any key goes back" if down <= room else f"{first + 1} to {first + room} of {down}: up, down; else back"
    lines = [rule("keys", width, theme.glyphs, note)]
    for row in range(first, min(down, first + room)):
        parts = entries[row::down]
        lines.append(tuple(Span(fit(text, size, theme.glyphs.ellipsis)) for text in parts))
    return lines[:height]


def footer(ui: UiState, scene: Scene, width: int, theme: Theme) -> Line:
    """Views and keys, or the filter being typed, or the question of how to leave."""
    if ui.typing is not None:
        typed = Span(" / ", "key"), Span(clean(ui.typing)), Span("_", "key")
        return cropped((*typed, Span("   Enter keeps, Esc goes back", "label")), width)
    if ui.asking is not None:
        question = Span(" cool down for (20min, 500 steps, 20:30; empty: as the run's own share) ", "warn")
        short = Span(" cool down for ", "warn")
        head = question if size_of((question,)) + len(ui.asking) + 2 <= width else short
        return cropped((head, Span(clean(ui.asking)), Span("_", "key")), width)
    if ui.menu:
        return _menu_line(width)
    said = clip(clean(scene.said, 120), max(0, width // 2), theme.glyphs.ellipsis)
    end: Line = (Span(" " + said + " ", "warn"),) if said else ()
    room = width - size_of(end)
    line: list[Span] = [Span(" ")]
    for shown, label, style in _footer_parts(ui, scene, room - 1):
        line += [Span(shown, style or "key"), Span(f" {label}", style or "label"), Span("  ")]
    return (*padded(tuple(line), room), *end)


def _footer_parts(ui: UiState, scene: Scene, width: int) -> list[tuple[str, str, str]]:
    """Key, label and style of the bindings that fit: "selected" for the page that is shown, else ""."""
    parts = []
    for binding in TABLE:
        if not binding.label or not works(binding, ui):
            continue
        label = binding.label
        if binding.opens == "output" and scene.num_unread:
            label += f"({scene.num_unread})"
        parts.append((binding.shown, label, "selected" if binding.opens == ui.view else ""))
    if ui.filter:
        parts.insert(0, ("/", f'"{clean(ui.filter, 20)}"', ""))
    return _fitting(parts, width - 1)


_RANKS = {
    "q": 0,
    "?": 1,
    "7": 4,
    "8": 4,
    "9": 9,
    "/": 3,
    "e": 3,
    "l": 3,
    "Enter": 3,
    "y": 4,
    "z": 4,
    "s": 5,
    "p": 5,
    "space": 7,
    "x": 8,
}
"""Order in which keys get room in the footer, lowest first; views have rank 2."""


def _fitting(parts: list[tuple[str, str, str]], width: int) -> list[tuple[str, str, str]]:
    """The parts that fit, in their order; those of the lowest rank get room first."""
    kept = []
    for part in sorted(parts, key=lambda part: 0 if part[2] else _RANKS.get(part[0], 2)):
        size = len(part[0]) + len(part[1]) + 3
        if size <= width:
            kept.append(part)
            width -= size
    return [part for part in parts if part in kept]


def _menu_line(width: int) -> Line:
    line: Line = (Span(" leave? ", "warn"),)
    for key, action in MENU.items():
        line += (Span(f" {key} ", "key"), Span(f"{action.value}  ", "value"))
    line += (Span("other: stay", "label"),)
    if size_of(line) <= width:
        return line
    short = Span("leave? ", "warn"), Span("s", "key"), Span(" stop "), Span("d", "key"), Span(" detach")
    return cropped(short, width)

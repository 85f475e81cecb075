"""A frame of the screen: a page and the footer with the keys, or a few facts where there is no room for them."""

from __future__ import annotations

from ...events.text import clean
from ..keys import MENU, TABLE, works
from ..state.ui_state import Scene, UiState
from ..state.view import View
from ..text import Line, Span, clip, cropped, fit, in_ascii, padded, rule, size_of
from ..theme import Theme
from .header import title_line
from .pages import PAGES
from .texts import runs_panel

SMALL = (30, 6)
"""Cells and rows below which only the overview is shown, as much of it as fits."""

LEGEND = (
    ("", ""), ("line, haze", "mean, lowest to highest loss"), ("▲ ^", "a spike beyond the chart"),
    ("S B", "loss refused, model restored"), ("' R", "checkpoint saved, run resumed"),
    ("D", "cool-down (decay) began"), ("suspicion", "how near a loss is to refusal"),
    ("Q1 .. Q4", "quarters of the samples by loss"), ("exact", "losses of single samples"),
    ("fair", "means of small parts of batches"), ("rough", "batch means: little is known"),
)  # fmt: skip
"""Marks and words on the screen, explained in the help."""

_RANKS = {
    "q": 0, "?": 1, "/": 3, "e": 3, "l": 3, "Enter": 3, "7": 4, "8": 4, "y": 4, "z": 4, "s": 5, "p": 5, "space": 7,
}  # fmt: skip
"""Order in which keys get room in the footer, lowest first; views have rank 2."""


def render(
    view: View, ui: UiState, width: int, height: int, theme: Theme = Theme(), scene: Scene = Scene()
) -> list[Line]:
    """Draw a frame: exactly ``height`` lines, none wider than ``width`` cells.

    Their spans hold printable characters only, and names of styles that are in ``theme.styles``.
    """
    is_list, is_small = ui.mode == "list", width < SMALL[0] or height < SMALL[1]
    page = PAGES["overview" if is_small else ui.view].draw
    draw = runs_panel if is_list and not ui.help else help_panel if ui.help and not is_small else page
    lines = [] if is_list else [title_line(view, ui, width, theme, scene)]
    lines += draw(view, ui, width, height - 1 - len(lines), theme, scene)
    lines += [()] * (height - 1 - len(lines))
    lines = [*lines[: max(1, height - 1)], footer(ui, scene, width, theme)]
    if theme.glyphs.name == "ascii":
        lines = [tuple(Span(in_ascii(text), style) for text, style in line) for line in lines]
    for place, line in enumerate(lines):
        if not all(text.isprintable() for text, _ in line):
            # A panel has forgotten to clean it: no text of a run may attack its viewer.
            lines[place] = tuple(Span(clean(text), style) for text, style in line)
    return [cropped(line, width) for line in lines[:height]] + [()] * (height - len(lines))


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
        how = Span("   Enter keeps, Esc goes back", "label")
        return cropped((Span(" / ", "key"), Span(clean(ui.typing)), Span("_", "key"), how), width)
    if ui.asking is not None:
        question = " cool down for (20min, 500 steps, 20:30; empty: as the run's own share) "
        question = question if len(question) + len(ui.asking) + 2 <= width else " cool down for "
        return cropped((Span(question, "warn"), Span(clean(ui.asking)), Span("_", "key")), width)
    if ui.menu:
        menu: list[Span] = [Span(" leave? ", "warn")]
        for key, action in MENU.items():
            menu += [Span(f" {key} ", "key"), Span(f"{action.value}  ", "value")]
        menu.append(Span("other: stay", "label"))
        if size_of(menu) <= width:
            return tuple(menu)
        brief = Span("leave? ", "warn"), Span("s", "key"), Span(" stop "), Span("d", "key"), Span(" detach")
        return cropped(brief, width)
    said = clip(clean(scene.said, 120), max(0, width // 2), theme.glyphs.ellipsis)
    end: Line = (Span(" " + said + " ", "warn"),) if said else ()
    room = width - size_of(end)
    # Key, label and style of every binding: "selected" for the page that is shown.
    parts = [("/", f'"{clean(ui.filter, 20)}"', "")] if ui.filter else []
    for binding in TABLE:
        if binding.label and works(binding, ui):
            unread = f"({scene.num_unread})" if binding.opens == "output" and scene.num_unread else ""
            parts.append((binding.shown, binding.label + unread, "selected" if binding.opens == ui.view else ""))
    # Those of the lowest rank get room first.
    kept, free = [], room - 2
    for part in sorted(parts, key=lambda part: 0 if part[2] else _RANKS.get(part[0], 2)):
        size = len(part[0]) + len(part[1]) + 3
        if size <= free:
            kept.append(part)
            free -= size
    line: list[Span] = [Span(" ")]
    for shown, label, style in parts:
        if (shown, label, style) in kept:
            line += [Span(shown, style or "key"), Span(f" {label}", style or "label"), Span("  ")]
    return (*padded(tuple(line), room), *end)

"""Drawing: view and size in, lines of styled text out. Pure; no terminal in it."""

from __future__ import annotations

from ..looking import Looking, Scene
from ..text import Line, Span, clean, in_ascii
from ..theme import Theme
from ..view import View
from .header import title_line
from .overview import data_lines, overview_lines
from .parts import cropped
from .samples import hardest_panel, inspect_panel
from .small import small_lines
from .texts import config_panel, events_panel, footer, help_panel, output_panel

EMPTY: Line = ()
SMALL = (30, 6)
"""Below so many cells or rows, a few facts are all that fits."""

_THEME = Theme()
_SCENE = Scene()


def render(
    view: View, looking: Looking, width: int, height: int, theme: Theme = _THEME, scene: Scene = _SCENE
) -> list[Line]:
    """Draw what is known of a run.

    Args:
        view: What is known.
        looking: Where the person looks.
        width: Cells in a row, >= 1.
        height: Rows, >= 1.
        theme: Colours and characters.
        scene: What the owner of the screen knows beside the events: the time, captured output, its own cost.

    Returns:
        Exactly ``height`` lines, none wider than ``width`` cells. Spans hold printable characters only, and names of
        styles that are in ``theme.styles``.
    """
    if width < SMALL[0] or height < SMALL[1]:
        lines = small_lines(view, looking, width, height, theme, scene)
    else:
        lines = _body(view, looking, width, height - 1, theme, scene)
        lines += [EMPTY] * (height - 1 - len(lines))
        lines = [*lines[: height - 1], footer(looking, scene, width, theme)]
    if theme.glyphs.name == "ascii":
        lines = [tuple(Span(in_ascii(text), style) for text, style in line) for line in lines]
    return [cropped(_harmless(line), width) for line in lines[:height]] + [EMPTY] * (height - len(lines))


def _harmless(line: Line) -> Line:
    """The line, cleaned once more where somebody has forgotten it: nothing in a run may attack its viewer."""
    if all(text.isprintable() for text, _ in line):
        return line
    return tuple(Span(clean(text), style) for text, style in line)


def _body(view: View, looking: Looking, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    if not looking.help and looking.view == "overview":
        return overview_lines(view, looking, width, height, theme, scene)
    if not looking.help and looking.view == "data":
        return data_lines(view, looking, width, height, theme, scene)
    title = title_line(view, looking, width, theme, scene)
    return [title, *_page(view, looking, width, height - 1, theme, scene)]


def _page(view: View, looking: Looking, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """A view of one panel."""
    if looking.help:
        return help_panel(looking, width, height, theme)
    if looking.view == "events":
        return events_panel(view, looking, width, height, theme)
    if looking.view == "output":
        return output_panel(looking, scene, width, height, theme)
    if looking.view == "config":
        return config_panel(view, looking, scene, width, height, theme)
    if looking.inspected is not None:
        return inspect_panel(view, looking.inspected, width, height, theme)
    return hardest_panel(view, width, height, theme, looking)

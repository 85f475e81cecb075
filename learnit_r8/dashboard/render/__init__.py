"""Drawing: view and size in, lines of styled text out. Pure; no terminal in it."""

from __future__ import annotations

from ..looking import Looking, Scene
from ..text import Line, Span, clip, width_of
from ..theme import Theme
from ..view import View
from .header import header_lines

EMPTY: Line = ()

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
    lines = header_lines(view, looking, width, height, theme, scene)
    return [cropped(line, width) for line in lines[:height]] + [EMPTY] * (height - len(lines))


def cropped(line: Line, width: int) -> Line:
    """A line cut to a width."""
    kept: list[Span] = []
    for text, style in line:
        size = width_of(text)
        if size > width:
            kept.append(Span(clip(text, width, ""), style))
            break
        kept.append(Span(text, style))
        width -= size
    return tuple(kept)

"""A frame of the screen: a page and the footer, or a few facts where there is no room for them."""

from __future__ import annotations

from ..state.status import state_of
from ..state.ui_state import Scene, UiState
from ..state.view import View
from ..text import Line, Span, clean, clock, in_ascii, number, share
from ..theme import Theme
from .footer import footer, help_panel
from .header import titled
from .pages import PAGES
from .parts import bar, cropped, joined, labelled

SMALL = (30, 6)
"""Cells and rows below which only a few facts fit."""


def render(
    view: View, ui: UiState, width: int, height: int, theme: Theme = Theme(), scene: Scene = Scene()
) -> list[Line]:
    """Draw a frame: exactly ``height`` lines, none wider than ``width`` cells.

    Their spans hold printable characters only, and names of styles that are in ``theme.styles``.
    """
    if width < SMALL[0] or height < SMALL[1]:
        lines = _small(view, ui, width, height, theme, scene)
    else:
        draw = titled(help_panel) if ui.help else PAGES[ui.view].draw
        lines = draw(view, ui, width, height - 1, theme, scene)
        lines += [()] * (height - 1 - len(lines))
        lines = [*lines[: height - 1], footer(ui, scene, width, theme)]
    if theme.glyphs.name == "ascii":
        lines = [tuple(Span(in_ascii(text), style) for text, style in line) for line in lines]
    return [cropped(_harmless(line), width) for line in lines[:height]] + [()] * (height - len(lines))


def _harmless(line: Line) -> Line:
    """The line, cleaned where a panel has forgotten it: no text of a run may attack its viewer."""
    if all(text.isprintable() for text, _ in line):
        return line
    return tuple(Span(clean(text), style) for text, style in line)


def _small(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """Return progress, state, time left and loss, one fact a line on a narrow screen."""
    state = state_of(view, scene)
    now = scene.now if scene.now is not None else view.seconds
    facts: list[Line] = [
        (Span(share(view.progress), "value"),),
        (Span(state.word, state.style),),
        labelled("left", clock(view.time_left(now).seconds) if view.ended is None else "-", ""),
        labelled("loss", number(view.ema, 4), "loss"),
        labelled("ep", view.epoch_text, ""),
        labelled("lr", number(view.last.lr, 3), "lr") if view.last else (),
    ]
    if ui.menu:
        facts = [(Span("s stop", "warn"),), (Span("d detach", "warn"),), (Span("Esc", "label"),)]
    if height == 1:
        return [joined(facts, width, " ")]
    lines: list[Line] = [joined(facts[:2], width, " "), bar(view.progress, width, theme.glyphs)]
    rest = [fact for fact in facts[2:] if fact]
    while rest:
        line = joined(rest, width, " ")
        lines.append(line or rest[0])
        shown = {id(span) for span in line} or {id(rest[0][0])}
        rest = [fact for fact in rest if id(fact[0]) not in shown]
    return lines

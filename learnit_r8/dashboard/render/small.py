"""The smallest screens: the most important facts, as many as fit."""

from __future__ import annotations

from ..state.status import state_of
from ..state.ui_state import Scene, UiState
from ..state.view import View
from ..text import Line, Span, clock, number
from ..theme import Theme
from .header import total_left
from .parts import bar, joined, labelled, share


def small_lines(view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """Progress, state, time left and loss; one fact a line where it is narrow."""
    state = state_of(view, ui, scene)
    now = scene.now if scene.now is not None else view.seconds
    left, _ = total_left(view, now)
    facts: list[Line] = [
        (Span(share(view.progress), "value"),),
        (Span(state.word, state.style),),
        labelled("ETA", clock(left) if view.ended is None else "-", ""),
        labelled("loss", number(view.ema, 4), "loss"),
        labelled("ep", f"{view.epoch + 1}" + (f"/{view.total_epochs}" if view.total_epochs else ""), ""),
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

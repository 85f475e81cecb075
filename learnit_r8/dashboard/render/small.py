"""The smallest screens: the facts that matter most, as many as fit."""

from __future__ import annotations

from ..looking import Looking, Scene
from ..state import state_of
from ..text import Line, Span
from ..theme import Theme
from ..view import View
from ..words import clock, number
from .header import total_left
from .parts import bar, joined, labelled, share


def small_lines(view: View, looking: Looking, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """How far, how it is doing, how long, how good: one fact a line where it is narrow."""
    state = state_of(view, looking, scene)
    now = scene.now if scene.now is not None else view.seconds
    left, _ = total_left(view, now)
    facts: list[Line] = [
        (Span(share(view.progress), "value"),),
        (Span(state.word, state.style),),
        labelled("ETA", clock(left) if view.ended is None else "-", ""),
        labelled("loss", number(float(f"{view.ema:.4g}")), "loss"),
        labelled("ep", f"{view.epoch + 1}" + (f"/{view.total_epochs}" if view.total_epochs else ""), ""),
        labelled("lr", number(float(f"{view.last.lr:.3g}")), "lr") if view.last else (),
    ]
    if looking.menu:
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

"""The head of the screen: what runs, how far it is, how it is doing."""

from __future__ import annotations

from ..looking import Looking, Scene
from ..text import Line, Span, clean
from ..theme import Theme
from ..view import View
from ..words import number


def header_lines(view: View, looking: Looking, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
    """Name, epoch and step."""
    run = view.run
    name = clean(run.name, 60) if run else ""
    total = f"/{run.total_steps:,}" if run and run.total_steps else ""
    return [
        (Span(" learnit::r8  ", "title"), Span(name, "value")),
        (Span(f" epoch {view.epoch + 1}/{view.total_epochs or '?'}  step {view.step:,}{total}"),),
        (Span(f" loss {number(view.ema)}", "loss"),),
    ]

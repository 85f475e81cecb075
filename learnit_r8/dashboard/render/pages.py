"""The table of pages, which a person knows as views: name, texts and module of each.

To add a page, write a function ``<name>_panel`` that draws it in a module of this folder, and add a line to `PAGES`.
Keys, footer, help and ``learnit-r8 watch --view`` follow this table. To add a panel to a page that is there, write its
function in this folder, and call it where the page puts its panels together; for two of them that is ``overview.py``.

The modules are loaded when a page is drawn: the command line needs the names only.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..state.ui_state import Scene, UiState
    from ..state.view import View
    from ..text import Line
    from ..theme import Theme


@dataclass(frozen=True)
class Page:
    """A view of the run that fills the screen but for the footer.

    Attributes:
        name: Its name on the command line and in its functions.
        label: Its name in the footer.
        text: Its description in the help.
        module: The module of this folder with its functions.
        keys: Keys that open it beside its number.
        has_filter: Whether the filter key works: its lines must contain a typed text.
        has_chart: Whether the keys for scale and zoom of a chart work.
    """

    name: str
    label: str
    text: str
    module: str
    keys: tuple[str, ...] = ()
    has_filter: bool = False
    has_chart: bool = False

    def draw(self, view: View, ui: UiState, width: int, height: int, theme: Theme, scene: Scene) -> list[Line]:
        """Draw it, below its title."""
        panel = getattr(importlib.import_module(f".{self.module}", __package__), f"{self.name}_panel")
        lines: list[Line] = panel(view, ui, width, height, theme, scene)
        return lines


PAGES = {page.name: page for page in (
    Page("overview", "all", "overview", "overview", has_chart=True),
    Page("data", "data", "what happens to the data", "overview", has_chart=True),
    Page("samples", "samples", "hardest samples and suspects", "samples", has_filter=True),
    Page("events", "events", "what happened", "texts", has_filter=True),
    Page("output", "output", "captured output", "texts", keys=("o",), has_filter=True),
    Page("config", "config", "configuration, versions, files", "texts", has_filter=True),
    Page("metrics", "metrics", "your metrics and their best", "curves", has_filter=True, has_chart=True),
    Page("incidents", "incidents", "what went wrong, and what was tried", "texts", keys=("i",)),
)}  # fmt: skip
"""Every page by its name, in the order of their numbers."""

VIEWS = tuple(PAGES)

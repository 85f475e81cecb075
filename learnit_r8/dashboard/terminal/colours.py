"""Styles as curses attributes. Colour pairs are made when they are first used; a terminal may have few."""

from __future__ import annotations

import contextlib
from typing import Any

from ..theme import Style, Theme


class StyleAttributes:
    """The curses attributes of styles, by the name of the style.

    Args:
        curses: The module, started.
        theme: The styles.
        pairs: Colour -> number of its pair, shared by all themes; grows.
    """

    def __init__(self, curses: Any, theme: Theme, pairs: dict[int, int]) -> None:
        self.theme = theme
        self._curses, self._pairs = curses, pairs
        self._known: dict[str, int] = {}

    def __call__(self, name: str) -> int:
        """The attribute to draw with."""
        attribute = self._known.get(name)
        if attribute is None:
            attribute = self._known[name] = self._attribute(self.theme.styles.get(name, Style()))
        return attribute

    def _attribute(self, style: Style) -> int:
        curses = self._curses
        attribute: int = curses.A_NORMAL
        flags = (style.bold, curses.A_BOLD), (style.dim, curses.A_DIM), (style.reverse, curses.A_REVERSE)
        for wanted, flag in flags:
            attribute |= flag if wanted else 0
        if not self.theme.num_colours:
            return attribute
        colour = style.colour if min(self.theme.num_colours, curses.COLORS) >= 256 else style.colour8
        if colour is not None:
            with contextlib.suppress(curses.error, ValueError):
                attribute |= curses.color_pair(self._pair(colour))
        return attribute

    def _pair(self, colour: int) -> int:
        if colour not in self._pairs:
            number = len(self._pairs) + 1
            try:
                self._curses.init_pair(number, colour, -1)
            except self._curses.error:
                # A terminal without default colours.
                self._curses.init_pair(number, colour, self._curses.COLOR_BLACK)
            self._pairs[colour] = number
        return self._pairs[colour]

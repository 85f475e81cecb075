"""Styles as curses attributes. Colour pairs are made when they are first used; a terminal may have few."""

from __future__ import annotations

import contextlib
from typing import Any

from ..theme import Style


def attribute_of(style: Style, num_colours: int, pairs: dict[int, int], curses: Any) -> int:
    """The attribute that curses draws a style with.

    Args:
        style: The style.
        num_colours: Colours of the theme: 256, 8 or 0.
        pairs: Colour -> number of its pair; grows.
        curses: The module, started.
    """
    attribute: int = curses.A_NORMAL
    flags = (style.bold, curses.A_BOLD), (style.dim, curses.A_DIM), (style.reverse, curses.A_REVERSE)
    for wanted, flag in flags:
        attribute |= flag if wanted else 0
    if not num_colours:
        return attribute
    colour = style.colour if min(num_colours, curses.COLORS) >= 256 else style.colour8
    if colour is not None:
        with contextlib.suppress(curses.error, ValueError):
            attribute |= curses.color_pair(_pair(colour, pairs, curses))
    return attribute


def _pair(colour: int, pairs: dict[int, int], curses: Any) -> int:
    if colour not in pairs:
        number = len(pairs) + 1
        try:
            curses.init_pair(number, colour, -1)
        except curses.error:
            # A terminal without default colours.
            curses.init_pair(number, colour, curses.COLOR_BLACK)
        pairs[colour] = number
    return pairs[colour]

"""Names of the keys that curses reports: "a", "up", "ctrl-l", "escape"."""

from __future__ import annotations

from typing import Any

_KEYS = {
    "KEY_UP": "up", "KEY_DOWN": "down", "KEY_LEFT": "left", "KEY_RIGHT": "right", "KEY_PPAGE": "page up",
    "KEY_NPAGE": "page down", "KEY_HOME": "home", "KEY_END": "end", "KEY_BTAB": "shift-tab", "KEY_ENTER": "enter",
    "KEY_BACKSPACE": "backspace",
}  # fmt: skip
"""Names of the keys that are no characters, by their names in curses."""

_CHARACTERS = {"\x1b": "escape", "\n": "enter", "\r": "enter", "\t": "tab", "\x7f": "backspace", "\b": "backspace"}


def by_code(curses: Any) -> dict[int, str]:
    """The names of the keys that are no characters, by the numbers that curses gives them here."""
    return {getattr(curses, name): key for name, key in _KEYS.items() if hasattr(curses, name)}


def name_of(character: str) -> str:
    """The name of a key that is a character; "" for one that cannot be shown."""
    if character in _CHARACTERS:
        return _CHARACTERS[character]
    if character < " ":
        return "ctrl-" + chr(ord(character) + 96)
    return character if character.isprintable() else ""

"""Whether a process shows the screen or plain lines, by its environment."""

import pytest

from learnit_r8.dashboard import live

SCREEN = {"TERM": "xterm"}


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        (SCREEN, ""),
        ({}, "TERM is None"),
        ({"TERM": "dumb"}, "TERM is 'dumb'"),
        (SCREEN | {"CI": "1"}, "CI is set"),
        (SCREEN | {"CI": "false"}, ""),
        (SCREEN | {"RANK": "1"}, "another rank has the screen"),
        (SCREEN | {"RANK": "0"}, ""),
        (SCREEN | {"R8_UI": "plain"}, "R8_UI=plain"),
        (SCREEN | {"R8_UI": "screen", "CI": "1", "RANK": "1"}, ""),
    ],
)
def test_where_a_screen_is_not_wanted_there_are_lines(environ, why, monkeypatch):
    """The reason names what is in the way; R8_UI decides under CI and on other ranks."""
    monkeypatch.setattr(live, "_is_terminal", lambda stream, descriptor: True)
    monkeypatch.setattr(live, "is_in_background", lambda: False)

    assert live.why_plain(environ) == why
    monkeypatch.setattr(live.terminal_hooks, "is_taken", lambda: True)
    assert live.why_plain(environ) == (why or "another run has the screen")

"""The ground of a terminal: asked within a limit, on a real pseudo-terminal, whatever it answers."""

import os
import pty
import termios
import threading
import time

import pytest

from learnit_r8.dashboard.terminal.screen import ask_ground, find_ground


def answering(answer):
    """The ground that is found where the terminal answers so, what was asked, and whether its settings are the same."""
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    asked = []

    def terminal():
        asked.append(os.read(master, 100))
        if answer:
            os.write(master, answer)

    thread = threading.Thread(target=terminal)
    thread.start()
    ground = ask_ground(slave, slave, limit=5.0 if answer else 0.1)
    thread.join()
    same = termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)
    return ground, asked[0], same


@pytest.mark.parametrize(
    ("answer", "ground"),
    [
        (b"\x1b]11;rgb:ffff/ffff/ffff\x1b\\\x1b[?62;c", "light"),
        (b"\x1b]11;rgb:1e1e/1e1e/2e2e\x07\x1b[?1;2c", "dark"),
        (b"\x1b]11;rgba:ff/ff/e0/ff\x07\x1b[?6c", "light"),
        (b"\x1b[?6c", ""),
        (b"", ""),
    ],
    ids=["white", "dark", "short", "does not know", "silent"],
)
def test_terminal_is_asked(answer, ground):
    """Its answer tells the ground; one that answers only the second question, or nothing, leaves it open."""
    found, asked, is_same = answering(answer)

    assert found == ground
    assert asked.startswith(b"\x1b]11;?")
    assert is_same


def test_what_was_typed_ahead_is_not_read():
    """Keys that were pressed before belong to the program: the terminal is not asked then."""
    master, slave = pty.openpty()
    os.write(master, b"q\n")
    time.sleep(0.05)
    assert ask_ground(slave, slave) == ""
    assert os.read(slave, 10) == b"q\n"
    os.close(master)
    os.close(slave)


def test_stopped_output_holds_nothing_up():
    """A terminal whose output was stopped, as by Ctrl-S, is not waited for."""
    master, slave = pty.openpty()
    termios.tcflow(slave, termios.TCOOFF)
    found = []
    thread = threading.Thread(target=lambda: found.append(find_or_refuse(slave)), daemon=True)
    thread.start()
    thread.join(10)
    termios.tcflow(slave, termios.TCOON)
    thread.join(10)
    os.close(master)
    os.close(slave)

    assert found == ["refused"]


def find_or_refuse(terminal):
    try:
        return ask_ground(terminal, terminal)
    except BlockingIOError:
        return "refused"


def test_nobody_is_asked_where_the_environment_tells():
    assert find_ground({"COLORFGBG": "0;15", "TERM": "xterm"}) == "light"
    assert find_ground({"TERM": "dumb"}) == ""

"""However a run with a screen ends, the terminal is as it was, and what went wrong can be read on it."""

import signal
import sys

import pytest

from tests.terminals import ENTER, LEAVE, SHOW_CURSOR, Terminal

LOOP = """
import atexit, os, signal, sys, threading, time
from learnit_r8 import R8Scheduler

def at(step):
    return r8.global_step == step

def train(body, num_steps=100_000, seconds=0.002):
    for epoch in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            time.sleep(seconds)
            body()
            r8.update_with_loss(1.0)

atexit.register(lambda: print("atexit ran"))
r8 = R8Scheduler(1000, batch_size=10, num_steps=int(sys.argv[1]), use_curses=True, name="matrix")
"""

WITH = LOOP + "with r8:\n    train(body)\nprint('code after the loop')\n"
FINALLY = LOOP + "try:\n    train(body)\nfinally:\n    r8.close()\n    print('finally ran')\n"
BARE = LOOP + "train(body)\n"

RAISE = """
def body():
    if at(60):
        raise ValueError("what went wrong")
"""
EXIT = """
def body():
    if at(60):
        sys.exit(7)
"""
THREAD = """
def fail():
    raise ValueError("what went wrong")

def body():
    if at(60):
        threading.Thread(target=fail).start()
"""
NOTHING = """
def body():
    pass
"""


def program(body, frame):
    """The frame with the body defined before the loop is entered."""
    head, tail = frame[: len(LOOP)], frame[len(LOOP) :]
    return head + body + tail


def check_restored(terminal):
    """The screen was left once and for all, after the last frame, with the cursor on and the settings as before."""
    assert terminal.is_restored
    assert terminal.raw.count(ENTER) == terminal.raw.count(LEAVE) == 1
    assert SHOW_CURSOR in terminal.raw[terminal.raw.rfind(LEAVE) - 40 :]


@pytest.mark.parametrize("frame", [WITH, FINALLY, BARE], ids=["with", "finally", "bare"])
def test_normal_end(frame):
    """At the end of a run the terminal comes back and what is printed afterwards is on it."""
    with Terminal(["-c", program(NOTHING, frame), "60"]) as terminal:
        code = terminal.wait_for_end()

        check_restored(terminal)
        assert code == 0
        assert "atexit ran" in terminal.after


@pytest.mark.parametrize("frame", [WITH, FINALLY, BARE], ids=["with", "finally", "bare"])
def test_exception(frame):
    """The traceback of an exception is on the normal screen, whether or not the run was closed."""
    with Terminal(["-c", program(RAISE, frame), "1000"]) as terminal:
        code = terminal.wait_for_end()

        check_restored(terminal)
        assert code == 1
        assert "Traceback (most recent call last)" in terminal.after
        assert "ValueError: what went wrong" in terminal.after


@pytest.mark.parametrize("frame", [WITH, BARE], ids=["with", "bare"])
def test_sys_exit(frame):
    """sys.exit() ends the program with its code, and atexit runs."""
    with Terminal(["-c", program(EXIT, frame), "1000"]) as terminal:
        code = terminal.wait_for_end()

        check_restored(terminal)
        assert code == 7
        assert "atexit ran" in terminal.after


def test_exception_in_a_thread():
    """An exception in another thread does not end the run, and its traceback is shown at the end."""
    with Terminal(["-c", program(THREAD, WITH), "200"]) as terminal:
        code = terminal.wait_for_end()

        check_restored(terminal)
        assert code == 0
        assert "ValueError: what went wrong" in terminal.after


@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize("frame", [WITH, BARE], ids=["with", "bare"])
def test_ctrl_c(frame, presses):
    """Ctrl-C raises KeyboardInterrupt as without a screen, and its traceback can be read."""
    with Terminal(["-c", program(NOTHING, frame), "1000000"]) as terminal:
        terminal.wait_for("matrix")
        terminal.press("\x03" * presses)
        terminal.wait_for_end()

        check_restored(terminal)
        assert "KeyboardInterrupt" in terminal.after


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("frame", [WITH, FINALLY, BARE], ids=["with", "finally", "bare"])
def test_ending_signals(frame, number):
    """SIGTERM and SIGHUP run finally and atexit."""
    with Terminal(["-c", program(NOTHING, frame), "1000000"]) as terminal:
        terminal.wait_for("matrix")
        terminal.signal(number)
        code = terminal.wait_for_end()

        check_restored(terminal)
        assert code in (128 + number, -number)
        assert "atexit ran" in terminal.after
        assert "finally ran" in terminal.after or frame is not FINALLY


def test_signal_handlers_are_restored():
    """After the run every signal has the disposition it had before, as the system sees it."""
    code = (
        "import signal\n"
        "def caught():\n"
        "    lines = [line.split() for line in open('/proc/self/status') if line.startswith(('SigIgn', 'SigCgt'))]\n"
        "    return [int(mask, 16) % 2**31 for name, mask in lines]\n"
        "before = caught()\n" + program(NOTHING, WITH) + "print('same' if caught() == before else caught())\n"
    )
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    with Terminal(["-c", code, "60"]) as terminal:
        terminal.wait_for_end()

        assert "same" in terminal.after

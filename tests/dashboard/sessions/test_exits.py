"""However a run with a screen ends, the terminal is as it was, and what went wrong can be read on it."""

import signal
import sys

import pytest

from tests.dashboard.sessions.programs import BARE, FINALLY, WITH, check_restored, ended, program, shown

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

every_frame = pytest.mark.parametrize("frame", [WITH, FINALLY, BARE], ids=["with", "finally", "bare"])
closed_or_not = pytest.mark.parametrize("frame", [WITH, BARE], ids=["with", "bare"])


@every_frame
def test_normal_end(frame):
    """At the end of a run the terminal comes back and what is printed afterwards is on it."""
    with ended(program(frame=frame), 60) as terminal:
        check_restored(terminal)
        assert terminal.code == 0
        assert "atexit ran" in terminal.after


@every_frame
def test_exception(frame):
    """The traceback of an exception is on the normal screen, whether or not the run was closed."""
    with ended(program(RAISE, frame), 1000) as terminal:
        check_restored(terminal)
        assert terminal.code == 1
        assert "Traceback (most recent call last)" in terminal.after
        assert "ValueError: what went wrong" in terminal.after


@closed_or_not
def test_sys_exit(frame):
    """sys.exit() ends the program with its code, and atexit runs."""
    with ended(program(EXIT, frame), 1000) as terminal:
        check_restored(terminal)
        assert terminal.code == 7
        assert "atexit ran" in terminal.after


def test_exception_in_a_thread():
    """An exception in another thread does not end the run, and its traceback is shown at the end."""
    with ended(program(THREAD), 200) as terminal:
        check_restored(terminal)
        assert terminal.code == 0
        assert "ValueError: what went wrong" in terminal.after


@pytest.mark.parametrize("presses", [1, 2])
@closed_or_not
def test_ctrl_c(frame, presses):
    """Ctrl-C raises KeyboardInterrupt as without a screen, and its traceback can be read."""
    with shown(program(frame=frame)) as terminal:
        terminal.press("\x03" * presses)
        terminal.wait_for_end()

        check_restored(terminal)
        assert "KeyboardInterrupt" in terminal.after


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@every_frame
def test_ending_signals(frame, number):
    """SIGTERM and SIGHUP run finally and atexit."""
    with shown(program(frame=frame)) as terminal:
        terminal.signal(number)
        code = terminal.wait_for_end()

        check_restored(terminal)
        assert code in (128 + number, -number)
        assert "atexit ran" in terminal.after
        assert "finally ran" in terminal.after or frame is not FINALLY


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_signal_handlers_are_restored():
    """After the run every signal has the disposition it had before, as the system sees it."""
    code = (
        "import signal\n"
        "def caught():\n"
        "    lines = [line.split() for line in open('/proc/self/status') if line.startswith(('SigIgn', 'SigCgt'))]\n"
        "    return [int(mask, 16) % 2**31 for name, mask in lines]\n"
        "before = caught()\n" + program() + "print('same' if caught() == before else caught())\n"
    )
    with ended(code, 60) as terminal:
        assert "same" in terminal.after

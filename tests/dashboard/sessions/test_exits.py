"""However a run with a screen ends, the terminal is as it was, and what went wrong can be read on it."""

import signal
import sys

import pytest

from tests.dashboard.sessions.programs import BARE, FINALLY, NOTHING, WITH, check_restored, ended, program, shown

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

EARLY = """
import atexit, os, signal, sys, time, traceback
from learnit_r8 import R8Scheduler
from learnit_r8.dashboard.live import ScreenSession

def paint(session, paint=ScreenSession._paint):
    time.sleep(0.05)
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    time.sleep(0.05)
    paint(session)

ScreenSession._paint = paint
atexit.register(lambda: print("atexit ran"))
r8 = R8Scheduler(1000, batch_size=10, num_steps=int(sys.argv[1]), use_curses=True, name="matrix", handle_signals=False)
try:
    for epoch in r8.epoch_iterator():
        pass
except BaseException as error:
    print([frame.name for frame in traceback.extract_tb(error.__traceback__) if "threading" in frame.filename])
    raise
"""
"""A signal reaches the main thread while it waits for the first frame."""

ENDS = {
    "normal": (NOTHING, BARE, 60, 0, "atexit ran"),
    "exception": (RAISE, BARE, 1000, 1, "Traceback (most recent call last)"),
    "exit": (EXIT, FINALLY, 1000, 7, "atexit ran"),
    "thread": (THREAD, WITH, 200, 0, "ValueError: what went wrong"),
}
"""What happens in the loop, around it, its steps, the exit code, and what is read afterwards."""


@pytest.mark.parametrize("how", ENDS)
def test_terminal_comes_back(how):
    """At the end of a run, whether or not it was closed, the terminal comes back, and what is printed then is on it.

    That is the traceback of an exception, of one in another thread too, which does not end the run.
    """
    body, frame, steps, code, said = ENDS[how]
    with ended(program(body, frame), steps) as terminal:
        check_restored(terminal)
        assert terminal.code == code
        assert said in terminal.after
        assert ("ValueError: what went wrong" in terminal.after) == (body in (RAISE, THREAD))


@pytest.mark.parametrize(("frame", "presses"), [(BARE, 1), (WITH, 2)], ids=["bare", "with"])
def test_ctrl_c(frame, presses):
    """Ctrl-C raises KeyboardInterrupt as without a screen, and its traceback can be read."""
    with shown(program(frame=frame)) as terminal:
        terminal.press("\x03" * presses)
        terminal.wait_for_end()

        check_restored(terminal)
        assert "KeyboardInterrupt" in terminal.after


@pytest.mark.parametrize(("frame", "number"), [(WITH, signal.SIGTERM), (FINALLY, signal.SIGHUP)])
def test_ending_signals(frame, number):
    """SIGTERM and SIGHUP run finally and atexit."""
    with shown(program(frame=frame)) as terminal:
        terminal.signal(number)
        code = terminal.wait_for_end()

        check_restored(terminal)
        assert code in (128 + number, -number), terminal.after
        assert "atexit ran" in terminal.after
        assert "finally ran" in terminal.after or frame != FINALLY


@pytest.mark.parametrize(("name", "codes"), [("SIGHUP", (129, -1)), ("SIGTERM", (143, -15)), ("SIGINT", (130, -2))])
def test_a_signal_as_the_screen_opens(name, codes):
    """A signal before the first frame ends the run, and meets no lock of `threading` that its exception could break."""
    with ended(EARLY, 60, name) as terminal:
        check_restored(terminal)
        assert terminal.code in codes
        assert "[]" in terminal.after
        assert "atexit ran" in terminal.after


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

"""Programs that train with a screen, each on a terminal of its own."""

import contextlib

from tests.terminals import ENTER, LEAVE, SHOW_CURSOR, Terminal

ENDLESS = 1_000_000

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

NOTHING = """
def body():
    pass
"""


def program(body=NOTHING, frame=WITH):
    """The frame with the body of its loop."""
    head, tail = frame[: len(LOOP)], frame[len(LOOP) :]
    return head + body + tail


@contextlib.contextmanager
def shown(code, steps=ENDLESS, **terminal):
    """A terminal with a program whose screen is on."""
    with Terminal(["-c", code, str(steps)], **terminal) as opened:
        opened.wait_for("matrix")
        yield opened


@contextlib.contextmanager
def ended(code, steps, *arguments, **terminal):
    """A terminal whose program has ended, with its exit code."""
    with Terminal(["-c", code, str(steps), *arguments], **terminal) as opened:
        opened.code = opened.wait_for_end()
        yield opened


@contextlib.contextmanager
def all_ended(*runs, **terminal):
    """Terminals whose programs, each (code, steps), have ended; they mostly wait, and so run beside each other."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(Terminal(["-c", code, str(steps)], **terminal)) for code, steps in runs]
        for each in opened:
            each.code = each.wait_for_end()
        yield opened


def check_restored(terminal):
    """The screen was left once and for all, after the last frame, with the cursor on and the settings as before."""
    assert terminal.is_restored
    assert terminal.raw.count(ENTER) == terminal.raw.count(LEAVE) == 1
    assert SHOW_CURSOR in terminal.raw[terminal.raw.rfind(LEAVE) - 40 :]

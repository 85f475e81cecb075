"""Keys that act on the run, a terminal that goes away, and the same run with and without a screen."""

import contextlib
import os
import re
import sys
import time

from tests.dashboard.sessions.programs import LOOP, NOTHING, ended, program, shown
from tests.terminals import ENTER, LEAVE, Terminal

SAVING = LOOP.replace('name="matrix")', 'name="matrix", checkpoint_dir="saved", checkpoint_every=10**9)')
SAVED = SAVING + "with r8:\n    train(body)\nprint('code after the loop at step', r8.global_step)\n"


def running(tmp_path, body=NOTHING):
    """A run of many steps with checkpoints, and its screen."""
    return shown(SAVED[: len(SAVING)] + body + SAVED[len(SAVING) :], width=120, height=40, cwd=tmp_path)


def checkpoints(tmp_path):
    return sorted(path.name for path in (tmp_path / "saved").glob("ck_*.r8"))


def test_no_key_alone_ends_a_run(tmp_path):
    """No key alone ends the run or leaves the screen: q asks, and s after it ends the run, with a checkpoint."""
    with running(tmp_path) as terminal:
        for key in "q?hdkxXprcyz /123456oelgGjk+-\x1b\t\x0c\x11\x16\x04\x1c":
            terminal.press(key)
            terminal.read(0.02)
            terminal.press("\x1b")
            terminal.read(0.02)
        terminal.press("1")
        terminal.wait_for("loss")
        assert not terminal.has_ended()
        assert terminal.raw.count(LEAVE) == 0
        terminal.press("qs")
        code = terminal.wait_for_end()
        step = int(re.search(r"after the loop at step (\d+)", terminal.after)[1])

        assert code == 0
        assert terminal.is_restored
        assert step < 1_000_000
        assert checkpoints(tmp_path)


def test_detach_leaves_the_training_alone(tmp_path):
    """d after q closes the screen; the training goes on with plain lines and prints go to the terminal."""
    body = """
def body():
    if r8.global_step % 200 == 0:
        print("speaking", flush=True)
"""
    with running(tmp_path, body) as terminal:
        terminal.press("qd")
        terminal.wait_for(lambda: terminal.raw.count(LEAVE) == 1)
        terminal.wait_for(lambda: "speaking" in terminal.after)
        terminal.wait_for(lambda: re.search(r"r8 epoch \d+/\d+ step", terminal.after))

        assert terminal.is_restored
        assert not terminal.has_ended()
        terminal.press("\x03")
        terminal.wait_for_end()
        assert terminal.raw.count(ENTER) == 1


def test_keys_are_answered_during_a_long_step(tmp_path):
    """While the training is inside one long step, a key is answered as if it were not."""
    body = """
def body():
    if at(30):
        print("long step")
        time.sleep(600)
"""
    with running(tmp_path, body) as terminal:
        terminal.wait_for("output(1)")
        terminal.press("?")
        # The step takes ten times as long as this waits at most.
        terminal.wait_for("this help")


def test_messages_of_requests_go_with_their_answer(tmp_path):
    """What a key asked for is said until the training has done it, and no longer.

    Ctrl-S saves after the step, and stops no output; p makes the training wait, and p again lets it go on.
    """
    body = """
def body():
    open("step", "w").write(str(r8.global_step))
    while os.path.exists("slow"):
        open("waiting", "w").close()
        time.sleep(0.01)
"""
    with running(tmp_path, body) as terminal:
        (tmp_path / "slow").touch()
        # A step that had begun before could still answer.
        terminal.wait_for((tmp_path / "waiting").exists)
        terminal.press("\x13")
        terminal.wait_for("saving after this step...")
        (tmp_path / "slow").unlink()
        terminal.wait_for(lambda: checkpoints(tmp_path))
        terminal.wait_for(lambda: "saving after this step" not in terminal.text)
        terminal.press("p")
        terminal.wait_for("PAUSED")

        assert "pausing after this step" not in terminal.text
        before = (tmp_path / "step").read_text()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            terminal.read()
        assert (tmp_path / "step").read_text() == before
        terminal.press("p")
        terminal.wait_for("going on")
        terminal.wait_for(lambda: (tmp_path / "step").read_text() not in ("", before))


HANG_UP = """
import json, os, signal, sys, time
from learnit_r8 import R8Scheduler
signal.signal(signal.SIGHUP, signal.SIG_IGN)
with R8Scheduler(1000, batch_size=10, num_steps=200, use_curses=True, name="hung") as r8:
    for epoch in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            time.sleep(0.005)
            print("into nowhere")
            r8.update_with_loss(1.0)
open(sys.argv[1], "w").write(str(r8.global_step))
"""


def hang_up(terminal):
    """Close the terminal, and wait for the end of its program."""
    os.close(terminal.slave)
    os.close(terminal.master)
    end = time.monotonic() + 60
    while os.waitpid(terminal.pid, os.WNOHANG) == (0, 0):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_closed_terminal_does_not_reach_the_training(tmp_path):
    """Where the terminal is closed and the hang-up ignored (nohup), the training prints and ends as if it were open."""
    path = tmp_path / "done"
    terminal = Terminal(["-c", HANG_UP, str(path)])
    terminal.wait_for("hung")
    hang_up(terminal)

    assert path.read_text() == "200"


def test_hang_up_ends_like_sigterm(tmp_path):
    """Where the terminal is closed and nobody said to ignore it, the program ends by its normal way out."""
    code = program().replace('lambda: print("atexit ran")', f'lambda: open({str(tmp_path / "x")!r}, "w")')
    terminal = Terminal(["-c", code, "1000000"])
    terminal.wait_for("matrix")
    hang_up(terminal)

    assert (tmp_path / "x").exists()


SAME = """
import hashlib, json, sys, time
import numpy as np
from learnit_r8 import R8Scheduler

digest = hashlib.sha256()
with R8Scheduler(500, batch_size=16, num_epochs=8, use_curses=sys.argv[2] == "on", seed=3, name="same") as r8:
    for epoch in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            digest.update(indices.tobytes() + repr(lr).encode())
            time.sleep(0.004 if sys.argv[2] == "on" else 0)
            losses = 0.5 + (indices * 7919 % 101) / 50 + 1 / (1 + r8.global_step)
            r8.update_with_loss(losses * float("nan") if r8.global_step == 77 else losses)
        r8.log(accuracy=epoch / 10)
    digest.update(r8.table.loss.tobytes() + r8.table.usage_count.tobytes())
open(sys.argv[1], "w").write(digest.hexdigest())
"""


def test_screen_changes_no_batch_and_no_rate(tmp_path):
    """The same seed gives the same batches, rates and table with the screen off, and on and played with."""
    names = {"off": "off", "played": "on"}
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(Terminal(["-c", SAME, str(tmp_path / name), how])) for name, how in names.items()
        ]
        played = started[-1]
        played.wait_for("same")
        for size, keys in zip(((40, 12), (120, 40), (80, 24)), ("23", "?y4", "1pp"), strict=True):
            played.resize(*size)
            played.press(keys)
            played.read(0.1)
        for terminal in started:
            terminal.wait_for_end()

    assert len({(tmp_path / name).read_text() for name in names}) == 1


def test_second_run_takes_the_screen_again():
    """Two runs one after the other in one program both have their screen."""
    code = program() + "r8 = R8Scheduler(1000, batch_size=10, num_steps=100, use_curses=True, name='two')\n"
    with shown(code + "with r8:\n    train(body)\n", 100) as terminal:
        terminal.wait_for("two")

        assert terminal.wait_for_end() == 0
        assert terminal.is_restored
        assert terminal.raw.count(ENTER) == terminal.raw.count(LEAVE) == 2


def test_two_runs_at_once_have_one_screen():
    """Of two runs at the same time the second gets lines, which do not reach the screen."""
    code = LOOP + (
        "other = R8Scheduler(1000, batch_size=10, num_steps=100, use_curses=True, name='other')\n"
        "def body():\n    if at(20):\n        with other:\n            for _ in range(100):\n"
        "                other.report(other.draw(), 1.0)\n"
        "with r8:\n    train(body)\n"
    )
    with ended(code, 200) as terminal:
        assert terminal.code == 0
        assert terminal.raw.count(ENTER) == 1
        assert "r8 other: 1,000 samples" in terminal.after


def test_bug_in_the_drawing_ends_the_screen_only():
    """An exception while drawing closes the screen with one line; the training goes on in plain lines."""
    code = (
        "import learnit_r8.dashboard.painter as painter\n"
        "draw, frames = painter.render, []\n"
        "def render(*arguments):\n"
        "    frames.append(1)\n"
        "    if len(frames) > 2:\n"
        "        raise RuntimeError('a bug\\nof two lines')\n"
        "    return draw(*arguments)\n"
        "painter.render = render\n"
    ) + program()
    with ended(code, 500) as terminal:
        assert terminal.code == 0
        assert terminal.is_restored
        assert "the screen is off, the training goes on" in terminal.after
        assert "finished after 500 steps" in terminal.after


def test_without_curses_there_are_lines():
    """Where Python has no curses one line says so, and plain lines follow."""
    code = "import sys\nsys.modules['curses'] = None\n" + program()
    with ended(code, 100) as terminal:
        assert terminal.code == 0
        assert b"Python has no curses here" in terminal.raw
        assert b"epoch 1/1 step 100/100" in terminal.raw
        assert b"\x1b" not in terminal.raw


def test_background_job_gets_lines():
    """A job in the background is neither stopped nor draws."""
    shell = f'set -m; {sys.executable} -c "$1" 100 & wait $!; echo code $?'
    start = "import os, sys; os.execvp('bash', ['bash', '-c', *sys.argv[1:]])"
    with Terminal(["-c", start, shell, "x", program()]) as terminal:
        terminal.wait_for(lambda: "code 0" in terminal.raw.decode())

        assert b"epoch 1/1 step 100/100" in terminal.raw
        assert ENTER not in terminal.raw

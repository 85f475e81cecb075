"""Random faults of the screen: none reaches the training, and the terminal comes back after every one of them."""

import contextlib
import json
import os
import random
import termios
import time

import pytest

from tests.terminals import Terminal

FAULTY = """
import errno, fcntl, hashlib, json, os, random, signal, struct, sys, termios, time
import curses
import numpy as np
import learnit_r8.dashboard.live as session
import learnit_r8.dashboard.painter as painter
from learnit_r8 import R8Scheduler
from learnit_r8.dashboard.terminal.screen import Screen

signal.signal(signal.SIGHUP, signal.SIG_IGN)
rng = random.Random(sys.argv[1])
render, paint, measure = painter.render, Screen.paint, Screen.measure
ERRORS = [ValueError("a bug"), curses.error("ERR"), OSError(errno.EIO, "gone"), RecursionError("deep"), KeyError(1)]

def resized():
    width, height = rng.choice([(1, 1), (80, 24), (300, 100), (rng.randint(1, 300), rng.randint(1, 100))])
    try:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    except OSError:
        pass

def faulty(function, fault):
    left = rng.randint(0, 3)
    def call(*arguments):
        nonlocal left
        left -= 1
        if left < 0:
            fault()
        return function(*arguments)
    return call

def fail():
    raise rng.choice(ERRORS)

def hang():
    time.sleep(20)

def train(use_curses):
    digest = hashlib.sha256()
    shown = dict(use_curses=use_curses, run_dir=False, name="faulty")
    with R8Scheduler(300, batch_size=16, num_steps=60, seed=1, **shown) as r8:
        for epoch in r8.epoch_iterator():
            for indices, lr in r8.batch_iterator():
                digest.update(indices.tobytes() + repr(lr).encode())
                if use_curses:
                    time.sleep(rng.choice([0, 0.004]))
                    if rng.random() < 0.1:
                        resized()
                    if rng.random() < 0.05 and sys.argv[4] == "prints":
                        print("printed\\x1b[2J", "x" * rng.randint(0, 500))
                losses = 0.5 + (indices * 7919 % 101) / 50
                r8.update_with_loss(losses * float("nan") if r8.global_step == 40 else losses)
        digest.update(r8.table.loss.tobytes())
    return digest.hexdigest()

expected = train(False)
done = []
for number in range(int(sys.argv[2])):
    painter.render, Screen.paint, Screen.measure = render, paint, measure
    session.END_SECONDS = 0.2
    kind = rng.choice(["size", "render", "paint", "measure", "hang", "none"])
    if kind == "render":
        painter.render = faulty(render, fail)
    elif kind == "paint":
        Screen.paint = faulty(paint, fail)
    elif kind == "measure":
        Screen.measure = faulty(measure, fail)
    elif kind == "hang":
        painter.render = faulty(render, hang)
    resized()
    done.append([kind, train(True) == expected])
open(sys.argv[3], "w").write(json.dumps(done))
"""

TERMS = ("xterm-256color", "xterm", "vt100", "linux", "screen", "tmux-256color", "dumb", "", "no-such", "ansi", "vt52")


def run_with_faults(seed, runs, path):
    """Some runs in one terminal with a fault each; (kind, whether the training was untouched, terminal restored)."""
    rng = random.Random(seed)
    outside = rng.choice(["none", "none", "keys", "stop output", "nobody reads", "close"])
    # Where there is no screen any more a program's own print() waits for the terminal or fails, as it does without us.
    prints = "quiet" if outside in ("stop output", "nobody reads", "close") else "prints"
    arguments = ["-W", "ignore", "-c", FAULTY, str(seed), str(runs), str(path), prints]
    with Terminal(arguments, term=rng.choice(TERMS), width=rng.randint(1, 200), height=rng.randint(1, 60)) as terminal:
        act_from_outside(terminal, outside, rng)
        if outside == "close":
            os.close(terminal.slave)
            os.close(terminal.master)
            os.waitpid(terminal.pid, 0)
            terminal.status = 0
            restored = True
        else:
            code = terminal.wait_for_end(within=120, reads=outside != "nobody reads")
            assert code == 0, terminal.raw[-3000:].decode(errors="replace")
            terminal.read(0.05)
            # What a terminal does not read it cannot be told; its settings come back all the same.
            restored = terminal.is_restored or (
                outside == "nobody reads" and termios.tcgetattr(terminal.slave) == terminal.modes
            )
    return [(outside, kind, same, restored) for kind, same in json.loads(path.read_text())]


def act_from_outside(terminal, how, rng):
    """What happens to the terminal while the runs go on."""
    end = time.monotonic() + rng.uniform(0.3, 1.5)
    while time.monotonic() < end and not terminal.has_ended():
        if how != "nobody reads":
            terminal.read(0.02)
        if how == "keys":
            with contextlib.suppress(OSError):
                terminal.press(rng.choice("123456?hjkGgyzc/x\x1b \t"))
    if how == "stop output":
        termios.tcflow(terminal.slave, termios.TCOOFF)


def check(results):
    wrong = [result for result in results if not (result[2] and result[3])]
    assert not wrong


def test_faults_do_not_reach_the_training(tmp_path):
    """Whatever breaks on the screen, the batches, rates and table are those without it, and the terminal comes back."""
    check(run_with_faults(1, 4, tmp_path / "done"))


@pytest.mark.slow
def test_thousand_faults(tmp_path):
    """None of a thousand random faults reaches the training; the terminal comes back after all of them."""
    results = []
    for seed in range(100, 225):
        results += run_with_faults(seed, 8, tmp_path / f"done-{seed}")
        check(results)

    assert len(results) == 1000

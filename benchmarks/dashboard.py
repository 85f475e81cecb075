"""What the screen costs, and what a terminal that misbehaves costs the training.

Real runs in real pseudo-terminals. "UI CPU" is the processor time of the screen's thread as the system counts it, over
the wall time of the run; "CPU a frame" and "bytes a frame" are its time and what the terminal was sent, over the
frames drawn. The stalls run beside the same loop without a screen, one after the other. "Faults" are runs in which the
screen's code raises or hangs at random, in terminals of random kinds and sizes that are closed, stopped or never read.

    python benchmarks/dashboard.py            all of it, about twenty-five minutes
    python benchmarks/dashboard.py --quick    some seconds of each
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import statistics
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

from overhead import processor

from learnit_r8 import events
from learnit_r8.events.condenser import Condenser
from tests.dashboard.sessions.test_faults import run_with_faults
from tests.terminals import Terminal

SIZES = ((80, 24), (120, 40), (200, 60))
MOST_BYTES = {(80, 24): 1500, (120, 40): 3500, (200, 60): 6000}
MOST_CPU_MS = {(80, 24): 3.0, (120, 40): 5.0, (200, 60): 8.0}

RUN = """
import json, os, sys, threading, time
import numpy as np
from learnit_r8 import R8Scheduler
from learnit_r8.dashboard.painter import Painter

draws, draw = [], Painter._draw
Painter._draw = lambda self, now: (draws.append(now), draw(self, now))
path, seconds, step_seconds, use_curses = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "screen"
times = np.zeros(10_000_000)
count = cpu = wall = frames = 0
rng = np.random.default_rng(0)

def screen_thread():
    return next((thread for thread in threading.enumerate() if thread.name == "r8-screen"), None)

def cpu_of(thread):
    return int(open(f"/proc/self/task/{thread.native_id}/schedstat").read().split()[0]) / 1e9

with R8Scheduler(50_000, batch_size=128, num_epochs=10_000, use_curses=use_curses, run_dir=False, name="bench") as r8:
    began = time.monotonic()
    for epoch in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            time.sleep(step_seconds)
            losses = rng.gamma(2.0, 1.0, len(indices)) / (1 + r8.global_step / 500) ** 0.5
            r8.update_with_loss(losses)
            now = times[count] = time.monotonic()
            count += 1
            thread = screen_thread() if use_curses and count % 64 == 0 else None
            if thread is not None:
                cpu, wall = cpu_of(thread), now - began
            if now - began > seconds:
                r8.requests.stop("measured")
                frames = len(draws)
                break
        if r8.requests.is_pending:
            break
took = times[:count]
gaps = np.diff(took)
out = dict(steps=count, seconds=took[-1] - took[0], worst_gap=gaps.max(), cpu=cpu, wall=wall, frames=frames)
json.dump({name: float(value) for name, value in out.items()}, open(path, "w"))
"""


def run(how: str, seconds: float, *, size: tuple[int, int] = (80, 24), step: float = 0.002, fault: str = "") -> Any:
    """One run of a number of seconds; what it measured of itself, its bytes and its exit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured"
        arguments = ["-c", RUN, str(path), str(seconds), str(step), how]
        with Terminal(arguments, width=size[0], height=size[1]) as terminal:
            if how == "screen":
                terminal.wait_for("bench")
            if fault == "Ctrl-S":
                terminal.press("\x13")
            if fault == "output stopped":
                termios.tcflow(terminal.slave, termios.TCOOFF)
            reads = fault in ("", "Ctrl-S")
            while fault == "not read, repainted" and not path.exists() and not terminal.has_ended():
                terminal.press("r")
                time.sleep(0.1)
            terminal.wait_for_end(within=seconds + 60, reads=reads)
            measured = json.loads(path.read_text())
            measured["exit"] = time.time() - path.stat().st_mtime
            terminal.read(0.1)
            measured["bytes"] = len(terminal.raw)
            measured["restored"] = terminal.is_restored
            measured["modes"] = termios.tcgetattr(terminal.slave) == terminal.modes
    return measured


def cost_of_frames(seconds: float) -> None:
    print(f"{processor()}\n\nThe screen beside steps of 2 ms and B = 128, {seconds:.0f} s each")
    print("  size      UI CPU   frames/s   CPU a frame   bytes a frame   must")
    for size in SIZES:
        measured = run("screen", seconds, size=size)
        frames, cpu = measured["frames"], measured["cpu"]
        print(
            f"  {size[0]:>3}x{size[1]:<4} {cpu / measured['wall']:>7.2%} {frames / measured['wall']:>9.2f} "
            f"{1e3 * cpu / frames:>10.2f} ms {measured['bytes'] / frames:>13,.0f}   "
            f"1 %, {MOST_CPU_MS[size]:.0f} ms, {MOST_BYTES[size]:,} B"
        )


def cost_of_listening(repeats: int) -> None:
    """Microseconds that the screen adds to a step on the training thread: a step handed to the queue."""
    queue: collections.deque[tuple[float, events.Event]] = collections.deque(maxlen=100_000)
    condenser = Condenser(lambda event: queue.append((time.monotonic(), event)))
    steps = [events.StepDone(step, step * 1e-3, 0, step / 2e4, 1.0, 1.0, 0.01, 32, False) for step in range(1, 20_001)]
    took = []
    for _ in range(repeats):
        began = time.thread_time()
        for step in steps:
            condenser(step)
        took.append((time.thread_time() - began) / len(steps) * 1e6)
    print(f"\nListening, on the training thread: {statistics.median(took):.2f} us a step (must 2)")


def stalls(seconds: float, repeats: int) -> None:
    print(f"\nTerminals that misbehave for {seconds:.0f} s, steps of 1 ms, against the same loop without a screen")
    print("  what                   steps   worst gap with / without   exit       terminal back")
    for fault in ("not read", "not read, repainted", "output stopped", "Ctrl-S"):
        shares, gaps, plain_gaps, exits, back = [], [], [], [], []
        for _ in range(repeats):
            plain = run("none", seconds, step=0.001)
            measured = run("screen", seconds, size=(200, 60), step=0.001, fault=fault)
            shares.append(measured["steps"] / measured["seconds"] / (plain["steps"] / plain["seconds"]))
            gaps.append(measured["worst_gap"])
            plain_gaps.append(plain["worst_gap"])
            exits.append(measured["exit"])
            back.append("yes" if measured["restored"] else "settings only" if measured["modes"] else "NO")
        print(
            f"  {fault:<20} {statistics.median(shares):>7.1%} {1e3 * max(gaps):>12.0f} ms / "
            f"{1e3 * max(plain_gaps):.0f} ms {max(exits):>13.2f} s   {', '.join(sorted(set(back)))}"
        )
    print("  must: 95 %, 100 ms, 3 s")


def faults(number: int) -> None:
    results: list[tuple[str, str, bool, bool]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(number // 8):
            results += run_with_faults(1000 + seed, 8, Path(folder) / f"done-{seed}")
    reached = sum(not same for _, _, same, _ in results)
    lost = sum(not restored for *_, restored in results)
    print(f"\n{len(results)} runs with random faults: {reached} reached the training, {lost} terminals not restored")
    for column, title in ((1, "in the screen's code"), (0, "of the terminal")):
        counts = collections.Counter(result[column] for result in results)
        print(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="some seconds of each")
    quick = parser.parse_args().quick
    cost_of_frames(5 if quick else 60)
    cost_of_listening(5 if quick else 30)
    stalls(3 if quick else 10, 1 if quick else 3)
    faults(16 if quick else 1000)


if __name__ == "__main__":
    main()

"""What the screen costs.

Real runs in real pseudo-terminals. "UI CPU" is the processor time of the screen's thread as the system counts it, over
the wall time of the run; "CPU a frame" and "bytes a frame" are its time and what the terminal was sent, over the
frames drawn. What a terminal that misbehaves costs the training is held by tests/dashboard/sessions.

    python benchmarks/dashboard.py            a minute for each size
    python benchmarks/dashboard.py --quick    some seconds of each
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

from overhead import processor

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
path, seconds = sys.argv[1], float(sys.argv[2])
count = cpu = wall = frames = 0
rng = np.random.default_rng(0)

def screen_thread():
    return next((thread for thread in threading.enumerate() if thread.name == "r8-screen"), None)

def cpu_of(thread):
    return int(open(f"/proc/self/task/{thread.native_id}/schedstat").read().split()[0]) / 1e9

with R8Scheduler(50_000, batch_size=128, num_epochs=10_000, use_curses=True, run_dir=False, name="bench") as r8:
    began = time.monotonic()
    for epoch in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            time.sleep(0.002)
            losses = rng.gamma(2.0, 1.0, len(indices)) / (1 + r8.global_step / 500) ** 0.5
            r8.update_with_loss(losses)
            now = time.monotonic()
            count += 1
            thread = screen_thread() if count % 64 == 0 else None
            if thread is not None:
                cpu, wall = cpu_of(thread), now - began
            if now - began > seconds:
                r8.requests.stop("measured")
                frames = len(draws)
                break
        if r8.requests.is_pending:
            break
json.dump({"cpu": float(cpu), "wall": float(wall), "frames": frames}, open(path, "w"))
"""


def run(seconds: float, size: tuple[int, int]) -> Any:
    """One run of a number of seconds; what it measured of itself, and its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured"
        arguments = ["-c", RUN, str(path), str(seconds)]
        with Terminal(arguments, width=size[0], height=size[1]) as terminal:
            terminal.wait_for("bench")
            terminal.wait_for_end(within=seconds + 60)
            terminal.read(0.1)
            return {**json.loads(path.read_text()), "bytes": len(terminal.raw)}


def cost_of_frames(seconds: float) -> None:
    print(f"{processor()}\n\nThe screen beside steps of 2 ms and B = 128, {seconds:.0f} s each")
    print("  size      UI CPU   frames/s   CPU a frame   bytes a frame   must")
    for size in SIZES:
        measured = run(seconds, size)
        frames, cpu = measured["frames"], measured["cpu"]
        print(
            f"  {size[0]:>3}x{size[1]:<4} {cpu / measured['wall']:>7.2%} {frames / measured['wall']:>9.2f} "
            f"{1e3 * cpu / frames:>10.2f} ms {measured['bytes'] / frames:>13,.0f}   "
            f"1 %, {MOST_CPU_MS[size]:.0f} ms, {MOST_BYTES[size]:,} B"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="some seconds of each")
    quick = parser.parse_args().quick
    cost_of_frames(5 if quick else 60)


if __name__ == "__main__":
    main()

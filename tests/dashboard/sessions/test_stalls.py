"""A terminal that does not read, or is gone, costs the training nothing."""

import termios
import time

from tests.terminals import Terminal

STEPS = """
import json, sys, time
from learnit_r8 import R8Scheduler

path, seconds, use_curses = sys.argv[1], float(sys.argv[2]), sys.argv[3] == "screen"
times = []
began = time.monotonic()
with R8Scheduler(1000, batch_size=10, num_steps=10_000_000, use_curses=use_curses, name="stall") as r8:
    for epoch in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            time.sleep(0.001)
            r8.update_with_loss(1.0 + r8.global_step % 7)
            times.append(time.monotonic())
            if times[-1] - began > seconds:
                r8.requests.stop("enough")
gaps = [b - a for a, b in zip(times, times[1:])]
json.dump({"steps": len(times), "worst_gap": max(gaps), "loop_seconds": times[-1] - began}, open(path, "w"))
"""


def steps_of(tmp_path, how, *, seconds, reads):
    """Steps done and the worst gap between two of them, and how long the program took to end after its loop."""
    import json

    path = tmp_path / f"{how}.json"
    with Terminal(["-c", STEPS, str(path), str(seconds), how]) as terminal:
        if how == "screen":
            terminal.wait_for("stall")
        code = terminal.wait_for_end(reads=reads)
        ended = time.time()
        assert code == 0, (code, terminal.raw[-3000:].decode(errors="replace"))
        took = json.loads(path.read_text())
        took["exit_seconds"] = ended - path.stat().st_mtime
        took["raw"] = terminal.raw
        took["modes_restored"] = termios.tcgetattr(terminal.slave) == terminal.modes
    return took


def test_terminal_that_nobody_reads(tmp_path):
    """A terminal nobody reads neither stops the training nor holds up the exit, and gets its settings back."""
    for _ in range(4):
        on = steps_of(tmp_path, "screen", seconds=1.0, reads=False)
        off = steps_of(tmp_path, "none", seconds=0.3, reads=True)
        assert on["modes_restored"]
        # One that waited for its reader would stand still; other programs may slow down either of the two.
        is_as_fast = on["steps"] / on["loop_seconds"] > 0.1 * off["steps"] / off["loop_seconds"]
        # On a busy machine any program takes its time to end.
        ends_as_soon = on["exit_seconds"] < 5 + 5 * off["exit_seconds"]
        if is_as_fast and ends_as_soon:
            break

    # A training that waits does so each time, a busy machine does not.
    assert is_as_fast, (on["steps"], off["steps"])
    assert ends_as_soon, (on["exit_seconds"], off["exit_seconds"])

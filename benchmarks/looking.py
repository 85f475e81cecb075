"""What it costs to look at a run beside the screen: loggers that hang, and the time to the first picture.

"Loggers": the same loop without a logger, with one that writes JSON lines, and with one whose `write` blocks for the
whole run, interleaved; the longest step and the median one of each, as the loop sees them. The time at the end is that
of `close()`. "Notebook": the processor time of the thread of its view, as the system counts it. "Commands": the CPU
time of whole processes, in turns.

    python benchmarks/looking.py            all of it, about three minutes
    python benchmarks/looking.py --quick    some seconds of each
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from overhead import processor

from learnit_r8 import R8Scheduler, events
from learnit_r8.loggers import Logger, TensorBoard

ROOT = Path(__file__).parent.parent
STEP_SECONDS = 0.001
COMMANDS = {"status": ["RUN"], "ls": ["RUN"], "watch": ["--once", "RUN"], "compare": ["RUN", "RUN"]}
MUST = {"--help": 0.15, "status": 0.5}
"""Seconds."""


class Blocked(Logger):
    """Hangs in its first event until the benchmark ends."""

    gate = threading.Event()

    def write(self, event: events.Event) -> None:
        self.gate.wait()


def one_run(logger: Logger | None, seconds: float) -> tuple[float, float, float, float]:
    """Longest and median time of a step beyond its own millisecond, the longest CPU time of a call, and the end's time.

    All in seconds. The CPU time of a call does not see what else the machine does.
    """
    times, calls = [], [0.0]

    def timed(event: events.Event) -> None:
        began = time.thread_time()
        logger(event)  # type: ignore[misc]
        if isinstance(event, events.StepDone):
            calls.append(time.thread_time() - began)

    listeners: list[Any] = [] if logger is None else [timed]
    with R8Scheduler(50_000, batch_size=100, num_epochs=10_000, listeners=listeners, run_dir=False) as r8:
        until = time.perf_counter() + seconds
        for _, _ in (batch for _ in r8.epoch_iterator() for batch in r8.batch_iterator()):
            began = time.perf_counter()
            busy = began + STEP_SECONDS
            while time.perf_counter() < busy:
                pass
            r8.update_with_loss(1.0)
            times.append(time.perf_counter() - began - STEP_SECONDS)
            if began > until:
                break
        r8.requests.stop("measured")
        ending = time.perf_counter()
    return max(times), statistics.median(times), max(calls), time.perf_counter() - ending


def loggers(seconds: float, repeats: int) -> None:
    print(f"\nLoggers beside steps of 1 ms, {repeats} x {seconds:.0f} s each, interleaved")
    print("  logger                longest step   median step   longest call, CPU      end   events lost")
    results: dict[str, list[tuple[float, float, float, float]]] = {}
    lost: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        makers: dict[str, Callable[[], Logger | None]] = {
            "none": lambda: None,
            "TensorBoard": lambda: TensorBoard(folder),
            "one that blocks": lambda: Blocked(most_queued=50),
        }
        for _ in range(repeats):
            for name, make in makers.items():
                logger = make()
                results.setdefault(name, []).append(one_run(logger, seconds))
                lost[name] = "-" if logger is None else f"{logger.num_lost:,} of {logger.num_events:,}"
        Blocked.gate.set()
    for name, measured in results.items():
        longest, usual, calls, end = zip(*measured, strict=True)
        usually = 1e6 * statistics.median(usual)
        print(
            f"  {name:<20} {1e3 * max(longest):>9.2f} ms {usually:>10.1f} us {1e3 * max(calls):>16.2f} ms "
            f"{max(end):>8.2f} s   {lost[name]}"
        )
    extra = max(one[0] for one in results["one that blocks"]) - max(one[0] for one in results["none"])
    print(f"  a logger that blocks adds {1e3 * extra:+.2f} ms to the longest step (must 1 ms; close() 5 s)")


def notebook(seconds: float) -> None:
    """CPU of the view of a notebook, and what a notebook keeps of it."""
    from learnit_r8.dashboard.notebook import NotebookView

    kept: list[str] = []
    view = NotebookView(display=lambda page, text, again: kept.append(page))
    rng, cpu, began = np.random.default_rng(0), 0.0, time.monotonic()
    with R8Scheduler(50_000, batch_size=128, num_epochs=10_000, listeners=[view], run_dir=False) as r8:
        for indices, _ in (batch for _ in r8.epoch_iterator() for batch in r8.batch_iterator()):
            time.sleep(0.002)
            r8.update_with_loss(rng.gamma(2.0, 1.0, len(indices)) / (1 + r8.global_step / 500) ** 0.5)
            if r8.global_step % 64 == 0:
                cpu = _cpu_of(view)
            if time.monotonic() - began > seconds:
                break
        wall = time.monotonic() - began
        r8.requests.stop("measured")
    print(
        f"\nNotebook view, steps of 2 ms, {seconds:.0f} s: {cpu / wall:.2%} of a core (must 1 %), {len(kept)} updates"
    )
    print(f"  the notebook keeps the last one: {len(kept[-1]) / 1000:.1f} kB, however long the run (must 200 kB)")


def _cpu_of(view: Any) -> float:
    path = Path(f"/proc/self/task/{view._thread.native_id}/schedstat")
    return int(path.read_text().split()[0]) / 1e9 if path.is_file() else float("nan")


def commands(repeats: int) -> None:
    """The time of commands on a run that a demo has left."""
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        _time("-m", "learnit_r8", "demo", "--seconds", "2", "--run-dir", run)
        print(f"\nCommands, whole processes in turns, {repeats} rounds; Python and numpy alone beside them")
        print("             CPU time, median (lowest to highest)   wall time, best     must")
        kinds = {
            "python -c ''": ["-c", ""], "import numpy": ["-c", "import numpy"],
            "--help": ["-m", "learnit_r8", "--help"],
            **{name: ["-m", "learnit_r8", name, *rest] for name, rest in COMMANDS.items()},
        }  # fmt: skip
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
        for _ in range(repeats):
            for name, arguments in kinds.items():
                taken[name].append(_time(*(run if each == "RUN" else each for each in arguments)))
        for name, times in taken.items():
            cpu = sorted(1e3 * each for each, _ in times)
            spread = f"{statistics.median(cpu):>9.0f} ms ({cpu[0]:.0f} to {cpu[-1]:.0f})"
            must = f"{MUST[name]:.2f} s" if name in MUST else ""
            print(f"  {name:<14}{spread:<34}{1e3 * min(wall for _, wall in times):>9.0f} ms   {must:>9}")


def _time(*arguments: str) -> tuple[float, float]:
    """CPU time of a process with its children, and its wall time, in seconds."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="some seconds of each")
    quick = parser.parse_args().quick
    print(processor())
    loggers(1.5 if quick else 20.0, 1 if quick else 3)
    notebook(4.0 if quick else 60.0)
    commands(2 if quick else 10)


if __name__ == "__main__":
    main()

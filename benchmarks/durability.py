"""Nothing is lost: processes killed while they save, and power cut at every operation.

    python benchmarks/durability.py [--kills 10000] [--skip-time] [--quick]

Each line says how often something was tried and how often it went wrong. The power cut is simulated on the real code:
file contents and directory entries have a volatile and a durable copy, what was not flushed persists not at all, half,
as zeros or whole, and directory operations persist as a prefix in order; the same with parts of the protocol left out
shows that the simulation sees what it should. POSIX only, as it forks.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

from learnit_r8 import CheckpointStore, NoValidCheckpoint, R8Scheduler
from learnit_r8.engine.settings import grouped

MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""A folder in memory: a kill does not see what was flushed, so the disk may be left in peace."""


def loss_of(indices):
    return 0.5 + (indices * 7919 % 101) / 50


def model_of(step):
    return b"model of step %d " % step * 40


def build(folder, step_of_model, **more):
    """A scheduler of 30 samples that resumes by itself; its model is the number of its step."""

    def save(state, path):
        Path(path).write_bytes(model_of(state["scheduler"]["pace"]["step"]))

    def load(path):
        step_of_model[0] = int(Path(path).read_bytes().split()[3])

    return R8Scheduler(
        30,
        batch_size=3,
        checkpoint_dir=folder,
        resume="auto",
        save_callback=save,
        load_callback=load,
        handle_signals=False,
        **grouped(dict(checkpoint_every=1, **more)),
    )


def forked(child):
    """Run ``child(write)`` in a fork: its number, and where to read what it wrote."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            child(lambda text: os.write(writing, text.encode()))
        except BaseException as error:
            os.write(writing, f"!{error!r}\n".encode())
        finally:
            os._exit(0)
    os.close(writing)
    return pid, reading


def lines_of(reading):
    with os.fdopen(reading, "rb") as file:
        return [line for line in file.read().decode().split("\n")[:-1] if line]


def newest(folder):
    """Step of the newest checkpoint, its model checked; 0 where there are none."""
    try:
        found = CheckpointStore(folder, keep=3, run_id="").load()
    except NoValidCheckpoint as error:
        if "no files" in str(error):
            return 0
        raise
    step = found.state["pace"]["step"]
    if found.model_path.read_bytes() != model_of(step):
        raise ValueError(f"another model than that of step {step}")
    return step


def kills(count, seed=0):
    """Kill a process that does nothing but save, at random moments: acknowledged checkpoints lost, and more."""
    rng = random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="kills_", dir=MEMORY))
    lost = unreadable = repairs = saves = left = 0
    acknowledged = 0

    def train(write):
        model = [0]
        r8 = build(folder, model, num_steps=10**6)
        if model[0] != r8.global_step:
            raise ValueError(f"model of step {model[0]} with scheduler of step {r8.global_step}")
        write("ready\n")
        r8.host.announcer.add(lambda event: type(event).__name__ == "CheckpointSaved" and write(f"{event.step}\n"))
        while (ticket := r8.draw_if_any()) is not None:
            r8.report(ticket, loss_of(ticket.indices))

    for _ in range(count):
        pid, reading = forked(train)
        # A fifth of them while they resume, the others somewhere in their first saves.
        if rng.random() < 0.8:
            os.read(reading, 6)
        time.sleep(rng.random() * 0.02)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        told = lines_of(reading)
        # A child that could not resume by itself would need a person.
        repairs += any(line.startswith("!") for line in told)
        steps = [int(line) for line in told if line.isdigit()]
        saves += len(steps)
        acknowledged = max([acknowledged, *steps])
        left += any(path.name.startswith("tmp_") for path in folder.iterdir())
        try:
            lost += newest(folder) < acknowledged
        except (ValueError, RuntimeWarning):
            unreadable += 1
    files = len(list(folder.iterdir()))
    shutil.rmtree(folder)
    print(
        f"kill -9: {count} kills, {saves} saves, {left} times a half-written file was left: {lost} acknowledged "
        f"checkpoints lost, {unreadable} unreadable, {repairs} manual repairs; {files} files at the end"
    )
    return lost + unreadable + repairs


MOST_CHOICES = 200
"""Combinations of lost contents that are looked at for one set of names."""


class Recorder:
    """Watches the operations of a save, and tells what a power cut between two of them may leave.

    Args:
        folder: What is watched.
        forgets: Operations that do nothing: "file" or "folder" flushes.
    """

    OPERATIONS = ("open", "fsync", "link", "replace", "unlink")

    def __init__(self, folder, forgets=()):
        self.folder, self.forgets = folder, forgets
        self.names, self.data, self.pending = {}, {}, []
        self.now = {}
        self.acknowledged = 0
        self.states = {}
        self._rng = random.Random(0)
        self._real = {name: getattr(os, name) for name in self.OPERATIONS}

    def __enter__(self):
        for name in self.OPERATIONS:
            setattr(os, name, self._watched(name))
        return self

    def __exit__(self, *error):
        for name, real in self._real.items():
            setattr(os, name, real)

    def _watched(self, name):
        real = self._real[name]

        def operation(*arguments, **keywords):
            self.look()
            result = real(*arguments, **keywords)
            if name == "fsync":
                self._flushed(arguments[0])
            self.look()
            return result

        return operation

    def _flushed(self, descriptor):
        about = os.fstat(descriptor)
        if about.st_ino == self.folder.stat().st_ino:
            if "folder" not in self.forgets:
                self.names, self.pending = {name: number for name, (number, _) in self.now.items()}, []
        elif "file" not in self.forgets:
            self.data.update({number: content for number, content in self.now.values() if number == about.st_ino})

    def look(self):
        """Note what has changed, and every state that a cut at this moment may leave."""
        before, self.now = self.now, {}
        # A model is written within a folder of its own first; `os.walk` passes over a folder that is gone by now.
        for path in (Path(parent, name) for parent, _, names in os.walk(self.folder) for name in names):
            # What is left of the lock of a run that was cut off says nothing, as no process holds it.
            if path.suffix == ".lock":
                continue
            with contextlib.suppress(FileNotFoundError):
                name = path.relative_to(self.folder).as_posix()
                self.now[name] = (path.stat().st_ino, path.read_bytes())
        for name in before.keys() | self.now.keys():
            old, new = before.get(name, (None,))[0], self.now.get(name, (None,))[0]
            if old != new:
                self.pending.append((name, new))
        self._remember(before)

    def _remember(self, before):
        volatile = dict([*before.values(), *self.now.values()])
        for count in range(len(self.pending) + 1):
            names = dict(self.names)
            for name, number in self.pending[:count]:
                names[name] = number
            numbers = {name: number for name, number in names.items() if number is not None}
            kept = {number: self._choices(number, volatile) for number in set(numbers.values())}
            choices = list(itertools.islice(itertools.product(*kept.values()), MOST_CHOICES))
            for content in choices:
                of = dict(zip(kept, content, strict=True))
                state = tuple(sorted((name, of[number]) for name, number in numbers.items()))
                self.states[state] = max(self.acknowledged, self.states.get(state, 0))

    def _choices(self, number, volatile):
        durable_content, content = self.data.get(number, b""), volatile.get(number, self.data.get(number, b""))
        if durable_content == content:
            return [content]
        cut = [content[: self._rng.randrange(len(content))] for _ in range(2)] if content else []
        return [durable_content, *cut, bytes(len(content)), *(part.ljust(len(content), b"\0") for part in cut), content]


def cuts(saves=110, forgets=()):
    """Cut the power at every operation of some saves: states in which an acknowledged checkpoint is lost."""
    folder = Path(tempfile.mkdtemp(prefix="cuts_", dir=MEMORY))
    r8 = build(folder / "run", [0], num_steps=1000, keep_checkpoints=2)
    (folder / "run").mkdir()
    with Recorder(folder / "run", forgets) as recorder:
        for _ in range(saves):
            r8.report(r8.draw_if_any(), 1.0)
            saved = r8.save_checkpoint()
            recorder.acknowledged = saved.state["pace"]["step"]
            recorder.look()
    lost = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for state, acknowledged in recorder.states.items():
            disk = folder / "disk"
            disk.mkdir()
            for name, content in state:
                (disk / name).parent.mkdir(exist_ok=True)
                (disk / name).write_bytes(content)
            try:
                lost += newest(disk) < acknowledged
            except ValueError:
                lost += acknowledged > 0
            shutil.rmtree(disk)
    shutil.rmtree(folder)
    without = f" without flushing the {' and the '.join(forgets)}" if forgets else ""
    print(f"power cut{without}: {len(recorder.states)} states: {lost} acknowledged checkpoints lost")
    return lost, len(recorder.states)


def times(size=1_000_000):
    """How long a checkpoint of many samples takes, flushed to the disk."""
    folder = Path(tempfile.mkdtemp(prefix="times_"))
    r8 = R8Scheduler(size, batch_size=256, num_epochs=1, checkpoint_dir=folder, handle_signals=False)
    r8.report(r8.draw(), 1.0)
    taken = []
    for _ in range(9):
        began = time.perf_counter()
        saved = r8.save_checkpoint()
        taken.append(1000 * (time.perf_counter() - began))
    mebibytes = saved.path.stat().st_size / 2**20
    shutil.rmtree(folder)
    print(
        f"a checkpoint of {size:,} samples ({mebibytes:.1f} MiB): median {statistics.median(taken):.0f} ms, "
        f"{min(taken):.0f} to {max(taken):.0f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--skip-time", action="store_true", help="do not measure how long a checkpoint takes")
    parser.add_argument("--quick", action="store_true", help="20 kills, no times")
    asked = parser.parse_args()
    if asked.quick:
        asked.kills, asked.skip_time = 20, True
    wrong = kills(asked.kills) + cuts()[0]
    for forgets in (("folder",), ("file",), ("file", "folder")):
        seen = cuts(2, forgets)[0]
        if not seen:
            print("the simulation must see what is missing")
            wrong += 1
    if not asked.skip_time:
        times()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

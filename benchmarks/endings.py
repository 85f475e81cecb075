"""Runs that end when they are told to, and that survive their process: branches, cool-downs, deadlines, kills.

    python benchmarks/endings.py [--seeds 8] [--kills 60] [--deadline 60] [--megabytes 100] [--only NAME ...] [--quick]

Sections: branches (one stable run with three cool-downs against three tuned cosine runs, on scikit-learn's digits),
cool_down (rate and step of the end), deadline (restores, pauses and validation on the way), kills (``kill -9`` of a
torch run at random moments), cost (of a backup to the step that takes it), leftovers (what stays in shared memory).
POSIX only.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
from recipe import NUM_TRAINING, Network, load_data

from learnit_r8 import Backups, Checkpoints, R8Scheduler, RateShape
from learnit_r8.checkpoint.generations import SYSTEM_BASE, files_in
from learnit_r8.engine.values import grouped

LENGTHS = (15, 30, 60)
"""Epochs of the three runs."""
DECAY = 0.2
RATES = (0.025, 0.05, 0.1, 0.2)
BATCH = 32
PER_EPOCH = -(-NUM_TRAINING // BATCH)


def interval(values):
    """Mean and half of its 95 % interval."""
    if len(values) < 2:
        return statistics.fmean(values), float("nan")
    return statistics.fmean(values), 1.96 * statistics.stdev(values) / len(values) ** 0.5


class Digits:
    """A network on one split of the digits, with the callbacks of a scheduler."""

    def __init__(self, seed):
        self.data, self.network = load_data(seed), Network(seed)

    def state(self):
        return {"weights": self.network.weights, "velocity": self.network._velocity}

    def load(self, source, from_ram=False):
        saved = source if from_ram else dict(np.load(source))
        for name, arrays in self.state().items():
            for place, array in enumerate(arrays):
                array[:] = saved[name][place] if from_ram else saved[f"{name}{place}"]

    def save(self, state, path):
        flat = {f"{name}{n}": array for name, arrays in self.state().items() for n, array in enumerate(arrays)}
        with open(path, "wb") as file:
            np.savez(file, **flat)

    def train(self, r8, until=None):
        data = self.data
        for _ in r8.epoch_iterator():
            for indices, lr in r8.batch_iterator():
                r8.update_with_loss(self.network.step(data.pixels[indices], data.labels[indices], lr).mean())
            if until is not None and r8.global_step >= until:
                break
        # So that the checkpoint of this epoch is written.
        r8.host.between_steps()

    def result(self):
        """Test loss and accuracy."""
        data = self.data
        loss = float(self.network.losses(data.test_pixels, data.test_labels).mean())
        return loss, self.network.accuracy(data.test_pixels, data.test_labels)


def cosine_run(seed, rate, epochs):
    task = Digits(seed)
    task.train(R8Scheduler(NUM_TRAINING, batch_size=BATCH, num_epochs=epochs, initial_lr=rate, seed=seed))
    return task.result()


def branched_runs(seed, rate, shape):
    """Results of the three lengths from one trunk, and the epochs that were trained in all."""
    with tempfile.TemporaryDirectory() as folder:
        trunk = Digits(seed)
        r8 = R8Scheduler(NUM_TRAINING, batch_size=BATCH, initial_lr=rate, seed=seed,
                         scheduler_mode=RateShape("wsd", decay_shape=shape),
                         checkpoint_dir=folder, checkpoint_every=Checkpoints(keep_checkpoints=100),
                         backup_every=Backups(backup_dir=False),
                         save_callback=trunk.save, load_callback=trunk.load, state_callback=trunk.state)  # fmt: skip
        stable = [round((1 - DECAY) * length) for length in LENGTHS]
        trunk.train(r8, until=max(stable) * PER_EPOCH)
        results, steps = [], r8.global_step
        for length, epochs in zip(LENGTHS, stable, strict=True):
            task = Digits(seed)
            branch = R8Scheduler.resume_from_checkpoint(
                Path(folder) / f"ck_{epochs:012d}.r8", task.save, task.load, state_callback=task.state,
                cool_down=f"{length - epochs} epochs",
            )  # fmt: skip
            began = branch.global_step
            task.train(branch)
            assert branch.global_step == length * PER_EPOCH, (branch.global_step, length)
            steps += branch.global_step - began
            results.append(task.result())
        return results, steps / PER_EPOCH


def branches(options):
    """One trunk and three cool-downs against three cosine runs, both at the best of the same rates."""
    seeds, tuning = range(options.seeds), range(100, 100 + max(1, options.seeds // 2))
    best = {
        length: min(RATES, key=lambda rate: statistics.fmean(cosine_run(s, rate, length)[0] for s in tuning))
        for length in LENGTHS
    }
    shapes = ("linear",) if options.quick else ("linear", "sqrt")
    print(f"\nbranches: digits, {len(seeds)} seeds, rates tuned on {len(tuning)} others among {RATES}")
    print(f"  tuned rates of the cosine runs: {best}")
    plain = {s: [cosine_run(s, best[length], length) for length in LENGTHS] for s in seeds}
    for shape in shapes:
        # One rate for all three lengths, as there is one trunk.
        def score(rate, shape=shape):
            return statistics.fmean(r[0] for s in tuning for r in branched_runs(s, rate, shape)[0])

        rate = min(RATES, key=score)
        ours = {s: branched_runs(s, rate, shape) for s in seeds}
        print(f"  {shape} decay, one rate {rate}: test loss and accuracy, ours less cosine's (95 % interval)")
        for place, length in enumerate(LENGTHS):
            loss = interval([ours[s][0][place][0] - plain[s][place][0] for s in seeds])
            right = interval([100 * (ours[s][0][place][1] - plain[s][place][1]) for s in seeds])
            base = statistics.fmean(plain[s][place][0] for s in seeds)
            print(f"    {length:3d} epochs: loss {loss[0]:+.4f} +- {loss[1]:.4f} (cosine {base:.4f}), "
                  f"accuracy {right[0]:+.2f} +- {right[1]:.2f} points")  # fmt: skip
        spent = ours[seeds[0]][1]
        print(
            f"    epochs trained {spent:.0f} against {sum(LENGTHS)}: {1 - spent / sum(LENGTHS):.1%} saved (must 25 %)"
        )


def cool_down(options):
    """Cool-downs at random steps of random runs: whether the last step and its rate are exact."""
    rng, wrong, tried = random.Random(0), 0, 100 if options.quick else 2000
    for _ in range(tried):
        shape, mode = rng.choice(["linear", "sqrt", "cosine"]), rng.choice(["wsd", "constant", "cosine"])
        asked, length = rng.randint(1, 120), rng.randint(1, 60)
        budget = {"num_steps": 400} if mode == "cosine" else {}
        r8 = R8Scheduler(
            40, batch_size=4, scheduler_mode=RateShape(mode, decay_shape=shape), handle_signals=False, **grouped(budget)
        )
        last = 0.0
        for _ in r8.epoch_iterator():
            for _, lr in r8.batch_iterator():
                last = lr
                r8.update_with_loss(1.0)
                if r8.global_step == asked:
                    r8.cool_down(length)
        total = asked + length
        wrong += (r8.global_step, last) != (total, r8.schedule((total - 1) / total))
    print(f"\ncool_down: {tried} at random steps, wrong end or last rate: {wrong} (must 0)")


def timed_run(budget, kind, late, seed):
    """A run of real time with validation after each epoch, restores, and a pause: how late it ends, in seconds."""
    rng = random.Random(seed)
    weights = {"w": np.zeros(3)}

    def load(source, from_ram=False):
        time.sleep(min(2.0, budget / 30))
        weights.update(source)

    given = {"train_duration_seconds": budget} if kind == "budget" else {}
    r8 = R8Scheduler(320, batch_size=8, state_callback=lambda: weights, load_callback=load,
                     handle_signals=False, seed=seed,
                     **grouped(dict(scheduler_mode="wsd", backup_every=20, **given)))  # fmt: skip
    began, paused, longest = time.monotonic(), 0.0, 0.0
    bad = {rng.randint(100, 200), rng.randint(300, 400)}
    for epoch in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            if kind == "until" and r8.global_step == 0 and r8.total_steps is None:
                r8.requests.cool_down(until_in(budget), "benchmark")
            since = time.monotonic()
            time.sleep(0.02)
            r8.update_with_loss(np.nan if r8.global_step in bad else 1.0 + indices.mean() / 320)
            longest = max(longest, time.monotonic() - since)
        if epoch == 3:
            since = time.monotonic()
            with r8.paused():
                time.sleep(budget / 20)
            # Pauses count until a wall time, and not in a budget of training seconds.
            paused = time.monotonic() - since if kind == "budget" else 0.0
        time.sleep(rng.uniform(0.3, 1.0) * budget / 30 if epoch else budget / 30)
    late.append((kind, time.monotonic() - began - paused - budget, longest, r8.sentry.num_refused))


def until_in(seconds):
    from learnit_r8.schedules.span import Span

    return Span("until", time.time() + seconds)


def deadline(options):
    """Runs in real time, at the same time, as they mostly wait."""
    budgets = [options.deadline] if options.quick else [options.deadline, 2 * options.deadline]
    late = []
    threads = [
        threading.Thread(target=timed_run, args=(budget, kind, late, seed))
        for seed, (budget, kind) in enumerate(itertools.product(budgets, ("budget", "until")))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(
        f"\ndeadline: budgets of {budgets} s with restores, a pause, and validation; seconds late (must <= 1 step + 1)"
    )
    for kind, seconds, step, refused in late:
        print(f"  {kind:6s} {seconds:+.2f} s, longest step {step:.2f} s, {refused} losses refused and restored")


CHILD = r"""
import sys, time
began = time.perf_counter()
import numpy as np, torch
from learnit_r8.torch import attach
from learnit_r8 import Backups
imported = time.perf_counter()
folder, megabytes, every, backup_dir = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
torch.manual_seed(0); torch.set_num_threads(1)
# Adam keeps two numbers for each weight.
width = int((megabytes * 2**20 / 12 / 4) ** 0.5)
model = torch.nn.Sequential(*[torch.nn.Linear(width, width) for _ in range(4)])
optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
data = torch.utils.data.TensorDataset(torch.randn(2000, width), torch.randn(2000, width))
adapter = attach(model, optimizer, data, batch_size=8, num_steps=10**7,
                 backup_every=Backups(every, backup_dir=backup_dir),
                 checkpoint_dir=folder + "/ck", checkpoint_every=10**6, resume="auto")
log = open(folder + "/log", "a", buffering=1)
print("began", adapter.scheduler.global_step, time.time(), file=log)
first = True
for _ in adapter.epochs():
    for xs, ys in adapter.loader():
        since = time.perf_counter()
        losses = torch.nn.functional.mse_loss(model(xs), ys, reduction="none").mean(1)
        adapter.step(adapter.loss(losses))
        if first:
            print("first", time.perf_counter() - imported, file=log)
            first = False
        print("step", adapter.scheduler.global_step, file=log)
"""


def log_of(folder):
    path = Path(folder) / "log"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def start_child(folder, megabytes, every, base):
    program = Path(folder) / "child.py"
    program.write_text(CHILD)
    arguments = [sys.executable, str(program), str(folder), str(megabytes), str(every), str(base)]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kills(options):
    """``kill -9`` at random moments of a torch run, started again each time."""
    rng, lost, starts, unusable = random.Random(1), [], [], 0
    with tempfile.TemporaryDirectory() as folder, memory_folder() as base:
        reached = 0
        for _ in range(options.kills + 1):
            num_before = len(log_of(folder))
            child = start_child(folder, options.megabytes, options.every, base)
            while not any(line[0] == "first" for line in log_of(folder)[num_before:]) and child.poll() is None:
                time.sleep(0.02)
            # Counted in steps, as on a busy machine some seconds may hold only a few; then anywhere in a step.
            length = rng.randint(1, options.life)
            while sum(line[0] == "step" for line in log_of(folder)[num_before:]) < length and child.poll() is None:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.3))
            child.send_signal(signal.SIGKILL)
            errors = child.communicate()[1]
            lines = log_of(folder)[num_before:]
            began = [int(line[1]) for line in lines if line[0] == "began"]
            if not began:
                unusable += 1
                print(errors[-400:])
                continue
            if reached:
                lost.append(reached - began[0])
                unusable += began[0] == 0 and reached > 2 * options.every
            starts += [float(line[1]) for line in lines if line[0] == "first"]
            reached = max([began[0], *(int(line[1]) for line in lines if line[0] == "step" and len(line) == 2)])
    starts = sorted(starts[1:]) or [float("nan")]
    print(f"\nkills: {len(lost)} of a torch run of {options.megabytes:g} MB, a backup every {options.every} steps")
    print(f"  steps lost: median {statistics.median(lost):g}, most {max(lost)} (must <= {options.every} + 16)")
    print(f"  from the end of the imports to the end of the first step: median {statistics.median(starts):.2f} s, most "
          f"{starts[-1]:.2f} s (must <= 2 s); unusable {unusable} (must 0); steps reached {reached}")  # fmt: skip


def memory_folder():
    return tempfile.TemporaryDirectory(dir=SYSTEM_BASE if os.path.isdir(SYSTEM_BASE) else None)


def cost(options):
    """Step times of a torch run with backups in RAM alone and in shared memory too, interleaved."""
    import torch

    from learnit_r8.torch import attach

    torch.set_num_threads(1)
    width = int((options.megabytes * 2**20 / 12 / 4) ** 0.5)
    print(f"\ncost: {options.megabytes:g} MB of state, ms that a step with a backup takes longer than the others")
    for where in ("RAM alone", "shared memory"):
        with tempfile.TemporaryDirectory() as folder, memory_folder() as base:
            model = torch.nn.Sequential(*[torch.nn.Linear(width, width) for _ in range(4)])
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
            data = torch.utils.data.TensorDataset(torch.randn(2000, width), torch.randn(2000, width))
            adapter = attach(model, optimizer, data, batch_size=8, num_steps=options.steps,
                             backup_every=Backups(25, backup_dir=base if where != "RAM alone" else False),
                             checkpoint_dir=folder, checkpoint_every=10**6)  # fmt: skip
            times = {}
            for _ in adapter.epochs():
                since = time.perf_counter()
                for xs, ys in adapter.loader():
                    losses = torch.nn.functional.mse_loss(model(xs), ys, reduction="none").mean(1)
                    adapter.step(adapter.loss(losses))
                    now = time.perf_counter()
                    times[adapter.scheduler.global_step] = now - since
                    since = now
            count = sum(len(files_in(rank)) for rank in Path(base).glob("learnit_r8-*/*/rank*"))
        # A backup is taken as the next batch is asked for. The first ones pay for the memory of the copies.
        taking = [t for step, t in times.items() if step % 25 == 1 and step > 100]
        plain = [t for step, t in times.items() if 8 < step % 25 < 24 and step > 100]
        extra = [1000 * (t - statistics.median(plain)) for t in taking]
        print(f"  {where:14s} median {statistics.median(extra):6.1f}, most {max(extra):6.1f} in {len(extra)} backups; "
              f"other steps {1000 * statistics.median(plain):.1f} ms; generations at the end: {count}")  # fmt: skip


def leftovers(options):
    """What is in shared memory after a clean end, after a crash and a resume, and after crashed runs."""
    program = (
        "import sys, os, time, numpy as np\n"
        "from learnit_r8 import Backups, R8Scheduler\n"
        "w = {'w': np.zeros(1000)}\n"
        "r8 = R8Scheduler(640, batch_size=8, num_steps=60, checkpoint_dir=sys.argv[1],\n"
        "    backup_every=Backups(10, backup_dir=sys.argv[2]), resume='auto',\n"
        "    state_callback=lambda: w, load_callback=w.update)\n"
        "for _ in r8.epoch_iterator():\n"
        "    for i, lr in r8.batch_iterator():\n"
        "        r8.update_with_loss(1 + i.mean() / 640); time.sleep(.002)\n"
        "        if r8.global_step == int(sys.argv[3]): time.sleep(.2); os.kill(os.getpid(), 9)\n"
    )

    def run(folder, base, at):
        return subprocess.run([sys.executable, "-W", "ignore", "-c", program, str(folder), str(base), str(at)])

    def left(base):
        return len(list(Path(base).glob("learnit_r8-*/*"))), len(list(Path(base).glob("learnit_r8-*/*/rank*/gen_*")))

    crashes = 5 if options.quick else 50
    with tempfile.TemporaryDirectory() as folder, memory_folder() as base:
        run(f"{folder}/a", base, 0)
        print(f"\nleftovers: runs and generations in shared memory; after a clean end {left(base)} (must 0)")
        run(f"{folder}/b", base, 35)
        crashed = left(base)
        run(f"{folder}/b", base, 0)
        print(f"  after a crash {crashed}, and after its resume has ended {left(base)} (must 0 runs)")
        for number in range(crashes):
            run(f"{folder}/c{number}", base, 35)
        before = left(base)
        run(f"{folder}/d", base, 35)
        print(f"  after {crashes} crashed runs {before}, and once the next one has begun {left(base)} (the newest "
              "crashed run stays for ten minutes)")  # fmt: skip


SECTIONS = {"cool_down": cool_down, "cost": cost, "leftovers": leftovers, "deadline": deadline, "kills": kills,
            "branches": branches}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--life", type=int, default=150, help="most steps from a start to a kill")
    parser.add_argument("--deadline", type=float, default=60.0)
    parser.add_argument("--megabytes", type=float, default=100.0)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--steps", type=int, default=600, help="of the runs of cost")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.kills, options.life, options.deadline = 1, 1, 80, 3.0
        options.megabytes, options.steps = 5.0, 200
    warnings.simplefilter("ignore", RuntimeWarning)
    for name in options.only:
        SECTIONS[name](options)


if __name__ == "__main__":
    main()

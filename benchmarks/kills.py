"""Runs killed with ``kill -9`` and started again: are losses, rates, weights and random numbers those of the whole run?

    python benchmarks/kills.py [--kills 100] [--only NAME ...] [--quick]

Six kinds of runs in torch, with dropout, momentum and random augmentation (of the training process or of its workers):
R8's batches and rates; a loader of the user's own with his own rates, in this process and in two workers; a stream with
R8's rates; a loader that accelerate has prepared; two ranks (gloo) with a loader each. The process kills itself at a
seeded place: the end of an epoch in every fourth run, else any step, before its loss is reported, between report and
update, or after the update. Every fourth run is killed a second time, in the run that was resumed; every second one may
go on from backups in shared memory. A start that finds a file has other seeds, so that whatever is not put back shows.
Compared by their bits, step for step, also before the kill: the samples, losses and rates; and at the end weights,
momentum, the generators, R8's table and steps. Ends with 1 if anything differs. POSIX only, as it forks; seed 0.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.distributed as dist
from overhead import processor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from learnit_r8.engine.settings import grouped
from learnit_r8.torch import attach

NUM_SAMPLES, BATCH, EPOCHS, RATE = 96, 8, 3, 0.02
STEPS = NUM_SAMPLES // BATCH
EVERY = 5
"""Steps from one file to the next."""

PLACES = ("before the report", "before the update", "after the update")
LIMIT = 240.0


class Kill(NamedTuple):
    """Where a run kills itself: in which step, counted from 1 over the whole run, at which place, on which rank."""

    step: int
    place: str
    rank: int


class Clouds(Dataset[Any]):
    """Points around four centres, with noise from the global generators of all three kinds."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.labels = rng.integers(0, 4, NUM_SAMPLES)
        self.points = torch.tensor(rng.normal(0, 2, (4, 8))[self.labels] + rng.normal(0, 1, (NUM_SAMPLES, 8))).float()

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        noise = 0.1 * (torch.randn(8) + np.random.randn() + random.random())
        return self.points[index] + noise, int(self.labels[index]), int(index)


class Stream(IterableDataset[Any]):
    """The same in their order, without a length."""

    def __iter__(self) -> Iterator[Any]:
        return map(Clouds().__getitem__, range(NUM_SAMPLES))


def plain_run(model: Any, optimizer: Any, settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    adapter = attach(model, optimizer, Clouds(), batch_size=BATCH, num_epochs=EPOCHS, **grouped(settings))
    return adapter, adapter.loader(), None


def own_run(model: Any, optimizer: Any, settings: dict[str, Any], **of_loader: Any) -> tuple[Any, Any, Any]:
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS * EPOCHS)
    loader = DataLoader(Clouds(), BATCH, shuffle=True, **of_loader)
    return (
        attach(model, optimizer, loader, num_epochs=EPOCHS, also={"schedule": schedule}, **grouped(settings)),
        None,
        schedule,
    )


def workers_run(model: Any, optimizer: Any, settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    return own_run(model, optimizer, settings, num_workers=2)


def stream_run(model: Any, optimizer: Any, settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    loader = DataLoader(Stream(), BATCH)
    adapter = attach(
        model, optimizer, loader, num_steps=STEPS * EPOCHS, **grouped(dict(scheduler_mode="cosine", **settings))
    )
    return adapter, None, None


def accelerate_run(model: Any, optimizer: Any, settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    from accelerate import Accelerator

    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS * EPOCHS)
    model, prepared, loader = Accelerator(cpu=True).prepare(model, optimizer, DataLoader(Clouds(), BATCH, shuffle=True))
    return (
        attach(model, prepared, loader, num_epochs=EPOCHS, also={"schedule": schedule}, **grouped(settings)),
        None,
        schedule,
    )


def ranks_run(model: Any, optimizer: Any, settings: dict[str, Any]) -> tuple[Any, Any, Any]:
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS * EPOCHS)
    sampler: Any = DistributedSampler(Clouds(), shuffle=True)
    loader = DataLoader(Clouds(), BATCH // 2, sampler=sampler)
    return (
        attach(model, optimizer, loader, num_epochs=EPOCHS, also={"schedule": schedule}, **grouped(settings)),
        None,
        schedule,
    )


KINDS: dict[str, Callable[..., tuple[Any, Any, Any]]] = {
    "plain": plain_run, "own loader": own_run, "workers": workers_run, "stream": stream_run,
    "accelerate": accelerate_run, "two ranks": ranks_run,
}  # fmt: skip


def train(kind: str, folder: Path, seed: int, kill: Kill | None, rank: int, settings: dict[str, Any]) -> None:
    """A run, or what is left of it; each step appends a line to a file, which a kill leaves there."""
    torch.manual_seed(seed + 10 * rank)
    np.random.seed(seed + 10 * rank)
    random.seed(seed + 10 * rank)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 4)
    )
    if kind == "two ranks":
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    given = {"checkpoint_dir": folder / "checkpoints", "checkpoint_every": EVERY, "resume": "auto", **settings}
    adapter, loader, schedule = KINDS[kind](model, optimizer, given)
    r8, used = adapter.scheduler, [0.0]
    optimizer.register_step_pre_hook(lambda *_: used.__setitem__(0, float(optimizer.param_groups[0]["lr"])))
    log = os.open(folder / f"steps-{rank}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, (json.dumps({"begun": r8.global_step}) + "\n").encode())

    def strike(step: int, place: str) -> None:
        if kill is not None and (step, place, rank) == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    step = r8.global_step
    for epoch in adapter.epochs():
        if loader is None and kind == "two ranks":
            adapter.sampler.set_epoch(epoch)
        for x, y, indices in adapter.batches() if loader is None else loader:
            # Not that of R8, which hears of the losses of several ranks later.
            step += 1
            losses = cross_entropy(model(x), y, reduction="none")
            strike(step, PLACES[0])
            outcome = adapter.report(losses)
            strike(step, PLACES[1])
            if outcome:
                optimizer.zero_grad()
                losses.mean().backward()
                optimizer.step()
                if schedule is not None:
                    schedule.step()
            bits = [value.hex() for value in (*losses.tolist(), used[0])]
            os.write(log, (json.dumps({"step": step, "what": [indices.tolist(), bits, bool(outcome)]}) + "\n").encode())
            strike(step, PLACES[2])
    adapter.close()
    found = hashlib.sha256()
    states = [model.state_dict(), optimizer.state_dict(), np.random.get_state(), random.getstate(), r8.global_step]
    for leaf in torch.utils._pytree.tree_leaves([*states, torch.get_rng_state(), r8.sentry.num_refused]):
        found.update(leaf.numpy().tobytes() if isinstance(leaf, torch.Tensor) else repr(leaf).encode())
    if kind != "two ranks":
        table = r8.table
        found.update(b"".join(np.ascontiguousarray(each).tobytes() for each in (table.loss, table.usage_count)))
    os.write(log, (json.dumps({"end": found.hexdigest()}) + "\n").encode())


def start(kind: str, folder: Path, seed: int, kill: Kill | None, settings: dict[str, Any]) -> None:
    """Run it in processes of its own, of which none is left afterwards."""
    size = 2 if kind == "two ranks" else 1
    store = tempfile.mktemp(dir=folder)
    context = multiprocessing.get_context("fork")
    work = [context.Process(target=_work, args=(kind, folder, seed, kill, rank, size, store, settings))
            for rank in range(size)]  # fmt: skip
    for process in work:
        process.start()
    until = time.monotonic() + LIMIT
    while any(process.is_alive() for process in work) and time.monotonic() < until:
        # Another rank waits for one that is gone.
        if any(process.exitcode not in (None, 0) for process in work):
            break
        multiprocessing.connection.wait([process.sentinel for process in work if process.is_alive()], timeout=1)
    for process in work:
        # With the workers of its loader.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()


def _work(
    kind: str, folder: Path, seed: int, kill: Kill | None, rank: int, size: int, store: str, settings: Any
) -> None:
    os.setsid()
    os.dup2(os.open(folder / f"errors-{rank}", os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    os.environ["RANK"] = str(rank)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        if size > 1:
            limit = timedelta(seconds=LIMIT)
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=limit)
        train(kind, folder, seed, kill, rank, settings)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def read(folder: Path) -> tuple[dict[Any, Any], list[int], bool]:
    """What each step of each rank was, the steps that starts began at, and whether no step was trained in two ways."""
    steps: dict[Any, Any] = {}
    begun, is_one = [], True
    for path in sorted(folder.glob("steps-*")):
        rank = path.name[-1]
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if "begun" in entry:
                begun += [entry["begun"]] * (rank == "0")
                continue
            key, what = (rank, entry.get("step", "end")), entry.get("what", entry.get("end"))
            is_one &= steps.setdefault(key, what) == what
    return steps, begun, is_one


def kills_of(kind: str, count: int) -> list[list[Kill]]:
    """For each run where it is killed, once or twice."""
    chance = random.Random(f"{kind} 0")
    found, left = [], count
    while left:
        is_end, place = len(found) % 4 == 3, chance.choice(PLACES)
        step = STEPS * chance.randint(1, EPOCHS - 1) if is_end else chance.randint(EVERY + 2, STEPS * EPOCHS - 1)
        kills = [Kill(step, PLACES[2] if is_end else place, chance.randrange(2) if kind == "two ranks" else 0)]
        if len(found) % 4 == 1 and left > 1:
            later = chance.randint(min(step + 1, STEPS * EPOCHS), STEPS * EPOCHS)
            kills.append(Kill(later, chance.choice(PLACES), 0))
        found.append(kills)
        left -= len(kills)
    return found


def compare(kind: str, count: int, folder: Path) -> bool:
    """Print a line of the table; whether all is equal."""
    whole = folder / "whole"
    whole.mkdir(parents=True)
    start(kind, whole, 0, None, {})
    reference, _, _ = read(whole)
    if ("0", "end") not in reference:
        raise SystemExit(f"{kind}: {(whole / 'errors-0').read_text()[-3000:]}")
    equal, repeated, wrong = 0, [], []
    runs = kills_of(kind, count)
    for number, kills in enumerate(runs):
        place = folder / str(number)
        place.mkdir()
        settings: dict[str, Any] = {"backup_dir": False} if number % 2 else {}
        for seed, kill in enumerate([*kills, None]):
            has_file = any((place / "checkpoints").glob("ck_*"))
            start(kind, place, 3 * seed if has_file else 0, kill, settings)
        steps, begun, is_one = read(place)
        repeated += [max(0, kill.step - at) for kill, at in zip(kills, begun[1:], strict=False)]
        if steps == reference and is_one and len(begun) == len(kills) + 1:
            equal += len(kills)
            continue
        differs = sorted({key[1] for key in reference if steps.get(key) != reference[key]}, key=str)
        wrong.append(f"    {kills}, began at {begun}: {differs[:6]} of {len(reference)}, one way: {is_one}"
                     f" {(place / 'errors-0').read_text()[-600:]}")  # fmt: skip
    ends = sum(kill.step % STEPS == 0 for kills in runs for kill in kills)
    refused = sum(not what[2] for (_, step), what in reference.items() if step != "end")
    print(f"{kind:12} {count:5} {count - ends:10} {ends:8} {equal:6}   {statistics.fmean(repeated):5.1f}   {refused:4}",
          *wrong, sep="\n" if wrong else "", flush=True)  # fmt: skip
    return equal == count


def main() -> int:
    """Print the table; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--quick", action="store_true", help="one kill of each kind")
    given = parser.parse_args()
    count = len(given.only) if given.quick else given.kills
    print(f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}, seed 0")
    print(f"{STEPS * EPOCHS} steps, {EPOCHS} epochs, a file every {EVERY} steps")
    print("run          kills  mid-epoch  its end  equal   steps repeated   refused or probed in the whole run")
    is_equal = True
    with tempfile.TemporaryDirectory() as folder:
        for number, kind in enumerate(given.only):
            share = (count + len(given.only) - 1 - number) // len(given.only)
            is_equal &= compare(kind, share, Path(folder) / kind.replace(" ", "_"))
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())

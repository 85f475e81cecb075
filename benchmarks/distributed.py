"""Several processes: sharded models against whole ones, failures in any order, restarts, and what 1,024 ranks cost.

    python benchmarks/distributed.py [--failures 100 --ranks 2] [--restarts 20] [--quick]

Everything runs on gloo between processes of one machine, with one scheduler for all ranks. Four parts. *Equal*:
weights, tables and batches under fully_shard, under DDP and on one process, also after a NaN on one rank and after a
resume on 2, 1 and 4 ranks. *Failures*: a rank of two or four dies, hangs, is slow, has no memory or no disk, at a
random point of a step, a backup, an exchange, a save or a restore; the others must end in the stated time or go on,
with equal tables, and what resumes from the checkpoints left must be equal to the bit to an unbroken run. *Restarts*:
torchrun --max-restarts with ranks killed at random steps. *Scale*: the time and bytes of an exchange on 2, 4 and 8
ranks, and a model fitted to them.
"""

from __future__ import annotations

import argparse
import collections
import errno
import functools
import multiprocessing
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

# Loaded here, or every process that is forked would load it at its first step.
import torch._dynamo
import torch.distributed as dist
import torch.distributed.checkpoint
import torch.distributed.tensor

from learnit_r8.torch import ModelState, Ranks, Together
from learnit_r8.torch.distributed.exchange import MessageCodec
from tests.restart_job import loaded, torchrun
from tests.shard_jobs import Heads, sharded_run

TIMEOUT_SECONDS = 4.0
"""Given to the process group and to Ranks in part two."""

STATED_SECONDS = 2 * TIMEOUT_SECONDS + 2.0 * 2 + 5.0
"""Longest wait: for the group of the model, for that of the losses, and for the roll call; 5 s for a busy machine."""

POINTS = {
    "step": (torch.nn.Module, "__call__"),
    "backup": (ModelState, "read"),
    "collect": (ModelState, "collect"),
    "save": (ModelState, "save"),
    "restore": (ModelState, "load"),
    "exchange": (Ranks, "send"),
}
"""Where a rank fails: in a call of one of these."""

MOST_CALLS = {"step": 40, "backup": 10, "collect": 4, "save": 4, "restore": 1, "exchange": 12}
FAULTS = ("dies", "hangs", "is slow", "has no memory", "has no disk")


def world(size: int, job: Any, *args: Any, limit: float = 120.0, timeout: float = 120.0) -> list[Any]:
    """``job(rank, *args)`` on processes that are forked, so that none loads torch; None for one that is dead."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pairs = [context.Pipe(duplex=False) for _ in range(size)]
        work = [context.Process(target=_work, args=(rank, size, folder, timeout, pairs[rank][1], job, args))
                for rank in range(size)]  # fmt: skip
        for process, (_, theirs) in zip(work, pairs, strict=True):
            process.start()
            theirs.close()
        until, answers = time.monotonic() + limit, []
        for ours, _ in pairs:
            try:
                answers.append(ours.recv() if ours.poll(max(0.0, until - time.monotonic())) else None)
            except EOFError:
                answers.append(None)
        for process in work:
            process.kill()
            process.join()
    return answers


def _work(rank: int, size: int, folder: str, timeout: float, pipe: Any, job: Any, args: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        if size > 1 or args[:1] == ("fsdp2",):
            store = f"file://{folder}/store"
            limit = timedelta(seconds=timeout)
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=limit)
        pipe.send(job(rank, *args))
    except BaseException:
        pipe.send({"error": traceback.format_exc()})
    # Without the end of Python, which would wait for ranks that are gone.
    os._exit(0)


def show(name: str, must: str, found: Any) -> None:
    print(f"{name:70} {must:>14} {found}", flush=True)


def same(runs: list[dict[str, Any]], *names: str) -> bool:
    return all("error" not in run and run[name] == runs[0][name] for run in runs for name in names)


def equal(quick: bool) -> None:
    for task, every in (("exact", 1), ("mixed", 4)):
        for nan_at in (37,) if quick else (None, 37):
            options = {"nan_at": nan_at, "every": every}
            runs = [run for kind in ("ddp", "fsdp2") for run in world(2, sharded_run, kind, task, options)]
            if task == "exact":
                runs += world(1, sharded_run, "plain", task, options)
            who = "FSDP2 = DDP" + " = one process" * (task == "exact")
            what = f"{task} model, {'a NaN' if nan_at else 'no fault'}: {who}"
            show(what, "True", same(runs, "weights", "table", "batches", "refused"))
    for kind in ("fsdp2",) if quick else ("fsdp2", "ddp"):
        [whole] = world(1, sharded_run, "plain", "exact", {})
        with tempfile.TemporaryDirectory() as folder:
            settings = {"checkpoint_dir": folder, "checkpoint_every": 10**6, "resume": "auto"}
            parts = []
            for size, stop_at in ((2, 13), (1, 27), (4, None)):
                way = kind if size > 1 or kind == "fsdp2" else "plain"
                parts.append(world(size, sharded_run, way, "exact", {**settings, "stop_at": stop_at}))
        batches = [each for part in parts for each in part[0]["batches"]]
        is_same = same([whole, *parts[-1]], "weights", "table") and batches == whole["batches"]
        show(f"exact model, resumed on 2, 1 and 4 ranks under {kind}: = one process", "True", is_same)


def strike(fault: str) -> None:
    if fault == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hangs":
        time.sleep(3600)
    if fault == "is slow":
        time.sleep(1.0)
    if fault == "has no memory":
        raise MemoryError("on purpose")
    if fault == "has no disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing_run(rank: int, kind: str, options: dict[str, Any], plan: tuple[int, str, str, int] | None) -> Any:
    """A run in which one rank fails in one call: its result, or its error and the seconds since the fault began."""
    began = [time.monotonic()]
    if plan is not None:
        _plant(rank, plan, began)
    sharing = Together(Ranks(timeout_seconds=TIMEOUT_SECONDS), every=4)
    try:
        # Between more than two ranks DDP adds up in another order after a restart, with or without R8.
        task = "mixed" if sharing.size == 2 else "exact dropout"
        return sharded_run(rank, kind, task, {**options, "sharing": sharing, "nan_at": 6, "backup_every": 4})
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "at": time.time()}


def _plant(rank: int, plan: tuple[int, str, str, int], began: list[float]) -> None:
    """Let the given call of a function fail on the given rank; on the other, nothing happens."""
    culprit, fault, point, number = plan
    if rank != culprit:
        return
    owner, name = POINTS[point]
    original, calls = getattr(owner, name), [0]

    # With the signature of the original: callbacks are called by theirs.
    @functools.wraps(original)
    def failing(*args: Any, **keywords: Any) -> Any:
        # Of the modules only the whole model counts.
        counts = point != "step" or isinstance(args[0], (torch.nn.Sequential, Heads))
        calls[0] += counts
        if counts and calls[0] == number:
            Path(os.environ["FAULT_FILE"]).write_text(str(time.time()))
            strike(fault)
        return original(*args, **keywords)

    setattr(owner, name, failing)


def failures(count: int, seed: int, size: int = 2) -> None:
    chance, found = random.Random(seed), collections.Counter()
    settings = {"checkpoint_every": 12, "keep_checkpoints": 99}
    with tempfile.TemporaryDirectory() as folder:
        options = {**settings, "checkpoint_dir": f"{folder}/unbroken"}
        references = {kind: world(size, failing_run, kind, options, None) for kind in ("ddp", "fsdp2")}
    slowest = 0.0
    for _ in range(count):
        kind, fault, point = chance.choice(["ddp", "fsdp2"]), chance.choice(FAULTS), chance.choice(list(POINTS))
        culprit = 0 if point == "save" else chance.randrange(size)
        plan = culprit, fault, point, chance.randint(1, MOST_CALLS[point])
        with tempfile.TemporaryDirectory() as folder:
            os.environ["FAULT_FILE"] = f"{folder}/struck"
            options = {**settings, "checkpoint_dir": f"{folder}/checkpoints"}
            answers = world(size, failing_run, kind, options, plan, limit=60, timeout=TIMEOUT_SECONDS)
            struck = Path(f"{folder}/struck")
            ended = judged(answers, plan, float(struck.read_text()) if struck.exists() else None, found)
            slowest = max(slowest, ended)
            if any(answer is None or "error" in answer for answer in answers):
                resumed = world(size, failing_run, kind, {**options, "resume": "auto"}, None)
                is_right = same([*references[kind], *resumed], "weights", "table")
                found["resumed"] += 1
                if not is_right:
                    found["wrong resume"] += 1
                    print("  wrong resume:", kind, plan, [str(each)[-300:] for each in resumed])
    show(f"random failures on {size} ranks, seed {seed}", f">= {count}", count)
    show("  of which struck, went on, ended", "", [found[name] for name in ("struck", "went on", "ended")])
    show("  ended with an error that names the rank, or is its own; no other", "",
         f"{found['named']}; {found['named alone']}")  # fmt: skip
    show(f"  hangs beyond {STATED_SECONDS:.0f} s; longest wait in s", "0", f"{found['hang']}; {slowest:.1f}")
    show("  unequal tables or weights", "0", found["unequal"])
    show("  wrong resumes, of", "0", f"{found['wrong resume']} of {found['resumed']}")


def suspects_of(error: str) -> list[int]:
    """The ranks that an error names."""
    found = re.search(r"no answer from rank ([\d, ]+):", error)
    return [] if found is None else [int(rank) for rank in found[1].split(", ")]


def is_own(error: str) -> bool:
    """Whether an error is that of the rank that failed, or was told of it by one that did not die."""
    return any(sign in error for sign in ("on purpose", "No space", "MemoryError"))


def judged(answers: list[Any], plan: tuple[int, str, str, int], struck: float | None, found: Any) -> float:
    """Count what became of a run; the seconds that a survivor waited."""
    culprit, fault, *_ = plan
    others = [answer for rank, answer in enumerate(answers) if rank != culprit or fault not in ("dies", "hangs")]
    found["struck"] += struck is not None
    errors = [each for each in others if each is not None and "error" in each]
    if struck is None or not errors:
        others = answers if struck is None else others
        found["went on"] += struck is not None
        if None in others:
            found["hang"] += 1
            print("  hang:", plan, [str(each)[:200] for each in answers])
        elif not same(others, "weights", "table"):
            found["unequal"] += 1
            print("  unequal:", plan, [str(each)[:200] for each in answers])
        return 0.0
    found["ended"] += 1
    waited = max(each.get("at", struck) - struck for each in errors)
    if None in others or len(errors) < len(others) or waited > STATED_SECONDS:
        found["hang"] += 1
        print("  not all ended in time:", plan, f"{waited:.1f} s", [str(each)[:200] for each in answers])
    is_named = all(culprit in suspects_of(each["error"]) or is_own(each["error"]) for each in errors)
    found["named"] += is_named
    found["named alone"] += all(suspects_of(each["error"]) in ([culprit], []) for each in errors) and is_named
    if not is_named:
        print("  not named:", plan, [each["error"][:300] for each in errors])
    return float(waited)


def restarts(count: int, seed: int) -> None:
    """Runs whose ranks are killed once or twice, half of them with backups in shared memory that may be damaged too."""
    chance, found = random.Random(seed), collections.Counter()
    settings = {"checkpoint_every": 12, "backup_every": 4}
    with tempfile.TemporaryDirectory() as folder:
        unbroken = torchrun(Path(folder) / "unbroken", **settings)
        assert None not in unbroken, Path(f"{folder}/unbroken/log").read_text()
        for number in range(count):
            place, memory = Path(folder) / str(number), number % 2 == 0
            kills = [(chance.randrange(2), chance.randint(9, 40), memory and chance.random() < 0.3)]
            if chance.random() < 0.5:
                kills.append((chance.randrange(2), chance.randint(1, 20), False))
            ended = torchrun(place, kills, **settings, **({} if memory else {"backup_dir": False}))
            happened = len(list(place.glob("killed.*")))
            found["restarts"] += happened
            found["met"] += sum(any(place.glob(f"ended.{rank}")) for rank in range(2)) // 2 * happened
            found["equal"] += (None not in ended and ended == unbroken) * happened
            for launch in range(1, happened + 1):
                names = loaded(place, launch)
                found["apart"] += len(set(names)) > 1
                found["from memory"] += names[0].startswith("gen")
            if ended != unbroken:
                print("  not equal:", number, kills, (place / "log").read_text()[-2000:])
    show(f"restarts by torchrun --max-restarts, seed {seed}", ">= 20", found["restarts"])
    show("  of these, the ranks met again", "100 %", found["met"])
    show("  the run ended equal to the bit to an unbroken one, with dropout", "100 %", found["equal"])
    show("  ranks went on from different states", "0", found["apart"])
    show("  went on from backups in shared memory", "", found["from memory"])


def exchange_seconds(rank: int, share: int, turns: int) -> tuple[float, int]:
    """Median seconds of an exchange of 16 steps, and the bytes of its message."""
    ranks = Ranks()
    message = MessageCodec(ranks.size, 16, share).write([], **dict.fromkeys(HEAD, 0), clock=0.0)
    taken = []
    for _ in range(turns):
        began = time.perf_counter()
        ranks.gather(message)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken), message.nbytes


HEAD = ("step", "drawn", "state", "model", "every", "is_hurried", "wished")


def scale(turns: int, sizes: tuple[int, ...]) -> None:
    shares, rows, times = (16, 256, 4096), [], []
    for size in sizes:
        for share in shares:
            seconds, length = world(size, exchange_seconds, share, turns)[0]
            rows.append([1.0, size - 1, (size - 1) * length])
            times.append(seconds)
            show(
                f"exchange on {size} ranks, {share} samples each: ms, bytes a message",
                "",
                f"{seconds * 1e3:.2f}, {length}",
            )
    # Errors count relative to what is measured, or the largest messages alone would decide.
    weights = 1 / np.array(times)
    model = np.maximum(np.linalg.lstsq(np.array(rows) * weights[:, None], np.array(times) * weights, rcond=None)[0], 0)
    fit = np.array(rows) @ model
    show(
        "model: ms + ms a further rank + ns a byte and further rank", "", np.round(model * [1e3, 1e3, 1e9], 4).tolist()
    )
    show("  median, largest error of the fit", "", np.round(np.quantile(np.abs(fit / times - 1), [0.5, 1]), 2).tolist())
    length = MessageCodec(2, 16, 32).write([], **dict.fromkeys(HEAD, 0), clock=0.0).nbytes
    for size in (8, 64, 1024):
        seconds = float(model @ [1.0, size - 1, (size - 1) * length])
        received = (size - 1) * length / 16
        text = f"{length / 16:.0f} sent, {received:.0f} received; {seconds / 16 * 1e3:.2f} to {seconds * 1e3:.2f} ms"
        show(f"{size} ranks, 32 samples each: bytes a step; time, every 16 or 1 steps", "", text)
    for num_samples in (10**8, 10**9):
        per_rank = 16 * num_samples / 1e9
        show(f"table of {num_samples:.0e} samples: GB a rank, and a host of 8 ranks", "", f"{per_rank}, {8 * per_rank}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few failures, no restarts, no 8 ranks")
    parser.add_argument("--failures", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=2, help="processes in the part on failures")
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["equal", "failures", "restarts", "scale"])
    options = parser.parse_args()
    quick = options.quick
    parts = {
        "equal": lambda: equal(quick),
        "failures": lambda: failures(2 if quick else options.failures, options.seed, options.ranks),
        "restarts": lambda: None if quick else restarts(options.restarts, options.seed),
        "scale": lambda: scale(30 if quick else 300, (2, 4) if quick else (2, 4, 8)),
    }
    for name, part in parts.items():
        if options.only in (None, name):
            part()


if __name__ == "__main__":
    main()

"""One training of benchmarks/learning.py, and many: each a line of a file, so that they can be taken up again."""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from learning_peers import ImportanceSampling, InfoBatch
from learning_tasks import TASKS, Learner, area

# isort: split
import numpy as np
from numpy.typing import NDArray

from learnit_r8 import Focus, Policy, R8Scheduler, even_groups
from learnit_r8.guard import FiniteGuard

METHODS: dict[str, str | Policy] = {
    "shuffle": "shuffle",
    "balanced": "balanced",
    "focus": Focus(),
    "focus + guard": Focus(noise_guard=True),
    "focus + guard, groups": Focus(noise_guard=True),
    "the same, even groups": even_groups(Focus(noise_guard=True)),
    "InfoBatch": InfoBatch(),
    "InfoBatch, normalised": InfoBatch(is_normalised=True),
    "importance": ImportanceSampling(),
}
"""What is compared."""

WITH_GROUPS = ("focus + guard, groups", "the same, even groups")
"""These are told the classes: the guard protects rare ones, even groups visit them more often."""

CURVE = 20
"""Times that a run at full budget is scored."""

ASKED_AFTER = 5
"""Epochs after which the suspects are asked for, in a plain shuffle at full budget."""

Line = dict[str, Any]


class Job(NamedTuple):
    """One training: what, on which labels, per cent of the usual visits, how, and with what seed and peak rate."""

    task: str
    setting: str
    budget: int
    method: str
    seed: int
    lr: float


def run(job: Job) -> Line:
    """Train; the job and what came of it.

    The losses of single samples are reported, and only a loss that is not finite is refused: what is compared are the
    policies alone.
    """
    task = TASKS[job.task]
    learner = task.make(job.seed, task.settings[job.setting])
    r8 = R8Scheduler(
        learner.num_samples,
        batch_size=task.batch_size,
        num_epochs=task.epochs * job.budget / 100,
        initial_lr=job.lr,
        policy=METHODS[job.method],
        groups=_groups(job.method, learner),
        seed=job.seed,
        guard=FiniteGuard(),
        # A run that a signal ends early must not become a line.
        handle_signals=False,
    )
    line: Line = job._asdict()
    begin = time.thread_time()
    curve = _trained(r8, learner, line, steps_per_epoch=-(-learner.num_samples // task.batch_size))
    score = learner.score(briefly=False)
    line["result"] = _rounded(score.result)
    if score.rarest is not None:
        line["rarest"] = _rounded(score.rarest)
    if job.budget == 100:
        line["curve"] = curve
    return line | {"seconds": round(time.thread_time() - begin, 2)}


def _groups(method: str, learner: Learner) -> NDArray[np.int64] | None:
    """The labels, or, where the guard is to go without them, one group for all."""
    if method in WITH_GROUPS:
        return learner.labels
    return np.zeros(learner.num_samples, np.int64) if "guard" in method else None


def _trained(r8: R8Scheduler, learner: Learner, line: Line, steps_per_epoch: int) -> list[float]:
    """The scores on the way, at full budget; what the suspects were goes into the line."""
    is_full, is_plain = line["budget"] == 100, line["method"] == "shuffle"
    total = r8.total_steps or 1
    looks = {-(-total * number // CURVE) for number in range(1, CURVE + 1)} if is_full else set()
    curve = []
    while (ticket := r8.draw_if_any()) is not None:
        losses = learner.step(ticket.indices, ticket.lr, ticket.weights)
        if not np.isfinite(losses).all():
            # Diverged: no guard mends it, and what comes after says nothing of the policy.
            break
        r8.report(ticket, losses)
        if r8.global_step in looks:
            curve.append(_rounded(learner.score(briefly=True).result))
        if is_full and is_plain and learner.labels is not None and r8.global_step == ASKED_AFTER * steps_per_epoch:
            line["suspects"] = suspects_found(r8, learner)
    if "suspects" in line and learner.is_wrong.any():
        line["suspects"]["auc_at_end"] = _rounded(area(r8.table.mean, learner.is_wrong))
    return curve


def suspects_found(r8: R8Scheduler, learner: Learner) -> Line:
    """Area under the ROC curve of the mean loss, share of the samples flagged, precision and recall."""
    flagged = np.zeros(learner.num_samples, bool)
    flagged[r8.table.suspects().indices] = True
    right, wrong = int((flagged & learner.is_wrong).sum()), int(learner.is_wrong.sum())
    found = {"flagged": _rounded(float(flagged.mean()))}
    if wrong:
        found |= {"auc": _rounded(area(r8.table.mean, learner.is_wrong)), "recall": _rounded(right / wrong)}
    if wrong and flagged.any():
        found["precision"] = _rounded(right / int(flagged.sum()))
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.5g}") if math.isfinite(value) else 1e9


def key_of(line: Line) -> Job:
    """The job that a line is the answer to."""
    return Job(*(line[name] for name in Job._fields))


def read(path: Path) -> list[Line]:
    """The lines of a file, without a last one that was cut off; none where there is no file."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def run_all(jobs: Sequence[Job], path: Path | None, processes: int) -> list[Line]:
    """Run what is not in the file yet, in its order, and append each answer; the answers to all the jobs."""
    known = {key_of(line): line for line in (read(path) if path else [])}
    missing = [job for job in jobs if job not in known]
    if path and path.is_file() and not path.read_bytes().endswith(b"\n"):
        # The program was stopped while it wrote: what comes next is no part of that line.
        with path.open("a") as file:
            file.write("\n")
    for line in _answers(missing, processes):
        known[key_of(line)] = line
        if path:
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
    return [known[job] for job in jobs]


def _answers(jobs: Sequence[Job], processes: int) -> Iterator[Line]:
    if processes == 1 or len(jobs) < 2:
        yield from map(run, jobs)
        return
    # Not forked: torch and its threads do not survive it.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(run, jobs)


def packed(lines: Iterable[Line]) -> list[Line]:
    """One line for all the seeds of a cell, small enough to be kept: lists of results, and the mean of the curves."""
    cells: dict[tuple[Any, ...], list[Line]] = {}
    for line in sorted(lines, key=lambda line: line["seed"]):
        cells.setdefault(tuple(line[name] for name in Job._fields if name != "seed"), []).append(line)
    short = []
    for each in cells.values():
        cell = {name: each[0][name] for name in Job._fields} | {"seed": [line["seed"] for line in each]}
        for name in ("result", "rarest", "suspects"):
            if all(name in line for line in each):
                cell[name] = [line[name] for line in each]
        if all(len(line.get("curve", ())) == CURVE for line in each):
            cell["curve"] = [_rounded(float(value)) for value in np.mean([line["curve"] for line in each], axis=0)]
        cell["seconds"] = round(sum(line["seconds"] for line in each), 1)
        short.append(cell)
    return short

"""States that are poisoned some backups before it shows, for `incidents.py`.

Which backups there are at that moment is read off the package; whether one is poisoned, off the mark in its state.
"""

from __future__ import annotations

import math
import os
import tempfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from incident_tasks import Network, make_task

from learnit_r8 import FiniteGuard, R8Scheduler, Ticket, TrainingDiverged, events
from learnit_r8.engine.settings import grouped

BACKUP_EVERY, CHECKPOINT_EVERY = 50, 100
SIZE, BATCH = 1000, 32
FAR_AWAY = 10**9


class Poison(NamedTuple):
    """A state that is poisoned some backups before it shows.

    Attributes:
        model: Name in `incident_tasks.TASKS`.
        seed: Of data, weights, batches and steps.
        setting: What the case is listed under.
        kind: "nan" losses, a "spike", a "raised" level, or an "array" with a NaN that no loss sees.
        show: "at once": from one step on for every state that descends from the poisoned one; "fuse": so many
            steps after the poisoning, counted in the state.
        delay: Backups in between.
        times: How often in the run.
        resume: "no", or killed and resumed "before" or "after" the first poisoning.
        where: What there is to go back to: "ram", "disk" or "both".
        order: Report "before" the update or "after" it.
        reports: "exact" or "means".
    """

    model: str
    seed: int
    setting: str
    kind: str
    show: str
    delay: int
    times: int
    resume: str
    where: str
    order: str
    reports: str


class PoisonRun:
    """One run of a case, in one process or in two."""

    def __init__(self, case: Poison, folder: str) -> None:
        self.case, self.folder = case, folder
        self.task = make_task(case.model, case.seed, size=SIZE)
        self.noise = np.random.default_rng(zlib.crc32(repr(case).encode()))
        self.fuse = BACKUP_EVERY * case.delay
        first = int(self.noise.integers(665, 700))
        # To go back from backup to backup, and to burn down each time, takes this long.
        after = 500 if case.show == "at once" else self.fuse * (case.delay + 3) // 2 + 400
        self.poisoned_at = [first + number * (self.fuse + after) for number in range(case.times)]
        self.steps = self.poisoned_at[-1] + self.fuse + after
        self.factor = float(10 ** self.noise.uniform(1, 3))
        self.number = -1
        self.newest: list[int] = []
        self.reached: list[int | None] = []
        self.rates: list[tuple[int, float]] = []
        self.lost = self.restores = 0
        self.files: list[tuple[int, str]] = []
        self.model = Network(self.task, case.seed)
        self.start = self.model.loss()
        self.level = self.start / 3

    def hear(self, event: Any) -> None:
        """Note restores and checkpoints."""
        if isinstance(event, events.RolledBack):
            self.rates = [entry for entry in self.rates if entry[0] < event.to_step]
            if self.newest:
                self.lost += event.step - event.to_step
                self.restores += 1
                self.reached[-1] = event.to_step
        elif isinstance(event, events.CheckpointSaved):
            self.files.append((event.step, str(event.model_path)))

    def session(self, until: int) -> None:
        """Train to this step, or to the end; a second session resumes the first."""
        case, model = self.case, self.model
        settings: dict[str, Any] = {"load_callback": model.load}
        if case.where != "disk":
            settings |= {"state_callback": model.state, "backup_every": BACKUP_EVERY}
        if case.where != "ram":
            settings |= {"save_callback": model.save, "checkpoint_dir": self.folder, "keep_checkpoints": 40}
            settings |= {"checkpoint_every": CHECKPOINT_EVERY, "resume": "auto"}
        r8 = R8Scheduler(
            SIZE, batch_size=BATCH, num_steps=self.steps, seed=case.seed, initial_lr=self.task.rate(BATCH),
            handle_signals=False, listeners=[self.hear], **grouped(settings),
        )  # fmt: skip
        self.rates = [entry for entry in self.rates if entry[0] < r8.global_step]
        while r8.global_step < min(until, self.steps):
            self.step(r8)
        if until >= self.steps:
            r8.close()

    def step(self, r8: R8Scheduler) -> None:
        """One batch."""
        ticket, model, case = r8.draw(), self.model, self.case
        step = r8.global_step
        if self.number + 1 < case.times and step >= self.poisoned_at[self.number + 1]:
            self.number += 1
            model.mark[:] = 1, 0
        losses, scale = model.losses(ticket.indices), 1.0
        shows = self.shows(step)
        if shows:
            if len(self.newest) <= self.number:
                self.newest.append(self.find_newest(r8))
                self.reached.append(None)
                self.level = (self.start - model.loss()) / 3
            losses, scale = self.damage(losses)
        if case.order == "after":
            model.step(ticket.lr, scale)
        outcome = self.report(r8, ticket, losses)
        if outcome and case.order == "before":
            model.step(ticket.lr, scale)
        if outcome:
            self.rates.append((step, ticket.lr))
        if case.kind == "array" and self.shows(step):
            model.average[0][0, 0] = math.nan

    def report(self, r8: R8Scheduler, ticket: Ticket, losses: Any) -> Any:
        """Report exact losses, or their mean."""
        return r8.report(ticket, losses if self.case.reports == "exact" else float(losses.mean()))

    def shows(self, step: int) -> bool:
        """Whether this state shows the damage."""
        mark = self.model.mark
        is_due = step >= self.poisoned_at[max(self.number, 0)] + self.fuse
        return bool(mark[0]) and (is_due if self.case.show == "at once" else mark[1] >= self.fuse)

    def damage(self, losses: Any) -> tuple[Any, float]:
        """The losses that a state shows once the damage is there, and what their gradient is multiplied by."""
        kind = self.case.kind
        if kind == "nan":
            return losses * math.nan, math.nan
        if kind == "spike":
            return self.factor * np.maximum(losses, self.start / 3), self.factor
        if kind == "raised":
            return losses + self.level * self.noise.uniform(0.5, 1.5, len(losses)), 1.0
        return losses, 1.0

    def find_newest(self, r8: R8Scheduler) -> int:
        """The step of the newest healthy state that can be put back; -1 if there is none."""
        backups = r8.host.persistence.backup.backups
        steps = [each.step for each in backups if each.state is not None and not each.state["mark"][0]]
        for step, path in self.files:
            if os.path.exists(path):
                with np.load(path) as file:
                    steps += [] if file["mark"][0] else [step]
        return max(steps, default=-1)

    def undisturbed(self) -> float:
        """The final loss of a run without faults that had as many steps, at the rates that this one had."""
        model = Network(self.task, self.case.seed)
        r8 = R8Scheduler(
            SIZE, batch_size=BATCH, num_steps=self.steps, seed=self.case.seed, guard=FiniteGuard(), handle_signals=False
        )
        for _, lr in self.rates:
            ticket = r8.draw()
            losses = model.losses(ticket.indices)
            model.step(lr)
            self.report(r8, ticket, losses)
        return model.loss()

    def run(self) -> bool:
        """Train; whether it came to its end."""
        until = {"no": FAR_AWAY, "before": 560, "after": 707}[self.case.resume]
        try:
            self.session(until)
            if until < FAR_AWAY:
                self.model = Network(self.task, self.case.seed + 1000)
                self.session(FAR_AWAY)
        except (TrainingDiverged, RuntimeError):
            return False
        return True


def run_poison(case: Poison) -> dict[str, float]:
    """Healed: the end is finite, not poisoned, and within 10 % of the shortened undisturbed run."""
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        run = PoisonRun(case, str(Path(folder) / "checkpoints"))
        is_done = run.run()
        model = run.model
        is_whole = all(np.isfinite(array).all() for array in (*model.weights, *model.moments, *model.average))
        is_healed = is_done and is_whole and not model.mark[0] and len(run.newest) == case.times
        ratio = model.loss() / run.undisturbed() if is_healed else math.nan
    known = [(newest, reached) for newest, reached in zip(run.newest, run.reached, strict=True) if newest >= 0]
    return {
        "gave up": float(not is_done), "healed": float(is_healed and ratio <= 1.1), "ratio": ratio,
        "counted": float(len(known) == len(run.newest) > 0), "lost": run.lost, "restores": run.restores,
        "shown": len(known), "reached": sum(reached is not None and reached >= newest for newest, reached in known),
    }  # fmt: skip


def draw_poison(seed: int) -> list[Poison]:
    """80 of a seed: ten for each kind of damage and way to show, the rest at random."""
    rng, cases = np.random.default_rng([seed, 1]), []
    names = ("digits", "digits mlp", "clouds", "regression")
    for kind in ("nan", "spike", "raised", "array"):
        for show in ("at once", "fuse") * 10:
            resume = str(rng.choice(["no", "no", "before", "after"]))
            # Only a backup finds what no loss sees, and only from a checkpoint a run is resumed.
            places = ["both", *(["disk"] if kind != "array" else []), *(["ram"] if resume == "no" else [])]
            where, model = str(rng.choice(places)), str(rng.choice(names))
            delay, times = int(rng.integers(1, 9)), int(rng.choice([1, 1, 2]))
            order, reports = str(rng.choice(["before", "after"])), str(rng.choice(["exact", "means"]))
            setting = f"{kind}, {where}{', twice' * (times - 1)}"
            cases.append(Poison(model, seed, setting, kind, show, delay, times, resume, where, order, reports))
    return cases

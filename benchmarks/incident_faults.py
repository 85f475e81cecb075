"""The cases of `incidents.py`: each is a named tuple that says everything of a run, and a function that runs it.

Nothing is printed here. The scheduler is used through its public interface; only `healthy_in_ram` looks further, to
make sure that a run which is counted had something to go back to.
"""

from __future__ import annotations

import functools
import math
import os
import tempfile
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from incident_tasks import Hear, Network, NormedNetwork, Task, build, make_task, random_of, report, train_on

from learnit_r8 import FiniteGuard, R8Scheduler, TrainingDiverged, Warmup, events

BACKUP_EVERY, CHECKPOINT_EVERY = 50, 100
FAR_AWAY = 10**9


class Result(NamedTuple):
    """What became of a case.

    Attributes:
        case: The case.
        ok: Whether it went as it must; None if it does not count, and ``note`` says why.
        note: What went wrong.
        figures: Anything measured, by name.
    """

    case: Any
    ok: bool | None
    note: str = ""
    figures: dict[str, float] = {}  # noqa: RUF012


def in_ram(model: Any) -> dict[str, Any]:
    """The callbacks for backups, which are taken when the scheduler thinks fit."""
    return {"state_callback": model.state, "load_callback": model.load}


def healthy_in_ram(r8: R8Scheduler) -> bool | None:
    """Whether one of the states in RAM is not poisoned; None where the package does not let us see."""
    # The older version that is compared calls it safekeeping.
    backup = getattr(getattr(r8, "persistence", getattr(r8, "safekeeping", None)), "backup", None)
    held: list[Any] = []
    for value in vars(backup).values() if backup is not None else ():
        is_many = isinstance(value, (list, tuple, deque)) and not hasattr(value, "state")
        held += list(value) if is_many else [value]
    states = [slot.state for slot in held if isinstance(getattr(slot, "state", None), dict)]
    return any(not state["mark"][0] for state in states) if states else None


class Poison(NamedTuple):
    """A state that is poisoned some backups before it shows.

    Attributes:
        task: Name in `TASKS`.
        kind: "nan" losses, a "spike", a "raised" level, or an "array" with a NaN that no loss sees.
        show: "at once": from one step on for every state that descends from the poisoned one; "fuse": so many
            steps after the poisoning, counted in the state.
        delay: Backups in between.
        incident: Which incident of the run it is; those before are isolated NaN losses.
        resume: "no", or killed and resumed "before" or "after" the poisoning.
        where: What there is to go back to: "ram", "disk" or "both".
        order: Report "before" the update or "after" it.
        reports: "exact" or "means".
        seed: Of data, weights and batches.
    """

    task: str
    kind: str
    show: str
    delay: int
    incident: int
    resume: str
    where: str
    order: str
    reports: str
    seed: int


POISON_SIZE, POISON_BATCH = 1000, 32


class _PoisonRun:
    """One run, in one process or in two."""

    def __init__(self, case: Poison, folder: str, hear: Hear | None) -> None:
        self.case, self.folder, self._hear = case, folder, hear or (lambda event: None)
        self.task = make_task(case.task, case.seed, size=POISON_SIZE)
        rng = random_of(case)
        self.poisoned_at = int(rng.integers(665, 700))
        self.fuse = BACKUP_EVERY * case.delay
        self.shows_at = self.poisoned_at + self.fuse
        self.steps = self.shows_at + (500 if case.show == "at once" else 2 * self.fuse + 400)
        self.isolated = {180 + 80 * number + int(rng.integers(20)) for number in range(case.incident - 1)}
        self.factor, self.noise = float(10 ** rng.uniform(1, 3)), rng
        self.is_poisoned = False
        self.healthy: bool | None = False
        self.has_shown: float = math.nan
        self.rates: list[tuple[int, float]] = []
        self.lost = self.restores = 0
        self.files: list[str] = []
        self.model = Network(self.task, case.seed)
        self.start = self.model.loss()

    def hear(self, event: Any) -> None:
        self._hear(event)
        if isinstance(event, events.RolledBack):
            self.go_back_to(event.to_step)
            self.lost += event.step - event.to_step
            self.restores += not math.isnan(self.has_shown)
        elif isinstance(event, events.CheckpointSaved):
            self.files.append(event.model_path)

    def go_back_to(self, step: int) -> None:
        self.rates = [entry for entry in self.rates if entry[0] < step]

    def session(self, until: int) -> None:
        """Train to this step, or to the end; a second session resumes the first."""
        case, model = self.case, self.model
        callbacks: dict[str, Any] = {"load_callback": model.load}
        if case.where != "disk":
            callbacks = {**in_ram(model), "backup_every": BACKUP_EVERY}
        if case.where != "ram":
            keep = (self.shows_at - 600) // CHECKPOINT_EVERY + 4
            callbacks |= {"save_callback": model.save, "checkpoint_dir": self.folder, "keep_checkpoints": keep}
            callbacks |= {"checkpoint_every": CHECKPOINT_EVERY, "resume": "auto"}
        r8 = build(self.task, POISON_BATCH, self.steps, case.seed, self.hear, **callbacks)
        self.go_back_to(r8.global_step)
        while r8.global_step < min(until, self.steps):
            self.step(r8)
        if until >= self.steps:
            r8.close()

    def step(self, r8: R8Scheduler) -> None:
        ticket, model = r8.draw(), self.model
        step = r8.global_step
        if step == self.poisoned_at and not self.is_poisoned:
            self.is_poisoned = True
            model.mark[:] = 1, 0
        losses, scale = model.losses(ticket.indices), 1.0
        if step in self.isolated:
            self.isolated.discard(step)
            losses, scale = losses * math.nan, math.nan
        shows = self.shows(step)
        if shows:
            if math.isnan(self.has_shown):
                self.has_shown = step
                self.level = (self.start - model.loss()) / 3
                self.healthy = self.has_healthy(r8)
            losses, scale = self.damaged(losses)
        if train_on(r8, model, ticket, losses, self.case.reports, self.case.order, scale):
            self.rates.append((step, ticket.lr))
        if self.case.kind == "array" and self.shows(step):
            model.average[0][0, 0] = math.nan

    def shows(self, step: int) -> bool:
        mark = self.model.mark
        return bool(mark[0]) and (step >= self.shows_at if self.case.show == "at once" else mark[1] >= self.fuse)

    def damaged(self, losses: Any) -> tuple[Any, float]:
        """The losses that a state shows once the damage is there, and what their gradient is multiplied by."""
        kind = self.case.kind
        if kind == "nan":
            return losses * math.nan, math.nan
        if kind == "spike":
            return self.factor * np.maximum(losses, self.start / 3), self.factor
        if kind == "raised":
            return losses + self.level * self.noise.uniform(0.5, 1.5, len(losses)), 1.0
        return losses, 1.0

    def has_healthy(self, r8: R8Scheduler) -> bool | None:
        """Whether there is a healthy state; None where it is in RAM by construction, and cannot be seen."""
        for path in filter(os.path.exists, self.files):
            with np.load(path) as file:
                if not file["mark"][0]:
                    return True
        return healthy_in_ram(r8) if self.case.where != "disk" else False

    def undisturbed(self) -> float:
        """The final loss of a run without faults that had as many steps, at the rates that this one had."""
        model = Network(self.task, self.case.seed)
        r8 = build(self.task, POISON_BATCH, self.steps, self.case.seed, None, guard=FiniteGuard())
        for _, lr in self.rates:
            ticket = r8.draw()
            losses = model.losses(ticket.indices)
            model.step(lr)
            report(r8, ticket, losses, self.case.reports)
        return model.loss()

    def run(self) -> str:
        """Train; why it came to no good end, "" if it did."""
        until = {"no": FAR_AWAY, "before": 560, "after": 707}[self.case.resume]
        try:
            self.session(until)
            if until < FAR_AWAY:
                self.model = Network(self.task, self.case.seed + 1000)
                self.session(FAR_AWAY)
        except TrainingDiverged:
            return "gave up"
        except RuntimeError as error:
            return f"error: {str(error)[:60]}"
        return ""


def run_poison(case: Poison, hear: Hear | None = None) -> Result:
    """Healed: the end is finite, not poisoned, and within 10 % of the shortened undisturbed run."""
    with tempfile.TemporaryDirectory() as folder:
        run = _PoisonRun(case, str(Path(folder) / "checkpoints"), hear)
        note = run.run()
    if math.isnan(run.has_shown):
        return Result(case, None, note or "the damage never showed")
    if run.healthy is False:
        return Result(case, None, "no healthy state was left")
    figures = {"lost": run.lost, "restores": run.restores, "unseen": float(run.healthy is None)}
    arrays = [*run.model.weights, *run.model.moments, *run.model.average]
    if not note and not all(np.isfinite(array).all() for array in arrays):
        note = "not finite at the end"
    if not note and run.model.mark[0]:
        note = "poisoned at the end" + ("" if run.shows(run.steps) else ", which does not show yet")
    if note:
        return Result(case, False, note, figures)
    figures["ratio"] = run.model.loss() / run.undisturbed()
    return Result(case, figures["ratio"] <= 1.1, f"ratio {figures['ratio']:.2f}", figures)


class OneNan(NamedTuple):
    """A healthy run with exactly one NaN loss.

    Attributes:
        how: "loss": only what is reported; "weights": the update as well, reported after; "one": only one sample's.
    """

    task: str
    batch_size: int
    reports: str
    wrong: float
    how: str
    seed: int


class Counts:
    """Counts events of a run, and hands them on."""

    def __init__(self, hear: Hear | None) -> None:
        self._hear = hear or (lambda event: None)
        self.refused: list[int] = []
        self.quarantined: list[int] = []

    def __call__(self, event: Any) -> None:
        self._hear(event)
        if isinstance(event, events.BatchRefused):
            self.refused.append(event.step)
        elif type(event).__name__ == "SamplesQuarantined":
            self.quarantined.append(event.step)


def run_one_nan(case: OneNan, hear: Hear | None = None) -> Result:
    """Fails where anything else is refused, or the run gives up."""
    task = make_task(case.task, case.seed, wrong=case.wrong)
    steps, heard, model = 1500, Counts(hear), Network(task, case.seed)
    at = int(random_of(case).integers(100, 1300))
    r8 = build(task, case.batch_size, steps, case.seed, heard, **in_ram(model))
    order = "after" if case.how == "weights" else "before"
    try:
        for step in range(steps):
            ticket = r8.draw()
            losses, scale = model.losses(ticket.indices), 1.0
            if step == at and case.how == "one":
                losses[0] = math.nan
            elif step == at:
                losses, scale = losses * math.nan, math.nan
            train_on(r8, model, ticket, losses, case.reports, order, scale)
    except TrainingDiverged:
        return Result(case, False, f"gave up after {len(heard.refused) - 1} false refusals")
    others = max(0, len(heard.refused) - 1)
    figures = {"others": others, "quarantined": len(getattr(r8.table, "quarantined", ()))}
    return Result(case, others == 0, f"{others} others refused, NaN at {at}: {heard.refused[:6]}", figures)


class BadSample(NamedTuple):
    """A sample whose input is NaN.

    Attributes:
        reports: "exact", "means", and with BatchNorm "norm exact" and "norm means".
    """

    steps_per_epoch: int
    reports: str
    order: str
    epochs: int
    seed: int


BATCHES, TRAINED_ON = {10: 32, 20: 32, 32: 32, 50: 28, 100: 14, 200: 7}, 1400


def run_bad_sample(case: BadSample, hear: Hear | None = None) -> Result:
    """Fails where the run gives up; compared with a run of the same seed without that sample."""
    whole = make_task("digits sgd", case.seed)
    size = BATCHES[case.steps_per_epoch] * case.steps_per_epoch
    task = whole._replace(inputs=whole.inputs[:size].copy(), targets=whole.targets[:size], wrong=None)
    task.inputs[size // 2] = math.nan
    heard = Counts(hear)
    gave_up, accuracy, share, named = _train_on_bad(case, task, whole, heard)
    figures = {"share": share, "refused": len(heard.refused), "wrongly": float(bool(named - {size // 2}))}
    if heard.quarantined:
        figures["epoch"] = (heard.quarantined[0] - 1) // case.steps_per_epoch + 1
        figures["times"] = len(heard.quarantined)
    if gave_up:
        return Result(case, False, f"gave up at step {gave_up}, epoch {gave_up // case.steps_per_epoch + 1}", figures)
    keep = np.arange(size) != size // 2
    without = task._replace(inputs=task.inputs[keep], targets=task.targets[keep])
    figures["loss of accuracy"] = _train_on_bad(case, without, whole, None)[1] - accuracy
    return Result(case, True, "", figures)


def _train_on_bad(case: BadSample, task: Task, whole: Task, hear: Hear | None) -> tuple[int, float, float, set[int]]:
    """The step of giving up or 0, accuracy on data held out, mean share of the planned rate at the end, quarantined."""
    is_normed = case.reports.startswith("norm ")
    reports = case.reports.removeprefix("norm ")
    model: Any = (NormedNetwork if is_normed else Network)(task, case.seed)
    batch_size, steps = BATCHES[case.steps_per_epoch], case.steps_per_epoch * case.epochs
    plan = Warmup(task.rate(batch_size))
    r8 = build(task, batch_size, steps, case.seed, hear, scheduler_mode=lambda p: plan(p), **in_ram(model))
    shares = []
    try:
        for step in range(steps):
            ticket = r8.draw()
            if step >= 2 * steps // 3:
                shares.append(ticket.lr / plan(step / steps))
            train_on(r8, model, ticket, model.losses(ticket.indices), reports, case.order)
    except TrainingDiverged:
        return r8.global_step, math.nan, math.nan, set()
    accuracy = model.accuracy(whole.inputs[TRAINED_ON:], whole.targets[TRAINED_ON:])
    return 0, accuracy, float(np.mean(shares)), set(map(int, getattr(r8.table, "quarantined", ())))


class Outlier(NamedTuple):
    """One loss is reported ``by`` times as high, in step ``at``; the model is untouched."""

    task: str
    batch_size: int
    size: int
    reports: str
    order: str
    by: float
    at: int
    seed: int


class _Ended(NamedTuple):
    refused: tuple[int, ...]
    suspects: frozenset[int]
    untrained_loss: float
    gave_up: bool


@functools.lru_cache(maxsize=64)
def _train_with_outlier(case: Outlier, hear: Hear | None = None) -> _Ended:
    task, heard = make_task(case.task, case.seed, size=case.size), Counts(hear)
    model, steps, gave_up = Network(task, case.seed), 5 * -(-case.size // case.batch_size) + 150, False
    r8 = build(task, case.batch_size, steps, case.seed, heard, **in_ram(model))
    try:
        for step in range(steps):
            ticket = r8.draw()
            losses = model.losses(ticket.indices) * (case.by if step == case.at else 1.0)
            train_on(r8, model, ticket, losses, case.reports, case.order)
    except TrainingDiverged:
        gave_up = True
    suspects = frozenset(r8.table.suspects().indices.tolist())
    return _Ended(tuple(heard.refused), suspects, float(r8.table.untrained_loss), gave_up)


def run_outlier(case: Outlier, hear: Hear | None = None) -> Result:
    """Fails where it is felt later: refusals, another loss of an untrained model, suspects where the twin has none.

    Where some losses of a short beginning were refused, what an untrained model loses is the mean of the others.
    """
    twin = _train_with_outlier(case._replace(by=1.0, at=0))
    run = _train_with_outlier(case, hear)
    later = sum(step > case.at + 1 for step in run.refused) - sum(step > case.at + 1 for step in twin.refused)
    new = 0 if twin.suspects else len(run.suspects)
    off = run.untrained_loss / twin.untrained_loss - 1
    if not abs(off) <= 0.1:
        off = run.untrained_loss / _train_with_outlier(case._replace(by=math.nan)).untrained_loss - 1
    is_off = not abs(off) <= 0.1
    figures = {"refused": float(later > 0), "suspects": float(new > 0), "untrained": float(is_off)}
    figures |= {"at": float(case.at + 1 in run.refused), "gave up": float(run.gave_up)}
    note = f"{later} later refusals, {new} new suspects, untrained_loss off by {off:+.2g}"
    ok = not (later > 0 or new or is_off or run.gave_up)
    return Result(case, ok, note + (", gave up" if run.gave_up else ""), figures)

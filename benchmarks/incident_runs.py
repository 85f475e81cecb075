"""One training of `incidents.py`: by hand without the package, or under an R8Scheduler, and what became of it."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from incident_faults import Faults, Injector
from incident_networks import NETS, Gan, TorchModel
from incident_rewards import Pole, Values
from incident_tasks import make_network
from torch.utils.data import TensorDataset

from learnit_r8 import FiniteGuard, R8Scheduler, SpikeGuard, TrainingDiverged, events
from learnit_r8.guard import Guard
from learnit_r8.torch import attach

BACKUP_EVERY, CHECKPOINT_EVERY = 50, 100
NEED_NOT_FALL: Guard = FiniteGuard()
"""The guard for losses that say nothing of progress."""


class Case(NamedTuple):
    """Everything that a run depends on.

    Attributes:
        model: Two words: a name in `NETS` and an optimizer; or "gan", "reinforce", "actor critic", "values", or a name
            in `incident_tasks.TASKS`.
        seed: Of data, weights, batches and faults.
        setting: What the case is listed under.
        faults: What goes wrong.
        reports: "exact" losses or "means".
        order: Report "before" the update, or "after" it.
        epochs: Length of the run.
        steps: Its length in steps, in place of that.
        batch_size: B.
        disk: Whether checkpoints are written.
        policy: The order of samples under an R8Scheduler; without one it is that of "shuffle".
        clip: Longest gradient; its length is reported then.
        adapter: Whether torch models are trained through `attach`.
        schedule: Name in `SCHEDULES`; of "own ..." the scheduler knows nothing.
        change: What the losses change to half-way; see `TorchModel`.
    """

    model: str
    seed: int
    setting: str
    faults: Faults = Faults()
    reports: str = "means"
    order: str = "before"
    epochs: int = 15
    steps: int | None = None
    batch_size: int = 32
    disk: bool = False
    policy: str = "shuffle"
    clip: float | None = None
    adapter: bool = True
    schedule: str = "cosine"
    change: str = ""


def warmed(progress: float) -> float:
    return min(1.0, (progress + 1e-3) / 0.05)


def cosine(progress: float) -> float:
    return warmed(progress) * (0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, progress))))


def restarts(progress: float) -> float:
    return 0.02 + 0.49 * (1 + math.cos(math.pi * (5 * min(progress, 0.9999) % 1)))


def stairs(progress: float) -> float:
    return 0.1 ** int(3 * min(progress, 0.9999))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": cosine, "constant": lambda progress: 1.0, "restarts": restarts, "stairs": stairs,
    "own restarts": restarts, "own stairs": stairs, "own constant": lambda progress: 1.0,
}  # fmt: skip
"""From progress to the share of the highest rate."""


def make_model(case: Case) -> Any:
    """The model of a case, new."""
    if case.model == "gan":
        return Gan(case.seed)
    if case.model == "values":
        return Values(case.seed)
    if case.model in ("reinforce", "actor critic"):
        return Pole(case.model == "actor critic", case.seed)
    net, *optimizer = case.model.split(" ")
    if net in NETS:
        model: Any = TorchModel(net, optimizer[0], case.seed, case.change)
    else:
        model = make_network(case.model, case.seed)
        model.rate = model.task.rate(case.batch_size)
    model.clip = case.clip if case.clip is not None else model.clip
    return model


class Watch:
    """Hears the events of a run, and counts.

    Attributes:
        beyond: For each incident, the steps that were undone beyond its damage.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.lost = 0
        self.quarantined: set[int] = set()
        self.beyond: list[int] = []
        self._damaged_at: int | None = None
        self._is_new = True

    def note_damage(self, number: int) -> None:
        """The model is damaged before this batch."""
        self._is_new = True
        if self._damaged_at is None:
            self._damaged_at = number

    def note_fault(self) -> None:
        """Something else goes wrong: what is undone from now on belongs to a new incident."""
        self._is_new = True

    def __call__(self, event: Any) -> None:
        name = type(event).__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        if isinstance(event, events.RolledBack):
            self._go_back(event.step, event.to_step)
        elif isinstance(event, events.SamplesQuarantined):
            self.quarantined.update(event.samples)
        elif isinstance(event, events.SamplesReleased):
            self.quarantined.difference_update(event.samples)

    def _go_back(self, step: int, to_step: int) -> None:
        self.lost += step - to_step
        begun = step if self._damaged_at is None else self._damaged_at
        beyond = max(0, begun - to_step)
        if self._is_new:
            self.beyond.append(0)
        self.beyond[-1] += beyond
        self._is_new = False
        if self._damaged_at is not None and to_step <= self._damaged_at:
            self._damaged_at = None


class Run:
    """One run of a case, with what its ways of training share.

    Args:
        case: The case.
        has_faults: False for the oracle, which meets none but those of batches, and leaves these out.
    """

    def __init__(self, case: Case, *, has_faults: bool = True) -> None:
        self.case, self.has_faults, self.watch, self.model = case, has_faults, Watch(), make_model(case)
        model = self.model
        self.steps = case.steps or case.epochs * -(-model.num_samples // case.batch_size)
        model.change_at = self.steps // 2
        self.injector = Injector(case.faults, model, case.seed, self.steps, self.watch.note_damage)
        top = model.rate * (case.faults.rate if has_faults else 1.0)
        shape = SCHEDULES[case.schedule]
        self.plan: Callable[[float], float] = lambda progress: top * shape(progress)
        self.top, self.shares, self.number, self.gave_up = top, list[float](), 0, False

    def rate(self, lr: float) -> float:
        """The rate to use where the scheduler says ``lr``."""
        planned = self.plan(self.number / self.steps)
        lr = planned if self.case.schedule.startswith("own") else lr
        if self.number >= 2 * self.steps // 3:
            self.shares.append(lr / planned)
        return self.injector.rate(self.number, lr) if self.has_faults else lr

    def report(self, losses: Any) -> Any:
        """What is reported of a batch."""
        if self.case.reports == "exact":
            return losses
        return float(losses.sum() if self.model.is_sum else losses.mean())

    def meet(self, samples: Any) -> Any:
        """Let happen what goes wrong before and in a batch; what its losses are multiplied by."""
        self.model.now = self.number
        self.injector.damage(self.number)
        factor = self.injector.factor(self.number, samples)
        if not np.all(factor == 1.0):
            self.watch.note_fault()
        return factor

    def result(self) -> dict[str, float]:
        """What became of it."""
        with np.errstate(all="ignore"):
            score, loss = self.model.score(), self.model.loss()
        watch, bad = self.watch, set(self.injector.bad.tolist())
        counts = watch.counts
        return {
            "score": score, "loss": loss, "gave up": float(self.gave_up), "steps": self.steps,
            "refused": counts.get("BatchRefused", 0), "restores": counts.get("RolledBack", 0),
            "probes": counts.get("Probed", 0), "lost": watch.lost,
            "incidents": len(watch.beyond), "beyond": sum(watch.beyond), "furthest": max(watch.beyond, default=0),
            "share": float(np.mean(self.shares)) if self.shares else math.nan,
            "found": len(watch.quarantined & bad), "wrongly": len(watch.quarantined - bad),
        }  # fmt: skip


def shuffled(num_samples: int, case: Case, steps: int) -> Iterator[Any]:
    """The batches of a run in which nothing happens, policy "shuffle"."""
    settings = {"batch_size": case.batch_size, "num_steps": steps, "seed": case.seed, "handle_signals": False}
    r8 = R8Scheduler(num_samples, policy="shuffle", **settings)
    for _ in range(steps):
        ticket = r8.draw()
        yield ticket.indices
        r8.report(ticket, 1.0)


def train_by_hand(case: Case, leaves_out: str) -> dict[str, float]:
    """Train without a scheduler; leave out bad "batches", all batches' bad "samples", or "nothing"."""
    run = Run(case, has_faults=leaves_out == "nothing")
    model, injector = run.model, run.injector
    good = np.arange(model.num_samples)
    if leaves_out == "samples":
        good = np.setdiff1d(good, injector.bad)
    for number, batch in enumerate(shuffled(len(good), case, run.steps)):
        run.number, samples = number, good[batch]
        model.now = number
        lr = run.rate(run.plan(number / run.steps))
        if leaves_out == "nothing":
            factor = run.meet(samples)
        elif leaves_out == "batches" and injector.is_bad_batch(number, samples):
            continue
        else:
            factor = 1.0
        losses = model.losses(samples) * factor
        model.step(lr, injector.scale(factor))
        if np.isnan(losses).any():
            # So are all weights from here on.
            break
    return run.result()


def settings_of(run: Run, guard: Guard, folder: str) -> dict[str, Any]:
    """The arguments for a scheduler that are the same for the core and an adapter."""
    case = run.case
    is_own = case.schedule.startswith("own")
    settings = {
        "batch_size": case.batch_size, "num_steps": run.steps, "policy": case.policy, "seed": case.seed,
        "initial_lr": run.top, "scheduler_mode": "constant" if is_own else run.plan, "handle_signals": False,
        "backup_every": BACKUP_EVERY, "guard": guard, "listeners": [run.watch],
    }  # fmt: skip
    if case.disk:
        settings |= {"checkpoint_dir": str(Path(folder) / "checkpoints"), "checkpoint_every": CHECKPOINT_EVERY}
    return settings


def train_in_loop(run: Run, guard: Guard, folder: str) -> None:
    """Train with the document's own loop and callbacks."""
    case, model, injector = run.case, run.model, run.injector
    callbacks = {"state_callback": model.state, "load_callback": model.load}
    if case.disk:
        callbacks["save_callback"] = model.save
    r8 = R8Scheduler(model.num_samples, **settings_of(run, guard, folder), **callbacks)
    for _ in r8.epoch_iterator():
        for samples, planned in r8.batch_iterator():
            factor, lr = run.meet(samples), run.rate(planned)
            losses, scale = model.losses(samples) * factor, injector.scale(factor)
            extras = {"grad_norm": model.norm() * scale} if case.clip is not None else {}
            if case.order == "after":
                model.step(lr, scale)
                r8.update_with_loss(run.report(losses), **extras)
            elif r8.update_with_loss(run.report(losses), **extras):
                model.step(lr, scale)
            run.number += 1
    r8.close()


def train_with_adapter(run: Run, guard: Guard, folder: str) -> None:
    """Train a model of torch as its guide says."""
    case, model = run.case, run.model
    data = TensorDataset(torch.arange(model.num_samples))
    settings = settings_of(run, guard, folder)
    if case.schedule.startswith("own"):
        del settings["initial_lr"]
        settings["scheduler_mode"] = "keep"
    adapter = attach(model.net, model.optimizer, data, max_grad_norm=case.clip, **settings)
    for _ in adapter.epochs():
        for (rows,) in adapter.loader():
            samples = rows.numpy()
            factor = run.meet(samples)
            lr = run.rate(adapter.in_hand.lr)
            if case.schedule.startswith("own"):
                for group in model.optimizer.param_groups:
                    group["lr"] = lr
            losses = model.forward(samples) * torch.as_tensor(factor, dtype=torch.float32)
            loss = adapter.loss(losses if case.reports == "exact" else losses.mean())
            adapter.step(loss)
            run.number += 1
    adapter.close()


ARMS: dict[str, Callable[[Case], dict[str, float]]] = {}
"""How a case is trained, by name."""


def train_with(case: Case, guard: Guard) -> dict[str, float]:
    """Train under an R8Scheduler with this guard."""
    run = Run(case)
    is_adapted = case.adapter and isinstance(run.model, TorchModel)
    train = train_with_adapter if is_adapted else train_in_loop
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            train(run, guard, folder)
        except TrainingDiverged:
            run.gave_up = True
        said = [str(each.message) for each in heard]
    return run.result() | {"says": float(any("guard=" in text for text in said))}


ARMS["samples"] = lambda case: train_by_hand(case, "samples")
ARMS["oracle"] = lambda case: train_by_hand(case, "batches")
ARMS["plain"] = lambda case: train_by_hand(case, "nothing")
ARMS["finite"] = lambda case: train_with(case, NEED_NOT_FALL)
ARMS["package"] = lambda case: train_with(case, SpikeGuard())

"""What recovery is worth: faults healed, restores of damaged weights, runs that cannot be saved, and what it costs.

A network in torch (20-64-64-10, 4096 samples of ten Gaussian clouds with 5 % wrong labels), SGD with momentum and Adam,
batches of 8 and 64, 1400 steps, cosine schedule, reported after the optimizer's step as in the seed's loop. Faults
come at step 600. "Healed": the loss on all data ends within 10 % of that of the same run undisturbed.
"Damaged": a restore after which that loss is not finite, or has lost more than a quarter of the progress made before
the fault. "None" trains with the same batches and answers nothing.

    python benchmarks/recovery.py            all of it, about twenty minutes
    python benchmarks/recovery.py --quick    one seed, two minutes
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from learnit_r8 import FiniteGuard, R8Scheduler, TrainingDiverged, Warmup, events
from learnit_r8.testing import FaultPlan, record_events

STEPS, FAULT, SAMPLES = 1400, 600, 4096
RATES = {"sgd": 0.03, "adam": 2e-3}
GLITCH = range(FAULT, FAULT + 5)
TRANSIENT = {
    "one NaN batch": {"nan": [FAULT]},
    "one batch x 1e4": {"spike": [FAULT]},
    "three batches x 100": {"spike": [FAULT, FAULT + 1, FAULT + 2], "spike_by": 100.0},
    "LR x 1000 for 5 steps": {"lr": GLITCH},
    "LR x 30 for 20 steps": {"lr": range(FAULT, FAULT + 20), "lr_by": 30.0},
    "NaN in three places": {"nan": [FAULT, FAULT + 100, FAULT + 400]},
}


class Task:
    """The data, the network and its optimizer."""

    def __init__(self, optimizer: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        centres = torch.randn(10, 20, generator=generator) * 1.2
        self.y = torch.randint(0, 10, (SAMPLES,), generator=generator)
        self.x = centres[self.y] + torch.randn(SAMPLES, 20, generator=generator)
        wrong = torch.rand(SAMPLES, generator=generator) < 0.05
        self.y[wrong] = torch.randint(0, 10, (int(wrong.sum()),), generator=generator)
        torch.manual_seed(5000 + seed)
        layers = torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64), torch.nn.ReLU()
        self.net = torch.nn.Sequential(*layers, torch.nn.Linear(64, 10))
        rate = RATES[optimizer]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(self.net.parameters(), rate, momentum=0.9)
            if optimizer == "sgd"
            else torch.optim.Adam(self.net.parameters(), rate)
        )

    def state(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])

    def step(self, indices: Any, lr: float, faults: FaultPlan, step: int) -> float:
        """Train on a batch; its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = torch.nn.functional.cross_entropy(self.net(self.x[indices]), self.y[indices])
        loss = faults.loss(step, loss)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def loss(self) -> float:
        return float(torch.nn.functional.cross_entropy(self.net(self.x), self.y))


class Setting(NamedTuple):
    """What differs between runs without faults."""

    optimizer: str
    batch_size: int
    seed: int


class Run(NamedTuple):
    """What became of one."""

    loss: float
    restores: int
    damaged: int
    steps: int
    diverged: bool


def train(
    setting: Setting, faults: FaultPlan, *, protected: bool = True, factor: Callable[[int], float] = lambda step: 1.0
) -> Run:
    """One run; ``factor`` is what the scheduler's own rate is multiplied by, which recovery may lower again."""
    task, heard = Task(setting.optimizer, setting.seed), record_events()
    callbacks = {"state_callback": task.state, "load_callback": task.load, "backup_every": 10} if protected else {}
    cosine = Warmup(RATES[setting.optimizer])

    def schedule(progress: float) -> float:
        return cosine(progress) * factor(round(progress * STEPS))

    r8 = R8Scheduler(
        SAMPLES, batch_size=setting.batch_size, num_steps=STEPS, seed=setting.seed, listeners=[heard],
        scheduler_mode=schedule, **callbacks,
        **({} if protected else {"guard": FiniteGuard()}),
    )  # fmt: skip
    first, at_fault, damaged = task.loss(), math.nan, 0
    for step in range(STEPS):
        if step == FAULT:
            at_fault = task.loss()
        ticket = r8.draw()
        loss = task.step(ticket.indices, faults.rate(step, ticket.lr), faults, step)
        if not protected:
            r8.report(ticket, loss if math.isfinite(loss) else 9.0)
            continue
        restores = len(heard.of(events.RolledBack))
        try:
            r8.report(ticket, loss)
        except TrainingDiverged:
            break
        # A state that is put back for a probe only is no restore.
        if len(heard.of(events.RolledBack)) > restores and step >= FAULT:
            damaged += not task.loss() <= at_fault + 0.25 * max(first - at_fault, 0.1)
    return Run(task.loss(), len(heard.of(events.RolledBack)), damaged, step + 1, step + 1 < STEPS)


def settings(seeds: int) -> list[Setting]:
    return [Setting(*each) for each in itertools.product(("sgd", "adam"), (8, 64), range(seeds))]


def print_healed(seeds: int) -> None:
    undisturbed = {setting: train(setting, FaultPlan()) for setting in settings(seeds)}
    print(
        f"undisturbed: {len(undisturbed)} runs, {sum(run.restores for run in undisturbed.values())} restores (must 0)"
    )
    print(
        f"\n{'fault':<24}{'runs':>5}{'healed, none':>14}{'healed, ours':>14}{'restores a run':>16}{'worst ratio':>13}"
    )
    total = healed = 0
    for name, plan in TRANSIENT.items():
        ours = {setting: train(setting, FaultPlan(**plan)) for setting in undisturbed}
        none = {setting: train(setting, FaultPlan(**plan), protected=False) for setting in undisturbed}
        good = [sum(is_healed(runs[s], undisturbed[s]) for s in undisturbed) for runs in (none, ours)]
        worst = max(run.loss / undisturbed[s].loss for s, run in ours.items())
        each = statistics.mean(run.restores for run in ours.values())
        print(f"{name:<24}{len(ours):>5}{good[0]:>14}{good[1]:>14}{each:>16.2f}{worst:>13.2f}")
        total, healed = total + len(ours), healed + good[1]
    print(f"healed without the user: {healed}/{total} = {healed / total:.1%} (must 95 %, aim 100 %)")


def is_healed(run: Run, undisturbed: Run) -> bool:
    return run.loss <= 1.1 * undisturbed.loss


def print_damaged(seeds: int) -> None:
    columns = {"runs": 5, "restored": 10, "restores": 10, "damaged": 9, "gave up": 9, "dead": 6}
    print(f"\n{'LR from the fault on':<24}" + "".join(f"{name:>{width}}" for name, width in columns.items()))
    runs = restores = damaged = 0
    for by in (3, 10, 30, 100, 1000):

        def factor(step: int, by: float = by) -> float:
            return by if step >= FAULT else 1.0

        done = [train(setting, FaultPlan(), factor=factor) for setting in settings(seeds)]
        restored = [run for run in done if run.restores]
        dead = sum(not run.diverged and not run.loss < 1.3 for run in done)
        print(
            f"x {by:<22}{len(done):>5}{len(restored):>10}{sum(r.restores for r in done):>10}"
            f"{sum(r.damaged for r in done):>9}{sum(r.diverged for r in done):>9}{dead:>6}"
        )
        runs, damaged = runs + len(restored), damaged + sum(run.damaged for run in done)
        restores += sum(run.restores for run in done)
    share = damaged / max(1, restores)
    print(
        f"restores of damaged weights: {damaged}/{restores} = {share:.1%} in {runs} diverged runs (must 3 %, aim 1 %)"
    )


def print_hopeless() -> None:
    print("\na loss that is NaN for ever (must: TrainingDiverged after 400 refused batches)")
    for start in (0, 40, 300):
        run = train(Setting("sgd", 8, 0), FaultPlan(nan=range(start, STEPS)))
        print(f"  from step {start}: diverged {run.diverged}, {run.restores} restores, {run.steps - start} steps")


def print_cost(steps: int = 20_000, repeats: int = 7) -> None:
    """A step of the engine with guard and bookkeeping, less one with neither, B = 32, no copy due."""
    times: dict[str, list[float]] = {"plain": [], "guarded": []}
    for _ in range(repeats):
        for name in times:
            guarded = name == "guarded"
            more: dict[str, Any] = (
                {"state_callback": lambda: {"w": 0}, "load_callback": lambda state: None, "backup_every": 10**9}
                if guarded
                else {"guard": _Nobody()}
            )
            r8 = R8Scheduler(50_000, batch_size=32, num_steps=steps, **more)
            losses = (1 + 0.3 * torch.randn(steps, dtype=torch.float64).abs()).tolist()
            began = time.thread_time()
            for _epoch in r8.epoch_iterator():
                for _ in r8.batch_iterator():
                    r8.update_with_loss(losses[r8.global_step])
            times[name].append((time.thread_time() - began) / steps * 1e6)
    plain, guarded = (statistics.median(times[name]) for name in ("plain", "guarded"))
    print(
        f"\na step, B = 32, no copy due: {plain:.2f} us without guard and backups, {guarded:.2f} us with: "
        f"{guarded - plain:.2f} us (must 4, aim 2), ratio {guarded / plain:.2f}; medians of {repeats}"
    )


class _Nobody(FiniteGuard):
    """A guard that looks at nothing."""

    def judge(self, state: Any, *_: Any) -> Any:  # type: ignore[override]
        return state, _GOOD


_GOOD = FiniteGuard().judge(FiniteGuard().begin(), 1.0)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--seeds", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = 1 if options.quick else options.seeds
    print_cost()
    print_hopeless()
    print_healed(seeds)
    print_damaged(seeds)


if __name__ == "__main__":
    main()

"""Where did it begin? Causes that are planted in small real trainings, and what the flight recorder calls them.

Every run is a whole training with `attach`, in which something of `cause_plants.py` goes wrong. What counts is the
first sentence that is told. Right: the kind of the cause, with the sample or the place where the plant has one. Wrong
and certain: a sentence that claims another cause without a "probably". Not refused: the guard has found nothing wrong.

Half of the plants are held out: which ones follows from their names, and nothing was tuned on them. With `--strangers`
the plants are those of `cause_strange_plants.py`, by somebody who had not seen the detectors; with `--visitors` those
of `cause_visitors.py`, which nothing was written beside.

    python benchmarks/causes.py [--strangers | --visitors] [--quick] [--without] [--only TEXT] [--held-out | --tuned]
    python benchmarks/causes.py --large | --step
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import platform
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cause_plants import BAD, BATCH_SIZE, NUM_SAMPLES, NUM_STEPS, PLANTED_AT, Plant, Task, plants
from cause_strange_plants import PLANTS
from cause_strangers import StrangePlant, StrangeTask
from cause_visitors import PLANTS as VISITORS
from cause_visitors import VisitorTask

from learnit_r8 import RunDir, TrainingDiverged, events
from learnit_r8.recovery.record import numbers_in
from learnit_r8.testing import record_events
from learnit_r8.torch import attach, load_incident
from learnit_r8.torch.flight.examiner import Examiner
from learnit_r8.torch.flight.hand import Hand

QUICK = 6


class Told(NamedTuple):
    """What came of a training.

    Attributes:
        causes: The events.
        seconds, cpu_seconds: Time that the first search took, on the clock and of the processor; NaN if there was none.
        is_replayed: Whether the recorded incident has the same loss again, to the bit; None if nothing was recorded.
    """

    causes: list[Any]
    seconds: float
    cpu_seconds: float
    is_replayed: bool | None


AnyPlant = Plant | StrangePlant
AnyTask = Task | StrangeTask | VisitorTask


def train(plant: AnyPlant | None, task: AnyTask, *, with_run_batch: bool) -> Told:
    """Train with something planted, or a NaN reported for nothing; returns what was told of it."""
    with tempfile.TemporaryDirectory() as folder, _timed() as taken:
        causes = _train(plant, task, Path(folder), with_run_batch=with_run_batch)
        return Told(causes, *(taken or [(math.nan, math.nan)])[0], _replays(task, Path(folder)))


def _replays(task: AnyTask, folder: Path) -> bool | None:
    """Whether the recorded loss comes again; None where there is none."""
    if not numbers_in(folder):
        return None
    incident = load_incident(folder / "incidents" / "1")
    if incident.batch is None:
        # Weights were tested, and no batch was refused.
        return None
    finding = incident.record["finding"] or {}
    task.model = copy.deepcopy(task.model)
    again = incident.replay(task.model, lambda model, batch: task.run_batch(batch)).item()
    loss = incident.loss
    if finding.get("missing"):
        # Only the forward pass has run, which gives no loss.
        return None
    if math.isnan(loss):
        # Where the weights are not finite, the batch was not run on them.
        return None if math.isfinite(again) else math.isnan(again)
    return again == loss


@contextlib.contextmanager
def _timed() -> Iterator[list[tuple[float, float]]]:
    """A ``with`` block in which searches are timed, on the clock and of the processor."""
    taken: list[tuple[float, float]] = []
    examine = Examiner.examine

    def timed(self: Examiner, refusal: Any) -> Any:
        began = time.perf_counter(), time.thread_time()
        found = examine(self, refusal)
        taken.append((time.perf_counter() - began[0], time.thread_time() - began[1]))
        return found

    Examiner.examine = timed  # type: ignore[method-assign]
    try:
        yield taken
    finally:
        Examiner.examine = examine  # type: ignore[method-assign]


def _train(plant: AnyPlant | None, task: AnyTask, folder: Path, *, with_run_batch: bool) -> list[Any]:
    if plant is not None:
        plant.prepare(task)
    task.build()
    heard = record_events()
    settings: dict[str, Any] = {"run_batch": task.run_batch} if with_run_batch else {}
    adapter = attach(
        task.model, task.optimizer, task.data, batch_size=BATCH_SIZE, num_steps=NUM_STEPS, scheduler_mode="keep",
        backup_every=8, listeners=[heard], run_dir=RunDir(folder, record=getattr(task, "record", "all")),
        **settings,
    )  # fmt: skip
    with contextlib.suppress(TrainingDiverged):
        for _ in adapter.epochs():
            for batch in adapter.loader():
                step = adapter.scheduler.global_step
                if plant is not None:
                    plant.strike(task, step)
                losses = task.losses(batch)
                if plant is None and step == PLANTED_AT:
                    losses = losses * float("nan")
                adapter.step(adapter.loss(losses))
                if heard.of(events.CauseFound):
                    break
            if heard.of(events.CauseFound):
                break
    adapter.close()
    return list(heard.of(events.CauseFound))


def verdict_on(plant: AnyPlant, causes: list[Any]) -> str:
    """ "right", "wrong", "wrong and certain", "unknown" or "not refused"."""
    if not causes:
        return "not refused"
    first = causes[0]
    blamed = [sample for sample in first.samples if sample != BAD or not plant.names_sample]
    names_sample = plant.names_sample and first.samples == (BAD,)
    names_place = any(each in f"{first.where} {first.text}" for each in plant.where)
    is_named = names_sample or names_place or not (plant.names_sample or plant.where)
    if first.fault in plant.kinds and is_named and not (blamed and getattr(plant, "blames_nobody", False)):
        return "right"
    if first.fault == "unknown":
        return "unknown"
    is_other_sample = bool(blamed) and (
        (plant.names_sample and BAD not in first.samples) or getattr(plant, "blames_nobody", False)
    )
    is_false = first.fault not in plant.kinds or is_other_sample
    return "wrong and certain" if first.is_certain and is_false else "wrong"


class LargeTask:
    """A hundred million parameters, and one sample that holds NaN."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = [[torch.nn.Linear(5000, 5000), torch.nn.GELU()] for _ in range(4)]
        self.model = torch.nn.Sequential(*(each for pair in layers for each in pair), torch.nn.Linear(5000, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3, momentum=0.9)
        x = torch.randn(NUM_SAMPLES, 5000)
        x[BAD, 9] = math.nan
        self.data = torch.utils.data.TensorDataset(x)

    def losses(self, batch: Any) -> torch.Tensor:
        return (self.model(batch[0]) - 1).square().mean(1)


def measure_large() -> None:
    """Print the time of a step, and of the search, of a model with a hundred million parameters."""
    task, heard = LargeTask(), record_events()
    steps: list[tuple[float, float]] = []
    with _timed() as taken:
        adapter = attach(
            task.model, task.optimizer, task.data, batch_size=BATCH_SIZE, num_epochs=1, scheduler_mode="keep",
            run_batch=lambda batch: task.losses(batch).mean(), guard="finite", listeners=[heard],
        )  # fmt: skip
        for batch in adapter.loader():
            began = time.perf_counter(), time.thread_time()
            adapter.step(adapter.loss(task.losses(batch)))
            steps.append((time.perf_counter() - began[0], time.thread_time() - began[1]))
            if taken:
                break
    adapter.close()
    count = sum(each.numel() for each in task.model.parameters())
    print(f"{count / 1e6:.0f} million parameters: {heard.of(events.CauseFound)[0].text}")
    for what, place in (("on the clock", 0), ("of the processor", 1)):
        usual = sorted(each[place] for each in steps[1:-1])
        step, search = usual[len(usual) // 2], taken[0][place]
        print(f"{what}: a step {step:.2f} s (median of {len(usual)}), the search {search:.2f} s")


def measure_step(repeats: int = 30, count: int = 3000) -> None:
    """Print what the recorder adds to a step while all is well; the ways take turns."""
    model, batch = torch.nn.Linear(4, 1), (torch.randn(4, 4),)
    watched, hand, other = copy.deepcopy(model), Hand(keeps_generators=False), Hand(keeps_generators=False)
    other.watch(watched)

    def alone() -> None:
        model(batch[0])

    def with_run_batch() -> None:
        hand.hold(batch)
        model(batch[0])
        hand.reported = hand.take(None)  # type: ignore[arg-type]

    def without() -> None:
        other.hold(batch)
        watched(batch[0])
        other.reported = other.take(None)  # type: ignore[arg-type]

    taken: dict[str, list[float]] = {each.__name__: [] for each in (alone, with_run_batch, without)}
    for _ in range(repeats):
        for step in (alone, with_run_batch, without):
            began = time.thread_time()
            for _ in range(count):
                step()
            taken[step.__name__].append((time.thread_time() - began) / count * 1e6)
    for name in ("with_run_batch", "without"):
        more = sorted(one - two for one, two in zip(taken[name], taken["alone"], strict=True))
        middle, low, high = (more[len(more) * place // 4] for place in (2, 1, 3))
        print(f"a step, {name}: {middle:.2f} us of CPU time more ({low:.2f} to {high:.2f}, half of {repeats} turns)")
    assert hand.reported is not None
    assert hand.reported.batch is batch
    assert other.reported is not None
    assert (other.reported.inputs or [[None]])[0][0] is batch[0]
    print("copies: none, what is held is what was given")


def main() -> None:
    """Run the plants, and print what was told."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--strangers", action="store_true", help="the plants of somebody else")
    parser.add_argument("--quick", action="store_true", help="some of the plants")
    parser.add_argument("--without", action="store_true", help="without run_batch")
    parser.add_argument("--only", default="", help="plants with this text in their name")
    parser.add_argument("--visitors", action="store_true", help="the plants of `cause_visitors.py`")
    parser.add_argument("--large", action="store_true", help="only the time that a hundred million parameters take")
    parser.add_argument("--step", action="store_true", help="only what a step takes more while all is well")
    half = parser.add_mutually_exclusive_group()
    half.add_argument("--held-out", action="store_true", help="only those that nothing was tuned on")
    half.add_argument("--tuned", action="store_true", help="only the others")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.step:
        measure_step()
        return
    if options.large:
        measure_large()
        return
    every: list[AnyPlant] = [*VISITORS] if options.visitors else [*PLANTS] if options.strangers else [*plants()]
    chosen = [each for each in every if options.only in each.name]
    if options.held_out or options.tuned:
        chosen = [each for each in chosen if each.is_held_out == options.held_out]
    if options.quick:
        chosen = chosen[:: max(1, len(chosen) // QUICK)][:QUICK]
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, seed 0, {len(chosen)} plants")
    counts: Counter[tuple[str, bool]] = Counter()
    all_told: list[Told] = []
    began = time.perf_counter()
    for plant in chosen:
        told = train(plant, plant.task(), with_run_batch=not options.without)
        verdict = verdict_on(plant, told.causes)
        all_told.append(told)
        counts[verdict, plant.is_held_out] += 1
        said = told.causes[0].text if told.causes else "nothing"
        print(f"{verdict:17} {'held out' if plant.is_held_out else 'tuned':8} {plant.name:62} {said}")
    for is_held_out in (False, True):
        mine = {verdict: count for (verdict, held), count in counts.items() if held == is_held_out}
        if mine:
            half_name = "held out" if is_held_out else "tuned"
            print(f"{half_name}: {mine.get('right', 0)} of {sum(mine.values())} right; {mine}")
    fine = 0
    models = ("mlp", "cnn", "transformer", "vae")[: 1 if options.quick else 4]
    for model in models:
        causes = train(None, Task(model, torch.float32), with_run_batch=not options.without).causes
        fine += bool(causes) and causes[0].fault == "nothing"
        print(f"nothing planted, {model}: {causes[0].text if causes else 'nothing'}")
    print(f"nothing planted: {fine} of {len(models)} say that model, data and gradients are fine")
    for what in ("seconds", "cpu_seconds"):
        named = [(getattr(each, what), plant.name) for each, plant in zip(all_told, chosen, strict=True)]
        taken = sorted(each for each in named if each[0] == each[0])
        if taken:
            longest, name = taken[-1]
            print(f"{what} of a search: median {taken[len(taken) // 2][0]:.3f}, longest {longest:.3f} ({name})")
    replayed = [each.is_replayed for each in all_told if each.is_replayed is not None]
    print(f"replayed: the loss of {sum(replayed)} of {len(replayed)} to the bit")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

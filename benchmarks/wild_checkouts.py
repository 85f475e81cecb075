"""Scripts of other people, from a folder of checkouts, each run with R8 and without: for wild.py.

Each folder has the checkout and a file ``wild.json``::

    {"repository": "owner/name", "commit": "...", "command": "python main.py --epochs 3",
     "patch": "r8.patch", "folder": "mnist",
     "reward": "reward: ([0-9.]+)", "again": false}

``patch`` puts R8 in (as ``git apply`` takes it, from the checkout's root) and asks for checkpoints with
``resume="auto"``; ``folder`` is where the command runs.
Where the loss is no measure of success, as in reinforcement learning, ``reward`` finds what is one in the output, and
``"again": false`` says that a killed run cannot go on exactly, as its environment cannot be rewound.
What is compared is what the probe of ``learnit-r8 prove`` notes of each step of an optimizer of torch; a script without
one is not heard. `wild_faults` moves the seeds and writes the NaN.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np

from learnit_r8.testing.prove.comparison import align, first_difference, first_odd, generators_that_differ
from learnit_r8.testing.prove.launches import CannotSay, Launch, Workshop

HERE = Path(__file__).parent
PLACES = (0.1, 0.5, 0.85)
"""Shares of the run at which the NaN is written."""

KILL = 0.6
"""Share of the run at which it is killed."""


class Ending(NamedTuple):
    """How a run ended: what was noted of it, the rewards that it printed, or why it failed."""

    launch: Launch | None
    error: str
    rewards: list[float]

    @property
    def losses(self) -> list[float]:
        """The losses of the first rank."""
        ranks = self.launch.ranks if self.launch else []
        return [loss for step in (ranks[0] if ranks else ()) for loss in step["l"]]


class Checkout:
    """One script, and the runs of it.

    Args:
        folder: Where its ``wild.json`` is.
        shop: Where copies of it are made and run.
    """

    def __init__(self, folder: Path, shop: Workshop) -> None:
        self.folder, self.shop, self.name = folder, shop, folder.name
        self.spec = json.loads((folder / "wild.json").read_text(encoding="utf-8"))
        self.words = shlex.split(self.spec["command"])
        self.patch = (folder / self.spec["patch"]).read_text(encoding="utf-8")
        shop.limit = self.spec.get("limit", 240)

    def changed(self) -> tuple[int, int]:
        """Lines added and taken away by the patch; a line that is only indented is neither."""
        lines = self.patch.splitlines()
        more, less = (
            [line[1:].strip() for line in lines if line[:1] == sign and line[:3] != 3 * sign and line[1:].strip()]
            for sign in "+-"
        )
        added = list(more)
        for line in less:
            if line in added:
                added.remove(line)
        taken = list(less)
        for line in more:
            if line in taken:
                taken.remove(line)
        return len(added), len(taken)

    def copy(self, *, with_r8: bool) -> Path:
        """A copy to run in."""
        target = self.shop.copy()
        if with_r8:
            subprocess.run(["git", "apply", "-"], cwd=target, input=self.patch, text=True, check=True)
        return target

    def run(self, place: Path, *, seed: int = 0, fault: int = 0, kill: int = 0) -> Ending:
        """Run the command there: with seeds that are moved, a NaN after a backward pass, or killed after a step."""
        launcher, *words = self.words
        start = [sys.executable, *(["-m", "torch.distributed.run"] if launcher == "torchrun" else [])]
        paths = os.pathsep.join(filter(None, [str(HERE / "wild_faults"), os.environ.get("PYTHONPATH")]))
        with patch.dict(os.environ, {"WILD_SEED": str(seed), "WILD_FAULT": str(fault), "PYTHONPATH": paths}):
            try:
                done = self.shop.launch(
                    place / self.spec.get("folder", "."), [*start, *words], kill=kill, dense=(1, 1 << 62)
                )
            except CannotSay as why:
                return Ending(None, str(why), [])
        logs = sorted(self.shop.place.glob("launch*/output.txt"), key=os.path.getmtime)
        said = logs[-1].read_text(encoding="utf-8", errors="replace")
        rewards = [float(each) for each in re.findall(self.spec.get("reward", "(?!)"), said)]
        has_failed = done.code and done.end != "kill"
        return Ending(done if done.ranks else None, f"ended with {done.code}: {done.said}" * has_failed, rewards)


def is_same(one: Launch, two: Launch) -> bool:
    """Whether all steps of two runs were equal to the bit, and as many."""
    if [len(each) for each in one.ranks] != [len(each) for each in two.ranks]:
        return False
    lasts = [(x[-1], y[-1]) for x, y in zip(one.ranks, two.ranks, strict=True)]
    return first_odd(one.ranks, two.ranks) is None and not any(generators_that_differ(*each) for each in lasts)


def last_of(ending: Ending) -> list[int]:
    """The places of the last tenth of the finite losses, of eight at least."""
    finite = [place for place, loss in enumerate(ending.losses) if np.isfinite(loss)]
    return finite[-max(8, len(finite) // 10) :]


def level(ending: Ending, places: list[int] | None = None) -> float:
    """The mean of the losses at these places, by default at those of `last_of`; of rewards the last, negative."""
    if ending.rewards:
        return -statistics.mean(ending.rewards[-max(8, len(ending.rewards) // 10) :])
    chosen = [ending.losses[place] for place in (last_of(ending) if places is None else places)]
    return statistics.mean(chosen) if chosen else float("nan")


class Finding(NamedTuple):
    """What was found of one script."""

    possible: bool
    lines: tuple[int, int]
    equal: bool
    healed: int
    faults: int
    again: str


def check(checkout: Checkout, places: tuple[float, ...]) -> Finding:
    """Run a script in all ways, and print how it fares."""
    commit = checkout.spec["commit"]
    print(f"{checkout.name}: {checkout.spec['repository']} {commit[:10]}, {checkout.spec['command']}", flush=True)
    lines = checkout.changed()
    plain = checkout.run(checkout.copy(with_r8=False))
    if plain.launch is None or plain.error:
        print(f"    does not run without R8: {plain.error}", flush=True)
        return Finding(False, lines, False, 0, 0, "-")
    others = [checkout.run(checkout.copy(with_r8=False), seed=seed) for seed in (10, 20)]
    watched = checkout.run(checkout.copy(with_r8=True))
    equal = watched.launch is not None and is_same(plain.launch, watched.launch)
    undisturbed = plain, *others
    levels = [level(each) for each in undisturbed]
    count, ends, healed = len(plain.losses), [], 0
    for place in places:
        faulty = checkout.run(checkout.copy(with_r8=True), fault=max(1, int(place * count)))
        # With a weight that is NaN, so is the loss.
        fine = bool(faulty.losses) and bool(np.isfinite(faulty.losses[-1]))
        # Batches differ in how hard they are, and those after a late fault have NaN for a loss on several ranks.
        is_alike = all(len(each.losses) == len(faulty.losses) for each in undisturbed)
        same = [level(each, last_of(faulty)) for each in undisturbed] if is_alike else levels
        fine = fine and level(faulty) <= same[0] + max(0.1 * abs(same[0]), max(same) - min(same))
        healed += fine
        of_same = "" if same == levels else f" (for {same[0]:.4g} of the same batches)"
        why = "" if fine else f" NOT ({faulty.error or 'level or weights'})"
        ends.append(f"{level(faulty):.4g}{of_same}{why}")
    again = "-" if watched.launch is None else resume(checkout, watched.launch)
    same = f"{'yes' if equal else 'NO'} {watched.error}"
    print(
        f"    +{lines[0]} -{lines[1]} lines; {count} losses; equal to the bit: {same}\n"
        f"    {levels[0]:.4g} (seeds {levels[1]:.4g} {levels[2]:.4g}), with a NaN at {places}: {', '.join(ends)}\n"
        f"    killed: {again}",
        flush=True,
    )
    return Finding(not watched.error, lines, equal, healed, len(places), again)


def resume(checkout: Checkout, whole: Launch) -> str:
    """Kill a run and start it again: the same steps, to the end?"""
    if not checkout.spec.get("again", True):
        return "not tried, as it cannot be rewound"
    place, kill = checkout.copy(with_r8=True), int(KILL * whole.steps)
    checkout.run(place, kill=kill)
    ending = checkout.run(place)
    if ending.launch is None:
        return f"NO, {ending.error}"
    after = align(ending.launch.ranks[0], whole.ranks[0], kill)
    if not after:
        return "from the start"
    pairs = list(zip(ending.launch.ranks, whole.ranks, strict=True))
    found = [first_difference(steps, reference, after) for steps, reference in pairs]
    if not any(found) and all(after + len(steps) == len(reference) for steps, reference in pairs):
        return f"killed after {kill}, went on after {after}, equal to the bit"
    return f"NO, killed after {kill}, went on after {after}, then {next(filter(None, found), 'another length')}"


def check_all(folder: Path, places: tuple[float, ...] = PLACES, names: tuple[str, ...] = ()) -> list[Finding]:
    """Check every checkout of a folder, and print the sums."""
    findings = []
    for spec in sorted(folder.glob("*/wild.json")):
        if not names or spec.parent.name in names:
            with Workshop(spec.parent) as shop:
                findings.append(check(Checkout(spec.parent, shop), places))
    count = len(findings)
    few, more = (sum(each.lines[0] <= most for each in findings) for most in (4, 5))
    again = [each.again for each in findings if not each.again.startswith("not tried")]
    print(
        f"possible: {sum(each.possible for each in findings)} of {count}; lines that the patch adds or changes: an "
        f"import, two lines and the condition of the step at most: {few}; a line more: {more}; equal to the bit: "
        f"{sum(each.equal for each in findings)}; healed: {sum(each.healed for each in findings)} of "
        f"{sum(each.faults for each in findings)}; killed and went on, equal: "
        f"{sum(each.endswith('equal to the bit') for each in again)} of {len(again)}"
    )
    return findings

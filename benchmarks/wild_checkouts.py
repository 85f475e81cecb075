"""Scripts of other people, from a folder of checkouts, each run with R8 and without: for wild.py.

Each folder has the checkout and a file ``wild.json``::

    {"repository": "owner/name", "commit": "...", "command": "python main.py --epochs 3",
     "patch": "r8.patch", "folder": "mnist", "imports": ["torchvision"],
     "reward": "reward: ([0-9.]+)", "again": false}

``patch`` puts R8 in (as ``git apply`` takes it, from the checkout's root) and asks for checkpoints with
``resume="auto"``; ``folder`` is where the command runs; ``imports`` are loaded once, before the runs, to save time.
Where the loss is no measure of success, as in reinforcement learning, ``reward`` finds what is one in the output, and
``"again": false`` says that a killed run cannot go on exactly, as its environment cannot be rewound.
The command starts with ``python`` or ``torchrun``. Nothing else is asked of a script: a probe notes each loss that is
differentiated, and at the end the weights, the state of the optimizers and the random generators; it moves the seeds,
writes the NaN, and kills the process.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

PLACES = (0.1, 0.5, 0.85)
"""Shares of the run at which the NaN is written."""

KILL = 0.6
"""Share of the run at which it is killed."""


class Probe:
    """What is noted of a script while it runs in this process, and done to it.

    Args:
        request: ``seed``, added to every seed; ``fault`` and ``kill``, numbers of the backward pass after which a NaN
            is written into the first weight, or the process is killed; ``report``, the file to write.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.losses: list[float] = []
        self.optimizers: list[Any] = []

    def install(self) -> None:
        """Watch torch."""
        for module, name in ((torch, "manual_seed"), (np.random, "seed"), (random, "seed")):
            plain = getattr(module, name)
            setattr(module, name, lambda seed=0, *, plain=plain: plain(self.moved(seed)))
            getattr(module, name)(0)
        backward, made = torch.Tensor.backward, torch.optim.Optimizer.__init__

        def noted(tensor: Any, *args: Any, **settings: Any) -> None:
            self.losses.append(float(tensor.detach().float().mean()))
            backward(tensor, *args, **settings)
            self.act(len(self.losses))

        def kept(optimizer: Any, *args: Any, **settings: Any) -> None:
            made(optimizer, *args, **settings)
            self.optimizers.append(optimizer)

        torch.Tensor.backward = noted  # type: ignore[method-assign, assignment]
        torch.optim.Optimizer.__init__ = kept  # type: ignore[method-assign]

    def moved(self, seed: Any) -> Any:
        """A seed of the script's, moved; what a loader seeds its workers with follows from it."""
        return seed + self.request.get("seed", 0) if isinstance(seed, int) and not in_worker() else seed

    def act(self, number: int) -> None:
        """Write the NaN or kill the process, if it is time."""
        if number == self.request.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.request.get("fault"):
            with torch.no_grad():
                self.weights()[0].view(-1)[0] = float("nan")

    def modules(self) -> list[torch.nn.Module]:
        """The networks of the script, for one that has no optimizer."""
        return [each for each in vars(sys.modules["__main__"]).values() if isinstance(each, torch.nn.Module)]

    def weights(self) -> list[torch.Tensor]:
        """All that is trained."""
        if self.optimizers:
            return [each for one in self.optimizers for group in one.param_groups for each in group["params"]]
        return [each for module in self.modules() for each in module.parameters()]

    def write(self) -> None:
        """Write what the script ended with."""
        parts = self.optimizers or self.modules()
        state = {
            "weights": [each.detach() for each in self.weights()],
            "parts": [part.state_dict() for part in parts if hasattr(part, "state")] if self.optimizers else [],
            "random": [torch.get_rng_state(), np.random.get_state()[1].tolist(), list(random.getstate()[1])],
            "losses": self.losses,
        }
        path = self.request["report"] + os.environ.get("RANK", "")
        torch.save(state, path + ".part")
        os.replace(path + ".part", path)


def run_script(request: dict[str, Any], words: list[str]) -> None:
    """Run a script in this process as ``python`` would, and write what it ended with."""
    sys.argv = words
    sys.path.insert(0, os.path.dirname(os.path.abspath(words[0])))
    probe = Probe(request)
    probe.install()
    # The namespace stays that of the main module until the report is written.
    code = compile(Path(words[0]).read_text(encoding="utf-8"), words[0], "exec")
    main = sys.modules["__main__"] = type(sys)("__main__")
    main.__dict__.update(__file__=os.path.abspath(words[0]), __builtins__=__builtins__)
    try:
        exec(code, main.__dict__)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    probe.write()
    atexit._run_exitfuncs()


def in_worker() -> bool:
    """Whether this is a worker of a loader."""
    return torch.utils.data.get_worker_info() is not None


class Ending(NamedTuple):
    """How a run ended: by each rank its losses and its state, or why there is none."""

    ranks: list[dict[str, Any]]
    error: str
    rewards: list[float]

    @property
    def losses(self) -> list[float]:
        """The losses of the first rank."""
        return self.ranks[0]["losses"] if self.ranks else []


class Checkout:
    """One script, and the runs of it.

    Args:
        folder: Where its ``wild.json`` is.
        work: A folder for copies.
    """

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder, self.work, self.name = folder, work, folder.name
        self.spec = json.loads((folder / "wild.json").read_text(encoding="utf-8"))
        self.words = shlex.split(self.spec["command"])
        self.patch = (folder / self.spec["patch"]).read_text(encoding="utf-8")
        for name in self.spec.get("imports", ()):
            importlib.import_module(name)

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

    def copy(self, name: str, *, with_r8: bool) -> Path:
        """A copy to run in."""
        target = self.work / self.name / name
        shutil.copytree(self.folder, target, symlinks=True)
        if with_r8:
            subprocess.run(["git", "apply", "-"], cwd=target, input=self.patch, text=True, check=True)
        return target

    def run(self, place: Path, **request: Any) -> Ending:
        """Run the command there."""
        cwd, report, log = place / self.spec.get("folder", "."), place / "report.pt", place / "log.txt"
        request["report"] = str(report)
        for old in place.glob("report.pt*"):
            old.unlink()
        launcher, *words = self.words
        with open(log, "a", encoding="utf-8") as output:
            if launcher == "torchrun":
                script = next(i for i, word in enumerate(words) if word.endswith(".py"))
                command = [sys.executable, "-m", "torch.distributed.run", *words[:script], __file__, *words[script:]]
                surroundings = {**os.environ, "WILD_REQUEST": json.dumps(request)}
                begun = subprocess.Popen(command, cwd=cwd, env=surroundings, stdout=output, stderr=output)
                code = begun.wait(timeout=self.spec.get("limit", 240))
            else:
                code = self._fork(cwd, output, request, words)
        ranks = [torch.load(each, weights_only=False) for each in sorted(place.glob("report.pt*"))]
        said = log.read_text(encoding="utf-8", errors="replace")
        last = said.strip().splitlines()[-1:] or [""]
        rewards = [float(each) for each in re.findall(self.spec.get("reward", "(?!)"), said)]
        return Ending(ranks, "" if code == 0 else f"ended with {code}: {last[0][:150]}", rewards)

    def _fork(self, cwd: Path, output: Any, request: dict[str, Any], words: list[str]) -> int:
        """Run it in a fork of this process, which has torch already."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setsid()
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                os.chdir(cwd)
                run_script(request, words)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        ends = time.monotonic() + self.spec.get("limit", 240)
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > ends:
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.02)
        # Workers of a killed loader.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(status)


def is_same(one: Any, two: Any) -> bool:
    """Whether two reports hold the same bits."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(is_same(value, two[name]) for name, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(is_same, one, two))
    return bool(one == two or (one != one and two != two))


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
    plain = checkout.run(checkout.copy("plain", with_r8=False))
    if not plain.ranks:
        print(f"    does not run without R8: {plain.error}", flush=True)
        return Finding(False, lines, False, 0, 0, "-")
    others = [checkout.run(checkout.copy(f"seed{seed}", with_r8=False), seed=seed) for seed in (10, 20)]
    watched = checkout.run(checkout.copy("r8", with_r8=True))
    equal = is_same(plain.ranks, watched.ranks)
    undisturbed = plain, *others
    levels = [level(each) for each in undisturbed]
    count, ends, healed = len(plain.losses), [], 0
    for place in places:
        faulty = checkout.run(checkout.copy(f"fault{place}", with_r8=True), fault=max(1, int(place * count)))
        weights = [each for rank in faulty.ranks for each in rank["weights"]]
        fine = bool(weights) and all(bool(each.isfinite().all()) for each in weights)
        # Batches differ in how hard they are, and those after a late fault have NaN for a loss on several ranks.
        is_alike = all(len(each.losses) == len(faulty.losses) for each in undisturbed)
        same = [level(each, last_of(faulty)) for each in undisturbed] if is_alike else levels
        fine = fine and level(faulty) <= same[0] + max(0.1 * abs(same[0]), max(same) - min(same))
        healed += fine
        of_same = "" if same == levels else f" (for {same[0]:.4g} of the same batches)"
        why = "" if fine else f" NOT ({faulty.error or 'level or weights'})"
        ends.append(f"{level(faulty):.4g}{of_same}{why}")
    again = resume(checkout, watched, int(KILL * count))
    same = f"{'yes' if equal else 'NO'} {watched.error}"
    print(
        f"    +{lines[0]} -{lines[1]} lines; {count} losses; equal to the bit: {same}\n"
        f"    {levels[0]:.4g} (seeds {levels[1]:.4g} {levels[2]:.4g}), with a NaN at {places}: {', '.join(ends)}\n"
        f"    killed at {int(KILL * count)}: {again}",
        flush=True,
    )
    return Finding(not watched.error, lines, equal, healed, len(places), again)


def resume(checkout: Checkout, whole: Ending, kill: int) -> str:
    """Kill a run and start it again: the same next batch, and the same weights in the end?"""
    if not checkout.spec.get("again", True):
        return "not tried, as it cannot be rewound"
    place = checkout.copy("kill", with_r8=True)
    checkout.run(place, kill=kill)
    ending = checkout.run(place)
    if not ending.ranks:
        return f"NO, {ending.error}"
    left = len(whole.losses) - len(ending.losses)
    if left <= 0:
        return "from the start"
    same = is_same(ending.losses, whole.losses[left:])
    first = bool(ending.losses) and ending.losses[0] == whole.losses[left]
    weights = all(is_same(one["weights"], two["weights"]) for one, two in zip(ending.ranks, whole.ranks, strict=True))
    if same and weights:
        return f"went on after {left}, equal to the bit"
    told = "the same" if first else "another", "the same" if weights else "other"
    return f"NO, went on after {left}, {told[0]} next loss, {told[1]} weights"


def check_all(folder: Path, places: tuple[float, ...] = PLACES, names: tuple[str, ...] = ()) -> list[Finding]:
    """Check every checkout of a folder, and print the sums."""
    findings = []
    # Not a TemporaryDirectory: the forks would delete it as they end.
    work = Path(tempfile.mkdtemp())
    for spec in sorted(folder.glob("*/wild.json")):
        if names and spec.parent.name not in names:
            continue
        checkout = Checkout(spec.parent, work)
        findings.append(check(checkout, places))
        if not os.environ.get("WILD_KEEP"):
            shutil.rmtree(work / checkout.name, ignore_errors=True)
    if not os.environ.get("WILD_KEEP"):
        shutil.rmtree(work, ignore_errors=True)
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


# The program is wild.py, which starts this file for each script.
if __name__ == "__main__" and "WILD_REQUEST" in os.environ:
    run_script(json.loads(os.environ["WILD_REQUEST"]), sys.argv[1:])

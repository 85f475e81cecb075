"""The proof that a training resumes exactly: it runs whole, it is killed and started again, and both are compared."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import comparison as compared
from .comparison import Difference, evidence, generators_that_differ
from .launches import CannotSay, Launch, Step, Workshop, saves_of
from .probe import EVERY
from .report import DIFFERS, EXACT, UNKNOWN, Proof, Restart

FEWEST = 4
"""Steps that a training must have: one before the checkpoint, one lost, two to compare."""

HOW = 'give the command that goes on as --resume "CMD", for instance --resume "python train.py --resume last.pt".'
NOTHING = "the training writes no file before its last step, so there is nothing to go on from: save more often."
UNHEARD = "the command does not train, trains in JAX or Keras (not heard yet), or its Python ignores PYTHONPATH"

REPEATABLE = {"optimizer", "backward passes", "rates", "settings", "batches", "content", "scaler"}
"""Parts that are compared to the bit, if they do repeat themselves, where losses and weights do not."""


class Trial:
    """The launches of one proof, and what is known so far.

    Args:
        shop: Where it runs.
        command: The command as the user gives it.
        resume: The command that goes on after a kill; by default the same.
        stop: The step after which no launch need go on, or None.
        say: Is told what is being done.
    """

    def __init__(
        self, shop: Workshop, command: Sequence[str], resume: str | None, stop: int | None, say: Callable[[str], None]
    ) -> None:
        self.shop, self.command, self.stop, self.say = shop, [*command], stop, say
        self.resume = [*command] if resume is None else ["sh", "-c", resume]
        self.notes: list[str] = []
        self.restarts: list[Restart] = []
        self.whole: list[list[Step]] = []

    def launch(self, place: Path, command: list[str], **request: Any) -> Launch:
        """Launch a command in a copy; where it fails, nothing can be said."""
        done = self.shop.launch(place, command, **{"stop": self.stop, **request})
        self.whole = self.whole or done.ranks
        if refused := self.shop.refused():
            self.notes.append(f"refused to write {', '.join(refused[:3])} (--allow PATH lets it through)")
        again = f"started again after the kill at step {request['expected']}, " if "expected" in request else ""
        if done.code and done.end not in ("kill", "stop"):
            raise CannotSay(f"{again}the command ended with {done.code} after {done.steps} steps. It said: {done.said}")
        if not done.steps:
            why = "the command ended as if it were done" if again else f"no optimizer of torch made a step: {UNHEARD}"
            raise CannotSay(f"{again}{why}. It said: {done.said}")
        return done

    def places(self, kills: int, seed: int) -> list[int]:
        """After which steps to kill: in mid-epoch, right after a checkpoint, and anywhere, each after another one."""
        steps, draw = self.whole[0], random.Random(seed)
        saves = [each for each in saves_of(steps) if each < len(steps) - 1]
        if not saves:
            raise CannotSay(NOTHING)
        # Evenly, from the first on: after a kill, some later checkpoint is to be written by the restarted process.
        # Where an epoch ends, much that is wrong does not show; the last kill may be there.
        within = [each for each in saves if not compared.is_epoch_start(steps, each)] or saves
        found = []
        for number, choice in enumerate([within] * (kills - 1) + [saves]):
            save = choice[len(choice) * number // kills]
            gap = min(next((each for each in saves if each > save), len(steps)), len(steps) - 1) - save
            found.append(save + (1 if number % 3 == 1 else draw.randint((gap + 1) // 2, max(gap - 1, (gap + 1) // 2))))
        return sorted(found)

    def start_and_kill(self, kill: int) -> tuple[Path, Launch]:
        """The first launch of a training that is to be killed, in a fresh copy."""
        place = self.shop.copy()
        done = self.launch(place, self.command, kill=kill)
        if done.end != "kill":
            raise CannotSay(f"the training ended after {done.steps} steps, before the kill at {kill}: {done.said}")
        return place, done

    def go_on(self, references: list[list[Step]], place: Path, killed: int, **request: Any) -> tuple[Launch, Restart]:
        """Start it again, to its end or to the next kill, and compare it with what it should have done."""
        self.say(f"start again after the kill at step {killed}")
        known = {each["w"]: each["n"] for each in references[0] if "w" in each}
        done = self.launch(place, self.resume, known=known, expected=killed, **request)
        if len(done.ranks) != len(references):
            raise CannotSay(f"{len(done.ranks)} processes train after the kill, in place of {len(references)}.")
        return done, self.compare(done, references, killed)

    def compare(self, done: Launch, references: list[list[Step]], killed: int, only: set[str] | None = None) -> Restart:
        """Compare a restarted training with what it should have done; of all ranks, the one that differs first."""
        found = []
        for rank, (steps, right) in enumerate(zip(done.ranks, references, strict=True)):
            after = compared.align(steps, right, killed, self.whole[rank])
            if after == 0:
                raise CannotSay(f"started again after the kill at step {killed}, the training begins at step 0: {HOW}")
            own = compared.first_difference(steps, right, after, only)
            found.append(Restart(killed, after, min(len(steps), len(right) - after), own and own._replace(rank=rank)))
        return min(found, key=lambda each: each.difference.step if each.difference else float("inf"))

    def prove(self, kills: int, seed: int) -> Proof:
        """Kill and restart a training until something differs, or there is no kill left."""
        self.say("the whole training")
        if (whole := self.launch(self.shop.copy(), self.command)).steps < FEWEST:
            raise CannotSay(f"the training must have at least {FEWEST} steps, got {whole.steps}.")
        kill_at = self.places(kills, seed)
        self.say(f"{len(self.whole[0])} steps; kill at step {kill_at[0]}")
        place, done = self.start_and_kill(kill_at[0])
        for one, two in zip(self.whole, done.ranks, strict=False):
            # Nobody needs a generator that nobody seeds.
            for name in generators_that_differ(one[0], two[0]):
                for step in one:
                    step["g"].pop(name, None)
        if odd := compared.first_odd(self.whole, done.ranks):
            return self.prove_what_repeats(done, *odd, place, kill_at[0])
        saves = saves_of(self.whole[0])
        for number, (killed, later) in enumerate(zip(kill_at, [*kill_at[1:], None], strict=True)):
            done, restart = self.go_on(self.whole, place, killed, kill=later)
            self.restarts.append(restart)
            if restart.went_on in saves and (newer := [each for each in saves if restart.went_on < each < killed]):
                older = f"killed at step {killed}, it went on from the older checkpoint of step {restart.went_on}"
                self.notes.append(f"{older}, though there was one of step {newer[-1]}: lost work only")
            if restart.difference is not None:
                return self.conclude(done, restart.difference, number, killed)
        return Proof(EXACT)

    def conclude(self, done: Launch, difference: Difference, number: int, killed: int) -> Proof:
        """Make sure that a difference comes of the kill, narrow it down, and see whether it needs a second kill."""
        step, parts = difference.step, {*difference.parts}
        self.say(f"a difference at step {step}; does the training repeat itself up to there?")
        stop = self.stop if "number of steps" in parts else max(FEWEST, step + 2)
        request: dict[str, Any] = {"stop": stop, "dense": (step - EVERY, step + 2)}
        again = self.launch(self.shop.copy(), self.command, **request)
        if (odd := compared.first_odd(self.whole, again.ranks)) and odd[1] <= step and parts <= odd[0]:
            return Proof(UNKNOWN, f"{_not_repeatable(*odd)}. Try --deterministic.")
        # What only sums show has begun somewhere after the last ones. A later kill is tried alone, in a fresh copy.
        found: Difference | None = difference
        if number or (difference.local > 1 and parts <= {*compared.WHOLE_STATE, "copies"}):
            alone, (*_, found) = self.go_on(again.ranks, self.start_and_kill(killed)[0], killed, **request)
            difference, done = (found, alone) if found else (difference, done)
        rows = evidence(difference, done.ranks, again.ranks)
        return Proof(DIFFERS, difference=difference, is_second_only=number > 0 and found is None, rows=rows)

    def prove_what_repeats(self, done: Launch, parts: set[str], since: int, place: Path, killed: int) -> Proof:
        """Compare the steps that the kill undid, all of each; then what does not differ without a kill."""
        self.notes.append(_not_repeatable(parts, since))
        before = done.ranks
        # What it trained before the kill, it must train again just so, whatever other trainings do.
        after, restart = self.go_on(before, place, killed)
        own = restart.difference
        self.restarts.append(restart)
        if restart.compared and (own is None or REPEATABLE & {*own.parts}):
            self.notes.append("compared with the steps that the kill undid, which were trained again")
            return Proof(DIFFERS, difference=own, rows=evidence(own, after.ranks, before)) if own else Proof(EXACT)
        only = REPEATABLE - parts
        joined = [[*one, *two[len(one) :]] for one, two in zip(before, self.whole, strict=True)]
        found = self.compare(after, joined, killed, only).difference
        apart = compared.spread(after.ranks[0], self.whole[0][restart.went_on :])
        usual = compared.spread(before[0], self.whole[0])
        told = f"losses differ by {apart:.2g} after the kill, by {usual:.2g} without"
        if found is None and own is not None and "batches" in only and apart > 3 * usual:
            found = own._replace(detail=told)
        if found is not None:
            return Proof(DIFFERS, difference=found, rows=evidence(found, after.ranks, joined))
        why = f"{_not_repeatable(parts, since)}; what can be compared is the same, and {told}. Try --deterministic."
        return Proof(UNKNOWN, why)


def prove(
    command: Sequence[str], *, folder: str | Path = ".", resume: str | None = None, kills: int = 3,
    steps: int | None = None, allow: Sequence[str] = (), link: Sequence[str] = (), deterministic: bool = False,
    seed: int = 0, work: str | None = None, say: Callable[[str], None] = lambda text: None,
) -> Proof:  # fmt: skip
    """Find out whether a training goes on exactly where it was when it is killed and started again.

    Args:
        command: The words of the command, as in ``["python", "train.py"]``. It trains with optimizers of torch.
        folder: The folder it is run in; a copy of it is, and nothing in it changes.
        resume: The command that goes on after a kill, where it is another one.
        kills: How often it is killed, >= 1.
        steps: The step after which a training need not go on, >= 4; by default it goes to its end.
        allow: Paths outside the folder that may be written.
        link: Paths in the folder that are too large to copy; they must not change.
        deterministic: Seed everything and ask torch for deterministic algorithms.
        seed: Chooses the places of the kills.
        work: Where copies are made; by default where the system has temporary files.
        say: Is told what is being done, a line each time.

    Returns:
        What was found.

    Raises:
        ValueError: ``kills`` is below 1, ``steps`` below 4, or there is no command.
    """
    if not command:
        raise ValueError(f"command must be the words of a command, got {[*command]!r}; give it after --.")
    if kills < 1 or (steps is not None and steps < FEWEST):
        raise ValueError(f"kills must be >= 1 and steps >= {FEWEST}, got {kills!r} and {steps!r}.")
    began = time.monotonic()
    with Workshop(Path(folder), allow=allow, link=link, deterministic=deterministic, work=work) as shop:
        trial = Trial(shop, command, resume, steps, say)
        try:
            found = trial.prove(kills, seed)
        except (CannotSay, OSError) as error:
            found = Proof(UNKNOWN, str(error))
        if changed := shop.changed():
            found = found._replace(code=UNKNOWN, why=f"what was linked has changed: {', '.join(changed[:3])}.")
        steps, notes = len(trial.whole[0]) if trial.whole else 0, tuple(dict.fromkeys(trial.notes))
        return found._replace(
            steps=steps, restarts=tuple(trial.restarts), notes=notes, seconds=time.monotonic() - began
        )


def _not_repeatable(parts: set[str], since: int) -> str:
    return f"two trainings that nobody kills differ from step {since} on, in {', '.join(sorted(parts))}"

"""Every verdict, wherever the batches, the rate and the callbacks come from."""

import itertools
import math
import warnings

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, Recovery, TrainingDiverged, Verdict, events
from learnit_r8.testing import ToyTask, record_events

STEPS, EPOCH, HIGH, FAULT = 96, 64, 20, 40
SOURCES, CALLBACKS = ["planned", "own"], ["none", "load only", "both"]
VERDICTS = ["good", "skipped", "not finite", "spike", "early", "probed"]
SCHEDULES = ["cosine", "linear", "constant", "one_cycle", "wsd", "keep", lambda progress: 0.02 * (1 - 0.9 * progress)]


class Slope:
    """A line fitted to points by SGD: batches differ, the loss falls slowly, and a step takes microseconds."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(4 * EPOCH, 3))
        self.y = self.x @ [1.0, -2.0, 0.5] + rng.normal(size=len(self.x))
        self.weights = np.zeros(3)

    def loss(self, indices):
        x, error = self.x[indices], self.x[indices] @ self.weights - self.y[indices]
        self.gradient = 2 * x.T @ error / len(error)
        return 10.0 + float(np.mean(error**2))

    def read(self):
        return {"weights": self.weights}

    def load(self, source, from_ram=False):
        self.weights = source["weights"]


def build(source, schedule, callbacks, task, heard):
    """A scheduler; and its items, one after another, in as many epochs as it wants."""
    settings = {"num_steps": STEPS, "scheduler_mode": schedule, "listeners": [heard], "handle_signals": False}
    if callbacks != "none":
        settings["load_callback"] = task.load
    if callbacks == "both":
        settings["state_callback"] = task.read
    if source == "planned":
        settings |= {"num_samples": 4 * EPOCH, "batch_size": 4}
    if isinstance(schedule, str) and schedule != "keep":
        settings["initial_lr"] = 0.02
    r8 = R8Scheduler(**settings)
    if callbacks == "load only":
        r8.update_cpu_backup(task.read())
    return r8


def items(r8, source):
    """The samples of each batch that the run asks for."""
    own = np.random.default_rng(1).permutation(4 * EPOCH).reshape(EPOCH, 4)
    for _ in r8.epoch_iterator():
        if source == "planned":
            yield from (indices for indices, _ in r8.batch_iterator())
        else:
            yield from r8.batches(own)


def run(source, schedule, verdict, callbacks):
    """Train, and return the scheduler, the verdicts, what listeners heard, and the task."""
    task, heard, found = Slope(), record_events(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        r8 = build(source, schedule, callbacks, task, heard)
        with r8:
            for place, indices in enumerate(items(r8, source)):
                assert place < 2 * STEPS
                if place == FAULT and verdict == "probed":
                    task.weights = task.weights * math.nan
                loss = task.loss(indices)
                if place == FAULT:
                    loss = {"skipped": math.nan, "not finite": math.nan, "spike": 1e6}.get(verdict, loss)
                if place == HIGH and verdict == "early":
                    loss = 60.0
                outcome = r8.update_with_loss(loss, skipped=place == FAULT and verdict == "skipped")
                found.append(outcome.verdict)
                if outcome and math.isfinite(loss):
                    task.weights = task.weights - (0.02 if schedule == "keep" else outcome.lr) * task.gradient
    return r8, found, heard, task


def cells():
    """All combinations; those that differ in the shape of R8's rates alone are slow, but for one."""
    for source, schedule, callbacks in itertools.product(SOURCES, SCHEDULES, CALLBACKS):
        is_usual = schedule in (SCHEDULES[0], *SCHEDULES[-2:]) or (source, callbacks) == ("planned", "both")
        name = f"{source}-{schedule if isinstance(schedule, str) else 'function'}"
        for verdict in VERDICTS:
            marks = () if is_usual else pytest.mark.slow
            yield pytest.param(source, schedule, verdict, callbacks, id=f"{name}-{verdict}-{callbacks}", marks=marks)


@pytest.mark.parametrize(("source", "schedule", "verdict", "callbacks"), [*cells()])
def test_every_verdict_comes_and_the_run_ends(source, schedule, verdict, callbacks):
    """A run goes on to its last step after any verdict, and counts the batches that it has trained on and refused."""
    r8, found, heard, task = run(source, schedule, verdict, callbacks)
    # Nothing can be tested without a state to put back, and no step is called early at a rate of the user's own.
    is_tested = callbacks != "none" and not (verdict == "early" and source == "own" and schedule == "keep")
    comes_again = found.count(Verdict.EARLY) if source == "planned" else 0
    num_probed, num_passed = found.count(Verdict.PROBED), sum(map(found.count, (Verdict.GOOD, Verdict.SKIPPED)))

    assert r8.global_step == STEPS
    assert r8.pace.is_finished
    assert (Verdict(verdict) in found) == (is_tested or verdict not in ("early", "probed"))
    assert verdict != "good" or set(found) == {Verdict.GOOD}
    assert r8.sentry.num_refused == len(heard.of(events.BatchRefused))
    assert r8.sentry.num_refused == len(found) - num_passed - num_probed - comes_again
    assert STEPS - num_probed <= num_passed + r8.sentry.num_refused <= STEPS
    assert len(heard.of(events.StepDone)) == found.count(Verdict.GOOD)
    assert np.isfinite(task.weights).all() == (verdict != "probed" or is_tested)


class Damaged:
    """The toy task, each so many updates of which turn all of its weights into NaN.

    Args:
        every: How many.
        own: Whether batches are the user's own.
        is_late: Whether losses are reported after the update.
    """

    def __init__(self, every, *, own, is_late, **settings):
        self.task, self.every, self.own, self.is_late, self.updates = ToyTask(512), every, own, is_late, 0
        self.r8 = R8Scheduler(
            initial_lr=0.05, scheduler_mode="constant", handle_signals=False, state_callback=self.task.state,
            load_callback=self.task.load, **settings, **({} if own else {"num_samples": 512, "batch_size": 16}),
        )  # fmt: skip

    def update(self):
        self.task.step(0.05)
        self.updates += 1
        if self.updates % self.every == 0:
            for weight in self.task.weights:
                weight[:] = math.nan

    def train(self, until=math.inf):
        batches = np.arange(512).reshape(32, 16)
        for _ in self.r8.epoch_iterator():
            for item in self.r8.batches(batches) if self.own else self.r8.batch_iterator():
                loss = self.task.losses(item if self.own else item[0]).mean()
                if self.is_late:
                    self.update()
                if self.r8.update_with_loss(loss) and not self.is_late:
                    self.update()
                if self.r8.global_step >= until:
                    return


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_run_whose_updates_all_damage_the_weights_is_given_up(own, is_late):
    """Good losses between restores do not hide that the weights get no further, and what is left is finite."""
    run = Damaged(1, own=own, is_late=is_late, num_steps=900, recovery=Recovery(max_refused=60))
    with pytest.raises(TrainingDiverged, match="60 batches were refused or tested weights that never got 64 updates"):
        run.train()

    assert run.r8.global_step < 300
    assert np.isfinite(run.task.loss())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("is_late", [False, True])
def test_what_was_in_vain_counts_after_a_resume(is_late):
    """A run that is started again and again is given up as early as one that is not; until then it is healed."""
    heard, more = record_events(), {"num_steps": 900, "recovery": Recovery(max_refused=60)}
    runs = [Damaged(1, own=False, is_late=is_late, listeners=each, **more) for each in ([], [heard])]
    runs[0].train(until=20)
    before = runs[0].r8.controller.state_dict()["refusals"]["in_vain"]
    runs[1].r8.load_state_dict(runs[0].r8.state_dict())
    assert before > 10
    assert runs[1].r8.controller.state_dict()["refusals"]["in_vain"] == before
    with pytest.raises(TrainingDiverged, match="60 batches were refused or tested weights"):
        runs[1].train()
    assert len(heard.of(events.RolledBack)) > 10


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("every", "is_late"), [(5, False), (50, True)])
def test_a_run_that_gets_further_is_not_given_up(own, every, is_late):
    """However often its weights are damaged, as long as most updates stay."""
    run = Damaged(every, own=own, is_late=is_late, num_steps=1000, recovery=Recovery(max_refused=60))
    run.train()

    assert run.r8.pace.is_finished
    assert run.task.loss() < 0.1

"""Stop anywhere, resume exactly: batches, rates and tables."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from examples.own_policy import MatchMean
from learnit_r8 import Policy, Recovery
from learnit_r8.policies import Steady
from learnit_r8.state.codec import decode, encode
from tests.drive import (
    INF,
    NAN,
    FakeClock,
    Weights,
    advance_to,
    known,
    make,
    sample_losses,
    search_through,
    steps,
    train,
)  # fmt: skip

SEEN = {"state_callback": lambda: {"weight": 1.0}, "load_callback": lambda state: None}
"""A model that can be seen: a NaN that has not touched it restores nothing."""

pytestmark = pytest.mark.filterwarnings("ignore:a loss was refused, and there is nothing to restore:RuntimeWarning")


@dataclass(frozen=True)
class EasyHalf(Policy):
    """A user's policy that leaves samples out and weights the rest."""

    name = "easy_half"
    selects = True

    def select(self, chunk, context, rng):
        order = np.argsort(np.nan_to_num(chunk.loss), kind="stable")
        keep = np.ones(len(order), bool)
        keep[order[max(context.batch_size, len(order) // 2) :]] = rng.random() < 0.5
        return keep, np.linspace(1, 2, len(order), dtype=np.float32)


POLICIES = ["balanced", "quartile", "shuffle", Steady(), MatchMean(), EasyHalf()]
SHORT = Recovery(gentle_steps=5, steady_steps=4, trust_steps=2)


def loss_of(indices, kind):
    """The losses of a user's report, which depend on the samples alone."""
    losses = sample_losses(indices)
    if kind == "vector":
        return losses, None
    if kind == "parts":
        return np.array([losses[start : start + 3].mean() for start in range(0, len(losses), 3)]), 3
    return float(losses.mean()), None


class Driver:
    """Draws and reports by number, and records what it got."""

    def __init__(self, r8, kind, bad=(), value=NAN):
        self.r8, self.kind, self.bad, self.value = r8, kind, bad, value
        self.out, self.seen = [], []

    def draw(self):
        ticket = self.r8.draw()
        self.out.append(ticket)
        weights = None if ticket.weights is None else ticket.weights.tolist()
        self.seen.append((ticket.step, ticket.epoch, ticket.indices.tolist(), ticket.lr, weights))

    def report(self, place=0):
        ticket = self.out.pop(place)
        loss, part_size = loss_of(ticket.indices, self.kind)
        loss = loss * self.value if self.r8.global_step in self.bad else loss
        outcome = self.r8.report(ticket, loss, part_size=part_size)
        self.seen.append((outcome.verdict, outcome.lr))

    def run_to_end(self):
        while self.r8.pace.next_step < self.r8.total_steps:
            self.draw()
            self.report(-1)
        while self.out:
            self.report()


def same_end(first, second):
    """Both schedulers have the same state."""
    np.testing.assert_equal(known(second.r8), known(first.r8))
    states = first.r8.state_dict(), second.r8.state_dict()
    for state in states:
        # Drawing again what was out counts as drawing.
        del state["num_draws"]
    np.testing.assert_equal(*states)


RUNS = {
    "num_samples": st.integers(1, 40),
    "batch_size": st.integers(1, 12),
    "policy": st.sampled_from(POLICIES),
    "estimator": st.sampled_from(["relative", "additive"]),
    "last_batch": st.sampled_from(["short", "drop", "fill"]),
    "seed": st.integers(0, 3),
}


def make_run(run, **more):
    run = dict(run)
    assume(run["last_batch"] != "drop" or run["num_samples"] >= run["batch_size"])
    return make(run.pop("num_samples"), num_epochs=3, clock=FakeClock(), **run, **more)


@given(
    st.fixed_dictionaries(RUNS),
    st.sampled_from(["mean", "vector", "parts"]),
    st.integers(0, 10**6),
    st.sets(st.integers(0, 60), max_size=3),
)
def test_resume_between_steps_is_exact(run, kind, stop, bad):
    """A fresh scheduler that loads a state between two steps continues bit for bit, including refusals."""
    # A policy that draws seen samples only has nothing to draw after a first epoch without a good loss.
    assume(not bad or run["policy"] != Steady())
    load = {"recovery": SHORT}
    first = Driver(make_run(run, **load), kind, bad)
    for _ in range(stop % (first.r8.total_steps + 1)):
        first.draw()
        first.report()
    second = Driver(make_run(run, **load), kind, bad)
    second.r8.load_state_dict(decode(encode(first.r8.state_dict())))
    first.seen.clear()
    first.run_to_end()
    second.run_to_end()

    assert second.seen == first.seen
    same_end(first, second)


@given(
    st.fixed_dictionaries(RUNS),
    st.sampled_from(["mean", "vector", "parts"]),
    st.integers(0, 10**6),
    st.lists(st.integers(0, 3), min_size=1, max_size=4),
    st.data(),
)
def test_resume_with_tickets_out_is_exact(run, kind, stop, moves, data):
    """Tickets open when the state is taken, in any order, are drawn again; then all is bit for bit the same."""
    first = Driver(make_run(run), kind)
    per_epoch = first.r8.steps_per_epoch
    stop = stop % first.r8.total_steps
    # The tickets must be of one epoch: the next rule is about those of two.
    room = per_epoch - stop % per_epoch
    for _ in range(stop):
        first.draw()
        first.report()
    for move in moves[:room]:
        first.draw()
        if move == 3:
            first.report(len(first.out) // 2)
    out = [ticket.indices.tolist() for ticket in first.out]
    second = Driver(make_run(run), kind)
    second.r8.load_state_dict(decode(encode(first.r8.state_dict())))
    for _ in out:
        second.draw()
    again = [ticket.indices.tolist() for ticket in second.out]
    assert sorted(again) == sorted(out)
    order = data.draw(st.permutations(range(len(out))))
    for number in order:
        first.report(len(first.out) - 1 - [t.indices.tolist() for t in first.out[::-1]].index(out[number]))
        second.report(len(second.out) - 1 - [t.indices.tolist() for t in second.out[::-1]].index(out[number]))
    first.seen.clear()
    second.seen.clear()
    first.run_to_end()
    second.run_to_end()

    assert second.seen == first.seen
    same_end(first, second)


@pytest.mark.parametrize(("opened", "value", "kind"), [(False, NAN, "vector"), (True, INF, "mean")])
def test_every_step_of_a_recovery_can_be_resumed(opened, value, kind):
    """While a recovery is under way, between steps and with a batch out, the resumed run is the same run."""

    def build():
        r8 = make(64, num_epochs=3, recovery=SHORT, **SEEN, clock=FakeClock())
        return Driver(r8, kind, bad={3, 20, 22, 35}, value=value)

    reference, states = build(), []
    while reference.r8.pace.next_step < 48:
        if not opened:
            states.append(reference.r8.state_dict())
        reference.draw()
        if opened:
            states.append(reference.r8.state_dict())
        reference.report()
    different = []
    for step, state in enumerate(states):
        resumed = build()
        resumed.r8.load_state_dict(state)
        resumed.run_to_end()
        if resumed.seen != reference.seen[2 * step :]:
            different.append(step)

    assert different == []


@pytest.mark.filterwarnings("ignore:auto_find_lr")
def test_every_step_of_a_search_can_be_resumed():
    """During auto_find_lr the resumed search draws the same batches at the same rates and finds the same rate."""

    def build():
        model = Weights()
        r8 = make(
            40, num_epochs=2, auto_find_lr=True, load_callback=model.load, state_callback=model.get, clock=FakeClock()
        )
        return Driver(r8, "mean")

    reference, states = build(), []
    while reference.r8.global_step < 5:
        reference.draw()
        states.append(reference.r8.state_dict())
        reference.report()
    for step, state in enumerate(states):
        resumed = build()
        resumed.r8.load_state_dict(decode(encode(state)))
        while resumed.r8.global_step < 5:
            resumed.draw()
            resumed.report()
        assert resumed.seen == reference.seen[2 * step :], step


def test_ticket_of_a_search_is_not_drawn_in_the_run():
    """A ticket still open when the search ends is not part of the first epoch of a resumed run."""
    model = Weights()
    more = {"auto_find_lr": True, "load_callback": model.load, "state_callback": model.get}
    r8 = make(12, num_epochs=1, **more)
    late = r8.draw()
    search_through(r8)
    assert late.epoch == -1
    resumed = make(12, num_epochs=1, **more)
    resumed.load_state_dict(r8.state_dict())
    for _ in steps(resumed):
        resumed.update_with_loss(1.0)

    assert resumed.table.usage_count.tolist() == [1] * 12


@pytest.mark.parametrize("kind", ["mean", "vector", "parts"])
@pytest.mark.parametrize("look", ["table", "state", "summary"])
def test_reading_changes_nothing(look, kind):
    """Reading the table, the state or the summary at every step changes no batch and no estimate, also in recovery."""
    looks = {
        "table": lambda r8: r8.table.loss,
        "state": lambda r8: r8.state_dict(),
        "summary": lambda r8: r8.summary(),
    }
    runs = []
    for is_looking in (False, True):
        r8 = make(64, num_epochs=3, recovery=SHORT, **SEEN, clock=FakeClock())
        run = Driver(r8, kind, bad={3, 20, 22, 35})
        while r8.global_step < 48:
            run.draw()
            if is_looking:
                looks[look](r8)
            run.report()
        runs.append(run)

    assert runs[0].seen == runs[1].seen
    np.testing.assert_equal(known(runs[0].r8), known(runs[1].r8))


def test_state_is_a_snapshot_that_ties_nothing_together():
    """Training on changes no state that was taken; two schedulers that load it stay apart, and so does the state."""
    r8, runs = make(20, num_epochs=3, clock=FakeClock()), []
    advance_to(r8, 7)
    ticket = r8.draw()
    state = r8.state_dict()
    saved = encode(state)
    r8.report(ticket, 2.0)
    train(r8)
    for _ in range(2):
        fresh = make(20, num_epochs=3, clock=FakeClock())
        fresh.load_state_dict(state)
        runs.append([])
        for _, indices, _ in steps(fresh):
            runs[-1].append(indices.tolist())
            fresh.update_with_loss(1.0)
            indices[:] = 0

    assert runs[0] == runs[1]
    assert encode(state) == saved


def test_scheduler_can_go_back_to_its_own_state():
    """A scheduler that loads an earlier state of its own repeats those steps; old tickets are void."""
    r8 = make(20, num_epochs=2, clock=FakeClock())
    advance_to(r8, 3)
    state = r8.state_dict()
    first = r8.draw()
    r8.report(first, 1.0)
    out = r8.draw()
    r8.load_state_dict(state)
    with pytest.raises(RuntimeError, match="was already reported or dropped, or is of another run"):
        r8.report(out, 1.0)
    with pytest.raises(RuntimeError, match="with no batch open"):
        r8.update_with_loss(1.0)

    assert r8.global_step == 3
    assert r8.draw().indices.tolist() == first.indices.tolist()


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"num_samples": 21}, r"num_samples must be that of the saved run \(20\), got 21"),
        ({"batch_size": 5}, r"batch_size must be that of the saved run \(4\), got 5"),
        ({"estimator": "additive"}, r"estimator must be that of the saved run \('relative'\), got 'additive'"),
        ({"sample_ids": list(range(20))}, r"sample_ids must be that of the saved run \(None\), got '"),
    ],
)
def test_state_of_another_data_set_is_refused(other, text):
    """A state of other sizes, estimator or names is a ValueError, and changes nothing."""
    r8 = make(20, num_epochs=2, clock=FakeClock())
    advance_to(r8, 3)
    fresh = make(**{"num_samples": 20, "num_epochs": 2, "clock": FakeClock(), **other})
    before = encode(fresh.state_dict())
    with pytest.raises(ValueError, match=text):
        fresh.load_state_dict(r8.state_dict())

    assert encode(fresh.state_dict()) == before

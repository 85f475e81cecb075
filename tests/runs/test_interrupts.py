"""KeyboardInterrupt before any bytecode of the scheduler: the run is whole, or says that it is not and comes back."""

import dataclasses
import math
import random
import warnings

import pytest

from learnit_r8.engine.engine import Engine
from learnit_r8.engine.turns import RunInterrupted
from learnit_r8.events import StepDone
from learnit_r8.guard import FiniteGuard
from learnit_r8.policies.base import Policy
from learnit_r8.recovery.policy import Recovery
from learnit_r8.sources import planner
from learnit_r8.testing import record_events
from tests.drive import FakeClock, make, sample_losses
from tests.interrupt_common import REACTIONS, Interrupter, Model, User, check, everything, frozen, memory_of

RUNS = {
    "exact": {},
    "exact-tickets": {"loop": "tickets"},
    "predictions": {"kind": "predicted"},
    "predictions-nan": {"kind": "predicted", "has_model": True, "bad": (5, 9, 10), "loop": "tickets"},
    "parts": {"kind": "parts"},
    "parts-tickets": {"kind": "parts", "loop": "tickets"},
    "means": {"kind": "means"},
    "means-tickets": {"kind": "means", "loop": "tickets"},
    "means-negative": {"kind": "means", "lowest": 0.2},
    "heard": {"heard": True},
    "quartile": {"policy": "quartile"},
    "nan": {"has_model": True, "bad": (5, 9, 10)},
    "nan-tickets": {"has_model": True, "bad": (5, 9, 10), "loop": "tickets", "kind": "means"},
    "one-sample": {"has_model": True, "bad_sample": 5, "num_epochs": 6},
    "one-sample-means": {"has_model": True, "bad_sample": 5, "num_epochs": 7, "kind": "means", "loop": "tickets"},
    "one-sample-no-model": {"bad_sample": 5, "num_epochs": 6, "loop": "tickets"},
    "probe": {"has_model": True, "bad": (9, 10), "recovery": Recovery(trust_steps=4)},
    "probe-tickets": {"has_model": True, "bad": (9, 10), "loop": "tickets", "kind": "means"},
    "deeper": {
        "has_model": True,
        "saved": True,
        "checkpoint_every": 4,
        "bad": (9, 10),
        "poisoned_at": 7,
        "decay": 1.0,
    },
    "array": {"has_model": True, "damaged_at": 7},
    "checkpoints": {"has_model": True, "saved": True, "checkpoint_every": 4},
    "epoch-checkpoints": {"has_model": True, "saved": True, "bad": (7,), "loop": "tickets"},
}


def user(name, folder, **more):
    given = {**RUNS[name], **more}
    if given.pop("heard", False):
        given["listeners"] = [record_events()]
    if given.pop("saved", False):
        # A thread that writes now and then would make the number of bytecodes differ.
        given["checkpoint_dir"], given["backup_dir"] = folder, False
    return User(**given)


@pytest.fixture
def short_chunks(monkeypatch):
    """Several chunks in a pass, though there are few samples."""
    monkeypatch.setattr(planner, "CHUNK_SAMPLES", 8)
    monkeypatch.setattr(planner, "CHUNK_BATCHES", 2)


def places_of(name, folder):
    """The call and bytecode of every place that the run passes, and its end."""
    # The first run of all loads modules and fills caches.
    user(name, folder / "first").run()
    undisturbed = user(name, folder, at=-1).run()
    visits = {}
    for call, places in undisturbed.places.items():
        for number, place in enumerate(places, start=1):
            visits.setdefault(place, []).append((call, number))
    return visits, everything(undisturbed)


def broken(name, folder, chosen, undisturbed):
    """The failures of some interrupted runs, with their places."""
    wrong, missed = [], []
    for number, (call, at, reaction) in enumerate(chosen):
        try:
            run = user(name, folder / str(number), call=call, at=at, reaction=reaction).run()
            check(run, undisturbed)
            if not run.num_interrupted:
                missed.append((call, at, reaction))
        except Exception as error:
            wrong.append((call, at, reaction, repr(error)[:150]))
    # Whether a thread that writes is done yet changes what a call does, and so a place or two may not come.
    assert len(missed) <= max(2, len(chosen) // 20), missed
    return wrong


def some(visits, count, seed):
    """Some places of a run, each at some visit of it and with some reaction."""
    chance = random.Random(seed)
    places = sorted(visits, key=lambda place: (place[0].co_filename, place[0].co_firstlineno, place[1]))
    return [(*chance.choice(visits[place]), chance.choice(REACTIONS)) for place in chance.sample(places, count)]


@pytest.mark.parametrize("name", RUNS)
def test_undisturbed(name, tmp_path, short_chunks):
    """A run that is not interrupted has the uses, the epochs and the table of learning each report as it comes."""
    run = user(name, tmp_path).run()

    check(run, everything(run))


def ended(name, folder):
    """The recovery state of a run that was not interrupted, at its end."""
    return user(name, folder).run().r8.controller


def test_interrupted_runs_cover_all_troubles(tmp_path, short_chunks):
    """The runs used here include a quarantined sample, probes, a restore and a damaged array."""
    quarantined = ended("one-sample", tmp_path / "one-sample")._table.quarantined.tolist()

    assert quarantined == [5]
    assert ended("probe", tmp_path).state_dict()["incidents"]["num_probes"] > 0
    assert ended("deeper", tmp_path / "deeper").state_dict()["incidents"]["num_restored"] == 1


@pytest.mark.parametrize("way", ["restore_backup", "load_checkpoint"])
def test_interrupted_restore_says_so(way, tmp_path):
    """If the load callback is interrupted during a restore, no call goes on before the model is whole again."""
    model, sources = Model(), []

    def load(source, from_ram):
        sources.append(source)
        if len(sources) == 1:
            model.first = source["first"]
            raise KeyboardInterrupt
        model.load(source, from_ram)

    r8 = make(state_callback=model.get, load_callback=load, save_callback=model.save, checkpoint_dir=tmp_path)
    r8.save_checkpoint()
    ticket = r8.draw()
    model.step(math.nan)
    with pytest.raises(KeyboardInterrupt):
        r8.report(ticket, float("nan"))
    for call in (r8.draw, r8.state_dict, r8.save_checkpoint, lambda: r8.report(ticket, 1.0)):
        with pytest.raises(RunInterrupted, match=r"report\(\) at step 0 was cut short"):
            call()
    getattr(r8, way)()
    with pytest.raises(RuntimeError, match="was already reported or dropped"):
        r8.report(ticket, 1.0)
    outcome = r8.report(r8.draw(), 1.0)

    assert (bool(outcome), r8.global_step) == (True, 1)
    assert (model.first, model.second) == (0, 0)


def test_without_a_backup_the_table_starts_anew():
    """A run that is not whole, and has neither a backup nor a checkpoint, names what is left to do."""
    r8 = cut(make())
    with pytest.raises(RuntimeError, match=r"restore_backup\(\) needs a load_callback and a backup .* build another"):
        r8.restore_backup()
    with pytest.raises(RunInterrupted, match="build another R8Scheduler around the model as it is"):
        r8.draw()

    assert "step" in r8.summary()


def test_an_ordinary_report_that_is_cut_is_named(monkeypatch):
    """What the hot path had begun is told as well."""
    r8 = make()
    r8.report(r8.draw(), 1.0)
    ticket = r8.draw()
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_learn", raising)
        with pytest.raises(MemoryError):
            r8.report(ticket, 1.0)
    with pytest.raises(RunInterrupted, match=r"report\(\) of step 1 was cut short"):
        r8.draw()


def test_cut_table_needs_a_checkpoint(tmp_path):
    """Where the table itself may be half stored, a backup cannot make the run whole; a checkpoint can."""
    model = Model()
    callbacks = {"state_callback": model.get, "load_callback": model.load, "save_callback": model.save}
    r8 = make(**callbacks, checkpoint_dir=tmp_path)
    r8.save_checkpoint()
    cut(r8)
    r8.table.storage.is_whole = False
    with pytest.raises(RuntimeError, match=r"restore_backup\(\) needs a whole table.*use load_checkpoint\(\)"):
        r8.restore_backup()
    r8.load_checkpoint()

    assert r8.draw().step == 0


def test_restore_backup_goes_back_to_one_step():
    """Model, guard, counters and rates are those of the step of the backup; the table keeps what it has learned."""
    model = Model()
    r8 = make(48, num_epochs=3, state_callback=model.get, load_callback=model.load, backup_every=5)
    states = {}
    for _ in range(8):
        ticket = r8.draw()
        if r8.global_step in (0, 5):
            states[r8.global_step] = r8.sentry.state_dict(), r8.lr, model.first.copy(), r8.table.learner.trend_mark
        r8.report(ticket, 1.0 + 0.1 * r8.global_step)
        model.step(ticket.lr)
    uses = r8.table.usage_count.sum()
    step = r8.restore_backup()

    assert (step, r8.global_step, r8.table.usage_count.sum()) == (5, 5, uses)
    assert (r8.sentry.state_dict(), r8.lr, model.first, r8.table.learner.trend_mark) == states[5]
    assert model.first == -model.second


@pytest.mark.parametrize("at", range(1, 1200, 60))
def test_restore_backup_is_interrupted(at):
    """A restore of the backup that is cut itself may be called again."""
    model = Model()
    r8 = make(48, num_epochs=3, state_callback=model.get, load_callback=model.load, backup_every=5)
    for _ in range(8):
        ticket = r8.draw()
        r8.report(ticket, 1.0 + 0.1 * r8.global_step)
        model.step(ticket.lr)
    cut(r8)
    try:
        with Interrupter(at):
            r8.restore_backup()
    except KeyboardInterrupt:
        assert r8.host.turns.is_cut or r8.global_step == 5
    if not r8.table.storage.is_whole:
        with pytest.raises(RuntimeError, match="needs a whole table"):
            r8.restore_backup()
        return
    assert r8.restore_backup() == 5
    while (ticket := r8.draw_if_any()) is not None:
        r8.report(ticket, 1.0 + 0.1 * r8.global_step)

    assert (r8.global_step, r8.pace.num_out, model.first) == (36, 0, -model.second)


def cut(r8):
    """A scheduler whose report was cut short."""
    ticket = r8.draw()
    accepted = r8.controller.accepted
    r8.controller.accepted = raising
    with pytest.raises(MemoryError):
        r8.report(ticket, 1.0), r8.report(r8.draw(), 1.0)
    r8.controller.accepted = accepted
    return r8


def raising(*given, **named):
    raise MemoryError


def test_reset_baseline_is_interrupted():
    """A reset of the baseline that is interrupted has happened as a whole, or not at all, or says so."""
    at, is_done, num_cut = 0, False, 0
    while not is_done:
        # Every ninth place, to be quick.
        at += 9
        r8 = make(num_samples=32)
        with warnings.catch_warnings(action="ignore"):
            for loss in (1.0, 1.1, 0.9, float("nan")):
                r8.report(r8.draw(), loss)
        before = memory_of(r8)
        try:
            with Interrupter(at):
                r8.reset_baseline()
            is_done = True
        except KeyboardInterrupt:
            pass
        num_cut += r8.host.turns.is_cut
        if not r8.host.turns.is_cut:
            assert (memory_of(r8) == before) is (r8.sentry.baseline == 0)
            assert (not r8.controller.state.refusals.bad_in_a_row) is (r8.sentry.baseline == 1)

    assert (at > 100, num_cut > 0) == (True, True)


class Upset:
    """A run in which one of the user's own functions raises once.

    Args:
        part: Which one.
        at: In its how many-th call; 0 for never.
    """

    def __init__(self, part, at):
        self.part, self.at, self.num_calls, self.num_raised, self.seen = "", at, 0, 0, []
        parts = {"policy": UpsetPolicy(self), "guard": UpsetGuard(self), "scheduler_mode": self.schedule}
        parts |= {"listeners": [self.listen], "state_callback": self.state, "load_callback": print, "backup_every": 2}
        self.r8 = make(48, num_epochs=3, clock=FakeClock(), handle_signals=False, **parts)
        # A schedule is tried out when the scheduler is built.
        self.part = part

    def may_raise(self, part):
        self.num_calls += part == self.part
        if part == self.part and self.num_calls == self.at and not self.num_raised:
            self.num_raised = 1
            # A listener that raises an ordinary exception is dropped.
            raise KeyboardInterrupt if part == "listener" else OSError

    def schedule(self, progress):
        self.may_raise("schedule")
        return 0.1 * (1 - progress)

    def state(self):
        self.may_raise("state")
        return {"weight": 1.0}

    def listen(self, event):
        if isinstance(event, StepDone):
            self.may_raise("listener")

    def repeat(self, call):
        try:
            return call()
        except (OSError, KeyboardInterrupt):
            assert not self.r8.host.turns.is_cut
            return call()

    def run(self):
        """Train to the end; what is drawn, and how it is answered."""
        r8 = self.r8
        while (ticket := self.repeat(r8.draw_if_any)) is not None:
            before, answer = r8.global_step, None
            try:
                answer = self.repeat(lambda ticket=ticket: r8.report(ticket, UpsetLoss(self, ticket)))
            except RuntimeError:
                # A listener hears of a report that is complete.
                assert (self.part, r8.global_step) == ("listener", before + 1)
            self.seen.append((ticket.indices.tolist(), ticket.lr, r8.lr, answer is None or answer.lr == r8.lr))
        state = r8.state_dict()
        if self.part == "state":
            # A backup that raised is not made up for.
            return self.seen, frozen({**state, "recovery": {**state["recovery"], "witnesses": None}}), None
        return self.seen, frozen(state), memory_of(r8)


class UpsetPolicy(Policy):
    """A shuffle that may raise."""

    def __init__(self, upset):
        self.upset = upset

    def arrange(self, chunk, batch_size, rng):
        self.upset.may_raise("policy")
        return rng.permutation(len(chunk.indices))


@dataclasses.dataclass(frozen=True)
class UpsetGuard(FiniteGuard):
    """A guard that may raise."""

    upset: Upset

    def judge(self, state, loss, expected=0.0, typical=0.0, lr=0.0):
        self.upset.may_raise("guard")
        return super().judge(state, loss, expected, typical, lr)

    def suspicion(self, state):
        self.upset.may_raise("suspicion")
        return 0.0


class UpsetLoss:
    """A loss that may raise as it is read."""

    def __init__(self, upset, ticket):
        self.upset, self.ticket = upset, ticket

    def __array__(self, *given, **more):
        self.upset.may_raise("loss")
        return sample_losses(self.ticket.indices)


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", ["schedule", "policy", "guard", "suspicion", "loss", "state", "listener"])
def test_what_the_user_raises_changes_nothing(part, every):
    """An exception of the user's own code leaves a whole run: the call is repeated, and the run ends like any other."""
    plain, num_raised = Upset(part, at=0).run(), 0
    for at in range(1, 40, every):
        upset = Upset(part, at)

        assert upset.run() == plain
        num_raised += upset.num_raised

    assert num_raised >= (2 if part == "policy" else 15) // every
    assert num_raised > 0


@pytest.mark.parametrize("name", ["exact", "predictions-nan", "parts-tickets", "means", "probe", "epoch-checkpoints"])
def test_some_places(name, tmp_path, short_chunks):
    """A run that is interrupted before some bytecode of the package ends as one that was not."""
    visits, undisturbed = places_of(name, tmp_path / "undisturbed")

    assert broken(name, tmp_path, some(visits, 3, name), undisturbed) == []


def test_places_of_a_claim(tmp_path, short_chunks):
    """So does one that is interrupted while it claims its checkpoints again, or gives them up."""
    visits, undisturbed = places_of("checkpoints", tmp_path / "undisturbed")
    of_claims = {place: at[-1:] for place, at in visits.items() if "CheckpointStore" in place[0].co_qualname}
    of_claims = {place: at for place, at in of_claims.items() if place[0].co_name in ("claim", "release")}

    assert broken("checkpoints", tmp_path, some(of_claims, 40, "claims"), undisturbed) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_place(name, tmp_path, short_chunks):
    """A run that is interrupted before any bytecode of the package ends as one that was not."""
    visits, undisturbed = places_of(name, tmp_path / "undisturbed")
    chosen = some(visits, len(visits), f"{name}, all")

    assert broken(name, tmp_path, chosen, undisturbed) == []

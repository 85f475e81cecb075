"""KeyboardInterrupt before any bytecode of the scheduler: the next call finishes or undoes what was interrupted."""

import random

import pytest

from learnit_r8 import events, scheduler
from learnit_r8.engine import draws, engine, interruption, refusal, run_state
from learnit_r8.recovery.diagnosis import ARRAY_REASON
from learnit_r8.recovery.policy import Recovery
from learnit_r8.sampling import planner
from learnit_r8.testing import record_events
from tests.drive import make
from tests.interrupt_common import REACTIONS, Interrupter, Model, User, check, everything, memory_of

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
    "ladder": {"has_model": True, "saved": True, "checkpoint_every": 4, "bad": (9, 10, 11)},
    "array": {"has_model": True, "damaged_at": 7},
    "replay": {"has_model": True, "bad": (11,), "decay": 1.0, "recovery": Recovery(replay_check=True)},
    "replay-other": {"has_model": True, "bad": (8,), "recovery": Recovery(replay_check=True), "kind": "means"},
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
    wrong = []
    for number, (call, at, reaction) in enumerate(chosen):
        try:
            run = user(name, folder / str(number), call=call, at=at, reaction=reaction).run()
            assert run.num_interrupted
            check(run, undisturbed)
        except Exception as error:
            wrong.append((call, at, reaction, repr(error)[:150]))
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
    """The runs used here include a quarantined sample, a deeper restore, a damaged array and replays."""
    for name in ("one-sample", "one-sample-means", "one-sample-no-model"):
        assert ended(name, tmp_path / name)._table.quarantined.tolist() == [5]
    ladder = [attempt.to_step for attempt in ended("ladder", tmp_path / "ladder")._incident.attempts]
    array = ended("array", tmp_path)._incident.attempts[-1].reason
    attempts = [ended(name, tmp_path)._incident.attempts for name in ("replay", "replay-other")]
    replayed = [next(attempt.replayed for attempt in tried if attempt.replayed) for tried in attempts]

    assert (ladder[0] > ladder[1] >= 0, ARRAY_REASON in array) == (True, True)
    assert [text.split(" and had ")[1][:12] for text in replayed] == ["the same los", "another loss"]


def test_report_that_was_complete():
    """A report that was interrupted when it was complete is repeated without harm; any other second one is an error."""
    r8 = make(listeners=[raise_once(events.StepDone)])
    ticket = r8.draw()
    with pytest.raises(KeyboardInterrupt):
        r8.report(ticket, 1.0)
    outcome = r8.report(ticket, 1.0)
    second = r8.draw()
    r8.report(second, 1.0)
    with pytest.raises(RuntimeError, match="was reported or given up before"):
        r8.report(second, 1.0)

    assert outcome
    assert (r8.global_step, r8.pace.num_out) == (2, 0)


@pytest.mark.parametrize("go_on", ["draw_if_any", "state_dict", "between_steps"])
def test_interrupted_restore_is_completed(go_on):
    """If the load callback is interrupted during a restore, the model is whole after the next call."""
    model, sources = Model(), []

    def load(source, from_ram):
        sources.append(source)
        model.first = source["first"]
        if len(sources) == 1:
            raise KeyboardInterrupt
        model.second = source["second"]

    r8 = make(state_callback=model.get, load_callback=load)
    ticket = r8.draw()
    model.step(1.0)
    with pytest.raises(KeyboardInterrupt):
        r8.report(ticket, float("nan"))
    getattr(r8, go_on)()
    outcome = r8.report(ticket, float("nan"))

    assert (outcome.verdict.value, outcome.rolled_back_to, r8.global_step) == ("not finite", 0, 1)
    assert (model.first, model.second, len(sources)) == (0, 0, 2)


@pytest.mark.filterwarnings("ignore")
def test_reset_baseline_is_interrupted():
    """A reset of the baseline that is interrupted has happened as a whole, or not at all."""
    at, is_done = 0, False
    while not is_done:
        # Every third place, to be quick.
        at += 3
        r8 = make(num_samples=32)
        for loss in (1.0, 1.1, 0.9, float("nan")):
            r8.report(r8.draw(), loss)
        before = memory_of(r8)
        try:
            with Interrupter(at):
                r8.reset_baseline()
            is_done = True
        except KeyboardInterrupt:
            pass
        assert r8.global_step == 4
        assert (memory_of(r8) == before) is (r8.sentry.baseline == 0)
        assert r8.controller.is_calm is (r8.sentry.baseline == 1)

    assert at > 100


def raise_once(kind):
    """A listener that is interrupted at the first event of a kind."""
    heard = []

    def listen(event):
        heard.append(event)
        if type(event) is kind and [type(other) for other in heard].count(kind) == 1:
            raise KeyboardInterrupt

    return listen


@pytest.mark.parametrize("name", RUNS)
def test_some_places(name, tmp_path, short_chunks):
    """A run that is interrupted before some bytecode of the package ends as one that was not."""
    visits, undisturbed = places_of(name, tmp_path / "undisturbed")

    assert broken(name, tmp_path, some(visits, 20, name), undisturbed) == []


@pytest.fixture
def second(monkeypatch):
    """Interrupts the repair too, before how many-th bytecode of it is set."""
    interrupter = Interrupter()

    def traced(repair):
        def repair_and_be_traced(run):
            if interrupter.at > len(interrupter.places):
                with interrupter:
                    return repair(run)
            return repair(run)

        return repair_and_be_traced

    for name in ("mend", "finish"):
        repair = traced(getattr(interruption, name))
        for module in (draws, engine, interruption, refusal, run_state, scheduler):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, repair)
    return interrupter


def broken_twice(name, folder, chosen, undisturbed, second, seed):
    """As `broken`, where the repair is interrupted too."""
    chance, wrong = random.Random(seed), []
    for call, at, reaction in chosen:
        second.at, second.places = chance.choice([*range(1, 60), *range(60, 1200, 20)]), []
        again = {"save": "retry", "resume": "go on"}.get(reaction, reaction)
        found = broken(name, folder / f"{call}-{at}", [(call, at, again)], undisturbed)
        wrong += [(*place, second.at) for place in found]
    return wrong


@pytest.mark.parametrize("name", ["exact", "means-negative", "nan-tickets"])
def test_repair_is_interrupted(name, tmp_path, short_chunks, second):
    """A run whose repair is interrupted too ends as one that was not."""
    visits, undisturbed = places_of(name, tmp_path / "undisturbed")
    chosen = some(visits, 20, name)

    assert broken_twice(name, tmp_path, chosen, undisturbed, second, name) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_repair(name, tmp_path, short_chunks, second):
    """A run whose repair is interrupted too ends as one that was not, wherever the first interrupt came."""
    visits, undisturbed = places_of(name, tmp_path / "undisturbed")
    chosen = some(visits, len(visits), name)

    assert broken_twice(name, tmp_path, chosen, undisturbed, second, name) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_place(name, tmp_path, short_chunks):
    """A run that is interrupted before any bytecode of the package ends as one that was not."""
    visits, undisturbed = places_of(name, tmp_path / "undisturbed")
    chosen = some(visits, len(visits), f"{name}, all")

    assert broken(name, tmp_path, chosen, undisturbed) == []

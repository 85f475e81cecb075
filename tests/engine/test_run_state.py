"""The run state: what it holds, and which formats of it are read."""

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, events, predictions_of
from learnit_r8.engine.run_state import FORMAT
from learnit_r8.state.codec import decode, encode
from learnit_r8.testing import record_events
from tests.drive import FakeClock, Weights, make, sample_losses
from tests.package_copy import copy_package, replace_in, run_beside

USED = """
from learnit_r8 import R8Scheduler

def build(**settings):
    return R8Scheduler(8, batch_size=4, num_epochs=9, checkpoint_dir="saved", **settings)

r8 = build()
r8.pace.num_naps = 3
for indices, _ in r8.batch_iterator():
    r8.update_with_loss(indices + 1.0)
r8.save_checkpoint()
other = build()
other.load_state_dict(r8.state_dict())
print(*(each.pace.num_naps for each in (other, build(resume="auto"), R8Scheduler.resume_from_checkpoint("saved"))))
print(R8Scheduler.resume_from_checkpoint(BEFORE).pace.num_naps)
"""


def test_the_mean_of_an_epoch_is_of_all_its_steps():
    """A run that is resumed within an epoch tells the mean loss of the whole one at its end."""
    heard, first = record_events(), make(num_epochs=1)
    first.report(first.draw(), 1.0)
    first.report(first.draw(), 2.0)
    second = make(num_epochs=1, listeners=[heard])
    second.load_state_dict(first.state_dict())
    second.report(second.draw(), 6.0)

    assert [each.loss for each in heard.of(events.EpochDone)] == [3.0]


def trained(steps=30):
    r8 = R8Scheduler(320, batch_size=32, num_steps=60)
    for indices, _ in r8.batch_iterator():
        r8.update_with_loss(1.0 + indices / 320)
        if r8.global_step == steps:
            break
    return r8


def test_states_of_format_2_are_read():
    """They lack what recovery remembers since then, which begins anew."""
    older = {**trained(8).state_dict(), "format": 2}
    del older["recovery"]["lineage"]["was_calm"], older["recovery"]["incidents"]["num_high"]
    fresh = R8Scheduler(320, batch_size=32, num_steps=60)

    fresh.load_state_dict(older)

    now = fresh.state_dict()["recovery"]
    assert (fresh.global_step, now["lineage"]["was_calm"], now["incidents"]["num_high"]) == (8, False, 0)


def test_newer_states_are_refused():
    """A state that a newer package has saved is refused, and nothing is changed."""
    newer = {**trained(8).state_dict(), "format": FORMAT + 1}
    fresh = R8Scheduler(320, batch_size=32, num_steps=60)

    with pytest.raises(ValueError, match=rf"state must be of format {FORMAT} .* a newer learnit_r8 has saved it"):
        fresh.load_state_dict(newer)
    assert fresh.global_step == 0


def test_states_of_versions_in_between_are_refused():
    """A state that a version after 01c0f9e2, and before this format, has saved is refused with what to do."""
    between = {**trained(8).state_dict(), "format": 1}

    with pytest.raises(ValueError, match=r"one of a version in between: begin a new run"):
        R8Scheduler(320, batch_size=32, num_steps=60).load_state_dict(between)


@pytest.mark.parametrize("name", ["early_stop", "quarantine", "search"])
def test_missing_parts_are_named(name):
    """A state without one of its parts is refused with the name of the part."""
    state = trained(8).state_dict()
    del state[name]

    with pytest.raises(ValueError, match=rf"got format {FORMAT} without \['{name}'\]"):
        R8Scheduler(320, batch_size=32, num_steps=60).load_state_dict(state)


def test_a_field_is_added_in_two_files(tmp_path):
    """Its part and the format: then files have it, those before it load, and earlier versions refuse them."""
    engine = copy_package(tmp_path) / "engine"
    pace = engine / "pace.py"
    replace_in(pace, "self.passes = self.tokens = 0", "self.passes = self.tokens = self.num_naps = 0")
    replace_in(pace, '"step": self.step,', '"step": self.step, "num_naps": self.num_naps,')
    replace_in(
        pace,
        'self.step, self.num_out = state["step"], 0',
        """self.step, self.num_out = state["step"], 0
        self.num_naps = state.get("num_naps", 0)""",
    )
    replace_in(engine / "run_state.py", f"FORMAT, OF_01C0F9E2 = {FORMAT},", f"FORMAT, OF_01C0F9E2 = {FORMAT + 1},")
    before = R8Scheduler(8, batch_size=4, num_epochs=9, checkpoint_dir=tmp_path / "before")
    before.save_checkpoint()
    before.close()

    lines = run_beside(tmp_path, USED.replace("BEFORE", repr((tmp_path / "before").as_posix())))

    assert lines == ["3 3 3", "0"]
    with pytest.raises(ValueError, match=rf"got format {FORMAT + 1}: a newer learnit_r8 has saved it"):
        R8Scheduler.resume_from_checkpoint(tmp_path / "saved")


def entries(value, at=()):
    """The paths and values of the entries of a nest that hold no others, of a list of numbers those of the first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    items = [*items][:1] if isinstance(value, list) and len({*map(type, value)}) == 1 else items
    if not items:
        yield at, value
    for name, item in items:
        yield from entries(item, (*at, name))


def with_entry(value, at, new):
    """A copy of a nest with another value in one place."""
    if not at:
        return new
    copy = value.copy()
    copy[at[0]] = with_entry(value[at[0]], at[1:], new)
    return copy


def kind_of(value):
    return type(value) if not isinstance(value, np.ndarray) else (value.dtype.kind.replace("u", "i"), value.ndim)


OTHERS = (None, True, 7, 2.5, "x", [], {}, np.zeros((2, 2), np.int64))


def seen():
    """The callbacks of a model of its own."""
    weights = Weights()
    return {"state_callback": weights.get, "load_callback": weights.load}


def planned(**more):
    return make(24, num_epochs=4, clock=FakeClock(), **more)


def train_on(r8, count, bad=()):
    """The next batches and rates, drawn by number."""
    seen = []
    while len(seen) < count and (ticket := r8.draw_if_any()) is not None:
        losses = sample_losses(ticket.indices)
        r8.report(ticket, losses * 1e9 if r8.global_step in bad else losses)
        seen.append((ticket.indices.tolist(), ticket.lr))
    return seen


def train_own(r8, count, bad=()):
    """The next batches of the user's own."""
    seen = []
    for _ in r8.epoch_iterator():
        for batch in r8.batches([np.full(2, number) for number in range(12)]):
            if len(seen) == count:
                return seen
            r8.update_with_loss(1e9 if r8.global_step in bad else 1.0 + batch[0] % 3)
            seen.append((batch.tolist(), r8.lr))
    return seen


def told(r8, count, bad=()):
    """Batches whose losses come with predictions."""
    rng = np.random.default_rng(r8.global_step)
    while count and (ticket := r8.draw_if_any()) is not None:
        count -= 1
        logits = rng.normal(size=(len(ticket.indices), 3))
        r8.report(ticket, sample_losses(ticket.indices), predictions=predictions_of(logits, ticket.indices % 3))


RUNS = {
    "restored": (lambda: planned(**seen()), train_on, []),
    "cooling down": (lambda: make(24, num_epochs=None, scheduler_mode="wsd", clock=FakeClock()), train_on, ["pace"]),
    "with predictions": (lambda: planned(policy="focus"), told, ["table", "plan"]),
    "own batches": (lambda: R8Scheduler(num_epochs=3, scheduler_mode="keep", **seen()), train_own, ["table", "plan"]),
}
"""How each is made and trained, and the parts of its state that the others lack; all if none is named."""


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_value_of_another_kind_is_refused_by_name_or_changes_nothing(name):
    """Either the error names the entry, or the run goes on; equally, unless one of the values is None."""
    build, train, parts = RUNS[name]
    saved = build()
    train(saved, 8, bad=(5, 6))
    if name == "cooling down":
        saved.requests.cool_down(15)
    if name == "restored":
        saved.log(accuracy=0.5)
    train(saved, 1)
    state = decode(encode(saved.state_dict()))
    wanted = build()
    wanted.load_state_dict(state)
    rest = train(wanted, 6)
    after, r8 = encode(wanted.state_dict()), build()

    for at, value in entries({part: state[part] for part in parts or state}):
        for new in OTHERS:
            is_number = type(value) is float and type(new) is int
            if kind_of(new) == kind_of(value) or is_number:
                continue
            what = f"{'.'.join(map(str, at))} = {new!r} for {value!r}"
            entry = next(each for each in at[::-1] if isinstance(each, str))
            try:
                r8.load_state_dict(with_entry(state, at, new))
            except ValueError as error:
                refused = str(error)
            else:
                refused = ""
            if refused:
                assert entry in refused, f"{what}: {refused}"
                continue
            try:
                goes_on = train(r8, 6), encode(r8.state_dict())
            except Exception as error:
                raise AssertionError(what) from error
            assert value is None or new is None or goes_on == (rest, after), what
            r8 = build()


def test_arrays_of_the_users_own_loader_are_no_part_of_a_state():
    """A batch that is an array is no list of samples: a state holds none, and what an older one holds is dropped."""
    r8 = R8Scheduler(num_epochs=3, scheduler_mode="keep", **seen())
    train_own(r8, 9)
    state = r8.state_dict()
    assert state["recovery"]["witnesses"] == []
    older = {"step": 0, "updates": 0, "recent": [], "witness": [np.full(2, 0.5)], "losses": [1.0], "is_proven": True}
    other = R8Scheduler(num_epochs=3, scheduler_mode="keep", **seen())
    other.load_state_dict({**state, "recovery": {**state["recovery"], "witnesses": [older]}})

    assert other.controller.witnesses.to_plain() == []

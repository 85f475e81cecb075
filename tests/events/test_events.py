import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learnit_r8 import events
from learnit_r8.events import EVENTS, RolledBack
from learnit_r8.events.bus import Announcer
from learnit_r8.events.codec import from_json, to_json
from tests.drive import INF, NAN, FakeClock, Weights, make, train

VALUES = {
    "int": st.integers(0, 2**53),
    "int | None": st.none() | st.integers(0, 2**53),
    "float": st.floats(),
    "float | None": st.none() | st.floats(),
    "str": st.text(),
    "str | None": st.none() | st.text(),
    "bool": st.booleans(),
    "tuple[int, ...]": st.lists(st.integers(0, 2**53)).map(tuple),
    "tuple[float, ...]": st.lists(st.floats()).map(tuple),
    "tuple[bool, ...]": st.lists(st.booleans()).map(tuple),
    "tuple[str, ...]": st.lists(st.text()).map(tuple),
    "tuple[tuple[float, ...], ...]": st.lists(st.lists(st.floats()).map(tuple), max_size=4).map(tuple),
    "dict[str, str]": st.dictionaries(st.text(), st.text()),
    "dict[str, float]": st.dictionaries(st.text(), st.floats()),
}


def any_event():
    return st.sampled_from(sorted(EVENTS)).flatmap(
        lambda name: st.builds(
            EVENTS[name], **{field.name: VALUES[field.type] for field in dataclasses.fields(EVENTS[name])}
        )
    )


def refuse_constant(text):
    raise AssertionError(f"{text} is not strict JSON")


@given(any_event())
def test_every_event_survives_json(event):
    """An event of any kind comes back from its line equal, NaN and infinities included."""
    back = from_json(to_json(event))

    assert type(back) is type(event)
    np.testing.assert_equal(dataclasses.asdict(back), dataclasses.asdict(event))


@given(any_event())
def test_lines_are_strict_json(event):
    """A line holds no NaN or Infinity literal and no line break."""
    line = to_json(event)
    json.loads(line, parse_constant=refuse_constant)

    assert "\n" not in line


def test_non_finite_numbers_are_strings():
    """NaN and infinities become the strings "nan", "inf" and "-inf"."""
    line = to_json(events.MetricsLogged(step=1, seconds=INF, at_step=1, metrics={"a": NAN, "b": -INF, "c": 1.5}))

    assert json.loads(line) == {
        "kind": "MetricsLogged",
        "step": 1,
        "seconds": "inf",
        "at_step": 1,
        "metrics": {"a": "nan", "b": "-inf", "c": 1.5},
    }


def test_text_that_reads_like_nan_stays_text():
    """A name "nan" is not turned into a number."""
    event = events.RunStarted(0, 0.0, "nan", 1, 1, 1, 1, None, "inf")

    assert from_json(to_json(event)) == event


def test_unknown_fields_are_left_out():
    """A field that this version does not know is ignored."""
    line = '{"kind": "RolledBack", "step": 7, "seconds": 1.5, "to_step": 5, "source": "backup", "colour": "red"}'

    assert from_json(line) == RolledBack(7, 1.5, 5, "backup")


@pytest.mark.parametrize(
    "line", ['{"kind": "Sneezed"}', "{}", "null", "[1]", '"RolledBack"', "3", '{"kind": ["RolledBack"]}']
)
def test_unknown_kind_is_refused(line):
    """A line without a known kind is a ValueError that lists the kinds."""
    with pytest.raises(ValueError, match=r"event kind must be one of \['Alive', 'BackupTaken', .*\], got"):
        from_json(line)


def test_field_with_a_default_may_be_missing():
    """A field that older versions did not write has its default."""
    event = events.RunStarted(0, 0.0, "it", 4, 2, 2, 3, None, "balanced")
    line = to_json(event).replace(', "settings": {}, "lr_plan": []', "")

    assert "lr_plan" not in line
    assert from_json(line) == event


def test_missing_field_is_refused():
    """A line that lacks a field is a ValueError that names it."""
    with pytest.raises(ValueError, match=r"event RolledBack must have the fields .*, got none for \['source'\]"):
        from_json('{"kind": "RolledBack", "step": 7, "seconds": 1.5, "to_step": 5}')


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("to_step", "5"), ("to_step", 5.0), ("to_step", True), ("to_step", None), ("to_step", 10**30),
        ("seconds", "soon"), ("seconds", None), ("source", 3), ("source", ["backup"]),
    ],
)  # fmt: skip
def test_field_of_another_type_is_refused(field, value):
    """A field that is not of its type is a ValueError, so that nothing odd gets any further."""
    fields = {"kind": "RolledBack", "step": 7, "seconds": 1.5, "to_step": 5, "source": "backup", field: value}
    with pytest.raises(ValueError, match=r"event RolledBack must have fields of its types, got"):
        from_json(json.dumps(fields))


@pytest.mark.parametrize("value", [3, [3], {"a": "b"}, {"a": [1]}, {"a": None}])
def test_metrics_that_are_no_numbers_are_refused(value):
    """A nested field is held to its type all the way down."""
    fields = {"kind": "MetricsLogged", "step": 7, "seconds": 1.5, "at_step": 7, "metrics": value}
    with pytest.raises(ValueError, match=r"event MetricsLogged must have fields of its types, got"):
        from_json(json.dumps(fields))


@pytest.mark.parametrize("line", ["[" * 100_000, '{"kind": "BackupTaken", "step": ' + "[" * 100_000])
def test_deep_line_is_refused(line):
    """A line nested beyond the interpreter's limit is a ValueError."""
    with pytest.raises(ValueError, match=r"nested less deeply|Expecting"):
        from_json(line)


def test_whole_number_is_a_float_where_one_is_due():
    """A number written without a point can stand for a float."""
    event = from_json('{"kind": "RolledBack", "step": 7, "seconds": 2, "to_step": 5, "source": ""}')

    assert type(event.seconds) is float


@pytest.mark.parametrize("line", ["", "not JSON", '{"kind": "RolledBack", "st'])
def test_cut_line_is_refused(line):
    """A line that is not JSON is a ValueError."""
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        from_json(line)


@pytest.mark.parametrize("kind", EVENTS.values())
def test_events_are_frozen(kind):
    """A listener cannot change an event for the next one."""
    event = kind(**{field.name: None for field in dataclasses.fields(kind)})
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.step = 3


def test_listeners_hear_in_order():
    """Every listener hears every event, in the order in which they were given."""
    heard = []
    announcer = Announcer([lambda e: heard.append(("a", e)), lambda e: heard.append(("b", e))], lambda: (3, 1.5))
    announcer.tell(events.BackupTaken)

    assert heard == [("a", events.BackupTaken(3, 1.5)), ("b", events.BackupTaken(3, 1.5))]


def test_raising_listener_is_dropped_with_its_traceback():
    """A listener that raises is dropped with one warning that shows its traceback; the others go on."""

    def broken(event):
        raise KeyError("a bug of the viewer")

    heard = []
    announcer = Announcer([broken, heard.append], lambda: (3, 1.5))
    with pytest.warns(
        RuntimeWarning, match=r"(?s)broken.* raised on BackupTaken and is dropped:.*Traceback.*a bug of the viewer"
    ):
        announcer.tell(events.BackupTaken)
    announcer.tell(events.BackupTaken)

    assert len(heard) == 2


def test_raising_listener_does_not_stop_a_run():
    """A run whose listener raises trains to its end."""

    def broken(event):
        raise KeyError(event)

    r8 = make(listeners=[broken])
    with pytest.warns(RuntimeWarning, match="is dropped"):
        train(r8)

    assert r8.global_step == 6


def test_keyboard_interrupt_passes_through_a_listener():
    """Ctrl-C that happens to arrive inside a listener ends the run."""

    def interrupted(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make(listeners=[interrupted]))


def test_listener_is_callable():
    """A listener that is not callable is a TypeError."""
    with pytest.raises(TypeError, match="listeners must be callables that take an event, got 3"):
        Announcer([3], lambda: (0, 0.0))


def test_topic_warns_once():
    """A topic warns and sends a notice the first time only."""
    heard = []
    announcer = Announcer([heard.append], lambda: (3, 1.5))
    with pytest.warns(RuntimeWarning, match="look here"):
        announcer.warn_once("topic", "look here")
    announcer.warn_once("topic", "look here")

    assert heard == [events.Notice(3, 1.5, "look here", is_warning=True)]


def test_topic_is_noted_once():
    """A note is sent the first time only, and does not warn."""
    heard = []
    announcer = Announcer([heard.append], lambda: (3, 1.5))
    announcer.note_once("topic", "by the way")
    announcer.note_once("topic", "by the way")

    assert heard == [events.Notice(3, 1.5, "by the way", is_warning=False)]


def test_events_of_a_small_run():
    """A run with one refused loss sends its start, backups, steps, refusal, epochs, metrics and end, in this order."""
    model, heard = Weights(), []
    r8 = make(
        8,
        num_epochs=2,
        state_callback=model.get,
        load_callback=model.load,
        backup_every=2,
        listeners=[heard.append],
        name="it",
    )
    train(r8, bad={2})
    r8.log(accuracy=0.5)
    r8.close()
    r8.close()

    assert [(type(event).__name__, event.step) for event in heard] == [
        ("RunStarted", 0),
        ("BackupTaken", 0),
        ("StepDone", 1),
        ("StepDone", 2),
        ("EpochDone", 2),
        ("BackupTaken", 2),
        ("BatchRefused", 3),
        ("RolledBack", 3),
        ("StepDone", 4),
        ("EpochDone", 4),
        ("BackupTaken", 4),
        ("MetricsLogged", 4),
        ("RunEnded", 4),
    ]


def test_fields_of_a_small_run():
    """Events carry the facts of the run: sizes, losses, rates, expected losses, sources."""
    clock, heard = FakeClock(), []
    model = Weights()
    r8 = make(
        4, batch_size=2, num_epochs=1.5, scheduler_mode="linear", warmup_proportion=0, initial_lr=0.3, name="it",
        state_callback=model.get, load_callback=model.load, listeners=[heard.append], clock=clock,
    )  # fmt: skip
    for loss in (2.0, NAN, 1.0):
        ticket = r8.draw()
        clock.advance(1)
        r8.report(ticket, loss)

    assert dataclasses.replace(heard[0], settings={}, lr_plan=()) == events.RunStarted(
        0, 0.0, "it", 4, 2, 2, 3, None, "balanced"
    )
    assert heard[2].expected_loss != heard[2].expected_loss
    assert dataclasses.replace(heard[2], expected_loss=0.0, own_seconds=0.0) == events.StepDone(
        1, 1.0, 0, pytest.approx(1 / 3), 2.0, 0.0, 0.3, 2, False
    )
    assert heard[3] == events.EpochDone(2, 2.0, 0, pytest.approx(2 / 3), 2.0, pytest.approx(0.2), 2, 2.0)
    assert isinstance(heard[4], events.BatchRefused)
    assert math.isnan(heard[4].loss)
    assert dataclasses.replace(heard[4], loss=0.0) == events.BatchRefused(
        2, 2.0, 0, 0.0, pytest.approx(0.2), pytest.approx(0.05), 1, (), "not finite"
    )
    assert heard[5] == RolledBack(2, 2.0, 0, "backup")


def test_refused_vector_names_its_samples():
    """A refused vector of losses names the samples that were not finite."""
    heard = []
    r8 = make(listeners=[heard.append])
    ticket = r8.draw()
    with pytest.warns(RuntimeWarning, match="nothing to restore"):
        r8.report(ticket, np.array([1.0, NAN, 2.0, INF]))
    refused = [event for event in heard if isinstance(event, events.BatchRefused)]

    assert refused[0].samples == (int(ticket.indices[1]), int(ticket.indices[3]))


def test_every_event_of_a_run_has_a_line():
    """Every event of a run, numpy and torch numbers included, can be written as strict JSON."""
    heard = []
    r8 = make(np.int64(12), batch_size=np.int32(4), initial_lr=0.1, listeners=[heard.append])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for indices, _ in r8.batch_iterator():
            r8.update_with_loss(np.where(indices == 3, np.float32("nan"), np.float32(1)))
    r8.log(accuracy=np.float32(0.5))
    r8.close()

    assert len(heard) >= 8
    for event in heard:
        json.loads(to_json(event), parse_constant=refuse_constant)

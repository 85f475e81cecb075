"""Events as lines of strict JSON, and back."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
from hypothesis import given

from learnit_r8 import events
from learnit_r8.events import RolledBack
from learnit_r8.events.codec import to_json
from tests.drive import INF, NAN, make
from tests.events.any_events import any_event, from_json, refuse_constant


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
        "is_on_trial": False,
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
    """A field that a file lacks has its default."""
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


def test_whole_number_is_a_float_where_one_is_due():
    """A number written without a point can stand for a float."""
    event = from_json('{"kind": "RolledBack", "step": 7, "seconds": 2, "to_step": 5, "source": ""}')

    assert type(event.seconds) is float


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

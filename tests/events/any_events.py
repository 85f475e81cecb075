"""Events of every kind, for property tests."""

import dataclasses
import json

from hypothesis import strategies as st

from learnit_r8.events import EVENTS
from learnit_r8.events.codec import from_fields

COUNTS = st.integers(0, 2**53)


def any_event(counts=COUNTS, numbers=st.floats(), texts=st.text()):
    """Any event, with fields of these counts, numbers and texts."""
    # Four of them are quartiles.
    rows = st.lists(numbers, max_size=17) | st.lists(numbers, min_size=4, max_size=4)
    one = {"int": counts, "float": numbers, "str": texts, "bool": st.booleans()}
    values = {
        **one,
        **{f"{name} | None": st.none() | value for name, value in one.items()},
        **{f"tuple[{name}, ...]": st.lists(value, max_size=5).map(tuple) for name, value in one.items()},
        "tuple[float, ...]": rows.map(tuple),
        "tuple[tuple[float, ...], ...]": st.lists(st.lists(numbers, max_size=5).map(tuple), max_size=4).map(tuple),
        "dict[str, str]": st.dictionaries(texts, texts, max_size=4),
        "dict[str, float]": st.dictionaries(texts, numbers, max_size=4),
    }
    kinds = {
        name: st.builds(kind, **{field.name: values[field.type] for field in dataclasses.fields(kind)})
        for name, kind in EVENTS.items()
    }
    return st.sampled_from(sorted(kinds)).flatmap(kinds.get)


def refuse_constant(text):
    raise AssertionError(f"{text} is not strict JSON")


def from_json(line):
    """The event of a line."""
    return from_fields(json.loads(line))

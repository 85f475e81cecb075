"""Triggers read from arguments."""

import pytest

from learnit_r8.triggers import Elapsed, always, as_trigger


@pytest.mark.parametrize(
    ("value", "unit", "interval"),
    [(1, "steps", 1), (50, "steps", 50), ("30s", "time", 30.0), (" 1.5 min ", "time", 90.0), ("2h", "time", 7200.0)],
)
def test_number_is_steps_and_text_a_time(value, unit, interval):
    """An int is a number of steps, a text with a unit a time."""
    trigger = as_trigger("backup_every", value)

    assert (trigger.unit, trigger.interval) == (unit, interval)


def test_triggers_and_functions_are_taken_as_they_are():
    """A trigger, or any function of Elapsed, is used as it is."""

    def odd(elapsed):
        return elapsed.steps % 2

    assert as_trigger("backup_every", always) is always
    assert [as_trigger("backup_every", odd)(Elapsed(steps=step)) for step in (1, 2)] == [1, 0]


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "30", "s", "0s", "-1s", "1 day", "", [1], float("nan")])
def test_what_cannot_be_read_is_refused(value):
    """Anything else is refused with the argument's name and the value."""
    text = r'backup_every must be a number of steps >= 1, a time such as "30s", "5min" or "2h", or a trigger, got'
    with pytest.raises(ValueError, match=text) as error:
        as_trigger("backup_every", value)

    assert repr(value) in str(error.value)

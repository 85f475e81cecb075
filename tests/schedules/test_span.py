import datetime
import math
import time

import pytest

from learnit_r8.schedules.span import Span, read_span, span_of, typed_span


@pytest.mark.parametrize(
    ("given", "span"),
    [
        (500, Span("steps", 500)),
        ("500", Span("steps", 500)),
        ("500 steps", Span("steps", 500)),
        ("1 step", Span("steps", 1)),
        ("2 epochs", Span("epochs", 2)),
        ("0.5 epochs", Span("epochs", 0.5)),
        ("30s", Span("seconds", 30)),
        ("20min", Span("seconds", 1200)),
        (" 1.5 h ", Span("seconds", 5400)),
    ],
)
def test_length_is_read(given, span):
    """A length is a number of steps, or a text with a unit."""
    assert read_span("it", given) == span


def test_typed_lengths():
    """A person types a length, a time of the day, or nothing."""
    assert typed_span("  ") is None
    assert typed_span("20min") == Span("seconds", 1200)
    tomorrow = datetime.datetime.now() + datetime.timedelta(days=1)
    assert typed_span(f"until {tomorrow:%Y-%m-%d %H:%M}").unit == "until"
    with pytest.raises(ValueError, match="the length must be"):
        typed_span("soon")


def test_wall_time_of_today_or_with_a_date():
    """ "20:30" is today's local time, and a date may be given."""
    noon = datetime.datetime(2026, 11, 21, 12, 0, 0).timestamp()

    assert span_of(until="20:30", wall=noon).amount == noon + 8.5 * 3600
    assert span_of(until="12:00:30", wall=noon).amount == noon + 30
    assert span_of(until="2026-11-22 06:00", wall=noon).amount == noon + 18 * 3600
    assert span_of(until=datetime.datetime(2026, 11, 21, 13), wall=noon).amount == noon + 3600


@pytest.mark.parametrize("until", ["11:59", "12:00", "2025-01-01 00:00"])
def test_wall_time_in_the_past_is_refused(until):
    """A time that is past is an error that says what time it is, and how to give another day."""
    noon = datetime.datetime(2026, 11, 21, 12, 0, 0).timestamp()
    with pytest.raises(ValueError, match=r"until must be in the future, got .* at 2026-11-21 12:00:00; give the date"):
        span_of(until=until, wall=noon)


def test_span_as_text():
    """A span says what it is."""
    assert str(Span("steps", 500)) == "500 steps"
    assert str(Span("share", 0.2)) == "20% of the run"
    assert str(Span("until", time.mktime((2026, 11, 21, 20, 30, 0, 0, 0, -1)))) == "until 2026-11-21 20:30:00"


# fmt: off
MISTAKES = [
    *[(lambda given=given: read_span("it", given), ValueError, "it must be a number of steps >= 1, or a text such as")
      for given in (0, -1, 2.5, "2.5 steps", "0s", "", "min", "5 days", None, True, [3], math.nan)],
    *[(lambda until=until: span_of(until=until), ValueError, 'until must be a local time such as "20:30"')
      for until in ("25:00", "soon", "20:30h", 7, "")],
    *[(lambda given=given: span_of(**given), ValueError, text)
      for given, text in (
          ({"steps": 5, "seconds": 3}, "at most one of steps, epochs, seconds and until must be given"),
          ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
          ({"steps": 2.5}, r"steps must be a whole number >= 1, got 2\.5"),
          ({"epochs": 0}, "epochs must be a number > 0 and finite, got 0"),
          ({"seconds": math.inf}, "seconds must be a number > 0 and finite, got inf"),
          ({"seconds": "5"}, "seconds must be a number > 0 and finite, got '5'"))],
    *[(lambda text=text: read_span("the length", text), ValueError, "must be a")
      for text in ("9" * 308 + "epochs", "9" * 308 + "h", "9" * 308, "1" + "0" * 13 + " steps")],
]
# fmt: on


@pytest.mark.parametrize(("act", "error", "text"), MISTAKES, ids=[text[:45] for *_, text in MISTAKES])
def test_a_mistake_is_named(act, error, text):
    """By the argument or call, with what was given."""
    with pytest.raises(error, match=text):
        act()

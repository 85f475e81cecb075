"""Frames of a made-up run, compared as text with files that a person has checked.

To check them again after a change: ``R8_WRITE_FRAMES=1 pytest tests/dashboard/render/test_pages.py``, then
``git diff``.
"""

import copy
import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import pytest

from learnit_r8 import SampleTable, events
from learnit_r8.dashboard.render.samples import loss_histogram
from learnit_r8.dashboard.state.view import View
from learnit_r8.dashboard.theme import choose_theme
from learnit_r8.events import SamplesSurveyed
from learnit_r8.table.losses import EXACT
from learnit_r8.table.survey import Surveyor
from tests.drive import observe
from tests.screen_common import SCENE, fake_view, screen

FOLDER = Path(__file__).parent / "screens"
ASCII = choose_theme({"TERM": "vt100"}, encoding="ascii")
CONSOLE = choose_theme({"TERM": "linux"}, encoding="utf-8")

FRAMES = {
    "overview-20x5": (20, 5, {}),
    "overview-40x12": (40, 12, {}),
    "overview-80x24": (80, 24, {}),
    "overview-120x40": (120, 40, {}),
    "overview-200x60": (200, 60, {}),
    "overview-80x24-log-ascii": (80, 24, {"log_scale": True, "theme": ASCII}),
    "overview-80x24-console": (80, 24, {"theme": CONSOLE}),
    "overview-80x24-last-epoch": (80, 24, {"zoom": "last epoch"}),
    "data-100x30": (100, 30, {"view": "data"}),
    "samples-100x20": (100, 20, {"view": "samples", "selected": 3}),
    "suspects-100x20": (100, 20, {"view": "samples", "listed": "suspects"}),
    "events-100x20": (100, 20, {"view": "events", "scroll": 4}),
    "output-80x12": (80, 12, {"view": "output", "scroll": 5}),
    "config-80x20": (80, 20, {"view": "config"}),
    "metrics-120x40": (120, 40, {"view": "metrics"}),
    "metrics-60x16": (60, 16, {"view": "metrics", "theme": ASCII}),
    "incidents-80x24": (80, 24, {"view": "incidents"}),
    "events-opened-60x16": (60, 16, {"view": "events", "opened": True}),
    "help-60x16": (60, 16, {"help": True, "help_scroll": 9}),
    "help-100x30": (100, 30, {"help": True}),
    "leave-80x24": (80, 24, {"menu": True, "frozen": True}),
    "filter-80x12": (80, 12, {"view": "events", "typing": "check"}),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frame_equals_the_stored_one(name):
    """A frame of the made-up run equals the file with its name."""
    width, height, how = FRAMES[name]
    frame = "".join(line + "\n" for line in screen(fake_view(), width, height, **how))
    path = FOLDER / f"{name}.txt"
    if os.environ.get("R8_WRITE_FRAMES"):
        path.write_text(frame, encoding="utf-8")

    assert frame == path.read_text(encoding="utf-8")


def test_ascii_frame_is_ascii():
    """With an encoding that is not UTF-8, or R8_GLYPHS=ascii, a frame has no other characters."""
    for how in ({}, {"view": "data"}, {"view": "samples"}, {"view": "events"}, {"help": True}, {"menu": True}):
        assert "\n".join(screen(fake_view(), 120, 40, theme=ASCII, **how)).isascii()


def test_numbers_are_those_of_the_survey():
    """The table of quartiles shows the survey's numbers, to the digits it has room for."""
    view = fake_view()
    rows = [line for line in screen(view, 80, 24, view="data") if line.startswith(" Q")]

    assert [float(row.split()[1]) for row in rows] == pytest.approx(view.survey.low, abs=5e-5)
    assert [float(row.split()[2]) for row in rows] == pytest.approx(view.survey.high, abs=5e-5)
    assert [float(row.split()[3]) for row in rows] == pytest.approx(view.survey.mean, abs=5e-5)


def test_unread_output_is_counted_in_the_footer():
    """The footer counts the captured lines since the output view was last open."""
    assert f"output({SCENE.num_unread})" in screen(fake_view(), 120, 30)[-1]


def labelled():
    """The made-up run, with labels given and suggested for its suspects."""
    view = View()
    survey = fake_view().survey
    given = tuple("cat" for _ in survey.suspects)
    suggested = ("dog", "cat", "", *("dog" for _ in survey.suspects[3:]))
    labels = {"suspect_given": given, "suspect_suggested": suggested}
    view.fold(dataclasses.replace(survey, **labels))
    return view


def test_suspects_show_the_label_they_should_have():
    """The list of suspects says which label was given and which is suggested, where one is and is another."""
    rows = screen(labelled(), 110, 20, view="samples", listed="suspects")[3:6]
    plain = screen(fake_view(), 110, 20, view="samples", listed="suspects")[3:6]

    assert [row.endswith(end) for row, end in zip(rows, ("cat -> dog", "cat", "cat"), strict=True)] == [True] * 3
    assert "->" not in rows[1] + rows[2]
    assert not any("cat" in row for row in plain)


@pytest.mark.parametrize(("low", "high"), [(1e-9, 5e-9), (1e9, 5e9), (-5.0, -1.0)])
def test_histories_of_any_size_are_seen(low, high):
    """The history of a sample is a curve, also where losses are tiny, huge or below zero."""
    table = SampleTable(8, batch_size=4)
    table.storage.part_size = EXACT
    observe(table, high, high)
    surveyor = Surveyor(table)
    for end in np.linspace(high, low, 6):
        table.learner.learn(np.arange(8), np.full(8, end), None, np.full(8, table.trend))
        fields = surveyor.survey(0.0, epoch=0, epoch_ended=True)
    view = copy.deepcopy(fake_view())
    view.fold(SamplesSurveyed(view.step, view.seconds, **fields))
    row = next(line for line in screen(view, 100, 20, view="samples") if line.strip().startswith("0 "))

    assert len(set(re.findall("[▁▂▃▄▅▆▇█]", row))) >= 3


def test_ends_of_a_narrow_histogram_stay_apart():
    """Where the two ends do not fit beside each other, only the last is shown: run together they are no number."""
    view = copy.deepcopy(fake_view())
    view.fold(dataclasses.replace(view.survey, loss_range=(0.000123, 123456.0)))
    for width in range(8, 30):
        last = "".join(span.text for span in loss_histogram(view, width, 6, ASCII)[-1])
        assert re.fullmatch(r" *(\S+ +)?\S+ *", last)
        assert len(last) <= width


def test_balance_over_groups_is_said():
    """With groups a batch is balanced over them first, so its quarters differ: the panel says so."""
    view = copy.deepcopy(fake_view())
    without = "\n".join(screen(view, 120, 40, view="data"))
    view.fold(events.GroupsMeasured(view.step, view.seconds, 12, "exact", ("a", "b"), (9, 9), (1.0, 2.0), 2))

    assert "batches: groups first, then losses" in "\n".join(screen(view, 120, 40, view="data"))
    assert "groups first" not in without


def test_where_nothing_is_suspect_it_says_why():
    """The reason stands in place of the list."""
    view = View()
    view.fold(dataclasses.replace(fake_view().survey, suspects=(), no_suspects="they were seen once"))

    assert "they were seen once" in "\n".join(screen(view, 100, 24, view="samples", listed="suspects"))

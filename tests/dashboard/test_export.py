import csv
import dataclasses
import io
from pathlib import Path

import pytest

from learnit_r8 import events
from learnit_r8.dashboard.export import export_csv, write_csv
from learnit_r8.dashboard.state.ui_state import Scene, UiState
from learnit_r8.dashboard.state.view import View
from tests.screen_common import fake_view

STARTED = events.RunStarted(
    0, 0.0, "digits", 1000, 32, 32, 320, None, "balanced", settings={"name": "=HYPERLINK()", "policy": "a\x1b[2Jb"}
)


def view_of(*happened):
    view = View()
    for event in (STARTED, *happened):
        view.fold(event)
    return view


def rows_of(folder, view, panel, scene=Scene()):
    with open(export_csv(view, UiState(view=panel), scene, folder), newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_losses_are_exported(tmp_path):
    """The overview's numbers are the whole curve that is drawn."""
    step = events.StepDone(1, 0.5, 0, 1 / 320, 2.25, 2.0, 0.01, 32, False)
    header, row = rows_of(tmp_path, view_of(step), "overview")

    assert dict(zip(header, row, strict=True))["mean"] == "2.25"


def test_output_is_exported(tmp_path):
    """The output view exports the captured lines that are kept, cleaned, with their numbers."""
    scene = Scene(output=["=1+1", "epoch\x1b[31m 2"], num_output=1002)

    assert rows_of(tmp_path, view_of(), "output", scene) == [["line", "text"], ["1001", "'=1+1"], ["1002", "epoch 2"]]


@pytest.mark.parametrize("panel", ["overview", "data", "samples", "events", "output", "config"])
def test_every_panel_can_be_exported_empty(tmp_path, panel):
    """An export of an empty view has its header."""
    assert rows_of(tmp_path, View(), panel)[0]


def test_text_of_the_run_is_no_formula(tmp_path):
    """Names and messages of the run reach a spreadsheet as text, without control characters."""
    rows = dict(rows_of(tmp_path, view_of(), "config")[1:])

    assert rows["name"] == "'=HYPERLINK()"
    assert rows["policy"] == "ab"


def test_csv_cells_are_safe():
    """Texts that a spreadsheet would take for formulas are quoted; numbers stay numbers, nothing stays empty."""
    stream = io.StringIO()
    write_csv(stream, ["a"], [["=1"], ["+1"], ["-1"], ["@x"], ["\tx"], [-1.5], [None], ["x"]])

    assert [row[0] if row else "" for row in csv.reader(io.StringIO(stream.getvalue()))][1:] == [
        "'=1", "'+1", "'-1", "'@x", "'\tx", "-1.5", "", "x",
    ]  # fmt: skip


def test_marked_samples_are_exported(tmp_path):
    """On the samples page x writes the marked samples, with their labels; those that left the lists by name alone."""
    survey = fake_view().survey
    first = survey.suspects[0]
    view = View()
    view.fold(dataclasses.replace(survey, suspect_given=("=cat",), suspect_suggested=("dog",), suspect_votes=(3,)))
    ui = UiState(view="samples", marked=((first, "a.png"), (10**6, "gone.png")))
    path = export_csv(view, ui, Scene(), tmp_path)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    assert Path(path).name.startswith("marked-")
    assert [row["index"] for row in rows] == [str(first), str(10**6)]
    assert (rows[0]["name"], rows[0]["given_label"], rows[0]["predicted_label"]) == ("a.png", "'=cat", "dog")
    assert float(rows[0]["loss"]) > 0
    assert rows[1]["name"] == "gone.png"
    assert rows[1]["given_label"] == rows[1]["loss"] == ""
    assert Path(export_csv(view, UiState(view="samples"), Scene(), tmp_path)).name.startswith("samples-")

"""Loggers that write files."""

import csv
import json

import pytest

from learnit_r8 import R8Scheduler, events
from learnit_r8.events.codec import from_fields
from learnit_r8.loggers import CsvFile, JsonLines
from tests.dashboard.state.told import start, steps


def told(logger, *happened):
    for event in happened:
        logger(event)
    logger.close()


def logged(step, **metrics):
    return events.MetricsLogged(step, float(step), step, metrics)


def test_json_lines_hold_every_event(tmp_path):
    """Every line is an event as the package reads it back."""
    path = tmp_path / "log" / "run.jsonl"
    with R8Scheduler(100, batch_size=10, num_epochs=2, listeners=[JsonLines(path)]) as r8:
        for _ in r8.epoch_iterator():
            for _, _ in r8.batch_iterator():
                r8.update_with_loss(1.0)
            r8.log(accuracy=0.5)
    read = [from_fields(json.loads(line)) for line in path.read_text().splitlines()]

    assert type(read[0]) is events.RunStarted
    assert read[-1] == events.RunEnded(20, read[-1].seconds, True)
    assert [event.metrics for event in read if isinstance(event, events.MetricsLogged)] == [{"accuracy": 0.5}] * 2


def test_csv_has_a_row_for_every_number(tmp_path):
    """A number is a row of step, seconds, name and value; names are no formulas, and NaN is no row."""
    path = tmp_path / "run.csv"
    told(CsvFile(path), start(), steps(5, 2.0, loss=0.5), logged(7, accuracy=0.25, broken=float("nan"), **{"=x": 1.0}))
    rows = list(csv.reader(path.read_text().splitlines()))

    assert rows[0] == ["step", "seconds", "name", "value"]
    assert ["5", "2", "r8/loss", "0.5"] in rows
    assert ["7", "7", "accuracy", "0.25"] in rows
    assert [row[2] for row in rows[-2:]] == ["accuracy", "'=x"]


@pytest.mark.parametrize("kind", [JsonLines, CsvFile])
def test_resumed_run_writes_no_step_twice(kind, tmp_path):
    """A run that goes on from step 10 removes what was written after it, and appends; a line cut short goes too."""
    path = tmp_path / "run.log"
    told(kind(path), start(), logged(10, a=1.0), logged(20, a=2.0))
    with open(path, "a") as file:
        file.write('{"kind": "Metr')
    told(kind(path), start(step=10, seconds=10.0), logged(20, a=3.0))
    text = path.read_text()

    assert "Metr\n" not in text
    assert text.count("1.0" if kind is JsonLines else ",a,1\n") >= 1
    assert "2.0" not in text
    assert ",a,2" not in text
    assert text.count("3.0" if kind is JsonLines else ",a,3") == 1
    assert text.startswith("step,") == (kind is CsvFile)


def test_run_begun_anew_keeps_the_old_file(tmp_path):
    """A second run from step 0 moves the file of the first aside: nothing is overwritten."""
    path = tmp_path / "run.csv"
    for value in (1.0, 2.0, 3.0):
        told(CsvFile(path), start(), logged(1, a=value))

    assert sorted(each.name for each in tmp_path.iterdir()) == ["run-2.csv", "run-3.csv", "run.csv"]
    assert [(tmp_path / name).read_text()[-2:-1] for name in ("run-2.csv", "run-3.csv", "run.csv")] == ["1", "2", "3"]


def test_folder_is_refused(tmp_path):
    """A folder in place of a file is refused when the logger is made."""
    with pytest.raises(ValueError, match="path must be a file, got the folder"):
        CsvFile(tmp_path)

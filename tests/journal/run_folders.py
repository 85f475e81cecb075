"""Run folders made by hand."""

import json

from learnit_r8 import events
from learnit_r8.dashboard.watch import look
from learnit_r8.events.codec import to_json
from learnit_r8.journal.run import this_process
from tests.events.any_events import refuse_constant

STARTED = events.RunStarted(0, 0.0, "it", 100, 10, 10, 1000, None, "balanced")


def steps(number, progress=0.5):
    return events.StepsDone(number, number / 10, 5, 0, progress, 1.0, 0.5, 2.0, 1.0, 1.0, 0.1, 50, 0)


def line(event, when=1000.0):
    return to_json(event)[:-1] + f', "time": {when}}}\n'


def folder_with(tmp_path, *happened, when=1000.0, process=None, text=""):
    """A run folder with these events and this text after them."""
    tmp_path.mkdir(exist_ok=True)
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write("".join(line(event, when) for event in happened) + text)
    session = this_process() if process is None else process
    (tmp_path / "run.json").write_text(json.dumps({"name": "it", "sessions": [session]}))
    return tmp_path


def read(run):
    return [record.event.step for record in run.records()]


def state_at(folder, now=None):
    """Word and detail of the state of a run at a wall time."""
    return look(folder, now=now).state[:2]


def hundred():
    return [steps(number) for number in range(10, 1001, 10)]


def lines_of(folder):
    lines = (folder / "events.jsonl").read_text().split("\n")[:-1]
    return [json.loads(line, parse_constant=refuse_constant) for line in lines if line]


def kinds_of(folder):
    return [line["kind"] for line in lines_of(folder)]

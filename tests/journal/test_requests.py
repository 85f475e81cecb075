import json
import os
import stat
import time
from pathlib import Path

import pytest

from learnit_r8 import R8Scheduler, cli, events
from learnit_r8.journal import requests as requests_module
from learnit_r8.journal.requests import FOLDER, KINDS, MOST_BYTES, RequestFolder, ask
from learnit_r8.journal.run import write_about
from learnit_r8.schedules.span import Span
from tests.cli.commands import GONE
from tests.journal.run_folders import STARTED, folder_with


class Heard(list):
    """Takes requests, and remembers them."""

    def stop(self, reason=""):
        self.append(("stop", reason))

    def save(self):
        self.append(("save",))

    def pause(self, reason=""):
        self.append(("pause", reason))

    def resume(self):
        self.append(("unpause",))

    def cool_down(self, span, source=""):
        self.append(("cool-down", span, source))

    def refuse(self, text):
        self.append(("refused", text))


@pytest.fixture
def folder(tmp_path):
    """The folder of a run of this process."""
    write_about(tmp_path, name="it", configuration={}, wall=time.time())
    return tmp_path


@pytest.fixture
def looked(folder):
    heard = Heard()
    return RequestFolder(folder, heard), heard


def test_every_kind_is_asked_for(folder, looked):
    """Requests are carried out in the order in which they were made, and their files disappear."""
    reader, heard = looked
    ask(folder, "cool-down", length="20min")
    for kind in KINDS[1:]:
        ask(folder, kind)
    ask(folder, "cool-down")
    reader.look()

    by = "by learnit-r8 ask"
    assert heard == [
        ("cool-down", Span("seconds", 1200), by),
        ("pause", by),
        ("unpause",),
        ("save",),
        ("stop", by),
        ("cool-down", None, by),
    ]
    assert os.listdir(folder / FOLDER) == []


def test_request_counts_once_in_a_folder_that_is_read_only(folder, looked, monkeypatch):
    """Where the file cannot be deleted, the request is not carried out again each second."""
    reader, heard = looked
    path = ask(folder, "save")
    monkeypatch.setattr(requests_module.os, "unlink", lambda path: (_ for _ in ()).throw(PermissionError(path)))
    reader.look()
    reader.look()

    assert (heard, path.exists()) == ([("save",)], True)


def test_request_to_an_earlier_process_is_dropped(folder, looked):
    """A file names the process it is meant for: one that came too late reaches no later run in the folder."""
    ask(folder, "stop")
    write_about(folder, name="it", configuration={}, wall=time.time() + 5)
    heard = Heard()
    RequestFolder(folder, heard).look()

    assert heard == []
    assert os.listdir(folder / FOLDER) == []


def test_request_of_another_run_is_dropped(folder, looked, tmp_path_factory):
    """A file that was copied from the folder of another run asks for nothing here."""
    reader, heard = looked
    path = ask(folder, "stop")
    path.write_text(path.read_text().replace(f'"run": "{folder.name}"', '"run": "other"'))
    reader.look()

    assert heard == []


def test_nobody_to_ask_is_an_error(tmp_path):
    """A request to a run whose process is gone is refused before anything is written."""
    gone = folder_with(tmp_path / "gone", STARTED, process=GONE)
    with pytest.raises(ValueError, match=r"no process trains in .* any more, so nothing would read the request"):
        ask(gone, "stop")

    assert not (gone / FOLDER).exists()


@pytest.mark.parametrize(
    ("kind", "given", "text"),
    [
        ("stop", {"length": "5min"}, "a length or a time is for a cool-down only"),
        ("cool-down", {"length": "soon"}, "the length must be a number of steps >= 1"),
        ("cool-down", {"until": "2020-01-01 00:00"}, "until must be in the future"),
        ("cool-down", {"until": "2120-01-01 00:00", "length": "5"}, "at most one of a length and a time"),
    ],
)
def test_requests_that_make_no_sense_are_refused(folder, kind, given, text):
    """The asker is told at once, and no file is written."""
    with pytest.raises(ValueError, match=text):
        ask(folder, kind, **given)

    assert not (folder / FOLDER).exists()


def damaged(kind):
    def write(path):
        content = json.loads(path.read_text())
        if kind == "link":
            target = path.parent.parent / "target.json"
            path.rename(target)
            path.symlink_to(target)
        elif kind == "fifo":
            path.unlink()
            os.mkfifo(path)
        elif kind == "folder":
            path.unlink()
            path.mkdir()
        elif kind == "large":
            path.write_text(json.dumps({**content, "more": "x" * MOST_BYTES}))
        elif kind == "deep":
            path.write_text("[" * 4000)
        elif kind == "half":
            path.write_text(path.read_text()[:20])
        else:
            path.write_text(json.dumps({**content, **kind}))

    return write


@pytest.mark.parametrize(
    "kind",
    [
        "link", "fifo", "folder", "large", "half", {"format": 2}, {"ask": "rm -rf"}, {"span": ["seconds", -5]},
        {"span": ["steps", 1e400]}, {"span": ["share", 0.5]}, {"span": "long"}, {"span": ["until", "now"]}, {"span": 5},
        {"span": ["until", 1e308]}, {"span": ["epochs", 1e308]}, {"span": ["steps", True]}, {"span": ["steps", 0.5]},
        {"span": ["steps", 10**400]}, {"span": {"steps": 1, "5": 2}}, "deep",
    ],
    ids=str,
)  # fmt: skip
def test_files_that_are_no_requests_are_left_out(folder, looked, kind):
    """Links, pipes, large and damaged files: each is named, none is followed, and the next one still counts."""
    reader, heard = looked
    damaged(kind)(ask(folder, "cool-down", length="5"))
    ask(folder, "save")
    reader.look()

    assert [each[0] for each in heard] == ["refused", "save"]
    assert "is ignored: " in heard[0][1]


def test_file_of_another_user_is_left_out(folder, looked, monkeypatch):
    """Only the user who trains may ask."""
    reader, heard = looked
    path = ask(folder, "stop")
    monkeypatch.setattr(requests_module.os, "getuid", lambda: path.stat().st_uid + 1)
    reader.look()

    assert "it must belong to the user who trains" in heard[0][1]


def test_files_are_readable_by_their_owner_only(folder):
    """The folder of requests belongs to one user."""
    ask(folder, "save")

    assert stat.S_IMODE((folder / FOLDER).stat().st_mode) == 0o700


def test_folder_that_cannot_be_written_is_an_error(folder, monkeypatch, capsys):
    """Who asks in a read-only run folder is told, by the exit code too; the run is not touched."""

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied", str(folder / FOLDER))

    (folder / "events.jsonl").write_text("")
    monkeypatch.setattr(Path, "mkdir", refused)

    assert cli.main(["ask", str(folder), "stop"]) == 1
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("is_read", [True, False])
def test_answer_as_json(folder, looked, monkeypatch, capsys, is_read):
    """With --json, who asks is told in JSON whether the run has read the request."""
    (folder / "events.jsonl").write_text("")
    monkeypatch.setattr("learnit_r8.cli.runs.WAIT_SECONDS", 0.1)
    monkeypatch.setattr("learnit_r8.cli.runs.time.sleep", lambda _: looked[0].look() if is_read else None)

    assert cli.main(["ask", str(folder), "save", "--json"]) == (0 if is_read else 3)
    assert json.loads(capsys.readouterr().out) == {"request": "save", "is_read": is_read}


@pytest.mark.parametrize(
    ("length", "said"),
    [
        ("20", "cool-down over 20 steps (a time needs a unit, as in --for 20min): the run has read it"),
        ("20min", "cool-down over 1200 seconds: the run has read it"),
    ],
)
def test_a_length_is_answered_with_its_unit(folder, looked, monkeypatch, capsys, length, said):
    (folder / "events.jsonl").write_text("")
    monkeypatch.setattr("learnit_r8.cli.runs.time.sleep", lambda _: looked[0].look())

    assert cli.main(["ask", str(folder), "cool-down", "--for", length]) == 0
    assert said in capsys.readouterr().out


def wait_for(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def test_running_training_is_cooled_down_from_outside(tmp_path):
    """A request reaches the training within about a second, and the run ends as it was asked to."""
    heard = []
    r8 = R8Scheduler(40, batch_size=4, scheduler_mode="wsd", run_dir=tmp_path / "run", listeners=[heard.append])
    asked_at = None
    for _ in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            time.sleep(0.002)
            r8.update_with_loss(1.0)
            if r8.global_step == 20:
                ask(tmp_path / "run", "cool-down", length="30 steps")
                asked_at = time.monotonic()
            assert asked_at is None or time.monotonic() < asked_at + 20
    r8.close()
    [begun] = [event for event in heard if isinstance(event, events.CoolDownBegan)]

    assert r8.global_step == begun.total_steps == begun.step + 30
    assert begun.reason == "by learnit-r8 ask"


def test_request_that_cannot_be_met_is_told(tmp_path):
    """A cool-down longer than what is left is left out, with a notice; the run goes on as planned."""
    heard = []
    r8 = R8Scheduler(40, batch_size=4, num_steps=4000, run_dir=tmp_path / "run", listeners=[heard.append])
    for _ in r8.epoch_iterator():
        for _ in r8.batch_iterator():
            r8.update_with_loss(1.0)
            if r8.global_step == 20:
                path = ask(tmp_path / "run", "cool-down", length="9000 steps")
                assert wait_for(lambda path=path: not path.exists())
    r8.close()
    texts = [event.text for event in heard if isinstance(event, events.Notice)]

    assert r8.global_step == 4000
    assert any("is ignored: a cool-down must not be longer than what is left" in text for text in texts)

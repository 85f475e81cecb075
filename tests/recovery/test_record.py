"""The record of an incident: what it holds, how many there are, and what is no record."""

import json
import math
import shutil
import subprocess
import sys
import time
import warnings
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from learnit_r8 import R8Scheduler, TrainingDiverged, events
from learnit_r8.engine.settings import grouped
from learnit_r8.events.bus import Announcer
from learnit_r8.recovery import record as recorder_module
from learnit_r8.recovery.record import BadRecord, FlightRecorder, numbers_in, read_part, read_record
from learnit_r8.state import durable_io
from learnit_r8.state.tree import leaves
from learnit_r8.testing import FaultPlan, ToyTask, record_events

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def train(steps, *, faults, **settings):
    task = ToyTask()
    ids = [f"img/{number}.png" for number in range(2048)]
    r8 = R8Scheduler(
        2048, batch_size=32, num_steps=steps, initial_lr=0.05, state_callback=task.state, load_callback=task.load,
        sample_ids=ids, **grouped(settings),
    )  # fmt: skip
    with r8:
        for _ in r8.epoch_iterator():
            for indices, lr in r8.batch_iterator():
                loss = faults.loss(r8.global_step, task.losses(indices).mean())
                if r8.update_with_loss(loss):
                    task.step(faults.rate(r8.global_step, lr))
    return r8


def size(weights):
    """The largest absolute value of a state."""
    return max(float(np.abs(each).max()) for _, each in leaves(weights))


def test_every_incident_leaves_a_record(tmp_path):
    """A refused batch and damaged weights: two records, with what the guard saw, the samples and what was done."""
    train(300, faults=FaultPlan(nan=[100], lr=[200], lr_by=1e4), run_dir=tmp_path / "run")

    first, second = (read_record(tmp_path / "run" / "incidents" / str(number)) for number in (1, 2))
    assert numbers_in(tmp_path / "run") == [1, 2]
    assert (first["step"], first["state"], second["state"]) == (101, "over", "over")
    said = "or a transient fault (not tested), not the weights: the next one was good."
    assert first["diagnosis"] == f"the refused batch was to blame, {said}"
    refusal = first["refusals"][0]
    assert refusal["loss"] == "nan"
    assert refusal["verdict"] == "not finite"
    assert len(refusal["samples"]) == 32
    assert refusal["names"][0] == f"img/{refusal['samples'][0]}.png"
    assert len(refusal["losses_before"]) > 30
    assert refusal["guard"]["threshold"] > 0
    assert {"Probed", "RolledBack", "IncidentEnded"} <= {each["kind"] for each in second["timeline"]}
    assert first["versions"].keys() >= {"python", "numpy", "learnit_r8"}


def test_records_are_beside_the_checkpoints_where_there_is_no_run_folder(tmp_path):
    """And continue in the same folder as the run is resumed; without any folder there is none."""
    for _ in range(2):
        train(120, faults=FaultPlan(nan=[100]), checkpoint_dir=tmp_path / "saved")

    assert numbers_in(tmp_path / "saved") == [1, 2]


def test_the_folder_of_a_run_is_not_that_of_an_incident(tmp_path):
    """Who gives it is told which to give."""
    (tmp_path / "incidents" / "2").mkdir(parents=True)

    with pytest.raises(BadRecord, match=r"without incident.json; give one of its incidents, as .*incidents.2\.$"):
        read_record(tmp_path)
    with pytest.raises(BadRecord, match=r"got one without incident.json\.$"):
        read_record(tmp_path / "incidents" / "2")


class Broken(FaultPlan):
    """Losses that are never finite again, also where a batch is drawn again at the same step."""

    def loss(self, step, loss):
        return math.nan if step >= 100 else loss


def test_a_run_that_gives_up_leaves_a_record(tmp_path):
    """It is on the disk when the error is raised."""
    with pytest.raises(TrainingDiverged):
        train(900, faults=Broken(), run_dir=tmp_path)

    record = read_record(tmp_path / "incidents" / "1")
    assert record["state"] == "gave up"
    assert record["num_refused"] == len(record["refusals"]) > 10
    assert sum(each["kind"] == "Probed" for each in record["timeline"]) > 300


@pytest.mark.parametrize("bound", ["number", "bytes"])
def test_records_are_bounded(tmp_path, monkeypatch, bound):
    """The oldest go first, and the first of the run stays."""
    # A record of this batch takes some 80,000 bytes.
    monkeypatch.setattr(recorder_module, *{"number": ("MOST_RECORDS", 3), "bytes": ("MOST_BYTES", 300_000)}[bound])
    recorder = FlightRecorder("batch", tmp_path, "run")
    for step in range(6):
        recorder.note(step, 1.0, facts={"step": step}, finding=None, cause="", parts={"batch": np.zeros(10_000)})
        recorder(events.IncidentEnded(step, 1.0, "well"))
        recorder.close()

    assert numbers_in(tmp_path) == [1, 5, 6]


def test_large_parts_are_left_out_by_name(tmp_path, monkeypatch):
    """A batch with something that no file can hold, and states that are too large."""
    monkeypatch.setattr(recorder_module, "MOST_PART", 1000)
    recorder = FlightRecorder("all", tmp_path, "run")
    parts = {"batch": {"x": np.arange(5.0), "f": len}, "refused": {"w": np.zeros(1000)}}
    recorder.note(3, 1.0, facts={}, finding=None, cause="", parts=parts)
    recorder.close()

    home = tmp_path / "incidents" / "1"
    record = read_record(home)
    assert record["left_out"].keys() == {"batch.f", "refused"}
    assert read_part(home, "batch")["x"].tolist() == [0, 1, 2, 3, 4]
    assert read_part(home, "refused") is None


def test_an_open_record_is_written_when_it_has_changed(tmp_path, monkeypatch):
    """As it begins, with whatever changes it, and as it ends."""
    written = []
    replace = durable_io.replace
    monkeypatch.setattr(durable_io, "replace", lambda *given, **how: (written.append(given[0]), replace(*given)))
    recorder = FlightRecorder("names", tmp_path, "")

    def handle(*waiting):
        recorder.handle(deque(waiting), is_last=False)
        return len(written)

    noted = recorder_module.Noted(7, 0.0, {}, None, "")
    assert handle(noted) == 1
    assert [handle(noted, noted), handle()] == [2, 2]
    assert handle(events.IncidentEnded(9, 1.0, "well")) == 3
    assert read_record(tmp_path / "incidents" / "1")["num_refused"] == 3
    assert handle(noted) == 4


def test_the_restored_state_is_recorded_beside_the_refused_one(tmp_path):
    """With record="all", for a model of any framework: weights with which the training went on, in each incident."""
    heard = record_events()
    train(400, faults=FaultPlan(lr=[120, 300], lr_by=1e4), run_dir=tmp_path, record="all", listeners=[heard])

    restored = [each.step for each in heard.of(events.RolledBack)]
    assert len(restored) >= 2
    for number in numbers_in(tmp_path):
        home = tmp_path / "incidents" / str(number)
        weights = {name: read_part(home, name) for name in ("refused", "restored")}
        assert not read_record(home)["left_out"]
        assert size(weights["refused"]) > 2 * size(weights["restored"]) > 0


def test_a_state_that_cannot_be_copied_is_left_out_by_name(tmp_path):
    """And ends no training."""

    def fail():
        raise MemoryError("no room")

    recorder = FlightRecorder("all", tmp_path, "run", copy_state=fail)
    recorder.note(3, 1.0, facts={}, finding=None, cause="", parts={})
    recorder(events.RolledBack(4, 1.0, to_step=2, source="backup"))
    recorder.close()

    left = read_record(tmp_path / "incidents" / "1")["left_out"]
    assert left.keys() == {"refused", "restored"}
    assert "could not be copied (MemoryError: no room)" in left["restored"]


def test_a_process_that_is_killed_while_it_writes_a_batch_leaves_a_record(tmp_path, monkeypatch):
    """The sentence and the samples are on the disk before the large parts."""

    class Killed(BaseException):
        """Stands for a process that ends at once."""

    def kill(*_):
        raise Killed

    monkeypatch.setattr(recorder_module.codec, "write", kill)
    recorder = FlightRecorder("batch", tmp_path, "")
    noted = recorder_module.Noted(7, 0.0, {"samples": [1, 2]}, None, "seen", {"batch": np.zeros(3)})
    with pytest.raises(Killed):
        recorder.handle(deque([noted]), is_last=False)

    record = read_record(tmp_path / "incidents" / "1")
    assert (record["state"], record["cause"], record["files"]) == ("open", "seen", {})
    assert read_part(tmp_path / "incidents" / "1", "batch") is None


KILLED = """
import sys
from pathlib import Path
import numpy as np
from learnit_r8 import events
from learnit_r8.recovery.record import FlightRecorder
recorder, batch = FlightRecorder("batch", Path(sys.argv[1]), "run"), np.arange(2.0**20)
for step in range(400):
    recorder.note(step, 1.0, facts={"step": step}, finding=None, cause="seen", parts={"batch": batch})
    recorder(events.IncidentEnded(step, 1.0, "well"))
recorder.close()
"""


def test_kill_9_leaves_whole_records(tmp_path):
    """Those before are over and have their batch; the last one is there as a whole, or not yet."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    while len(numbers_in(tmp_path)) < 4:
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()

    *before, last = numbers_in(tmp_path)
    for number in before:
        home = tmp_path / "incidents" / str(number)
        assert read_record(home)["state"] == "over"
        assert read_part(home, "batch")[-1] == 2**20 - 1
    home = tmp_path / "incidents" / str(last)
    if (home / "incident.json").exists():
        assert (read_record(home)["cause"], read_part(home, "batch") is None) in [("seen", True), ("seen", False)]
    # Who goes on does not mind what is left of it.
    recorder = FlightRecorder("names", tmp_path, "run")
    recorder.note(3, 1.0, facts={}, finding=None, cause="", parts={})
    recorder.close()
    assert read_record(tmp_path / "incidents" / str(last + 1))["number"] == last + 1


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from learnit_r8 import events
from learnit_r8.recovery.record import FlightRecorder
recorder = FlightRecorder("all", Path(sys.argv[1]), "run", copy_state=lambda: {"w": np.zeros(10**5)})
for step, room in enumerate([10**7, 50_000, 100]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    recorder.note(step, 1.0, facts={}, finding=None, cause="", parts={})
    recorder(events.IncidentEnded(step, 1.0, "well"))
    recorder.close()
print(recorder.error)
"""


def test_without_room_the_record_says_what_is_left_out_and_earlier_ones_stay(tmp_path):
    """Room for the text alone, then for nothing; no half a file is left."""
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)

    homes = [tmp_path / "incidents" / str(number) for number in (1, 2, 3)]
    assert sorted(each.name for each in homes[0].iterdir()) == ["incident.json", "refused.r8"]
    assert [each.name for each in homes[1].iterdir()] == ["incident.json"]
    assert "File too large" in read_record(homes[1])["left_out"]["refused"]
    assert list(homes[2].iterdir()) == []
    assert "File too large" in done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a folder in which not even root may write")
def test_a_read_only_folder_is_an_error_that_the_recorder_keeps():
    """Nothing is raised; `error` says it, and the next event warns."""
    recorder = FlightRecorder("names", Path("/proc/self"), "run")
    recorder.note(3, 1.0, facts={}, finding=None, cause="", parts={})
    with pytest.warns(RuntimeWarning, match="record of an incident could not be written, and training goes on"):
        recorder(events.GaveUp(3, 1.0, "it"))
    assert recorder.error.partition(":")[0] in ("FileNotFoundError", "PermissionError", "OSError")


def test_a_folder_that_cannot_be_written_to_ends_no_training(tmp_path):
    """It is said once."""
    (tmp_path / "incidents").write_text("a file in the way")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        r8 = train(200, faults=FaultPlan(nan=[100, 150]), run_dir=tmp_path)

    assert r8.global_step == 200
    assert sum("record of an incident could not be written" in str(each.message) for each in said) == 1


def test_what_is_no_record_is_refused(tmp_path):
    """Of another version, forged, cut off, or nested without end."""
    recorder = FlightRecorder("batch", tmp_path, "run")
    recorder.note(3, 1.0, facts={}, finding=None, cause="", parts={"batch": [np.ones(3)]})
    recorder.close()
    good = tmp_path / "incidents" / "1"
    content = json.loads((good / "incident.json").read_text())
    for number, (name, value) in enumerate(
        [("format", 2), ("kind", "other"), ("refusals", [3]), ("files", {"../x": "a"}), ("step", "3"), ("finding", {})]
    ):
        bad = tmp_path / f"bad{number}"
        shutil.copytree(good, bad)
        (bad / "incident.json").write_text(json.dumps({**content, name: value}))
        with pytest.raises(BadRecord):
            read_record(bad)
    (good / "incident.json").write_text("[" * 100_000)
    with pytest.raises(BadRecord):
        read_record(good)
    (good / "incident.json").write_text(json.dumps(content))
    (good / "batch.r8").write_bytes((good / "batch.r8").read_bytes()[:-9])
    with pytest.raises(BadRecord, match="damaged"):
        read_part(good, "batch")


def test_a_recorder_does_not_have_steps_told():
    """Nothing is made for it while all is well."""
    announcer = Announcer([], lambda: (1, 1.0))
    announcer.add(FlightRecorder("names", None, ""))
    assert not announcer.is_heard

    announcer.add(heard := [].append)
    assert announcer.is_heard
    assert callable(heard)

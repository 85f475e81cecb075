"""Whole runs with a run folder: beside the training, resumed, killed, forked."""

import gc
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import learnit_r8
from learnit_r8 import events
from learnit_r8.journal.run import Run
from tests.drive import advance_to, make, steps, train
from tests.journal.run_folders import kinds_of, lines_of, state_at

ROOT = Path(__file__).parents[2]


def test_real_full_device_does_not_stop_a_run(tmp_path):
    """A run whose journal can grow no more, as on a full device, trains to its end."""
    resource = pytest.importorskip("resource")
    r8 = make(num_epochs=3, run_dir=tmp_path / "run")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(tmp_path / "run" / "events.jsonl"), before[1]))
    try:
        with pytest.warns(RuntimeWarning, match=r"cannot be written and may lack events: \[Errno 27\]"), r8:
            train(r8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert r8.global_step == 9


def test_journal_that_becomes_a_link_is_not_followed(tmp_path):
    """A journal in whose place somebody puts a link during the run is written no more; the training goes on."""
    r8 = make(num_epochs=3, run_dir=tmp_path / "run")
    (tmp_path / "run" / "events.jsonl").unlink()
    (tmp_path / "run" / "events.jsonl").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("mine")
    with pytest.warns(RuntimeWarning, match="may lack events: .* must be a regular file with one name"), r8:
        train(r8)

    assert r8.global_step == 9
    assert (tmp_path / "elsewhere").read_text() == "mine"


GONE = "cannot be written and may lack events: it was deleted or moved away during the run. The training goes on."


@pytest.mark.parametrize("what", ["run", "run/events.jsonl"])
@pytest.mark.parametrize("is_noticed_early", [False, True])
def test_deleted_folder_is_warned_of_once(tmp_path, what, is_noticed_early):
    """A run whose folder, or the journal in it, is deleted says so once, makes no other, and trains to its end."""
    r8 = make(num_epochs=3, run_dir=tmp_path / "run")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in steps(r8):
            if r8.global_step == 4:
                gone = tmp_path / what
                gone.rename(tmp_path / "elsewhere")
            if r8.global_step in (5, 7):
                r8.log(accuracy=1.0)
                if is_noticed_early:
                    r8._journal.write_due()
            r8.update_with_loss(1.0)
        r8.close()

    assert [str(warning.message) for warning in caught] == [f"the journal in {str(tmp_path / 'run')!r} {GONE}"]
    assert not gone.exists()
    assert r8.global_step == 9


def test_folder_of_a_running_process_is_refused(tmp_path):
    """Two processes do not write to one folder: the second is told so before it trains."""
    code = "import sys, time; from learnit_r8.journal.writer import Journal\nJournal(sys.argv[1]); print(1, flush=True)"
    command = [sys.executable, "-c", f"{code}; time.sleep(60)", str(tmp_path)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        other.stdout.readline()
        with pytest.raises(
            ValueError, match=rf"run_dir must be a folder that no running process .* process {other.pid}\."
        ):
            make(run_dir=tmp_path)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    make(run_dir=tmp_path).close()

    assert [session["pid"] for session in Run(tmp_path).about()["sessions"]] == [other.pid, os.getpid()]


KILLED = """
import sys, numpy as np
from learnit_r8 import R8Scheduler
r8 = R8Scheduler(200, batch_size=4, num_epochs=100000, run_dir=sys.argv[1])
for epoch in r8.epoch_iterator():
    for batch, lr in r8.batch_iterator():
        r8.update_with_loss(np.full(len(batch), 1.0))
        if r8.global_step == 2000:
            print("on its way", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_killed_writer_leaves_a_readable_run(tmp_path):
    """After kill -9 the folder can be read, says that the run died, and a new session goes on in it."""
    for session in (1, 2):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
        process.stdout.readline()
        while (tmp_path / "events.jsonl").read_text().count("RunStarted") < session:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    run = Run(tmp_path)
    kinds = [type(record.event).__name__ for record in run.records()]

    assert state_at(tmp_path)[0] == "died"
    assert kinds.count("RunStarted") == 2
    assert run.num_damaged <= 2


ENDING = """
import sys
from learnit_r8 import R8Scheduler
r8 = R8Scheduler(8, batch_size=4, num_epochs=1, run_dir=sys.argv[1])
"""


def test_unhandled_exception_is_recorded(tmp_path):
    """A program that ends by an exception is said to have died of it, with or without a with block."""
    for number, body in enumerate(["with r8:\n    r8.draw()\n    1 / 0", "r8.draw()\n1 / 0"]):
        assert state_after(body, tmp_path / str(number)) == ("died", "ZeroDivisionError: division by zero")


def state_after(body, folder):
    """What is read of a run whose program has ended with this."""
    subprocess.run([sys.executable, "-c", ENDING + body, str(folder)], cwd=ROOT, capture_output=True, check=False)
    return state_at(folder)


def test_program_that_just_ends_has_stopped(tmp_path):
    """A program that ends in good order without closing its run has stopped it; Ctrl-C is no fault either."""
    for number, body in enumerate(["r8.draw()", "with r8:\n    r8.draw()\n    raise KeyboardInterrupt"]):
        assert state_after(body, tmp_path / str(number)) == ("stopped", "")


def test_deleted_scheduler_writes_the_rest(tmp_path):
    """A scheduler that is deleted without close() leaves a stopped run and no thread."""
    r8 = make(run_dir=tmp_path)
    r8.draw()
    reference = r8._journal._thread
    del r8
    gc.collect()
    reference.join(5)

    assert not reference.is_alive()
    assert kinds_of(tmp_path)[-1] == "ProcessLeft"


def test_forked_child_writes_nothing(tmp_path):
    """A child forked off a training process leaves the journal alone."""
    r8 = make(run_dir=tmp_path)
    r8.draw()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if not child:
        r8.log(from_the_child=1.0)
        r8.close()
        os._exit(0)
    os.waitpid(child, 0)
    r8.log(from_the_parent=1.0)
    r8.close()

    assert [line["metrics"] for line in lines_of(tmp_path) if line["kind"] == "MetricsLogged"] == [
        {"from_the_parent": 1.0}
    ]
    assert kinds_of(tmp_path).count("RunEnded") == 1


def test_what_comes_after_the_end_is_written(tmp_path):
    """Metrics logged after close() are in the journal too."""
    r8 = make(run_dir=tmp_path)
    train(r8)
    r8.close()
    r8.log(test_accuracy=0.5)

    assert kinds_of(tmp_path)[-2:] == ["RunEnded", "MetricsLogged"]


def test_run_folder_of_a_run(tmp_path):
    """A run leaves run.json, its events, and the samples of its last epoch."""
    r8 = make(20, batch_size=4, num_epochs=2, run_dir=tmp_path / "a" / "b", name="it", seed=7)
    assert r8.run_dir == tmp_path / "a" / "b"
    train(r8)
    r8.close()
    run = Run(r8.run_dir)
    kinds = [type(record.event) for record in run.records()]

    assert run.name == "it"
    assert run.about()["configuration"]["seed"] == "7"
    assert run.about()["versions"]["numpy"] == np.__version__
    assert run.about()["versions"]["learnit_r8"] == learnit_r8.__version__
    assert (kinds[0], kinds[-1]) == (events.RunStarted, events.RunEnded)
    assert state_at(r8.run_dir) == ("finished", "")
    assert (r8.run_dir / "samples-000001.safetensors").is_file()


def test_resumed_run_goes_on_in_its_folder(tmp_path):
    """A run that goes on from a checkpoint writes on in its folder: two sessions, one course, one end."""

    def build():
        return make(20, batch_size=4, num_epochs=4, run_dir=tmp_path / "run", checkpoint_dir=tmp_path / "saved")

    first = build()
    advance_to(first, 10)
    first.save_checkpoint()
    first._journal.close()
    second = build()
    second.load_checkpoint()
    train(second)
    second.close()
    run = Run(tmp_path / "run")
    heard = [record.event for record in run.records()]

    assert [event.step for event in heard if isinstance(event, events.RunStarted)] == [0, 10]
    assert sum(event.num_steps for event in heard if isinstance(event, events.StepsDone)) == 20
    assert state_at(tmp_path / "run") == ("finished", "")
    assert len(run.about()["sessions"]) == 2

"""The journal: what is written, at what cost, and what it never does to a run."""

import errno
import gc
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import learnit_r8
from learnit_r8 import events
from learnit_r8.events.condenser import steps_of
from learnit_r8.journal import Journal, Run, find_run, writer
from learnit_r8.journal.factory import open_journal
from learnit_r8.journal.reader import _is_sane
from learnit_r8.journal.run_info import is_gone, this_process
from learnit_r8.journal.samples import sample_epochs, samples_of
from learnit_r8.journal.summary import MOST_OF_A_KIND, STEPS_AT_FIRST, STEPS_PER_SECOND, Summary
from tests.drive import NAN, FakeClock, advance_to, make, sample_losses, steps, train
from tests.events.test_events import any_event, refuse_constant

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with no word on where runs go."""
    monkeypatch.delenv("R8_RUNS")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def step(number, loss=1.0, *, seconds=None, expected=NAN):
    return events.StepDone(
        number, number * 0.01 if seconds is None else seconds, 0, 0.5, loss, expected, 0.1, 32, number % 2 == 0
    )


def journal(folder, clock=None, **more):
    """A journal that writes when it is told to."""
    clock = clock or FakeClock()
    return Journal(folder, clock=clock, wall=lambda: 1000 + clock.now, in_background=False, **more)


def lines_of(folder):
    lines = (folder / "events.jsonl").read_text().split("\n")[:-1]
    return [json.loads(line, parse_constant=refuse_constant) for line in lines if line]


def kinds_of(folder):
    return [line["kind"] for line in lines_of(folder)]


def told(folder):
    """The events in a journal, as they are read back."""
    return [record.event for record in Run(folder).records()]


SPECIAL = (events.StepDone, events.StepsDone, events.RunStarted, events.SamplesSurveyed, events.RunEnded)


@given(st.lists(any_event().filter(lambda event: not isinstance(event, SPECIAL)), max_size=8))
def test_events_survive_the_journal(tmp_path_factory, happened):
    """Events other than steps come back from the folder, equal and in order."""
    folder = tmp_path_factory.mktemp("run")
    kept = [event for event in happened if _is_sane(event)]
    written = journal(folder)
    for event in kept:
        written.listener(event)
    written.close()
    back = told(folder)

    assert [type(event) for event in back] == [*map(type, kept), events.ProcessLeft]
    np.testing.assert_equal([vars(event) for event in back[:-1]], [vars(event) for event in kept])


def test_lines_are_strict_json_with_a_header_and_a_time(tmp_path):
    """The first line names the schema, and every line is strict JSON with the wall time."""
    clock = FakeClock()
    written = journal(tmp_path, clock)
    written.listener(events.BackupTaken(3, 1.5))
    clock.advance(2.0)
    written.listener(events.MetricsLogged(3, 1.5, 3, {"a": NAN}))
    written.write_due()

    assert lines_of(tmp_path) == [
        {"kind": "Journal", "schema": 1, "time": 1000.0},
        {"kind": "BackupTaken", "step": 3, "seconds": 1.5, "time": 1002.0},
        {"kind": "MetricsLogged", "step": 3, "seconds": 1.5, "at_step": 3, "metrics": {"a": "nan"}, "time": 1002.0},
    ]


def test_steps_are_summed_up(tmp_path):
    """A thousand steps in a quarter of a second become one record that keeps their extremes."""
    written = journal(tmp_path)
    for number in range(1, 1001):
        written.listener(step(number, 9.0 if number == 500 else 1.0, seconds=0.0))
    written.listener(events.RunEnded(1000, 0.2, False))
    first, rest = [event for event in told(tmp_path) if isinstance(event, events.StepsDone)]

    assert first.num_steps == 1
    assert (rest.step, rest.num_steps, rest.lowest, rest.highest, rest.last_loss) == (1000, 999, 1.0, 9.0, 1.0)
    assert rest.loss == pytest.approx(1 + 8 / 999)
    assert (rest.samples, rest.num_steady) == (999 * 32, 500)


@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(0, 30), st.booleans()), min_size=1, max_size=30))
def test_records_of_steps_are_limited_and_complete(windows):
    """Whatever comes when: steps are never lost, and their records stay within the limit."""
    clock, summary, kept, num_steps = 0.0, Summary(0.0), [], 0
    summary._steps_left = 3.0
    for passed, count, with_event in windows:
        clock += passed
        happened = [steps_of(step(num_steps + i + 1)) for i in range(count)]
        num_steps += count
        if with_event:
            happened.insert(count // 2, events.BackupTaken(num_steps, 0.0))
        kept += summary.take(happened, clock)
    kept += summary.rest()
    records = [event for event in kept if isinstance(event, events.StepsDone)]

    assert sum(record.num_steps for record in records) == num_steps
    assert len(records) <= 3 + STEPS_PER_SECOND * clock + 2
    assert [record.step for record in records] == sorted(record.step for record in records)


def test_order_is_kept_while_the_limits_allow_it():
    """Steps before an event are written before it, those after it after it."""
    happened = [steps_of(step(1)), events.BackupTaken(1, 0.0), steps_of(step(2)), events.BackupTaken(2, 0.0)]

    assert [event.step for event in Summary(0.0).take(happened, 0.0)] == [1, 1, 2, 2]
    assert STEPS_AT_FIRST >= 1000


def test_flood_of_one_kind_is_cut_with_a_notice():
    """A loop that logs at every step leaves a part out, and the journal says so."""
    happened = [events.MetricsLogged(number, 0.0, number, {"a": 1.0}) for number in range(500)]
    kept = Summary(0.0).take(happened, 0.0)

    assert len(kept) == MOST_OF_A_KIND + 1
    assert kept[-1].text == (
        "436 of 500 MetricsLogged at once are not in the journal; log less often than at every step."
    )


def test_heartbeat_every_ten_seconds(tmp_path):
    """A run that does not step leaves a sign of life every ten seconds, with where it was."""
    clock = FakeClock()
    written = journal(tmp_path, clock)
    written.listener(step(7, seconds=3.0))
    for _ in range(100):
        clock.advance(0.25)
        written.write_due()

    assert [line["kind"] for line in lines_of(tmp_path)[2:]] == ["Alive", "Alive"]
    assert lines_of(tmp_path)[-1]["step"] == 7


def test_full_disk_warns_once_and_the_run_goes_on(tmp_path, monkeypatch):
    """While the disk refuses, training goes on with one warning; later events are written again."""
    clock = FakeClock()
    written = journal(tmp_path, clock)
    really = os.write

    def full(descriptor, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer.os, "write", full)
    for number in range(3):
        clock.advance(11)
        written.listener(events.BackupTaken(number, 0.0))
        written.write_due()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            written.listener(events.BackupTaken(number, 0.0))
        assert [str(warning.message) for warning in caught if number] == []
        if not number:
            assert "cannot be written and may lack events: [Errno 28]" in str(caught[0].message)
    monkeypatch.setattr(writer.os, "write", really)
    clock.advance(11)
    written.listener(events.BackupTaken(99, 0.0))
    written.write_due()

    assert [event.step for event in told(tmp_path) if isinstance(event, events.BackupTaken)][-1] == 99
    assert written.num_lost > 0


def test_real_full_device_does_not_stop_a_run(tmp_path):
    """A run whose journal is on a full device trains to its end."""
    r8 = make(num_epochs=3, run_dir=tmp_path / "run")
    (tmp_path / "run" / "events.jsonl").unlink()
    (tmp_path / "run" / "events.jsonl").symlink_to("/dev/full")
    with pytest.warns(RuntimeWarning, match=r"cannot be written and may lack events: \[Errno 28\]"), r8:
        train(r8)

    assert r8.global_step == 9


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


def test_writing_continues_when_the_folder_comes_back(tmp_path):
    """A folder that was away for a while, as one on a network may be, gets what happens after that."""
    clock = FakeClock()
    written = journal(tmp_path / "run", clock)
    (tmp_path / "run").rename(tmp_path / "away")
    written.listener(events.BackupTaken(1, 0.0))
    written.write_due()
    (tmp_path / "away").rename(tmp_path / "run")
    clock.advance(11)
    with pytest.warns(RuntimeWarning, match="deleted or moved away"):
        written.listener(events.BackupTaken(2, 0.0))
    written.write_due()

    assert [event.step for event in told(tmp_path / "run")] == [2]


def test_memory_is_bounded_while_nothing_can_be_written(tmp_path, monkeypatch):
    """A disk that hangs costs lines, not memory."""
    monkeypatch.setattr(writer, "MOST_WAITING", 50)
    written = journal(tmp_path)
    for number in range(10_000):
        written.listener(events.Notice(number, 0.0, str(number), is_warning=False))

    assert len(written._waiting) <= 51
    assert len(written._lines) <= 50
    assert written.num_lost > 0


def test_later_session_is_appended(tmp_path):
    """A second session appends to its folder: nothing is lost, a half-written line harms only itself."""
    first = journal(tmp_path, name="first")
    first.listener(events.BackupTaken(1, 0.0))
    first.close()
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write('{"kind": "BackupTaken", "st')
    second = journal(tmp_path, name="second")
    second.listener(events.BackupTaken(2, 0.0))
    second.close()
    run = Run(tmp_path)
    steps = [record.event.step for record in run.records() if isinstance(record.event, events.BackupTaken)]

    assert steps == [1, 2]
    assert run.parser.num_damaged == 1
    assert len(run.about()["sessions"]) == 2
    assert run.about()["name"] == "second"


def test_folder_of_a_running_process_is_refused(tmp_path):
    """Two processes do not write to one folder: the second is told so before it trains."""
    code = "import sys, time; from learnit_r8.journal import Journal\nJournal(sys.argv[1]); print(1, flush=True)"
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
    for session in range(1, 4):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
        process.stdout.readline()
        while (tmp_path / "events.jsonl").read_text().count("RunStarted") < session:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    run = Run(tmp_path)
    kinds = [type(record.event).__name__ for record in run.records()]

    assert run.state().word == "died"
    assert kinds.count("RunStarted") == 3
    assert run.parser.num_damaged <= 3


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
    run = Run(folder)
    list(run.records())
    return run.state()


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


def test_samples_taken_while_others_are_written_are_kept(tmp_path):
    """A write that happens while the table is copied does not lose the copy."""
    r8 = make(20, batch_size=4, num_epochs=1)
    train(r8)

    def copy(epoch, step):
        written.write_due()
        return samples_of(r8.table, epoch, step)

    written = journal(tmp_path, samples=copy)
    written.listener(events.RunStarted(0, 0.0, "", 20, 4, 5, 5, None, "balanced"))
    written.listener(events.EpochDone(5, 1.0, 0, 1.0, 1.0, 0.1, 20, 1.0))
    written.write_due()

    assert sample_epochs(tmp_path) == [0]


def test_what_comes_after_the_end_is_written(tmp_path):
    """Metrics logged after close() are in the journal too."""
    r8 = make(run_dir=tmp_path)
    train(r8)
    r8.close()
    r8.log(test_accuracy=0.5)

    assert kinds_of(tmp_path)[-2:] == ["RunEnded", "MetricsLogged"]


def test_same_batches_with_and_without(tmp_path):
    """The same seed gives the same batches and rates with a run folder and without, bit for bit."""

    def run(**more):
        r8 = make(50, batch_size=4, num_epochs=4, seed=3, **more)
        seen = []
        for _ in r8.epoch_iterator():
            for indices, lr in r8.batch_iterator():
                seen.append((indices.tolist(), lr))
                r8.update_with_loss(
                    sample_losses(indices) / r8.global_step if r8.global_step else sample_losses(indices)
                )
        r8.close()
        return seen, r8.table.loss.tobytes()

    assert run(run_dir=tmp_path) == run()


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
    assert run.state() == ("finished", "")
    assert (r8.run_dir / "samples-000001.npz").is_file()


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
    assert run.state() == ("finished", "")
    assert len(run.about()["sessions"]) == 2


def test_no_folder_unless_asked(here):
    """Without run_dir and without the dashboard nothing is written."""
    r8 = make()
    train(r8)
    r8.close()

    assert list(here.iterdir()) == []
    assert r8.run_dir is None


def test_dashboard_brings_a_folder(here):
    """With the dashboard on, the run folder is in runs/, named by time and name; two at once get two."""
    names = [make(use_curses=True, name="my run/é").run_dir.name for _ in range(2)]
    make(use_curses=True, run_dir=False)

    assert len(set(names)) == 2
    assert all(name[:8].isdigit() and "-my_run__" in name for name in names)
    assert sorted(path.name for path in (here / "runs").iterdir()) == sorted(names)


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"])
def test_only_the_first_rank_writes(tmp_path, monkeypatch, variable):
    """Of several ranks only the first has a run folder."""
    monkeypatch.setenv(variable, "1")

    assert make(run_dir=tmp_path / "run").run_dir is None
    assert not (tmp_path / "run").exists()


def test_run_dir_of_another_type_is_refused():
    """A run_dir of another type is a TypeError."""
    with pytest.raises(TypeError, match="run_dir must be a folder, True, False or None, got 3"):
        make(run_dir=3)


def test_run_dir_without_a_name_is_refused(here):
    """An empty name, of a variable that was not set for instance, does not fill the current folder."""
    with pytest.raises(ValueError, match="run_dir must be a folder, True, False or None, got ''"):
        make(run_dir="")

    assert not list(here.iterdir())


def test_environment_says_where_runs_go(here, monkeypatch):
    """R8_RUNS names the folder of runs."""
    monkeypatch.setenv("R8_RUNS", "elsewhere")
    with make(run_dir=True) as r8:
        made = r8.run_dir

    assert made.parent == Path("elsewhere")
    assert find_run(None) == made


def test_folder_that_cannot_be_made(here):
    """A folder that was asked for and cannot be made is an error; one that was not is a warning."""
    (here / "runs").write_text("in the way")
    with pytest.raises(OSError, match="runs"):
        make(run_dir="runs/it")
    with pytest.raises(OSError, match="runs"):
        make(run_dir=True)
    with pytest.warns(RuntimeWarning, match="no run folder could be made in 'runs'"):
        assert open_journal(None, is_shown=True, name="", configuration={}, table=make().table) is None


def test_no_free_name_is_an_error(here, monkeypatch):
    """When every name is taken the folder cannot be made."""
    monkeypatch.setattr("learnit_r8.journal.factory.range", lambda *_: [1], raising=False)
    monkeypatch.setattr("learnit_r8.journal.factory.time.strftime", lambda *_: "now")
    make(run_dir=True).close()
    with pytest.raises(OSError, match="no free name for a run folder 'now-run' in 'runs'"):
        make(run_dir=True)


def test_process_is_known_again():
    """This process is there; one of another start, boot or number is gone; one elsewhere cannot be told."""
    here = this_process()

    assert is_gone(here) is False
    assert is_gone({**here, "process_started": 1}) is True
    assert is_gone({**here, "boot_id": "another"}) is True
    assert is_gone({**here, "host": "another"}) is None
    assert is_gone({**here, "pid_namespace": "another"}) is None
    assert [is_gone({**here, "pid": pid}) for pid in (-1, 0, "1", 2**40, None)] == [None] * 5
    assert is_gone({}) is None

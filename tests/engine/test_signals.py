"""Signals: real ones sent to real processes at any moment, and the rules of the handlers within one process."""

import dataclasses
import gc
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import learnit_r8
from learnit_r8 import CheckpointStore, Preempted
from learnit_r8.engine.signals import NAMES, SignalWatch
from learnit_r8.engine.turns import RunInterrupted
from tests.drive import FakeClock, Weights, advance_to, make
from tests.programs import printed_by

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of other processes")
ROOT = str(Path(learnit_r8.__file__).parent.parent)
SIGNALS = [getattr(signal, name) for name in NAMES]


@pytest.fixture(autouse=True)
def _handlers_stay_as_they_are():
    """No test may leave a handler behind; each starts with the default handlers, whatever the shell has set."""
    gc.collect()
    outside = {signum: signal.signal(signum, signal.SIG_DFL) for signum in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = handlers()
    yield
    gc.collect()
    after = handlers()
    for signum, handler in outside.items():
        signal.signal(signum, handler)
    assert after == before


def handlers():
    return [signal.getsignal(signum) for signum in SIGNALS]


def test_handlers_are_there_only_while_the_run_is():
    """Handlers are installed when the run starts, and removed at its end, at close() and after a break."""
    before, runs = handlers(), []
    for end in ("finish", "break", "close"):
        r8 = make()
        assert handlers() == before
        for _ in r8.epoch_iterator():
            for _ in r8.batch_iterator():
                assert not set(handlers()) & set(before)
                r8.update_with_loss(1.0)
            if end != "finish":
                break
        if end == "close":
            r8.draw()
            assert not set(handlers()) & set(before)
            r8.close()
        assert handlers() == before
        runs.append(r8)

    assert len(runs) == 3


def test_handlers_go_with_a_scheduler_that_is_never_closed():
    """A scheduler that is dropped in the middle of its run leaves no handler behind."""
    before, r8 = handlers(), make()
    r8.draw()
    assert handlers() != before
    del r8
    gc.collect()

    assert handlers() == before


@pytest.mark.parametrize("is_restored", [True, False])
@pytest.mark.parametrize("at", range(len(NAMES)))
def test_handlers_go_after_an_installation_that_was_cut_short(at, is_restored, monkeypatch):
    """By Ctrl-C, say, before the handler of any signal, or behind it."""
    before, watch, install, calls = handlers(), SignalWatch(lambda: None), signal.signal, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) > at:
            raise KeyboardInterrupt
        return install(*given)

    with monkeypatch.context() as patch:
        patch.setattr(signal, "signal", interrupted)
        with pytest.raises(KeyboardInterrupt):
            watch.install()
    if is_restored:
        watch.restore()
    else:
        del watch
        gc.collect()

    assert handlers() == before


def test_where_no_handlers_are_installed():
    """With handle_signals=False, and by a run in another thread, which works all the same."""
    before, seen = handlers(), []

    def run(**more):
        r8 = make(**more)
        r8.draw()
        seen.append((handlers(), r8.requests.signals if more else None))

    run(handle_signals=False)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    assert seen == [(before, None)] * 2


def test_ignored_signals_stay_ignored():
    """A signal that was ignored when the run began, as nohup does, stays ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        r8 = make()
        r8.draw()
        signal.raise_signal(signal.SIGHUP)
        assert r8.draw_if_any() is not None
        r8.close()
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_interrupt_waits_for_the_step_and_a_checkpoint(tmp_path, capfd):
    """Ctrl-C in a step lets the step finish, saves, and raises KeyboardInterrupt; the run can then go on."""
    model = Weights()
    r8 = make(
        num_epochs=3, checkpoint_dir=tmp_path, checkpoint_every=99, save_callback=model.save, state_callback=model.get
    )

    def run(interrupt_at):
        for _ in r8.epoch_iterator():
            for _ in r8.batch_iterator():
                if r8.global_step == interrupt_at:
                    signal.raise_signal(signal.SIGINT)
                r8.update_with_loss(1.0)
                model.values = model.values + 1

    with pytest.raises(KeyboardInterrupt):
        run(4)
    saved = CheckpointStore(tmp_path, keep=3, run_id="").load()
    assert (r8.global_step, saved.state["pace"]["step"], np.load(saved.model_path).tolist()) == (5, 5, [5, 5])
    assert "r8: SIGINT: the run ends after this step; once more to end it at once" in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        run(6)
    run(99)

    assert (r8.global_step, r8.pace.is_finished) == (9, True)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_termination_becomes_an_exit(tmp_path, signum, code, capfd):
    """SIGTERM and SIGHUP end the program through SystemExit, so that `finally` runs, with the code of the shells."""
    r8 = make(checkpoint_dir=tmp_path, checkpoint_every=99)
    ticket = r8.draw()
    signal.raise_signal(signum)
    r8.report(ticket, 1.0)
    with pytest.raises(Preempted, match=f"ended by {signal.Signals(signum).name}") as caught:
        r8.draw()

    assert (caught.value.code, caught.value.signum, isinstance(caught.value, SystemExit)) == (code, signum, True)
    assert len(list(tmp_path.glob("ck_*"))) == 1


def test_earlier_handler_is_called_after_the_save(tmp_path, capfd):
    """The user's own handler is called once the checkpoint is written; if it returns, the run goes on."""
    saved = []
    signal.signal(signal.SIGTERM, lambda signum, frame: saved.append((signum, len(list(tmp_path.glob("ck_*"))))))
    try:
        r8 = make(checkpoint_dir=tmp_path, checkpoint_every=99)
        for _ in r8.epoch_iterator():
            for _ in r8.batch_iterator():
                if r8.global_step in (2, 4):
                    signal.raise_signal(signal.SIGTERM)
                    assert len(saved) == (r8.global_step == 4)
                r8.update_with_loss(1.0)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    assert (saved, r8.global_step) == ([(signal.SIGTERM, 1), (signal.SIGTERM, 2)], 6)


def test_handler_set_during_the_run_stays(capfd):
    """A handler that is set during the run is not replaced at its end, and may call ours."""
    heard = []
    r8 = make()
    r8.draw()
    ours = signal.getsignal(signal.SIGTERM)
    theirs = signal.signal(signal.SIGTERM, lambda *_: heard.append(1)) and signal.getsignal(signal.SIGTERM)
    r8.close()
    try:
        assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, lambda *_: heard.append(2))
    ours.before = lambda signum, frame: heard.append(signum)
    ours(signal.SIGTERM, None)

    assert heard == [signal.SIGTERM]


def test_nested_runs_restore_the_first_handlers():
    """Runs in one process that end in any order leave the first handlers."""
    before = handlers()
    for order in ((0, 1), (1, 0)):
        runs = [make(), make()]
        for r8 in runs:
            r8.draw()
        for number in order:
            runs[number].close()
        assert handlers() == before


def test_abandoned_run_holds_no_signal_back(tmp_path, capfd):
    """A later run ends with its checkpoint although an earlier one, left by an exception, was never closed."""
    abandoned = make()
    abandoned.report(abandoned.draw(), 1.0)
    abandoned.draw()
    later = make(checkpoint_dir=tmp_path, checkpoint_every=99)
    later.report(later.draw(), 1.0)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Preempted):
        later.draw()

    assert (len(list(tmp_path.glob("ck_*"))), abandoned.requests.signals.received) == (1, None)


def test_run_inside_the_step_of_another_ends_both(capfd):
    """The outer run, in the middle of a step, cannot act on a signal: the inner one ends the program."""

    def search():
        outer = make()
        for _ in outer.epoch_iterator():
            for _ in outer.batch_iterator():
                inner = make()
                for _ in inner.epoch_iterator():
                    for _ in inner.batch_iterator():
                        inner.update_with_loss(1.0)
                        if outer.global_step == 2:
                            signal.raise_signal(signal.SIGINT)
                outer.update_with_loss(1.0)
                assert outer.global_step < 3

    with pytest.raises(KeyboardInterrupt):
        search()


def test_runs_in_turn_save_both(tmp_path, capfd):
    """Of two runs that are trained in turn, each saves its own checkpoint before the program ends."""
    runs = [make(checkpoint_dir=tmp_path / name, checkpoint_every=99, num_epochs=3) for name in "ab"]

    def train(order):
        for r8 in order:
            r8.report(r8.draw(), 1.0)

    train(runs * 2)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Preempted):
        train((runs[1], *runs, *runs))

    assert [len(list((tmp_path / name).glob("ck_*"))) for name in "ab"] == [1, 1]


def watch_with(clock=None):
    woken = []
    watch = SignalWatch(lambda: woken.append(1), clock or FakeClock())
    watch.install()
    return watch, woken


def test_second_signal_acts_at_once(capfd):
    """A second Ctrl-C raises in the middle of the step."""
    clock = FakeClock()
    watch, woken = watch_with(clock)
    signal.raise_signal(signal.SIGINT)
    clock.advance(1)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)

    assert (watch._handlers, watch.received, len(woken)) == ({}, None, 1)


class Inside:
    """A run whose load callback, in the middle of a report, gets signals at some times.

    Args:
        times: Seconds at which SIGINT arrives.
    """

    def __init__(self, *times):
        self.weights, self.times, self.clock, self.got_through = Weights(), times, FakeClock(), False
        self.r8 = make(state_callback=self.weights.get, load_callback=self.load)
        self.r8.report(self.r8.draw(), 1.0)
        self.r8.requests.signals._clock = self.clock

    def load(self, source):
        for seconds in self.times:
            self.clock.now = seconds
            signal.raise_signal(signal.SIGINT)
        self.weights.values, self.got_through = source["w"], True

    def report(self):
        ticket = self.r8.draw()
        # Weights that are seen to be damaged are put back at once.
        self.weights.values = np.full(2, np.nan)
        self.r8.report(ticket, float("nan"))
        self.is_back = True


@pytest.mark.filterwarnings("ignore")
def test_second_signal_waits_for_a_call_to_be_left(capfd):
    """A second Ctrl-C in a call of the scheduler raises as soon as that is left, and leaves a whole run."""
    run = Inside(1.0, 2.0)

    def report_and_go_on():
        run.report()
        time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        report_and_go_on()

    assert (run.got_through, run.is_back, run.r8.global_step) == (True, True, 2)
    assert run.r8.state_dict()["pace"]["step"] == 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("times", [(1.0, 2.0, 3.0), (1.0, 2.0, 7.1)])
def test_third_signal_cuts_a_call(times, capfd):
    """A third Ctrl-C, or one after five seconds, cuts the call at once, and the run says that it is not whole."""
    run = Inside(*times)
    with pytest.raises(KeyboardInterrupt):
        run.report()
    with pytest.raises(RunInterrupted, match=r"report\(\) at step 1 was cut short"):
        run.r8.draw()
    run.r8.requests.leave()

    assert not run.got_through


@pytest.mark.filterwarnings("ignore")
def test_a_call_that_hangs_is_cut_after_five_seconds(capfd):
    """Where the call does not end, the second Ctrl-C cuts it after five seconds, without another one."""
    run = Inside(1.0, 2.0)
    load = run.load

    def hang(source):
        load(source)
        run.clock.now = 7.5
        time.sleep(10)

    run.r8.host.persistence.callbacks = dataclasses.replace(run.r8.host.persistence.callbacks, load=hang)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run.report()

    assert (run.r8.host.turns.is_cut, time.monotonic() - began < 5) == (True, True)


@pytest.mark.parametrize(
    ("first", "others", "gap"), [(signal.SIGINT, [signal.SIGTERM], 0.1), (signal.SIGHUP, [signal.SIGHUP] * 2, 1.0)]
)
def test_signals_that_are_not_urgent(first, others, gap, capfd):
    """One that launchers forward, within a fifth of a second, counts once; those of a closing terminal never hurry."""
    clock = FakeClock()
    watch, _ = watch_with(clock)
    signal.raise_signal(first)
    for signum in others:
        clock.advance(gap)
        signal.raise_signal(signum)

    assert watch.received == first
    watch.restore()


def test_terminal_is_restored_before_the_exit(capfd):
    """Functions in before_exit run once before the exception leaves, even if one of them raises."""
    watch, _ = watch_with()
    done = []
    watch.before_exit += [lambda: done.append(1), lambda: 1 / 0, lambda: done.append(2)]
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Preempted):
        watch.act()
    watch.act()

    assert (done, "ZeroDivisionError" in capfd.readouterr().err) == ([1, 2], True)


def test_signal_during_a_pause_ends_it(tmp_path, capfd):
    """A paused run that gets a signal saves and ends."""
    r8 = make(checkpoint_dir=tmp_path)
    advance_to(r8, 1)
    r8.requests.pause()
    sleep = r8.requests._sleep
    r8.requests._sleep = lambda seconds: signal.raise_signal(signal.SIGTERM) or sleep(0)
    with pytest.raises(Preempted):
        r8.draw()

    assert len(list(tmp_path.glob("ck_*"))) == 1


def test_signal_in_the_last_step_is_not_lost(capfd):
    """A signal in a step after which the loop is left by break still ends the program."""
    r8 = make()

    def run():
        for _ in r8.epoch_iterator():
            for _ in r8.batch_iterator():
                signal.raise_signal(signal.SIGINT)
                r8.update_with_loss(1.0)
                break
            break
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        run()


def test_closing_answers_a_signal(tmp_path, capfd):
    """A signal that waits when the run is closed is answered then, with a checkpoint."""
    r8 = make(checkpoint_dir=tmp_path)
    r8.report(r8.draw(), 1.0)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Preempted):
        r8.close()

    assert len(list(tmp_path.glob("ck_*"))) == 1


FORKED = """
import os, signal, sys
from learnit_r8 import R8Scheduler

handler = lambda signum, frame: os._exit(5)
if sys.argv[1] == "handler":
    signal.signal(signal.SIGTERM, handler)
r8 = R8Scheduler(12, batch_size=4, num_epochs=2, checkpoint_dir="saved")
r8.draw()
child = os.fork()
if child == 0:
    try:
        signal.raise_signal(signal.SIGTERM)
        r8.draw_if_any()
    finally:
        os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), r8.requests.signals.received, os.listdir("saved"))
"""


@pytest.mark.parametrize(("before", "code"), [("default", -signal.SIGTERM), ("handler", 5)])
def test_forked_child_ends_as_it_would(tmp_path, before, code):
    """A child forked during a run handles a signal as without the run, and saves nothing of it."""
    assert printed_by(tmp_path, "-c", FORKED, before) == f"{int(code)} None []\n"


RUN = """
import os, sys, time
import numpy as np
from learnit_r8 import R8Scheduler

weights = np.zeros(1)
def save(state_dict, path):
    with open(path, "wb") as file:
        np.save(file, weights)

r8 = R8Scheduler(64, batch_size=4, num_steps=10**7, checkpoint_dir="saved", checkpoint_every=10**7, save_callback=save)
try:
    for epoch in r8.epoch_iterator():
        for indices, lr in r8.batch_iterator():
            if r8.global_step == 0:
                os.write(3, b"running ")
            for _ in range({spins}):
                pass
            r8.update_with_loss(1.0)
            weights[:] = r8.global_step
finally:
    os.write(3, b"finally %d" % r8.global_step)
"""


def start(folder, *, spins=1000, command=(), **arguments):
    """A training run in a process of its own; its reports come through a pipe."""
    reading, writing = os.pipe()
    code = f"import os; os.dup2({writing}, 3)\n" + RUN.format(spins=spins)
    command = [*command, sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": ROOT}
    process = subprocess.Popen(command, cwd=folder, pass_fds=[writing], env=environment, **arguments)
    os.close(writing)
    assert os.read(reading, 8) == b"running "
    return process, reading


def rest_of(reading):
    with os.fdopen(reading, "rb") as file:
        return file.read()


def step_saved(folder):
    saved = CheckpointStore(folder / "saved", keep=1, run_id="").load()
    assert np.load(saved.model_path)[0] == saved.state["pace"]["step"]
    return int(saved.state["pace"]["step"])


@pytest.mark.parametrize("moments", [1, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("signum", SIGNALS)
def test_process_ends_with_a_checkpoint_of_its_last_step(tmp_path, signum, moments):
    """A process that gets a signal at random moments ends with a valid checkpoint of the last step."""
    rng = np.random.default_rng(signum)
    for number in range(moments):
        folder = tmp_path / str(number)
        folder.mkdir()
        process, reading = start(folder, spins=int(rng.integers(1, 20_000)), stderr=subprocess.PIPE)
        time.sleep(rng.random() * 0.02)
        process.send_signal(signum)
        errors = process.communicate(timeout=60)[1].decode()

        assert rest_of(reading) == b"finally %d" % step_saved(folder)
        # Python itself ends by the signal after an uncaught KeyboardInterrupt, as shells want it.
        assert process.returncode == (-signal.SIGINT if signum == signal.SIGINT else 128 + signum), errors


def test_second_signal_ends_a_long_step(tmp_path):
    """In an endless step, a second SIGTERM ends the process at once, through `finally`."""
    process, reading = start(tmp_path, spins=10**9, stderr=subprocess.DEVNULL)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)

    assert (process.wait(timeout=60), rest_of(reading)[:7]) == (143, b"finally")


TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def in_a_terminal(folder, command=()):
    """A run in a terminal of ours, which it opens itself, as forking beside the threads of other tests is unsafe."""
    ours, theirs = pty.openpty()
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    process, reading = start(folder, command=[sys.executable, "-c", TAKE_TERMINAL, *command], **streams)
    os.close(theirs)
    return process, reading, ours


def test_ctrl_c_in_a_terminal(tmp_path):
    """Ctrl-C typed in a terminal saves and ends; the screen says what happens, and the traceback is there."""
    process, reading, ours = in_a_terminal(tmp_path)
    os.write(ours, b"\x03")
    told, screen = rest_of(reading), b""
    while select.select([ours], [], [], 5)[0]:
        try:
            block = os.read(ours, 4096)
        except OSError:
            break
        screen += block
    os.close(ours)

    assert (process.wait(timeout=60), told) == (-signal.SIGINT, b"finally %d" % step_saved(tmp_path))
    assert b"r8: SIGINT: the run ends after this step" in screen
    assert b"KeyboardInterrupt" in screen


def test_closed_terminal_saves_and_ends(tmp_path):
    """A terminal that is closed ends the run with a checkpoint, though nothing can be written to it any more."""
    process, reading, ours = in_a_terminal(tmp_path)
    os.close(ours)

    assert (rest_of(reading), process.wait(timeout=60)) == (b"finally %d" % step_saved(tmp_path), 129)


def test_nohup_outlives_the_terminal(tmp_path):
    """Under nohup a run continues after its terminal is closed."""
    process, reading, ours = in_a_terminal(tmp_path, command=["nohup"])
    os.close(ours)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)

    assert (rest_of(reading), process.wait(timeout=60)) == (b"finally %d" % step_saved(tmp_path), 143)


class Ended(Exception):
    """The exception of a user's handler."""


@pytest.mark.parametrize("end", ["break", "raise"])
def test_run_that_is_left_in_the_step_of_a_signal_ends_once(end, tmp_path):
    """A signal in the last step before loops and scheduler are left acts once, and does not interrupt the clean-up."""
    calls = []

    def handler(signum, frame):
        calls.append(signum)
        raise Ended

    signal.signal(signal.SIGTERM, handler)
    try:
        with pytest.raises(Ended):
            leave_with_a_signal(end, tmp_path)
        wait_for_timers()
        gc.collect()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    assert calls == [signal.SIGTERM]
    assert len(list(tmp_path.glob("ck_*"))) == (end == "break")


def leave_with_a_signal(end, folder):
    """The signal comes in the last step before the loops are left; its handler raises here."""
    try:
        with make(num_epochs=3, checkpoint_dir=folder) as r8:
            epochs = r8.epoch_iterator()
            next(epochs)
            for _ in r8.batch_iterator():
                signal.raise_signal(signal.SIGTERM)
                r8.update_with_loss(1.0)
                break
            epochs.close()
            if end == "raise":
                raise ValueError
    finally:
        wait_for_timers()


def wait_for_timers():
    time.sleep(0.1)

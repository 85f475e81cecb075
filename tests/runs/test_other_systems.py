"""Systems that lack what Linux has: a process in which all of it is hidden trains, saves, resumes and reports."""

import multiprocessing
import signal

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from tests.programs import ROOT, ended

HIDE = """
import builtins, importlib.abc, os, signal, sys
import numpy, hashlib, platform, shutil, tempfile, zipfile, subprocess

class Hidden(importlib.abc.MetaPathFinder):
    names = {"fcntl", "termios", "tty", "pty", "curses", "_curses", "resource", "pwd", "grp"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in [name for name in sys.modules if name.split(".")[0] in Hidden.names]:
    del sys.modules[name]
sys.meta_path.insert(0, Hidden())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name.split(".")[0] in Hidden.names else find(name, *more)
for name in (
    "getuid", "geteuid", "getgid", "fork", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_DIRECTORY",
    "register_at_fork", "fchmod", "fchown", "chown", "mkfifo", "uname", "sysconf", "getpgrp", "tcgetpgrp",
    "ttyname", "openpty", "set_blocking", "killpg", "getpgid", "setsid", "sched_getaffinity", "getloadavg",
):
    if hasattr(os, name):
        delattr(os, name)
for name in (
    "SIGUSR1", "SIGUSR2", "SIGTSTP", "SIGCONT", "SIGWINCH", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGTTIN", "SIGTTOU",
    "SIGCHLD", "SIGPIPE", "pthread_sigmask", "pthread_kill", "setitimer", "alarm", "siginterrupt",
):
    if hasattr(signal, name):
        delattr(signal, name)

def no_link(*arguments, **more):
    raise OSError(38, "no hard links")
os.link = no_link
real_open, real_os_open, real_readlink = builtins.open, os.open, os.readlink
def guard(real):
    def call(path, *arguments, **more):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(("/proc", "/sys", "/dev/shm")):
            raise FileNotFoundError(2, "there is no such place", os.fspath(path))
        return real(path, *arguments, **more)
    return call
def no_folders(real):
    def call(path, *arguments, **more):
        if isinstance(path, (str, os.PathLike)) and os.path.isdir(path):
            raise PermissionError(13, "a folder cannot be opened", os.fspath(path))
        return real(path, *arguments, **more)
    return call
builtins.open, os.readlink = guard(real_open), guard(real_readlink)
os.open = no_folders(guard(real_os_open))
# The standard library asked what there is when it was imported.
shutil._use_fd_functions = False
for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
    known.clear()
"""

TRAIN = """
import contextlib, io, math, sys, time, warnings
warnings.simplefilter("error")
from learnit_r8 import R8Scheduler
from learnit_r8.cli import main
from tests.drive import Weights, batch_loss, steps
folder, until, watch = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
def status():
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(["status", folder + "/run"])
    return printed.getvalue()
weights = Weights()
r8 = R8Scheduler(40, batch_size=4, num_epochs=3, run_dir=folder + "/run", checkpoint_dir=folder + "/ck", resume="auto",
                 state_callback=weights.get, load_callback=weights.load, save_callback=weights.save, backup_every=3,
                 use_curses=bool(watch))
began = r8.global_step
for _, indices, _ in steps(r8):
    r8.update_with_loss(batch_loss(indices))
    if r8.global_step == until:
        r8.save_checkpoint()
        break
    if watch and r8.global_step == 20:
        # The journal writes what it was told a quarter of a second later.
        while "step 20/30" not in status():
            time.sleep(0.02)
        watcher = subprocess.Popen([sys.executable, "-c", *watch], stdout=subprocess.PIPE, text=True)
        print("watched live:", watcher.stdout.readline())
r8.close()
print("trained", began, r8.global_step)
if not until:
    print("watched to its end:", watcher.communicate()[0], watcher.returncode)
    run = folder + "/run"
    commands = ["status", run], ["report", run], ["samples", run], ["watch", run], ["watch", "--once", run]
    for command in commands:
        print(*(word for word in command if word != run), main(command))
"""

WATCH = """
from learnit_r8.cli import main
sys.exit(main(["watch", sys.argv[1]]))
"""


def run(*arguments):
    status, printed, errors = ended(ROOT, "-c", HIDE + TRAIN, *arguments, R8_BACKUPS="")
    assert status == 0, errors
    return printed.splitlines(), errors.splitlines()


def test_training_goes_on_without_what_only_linux_has(tmp_path):
    """Without locks, terminals, user ids, /proc, shared memory and hard links: trained, resumed, watched, reported."""
    first, _ = run(tmp_path, 17)
    second, told = run(tmp_path, 0, HIDE + WATCH, tmp_path / "run")

    assert "trained 0 17" in first
    assert "trained 17 30" in second
    assert {"status 0", "report 0", "samples 0", "watch 0", "watch --once 0"} <= set(second)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    # What another process saw of the run, in plain lines, and what the run itself said.
    assert any(line.startswith("watched live: run  running") and "step 20/30" in line for line in second)
    assert second.count("step 30: finished") == 1
    assert any(line.startswith("r8 finished after 30 steps") for line in told)


def losses_of(indices):
    """In a worker: some work on a batch."""
    return float(np.asarray(indices, float).mean())


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_workers_of_every_start_method_serve_a_training(method, request):
    """A pool of two workers computes the losses, however they are started; forkserver is the default from 3.14 on."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    # A handler that a framework of an earlier test has left would be the workers', too, and keep them from ending.
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, before or signal.SIG_DFL))
    with multiprocessing.get_context(method).Pool(2) as pool, R8Scheduler(40, batch_size=4, num_epochs=2) as r8:
        for _ in r8.epoch_iterator():
            for indices, _ in r8.batch_iterator():
                r8.update_with_loss(pool.apply(losses_of, (indices,)))

    assert r8.global_step == 20

"""One process trains a run: who else would go on with it is told so, and no run starts over by mistake."""

import errno
import gc
import os
import platform
import signal
import threading

import pytest

from learnit_r8.state import store
from learnit_r8.state.store import CheckpointStore, RunInUse
from tests.drive import advance_to, make, train
from tests.programs import started

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the locks are those of POSIX")

TRAINS = """
import os, sys, time
from tests.drive import advance_to, make
r8 = make(40, num_epochs=2, checkpoint_dir=sys.argv[1], checkpoint_every=5, backup_dir=False)
advance_to(r8, 7)
child = os.fork()
if not child:
    # A worker of a loader, which inherits what is open.
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


def resumed(folder, **more):
    return make(40, num_epochs=2, checkpoint_dir=folder, backup_dir=False, resume="auto", **more)


def steps_left(folder):
    return sorted(path.name for path in folder.glob("ck_*"))


def test_a_run_that_another_process_trains(tmp_path):
    """Process and host are named, nothing is deleted; a killed process holds nothing, though its workers live on."""
    with started(tmp_path, "-c", TRAINS, tmp_path) as process:
        worker = int(process.stdout.readline())
        try:
            before = steps_left(tmp_path)
            with pytest.raises(
                RunInUse, match=rf"the process {process.pid} on {platform.node()} trains: .*checkpoint_dir"
            ):
                resumed(tmp_path)
            with make(40, num_epochs=1, checkpoint_dir=tmp_path) as other:
                train(other)

            assert (other.global_step, before) == (10, ["ck_000000000001.r8"])
            assert set(before) < set(steps_left(tmp_path))

            process.send_signal(signal.SIGKILL)
            process.wait()
            with make(40, num_epochs=2, checkpoint_dir=tmp_path, resume=tmp_path / before[0]) as r8:
                begun = r8.global_step
                train(r8)

            os.kill(worker, 0)
            assert (begun, r8.phase) == (5, "finished")
        finally:
            os.kill(worker, signal.SIGKILL)
            process.kill()


def test_a_closed_run_is_free(tmp_path):
    """`close()` releases the run, and leaves no file of the lock."""
    with make(40, num_epochs=2, checkpoint_dir=tmp_path) as r8:
        advance_to(r8, 12)
        assert len(list(tmp_path.glob("run_*.lock"))) == 1

    assert not list(tmp_path.glob("run_*.lock"))
    with resumed(tmp_path) as r8:
        assert r8.global_step == 12


def test_the_same_thread_takes_its_run_over(tmp_path):
    """A cell that is run again, a program that tries again: the later scheduler goes on, the earlier saves no more."""
    first = make(40, num_epochs=2, checkpoint_dir=tmp_path)
    advance_to(first, 12)
    with resumed(tmp_path) as second:
        assert second.global_step == 10
        with pytest.raises(RunInUse, match="another scheduler of this process has gone on with the run"):
            first.save_checkpoint()
        train(second)
    before = steps_left(tmp_path)
    with pytest.warns(RuntimeWarning, match="another scheduler of this process"):
        train(first)

    assert steps_left(tmp_path) == before


def test_an_unreachable_scheduler_holds_nothing(tmp_path):
    """A scheduler that nobody closed and nobody can reach leaves no lock."""
    advance_to(make(40, num_epochs=2, checkpoint_dir=tmp_path), 12)
    gc.collect()

    assert not list(tmp_path.glob("run_*.lock"))


@pytest.mark.parametrize("is_locked", [False, True])
def test_a_claim_that_was_cut_short_is_taken_over(tmp_path, monkeypatch, is_locked):
    """A Ctrl-C between the lock and the note of who has it leaves the run to the next store of this process."""

    def cut_short(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(*((store.weakref, "finalize") if is_locked else (os, "ftruncate")), cut_short)
        with pytest.raises(KeyboardInterrupt):
            CheckpointStore(tmp_path, keep=1, run_id="a").claim("a")
    assert list(tmp_path.glob("run_*.lock"))
    later = CheckpointStore(tmp_path, keep=1, run_id="a")
    later.claim("a")
    later.release()

    assert not list(tmp_path.glob("run_*.lock"))


def test_a_run_of_another_thread(tmp_path):
    """While another thread trains the run it is held; after the thread has failed it is not."""
    has_saved, may_end, kept = threading.Event(), threading.Event(), []

    def work():
        kept.append(r8 := make(40, num_epochs=2, checkpoint_dir=tmp_path))
        advance_to(r8, 12)
        has_saved.set()
        may_end.wait(60)

    thread = threading.Thread(target=work, name="the first")
    thread.start()
    assert has_saved.wait(60)
    with pytest.raises(RunInUse, match=f"the thread 'the first' of this process, {os.getpid()} trains"):
        resumed(tmp_path)
    may_end.set()
    thread.join()

    assert resumed(tmp_path).global_step == 10


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EROFS])
def test_without_locks_a_run_goes_on(tmp_path, monkeypatch, code):
    """Where nothing can be locked, one warning says so."""

    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    if code == errno.ENOLCK:
        monkeypatch.setattr("fcntl.lockf", refuse)
    else:
        monkeypatch.setattr(store, "lock_until_released", refuse)
    r8 = make(40, num_epochs=2, checkpoint_dir=tmp_path, backup_dir=False)
    with pytest.warns(RuntimeWarning, match="could not be locked") as said:
        train(r8)

    assert sum("locked" in str(each.message) for each in said) == 1
    assert len(steps_left(tmp_path)) == 2


def test_a_newer_checkpoint_that_comes_before_the_lock_counts(tmp_path, monkeypatch):
    """The other process may write its last checkpoint between the look into the folder and the lock."""
    first = make(40, num_epochs=2, checkpoint_dir=tmp_path)
    advance_to(first, 12)
    claim = store.CheckpointStore.claim

    def late(self, run_id):
        if first is not None and not first.pace.is_closed:
            first.close()
        claim(self, run_id)

    monkeypatch.setattr(store.CheckpointStore, "claim", late)

    assert resumed(tmp_path).global_step == 12


def saved(folder):
    """A folder with a checkpoint of step 10, whose run is closed."""
    with make(40, num_epochs=2, checkpoint_dir=folder, backup_dir=False) as r8:
        advance_to(r8, 10)
    return next(folder.glob("ck_*"))


def test_a_checkpoint_of_another_user(tmp_path, monkeypatch):
    """It is not gone on with unasked, and the run does not start over; by its path it is."""
    path = saved(tmp_path)
    if os.getuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 54321)
        monkeypatch.setattr(store, "_owner_of_new", lambda folder: None)
    with pytest.raises(PermissionError, match=rf"belongs to the user .*resume={str(path)!r}"):
        resumed(tmp_path)

    assert make(40, num_epochs=2, checkpoint_dir=tmp_path, resume=path).global_step == 10


def test_a_file_system_with_one_owner(tmp_path, monkeypatch):
    """Where every file belongs to one user, whoever makes it, a run goes on with its own checkpoints."""
    saved(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 54321)

    assert resumed(tmp_path).global_step == 10


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ESTALE])
def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch, code):
    """With "auto" that is an error which names the folder and what to do, never a start from 0."""
    saved(tmp_path)
    listdir = os.listdir

    def refuse(path="."):
        if str(path) == str(tmp_path):
            raise OSError(code, os.strerror(code))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(
        OSError,
        match=rf"{os.strerror(code)}. Mend or mount it, or give another one to start a new run.*{tmp_path.name}",
    ):
        resumed(tmp_path)


def test_a_folder_that_is_not_mounted(tmp_path):
    """A link that leads nowhere is no empty folder."""
    (tmp_path / "ck").symlink_to(tmp_path / "not mounted")
    with pytest.raises(FileNotFoundError, match=r"a link that leads nowhere. Mend or mount it"):
        resumed(tmp_path / "ck")

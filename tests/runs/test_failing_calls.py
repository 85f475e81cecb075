"""Whatever fails in a file or a copy of ours, the training goes on, and the newest whole checkpoint stays.

Nothing is replaced: an interpreter that profiles tells of each call of a C function before it is made, and what its
listener raises is raised in place of the call. So a short run is first counted and then made once for each call.
"""

import errno
import os
import re
import shutil
import sys
import threading
import warnings
from collections import Counter

import pytest

from learnit_r8.events import CheckpointSaved
from learnit_r8.state.store import CheckpointStore
from tests.drive import NAN, Weights, advance_to, batch_loss, make, train
from tests.programs import printed_by
from tests.source import PACKAGE

pytestmark = pytest.mark.skipif(
    sys.implementation.name != "cpython" or os.name != "posix", reason="the calls are those of CPython on POSIX"
)

FILES = {
    "open", "write", "flush", "fsync", "fstat", "replace", "rename", "link", "mkdir", "listdir", "scandir", "stat",
    "lstat", "unlink", "rmdir", "read", "ftruncate", "statvfs", "lockf", "readlink", "close",
}  # fmt: skip
COPIES = {"copy", "array", "astype", "tobytes", "empty", "empty_like", "zeros", "ascontiguousarray", "getvalue"}
KEEPERS = ("/learnit_r8/state/", "/journal/", "recovery/persistence.py", "recorder.py")
"""Files of the package that copy what is to be kept; elsewhere an array is needed to train."""


class FailingCalls:
    """Counts the package's own calls of some C functions by where they are made, or fails one of them.

    Args:
        error: What is raised.
        place: Where, as `places` counts it; None to count only.
        number: Which of the calls there, from 0.
    """

    def __init__(self, error=None, place=None, number=0):
        self.places, self.has_failed = Counter(), False
        self._error, self._place, self._number = error, place, number

    def __enter__(self):
        threading.setprofile(self._look)
        sys.setprofile(self._look)
        return self

    def __exit__(self, *error):
        sys.setprofile(None)
        threading.setprofile(None)

    def _look(self, frame, event, called):
        is_text = isinstance(getattr(called, "__self__", None), (str, bytes))
        if event != "c_call" or called.__name__ not in FILES | COPIES or is_text:
            return
        place = place_of(frame, called.__name__)
        if place is None:
            return
        number = self.places[place]
        self.places[place] += 1
        if place == self._place and number == self._number and not self.has_failed:
            self.has_failed = True
            raise self._error


def place_of(frame, name):
    """Where the package makes a call: the function, the lines of the package that lead there; None if it does not."""
    lines, is_kept = [], name in FILES
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(str(PACKAGE)):
            lines.append(f"{path[len(str(PACKAGE)) + 1 :]}:{frame.f_lineno}")
            is_kept = is_kept or any(keeper in path for keeper in KEEPERS)
        elif not lines and path.startswith(os.path.dirname(os.path.dirname(__file__))):
            # A callback of the user's.
            return None
        frame = frame.f_back
    return (name, *lines[:3]) if lines and is_kept else None


ERRORS = {"open": errno.EMFILE, "listdir": errno.EMFILE, "scandir": errno.EMFILE, "lockf": errno.ENOLCK}
FULL = {"write", "flush", "mkdir", "link"}


def error_of(name):
    """What a call of this name raises where the machine lacks something."""
    if name in COPIES:
        return MemoryError("no memory for an array")
    code = ERRORS.get(name, errno.ENOSPC if name in FULL else errno.EIO)
    return OSError(code, os.strerror(code))


def whole_run(folder, **calls):
    """A run with all that it writes: checkpoints with models, the best one, backups in memory, journal, incidents.

    Returns:
        The phase at its end, the steps of its checkpoints, and how often the package called what, by place.
    """
    weights, saved = Weights(), []

    def hear(event):
        if isinstance(event, CheckpointSaved):
            saved.append(event.step)

    r8 = make(
        40, num_epochs=4, run_dir=folder / "run", checkpoint_dir=folder / "ck", backup_dir=folder / "shm",
        backup_every=7, state_callback=weights.get, load_callback=weights.load, save_callback=weights.save,
        monitor="accuracy", record="all", listeners=[hear],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with FailingCalls(**calls) as failing:
            for epoch in r8.epoch_iterator():
                for indices, _ in r8.batch_iterator():
                    if r8.update_with_loss(NAN if r8.global_step in (26, 27) else batch_loss(indices)):
                        weights.values = weights.values + 0.01
                r8.log(accuracy=epoch / 9)
            r8.close()
    return r8.phase, saved, failing.places


def newest_step(folder):
    """The step of the newest checkpoint; none may be damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return CheckpointStore(folder, keep=1, run_id="").load().state["pace"]["step"]


def fail_each(tmp_path, chosen):
    """Make the run once for each of these calls, which fails in it; nothing else may change."""
    for number, (place, which) in enumerate(chosen):
        folder = tmp_path / str(number)
        phase, saved, _ = whole_run(folder, error=error_of(place[0]), place=place, number=which)

        assert phase == "finished", place
        assert len(saved) >= 3, (place, saved)
        if place[0] in COPIES:
            assert '"kind": "RunEnded"' in (folder / "run" / "events.jsonl").read_text(), place
        assert newest_step(folder / "ck") == saved[-1], place
        shutil.rmtree(folder)


def count_calls(tmp_path):
    """The places of a run in which nothing fails, sorted, with how often each is passed."""
    phase, saved, places = whole_run(tmp_path / "whole")

    assert (phase, len(saved)) == ("finished", 4)
    return sorted(places.items(), key=str)


def test_a_call_that_fails_ends_no_training(tmp_path):
    """Each 90th place of files and each 20th of copies once, the first time that it is passed."""
    places = [(place, 0) for place, _ in count_calls(tmp_path)]
    copies = [each for each in places if each[0][0] in COPIES]
    assert len(places) > 150

    fail_each(tmp_path, [*copies[::20], *[each for each in places if each not in copies][::90]])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_each_call_that_fails_ends_no_training(tmp_path, part):
    """Each place, the first three times that it is passed, in the middle, and the last time."""
    chosen = [
        (place, which)
        for place, most in count_calls(tmp_path)
        for which in sorted({0, 1, 2, most // 2, most - 1})
        if which < most
    ]

    fail_each(tmp_path, chosen[part::8])


def begun(tmp_path):
    """The folder of a run that is killed at step 25: checkpoints of steps 10 and 20, a backup in memory, a record."""
    folder, kept = tmp_path / "run", tmp_path / "kept"
    if kept.exists():
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        return folder
    weights = Weights()
    r8 = resume(folder, weights)
    advance_to(r8, 25)
    backups = r8.host.persistence.generations
    if backups._thread is not None:
        backups._thread.join()
    # As the end of a process does.
    backups._release()
    r8.host.saver.store.release()
    r8._journal.close()
    shutil.copytree(folder, kept)
    return folder


def resume(folder, weights):
    return make(
        40, num_epochs=4, run_dir=folder / "run", checkpoint_dir=folder / "ck", backup_dir=folder / "shm",
        backup_every=7, state_callback=weights.get, load_callback=weights.load, save_callback=weights.save,
        resume="auto",
    )  # fmt: skip


def start_again(folder, **calls):
    """Start that run again: the step at which it goes on, or the error; and the calls."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with FailingCalls(**calls) as failing:
                r8 = resume(folder, Weights())
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            return error, failing.places
        step = r8.global_step
        train(r8)
        r8.close()
        assert (step, r8.phase) == (step, "finished")
    return step, failing.places


def start_again_each(tmp_path, chosen):
    """Start again once for each of these calls, which fails in it: the run goes on, or an error says why not."""
    for place in chosen:
        found, _ = start_again(begun(tmp_path), error=error_of(place[0]), place=place)
        if isinstance(found, Exception):
            assert re.search("checkpoint_dir|load_callback must restore", str(found)), (place, found)
        else:
            # Where neither the newest checkpoint nor the newest backup is there, the backup of step 14 is the newest.
            assert found in (10, 14, 20, 21), place


def test_a_call_that_fails_starts_nothing_over(tmp_path):
    """Each 15th place of a start with "auto", the first time that it is passed."""
    found, places = start_again(begun(tmp_path))
    # The backup of step 21 may have come too soon after the one before.
    assert (found in (20, 21), len(places) > 90) == (True, True)

    start_again_each(tmp_path, sorted(places, key=str)[::15])


@pytest.mark.slow
def test_each_call_that_fails_starts_nothing_over(tmp_path):
    """Each place, the first time that it is passed."""
    start_again_each(tmp_path, sorted(start_again(begun(tmp_path))[1], key=str))


SHORT_OF = """
import resource, sys, os
from pathlib import Path
from tests.drive import Weights, batch_loss, make

folder, what, when = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
weights, limits = Weights(), []

def run_short():
    if what == "files":
        # The next descriptor would be this one.
        os.close(free := os.open(os.devnull, os.O_RDONLY))
        kind, most = resource.RLIMIT_NOFILE, free
    else:
        kind, most = resource.RLIMIT_FSIZE, 0
    limits.append((kind, resource.getrlimit(kind)))
    resource.setrlimit(kind, (most, limits[0][1][1]))

r8 = make(400, batch_size=8, num_epochs=4, run_dir=folder / "run", checkpoint_dir=folder / "ck",
          backup_dir=folder / "shm", backup_every=3, state_callback=weights.get, load_callback=weights.load,
          save_callback=weights.save, monitor="accuracy", record="all")
for epoch in r8.epoch_iterator():
    for indices, _ in r8.batch_iterator():
        if r8.global_step == when and not limits:
            run_short()
        if r8.update_with_loss(float("nan") if r8.global_step in (170, 171) else batch_loss(indices)):
            weights.values = weights.values + 0.01
    r8.log(accuracy=epoch / 9)
r8.close()
print(r8.phase, r8.host.saver.num_failed)
"""


@pytest.mark.parametrize(("what", "when"), [("files", 0), ("disk", 120)])
def test_a_program_that_is_short_of_files_or_disk_trains_on(tmp_path, what, when):
    """From some step on no file can be opened, or none can grow; that lasts, and the run ends as planned."""
    phase, num_failed = printed_by(tmp_path, "-c", SHORT_OF, tmp_path, what, when).split()

    assert phase == "finished"
    assert int(num_failed) >= 2
    if when:
        # The checkpoint of the second epoch; a probe takes the place of its last batches.
        assert newest_step(tmp_path / "ck") >= 90


AGAIN = """
import errno, os, resource, sys, warnings
from pathlib import Path
from tests.drive import Weights, train
from tests.runs.test_failing_calls import begun, resume

def read_only(call, writes):
    def refuse(path, *rest, **more):
        if writes(*rest):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return call(path, *rest, **more)
    return refuse

folder = Path(sys.argv[1]) / "run"
if not (child := os.fork()):
    begun(folder.parent)
    os._exit(0)
os.waitpid(child, 0)
if sys.argv[2] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
else:
    os.open = read_only(os.open, lambda flags, *rest: flags & (os.O_WRONLY | os.O_RDWR))
    os.mkdir = read_only(os.mkdir, lambda *rest: True)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    r8 = resume(folder, Weights())
    step = r8.global_step
    train(r8)
    r8.close()
print(step, r8.phase, r8.run_dir)
print(*(str(each.message).replace("\\n", " ") for each in said), sep="\\n")
"""


@pytest.mark.parametrize("disk", ["full", "read-only"])
def test_a_run_that_starts_again_on_such_a_disk_goes_on(tmp_path, disk):
    """The run goes on where it was, as one does that runs when the disk fills up; its record is off, said once."""
    first, *said = printed_by(tmp_path, "-c", AGAIN, tmp_path, disk).splitlines()

    assert re.fullmatch("2[01] finished None", first)
    assert sum("the run is not recorded" in text for text in said) == 1
    assert sum("the checkpoint at step" in text for text in said) >= 1
    assert sum("could not be locked" in text for text in said) == (disk == "read-only")
    assert newest_step(tmp_path / "run" / "ck") == 20

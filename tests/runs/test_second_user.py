"""A second user of the machine against every place that is shared: needs root, which makes the users.

Run by hand: ``sudo python -m pytest -m slow tests/runs/test_second_user.py -s``.
"""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWNER, OTHER = 12345, 12346

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="makes processes of other users"),
]

TRAIN = """
import sys, warnings
from tests.drive import Weights, make, train, advance_to
folder, until = sys.argv[1], int(sys.argv[2])
weights = Weights()
r8 = make(4000, num_epochs=1, run_dir=folder + "/run", checkpoint_dir=folder + "/ck", backup_dir=folder + "/shm",
          backup_every=10, state_callback=weights.get, load_callback=weights.load, save_callback=weights.save)
advance_to(r8, until)
backups = r8.host.persistence.generations
if backups._thread is not None:
    backups._thread.join()
r8._journal.end_thread(60.0)
print("steps", r8.global_step, "off", backups.is_off, flush=True)
import os
os._exit(0)
"""

ATTACK = """
import os, sys
folder, what = sys.argv[1], sys.argv[2]
done = []
def attempt(name, action):
    try:
        action()
    except OSError:
        return
    done.append(name)
if what == "before":
    os.mkdir(folder + "/shm/learnit_r8-12345"); os.chmod(folder + "/shm/learnit_r8-12345", 0o777)
    os.symlink(folder + "/theirs", folder + "/shm/learnit_r8-12345-2")
    open(folder + "/log.csv", "w").write("theirs")
    os.chmod(folder + "/log.csv", 0o666)
else:
    for path, names, files in os.walk(folder):
        for name in files:
            file = os.path.join(path, name)
            if os.lstat(file).st_uid == os.getuid():
                continue
            if file.startswith(folder + "/shm/"):
                attempt("read " + name, lambda: open(file).read())
            attempt("written " + name, lambda: open(file, "a"))
            attempt("deleted " + name, lambda: os.unlink(file))
    attempt("asked", lambda: open(folder + "/run/requests/" + "0" * 20 + "-1.json", "w"))
print(done)
"""


PYTHONS = (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}")
"""Interpreters of this version; that of root may be where nobody else can enter."""


def run_as(user, code, *arguments):
    paths = [path for path in sys.path if path.endswith("site-packages")]
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *paths]), "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"}
    for python in PYTHONS:
        try:
            return _run([python, "-c", code, *map(str, arguments)], user, environment)
        except PermissionError:
            continue
    return pytest.skip("no interpreter that another user may run")


def _run(command, user, environment):
    done = subprocess.run(
        command, user=user, group=user, extra_groups=[], env=environment, cwd="/", capture_output=True, text=True,
        timeout=120, umask=0o022,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.fixture
def place():
    """A folder open to all, as /tmp is, in shared memory."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    for each in (folder, folder / "shm"):
        each.mkdir(exist_ok=True)
        each.chmod(stat.S_ISVTX | 0o777)
    yield folder
    shutil.rmtree(folder)


def test_second_user_reads_writes_and_stops_nothing(place):
    """Names taken beforehand cost warnings, and afterwards nothing of the run can be read, changed or asked for."""
    run_as(OTHER, ATTACK, place, "before")
    said, warned = run_as(OWNER, TRAIN, place, 45)
    done, _ = run_as(OTHER, ATTACK, place, "after")
    left = sorted(path.relative_to(place).as_posix() for path in place.rglob("gen_*.r8"))
    print(f"\ntrained: {said}; generations: {len(left)}; done by the second user: {done}")

    assert said == "steps 45 off False"
    assert len(left) >= 1
    assert all(name.startswith("shm/learnit_r8-12345-3/") for name in left)
    assert "is not private to this user" in warned
    assert not (place / "theirs").exists()
    assert done == "[]"

"""Copies of a folder, launches in them, and what they leave behind: nothing."""

import contextlib
import errno
import os
import socket
import sys
from pathlib import Path

import pytest

from learnit_r8.testing.prove import UNKNOWN, assert_resumes, prove
from learnit_r8.testing.prove.launches import CannotSay, Workshop, saves_of


@pytest.fixture
def folder(tmp_path):
    """A project with a script, data, an environment and a link."""
    for name in ("project/data", "project/env", "project/__pycache__"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "project/env/pyvenv.cfg").touch()
    (tmp_path / "project/data/x.bin").write_bytes(b"12345")
    (tmp_path / "project/link").symlink_to("data")
    return tmp_path / "project"


def environments():
    """What the environments of the processes hold, of those that can be read and have not ended meanwhile."""
    for each in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            yield each.read_bytes()


def test_a_copy_is_whole(folder):
    """Files are copied, environments and what is given as --link are linked, compiled files are left out."""
    (folder / "big").mkdir()
    with Workshop(folder, link=["big"]) as shop:
        copy = shop.copy()
        (copy / "data/x.bin").write_bytes(b"other")

        assert (folder / "data/x.bin").read_bytes() == b"12345"
        assert sorted(each.name for each in copy.iterdir()) == ["big", "data", "env", "link"]
        assert os.readlink(copy / "big") == str(folder / "big")
        assert os.readlink(copy / "env") == str(folder / "env")
        assert os.readlink(copy / "link") == "data"
    assert not shop.place.exists()


def test_a_copy_does_not_hold_itself(folder):
    """Copies may be made in the folder itself; what is no file, such as a socket, is left out."""
    os.mkfifo(folder / "pipe")
    with Workshop(folder, work=str(folder)) as shop, contextlib.closing(socket.socket(socket.AF_UNIX)) as there:
        there.bind(str(folder / "socket"))
        copies = [shop.copy(), shop.copy()]

        assert [sorted(each.name for each in copy.iterdir()) for copy in copies] == [["data", "env", "link"]] * 2


def test_a_folder_too_large_is_not_copied(folder, monkeypatch):
    """It is said what is large in it, and how to link that."""
    monkeypatch.setattr("learnit_r8.testing.prove.launches.LARGE", 3)
    with Workshop(folder) as shop, pytest.raises(CannotSay, match=r"too large to copy: data .* --link PATH"):
        shop.copy()


def test_a_linked_path_that_changes_is_named(folder):
    """Size, time and digest of what is linked are compared with those before."""
    with Workshop(folder, link=["data"]) as shop:
        (folder / "data/x.bin").write_bytes(b"54321")
        (folder / "data/y.bin").touch()
        assert shop.changed() == [str(folder / "data" / name) for name in ("x.bin", "y.bin")]


def test_a_command_runs_in_the_copy(folder):
    """Absolute paths of the folder mean the copy; no terminal, no network of hubs; its children end with it."""
    (folder / "run.py").write_text(
        "import os, subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(os.getcwd(), sys.argv[1], os.environ['HF_HUB_OFFLINE'], sys.stdin.read() == '')\n"
    )
    with Workshop(folder) as shop:
        copy = shop.copy()
        done = shop.launch(copy, [sys.executable, "run.py", f"--out={folder}/x"])

        assert done.said.split() == [str(copy), f"--out={copy}/x", "1", "True"]
        assert (done.code, done.ranks) == (0, [])
        while any(os.fsencode(str(shop.place)) in each for each in environments()):
            pass


def test_writing_outside_is_refused_and_named(folder, tmp_path):
    """A script that writes beside its folder fails, and the path is named; --allow lets it through."""
    (folder / "run.py").write_text(f"open({str(tmp_path / 'beside.txt')!r}, 'w')")
    with Workshop(folder) as shop:
        assert shop.launch(shop.copy(), [sys.executable, "run.py"]).code == 1
        assert shop.refused() == [str(tmp_path / "beside.txt")]
    assert not (tmp_path / "beside.txt").exists()
    with Workshop(folder, allow=[str(tmp_path / "beside.txt")]) as shop:
        assert shop.launch(shop.copy(), [sys.executable, "run.py"]).code == 0


def test_prepared_data_sets_are_read(folder, tmp_path, monkeypatch):
    """The datasets that the user has prepared are there; their locks, and new ones, are written beside the script."""
    known = tmp_path / "hub" / "datasets" / "known"
    known.mkdir(parents=True)
    (known / "data.arrow").write_text("rows")
    (known / "builder.lock").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    code = (
        "import os; os.chdir(os.environ['HF_DATASETS_CACHE'] + '/known'); "
        "open('builder.lock', 'w'), open('mapped.arrow', 'w'); print(open('data.arrow').read(), *sorted(os.listdir()))"
    )
    with Workshop(folder) as shop:
        done = shop.launch(shop.copy(), [sys.executable, "-c", code])

    assert done.said == "rows builder.lock data.arrow mapped.arrow"
    assert sorted(os.listdir(known)) == ["builder.lock", "data.arrow"]


def test_the_line_of_an_error_is_told(folder):
    """What a failing command says of its error is told, not the lines of advice below it."""
    code = "import sys; print('ValueError: no data', 'See the page.', sep='\\n', file=sys.stderr); sys.exit(1)"
    with Workshop(folder) as shop:
        assert shop.launch(shop.copy(), [sys.executable, "-c", code]).said == "ValueError: no data"


def test_sitecustomize_of_the_environment_is_loaded(folder, monkeypatch):
    """The probe comes in as sitecustomize, and lets the one that it hides in."""
    (folder / "sitecustomize.py").write_text("print('theirs', end=' ')")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    with Workshop(folder) as shop:
        assert shop.launch(shop.copy(), [sys.executable, "-c", "print(end='script')"]).said == "theirs script"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("print(1)", "no optimizer of torch made a step"),
        ("raise SystemExit('no data')", "the command ended with 1 after 0 steps. It said: no data"),
        ("input('continue? ')", "EOF when reading a line"),
    ],
)
def test_a_command_that_does_not_train_says_nothing(folder, code, why):
    """Nothing can be said of a command that does not train, fails, or needs a terminal."""
    proof = prove([sys.executable, "-c", code], folder=folder)

    assert proof.code == UNKNOWN
    assert why in proof.why


def test_a_command_that_is_not_there_is_named(folder):
    """A program that cannot be started is said, and a failing proof is an error in a test."""
    with pytest.raises(RuntimeError, match=r"CANNOT SAY: the command cannot be started: .*no-such-program"):
        assert_resumes(["no-such-program"], folder=folder)


def test_a_full_disk_is_said(folder, monkeypatch):
    """Where no copy can be made nothing can be said, and nothing stays."""

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("learnit_r8.testing.prove.launches.shutil.copy2", fail)
    proof = prove(["python"], folder=folder, work=str(folder.parent))

    assert proof.code == UNKNOWN
    assert "No space left on device" in proof.why
    assert list(folder.parent.iterdir()) == [folder]


def test_wrong_settings_are_refused(folder):
    """A proof needs a command, a kill and some steps."""
    with pytest.raises(ValueError, match="command must be the words of a command, got \\[\\]"):
        prove([], folder=folder)
    with pytest.raises(ValueError, match="kills must be >= 1 and steps >= 4, got 0 and None"):
        prove(["python"], folder=folder, kills=0)


def test_saves_are_those_of_torch_else_renames_else_files():
    """A log that is written each step hides no checkpoint."""
    steps = [{"n": 1}, {"n": 2, "f": ["open"]}, {"n": 3, "f": ["open", "rename"]}, {"n": 4, "f": ["open"]}]

    assert saves_of(steps) == [2]
    assert saves_of(steps[:2]) == [1]
    assert saves_of([*steps, {"n": 5, "f": ["torch"]}]) == [4]

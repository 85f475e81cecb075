"""Files are written whole or not at all, whatever fails, and only stale temporary files are deleted."""

import errno
import os
import stat
import time
import warnings

import pytest

from learnit_r8.state import durable_io
from learnit_r8.state.durable_io import (
    flush,
    link_new,
    make_first_free,
    numbered,
    open_regular,
    remove,
    remove_stale,
    rename,
    replace,
    sha256,
    temporary_name,
)
from learnit_r8.state.durable_io import write_new as write
from tests.drive import Weights, advance_to, make, train

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX only")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def broken(monkeypatch, *, kind, code=errno.EIO):
    """Flushing fails with this error: of files, or of folders."""
    fsync = os.fsync

    def fail(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if is_folder is (kind == "folder"):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)


def test_new_file(tmp_path):
    """A new file has its content, replaces nothing, and leaves no temporary one; `replace` puts new content in place.

    A linked file has both names.
    """
    write(tmp_path / "a", b"one")
    with pytest.raises(FileExistsError):
        write(tmp_path / "a", b"two")
    assert (names(tmp_path), (tmp_path / "a").read_bytes()) == (["a"], b"one")
    replace(tmp_path / "a", b"two")
    link_new(tmp_path / "a", tmp_path / "b")

    assert (names(tmp_path), (tmp_path / "b").read_bytes()) == (["a", "b"], b"two")


@posix
@pytest.mark.parametrize("make_it", [write, replace])
def test_disk_that_fails_to_flush_a_file(tmp_path, monkeypatch, make_it):
    """EIO on fsync of a file: it is absent, nothing is left over, and the caller is told."""
    broken(monkeypatch, kind="file")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        make_it(tmp_path / "a", b"one")

    assert names(tmp_path) == []


@posix
def test_disk_that_fails_to_flush_a_folder(tmp_path, monkeypatch):
    """EIO on fsync of the folder: the entry may be lost, so the caller is told; the file itself is whole."""
    broken(monkeypatch, kind="folder")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write(tmp_path / "a", b"one")

    assert (names(tmp_path), (tmp_path / "a").read_bytes()) == (["a"], b"one")


@posix
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_file_systems_without_a_flush_of_folders(tmp_path, monkeypatch, code):
    """A file system that cannot flush folders is no failure."""
    broken(monkeypatch, kind="folder", code=code)
    write(tmp_path / "a", b"one")

    assert names(tmp_path) == ["a"]


@posix
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_run_on_a_disk_that_fails_to_flush(tmp_path, monkeypatch, kind):
    """Training goes on with a warning, older checkpoints stay as they are, and a resume finds the newest of them."""
    model = Weights()
    about = {"save_callback": model.save, "load_callback": model.load, "state_callback": model.get}
    r8 = make(checkpoint_dir=tmp_path, num_epochs=4, **about)
    advance_to(r8, 6)
    r8.save_checkpoint()
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with monkeypatch.context() as patch:
        broken(patch, kind=kind)
        with pytest.warns(RuntimeWarning, match="could not be written"):
            train(r8)
    with warnings.catch_warnings():
        # A file that was named but not flushed is skipped, with a warning.
        warnings.simplefilter("ignore")
        resumed = make(checkpoint_dir=tmp_path, num_epochs=4, resume="auto", **about)

    assert r8.global_step == 12
    assert "failed" in r8.summary()
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert not [name for name in names(tmp_path) if name.startswith("tmp_")]
    assert resumed.global_step == 6


def test_without_links(tmp_path, monkeypatch):
    """On a file system without links a new file still replaces nothing."""

    def refuse(*names):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    write(tmp_path / "a", b"one")
    with pytest.raises(FileExistsError):
        write(tmp_path / "a", b"two")

    assert (names(tmp_path), (tmp_path / "a").read_bytes()) == (["a"], b"one")


def test_rename_waits_for_the_virus_scanner(tmp_path, monkeypatch):
    """On Windows a refused rename is retried after growing delays, and finally raises."""
    waited = []
    (tmp_path / "a").write_bytes(b"one")

    def refuse(*names):
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(durable_io.time, "sleep", waited.append)
    monkeypatch.setattr(durable_io.os, "replace", refuse)
    monkeypatch.setattr(durable_io.os, "name", "nt")
    with pytest.raises(PermissionError):
        rename("a", "b")

    assert waited == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]


@posix
def test_only_stale_files_are_swept(tmp_path):
    """Temporary files of processes that are gone are deleted, those of living ones and other names are not.

    One that was not modified for a day is, whichever host made it; a folder that is not there holds nothing.
    """
    assert remove_stale(tmp_path / "none") == []
    mine = temporary_name(tmp_path / "ck")
    host = mine.name.split("_")[2]
    gone = tmp_path / f"tmp_999999999_{host}_1_ck"
    parent = tmp_path / f"tmp_{os.getppid()}_{host}_1_ck"
    other_host = tmp_path / "tmp_999999999_00000000_1_ck"
    for path in (mine, gone, parent, other_host, tmp_path / "ck_000000000001.r8", tmp_path / "tmp_mine"):
        path.write_bytes(b"")

    assert remove_stale(tmp_path) == [gone]
    assert gone.name not in names(tmp_path)
    assert len(names(tmp_path)) == 5
    os.utime(other_host, (time.time() - 25 * 3600,) * 2)
    assert remove_stale(tmp_path) == [other_host]


def test_removing_never_fails(tmp_path):
    """`remove` deletes files and folders, and ignores missing ones."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"")
    for name in ("folder", "none"):
        remove(tmp_path / name)

    assert names(tmp_path) == []


@posix
def test_only_regular_files_are_opened(tmp_path):
    """A FIFO, a link and a folder are refused at once."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"one")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("fifo", "link", "."):
        with pytest.raises(ValueError, match="must be a regular file, got a"):
            open_regular(tmp_path / name)

    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"one"


def test_digest(tmp_path):
    """The SHA-256 of the content."""
    (tmp_path / "a").write_bytes(b"abc")
    flush(tmp_path / "a")

    assert sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


@pytest.mark.parametrize("taken", [0, 1, 4])
def test_first_free_name_is_taken(tmp_path, taken):
    """A file is made under the first name that is free, and the others keep what they hold."""
    names = ["run.csv", "run-2.csv", "run-3.csv", "run-4.csv", "run-5.csv"]
    for name in names[:taken]:
        (tmp_path / name).write_text("before")
    made = make_first_free(numbered(tmp_path / "run", ".csv"), lambda path: write(path, b"now"))

    assert made.name == names[taken]
    assert [(tmp_path / name).read_text() for name in names[: taken + 1]] == [*["before"] * taken, "now"]


def test_name_taken_meanwhile_is_passed_over(tmp_path):
    """A name that another process takes between the look and the making is not used."""
    asked = []

    def make(path):
        asked.append(path.name)
        if len(asked) < 3:
            raise FileExistsError(path)

    assert make_first_free(numbered(tmp_path / "v1.2"), make).name == "v1.2-3"
    assert asked == ["v1.2", "v1.2-2", "v1.2-3"]

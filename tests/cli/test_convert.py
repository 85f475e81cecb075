"""`learnit-r8 convert` writes what 01c0f9e2 wrote in the form of today, beside it, and nothing else does."""

import io
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from learnit_r8.cli import main
from learnit_r8.state.codec import OlderFile, encode
from learnit_r8.testing import ToyTask
from tests.runs.saved.write_saved import build

HERE = Path(__file__).parents[1]
SAVED, MODELS = HERE / "runs" / "saved" / "01c0f9e2", HERE / "state" / "saved_01c0f9e2"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def older(tmp_path):
    return Path(shutil.copytree(SAVED / "mid_epoch", tmp_path / "run"))


def test_what_was_there_stays(older, capsys):
    """The new folder has all files, under the names that they had; nothing in the older one changes."""
    (older / "notes.txt").write_text("mine")
    (older / "inner").mkdir()
    (older / "inner" / "link").symlink_to("/etc/passwd")
    before = contents(older)
    assert main(["convert", str(older)]) == 0
    new = contents(older.with_name("run-converted"))

    assert contents(older) == before
    assert new.keys() | {"inner/link"} == before.keys()
    assert new["notes.txt"] == b"mine"
    assert "2 files were converted" in capsys.readouterr().out
    assert main(["convert", str(older)]) == 1
    assert "run-converted must not exist yet" in capsys.readouterr().err
    assert main(["convert", str(older.with_name("run-converted"))]) == 0
    assert "there is nothing to convert" in capsys.readouterr().out
    assert not older.with_name("run-converted-converted").exists()


@pytest.mark.parametrize("way", ["auto", "folder", "file"])
def test_an_older_folder_is_no_fresh_start(older, way):
    """A resume from it is an error that names the command; nothing is written, and no older one is taken instead."""
    before = contents(older)
    resume = {"auto": "auto", "folder": older, "file": older / "ck_000000000003.r8"}[way]
    with pytest.raises(
        OlderFile, match=rf"'ck_000000000003\.r8' of an older one in .*: run learnit-r8 convert {older},"
    ):
        build("mid_epoch", older, ToyTask(16), resume=resume)
    assert contents(older) == before


def test_an_older_folder_is_left_alone_by_a_new_run(older):
    """With resume=None a new run saves beside what is there, and deletes none of it."""
    before = contents(older)
    r8 = build("mid_epoch", older, ToyTask(16), resume=None, monitor=None)
    for _ in range(4):
        ticket = r8.draw()
        r8.report(ticket, np.ones(len(ticket.indices)))
        r8.save_checkpoint()
    r8.close()
    after = contents(older)

    assert {name: after[name] for name in before} == before
    assert len(after) > len(before)


def test_a_newer_checkpoint_counts_where_it_is_the_newest(older):
    """A run that was begun anew in that folder goes on; only as the newest an older file is an error."""
    r8 = build("mid_epoch", older, ToyTask(16), resume=None, monitor=None)
    ticket = r8.draw()
    r8.report(ticket, np.ones(len(ticket.indices)))
    saved = r8.save_checkpoint()
    r8.close()

    assert build("mid_epoch", older, ToyTask(16), resume="auto").global_step == 1
    saved.path.write_bytes(b"damaged")
    with pytest.raises(OlderFile):
        build("mid_epoch", older, ToyTask(16), resume="auto")


def test_models_of_the_users_own_are_copied(older):
    """A model that the user's save_callback wrote stays as it is, and the checkpoint knows it."""
    assert main(["convert", str(older)]) == 0
    new = older.with_name("run-converted")
    for path in older.glob("model_*"):
        assert (new / path.name).read_bytes() == path.read_bytes()
    toy = ToyTask(16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        r8 = build("mid_epoch", new, toy, resume="auto")
    assert r8.global_step == 35


def test_one_file(tmp_path, capsys):
    """A file alone gets its copy beside it."""
    shutil.copy(MODELS / "checkpoint_5", tmp_path)
    assert main(["convert", str(tmp_path / "checkpoint_5")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_5", "checkpoint_5-converted"]
    assert main(["convert", str(tmp_path / "none")]) == 1
    assert "must be a folder or a file to convert, got none" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["generation.r8", "keras.npz", "torch.safetensors", "torch.pt"])
def test_damaged_older_files(name, tmp_path, capsys):
    """A damaged one is an error that names it."""
    content = bytearray((MODELS / name).read_bytes())
    content[len(content) // 2 - 200 : len(content) // 2 + 200] = bytes(400)
    (tmp_path / name).write_bytes(content)
    code = main(["convert", str(tmp_path / name)])

    assert code == 0 or f"{name} must be a whole file of 01c0f9e2, got a damaged one" in capsys.readouterr().err


def test_members_that_overlap(tmp_path, capsys):
    """An npz whose members claim more than is there is refused before they are read."""
    buffer = io.BytesIO()
    np.savez(buffer, **{"model.0": np.zeros(1000), "optimizer.0": np.zeros(10)})
    payload = bytearray(buffer.getvalue())
    at = payload.rindex(b"PK\1\2") + 20
    payload[at : at + 8] = (10**6).to_bytes(4, "little") * 2
    (tmp_path / "model.npz").write_bytes(payload)
    assert main(["convert", str(tmp_path / "model.npz")]) == 1
    assert "must be uncompressed and must not overlap" in capsys.readouterr().err


def test_nothing_of_today_is_converted(tmp_path, capsys):
    """What is of this version already stays as it is."""
    (tmp_path / "x.r8").write_bytes(encode({"w": np.ones(2)}))
    assert main(["convert", str(tmp_path / "x.r8")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.r8"]


def test_samples_of_an_older_run_are_named(tmp_path, capsys):
    """`samples` says of a run that was not converted what to do, and shows them once that is done."""
    run = Path(shutil.copytree(SAVED / "run", tmp_path / "run"))
    assert main(["samples", str(run)]) == 1
    assert f"of an older version; run learnit-r8 convert {run}, which writes {run}-converted" in capsys.readouterr().err
    assert main(["convert", str(run)]) == 0
    assert main(["samples", f"{run}-converted"]) == 0

"""Backups that outlive the process: runs that are really killed, and what is left afterwards."""

import contextlib
import multiprocessing
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.cli.runs import line_of
from learnit_r8.dashboard.render.header import title_line
from learnit_r8.dashboard.state.ui_state import Scene, UiState
from learnit_r8.dashboard.state.view import View
from learnit_r8.dashboard.theme import choose_theme
from learnit_r8.dashboard.watch import look
from learnit_r8.engine.settings import grouped
from learnit_r8.events import BackupsOutlive, CheckpointLoaded
from learnit_r8.events.event import describe
from learnit_r8.state import generations as in_memory
from learnit_r8.state.generations import Generations, files_in, is_held
from tests.dashboard.state.told import start
from tests.drive import Weights, advance_to, batch_loss, steps, train
from tests.programs import ended
from tests.rank_common import in_threads

JOB = Path(__file__).parent / "outliving_job.py"


def run_job(folder, killed_at, kind="numpy", total=120):
    status, _, errors = ended(folder, JOB, folder, killed_at, kind, total)
    return status, errors


def log_of(folder):
    return [line.split() for line in (folder / "log").read_text().splitlines()]


def generations(folder):
    """Steps of the generations that are left."""
    return [step for rank in sorted(folder.glob("shm/learnit_r8-*/*/rank*")) for step, _ in files_in(rank)]


@pytest.mark.parametrize("kind", ["numpy", pytest.param("torch", marks=pytest.mark.program)])
def test_killed_run_goes_on_from_its_newest_backup(kind, tmp_path):
    """After ``kill -9``, twice, the run loses at most the steps since a backup, and ends as if nothing had happened."""
    assert run_job(tmp_path, 47, kind)[0] == -9
    assert run_job(tmp_path, 83, kind)[0] == -9
    code, errors = run_job(tmp_path, 0, kind)
    assert (code, errors) == (0, "")
    whole = tmp_path / "whole"
    whole.mkdir()
    assert run_job(whole, 0, kind)[0] == 0
    log = log_of(tmp_path)
    began = [int(line[1]) for line in log if line[0] == "began"]
    values = {line[0]: line[1] for line in log if line[0].isdigit()}

    assert began[0] == 0
    assert began[1] in (30, 40)
    assert began[2] in (70, 80)
    assert values == {line[0]: line[1] for line in log_of(whole) if line[0].isdigit()}
    assert generations(tmp_path) == generations(whole) == []
    assert not list((tmp_path / "shm").iterdir())


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a run leaves that is killed at step 47."""
    folder = tmp_path_factory.mktemp("left")
    assert run_job(folder, 47)[0] == -9
    return folder


@pytest.fixture
def killed(left, tmp_path):
    """The folder of a killed run."""
    shutil.copytree(left, tmp_path, dirs_exist_ok=True)
    [run] = tmp_path.glob("shm/learnit_r8-*/*")
    run.rename(backups_of(tmp_path, "ck")._run)
    assert generations(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "how",
    [
        lambda path: path.write_bytes(path.read_bytes()[:200] + b"xxxx" + path.read_bytes()[204:]),
        lambda path: (path.rename(path.with_name("x")), path.symlink_to(path.with_name("x"))),
    ],
)
def test_damaged_generation_is_skipped_for_the_one_before(how, killed):
    """Changed, or a link: the newest that is complete counts, and the others are named."""
    before = generations(killed)
    how(max(killed.glob("shm/learnit_r8-*/*/rank0/gen_*")))
    with pytest.warns(RuntimeWarning, match="backups in shared memory skipped: gen_"):
        r8 = opened(killed)

    assert r8.global_step == before[-2]


def opened(folder, weights=None, **more):
    """A run of this process on the folders of a killed one."""
    weights = weights or Weights()
    given = {"batch_size": 8, "num_steps": 120, "checkpoint_every": 10_000, "backup_every": 10,
             "checkpoint_dir": folder / "ck", "backup_dir": folder / "shm", "resume": "auto",
             "state_callback": weights.get, "load_callback": weights.load,
             "save_callback": weights.save, **more}  # fmt: skip
    return R8Scheduler(more.pop("num_samples", 640), **grouped({k: v for k, v in given.items() if k != "num_samples"}))


def test_generation_and_checkpoint_are_told_apart_by_their_steps(killed):
    """A newer checkpoint on disk counts, an older one does not."""
    newest = generations(killed)[-1]
    heard = []
    r8 = opened(killed, listeners=[heard.append])
    assert r8.global_step == newest
    advance_to(r8, newest + 5)
    [loaded] = [event for event in heard if isinstance(event, CheckpointLoaded)]
    assert loaded.path.endswith(f"gen_{newest:012d}.r8")
    assert loaded.model_path is None
    text = describe(loaded).text
    assert text.startswith(f"goes on from the backup in shared memory {killed / 'shm'}")
    assert text.endswith(f"at step {newest}")
    checkpoint = r8.save_checkpoint()
    assert generations(killed), "only a checkpoint that the run asks for itself clears them"
    r8.host.persistence.generations._release()
    again = opened(killed)

    assert again.global_step == newest + 5
    assert checkpoint.path.exists()


def refuse(source, from_ram=False):
    raise ValueError("another model")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"load_callback": refuse}, "cannot be used, so the run starts over: load_callback must restore"),
        ({"num_samples": 320}, "so the run starts over: num_samples must be that of the saved run"),
    ],
)
def test_backup_of_another_run_is_left_out(more, text, killed):
    """Of a model that the load callback refuses, or of more samples: the run begins anew, and says so."""
    with pytest.warns(RuntimeWarning, match=text):
        r8 = opened(killed, **more)

    assert r8.global_step == 0
    assert generations(killed)


def test_memory_of_a_deleted_folder_is_ignored_with_a_word(killed):
    """Whoever deletes the checkpoints after a kill begins anew; what was in memory is gone, also for the next run."""
    shutil.rmtree(killed / "ck")
    with pytest.warns(RuntimeWarning, match=r"starts over, as the folder of its checkpoints, .* was deleted"):
        r8 = opened(killed)

    assert r8.global_step == 0
    assert generations(killed) == []
    r8.draw()
    assert opened(killed).global_step == 0


def test_memory_of_a_folder_that_was_emptied_is_ignored_with_a_word(tmp_path):
    """Many scripts make the folder anew before R8 sees that it was deleted."""
    assert run_job(tmp_path, 47, "saving")[0] == -9
    assert generations(tmp_path)[-1] == 40
    shutil.rmtree(tmp_path / "ck")
    (tmp_path / "ck").mkdir()
    with pytest.warns(RuntimeWarning, match="starts over, as the checkpoints in .* were deleted"):
        r8 = opened(tmp_path)

    assert r8.global_step == 0
    assert generations(tmp_path) == []


def test_run_that_is_not_resumed_replaces_what_was_left(killed):
    """A new run in the folder of a killed one begins at step 0, and its own generations are the only ones then."""
    r8 = opened(killed, resume=None)
    assert r8.global_step == 0
    trained(r8, 25)

    assert generations(killed) == [10, 20]


def trained(r8, until):
    """Train to a step, and wait for each generation that is written on the way."""
    for _, indices, _ in steps(r8):
        backups = r8.host.persistence.generations
        backups._rest_until = 0.0
        r8.update_with_loss(batch_loss(indices))
        if r8.global_step % 10 == 1 and backups._thread is not None:
            backups._thread.join()
        if r8.global_step >= until:
            break
    if r8.host.persistence.generations._thread is not None:
        r8.host.persistence.generations._thread.join()


def test_clean_end_leaves_nothing(tmp_path):
    """Nobody else may read a model; and a run that has ended, or was closed, leaves no file and no folder."""
    r8 = opened(tmp_path)
    trained(r8, 35)
    paths = [*tmp_path.glob("shm/learnit_r8-*"), *tmp_path.glob("shm/learnit_r8-*/*/rank0/*")]
    assert len(paths) > 2
    assert not any(path.stat().st_mode & 0o077 for path in paths)
    r8.close()
    assert not list((tmp_path / "shm").iterdir())
    train(opened(tmp_path))

    assert not list((tmp_path / "shm").iterdir())


def test_two_runs_with_one_checkpoint_folder(tmp_path, recwarn):
    """The second of two runs neither reads nor writes the generations of the first, and says so once."""
    first = opened(tmp_path)
    trained(first, 25)
    second = opened(tmp_path)
    assert second.global_step == 0
    trained(second, 45)

    texts = [str(warning.message) for warning in recwarn]
    assert sum("another running process uses" in text for text in texts) == 1
    assert generations(tmp_path)[-1] == 20
    assert second.global_step == 45


def test_forked_child_writes_nothing(tmp_path):
    """A child that trains on a copy of the run leaves the generations alone, and its end deletes nothing."""
    r8 = opened(tmp_path, handle_signals=False)
    trained(r8, 25)
    before = generations(tmp_path)
    process = multiprocessing.get_context("fork").Process(target=r8.host.persistence.forget_generations)
    process.start()
    process.join()

    assert process.exitcode == 0
    assert generations(tmp_path) == before
    assert is_held(next(tmp_path.glob("shm/learnit_r8-*/*/rank0")))


class Model:
    """A model of the user's own kind."""

    w = 3


@pytest.mark.parametrize(("why", "text"), [
    ("container", r"backups stay in this process .* state\.net must be an array"),
    ("full", r"two generations of .* MiB do not fit into a quarter"), ("named", r"could not be kept in .*none'"),
    ("file", "could not be kept in"), ("no shared memory", ""),
])  # fmt: skip
def test_where_backups_cannot_outlive_the_process_it_is_said_once(why, text, tmp_path, monkeypatch, recwarn):
    """They stay in RAM as ever; nothing is said on a system without shared memory, and no folder is made."""
    more = {}
    if why == "container":
        more = {"state_callback": lambda: {"net": Model()}, "load_callback": lambda source: None}
    elif why == "full":
        monkeypatch.setattr(in_memory, "free_bytes", lambda folder: 5000)
    elif why == "file":
        (tmp_path / "file").write_text("")
        more = {"backup_dir": tmp_path / "file" / "shm"}
    elif why == "named":
        monkeypatch.setenv("R8_BACKUPS", str(tmp_path / "none"))
        more = {"backup_dir": None}
    else:
        monkeypatch.delenv("R8_BACKUPS", raising=False)
        monkeypatch.setattr(in_memory, "SYSTEM_BASE", str(tmp_path / "none"))
        more = {"backup_dir": None}
    r8 = opened(tmp_path, **more)
    advance_to(r8, 45)

    assert len(recwarn) == bool(text)
    assert not text or re.search(text, str(recwarn[0].message))
    assert not r8.host.persistence.backup.is_empty
    assert generations(tmp_path) == []
    assert not (tmp_path / "none").exists()


def test_folder_that_fills_up_keeps_the_generation_before(tmp_path, monkeypatch):
    """An error in the middle of a write leaves the last complete generation, and the run goes on."""
    r8 = opened(tmp_path)
    trained(r8, 25)

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(in_memory.codec, "write", full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        trained(r8, 55)

    assert r8.global_step == 55
    assert generations(tmp_path)[-1] == 20
    assert [path.name for path in tmp_path.glob("shm/*/*/rank0/*") if path.name.startswith("tmp_")] == []


def test_backups_come_back_when_there_is_room_again(tmp_path, monkeypatch):
    """Memory that is full for a while: that they are off is told, only the newest stays, and they come back, twice."""
    monkeypatch.setattr(in_memory, "AGAIN_SECONDS", 0.0)
    heard, folder, write = [], tmp_path / "run", in_memory.replace
    r8 = opened(tmp_path, listeners=[heard.append], run_dir=folder)
    trained(r8, 35)
    before = generations(tmp_path)

    def full(path, content, **more):
        raise OSError(28, "No space left on device")

    for until in (55, 95):
        monkeypatch.setattr(in_memory, "replace", full)
        with pytest.warns(RuntimeWarning, match="No space") if until == 55 else contextlib.nullcontext():
            trained(r8, until)
        r8._journal.end_thread(60.0)

        assert r8.host.persistence.generations.is_off
        assert len(generations(tmp_path)) == 1
        assert "BACKUPS DO NOT OUTLIVE IT ([Errno 28]" in line_of(look(folder, is_glance=True))
        monkeypatch.setattr(in_memory, "replace", write)
        trained(r8, until + 20)
        assert generations(tmp_path)[-1] >= until

    r8._journal.end_thread(60.0)
    told = [event.is_on for event in heard if isinstance(event, BackupsOutlive)]

    assert len(before) > 1
    assert told == [False, True, False, True]
    assert "BACKUPS" not in line_of(look(folder, is_glance=True))


def test_screen_says_that_backups_are_off():
    """The head of the screen shows it as long as it lasts, and the lines of a run say why."""
    view, ui, theme = View(), UiState(), choose_theme({})
    view.fold(start())
    shown = []
    for reason in ("no room", ""):
        view.fold(BackupsOutlive(5, 1.0, not reason, reason))
        shown.append("".join(text for text, _ in title_line(view, ui, 100, theme, Scene())))

    assert "BACKUPS OFF" in shown[0]
    assert "BACKUPS OFF" not in shown[1]
    assert describe(BackupsOutlive(5, 1.0, False, "no room")).text == "backups do not outlive the process: no room"
    assert describe(BackupsOutlive(5, 1.0, True, "")).text == "backups outlive the process again"


@pytest.mark.parametrize("how", ["open", "link"])
def test_folder_that_others_could_use_is_not_trusted(how, killed):
    """A folder that others may write to, or a link, is neither read nor written."""
    [own] = (killed / "shm").glob("learnit_r8-*")
    if how == "open":
        own.chmod(0o777)
    else:
        own.rename(killed / "elsewhere")
        own.symlink_to(killed / "elsewhere")
    before = sorted(path.name for path in own.rglob("*"))
    r8 = opened(killed)
    assert r8.global_step == 0
    with pytest.warns(RuntimeWarning, match="is not private to this user"):
        advance_to(r8, 25)

    assert r8.global_step == 25
    assert sorted(path.name for path in own.rglob("*")) == before


def test_crashed_runs_are_swept_at_the_next_start(tmp_path):
    """What 50 crashed runs have left goes when another one starts, but for the newest, which may be resumed."""
    for number in range(50):
        backups = backups_of(tmp_path, f"run{number}")
        backups.start_write({"w": np.zeros(3)}, CONTENT, step=5, done=lambda: None)
        backups._thread.join()
        backups._release()
    r8 = opened(tmp_path)
    trained(r8, 25)

    assert len(list((tmp_path / "shm").glob("learnit_r8-*/*"))) == 2


CONTENT = {"run_id": "r", "model": None, "scheduler": {"pace": {"step": 5}, "num_draws": 5}, "config": {}}


def backups_of(folder, name, rank=0, num_ranks=1):
    return Generations(folder / "shm", folder / name, rank=rank, num_ranks=num_ranks, note=print, is_default=False)


def left_by_ranks(folder, contents, damage=None):
    """Generations of two ranks: for each rank, content by step; one file may be damaged."""
    for rank, its in enumerate(contents):
        backups = backups_of(folder, "run", rank, 2)
        for step, content in its.items():
            backups._rest_until = 0.0
            backups.start_write({"w": np.full(3, rank)}, content, step=step, done=lambda: None)
            backups._thread.join()
        backups._release()
    if damage is not None:
        [path] = (folder / "shm").glob(f"learnit_r8-*/*/{damage}")
        path.write_bytes(path.read_bytes()[:-50])


def found_by_ranks(folder):
    """The names of what two ranks take that choose together, and why they leave others out."""

    def job(ranks):
        def is_same(text):
            own = np.array([zlib.crc32(text.encode())])
            return bool((ranks.gather(own) == own).all())

        skipped = []
        found = backups_of(folder, "run", ranks.rank, 2).newest(skipped, is_same)
        return None if found is None else found.path.name, skipped

    return in_threads(2, job)


LATER = {**CONTENT, "scheduler": {"pace": {"step": 5, "seconds": 9.0}, "num_draws": 5}}


@pytest.mark.parametrize(
    ("contents", "damage", "found"),
    [
        ([dict.fromkeys((10, 20, 30), CONTENT), dict.fromkeys((10, 20), CONTENT)], None, 20),
        ([dict.fromkeys((10, 20), CONTENT)] * 2, "rank1/gen_000000000020.r8", 10),
        ([{10: CONTENT, 20: CONTENT}, {10: CONTENT, 20: LATER}], None, 10),
        ([{10: CONTENT}] * 2, "held", None),
    ],
    ids=["one has not finished it", "damaged on one rank", "of another launch", "as a dying process holds it"],
)
def test_ranks_take_the_newest_that_all_can_read(contents, damage, found, tmp_path, monkeypatch):
    """What one rank lacks or cannot read, the others do not take either, and say why; each loads its own state."""
    left_by_ranks(tmp_path, contents, damage if damage != "held" else None)
    if damage == "held":
        monkeypatch.setattr(in_memory, "is_held", lambda folder: folder.name == "rank1")
    (one, why), (other, own) = found_by_ranks(tmp_path)

    assert one == other == (found and f"gen_{found:012d}.r8")
    if damage and found:
        assert (why, len(own)) == (["gen_000000000020.r8: another rank has no readable one of this moment"], 1)
    elif found == 20:
        states = [backups_of(tmp_path, "run", rank, 2).newest([]).model_state["w"][0] for rank in (0, 1)]
        assert states == [0, 1]

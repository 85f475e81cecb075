"""Where the run folder of a scheduler is, and when there is none."""

import os
from pathlib import Path

import pytest

from learnit_r8.journal.run import find_run
from learnit_r8.journal.writer import open_journal
from tests.drive import batch_loss, make, steps, train


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with no word on where runs go."""
    monkeypatch.delenv("R8_RUNS")
    monkeypatch.chdir(tmp_path)
    return tmp_path


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

    assert made.parent == here / "elsewhere"
    assert find_run(None).absolute() == made


def test_folder_that_cannot_be_made(here):
    """A folder that was asked for where a file is in the way is an error; one that was not is a warning."""
    (here / "runs").write_text("in the way")
    with pytest.raises(OSError, match="runs"):
        make(run_dir="runs/it")
    with pytest.raises(OSError, match="runs"):
        make(run_dir=True)
    with pytest.warns(RuntimeWarning, match="the run is not recorded, .* run folder in 'runs': "):
        assert open_journal(None, is_shown=True, name="", configuration={}, table=make().table) is None


def test_program_that_changes_its_folder_loses_nothing(here, monkeypatch):
    """Relative names of the run folder and the checkpoints mean what they meant at the beginning."""
    (here / "other").mkdir()
    with make(run_dir="run", checkpoint_dir="ck") as r8:
        for step, (_, indices, _) in enumerate(steps(r8)):
            if step == 2:
                monkeypatch.chdir("other")
            r8.update_with_loss(batch_loss(indices))

    assert list((here / "other").iterdir()) == []
    assert '"kind":"RunEnded"' in (here / "run" / "events.jsonl").read_text().replace(" ", "")
    assert list((here / "ck").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="names of bytes")
def test_folder_whose_name_is_no_text(here):
    """Names that hold bytes of another encoding, as old disks have them, are folders like others."""
    name = os.fsdecode(b"caf\xe9")
    os.mkdir(os.fsencode(name))
    with make(run_dir=Path(name) / "run", checkpoint_dir=Path(name) / "ck") as r8:
        train(r8)

    assert {each.name for each in Path(name).iterdir()} == {"run", "ck"}

"""Saved files, once converted, load, go on with the batches that their version would have drawn, and show."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from learnit_r8 import R8Scheduler
from learnit_r8.cli import main
from learnit_r8.dashboard.render.pages import VIEWS
from learnit_r8.journal.run import Run
from learnit_r8.state.store import CheckpointStore
from learnit_r8.testing import ToyTask
from tests.runs.saved.write_saved import (
    BAD_SAMPLE,
    CASES,
    KNOWN,
    NEXT_STEPS,
    build,
    callbacks_of,
    go_on,
    saved_model,
    torch_training,
    train_torch,
)

HERE = Path(__file__).parent / "saved"
VERSIONS = sorted(folder.name for folder in HERE.iterdir() if (folder / "run").is_dir())
WAYS = ["resume_from_checkpoint", "load_checkpoint", "load_state_dict", "resume"]
IN_NO_FILE = ("groups", "sample_ids")


def loaded(way, name, folder, toy):
    """The scheduler of a case, built to resume its run."""
    if way == "resume_from_checkpoint":
        again = {argument: CASES[name][argument] for argument in IN_NO_FILE if argument in CASES[name]}
        return R8Scheduler.resume_from_checkpoint(folder, **again, **callbacks_of(toy))
    if way == "resume":
        return build(name, folder, toy, resume="auto")
    r8 = build(name, folder, toy)
    if way == "load_checkpoint":
        r8.load_checkpoint()
    else:
        r8.load_state_dict(CheckpointStore(folder, keep=1, run_id="").load().state)
    return r8


@pytest.fixture(params=VERSIONS, scope="module")
def converted(request, tmp_path_factory):
    """The files that a version has saved, converted."""
    copied = shutil.copytree(HERE / request.param, tmp_path_factory.mktemp("version") / "saved")
    assert main(["convert", str(copied)]) == 0
    return copied.with_name("saved-converted")


@pytest.fixture
def saved(converted, tmp_path):
    """A copy, to resume in."""
    return shutil.copytree(converted, tmp_path / "saved")


def check_expected(folder, step, seen, table):
    """The batches, rates and table must equal those that the version which wrote the file recorded."""
    with np.load(folder / "expected.npz") as expected:
        ends = np.cumsum(expected["sizes"])[:-1]
        batches = [batch.tolist() for batch in np.split(expected["indices"], ends)]

        assert step == expected["step"]
        assert [batch for batch, _ in seen] == batches
        np.testing.assert_allclose([lr for _, lr in seen], expected["rates"], rtol=1e-12)
        np.testing.assert_array_equal(table.usage_count, expected["usage_count"])
        for field in KNOWN:
            np.testing.assert_allclose(getattr(table, field), expected[field], rtol=1e-6, err_msg=field)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NEXT_STEPS)
def test_resumes_with_the_same_batches(saved, name, way):
    """A saved checkpoint, however it is loaded, continues as that version would have."""
    r8 = loaded(way, name, saved / name, ToyTask(16))
    step = r8.global_step

    check_expected(saved / name, step, go_on(r8, name, NEXT_STEPS[name]), r8.table)


@pytest.mark.parametrize("name", sorted(CASES))
def test_model_is_loaded(saved, name):
    """The model of a saved checkpoint gets to the load callback."""
    toy = ToyTask(16)
    loaded("resume_from_checkpoint", name, saved / name, toy)

    for mine, theirs in zip(toy.weights, saved_model().weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_best_checkpoint_is_known(saved):
    """The best checkpoint of a saved run is still known and kept."""
    r8 = loaded("resume_from_checkpoint", "mid_epoch", saved / "mid_epoch", ToyTask(16))
    go_on(r8, "mid_epoch", 20)
    r8.log(accuracy=0.6)
    r8.close()

    assert (r8.best_checkpoint.step, r8.best_checkpoint.value) == (20, 0.7)
    assert r8.best_checkpoint.path.exists()
    assert r8.best_checkpoint.model_path.exists()


@pytest.mark.parametrize("way", WAYS)
def test_saved_incident_goes_on(saved, way):
    """A run that was saved within an incident goes on with it to its end, with batches of distinct samples."""
    toy = ToyTask(16)
    r8 = loaded(way, "incident", saved / "incident", toy)
    assert (r8.global_step, r8.table.quarantined.tolist()) == (201, [BAD_SAMPLE])
    assert r8.state_dict()["recovery"]["incidents"]["current"]["step"] == 201
    seen = go_on(r8, "incident", 10**4)

    assert (r8.phase, r8.global_step) == ("finished", 304)
    for batch, lr in seen:
        assert 0 < len(batch) <= 16
        assert len(set(batch)) == len(batch)
        assert set(batch) <= set(range(300)) - {BAD_SAMPLE}
        assert 0 <= lr <= 0.01


def test_state_of_torch_goes_on(saved):
    """What the adapter gave to ``torch.save`` loads without running code, and goes on as it was."""
    torch = pytest.importorskip("torch")
    adapter, model = torch_training()
    adapter.load_state_dict(torch.load(saved / "torch" / "state.pt", weights_only=True))
    step = adapter.scheduler.global_step

    check_expected(saved / "torch", step, train_torch(adapter, model, 40), adapter.scheduler.table)


def printed(capsys, *arguments):
    """The lines of a command that must succeed."""
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out.splitlines()


def test_run_is_shown(converted, tmp_path, capsys):
    """Journal, status, samples by epoch, numbers in both formats, page and lines of a saved run, as it ended."""
    folder = converted / "run"
    run = Run(folder)
    kinds = {type(record.event).__name__ for record in run.records()}
    assert run.num_damaged == 0
    assert kinds >= {"RunStarted", "StepsDone", "EpochDone", "BatchRefused", "RolledBack", "BackupTaken"}
    assert kinds >= {"MetricsLogged", "CheckpointSaved", "BestSaved", "SamplesSurveyed", "RunEnded"}

    [line] = printed(capsys, "status", folder)
    facts = json.loads(printed(capsys, "status", folder, "--json")[0])
    assert line.startswith("saved  finished  100.0%  epoch 6/6  step 60/60  loss ")
    assert (facts["state"], facts["step"]) == ("finished", 60)
    assert printed(capsys, "watch", folder)[-1].startswith("saved  finished")

    for epoch in range(1, 7):
        rows = list(csv.DictReader(printed(capsys, "samples", folder, "--csv", "--top", "5", "--epoch", epoch)))
        assert len(rows) == 5
        assert all(row["name"] == f"{row['index']}.png" and float(row["loss"]) >= 0 for row in rows)
    assert printed(capsys, "samples", folder, "--suspects")
    for of, least in (("steps", 55), ("epochs", 6), ("metrics", 6), ("events", 20)):
        rows = list(csv.DictReader(printed(capsys, "export", folder, "--of", of)))
        objects = printed(capsys, "export", folder, "--of", of, "--format", "jsonl")
        assert len(rows) == len(objects) >= least

    printed(capsys, "report", folder, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "saved" in page
    assert "spike" in page


@pytest.mark.parametrize("command", ["watch", "replay"])
@pytest.mark.parametrize("view", VIEWS)
def test_run_is_drawn(converted, capsys, command, view):
    """`watch` and `replay` draw every view of a saved run."""
    lines = printed(capsys, command, converted / "run", "--once", "--view", view, "--width", 100, "--height", 30)

    assert len(lines) == 30
    assert any("saved" in line for line in lines)

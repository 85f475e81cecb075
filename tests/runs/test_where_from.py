"""A resumed run says where it comes from, and one whose folder was deleted begins anew."""

import shutil

import numpy as np
import pytest

from learnit_r8 import Backups, R8Scheduler, events
from learnit_r8.events.event import describe
from tests.runs.test_outliving import generations, killed


def resumed(tmp_path, seen):
    model = {"w": np.zeros(50)}
    save = lambda state, path: np.save(path + ".npy", state["model"]["w"])  # noqa: E731
    return R8Scheduler(
        640, batch_size=8, num_steps=120, checkpoint_dir=tmp_path / "ck",
        backup_every=Backups(10, backup_dir=tmp_path / "shm"), resume="auto",
        checkpoint_every=10_000, state_callback=lambda: model, load_callback=model.update,
        save_callback=save, listeners=[seen.append],
    )  # fmt: skip


def test_memory_of_a_deleted_folder_is_ignored_with_a_word(tmp_path):
    """Whoever deletes the checkpoints after a kill begins anew; what was in memory is gone, also for the next run."""
    killed(tmp_path)
    shutil.rmtree(tmp_path / "ck")
    with pytest.warns(RuntimeWarning, match=r"starts over, as the folder of its checkpoints, .* was deleted"):
        r8 = resumed(tmp_path, [])

    assert r8.global_step == 0
    assert generations(tmp_path) == []
    r8.draw()
    assert resumed(tmp_path, []).global_step == 0


def test_a_run_from_memory_says_so(tmp_path):
    """What a resumed run goes on from is an event, and its text names the memory, and the step."""
    killed(tmp_path)
    seen = []
    r8 = resumed(tmp_path, seen)
    step = r8.global_step
    r8.draw()
    texts = [describe(event).text for event in seen if isinstance(event, events.CheckpointLoaded)]

    assert step > 0
    assert len(texts) == 1
    assert texts[0].startswith(f"goes on from the backup in shared memory {tmp_path / 'shm'}")
    assert texts[0].endswith(f"at step {step}")

"""Trainings that torchrun starts again after a rank was killed."""

import pytest

import tests.shard_jobs as jobs
from tests.restart_job import loaded, torchrun


@pytest.mark.program
def test_a_killed_rank_is_started_again_and_all_go_on_from_one_state(pair, tmp_path):
    """Killed twice, on either rank, once with its newest backup damaged: the run ends as if nothing had happened."""
    unbroken = pair.run(jobs.sharded_run, "ddp", "mixed", {"every": 4})
    folder = tmp_path / "run"
    kills = [(1, 23, True), (0, 17, False)]
    ended = torchrun(folder, kills, checkpoint_every=12, backup_every=4)
    damaged = (folder / "damaged").read_text()
    first, second = loaded(folder, 1), loaded(folder, 2)

    assert ended == [{name: _listed(each[name]) for name in ended[0]} for each in unbroken]
    assert len(list(folder.glob("killed.*"))) == 2
    assert first[0] == first[1]
    assert second[0] == second[1]
    assert first[0].startswith("gen_"), "no backup in shared memory was used"
    assert first[0] < damaged


def _listed(value):
    return list(value) if isinstance(value, tuple) else value

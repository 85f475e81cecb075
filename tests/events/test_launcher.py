import pytest

from learnit_r8.events import launcher


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "SLURM_PROCID": "0"}, (3, 4)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "RANK": "", "WORLD_SIZE": "x"}, (1, 2)),
    ],
)
def test_rank_and_number_of_ranks(environ, place):
    """The environment of the launcher gives both; what is no number is passed by."""
    assert (launcher.rank_of(environ), launcher.num_ranks_of(environ)) == place

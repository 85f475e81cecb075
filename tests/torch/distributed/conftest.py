"""Processes that stay for all tests of several ranks: starting them takes longer than most of these."""

import pytest

from tests.rank_common import World


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    world = World(2, tmp_path_factory.mktemp("pair"))
    yield world
    world.close()

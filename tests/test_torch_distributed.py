"""Several ranks that are processes connected by gloo."""

import math

import pytest
import rank_jobs as jobs
from rank_common import World

from learnit_r8 import CheckpointStore
from learnit_r8.torch import Ranks


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    world = World(2, tmp_path_factory.mktemp("pair"))
    yield world
    world.close()


@pytest.fixture
def four(tmp_path):
    world = World(4, tmp_path)
    yield world
    world.close()


def test_messages_reach_everyone(pair):
    """All ranks get the messages of all, in their order, NaN and all."""
    one, other = pair.run(jobs.gathered)

    assert repr(one) == repr(other)
    assert [message[:2] for message in one] == [[0.0, 0.1], [1.0, 0.1]]
    assert math.isnan(one[1][2])


@pytest.mark.parametrize("text", ["ck_000000000012.r8", "", "Grüße", None])
def test_rank_0_names_things(pair, text):
    """What rank 0 says reaches the others as it is."""
    assert pair.run(jobs.named, text) == [text, text]


def test_tables_are_bit_identical(pair):
    """After 2,000 steps with a NaN on a random rank each 500 the tables of both ranks are the same bits."""
    [one, other] = pair.run(jobs.toy_run, 2000, 500)

    assert one == other
    assert one[1:] == (4, 2000)


@pytest.mark.slow
def test_tables_of_four_are_bit_identical(four):
    """So are those of four ranks after 10,000 steps."""
    answers = four.run(jobs.toy_run, 10_000, 500)

    assert answers == [answers[0]] * 4
    assert answers[0][1:] == (20, 10_000)


@pytest.mark.parametrize(("bad_rank", "every"), [(0, 16), (1, 1)])
def test_a_model_under_ddp_heals(pair, bad_rank, every):
    """A NaN on one rank leaves models and tables of all ranks equal and the model well trained."""
    [one, other] = pair.run(jobs.digits_run, bad_rank, 70, every)

    assert one == other
    assert one[2] == 1
    assert one[3] > 0.93


def test_a_signal_to_one_rank_stops_all_after_the_same_step(pair, tmp_path):
    """A stop asked for by a signal handler on rank 1 ends the run on all ranks, with a checkpoint of that step."""
    answers = pair.run(jobs.stopped_run, str(tmp_path))
    saved = CheckpointStore(tmp_path, keep=1, run_id="").load()

    assert answers[0] == answers[1]
    assert 100 < answers[0][0] <= 116
    assert saved.state["pace"]["step"] == answers[0][0]


@pytest.mark.parametrize(("killed", "how"), [(1, "dies"), (0, "dies"), (1, "dies in backward"), (1, "hangs")])
def test_a_lost_rank_ends_the_others(tmp_path, killed, how):
    """A rank that dies or hangs makes the others raise, in seconds, and the message names it."""
    world = World(2, tmp_path)
    survivor = 1 - killed
    for pipe in world.pipes:
        pipe.send((jobs.lost_run, (killed, how)))
    assert world.pipes[survivor].poll(60)
    text, (kind, message, seconds) = world.pipes[survivor].recv()
    world.close()

    assert text == ""
    assert kind == "RankLost"
    assert f"no answer from rank {killed}" in message
    assert seconds < 20


def test_ranks_need_a_group():
    """Without torch.distributed there are no ranks."""
    with pytest.raises(RuntimeError, match=r"torch\.distributed must be initialised"):
        Ranks()


@pytest.mark.parametrize("seconds", [0, -1, "5"])
def test_the_time_to_wait_must_be_positive(seconds):
    """The timeout is a number of seconds."""
    with pytest.raises(ValueError, match="timeout_seconds must be a number > 0"):
        Ranks(timeout_seconds=seconds)

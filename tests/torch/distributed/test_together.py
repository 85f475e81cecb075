"""Several ranks that are processes connected by gloo."""

import math
import os
import platform
import re

import pytest

import tests.own_rank_jobs as own_jobs
import tests.rank_jobs as jobs
from learnit_r8 import CheckpointStore, Monitor, R8Scheduler, RunDir
from tests.programs import ROOT, torchrun
from tests.rank_common import World

pytestmark = pytest.mark.program


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
    """After 400 steps with a NaN on a random rank each 100 the tables of both ranks are the same bits."""
    [one, other] = pair.run(jobs.toy_run, 400, 100)

    assert one == other
    assert one[1:] == (4, 400)


@pytest.mark.slow
def test_tables_of_four_are_bit_identical(four):
    """So are those of four ranks after 10,000 steps."""
    answers = four.run(jobs.toy_run, 10_000, 500)

    assert answers == [answers[0]] * 4
    assert answers[0][1:] == (20, 10_000)


def test_adapters_share_what_they_predict(pair):
    """Adapters report each rank's own logits, and the evidence is the same on both, a refused NaN and all."""
    [one, other] = pair.run(jobs.predicting_run, 75)

    assert one == other
    assert one[1] == 1
    assert one[2] > 0.8


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_adapter_heals_on_all_ranks(pair, workers):
    """`attach` shares the scheduler by itself: a NaN on one rank is refused by both, and all stays equal."""
    [one, other] = pair.run(jobs.attached_run, 1, 75, {"num_epochs": 6}, workers)

    assert one == other
    # One batch of the epoch is left out for a test of the weights.
    assert one[2:4] == (1, 173)
    assert one[5] > 0.93


@pytest.mark.parametrize("at", [36, 37, 38, 39])
@pytest.mark.parametrize("how", ["state", "checkpoint"])
def test_a_state_is_loaded_while_losses_are_under_way(pair, tmp_path, at, how):
    """Whatever is held back or under way when a state is loaded is forgotten, and the run is that of the state."""
    folder = str(tmp_path) if how == "checkpoint" else ""
    [one, other] = pair.run(jobs.reloaded_run, at, folder)
    [unbroken, _] = pair.run(jobs.reloaded_run, -1, "")

    assert one == other
    assert one == unbroken


def test_an_adapter_takes_every_sample_once(pair):
    """Each sample is trained on once an epoch, by one rank; two ranks fill up the last batch with one sample."""
    [one, other] = pair.run(jobs.attached_run, None, None, {"num_epochs": 3}, 0)

    assert one == other
    assert one[4] == [3]


def test_an_adapter_ends_with_the_time_of_rank_0(pair):
    """A budget in seconds ends both ranks after the same step."""
    [one, other] = pair.run(jobs.attached_run, None, None, {"train_duration_seconds": 1.0}, 2)

    assert one == other
    assert one[3] > 0


def test_ranks_have_random_numbers_of_their_own_after_a_resume(pair, tmp_path):
    """A checkpoint holds the generators of all ranks: each goes on with its own."""
    [(one, weights), (other, same_weights)] = pair.run(jobs.resumed_numbers, str(tmp_path))

    assert one[0] == one[1] == one[2]
    assert other[0] == other[1] == other[2]
    assert not set(one[0]) & set(other[0])
    assert weights == same_weights


def test_models_that_drift_apart_are_said_once(pair):
    """Where nobody averages the gradients, a warning says so."""
    for messages in pair.run(jobs.drifting_run, 200):
        assert [text for text in messages if "models of the ranks have drifted apart" in text] == messages
        assert len(messages) == 1


def test_only_rank_0_shows_itself(pair):
    """The screen and the run folder are those of rank 0."""
    [one, other] = pair.run(jobs.settings_made)

    shown = {"run_dir": RunDir("runs", record="batch"), "monitor": Monitor("loss", mode="min")}
    assert one == {"use_curses": True, **shown, "seed": 3}
    assert other == {"run_dir": RunDir(record="batch"), "seed": 3}


def test_backups_stay_in_a_process_without_rank(pair, tmp_path):
    """No later process could tell whose they are: off unless they were asked for, which is refused."""
    for said in pair.run(jobs.backups_without_rank, str(tmp_path)):
        assert said[:2] == [False, False]
        assert said[2].startswith("backup_dir must be None or False if the model is sharded, or RANK in the")


def test_adapters_that_differ_are_refused(pair):
    """Another way to step on another rank, or a Together for two adapters, would hang: it is said at once."""
    for said in pair.run(jobs.made_otherwise):
        assert said[0].startswith("RanksDiffer: accumulate must be the same on all ranks, got ")
        assert said[1].startswith(
            "ValueError: sharing must be a Together() of its own for each attach(), got one of R8"
        )


@pytest.mark.parametrize("workers", [pytest.param((0, 2), marks=pytest.mark.slow), (2, 1)])
def test_workers_may_differ(pair, workers):
    """How far the loader of a rank fetches ahead changes nothing on any."""
    expected, found = (pair.run(jobs.attached_run, None, None, {"num_epochs": 2}, each) for each in (0, workers))

    assert found == expected


@pytest.mark.parametrize("until", [50, 79])
def test_one_process_goes_on_where_two_left_off(pair, tmp_path, until):
    """A checkpoint of two ranks is that of one process, and the table at the end that of an unbroken run."""
    pair.run(jobs.begun_run, str(tmp_path), until)
    broken, whole = (R8Scheduler(640, batch_size=8, num_epochs=3, checkpoint_dir=tmp_path) for _ in range(2))
    broken.load_checkpoint()
    for r8 in (broken, whole):
        for _ in r8.epoch_iterator():
            for indices, _ in r8.batch_iterator():
                r8.update_with_loss(1.0 + indices / 640)

    assert jobs.table_digest(broken) == jobs.table_digest(whole)


def test_example(tmp_path):
    """The example trains on two ranks that torchrun starts, heals, and ends with equal tables."""
    # As where steps are quick: else the loss is refused before its step is taken, and nothing is tested.
    (tmp_path / "quick.py").write_text(
        "import runpy, sys\n"
        "from learnit_r8.torch.distributed import exchange\n"
        "exchange.EXCHANGE_SECONDS = 1e6\n"
        "sys.path.insert(0, sys.argv.pop(1))\n"
        "runpy.run_module('ddp', run_name='__main__', alter_sys=True)\n"
    )
    printed = torchrun(tmp_path, "quick.py", ROOT / "examples", "--spoil")

    assert "2 ranks, 329 steps, losses refused: 1" in printed
    assert "tables and models of all ranks are equal: True" in printed
    assert float(re.findall(r"test accuracy ([\d.]+)%", printed)[-1]) > 93


@pytest.mark.slow
@pytest.mark.parametrize(("options", "low", "high"), [((), 93, 100), (("--spoil",), 0, 20)])
def test_plain_example(tmp_path, options, low, high):
    """The plain version of the example reaches the same accuracy, and learns nothing any more after a bad image."""
    printed = torchrun(tmp_path, ROOT / "examples" / "ddp_plain.py", *options)

    assert low < float(re.findall(r"test accuracy ([\d.]+)%", printed)[-1]) < high


PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL))
def test_blocks_of_the_page_run(pair, block):
    """Each block of docs/distributed.md is a program for several ranks."""
    pair.run(jobs.program, block)


def test_a_signal_to_one_rank_stops_all_after_the_same_step(pair, tmp_path):
    """A stop asked for by a signal handler on rank 1 ends the run on all ranks, with a checkpoint of that step."""
    answers = pair.run(jobs.stopped_run, str(tmp_path))
    saved = CheckpointStore(tmp_path, keep=1, run_id="").load()

    assert answers[0] == answers[1]
    assert 100 < answers[0][0] <= 117
    assert saved.state["pace"]["step"] == answers[0][0]


@pytest.mark.parametrize("at", [70, 80])
def test_a_rank_that_is_to_end_ends_all_with_a_checkpoint(pair, tmp_path, at):
    """SIGTERM on one rank: all end after the same step, saved by rank 0; the rank that got it has its exit code.

    Of 29 steps an epoch, one is asked in mid-epoch, and one when the next exchange is at the border.
    """
    answers = pair.run(jobs.preempted_run, str(tmp_path), at)
    step = answers[0][1]

    assert answers == [("stopped", step), ("exit 143", step)]
    assert at <= step <= at + 17
    assert CheckpointStore(tmp_path, keep=1, run_id="").load().state["pace"]["step"] == step


@pytest.mark.parametrize(
    ("killed", "how"),
    [
        pytest.param(1, "dies", marks=pytest.mark.slow),
        (0, "dies"),
        pytest.param(1, "dies in backward", marks=pytest.mark.slow),
        pytest.param(1, "hangs", marks=pytest.mark.slow),
    ],
)
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


def test_a_rank_lost_in_a_step_is_named(tmp_path):
    """Who dies while the others wait in the backward pass of an adapter's step is named too."""
    world = World(2, tmp_path)
    for pipe in world.pipes:
        pipe.send((jobs.lost_adapter_run, (1,)))
    assert world.pipes[0].poll(60)
    text, (kind, message) = world.pipes[0].recv()
    world.close()

    assert text == ""
    assert kind == "RankLost"
    assert "no answer from rank 1" in message


@pytest.mark.parametrize("fault", ["in use", "unreadable", "damaged"])
def test_what_rank_0_finds_before_a_resume_is_raised_on_all_ranks(pair, fault, tmp_path):
    """A run that another process trains, a folder that cannot be read, damage: nobody waits, and all ranks say it."""
    # The file system is what rank 0 sees.
    with R8Scheduler(num_steps=8, scheduler_mode="keep", checkpoint_dir=tmp_path, checkpoint_every=4) as r8:
        for _ in r8.steps():
            r8.update_with_loss(1.0)
            if r8.global_step == 6:
                break
        if fault == "damaged":
            next(tmp_path.glob("ck_*")).write_bytes(b"")
        if fault != "in use":
            r8.host.saver.store.release()
        errors = pair.run(own_jobs.refused_resume, str(tmp_path), fault)

    kind, text = {
        "in use": ("RunInUse", rf"the process {os.getpid()} on {platform.node()} trains"),
        "unreadable": ("OSError", "give another one to start a new run"),
        "damaged": ("NoValidCheckpoint", "checkpoint_dir must hold a valid checkpoint"),
    }[fault]
    for found, message in errors:
        assert (found, bool(re.search(text, message))) == (kind, True), message

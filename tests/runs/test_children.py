"""A child forked from a training process that continues to train leaves the parent's files unchanged."""

import os
import warnings

import pytest

from tests.drive import Weights, advance_to, make, train

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks")


def in_a_child(act):
    """The exit code of a forked child that runs it; 0 if nothing was wrong."""
    with warnings.catch_warnings():
        # Frameworks that other tests have imported warn of forks.
        warnings.simplefilter("ignore")
        child = os.fork()
        if not child:
            code = 1
            try:
                act()
                code = 0
            finally:
                os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def run(folder, **more):
    model = Weights()
    callbacks = {"save_callback": model.save, "load_callback": model.load, "state_callback": model.get}
    return make(24, checkpoint_dir=folder, num_epochs=6, keep_checkpoints=2, **callbacks, **more)


@pytest.mark.filterwarnings("ignore:monitor must be a metric given to log")
def test_child_that_trains_on(tmp_path):
    """The child writes, deletes and pins no checkpoint; it warns, and can train to the end."""
    r8 = run(tmp_path, monitor="score", mode="max", run_dir=tmp_path / "journal")
    advance_to(r8, 14)
    before = files(tmp_path)
    # What waits would be written by the parent's own thread while the child trains.
    r8._journal.end_thread(60.0)
    journal = (tmp_path / "journal" / "events.jsonl").read_bytes()

    def train_on():
        train(r8)
        r8.log(score=9.0)
        r8.close()
        assert r8.global_step == 36
        assert r8.best_checkpoint is None

    assert in_a_child(train_on) == 0
    assert files(tmp_path) == before
    assert (tmp_path / "journal" / "events.jsonl").read_bytes() == journal


def test_child_says_why(tmp_path):
    """A child that continues to train warns once that nothing is saved; asked for a checkpoint, it names who writes."""
    r8, parent = run(tmp_path), os.getpid()
    advance_to(r8, 3)

    def train_on():
        with pytest.raises(RuntimeError, match=f"process {parent} writes them, and this is {os.getpid()}, forked"):
            r8.save_checkpoint()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train(r8)
        assert ["forked from it" in str(warning.message) for warning in said].count(True) == 1

    assert in_a_child(train_on) == 0


def test_parent_is_not_affected(tmp_path):
    """The parent trains and saves exactly as without the child."""
    r8, alone = run(tmp_path / "a"), run(tmp_path / "b")
    advance_to(r8, 14)
    in_a_child(lambda: train(r8))
    train(r8)
    train(alone)

    assert sorted(files(tmp_path / "a")) == [name.replace(alone.host.persistence.store.run_id[:8],
        r8.host.persistence.store.run_id[:8]) for name in sorted(files(tmp_path / "b"))]  # fmt: skip
    assert repr(r8.state_dict()["table"]) == repr(alone.state_dict()["table"])


def test_child_that_begins_the_run(tmp_path):
    """A run built before the fork but started in the child is the child's own, and is saved."""
    r8 = run(tmp_path)

    def train_all():
        train(r8)
        assert r8.host.persistence.store.load().state["pace"]["step"] == 36

    assert in_a_child(train_all) == 0
    assert len([name for name in files(tmp_path) if name.startswith("ck_")]) == 2

import pytest
from wild_scripts import (
    Accumulated,
    Averaged,
    Bfloat16,
    Bucketed,
    Epochs,
    Gan,
    InPlace,
    Iterations,
    OneCycle,
    OwnGenerator,
    Recurrent,
    Streamed,
    WarmRestarts,
    Workers,
    clouds,
    seed_all,
)  # fmt: skip

from .test_no_harm import differences

KINDS = [
    Accumulated, Averaged, Bfloat16, Bucketed, Epochs, Gan, InPlace, Iterations, OneCycle, OwnGenerator, Recurrent,
    Streamed, WarmRestarts, Workers,
]  # fmt: skip


class Killed(BaseException):
    """Stands for a process that ends at once."""


def trained(kind, folder, *, kill_at=None, seed=0, **settings):
    """Train with checkpoints every six steps; ``kill_at`` ends the process in that step."""

    def hook(step, script):
        if script.r8.scheduler.global_step == kill_at:
            raise Killed

    seed_all(seed)
    script = kind(hook=hook, checkpoint_dir=folder, checkpoint_every=6, resume="auto", backup_dir=False, **settings)
    script.begun = script.r8.scheduler.global_step
    return script.run()


@pytest.mark.program
@pytest.mark.parametrize("at", [8, 23])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_killed_script_goes_on_with_the_same_next_batch(kind, at, tmp_path):
    """Weights, optimizer, generators and the order of the data are those of the run that was not killed."""
    whole = trained(kind, tmp_path / "whole")
    with pytest.raises(Killed):
        trained(kind, tmp_path / "killed", kill_at=at)
    resumed = trained(kind, tmp_path / "killed", seed=5)

    assert resumed.begun == at // 6 * 6
    one, two = whole.state(), resumed.state()
    for state in (one, two):
        state["order"] = state["order"][-20:] if len(two["order"]) >= 20 else state["order"][-len(two["order"]) :]
        state["losses"] = state["losses"][-len(two["losses"]) :]
    assert not differences(one, two)
    if resumed.also and "schedule" in resumed.also:
        assert resumed.schedule.state_dict() == whole.schedule.state_dict()


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("at", [14, 23])
def test_a_sampler_that_shuffles_in_place_goes_on_as_it_was(at, tmp_path):
    """Killed between two epochs or within one: its lists are what they were, so the same samples come in that order."""
    whole = trained(InPlace, tmp_path / "whole")
    with pytest.raises(Killed):
        trained(InPlace, tmp_path / "killed", kill_at=at)
    resumed = trained(InPlace, tmp_path / "killed", seed=5)

    assert resumed.begun == at // 6 * 6
    assert resumed.order == whole.order[resumed.begun :]
    assert resumed.bins.bins == whole.bins.bins


def test_indices_alone_are_forwarded_where_it_is_asked(tmp_path):
    """With resume_data="indices" the same samples come next, and none is read for nothing."""
    reads = []

    class Counted(Epochs):
        def build(self):
            super().build()
            data, own = self.loader.dataset, type(self.loader.dataset).__getitem__

            class Counting(type(data)):
                def __getitem__(self, index):
                    reads.append(index)
                    return own(self, index)

            data.__class__ = Counting

    trained(Counted, tmp_path / "whole")
    whole = list(reads)
    with pytest.raises(Killed):
        trained(Counted, tmp_path / "killed", kill_at=8)
    reads.clear()
    resumed = trained(Counted, tmp_path / "killed", seed=5, resume_data="indices")

    assert resumed.begun == 6
    assert reads == whole[60:]


def test_other_loaders_cannot_be_forwarded_by_indices(tmp_path):
    """It needs a batch sampler."""
    with pytest.raises(Killed):
        trained(Recurrent, tmp_path, kill_at=8)
    with pytest.raises(
        ValueError, match="resume_data must be 'replay' or 'start' for a loader without a batch_sampler of its own"
    ):
        trained(Recurrent, tmp_path, resume_data="indices")


@pytest.mark.program
@pytest.mark.filterwarnings("ignore:.set_vital. is deprecated")
@pytest.mark.parametrize("workers", [None, 0, 1])
def test_a_stream_of_hugging_face_begins_later_epochs_at_their_start(workers, tmp_path):
    """Though it was brought to its place by its own state, within a `StatefulDataLoader` or without."""
    datasets = pytest.importorskip("datasets")
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    class Rows(Epochs):
        def build(self):
            super().build()
            x, y = clouds()
            rows = datasets.Dataset.from_dict({"x": x.tolist(), "y": y.tolist()}).to_iterable_dataset(num_shards=4)
            rows = rows.with_format("torch").batch(12)
            self.loader = rows
            if workers is not None:
                self.loader = stateful.StatefulDataLoader(rows, batch_size=None, num_workers=workers)

        @property
        def batches(self):
            for batch in super().batches:
                yield batch["x"], batch["y"]

    whole = trained(Rows, tmp_path / "whole")
    with pytest.raises(Killed):
        trained(Rows, tmp_path / "killed", kill_at=14)
    resumed = trained(Rows, tmp_path / "killed", seed=5)

    assert resumed.begun == 12
    assert len(resumed.losses) == 4 * 8 - 12
    assert not differences(whole.state()["parts"], resumed.state()["parts"])

"""Models of which each rank holds only a part, by `fully_shard`, between two processes."""

import pytest

import tests.shard_jobs as jobs


@pytest.mark.parametrize("every", [1, 4])
def test_a_sharded_model_heals_like_a_whole_one(pair, every):
    """After a NaN on one rank, weights, tables, batches and random numbers are those of a run under DDP."""
    options = {"nan_at": 37, "every": every}
    whole, sharded = (pair.run(jobs.sharded_run, kind, "mixed", options) for kind in ("ddp", "fsdp2"))

    assert sharded == whole
    assert [each["refused"] for each in sharded] == [1, 1]


def test_a_sharded_model_is_one_process(pair):
    """Where no sum is rounded, the weights, the table and the batches are those of one process."""
    alone = jobs.sharded_run(0, "plain", "exact")
    for found in pair.run(jobs.sharded_run, "fsdp2", "exact"):
        assert {**found, "numbers": 0} == {**alone, "numbers": 0}


@pytest.mark.parametrize(("before", "after"), [("fsdp2", "fsdp2"), ("fsdp2", "ddp"), ("ddp", "fsdp2")])
def test_a_checkpoint_fits_models_that_are_sharded_and_that_are_not(pair, tmp_path, before, after):
    """A file holds whole tensors and the random generators of all ranks: every way to go on is equal to the bit."""
    unbroken = pair.run(jobs.sharded_run, "ddp", "mixed", {"every": 4})
    settings = {"every": 4, "checkpoint_dir": str(tmp_path), "checkpoint_every": 10**6}
    pair.run(jobs.sharded_run, before, "mixed", {**settings, "stop_at": 21})
    resumed = pair.run(jobs.sharded_run, after, "mixed", {**settings, "resume": "auto"})

    assert [{**each, "batches": []} for each in resumed] == [{**each, "batches": []} for each in unbroken]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
def test_a_checkpoint_of_torch_distributed_resumes_on_other_numbers_of_ranks(pair, tmp_path):
    """Shards and the scheduler's state go through torch.distributed.checkpoint, from 2 ranks to 1 and back to 2."""
    whole = jobs.sharded_run(0, "plain", "exact")
    first, *_ = pair.run(jobs.checkpointed_run, "fsdp2", 0, 13, tmp_path)
    second = jobs.checkpointed_run(0, "plain", 13, 27, tmp_path)
    third, _ = pair.run(jobs.checkpointed_run, "fsdp2", 27, None, tmp_path)

    assert [len(each["batches"]) for each in (first, second, third)] == [13, 14, 21]
    assert first["batches"] + second["batches"] + third["batches"] == whole["batches"]
    assert (third["weights"], third["table"]) == (whole["weights"], whole["table"])


def test_what_cannot_be_sharded_is_refused(pair):
    """Other kinds of parallelism, and the first FSDP, are refused before anything is trained."""
    for parallel, fsdp1 in pair.run(jobs.refusals):
        assert parallel.startswith("model must be sharded by fully_shard() alone, got ")
        assert fsdp1.startswith(
            "model must be sharded by fully_shard() (FSDP2), got one under FullyShardedDataParallel"
        )

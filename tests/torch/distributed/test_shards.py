"""Models of which each rank holds only a part, by `fully_shard`, between two processes."""

import pytest
import torch

import tests.shard_jobs as jobs
from learnit_r8.recovery.record import numbers_in, read_record

pytestmark = pytest.mark.program


@pytest.mark.parametrize("every", [4, 1])
def test_a_sharded_model_heals_like_a_whole_one(pair, every):
    """After a NaN on one rank, weights, tables, batches and random numbers are those of a run under DDP."""
    options = {"nan_at": 37, "every": every}
    whole, sharded = (pair.run(jobs.sharded_run, each, "mixed", options) for each in ("ddp", "fsdp2"))

    assert sharded == whole
    assert [each["refused"] for each in sharded] == [1, 1]


def test_of_a_sharded_model_values_alone_are_looked_at(pair, tmp_path):
    """A forward pass there is one of all ranks: nothing is run again, no rank waits, and the record says so."""
    one, other = pair.run(jobs.sharded_run, "fsdp2", "mixed", {"nan_at": 37, "every": 1, "run_dir": str(tmp_path)})
    assert one["refused"] == other["refused"] == 1

    [finding] = [read_record(tmp_path / "incidents" / str(number))["finding"] for number in numbers_in(tmp_path)]
    assert (finding["kind"], finding["num_runs"]) == ("unknown", 0)
    assert finding["text"] == "input, weights and the optimizer's state are finite"
    assert finding["missing"].startswith("nothing is run again where a forward pass is one of all processes")


def test_a_sharded_model_is_one_process(pair):
    """Where no sum is rounded, the weights, the table and the batches are those of one process."""
    alone = jobs.sharded_run(0, "plain", "exact")
    for found in pair.run(jobs.sharded_run, "fsdp2", "exact"):
        assert {**found, "numbers": 0} == {**alone, "numbers": 0}


def test_a_restore_after_a_forward_pass_leaves_no_old_weights(pair):
    """Whole parameters wait for a backward pass that does not come where losses are refused before it."""
    for before, stepped, restored in pair.run(jobs.restored_after_forward, "fsdp2"):
        assert torch.equal(restored, before)
        assert not torch.equal(stepped, before)


def test_a_gradient_is_cut_to_the_norm_of_all_its_parts(pair):
    assert pair.run(jobs.clipped_step, "fsdp2") == pytest.approx(pair.run(jobs.clipped_step, "ddp"), rel=1e-4)
    assert pair.run(jobs.clipped_step, "fsdp2") == pytest.approx([0.01, 0.01], rel=1e-3)


def test_the_state_of_a_sharded_model_is_that_of_a_plain_one(pair):
    """Names, shapes and numbers of parameters, on all ranks; and putting it back gives it again."""
    plain = jobs.Normed()
    shapes = [value.shape for value in plain.parameters()]
    for begun, stepped, again in pair.run(jobs.states, "fsdp2"):
        assert list(begun["model"]) == list(plain.state_dict())
        assert begun["optimizer"]["state"] == {}
        assert [each["exp_avg"].shape for each in stepped["optimizer"]["state"].values()] == shapes
        for found in (stepped["model"], *stepped["optimizer"]["state"].values()):
            assert all(isinstance(value, torch.Tensor) for value in found.values())
        torch.testing.assert_close(again["model"], stepped["model"], rtol=0, atol=0)
        torch.testing.assert_close(again["optimizer"]["state"], stepped["optimizer"]["state"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("before", "after"),
    [("fsdp2", "fsdp2"), ("fsdp2", "ddp"), ("ddp", "fsdp2")],
)
def test_a_checkpoint_fits_models_that_are_sharded_and_that_are_not(pair, tmp_path, before, after):
    """A file holds whole tensors and the random generators of all ranks: every way to go on is equal to the bit."""
    unbroken = pair.run(jobs.sharded_run, "ddp", "mixed", {"every": 4})
    settings = {"every": 4, "checkpoint_dir": str(tmp_path), "checkpoint_every": 10**6}
    pair.run(jobs.sharded_run, before, "mixed", {**settings, "stop_at": 21})
    resumed = pair.run(jobs.sharded_run, after, "mixed", {**settings, "resume": "auto"})

    assert [{**each, "batches": []} for each in resumed] == [{**each, "batches": []} for each in unbroken]


def test_a_checkpoint_fits_other_numbers_of_ranks(pair, tmp_path):
    """From 2 ranks to 1 process, whose model is not sharded, and back to 2."""
    whole = jobs.sharded_run(0, "plain", "exact")
    settings = {"checkpoint_dir": str(tmp_path), "checkpoint_every": 10**6}
    first, *_ = pair.run(jobs.sharded_run, "fsdp2", "exact", {**settings, "stop_at": 13})
    second = jobs.sharded_run(0, "plain", "exact", {**settings, "resume": "auto", "stop_at": 27})
    thirds = pair.run(jobs.sharded_run, "fsdp2", "exact", {**settings, "resume": "auto"})

    for third in thirds:
        assert first["batches"] + second["batches"] + third["batches"] == whole["batches"]
        assert (third["weights"], third["table"]) == (whole["weights"], whole["table"])


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
    """Other kinds of parallelism, and FSDP1 anywhere in a model, are refused before anything is trained."""
    for *parallel, whole, whole_loader, part, part_loader in pair.run(jobs.refusals):
        assert len(parallel) == 2
        assert all(text.startswith("model must be sharded by fully_shard() alone, got ") for text in parallel)
        for text, name in ((whole, "''"), (whole_loader, "''"), (part, "'0'"), (part_loader, "'0'")):
            assert text.startswith(
                f"model must be sharded by fully_shard() (FSDP2), got FullyShardedDataParallel (FSDP1) at {name}; call "
                "fully_shard(model) in its place"
            )

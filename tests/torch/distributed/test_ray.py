"""Ray Train: two workers on this machine, of which one is killed."""

import ast
import os
import random
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

import tests.shard_jobs as jobs
from learnit_r8.torch import attach
from tests.programs import ROOT, printed_by
from tests.rank_jobs import table_digest

pytest.importorskip("ray.train.torch")

import ray
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model


@pytest.fixture
def on_two_processors(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # Started anew, workers have to load torch first, on a machine that others use too.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "180")
    ray.init(num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.program
@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_is_replaced_and_the_run_goes_on(pair, tmp_path, on_two_processors):
    """It goes on from the checkpoint that was reported last, and ends equal to the bit to an unbroken run."""
    unbroken = pair.run(jobs.sharded_run, "ddp", "mixed", {"every": 4})
    result = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"folder": str(tmp_path), "killed_at": 25},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(tmp_path / "storage"), failure_config=FailureConfig(max_failures=2)),
    ).fit()
    ended = [torch.load(tmp_path / f"ended.{rank}") for rank in (0, 1)]

    assert (tmp_path / "killed").exists()
    assert [each.pop("began") for each in ended] == [16, 16]
    assert ended == [{name: each[name] for name in ended[0]} for each in unbroken]
    assert result.metrics == {"epoch": 2}


@pytest.mark.program
def test_the_example_trains_on_two_workers(tmp_path):
    """The program of the guide runs as it is written, and reports an epoch and a loss."""
    pytest.importorskip("sklearn")
    command = ROOT / "examples" / "ray_digits.py", "--epochs", 2, "--storage", tmp_path
    printed = printed_by(tmp_path, *command, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="180")
    metrics = ast.literal_eval(printed.splitlines()[-1])
    assert metrics["epoch"] == 2
    assert 0 < metrics["loss"] < 2


def train_loop_per_worker(config):
    torch.set_num_threads(1)
    folder, rank = Path(config["folder"]), ray.train.get_context().get_world_rank()
    model = prepare_model(jobs.mixed())
    torch.manual_seed(rank)
    np.random.seed(rank)
    random.seed(rank)
    optimizer = jobs.optimizer_of(model, "mixed")
    adapter = attach(model, optimizer, jobs.mixed_data(), batch_size=32, num_epochs=3, max_grad_norm=0.5)
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as place:
            adapter.load_state_dict(torch.load(f"{place}/state.pt"))
    r8 = adapter.scheduler
    began = r8.global_step
    for epoch in adapter.epochs():
        for xs, ys in adapter.loader():
            if rank == 1 and adapter.in_hand.step == config["killed_at"] and not (folder / "killed").exists():
                # Ray may lose what was reported in the last seconds before a death.
                ray.train.get_all_reported_checkpoints()
                (folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            adapter.step(adapter.loss(jobs.mixed_losses(model, xs, ys)))
        report(adapter, {"epoch": epoch}, is_first=rank == 0)
    adapter.close()
    weights = jobs.digest_of(value.numpy() for value in jobs.whole_weights(model).values())
    numbers = torch.rand(1).item(), float(np.random.random()), random.random()
    torch.save(
        {"began": began, "weights": weights, "table": table_digest(r8), "numbers": numbers}, folder / f"ended.{rank}"
    )


def report(adapter, metrics, *, is_first):
    state = adapter.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, f"{folder}/state.pt")
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder) if is_first else None)

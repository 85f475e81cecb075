"""The digits under Ray Train on two workers: one that dies is replaced, and the run goes on from its last epoch.

pip install "ray[train]" scikit-learn
python examples/ray_digits.py [--storage FOLDER]

With --storage the results and checkpoints go to a folder, which all hosts of a cluster must see.
"""

import argparse
import tempfile

import ray.train
import torch
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from learnit_r8.torch import attach


def train_loop_per_worker(config):
    """What every worker does."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    dataset = torch.utils.data.TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
    model = prepare_model(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    adapter = attach(model, optimizer, dataset, batch_size=64, num_epochs=config["epochs"])
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            adapter.load_state_dict(torch.load(f"{folder}/state.pt"))

    for epoch in adapter.epochs():
        for x, y in adapter.loader():
            adapter.step(adapter.loss(cross_entropy(model(x), y, reduction="none")))
        state = adapter.state_dict()  # on all workers
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, f"{folder}/state.pt")
            is_first = ray.train.get_context().get_world_rank() == 0
            metrics = {"epoch": epoch + 1, "loss": float(adapter.table.loss.mean())}
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder) if is_first else None)
    adapter.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--storage", help="a folder that all hosts see")
    options = parser.parse_args()
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"epochs": options.epochs},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=options.storage, failure_config=FailureConfig(max_failures=3)),
    )
    print(trainer.fit().metrics)

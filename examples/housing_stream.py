"""The training of the FitStream tutorial, as a stream: house prices in California, or else digits.

    python examples/housing_stream.py [--scheduler] [--epochs 500] [--runs runs]

Reads california_housing.csv from the folder named by the environment variable LEARNIT_R8_DATA, by default
../shared/data beside the checkout. Without that file it trains on scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from learnit_r8 import R8Scheduler
from learnit_r8.streams import (
    augment,
    best,
    collect_jsonl,
    early_stop,
    ema,
    epoch_stream,
    pipe,
    print_keys,
    take,
    tap,
    validation_loss,
)

FEATURES = [
    "longitude",
    "latitude",
    "housing_median_age",
    "total_rooms",
    "total_bedrooms",
    "population",
    "households",
    "median_income",
]
BATCH_SIZE = 512


class Data(NamedTuple):
    name: str
    train: tuple[torch.Tensor, torch.Tensor]
    val: tuple[torch.Tensor, torch.Tensor]
    model: nn.Module
    loss_fn: nn.Module


def load() -> Data:
    folder = Path(os.environ.get("LEARNIT_R8_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    path = folder / "california_housing.csv"
    if path.exists():
        return housing(path)
    print(f"no {path}; point LEARNIT_R8_DATA to the folder that has it. Training on scikit-learn's digits instead.")
    return digits()


def housing(path: Path) -> Data:
    """Predict the median price, in hundreds of thousands of dollars, from eight numbers of a district."""
    import pandas as pd

    frame = pd.read_csv(path).dropna(subset=[*FEATURES, "median_house_value"])
    x = torch.tensor(frame[FEATURES].to_numpy(), dtype=torch.float32)
    y = torch.tensor(frame[["median_house_value"]].to_numpy(), dtype=torch.float32) / 100_000.0
    return Data("california housing", *split(x, y), network(len(FEATURES), 1), nn.MSELoss())


def digits() -> Data:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    parts = split(torch.tensor(x, dtype=torch.float32), torch.tensor(y))
    return Data("digits", *parts, network(x.shape[1], 10), nn.CrossEntropyLoss())


def network(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, outputs))


def split(x: torch.Tensor, y: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], ...]:
    """A fifth for validation, in a fixed random order; features standardised by the training part."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    held_out, rest = order[: len(x) // 5], order[len(x) // 5 :]
    mean, std = x[rest].mean(dim=0), x[rest].std(dim=0)
    # A pixel that is always blank has no spread to divide by.
    x = (x - mean) / torch.where(std > 1e-6, std, 1.0)
    return (x[rest], y[rest]), (x[held_out], y[held_out])


def parameter_norm(event: dict) -> dict[str, float]:
    parameters = nn.utils.parameters_to_vector(event["model"].parameters())
    return {"param_l2": parameters.norm().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=500, help="at most so many")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the log")
    parser.add_argument("--scheduler", action="store_true", help="let R8Scheduler draw the batches and set the rate")
    options = parser.parse_args()

    torch.manual_seed(0)
    data = load()
    optimizer = torch.optim.Adam(data.model.parameters(), lr=1e-2)
    how: dict = {"batch_size": BATCH_SIZE}
    if options.scheduler:
        how["scheduler"] = R8Scheduler(
            len(data.train[0]), batch_size=BATCH_SIZE, num_epochs=options.epochs, initial_lr=1e-2
        )
    keep = best("val_loss")
    events = pipe(
        epoch_stream(data.train, data.model, optimizer, data.loss_fn, **how),
        augment(validation_loss(data.val, data.loss_fn)),
        augment(parameter_norm),
        ema("val_loss", half_life=10),
        tap(print_keys("train_loss", "val_loss", "val_loss_ema", "param_l2"), every=10),
        keep,
        take(options.epochs),
        early_stop(key="val_loss", patience=20, mode="min", min_delta=1e-4),
    )
    log = options.runs / f"{data.name.replace(' ', '_')}.jsonl"
    collect_jsonl(events, log)
    keep.restore()
    print(f"{data.name}: best val_loss {keep.value:.4f} at epoch {keep.event['step']}; the log is in {log}")


if __name__ == "__main__":
    main()

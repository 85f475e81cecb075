"""How much the loss and the gradient of a batch vary under each policy, relative to a plain shuffle.

Trains the network of ``recipe.py`` on per-sample losses and holds its weights after epochs 3, 5, 10, 20 and 50. For
every policy a scheduler of its own is told the exact losses of that moment in a first, cataloguing pass; measured
are the full-size batches of the passes after it, planned independently of each other from that table:

    loss      mean of (batch loss - mean loss of all samples)**2
    gradient  mean of |batch gradient - gradient over all samples|**2

each divided by the same for "shuffle". B = 32; mean and standard deviation over the seeds.

    python benchmarks/variance.py [--quick] [--seeds 8] [--passes 20] [--trained-by balanced]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from recipe import NUM_EPOCHS, Data, Indices, Network, load_data, make_scheduler, train

# isort: split
import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

EPOCHS = (3, 5, 10, 20, NUM_EPOCHS)
BATCH_SIZE = 32
MUST = 0.5

POLICIES = {
    "shuffle": ("shuffle", False),
    "balanced": ("balanced", False),
    "balanced, groups=labels": ("balanced", True),
    "quartile": ("quartile", False),
}
"""Label: name of the policy, whether it is given the labels."""


def planned_batches(
    policy: str, losses: NDArray[np.float32], groups: Indices | None, seed: int, num_passes: int
) -> Iterator[Indices]:
    """The full-size batches of the passes that follow a cataloguing pass with the given losses."""
    r8 = make_scheduler(seed, batch_size=BATCH_SIZE, num_epochs=1 + num_passes, policy=policy, groups=groups)
    for epoch in r8.epoch_iterator():
        for indices, _ in r8.batch_iterator():
            r8.update_with_loss(losses[indices])
            if epoch > 0 and len(indices) == BATCH_SIZE:
                yield indices


def flat_gradient(network: Network, data: Data, indices: Indices | slice) -> Doubles:
    _, gradient = network.gradient(data.pixels[indices], data.labels[indices])
    return np.concatenate([array.ravel() for array in gradient]).astype(np.float64)


def variances(network: Network, data: Data, seed: int, num_passes: int) -> Doubles:
    """float64[2, policies], variance of batch loss and of batch gradient with the weights as they are."""
    losses = network.losses(data.pixels, data.labels)
    mean_loss = losses.mean(dtype=np.float64)
    full = flat_gradient(network, data, slice(None))
    rows = []
    for policy, is_grouped in POLICIES.values():
        groups = data.labels if is_grouped else None
        batches = list(planned_batches(policy, losses, groups, seed, num_passes))
        of_loss = [(losses[batch].mean(dtype=np.float64) - mean_loss) ** 2 for batch in batches]
        of_gradient = [np.square(flat_gradient(network, data, batch) - full).sum() for batch in batches]
        rows.append([np.mean(of_loss), np.mean(of_gradient)])
    return np.array(rows).T


def ratios(seed: int, epochs: Sequence[int], trained_by: str, num_passes: int) -> Doubles:
    """float64[2, policies, epochs + 1], variances over those of "shuffle"; the last column is their mean."""
    data = load_data(seed)
    network = Network(seed)
    r8 = make_scheduler(seed, batch_size=BATCH_SIZE, num_epochs=epochs[-1], policy=trained_by)
    found = [
        variances(network, data, seed + epoch, num_passes)
        for epoch in train(r8, network, data, part_size=1)
        if epoch in epochs
    ]
    relative = np.stack([values / values[:, :1] for values in found], axis=2)
    return np.concatenate([relative, relative.mean(axis=2, keepdims=True)], axis=2)


def print_table(values: Doubles, epochs: Sequence[int], trained_by: str) -> None:
    """Print float64[seeds, 2, policies, epochs + 1]."""
    print(f"Variance relative to a plain shuffle, mean ± standard deviation over {len(values)} seeds;")
    print(f"B = {BATCH_SIZE}, exact losses, weights held fixed, trained by {trained_by!r}")
    columns = [f"epoch {epoch}" for epoch in epochs] + ["mean"]
    print(f"| {'policy':23} | {'of the':8} | " + " | ".join(column.rjust(12) for column in columns) + " |")
    print("|" + "---|" * (2 + len(columns)))
    mean, spread = values.mean(axis=0), values.std(axis=0)
    for row, label in enumerate(POLICIES):
        for kind, name in enumerate(("loss", "gradient")):
            cells = [f"{m:6.3f} ±{s:5.3f}" for m, s in zip(mean[kind, row], spread[kind, row], strict=True)]
            print(f"| {label:23} | {name:8} | " + " | ".join(cells) + " |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 seeds, 5 passes, epochs 3, 5 and 10")
    parser.add_argument("--seeds", type=int, default=8, help="number of seeds")
    parser.add_argument("--passes", type=int, default=20, help="independent plans per policy and epoch")
    parser.add_argument("--trained-by", default="balanced", help="policy of the training itself")
    return parser.parse_args()


def main() -> None:
    options: Any = parse()
    seeds, passes, epochs = (2, 5, EPOCHS[:3]) if options.quick else (options.seeds, options.passes, EPOCHS)
    values = np.stack([ratios(seed, epochs, options.trained_by, passes) for seed in range(seeds)])
    print_table(values, epochs, options.trained_by)
    reached = values[:, 0, list(POLICIES).index("balanced"), -1].mean()
    print(f"balanced, variance of the batch loss: {reached:.3f} of shuffle's (must be <= {MUST})")


if __name__ == "__main__":
    main()

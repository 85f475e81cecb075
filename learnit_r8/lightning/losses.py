"""The cross entropy of a step as `R8Callback` takes it: with every sample's loss, and what is predicted for it."""

from __future__ import annotations

from typing import Any

import torch

from ..torch.losses import cross_entropies, read_losses
from ..torch.predictions import predictions_of


def cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> dict[str, Any]:
    """The cross entropy of a batch, for ``training_step`` to return.

    Nothing waits for the device: the numbers come back with the losses, some steps later.

    Args:
        logits: float[B, C]; or float[B] or float[B, 1], the logit of class 1 of two.
        targets: int[B], classes in [0, C); -1 or -100 for samples without a label: their loss is 0, and the mean is
            that of the others.
        class_weights: float[C]; the loss is the weighted mean, as that of `torch.nn.CrossEntropyLoss`. The losses
            reported have no weights.
        label_smoothing: In [0, 1], as in torch.

    Returns:
        "loss", 0-dim, to train on; "losses", float[B], detached; and "predictions", from which
        `SampleTable.suspects` judges labels. More entries may be added.

    Raises:
        TypeError: logits or targets are not tensors.
        ValueError: they are not those of a classification with one label a sample; or, on a CPU, a target is outside
            [0, C).

    >>> sorted(cross_entropy(torch.zeros(2, 3), torch.tensor([0, 2])))
    ['loss', 'losses', 'predictions']
    """
    losses, weights = cross_entropies(logits, targets, class_weights=class_weights, label_smoothing=label_smoothing)
    read = read_losses(losses, len(targets), weights=weights)
    return {"loss": read.loss, "losses": read.values, "predictions": predictions_of(logits, targets)}

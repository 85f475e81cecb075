"""Predictions of a batch from its logits, on their device and without waiting for it."""

from __future__ import annotations

import torch

from ..table.labels.predictions import Predictions, check_shapes


@torch.no_grad()
def predictions_of(logits: torch.Tensor, targets: torch.Tensor) -> Predictions:
    """The predictions of a batch, to report with its losses.

    Args:
        logits: float[B, C], or log probabilities; or float[B] or float[B, 1], the logit of class 1 of two.
        targets: int[B], classes in [0, C); checked when they are reported.

    Returns:
        Tensors on the device of the logits; nothing is read back.

    Raises:
        ValueError: the shapes or dtypes are not these; see `learnit_r8.predictions_of`.
    """
    is_whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    check_shapes(tuple(logits.shape), tuple(targets.shape), is_whole=is_whole)
    scores = logits.detach().float()
    if scores.ndim == 1 or scores.shape[1] == 1:
        scores = torch.stack([torch.zeros_like(scores.reshape(-1)), scores.reshape(-1)], 1)
    classes = scores.shape[1]
    given = targets.long()
    highest, order = scores.topk(2, 1)
    predicted = order[:, 0]
    rival = torch.where(predicted == given, highest[:, 1], highest[:, 0])
    return Predictions(rival - scores.gather(1, given[:, None])[:, 0], predicted, given, classes)


@torch.no_grad()
def pack(losses: torch.Tensor, predictions: Predictions) -> torch.Tensor:
    """float32[4, B] on their device, for one copy; `Predictions.unpack` undoes it.

    Args:
        losses: float[B].
        predictions: As `predictions_of` returned them.
    """
    return torch.stack([each.detach().to(losses.device, torch.float32) for each in (losses, *predictions[:3])])

"""Predictions of a batch from its logits, on their device and without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from ..table.labels.predictions import Predictions, check_shapes, mixed


@torch.no_grad()
def predictions_of(logits: torch.Tensor, targets: torch.Tensor, indices: Any) -> Predictions:
    """The predictions of a batch, to report with its losses.

    Args:
        logits: float[B, C]; or float[B] or float[B, 1], the logit of class 1 of two. Detached here.
        targets: int[B], classes in [0, C); on the device they are not checked to be in this range before their use.
        indices: int[B], the samples, as drawn; an array or a tensor.

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
    places = torch.as_tensor(indices).to(scores.device, torch.int64, non_blocking=True) & 0xFFFFFFFF
    other = (given + 1 + mixed(places, int) % (classes - 1)) % classes
    chosen = functional.log_softmax(scores, 1).gather(1, torch.stack([given, other], 1)).neg()
    return Predictions(chosen[:, 1], scores.argmax(1), given, classes, chosen[:, 0])


@torch.no_grad()
def pack(losses: torch.Tensor, predictions: Predictions) -> torch.Tensor:
    """float32[5, B] on their device, for one copy; `Predictions.unpack` undoes it.

    Args:
        losses: float[B].
        predictions: As `predictions_of` returned them.
    """
    own = losses if predictions.own_loss is None else predictions.own_loss
    return torch.stack([each.detach().to(losses.device, torch.float32) for each in (losses, own, *predictions[:3])])

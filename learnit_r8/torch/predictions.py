"""Predictions of a batch from its logits, on their device and without waiting for it."""

from __future__ import annotations

import torch

from ..table.labels import predictions as on_host
from ..table.labels.predictions import IGNORED, UNLABELLED, Predictions, check_shapes


@torch.no_grad()
def predictions_of(logits: torch.Tensor, targets: torch.Tensor) -> Predictions:
    """The predictions of a batch, to report with its losses.

    Args:
        logits: float[B, C], or log probabilities; or float[B] or float[B, 1], the logit of class 1 of two.
        targets: int[B], classes in [0, C), -1 or -100 for samples without a label; checked when they are
            reported.

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
    given = as_classes(targets)
    highest, order = scores.topk(2, 1)
    predicted = order[:, 0]
    rival = torch.where(predicted == given, highest[:, 1], highest[:, 0])
    own = scores.gather(1, given.clamp(min=0)[:, None])[:, 0]
    return Predictions(rival - own, predicted, given, classes)


def as_classes(targets: torch.Tensor) -> torch.Tensor:
    """int64[B] of int[B], -1 where there is no label."""
    # First: the -100 of a uint8 is 156.
    given = targets.long()
    return given.masked_fill(given == IGNORED, UNLABELLED)


@torch.no_grad()
def pack(losses: torch.Tensor, predictions: Predictions) -> torch.Tensor:
    """float32[4, B] on their device, for one copy; `Predictions.unpack` undoes it.

    Args:
        losses: float[B].
        predictions: As `predictions_of` returned them.
    """
    return torch.stack([each.detach().to(losses.device, torch.float32) for each in (losses, *predictions[:3])])


@torch.no_grad()
def packed(losses: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The losses of a batch and its predictions in one vector, and the number of classes.

    On a CPU numpy makes it, in half the time that torch would take.

    Args:
        losses: float[B].
        logits, targets: As for `predictions_of`.

    Returns:
        float32[4 * B] on the device of the logits, the rows of `pack`; and C.

    Raises:
        TypeError: logits or targets are not tensors.
        ValueError: as `predictions_of` does; on a CPU also where a target is outside [0, C).
    """
    for name, given in (("logits", logits), ("targets", targets)):
        if not isinstance(given, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got a {type(given).__name__}.")
    if logits.device.type != "cpu":
        found = predictions_of(logits, targets)
        return pack(losses, found).reshape(-1), found.num_classes
    scores, own = (each.detach().to(torch.float32).numpy() for each in (logits, losses))
    found = on_host.predictions_of(scores, targets.detach().cpu().numpy())
    return torch.from_numpy(found.pack(own).reshape(-1)), found.num_classes


def packed_with(losses: torch.Tensor, predictions: Predictions) -> tuple[torch.Tensor, int]:
    """The losses of a batch and predictions that were made before in one vector, and the number of classes.

    Args:
        losses: float[B].
        predictions: As `predictions_of` returned them.

    Returns:
        As `packed`.

    Raises:
        TypeError: the predictions are none, or hold no tensors.
        ValueError: they are of another number of samples.
    """
    if not isinstance(predictions, Predictions):
        raise TypeError(f"predictions must be Predictions, as predictions_of() makes them, got {predictions!r}.")
    for name, values in zip(Predictions._fields, predictions[:3], strict=False):
        if not isinstance(values, torch.Tensor):
            raise TypeError(f"predictions.{name} must be a tensor, got a {type(values).__name__}.")
        if values.shape != losses.shape:
            raise ValueError(
                f"predictions.{name} must have shape {tuple(losses.shape)}, as the losses, got {tuple(values.shape)}."
            )
    return pack(losses, predictions).reshape(-1), int(predictions.num_classes)

"""Predictions of a batch from its logits, on their device and without waiting for it."""

from __future__ import annotations

import torch

from ..events.caller import warn
from ..table.labels import predictions as on_host
from ..table.labels.predictions import IGNORED, UNLABELLED, VALUES, Predictions, layout


@torch.no_grad()
def predictions_of(
    logits: torch.Tensor, targets: torch.Tensor, kind: str = "classes", *, axis: int | None = None
) -> Predictions:
    """The predictions of a batch, to report with its losses.

    Args:
        logits, targets, kind, axis: As for `learnit_r8.predictions_of`, as tensors; targets are checked when they are
            reported.

    Returns:
        Tensors on the device of the logits; nothing is read back.

    Raises:
        ValueError: the shapes or dtypes are not these; see `learnit_r8.predictions_of`.
    """
    is_whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    class_axis = layout(kind, tuple(logits.shape), tuple(targets.shape), is_whole=is_whole, axis=axis)
    scores = logits.detach().float()
    if class_axis == 1 and kind == "classes":
        _check_logits(logits, scores)
    if kind == "regression":
        scores, given = scores.reshape(-1), targets.reshape(-1).float()
        return Predictions(given - scores, scores, given, VALUES)
    if kind == "multilabel":
        scores, given = scores.flatten(1), targets.flatten(1)
        given = given.float().nan_to_num(UNLABELLED).masked_fill(given == IGNORED, UNLABELLED)
        return Predictions(torch.where(given == 1, -scores, scores), (scores > 0).long(), given, 2)
    if scores.ndim == 1 or tuple(scores.shape[1:]) == (1,):
        scores = torch.stack([torch.zeros_like(scores.reshape(-1)), scores.reshape(-1)], 1)
    is_single = scores.ndim == 2
    if not is_single:
        scores = scores.movedim(class_axis or -1, -1).flatten(1, -2)
    classes, given = scores.shape[-1], as_classes(targets)
    given = given if is_single else given.flatten(1)
    highest, order = scores.topk(2, -1)
    predicted = order[..., 0]
    rival = torch.where(predicted == given, highest[..., 1], highest[..., 0])
    own = scores.gather(-1, given.clamp(min=0)[..., None])[..., 0]
    return Predictions(rival - own, predicted, given, classes)


def _check_logits(logits: torch.Tensor, scores: torch.Tensor) -> None:
    """Warn of probabilities in place of logits; of what is not on the host, by the operation that it comes from."""
    if torch.compiler.is_compiling():
        return
    if scores.device.type == "cpu":
        on_host.check_logits(scores.numpy())
    elif logits.grad_fn is not None and logits.grad_fn.name().startswith("Softmax"):
        warn(on_host.PROBABILITIES)


def as_classes(targets: torch.Tensor) -> torch.Tensor:
    """int64[B] of int[B], -1 where there is no label."""
    # First: the -100 of a uint8 is 156.
    given = targets.long()
    return given.masked_fill(given == IGNORED, UNLABELLED)


@torch.no_grad()
def pack(losses: torch.Tensor, predictions: Predictions) -> torch.Tensor:
    """float32[1 + 3 P, B] on their device, for one copy; `Predictions.unpack` undoes it.

    Args:
        losses: float[B].
        predictions: As `predictions_of` returned them.
    """
    parts = (losses, *predictions[:3])
    return torch.cat([each.detach().to(losses.device, torch.float32).reshape(len(losses), -1).T for each in parts])


@torch.no_grad()
def packed(
    losses: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor, kind: str = "classes"
) -> tuple[torch.Tensor, int]:
    """The losses of a batch and its predictions in one vector, and the number of classes.

    On a CPU numpy makes it, in half the time that torch would take.

    Args:
        losses: float[B].
        logits, targets, kind: As for `predictions_of`.

    Returns:
        float32[(1 + 3 P) * B] on the device of the logits, the rows of `pack`; and C.

    Raises:
        TypeError: logits or targets are not tensors.
        ValueError: as `predictions_of` does; on a CPU also where a target is outside [0, C).
    """
    for name, given in (("logits", logits), ("targets", targets)):
        if not isinstance(given, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got a {type(given).__name__}.")
    if logits.device.type != "cpu":
        found = predictions_of(logits, targets, kind)
        return pack(losses, found).reshape(-1), found.num_classes
    scores, own = (each.detach().to(torch.float32).numpy() for each in (logits, losses))
    found = on_host.predictions_of(scores, targets.detach().cpu().numpy(), kind)
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
        if len(values) != len(losses) or values.shape != predictions.margin.shape:
            raise ValueError(
                f"predictions.{name} must have shape {tuple(losses.shape)}, as the losses, got {tuple(values.shape)}."
            )
    return pack(losses, predictions).reshape(-1), int(predictions.num_classes)


def check_exchanged(num_ranks: int, num_places: int, num_classes: int) -> None:
    """Raise ValueError for predictions that ranks do not exchange.

    Args:
        num_ranks: Ranks that share the run.
        num_places: Labels of a sample.
        num_classes: C.
    """
    if num_ranks > 1 and (num_places > 1 or num_classes == VALUES):
        what = "numbers" if num_classes == VALUES else f"{num_places} labels a sample"
        raise ValueError(
            f"predictions must be of one class a sample on several ranks, got {what}: report the losses alone there."
        )

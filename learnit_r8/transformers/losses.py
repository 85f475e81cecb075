"""Losses of samples from what a model of Transformers puts out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy

from ..table.labels.predictions import IGNORED, MOST_CLASSES
from ..torch.predictions import as_classes

if TYPE_CHECKING:
    from ..engine.engine import Engine

NOT_WHOLE = (
    "the policy weights samples, so the mean of their losses is trained on, {:.4g} in this batch, and not the "
    "Trainer's loss of {:.4g}: what else is in it counts no more."
)


class SampleLosses(NamedTuple):
    """Losses for `Adapter.loss`.

    Attributes:
        losses: float[B] or float[B, T].
        mask: bool[B, T], which tokens count; None where there are none.
        logits: float[B, C], scores of the classes, to judge the labels by; None where a sample has no single label.
        targets: int[B], the labels, -1 where a sample has none; None without logits.
    """

    losses: torch.Tensor
    mask: torch.Tensor | None
    logits: torch.Tensor | None = None
    targets: torch.Tensor | None = None


def find_losses(outputs: Any, labels: Any, *, shifted: bool, smoothing: float) -> SampleLosses | None:
    """The losses in what a model returned; None where it returned neither scores of classes nor log-probabilities.

    One score is of no class: it is a number to be regressed, or the logit of 1 against 0.

    Args:
        outputs: A mapping or an object with ``logits``, or with ``log_probs`` and ``label_mask`` as TRL has it.
        labels: int[B] or int[B, T], as `losses_of` takes them.
        shifted: Whether a token's logits are for the label of the next one.
        smoothing: Share of the labels that is spread over all classes, in [0, 1).
    """
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point():
        return None
    log_probs = _entry(outputs, "log_probs")
    if log_probs is not None:
        return SampleLosses(-log_probs, _entry(outputs, "label_mask"))
    logits = _entry(outputs, "logits")
    if logits is None or logits.shape[:-1] != labels.shape or logits.shape[-1] < 2:
        return None
    return losses_of(logits, labels, shifted=shifted, smoothing=smoothing)


def _entry(outputs: Any, name: str) -> Any:
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)


def losses_of(logits: torch.Tensor, labels: torch.Tensor, *, shifted: bool, smoothing: float) -> SampleLosses:
    """The cross entropy of each sample, or each token.

    Args:
        logits: float[B, C] or float[B, T, C].
        labels: int[B] or int[B, T], of any whole type, or bool. Those outside [0, C) have no loss: a model may ignore
            others than -100.
        shifted: Whether a token's logits are for the label of the next one.
        smoothing: Share of the labels that is spread over all classes, in [0, 1).

    Raises:
        ValueError: the shapes do not belong together.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits must have the shape of the labels {tuple(labels.shape)} and one of classes, got "
            f"{tuple(logits.shape)}; override sample_losses(model, inputs, outputs) for another task."
        )
    if logits.ndim == 3 and shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    labels = labels.to(logits.device).long()
    labels = labels.masked_fill((labels < 0) | (labels >= logits.shape[-1]), IGNORED)
    rows = logits.float().reshape(-1, logits.shape[-1])
    losses = cross_entropy(
        rows, labels.reshape(-1), reduction="none", ignore_index=IGNORED, label_smoothing=smoothing
    ).view(labels.shape)
    if labels.ndim == 2:
        return SampleLosses(losses, labels != IGNORED)
    if not 2 <= logits.shape[-1] <= MOST_CLASSES:
        return SampleLosses(losses, None)
    return SampleLosses(losses, None, logits, as_classes(labels))


def document_losses(own: SampleLosses, positions: Any, count: int) -> SampleLosses | None:
    """The mean loss of each document of a batch whose documents lie one behind the other in a row.

    Args:
        own: float[1, T'], the losses of tokens.
        positions: int[1, T], the position of each token in its document, from 0; T is T', or T' + 1 where the first
            token has no loss.
        count: Documents that there must be.

    Returns:
        float[B]; None if the row does not hold that many documents.

    >>> own = SampleLosses(torch.tensor([[1.0, 3.0, 9.0, 5.0]]), torch.tensor([[True, True, False, True]]))
    >>> document_losses(own, torch.tensor([[0, 1, 2, 0, 1]]), 2).losses
    tensor([2., 5.])
    """
    if positions is None or own.mask is None or len(own.losses) != 1:
        return None
    numbers = (positions[0] == 0).cumsum(0) - 1
    if int(numbers[-1]) + 1 != count:
        return None
    numbers = numbers[-own.losses.shape[1] :].clamp(min=0)
    # Not a product: what is masked may be NaN.
    losses, mask = own.losses[0].masked_fill(~own.mask[0], 0.0), own.mask[0].to(own.losses.dtype)
    sums = losses.new_zeros(count).index_add(0, numbers, losses)
    tokens = losses.new_zeros(count).index_add(0, numbers, mask)
    return SampleLosses(sums / tokens.clamp(min=1), None)


def compare(own: SampleLosses | None, loss: torch.Tensor, host: Engine) -> None:
    """Say once if the losses of samples, whose weighted mean is trained on, are not all of the Trainer's loss."""
    if own is None:
        return
    mean = float((own.losses if own.mask is None else own.losses[own.mask]).mean())
    if not math.isclose(mean, float(loss), rel_tol=0.02):
        host.say_once("not whole", NOT_WHOLE.format(mean, float(loss)))

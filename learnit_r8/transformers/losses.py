"""Losses of samples from what a model of Transformers puts out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy

IGNORED = -100
"""The label that Transformers gives tokens without a loss."""


class SampleLosses(NamedTuple):
    """Losses for `Adapter.loss`.

    Attributes:
        losses: float[B] or float[B, T].
        mask: bool[B, T], which tokens count; None where there are none.
    """

    losses: torch.Tensor
    mask: torch.Tensor | None


def losses_of(logits: torch.Tensor, labels: torch.Tensor, *, shifted: bool, smoothing: float) -> SampleLosses:
    """The cross entropy of each sample, or each token.

    Args:
        logits: float[B, C] or float[B, T, C].
        labels: int[B] or int[B, T].
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
    labels = labels.to(logits.device)
    rows = logits.float().reshape(-1, logits.shape[-1])
    losses = cross_entropy(
        rows, labels.reshape(-1), reduction="none", ignore_index=IGNORED, label_smoothing=smoothing
    ).view(labels.shape)
    return SampleLosses(losses, labels != IGNORED if labels.ndim == 2 else None)


def is_packed(inputs: Any) -> bool:
    """Whether a row of a batch holds several documents: positions begin anew within it, or one row holds all."""
    if any(name in inputs for name in ("cu_seq_lens_q", "seq_idx")):
        return True
    positions = inputs.get("position_ids")
    return positions is not None and positions.ndim == 2 and bool((positions[:, 1:] == 0).any())

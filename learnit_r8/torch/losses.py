"""Losses: what a loop computed becomes the number to train on and the numbers to report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

from .._validation import check_share
from ..events.caller import warn
from ..table.labels.predictions import UNLABELLED, check_range, check_shapes
from .predictions import as_classes

if TYPE_CHECKING:
    from ..engine.engine import Engine

MEAN_LOSS = "losses of samples are estimated from batch means; with reduction='none' they would be known."
SUMMED_LOSS = (
    "the loss is a sum over the batch, and one number is taken for its mean: give losses with reduction='none', of "
    "which loss() returns the mean, or with reduction='mean'."
)


class Losses(NamedTuple):
    """The losses of a batch.

    Attributes:
        loss: 0-dim, for ``backward()``.
        values: float32[B], detached, to report; float32[1] if only a mean is known.
        is_exact: Whether the values are those of single samples.
    """

    loss: torch.Tensor
    values: torch.Tensor
    is_exact: bool


def read_losses(
    losses: Any,
    count: int,
    *,
    mask: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    shares: Any = None,
    exact: bool = True,
) -> Losses:
    """Reduce losses for training, and keep those of the samples.

    Args:
        losses: float[B, ...], unreduced; or 0-dim, their mean.
        count: B.
        mask: bool or number [B, ...], like the losses: which count (tokens that are not padding).
        weights: float[B], weights of the samples in the loss that is trained on (class weights).
        shares: float32[B], weights of a policy that selects samples, or None.
        exact: Whether each loss is one sample's own.

    Raises:
        TypeError: the losses are not a tensor of floats, or the mask or the weights are not tensors.
        ValueError: a shape that does not fit.
    """
    if not isinstance(losses, torch.Tensor) or not losses.is_floating_point():
        raise TypeError(f"losses must be a tensor of floats with a loss for each sample, got {losses!r}.")
    if losses.ndim == 0:
        if not (mask is None and weights is None and shares is None):
            raise ValueError(
                "losses must have a loss for each sample (reduction='none') where samples are masked or weighted, got "
                "one number."
            )
        return Losses(losses, losses.detach().reshape(1).to(torch.float32), False)
    if losses.dtype is torch.float32 and exact and mask is weights is shares is None and losses.shape == (count,):
        # What nearly every step is, in as few operations as there can be.
        return Losses(losses.mean(), losses.detach(), True)
    if len(losses) != count:
        raise ValueError(
            f"losses must have one row for each of the {count} samples of the batch, got shape {tuple(losses.shape)}; "
            "losses of tokens belong in the shape (batch, tokens)."
        )
    _check_tensors(mask=mask, weights=weights)
    _check_not_logits(losses)
    if count > 1 and losses.shape == (count, count) and _is_broadcast(losses):
        warn(BROADCAST.format(count))
    rows, loss = _per_sample(losses, mask)
    if weights is not None:
        if weights.shape != (count,):
            raise ValueError(f"weights must have shape ({count},), got {tuple(weights.shape)}.")
        total = rows * weights if shares is None else rows * weights * _like(shares, rows)
        whole = weights.sum(dtype=rows.dtype)
        # Weights that are all 0 leave nothing to learn: 0, not 0 / 0.
        loss = total.sum() / whole.masked_fill(whole == 0, 1)
    elif shares is not None:
        loss = (rows * _like(shares, rows)).mean()
    values = rows.detach() if exact else rows.detach().mean().reshape(1)
    return Losses(loss, values.to(torch.float32), exact)


BROADCAST = (
    "losses of shape ({0}, {0}) were computed from a number for each of the {0} samples: were outputs [{0}, 1] and "
    "targets [{0}] broadcast against each other? outputs.squeeze(1) gives both one shape; for all pairs, ignore this."
)

MOST_OPERATIONS = 10
"""Operations after the broadcast that are looked through."""


def _is_broadcast(losses: torch.Tensor) -> bool:
    """Whether [B, B] losses were made of [B] or [B, 1] results of the model; losses of B tokens never were [B]."""
    made_by: Any = losses.grad_fn
    for _ in range(MOST_OPERATIONS):
        before = [node for node, _ in getattr(made_by, "next_functions", ()) if getattr(node, "_input_metadata", None)]
        if not before:
            return False
        if all(math.prod(node._input_metadata[0].shape) == len(losses) for node in before):
            return True
        made_by = before[0]
    return False


RESHAPING = ("View", "UnsafeView", "Reshape", "ToCopy", "Transpose", "T", "Slice", "Clone", "Alias", "Select")
"""Operations that logits may have gone through, by their names in autograd."""

SCORES = ("Addmm", "Mm", "Bmm", "Linear", "LogSoftmax", "Softmax", "Convolution")
"""Operations whose results are scores of classes; no loss ends with one."""


def _check_not_logits(losses: torch.Tensor) -> None:
    """Raise ValueError if what a model puts out was given as losses: averaged, it would even seem to train."""
    if losses.shape[-1] == 1:
        # A critic's score may be what is trained on.
        return
    made_by = losses.grad_fn
    while made_by is not None and _operation(made_by) in RESHAPING:
        made_by = made_by.next_functions[0][0] if made_by.next_functions else None
    if made_by is not None and _operation(made_by) in SCORES:
        raise ValueError(
            f"losses must be one number per sample, got what look like logits of shape {tuple(losses.shape)} (the "
            f"result of {_operation(made_by)}); give cross_entropy(logits, labels, reduction='none')."
        )


def say_what_is_unknown(host: Engine, loss: torch.Tensor, count: int) -> None:
    """Say that losses of samples are estimated where one number is given, and that it is no mean if it is none."""
    host.say_once("mean loss", MEAN_LOSS, is_warning=False)
    made_by = loss.grad_fn
    if _operation(made_by) == "Sum":
        # Terms of a loss are summed, too.
        is_summed = getattr(made_by, "_saved_self_sym_sizes", ())[:1] == (count,)
    else:
        # Of torch's losses, 0 stands for "none", 1 for "mean" and 2 for "sum".
        is_summed = getattr(made_by, "_saved_reduction", 1) == 2
    if count > 1 and is_summed:
        host.say_once("summed loss", SUMMED_LOSS)


def _operation(made_by: Any) -> str:
    return "" if made_by is None else str(made_by.name()).partition("Backward")[0]


def _check_tensors(**given: Any) -> None:
    for name, value in given.items():
        if not (value is None or isinstance(value, torch.Tensor)):
            raise TypeError(f"{name} must be a tensor, got a {type(value).__name__}; torch.as_tensor() makes one.")


def _per_sample(losses: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """float[B], the mean of each row, and the mean over everything."""
    # Half precision counts no further than 2,048 (bfloat16: 256), and its sums overflow.
    wide = torch.promote_types(losses.dtype, torch.float32)
    if mask is None:
        rows = losses if losses.ndim == 1 else losses.flatten(1).mean(1)
        return rows.to(wide), losses.mean()
    if mask.shape != losses.shape:
        raise ValueError(f"mask must have the shape of the losses {tuple(losses.shape)}, got {tuple(mask.shape)}.")
    counts = mask.to(wide).reshape(len(mask), -1)
    # Not a product: what is masked may be NaN.
    masked = (losses.to(wide).reshape(len(mask), -1) * counts).masked_fill(counts == 0, 0.0)
    per_row = counts.sum(1)
    # A row of nothing but padding has nothing to learn from: 0.
    return masked.sum(1) / per_row.clamp(min=1e-12), masked.sum() / per_row.sum().clamp(min=1e-12)


def _like(shares: Any, rows: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(shares).to(rows.device, rows.dtype, non_blocking=True)


def single_labels(
    logits: torch.Tensor | None, targets: torch.Tensor | None, *, losses: torch.Tensor, mask: Any, exact: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits and targets, where predictions can be reported: given together, with one loss of its own a sample.

    Raises:
        ValueError: one is missing, or the losses are not of single samples.
    """
    if logits is None or targets is None:
        missing = "targets" if targets is None else "logits"
        raise ValueError(f"logits and targets must be given together, got no {missing}.")
    if targets.ndim > 1 and exact and losses.ndim:
        # Several labels a sample: those that are masked are none.
        is_masked = mask is not None and mask.shape == targets.shape
        return logits, targets.masked_fill(mask == 0, UNLABELLED) if is_masked else targets
    check_labels(losses, mask=mask, exact=exact)
    return logits, targets


def check_labels(losses: torch.Tensor, *, mask: Any = None, exact: bool = True) -> None:
    """Raise ValueError unless there is one loss for each sample, whose label can be judged."""
    wrong = (
        "the mean of a batch, which does not show whose label is wrong; give losses with reduction='none'"
        if losses.ndim == 0
        else "losses of mixed samples (exact=False), whose labels are mixed too; give no logits there"
        if not exact
        else "several losses a sample (a mask, or losses of tokens), which have no single label; give no logits there"
        if mask is not None or losses.ndim > 1
        else ""
    )
    if wrong:
        raise ValueError(f"logits need one loss for each sample, got {wrong}.")


def cross_entropies(
    logits: torch.Tensor, targets: torch.Tensor, *, class_weights: torch.Tensor | None, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The cross entropy of each sample, of two classes also from one logit, and the weights of the samples.

    Args:
        logits: float[B, C], float[B] or float[B, 1].
        targets: int[B], classes in [0, C); -1 or -100 for samples without a label.
        class_weights: float[C], or None.
        label_smoothing: In [0, 1].

    Returns:
        float[B], 0 without a gradient where there is no label; and [B], the weights of the labels, 0 where there is
        none, or None where all are known to be 1.

    Raises:
        TypeError: they are not tensors.
        ValueError: they are not those of a classification with one label a sample; or, on a CPU, a target is outside
            [0, C). Elsewhere the device says so, or the report.
    """
    _check_tensors(logits=logits, targets=targets, class_weights=class_weights)
    check_shapes(tuple(logits.shape), tuple(targets.shape), is_whole=not targets.is_floating_point())
    check_share("label_smoothing", label_smoothing)
    is_binary = logits.ndim == 1 or logits.shape[1] == 1
    given = as_classes(targets)
    weights = _label_weights(given, 2 if is_binary else logits.shape[1], class_weights)
    if not is_binary:
        losses = functional.cross_entropy(
            logits, given, reduction="none", ignore_index=UNLABELLED, label_smoothing=label_smoothing
        )
        return losses, weights
    smooth = given.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    losses = functional.binary_cross_entropy_with_logits(logits.reshape(-1), smooth, reduction="none")
    return losses.masked_fill(given == UNLABELLED, 0.0), weights


def _label_weights(given: torch.Tensor, num_classes: int, class_weights: torch.Tensor | None) -> torch.Tensor | None:
    """[B], the weight of each label, 0 where there is none; None where all are known to be 1."""
    if class_weights is not None and class_weights.shape != (num_classes,):
        raise ValueError(
            f"class_weights must have shape ({num_classes},), one weight a class, got {tuple(class_weights.shape)}."
        )
    # Elsewhere to look at them would wait for the device.
    is_readable = given.device.type == "cpu" and not torch.compiler.is_compiling()
    if is_readable:
        check_range(given, num_classes)
    if class_weights is not None:
        return class_weights[given.clamp(min=0)].masked_fill(given == UNLABELLED, 0)
    if is_readable and not bool((given == UNLABELLED).any()):
        return None
    return (given != UNLABELLED).to(torch.float32)

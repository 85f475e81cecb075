"""Predictions of a batch from its logits in JAX, also under ``jax.jit``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..table.labels.predictions import Predictions, check_shapes


def predictions_of(logits: Any, targets: Any) -> Predictions:
    """The predictions of a batch, to report with its losses.

    Args:
        logits: float[B, C], or log probabilities; or float[B] or float[B, 1], the logit of class 1 of two.
        targets: int[B], classes in [0, C); checked when they are reported.

    Returns:
        Arrays on the device. Return `pack` of them from a jitted function: ``num_classes`` is a static int.

    Raises:
        ValueError: the shapes or dtypes are not these; see `learnit_r8.predictions_of`.
    """
    targets = jnp.asarray(targets)
    check_shapes(jnp.shape(logits), targets.shape, is_whole=bool(jnp.issubdtype(targets.dtype, jnp.integer)))
    scores = jax.lax.stop_gradient(jnp.asarray(logits)).astype(jnp.float32)
    if scores.ndim == 1 or scores.shape[1] == 1:
        scores = jnp.stack([jnp.zeros(scores.shape[0]), scores.reshape(-1)], 1)
    classes = scores.shape[1]
    given = targets.astype(jnp.int32)
    own = jnp.take_along_axis(scores, given[:, None], 1)[:, 0]
    rival = jnp.where(jax.nn.one_hot(given, classes, dtype=bool), -jnp.inf, scores).max(1)
    return Predictions(rival - own, scores.argmax(1), given, classes)

"""Ensemble targets: what a network has said of each sample so far holds it, where it would learn wrong labels by heart.

A network that memorises is right about wrong labels first, and learns them later. One that is far from fitting its data
has said too little that is right to be held to it. Which of the two it is shows from a fifth of the budget on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..table.labels.suspicion import LEAST_USES

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler

BEGIN = 0.2
"""Share of the budget from which a network may be held, as with weights."""

PACE = 2 / 3
"""Least `Overview.memorised` of a network that is held, in proportion to the share of the budget spent. Measured in
benchmarks/verdicts.py, seed 601, 20 and 40 % wrong, in the first half: .10 to .48 where a network is far from fitting
its data, and .5 to 2.5 where it learns them by heart, but for the digits, whose wrong labels it learns last."""

LEAST_SURE, END = 0.77, 0.5
"""Least probability, in the mean, of the class that it has said most of each sample, in proportion to the share of the
labels that it predicts; and the share of the budget up to which this counts. There: .38 to .74 where a network is far
from fitting its data, and on the digits .78 to .94 from a quarter on."""

STRENGTH, ALPHA = 3.0, 0.3
"""Weight of the penalty, and weight of what is said now in the mean of what was said."""

LEAST_CHANCE = 1e-4

MOST_NUMBERS = 2**25
"""Largest N C: 64 MiB in half precision."""

HELD = (
    "the network learns labels by heart, or is nearly as sure as it is right, so it is held to what it has said of "
    "each sample so far, from step {} on: see docs/learning.md ({:.0%} learned of the labels that it contradicted at "
    "first)."
)


class EnsembleTargets:
    """The mean of what a network has said of each sample, late visits first, and a penalty for leaving it.

    Source: early learning regularisation (ELR), Liu et al. (arXiv:2007.00151). There the penalty acts from the first
    step on, and whatever the network; here only where labels are being memorised, or the network is as sure as it is
    right, which is looked at as each epoch begins, and beside the weights of a policy.

    Args:
        num_samples: N.
    """

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        # float16[N, C], on the device of the logits.
        self._said = torch.zeros(num_samples, 0, dtype=torch.float16)
        self._is_held = False

    def penalty(self, r8: R8Scheduler, indices: Any, logits: torch.Tensor) -> torch.Tensor | None:
        """Note what the logits say; float[B], to be added to the losses that are trained on, and not to those reported.

        Args:
            r8: The scheduler, to which predictions are reported.
            indices: int64[B], the samples, as `Ticket.indices`.
            logits: float[B, C]; or float[B] or float[B, 1], the logit of class 1 of two.

        Returns:
            3 log(1 - <mean, said now>) of each; None where the network is not held, or N C is above 33 million.
        """
        if logits.ndim == 1 or logits.shape[1] == 1:
            logits = torch.stack([torch.zeros_like(logits.reshape(-1)), logits.reshape(-1)], 1)
        if self._num_samples * logits.shape[1] > MOST_NUMBERS:
            return None
        if self._said.shape[1] != logits.shape[1]:
            self._said = self._said.new_zeros(self._num_samples, logits.shape[1])
        self._said = self._said.to(logits.device)
        rows = torch.from_numpy(indices).to(logits.device)
        chance = logits.float().softmax(1).clamp(LEAST_CHANCE, 1 - LEAST_CHANCE)
        said, before = chance.detach(), self._said[rows].float()
        now = said / said.sum(1, keepdim=True)
        # What is not finite, as in a batch that is refused, would stay.
        mean = torch.where(now.isfinite(), torch.lerp(before, now, ALPHA), before)
        self._said[rows] = mean.half()
        # From the fourth visits on margins can be kept, by which lists go.
        may_begin = not self._is_held and r8.step_in_epoch == 0
        if may_begin and r8.current_epoch >= LEAST_USES and r8.progress >= BEGIN:
            overview = r8.table.overview()
            right = int((overview.predicted == overview.given).sum())
            is_sure = r8.progress < END and float(self._said.max(1).values.float().sum()) >= LEAST_SURE * right
            self._is_held = is_sure or overview.memorised >= PACE * r8.progress
            if self._is_held:
                # From now on the margins are not those of the labels alone.
                r8.table.storage.note_weights()
                r8.host.say_once("ensemble targets", HELD.format(r8.global_step, overview.memorised), is_warning=False)
        return STRENGTH * (1 - (mean * chance).sum(1)).log() if self._is_held else None

    def state_dict(self) -> dict[str, Any]:
        """What was said of each sample, and whether the network is held to it."""
        return {"said": self._said, "is_held": self._is_held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, of as many samples.

        Raises:
            ValueError: it is of another number of samples.
        """
        if len(state["said"]) != self._num_samples:
            raise ValueError(
                f"the ensemble targets must be those of {self._num_samples:,} samples, got {len(state['said']):,}."
            )
        self._said, self._is_held = state["said"].clone(), state["is_held"]

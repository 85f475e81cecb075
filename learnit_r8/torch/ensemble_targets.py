"""Ensemble targets: what a network has said of each sample so far holds it, where it would learn wrong labels by heart.

A network that memorises is right about wrong labels first, and learns them later. One that is far from fitting its data
has said too little that is right to be held to it. Which of the two it is shows from a third of the budget on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..table.labels.suspicion import LEAST_USES

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler

PROGRESS, PACE = 0.3, 2 / 3
"""Share of the budget from which a network may be held, and the least `Overview.memorised` for that, in proportion to
the share spent. Measured in benchmarks/verdicts.py: at .3 it is .05 to .13 where a network is far from fitting its
data, and .23 to .76 where it learns them by heart."""

STRENGTH, ALPHA = 3.0, 0.3
"""Weight of the penalty, and weight of what is said now in the mean of what was said."""

LEAST_CHANCE = 1e-4

MOST_NUMBERS = 2**25
"""Largest N C: 64 MiB in half precision."""

HELD = (
    "the network learns labels by heart, so it is held to what it has said of each sample so far, from step {} on: see "
    "docs/learning.md ({:.0%} of the labels that it contradicted at first)."
)


class EnsembleTargets:
    """The mean of what a network has said of each sample, late visits first, and a penalty for leaving it.

    Source: early learning regularisation (ELR), Liu et al. (arXiv:2007.00151). There the penalty acts from the first
    step on, and whatever the network; here only where labels are being memorised, which is looked at as each epoch
    begins, and beside the weights of a policy.

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
        if may_begin and r8.current_epoch >= LEAST_USES and r8.progress >= PROGRESS:
            memorised = r8.table.overview().memorised
            self._is_held = memorised >= PACE * r8.progress
            if self._is_held:
                # From now on the margins are not those of the labels alone.
                r8.table.storage.note_weights()
                r8.host.say_once("ensemble targets", HELD.format(r8.global_step, memorised), is_warning=False)
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

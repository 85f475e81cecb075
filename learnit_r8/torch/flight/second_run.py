"""The second run: computes a step that is not finite once more, from the same weights, batch and generators."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ...sampling.random_generators import set_random_state, state_of

if TYPE_CHECKING:
    from ...scheduler import R8Scheduler
    from ..stepper import Stepper
    from .hand import Hand


class SecondRun:
    """Computes steps once more that are not finite, and says which faults were transient.

    Losses on other devices are known too late, as the step was taken by then.

    Args:
        model: The model.
        stepper: Computes its gradients.
        hand: Holds the batch, and buffers and random generators as they were when it came.
        run_batch: Returns the loss of a batch as the loader gives it; None if nothing can run again.
        r8: Is told what was found.
        is_alone: Whether no other process trains the model.
    """

    def __init__(
        self, model: torch.nn.Module, stepper: Stepper, hand: Hand, run_batch: Callable[[Any], Any] | None,
        r8: R8Scheduler, *, is_alone: bool,
    ) -> None:  # fmt: skip
        self._model, self._stepper, self._hand, self._run_batch, self._r8 = model, stepper, hand, run_batch, r8
        is_in_memory = all(each.is_cpu for each in model.parameters())
        self._is_possible = run_batch is not None and is_alone and is_in_memory and stepper.can_begin_anew

    def of(self, loss: torch.Tensor, norm: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Look at the loss and the gradient of a step, and compute them once more if they are not finite.

        Args:
            loss: 0-dim, after its backward pass.
            norm: 0-dim, the norm of the gradient before it was clipped; None where nothing is clipped.

        Returns:
            The loss to report in place of that of the batch, None for that; and the norm to report.
        """
        if not self._is_possible:
            return None, norm
        hand, start = self._hand, self._hand.start
        hand.hold_starts(self._model)
        found = self._stepper.norm() if norm is None else norm
        if bool(torch.isfinite(loss.detach() + found)):
            return None, norm
        what = "gradient" if bool(torch.isfinite(loss.detach()).all()) else "loss"
        norm = found if what == "gradient" else norm
        if start is None or hand.batch is None:
            return None, norm
        generators, buffers = start
        set_random_state(state_of(generators))
        for buffer, before in zip(self._model.buffers(), buffers, strict=True):
            # Not through copy_() of its own: a graph that waits for backward() would be refused.
            buffer.data.copy_(before)
        self._stepper.clear()
        assert self._run_batch is not None
        try:
            with torch.enable_grad():
                again = self._run_batch(hand.batch).mean()
                self._stepper.backward(again, is_last=True)
            second = self._stepper.clip()
            total = again.detach() + (self._stepper.norm() if second is None else second)
        except Exception:
            # What a loss function raises because of a NaN is no sign of a transient fault.
            return None, norm
        is_finite = bool(torch.isfinite(total))
        self._r8.controller.computed_again(
            what, step=self._r8.global_step, is_finite=is_finite, device=f"the CPU of {platform.node()!r}"
        )
        return (again.detach(), second) if is_finite else (None, norm)


def with_second(values: torch.Tensor, again: torch.Tensor | None) -> torch.Tensor:
    """The losses of a batch, with that of the second run, 0-dim, in place of those that are not finite."""
    return values if again is None else torch.where(torch.isfinite(values), values, again.to(values))

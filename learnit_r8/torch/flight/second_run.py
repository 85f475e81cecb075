"""The second run: computes a step that is not finite once more, from the same weights, batch and generators."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from ...sampling.random_generators import set_random_state, state_of

if TYPE_CHECKING:
    from ...scheduler import R8Scheduler
    from ..stepper import Stepper
    from .hand import Hand


class SecondRun:
    """Computes steps once more that are not finite, and says which faults were transient.

    Losses on other devices are known too late, as the step was taken by then. Of several processes all compute a step
    again or none: under `DistributedDataParallel` all of them see the same averaged gradient, so none needs to ask.

    Args:
        model: The model, as it is trained.
        stepper: Computes its gradients.
        hand: Holds the batch, and buffers and random generators as they were when it came.
        run_batch: Returns the loss of a batch as the loader gives it; None if nothing can run again.
        r8: Is told what was found.
        gather: Returns the values of all processes that train the model; None if this is the only one.
    """

    def __init__(
        self, model: torch.nn.Module, stepper: Stepper, hand: Hand, run_batch: Callable[[Any], Any] | None,
        r8: R8Scheduler, *, gather: Callable[[Any], list[Any]] | None,
    ) -> None:  # fmt: skip
        self._model, self._stepper, self._hand, self._run_batch, self._r8 = model, stepper, hand, run_batch, r8
        self._gather = gather
        is_in_memory = all(each.is_cpu for each in model.parameters())
        can_agree = gather is None or isinstance(model, DistributedDataParallel)
        self._is_possible = run_batch is not None and can_agree and is_in_memory and stepper.can_begin_anew

    def of(
        self, loss: torch.Tensor, norm: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, bool]:
        """Look at the loss and the gradient of a step, and compute them once more if they are not finite.

        Args:
            loss: 0-dim, after its backward pass.
            norm: 0-dim, the norm of the gradient before it was clipped; None where nothing is clipped.

        Returns:
            The loss to report in place of that of the batch, None for that; the norm to report; and whether the
            optimizer may take the step, as a verdict over several processes comes only later.
        """
        if not self._is_possible:
            return None, norm, True
        hand, start, gather = self._hand, self._hand.start, self._gather
        hand.hold_starts(self._model)
        found = self._stepper.norm() if norm is None else norm
        # Only the gradient is the same in all processes; it is not, where they have not exchanged theirs.
        is_shared = gather is None or self._model.require_backward_grad_sync
        if bool(torch.isfinite(found if gather is not None else loss.detach() + found)) or not is_shared:
            return None, norm, True
        what = "gradient" if bool(torch.isfinite(loss.detach()).all()) else "loss"
        norm = found if what == "gradient" or gather is not None else norm
        if start is None or hand.batch is None:
            return None, norm, False
        generators, buffers = start
        set_random_state(state_of(generators))
        for buffer, before in zip(self._model.buffers(), buffers, strict=True):
            # Not through copy_() of its own: a graph that waits for backward() would be refused.
            buffer.data.copy_(before)
        self._stepper.clear()
        assert self._run_batch is not None
        again = failure = None
        with torch.enable_grad():
            try:
                again = self._run_batch(hand.batch).mean()
            except Exception as error:
                # What a loss function raises because of a NaN is no sign of a transient fault.
                failure = error
            failures = [failure is not None] if gather is None else gather(failure is not None)
            if any(failures):
                if not all(failures):
                    # The gradients of the others would wait for those of this process.
                    raise RuntimeError("run_batch() raised on some processes only.") from failure
                return None, norm, False
            assert again is not None
            try:
                self._stepper.backward(again, is_last=True)
            except Exception:
                if gather is not None:
                    raise
                return None, norm, False
        second = self._stepper.clip()
        found = self._stepper.norm() if second is None else second
        is_finite = bool(torch.isfinite(found if gather is not None else again.detach() + found))
        self._r8.controller.computed_again(
            what, step=self._r8.global_step, is_finite=is_finite, device=f"the CPU of {platform.node()!r}"
        )
        return (again.detach(), second, True) if is_finite else (None, norm, False)


def with_second(values: torch.Tensor, again: torch.Tensor | None) -> torch.Tensor:
    """The losses of a batch, with that of the second run, 0-dim, in place of those that are not finite."""
    return values if again is None else torch.where(torch.isfinite(values), values, again.to(values))

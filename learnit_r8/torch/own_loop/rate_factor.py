"""The factor that recovery puts on the user's own rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..prepared import plain_optimizer

if TYPE_CHECKING:
    from ...scheduler import R8Scheduler


class RateFactor:
    """Lowers the rates of an optimizer for the duration of its step, if recovery asks for it.

    A hook puts it on before the step, and another one puts the saved values back after it, so that whatever sets the
    rate, even a recursive schedule, never sees it.

    Args:
        r8: Gives the factor.
        optimizer: A `torch.optim.Optimizer`, or what wraps one.
    """

    def __init__(self, r8: R8Scheduler, optimizer: Any) -> None:
        self._r8 = r8
        self._saved: list[Any] | None = None
        plain = plain_optimizer(optimizer)
        self._handles = [plain.register_step_pre_hook(self._before), plain.register_step_post_hook(self._after)]

    def _before(self, optimizer: Any, *_: Any) -> None:
        controller = self._r8.controller
        if self._saved is not None:
            # A step has raised.
            self._after(optimizer)
        if controller.is_quiet:
            return
        factor = self._r8.lr_factor
        if factor == 1:
            return
        self._saved = []
        for group in optimizer.param_groups:
            rate = group["lr"]
            if hasattr(rate, "mul_"):
                self._saved.append(rate.clone())
                rate.mul_(factor)
            else:
                self._saved.append(rate)
                group["lr"] = rate * factor

    def _after(self, optimizer: Any, *_: Any) -> None:
        saved, self._saved = self._saved, None
        if saved is None:
            return
        for group, rate in zip(optimizer.param_groups, saved, strict=False):
            if hasattr(group["lr"], "copy_"):
                group["lr"].copy_(rate)
            else:
                group["lr"] = rate

"""What a watched run says of the place, in words."""

from __future__ import annotations

import math

from ...recovery.cause import FORWARD, LOSS, SCALE, UNKNOWN, Finding
from .trace import FOREIGN, HOOK, Trace

LARGE_FACTOR = 1e6
"""A factor of the loss that is so large, or so small, is named as such."""


def value_of(trace: Trace) -> str:
    """ "NaN" or "Inf", whichever came first."""
    fault = trace.fault
    return fault.what if fault is not None else "NaN" if math.isnan(trace.loss) else "Inf"


def place_of(trace: Trace) -> str:
    """Module and operation; "" if there is none."""
    fault = trace.fault
    return "" if fault is None else f"{fault.where} {fault.op}".strip()


def site_of(trace: Trace) -> str:
    """File and line, as " at model.py:12"; "" if they are not known."""
    return f" at {trace.fault.site}" if trace.fault is not None and trace.fault.site else ""


def describe_place(trace: Trace) -> str:
    """What came first, and where."""
    fault = trace.fault
    if fault is None:
        return f"{value_of(trace)} first in `{trace.first_module}` (forward)"
    if fault.op == FOREIGN:
        reader = f"`{fault.where}` reads it" if fault.where else "it is read"
        return f"{fault.what} comes from outside of weights and batch: {reader}{site_of(trace)}"
    if not fault.where:
        stage = "before the model" if fault.is_early else "in the loss"
        return f"{fault.what} first {stage}, in `{fault.op}`{site_of(trace)}"
    return f"{fault.what} first in `{fault.where}` (forward, `{fault.op}`{site_of(trace)})"


def describe_gradient(trace: Trace) -> tuple[str, str]:
    """What came first in a backward pass and where, and the place alone."""
    fault, first = trace.fault, trace.bad_gradients[0]
    reached = f"the first parameter that it reaches is `{first}`"
    if fault is None:
        return f"a gradient is not finite; {reached}", first
    if fault.where.startswith(HOOK):
        return f"{fault.what} first in {fault.where}, in `{fault.op}`{site_of(trace)}; {reached}", first
    module = f" in `{fault.where}`" if fault.where else ""
    return f"{fault.what} first in the gradient of `{fault.op}`{module}{site_of(trace)}; {reached}", place_of(trace)


def of_length(share: float) -> str:
    """A share of a length in words."""
    return f"{share:.0%} of" if share < 10 else f"{share:,.3g} times"


def describe_error(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def describe_run(trace: Trace, *, has_loss: bool) -> str:
    """What a run has shown, for the evidence."""
    if trace.error is not None:
        return describe_error(trace.error)
    said = f"loss {trace.loss:.6g}" if has_loss else "finite" if trace.is_finite else "not finite"
    if trace.has_gradients:
        said += ", a gradient that is not finite" if trace.bad_gradients else ", finite gradients"
    return said


def finding_of(trace: Trace) -> Finding:
    """What the first operation that goes wrong says."""
    if trace.error is not None:
        return Finding(UNKNOWN, f"the model raises as the batch runs again ({describe_error(trace.error)})")
    fault = trace.fault
    if fault is None:
        if trace.first_module:
            return Finding(FORWARD, describe_place(trace), where=trace.first_module)
        if math.isfinite(trace.loss):
            return Finding(UNKNOWN, f"the loss of the batch is {trace.loss:.6g} again, and all of it is finite")
        return Finding(UNKNOWN, "the loss is not finite, and no operation was seen to make it so")
    is_far = fault.factor > LARGE_FACTOR or 0 < fault.factor < 1 / LARGE_FACTOR
    if fault.op in ("mul", "mul_", "div", "div_") and not fault.where and is_far:
        text = f"the loss overflows by a factor of {fault.factor:.3g} (a loss scale?){site_of(trace)}"
        return Finding(SCALE, text, where="factor of the loss")
    kind = FORWARD if fault.where or fault.is_early else LOSS
    return Finding(kind, describe_place(trace), where=place_of(trace))

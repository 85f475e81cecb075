"""A watched run of a batch: which operation made a value that is not finite, and that in words."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ...events.incident import describe_error
from ...recovery.cause import BACKWARD, FORWARD, LOSS, SCALE, UNKNOWN, Finding
from ...state.tree import leaves

_MASKERS = "masked_fill masked_fill_ full full_like new_full fill fill_ where scalar_tensor lift_fresh_copy lift_fresh"
MASKERS = frozenset([*_MASKERS.split(), "index_put", "index_put_", "triu", "tril", "triu_", "tril_"])
"""Operations that put a value where somebody asks for it: an infinity there is meant, as in the mask of attention."""

EMPTY = frozenset(
    ["empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "resize_", "set_", "empty_permuted"]
)
"""Operations whose result is any value that was in the memory."""

MASK, INPUT, WEIGHTS = -1, -2, -3
"""What a value that is not finite comes from, other than an operation."""

_HERE = os.path.dirname(os.path.abspath(__file__))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))


class BadLabel(IndexError):
    """An index that is outside of what it points into; raised before a device would fail.

    Attributes:
        rows: Rows of the batch that hold such ones.
        text: What is wrong.
    """

    def __init__(self, rows: tuple[int, ...], text: str) -> None:
        super().__init__(text)
        self.rows, self.text = rows, text


class _Watch(TorchDispatchMode):
    """Looks at the result of every operation."""

    def __init__(
        self, trace: Trace, keys: dict[int, str], seeds: dict[int, int], names: dict[int, str], *, is_alone: bool
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = names
        self._is_alone = is_alone
        self._trace, self._keys, self._chain = trace, keys, dict(seeds)
        self.stack: list[str] = []
        self.has_entered = False
        self.phase, self._number = FORWARD, 0
        self._calls: dict[int, tuple[str, str]] = {}
        self._numbers: list[float] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if not self._is_alone and "c10d" in func.namespace:
            raise RuntimeError(f"{name} asks the other processes, which do not run this batch")
        self._number += 1
        self._check_labels(name, args)
        self._numbers = [abs(float(each)) for each in args if type(each) in (int, float)]
        out = func(*args, **kwargs)
        if self.phase == FORWARD:
            self._note_reads(args, out)
            number = int(getattr(torch.autograd, "_get_sequence_nr", lambda: 0)())
            self._calls[number - 1] = (self.stack[-1] if self.stack else "", _site())
        if name not in EMPTY:
            given = None
            for each in float_tensors(out):
                if not _is_finite(each):
                    given = float_tensors([args, kwargs]) if given is None else given
                    self._chain[_place(each)] = self._origin(name, each, given, is_written=func._schema.is_mutable)
                elif self._chain:
                    given = float_tensors([args, kwargs]) if given is None else given
                    if not any(_place(one) == _place(each) for one in given):
                        # The memory of another value, which is gone.
                        self._chain.pop(_place(each), None)
        return out

    def _origin(self, name: str, value: torch.Tensor, given: list[torch.Tensor], *, is_written: bool) -> int:
        is_nan = math.isnan(extent_of(value))
        for each in given:
            # What an operation in place has overwritten counts as it was before; it is not known any more.
            place = _place(each)
            if is_written and (each is value or place == _place(value)):
                continue
            if not _is_finite(each):
                found = self._chain.get(place, WEIGHTS if self.phase == BACKWARD else None)
                if found is None and math.isnan(extent_of(each)):
                    name = FOREIGN
                    break
                # An infinity from outside is meant, as in a mask.
                found = MASK if found is None else found
                if not (found == MASK and is_nan):
                    return found
        own = self._chain.get(_place(value))
        if own is not None and own != MASK:
            return own
        if name in MASKERS and not is_nan:
            return MASK
        where, site = self.stack[-1] if self.stack else "", _site()
        if self.phase == BACKWARD:
            where, site, name = self._of_node(name)
        what = "NaN" if is_nan else "Inf"
        is_early = not self.has_entered
        self._trace.faults.append(
            Fault(self.phase, where, name, what, site, self._number, is_early, _factor(given, self._numbers))
        )
        return len(self._trace.faults) - 1

    def _of_node(self, name: str) -> tuple[str, str, str]:
        """Module, code and name of the forward operation whose gradient is computed now."""
        node = getattr(torch._C, "_current_autograd_node", lambda: None)()
        if node is None:
            return "", "", name
        weight = self._names.get(id(getattr(node, "variable", None)))
        if weight is not None:
            # No operation of the forward pass comes here, but hooks of the parameter.
            return f"{HOOK}{weight}", _site(), name
        where, site = self._calls.get(node._sequence_nr(), ("", ""))
        return where, site, node.name().removesuffix("0").removesuffix("Backward").lower() or name

    def origin_of(self, value: torch.Tensor) -> int:
        """What a value that is not finite comes from."""
        return self._chain.get(_place(value), WEIGHTS)

    def _note_reads(self, args: Any, out: Any) -> None:
        """Note which arrays of the batch modules read, and what is made of them before."""
        given = [self._keys.get(_place(each), "") for each in args if isinstance(each, torch.Tensor)]
        key = next(filter(None, given), "")
        if self.stack and key:
            self._trace.read.add(key)
        for each in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(each, torch.Tensor):
                if key and not self.stack:
                    self._keys[_place(each)] = key
                elif not key:
                    # The memory of another value, which is gone.
                    self._keys.pop(_place(each), None)

    def _check_labels(self, name: str, args: Any) -> None:
        """Look at labels before the operation does: a device that fails on one fails for good."""
        if name.startswith("nll_loss") and "backward" not in name and self.phase == FORWARD:
            scores, labels = args[0], args[1]
            ignored = args[4] if len(args) > 4 else -100
            count = scores.shape[1 if scores.ndim > 1 else 0]
            bad = ((labels < 0) | (labels >= count)) & (labels != ignored)
            _raise_if(bad, labels, f"a label outside of the {count} classes")
            if labels.numel() and bool((labels == ignored).all()):
                self._note_labels(labels == ignored, f"only labels that are left out ({ignored})")
        elif name in ("binary_cross_entropy", "binary_cross_entropy_with_logits") and self.phase == FORWARD:
            labels = args[1]
            self._note_labels((labels < 0) | (labels > 1), "a label outside of [0, 1]", labels)
        elif name == "embedding" and self.phase == FORWARD:
            table, places = args[0], args[1]
            bad = (places < 0) | (places >= table.shape[0])
            _raise_if(bad, places, f"an index outside of the {table.shape[0]} rows of a table")

    def _note_labels(self, bad: torch.Tensor, text: str, values: torch.Tensor | None = None) -> None:
        if bool(bad.any()) and self._trace.bad_labels is None:
            example = "" if values is None else f": {values[bad].reshape(-1)[0].item():.6g}"
            self._trace.bad_labels = _rows_of(bad), text + example


def _raise_if(bad: torch.Tensor, values: torch.Tensor, text: str) -> None:
    if bool(bad.any()):
        raise BadLabel(_rows_of(bad), f"{text}: {values[bad].reshape(-1)[0].item()}")


def _rows_of(bad: torch.Tensor) -> tuple[int, ...]:
    """The rows in which a mask is true; none where it has no rows."""
    if bad.ndim == 0:
        return (0,)
    return tuple(bad.reshape(bad.shape[0], -1).any(1).nonzero().reshape(-1).tolist())


def _site() -> str:
    """File and line of the innermost code that is neither torch's nor ours."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, _HERE, "<")) and "contextlib" not in name:
            return f"{os.path.basename(name)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def float_tensors(value: Any) -> list[torch.Tensor]:
    """The tensors of floats in a nest, but for empty ones."""
    found = [each for _, each in leaves(value) if isinstance(each, torch.Tensor)]
    return [each for each in found if each.is_floating_point() and each.numel()]


def _is_finite(value: torch.Tensor) -> bool:
    return math.isfinite(extent_of(value))


def _place(value: torch.Tensor) -> int:
    try:
        return int(value.untyped_storage().data_ptr())
    except (RuntimeError, NotImplementedError):
        return 0


def _factor(given: list[torch.Tensor], numbers: list[float]) -> float:
    """The single number among what an operation takes."""
    numbers = [*numbers, *(abs(each.detach().item()) for each in given if each.ndim == 0)]
    return numbers[-1] if numbers else math.nan


def largest(value: Any) -> float:
    """The largest absolute value in the tensors of floats of a nest; NaN if one is not finite."""
    tops = [extent_of(each) for each in float_tensors(value)]
    return max(tops, default=0.0) if all(map(math.isfinite, tops)) else math.nan


def run_watched(
    model: torch.nn.Module, run: Callable[[Any], Any], batch: Any, *, backward: bool, scale: float = 1.0,
    is_quick: bool = False, is_alone: bool = True,
) -> Trace:  # fmt: skip
    """Run a batch, and watch.

    Args:
        model: Its modules and parameters are named.
        run: Returns the loss of a batch, or where there is none what the model returns.
        batch: The batch.
        backward: Whether to compute gradients.
        scale: Factor of the loss for the backward pass.
        is_quick: Whether only loss and gradients are looked at, and no operation, which takes several times as long.
        is_alone: Whether there are no other processes, which would wait for this one for ever, or it for them.
    """
    trace = Trace()
    names = {id(module): name or type(module).__name__ for name, module in model.named_modules()}
    keys = {_place(each): key for key, each in leaves(batch) if isinstance(each, torch.Tensor)}
    seeds = dict.fromkeys(keys, INPUT)
    seeds |= {_place(each): WEIGHTS for each in (*model.parameters(), *model.buffers())}
    weights = {id(each): name for name, each in model.named_parameters()}
    watch = _Watch(trace, keys, seeds, weights, is_alone=is_alone)

    def enter(module: torch.nn.Module, args: Any) -> None:
        watch.has_entered = True
        watch.stack.append(names.get(id(module), type(module).__name__))

    def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
        name = watch.stack.pop() if watch.stack else ""
        top = largest(output)
        if name not in trace.modules or math.isnan(top):
            trace.modules[name] = top
        if math.isnan(top) and not trace.first_module:
            trace.first_module = name

    # Not those that torch has for all modules at once: a compiled model warns of them.
    hooks: list[Any] = []
    try:
        for module in () if is_quick else model.modules():
            hooks.append(module.register_forward_pre_hook(enter))
            hooks.append(module.register_forward_hook(leave))
        with contextlib.nullcontext() if is_quick else watch:
            _run(model, trace, watch, run, batch, backward=backward, scale=scale, hooks=hooks)
    except Exception as error:
        trace.error = error
        if isinstance(error, BadLabel):
            trace.bad_labels = error.rows, error.text
    finally:
        for hook in hooks:
            hook.remove()
    return trace


def _note_gradient(order: list[str], name: str, parameter: torch.Tensor) -> None:
    if parameter.grad is not None and not _is_finite(parameter.grad):
        order.append(name)


def _run(
    model: torch.nn.Module, trace: Trace, watch: _Watch, run: Callable[[Any], Any], batch: Any, *, backward: bool,
    scale: float, hooks: list[Any],
) -> None:  # fmt: skip
    value = run(batch)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or (value.ndim and not value.numel()):
        bad = [each for each in float_tensors(value) if not _is_finite(each)]
        trace.is_finite = not bad
        trace.origin = watch.origin_of(bad[0]) if bad else None
        return
    if value.ndim:
        trace.losses = value.detach().float()
    loss = value.mean() if value.ndim else value
    trace.loss = float(loss.detach())
    trace.is_finite = math.isfinite(trace.loss)
    if not trace.is_finite:
        trace.origin = watch.origin_of(loss)
    if backward and loss.requires_grad:
        order: list[str] = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.is_leaf:
                note = functools.partial(_note_gradient, order, name)
                hooks.append(parameter.register_post_accumulate_grad_hook(note))  # type: ignore[no-untyped-call]
        watch.phase = BACKWARD
        (loss * scale if scale != 1 else loss).backward()  # type: ignore[no-untyped-call]
        trace.bad_gradients, trace.has_gradients = order, True
    for parameter in model.parameters():
        parameter.grad = None


HOOK = "a hook of "
"""What the name of a parameter follows where its hook is at fault."""

FOREIGN = "reads"
"""The operation of a fault that is none: it reads a value that is neither a weight nor in the batch."""


class Fault(NamedTuple):
    """An operation that makes a value that is not finite out of finite ones.

    Attributes:
        phase: "forward" or "backward".
        where: The module; "" outside of all.
        op: The operation.
        what: "NaN" or "Inf".
        site: File and line of the code that calls it; "" if it is not known.
        number: Which operation of the run it is.
        is_early: Whether it came before the model was called.
        factor: The number that it multiplies with or divides by; NaN if it is no such one.
    """

    phase: str
    where: str
    op: str
    what: str
    site: str
    number: int
    is_early: bool = False
    factor: float = math.nan


@dataclass
class Trace:
    """What a watched run has shown.

    Attributes:
        loss: The loss; NaN if there is none.
        losses: Those of the rows, if it gave them.
        error: What it raised.
        faults: In their order.
        origin: Number in `faults` of that which made the loss what it is; or what else did. None if it is finite.
        modules: The largest absolute output of each module.
        first_module: The first module whose output is not finite; "" for none.
        bad_labels: Rows whose labels a loss cannot take, and what is wrong with them.
        bad_gradients: Parameters whose gradient is not finite, in the order of the backward pass.
        has_gradients: Whether there was a backward pass.
        read: Names of arrays of the batch that the modules have read, or what was made of them; not labels and weights.
        is_finite: Whether all that the model returned was finite, where there is no loss.
    """

    loss: float = math.nan
    losses: torch.Tensor | None = None
    error: Exception | None = None
    faults: list[Fault] = field(default_factory=list)
    origin: int | None = None
    modules: dict[str, float] = field(default_factory=dict)
    first_module: str = ""
    bad_labels: tuple[tuple[int, ...], str] | None = None
    bad_gradients: list[str] = field(default_factory=list)
    has_gradients: bool = False
    read: set[str] = field(default_factory=set)
    is_finite: bool = True

    @property
    def fault(self) -> Fault | None:
        """The operation that made the loss, or else the gradient, what it is."""
        if self.origin is not None and self.origin >= 0:
            return self.faults[self.origin]
        if self.origin is None and self.bad_gradients:
            return next((each for each in self.faults if each.phase == BACKWARD), None)
        return None


def extent_of(value: torch.Tensor) -> float:
    """The largest absolute value; NaN if there is one in it. Forty times as fast as to ask which are finite."""
    try:
        low, high = torch.aminmax(value.detach())
        return max(abs(low.item()), abs(high.item())) if low == low else math.nan
    except (RuntimeError, NotImplementedError):
        # A sparse tensor, or one of a kind that cannot be looked at.
        return 0.0


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
        return Finding(UNKNOWN, f"the model raises as R8 runs the batch again ({describe_error(trace.error)})")
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

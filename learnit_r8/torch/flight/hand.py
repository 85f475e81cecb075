"""The batch in hand: held by reference from the loader to the report of its loss, so that it can run again."""

from __future__ import annotations

import contextlib
import math
import operator
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ...sources.random_generators import hold_random_state
from ...state.tree import clone
from .untouched import put_value

if TYPE_CHECKING:
    from ...sources.ticket import Ticket


Given = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of a call, positional and by name."""

MOST_OF_BUFFER, MOST_OF_BUFFERS = 2**14, 2**18
"""Most numbers in a buffer that is copied as a batch begins, and in all of them: statistics are as wide as a layer, and
a mask of 1024 x 1024 would take .3 ms a step."""

_COPIED = {torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool}


def _is_plain(buffer: Any) -> bool:
    """Whether a buffer is a dense tensor of numbers that batches change."""
    return buffer is not None and buffer.dtype in _COPIED and buffer.layout is torch.strided and not buffer.is_nested


class Held(NamedTuple):
    """A batch that was trained on.

    Attributes:
        ticket: What the run knows of it.
        batch: As the loader gave it; None where it is not known.
        inputs: What the model got in its last call, positional and by name; None where it is not held.
        generators: The random generators at its start, as `hold_random_state` returns them; None where they are not
            kept.
        first: What it got in its first call, if there were several: that is nearest to the batch, while the last one
            may be of what other calls have made, such as a hidden state or the output of a generator.
    """

    ticket: Ticket
    batch: Any
    inputs: Given | None
    generators: Any
    first: Given | None = None


class Hand:
    """Holds the batch that is trained on, and the last one whose loss was good.

    Args:
        keeps_generators: Whether to note the random generators at the start of each batch, which copies them.

    Attributes:
        keeps_generators: As given.
        batch: The batch that the loader has handed out last.
        inputs: What the model was given last in this step, by reference; None where that is not watched.
        reported: The batch whose loss is being reported.
        good: The last one whose loss was good.
        steps_later: Whether the step of the batch in hand is known to follow its report.
        start: The random generators as the batch came; None where the start of batches is not held.
    """

    def __init__(self, *, keeps_generators: bool) -> None:
        self.keeps_generators = keeps_generators
        self.start: Any = None
        self._holds_starts = self.steps_later = False
        # The places of buffers, the tensors there as the batch came, and copies of those.
        self._places: list[tuple[dict[str, Any], str]] = []
        self._buffers: list[torch.Tensor] = []
        self._copies: list[torch.Tensor] = []
        # Parts of the training that the script carries on, such as a hidden state, and copies of them.
        self._carried: list[tuple[Any, Any]] = []
        # Whether a batch has come since the last report, and that which was reported last if so.
        self._has_come = False
        self._taken: Held | None = None
        self.batch: Any = None
        self.inputs: Given | None = None
        self._first: Given | None = None
        self.reported: Held | None = None
        self.good: Held | None = None
        self._generators: Any = None

    def watch(self, model: torch.nn.Module) -> None:
        """Hold what the model is given in training, as its batches cannot run again otherwise.

        The call stands in the place where torch keeps a compiled one of a module, which is no part of a copy or a saved
        model: a hook would take 3 us a step, as torch has a slower way for modules with one.
        """
        # The model must not hold itself, or its memory would wait for the garbage collector; nor the last batches.
        own, hand = weakref.ref(model), weakref.ref(self)

        def call(*args: Any, **kwargs: Any) -> Any:
            module: Any = own()
            here = hand()
            if here is not None and module.training:
                here.inputs = args, kwargs
                if here._first is None:
                    here._first = here.inputs
            return module._call_impl(*args, **kwargs) if compiled is None else compiled(*args, **kwargs)

        # A scripted module cannot be watched.
        with contextlib.suppress(Exception):
            compiled: Any = model._compiled_call_impl
            model._compiled_call_impl = call

    def hold_starts(self, model: torch.nn.Module) -> None:
        """Hold the start of each batch from the next one on, from which its step can be computed once more."""
        if not self._holds_starts and not self._places:
            self.watch_buffers([model], is_whole=True)
        self._holds_starts = True

    def watch_buffers(self, networks: Sequence[torch.nn.Module], *, is_whole: bool = False) -> None:
        """Copy what networks keep beside their weights, such as the statistics of a norm, as each batch begins.

        Args:
            networks: They.
            is_whole: Whether buffers of any size are copied, as those that a step is computed from once more.
        """
        modules = dict.fromkeys(module for network in networks for module in network.modules())
        most, size = math.inf if is_whole else MOST_OF_BUFFER, 0
        places: list[tuple[dict[str, Any], str]] = []
        for buffers, name in [(each._buffers, name) for each in modules for name in each._buffers]:
            buffer: Any = buffers[name]
            if _is_plain(buffer) and buffer.numel() <= most:
                places.append((buffers, name))
                size += buffer.numel()
        if is_whole or size <= MOST_OF_BUFFERS:
            self._places = places

    def watch_carried(self, parts: Sequence[Any]) -> None:
        """Copy what a script carries on from batch to batch, such as a hidden state, as each batch begins.

        Args:
            parts: What is put back with the weights. Those count that are nothing but tensors of floating numbers, and
                few: others may hold how far a loop is in its data, which a refused batch must not stop.
        """
        for part in parts:
            tensors = torch.utils._pytree.tree_leaves(part.state_dict())
            is_known = all(isinstance(each, torch.Tensor) and each.is_floating_point() for each in tensors)
            if is_known and sum(each.numel() for each in tensors) <= MOST_OF_BUFFERS:
                self._carried.append((part, None))

    def _copy_buffers(self) -> None:
        now = [buffers.get(name) for buffers, name in self._places]
        is_same = len(now) == len(self._buffers) and all(map(operator.is_, now, self._buffers))
        if is_same and all(each.shape == copy.shape for each, copy in zip(self._buffers, self._copies, strict=True)):
            with torch.no_grad():
                torch._foreach_copy_(self._copies, self._buffers)
        else:
            # A network may put another tensor in the place of one, give it another shape, or take it away.
            self._places = [place for place, each in zip(self._places, now, strict=True) if _is_plain(each)]
            self._buffers = [each for each in now if each is not None and _is_plain(each)]
            self._copies = [each.detach().clone() for each in self._buffers]

    def put_buffers_back(self) -> None:
        """Put back the buffers as the batch in hand came."""
        for (buffers, name), tensor, copy in zip(self._places, self._buffers, self._copies, strict=True):
            put_value(tensor, copy)
            buffers[name] = tensor

    def undo(self) -> bool:
        """Put back the buffers, and what is carried on, as the refused batch came, unless another has come since.

        Returns:
            Whether the weights are known to be those of its loss.
        """
        if self.reported is None or self.reported is not self._taken:
            return False
        self.put_buffers_back()
        for part, copy in self._carried:
            part.load_state_dict(clone(copy))
        return self.steps_later

    def hold(self, batch: Any) -> Any:
        """Hold a batch, as the training on it begins; and the random generators, if they are to be kept.

        Returns:
            The batch.
        """
        self.batch, self.inputs, self._first, self._taken, self._has_come = batch, None, None, None, True
        if self.keeps_generators or self._holds_starts:
            self._generators = hold_random_state()
        if self._holds_starts:
            self.start = self._generators
        if self._places:
            self._copy_buffers()
        if self._carried:
            self._carried = [(part, clone(part.state_dict())) for part, _ in self._carried]
        return batch

    def take(self, ticket: Ticket) -> Held:
        """The batch in hand, as its loss is noted."""
        # Of a step that does not call the model those of the step before would be another batch.
        inputs, first, self.inputs, self._first = self.inputs, self._first, None, None
        held = Held(ticket, self.batch, inputs, self._generators, None if first is inputs else first)
        self._taken, self._has_come = held if self._has_come else None, False
        return held

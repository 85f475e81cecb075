"""The batch in hand: held by reference from the loader to the report of its loss, so that it can run again."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ...sources.random_generators import hold_random_state

if TYPE_CHECKING:
    from ...sources.ticket import Ticket


Given = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of a call, positional and by name."""

# Much faster than the constructor of a named tuple, which is a Python function.
_new_tuple = tuple.__new__


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
        start: The random generators as the batch came, and copies of the buffers of a model; None where they are not
            held.
    """

    def __init__(self, *, keeps_generators: bool) -> None:
        self.keeps_generators = keeps_generators
        self.start: tuple[Any, list[torch.Tensor]] | None = None
        self._model: torch.nn.Module | None = None
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
        self._model = model

    def hold(self, batch: Any) -> Any:
        """Hold a batch, as the training on it begins; and the random generators, if they are to be kept.

        Returns:
            The batch.
        """
        self.batch, self.inputs, self._first = batch, None, None
        if self.keeps_generators or self._model is not None:
            self._generators = hold_random_state()
        if self._model is not None:
            self.start = self._generators, [each.detach().clone() for each in self._model.buffers()]
        return batch

    def take(self, ticket: Ticket) -> Held:
        """The batch in hand, as its loss is noted."""
        # Of a step that does not call the model those of the step before would be another batch.
        inputs, first, self.inputs, self._first = self.inputs, self._first, None, None
        return _new_tuple(Held, (ticket, self.batch, inputs, self._generators, None if first is inputs else first))

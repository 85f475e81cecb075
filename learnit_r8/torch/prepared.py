"""What other libraries wrap around models, optimizers and loaders: how to look inside, and how to do as they do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch

from ..bridge.group_rates import plain_optimizer


def prepare(batches: Iterator[Any], loader: Any, device: torch.device) -> Iterator[Any]:
    """Put batches on a device, and tell `accelerate.Accelerator` of the last one of an epoch, as its own loaders do.

    It then takes the optimizer's step there, with as many gradients as were added up.

    Args:
        batches: The batches of an iteration.
        loader: Their loader; accelerate reads its ``end_of_dataloader`` and ``remainder``.
        device: Where the batches go.
    """
    from accelerate.state import GradientState
    from accelerate.utils import send_to_device

    state, reader = GradientState(), loader.batch_sampler.batches
    # No samples to be cut off when metrics are gathered.
    loader.end_of_dataloader, loader.remainder = False, 0
    state._add_dataloader(loader)
    try:
        for number, batch in enumerate(batches, start=1):
            # Batches that come once more follow the last one, and each is a last one too.
            loader.end_of_dataloader = number >= reader.reader.length
            yield batch if device.type == "cpu" else send_to_device(batch, device, non_blocking=True)
    finally:
        state._remove_dataloader(loader)


def is_accelerated() -> bool:
    """Whether this process has made an `accelerate.Accelerator`."""
    state = sys.modules.get("accelerate.state")
    return state is not None and bool(state.AcceleratorState._shared_state)


def plain_model(model: Any) -> Any:
    """The model inside what `torch.compile` and data parallelism wrap around it."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if inner is None:
            return model
        model = inner


def inner_optimizers(optimizer: Any) -> dict[str, torch.optim.Optimizer]:
    """The optimizers that take the steps of one that holds them, as SAM does, by name, if its state lacks theirs."""
    plain = plain_optimizer(optimizer)
    if getattr(type(plain), "state_dict", None) is not torch.optim.Optimizer.state_dict:
        # It says itself what belongs to its state.
        return {}
    return {name: each for name, each in vars(plain).items() if isinstance(each, torch.optim.Optimizer)}


def is_skipping(loader: Any) -> bool:
    """Whether accelerate's ``skip_first_batches`` has made a loader."""
    samplers = [getattr(loader, name, None) for name in ("batch_sampler", "sampler")]
    return any(getattr(each, "skip_batches", 0) for each in (loader, *samplers))


def takes_arrays(dataset: Any) -> bool:
    """Whether a batch of a data set may be an int64 array.

    It has a ``__getitems__`` of its own then; those of torch's and datasets' own want lists of ints.
    """
    if isinstance(known := getattr(dataset, "takes_arrays", None), bool):
        # That of a `SampleReader` is of what it reads.
        return known
    own = getattr(type(dataset), "__getitems__", None)
    return own is not None and getattr(own, "__module__", "").partition(".")[0] not in ("torch", "datasets")


class SampleError(RuntimeError):
    """A sample of the data set could not be read; the message names it."""

"""Shards: the parts of a model, and of its optimizer's state, that `fully_shard` (FSDP2) leaves on each rank.

A backup in RAM holds the shards of its own rank, as plain tensors: copying, checking and putting them back takes no
message. A file holds whole tensors, as that of a model that is not sharded does, so it may be read on any number of
ranks, and by a model under DistributedDataParallel too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch

from ...state.tree import map_leaves


class Layout(NamedTuple):
    """How a tensor lies on the ranks.

    Attributes:
        mesh: The `DeviceMesh`.
        placements: Its placement on each dimension of the mesh.
        shape: Shape of the whole tensor.
        stride: Stride of the whole tensor.
    """

    mesh: Any
    placements: Any
    shape: torch.Size
    stride: tuple[int, ...]


def is_shard(value: Any) -> bool:
    """Whether a tensor is a ``DTensor``, of which each rank holds a part."""
    return isinstance(value, torch.Tensor) and hasattr(value, "to_local") and hasattr(value, "placements")


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether a rank holds only parts of a model."""
    return any(map(is_shard, model.parameters()))


def reshard(model: torch.nn.Module) -> None:
    """Free the whole parameters that a forward pass without a backward pass has left with `fully_shard`."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    for module in () if fsdp is None else model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


class Shards:
    """Turns the shards in a state into plain tensors of this rank or of the whole model, and back."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[Any, ...], Layout] = {}

    def local(self, state: Any, *path: Any) -> Any:
        """The same nest with the parts of this rank as plain tensors, which share their memory.

        Args:
            state: Nested dicts, lists and tuples of tensors and other values.
            *path: Name of the state, by which `joined` and `cut` find the layouts of its tensors.
        """
        return map_leaves(self._local, state, *path)

    def _local(self, value: Any, *path: Any) -> Any:
        if not is_shard(value):
            return value
        self._layouts[path] = layout_of(value)
        return value.to_local().detach()

    def joined(self, state: Any, *path: Any) -> Any:
        """What `local` was given, rebuilt from what it returned or from a copy of that."""
        return map_leaves(self._joined, state, *path)

    def _joined(self, value: Any, *path: Any) -> Any:
        layout = self._layouts.get(path)
        if layout is None or not isinstance(value, torch.Tensor):
            return value
        from torch.distributed.tensor import DTensor

        mesh, placements, shape, stride = layout
        return DTensor.from_local(value, mesh, placements, run_check=False, shape=shape, stride=stride)

    def whole(self, state: Any, *, keeps: bool = True) -> Any:
        """The same nest with whole tensors, on the host; every rank must call it, with tensors in the same order.

        Args:
            state: As for `local`.
            keeps: Whether the result is of use on this rank; it is empty else.
        """

        def gather(value: Any, *_: Any) -> Any:
            if not is_shard(value):
                return value
            full = value.full_tensor().detach()
            return full.cpu() if keeps else torch.empty(0)

        return map_leaves(gather, state)

    def cut(self, state: Any, *path: Any) -> Any:
        """The nest of whole tensors that `whole` returned, as the shards of this rank; no message is sent.

        Args:
            state: As `whole` returned it.
            *path: The name under which `local` was given the state of this model, or of this optimizer.
        """
        return map_leaves(self._cut, state, *path)

    def _cut(self, value: Any, *path: Any) -> Any:
        layout = self._layouts.get(path)
        if layout is None or not isinstance(value, torch.Tensor) or is_shard(value):
            return value
        from torch.distributed.tensor import distribute_tensor

        # Every rank has read the file: none needs to be sent its part.
        return distribute_tensor(value, layout.mesh, layout.placements, src_data_rank=None)

    def cut_optimizer(self, state: Mapping[str, Any], optimizer: Any, *path: Any) -> Any:
        """As `cut`, for the state of an optimizer that may not have taken a step yet.

        Raises:
            ValueError: how a tensor is to be shared among the ranks is not known. Nothing was changed.
        """
        parameters = [each for group in getattr(optimizer, "param_groups", ()) for each in group["params"]]
        for number, values in state.get("state", {}).items():
            if is_shard(parameters[number]):
                for name, value in values.items():
                    self._note_layout(value, parameters[number], (*path, "state", number, name))
        return self.cut(state, *path)

    def _note_layout(self, value: Any, parameter: torch.Tensor, path: tuple[Any, ...]) -> None:
        """Note the layout of a tensor that belongs to a parameter, if it is not known yet."""
        if path in self._layouts or not isinstance(value, torch.Tensor) or not value.ndim:
            return
        if value.shape != parameter.shape:
            raise ValueError(
                f"the optimizer's state must be numbers, or tensors of the shape of their parameter, to be shared "
                f"among ranks before its first step, got {path[-1]!r} of shape {tuple(value.shape)} for a parameter "
                f"of shape {tuple(parameter.shape)}."
            )
        self._layouts[path] = layout_of(parameter)


def layout_of(shard: Any) -> Layout:
    """The layout of a ``DTensor``."""
    return Layout(shard.device_mesh, shard.placements, shard.shape, shard.stride())


def check_shards(model: torch.nn.Module, size: int) -> None:
    """Raise ValueError unless the shards of a model are those of ranks that each train on a part of the batch.

    Args:
        model: The model.
        size: Number of ranks.
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    for name, module in () if fsdp is None else model.named_modules():
        if isinstance(module, fsdp.FullyShardedDataParallel):
            raise ValueError(
                f"model must be sharded by fully_shard() (FSDP2), got FullyShardedDataParallel (FSDP1) at {name!r}; "
                "call fully_shard(model) in its place before the optimizer is made (Accelerate: fsdp_version=2). "
                "Checkpoints that were written under FSDP1 fit."
            )
    for name, parameter in model.named_parameters():
        if not is_shard(parameter):
            continue
        mesh, placements, *_ = layout_of(parameter)
        kinds = [type(each).__name__ for each in placements]
        if mesh.size() != size:
            raise ValueError(
                f"model must be sharded over all {size} ranks, got {name!r} on a mesh of {mesh.size()}: every rank "
                "takes a part of the batch."
            )
        if kinds not in (["Shard"], ["Replicate", "Shard"], ["Replicate"], ["Replicate", "Replicate"]):
            raise ValueError(
                f"model must be sharded by fully_shard() alone, got {name!r} placed as {tuple(placements)}: with "
                "tensor or pipeline parallelism several ranks would have to train on the same part of the batch."
            )


def clip_shards(parameters: Iterable[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Clip the gradient of which each rank holds a part; returns its norm before, the same on all ranks.

    Args:
        parameters: Parameters, some of them shards.
        max_norm: Longest gradient, > 0.
    """
    gradients = [each.grad for each in parameters if each.grad is not None]
    kinds = [each for each in gradients if is_shard(each)], [each for each in gradients if not is_shard(each)]
    norms = [torch.nn.utils.get_total_norm(each) for each in kinds if each]
    norms = [each.full_tensor() if is_shard(each) else each for each in norms]  # type: ignore[attr-defined]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    for gradient in gradients:
        part = gradient.to_local() if is_shard(gradient) else gradient  # type: ignore[attr-defined]
        part.mul_(factor.to(part.device))
    return norm

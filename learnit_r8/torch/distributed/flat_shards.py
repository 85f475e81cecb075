"""Flat shards: the parts of a model under `FullyShardedDataParallel` (FSDP1), and of its optimizer's state.

What each rank holds are plain tensors, pieces of several parameters one after the other. A backup in RAM is of those,
and takes no message. A file is that of a model that is not sharded; to write and to read it takes messages.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...checkpoint.state_tree import map_leaves


def is_flat(model: Any) -> bool:
    """Whether a model is one under ``FullyShardedDataParallel``."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(model, fsdp.FullyShardedDataParallel)


def units_of(model: torch.nn.Module) -> list[Any]:
    """Every module within a model, itself too, that ``FullyShardedDataParallel`` has wrapped."""
    return [module for module in model.modules() if is_flat(module)]


def reshard_flat(model: torch.nn.Module) -> None:
    """Free the whole parameters that a forward pass without a backward pass has left; the next would use old ones."""
    for unit in units_of(model):
        handle = unit._handle
        # Before its first use it has none; where storage was freed already there is nothing to do.
        is_used = handle is not None and unit._is_root is not None and handle.uses_sharded_strategy
        if is_used and not handle.needs_unshard():
            handle.reshard(True)
            handle.post_reshard()
            handle._prefetched = False


def check_flat(model: torch.nn.Module, optimizer: Any, size: int, *, scaler: Any, ema: Any) -> None:
    """Raise ValueError unless a training of a model with parts under ``FullyShardedDataParallel`` can be kept.

    Args:
        model: The model, without what is around ``FullyShardedDataParallel``.
        optimizer: Its optimizer.
        size: Number of ranks.
        scaler: Its loss scaler, or None.
        ema: Its averaged weights, or None.
    """
    units = units_of(model)
    if not units:
        return
    if not is_flat(model):
        raise ValueError(
            f"model must be under FullyShardedDataParallel as a whole, got {type(model).__name__} with parts that are; "
            "wrap the model too, or shard it by fully_shard()."
        )
    sizes = {unit.process_group.size() for unit in units}
    if sizes != {size} or any("HYBRID" in unit.sharding_strategy.name for unit in units):
        raise ValueError(
            f"model must be sharded by FullyShardedDataParallel over all {size} ranks, got groups of {sorted(sizes)}, "
            f"{model.sharding_strategy}; hybrid sharding needs fully_shard()."
        )
    if not isinstance(optimizer, torch.optim.Optimizer) or hasattr(optimizer, "optimizer"):
        raise ValueError(
            f"optimizer must be a plain torch.optim.Optimizer under FullyShardedDataParallel, got {optimizer!r}."
        )
    if ema is not None:
        raise ValueError(f"ema must be None under FullyShardedDataParallel (use fully_shard()), got {ema!r}.")
    if scaler is not None and scaler.is_enabled() and not hasattr(scaler, "process_group"):
        raise ValueError(
            "scaler must be a torch.distributed.fsdp.sharded_grad_scaler.ShardedGradScaler under "
            f"FullyShardedDataParallel, or ranks would skip different steps, got {scaler!r}."
        )
    for name, module in model.named_modules():
        if type(module).get_extra_state is not torch.nn.Module.get_extra_state:
            raise ValueError(
                "model must have no get_extra_state() under FullyShardedDataParallel (use fully_shard()), got one in "
                f"{name!r}."
            )


class FlatShards:
    """Reads and puts back the parts of this rank, or the whole state.

    Args:
        model: The model under ``FullyShardedDataParallel``.
        optimizer: Its optimizer, or None.
    """

    def __init__(self, model: Any, optimizer: Any) -> None:
        self._model, self._optimizer = model, optimizer
        self._shapes: dict[str, Any] | None = None

    def local(self) -> dict[str, dict[str, torch.Tensor]]:
        """The parts of the model that this rank holds, by name; they share its memory."""
        reshard_flat(self._model)
        named = (*self._model.named_parameters(), *self._model.named_buffers())
        return {"model": {name: tensor.detach() for name, tensor in named}}

    def whole(self, *, keeps: bool = True) -> dict[str, Any]:
        """Model and optimizer, as those of a model that is not sharded; every rank must call it.

        Args:
            keeps: Whether the result is of use on this rank; its tensors are empty else.
        """
        from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp

        with self._as_whole():
            state = {"model": self._model.state_dict()}
            self._shapes = {name: getattr(value, "shape", None) for name, value in state["model"].items()}
            if self._optimizer is not None:
                state["optimizer"] = _numbered(Fsdp.optim_state_dict(self._model, self._optimizer), self._groups())
        return state if keeps else map_leaves(_emptied, state)

    def put(self, state: Mapping[str, Any], *, local: bool) -> set[str]:
        """Put back what `local` or `whole` returned, or a copy of it.

        Args:
            state: A whole one may be that of a model that is not sharded.
            local: Which of the two; every rank must call it for a whole one.

        Returns:
            The names of the parts that were put back.
        """
        if local:
            for name, tensor in self.local()["model"].items():
                tensor.copy_(state["model"][name])
            return {"model"}
        self._put_whole(state)
        return {"model", "optimizer"}

    def _put_whole(self, state: Mapping[str, Any]) -> None:
        from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp

        reshard_flat(self._model)
        with self._as_whole():
            self._model.load_state_dict(state["model"])
            if self._optimizer is not None:
                named = _named(state["optimizer"], self._groups())
                self._optimizer.load_state_dict(Fsdp.optim_state_dict_to_load(self._model, self._optimizer, named))

    def shapes(self, local: bool) -> dict[str, Any]:
        """The shape of every tensor of this rank, or of the whole model: then every rank must call it."""
        if local:
            return {name: value.shape for name, value in self.local()["model"].items()}
        if self._shapes is None:
            self.whole(keeps=False)
        return self._shapes or {}

    def groups(self) -> list[list[str]]:
        """The names of the whole parameters in each group of the optimizer."""
        with self._as_whole():
            return self._groups()

    def _groups(self) -> list[list[str]]:
        from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp

        # Of a state without tensors it makes names alone.
        stateless = {**self._optimizer.state_dict(), "state": {}}
        groups = [
            each["params"] for each in Fsdp.optim_state_dict(self._model, self._optimizer, stateless)["param_groups"]
        ]
        if any(unit._use_orig_params for unit in units_of(self._model)):
            return groups
        # The optimizer has one tensor for several parameters, not always in the order of the model.
        order = {name: number for number, name in enumerate(self.shapes(False))}
        return [sorted(group, key=order.__getitem__) for group in groups]

    @contextlib.contextmanager
    def _as_whole(self) -> Iterator[None]:
        from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, StateDictType
        from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp

        # On gloo, with tensors on the host, torch 2.13 crashes where it is asked to bring them there.
        options = {"offload_to_cpu": next(self._model.parameters()).is_cuda, "rank0_only": False}
        kinds = FullStateDictConfig(**options), FullOptimStateDictConfig(**options)
        with warnings.catch_warnings():
            # Of what torch itself calls that is deprecated.
            warnings.simplefilter("ignore")
            with Fsdp.state_dict_type(self._model, StateDictType.FULL_STATE_DICT, *kinds):
                yield


def _numbered(state: Mapping[str, Any], groups: list[list[str]]) -> dict[str, Any]:
    """The state of an optimizer with its parameters by number, as that of one that is not sharded."""
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group)}
    kept = {numbers[name]: values for name, values in state["state"].items()}
    pairs = zip(state["param_groups"], groups, strict=True)
    return {
        "state": dict(sorted(kept.items())),
        "param_groups": [{**each, "params": [numbers[name] for name in group]} for each, group in pairs],
    }


def _named(state: Mapping[str, Any], groups: list[list[str]]) -> dict[str, Any]:
    """The inverse of `_numbered`."""
    names = [name for group in groups for name in group]
    numbers = [number for each in state["param_groups"] for number in each["params"]]
    by_number = dict(zip(numbers, names, strict=True))
    pairs = zip(state["param_groups"], groups, strict=True)
    return {
        "state": {by_number[number]: values for number, values in state["state"].items()},
        "param_groups": [{**each, "params": group} for each, group in pairs],
    }


def _emptied(value: Any, *_: Any) -> Any:
    return torch.empty(0) if isinstance(value, torch.Tensor) else value

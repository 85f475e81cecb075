"""What the launcher of this process (torchrun, srun or mpirun) says about the processes that train together."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

_RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_SIZES = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def rank_of(environ: Mapping[str, str] = os.environ) -> int:
    """The rank of this process; 0 without a launcher."""
    return first_number(_RANKS, 0, environ)


def num_ranks_of(environ: Mapping[str, str] = os.environ) -> int:
    """Number of processes that train together; 1 without a launcher."""
    return first_number(_SIZES, 1, environ)


def restarts_cannot_meet() -> bool:
    """Whether torchrun may restart the ranks, but with the store of the previous ones."""
    may_restart = first_number(("TORCHELASTIC_MAX_RESTARTS",), 0) > 0
    return may_restart and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def is_of_jax_distributed() -> bool:
    """Whether ``jax.distributed`` has joined this process with others, of which no launcher need tell."""
    distributed: Any = getattr(sys.modules.get("jax"), "distributed", None)
    return hasattr(distributed, "is_initialized") and bool(distributed.is_initialized())


def first_number(names: tuple[str, ...], default: int, environ: Mapping[str, str] = os.environ) -> int:
    """The first of these environment variables that is a whole number."""
    for name in names:
        value = environ.get(name, "")
        if value.isdecimal():
            return int(value)
    return default

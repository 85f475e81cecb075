"""Several processes of `jax.distributed`: their schedulers act as one, and all restore the same state.

All processes run the same program on the same global arrays, so they see the same losses. What they do not share by
themselves is the time, signals, files and failures: a small message a step tells these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import NDArray

from ..bridge.ranks import Channel, PartsOfRanks, check_same, digest_of
from ..state.codec import decode, encode

if TYPE_CHECKING:
    from ..scheduler import R8Scheduler

NOT_FIRST = (
    "run_dir must be left out of R8Scheduler on all processes but the first, got one on process {}; write "
    "run_dir=... if jax.process_index() == 0 else None."
)


class ProcessChannel(Channel):
    """Carries messages between the processes of `jax.distributed`; a `Channel`.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
    """

    def __init__(self) -> None:
        self.rank, self.size = jax.process_index(), jax.process_count()
        # One device of each.
        first = {device.process_index: device for device in reversed(jax.devices())}
        mesh = jax.sharding.Mesh(np.array([first[rank] for rank in range(self.size)]), ("process",))
        # Its annotations are incomplete.
        spec: Any = jax.sharding.PartitionSpec
        self._spread = jax.sharding.NamedSharding(mesh, spec("process"))
        self._copy = jax.jit(lambda rows: rows, out_shardings=jax.sharding.NamedSharding(mesh, spec()))

    def gather(self, message: NDArray[Any]) -> NDArray[Any]:
        """T[size, L], the messages of all processes."""
        # As bytes: JAX would make 32 bits of 64.
        own = np.ascontiguousarray(message).view(np.uint8).reshape(1, -1)
        make: Any = jax.make_array_from_process_local_data
        rows = make(self._spread, own, (self.size, own.shape[1]))
        gathered = np.asarray(self._copy(rows).addressable_data(0))
        return np.ascontiguousarray(gathered).view(message.dtype)

    def gather_values(self, value: Any) -> list[Any]:
        """The values of all processes, which may be anything that a checkpoint can hold."""
        own = np.frombuffer(encode({"value": value}), np.uint8)
        lengths = self.gather(np.array([len(own)]))[:, 0].tolist()
        rows = self.gather(np.pad(own, (0, max(lengths) - len(own))))
        return [decode(row[:length].tobytes())["value"] for row, length in zip(rows, lengths, strict=True)]


class SharedProcesses(PartsOfRanks):
    """Makes the schedulers of all processes one; every process makes it, at the same place.

    Args:
        r8: This process's scheduler, built with the same arguments as those of the others.

    Raises:
        RanksDiffer: another process has built its scheduler with other arguments, or has resumed elsewhere.
        ValueError: a process other than the first has a run folder.
    """

    def __init__(self, r8: R8Scheduler) -> None:
        super().__init__(ProcessChannel())
        self._r8 = r8
        # Asked of all, so that all raise.
        others = np.flatnonzero(self.channel.gather(np.array([r8.run_dir is not None]))[1:, 0]) + 1
        if len(others):
            raise ValueError(NOT_FIRST.format(", ".join(map(str, others.tolist()))))
        r8.host.share(self)

    def meet(self, loss: Any) -> None:
        """Share the time and the requests, before a loss is reported.

        Args:
            loss: What is reported; it must be the same on all processes.

        Raises:
            RanksDiffer: it is not, or the processes are at different steps.
        """
        r8, clock = self._r8, self._clock
        numbers = np.array([r8.global_step, digest_of(np.asarray(loss, np.float64)), r8.requests.wished])
        message = np.concatenate([numbers.view(np.float64), [clock.own(), *r8.requests.span]])
        everyone = self.channel.gather(message)
        steps, digests, wished = np.ascontiguousarray(everyone[:, :3]).view(np.int64).T.tolist()
        check_same("the step", steps, f"all processes must report the same steps, got {steps}")
        check_same(
            "the loss",
            digests,
            f"all processes must report the same loss at step {r8.global_step}, got {loss} on process "
            f"{self.channel.rank}; compute it in the jitted step, over the whole batch",
        )
        clock.now = float(everyone[0, 3])
        r8.requests.agree(wished, everyone[:, 4:].tolist())


def whole(array: Any) -> Any:
    """An array that other processes have parts of, as a numpy array, for which all must call it; others as they are."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return array
    if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(whole(jax.random.key_data(array)), impl=jax.random.key_impl(array))
    if array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def size_of(batch: Any) -> int:
    """Samples that this process adds to a batch, whose arrays may be spread over all processes."""
    leaves = [leaf for leaf in jax.tree.leaves(batch) if getattr(leaf, "ndim", 0)]
    if not leaves:
        return 1
    count = int(leaves[0].shape[0])
    is_shared = isinstance(leaves[0], jax.Array) and not leaves[0].is_fully_addressable
    return count // jax.process_count() if is_shared else count

"""R8Loader: takes the place of the shuffling DataLoader in a training with Lightning."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from .._validation import whole_number
from ..sources.random_generators import set_random_state
from ..torch.adapter import Adapter
from ..torch.attachment import attach
from ..torch.loader import check_dataset, refuse_decided
from ..torch.readback import num_processes

if TYPE_CHECKING:
    from ..engine.settings import CommonSettings, Unpack
    from ..scheduler import R8Scheduler
    from ..torch.loader import LoaderSettings

    class R8LoaderSettings(CommonSettings, LoaderSettings, total=False):
        """Settings for the scheduler and for the loader."""


OF_LOADERS = frozenset(inspect.signature(DataLoader).parameters) - {"dataset", "batch_size"}
"""Settings that are the DataLoader's."""

NO_CALLBACK = (
    "R8Loader must be trained on by a Trainer that has its callback, got no R8Callback; write "
    "Trainer(callbacks=[R8Callback(loader)])."
)

WEIGHTED = (
    "policy must give no weights under Lightning, where training_step computes the loss that is trained on, got some; "
    "write your own loop with learnit_r8.torch.attach()."
)

OTHER_SIZE = "the batches of all processes together have {} samples, as in the checkpoint, in place of {}."


class R8Loader:
    """The batches that an R8Scheduler draws; `R8Callback` builds the scheduler as the training begins.

    It is not a `DataLoader`, so that Lightning leaves it as it is with several processes. Lightning's own checkpoints
    hold its state, which is the scheduler's.

    Args:
        dataset: The data, with N samples: anything with a length and an index.
        batch_size: Samples in a batch of each process, >= 1, as for a DataLoader under Lightning.
        **settings: For the DataLoader (``num_workers``, ``collate_fn`` ...), and for `R8Scheduler`. The budget is the
            Trainer's unless one is given here; with ``scheduler_mode="keep"`` the rate is that of the module.

    Raises:
        TypeError: the data set has no length or no index, or is a DataLoader.
        ValueError: ``batch_size`` is less than 1, or a setting is one that the scheduler decides (shuffle, sampler).

    Attributes:
        adapter: What `learnit_r8.torch.attach` returned; None before the training.

    >>> len(R8Loader(range(100), batch_size=32))
    4
    """

    def __init__(self, dataset: Any, *, batch_size: int, **settings: Unpack[R8LoaderSettings]) -> None:
        check_dataset(dataset)
        given: dict[str, Any] = dict(settings)
        refuse_decided(given)
        self.dataset = dataset
        self.batch_size = whole_number("batch_size", batch_size, least=1)
        self.adapter: Adapter | None = None
        self._saved_size: int | None = None
        self._is_chained = False
        self._of_loader = {name: given.pop(name) for name in OF_LOADERS & set(given)}
        self._settings = given
        self._batches: DataLoader[Any] | None = None
        self._random: Mapping[str, Any] | None = None

    @property
    def scheduler(self) -> R8Scheduler:
        """The scheduler.

        Raises:
            RuntimeError: the training has not begun.
        """
        return self._attached.scheduler

    @property
    def _attached(self) -> Adapter:
        if self.adapter is None:
            raise RuntimeError(NO_CALLBACK)
        return self.adapter

    @property
    def settings(self) -> dict[str, Any]:
        """The settings for `R8Scheduler`."""
        return dict(self._settings)

    @property
    def global_batch_size(self) -> int:
        """Samples in a batch of all processes together: those of the checkpoint, if the training goes on from one."""
        return self._saved_size or self.batch_size * num_processes()

    def keep_batch_size(self, state: Mapping[str, Any]) -> None:
        """Keep the batches of the training that `whole_state` is of, also where there are other processes now."""
        self._saved_size = int(state["scheduler"]["data"]["batch_size"]) if state else None

    def attach(self, module: torch.nn.Module, optimizer: Any, *, is_chained: bool = False, **settings: Any) -> Adapter:
        """Build the scheduler for a training.

        Args:
            module: The model.
            optimizer: Its optimizer.
            is_chained: Whether an iteration goes on in the next epoch: the Trainer's epochs are shorter.
            **settings: For `learnit_r8.torch.attach`.
        """
        size, given = self.global_batch_size, self.batch_size * num_processes()
        self.adapter = attach(module, optimizer, self.dataset, batch_size=size, **settings)
        if self.scheduler.policy.weighs:
            raise ValueError(WEIGHTED)
        self.scheduler.pace.is_counted = True
        if size != given:
            self.scheduler.host.say_once("batch size", OTHER_SIZE.format(size, given), is_warning=False)
        self._batches = self.adapter.loader(**self._of_loader)
        self._is_chained, self._random = is_chained, None
        return self.adapter

    def __iter__(self) -> Iterator[Any]:
        # Begins with the first batch, as Lightning asks for an iteration when it counts the steps, before there is any.
        if self._batches is None:
            raise RuntimeError(NO_CALLBACK)
        batches = iter(self._batches)
        if self._random is not None:
            set_random_state(self._random)
            self._random = None
        yield from batches
        while self._is_chained and not self.scheduler.is_over:
            yield from self._batches

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        size, count = self.global_batch_size, len(self.dataset)
        return count // size if self._settings.get("last_batch") == "drop" else -(-count // size)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: Lightning gives loaders their state back only in mid-epoch, so `R8Callback` keeps it."""
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Do nothing; Lightning takes a loader with this method for one that can go on in mid-epoch."""

    def whole_state(self) -> dict[str, Any]:
        """The scheduler's state, and those of the random generators of all processes; to be called on all of them."""
        # The losses on their way first: one of them may put the generators back.
        state = self._attached.lr_scheduler.state_dict()
        return {"scheduler": state, "random": self._attached.state.collect_generators()}

    def go_on_from(self, state: Mapping[str, Any]) -> None:
        """Take over what `whole_state` returned.

        Raises:
            ValueError: it is of another data set or batch size. Nothing was changed.
        """
        self._attached.lr_scheduler.load_state_dict(state["scheduler"])
        self._random = self._attached.state.own_generators(state["random"])

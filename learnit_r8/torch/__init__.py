"""PyTorch: data-aware batches for any `DataLoader`, and an adapter for your own loops.

>>> from learnit_r8.torch import attach  # doctest: +SKIP
>>> adapter = attach(model, optimizer, dataset, batch_size=128, num_epochs=10)  # doctest: +SKIP
>>> for epoch in adapter.epochs():  # doctest: +SKIP
...     for x, y in adapter.loader(num_workers=4):
...         adapter.step(adapter.loss(cross_entropy(model(x), y, reduction="none")))
"""

from __future__ import annotations

from .._validation import how_to_install, import_needed

import_needed("torch", "learnit_r8.torch needs PyTorch", how_to_install("torch"))

from ..bridge.ranks import RanksDiffer
from ..state.callbacks import RankLost
from .adapter import Adapter
from .attachment import attach
from .distributed.ranks import Ranks
from .distributed.shared_run import Share, SharedRun
from .distributed.together import Together
from .flight.incident import RecordedIncident, load_incident
from .loader import R8BatchSampler
from .lr_scheduler import R8LRScheduler
from .prepared import SampleError
from .state import ModelState

__all__ = [
    "Adapter",
    "ModelState",
    "R8BatchSampler",
    "R8LRScheduler",
    "RankLost",
    "Ranks",
    "RanksDiffer",
    "RecordedIncident",
    "SampleError",
    "Share",
    "SharedRun",
    "Together",
    "attach",
    "load_incident",
]

"""Lightning: data-aware batches for `lightning.Trainer`, in two changed lines.

>>> from learnit_r8.lightning import R8Callback, R8Loader  # doctest: +SKIP
>>> loader = R8Loader(dataset, batch_size=64)  # doctest: +SKIP
>>> lightning.Trainer(max_epochs=10, callbacks=[R8Callback(loader)]).fit(module, loader)  # doctest: +SKIP
"""

from __future__ import annotations

from .._validation import check_release, how_to_install, import_needed

import_needed("lightning", "learnit_r8.lightning needs Lightning", how_to_install("lightning"))
check_release("lightning", "2.5")

from .callback import R8Callback, cross_entropy
from .loader import R8Loader

__all__ = ["R8Callback", "R8Loader", "cross_entropy"]

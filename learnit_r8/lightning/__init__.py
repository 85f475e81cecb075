"""Lightning: data-aware batches for `lightning.Trainer`, in two changed lines.

>>> from learnit_r8.lightning import R8Callback, R8Loader  # doctest: +SKIP
>>> loader = R8Loader(dataset, batch_size=64)  # doctest: +SKIP
>>> lightning.Trainer(max_epochs=10, callbacks=[R8Callback(loader)]).fit(module, loader)  # doctest: +SKIP
"""

from __future__ import annotations

from .._validation import check_release, how_to_install

try:
    import lightning  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"learnit_r8.lightning needs Lightning, which could not be imported; {how_to_install('lightning')}."
    ) from error

check_release("lightning", "2.5")

from .callback import R8Callback, cross_entropy  # noqa: E402
from .loader import R8Loader  # noqa: E402

__all__ = ["R8Callback", "R8Loader", "cross_entropy"]

"""Hugging Face Transformers: data-aware batches for `transformers.Trainer` and its subclasses.

>>> from transformers import Trainer  # doctest: +SKIP
>>> from learnit_r8.transformers import R8Mixin  # doctest: +SKIP
>>> class R8Trainer(R8Mixin, Trainer): pass  # doctest: +SKIP
"""

from __future__ import annotations

from .._validation import check_release, how_to_install, import_needed

import_needed("transformers", "learnit_r8.transformers needs Transformers", how_to_install("transformers"))
check_release("transformers", "4.57")

from .trainer import R8Mixin

__all__ = ["R8Mixin"]
